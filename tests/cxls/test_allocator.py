"""What glibc does with memory once it is set for streams of messages."""

import subprocess
import sys

_MESSAGES = """
import resource, sys
import numpy as np
from cxls import allocator
if sys.argv[1] == "settled":
    allocator.settle()
else:
    import ctypes
    ctypes.CDLL(None).mallopt(-3, 1 << 20)
def messages(count):
    for _ in range(count):
        np.empty(1_100_000, "u1")[:] = 1
messages(20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
messages(200)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


_GAPS = """
import sys, threading, time
import numpy as np
from cxls import allocator
from streamer.connections import resident_bytes
allocator.GIVES_BACK_EVERY_S = 0.1 if sys.argv[1] == "gives back" else 3600
allocator.settle()
allocator.settle()
assert [thread.name for thread in threading.enumerate()].count("memory") == 1
buffers = [np.ones(1_100_000, "u1") for _ in range(200)]
before = resident_bytes()
stay = buffers[1::2]
del buffers
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until and before - resident_bytes() < 80e6:
    time.sleep(0.05)
print(before - resident_bytes(), sum(int(buffer.sum()) for buffer in stay))
"""


def _given_back_bytes(how: str, wait_s: str) -> int:
    process = subprocess.run([sys.executable, "-c", _GAPS, how, wait_s], capture_output=True, check=True)
    given_back, kept = map(int, process.stdout.split())
    assert kept == 100 * 1_100_000
    return given_back


def test_a_message_is_not_mapped_by_itself() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", _MESSAGES, how], capture_output=True, check=True).stdout)
        for how in ("settled", "mapped")
    }
    assert faults["mapped"] > 200 * 200, "else this tells nothing: each message's pages are given anew"
    assert faults["settled"] < faults["mapped"] / 50


def test_what_is_free_between_messages_that_stay_goes_back_to_the_system() -> None:
    assert _given_back_bytes("keeps", "1") < 20e6, "else this tells nothing: the gaps go back by themselves"
    assert _given_back_bytes("gives back", "30") >= 80e6


_THREADS = """
import ctypes, sys, threading, time
from cxls import allocator
from streamer.connections import resident_bytes
allocator.GIVES_BACK_EVERY_S = 0.1 if sys.argv[1] == "gives back" else 3600
allocator.settle()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
before, over = resident_bytes(), threading.Event()
def busy_once():
    messages = [library.malloc(1_000_000) for _ in range(28)]
    for message in messages:
        library.memset(message, 1, 1_000_000)
    for message in reversed(messages):
        library.free(message)
    over.wait()
thread = threading.Thread(target=busy_once)
thread.start()
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    time.sleep(0.05)
    if sys.argv[1] == "gives back" and resident_bytes() - before < 8e6 and time.monotonic() > until - 29:
        break
print(resident_bytes() - before)
over.set()
"""


def _left_of_a_thread_bytes(how: str, wait_s: str) -> int:
    process = subprocess.run([sys.executable, "-c", _THREADS, how, wait_s], capture_output=True, check=True)
    return int(process.stdout)


def test_what_a_thread_needed_once_goes_back_while_the_thread_lives() -> None:
    assert _left_of_a_thread_bytes("keeps", "1") > 20e6, "else this tells nothing: it goes back by itself"
    assert _left_of_a_thread_bytes("gives back", "30") < 8e6


_CYCLES = """
import gc, sys, weakref
from cxls import allocator
libraries = [[] for _ in range(1_500_000)]
gc.collect()
if sys.argv[1] == "set aside":
    allocator.set_aside()
    assert gc.get_freeze_count() > 1_500_000
class Part:
    pass
def picture():
    parts = [Part() for _ in range(2000)]
    for part in parts:
        part.of = parts
    return parts[0], weakref.ref(parts[0])
pictures = []
for _ in range(20):
    drawn, seen = picture()
    pictures.append(seen)
    # So many that it is no young object any more when it goes.
    others = [[] for _ in range(9_000)]
    del drawn, others
print(sum(each() is not None for each in pictures))
"""


def test_cycles_of_a_program_that_is_ready_go_soon() -> None:
    left = {
        how: int(subprocess.run([sys.executable, "-c", _CYCLES, how], capture_output=True, check=True).stdout)
        for how in ("set aside", "left alone")
    }
    assert left["left alone"] > 10, "else this tells nothing: they go by themselves"
    assert left["set aside"] <= 10
