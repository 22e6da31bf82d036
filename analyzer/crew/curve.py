"""CURVE between a front and workers on other hosts: who may say anything at all, and that nobody else reads it.

Keys are libzmq's, in 40 printable characters (Z85). The front has a secret key and a list of public ones; a worker has
a secret key and the front's public one. libzmq refuses whoever does not fit before a message is read.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils import z85

KEY_CHARACTERS = 40
_DOMAIN = b"cxls-workers"
_ZAP = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_MOST_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class FrontKeys:
    """The front's secret key (Z85), and the public keys of workers that may attach, asked at each handshake."""

    secret: bytes
    allowed: Callable[[], frozenset[bytes]]


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    """A worker's secret key and the front's public one, Z85 both."""

    secret: bytes
    front: bytes


class Gate:
    """The front's side: ``socket`` takes only workers whose keys are allowed. Made before it is bound; one thread.

    It answers what libzmq asks of each that wants to attach (ZAP, https://rfc.zeromq.org/spec/27/), so that the
    socket's context can have but one.
    """

    def __init__(self, socket: "zmq.Socket[bytes]", keys: FrontKeys) -> None:
        self._allowed = keys.allowed
        self.asked: zmq.Socket[bytes] = socket.context.socket(zmq.REP)
        self.asked.bind(_ZAP)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)

    def answer(self) -> None:
        """Let in who may, and nobody else."""
        for _ in range(_MOST_EVENTS):
            try:
                request = self.asked.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            number = request[1] if len(request) > 1 else b""
            known = len(request) == 7 and self._knows(*request[5:])
            verdict = (b"200", b"") if known else (b"400", b"the key is not allowed here")
            self.asked.send_multipart([_VERSION, number, *verdict, b"", b""])

    def _knows(self, mechanism: bytes, key: bytes) -> bool:
        return mechanism == b"CURVE" and len(key) == 32 and z85.encode(key) in self._allowed()

    def close(self) -> None:
        self.asked.close(0)


def be_a_worker(socket: "zmq.Socket[bytes]", keys: WorkerKeys) -> None:
    """Have a socket, not connected yet, speak to the front with this key alone."""
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, public_of(keys.secret))
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.front)


def new_keys() -> tuple[bytes, bytes]:
    """A public key and its secret one."""
    public, secret = zmq.curve_keypair()
    return public, secret


def public_of(secret: bytes) -> bytes:
    """The public key of a secret one. Raises ``ValueError`` for what is no key."""
    try:
        found: Any = zmq.curve_public(secret) if is_key(secret) else None
    except zmq.ZMQError:
        found = None
    if found is None:
        raise ValueError("not a key")
    return bytes(found)


def is_key(text: bytes) -> bool:
    """Whether this is 32 bytes in Z85."""
    try:
        return len(text) == KEY_CHARACTERS and len(z85.decode(text)) == 32
    except (KeyError, struct.error):
        return False
