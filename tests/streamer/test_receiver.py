"""The receiver on real sockets."""

import contextlib
import gc
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from streamer import connections, stream_v1, stream_v2
from streamer.connections import resident_bytes
from streamer.messages import ImageData, ImageMessage, InvalidMessage
from streamer.receiver import MAX_PARTS, Received, StreamReceiver, parse
from tests.streamer.hostile_wire import good_image
from tests.zmtp import greet

LIMIT = 100_000


class Senders:
    """PUSH sockets bound as detectors bind them; ``restart`` closes one and binds its port again."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.sockets: list[Any] = []
        self.ports: list[int] = []

    def bind(self, kind: int = zmq.PUSH) -> str:
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        self.sockets.append(socket)
        self.ports.append(socket.bind_to_random_port("tcp://127.0.0.1"))
        return f"tcp://127.0.0.1:{self.ports[-1]}"

    def stop(self, n: int) -> None:
        self.sockets[n].close()

    def restart(self, n: int) -> None:
        self.sockets[n] = self.context.socket(zmq.PUSH)
        self.sockets[n].setsockopt(zmq.LINGER, 0)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.sockets[n].bind(f"tcp://127.0.0.1:{self.ports[n]}")
                return
            except zmq.ZMQError:  # the port is let go a moment after the close
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def send(self, n: int, *series_ids: int) -> None:
        for series_id in series_ids:
            assert self.sockets[n].poll(30_000, zmq.POLLOUT)
            self.sockets[n].send(stream_v2.encode_end(series_id))


@pytest.fixture
def senders() -> Iterator[Senders]:
    found = Senders()
    yield found
    found.context.destroy(linger=0)


def words(receiver: StreamReceiver, count: int, timeout_s: float = 30.0) -> list[Any]:
    """The next messages as series ids or reasons."""
    found: list[Any] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        received = receiver.receive(0.05)
        if received is not None:
            message = received.message
            found.append(message.reason if isinstance(message, InvalidMessage) else message.series_id)  # type: ignore[union-attr]
    return found


def silence(receiver: StreamReceiver, seconds: float) -> bool:
    return words(receiver, 1, seconds) == []


def wait_connected(receiver: StreamReceiver, connected: bool = True) -> None:
    deadline = time.monotonic() + 30
    while receiver.connected != connected and time.monotonic() < deadline:
        assert receiver.receive(0.02) is None
    assert receiver.connected == connected


@pytest.mark.parametrize("endpoints", [1, 2])
def test_an_oversized_part_is_counted_and_the_connection_made_again(senders: Senders, endpoints: int) -> None:
    receiver = StreamReceiver([senders.bind() for _ in range(endpoints)], max_part_bytes=LIMIT)
    try:
        wait_connected(receiver)
        senders.send(0, 1, 2)
        senders.sockets[0].send(bytes(LIMIT + 1))
        assert words(receiver, 3) == [1, 2, "too_large"]
        senders.send(0, 3)
        assert words(receiver, 1) == [3]
        if endpoints == 2:
            senders.send(1, 4)
            assert words(receiver, 1) == [4]
        # And once more, with part of a message of several parts.
        senders.sockets[0].send_multipart([b"{}", bytes(LIMIT + 1)])
        assert words(receiver, 1) == ["too_large"]
        senders.send(0, 5)
        assert words(receiver, 1) == [5]
        assert silence(receiver, 0.8)
    finally:
        receiver.close()


@pytest.mark.parametrize("endpoints", [1, 2])
@pytest.mark.parametrize("down_s", [0.0, 0.8])
def test_a_restarted_sender_is_found_again_and_nothing_is_counted(
    senders: Senders, endpoints: int, down_s: float
) -> None:
    receiver = StreamReceiver([senders.bind() for _ in range(endpoints)], max_part_bytes=LIMIT)
    try:
        wait_connected(receiver)
        senders.send(0, 1)
        assert words(receiver, 1) == [1]
        senders.stop(0)
        assert silence(receiver, down_s)
        if down_s:
            wait_connected(receiver, endpoints == 2)
        senders.restart(0)
        senders.send(0, 2)
        assert words(receiver, 1) == [2]
        assert silence(receiver, 0.8)
        # Events are looked at each tenth of a second: a message may be read before the news of its connection.
        wait_connected(receiver)
    finally:
        receiver.close()


def test_a_restart_while_we_do_not_read_is_not_a_refused_part(senders: Senders) -> None:
    receiver = StreamReceiver([senders.bind()], max_part_bytes=LIMIT)
    try:
        wait_connected(receiver)
        senders.stop(0)
        time.sleep(0.7)
        senders.restart(0)
        time.sleep(0.5)
        senders.send(0, 2)
        assert words(receiver, 1) == [2]
        assert silence(receiver, 0.7)
    finally:
        receiver.close()


def test_what_came_before_a_refused_part_is_read_first(senders: Senders) -> None:
    receiver = StreamReceiver([senders.bind()], max_part_bytes=LIMIT)
    try:
        wait_connected(receiver)
        senders.send(0, *range(10))
        senders.sockets[0].send(bytes(LIMIT + 1))
        time.sleep(0.8)
        assert words(receiver, 11) == [*range(10), "too_large"]
    finally:
        receiver.close()


def test_a_peer_that_is_no_push_socket_is_named(senders: Senders) -> None:
    receiver = StreamReceiver([senders.bind(zmq.PUB)])
    try:
        received = None
        while received is None:
            received = receiver.receive(5.0)
        assert isinstance(received.message, InvalidMessage)
        assert received.message.reason == "wrong_protocol"
        assert "not a detector's PUSH socket" in str(received.message)
        assert not receiver.connected
    finally:
        receiver.close()


def test_a_sender_may_come_later(senders: Senders) -> None:
    endpoint = senders.bind()
    senders.stop(0)
    receiver = StreamReceiver([endpoint])
    try:
        assert silence(receiver, 0.3)
        assert not receiver.connected
        senders.restart(0)
        senders.send(0, 1)
        assert words(receiver, 1) == [1]
    finally:
        receiver.close()


def test_a_busy_endpoint_does_not_starve_another(senders: Senders) -> None:
    receiver = StreamReceiver([senders.bind(), senders.bind()])
    try:
        senders.send(0, *[0] * 12)
        senders.send(1, *[1] * 12)
        time.sleep(1.0)
        assert sum(words(receiver, 8)) in (3, 4, 5)
    finally:
        receiver.close()


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:96537", "tcp://127.0.0.1:65536", "tcp://127.0.0.1:0", "tcp://127.0.0.1:-1", "tcp://127.0.0.1",
     "tcp://127.0.0.1:port", "tcp://127.0.0.1:", "127.0.0.1:31001", "detector", "", "http://127.0.0.1:80",
     "tcp://127.0.0.1:" + "9" * 5000],
)  # fmt: skip
def test_an_address_that_cannot_be_one_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError):
        StreamReceiver([endpoint])


def test_a_receiver_without_address_or_of_another_protocol_is_refused() -> None:
    with pytest.raises(ValueError, match="no stream address"):
        StreamReceiver([])
    with pytest.raises(ValueError, match="'v3' is not known"):
        StreamReceiver(["tcp://127.0.0.1:31001"], protocol="v3")


def test_waiting_takes_as_long_as_asked(senders: Senders) -> None:
    receiver = StreamReceiver([senders.bind()])
    try:
        for timeout_s in (0.0, 0.35):
            began = time.monotonic()
            assert receiver.receive(timeout_s) is None
            assert timeout_s <= time.monotonic() - began < timeout_s + 3.0
    finally:
        receiver.close()


def test_both_protocols_are_told_apart_or_one_is_insisted_on() -> None:
    v2 = [memoryview(stream_v2.encode_image(good_image(1)))]
    v1 = [memoryview(bytes(part)) for part in stream_v1.encode_image(good_image(1))]
    for parts, ours, other in ((v2, "v2", "v1"), (v1, "v1", "v2")):
        assert isinstance(parse(parts), ImageMessage)
        assert isinstance(parse(parts, ours), ImageMessage)
        with pytest.raises(InvalidMessage) as caught:
            parse(parts, other)
        assert caught.value.reason == "wrong_protocol"


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_a_received_image_is_not_copied_and_keeps_only_its_own_part(senders: Senders, protocol: str) -> None:
    receiver = StreamReceiver([senders.bind()])
    try:
        if protocol == "v1":
            senders.sockets[0].send_multipart(stream_v1.encode_image(good_image(1)))
        else:
            senders.sockets[0].send(stream_v2.encode_image(good_image(1)))
        received: Received | None = receiver.receive(30.0)
        assert received is not None
        assert abs(time.time() - received.received_at) < 5
        assert isinstance(received.message, ImageMessage)
        image = received.message.channels["threshold_1"]
        assert isinstance(image, ImageData)
        assert isinstance(image.data, memoryview)
        owner = image.data.obj
        assert isinstance(owner, zmq.Frame)
        assert np.shares_memory(np.frombuffer(image.data, np.uint8), np.frombuffer(owner.buffer, np.uint8))
        size = received.nbytes
        del received
        gc.collect()
        # By type: asked for its class, a weak proxy of something that is gone raises.
        alive = [thing for thing in gc.get_objects() if issubclass(type(thing), zmq.Frame)]
        assert alive in ([], [owner])  # frames need not be tracked by the collector
        assert len(owner.buffer) <= size
    finally:
        receiver.close()


def greeted_as_push(listening: socket.socket) -> socket.socket:
    """The receiver's connection, greeted by hand: a PUSH whose parts go out before their message ends."""
    connection, _ = listening.accept()
    connection.settimeout(30)
    greet(connection, b"PUSH")
    return connection


