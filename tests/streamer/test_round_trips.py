"""Anything that both protocols can carry, there and back, by our own two halves and by those of others.

Others are cbor2, json and struct for the messages, bitshuffle and HDF5's filters for the pixels: no mistake that our
encoder and our parser share passes here.
"""

import io
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import bitshuffle
import cbor2
import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import pytest
import zmq
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from streamer import stream_v1, stream_v2
from streamer.bounds import MAX_PLAIN_TEXT
from streamer.decoding import decode
from streamer.messages import (
    Algorithm,
    EndMessage,
    ImageData,
    ImageMessage,
    Message,
    SeriesMetadata,
    StartMessage,
)
from streamer.receiver import StreamReceiver
from tests.fuzz import reference
from tests.support import pack

DTYPES = ("|u1", "<u2", "<u4", ">u2", ">u4")
TAGS = {
    "|u1": 64,
    ">u2": 65,
    ">u4": 66,
    ">u8": 67,
    "<u2": 69,
    "<u4": 70,
    "<u8": 71,
    "<i4": 78,
    "<f4": 85,
    "<f8": 86,
    ">f4": 81,
}
"""RFC 8746, section 2."""

V1, V2 = "v1", "v2"
PACKINGS = {
    V1: (Algorithm.RAW, Algorithm.BSLZ4, Algorithm.LZ4_BLOCK),
    V2: (Algorithm.RAW, Algorithm.BSLZ4, Algorithm.LZ4_HDF5),
}
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

# --- what is carried --------------------------------------------------------------------

shapes = st.one_of(
    st.sampled_from(
        [(1, 1), (1, 7), (9, 1), (1, 4096), (4099, 1), (64, 64), (8, 513), (37, 51), (130, 127), (3, 8192)]
    ),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
names = st.one_of(
    st.sampled_from(["threshold_1", "threshold_2", "difference"]),
    st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=64),
)
ids = st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1))
image_ids = st.one_of(st.integers(-2, 300), st.integers(-(2**63), 2**63 - 1))
times = st.integers(0, 10**15).map(lambda nanoseconds: nanoseconds / 1e9)
texts = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=200)
dates = st.datetimes(timezones=st.timezones()).map(lambda date: date.isoformat())
unique_ids = st.one_of(st.none(), st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=64))
plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=10,
)  # fmt: skip


@st.composite
def pixels(draw: st.DrawFn, shape: tuple[int, int] | None = None) -> npt.NDArray[Any]:
    """An image of any kind that a detector makes: empty, dim, noise, with pixels that have no data."""
    shape, dtype = shape or draw(shapes), draw(st.sampled_from(DTYPES))
    rng, most = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), int(np.iinfo(dtype).max)
    kind = draw(st.sampled_from(["zeros", "dim", "noise", "without data", "bright"]))
    if kind == "noise":
        return rng.integers(0, most, shape, np.uint64, endpoint=True).astype(dtype)
    found = np.zeros(shape, dtype)
    if kind == "dim":
        found[:] = rng.poisson(0.05, shape)
    elif kind == "without data":
        found[rng.random(shape) < 0.5] = most
    elif kind == "bright":
        found.reshape(-1)[rng.integers(found.size)] = most - 1
    return found


@dataclass(frozen=True)
class Packed:
    pixels: npt.NDArray[Any]
    image: ImageData


@st.composite
def packed(draw: st.DrawFn, protocol: str, shape: tuple[int, int] | None = None) -> Packed:
    """An image, packed in blocks of any size and, where bitshuffle is told another width, of that."""
    array, algorithm = draw(pixels(shape)), draw(st.sampled_from(PACKINGS[protocol]))
    widths = [width for width in (1, 2, 4) if array.nbytes % width == 0]
    width = draw(st.sampled_from(widths)) if algorithm == Algorithm.BSLZ4 else array.dtype.itemsize
    block = 8 * width * draw(st.sampled_from([1, 2, 8, 64, 256, 1024]))
    if algorithm == Algorithm.LZ4_HDF5:
        block = draw(st.sampled_from([64, 1000, 8192]))
    data = pack(array, algorithm, block, width)
    return Packed(array, ImageData(memoryview(data), array.shape, array.dtype, algorithm, width))


