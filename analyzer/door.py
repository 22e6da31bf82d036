"""Who is connected to a ZeroMQ address of ours: how many, and how much of what they sent nobody can read yet.

libzmq bounds a part of a message, not their number: a peer that never ends its message fills the memory, and idle
peers take every descriptor. So each connection is looked at from outside, through a second descriptor of it: the
kernel says how many bytes came, libzmq which connection a message is from. One that is too many, sends too much
without a whole message, or says nothing, is hung up on. So is who sent most of what takes far more memory than it has
bytes, as very many tiny parts do.
"""

import logging
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import zmq
from prometheus_client.core import CounterMetricFamily, Metric

from analyzer.descriptors import at_most
from streamer.connections import MemoryWatch, hang_up, hang_up_without, is_over, received_bytes, second_handle

log = logging.getLogger(__name__)

LOOK_S = 0.1
_MOST_EVENTS = 1000
_READABLE = int(zmq.POLLIN)
_MOST_STEP_S = 1.0
"""What silence can grow by between two looks: nobody was silent while this process stood still."""

_BEHIND = 16
"""Turns after which who is read slowly is weighed as well, so that a flood of messages puts off no limit."""


class RefusedConnection(StrEnum):
    """Why a connection was refused or hung up on."""

    KEY = "key"
    """its key is not among those allowed"""
    PROTOCOL = "protocol"
    """it speaks plainly, takes another key for ours, is no ZeroMQ peer, or went before it was known"""
    TOO_MANY = "too_many"
    """as many as are served are connected, or no descriptor was left"""
    TOO_MUCH = "too_much"
    """sent without end and never a whole message"""
    SILENT = "silent"
    """said nothing whole for too long"""


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

    def events(self) -> Iterator[tuple[int, int, bytes]]:
        """Kind, value and address of those since the last call."""
        for _ in range(_MOST_EVENTS):
            # Asked first: there is next to never one, and an exception costs ten times as much.
            if not int(self.socket.get(zmq.EVENTS)) & _READABLE:
                return
            told = self.socket.recv_multipart(zmq.DONTWAIT)
            kind, value = struct.unpack("=Hi", told[0])
            yield kind, value, told[1]

    def failed(self) -> Iterator[RefusedConnection]:
        """Handshakes that failed since the last call."""
        yield from (_FAILED[kind] for kind, _, _ in self.events() if kind in _FAILED)

    def close(self) -> None:
        if not self._watched.closed:
            self._watched.disable_monitor()
        self.socket.close(0)


@dataclass(frozen=True, slots=True)
class Limits:
    """Connections at once; bytes of one, and of all, that came since the last whole message of each.

    ``first_s``: how long a peer may say nothing whole at first; where all places are taken, who has said nothing whole
    for longest then gives way to who comes. ``silent_s``: how long later on. ``refill_bytes_s``: what one that is not
    heard may send for ever; of such, whose bytes are never read, the memory is not looked at.
    """

    connections: int
    unread_bytes: int
    all_unread_bytes: int
    first_s: float | None = None
    silent_s: float | None = None
    refill_bytes_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Peer:
    """``heard``: since the last look; ``known``: ever."""

    connection: socket.socket
    read: float = 0.0
    silent_s: float = 0.0
    heard: bool = False
    known: bool = False


