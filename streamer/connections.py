"""A connection that libzmq has, looked at from outside: how much came by it, and hanging up.

libzmq bounds the parts of a message, not their number, and shows nothing of a message before its last part: who never
sends one fills the memory unseen. A second descriptor of the connection asks the kernel.
"""

import contextlib
import errno
import os
import socket
import sys

_ESTABLISHED = 1
_RECEIVED_AT = 128
"""Of struct tcp_info, since Linux 4.1: ``tcpi_bytes_received``."""


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
