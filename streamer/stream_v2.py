"""Stream v2: one CBOR message a ZeroMQ message, in and out.

Source: DECTRIS stream V2 description (documentation repository, ``stream_v2``): tag 40
multi-dimensional arrays [rows, columns], tags 64 to 87 typed arrays (RFC 8746), tag 56500
compressed byte strings [algorithm, element size, bytes].

Parsing walks the message in place. Pixel data is a view into the received buffer: a general
CBOR decoder copies every byte string, which for a 1 MB image costs more than all the rest.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import cbor2
import numpy as np

from streamer import bounds
from streamer.bounds import is_count, is_id
from streamer.decoding import check_size, decode
from streamer.messages import (
    HC_EV_ANGSTROM,
    Algorithm,
    Buffer,
    Defect,
    EndMessage,
    ImageData,
    ImageMessage,
    InvalidMessage,
    Message,
    SeriesMetadata,
    StartMessage,
    UndecodableImage,
)

MAGIC = b"\xd9\xd9\xf7"
"""Tag 55799, "this is CBOR": how every message of a detector begins."""

MAX_DEPTH = 16
MAX_ITEMS = 20_000
"""Items in one message. A real start has a few hundred; pixel arrays count as one."""

_TYPED_ARRAY_DTYPES = {
    64: "u1", 65: ">u2", 66: ">u4", 67: ">u8", 68: "u1", 69: "<u2", 70: "<u4", 71: "<u8",
    72: "i1", 73: ">i2", 74: ">i4", 75: ">i8", 77: "<i2", 78: "<i4", 79: "<i8",
    80: ">f2", 81: ">f4", 82: ">f8", 84: "<f2", 85: "<f4", 86: "<f8",
}  # fmt: skip
_DTYPE_TAGS = {"|u1": 64, ">u2": 65, ">u4": 66, "<u2": 69, "<u4": 70, "<f4": 85}
_MASK_DTYPES = ("u1", "<u2", "<u4", "<u8", ">u2", ">u4", ">u8", "i1", "<i2", "<i4", ">i2", ">i4")
_FLATFIELD_DTYPES = ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8")
_MAX_TABLE = 1 << 20

_ALGORITHMS = {
    "bslz4": Algorithm.BSLZ4,
    "lz4": Algorithm.LZ4_HDF5,
    "bszstd": Algorithm.BSZSTD,
    "trpx": Algorithm.TRPX,
}
_ALGORITHM_NAMES = {algorithm: name for name, algorithm in _ALGORITHMS.items()}


@dataclass(frozen=True, slots=True)
class Compressed:
    """Tag 56500: bytes still packed."""

    algorithm: str
    element_bytes: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class TypedArray:
    """Tags 64 to 87: a flat array, its bytes plain or still packed."""

    dtype: str
    data: Buffer | Compressed


@dataclass(frozen=True, slots=True)
class MultiDimArray:
    """Tag 40: a typed array with its dimensions, rows first."""

    dims: tuple[int, ...]
    array: TypedArray


class _Malformed(ValueError):
    pass


class _Truncated(_Malformed):
    pass


class _Walker:
    """Reads CBOR items from a buffer without copying byte strings."""

    __slots__ = ("buffer", "end", "items", "position")

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self.end = len(buffer)
        self.position = 0
        self.items = 0

    def head(self) -> tuple[int, int, int]:
        """Major type, additional information and argument of the next item."""
        position = self.position
        if position >= self.end:
            raise _Truncated("the message ends inside an item")
        initial = self.buffer[position]
        major, info = initial >> 5, initial & 31
        position += 1
        if info < 24:
            self.position = position
            return major, info, info
        if info > 27:
            raise _Malformed(f"additional information {info} at byte {position - 1} (indefinite lengths are not used)")
        width = 1 << (info - 24)
        if position + width > self.end:
            raise _Truncated("the message ends inside an item")
        argument = int.from_bytes(self.buffer[position : position + width], "big")
        self.position = position + width
        return major, info, argument

    def take(self, count: int) -> memoryview:
        if count > self.end - self.position:
            raise _Truncated(f"a string of {count} bytes at byte {self.position} passes the end of the message")
        view = self.buffer[self.position : self.position + count]
        self.position += count
        return view

    def item(self, depth: int) -> Any:
        self.items += 1
        if self.items > MAX_ITEMS:
            raise _Malformed(f"more than {MAX_ITEMS} items")
        if depth > MAX_DEPTH:
            raise _Malformed(f"nested deeper than {MAX_DEPTH}")
        major, info, argument = self.head()
        if major == 0:
            return argument
        if major == 1:
            return -1 - argument
        if major == 2:
            return self.take(argument)
        if major == 3:
            return self._text(argument)
        if major == 4:
            self._check_count(argument)
            return [self.item(depth + 1) for _ in range(argument)]
        if major == 5:
            return dict(self.pairs(argument, depth))
        if major == 6:
            return self._tagged(argument, depth)
        return self._simple(info, argument)

    def pairs(self, count: int, depth: int) -> list[tuple[Any, Any]]:
        self._check_count(2 * count)
        found: dict[Any, Any] = {}
        for _ in range(count):
            key, value = self.pair(depth)
            if key in found:
                raise _Malformed(f"key {str(key)[:40]!r} twice in one map")
            found[key] = value
        return list(found.items())

    def pair(self, depth: int) -> tuple[Any, Any]:
        key = self.item(depth + 1)
        if not isinstance(key, (str, int, float, bool, type(None))):
            raise _Malformed("a map key that is neither text nor number")
        return key, self.item(depth + 1)

    def _check_count(self, count: int) -> None:
        if count > self.end - self.position:
            raise _Truncated(f"{count} items announced in {self.end - self.position} bytes")

    def _text(self, count: int) -> str:
        try:
            return str(self.take(count), "utf-8")
        except UnicodeDecodeError as error:
            raise _Malformed(f"text that is not UTF-8: {error.reason}") from None

    def _simple(self, info: int, argument: int) -> Any:
        if info == 25:
            return struct.unpack(">e", argument.to_bytes(2, "big"))[0]
        if info == 26:
            return struct.unpack(">f", argument.to_bytes(4, "big"))[0]
        if info == 27:
            return struct.unpack(">d", argument.to_bytes(8, "big"))[0]
        return {20: False, 21: True, 22: None, 23: None}.get(argument)

    def _tagged(self, tag: int, depth: int) -> Any:
        value = self.item(depth + 1)
        if tag in _TYPED_ARRAY_DTYPES:
            if not isinstance(value, (memoryview, Compressed)):
                raise _Malformed(f"tag {tag} does not hold a byte string")
            return TypedArray(_TYPED_ARRAY_DTYPES[tag], value)
        if tag == 40:
            return _multi_dim(value)
        if tag == 56500:
            return _compressed(value)
        return value


def _multi_dim(value: Any) -> MultiDimArray:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], list)):
        raise _Malformed("tag 40 does not hold [dimensions, array]")
    dims, array = value
    if not all(is_count(dim) for dim in dims) or not isinstance(array, TypedArray):
        raise _Malformed("tag 40 does not hold [dimensions, typed array]")
    return MultiDimArray(tuple(dims), array)


def _compressed(value: Any) -> Compressed:
    if not (isinstance(value, list) and len(value) == 3):
        raise _Malformed("tag 56500 does not hold [algorithm, element size, bytes]")
    algorithm, element_bytes, data = value
    if not (isinstance(algorithm, str) and is_count(element_bytes) and isinstance(data, memoryview)):
        raise _Malformed("tag 56500 does not hold [algorithm, element size, bytes]")
    return Compressed(algorithm, element_bytes, data)


def looks_like_v2(part: memoryview) -> bool:
    """Whether a message's first bytes are those of a v2 message (magic, or a bare map)."""
    return part[:3] == MAGIC or (len(part) > 0 and part[0] >> 5 == 5)


