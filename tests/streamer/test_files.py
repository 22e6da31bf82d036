"""HDF5 files behind the interface of the wire: tiny real ones."""

import os
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from streamer.account import Account
from streamer.decoding import decode
from streamer.files import CHANNEL, BadInput, FileSeries, FileSource, expand, named_files
from streamer.messages import Algorithm, Defect, EndMessage, ImageData, ImageMessage, StartMessage
from streamer.series import SeriesClosed, SeriesTracker
from tests.support import (
    MASKED,
    SHAPE,
    poisson,
    read_chunks,
    read_pixels,
    write_data_file,
    write_series,
    write_single_image,
)


def messages(*sources: Path | str) -> list[Any]:
    source = FileSource([str(path) for path in sources])
    found = []
    while (received := source.receive(0.0)) is not None:
        found.append(received.message)
    assert source.exhausted
    source.close()
    return found


def pixels_of(message: ImageMessage) -> Any:
    (image,) = message.channels.values()
    assert isinstance(image, ImageData), image
    out = np.empty(image.shape, image.dtype.newbyteorder("="))
    decode(image, out)
    return out


@pytest.mark.parametrize(
    ("filters", "algorithm"),
    [
        (hdf5plugin.Bitshuffle(), Algorithm.BSLZ4),
        (hdf5plugin.LZ4(), Algorithm.LZ4_HDF5),
        (hdf5plugin.LZ4(nbytes=512), Algorithm.LZ4_HDF5),
        (hdf5plugin.Bitshuffle(cname="zstd"), Algorithm.RAW),
        ({"compression": "gzip"}, Algorithm.RAW),
        ({}, Algorithm.RAW),
    ],
    ids=["bslz4", "lz4", "lz4 blocks", "bszstd", "gzip", "plain"],
)
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", ">u2"])
def test_a_master_is_a_start_its_images_and_an_end(
    tmp_path: Path, dtype: str, filters: Any, algorithm: Algorithm
) -> None:
    master = write_series(tmp_path, images=5, dtype=dtype, per_file=2, filters=filters)
    start, *images, end = messages(master)
    assert isinstance(start, StartMessage)
    assert isinstance(end, EndMessage)
    assert [(m.series_id, m.image_id) for m in images] == [(1, n) for n in range(5)]
    assert start.metadata.number_of_images == 5
    assert (start.metadata.shape, start.metadata.dtype) == (SHAPE, np.dtype(dtype))
    assert [m.channels["threshold_1"].algorithm for m in images] == [algorithm] * 5
    assert np.array_equal([pixels_of(m) for m in images], read_pixels(master))
    if algorithm != Algorithm.RAW:
        assert [bytes(m.channels["threshold_1"].data) for m in images] == read_chunks(master)


def test_a_masters_metadata_is_read(tmp_path: Path) -> None:
    meta = FileSeries(write_series(tmp_path, metadata={"sensor_material": "Si", "saturation_value": 65533})).metadata
    assert (meta.beam_center_x_px, meta.beam_center_y_px, meta.camera_length_m) == (25.5, 18.5, 0.15)
    assert (meta.photon_energy_eV, meta.pixel_size_x_m, meta.count_time_s) == (7000.0, 75e-6, 0.004)
    assert (meta.sensor_material, meta.saturation_value) == ("Si", 65533)
    assert np.argwhere(meta.masks["threshold_1"]).tolist() == [list(MASKED)]


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -1.0, 0.0, 1e300, "far", b"\xff", [], [[np.nan]], np.zeros((3, 3), "c8")], ids=repr
)
def test_metadata_without_sense_is_as_if_not_said(tmp_path: Path, value: Any) -> None:
    keys = ("detector_distance", "x_pixel_size", "count_time", "saturation_value", "detectorSpecific/photon_energy",
            "sensor_thickness", "detectorSpecific/pixel_mask", "detectorSpecific/nimages", "description")  # fmt: skip
    meta = FileSeries(write_series(tmp_path, metadata=dict.fromkeys(keys, value))).metadata
    assert meta.camera_length_m is meta.pixel_size_x_m is meta.count_time_s is meta.photon_energy_eV is None
    assert meta.saturation_value is meta.sensor_thickness_m is None
    assert not meta.masks
    assert meta.number_of_images == 5


def test_a_missing_data_file_is_named_and_its_images_are_missing(tmp_path: Path) -> None:
    master = write_series(tmp_path, images=6, per_file=2)
    (tmp_path / "run_data_000003.h5").unlink()
    source = FileSource([str(master)])
    account = Account()
    tracker = SeriesTracker(account)
    events = []
    while (received := source.receive(0)) is not None:
        assert not isinstance(received.message, Exception)
        events += list(tracker.handle(received.message, 0.0))
    closed = [event for event in events if isinstance(event, SeriesClosed)]
    assert (closed[0].announced, closed[0].accepted, closed[0].missing["tail"]) == (6, 4, 2)
    assert "run_data_000003.h5 is missing or unreadable" in source.problems[0]


