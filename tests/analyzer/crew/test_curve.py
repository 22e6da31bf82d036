"""The door of the workers' address: who has no key that is allowed gets nothing in, and is counted."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import zmq

from analyzer.bundle import Bundle
from analyzer.cascade import CascadeSettings, PlanCache
from analyzer.crew import dispatch, worker
from analyzer.crew.curve import FrontKeys, WorkerKeys, be_a_worker, is_key, new_keys, public_of
from analyzer.crew.dispatch import Crew
from analyzer.crew.wire import MOST_SHORT_BYTES, PROTOCOL, Hello, Kind, message
from analyzer.door import RefusedConnection
from analyzer.judge import Judge
from analyzer.results import Status
from streamer.ring import FrameRing
from tests.analyzer.builders import whole_series
from tests.analyzer.crew.made import LOOPBACK, Hand, Run

FRONT, SECRET = new_keys()
ALLOWED, OF_ALLOWED = new_keys()
STRANGE, OF_STRANGE = new_keys()
KEYS = FrontKeys(SECRET, lambda: frozenset([ALLOWED]))


def handshakes(crew: Crew) -> dict[str, float]:
    found = {}
    for family in crew.collect():
        if family.name == "cxls_crew_connections_refused":
            found = {each.labels["reason"]: each.value for each in family.samples}
    return found


def members(crew: Crew) -> int:
    return len(crew.facts()["workers"])


@pytest.fixture
def crew(bundle: Bundle, request: pytest.FixtureRequest) -> Iterator[Crew]:
    """A front with nothing to do, with the keys that the test names."""
    made = Crew(LOOPBACK, Judge(bundle, CascadeSettings()), PlanCache(), getattr(request, "param", None))
    made.start(FrameRing(1 << 20, 8), 0.01, (), lambda frames, outcome: None)
    yield made
    made.drain(lambda: False)
    made.close()


def until(condition: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def host_and_port(crew: Crew) -> tuple[str, int]:
    host, _, port = crew.address.removeprefix("tcp://").rpartition(":")
    return host, int(port)


# --- keys -------------------------------------------------------------------------------


def test_a_worker_with_a_key_that_is_allowed_analyses_as_without_keys(bundle: Bundle) -> None:
    run = Run(bundle, whole_series(12, 1), keys=KEYS).start()
    hand = Hand(run.crew.address, keys=WorkerKeys(OF_ALLOWED, FRONT))
    run.join().assert_closes()
    hand.end()
    assert {each.status for each in run.kept.results} == {Status.OK}
    assert handshakes(run.crew) == dict.fromkeys(RefusedConnection, 0)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (None, "protocol"),
        (WorkerKeys(OF_STRANGE, FRONT), "key"),
        (WorkerKeys(OF_ALLOWED, STRANGE), "protocol"),
    ],
    ids=["without a key", "a key that is not allowed", "another front's key"],
)
def test_who_does_not_fit_is_refused_counted_said_once_and_told(
    bundle: Bundle, keys: WorkerKeys | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    run = Run(bundle, whole_series(6, 1), keys=KEYS).start()
    refused = Hand(run.crew.address, keys=keys, name="refused")
    run.wait_for(lambda: handshakes(run.crew)[reason] >= 1)
    assert members(run.crew) == 0
    until(lambda: any(each.getMessage().startswith("no entry at") for each in caplog.records))
    friend = Hand(run.crew.address, keys=WorkerKeys(OF_ALLOWED, FRONT))
    run.join().assert_closes()
    refused.end()
    friend.end()
    lines = [each.getMessage() for each in caplog.records]
    assert sum("was refused" in line for line in lines) == 1
    assert any(line.startswith(f"no entry at {run.crew.address}") for line in lines)
    secrets = (SECRET, OF_ALLOWED, OF_STRANGE)
    assert not any(key.decode() in line for key in secrets for line in lines)


@pytest.mark.parametrize("crew", [KEYS], indirect=True)
def test_a_worker_is_let_in_once_its_key_is_allowed(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SILENT_S", 1.0)
    allowed: set[bytes] = set()
    crew._gate._allowed = lambda: frozenset(allowed)  # type: ignore[union-attr]
    hand = Hand(crew.address, keys=WorkerKeys(OF_STRANGE, FRONT))
    until(lambda: handshakes(crew)["key"] >= 1)
    allowed.add(STRANGE)
    # libzmq does not ask again where it was refused; the worker does.
    until(lambda: members(crew) == 1)
    hand.end()


@pytest.mark.parametrize("crew", [None, KEYS], ids=["plain", "curve"], indirect=True)
def test_a_thousand_peers_that_speak_nonsense_are_counted_and_hold_up_nobody(crew: Crew) -> None:
    where, before = host_and_port(crew), threading.active_count()
    for number in range(1000):
        with socket.create_connection(where, timeout=30) as peer:
            # A greeting of ZeroMQ 3.1 and of a mechanism that is none, then noise.
            mechanism = os.urandom(20) if number % 2 else b"PLAIN".ljust(20, b"\0")
            peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism + bytes(32) + os.urandom(64))
    keys = None if crew._gate is None else WorkerKeys(OF_ALLOWED, FRONT)
    hand = Hand(crew.address, keys=keys)
    until(lambda: members(crew) == 1)
    assert handshakes(crew)["protocol"] > 100
    assert threading.active_count() <= before + 5
    hand.end()


@pytest.mark.parametrize("crew", [KEYS], indirect=True)
def test_what_asks_for_entry_in_no_known_way_is_not_let_in(crew: Crew) -> None:
    asker = crew._context.socket(zmq.REQ)
    asker.connect("inproc://zeromq.zap.01")
    key = b"\0" * 32
    for request in (
        [b""], [b"1.0"], [b"1.0", b"7", b"d", b"127.0.0.1", b"", b"NULL"],
        [b"1.0", b"7", b"d", b"127.0.0.1", b"", b"PLAIN", key], [b"1.0", b"7", b"d", b"127.0.0.1", b"", b"CURVE", b""],
        [b"1.0", b"7", b"d", b"127.0.0.1", b"", b"CURVE", key],
    ):  # fmt: skip
        asker.send_multipart(request)
        assert asker.poll(30_000)
        assert asker.recv_multipart()[2] == b"400"
    asker.close(0)


def test_a_key_is_forty_characters_of_z85() -> None:
    assert is_key(FRONT)
    assert public_of(SECRET) == FRONT
    for text in (b"", b"x" * 39, b"x" * 41, b"~" * 40, b"#" * 40, "ü".encode() * 20, SECRET + b"\n"):
        assert not is_key(text)
        with pytest.raises(ValueError, match="not a key"):
            public_of(text)


def test_what_was_kept_back_is_said_when_the_front_closes(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    crew = Crew(LOOPBACK, Judge(bundle, CascadeSettings()), PlanCache())
    crew.start(FrameRing(1 << 20, 8), 0.01, (), lambda frames, outcome: None)
    for number in range(3):
        with stranger(crew) as dealer:
            dealer.send_multipart([b"B", b"\xc0", *[b""] * 3000])
            until(lambda number=number: crew._bad == number + 1)  # type: ignore[misc]
    crew.drain(lambda: False)
    crew.close()
    assert sum(each.getMessage().startswith("2 more in") for each in caplog.records) == 1


# --- limits -----------------------------------------------------------------------------


def stranger(crew: Crew, keys: WorkerKeys | None = None) -> "zmq.Socket[bytes]":
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    if keys is not None:
        be_a_worker(dealer, keys)
    dealer.connect(crew.address)
    return dealer


def test_a_part_larger_than_a_worker_sends_ends_its_connection_alone(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = Hand(crew.address)
    until(lambda: members(crew) == 1)
    with stranger(crew) as large:
        large.send_multipart([b"H", bytes(dispatch.MOST_PART_BYTES + 1)])
        with stranger(crew) as other:
            other.send_multipart(message(Kind.BEAT))
            assert other.poll(30_000)
        assert not large.poll(300)
    assert members(crew) == 1
    hand.end()


@pytest.mark.parametrize(
    "parts",
    [
        [b"H", bytes(MOST_SHORT_BYTES + 1)],
        [b"B", b"\xc0", *[b""] * 3000],
        message(Kind.HELLO, Hello(PROTOCOL, "large batches", "h", 1, 1, 257, 4096)),
        message(Kind.HELLO, Hello(PROTOCOL, "much room", "h", 1, 1, 8, 4097)),
        message(Kind.HELLO, Hello(PROTOCOL, "x" * 101, "h", 1, 1, 8, 16)),
        message(Kind.HELLO, Hello(PROTOCOL, "red \x1b[31m", "h", 1, 1, 8, 16)),
    ],
    ids=["long hello", "parts", "batch", "room", "name", "escape"],
)
def test_what_is_beyond_a_worker_is_refused_and_counted(crew: Crew, parts: list[bytes]) -> None:
    with stranger(crew) as dealer:
        dealer.send_multipart(parts)
        until(lambda: crew._bad == 1)
    assert members(crew) == 0


def test_more_workers_than_are_served_are_refused(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_MOST_WORKERS", 2)
    fleet = [stranger(crew) for _ in range(3)]
    for number, dealer in enumerate(fleet):
        dealer.send_multipart(message(Kind.HELLO, Hello(PROTOCOL, f"w{number}", "h", number, 1, 4, 8)))
    until(lambda: members(crew) == 2 and crew._bad == 1)
    for dealer in fleet:
        dealer.close(0)


def test_a_flood_of_strangers_is_not_answered_without_end(crew: Crew) -> None:
    with stranger(crew) as dealer:
        for _ in range(5000):
            dealer.send_multipart(message(Kind.BEAT))
        hand = Hand(crew.address)
        until(lambda: members(crew) == 1)
        answers = 0
        assert dealer.poll(30_000)
        while dealer.poll(200):
            dealer.recv_multipart()
            answers += 1
        hand.end()
    assert 0 < answers <= 3 * 256


def test_a_worker_that_reads_nothing_is_given_up_and_not_queued_for(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SILENT_S", 1.5)
    with stranger(crew) as dealer:
        dealer.send_multipart(message(Kind.HELLO, Hello(PROTOCOL, "deaf", "h", 1, 1, 4, 8)))
        until(lambda: members(crew) == 1 or crew.facts()["lost_workers"] == 1)
        until(lambda: members(crew) == 0)
        assert crew.facts()["lost_workers"] == 1


def test_peers_that_say_nothing_keep_no_worker_out(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LIMITS", replace(dispatch.LIMITS, connections=8))
    crew = Crew(LOOPBACK, Judge(bundle, CascadeSettings()), PlanCache())
    crew.start(FrameRing(1 << 20, 8), 0.01, (), lambda frames, outcome: None)
    silent = [stranger(crew) for _ in range(8)]
    until(lambda: len(crew._door) == 8)
    hand = Hand(crew.address)
    until(lambda: members(crew) == 1)
    time.sleep(0.5)
    assert members(crew) == 1
    hand.end()
    for dealer in silent:
        dealer.close(0)
    crew.drain(lambda: False)
    crew.close()


def test_what_came_in_a_pause_of_the_front_is_read_before_it_is_weighed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LIMITS", replace(dispatch.LIMITS, unread_bytes=1 << 20))
    crew = Crew(LOOPBACK, Judge(bundle, CascadeSettings()), PlanCache())
    with stranger(crew) as dealer:
        for _ in range(30):
            dealer.send_multipart([b"O", b"\xc0", bytes(100_000)])
        time.sleep(0.5)
        crew.start(FrameRing(1 << 20, 8), 0.01, (), lambda frames, outcome: None)
        assert dealer.poll(30_000), "who are you"
        time.sleep(0.3)
    assert handshakes(crew) == dict.fromkeys(RefusedConnection, 0)
    crew.drain(lambda: False)
    crew.close()


def test_a_handshake_that_is_not_finished_ends(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_HANDSHAKE_MS", 300)
    crew = Crew(LOOPBACK, Judge(bundle, CascadeSettings()), PlanCache())
    with socket.create_connection(host_and_port(crew), timeout=60) as half:
        half.sendall(b"\xff\0\0")
        began = time.monotonic()
        while half.recv(100):
            pass
        assert time.monotonic() - began < 20.0
    crew.close()


def test_refusals_have_every_reason_from_the_start(crew: Crew) -> None:
    assert set(handshakes(crew)) == set(RefusedConnection)
