"""Each fault through a real socket into a whole analysis: what its account gains is what the ledger said, no less and
no more, the good images all come through and the run goes on."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from analyzer.results import Status
from sim_replay.faults import KINDS, FaultPlan, Totals, parse_specs
from sim_replay.faults.corpus import Good, corpus
from sim_replay.faults.kinds import THIEF_IMAGES, Where
from sim_replay.replay import ReplaySettings
from streamer import stream_v1, stream_v2
from streamer.messages import EndMessage, ImageMessage, StartMessage
from tests.analyzer.builders import SHAPE, frames_of_a_run, write_bundle, write_series
from tests.sim_replay.consumer import Consumer
from tests.sim_replay.test_replay import running
from tests.sim_replay.test_simplon import serving

IMAGES = 20
AT = 5
SLOW = ("slow_trickle", "burst_after_pause", "oversize")

ENDS = ("last announced image", "new start", "another series runs", "source ended")
SHOWS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "drop_image": ({"missing.gap": 1, "received": -1}, [AT]),
    "drop_start": ({"announced": -IMAGES}, []),
    "drop_end": ({"series_ended.end message": -1, "any": [f"series_ended.{why}" for why in ENDS]}, []),
    "duplicate_image": ({"dropped.duplicate": 1, "received": 1}, []),
    "duplicate_start": ({"oddities.repeated_start": 1}, []),
    "double_end": ({"oddities.repeated_end": 1}, []),
    "end_overtakes": ({"missing.tail": 1, "dropped.stale_series": 1}, [IMAGES - 1]),
    "reorder": ({"oddities.late_image": 1}, []),
    "delay_image": ({"oddities.late_image": 1}, []),
    "truncate_payload": ({"undecodable.bad_block": 1}, [AT]),
    "truncate_message": ({"undecodable.missing_data": 1}, [AT]),
    "corrupt_header": ({"undecodable.bad_header": 1}, [AT]),
    "corrupt_payload": ({"undecodable.bad_block": 1}, [AT]),
    "flip_bits": ({"undecodable.bad_block": 1}, [AT]),
    "corrupt_message": ({"invalid.malformed": 1, "missing.gap": 1, "received": -1}, [AT]),
    "wrong_size": ({"undecodable.size_mismatch": 1}, [AT]),
    "wrong_dtype": ({"undecodable.unknown_dtype": 1}, [AT]),
    "wrong_channel": ({"undecodable.missing_channel": 1}, [AT]),
    "shape_change": ({"undecodable.size_mismatch": 1}, [AT]),
    "out_of_range": ({"dropped.out_of_range": 1, "received": 1}, []),
    "stale_series": ({"dropped.stale_series": 1, "received": 1}, []),
    "foreign_message": ({"invalid.malformed": 1}, []),
    "malformed": ({}, []),
    "oversize": ({"invalid.too_large": 1}, []),
    "early_end": ({"missing.tail": IMAGES - AT, "received": AT - IMAGES}, list(range(AT, IMAGES))),
    "rearm_without_end": (
        {"missing.tail": IMAGES - AT, "announced": IMAGES - AT, "series_ended.new start": 1},
        list(range(AT, IMAGES)),
    ),
    "reboot": (
        {"missing.tail": IMAGES - AT, "announced": IMAGES - AT, "series_ended.new start": 1},
        list(range(AT, IMAGES)),
    ),
    "burst_after_pause": ({"oddities.pause": 1}, []),
    "slow_trickle": ({"oddities.pause": 1}, []),
    "disconnect": ({"missing.gap": 1, "received": -1}, [AT]),
    "second_puller": ({"missing.gap": THIEF_IMAGES // 2, "received": -(THIEF_IMAGES // 2)}, []),
    "clock_24h": ({"oddities.clock_jump": 1, "oddities.clock_back": 1}, []),
    "clock_jump": ({"oddities.clock_jump": 1, "oddities.clock_back": 1}, []),
}
"""For each kind at image ``AT``: what the account gains, and which images of the series are not analysed."""


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Series by their number of images."""
    folder = tmp_path_factory.mktemp("series")
    return {n: write_series(folder, frames_of_a_run(n), f"run{n}") for n in (1, 2, 3, IMAGES, 120)}


@pytest.fixture(scope="module")
def consumer(masters: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consumer]:
    bundle = write_bundle(tmp_path_factory.mktemp("bundle"))
    consumer = Consumer(bundle, tmp_path_factory.mktemp("reports"), masters[IMAGES])
    yield consumer
    consumer.close()


def plan(*specs: str, seed: int = 0) -> FaultPlan:
    return FaultPlan(parse_specs(specs), seed)


def test_every_kind_is_tried_here() -> None:
    assert SHOWS.keys() == KINDS.keys()
    assert len(KINDS) >= 24


def test_every_kind_shows_in_a_counter() -> None:
    # The messages of the corpus have a test of their own, by the reason of each.
    assert [name for name, (shows, _) in SHOWS.items() if not shows] == ["malformed"]
    assert not [kind.name for kind in KINDS.values() if kind.expected.startswith("nothing")]


