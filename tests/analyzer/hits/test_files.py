"""Files of hits: the images as received, read by our own source and by CrystFEL's rules."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from analyzer.hits import HitFolderSettings, verify
from analyzer.hits.packing import Filter, chunk_of, filter_of
from analyzer.results import to_json_line
from streamer.decoding import decode
from streamer.messages import Algorithm, ImageData, SeriesMetadata
from streamer.series import Series
from streamer.validity import series_validity
from tests.analyzer import builders
from tests.analyzer.hits.made import (
    SHAPE,
    files,
    hit,
    peak,
    pixels,
    read_as_crystfel,
    read_back,
    the_geometry,
    write,
)
from tests.support import pack, packed_image

KINDS = [Algorithm.RAW, Algorithm.BSLZ4, Algorithm.LZ4_BLOCK, Algorithm.LZ4_HDF5, Algorithm.BSZSTD]
ONE_MODULE_GAP = (1062, 1028)
"""An EIGER2 1M: two modules."""


def chunks(path: Path) -> list[tuple[int, bytes]]:
    with h5py.File(path) as file:
        images = file["entry/data/data"]
        return [images.id.read_direct_chunk((n, 0, 0)) for n in range(len(images))]


def h5py_pixels(path: Path) -> np.ndarray[Any, Any]:
    """Through HDF5's own filters, as anyone else reads them."""
    with h5py.File(path) as file:
        return np.asarray(file["entry/data/data"][()])


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", ">u2", ">u4"])
@pytest.mark.parametrize("algorithm", KINDS)
def test_every_packing_and_pixel_type_comes_back(tmp_path: Path, algorithm: Algorithm, dtype: str) -> None:
    counts = [pixels(n, dtype) for n in range(3)]
    images = [packed_image(image, algorithm) for image in counts]
    write(tmp_path, [hit(n, image) for n, image in enumerate(images)])
    (path,) = files(tmp_path)
    assert np.array_equal(h5py_pixels(path), np.stack(counts))
    headers, read = read_back([path])
    for image, original in zip(read, counts, strict=True):
        out = np.empty(image.shape, image.dtype.newbyteorder("="))
        if image.algorithm != Algorithm.BSZSTD:
            decode(image, out)
            assert np.array_equal(out, original)
    assert headers[0].shape == SHAPE
    assert headers[0].number_of_images == 3
    assert list(verify(tmp_path).problems()) == []


@pytest.mark.parametrize("algorithm", [Algorithm.BSLZ4, Algorithm.LZ4_HDF5, Algorithm.BSZSTD, Algorithm.RAW])
def test_chunks_lie_in_the_file_as_received(tmp_path: Path, algorithm: Algorithm) -> None:
    images = [packed_image(pixels(n), algorithm) for n in range(3)]
    write(tmp_path, [hit(n, image) for n, image in enumerate(images)])
    assert chunks(files(tmp_path)[0]) == [(0, bytes(image.data)) for image in images]


def test_the_filter_is_named_as_hdf5_knows_it(tmp_path: Path) -> None:
    write(tmp_path, [hit(0, packed_image(pixels(0, "u4"), block_bytes=4096))])
    with h5py.File(files(tmp_path)[0]) as file:
        properties = file["entry/data/data"].id.get_create_plist()
        assert properties.get_nfilters() == 1
        code, _, values, _ = properties.get_filter(0)
    assert code == 32008
    assert values[2] == 4
    assert values[4] == 2


def test_odd_packings_are_unpacked_and_nothing_else_is(tmp_path: Path) -> None:
    counts = pixels(1)
    odd = ImageData(pack(counts, Algorithm.BSLZ4, element_bytes=1), SHAPE, counts.dtype, Algorithm.BSLZ4, 1)
    assert filter_of(odd, len(odd.data)) == Filter.NONE
    assert bytes(chunk_of(odd)) == counts.tobytes()
    noise = np.random.default_rng(0).integers(0, 2**16, SHAPE).astype("u2")
    block = packed_image(noise, Algorithm.LZ4_BLOCK)
    assert filter_of(block, len(block.data)) == Filter.NONE
    write(tmp_path, [hit(0, odd), hit(1, block), hit(2, packed_image(counts))])
    stored = {path.name[-4]: h5py_pixels(path) for path in files(tmp_path)}
    assert np.array_equal(stored["0"], np.stack([counts, noise]))
    assert np.array_equal(stored["1"][0], counts)


