"""The bench of the front on real sockets, and the allocator that its figures rest on."""

import subprocess
import sys

import pytest

from cxls.bench.front import PARTS, bare, flat_out, front, libertem, parts

SIZE = 50_000


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_each_part_of_the_way_is_timed(protocol: str) -> None:
    with flat_out(protocol, SIZE) as endpoint:
        found = parts(endpoint, 1.0)
    assert tuple(found) == PARTS
    assert all(0 <= value < 10_000 for value in found.values())
    assert found["parse"] > 0


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_the_front_takes_what_a_flat_out_source_sends(protocol: str) -> None:
    with flat_out(protocol, SIZE) as endpoint:
        ours = front(endpoint, 0.5)
    with flat_out(protocol, SIZE) as endpoint:
        peer = bare(endpoint, 0.5)
    assert ours.hz > 100
    assert peer.hz > 100
    assert ours.thread_us is not None
    assert 0 < ours.thread_us < ours.process_us


def test_libertem_takes_the_same_source() -> None:
    pytest.importorskip("libertem_dectris")
    with flat_out("v1", SIZE) as endpoint:
        peer = libertem(endpoint, 0.5, SIZE)
    assert peer is not None
    assert peer.hz > 100


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


def test_a_message_is_not_mapped_by_itself() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", _MESSAGES, how], capture_output=True, check=True).stdout)
        for how in ("settled", "mapped")
    }
    assert faults["mapped"] > 200 * 200, "else this tells nothing: each message's pages are given anew"
    assert faults["settled"] < faults["mapped"] / 50
