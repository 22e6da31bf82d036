"""A stream into the live analysis, over real sockets."""

import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer import stream_v1, stream_v2
from streamer.messages import ImageMessage
from tests.analyzer.builders import (
    CHANNEL,
    SHAPE,
    frames_of_a_run,
    image,
    metadata,
    packed,
    water,
    write_series,
)
from tests.cxls.programs import Analysis, Sender, by_image, replaying, wait_for

BOTH = pytest.mark.parametrize("stream", ["v1", "v2"])


class Wire:
    """Messages of one protocol."""

    def __init__(self, stream: str) -> None:
        self.stream = stream

    def start(self, series_id: int, images: int | None, **changes: Any) -> list[Any]:
        facts = metadata(images, **changes)
        if self.stream == "v1":
            return stream_v1.encode_start(series_id, facts)
        return [stream_v2.encode_start(series_id, facts)]

    def image(self, message: ImageMessage) -> list[Any]:
        return stream_v1.encode_image(message) if self.stream == "v1" else [stream_v2.encode_image(message)]

    def end(self, series_id: int) -> list[Any]:
        return stream_v1.encode_end(series_id) if self.stream == "v1" else [stream_v2.encode_end(series_id)]

    def series(self, images: int, series_id: int = 1) -> list[list[Any]]:
        return [
            self.start(series_id, images),
            *(self.image(image(n, series_id)) for n in range(images)),
            self.end(series_id),
        ]


