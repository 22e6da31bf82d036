"""Stream v2: CBOR in and out."""

import struct
import sys
from typing import Any

import bitshuffle
import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer import stream_v2
from streamer.decoding import decode
from streamer.messages import Algorithm, Defect, EndMessage, ImageData, ImageMessage, SeriesMetadata, StartMessage
from tests.streamer.hostile_wire import array, good_image, metadata, packed, v2_image, v2_start
from tests.support import SHAPE, pack, packed_image, poisson

ALGORITHMS = (Algorithm.RAW, Algorithm.BSLZ4, Algorithm.LZ4_HDF5)
CHANNELS = ("threshold_1", "threshold_2", "difference")


def pixels_of(image: ImageData | Defect) -> Any:
    assert isinstance(image, ImageData), image
    out = np.empty(image.shape, image.dtype.newbyteorder("="))
    decode(image, out)
    return out


def image_message(data: bytes) -> ImageMessage:
    message = stream_v2.parse(memoryview(data))
    assert isinstance(message, ImageMessage)
    return message


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", ">u2", ">u4"])
def test_an_image_of_three_channels_comes_back_as_it_was(dtype: str, algorithm: Algorithm) -> None:
    images = poisson(3, SHAPE, dtype)
    sent = ImageMessage(
        5,
        2,
        {name: packed_image(image, algorithm) for name, image in zip(CHANNELS, images, strict=True)},
        start_time_s=12.5,
        stop_time_s=12.75,
        exposure_s=0.25,
        unique_id="01HRCJF83SA63WH8M5X1VBKFJM",
        user_data=[1, "\N{BLUE HEART}"],
    )
    got = image_message(stream_v2.encode_image(sent))
    assert (got.series_id, got.image_id, got.unique_id, got.user_data) == (5, 2, sent.unique_id, sent.user_data)
    assert (got.start_time_s, got.stop_time_s, got.exposure_s) == (12.5, 12.75, 0.25)
    assert tuple(got.channels) == CHANNELS
    for name, image in zip(CHANNELS, images, strict=True):
        data = got.channels[name]
        assert isinstance(data, ImageData)
        assert data.dtype == np.dtype(dtype)
        assert np.array_equal(pixels_of(data), image)


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
    data = stream_v2.encode_image(ImageMessage(*ids, {"threshold_1": packed_image(pixels, algorithm)}))
    message = image_message(data)
    assert (message.series_id, message.image_id) == ids
    assert np.array_equal(pixels_of(message.channels["threshold_1"]), pixels)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pixels_are_a_view_of_the_message(algorithm: Algorithm) -> None:
    data = stream_v2.encode_image(good_image(0, algorithm))
    image = image_message(data).channels["threshold_1"]
    assert isinstance(image, ImageData)
    assert isinstance(image.data, memoryview)
    assert image.data.obj is data
    assert np.shares_memory(np.frombuffer(image.data, np.uint8), np.frombuffer(data, np.uint8))


def test_nothing_but_its_pixels_keeps_a_message_alive() -> None:
    image = v2_image(user_data={"bytes": b"abc", "text": "x"})
    held = sys.getrefcount(image)
    message = image_message(image)
    assert message.user_data == {"bytes": "abc", "text": "x"}
    assert sys.getrefcount(image) > held
    data = message.channels["threshold_1"]
    del message
    assert sys.getrefcount(image) > held
    del data
    assert sys.getrefcount(image) == held
    meta = metadata().with_changes(masks={"threshold_1": np.ones(SHAPE, "u4")}, user_data=b"kept")
    start = stream_v2.encode_start(1, meta, header_detail="all")
    held = sys.getrefcount(start)
    parsed = stream_v2.parse(start)
    assert isinstance(parsed, StartMessage)
    assert parsed.metadata.masks["threshold_1"].shape == SHAPE
    assert sys.getrefcount(start) == held


