"""What is sent to CrystFEL, read back by its own rules: each of its silent failures is shown and avoided."""

import itertools
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.indexing.hits import WaitingHit, event_id
from analyzer.indexing.live_geometry import LiveGeometryFile, geometry_text, live_geometry
from analyzer.indexing.packing import FrameDecoder, pack_hit
from analyzer.indexing.router import KEEP_ALIVE
from analyzer.panels import open_geometry
from analyzer.results import Decision, FrameResult, HitRule, Peak
from streamer.flat_detector import flat_detector
from streamer.frames import Frame
from streamer.geometry_file import parse_geometry
from streamer.messages import Algorithm, Defect, ImageData, SeriesMetadata, UndecodableImage
from streamer.series import Series
from streamer.validity import Validity, layout_of, sentinel
from tests.analyzer import crystfel_reader as reader
from tests.analyzer.builders import BROKEN, CHANNEL, SHAPE, frame, image_data, series, water
from tests.analyzer.test_panels import TWO, written

PEAKS = [Peak(500.25, 20.0, 99.0, 12.5, False), Peak(3, 7, 41, 6, True)]  # type: ignore[arg-type]
"""The second of integers, as a peak finder of another package might hand them over."""


def result(peaks: list[Peak] | None = None, **changes: Any) -> FrameResult:
    found = PEAKS if peaks is None else peaks
    facts: dict[str, Any] = {
        "series_id": 7, "image_id": 123, "channel": CHANNEL, "start_time": 0.5, "exposure_s": 0.001,
        "received_at": 1.75e9, "decision": Decision.HIT, "hit": True, "hit_probability": 0.97,
        "hit_rule": HitRule.NETWORK, "indexable": len(found) >= 10, "peak_count": len(found), "peaks": found,
        "ordinal": 2,
    }  # fmt: skip
    return FrameResult(**(facts | changes))


def hit(of: FrameResult | None = None, image: Frame | None = None, **metadata: Any) -> WaitingHit:
    of = of or result()
    return WaitingHit(event_id("66f0a1b2", of), series(2, of.series_id, **metadata), of, image)


def read(packed: bytes, key: str) -> float | int | str | None:
    reading = reader.Reading()
    value = reader.header(packed, key, reading)
    assert not reading.errors
    return value


# --- what CrystFEL reads of a hit --------------------------------------------------------


def test_crystfel_reads_peaks_energy_distance_and_ids() -> None:
    packed, reading = pack_hit(hit()), reader.Reading()
    assert reader.peaks(packed, reading) == [(500.75, 20.5, 99.0), (3.5, 7.5, 41.0)]
    assert read(packed, "beam_energy") == 7000.0
    assert read(packed, "detector_distance") == 150.0
    assert read(packed, "event_id") == "series7-image123-run66f0a1b2.2"
    assert read(packed, "frame_id") == 123
    assert read(packed, "timestamp") == 1.75e9
    assert not reading.errors


def test_the_stream_shows_the_event_id_as_the_join_expects_it() -> None:
    value = read(pack_hit(hit()), "event_id")
    assert value is not None
    assert reader.stream_line("event_id", value) == "header/str/event_id = series7-image123-run66f0a1b2.2"


def test_the_message_is_longer_than_what_crystfel_ignores_and_the_keep_alive_is_not() -> None:
    assert len(pack_hit(hit(result([])))) >= reader.SHORTEST_MESSAGE
    assert len(KEEP_ALIVE) < reader.SHORTEST_MESSAGE


def test_an_array_around_the_map_reads_the_same() -> None:
    packed = b"\x91" + pack_hit(hit())
    assert reader.peaks(packed, reader.Reading()) == [(500.75, 20.5, 99.0), (3.5, 7.5, 41.0)]


def test_no_peaks_are_an_empty_list() -> None:
    assert reader.peaks(pack_hit(hit(result([]))), reader.Reading()) == []


@given(
    st.lists(
        st.tuples(
            *[st.one_of(st.integers(0, 4000), st.floats(0, 4e3, allow_subnormal=False))] * 2, st.integers(0, 10**6)
        ),
        max_size=70,
    )
)
def test_any_peaks_come_through_as_they_are(found: list[tuple[float, float, int]]) -> None:
    packed = pack_hit(hit(result([Peak(fs, ss, i, 5, False) for fs, ss, i in found])))
    there = reader.peaks(packed, reader.Reading())
    assert there == [(float(np.float32(fs + 0.5)), float(np.float32(ss + 0.5)), float(i)) for fs, ss, i in found]


