"""Records to whoever listens: real PUB and SUB sockets, slow subscribers, sequence numbers."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq

from analyzer.indexing import Broadcast, CannotBind
from analyzer.indexing.broadcast import TOPICS, streamvis_metadata
from analyzer.results import RECORD_FIELDS, Decision, FrameResult, HitRule, Peak, Status, record
from streamer.messages import SeriesMetadata
from tests.analyzer.builders import metadata

LOOPBACK = "tcp://127.0.0.1:0"
PROBE = b"probe"


def result(image_id: int, decision: Decision | None = Decision.HIT, **changes: Any) -> FrameResult:
    facts: dict[str, Any] = {
        "series_id": 7, "image_id": image_id, "channel": "threshold_1", "start_time": 0.5, "exposure_s": 0.001,
        "received_at": 1.75e9, "latency_s": 0.01, "decision": decision, "hit": decision == Decision.HIT,
        "hit_probability": 0.97, "hit_rule": HitRule.NETWORK, "indexable": False, "peak_count": 2,
        "peaks": [Peak(5.25, 6.0, 40.0, 8.0, False), Peak(7.0, 8.5, 60.0, 9.0, True)], "saturated_pixels": 3,
        "ordinal": 1, "nulls": {"x": ("size", "text")},
    }  # fmt: skip
    return FrameResult(**(facts | changes))


DROPPED = result(
    9, None, hit=None, peaks=None, peak_count=None, saturated_pixels=None, status=Status.DROPPED, hit_rule=None
)


class Subscriber:
    """A SUB socket that has been heard of by the publisher."""

    def __init__(self, publisher: Broadcast, topic: bytes = b"", held: int = 100_000) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self.socket = self._context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, held)
        self.socket.setsockopt(zmq.RCVTIMEO, 30_000)
        for wanted in (topic, PROBE):
            self.socket.setsockopt(zmq.SUBSCRIBE, wanted)
        self.socket.connect(publisher.address)
        # What is published before the subscription is there never comes.
        deadline = time.monotonic() + 30
        while not self.socket.poll(20):
            assert time.monotonic() < deadline, "the publisher does not hear of it"
            with contextlib.suppress(zmq.Again):
                publisher._socket.send_multipart([PROBE, b""], zmq.DONTWAIT)

    def receive(self) -> tuple[str, dict[str, Any]]:
        while True:
            topic, packed = self.socket.recv_multipart()
            if topic != PROBE:
                return topic.decode(), msgspec.msgpack.decode(packed)

    def all(self) -> list[dict[str, Any]]:
        """What has come, until nothing more does."""
        found = []
        while self.socket.poll(500):
            topic, packed = self.socket.recv_multipart()
            if topic != PROBE:
                found.append(msgspec.msgpack.decode(packed))
        return found

    def close(self) -> None:
        self.socket.close()
        self._context.term()


@contextlib.contextmanager
def publishing(**options: Any) -> Iterator[Broadcast]:
    publisher = Broadcast(LOOPBACK, **options)
    try:
        yield publisher
    finally:
        publisher.close()


@contextlib.contextmanager
def subscribed(publisher: Broadcast, **options: Any) -> Iterator[Subscriber]:
    subscriber = Subscriber(publisher, **options)
    try:
        yield subscriber
    finally:
        subscriber.close()


def test_a_record_comes_whole_with_its_schema() -> None:
    with publishing() as publisher, subscribed(publisher) as subscriber:
        publisher.write([result(3)])
        topic, message = subscriber.receive()
        assert topic == "cxls/1/hit"
        assert (message["schema"], message["version"]) == ("cxls.record", 1)
        assert (message["sequence"], message["topic_sequence"]) == (0, 0)
        assert list(message["record"]) == list(RECORD_FIELDS)
        plain = msgspec.json.decode(msgspec.json.encode(record(result(3))))
        assert message["record"] == plain
        assert message["record"]["peaks"][1] == {
            "fs": 7.0, "ss": 8.5, "intensity_photons": 60.0, "snr": 9.0, "saturated": True,
            "q_per_angstrom": None, "resolution_angstrom": None,
        }  # fmt: skip


def test_every_kind_of_record_has_its_topic() -> None:
    results = [result(0), result(1, Decision.MISS), result(2, Decision.NO_BEAM), DROPPED,
               result(4, None, status=Status.UNDECODABLE), result(5, None, status=Status.SKIPPED)]  # fmt: skip
    with publishing() as publisher, subscribed(publisher) as subscriber:
        publisher.write(results)
        topics = [subscriber.receive()[0] for _ in results]
    assert topics == [f"cxls/1/{t}" for t in ("hit", "miss", "no_beam", "dropped", "undecodable", "skipped")]
    assert set(topics) == {f"cxls/1/{t}" for t in TOPICS}


def test_a_subscriber_to_hits_sees_its_own_sequence_without_gaps() -> None:
    with publishing() as publisher, subscribed(publisher, topic=b"cxls/1/hit") as subscriber:
        publisher.write([result(n, Decision.HIT if n % 3 == 0 else Decision.MISS) for n in range(9)])
        found = [subscriber.receive()[1] for _ in range(3)]
        assert [message["topic_sequence"] for message in found] == [0, 1, 2]
        assert [message["sequence"] for message in found] == [0, 3, 6]


def test_a_subscriber_that_does_not_read_delays_nobody_and_sees_its_losses() -> None:
    padding = {"padding": "x" * 20_000}
    with (
        publishing(messages_held=50) as publisher,
        subscribed(publisher, held=50) as slow,
        subscribed(publisher) as quick,
    ):
        for n in range(2000):
            publisher.write([result(n, tags=padding)])
            assert quick.receive()[1]["sequence"] == n
        assert publisher.overruns > 0
        late = [message["sequence"] for message in slow.all()]
        assert late == sorted(set(late))
        assert 50 <= len(late) < 2000
        # Having read, it is sent to again, and its sequence shows what it lost.
        publisher.write([result(2000)])
        assert slow.receive()[1]["sequence"] == 2000


def test_without_subscribers_nothing_waits_and_nothing_is_lost() -> None:
    with publishing(messages_held=10) as publisher:
        publisher.write([result(n) for n in range(5000)])
        assert (publisher.sent, publisher.overruns, publisher.lost) == (5000, 0, 0)


def test_a_record_that_cannot_be_packed_is_counted_and_leaves_no_gap() -> None:
    with publishing() as publisher, subscribed(publisher) as subscriber:
        publisher.write([result(0), result(1, tags={"n": 1 << 80}), result(2, tags={"o": object()}), result(3)])
        assert [subscriber.receive()[1]["sequence"] for _ in range(2)] == [0, 1]
        assert publisher.failed == 2
        assert publisher.facts()["lost"] == 2


def test_the_last_messages_go_out_at_the_end() -> None:
    publisher = Broadcast(LOOPBACK)
    with subscribed(publisher) as subscriber:
        publisher.write([result(n) for n in range(500)])
        publisher.close()
        assert len(subscriber.all()) == 500


def test_a_subscriber_that_comes_and_goes_harms_nothing() -> None:
    with publishing() as publisher:
        for n in range(5):
            with subscribed(publisher) as subscriber:
                publisher.write([result(n)])
                assert subscriber.receive()[1]["sequence"] == n


def test_too_large_a_subscription_and_what_is_none_harm_nobody() -> None:
    with publishing() as publisher, subscribed(publisher) as subscriber:
        context: zmq.Context[Any] = zmq.Context()
        greedy, rude = context.socket(zmq.SUB), context.socket(zmq.XSUB)
        for socket in (greedy, rude):
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(publisher.address)
        greedy.setsockopt(zmq.SUBSCRIBE, b"x" * 5000)
        for n in range(1000):
            rude.send(b"\x07 nonsense %d" % n)
            rude.send(b"\x01cxls/1/%d" % n)
        time.sleep(0.3)
        publisher.write([result(n) for n in range(100)])
        assert [message["sequence"] for message in subscriber.all()] == list(range(100))
        greedy.close()
        rude.close()
        context.term()


def test_two_runs_are_told_apart() -> None:
    names = set()
    for _ in range(2):
        with publishing() as publisher, subscribed(publisher) as subscriber:
            publisher.write([result(0)])
            names.add(subscriber.receive()[1]["run"])
    assert len(names) == 2


def test_an_address_that_cannot_be_bound_is_refused_in_one_line() -> None:
    with publishing() as publisher, pytest.raises(CannotBind, match="in use"):
        Broadcast(publisher.address)
    with pytest.raises(CannotBind):
        Broadcast("tcp://127.0.0.1:70000")


# --- streamvis ---------------------------------------------------------------------------


def test_streamvis_finds_its_keys() -> None:
    found = streamvis_metadata(result(3, tags={"pulse_id": 55, "laser_on": True}), metadata())
    assert found == {
        "pulse_id": 55, "is_good_frame": True, "is_hit_frame": True, "number_of_spots": 2, "spot_x": [5.25, 7.0],
        "spot_y": [6.0, 8.5], "saturated_pixels": 3, "laser_on": True, "type": "uint16", "shape": [61, 75],
        "beam_energy": 7000.0, "detector_distance": 150.0, "beam_center_x": 37.5, "beam_center_y": 30.5,
    }  # fmt: skip


@pytest.mark.parametrize("header", [None, SeriesMetadata()])
def test_what_is_not_known_is_left_out_for_streamvis(header: SeriesMetadata | None) -> None:
    assert streamvis_metadata(DROPPED, header) == {"pulse_id": 9, "is_good_frame": False}
    no_numbers = streamvis_metadata(result(3, tags={"pulse_id": "x", "laser_on": "yes"}), header)
    assert no_numbers["pulse_id"] == 3
    assert "laser_on" not in no_numbers
