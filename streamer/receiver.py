"""The socket: ZeroMQ messages in, typed messages out. It knows no policy.

The detector binds a PUSH socket and hands each message to one puller, so this is the only
PULL that may be connected to it. Parts are received without copying; a parsed image keeps
its part alive and nothing else does.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import recv_monitor_message

from streamer import stream_v1, stream_v2
from streamer.messages import InvalidMessage, Message

DEFAULT_MAX_PART_BYTES = 512 << 20
"""A v2 start of a 16M detector with three channels and every array is 434 MB."""

RECEIVE_HWM = 16
"""Messages that libzmq may hold for us: enough for a burst, small enough to show a queue."""

MAX_PARTS = 64
PROTOCOLS = ("auto", "v1", "v2")
_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Received:
    """One message with its arrival (Unix seconds) and size; an ``InvalidMessage`` is returned, not raised."""

    message: Message | InvalidMessage
    received_at: float
    nbytes: int


@dataclass(slots=True)
class _Link:
    monitor: zmq.Socket[bytes]
    connected: bool = False
    lost_at: float | None = None


class StreamReceiver:
    """Pulls from one or more detector endpoints.

    ``protocol`` is ``auto`` (told from each message), ``v1`` or ``v2``. A part larger than
    ``max_part_bytes`` is refused by libzmq, which gives up that connection for good; the
    socket monitor shows it, and we count the message as too large and connect again.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        protocol: str = "auto",
        max_part_bytes: int = DEFAULT_MAX_PART_BYTES,
        receive_hwm: int = RECEIVE_HWM,
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._protocol = protocol
        self._poller = zmq.Poller()
        self._sockets: dict[zmq.Socket[bytes], str] = {}
        self._links: dict[zmq.Socket[bytes], _Link] = {}
        try:
            for endpoint in endpoints:
                self._open(endpoint, max_part_bytes, receive_hwm)
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"{endpoint}: {error.strerror}; a stream address looks like tcp://host:31001") from None

    def _open(self, endpoint: str, max_part_bytes: int, receive_hwm: int) -> None:
        socket = self._context.socket(zmq.PULL)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, receive_hwm)
        socket.setsockopt(zmq.MAXMSGSIZE, max_part_bytes)
        # A pulled cable sends no FIN; without keepalive the loss would never be seen.
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
        monitor = socket.get_monitor_socket(
            zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_CONNECT_DELAYED
        )
        self._sockets[socket] = endpoint
        self._links[socket] = _Link(monitor)
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
        ready = dict(self._poller.poll(round(timeout_s * 1000)))
        for socket, link in self._links.items():
            if link.monitor in ready:
                self._follow(link)
            if link.lost_at is not None and time.monotonic() - link.lost_at > _RETRY_S:
                return self._reconnect(socket, link)
        for socket in self._sockets:
            if socket in ready:
                frames = socket.recv_multipart(copy=False)
                return self._parse(frames, time.time())
        return None

    def _parse(self, frames: list[zmq.Frame], received_at: float) -> Received:
        parts = [frame.buffer for frame in frames]
        nbytes = sum(len(part) for part in parts)
        try:
            return Received(parse(parts, self._protocol), received_at, nbytes)
        except InvalidMessage as error:
            return Received(error, received_at, nbytes)

    @staticmethod
    def _follow(link: _Link) -> None:
        while link.monitor.poll(0):
            event = recv_monitor_message(link.monitor)["event"]
            if event == zmq.EVENT_CONNECTED:
                link.connected, link.lost_at = True, None
            elif event == zmq.EVENT_DISCONNECTED:
                link.connected, link.lost_at = False, time.monotonic()
            else:
                # libzmq tries again by itself after a lost peer, never after a refused part.
                link.lost_at = None

    def _reconnect(self, socket: "zmq.Socket[bytes]", link: _Link) -> Received:
        endpoint = self._sockets[socket]
        link.lost_at = None
        try:
            socket.disconnect(endpoint)
        except zmq.ZMQError:
            pass  # libzmq has already forgotten the endpoint
        socket.connect(endpoint)
        error = InvalidMessage("too_large", f"{endpoint}: a message part over the size limit was refused; connected again")
        return Received(error, time.time(), 0)

    def close(self) -> None:
        """Close the sockets; messages not yet received are gone."""
        for socket in self._sockets:
            socket.disable_monitor()
            socket.close()
        for link in self._links.values():
            link.monitor.close()
        self._sockets.clear()
        self._links.clear()
        self._context.term()


def parse(parts: Sequence[memoryview], protocol: str = "auto") -> Message:
    """Parse one ZeroMQ message by its protocol; ``auto`` tells it from the first bytes.

    Raises ``InvalidMessage``.
    """
    if len(parts) > MAX_PARTS:
        raise InvalidMessage("malformed", f"a message of {len(parts)} parts")
    is_v2 = len(parts) == 1 and stream_v2.looks_like_v2(parts[0])
    if protocol == "auto":
        protocol = "v2" if is_v2 else "v1"
    elif is_v2 != (protocol == "v2"):
        raise InvalidMessage("wrong_protocol", f"a message that is not stream {protocol} came in")
    return stream_v2.parse(parts[0]) if protocol == "v2" else stream_v1.parse(parts)