class Hostile:
    """A detector by hand, and all that a receiver of it says."""

    def __init__(self, protocol: str, limit: int) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.settimeout(30)
        self.receiver = StreamReceiver([f"tcp://127.0.0.1:{self.listening.getsockname()[1]}"], protocol, limit)
        self.came: list[Received] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        while not self._over.is_set():
            if (received := self.receiver.receive(0.05)) is not None:
                self.came.append(received)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.kinds
            time.sleep(0.01)

    @property
    def kinds(self) -> list[str]:
        messages = [each.message for each in self.came]
        return [m.reason if isinstance(m, InvalidMessage) else type(m).__name__ for m in messages]

    def close(self) -> None:
        self._over.set()
        self._thread.join(30)
        self.receiver.close()
        self.listening.close()


@pytest.fixture
def hostile() -> Iterator[Callable[..., Hostile]]:
    made: list[Hostile] = []

    def opened(protocol: str = "v2", limit: int = LIMIT) -> Hostile:
        made.append(Hostile(protocol, limit))
        return made[-1]

    yield opened
    for each in made:
        each.close()


END = stream_v2.encode_end(5)


def test_a_message_of_parts_without_end_is_hung_up_on_and_the_stream_goes_on(hostile: Callable[..., Hostile]) -> None:
    detector, part = hostile(), b"\x03" + struct.pack(">Q", 1000) + b"x" * 1000
    with greeted_as_push(detector.listening) as endless:
        # Many times the limit in whole messages is no matter.
        for _ in range(500):
            endless.sendall(bytes([0, 200]) + bytes(200))
            endless.sendall(bytes([0, len(END)]) + END)
        with pytest.raises(OSError):  # noqa: PT012
            for _ in range(15_000):
                endless.sendall(part)
                time.sleep(0.002)
    with greeted_as_push(detector.listening) as again:
        again.sendall(bytes([0, len(END)]) + END)
        detector.until(lambda: detector.kinds.count("EndMessage") == 501)
    assert detector.kinds[-2:] == ["too_large", "EndMessage"]
    assert "parts without end" in str(detector.came[-2].message)