# --- the silent failures, each with what would have happened -----------------------------


def test_peaks_as_integers_would_all_be_at_the_origin_and_ours_are_floats() -> None:
    wrong = msgspec.msgpack.encode({"peak_list": {"fs": [500], "ss": [20], "intensity": [99]}})
    (fs, ss, intensity), *_ = reader.peaks(wrong, reader.Reading()) or []
    assert (fs, ss) == (0.5, 0.5)
    assert intensity < 1e-300
    listed = reader.find(reader.main_object(pack_hit(hit())), "peak_list")
    for name in ("fs", "ss", "intensity"):
        column = reader.find(listed, name)
        assert column is not None
        assert {item.type for item in column.value} == {"float"}


def test_single_precision_peaks_would_do() -> None:
    packed = b"\x81\xa9peak_list\x83\xa2fs\x91\xca\x43\xfa\x20\x00\xa2ss\x91\xca\x41\xa0\x00\x00"
    packed += b"\xa9intensity\x91\xca\x42\xc6\x00\x00"
    assert reader.peaks(packed, reader.Reading()) == [(500.75, 20.5, 99.0)]


@pytest.mark.parametrize(
    ("early", "wanted"),
    [
        ("beam", "beam_energy"),
        ("detector", "detector_distance"),
        ("", "beam_energy"),
        ("beam_energy\0x", "beam_energy"),
    ],
)
def test_a_key_that_begins_like_another_would_be_taken_for_it(early: str, wanted: str) -> None:
    wrong = msgspec.msgpack.encode({early: 1.0, wanted: 7000.0})
    assert reader.header(wrong, wanted, reader.Reading()) == 1.0


def test_a_key_that_begins_like_peak_list_would_hide_the_peaks() -> None:
    wrong = msgspec.msgpack.encode({"peak": 3, "peak_list": {"fs": [], "ss": [], "intensity": []}})
    reading = reader.Reading()
    assert reader.peaks(wrong, reading) is None
    assert reading.errors == ["Peak list has wrong structure."]


@pytest.mark.parametrize("with_image", [False, True])
@pytest.mark.parametrize("missing", [(), ("photon_energy_eV",), ("photon_energy_eV", "camera_length_m")])
def test_no_key_of_ours_is_empty_or_the_beginning_of_another(with_image: bool, missing: tuple[str, ...]) -> None:
    pixels = np.zeros(SHAPE, np.float32) if with_image else None
    packed = pack_hit(hit(**dict.fromkeys(missing)), pixels)
    top = reader.main_object(packed)
    maps = [top, *(value for _, value in top.value if value.type == "map")]
    assert len(maps) == 2 + with_image
    for each in maps:
        keys = [key.value for key, _ in each.value]
        assert all(key and b"\0" not in key for key in keys)
        assert not [pair for pair in itertools.permutations(keys, 2) if pair[1].startswith(pair[0])]


def test_an_energy_that_the_header_has_not_is_left_out_and_crystfel_says_so() -> None:
    packed, reading = pack_hit(hit(photon_energy_eV=None, camera_length_m=None)), reader.Reading()
    assert reader.header(packed, "beam_energy", reading) is None
    assert reader.header(packed, "detector_distance", reading) is None
    assert len(reading.errors) == 2
    assert reader.peaks(packed, reading) is not None


# --- images ------------------------------------------------------------------------------


def test_an_image_of_the_detectors_own_type_would_be_undefined() -> None:
    wrong = msgspec.msgpack.encode({"detector_data": {"type": "<u2", "shape": [1, 2], "data": b"\1\0\2\0"}})
    reading = reader.Reading()
    assert reader.image(wrong, reading, (1, 2))[0] is None
    assert reading.errors == ["Unrecognised data type '<u2'"]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", ">u2"])
