"""A connection that libzmq has, looked at from outside: how much came by it, and hanging up.

libzmq bounds the parts of a message, not their number, and shows nothing of a message before its last part: who never
sends one fills the memory unseen. A second descriptor of the connection asks the kernel.
"""

import contextlib
import os
import socket
import sys

_ESTABLISHED = 1
_RECEIVED_AT = 128
"""Of struct tcp_info, since Linux 4.1: ``tcpi_bytes_received``."""


def second_handle(descriptor: int) -> socket.socket | None:
    """The TCP connection that libzmq has as ``descriptor``; ``None`` where it is gone or the number is another's."""
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    try:
        found = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
    with contextlib.suppress(OSError):
        tcp = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
        if tcp and not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and found.getpeername():
            return found
    found.close()
    return None


def received_bytes(connection: socket.socket) -> int | None:
    """Bytes that ever came; ``None`` where the connection is over, or the kernel does not say."""
    with contextlib.suppress(OSError, AttributeError):
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + 8)
        if info[0] == _ESTABLISHED and len(info) == _RECEIVED_AT + 8:
            return int.from_bytes(info[_RECEIVED_AT:], sys.byteorder)
    return None


def hang_up(connection: socket.socket) -> None:
    """End the connection for libzmq too, which sees its peer gone and lets go of what is unfinished."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
