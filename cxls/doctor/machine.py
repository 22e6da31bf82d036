"""Cores, memory, limits, network buffers and the clock of this machine."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from cxls.doctor.finding import Finding, ok, warn
from cxls.open_files import attainable

_GIB = 1 << 30
_MIB = 1 << 20
PROGRAM_BYTES = 600 * _MIB
"""What a process takes once it is warm, beside its queues and workers (`cxls bench memory`), rounded up."""

WORKER_BYTES = 100 * _MIB
"""What a worker takes for a 4M detector's geometry, rounded up."""

FEWEST_FILES = 10 * 1024
"""Two for each of the 1024 connections of the largest door, which takes a fifth (``analyzer/descriptors.py``)."""

TCP_BUFFER_BYTES = 6 * _MIB
"""Linux' own default for the largest receive buffer of a connection."""

_TIME_ERROR = 5


def cores() -> Iterator[Finding]:
    """Those that this process may use."""
    usable, all_of_them = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    load = os.getloadavg()[0]
    text = f"{usable} usable of {all_of_them}, load {load:.1f}"
    if load > usable:
        yield warn("cores", text, "other programs use them: what is measured now is less than the machine can do")
    else:
        yield ok("cores", text)


def memory(queues_bytes: int, threads: int, processes: int) -> Iterator[Finding]:
    """What is free against what a run may take, ``queues_bytes`` of it for frames and hits that wait.

    ``threads`` of analysis in this process, 0 for one a core where there are no ``processes``, which have one each.
    """
    available, total = meminfo("MemAvailable"), meminfo("MemTotal")
    if available is None or total is None:
        yield warn("memory", "/proc/meminfo cannot be read", "see with free -m that it suffices")
        return
    workers = threads or (0 if processes else len(os.sched_getaffinity(0)))
    wanted = PROGRAM_BYTES * (1 + processes) + WORKER_BYTES * (workers + processes) + queues_bytes
    text = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB free; a run takes up to {wanted / _GIB:.1f} GiB"
    if available < wanted:
        yield warn("memory", text, "lower --queue-mib or end other programs")
    else:
        yield ok("memory", text)


def meminfo(name: str) -> int | None:
    """Bytes of an entry of /proc/meminfo."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None


def limits() -> Iterator[Finding]:
    """Open files, and the shared memory that torch and others use."""
    files = attainable()
    if files < FEWEST_FILES:
        todo = f"ulimit -Hn {FEWEST_FILES}, or LimitNOFILE in the unit; fewer connections are served with less"
        yield warn("open files", f"{files} at most", todo)
    else:
        yield ok("open files", f"{files} at most")
    try:
        shared = os.statvfs("/dev/shm")
    except OSError as error:
        yield warn("/dev/shm", error.strerror or str(error), "mount a tmpfs there")
        return
    free = shared.f_bavail * shared.f_frsize
    text = f"{free / _MIB:.0f} MiB free"
    if free < 64 * _MIB:
        yield warn("/dev/shm", text, "give a container more (--shm-size)")
    else:
        yield ok("/dev/shm", text)


def network_buffers() -> Iterator[Finding]:
    """How much a connection may hold that we have not read yet."""
    try:
        largest = int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[2])
    except (OSError, ValueError, IndexError):
        yield ok("tcp buffers", "not to be seen here; see net.ipv4.tcp_rmem on the machine itself")
        return
    text = f"a connection holds up to {largest / _MIB:.1f} MiB (net.ipv4.tcp_rmem)"
    if largest < TCP_BUFFER_BYTES:
        yield warn("tcp buffers", text, "sysctl -w net.ipv4.tcp_rmem='4096 131072 33554432'")
    else:
        yield ok("tcp buffers", text)


class _Timex(ctypes.Structure):
    """The beginning of struct timex of adjtimex(2), and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    )


def clock() -> Iterator[Finding]:
    """Whether something keeps this machine's clock right, as the kernel was told."""
    todo = "run chrony or systemd-timesyncd against the server that the detector uses"
    try:
        state_of = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        yield warn("clock", "the kernel cannot be asked", todo)
        return
    told = _Timex()  # modes 0: only asked
    state = state_of(ctypes.byref(told))
    if state < 0:
        yield warn("clock", f"the kernel does not say: {os.strerror(ctypes.get_errno())}", todo)
    elif state == _TIME_ERROR:
        yield warn("clock", "not synchronised, as far as the kernel knows", todo)
    else:
        yield ok("clock", f"synchronised to within {told.maxerror / 1e6:.3f} s, as the kernel was told")
