"""Who is connected to a ZeroMQ address of ours: how many, and how much of what they sent nobody can read yet.

libzmq bounds a part of a message, not their number: a peer that never ends its message fills the memory, and idle
peers take every descriptor. So each connection is looked at from outside, through a second descriptor of it: the
kernel says how many bytes came, libzmq which connection a message is from. One that is too many, or sends too much
without a whole message, is hung up on.
"""

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import zmq
from prometheus_client.core import CounterMetricFamily, Metric

from streamer.connections import hang_up, received_bytes, second_handle

LOOK_S = 0.1
_MOST_EVENTS = 1000


class RefusedConnection(StrEnum):
    """Why a connection was refused or hung up on."""

    KEY = "key"
    """its key is not among those allowed"""
    PROTOCOL = "protocol"
    """it speaks plainly, takes another key for ours, is no ZeroMQ peer, or went before it was known"""
    TOO_MANY = "too_many"
    """as many as are served are connected"""
    TOO_MUCH = "too_much"
    """sent without end and never a whole message"""


_FAILED: dict[int, RefusedConnection] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: RefusedConnection.KEY,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: RefusedConnection.PROTOCOL,
    # The other side ended it: with another key for ours, or before it was told why.
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: RefusedConnection.PROTOCOL,
}


class Handshakes:
    """What happens to the connections of a socket; made before it is bound or connected, closed before it is closed.

    One thread.
    """

    def __init__(self, watched: "zmq.Socket[bytes]", more: int = 0) -> None:
        self._watched = watched
        address = f"inproc://handshakes-{id(self)}"
        watched.monitor(address, sum(_FAILED) | more)
        self.socket: zmq.Socket[bytes] = watched.context.socket(zmq.PAIR)
        # Without a bound: libzmq's own thread would wait at it, and all its sockets with it.
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(address)

    def events(self) -> Iterator[tuple[int, int]]:
        """Kind and value of those since the last call."""
        for _ in range(_MOST_EVENTS):
            try:
                told = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            yield struct.unpack("=Hi", told[0])

    def failed(self) -> Iterator[RefusedConnection]:
        """Handshakes that failed since the last call."""
        yield from (_FAILED[kind] for kind, _ in self.events() if kind in _FAILED)

    def close(self) -> None:
        if not self._watched.closed:
            self._watched.disable_monitor()
        self.socket.close(0)


@dataclass(frozen=True, slots=True)
class Limits:
    """Connections at once; bytes of one, and of all, that came since the last whole message of each."""

    connections: int
    unread_bytes: int
    all_unread_bytes: int


@dataclass(slots=True, eq=False)
class _Peer:
    connection: socket.socket
    read: int = 0
    heard: bool = False


class Door:
    """Watches a socket that is bound to TCP; made before it is bound. ``refused`` counts, by reason. One thread.

    Whoever reads the socket tells ``heard`` of each message, or of none where a peer has next to nothing to say.
    """

    def __init__(self, watched: "zmq.Socket[bytes]", limits: Limits) -> None:
        self.refused = dict.fromkeys(RefusedConnection, 0)
        self._limits = limits
        self._handshakes = Handshakes(watched, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self.socket = self._handshakes.socket
        self._peers: dict[int, _Peer] = {}
        self._looked_s = 0.0

    def __len__(self) -> int:
        return len(self._peers)

    def heard(self, frame: zmq.Frame) -> None:
        """A whole message came, of which this is a part."""
        peer = self._peers.get(int(frame.get(zmq.SRCFD)))
        if peer is not None:
            peer.heard = True

    def look(self) -> list[RefusedConnection]:
        """Hang up on whom there is no room for; returns why, of each that was refused since the last look."""
        refused = []
        for kind, value in self._handshakes.events():
            if kind in _FAILED:
                refused.append(_FAILED[kind])
            elif kind == zmq.EVENT_ACCEPTED:
                if not self._came(value):
                    refused.append(RefusedConnection.TOO_MANY)
            elif (peer := self._peers.pop(value, None)) is not None:
                peer.connection.close()
        now = time.monotonic()
        if now - self._looked_s >= LOOK_S:
            self._looked_s = now
            refused += [RefusedConnection.TOO_MUCH] * self._weigh()
        for reason in refused:
            self.refused[reason] += 1
        return refused

    def collect(self, name: str) -> Metric:
        """``refused`` as a counter of this name, every reason from the start."""
        family = CounterMetricFamily(name, "Connections refused or hung up on, by reason", labels=["reason"])
        for reason, count in self.refused.items():
            family.add_metric([reason], count)
        return family

    def close(self) -> None:
        """Before the socket is closed. Peers are let go of."""
        self._handshakes.close()
        for peer in self._peers.values():
            peer.connection.close()
        self._peers.clear()

    def _came(self, descriptor: int) -> bool:
        if (before := self._peers.pop(descriptor, None)) is not None:
            before.connection.close()
        connection = second_handle(descriptor)
        if connection is None:
            return True
        if len(self._peers) >= self._limits.connections:
            hang_up(connection)
            connection.close()
            return False
        self._peers[descriptor] = _Peer(connection)
        return True

    def _weigh(self) -> int:
        """Hang up on those that sent too much; how many."""
        unread: dict[int, int] = {}
        for descriptor, peer in list(self._peers.items()):
            received = received_bytes(peer.connection)
            if received is None:
                peer.connection.close()
                del self._peers[descriptor]
                continue
            if peer.heard:
                peer.heard, peer.read = False, received
            unread[descriptor] = received - peer.read
        gone = 0
        everything = sum(unread.values())
        for descriptor, count in sorted(unread.items(), key=lambda each: -each[1]):
            if count <= self._limits.unread_bytes and everything <= self._limits.all_unread_bytes:
                break
            everything -= count
            gone += 1
            peer = self._peers.pop(descriptor)
            hang_up(peer.connection)
            peer.connection.close()
        return gone