@dataclass(frozen=True)
class Sent:
    message: ImageMessage
    arrays: Mapping[str, npt.NDArray[Any]]


@st.composite
def images(draw: st.DrawFn, protocol: str) -> Sent:
    if protocol == V1:
        found = {"threshold_1": draw(packed(V1))}
    else:
        shape = draw(st.one_of(st.none(), shapes))
        found = draw(st.dictionaries(names, packed(V2, shape), min_size=1, max_size=4))
    message = ImageMessage(
        draw(ids), draw(image_ids), {name: each.image for name, each in found.items()}, draw(times), draw(times),
        draw(times), draw(unique_ids) if protocol == V2 else None, draw(plain),
    )  # fmt: skip
    return Sent(message, {name: each.pixels for name, each in found.items()})


positive = st.floats(1e-6, 1e3)
energies = st.floats(10.0, 1e6)


@st.composite
def headers(draw: st.DrawFn, protocol: str) -> SeriesMetadata:
    shape = draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    channels = ("threshold_1",) if protocol == V1 else tuple(draw(st.lists(names, min_size=1, max_size=4, unique=True)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    some = st.lists(st.sampled_from(channels), unique=True)
    masks = {name: rng.integers(0, 2**32, shape, np.uint32) for name in draw(some)}
    flatfields = {name: rng.random(shape, np.float32) for name in draw(some)}
    rows, columns = draw(st.integers(1, 20)), 2 if protocol == V1 else 1
    table = rng.integers(0, 2**20, (rows, columns)).astype("f4" if protocol == V1 else "u4")
    center = draw(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)).filter(lambda pair: all(pair)))
    return SeriesMetadata(
        number_of_images=draw(st.one_of(st.none(), st.integers(1, 2**62))),
        shape=shape,
        dtype=np.dtype(draw(st.sampled_from(["uint8", "uint16", "uint32"]))),
        channels=channels,
        beam_center_x_px=center[0],
        beam_center_y_px=center[1],
        camera_length_m=draw(st.floats(1e-3, 100.0)),
        photon_energy_eV=draw(energies),
        threshold_energy_eV={name: draw(energies) for name in channels},
        pixel_size_x_m=draw(st.floats(1e-6, 1e-2)),
        pixel_size_y_m=draw(st.floats(1e-6, 1e-2)),
        count_time_s=draw(positive),
        frame_time_s=draw(positive),
        saturation_value=draw(st.integers(1, 2**32 - 1)),
        sensor_material=draw(texts),
        sensor_thickness_m=draw(st.floats(1e-6, 1e-2)),
        detector_description=draw(texts),
        detector_serial=draw(texts),
        arm_date=draw(dates),
        masks=masks,
        flatfields=flatfields,
        countrate_table=table,
        user_data=draw(plain),
    )


# --- the other halves -------------------------------------------------------------------


