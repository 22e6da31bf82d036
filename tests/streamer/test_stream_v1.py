"""Stream v1: JSON and binary parts, in and out."""

import json
import struct
from typing import Any

import bitshuffle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer import stream_v1
from streamer.decoding import decode
from streamer.messages import (
    Algorithm,
    ConfigMessage,
    Defect,
    EndMessage,
    ImageData,
    ImageMessage,
    SeriesMetadata,
    StartMessage,
)
from tests.streamer.hostile_wire import V1_START, good_image, metadata
from tests.support import SHAPE, packed_image, poisson

ALGORITHMS = (Algorithm.RAW, Algorithm.BSLZ4, Algorithm.LZ4_BLOCK)


def pixels_of(message: Any) -> Any:
    image = message.channels["threshold_1"]
    assert isinstance(image, ImageData), image
    out = np.empty(image.shape, image.dtype.newbyteorder("="))
    decode(image, out)
    return out


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", ">u2", ">u4"])
def test_an_image_comes_back_as_it_was(dtype: str, algorithm: Algorithm) -> None:
    pixels = poisson(1, SHAPE, dtype)[0]
    sent = ImageMessage(5, 2, {"threshold_1": packed_image(pixels, algorithm)}, 12.5, 12.75, 0.25, None, {"x": [1, 2]})
    got = stream_v1.parse(stream_v1.encode_image(sent))
    assert isinstance(got, ImageMessage)
    assert (got.series_id, got.image_id, got.user_data) == (5, 2, {"x": [1, 2]})
    assert (got.start_time_s, got.stop_time_s, got.exposure_s) == (12.5, 12.75, 0.25)
    assert np.array_equal(pixels_of(got), pixels)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    dtype=st.sampled_from(["u1", "<u2", "<u4", ">u2", ">u4"]),
    algorithm=st.sampled_from(ALGORITHMS),
    seed=st.integers(0, 2**32 - 1),
    noise=st.booleans(),
    ids=st.tuples(st.integers(0, 2**63 - 1), st.integers(-(2**63), 2**63 - 1)),
)
def test_any_image_survives_the_round_trip(
    rows: int, columns: int, dtype: str, algorithm: Algorithm, seed: int, noise: bool, ids: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max if noise else 3
    pixels = rng.integers(0, top, (rows, columns), np.uint64, endpoint=True).astype(dtype)
    message = stream_v1.parse(
        stream_v1.encode_image(ImageMessage(*ids, {"threshold_1": packed_image(pixels, algorithm)}))
    )
    assert isinstance(message, ImageMessage)
    assert (message.series_id, message.image_id) == ids
    assert np.array_equal(pixels_of(message), pixels)


def test_the_shape_on_the_wire_is_width_then_height() -> None:
    parts = stream_v1.encode_image(good_image(0))
    assert json.loads(bytes(parts[1]))["shape"] == [SHAPE[1], SHAPE[0]]


def test_pixels_are_a_view_of_the_third_part() -> None:
    parts = [bytes(part) for part in stream_v1.encode_image(good_image(0))]
    views = [memoryview(part) for part in parts]
    message = stream_v1.parse(views)
    assert isinstance(message, ImageMessage)
    image = message.channels["threshold_1"]
    assert isinstance(image, ImageData)
    assert isinstance(image.data, memoryview)
    assert image.data.obj is parts[2]


def test_an_independent_decoder_reads_our_image() -> None:
    pixels = poisson(1, dtype="u4")[0]
    parts = stream_v1.encode_image(ImageMessage(9, 4, {"threshold_1": packed_image(pixels)}, 1.0, 1.5, 0.5))
    head, layout, times = (json.loads(bytes(parts[n])) for n in (0, 1, 3))
    assert (head["htype"], head["series"], head["frame"], len(head["hash"])) == ("dimage-1.0", 9, 4, 32)
    assert layout["encoding"] == "bs32-lz4<"
    assert (layout["type"], layout["size"]) == ("uint32", len(parts[2]))
    assert times == {"htype": "dconfig-1.0", "start_time": 10**9, "stop_time": 15 * 10**8, "real_time": 5 * 10**8}
    blob = bytes(parts[2])
    total, block = struct.unpack(">QI", blob[:12])
    assert total == pixels.nbytes
    packed = np.frombuffer(blob[12:], np.uint8)
    assert np.array_equal(bitshuffle.decompress_lz4(packed, SHAPE, np.dtype("u4"), block // 4), pixels)


def test_bitshuffle_of_another_width_than_the_pixels_is_read() -> None:
    pixels = poisson(1, (40, 50), "u2")[0]
    image = packed_image(pixels, element_bytes=4)
    parts = stream_v1.encode_image(ImageMessage(1, 1, {"threshold_1": image}))
    assert json.loads(bytes(parts[1]))["encoding"] == "bs32-lz4<"
    assert np.array_equal(pixels_of(stream_v1.parse(parts)), pixels)


def test_an_lz4_chunk_of_one_block_goes_out_as_a_bare_block() -> None:
    pixels = poisson(1)[0]
    image = packed_image(pixels, Algorithm.LZ4_HDF5, block_bytes=pixels.nbytes)
    parts = stream_v1.encode_image(ImageMessage(1, 1, {"threshold_1": image}))
    assert json.loads(bytes(parts[1]))["encoding"] == "lz4<"
    assert np.array_equal(pixels_of(stream_v1.parse(parts)), pixels)
    several = packed_image(pixels, Algorithm.LZ4_HDF5, block_bytes=512)
    with pytest.raises(ValueError, match="no encoding for lz4-hdf5"):
        stream_v1.encode_image(ImageMessage(1, 1, {"threshold_1": several}))


FULL = SeriesMetadata(
    number_of_images=17, shape=SHAPE, dtype=np.dtype("uint32"), channels=("threshold_1",),
    beam_center_x_px=-3.5, beam_center_y_px=18.25, camera_length_m=0.15, photon_energy_eV=7000.0,
    threshold_energy_eV={"threshold_1": 3500.0}, pixel_size_x_m=75e-6, pixel_size_y_m=75e-6, count_time_s=0.004,
    frame_time_s=0.005, saturation_value=21517, sensor_material="CdTe", sensor_thickness_m=750e-6,
    detector_description="EIGER2", detector_serial="E-32-0117", arm_date="2023-10-03T17:47:49.434",
)  # fmt: skip


@pytest.mark.parametrize(("detail", "parts"), [("none", 1), ("basic", 2), ("all", 9)])
def test_a_header_comes_back_as_it_was(detail: str, parts: int) -> None:
    rng = np.random.default_rng(0)
    sent = FULL.with_changes(
        masks={"threshold_1": rng.integers(0, 2, SHAPE).astype("u4")},
        flatfields={"threshold_1": rng.random(SHAPE, "f4")},
        countrate_table=rng.random((12, 2), "f4"),
        user_data={"filename": "", "rotate": 0},
    )
    message = stream_v1.encode_start(3, sent, header_detail=detail)
    assert len(message) == parts
    got = stream_v1.parse(message)
    assert isinstance(got, StartMessage)
    assert (got.series_id, got.complete) == (3, True)
    if detail == "none":
        assert got.metadata == SeriesMetadata()
        return
    arrays = ("masks", "flatfields", "countrate_table", "raw", "user_data")
    for name in SeriesMetadata.__dataclass_fields__:
        if name not in arrays:
            assert getattr(got.metadata, name) == getattr(sent, name), name
    if detail == "all":
        assert np.array_equal(got.metadata.masks["threshold_1"], sent.masks["threshold_1"])
        assert np.array_equal(got.metadata.flatfields["threshold_1"], sent.flatfields["threshold_1"])
        assert np.array_equal(got.metadata.countrate_table, sent.countrate_table)  # type: ignore[arg-type]
        assert got.metadata.user_data == sent.user_data


def test_a_header_keeps_how_triggers_made_its_images() -> None:
    config = {"ntrigger": 5, "nimages": 20, "trigger_mode": "exts", "compression": "lz4"}
    first = stream_v1.parse(stream_v1.encode_start(1, metadata(), config=config))
    assert isinstance(first, StartMessage)
    assert first.metadata.number_of_images == 100
    again = json.loads(stream_v1.encode_start(1, first.metadata)[1])
    assert {key: again[key] for key in config} == config
    # Another number of images is not what those triggers made.
    other = json.loads(stream_v1.encode_start(1, first.metadata.with_changes(number_of_images=7))[1])
    assert (other["ntrigger"], other["nimages"], other["trigger_mode"]) == (1, 7, "ints")


@pytest.mark.parametrize(
    ("config", "images"),
    [
        ({"nimages": 10, "ntrigger": 3, "trigger_mode": "ints"}, 30),
        ({"nimages": 10, "ntrigger": 3, "trigger_mode": "exts"}, 30),
        ({"nimages": 10, "ntrigger": 3, "trigger_mode": "inte"}, 3),
        ({"nimages": 10, "ntrigger": 3, "trigger_mode": "exte"}, 3),
        ({"nimages": 10}, 10),
        ({"nimages": 0, "ntrigger": 3}, None),
        ({"ntrigger": 3}, None),
        ({"nimages": 2**60, "ntrigger": 2**60}, None),
        ({"nimages": "10", "ntrigger": -1}, None),
        ({"nimages": 10, "trigger_mode": ["ints"]}, 10),
    ],
)
def test_images_are_announced_by_triggers(config: dict[str, Any], images: int | None) -> None:
    assert stream_v1.metadata_from_config(config).number_of_images == images


def test_the_wavelength_stands_in_for_the_energy() -> None:
    assert stream_v1.metadata_from_config({"wavelength": 12.3984198}).photon_energy_eV == pytest.approx(1000.0)


def test_a_configuration_that_comes_apart_is_its_own_message() -> None:
    header = stream_v1.parse(V1_START[:1])
    assert isinstance(header, StartMessage)
    assert not header.complete
    config = stream_v1.parse(V1_START[1:])
    assert isinstance(config, ConfigMessage)
    assert config.metadata.number_of_images == 100


def test_arrays_that_a_detector_left_empty_are_left_out() -> None:
    empty = b'{"htype":"dflatfield-1.0","shape":[],"type":"undefined"}'
    mask = b'{"htype":"pixelmask-1.0","shape":[51,37],"type":"uint32"}'
    message = stream_v1.parse([*V1_START, empty, b"", mask, bytes(4 * SHAPE[0] * SHAPE[1]), b"an appendix"])
    assert isinstance(message, StartMessage)
    assert not message.metadata.flatfields
    assert message.metadata.masks["threshold_1"].shape == SHAPE
    assert message.metadata.user_data == "an appendix"
    assert not message.metadata.problems


def test_an_array_that_is_wrong_costs_only_itself() -> None:
    bad = b'{"htype":"dflatfield-1.0","shape":[51,37],"type":"float32"}'
    message = stream_v1.parse([*V1_START, bad, b"placeholder"])
    assert isinstance(message, StartMessage)
    assert message.metadata.photon_energy_eV == 7000.0
    assert message.metadata.problems == ("flatfield left out: 11 bytes do not fill [51, 37] of float32",)


def test_an_end_comes_back_as_it_was() -> None:
    assert stream_v1.parse(stream_v1.encode_end(8)) == EndMessage(8)


def test_an_image_that_cannot_be_carried_is_not_sent() -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        stream_v1.encode_image(ImageMessage(1, 1, {"a": Defect("failed", "broken")}))
    with pytest.raises(ValueError, match="no encoding for bszstd"):
        stream_v1.encode_image(good_image(0, Algorithm.BSZSTD))


def test_a_header_of_a_known_detector_without_a_mask_tells_its_gaps() -> None:
    sent = SeriesMetadata(number_of_images=1, shape=(514, 1030), dtype=np.dtype("u2"))
    shape = (1065, 1030)
    for meta, bad in ((sent, 0), (sent.with_changes(shape=shape), 37 * 1030)):
        message = stream_v1.parse(stream_v1.encode_start(1, meta, header_detail="all"))
        assert isinstance(message, StartMessage)
        assert int(message.metadata.masks["threshold_1"].sum()) == bad