@pytest.mark.parametrize("algorithm", [Algorithm.BSLZ4, Algorithm.RAW])
def test_crystfel_gets_the_counts_and_nan_where_there_are_none(dtype: str, algorithm: Algorithm) -> None:
    pixels = water(3.0, dtype=dtype)
    pixels[5, 6] = sentinel(pixels.dtype)
    mask = np.zeros(SHAPE, np.uint32)
    mask[10, 11] = 1
    extra = Validity("user", np.ones(SHAPE, np.uint8))
    extra.valid[20, 21] = 0
    packed_image = frame(
        image_data(pixels, algorithm)
        if algorithm == Algorithm.BSLZ4 and dtype != ">u2"
        else ImageData(pixels.tobytes(), SHAPE, pixels.dtype, Algorithm.RAW, pixels.itemsize),
        of=series(masks={CHANNEL: mask}),
    )
    decoded = FrameDecoder().pixels(packed_image, extra)
    seen, bad = reader.image(pack_hit(hit(image=packed_image), decoded), reader.Reading(), SHAPE)
    assert seen is not None
    assert {(int(ss), int(fs)) for ss, fs in zip(*np.nonzero(bad), strict=True)} == {(5, 6), (10, 11), (20, 21)}
    assert np.array_equal(seen[~bad], pixels[~bad].astype(np.float32))


def test_a_changed_mask_and_another_series_are_followed() -> None:
    decoder, one = FrameDecoder(), frame(water(3.0))
    assert np.isnan(decoder.pixels(one, None)).sum() == 0
    extra = Validity("user", np.ones(SHAPE, np.uint8))
    extra.valid[1] = 0
    assert np.isnan(decoder.pixels(one, extra)).sum() == SHAPE[1]
    larger = frame(water(3.0, (70, 80)), of=series(3, shape=(70, 80)))
    assert decoder.pixels(larger, None).shape == (70, 80)
    assert np.isnan(decoder.pixels(larger, extra)).sum() == 0  # left aside, as the analysis does
    assert np.isnan(decoder.pixels(one, None)).sum() == 0


@pytest.mark.parametrize("image", [BROKEN, Defect("missing_data", "none")])
def test_an_image_that_does_not_decode_is_refused(image: ImageData | Defect) -> None:
    with pytest.raises(UndecodableImage):
        FrameDecoder().pixels(frame(image), None)


# --- geometry ----------------------------------------------------------------------------


def test_the_geometry_names_the_keys_and_puts_a_peak_where_it_is() -> None:
    facts = series(photon_energy_eV=7000.0, camera_length_m=0.15).metadata
    text = geometry_text(facts, SHAPE)
    for line in ("photon_energy = beam_energy eV", "clen = detector_distance mm", "peak_list = peak_list"):
        assert line in text.splitlines()
    (panel,) = live_geometry(facts, SHAPE).panels
    assert panel.data == "detector_data"
    assert "%" not in panel.dims
    fs, ss, _ = (reader.peaks(pack_hit(hit(result([Peak(37.0, 30.0, 9.0, 9.0, False)]))), reader.Reading()) or [])[0]
    # The beam centre of the series is (37.5, 30.5) edge-based: index (37, 30).
    assert (panel.corner_x + fs - panel.min_fs, panel.corner_y + ss - panel.min_ss) == (0.0, 0.0)


def test_every_pixel_of_a_known_detector_is_in_a_panel_unless_it_is_in_a_gap() -> None:
    shape = (2162, 2068)
    layout = layout_of(shape)
    assert layout is not None
    facts = series(shape=shape, beam_center_x_px=1034.0, beam_center_y_px=1081.0).metadata
    geometry = live_geometry(facts, shape)
    covered = np.zeros(shape, int)
    for panel in geometry.panels:
        covered[panel.min_ss : panel.max_ss + 1, panel.min_fs : panel.max_fs + 1] += 1
    gaps = np.ones(shape, int)
    for (low, high), axis in [(g, 0) for g in layout.gaps()[0]] + [(g, 1) for g in layout.gaps()[1]]:
        gaps[(slice(low, high), slice(None)) if axis == 0 else (slice(None), slice(low, high))] = 0
    assert np.array_equal(covered, gaps)
    read_back = parse_geometry(geometry_text(facts, shape))
    assert read_back == geometry
    flat = flat_detector(read_back)
    assert (flat.beam_center_x_px, flat.beam_center_y_px, flat.shape) == (1034.0, 1081.0, shape)


def test_what_the_header_has_not_is_asked_of_the_user() -> None:
    facts = series(photon_energy_eV=None, camera_length_m=None, beam_center_x_px=None).metadata
    text = geometry_text(facts, SHAPE)
    assert "add 'photon_energy = NUMBER eV'" in text
    assert "add 'clen = NUMBER m'" in text
    assert "assume the middle" in text
    assert parse_geometry(text) == live_geometry(facts, SHAPE)