def test_images_after_a_lost_data_file_keep_their_ids(tmp_path: Path) -> None:
    master = write_series(tmp_path, images=6, per_file=2)
    (tmp_path / "run_data_000002.h5").unlink()
    ids = [message.image_id for message in messages(master)[1:-1]]
    assert ids == [0, 1, 4, 5]


def test_a_glob_takes_the_data_files_of_a_master_with_it(tmp_path: Path) -> None:
    write_series(tmp_path, images=4, per_file=2)
    source = FileSource([str(tmp_path / "*.h5")])
    starts = 0
    while (received := source.receive(0)) is not None:
        starts += type(received.message).__name__ == "StartMessage"
    assert starts == 1


def test_a_chunk_that_is_damaged_costs_only_its_image(tmp_path: Path) -> None:
    master = write_series(tmp_path, images=3)
    with h5py.File(tmp_path / "run_data_000001.h5", "r+") as file:
        file["entry/data/data"].id.write_direct_chunk((1, 0, 0), b"garbage" * 30)
    images = messages(master)[1:-1]
    assert np.array_equal(pixels_of(images[0]), read_pixels_of(master, 0))
    with pytest.raises(ValueError):
        pixels_of(images[1])
    assert np.array_equal(pixels_of(images[2]), read_pixels_of(master, 2))


def read_pixels_of(master: Path, index: int) -> Any:
    with h5py.File(master) as file:
        return file["entry/data/data_000001"][index]


def test_a_damaged_chunk_that_h5py_reads_is_a_defect(tmp_path: Path) -> None:
    path = write_data_file(tmp_path / "gz.h5", poisson(3), {"compression": "gzip"})
    with h5py.File(path, "r+") as file:
        file["entry/data/data"].id.write_direct_chunk((1, 0, 0), b"garbage" * 30)
    _, first, second, third, _ = messages(path)
    assert isinstance(second.channels["threshold_1"], Defect)
    assert second.channels["threshold_1"].reason == "missing_data"
    assert np.array_equal([pixels_of(first), pixels_of(third)], poisson(3)[[0, 2]])


def test_single_images_alike_make_one_series(tmp_path: Path) -> None:
    pixels = poisson(4)
    attributes = ({"clen": 0.15, "photon_energy": 7000.0},) * 3 + ({"clen": 0.2, "photon_energy": 7000.0},)
    for n in range(4):
        write_single_image(tmp_path / f"img_{n}.h5", pixels[n], **attributes[n])
    found = messages(str(tmp_path / "img_*.h5"))
    starts = [m for m in found if isinstance(m, StartMessage)]
    assert [(s.series_id, s.metadata.number_of_images, s.metadata.camera_length_m) for s in starts] == [
        (1, 3, 0.15),
        (2, 1, 0.2),
    ]
    images = [m for m in found if isinstance(m, ImageMessage)]
    assert [(m.series_id, m.image_id) for m in images] == [(1, 0), (1, 1), (1, 2), (2, 0)]
    assert np.array_equal([pixels_of(m) for m in images], pixels)


def test_a_list_names_files_and_their_events(tmp_path: Path) -> None:
    path = write_data_file(tmp_path / "a.h5", poisson(5))
    listing = tmp_path / "some.lst"
    listing.write_text(f"# chosen\na.h5 //3\n{path} //1\n\na.h5\n")
    assert [events for _, events in expand([str(listing)])] == [[3, 1], None]
    images = [m for m in messages(listing) if isinstance(m, ImageMessage)]
    assert np.array_equal(pixels_of(images[0]), poisson(5)[3])
    assert np.array_equal(pixels_of(images[1]), poisson(5)[1])
    assert len(images) == 7


def test_floats_and_wide_integers_become_counts(tmp_path: Path) -> None:
    pixels = np.array([[[-1.0, 0.4, 2.6, np.nan, 1e12]]])
    path = write_data_file(tmp_path / "f.h5", pixels, {})
    (image,) = (m for m in messages(path) if isinstance(m, ImageMessage))
    assert pixels_of(image).tolist() == [[0, 0, 3, 2**32 - 1, 2**32 - 1]]
    path = write_data_file(tmp_path / "i.h5", np.array([[[-5, 7, 2**40]]]), {})
    (image,) = (m for m in messages(path) if isinstance(m, ImageMessage))
    assert pixels_of(image).tolist() == [[0, 7, 2**32 - 1]]


def test_data_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    pixels = poisson(3)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for name, image in zip(("data_10", "data_9", "data_1"), pixels, strict=True):
            file[f"entry/data/{name}"] = image[np.newaxis]
    images = [m for m in messages(tmp_path / "m.h5") if isinstance(m, ImageMessage)]
    assert np.array_equal([pixels_of(m) for m in images], pixels[::-1])