@pytest.mark.parametrize("algorithm", [Algorithm.BSLZ4, Algorithm.LZ4_HDF5])
def test_a_framing_without_numbers_is_filled_in(tmp_path: Path, algorithm: Algorithm) -> None:
    counts = pixels(4)
    whole = pack(counts, algorithm)
    write(tmp_path, [hit(0, ImageData(bytes(12) + whole[12:], SHAPE, counts.dtype, algorithm, 2))])
    assert np.array_equal(h5py_pixels(files(tmp_path)[0])[0], counts)
    assert chunks(files(tmp_path)[0])[0][1] == whole


def full_header(mask: np.ndarray[Any, Any] | None, shape: tuple[int, int] = SHAPE) -> Series:
    header = SeriesMetadata(
        shape=shape,
        dtype=np.dtype("u2"),
        channels=("threshold_2",),
        beam_center_x_px=37.625,
        beam_center_y_px=-3.5,
        camera_length_m=0.1503,
        photon_energy_eV=7012.25,
        threshold_energy_eV={"threshold_1": 3500.0, "threshold_2": 6000.5},
        pixel_size_x_m=75e-6,
        pixel_size_y_m=75e-6,
        count_time_s=0.00099,
        frame_time_s=0.001,
        saturation_value=12345,
        sensor_material="Si",
        sensor_thickness_m=4.5e-4,
        detector_description="Dectris EIGER2 Si 4M µ",
        detector_serial="E-32-0111",
        arm_date="2026-11-30T01:02:03.000+01:00",
        masks={} if mask is None else {"threshold_2": mask},
    )
    return Series(1, 17, "unique", header)


def test_our_source_reads_the_same_header_and_mask(tmp_path: Path) -> None:
    mask = np.random.default_rng(2).integers(0, 2**32, SHAPE, dtype=np.uint64).astype(np.uint32)
    mask[10:50] = 0
    series = full_header(mask)
    frame, result = hit(0, of=series)
    write(tmp_path, [(replace(frame, channel="threshold_2"), result)])
    (header,), _ = read_back(files(tmp_path))
    names = [
        "beam_center_x_px", "beam_center_y_px", "camera_length_m", "photon_energy_eV", "pixel_size_x_m",
        "pixel_size_y_m", "count_time_s", "frame_time_s", "saturation_value", "sensor_material", "sensor_thickness_m",
        "detector_description", "detector_serial", "arm_date", "shape", "dtype",
    ]  # fmt: skip
    for name in names:
        assert getattr(header, name) == getattr(series.metadata, name), name
    assert header.threshold_energy_eV == {"threshold_1": 6000.5}  # the one there is, under the name that files have
    assert np.array_equal(header.masks["threshold_1"], mask)
    before = series_validity(series.metadata, SHAPE, "threshold_2")
    after = series_validity(header, SHAPE, "threshold_1")
    assert (before.name, before.valid.tolist()) == (after.name, after.valid.tolist())


def test_a_header_that_says_nothing_is_invented_nowhere(tmp_path: Path) -> None:
    bare = Series(1, 1, None, SeriesMetadata())
    write(tmp_path, [hit(0, of=bare)])
    (header,), images = read_back(files(tmp_path))
    assert header.masks == {}
    assert series_validity(header, SHAPE, "threshold_1").name == "none"
    for name in ("beam_center_x_px", "camera_length_m", "photon_energy_eV", "pixel_size_x_m", "saturation_value"):
        assert getattr(header, name) is None, name
    with h5py.File(files(tmp_path)[0]) as file:
        assert "definition" not in file["entry"]
    text = next(tmp_path.glob("*.geom")).read_text()
    assert "no photon energy" in text
    assert "no distance" in text
    assert "no beam centre" in text
    geometry = the_geometry(tmp_path)
    assert geometry.photon_energy_eV is None
    assert geometry.clen_m is None
    assert not geometry.panels[0].masks
    assert len(images) == 1