def test_an_independent_decoder_reads_our_image() -> None:
    pixels = poisson(1)[0]
    sent = ImageMessage(9, 4, {"threshold_1": packed_image(pixels)}, 1.0, 1.5, 0.5, "id")
    data = stream_v2.encode_image(sent)
    assert data[:3] == b"\xd9\xd9\xf7"
    fields = dict(cbor2.loads(data))
    assert next(iter(fields)) == "type"
    assert (fields["type"], fields["series_id"], fields["image_id"]) == ("image", 9, 4)
    assert [n / d for n, d in (fields[f"{k}_time"] for k in ("start", "stop", "real"))] == [1.0, 1.5, 0.5]
    outer = fields["data"]["threshold_1"]
    assert outer.tag == 40
    dims, typed = outer.value
    assert (tuple(dims), typed.tag, typed.value.tag) == (SHAPE, 69, 56500)
    algorithm, element, blob = typed.value.value
    assert (algorithm, element) == ("bslz4", 2)
    total, block = struct.unpack(">QI", blob[:12])
    assert total == pixels.nbytes
    packed_array = np.frombuffer(blob[12:], np.uint8)
    assert np.array_equal(bitshuffle.decompress_lz4(packed_array, SHAPE, np.dtype("u2"), block // element), pixels)


@pytest.mark.parametrize("detail", ["none", "basic", "all"])
def test_a_start_comes_back_as_it_was(detail: str) -> None:
    rng = np.random.default_rng(0)
    sent = SeriesMetadata(
        number_of_images=17, shape=SHAPE, dtype=np.dtype("uint32"), channels=CHANNELS,
        beam_center_x_px=-3.5, beam_center_y_px=18.25, camera_length_m=0.15, photon_energy_eV=7000.0,
        threshold_energy_eV={"threshold_1": 3500.0, "threshold_2": 5000.0}, pixel_size_x_m=75e-6, pixel_size_y_m=75e-6,
        count_time_s=0.004, frame_time_s=0.005, saturation_value=21517, sensor_material="CdTe",
        sensor_thickness_m=750e-6, detector_description="EIGER2", detector_serial="E-32-0117",
        arm_date="2023-10-03T17:47:49.434+02:00", masks={c: rng.integers(0, 2, SHAPE).astype("u4") for c in CHANNELS},
        flatfields={"threshold_1": rng.random(SHAPE, "f4")}, countrate_table=np.arange(9, dtype="u4").reshape(-1, 1),
        user_data={"sample": "lysozyme", "run": 7},
    )  # fmt: skip
    got = stream_v2.parse(stream_v2.encode_start(3, sent, header_detail=detail, unique_id="01HRC"))
    assert isinstance(got, StartMessage)
    assert (got.series_id, got.unique_id, got.complete) == (3, "01HRC", True)
    arrays = ("masks", "flatfields", "countrate_table")
    for name in SeriesMetadata.__dataclass_fields__:
        if name not in (*arrays, "raw"):
            assert getattr(got.metadata, name) == getattr(sent, name), name
    if detail != "all":
        assert not got.metadata.masks
        return
    assert set(got.metadata.masks) == set(CHANNELS)
    assert all(np.array_equal(got.metadata.masks[c], sent.masks[c]) for c in CHANNELS)
    assert np.array_equal(got.metadata.flatfields["threshold_1"], sent.flatfields["threshold_1"])
    assert np.array_equal(got.metadata.countrate_table, sent.countrate_table)  # type: ignore[arg-type]


def test_an_unknown_number_of_images_stays_unknown() -> None:
    message = stream_v2.parse(stream_v2.encode_start(1, metadata(images=None)))
    assert isinstance(message, StartMessage)
    assert message.metadata.number_of_images is None


def test_a_packed_mask_is_unpacked() -> None:
    mask = np.random.default_rng(0).integers(0, 5, SHAPE).astype("u4")
    data = packed("bslz4", 4, pack(mask, Algorithm.BSLZ4))
    message = stream_v2.parse(v2_start(pixel_mask={"threshold_1": array(list(SHAPE), data, 70)}))
    assert isinstance(message, StartMessage)
    assert np.array_equal(message.metadata.masks["threshold_1"], mask)


def test_an_end_comes_back_as_it_was() -> None:
    assert stream_v2.parse(stream_v2.encode_end(8, "01H")) == EndMessage(8, "01H")


@pytest.mark.parametrize("date", ["1970-01-01T00:00:10Z", "2023-10-03T17:47:49.434000000+02:00", "yesterday"])
def test_times_are_the_detectors_clock_whatever_the_date(date: str) -> None:
    message = image_message(v2_image(series_date=cbor2.CBORTag(0, date), start_time=[75_000_000, 50_000_000]))
    assert message.start_time_s == 1.5


def test_fields_may_come_in_any_order() -> None:
    fields = dict(cbor2.loads(stream_v2.encode_image(good_image(6))[3:]))
    message = image_message(stream_v2.MAGIC + cbor2.dumps(dict(reversed(fields.items()))))
    assert message.image_id == 6
    assert np.array_equal(pixels_of(message.channels["threshold_1"]), poisson(1)[0])


def test_one_broken_channel_leaves_the_others() -> None:
    fields = dict(cbor2.loads(stream_v2.encode_image(good_image(6))[3:]))
    fields["data"] = {"threshold_2": array([1], b"\0\0"), **fields["data"]}
    message = image_message(stream_v2.MAGIC + cbor2.dumps(fields))
    assert isinstance(message.channels["threshold_2"], Defect)
    assert isinstance(message.channels["threshold_1"], ImageData)


def test_an_image_the_stream_has_no_name_for_is_not_sent() -> None:
    with pytest.raises(ValueError, match="no name for lz4-block"):
        stream_v2.encode_image(good_image(0, Algorithm.LZ4_BLOCK))
    with pytest.raises(ValueError, match="no name for pixels of uint64"):
        stream_v2.encode_image(ImageMessage(1, 1, {"a": packed_image(poisson(1, dtype="u8")[0], Algorithm.RAW)}))
    with pytest.raises(ValueError, match="cannot be sent"):
        stream_v2.encode_image(ImageMessage(1, 1, {"a": Defect("failed", "broken")}))