def unpacked_by_others(data: bytes, array: npt.NDArray[Any], algorithm: str, width: int) -> npt.NDArray[Any]:
    """Pixels by bitshuffle or by HDF5's filter; of the shape and type of ``array``."""
    if algorithm == "raw":
        flat = np.frombuffer(data, np.uint8)
    elif algorithm == "bslz4":
        total, block = struct.unpack(">QI", data[:12])
        assert total == array.nbytes
        elements = np.frombuffer(data[12:], np.uint8)
        flat = bitshuffle.decompress_lz4(elements, (total // width,), np.dtype(f"u{width}"), block // width)
    elif algorithm == "lz4-block" and len(data) == array.nbytes:
        # Behind HDF5's head it would be taken for bytes that are not packed.
        flat = np.frombuffer(reference.lz4_block(data, array.nbytes), np.uint8)
    else:
        chunk = struct.pack(">QII", array.nbytes, array.nbytes, len(data)) + data if algorithm == "lz4-block" else data
        with h5py.File(io.BytesIO(), "w") as file:
            made = file.create_dataset("data", (array.nbytes,), "u1", chunks=(array.nbytes,), **hdf5plugin.LZ4())
            made.id.write_direct_chunk((0,), chunk)
            flat = made[()]
    return flat.view(np.uint8).view(array.dtype).reshape(array.shape)


def loads(message: bytes) -> dict[str, Any]:
    """A v2 message by cbor2, which leaves the tags of arrays as they are."""
    return dict(cbor2.loads(message))


def v2_array(tag: Any) -> tuple[list[int], int, str, int, bytes]:
    """Dimensions, tag of the type, packing, width and bytes of an array in v2."""
    dims, typed = tag.value
    assert tag.tag == 40
    dims = list(dims)
    if isinstance(typed.value, bytes):
        return dims, typed.tag, "raw", 0, typed.value
    assert typed.value.tag == 56500
    return dims, typed.tag, *typed.value.value


def v2_by_others(sent: Sent) -> bytes:
    """The message as another program writes it: other order of keys, a key more, no magic."""
    channels = {}
    for name, image in sent.message.channels.items():
        assert isinstance(image, ImageData)
        data: Any = bytes(image.data)
        if image.algorithm != Algorithm.RAW:
            name_of = {Algorithm.BSLZ4: "bslz4", Algorithm.LZ4_HDF5: "lz4"}[image.algorithm]
            data = cbor2.CBORTag(56500, [name_of, image.element_bytes, data])
        channels[name] = cbor2.CBORTag(40, [list(image.shape), cbor2.CBORTag(TAGS[image.dtype.str], data)])
    message = sent.message
    return cbor2.dumps(
        {
            "data": channels,
            "image_id": message.image_id,
            "later_key": [1, {"a": b"b"}],
            "series_id": message.series_id,
            "type": "image",
            "user_data": message.user_data,
        }
    )


def v1_by_others(sent: Sent) -> list[bytes]:
    """The message as another program writes it: other spaces and keys."""
    (image,) = sent.message.channels.values()
    assert isinstance(image, ImageData)
    order = ">" if image.dtype.byteorder == ">" else "<"
    encoding = {
        Algorithm.RAW: order,
        Algorithm.LZ4_BLOCK: f"lz4{order}",
        Algorithm.BSLZ4: f"bs{8 * image.element_bytes}-lz4{order}",
    }[image.algorithm]
    head = {"htype": "dimage-1.0", "series": sent.message.series_id, "frame": sent.message.image_id, "hash": "0" * 32}
    layout = {
        "htype": "dimage_d-1.0", "shape": [image.shape[1], image.shape[0]], "type": image.dtype.name,
        "encoding": encoding, "later_key": None,
    }  # fmt: skip
    return [json.dumps(head, indent=1).encode(), json.dumps(layout).encode(), bytes(image.data)]


def assert_image(message: Message, sent: Sent) -> None:
    """Ids and pixels as they were sent, and a type that is that of the pixels."""
    assert isinstance(message, ImageMessage), message
    assert (message.series_id, message.image_id, message.defect) == (
        sent.message.series_id,
        sent.message.image_id,
        None,
    )
    assert list(message.channels) == list(sent.arrays)
    for name, array in sent.arrays.items():
        image = message.channels[name]
        assert isinstance(image, ImageData), image
        assert (image.shape, image.dtype) == (array.shape, array.dtype)
        out = np.empty(array.shape, array.dtype.newbyteorder("="))
        decode(image, out)
        assert np.array_equal(out, array)


def kept(user_data: Any) -> bool:
    """Whether user data fits into what is read of it."""
    return len(json.dumps(user_data)) <= MAX_PLAIN_TEXT


# --- images -----------------------------------------------------------------------------


@quick
@given(images(V2))
def test_any_image_of_stream_v2_comes_back_and_others_read_it(sent: Sent) -> None:
    data = stream_v2.encode_image(sent.message)
    for message in (stream_v2.parse(data), stream_v2.ImageReader().parse(data)):
        assert_image(message, sent)
        assert isinstance(message, ImageMessage)
        assert (message.unique_id, message.user_data) == (sent.message.unique_id, sent.message.user_data)
        for name in ("start_time_s", "stop_time_s", "exposure_s"):
            assert getattr(message, name) == pytest.approx(getattr(sent.message, name), rel=1e-15, abs=1e-9)
    fields = loads(data)
    assert (fields["type"], fields["series_id"], fields["image_id"]) == (
        "image",
        sent.message.series_id,
        sent.message.image_id,
    )
    for name, array in sent.arrays.items():
        dims, tag, packing, width, blob = v2_array(fields["data"][name])
        assert (dims, tag) == (list(array.shape), TAGS[array.dtype.str])
        packing = {"lz4": "lz4-hdf5"}.get(packing, packing)
        assert np.array_equal(unpacked_by_others(blob, array, packing, width), array)


@quick
@given(images(V2))
def test_any_image_of_stream_v2_that_others_write_is_read(sent: Sent) -> None:
    data = v2_by_others(sent)
    assert_image(stream_v2.parse(data), sent)
    reader = stream_v2.ImageReader()
    for _ in range(3):
        assert_image(reader.parse(data), sent)


@quick
@given(images(V1))
def test_any_image_of_stream_v1_comes_back_and_others_read_it(sent: Sent) -> None:
    parts = [bytes(part) for part in stream_v1.encode_image(sent.message)]
    message = stream_v1.parse(parts)
    assert_image(message, sent)
    assert isinstance(message, ImageMessage)
    if kept(sent.message.user_data):
        assert message.user_data == sent.message.user_data
    for name in ("start_time_s", "stop_time_s", "exposure_s"):
        assert getattr(message, name) == pytest.approx(getattr(sent.message, name), rel=1e-15, abs=1e-9)
    head, layout = json.loads(parts[0]), json.loads(parts[1])
    (array,) = sent.arrays.values()
    assert (head["series"], head["frame"]) == (sent.message.series_id, sent.message.image_id)
    assert (layout["shape"], layout["type"], layout["size"]) == (
        list(array.shape[::-1]),
        array.dtype.name,
        len(parts[2]),
    )
    packing, order = layout["encoding"][:-1], layout["encoding"][-1]
    assert order == (">" if array.dtype.byteorder == ">" else "<")
    if packing.startswith("bs"):
        width = int(packing[2:].partition("-")[0]) // 8
        assert np.array_equal(unpacked_by_others(parts[2], array, "bslz4", width), array)
    else:
        name = {"": "raw", "lz4": "lz4-block"}[packing]
        assert np.array_equal(unpacked_by_others(parts[2], array, name, 0), array)


@quick
@given(images(V1))
def test_any_image_of_stream_v1_that_others_write_is_read(sent: Sent) -> None:
    assert_image(stream_v1.parse(v1_by_others(sent)), sent)


@settings(quick, max_examples=200)
@given(user_data=st.one_of(plain, st.sampled_from(["", "5", '"5"', "null", "{", "[1,", '{"a": 1}', "\x00", "é"])))
def test_what_users_append_comes_back_as_the_kind_of_value_it_was(user_data: Any) -> None:
    """Text that looks like JSON stays text."""
    image = ImageData(b"\x01", (1, 1), np.dtype("u1"), Algorithm.RAW, 1)
    message = ImageMessage(1, 2, {"threshold_1": image}, user_data=user_data)
    for found in (
        stream_v1.parse([bytes(part) for part in stream_v1.encode_image(message)]),
        stream_v2.parse(stream_v2.encode_image(message)),
        stream_v1.parse(stream_v1.encode_start(1, SeriesMetadata(user_data=user_data), header_detail="all")),
        stream_v2.parse(stream_v2.encode_start(1, SeriesMetadata(user_data=user_data))),
    ):
        assert isinstance(found, (ImageMessage, StartMessage))
        got = found.user_data if isinstance(found, ImageMessage) else found.metadata.user_data
        assert got == user_data
        assert type(got) is type(user_data)


# --- starts and ends --------------------------------------------------------------------

ARRAYS = ("masks", "flatfields", "countrate_table")
DERIVED = (*ARRAYS, "raw", "user_data", "arm_date")


def assert_header(got: SeriesMetadata, sent: SeriesMetadata, detail: str) -> None:
    for name in SeriesMetadata.__dataclass_fields__:
        if name not in DERIVED:
            assert getattr(got, name) == getattr(sent, name), name
    assert got.arm_date == sent.arm_date
    for name in ("masks", "flatfields"):
        found, expected = getattr(got, name), getattr(sent, name) if detail == "all" else {}
        assert all(np.array_equal(found[channel], array) for channel, array in expected.items())
    assert got.problems == ()


@quick
@given(sent=headers(V2), series_id=ids, unique_id=unique_ids, detail=st.sampled_from(["none", "basic", "all"]))
def test_any_start_of_stream_v2_comes_back_and_others_read_it(
    sent: SeriesMetadata, series_id: int, unique_id: str | None, detail: str
) -> None:
    data = stream_v2.encode_start(series_id, sent, header_detail=detail, unique_id=unique_id or "")
    got = stream_v2.parse(data)
    assert isinstance(got, StartMessage)
    assert (got.series_id, got.unique_id, got.complete) == (series_id, unique_id, True)
    assert_header(got.metadata, sent, detail)
    assert got.metadata.user_data == sent.user_data
    assert set(got.metadata.masks) == (set(sent.masks) if detail == "all" else set())
    if detail == "all":
        assert np.array_equal(got.metadata.countrate_table, sent.countrate_table)  # type: ignore[arg-type]
    fields = loads(data)
    assert sent.shape is not None
    assert (fields["image_size_y"], fields["image_size_x"]) == sent.shape
    assert fields["number_of_images"] == (sent.number_of_images or 0)
    assert abs(fields["detector_translation"][2]) == sent.camera_length_m
    for key, arrays in (("pixel_mask", sent.masks), ("flatfield", sent.flatfields)):
        for name, array in arrays.items() if detail == "all" else ():
            dims, tag, packing, _, blob = v2_array(fields[key][name])
            assert (dims, tag, packing) == (list(array.shape), TAGS[array.dtype.str], "raw")
            assert blob == array.tobytes()


@quick
@given(sent=headers(V1), series_id=ids, detail=st.sampled_from(["basic", "all"]))
def test_any_start_of_stream_v1_comes_back_and_others_read_it(
    sent: SeriesMetadata, series_id: int, detail: str
) -> None:
    parts = stream_v1.encode_start(series_id, sent, header_detail=detail)
    got = stream_v1.parse(parts)
    assert isinstance(got, StartMessage)
    assert (got.series_id, got.complete) == (series_id, True)
    assert_header(got.metadata, sent, detail)
    config = json.loads(parts[1])
    assert sent.shape is not None
    assert (config["y_pixels_in_detector"], config["x_pixels_in_detector"]) == sent.shape
    assert config["nimages"] * config["ntrigger"] == (sent.number_of_images or 0)
    if detail == "basic":
        assert len(parts) == 2
        return
    assert got.metadata.user_data == sent.user_data
    assert np.array_equal(got.metadata.countrate_table, sent.countrate_table)  # type: ignore[arg-type]
    for place, dtype, arrays in ((2, "<f4", sent.flatfields), (4, "<u4", sent.masks)):
        assert json.loads(parts[place])["shape"] == [sent.shape[1], sent.shape[0]]
        array = np.frombuffer(parts[place + 1], dtype).reshape(sent.shape)
        assert all(np.array_equal(array, each) for each in arrays.values())


@quick
@given(
    shape=shapes,
    dtype=st.sampled_from(["|u1", "<u2", ">u2", "<u4", ">u4", "<u8", "<i4"]),
    packing=st.sampled_from([None, "bslz4", "lz4"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_mask_of_any_integer_type_and_packing_that_others_write_is_read(
    shape: tuple[int, int], dtype: str, packing: str | None, seed: int
) -> None:
    mask = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    assume(packing is None or mask.nbytes >= 16)
    blob: Any = mask.tobytes()
    if packing is not None:
        algorithm = Algorithm.BSLZ4 if packing == "bslz4" else Algorithm.LZ4_HDF5
        blob = cbor2.CBORTag(56500, [packing, mask.dtype.itemsize, pack(mask, algorithm)])
    array = cbor2.CBORTag(40, [list(shape), cbor2.CBORTag(TAGS[dtype], blob)])
    data = cbor2.dumps(
        {
            "type": "start", "series_id": 3, "image_size_x": shape[1], "image_size_y": shape[0],
            "pixel_mask": {"threshold_1": array},
        }
    )  # fmt: skip
    got = stream_v2.parse(data)
    assert isinstance(got, StartMessage)
    assert got.metadata.problems == ()
    assert got.metadata.masks["threshold_1"].dtype == np.uint32
    assert np.array_equal(got.metadata.masks["threshold_1"], mask.astype(np.uint32))


@quick
@given(series_id=ids, unique_id=unique_ids)
def test_any_end_comes_back_and_others_read_it(series_id: int, unique_id: str | None) -> None:
    v1, v2 = stream_v1.encode_end(series_id), stream_v2.encode_end(series_id, unique_id or "")
    assert stream_v1.parse(v1) == EndMessage(series_id)
    assert stream_v2.parse(v2) == EndMessage(series_id, unique_id)
    assert json.loads(v1[0]) == {"htype": "dseries_end-1.0", "series": series_id}
    assert loads(v2) == {"type": "end", "series_id": series_id, "series_unique_id": unique_id or ""}


# --- over a socket ----------------------------------------------------------------------


@dataclass(frozen=True)
class Wire:
    push: Any
    receiver: StreamReceiver


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    context: zmq.Context[Any] = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.setsockopt(zmq.SNDHWM, 0)
    port = push.bind_to_random_port("tcp://127.0.0.1")
    receiver = StreamReceiver([f"tcp://127.0.0.1:{port}"])
    try:
        yield Wire(push, receiver)
    finally:
        receiver.close()
        context.destroy(linger=0)


sendings = st.one_of(
    st.tuples(st.just(V1), images(V1)),
    st.tuples(st.just(V2), images(V2)),
    st.tuples(st.just(V2), images(V2)).map(lambda pair: (pair[0], replace_id(pair[1]))),
    st.tuples(st.sampled_from([V1, V2]), st.builds(EndMessage, ids)),
)


def replace_id(sent: Sent) -> Sent:
    """With an id of two bytes, as most of a series have: the quick way through a stream's images."""
    return replace(sent, message=replace(sent.message, image_id=1000 + abs(sent.message.image_id) % 1000))


@settings(quick, max_examples=40)
@given(messages=st.lists(sendings, min_size=1, max_size=6), twice=st.booleans())
def test_messages_of_both_protocols_come_over_a_socket_as_they_were_sent(
    wire: Wire, messages: list[tuple[str, Any]], twice: bool
) -> None:
    messages = [each for each in messages for _ in range(1 + twice)]
    for protocol, sent in messages:
        if isinstance(sent, EndMessage):
            parts = stream_v1.encode_end(sent.series_id) if protocol == V1 else [stream_v2.encode_end(sent.series_id)]
        elif protocol == V1:
            parts = [bytes(part) for part in stream_v1.encode_image(sent.message)]
        else:
            parts = [stream_v2.encode_image(sent.message)]
        wire.push.send_multipart(parts)
    for _, sent in messages:
        received = wire.receiver.receive(10.0)
        assert received is not None
        if isinstance(sent, EndMessage):
            assert received.message == sent
        else:
            assert not isinstance(received.message, Exception), received.message
            assert_image(received.message, sent)
            assert received.message.user_data == sent.message.user_data or not kept(sent.message.user_data)  # type: ignore[union-attr]
