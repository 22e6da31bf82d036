"""The socket: ZeroMQ messages in, typed messages out. It knows no policy.

The detector binds a PUSH socket and hands each message to one puller, so this is the only
PULL that may be connected to it. Parts are received without copying; a parsed image keeps
its part alive and nothing else does.
"""

import contextlib
import socket as tcp
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import zmq
from zmq.utils.monitor import recv_monitor_message

from streamer import stream_v1, stream_v2
from streamer.connections import (
    MemoryWatch,
    hang_up,
    keep_no_buffers,
    received_bytes,
    rest_of_message,
    second_handle,
)
from streamer.messages import InvalidMessage, Message

DEFAULT_MAX_PART_BYTES = 512 << 20
"""A v2 start of a 16M detector with three channels and every array is 434 MB."""

RECEIVE_HWM = 16
"""Messages that libzmq may hold for us: enough for a burst, small enough to show a queue."""

MAX_PARTS = 64
PROTOCOLS = ("auto", "v1", "v2")
_RETRY_S = 0.5
"""libzmq announces its own new attempt within milliseconds of a loss; none by now means it gave up."""

_SLICE_S = 0.1

_LARGEST_PARTS = 2
"""Largest parts that a message may be together: a v1 start of a 16M detector with every array is 0.2 GB."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message with its arrival (Unix seconds) and size; an ``InvalidMessage`` is returned, not raised."""

    message: Message | InvalidMessage
    received_at: float
    nbytes: int


@dataclass(slots=True)
class _Link:
    """A connection as its socket's events tell it. ``greeted``: the peer turned out to be a PUSH.

    ``whole``: a message was taken since the last look at ``line``, by which ``before`` bytes had come by then;
    ``unread`` have come since.
    """

    endpoint: str
    monitor: zmq.Socket[bytes]
    connected: bool = False
    greeted: bool = False
    lost_at: float | None = None
    line: tcp.socket | None = None
    before: int = 0
    unread: int = 0
    whole: bool = False
    memory: MemoryWatch = field(default_factory=MemoryWatch)

    def endless(self, most_bytes: int) -> bool:
        """Whether more came than that, or takes far more memory, and no message is whole; asked when none is there to
        be taken."""
        received = None if self.line is None else received_bytes(self.line)
        if received is None:
            return False
        if self.whole:
            self.whole, self.before = False, received
        self.unread = received - self.before
        return self.unread > most_bytes or self.memory.takes_more(self.unread)

    def let_go(self) -> None:
        """Of the second descriptor of the connection."""
        if self.line is not None:
            self.line.close()
            self.line = None