def test_gaps_of_a_known_detector_are_its_mask_and_leave_panels(tmp_path: Path) -> None:
    series = builders.series(shape=ONE_MODULE_GAP, beam_center_x_px=514.0, beam_center_y_px=531.0)
    image = packed_image(pixels(0, shape=ONE_MODULE_GAP))
    write(tmp_path, [hit(0, image, series, peaks=[peak(500.25, 20.5), peak(3.0, 550.0), peak(5.0, 520.0)])])
    (header,), _ = read_back(files(tmp_path))
    assert series_validity(header, ONE_MODULE_GAP, "threshold_1").name == "gaps of EIGER2 1M"
    geometry = the_geometry(tmp_path)
    assert [(p.min_ss, p.max_ss, p.corner_x, p.corner_y) for p in geometry.panels] == [
        (0, 511, -514.0, -531.0),
        (550, 1061, -514.0, 19.0),
    ]
    seen = read_as_crystfel((tmp_path / "hits.lst").read_text().splitlines()[0], geometry)
    assert seen.bad.sum() == 38 * 1028
    # In the middle of pixel 500 is 500.5; a peak in a gap, which no finder of ours makes, is nobody's.
    assert [peak[:3] for peak in seen.peaks] == [("m0_0", 500.75, 21.0), ("m1_0", 3.5, 0.5)]


def test_crystfel_reads_each_line_of_the_list(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.uint32)
    mask[3, 4], mask[50, 60] = 1, 1 << 31
    hits = [hit(n, of=full_header(mask), peaks=[peak(10.25 + k, 2.0 * n + k, 5.0 + k) for k in range(n)]) for n in
            range(7)]  # fmt: skip
    write(tmp_path, hits, HitFolderSettings(journal_hits=4))
    lines = (tmp_path / "hits.lst").read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["//0", "//1", "//2", "//3", "//0", "//1", "//2"]
    geometry = the_geometry(tmp_path)
    assert (tmp_path / f"{next(tmp_path.glob('*.geom')).stem}.lst").read_text().splitlines() == lines
    for number, line in enumerate(lines):
        seen = read_as_crystfel(line, geometry)
        assert np.array_equal(seen.pixels, pixels(number).astype(np.float32))
        assert np.array_equal(seen.bad, mask != 0)
        assert (seen.photon_energy_eV, seen.clen_m) == (7012.25, 0.1503)
        assert seen.peaks == [("m0_0", 10.75 + k, 2.0 * number + k + 0.5, 5.0 + k) for k in range(number)]


def test_the_beam_is_where_the_header_says(tmp_path: Path) -> None:
    write(tmp_path, [hit(0, of=full_header(None))])
    (panel,) = the_geometry(tmp_path).panels
    # CrystFEL counts from the beam to the panel's first corner; the header from that corner to the beam.
    assert (panel.corner_x, panel.corner_y) == (-37.625, 3.5)
    assert panel.res_per_m == pytest.approx(1 / 75e-6)
    assert panel.max_adu == 12345.0
    assert panel.adu_per_photon == 1.0


def test_an_event_says_which_frame_it_is_and_what_was_said_of_it(tmp_path: Path) -> None:
    tags = {"sample": "lysozyme", "pump": True, "delay_s": 1e-12}
    hits = [hit(5, tags=tags, hit_probability=0.97, photon_energy_sigma_eV=12.5), hit(8, tags=None)]
    write(tmp_path, hits)
    with h5py.File(files(tmp_path)[0]) as file:
        event = {name: found[()] for name, found in file["entry/event"].items()}
    assert event["series_id"].tolist() == [1, 1]
    assert event["image_id"].tolist() == [5, 8]
    assert event["start_time"].tolist() == [0.005, 0.008]
    assert event["received_at"].tolist() == [1e9 + 5, 1e9 + 8]
    assert event["hit_probability"].tolist() == [0.97, 0.9]
    assert event["photon_energy_eV"].tolist() == [7001.5, 7001.5]
    assert event["photon_energy_sigma_eV"][0] == 12.5
    assert np.isnan(event["photon_energy_sigma_eV"][1])
    assert np.isnan(event["camera_length_m"]).all()
    assert json.loads(event["tags"][0]) == tags
    assert event["tags"][1] == b""
    assert event["record"][0] + b"\n" == to_json_line(hits[0][1])
    assert event["bundle"].tolist() == [b"b", b"b"]
    assert event["hit_rule"][0] == b"network"


def test_hits_of_workers_that_overtake_each_other_are_in_the_order_of_the_images(tmp_path: Path) -> None:
    write(tmp_path, [hit(n) for n in (3, 0, 2, 1)])
    with h5py.File(files(tmp_path)[0]) as file:
        assert file["entry/event/image_id"][()].tolist() == [0, 1, 2, 3]
        assert np.array_equal(file["entry/data/data"][()], np.stack([pixels(n) for n in range(4)]))


