"""Peers that are too many, or never end what they say: hung up on, counted, and nobody else the worse for it."""

import contextlib
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import zmq

from analyzer.descriptors import at_most
from analyzer.door import Door, Limits, RefusedConnection
from streamer import connections
from streamer.connections import resident_bytes, rest_of_message, second_handle
from tests.zmtp import greet

LIMITS = Limits(connections=4, unread_bytes=1 << 20, all_unread_bytes=3 << 20)


class Bound:
    """A ROUTER with a door, read as ours are."""

    def __init__(self, kind: int = zmq.ROUTER, limits: Limits = LIMITS) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.door = Door(self.socket, limits)
        self.socket.bind("tcp://127.0.0.1:0")
        self.address = str(self.socket.getsockopt_string(zmq.LAST_ENDPOINT))
        self.where = ("127.0.0.1", int(self.address.rpartition(":")[2]))
        self.came = self.beyond = 0

    def serve(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.door.look()
            self.read()

    def read(self) -> None:
        while self.socket.poll(10):
            first = self.socket.recv(copy=False)
            if first.more:
                self.beyond += rest_of_message(self.socket, 8)[1]
            self.door.heard(first)
            self.came += 1

    def until(self, reason: RefusedConnection, count: int) -> None:
        deadline = time.monotonic() + 30
        while self.door.refused[reason] < count:
            assert time.monotonic() < deadline, self.door.refused
            self.serve(0.05)

    def until_here(self, peers: int, came: int = 0) -> None:
        """Until so many peers are here and so many messages came in all, and a while on."""
        deadline = time.monotonic() + 30
        while len(self.door) != peers or self.came < came:
            assert time.monotonic() < deadline, (len(self.door), self.came, self.door.refused)
            self.serve(0.05)
        self.serve(0.1)
        assert (len(self.door), self.came) == (peers, came or self.came)

    def plain(self) -> socket.socket:
        """A peer that speaks ZMTP by hand, as libzmq's would not: its parts go out before their message ends."""
        raw = socket.create_connection(self.where, timeout=30)
        greet(raw, b"DEALER")
        return raw

    def dealer(self) -> "zmq.Socket[bytes]":
        dealer = self.context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(self.address)
        return dealer

    def close(self) -> None:
        self.door.close()
        self.context.destroy(0)


@pytest.fixture
def opened() -> Iterator[Callable[..., Bound]]:
    made: list[Bound] = []

    def opened(kind: int = zmq.ROUTER, limits: Limits = LIMITS) -> Bound:
        made.append(Bound(kind, limits))
        return made[-1]

    yield opened
    for each in made:
        each.close()


@pytest.fixture
def bound(opened: Callable[..., Bound]) -> Bound:
    return opened()


def endless(raw: socket.socket, size: int) -> int:
    """Send parts that announce another; how many bytes were taken before we were hung up on."""
    part = b"\x03" + struct.pack(">Q", 1000) + b"x" * 1000
    sent = 0
    raw.settimeout(0.2)
    try:
        while sent < size:
            raw.sendall(part)
            sent += len(part)
    except OSError:
        pass
    return sent


def gone(raw: socket.socket) -> bool:
    raw.settimeout(20)
    try:
        while raw.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_a_message_that_never_ends_is_cut_off(bound: Bound) -> None:
    friend = bound.dealer()
    friend.send(b"hello")
    raw = bound.plain()
    bound.until_here(2, 1)
    endless(raw, 2 << 20)
    bound.until(RefusedConnection.TOO_MUCH, 1)
    assert gone(raw)
    friend.send(b"still here")
    bound.until_here(1, 2)


def test_many_that_never_end_are_cut_off_by_what_they_hold_together(bound: Bound) -> None:
    peers = [bound.plain() for _ in range(4)]
    bound.until_here(4)
    for raw in peers:
        endless(raw, 900 << 10)
    bound.until(RefusedConnection.TOO_MUCH, 1)
    bound.serve(0.2)
    assert bound.door.refused[RefusedConnection.TOO_MUCH] == 1
    assert len(bound.door) == 3
    for raw in peers:
        raw.close()


def test_parts_without_content_are_weighed_by_the_memory_they_take(
    opened: Callable[..., Bound], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_BESIDE_BYTES", 64 << 20)
    bound = opened(limits=replace(LIMITS, unread_bytes=1 << 30, all_unread_bytes=1 << 30))
    before = resident_bytes()
    friend, raw = bound.dealer(), bound.plain()
    friend.send(b"hello")
    bound.until_here(2, 1)
    raw.settimeout(0.5)
    with contextlib.suppress(OSError):
        for _ in range(200):
            raw.sendall(b"\x01\x00" * 50_000)
            bound.serve(0.005)
    bound.until(RefusedConnection.TOO_MUCH, 1)
    assert gone(raw)
    friend.send(b"still here")
    bound.serve(1.4)
    bound.until_here(1, 2)
    assert resident_bytes() - before < 64 << 20


def test_a_finished_message_of_very_many_parts_is_read_and_not_collected(bound: Bound) -> None:
    raw = bound.plain()
    bound.until_here(1)
    raw.sendall(b"\x01\x00" * 200_000 + b"\x00\x00")
    deadline = time.monotonic() + 30
    while not bound.came and time.monotonic() < deadline:
        bound.serve(0.05)
    assert (bound.came, bound.beyond) == (1, 200_001 - 8)
    assert not any(bound.door.refused.values())
    raw.close()


def test_who_ends_its_messages_may_send_any_number(bound: Bound) -> None:
    dealer = bound.dealer()
    for _ in range(40):
        dealer.send_multipart([bytes(100_000), b"more"])
        bound.serve(0.02)
    bound.until_here(1, 40)
    assert not any(bound.door.refused.values())


def test_those_who_are_too_many_are_hung_up_on_and_make_room_when_they_go(bound: Bound) -> None:
    peers = [bound.dealer() for _ in range(4)]
    for peer in peers:
        peer.send(b"one")
    bound.until_here(4, 4)
    late = socket.create_connection(bound.where, timeout=30)
    bound.until(RefusedConnection.TOO_MANY, 1)
    assert gone(late)
    peers[0].close(0)
    bound.until_here(3, 4)
    newcomer = bound.dealer()
    newcomer.send(b"two")
    bound.until_here(4, 5)


def test_a_flood_of_connections_takes_no_more_descriptors_than_are_allowed(bound: Bound) -> None:
    flood = []
    for _ in range(200):
        flood.append(socket.create_connection(bound.where, timeout=5))
        bound.door.look()
    bound.until(RefusedConnection.TOO_MANY, 196)
    assert len(bound.door) == 4
    bound.serve(0.3)
    assert not bound.door.refused[RefusedConnection.PROTOCOL], "a handshake that we ended did not fail"
    for raw in flood:
        raw.close()


def test_who_never_said_anything_gives_way_to_who_comes_and_who_did_stays(opened: Callable[..., Bound]) -> None:
    bound = opened(limits=replace(LIMITS, first_s=60.0))
    friend = bound.dealer()
    friend.send(b"hello")
    bound.until_here(1, 1)
    silent = [bound.plain() for _ in range(3)]
    bound.until_here(4, 1)
    newcomer = bound.dealer()
    newcomer.send(b"I work")
    bound.until_here(4, 2)
    assert gone(silent[0]), "silent for longest"
    assert bound.door.refused == dict.fromkeys(RefusedConnection, 0) | {RefusedConnection.TOO_MANY: 1}
    friend.send(b"still here")
    bound.until_here(4, 3)
    for raw in silent:
        raw.close()


def test_who_says_nothing_for_too_long_is_hung_up_on(opened: Callable[..., Bound]) -> None:
    bound = opened(limits=replace(LIMITS, first_s=0.5, silent_s=2.0))
    talker, once, never = bound.dealer(), bound.dealer(), bound.plain()
    once.send(b"hello")
    # A pause of this process counts for a second at most, so that they end one after the other in any case.
    for ended in (1, 2):
        deadline = time.monotonic() + 30
        while bound.door.refused[RefusedConnection.SILENT] < ended:
            assert time.monotonic() < deadline
            talker.send(b"beat")
            bound.serve(0.1)
        assert bound.door.refused[RefusedConnection.SILENT] == ended
        assert gone(never), "the one that never said anything is the first"
    assert not bound.door.refused[RefusedConnection.PROTOCOL]
    assert any(peer.known for peer in bound.door._peers.values()), "who beats stays"


def test_a_pause_of_ours_is_nobody_s_silence(opened: Callable[..., Bound]) -> None:
    bound = opened(limits=replace(LIMITS, first_s=2.0, silent_s=2.0))
    dealer = bound.dealer()
    dealer.send(b"hello")
    bound.until_here(1, 1)
    time.sleep(3)
    assert bound.door.look() == []
    assert len(bound.door) == 1


def test_what_waits_to_be_read_is_not_held_against_who_sent_it(bound: Bound) -> None:
    raw = bound.plain()
    bound.until_here(1)
    message = b"\x02" + struct.pack(">Q", 100_000) + bytes(100_000)
    for _ in range(20):
        raw.sendall(message)
    time.sleep(0.3)
    assert bound.door.admit() == bound.door.weigh(caught_up=False) == []
    deadline = time.monotonic() + 30
    while bound.came < 20:
        assert time.monotonic() < deadline
        bound.read()
    assert bound.door.weigh() == []
    assert bound.came == 20
    assert not any(bound.door.refused.values())
    # But a flood that is never read to its end puts off no limit.
    for _ in range(20):
        raw.sendall(message)
    deadline = time.monotonic() + 30
    while not bound.door.weigh(caught_up=False):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert gone(raw)


def test_without_a_descriptor_left_who_comes_is_hung_up_on_and_counted(bound: Bound) -> None:
    raw = socket.socket()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 20
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        os.close(taken.pop())  # libzmq's own
        raw.connect(bound.where)
        bound.until(RefusedConnection.TOO_MANY, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in taken:
            os.close(each)
    assert gone(raw)
    dealer = bound.dealer()
    dealer.send(b"hello")
    bound.until_here(1, 1)


def test_few_descriptors_are_few_places() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, limits[1]))
    try:
        assert at_most(512, descriptors_each=2) == 100
        assert at_most(50, descriptors_each=2) == 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_another_connection_of_ours_is_not_taken_for_a_peer(bound: Bound) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        port = elsewhere.getsockname()[1]
        with socket.create_connection(elsewhere.getsockname()) as ours, elsewhere.accept()[0] as page:
            for each in (ours, page, elsewhere):
                assert second_handle(each.fileno(), local_port=bound.where[1]) is None
            assert second_handle(page.fileno(), peer_port=port) is None
            for found in (second_handle(ours.fileno(), peer_port=port), second_handle(page.fileno(), local_port=port)):
                assert found is not None
                found.close()
            assert not bound.door._came(page.fileno(), bound.address.encode()) or not len(bound.door)
            page.sendall(b"untouched")
            assert ours.recv(100) == b"untouched"


def test_where_the_kernel_does_not_say_how_much_came_connections_are_counted_and_it_is_said_once(
    bound: Bound, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "_tcp_info", lambda connection, size: b"\x01"[:size])
    peers = [bound.dealer() for _ in range(4)]
    for peer in peers:
        peer.send(b"one")
    bound.until_here(4, 4)
    late = socket.create_connection(bound.where, timeout=30)
    bound.until(RefusedConnection.TOO_MANY, 1)
    assert gone(late)
    assert [each.getMessage()[:24] for each in caplog.records if each.name == "analyzer.door"] == [
        "this kernel does not say"
    ]


@pytest.mark.parametrize(("refill_bytes_s", "stays"), [(0.0, False), (1e6, True)])
def test_signs_of_life_of_a_subscriber_use_nothing_up(
    opened: Callable[..., Bound], refill_bytes_s: float, stays: bool
) -> None:
    bound = opened(zmq.PUB, replace(LIMITS, unread_bytes=3000, refill_bytes_s=refill_bytes_s))
    subscriber = bound.context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    subscriber.setsockopt(zmq.HEARTBEAT_IVL, 1)
    subscriber.connect(bound.address)
    deadline, most = time.monotonic() + 120, 0
    while most < 6000 and not any(bound.door.refused.values()):
        assert time.monotonic() < deadline
        bound.door.look()
        for peer in bound.door._peers.values():
            most = max(most, connections.received_bytes(peer.connection) or 0)
        time.sleep(0.02)
    assert any(bound.door.refused.values()) != stays


def test_a_subscriber_of_topics_without_end_is_hung_up_on(opened: Callable[..., Bound]) -> None:
    bound = opened(zmq.PUB)
    subscriber = bound.context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.LINGER, 0)
    subscriber.setsockopt(zmq.SNDHWM, 0)
    subscriber.connect(bound.address)
    for number in range(3000):
        subscriber.setsockopt(zmq.SUBSCRIBE, str(number).encode() * 200)
    deadline = time.monotonic() + 30
    while not bound.door.refused[RefusedConnection.TOO_MUCH]:
        assert time.monotonic() < deadline
        bound.socket.send(b"news")
        bound.door.look()
        time.sleep(0.02)


def test_a_closed_door_lets_go_of_everybody(bound: Bound) -> None:
    dealer = bound.dealer()
    dealer.send(b"one")
    bound.until_here(1, 1)
    bound.door.close()
    assert len(bound.door) == 0