CASES = [(kind.name, stream) for kind in KINDS.values() if kind.name != "malformed" for stream in kind.streams]


@pytest.mark.parametrize(("name", "stream"), CASES)
def test_a_fault_shows_in_the_account_as_it_is_to(consumer: Consumer, name: str, stream: str) -> None:
    kind, (shows, bad) = KINDS[name], SHOWS[name]
    whole = kind.where in (Where.START, Where.END)
    gain = consumer.play(stream, f"{name}=1" if whole else f"{name}@{AT}")
    (entry,) = gain.entries
    assert (entry.kind, entry.image_id, entry.stream) == (name, None if whole else AT, stream)
    if name != "flip_bits":
        assert entry.expected == shows
    told = Totals()
    told.add(shows)
    assert gain.settled(1, IMAGES, told) == {}
    if name == "second_puller":
        assert len(gain.images(entry.series_id)) == IMAGES - THIEF_IMAGES // 2
    else:
        assert gain.images(entry.series_id) == [n for n in range(IMAGES) if n not in bad]
    assert all(r.latency_s is not None and 0 <= r.latency_s < 60 for r in gain.results)
    # And the run goes on.
    after = consumer.play(stream)
    assert after.settled(1, IMAGES, Totals()) == {}
    assert len(after.results) == IMAGES


@pytest.mark.parametrize("stream", ["v1", "v2"])
def test_every_malformed_message_of_the_corpus_counts_by_its_reason(
    consumer: Consumer, masters: dict[int, Path], tmp_path: Path, stream: str
) -> None:
    messages = {m.name: m for m in corpus() if m.stream == stream and m.on_any_wire}
    series = len(messages) // 60 + 1
    gain = consumer.take(
        [masters[120]] * series, tmp_path / "faults.jsonl", protocol=stream, faults=plan("malformed=1")
    )
    # Each once before any comes twice.
    assert {entry.detail for entry in gain.entries[: len(messages)]} == messages.keys()
    for entry in gain.entries:
        outcome, _, reason = messages[entry.detail or ""].outcome.partition(" ")
        name = {"invalid": "invalid", "defect": "undecodable", "undecodable": "undecodable"}.get(outcome)
        assert entry.expected == ({} if name is None else {f"{name}.{reason}": 1})
    assert gain.settled(series, 120, gain.totals) == {}
    for series_id in {entry.series_id for entry in gain.entries}:
        broken = [
            entry.image_id
            for entry in gain.entries
            if entry.series_id == series_id and any(name.startswith("undecodable") for name in entry.expected)
        ]
        assert gain.images(series_id, Status.UNDECODABLE) == broken
        assert gain.images(series_id) == [n for n in range(120) if n not in broken]


STARTS = [message for message in corpus() if " start: " in message.name and message.outcome == "harmless"]


def test_series_with_malformed_starts_are_analysed_all_the_same(consumer: Consumer) -> None:
    gain = consumer.gain()
    context: zmq.Context[Any] = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.bind(consumer.address)
    assert len(STARTS) > 60
    for number, message in enumerate(STARTS):
        # A header that is no more than its first part says 7, whatever series it is made for.
        series_id = 7 if message.name.endswith("detail that is a map") else 2_000_000 + number
        v1 = message.stream == "v1"
        push.send_multipart(message.build(Good(series_id, 0, SHAPE, images=3)))
        for image in range(3):
            good = Good(series_id, image, SHAPE)
            push.send_multipart(good.v1 if v1 else [good.v2])
        push.send_multipart(stream_v1.encode_end(series_id) if v1 else [stream_v2.encode_end(series_id)])
    context.destroy(linger=-1)
    consumer.wait_for(
        lambda: gain.counts["series_ended.end message"] == len(STARTS) and len(gain.results) >= len(STARTS) * 3
    )
    gained = gain.counts
    assert gained.pop("announced") <= gained["received"]
    assert gained == {"received": 3 * len(STARTS), "series_ended.end message": len(STARTS)}
    assert Counter(r.image_id for r in gain.results if r.status == Status.OK) == dict.fromkeys(range(3), len(STARTS))


MIXED = [("v1", "none", 1), ("v1", "all", 2), ("v2", "basic", 3)]
RUNS = int(os.environ.get("CXLS_TEST_FAULT_RUNS", "1"))


@pytest.mark.parametrize(("stream", "detail", "seed"), MIXED)
def test_a_run_of_all_faults_together_is_predicted_exactly(
    consumer: Consumer, masters: dict[int, Path], tmp_path: Path, stream: str, detail: str, seed: int
) -> None:
    lengths = [120, IMAGES, 3, 2, IMAGES, 1, IMAGES]
    for run in range(RUNS):
        gain = consumer.take(
            [masters[n] for n in lengths],
            tmp_path / "faults.jsonl",
            protocol=stream,
            header_detail=detail,
            faults=plan("all=0.02", "slow_trickle=0", "burst_after_pause=0", "oversize=0.002", seed=seed + 10 * run),
        )
        assert len(gain.report.faults) > 8
        expected = gain.totals
        # Beside series of one image each, which is how they are counted here.
        expected.exact["received"] += sum(lengths) - len(lengths)
        expected.exact["announced"] += (sum(lengths) if (stream, detail) != ("v1", "none") else 0) - len(lengths)
        assert gain.settled(len(lengths), 1, expected) == {}