@pytest.fixture(scope="module")
def offline(master: Path, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    results = tmp_path_factory.mktemp("offline") / "r.jsonl"
    analysis = Analysis([master], bundle_folder, results).start().join()
    analysis.assert_closes()
    return by_image(analysis.records)


# --- live equals offline ----------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("protocol", ["auto", "named"])
def test_live_records_are_the_offline_ones(
    master: Path, bundle_folder: Path, tmp_path: Path, offline: list[dict[str, Any]], stream: str, protocol: str
) -> None:
    named = stream if protocol == "named" else "auto"
    with replaying(master, protocol=stream, first_series_id=7) as (endpoint, _):
        analysis = Analysis([endpoint], bundle_folder, tmp_path / "r.jsonl", stream=named, series=1).start().join()
    analysis.assert_closes()
    assert {record["series_id"] for record in analysis.records} == {7}
    assert by_image(analysis.records) == offline


@BOTH
@pytest.mark.parametrize("detail", ["none", "basic", "all"])
def test_every_detail_of_header_is_analysed(bundle_folder: Path, tmp_path: Path, stream: str, detail: str) -> None:
    mask = np.zeros(SHAPE, "u4")
    mask[40:43, 50:55] = 1
    master = write_series(tmp_path, frames_of_a_run(6), mask=mask)
    with replaying(master, protocol=stream, header_detail=detail) as (endpoint, _):
        analysis = Analysis([endpoint], bundle_folder, tmp_path / "r.jsonl", series=1).start().join()
    analysis.assert_closes()
    found = by_image(analysis.records)
    assert [record["status"] for record in found] == ["ok"] * 6
    if detail == "all":
        offline = Analysis([master], bundle_folder, tmp_path / "offline.jsonl").start().join()
        assert found == by_image(offline.records)
        assert found[0]["mask"].startswith("stream ")
    else:
        assert found[0]["mask"] == "none"


@pytest.mark.parametrize("dtype", ["u1", "u4"])
def test_pixel_types_come_through(bundle_folder: Path, tmp_path: Path, dtype: str) -> None:
    master = write_series(tmp_path, frames_of_a_run(4, dtype=dtype))
    offline = Analysis([master], bundle_folder, tmp_path / "offline.jsonl").start().join()
    for stream in ("v1", "v2"):
        with replaying(master, protocol=stream) as (endpoint, _):
            live = Analysis([endpoint], bundle_folder, tmp_path / f"{stream}.jsonl", series=1).start().join()
        assert by_image(live.records) == by_image(offline.records)


# --- series -----------------------------------------------------------------------------


@BOTH
def test_two_series_are_two(master: Path, bundle_folder: Path, tmp_path: Path, stream: str) -> None:
    with replaying(master, master, protocol=stream) as (endpoint, _):
        analysis = Analysis([endpoint], bundle_folder, tmp_path / "r.jsonl", series=2).start().join()
    analysis.assert_closes()
    assert [r.closed.series.series_id for r in analysis.session.front.reports] == [1, 2]
    assert analysis.account.announced == analysis.account.accepted == 24


def test_an_analysis_of_one_series_leaves_the_next_alone(bundle_folder: Path, tmp_path: Path) -> None:
    wire = Wire("v2")
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", series=1).start()
        for message in wire.series(5, 1):
            sender.send(*message)
        analysis.join()
    analysis.assert_closes()
    assert {record["series_id"] for record in analysis.records} == {1}


@BOTH
def test_a_consumer_that_joins_late_counts_what_it_missed(bundle_folder: Path, tmp_path: Path, stream: str) -> None:
    wire = Wire(stream)
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", series=1).start()
        for n in range(5, 15):
            sender.send(*wire.image(image(n, 3)))
        sender.send(*wire.end(3))
        analysis.join()
    analysis.assert_closes()
    (report,) = analysis.session.front.reports
    assert report.closed.series.joined
    assert report.closed.missing == {"head": 5, "gap": 0, "tail": 0}
    assert [record["image_id"] for record in by_image(analysis.records)] == list(range(5, 15))


def test_both_protocols_may_take_turns_on_one_socket(bundle_folder: Path, tmp_path: Path) -> None:
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", series=2).start()
        for message in Wire("v1").series(3, 1) + Wire("v2").series(3, 2):
            sender.send(*message)
        analysis.join()
    analysis.assert_closes()
    assert len(analysis.records) == 6


def test_shapes_and_types_may_change_from_image_to_image(bundle_folder: Path, tmp_path: Path) -> None:
    wire = Wire("v2")
    kinds = [("u2", SHAPE), ("u4", SHAPE), ("u1", (1, 1)), ("u2", (1, 300)), ("u4", (64, 64))]
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", series=1).start()
        sender.send(*wire.start(1, 20, shape=(0, 0)))
        for n, (dtype, shape) in enumerate(kinds * 4):
            sender.send(*wire.image(image(n, 1, water(0.5, shape, n, dtype))))
        sender.send(*wire.end(1))
        analysis.join()
    analysis.assert_closes()
    assert {record["status"] for record in analysis.records} == {"ok"}


# --- hostile messages -------------------------------------------------------------------


def spoil(parts: list[Any], rng: random.Random) -> list[bytes]:
    """A message cut, altered, shuffled, or replaced by noise."""
    spoilt = [bytearray(part) for part in parts]
    victim = rng.randrange(len(spoilt))
    how = rng.randrange(5)
    if how == 0:
        spoilt[victim] = spoilt[victim][: rng.randrange(len(spoilt[victim]) + 1)]
    elif how == 1:
        for _ in range(rng.randrange(1, 30)):
            if spoilt[victim]:
                spoilt[victim][rng.randrange(min(len(spoilt[victim]), 2000))] = rng.randrange(256)
    elif how == 2:
        spoilt = spoilt[: rng.randrange(1, len(spoilt) + 1)]
    elif how == 3:
        spoilt = [bytearray(rng.randbytes(rng.randrange(1, 500))) for _ in range(rng.randrange(1, 5))]
    else:
        rng.shuffle(spoilt)
    return [bytes(part) for part in spoilt]


HEADER = b'{"htype":"dheader-1.0","series":1,"header_detail":"basic"}'
IMAGE = b'{"htype":"dimage-1.0","series":1,"frame":0,"hash":""}'
LAYOUT = b'{"htype":"dimage_d-1.0","shape":[3,3],"type":"uint16","encoding":"<","size":18}'
HUGE = b"1" + b"0" * 400
HOSTILE_V1 = {
    "no parts but one empty": [b""],
    "sixty-five parts": [b"x"] * 65,
    "a huge energy": [HEADER, b'{"nimages":3,"photon_energy":' + HUGE + b"}"],
    "a huge number of images": [HEADER, b'{"nimages":9223372036854775807,"ntrigger":9223372036854775807}'],
    "a list for a trigger mode": [HEADER, b'{"nimages":3,"trigger_mode":[1],"bit_depth_image":{}}'],
    "a list for a pixel type": [IMAGE, LAYOUT.replace(b'"uint16"', b'["uint16"]'), bytes(18), b"{}"],
    "a huge time": [IMAGE, LAYOUT, bytes(18), b'{"start_time":' + HUGE + b"}"],
    "an infinite time": [IMAGE, LAYOUT, bytes(18), b'{"start_time":1e400}'],
    "an enormous shape": [IMAGE, LAYOUT.replace(b"[3,3]", b"[4294967296,4294967296]"), bytes(18), b"{}"],
    "a shape of nothing": [IMAGE, LAYOUT.replace(b"[3,3]", b"[0,0]"), b"", b"{}"],
    "a negative image": [IMAGE.replace(b'"frame":0', b'"frame":-9223372036854775807'), LAYOUT, bytes(18), b"{}"],
    "deep nesting": [b"[" * 100_000],
    "deep nesting in a configuration": [HEADER, b'{"a":' * 50_000],
    "a key twice": [b'{"htype":"dheader-1.0","htype":5,"series":1}'],
    "a NUL name": [b'{"htype":"dimage-\\u0000","series":1,"frame":1}', LAYOUT, bytes(18), b"{}"],
}


@pytest.mark.parametrize("what", HOSTILE_V1)
def test_a_hostile_message_does_not_end_the_run(bundle_folder: Path, tmp_path: Path, what: str) -> None:
    wire = Wire("v1")
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl").start()
        sender.send(*HOSTILE_V1[what])
        for message in wire.series(3, 2):
            sender.send(*message)
        wait_for(lambda: len(analysis.session.front.running.history) == 3, 15)
        analysis.stop()
    analysis.assert_closes()
    assert [record["image_id"] for record in analysis.records if record["series_id"] == 2] == [0, 1, 2]


@BOTH
def test_noise_and_then_a_clean_series_leaves_the_clean_series_whole(
    bundle_folder: Path, tmp_path: Path, stream: str
) -> None:
    rng, wire = random.Random(4), Wire(stream)
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl").start()
        for message in wire.series(3, 1):
            for _ in range(60):
                sender.send(*spoil(message, rng))
        for message in wire.series(4, 2):
            sender.send(*message)
        wait_for(lambda: any(r.closed.series.series_id == 2 for r in analysis.session.front.reports))
        analysis.stop()
    analysis.assert_closes()
    clean = by_image([record for record in analysis.records if record["series_id"] == 2])
    assert [(record["image_id"], record["status"]) for record in clean] == [(n, "ok") for n in range(4)]
    assert sum(analysis.account.invalid.values()) > 0


def test_an_oversized_part_is_refused_and_the_stream_goes_on(bundle_folder: Path, tmp_path: Path) -> None:
    wire = Wire("v2")
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", max_message_mib=1).start()
        for message in wire.series(2, 1):
            sender.send(*message)
        wait_for(lambda: len(analysis.session.front.reports) == 1)
        sender.send(os.urandom(2 << 20))
        wait_for(lambda: analysis.account.invalid.get("too_large", 0) == 1)
        for message in wire.series(3, 2):
            sender.send(*message)
        wait_for(lambda: len(analysis.session.front.reports) == 2)
        analysis.stop()
    analysis.assert_closes()
    assert sorted(record["image_id"] for record in analysis.records if record["series_id"] == 2) == [0, 1, 2]


def test_an_image_whose_bytes_are_spoilt_is_recorded_as_undecodable(bundle_folder: Path, tmp_path: Path) -> None:
    wire = Wire("v1")
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", series=1).start()
        messages = wire.series(4, 1)
        good = packed(water(0.05, seed=1))
        messages[2][2] = good[:12] + bytes(len(good) - 12)
        for message in messages:
            sender.send(*message)
        analysis.join()
    analysis.assert_closes()
    statuses = [record["status"] for record in by_image(analysis.records)]
    assert statuses.count("undecodable") == 1
    assert statuses[1] == "undecodable"


def test_chosen_tags_of_an_appendix_are_kept(bundle_folder: Path, tmp_path: Path) -> None:
    for stream in ("v1", "v2"):
        wire = Wire(stream)
        with Sender() as sender:
            analysis = Analysis(
                [sender.endpoint], bundle_folder, tmp_path / f"{stream}.jsonl", series=1, tags="sample, delay_fs"
            ).start()
            sender.send(*wire.start(1, 2))
            sender.send(*wire.image(image(0, user_data={"sample": "lysozyme", "delay_fs": 2.5, "other": 1})))
            sender.send(*wire.image(image(1, user_data={"sample": 10**30, "delay_fs": None})))
            sender.send(*wire.end(1))
            analysis.join()
        analysis.assert_closes()
        first, second = (record["tags"] for record in by_image(analysis.records))
        assert first == {"sample": "lysozyme", "delay_fs": 2.5}
        assert set(second or {}) <= {"sample"}


def test_the_channel_of_the_records_is_the_first_threshold(bundle_folder: Path, tmp_path: Path, master: Path) -> None:
    with replaying(master) as (endpoint, _):
        analysis = Analysis([endpoint], bundle_folder, tmp_path / "r.jsonl", series=1).start().join()
    assert {record["channel"] for record in analysis.records} == {CHANNEL}
    assert all(re.fullmatch(r"random-[0-9a-f]{12}", record["bundle"]) for record in analysis.records)
