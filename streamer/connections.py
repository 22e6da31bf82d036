"""A connection that libzmq has, looked at from outside: how much came by it, and hanging up.

libzmq bounds the parts of a message, not their number, and shows nothing of a message before its last part: who never
sends one fills the memory unseen. A second descriptor of the connection asks the kernel how many bytes came. What they
take is another matter: libzmq keeps 64 bytes of a part that has none, which is two on the line. So the memory of this
process is looked at as well, and how long libzmq's threads worked: what they had no time to fill was taken by others.
"""

import contextlib
import ctypes
import errno
import math
import os
import socket
import sys
import time
from pathlib import Path

import zmq

_ESTABLISHED = 1
_RECEIVED_AT = 128
"""Of struct tcp_info, since Linux 4.1: ``tcpi_bytes_received``."""

FEW_BYTES = 4 << 20
"""Of unfinished messages; 128 MiB as parts without content."""

MOST_BESIDE_BYTES = 256 << 20
"""What may be taken beside twice the bytes of unfinished messages, by whatever else goes on."""

FILLED_BYTES_S = 4e9
"""What libzmq's threads fill at most of memory in a second of their CPU time, by parts of any size.

Without content a part takes them 37 ns or more on a core of 2021 (1.7 bytes a ns), with 40 bytes 78 ns (2 bytes a ns).
Large parts take 0.4 to 0.6 ns a byte: by time alone they could be twice their bytes, which are allowed.
"""

_FREEING_S = 2.0
_KNOWN_S = 10.0
"""How long libzmq's threads are taken to be the same."""

_CLOCK_OF_THREAD = 0b110
"""Lowest bits of the id of a thread's clock in Linux, above which is the thread's id inverted."""

_ZERO_COPY_RECV = 10
"""Of zmq.h, where pyzmq has no name for it."""

_STATM = Path("/proc/self/statm")
_TASKS = Path("/proc/self/task")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MemoryWatch:
    """Whether unfinished messages take far more memory than they have bytes. Nothing is known where there is no /proc.

    What this process takes meanwhile for other ends counts only up to what libzmq's threads had time to fill: next to
    nothing while a message stands still, and no more than it may have while one of large parts comes. Where they serve
    other connections too, it is more.
    """

    def __init__(self) -> None:
        self._before = resident_bytes()
        self._worked_s: dict[int, float] = {}
        self._known_until_s = 0.0
        self._freeing_until_s = 0.0

    def takes_more(self, unread: float) -> bool:
        """To be asked again and again; ``unread`` bytes came of unfinished messages."""
        if unread < FEW_BYTES:
            self._begin()
            return False
        allowed = 2 * unread + MOST_BESIDE_BYTES
        return resident_bytes() - self._before > allowed and self._filled_bytes() > allowed

    def _begin(self) -> None:
        now = time.monotonic()
        if now < self._freeing_until_s:
            _trim()
        self._before = resident_bytes()
        if now < self._known_until_s:
            self._worked_s = {thread: _cpu_s(thread) for thread in self._worked_s}
        else:
            self._worked_s, self._known_until_s = _libzmq_worked_s(), now + _KNOWN_S

    def _filled_bytes(self) -> float:
        """What libzmq may have filled since; of a thread that was not known then, since it began."""
        worked_s = _libzmq_worked_s()
        if not worked_s:
            return math.inf
        return FILLED_BYTES_S * sum(now - self._worked_s.get(thread, 0.0) for thread, now in worked_s.items())

    def let_go(self) -> None:
        """Who sent it was hung up on: libzmq frees it soon, and the allocator is not to keep it, or the next such
        message would use it unseen."""
        self._freeing_until_s = time.monotonic() + _FREEING_S


def _libzmq_worked_s() -> dict[int, float]:
    """CPU time of each thread with which libzmq reads and writes, by its id; none where the system does not say."""
    found = {}
    with contextlib.suppress(OSError):
        for task in _TASKS.iterdir():
            with contextlib.suppress(OSError):
                if "ZMQbg/IO" in (task / "comm").read_text():
                    found[int(task.name)] = _cpu_s(int(task.name))
    return found


def _cpu_s(thread: int) -> float:
    """CPU time of a thread of this process; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(~thread << 3 | _CLOCK_OF_THREAD)
    return 0.0


def _trim() -> None:
    with contextlib.suppress(AttributeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Memory that this process has; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    return 0


def keep_no_buffers(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    """Have libzmq copy small parts out of what it read, before a socket is made.

    It would keep all 18 kB of its buffer for one part of 34 bytes. Large parts are read into their own place anyway.
    """
    with contextlib.suppress(zmq.ZMQError):
        context.set(_ZERO_COPY_RECV, 0)


def rest_of_message(socket: "zmq.Socket[bytes]", most: int) -> tuple[list[zmq.Frame], int]:
    """Parts after a first one that announced more: at most so many, and how many came beyond and were let go of."""
    parts: list[zmq.Frame] = []
    beyond, more = 0, True
    while more:
        part = socket.recv(copy=False)
        more = part.more
        if len(parts) < most:
            parts.append(part)
        else:
            beyond += 1
    return parts, beyond


def second_handle(
    descriptor: int, *, local_port: int | None = None, peer_port: int | None = None
) -> socket.socket | None:
    """The TCP connection that libzmq has as ``descriptor``; ``None`` where it is gone or the number is another's.

    One of the ports tells it from others of this process, which may have the number by now. Raises ``OSError`` where
    no descriptor is left.
    """
    try:
        copy = os.dup(descriptor)
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise
        return None
    try:
        found = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
    if _is_that(found, local_port, peer_port):
        return found
    found.close()
    return None


def hang_up_without(descriptor: int, *, local_port: int) -> None:
    """``hang_up`` where no second descriptor is to be had: by libzmq's own, which stays libzmq's."""
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        return
    try:
        if _is_that(borrowed, local_port, None):
            hang_up(borrowed)
    finally:
        borrowed.detach()


def _is_that(found: socket.socket, local_port: int | None, peer_port: int | None) -> bool:
    with contextlib.suppress(OSError):
        return (
            found.family in (socket.AF_INET, socket.AF_INET6)
            and found.type == socket.SOCK_STREAM
            and not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            and found.getpeername()[1] == (peer_port or found.getpeername()[1])
            and found.getsockname()[1] == (local_port or found.getsockname()[1])
        )
    return False


def is_over(connection: socket.socket) -> bool:
    """Whether either side has ended it; not, where the kernel does not say."""
    return _tcp_info(connection, 1)[:1] not in (b"", b"\0", bytes([_ESTABLISHED]))


def received_bytes(connection: socket.socket) -> int | None:
    """Bytes that ever came; ``None`` where the connection is over, or the kernel does not say."""
    info = _tcp_info(connection, _RECEIVED_AT + 8)
    if len(info) < _RECEIVED_AT + 8 or info[0] != _ESTABLISHED:
        return None
    return int.from_bytes(info[_RECEIVED_AT:], sys.byteorder)


def _tcp_info(connection: socket.socket, size: int) -> bytes:
    with contextlib.suppress(OSError, AttributeError):
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    return b""


def hang_up(connection: socket.socket) -> None:
    """End the connection for libzmq too, which sees its peer gone and lets go of what is unfinished."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