@pytest.mark.parametrize("content", [0, 1, 34], ids="{} bytes".format)
def test_parts_without_content_are_weighed_by_the_memory_they_take(
    hostile: Callable[..., Hostile], monkeypatch: pytest.MonkeyPatch, content: int
) -> None:
    monkeypatch.setattr(connections, "MOST_BESIDE_BYTES", 64 << 20)
    detector = hostile(limit=512 << 20)
    before = resident_bytes()
    with greeted_as_push(detector.listening) as endless:
        endless.settimeout(0.5)
        part = bytes([1, content]) + bytes(content)
        sent, parts = 0, memoryview(part * (100_000 // len(part)))
        # A gigabyte of them would be 34 of memory.
        while sent < 64 << 20 and not detector.came:
            try:
                sent += endless.send(parts[sent % len(parts) :])
            except TimeoutError:  # no more is read of who is hung up on, or who is to read stands still
                continue
            except OSError:
                break
            # Slower in the end: on a busy machine it takes a while until it is looked at.
            time.sleep(0.004 if sent < 32 << 20 else 0.06)
    assert connections.FEW_BYTES < sent < 64 << 20
    detector.until(lambda: detector.kinds == ["too_large"])
    detector.until(lambda: resident_bytes() - before < 64 << 20)
    with greeted_as_push(detector.listening) as again:
        # As many bytes in one part are a message like any other.
        again.sendall(b"\x02" + struct.pack(">Q", 64 << 20) + bytes(64 << 20) + bytes([0, len(END)]) + END)
        detector.until(lambda: len(detector.came) == 3)
    assert detector.kinds == ["too_large", "wrong_protocol", "EndMessage"]


def test_what_this_process_takes_for_itself_costs_no_sender_its_connection(
    hostile: Callable[..., Hostile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_BESIDE_BYTES", 64 << 20)
    detector, size, own = hostile(limit=512 << 20), 64 << 20, []
    with greeted_as_push(detector.listening) as slow:
        slow.sendall(b"\x02" + struct.pack(">Q", size))
        for _ in range(8):
            # While it comes, and while it stands still.
            slow.sendall(bytes(size // 16))
            time.sleep(0.06)
            own.append(np.ones(20 << 20, np.uint8))
        for _ in range(4):
            own.append(np.ones(20 << 20, np.uint8))
            time.sleep(0.15)
        assert sum(len(each) for each in own) > size + (64 << 20)
        assert detector.kinds == []
        slow.sendall(bytes(size // 2) + bytes([0, len(END)]) + END)
        detector.until(lambda: len(detector.came) == 2)
    assert detector.kinds == ["wrong_protocol", "EndMessage"]


def test_a_finished_message_of_very_many_parts_is_refused_and_not_collected(hostile: Callable[..., Hostile]) -> None:
    detector, extra = hostile("auto", 1 << 20), 200_000
    with greeted_as_push(detector.listening) as detector_side:
        detector_side.sendall(b"\x01\x00" * extra + b"\x00\x00" + bytes([0, len(END)]) + END)
        detector.until(lambda: len(detector.came) == 2)
    assert detector.kinds == ["malformed", "EndMessage"]
    assert str(detector.came[0].message) == f"a message of {extra + 1} parts"
    # Refused as one of a part too many is.
    with pytest.raises(InvalidMessage, match=f"a message of {MAX_PARTS + 1} parts"):
        parse([memoryview(b"")] * (MAX_PARTS + 1))


def test_who_sends_without_end_is_hung_up_on_while_another_endpoint_is_busy(senders: Senders) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30)
        receiver = StreamReceiver([senders.bind(), f"tcp://127.0.0.1:{listening.getsockname()[1]}"], "v2", LIMIT)
        over = threading.Event()

        def busy() -> None:
            while not over.is_set():
                senders.send(0, 1)

        thread = threading.Thread(target=busy)
        thread.start()
        try:
            with greeted_as_push(listening) as endless:
                endless.sendall(b"\x01\xff" + bytes(255))
                part = b"\x01\xff" + bytes(255)
                found: Any = None
                deadline = time.monotonic() + 30
                while found != "too_large" and time.monotonic() < deadline:
                    with contextlib.suppress(OSError):
                        endless.sendall(part * 50)
                    found = words(receiver, 1)[0]
            assert found == "too_large"
        finally:
            over.set()
            thread.join(30)
            receiver.close()


def test_a_small_part_does_not_keep_the_buffer_that_it_was_read_into(hostile: Callable[..., Hostile]) -> None:
    detector = hostile(limit=1 << 20)
    with greeted_as_push(detector.listening) as slow:
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before, count = resident_bytes(), 2000
        for _ in range(count):
            # Each is read alone, into a buffer of 8 KiB.
            slow.sendall(b"\x01\x22" + bytes(34))
            time.sleep(0.0005)
        assert resident_bytes() - before < count * 2048
        slow.sendall(b"\x00\x00")
        detector.until(lambda: detector.kinds == ["malformed"])