class Door:
    """Watches a socket that is bound to TCP; made before it is bound. ``refused`` counts, by reason. One thread.

    Whoever reads the socket tells ``heard`` of each message, or of none where a peer has next to nothing to say. Of
    few descriptors a door takes its share: fewer connections are served then.
    """

    def __init__(self, watched: "zmq.Socket[bytes]", limits: Limits) -> None:
        self.refused = dict.fromkeys(RefusedConnection, 0)
        self._limits = limits
        # libzmq's own and the second one.
        self._places = at_most(limits.connections, descriptors_each=2)
        self._handshakes = Handshakes(watched, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self.socket = self._handshakes.socket
        self._peers: dict[int, _Peer] = {}
        self._unknown: dict[int, None] = {}
        self._early: set[int] = set()
        self._ended: set[int] = set()
        self._failing = False
        self._untold = False
        self._looked_s = time.monotonic()
        self._memory = None if limits.refill_bytes_s else MemoryWatch()
        self._behind = 0

    def __len__(self) -> int:
        return len(self._peers)

    def heard(self, frame: zmq.Frame) -> None:
        """A whole message came, of which this is a part."""
        descriptor = int(frame.get(zmq.SRCFD))
        peer = self._peers.get(descriptor)
        if peer is None:
            # Read before we were told that it came, which is told by now.
            self._early.add(descriptor)
        else:
            peer.heard = True
            if not peer.known:
                peer.known = True
                self._unknown.pop(descriptor, None)

    def look(self) -> list[RefusedConnection]:
        """``admit`` and ``weigh``, by who reads all that is there between two looks."""
        return self.admit() + self.weigh()

    def admit(self) -> list[RefusedConnection]:
        """Take in who came and forget who went, before messages are read; why, of each that was refused since."""
        refused: list[RefusedConnection] = []
        for kind, value, address in self._handshakes.events():
            if self._failing:
                # libzmq tells at once which connection it was.
                self._failing = False
                if kind != zmq.EVENT_DISCONNECTED or value not in self._ended:
                    refused.append(RefusedConnection.PROTOCOL)
            if kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._failing = True
            elif kind in _FAILED:
                refused.append(_FAILED[kind])
            else:
                self._forget(value)
                self._ended.discard(value)
                if kind == zmq.EVENT_ACCEPTED and not self._came(value, address):
                    refused.append(RefusedConnection.TOO_MANY)
        self._early.clear()
        return self._counted(refused)

    def weigh(self, caught_up: bool = True) -> list[RefusedConnection]:
        """Hang up on who sent too much or says nothing, after messages were read; ``caught_up``: all that are there."""
        if not caught_up and self._behind < _BEHIND:
            self._behind += 1
            return []
        now = time.monotonic()
        elapsed_s = now - self._looked_s
        if elapsed_s < LOOK_S:
            return []
        self._looked_s, self._behind = now, 0
        return self._counted(self._weigh(elapsed_s))

    def _counted(self, refused: list[RefusedConnection]) -> list[RefusedConnection]:
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
        for descriptor in list(self._peers):
            self._forget(descriptor)

    def _forget(self, descriptor: int) -> None:
        self._unknown.pop(descriptor, None)
        if (peer := self._peers.pop(descriptor, None)) is not None:
            peer.connection.close()

    def _end(self, descriptor: int) -> None:
        hang_up(self._peers[descriptor].connection)
        self._ended.add(descriptor)
        self._forget(descriptor)

    def _came(self, descriptor: int, address: bytes) -> bool:
        port = address.rpartition(b":")[2]
        if not address.startswith(b"tcp://") or not port.isdigit():
            return True
        try:
            connection = second_handle(descriptor, local_port=int(port))
        except OSError:
            # Unseen it would count for no limit.
            hang_up_without(descriptor, local_port=int(port))
            self._ended.add(descriptor)
            return False
        if connection is None:
            return True
        room = len(self._peers) < self._places
        longest = next(iter(self._unknown), None)
        known = descriptor in self._early
        self._early.discard(descriptor)
        self._peers[descriptor] = _Peer(connection, heard=known, known=known)
        if not room and longest is None:
            self._end(descriptor)
            return False
        if self._limits.first_s is not None and not known:
            self._unknown[descriptor] = None
        if not room and longest is not None:
            self._end(longest)
        return room

    def _weigh(self, elapsed_s: float) -> list[RefusedConnection]:
        refused = []
        unread: dict[int, float] = {}
        for descriptor, peer in list(self._peers.items()):
            if is_over(peer.connection):
                self._forget(descriptor)
                continue
            heard, peer.heard = peer.heard, False
            peer.silent_s = 0.0 if heard else peer.silent_s + min(elapsed_s, _MOST_STEP_S)
            limit_s = self._limits.silent_s if peer.known else self._limits.first_s
            if limit_s is not None and peer.silent_s > limit_s:
                self._end(descriptor)
                refused.append(RefusedConnection.SILENT)
                continue
            received = received_bytes(peer.connection)
            if received is None or (heard and not received):
                if not is_over(peer.connection):
                    self._tell_untold()
                continue
            allowed = peer.read + elapsed_s * self._limits.refill_bytes_s
            peer.read = received if heard else min(received, allowed)
            unread[descriptor] = received - peer.read
        everything = sum(unread.values())
        tiny = self._memory is not None and self._memory.takes_more(everything)
        for descriptor, count in sorted(unread.items(), key=lambda each: -each[1]):
            if count <= self._limits.unread_bytes and everything <= self._limits.all_unread_bytes and not tiny:
                break
            everything -= count
            if tiny and self._memory is not None:
                self._memory.let_go()
            tiny = False
            self._end(descriptor)
            refused.append(RefusedConnection.TOO_MUCH)
        return refused

    def _tell_untold(self) -> None:
        if not self._untold:
            self._untold = True
            log.warning(
                "this kernel does not say how much came by a connection (TCP_INFO, Linux 4.1): their number is "
                "bounded, what a peer sends without ever ending its message is not"
            )