def parse(message: Buffer) -> Message:
    """Turn one v2 message into a typed message that holds views of its bytes.

    Raises ``InvalidMessage`` when neither an image id nor a complete start or end can be
    read. An image whose ids can be read always comes back, with a defect where it is broken.
    """
    view = memoryview(message).cast("B")
    walker = _Walker(view[3:] if view[:3] == MAGIC else view)
    fields: dict[Any, Any] = {}
    fault: Defect | None = None
    try:
        major, _, count = walker.head()
        if major != 5:
            raise _Malformed("the message is not a map")
        for _ in range(count):
            key, value = walker.pair(1)
            if key in fields:
                raise _Malformed(f"key {str(key)[:40]!r} twice in one map")
            fields[key] = value
        if walker.position != walker.end:
            raise _Malformed(f"{walker.end - walker.position} bytes after the end of the message")
    except _Malformed as error:
        fault = Defect("missing_data" if isinstance(error, _Truncated) else "bad_header", str(error))
    kind, series_id, image_id = fields.get("type"), fields.get("series_id"), fields.get("image_id")
    unique_id = bounds.text(fields.get("series_unique_id"), bounds.MAX_NAME)
    if kind == "image" and is_count(series_id) and is_id(image_id):
        return _image(series_id, image_id, unique_id, fields, fault)
    if fault is not None:
        raise InvalidMessage("malformed", f"stream v2 message: {fault.text}")
    if kind not in ("start", "image", "end"):
        raise InvalidMessage("unknown_type", f"stream v2 message of type {str(kind)[:40]!r}")
    if not is_count(series_id):
        reason = "missing_field" if series_id is None else "bad_value"
        raise InvalidMessage(reason, f"stream v2 {kind} without a series_id")
    if kind == "image":
        reason = "missing_field" if image_id is None else "bad_value"
        raise InvalidMessage(reason, "stream v2 image without an image_id")
    if kind == "end":
        return EndMessage(series_id, unique_id)
    return StartMessage(series_id, _metadata(fields), unique_id)