def test_series_shapes_and_types_have_files_of_their_own(tmp_path: Path) -> None:
    second = builders.series(2, 2, camera_length_m=0.25)
    other = builders.series(3, 3, shape=(40, 50))
    hits = [hit(0), hit(1, of=second), hit(2, packed_image(pixels(2, "u4"))), hit(3, packed_image(pixels(3)[:40, :50]),
            other), hit(4)]  # fmt: skip
    write(tmp_path, hits, HitFolderSettings(journal_hits=10))
    found = {}
    for path in files(tmp_path):
        with h5py.File(path) as file:
            found[path.stem[-1]] = file["entry/event/image_id"][()].tolist()
    assert found == {"0": [0, 4], "1": [1], "2": [2], "3": [3]}
    assert len(list(tmp_path.glob("hits-*.geom"))) == 2  # distance and energy are in the files, shape and centre not
    headers, _ = read_back([tmp_path / "hits.lst"])
    assert sorted(header.camera_length_m or 0 for header in headers) == [0.15, 0.15, 0.15, 0.25]


def test_a_replaced_header_counts_from_then_on(tmp_path: Path) -> None:
    first = builders.series()
    later = Series(1, 1, None, first.metadata.with_changes(camera_length_m=0.3))
    write(tmp_path, [hit(0, of=first), hit(1, of=later), hit(2, of=first)], HitFolderSettings(journal_hits=10))
    with h5py.File(files(tmp_path)[1]) as file:
        assert file["entry/event/image_id"][()].tolist() == [1]
        assert file["entry/instrument/detector/detector_distance"][()] == 0.3


@pytest.mark.parametrize(
    "tags",
    [
        {"nul\0in": "a\0b", "line\nbreak": '"\\'},
        {"lone surrogate": "\ud800"},
        {"far too large": 1 << 80},
        {"not json": {1, 2}},
        {"deep": json.loads("[" * 200 + "]" * 200)},
        {"long": "x" * 60_000},
        {"": None, "ключ": ["值", 1.5e300, -0.0]},
    ],
    ids=lambda tags: next(iter(tags)) or "unicode",
)
def test_no_tag_costs_a_hit(tmp_path: Path, tags: dict[str, Any]) -> None:
    output = write(tmp_path, [hit(0, tags=tags), hit(1)])
    assert output.written == 2
    assert output.lost_hits == 0
    with h5py.File(files(tmp_path)[0]) as file:
        kept = json.loads(file["entry/event/tags"][0])
        assert json.loads(file["entry/event/record"][0])["tags"] == kept
    assert len(kept) == len(tags)
    assert np.array_equal(h5py_pixels(files(tmp_path)[0])[1], pixels(1))


@pytest.mark.parametrize("peaks", [None, [], [peak(1.0, 2.0)] * 3000])
def test_any_number_of_peaks_is_a_row(tmp_path: Path, peaks: Any) -> None:
    write(tmp_path, [hit(0, peaks=peaks), hit(1, peaks=[peak(4.0, 5.0)])])
    with h5py.File(files(tmp_path)[0]) as file:
        result = file["entry_1/result_1"]
        assert result["nPeaks"][()].tolist() == [len(peaks or []), 1]
        assert result["peakXPosRaw"].shape == (2, max(1, len(peaks or [])))
        assert result["peakXPosRaw"][1, 0] == 4.0
        assert not result["peakXPosRaw"][1, 1:].any()
        assert result["peakSaturated"].dtype == np.uint8
        assert result["peakSNR"][1, 0] == 4.5


def test_an_enormous_image_passes(tmp_path: Path) -> None:
    shape = (6000, 6000)
    counts = np.random.default_rng(3).integers(0, 2**32, shape, dtype=np.uint32)
    image = ImageData(memoryview(counts).cast("B"), shape, counts.dtype, Algorithm.RAW, 4)
    settings = HitFolderSettings(queue_bytes=16 << 20, file_bytes=1 << 20)
    output = write(tmp_path, [hit(0, image, builders.series(shape=shape))], settings)
    assert (output.written, output.lost_hits) == (1, 0)
    assert np.array_equal(h5py_pixels(files(tmp_path)[0])[0], counts)


def test_cxi_names_lead_to_the_same_images(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.uint32)
    write(tmp_path, [hit(0, of=full_header(mask))])
    with h5py.File(files(tmp_path)[0]) as file:
        assert file["entry_1/data_1/data"] == file["entry/data/data"]
        detector = file["entry_1/instrument_1/detector_1"]
        assert detector["distance"][()] == 0.1503
        assert detector["mask"].shape == SHAPE
        assert file["entry_1/instrument_1/source_1/energy"][()] == pytest.approx(7012.25 * 1.602176634e-19)
