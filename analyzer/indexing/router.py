"""The requests of indexers: taken in the order they come, answered the oldest first. It knows no hits.

Each worker of ``indexamajig --zmq-request=next`` has a REQ socket with one request outstanding; there is no limit of
20 as OM has, after which workers wait for ever. One that has waited ``KEEP_ALIVE_S`` gets a reply so short that
CrystFEL ignores it and asks again, long before its 3 s are over. Used by one thread after it is made.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum

import zmq

from analyzer.door import Door, Limits
from analyzer.indexing.sockets import bind
from streamer.connections import keep_no_buffers, rest_of_message

KEEP_ALIVE = b"no hit yet"
"""CrystFEL ignores a reply of up to 15 bytes and asks again."""

KEEP_ALIVE_S = 1.0
"""CrystFEL gives up waiting after 3 s, and then its REQ socket may not ask again."""

MOST_WORKERS = 4096
"""Requests kept at once; who asks beyond is told to ask again."""

_NEXT, _UNKNOWN = b"next", b"What?"
_REQUESTS_A_TURN = 1000
"""Then hits and keep-alives have their turn, however fast requests come."""

LIMITS = Limits(connections=1024, unread_bytes=64 << 10, all_unread_bytes=16 << 20, first_s=10.0)
"""A request is a word, and an indexer's first comes as it connects; later on it may compute for long."""

_MOST_PARTS = 8
_REPLIES_HELD = 2
"""A worker reads its one reply; who asks on without reading gets no more of our memory than this."""

_LINGER_MS = 1000


class Request(StrEnum):
    """What came in."""

    NEXT = "next"
    UNKNOWN = "unknown"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class _Worker:
    """Who asked: what stands before its request (the ROUTER's name for it and, from a REQ, an empty part)."""

    envelope: tuple[bytes, ...]
    asked_at: float


class Router:
    """A bound ROUTER socket and the workers that wait at it. Raises ``CannotBind``."""

    def __init__(self, address: str) -> None:
        self.requests: dict[str, int] = dict.fromkeys(Request, 0)
        self.keep_alives = 0
        self.replies_lost = 0
        self.last_request: float | None = None
        self._waiting: OrderedDict[bytes, _Worker] = OrderedDict()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        keep_no_buffers(self._context)
        self.socket = self._context.socket(zmq.ROUTER)
        # Without it a reply to a worker that is gone would vanish, and the hit with it.
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.SNDHWM, _REPLIES_HELD)
        self.socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self.door = Door(self.socket, LIMITS)
        try:
            self.address = bind(self.socket, address)
        except BaseException:
            self.door.close()
            raise

    @property
    def waiting(self) -> int:
        """Workers that wait for a hit."""
        return len(self._waiting)

    @property
    def patience_s(self) -> float:
        """Until the oldest request has waited for ``KEEP_ALIVE_S``."""
        oldest = next(iter(self._waiting.values()), None)
        return KEEP_ALIVE_S if oldest is None else max(0.0, oldest.asked_at + KEEP_ALIVE_S - time.monotonic())

    def receive(self) -> None:
        """Take in what has come; never waits."""
        for _ in range(_REQUESTS_A_TURN):
            try:
                first = self.socket.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            self.door.heard(first)
            rest, beyond = rest_of_message(self.socket, _MOST_PARTS - 1) if first.more else ([], 0)
            self._take([first.bytes, *(part.bytes for part in rest)], beyond)

    def _take(self, parts: list[bytes], beyond: int) -> None:
        *envelope, request = parts
        # A REQ puts one empty part before its request, a DEALER none.
        if beyond or any(envelope[1:]):
            self.requests[Request.MALFORMED] += 1
            return
        worker = _Worker(tuple(envelope), time.monotonic())
        if request != _NEXT:
            self.requests[Request.UNKNOWN] += 1
            self._reply(worker, _UNKNOWN)
            return
        self.requests[Request.NEXT] += 1
        self.last_request = worker.asked_at
        if len(self._waiting) < MOST_WORKERS:
            # Who asks twice without waiting keeps the place of the first.
            self._waiting.setdefault(envelope[0], worker)
        else:
            self._reply(worker, KEEP_ALIVE)

    def hand_out(self, payload: bytes) -> bool:
        """Answer the oldest request of a worker that is still there; ``False`` when there is none."""
        while self._waiting:
            _, worker = self._waiting.popitem(last=False)
            if self._reply(worker, payload):
                return True
        return False

    def keep_alive(self) -> None:
        """Let those ask again who have waited long enough."""
        while self._waiting and self.patience_s == 0.0:
            _, worker = self._waiting.popitem(last=False)
            self.keep_alives += self._reply(worker, KEEP_ALIVE)

    def close(self) -> None:
        """Close. Who waits now waits in vain: a REQ does not repeat its request to whoever listens here next, and one
        that is told to ask again does so before it sees us go."""
        self.door.close()
        self.socket.close()
        self._context.term()

    def _reply(self, worker: _Worker, payload: bytes) -> bool:
        """Send to a worker; ``False`` when it is gone, or does not read."""
        try:
            self.socket.send_multipart([*worker.envelope, payload], zmq.DONTWAIT, copy=False)
        except zmq.ZMQError:
            self.replies_lost += 1
            return False
        return True
