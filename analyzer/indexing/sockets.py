"""Binding: an address from a setting to a bound socket, or one line that says why not."""

from typing import Any

import zmq

_LARGEST_REQUEST_BYTES = 1024
"""Nobody has to send us more than a word or the name of a topic; libzmq closes the connection of who does."""

_HANDSHAKE_MS = 5000
_HOW = "give one that is free, like tcp://127.0.0.1:12322, or port 0"


class CannotBind(ValueError):
    """An address that cannot be listened on: one line with what, why and what to do."""


def bind(socket: "zmq.Socket[Any]", address: str) -> str:
    """Bind a socket to ``tcp://HOST:PORT``, port 0 or ``*`` for a free one; returns the address it got.

    Raises ``CannotBind``; the socket is closed then.
    """
    socket.setsockopt(zmq.MAXMSGSIZE, _LARGEST_REQUEST_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    # A pulled cable sends no FIN; without keepalive the peer would be held for ever.
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    for option, value in ((zmq.TCP_KEEPALIVE_IDLE, 10), (zmq.TCP_KEEPALIVE_INTVL, 5), (zmq.TCP_KEEPALIVE_CNT, 3)):
        socket.setsockopt(option, value)
    socket.setsockopt(zmq.IPV6, int("[" in address))
    try:
        _check(address)
        socket.bind(address)
    except (zmq.ZMQError, ValueError) as error:
        socket.close(0)
        why = zmq.strerror(error.errno or 0) if isinstance(error, zmq.ZMQError) else str(error)
        raise CannotBind(f"{address!a}: {why}; {_HOW}") from None
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))


def _check(address: str) -> None:
    """Refuse what libzmq would bind as something else, such as a port modulo 65536."""
    host, _, port = address.rpartition(":")
    if not host.startswith("tcp://") or host == "tcp://" or not address.isprintable():
        raise ValueError("not a TCP address")
    if port != "*" and not (port.isascii() and port.isdecimal() and int(port[:6]) < 65536):
        raise ValueError(f"port {port[:20]!a} is not between 0 and 65535")