@pytest.mark.parametrize(("stream", "at"), [("v1", IMAGES - 1), ("v2", 0)])
def test_a_fault_at_either_end_of_a_series_shows_there(consumer: Consumer, stream: str, at: int) -> None:
    asked = 0
    for kind in KINDS.values():
        if kind.where in (Where.IMAGE, Where.REST) and kind.name not in ("malformed", "second_puller", *SLOW):
            gain = consumer.play(stream, f"{kind.name}@{at}")
            asked += len(gain.entries)
            assert gain.settled(1, IMAGES, gain.totals) == {}, kind.name
            lost = kind.name in ("drop_image", "corrupt_message", "disconnect")
            assert gain.totals.exact["missing.tail"] == gain.counts["missing.tail"]
            assert not lost or gain.counts["missing.tail"] == (at == IMAGES - 1)
    assert asked > 10


def test_the_clock_faults_show_in_the_times_of_records(consumer: Consumer) -> None:
    def times(kind: str) -> list[float | None]:
        gain = consumer.play("v2", f"{kind}@{AT}")
        assert gain.settled(1, IMAGES, gain.totals) == {}
        return [r.start_time for r in sorted(gain.results, key=lambda r: r.image_id)]

    day, hour = times("clock_24h"), times("clock_jump")
    assert day[AT - 1 : AT + 4] == pytest.approx([0.02, 86399.99, 86399.995, 0.0, 0.005], abs=1e-6)
    # An hour behind is before the detector's zero, where no clock goes.
    assert hour[AT - 1 : AT + 5] == pytest.approx([0.02, 3600.025, 3600.03, 0.0, 0.0, 0.045], abs=1e-6)


def test_a_plan_without_chances_changes_nothing(consumer: Consumer, masters: dict[int, Path], tmp_path: Path) -> None:
    gain = consumer.take([masters[IMAGES]] * 2, tmp_path / "faults.jsonl", faults=plan("all=0"))
    assert gain.settled(2, IMAGES, Totals()) == {}
    assert (gain.report.sent, gain.report.withheld, gain.report.faults) == (2 * IMAGES, 0, {})
    assert gain.entries == []


@pytest.mark.parametrize("kind", ["oversize", "disconnect", "second_puller", "burst_after_pause", "slow_trickle"])
def test_a_stop_ends_a_fault_that_waits(masters: dict[int, Path], kind: str) -> None:
    # A consumer that takes messages of any size, and goes away in the middle.
    settings = ReplaySettings((str(masters[120]),), bind="tcp://127.0.0.1:0", loop=True, faults=plan(f"{kind}@2"))
    with running(settings) as replay:
        for _ in range(3):
            replay.receive()
        replay.pull.close()
        time.sleep(0.3)
        replay.stop.set()
        began = time.monotonic()
        report = replay.report.result(60)
        assert time.monotonic() - began < 20
    assert report.interrupted


@pytest.mark.parametrize("kind", ["burst_after_pause@2", "delay_image@2", "reorder@2", "end_overtakes=1"])
def test_an_image_that_is_held_back_and_finds_no_room_counts_as_dropped(
    masters: dict[int, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim_replay.replay.CONTROL_LIMIT_S", 0.2)
    settings = ReplaySettings(
        (str(masters[IMAGES]),), bind="tcp://127.0.0.1:0", rate_hz=20, on_full="drop", faults=plan(kind)
    )  # fmt: skip
    with running(settings) as replay:
        for _ in range(3):
            replay.receive()
        # With nobody there, nothing has room.
        replay.pull.close()
        report = replay.report.result(60)
    assert (report.sent, report.dropped, report.withheld) == (2, IMAGES - 2, 0)


def test_a_client_meets_faults_in_the_series_that_it_arms(masters: dict[int, Path]) -> None:
    faults = plan("drop_image@1", "disconnect@3", "early_end@6", "reboot=1", "rearm_without_end=1")
    with serving(masters[3], faults=faults) as detector:
        # More images than the file has: from its first again.
        assert detector.arm(nimages=8) == 1
        detector.put("command/trigger")
        messages = detector.receive_all(0.5)
        assert [m.image_id for m in messages if isinstance(m, ImageMessage)] == [0, 2, 4, 5]
        assert [type(m) for m in (messages[0], messages[-1])] == [StartMessage, EndMessage]
        assert len(messages) == 6
        assert detector.get("status/state") == "idle"
        assert detector.arm(nimages=2) == 2
        detector.put("command/trigger")
        assert [m.image_id for m in detector.receive_all(0.5, ends=False) if isinstance(m, ImageMessage)] == [0]
        detector.stop.set()
        report = detector.report.result(60)
    assert report.faults == {"drop_image": 2, "disconnect": 1, "early_end": 1}
    assert (report.series, report.sent, report.withheld, report.control_lost) == (2, 5, 5, 0)
