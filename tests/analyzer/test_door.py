"""Peers that are too many, or never end what they say: hung up on, counted, and nobody else the worse for it."""

import socket
import struct
import time
from collections.abc import Iterator

import pytest
import zmq

from analyzer.door import Door, Limits, RefusedConnection

LIMITS = Limits(connections=4, unread_bytes=1 << 20, all_unread_bytes=3 << 20)


class Bound:
    """A ROUTER with a door, read as ours are."""

    def __init__(self, kind: int = zmq.ROUTER) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.door = Door(self.socket, LIMITS)
        self.socket.bind("tcp://127.0.0.1:0")
        self.address = str(self.socket.getsockopt_string(zmq.LAST_ENDPOINT))
        self.where = ("127.0.0.1", int(self.address.rpartition(":")[2]))
        self.came = 0

    def serve(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.door.look()
            while self.socket.poll(10):
                first = self.socket.recv(copy=False)
                if first.more:
                    self.socket.recv_multipart()
                self.door.heard(first)
                self.came += 1

    def until(self, reason: RefusedConnection, count: int) -> None:
        deadline = time.monotonic() + 10
        while self.door.refused[reason] < count:
            assert time.monotonic() < deadline, self.door.refused
            self.serve(0.05)

    def plain(self) -> socket.socket:
        """A peer that speaks ZMTP by hand, as libzmq's would not: its parts go out before their message ends."""
        raw = socket.create_connection(self.where, timeout=5)
        raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\0" + b"NULL".ljust(20, b"\0") + bytes(32))
        kind = b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
        ready = b"\x05READY" + kind
        raw.sendall(bytes([4, len(ready)]) + ready)
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
def bound() -> Iterator[Bound]:
    one = Bound()
    yield one
    one.close()


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
    raw.settimeout(2)
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
    bound.serve(0.3)
    endless(raw, 2 << 20)
    bound.until(RefusedConnection.TOO_MUCH, 1)
    assert gone(raw)
    friend.send(b"still here")
    bound.serve(0.2)
    assert bound.came == 2
    assert len(bound.door) == 1


def test_many_that_never_end_are_cut_off_by_what_they_hold_together(bound: Bound) -> None:
    peers = [bound.plain() for _ in range(4)]
    bound.serve(0.3)
    for raw in peers:
        endless(raw, 900 << 10)
    bound.until(RefusedConnection.TOO_MUCH, 1)
    bound.serve(0.2)
    assert bound.door.refused[RefusedConnection.TOO_MUCH] == 1
    assert len(bound.door) == 3
    for raw in peers:
        raw.close()


def test_who_ends_its_messages_may_send_any_number(bound: Bound) -> None:
    dealer = bound.dealer()
    for _ in range(40):
        dealer.send_multipart([bytes(100_000), b"more"])
        bound.serve(0.02)
    bound.serve(0.3)
    assert bound.came == 40
    assert not any(bound.door.refused.values())


def test_those_who_are_too_many_are_hung_up_on_and_make_room_when_they_go(bound: Bound) -> None:
    peers = [bound.dealer() for _ in range(4)]
    for peer in peers:
        peer.send(b"one")
    bound.serve(0.3)
    late = socket.create_connection(bound.where, timeout=5)
    bound.until(RefusedConnection.TOO_MANY, 1)
    assert gone(late)
    peers[0].close(0)
    bound.serve(0.3)
    newcomer = bound.dealer()
    newcomer.send(b"two")
    bound.serve(0.5)
    assert bound.came == 5
    assert len(bound.door) == 4


def test_a_flood_of_connections_takes_no_more_descriptors_than_are_allowed(bound: Bound) -> None:
    flood = []
    for _ in range(200):
        flood.append(socket.create_connection(bound.where, timeout=5))
        bound.door.look()
    bound.until(RefusedConnection.TOO_MANY, 196)
    assert len(bound.door) == 4
    for raw in flood:
        raw.close()


def test_a_subscriber_of_topics_without_end_is_hung_up_on() -> None:
    bound = Bound(zmq.PUB)
    subscriber = bound.context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.LINGER, 0)
    subscriber.setsockopt(zmq.SNDHWM, 0)
    subscriber.connect(bound.address)
    for number in range(3000):
        subscriber.setsockopt(zmq.SUBSCRIBE, str(number).encode() * 200)
    deadline = time.monotonic() + 10
    while not bound.door.refused[RefusedConnection.TOO_MUCH]:
        assert time.monotonic() < deadline
        bound.socket.send(b"news")
        bound.door.look()
        time.sleep(0.02)
    bound.close()


def test_a_closed_door_lets_go_of_everybody(bound: Bound) -> None:
    dealer = bound.dealer()
    dealer.send(b"one")
    bound.serve(0.3)
    assert len(bound.door) == 1
    bound.door.close()
    assert len(bound.door) == 0