def test_data_files_may_differ_in_shape_and_type(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["entry/data/data_000001"] = poisson(1)
        file["entry/data/data_000002"] = poisson(1, (8, 9), "u4")
    first, second = (m for m in messages(tmp_path / "m.h5") if isinstance(m, ImageMessage))
    assert pixels_of(first).shape == SHAPE
    assert np.array_equal(pixels_of(second), poisson(1, (8, 9), "u4")[0])


def test_a_cxi_file_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run.cxi", "w") as file:
        detector = file.create_group("entry_1/instrument_1/detector_1")
        detector["data"], detector["distance"] = poisson(3), [0.15, 0.15, 0.15]
        detector["x_pixel_size"], detector["mask"] = 75e-6, np.eye(*SHAPE, dtype="i4")
        file["entry_1/instrument_1/source_1/energy"] = 1.1215e-15
        file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
    meta = FileSeries(tmp_path / "run.cxi").metadata
    assert (meta.number_of_images, meta.camera_length_m, meta.pixel_size_x_m) == (3, 0.15, 75e-6)
    assert meta.photon_energy_eV == pytest.approx(7000, abs=1)
    assert meta.masks["threshold_1"].sum() == min(SHAPE)


def test_an_empty_series_is_a_start_and_an_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_dataset(
            "entry/data/data", shape=(0, *SHAPE), dtype="u2", chunks=(1, *SHAPE), maxshape=(None, *SHAPE)
        )
    start, end = messages(tmp_path / "empty.h5")
    assert start.metadata.number_of_images == 0
    assert isinstance(end, EndMessage)


def test_an_input_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "empty.lst").write_text("# nothing\n")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["entry/other"] = 1
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["entry/data/data"] = [1, 2, 3]
    (tmp_path / "far.lst").write_text("good.h5 //99\n")
    write_data_file(tmp_path / "good.h5", poisson(1))
    for name, problem in {
        "absent.h5": "no such file",
        "*.nothing": "no file matches",
        "": "a folder",
        "text.h5": "not an HDF5 file",
        "none.h5": "no images found",
        "flat.h5": "not a stack of images",
        "empty.lst": "names no file",
        "far.lst": "event //99 is not among",
    }.items():
        with pytest.raises(BadInput, match=problem) as caught:
            messages(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_damaged_mask_is_refused_and_does_not_crash_the_process(tmp_path: Path) -> None:
    """HDF5's own bitshuffle filter reads beyond its buffers on such bytes."""
    path = tmp_path / "run.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = np.zeros((1, 512, 512), np.uint16)
        mask = file.create_dataset(
            "entry/instrument/detector/pixel_mask",
            data=rng.integers(0, 2, (512, 512), np.uint32),
            chunks=(512, 512),
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
        packed = bytearray(mask.id.read_direct_chunk((0, 0))[1])
    series = FileSeries(path)
    assert series.metadata.masks[CHANNEL].sum() > 0
    series.close()
    refused = []
    for _ in range(60):
        damaged = bytearray(packed)
        for place in rng.integers(12, len(packed), 40):
            damaged[place] = rng.integers(256)
        with h5py.File(path, "r+") as file:
            file["entry/instrument/detector/pixel_mask"].id.write_direct_chunk((0, 0), bytes(damaged))
        try:
            FileSeries(path).close()
        except BadInput as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert all("run.h5: damaged" in text and "\n" not in text for text in refused)


@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [
        ((2, 1 << 20, 1 << 20), "u2", "1048576 x 1048576 pixels of uint16 are beyond any detector"),
        ((1 << 16, 1 << 16), "u1", "65536 x 65536 pixels of uint8 are beyond any detector"),
        ((2, 1 << 14, 1 << 14), "f8", "16384 x 16384 pixels of float64 are beyond any detector"),
        ((2, 0, 5), "u2", "0 x 5 pixels of uint16 are beyond any detector"),
        ((1 << 40, 4, 5), "u2", "1099511627776 images, a stack of at most 16777216 is read"),
    ],
)
def test_a_stack_that_claims_too_much_is_refused_unread(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, text: str
) -> None:
    path = tmp_path / "claim.h5"
    with h5py.File(path, "w") as file:
        chunks = (*[1] * (len(shape) - 2), 4, 5)
        file.create_dataset("entry/data/data", shape, dtype, chunks=chunks if 0 not in shape else None)
    assert path.stat().st_size < 10_000
    with pytest.raises(BadInput) as caught:
        messages(path)
    assert str(caught.value).startswith(f"{path}:/entry/data/data: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe_master.h5")
    with pytest.raises(BadInput, match=r"pipe_master\.h5: not a regular file"):
        messages(tmp_path / "pipe_master.h5")


def test_a_list_of_anything_is_read_or_refused_in_a_line(tmp_path: Path) -> None:
    listing = tmp_path / "some.lst"
    listing.write_text(
        "a.h5" + " " * 200_000 + "b\n" + "x" * 5000 + ".h5\nc.h5 //" + "9" * 5000 + "\nd.h5 \t //7\n//3\n"
    )
    began = time.process_time()
    names = [(path.name, images) for path, images in named_files([str(listing)])]
    assert time.process_time() - began < 1.0
    assert [images for _, images in names] == [None, None, None, [7], None]
    assert names[3][0] == "d.h5"
    listing.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="the list cannot be read"):
        named_files([str(listing)])
    device = tmp_path / "device.lst"
    device.symlink_to("/dev/zero")
    with pytest.raises(BadInput, match="not a regular file"):
        named_files([str(device)])