def test_with_a_geometry_file_its_panels_are_handed_on_with_the_keys_of_our_messages(tmp_path: Path) -> None:
    """And pixels stand where the analysis has them."""
    mine = open_geometry(written(tmp_path, "data = /entry/data\ndim0 = %\ndim1 = ss\ndim2 = fs\n" + TWO))
    facts = series().metadata
    path = tmp_path / "live.geom"
    LiveGeometryFile(path, mine).describe(frame(water(1.0)))
    lines = path.read_text().splitlines()
    for line in ("photon_energy = beam_energy eV", "clen = detector_distance mm", "peak_list = peak_list"):
        assert line in lines
    again = open_geometry(path)
    assert {(panel.data, panel.dims) for panel in again.detector.panels} == {("detector_data", ("ss", "fs"))}
    places = ([0, 74, 74, 0, 74, 10], [0, 29, 0, 30, 60, 45])
    for ours, theirs in zip(
        again.fit(facts, SHAPE).positions_px(*places), mine.fit(facts, SHAPE).positions_px(*places), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert "assume the middle" not in geometry_text(facts.with_changes(beam_center_x_px=None), SHAPE, mine)
    small = facts.with_changes(shape=(40, 50))
    assert live_geometry(small, (40, 50), mine) == live_geometry(small, (40, 50))


def test_a_geometry_that_is_there_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "live.geom"
    file = LiveGeometryFile(path)
    file.describe(frame(water(1.0), of=series(1)))
    written = path.read_text()
    assert written == geometry_text(series(1).metadata, SHAPE)
    LiveGeometryFile(path).describe(frame(water(1.0), of=series(1)))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    path.write_text("; refined by hand\n" + written)
    file.describe(frame(water(1.0), of=series(2, beam_center_x_px=30.0)))
    assert path.read_text().startswith("; refined by hand")
    assert "left as it is" in caplog.text


def test_a_geometry_that_is_another_is_told_of_once_and_not_with_every_series(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "live.geom"
    path.write_text("; refined by hand\n")
    file = LiveGeometryFile(path)
    for n in range(1, 4):
        file.describe(frame(water(1.0), of=series(n, n)))
    assert caplog.text.count("left as it is") == 1
    assert file.differs == "differs from the header of series 3"
    file.describe(frame(water(1.0), of=series(4, 4, beam_center_x_px=20.0)))
    assert caplog.text.count("left as it is") == 2


def test_a_geometry_of_a_series_without_a_header_is_written_anew_with_it(tmp_path: Path) -> None:
    file = LiveGeometryFile(tmp_path / "live.geom")
    joined = Series(1, 7, None, SeriesMetadata(), joined=True)
    first = frame(water(1.0), of=joined)
    assert file.lacks(first)
    file.describe(first)
    assert "the header has no photon energy" in file.path.read_text()
    assert not file.lacks(first)
    told = frame(water(1.0), of=replace(joined, metadata=series().metadata))
    assert file.lacks(told)
    file.describe(told)
    assert file.path.read_text() == geometry_text(series().metadata, SHAPE)
    assert file.differs is None


def test_a_detector_that_moved_is_in_the_file_of_this_run_unless_somebody_changed_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = LiveGeometryFile(tmp_path / "live.geom")
    file.describe(frame(water(1.0), of=series(1)))
    moved = series(2, beam_center_x_px=30.0)
    file.describe(frame(water(1.0), of=moved))
    assert file.path.read_text() == geometry_text(moved.metadata, SHAPE)
    assert "start indexamajig again" in caplog.text
    file.path.write_text("; refined\n")
    file.describe(frame(water(1.0), of=series(3, 3)))
    assert file.path.read_text() == "; refined\n"
    assert file.differs == "differs from the header of series 3"
    later = LiveGeometryFile(file.path)  # of a run that begins after it
    later.describe(frame(water(1.0), of=series(4)))
    assert file.path.read_text() == "; refined\n"


def test_a_full_disk_leaves_no_empty_geometry_and_the_next_try_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.indexing.live_geometry._RETRY_S", 0.0)
    file, of = LiveGeometryFile(tmp_path / "live.geom"), series()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        file.describe(frame(water(1.0), of=of))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert file.lacks(frame(water(1.0), of=of))
    file.describe(frame(water(1.0), of=of))
    assert file.path.read_text() == geometry_text(of.metadata, SHAPE)


def test_a_geometry_that_cannot_be_written_costs_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (tmp_path / "none" / "live.geom", tmp_path):
        LiveGeometryFile(path).describe(frame(water(1.0)))
    assert caplog.text.count("cannot be written") == 2