class StreamReceiver:
    """Pulls from one or more detector endpoints.

    ``protocol`` is ``auto`` (told from each message), ``v1`` or ``v2``. A part larger than
    ``max_part_bytes`` is refused by libzmq, which gives up that connection for good (what the
    sender had queued on it is lost, as in any loss of a connection); the socket monitor shows
    it, and we count the message as too large and connect again. So is a message of parts without
    end, once two times as much came or takes far more memory than it has bytes. Raises ``ValueError`` for an
    address that cannot be one.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        protocol: str = "auto",
        max_part_bytes: int = DEFAULT_MAX_PART_BYTES,
        receive_hwm: int = RECEIVE_HWM,
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        keep_no_buffers(self._context)
        self._protocol = protocol
        self._poller = zmq.Poller()
        self._links: dict[zmq.Socket[bytes], _Link] = {}
        self._look_at = 0.0
        self._most_unread_bytes = _LARGEST_PARTS * max_part_bytes
        self._reader = stream_v2.ImageReader()
        if protocol not in PROTOCOLS:
            raise ValueError(f"stream {protocol!r} is not known; take one of {', '.join(PROTOCOLS)}")
        if not endpoints:
            raise ValueError("no stream address; one looks like tcp://host:31001")
        try:
            for endpoint in endpoints:
                check_port(endpoint)
                self._open(endpoint, max_part_bytes, receive_hwm)
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"{endpoint}: {error.strerror}; a stream address looks like tcp://host:31001") from None
        except ValueError:
            self.close()
            raise

    def _open(self, endpoint: str, max_part_bytes: int, receive_hwm: int) -> None:
        socket = self._context.socket(zmq.PULL)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, receive_hwm)
        socket.setsockopt(zmq.MAXMSGSIZE, max_part_bytes)
        # A pulled cable sends no FIN; without keepalive the loss would never be seen.
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
        monitor = socket.get_monitor_socket(
            zmq.EVENT_CONNECTED
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CONNECT_RETRIED
            | zmq.EVENT_CONNECT_DELAYED
        )
        self._links[socket] = _Link(endpoint, monitor)
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(monitor, zmq.POLLIN)

    exhausted = False
    """A live stream never is; silence ends nothing."""

    @property
    def connected(self) -> bool:
        return any(link.connected for link in self._links.values())

    def receive(self, timeout_s: float) -> Received | None:
        """The next message, or ``None`` after ``timeout_s`` seconds without one."""
        now = time.monotonic()
        deadline = now + timeout_s
        if now < self._look_at:
            # Under load the next message is there: taking it costs a fraction of asking for events first.
            for socket in self._links:
                if (received := self._take(socket)) is not None:
                    return received
        while True:
            left = deadline - time.monotonic()
            self._look_at = time.monotonic() + _SLICE_S
            ready = dict(self._poller.poll(max(0, round(min(left, _SLICE_S) * 1000))))
            for socket, link in self._links.items():
                if link.monitor in ready:
                    _follow(link)
                lost_s = 0.0 if link.lost_at is None else time.monotonic() - link.lost_at
                # What came before the loss is read first: to disconnect would discard it.
                if lost_s > _RETRY_S and socket not in ready:
                    return self._reconnect(socket, link)
            # First, so that a busy endpoint does not keep another from being looked at.
            for socket, link in self._links.items():
                if socket not in ready and link.endless(self._most_unread_bytes):
                    return self._hang_up(link)
            for socket in self._links:
                if socket in ready and (received := self._take(socket)) is not None:
                    return received
            if left <= 0:
                return None

    def _take(self, socket: "zmq.Socket[bytes]") -> Received | None:
        """A message that has come, parsed; ``None`` without one."""
        try:
            first = socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        received_at = time.time()
        rest, beyond = rest_of_message(socket, MAX_PARTS - 1) if first.more else ([], 0)
        self._links[socket].whole = True
        if len(self._links) > 1:
            # Its next turn comes after all others', so that a busy one starves none.
            self._links[socket] = self._links.pop(socket)
        return self._parse([first, *rest], beyond, received_at)

    def _parse(self, frames: list[zmq.Frame], beyond: int, received_at: float) -> Received:
        parts = [frame.buffer for frame in frames]
        nbytes = sum(len(part) for part in parts)
        if beyond:
            return Received(_of_too_many(len(parts) + beyond), received_at, nbytes)
        try:
            return Received(parse(parts, self._protocol, self._reader), received_at, nbytes)
        except InvalidMessage as error:
            return Received(error, received_at, nbytes)

    def _hang_up(self, link: _Link) -> Received:
        """libzmq sees its peer gone, lets go of the parts and connects again by itself."""
        assert link.line is not None
        hang_up(link.line)
        link.let_go()
        link.memory.let_go()
        text = f"parts without end, {link.unread >> 20} MiB of them, were refused; connecting again"
        return Received(InvalidMessage("too_large", f"{link.endpoint}: {text}"), time.time(), 0)

    def _reconnect(self, socket: "zmq.Socket[bytes]", link: _Link) -> Received:
        link.lost_at = None
        with contextlib.suppress(zmq.ZMQError):  # libzmq may have forgotten the endpoint
            socket.disconnect(link.endpoint)
        socket.connect(link.endpoint)
        if link.greeted:
            reason, text = "too_large", "a message part over the size limit was refused; connected again"
        else:
            reason, text = "wrong_protocol", "what answers there is not a detector's PUSH socket; trying again"
        link.greeted = False
        return Received(InvalidMessage(reason, f"{link.endpoint}: {text}"), time.time(), 0)

    def close(self) -> None:
        """Close the sockets; messages not yet received are gone."""
        for socket, link in self._links.items():
            socket.disable_monitor()
            socket.close()
            link.monitor.close()
            link.let_go()
        self._links.clear()
        self._context.term()


def _follow(link: _Link) -> None:
    """Read what happened to a connection since the last look."""
    while link.monitor.poll(0):
        told = recv_monitor_message(link.monitor)
        event = told["event"]
        if event == zmq.EVENT_CONNECTED:
            link.let_go()
            link.before = 0
            # Without a descriptor left it goes unwatched: the stream comes first.
            with contextlib.suppress(OSError):
                link.line = second_handle(told["value"], peer_port=_port_of(link.endpoint))
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            link.connected = link.greeted = True
            link.lost_at = None
        elif event == zmq.EVENT_DISCONNECTED:
            link.connected, link.lost_at = False, time.monotonic()
            link.let_go()
        else:
            # libzmq tries again by itself after a lost peer, never after a refused part.
            link.greeted, link.lost_at = False, None


def _port_of(endpoint: str) -> int | None:
    port = endpoint.rpartition(":")[2]
    return int(port) if endpoint.startswith("tcp://") else None


def check_port(endpoint: str) -> None:
    """Raises ``ValueError`` for a port that libzmq would silently replace by its remainder by 65536."""
    host, _, port = endpoint.rpartition(":")
    if host.startswith("tcp://") and not (port.isdecimal() and port.isascii() and 0 < int(port[:6]) < 65536):
        raise ValueError(f"{endpoint}: port {port[:20]} is not between 1 and 65535")


def _of_too_many(parts: int) -> InvalidMessage:
    return InvalidMessage("malformed", f"a message of {parts} parts")


def parse(parts: Sequence[memoryview], protocol: str = "auto", reader: stream_v2.ImageReader | None = None) -> Message:
    """Parse one ZeroMQ message by its protocol; ``auto`` tells it from the first bytes.

    ``reader`` is that of a stream, for speed. Raises ``InvalidMessage``.
    """
    if len(parts) > MAX_PARTS:
        raise _of_too_many(len(parts))
    is_v2 = len(parts) == 1 and stream_v2.looks_like_v2(parts[0])
    if protocol == "auto":
        protocol = "v2" if is_v2 else "v1"
    elif is_v2 != (protocol == "v2"):
        raise InvalidMessage("wrong_protocol", f"a message that is not stream {protocol} came in")
    if protocol == "v1":
        return stream_v1.parse(parts)
    return stream_v2.parse(parts[0]) if reader is None else reader.parse(parts[0])