def _image(
    series_id: int, image_id: int, unique_id: str | None, fields: Mapping[str, Any], fault: Defect | None
) -> ImageMessage:
    found = fields.get("data")
    data: dict[Any, Any] = found if isinstance(found, dict) else {}
    if fault is None and not data:
        fault = Defect("missing_data", "no image data")
    elif len(data) > bounds.MAX_CHANNELS:
        fault = Defect("bad_header", f"an image in {len(data)} channels")
    if fault is not None:
        return ImageMessage(series_id, image_id, unique_id=unique_id, defect=fault)
    start, stop, exposure = (_rational(fields.get(key)) for key in ("start_time", "stop_time", "real_time"))
    return ImageMessage(
        series_id,
        image_id,
        {name: _channel(value) for name, value in data.items() if bounds.channel_name(name)},
        start_time_s=start,
        stop_time_s=stop,
        exposure_s=exposure,
        unique_id=unique_id,
        user_data=bounds.plain(fields.get("user_data")),
    )


def _channel(value: Any) -> ImageData | Defect:
    if not isinstance(value, MultiDimArray) or len(value.dims) != 2 or 0 in value.dims:
        return Defect("bad_header", "the image is not a two-dimensional array")
    shape, packed = bounds.image_shape(*value.dims), value.array.data
    if shape is None:
        return Defect("size_mismatch", f"an image of {value.dims[1]} x {value.dims[0]} pixels is too large")
    if value.array.dtype not in ("u1", "<u2", "<u4", ">u2", ">u4"):
        return Defect("unknown_dtype", f"pixels of type {value.array.dtype}; 8, 16 or 32 bit unsigned are known")
    dtype = np.dtype(value.array.dtype)
    if not isinstance(packed, Compressed):
        return ImageData(packed, shape, dtype, Algorithm.RAW, dtype.itemsize)
    algorithm = _ALGORITHMS.get(packed.algorithm)
    if algorithm is None:
        return Defect("unknown_algorithm", f"compression {packed.algorithm[:40]!r} is not known")
    return ImageData(packed.data, shape, dtype, algorithm, packed.element_bytes or dtype.itemsize)


# --- images like the one before ---------------------------------------------------------


_TIMES = ("start_time", "stop_time", "real_time")
_UNPACK_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
_FRUITLESS = 64
"""Images in a row that were not like the one before: after these we stop looking. The first 24 of a series never are,
as their ids fit into the byte that says what they are."""


_LONGEST_HEAD = 1 << 14
"""Bytes before the pixels; a detector sends some hundreds."""


class _Heads(_Walker):
    """A walker that notes where the head of each item begins and ends, and the item's major type."""

    __slots__ = ("heads",)

    def __init__(self, buffer: memoryview) -> None:
        super().__init__(buffer)
        self.heads: list[tuple[int, int, int]] = []

    def head(self) -> tuple[int, int, int]:
        began = self.position
        major, info, argument = super().head()
        self.heads.append((major, began, self.position))
        return major, info, argument


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the images of a series look but for image id, times and pixels: numbers at fixed places, the rest constant.

    ``unpack`` reads constant bytes and numbers in turn, up to the pixels; ``names`` are those of the numbers, the last
    one the length of the pixels. ``tail`` comes after those. ``ticks`` is the clock rate of each time; ``image`` and
    ``message`` are the first, without pixels.
    """

    unpack: struct.Struct
    constants: tuple[bytes, ...]
    names: tuple[str, ...]
    tail: bytes
    ticks: Mapping[str, Any]
    channel: str
    image: ImageData
    message: ImageMessage


class ImageReader:
    """``parse``, made quick for a stream: a detector's images differ in a few numbers, which are read in one go.

    Whatever is not exactly like the image before goes the long way, so that the answer is always that of ``parse``.
    """

    def __init__(self) -> None:
        self._layout: _Layout | None = None
        self._fruitless = 0

    def parse(self, message: Buffer) -> Message:
        """As ``parse``. Raises ``InvalidMessage``."""
        view = memoryview(message).cast("B")
        layout = self._layout
        if layout is not None and (found := _like(layout, view)) is not None:
            self._fruitless = 0
            return found
        parsed = parse(view)
        if isinstance(parsed, StartMessage):
            self._fruitless = 0
        elif isinstance(parsed, ImageMessage) and self._fruitless < _FRUITLESS:
            self._fruitless += 1
            self._layout = _layout_of(view, parsed)
        return parsed


def _like(layout: _Layout, view: memoryview) -> ImageMessage | None:
    """The image, if it differs from that of the layout in nothing but its numbers and pixels."""
    begin = layout.unpack.size
    if len(view) < begin:
        return None
    values = layout.unpack.unpack_from(view)
    if values[::2] != layout.constants:
        return None
    numbers = dict(zip(layout.names, values[1::2], strict=True))
    end = begin + numbers["data"]
    if end + len(layout.tail) != len(view) or view[end:] != layout.tail or not is_id(numbers["image_id"]):
        return None
    first, image = layout.message, layout.image
    start, stop, exposure = (_rational([numbers[key], layout.ticks[key]]) for key in _TIMES)
    return ImageMessage(
        first.series_id,
        numbers["image_id"],
        {layout.channel: ImageData(view[begin:end], image.shape, image.dtype, image.algorithm, image.element_bytes)},
        start,
        stop,
        exposure,
        first.unique_id,
        # A copy, as each message owns what it says.
        None if first.user_data is None else bounds.plain(first.user_data),
    )


def _plain(spans: dict[str, tuple[int, int, int]]) -> bool:
    """Whether the pixels are a byte string and all else whole numbers (CBOR's major types 2 and 0)."""
    return all(major == (2 if name == "data" else 0) for name, (major, _, _) in spans.items())


def _layout_of(view: memoryview, message: ImageMessage) -> _Layout | None:
    """The layout of a good image in one channel; ``None`` for any that has none."""
    if message.defect is not None or len(message.channels) != 1:
        return None
    ((channel, image),) = message.channels.items()
    if not isinstance(image, ImageData):
        return None
    offset = len(MAGIC) if view[:3] == MAGIC else 0
    walker = _Heads(view[offset:])
    spans: dict[str, tuple[int, int, int]] = {}
    ticks: dict[str, Any] = {}
    _, _, count = walker.head()
    for _ in range(count):
        key = walker.item(2)
        mark = len(walker.heads)
        value = walker.item(2)
        heads = walker.heads[mark:]
        if key == "image_id":
            spans[key] = heads[0]
        elif key in _TIMES and isinstance(value, list) and len(value) == 2:
            spans[key], ticks[key] = heads[1], value[1]
        elif key == "data":
            strings = [head for head in heads if head[0] == 2]
            if len(strings) == 1:
                spans[key] = strings[0]
    if spans.keys() != {"image_id", "data", *_TIMES} or not _plain(spans):
        return None
    places = sorted((began, ended, name) for name, (_, began, ended) in spans.items())
    if places[-1][2] != "data" or places[-1][1] > _LONGEST_HEAD:
        return None
    if any(ended - began == 1 for began, ended, _ in places):
        return None  # a number inside the byte of its type: the next one may not fit there
    form, at = ">", -offset
    for began, ended, _ in places:
        form += f"{began + 1 - at}s{_UNPACK_CODES[ended - began - 1]}"
        at = ended
    unpack = struct.Struct(form + "0s")
    tail = bytes(view[unpack.size + len(image.data) :])
    names = tuple(name for _, _, name in places)
    constants = unpack.unpack_from(view)[::2]
    # Without the pixels, which would stay in memory.
    message, image = replace(message, channels={}), replace(image, data=b"")
    return _Layout(unpack, constants, names, tail, ticks, channel, image, message)


def _metadata(fields: Mapping[str, Any]) -> SeriesMetadata:
    def number(key: str, allowed: bounds.Range) -> float | None:
        return bounds.number(fields.get(key), allowed)

    def text(key: str) -> str | None:
        return bounds.text(fields.get(key))

    energy = number("incident_energy", bounds.ENERGY_EV)
    if energy is None and (wavelength := number("incident_wavelength", bounds.WAVELENGTH_A)) is not None:
        energy = HC_EV_ANGSTROM / wavelength
    translation = fields.get("detector_translation")
    distance = None
    if isinstance(translation, list) and len(translation) == 3 and isinstance(translation[2], (int, float)):
        # The sign follows the detector's own axis; the distance is its size.
        distance = bounds.number(abs(translation[2]), bounds.CAMERA_LENGTH_M)
    dtype_name = fields.get("image_dtype")
    center_x, center_y = bounds.beam_center(fields.get("beam_center_x"), fields.get("beam_center_y"))
    shape = bounds.image_shape(fields.get("image_size_y"), fields.get("image_size_x"))
    thresholds = {
        name: bounds.number(value, bounds.ENERGY_EV) for name, value in _by_channel(fields.get("threshold_energy"))
    }
    problems: list[str] = []
    return SeriesMetadata(
        number_of_images=bounds.positive_count(fields.get("number_of_images")),
        shape=shape,
        dtype=np.dtype(dtype_name) if dtype_name in ("uint8", "uint16", "uint32") else None,
        channels=bounds.channel_names(fields.get("channels")),
        beam_center_x_px=center_x,
        beam_center_y_px=center_y,
        camera_length_m=distance,
        photon_energy_eV=energy,
        threshold_energy_eV={name: value for name, value in thresholds.items() if value is not None},
        pixel_size_x_m=number("pixel_size_x", bounds.PIXEL_SIZE_M),
        pixel_size_y_m=number("pixel_size_y", bounds.PIXEL_SIZE_M),
        count_time_s=number("count_time", bounds.DURATION_S),
        frame_time_s=number("frame_time", bounds.DURATION_S),
        saturation_value=bounds.positive_count(fields.get("saturation_value"), bounds.MAX_SATURATION),
        sensor_material=text("sensor_material"),
        sensor_thickness_m=number("sensor_thickness", bounds.THICKNESS_M),
        detector_description=text("detector_description"),
        detector_serial=text("detector_serial_number"),
        arm_date=text("arm_date"),
        masks=_arrays("pixel_mask", fields, shape, _MASK_DTYPES, np.uint32, problems),
        flatfields=_arrays("flatfield", fields, shape, _FLATFIELD_DTYPES, np.float32, problems),
        countrate_table=_lookup_table(fields.get("countrate_correction_lookup_table")),
        user_data=bounds.plain(fields.get("user_data")),
        raw=bounds.plain_items(
            item for item in fields.items() if item[0] not in ("pixel_mask", "flatfield", "user_data")
        ),
        problems=tuple(problems[:4]),
    )


def _by_channel(value: Any) -> list[tuple[str, Any]]:
    members = list(value.items())[: bounds.MAX_CHANNELS] if isinstance(value, dict) else []
    return [(name, member) for name, member in members if bounds.channel_name(name)]


def _arrays(
    key: str,
    fields: Mapping[str, Any],
    shape: tuple[int, int] | None,
    allowed: tuple[str, ...],
    dtype: type[np.generic],
    problems: list[str],
) -> dict[str, Any]:
    """The arrays of a map by channel, copied; what does not fit the images is left out and named."""
    found = {}
    for name, value in _by_channel(fields.get(key)):
        if not isinstance(value, MultiDimArray) or value.array.dtype not in allowed:
            problems.append(f"{key} of {name} left out: not an array of a known type")
            continue
        dims = bounds.image_shape(*value.dims) if len(value.dims) == 2 else None
        if dims is None or shape not in (None, dims):
            problems.append(f"{key} of {name} left out: {str(value.dims)[:40]} in a series of {shape}")
            continue
        flat = _unpacked(value.array, dims[0] * dims[1])
        if flat is None:
            problems.append(f"{key} of {name} left out: its bytes do not make {dims[0]} x {dims[1]} values")
            continue
        with np.errstate(all="ignore"):
            found[name] = flat.reshape(dims).astype(dtype)
    return found


def _unpacked(array: TypedArray, values: int) -> np.ndarray[Any, Any] | None:
    """A flat array of so many values; ``None`` when its bytes do not make that."""
    dtype = np.dtype(array.dtype)
    if not isinstance(array.data, Compressed):
        return np.frombuffer(array.data, dtype) if values and len(array.data) == values * dtype.itemsize else None
    algorithm = _ALGORITHMS.get(array.data.algorithm)
    if algorithm is None:
        return None
    # The bytes of any type, as unsigned integers of its width and byte order.
    unsigned = np.dtype(f"{dtype.str[0]}u{dtype.itemsize}")
    element = array.data.element_bytes or dtype.itemsize
    image = ImageData(array.data.data, (1, values), unsigned, algorithm, element)
    try:
        check_size(image)
        out = np.empty(values, unsigned.newbyteorder("="))
        decode(image, out)
    except UndecodableImage:
        return None
    return out.view(dtype.newbyteorder("="))


def _lookup_table(value: Any) -> np.ndarray[Any, Any] | None:
    if not isinstance(value, TypedArray) or isinstance(value.data, Compressed):
        return None
    itemsize = np.dtype(value.dtype).itemsize
    if len(value.data) % itemsize or not 0 < len(value.data) <= _MAX_TABLE * itemsize:
        return None
    return np.frombuffer(value.data, value.dtype).reshape(-1, 1).copy()


def _rational(value: Any) -> float | None:
    if isinstance(value, list) and len(value) == 2 and all(is_count(v) for v in value) and value[1]:
        return bounds.number(value[0] / value[1], bounds.CLOCK_S)
    return None


# --- encoding -------------------------------------------------------------------------


def _dump(fields: Mapping[str, Any]) -> bytes:
    return MAGIC + cbor2.dumps(dict(fields), string_referencing=False, value_sharing=False)


def _array_tag(array: np.ndarray[Any, Any]) -> cbor2.CBORTag:
    tag = cbor2.CBORTag(_DTYPE_TAGS[array.dtype.str], np.ascontiguousarray(array).tobytes())
    return cbor2.CBORTag(40, [list(array.shape), tag])


def encode_start(
    series_id: int, metadata: SeriesMetadata, *, header_detail: str = "basic", unique_id: str = ""
) -> bytes:
    """A start message in the key order of a real detector.

    ``header_detail`` ``all`` adds flatfield, pixel mask and count-rate table; ``none`` and
    ``basic`` are the same in stream v2.
    """
    meta = metadata
    rows, columns = meta.shape or (0, 0)
    channels = list(meta.channels or ("threshold_1",))
    energy = meta.photon_energy_eV or 0.0
    fields: dict[str, Any] = {
        "type": "start",
        "series_id": series_id,
        "series_unique_id": unique_id,
        "arm_date": cbor2.CBORTag(0, meta.arm_date or datetime.now().astimezone().isoformat(timespec="milliseconds")),
        "beam_center_x": float(meta.beam_center_x_px or 0.0),
        "beam_center_y": float(meta.beam_center_y_px or 0.0),
        "channels": channels,
        "count_time": float(meta.count_time_s or 0.0),
        "countrate_correction_enabled": False,
    }
    every = header_detail == "all"
    if every and meta.countrate_table is not None:
        table = np.ascontiguousarray(meta.countrate_table[:, -1], "<u4")
        fields["countrate_correction_lookup_table"] = cbor2.CBORTag(70, table.tobytes())
    fields["detector_description"] = meta.detector_description or ""
    fields["detector_serial_number"] = meta.detector_serial or ""
    fields["detector_translation"] = [
        float((meta.beam_center_x_px or 0.0) * (meta.pixel_size_x_m or 0.0)),
        float((meta.beam_center_y_px or 0.0) * (meta.pixel_size_y_m or 0.0)),
        -float(meta.camera_length_m or 0.0),
    ]
    if every and meta.flatfields:
        fields["flatfield"] = {c: _array_tag(a.astype("<f4")) for c, a in meta.flatfields.items()}
    fields |= {
        "flatfield_enabled": False,
        "frame_time": float(meta.frame_time_s or 0.0),
        "goniometer": {
            axis: {"increment": 0.0, "start": 0.0} for axis in ("chi", "kappa", "omega", "phi", "two_theta")
        },
        "image_dtype": (meta.dtype or np.dtype("uint16")).name,
        "image_size_x": columns,
        "image_size_y": rows,
        "incident_energy": float(energy),
        "incident_wavelength": HC_EV_ANGSTROM / energy if energy else 0.0,
        "number_of_images": meta.number_of_images or 0,
    }
    if every and meta.masks:
        fields["pixel_mask"] = {c: _array_tag(a.astype("<u4")) for c, a in meta.masks.items()}
    fields |= {
        "pixel_mask_enabled": True,
        "pixel_size_x": float(meta.pixel_size_x_m or 0.0),
        "pixel_size_y": float(meta.pixel_size_y_m or 0.0),
        "saturation_value": meta.saturation_value or 0,
        "sensor_material": meta.sensor_material or "Si",
        "sensor_thickness": float(meta.sensor_thickness_m or 0.0),
        "threshold_energy": {c: float(meta.threshold_energy_eV.get(c, 0.0)) for c in channels},
        "user_data": meta.user_data,
        "virtual_pixel_interpolation_enabled": False,
    }
    return _dump(fields)


def encode_image(
    message: ImageMessage, *, series_date: str = "1970-01-01T00:00:00.000+00:00", clock_hz: int = 1_000_000_000
) -> bytes:
    """An image message; packed pixels go out byte for byte as they are.

    Times, in seconds after ``series_date`` (ISO 8601), are written in ticks of ``clock_hz``.
    Raises ``ValueError`` for an image whose packing stream v2 has no name for.
    """

    def ticks(time_s: float | None) -> list[int]:
        return [max(0, round((time_s or 0.0) * clock_hz)), clock_hz]

    fields: dict[str, Any] = {
        "type": "image",
        "series_id": message.series_id,
        "series_unique_id": message.unique_id or "",
        "image_id": message.image_id,
        "real_time": ticks(message.exposure_s),
        "series_date": cbor2.CBORTag(0, series_date),
        "start_time": ticks(message.start_time_s),
        "stop_time": ticks(message.stop_time_s),
    }
    if message.user_data is not None:
        fields["user_data"] = message.user_data
    fields["data"] = {name: _image_tag(image) for name, image in message.channels.items()}
    return _dump(fields)


def _image_tag(image: ImageData | Defect) -> cbor2.CBORTag:
    if isinstance(image, Defect):
        raise ValueError(f"an image with a defect cannot be sent: {image.text}")
    data: Any = bytes(image.data)
    if image.algorithm != Algorithm.RAW:
        if image.algorithm not in _ALGORITHM_NAMES:
            raise ValueError(f"stream v2 has no name for {image.algorithm}")
        element = image.element_bytes if image.algorithm == Algorithm.BSLZ4 else 0
        data = cbor2.CBORTag(56500, [_ALGORITHM_NAMES[image.algorithm], element, data])
    tag = _DTYPE_TAGS.get(image.dtype.str)
    if tag is None:
        raise ValueError(f"stream v2 has no name for pixels of {image.dtype}")
    return cbor2.CBORTag(40, [list(image.shape), cbor2.CBORTag(tag, data)])


def encode_end(series_id: int, unique_id: str = "") -> bytes:
    """An end message."""
    return _dump({"type": "end", "series_id": series_id, "series_unique_id": unique_id})
