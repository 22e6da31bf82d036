"""What front and workers say to each other: messages of msgpack and arrays, and nothing that could run.

A message is a kind, a header and parts of bytes. Everything from the other side is checked: it may be of another
version, or no worker at all. ``docs/workers.md`` has the protocol.
"""

import math
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import zmq

from analyzer.results import FrameResult
from streamer.frames import Frame
from streamer.messages import Algorithm, Defect, ImageData, SeriesMetadata
from streamer.series import Series

PROTOCOL = 2
BEAT_S = 1.0
"""How often either side says that it is alive."""

MOST_HEADER_BYTES = 32 << 20
"""A batch of 256 frames has a few MB of records."""

MOST_SHORT_BYTES = 64 << 10
"""Of headers but those of records, of series and of how to judge: a stranger may send them."""

MOST_PARTS = 2048
_MOST_SIDE = 1 << 15
_MOST_AROUND = 1 << 16
"""Bytes of a message besides an image that may be sent on with it."""
_MOST_TEXT = 200


class Kind(StrEnum):
    """What a message is; the first letters are a worker's."""

    HELLO = "H"
    """a worker is there, or asks to be told everything anew"""
    READY = "R"
    """it judges as it was told"""
    UNFIT = "U"
    """it cannot"""
    OUTCOME = "O"
    """of one batch"""
    COVERAGE = "C"
    """what its frames of a series covered"""
    BEAT = "B"
    """either side is alive"""
    REFUSED = "N"
    """a batch could not be taken, and why"""
    LEAVING = "L"
    """it wants no more, and hands back what it holds"""
    BYE = "X"
    """it takes no more, and holds none"""
    SETUP = "S"
    """how to judge"""
    SERIES = "M"
    """a series' header"""
    WORK = "W"
    """a batch of frames"""
    FORGET = "G"
    """a series is over"""
    END = "E"
    """take no more, hand back what is done, and go"""


_LONG = frozenset((Kind.OUTCOME, Kind.COVERAGE, Kind.SETUP, Kind.SERIES, Kind.WORK))


class BadMessage(ValueError):
    """Bytes that are no message of this protocol."""


class Hello(msgspec.Struct, frozen=True):
    """``batch``: frames that it takes at once; ``credits``: frames it can hold; ``shared``: it is on this machine and
    asks for shared memory."""

    protocol: int
    name: str
    host: str
    pid: int
    threads: int
    batch: int
    credits: int
    shared: bool = False


class Told(msgspec.Struct, frozen=True):
    """About setup or batch ``number``: ready for it, or why not."""

    number: int
    text: str = ""


class ArrayFacts(msgspec.Struct, frozen=True, array_like=True):
    """How to read a part: ``dtype`` as numpy's description, ``shape``."""

    dtype: Any
    shape: tuple[int, ...]


class FrameFacts(msgspec.Struct, frozen=True, array_like=True):
    """A frame but for its bytes, which are part ``part`` of its message, or lie at ``place`` of the shared memory.

    With both they lie at ``place``, offset and length, of that part. Without bytes ``defect`` says why.
    """

    series: int
    image_id: int
    channel: str
    start_time_s: float | None
    exposure_s: float | None
    received_at: float
    tags: dict[str, Any] | None
    shape: tuple[int, int] = (0, 0)
    dtype: str = ""
    algorithm: str = ""
    element_bytes: int = 0
    part: int = -1
    place: tuple[int, int] | None = None
    defect: tuple[str, str] | None = None


class Work(msgspec.Struct, frozen=True):
    """A batch, to be judged as setup ``setup`` says."""

    batch: int
    setup: int
    frames: list[FrameFacts]


class Item(msgspec.Struct, frozen=True, array_like=True):
    """Of a good frame: bins of its profile, peaks, bins of its diffuse profile, and ``pairs``; see ``BatchOutcome``."""

    profile: int
    peaks: int
    diffuse: int
    pairs: float


class Done(msgspec.Struct, frozen=True):
    """Outcome of a batch: results in its order, items of the good ones, seconds by stage and busy altogether."""

    batch: int
    results: list[FrameResult]
    items: list[Item]
    stage_seconds: dict[str, float]
    busy_s: float
    comparisons: list[tuple[int, int, int] | None] = []
    fault: str | None = None


class HeaderFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What of a series' header an analysis needs, named and meant as in ``SeriesMetadata``."""

    number_of_images: int | None = None
    shape: tuple[int, int] | None = None
    channels: tuple[str, ...] = ()
    beam_center_x_px: float | None = None
    beam_center_y_px: float | None = None
    camera_length_m: float | None = None
    photon_energy_eV: float | None = None
    pixel_size_x_m: float | None = None
    pixel_size_y_m: float | None = None
    count_time_s: float | None = None
    frame_time_s: float | None = None
    saturation_value: int | None = None
    detector_description: str | None = None
    sensor_material: str | None = None
    sensor_thickness_m: float | None = None


class SeriesFacts(msgspec.Struct, frozen=True):
    """A series and what of its header an analysis needs. ``number`` names it in frames; masks are parts, as bits."""

    number: int
    ordinal: int
    series_id: int
    unique_id: str | None
    header: HeaderFacts
    raw: dict[str, Any]
    masks: dict[str, tuple[int, int]]


T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder(enc_hook=str)
_PIXELS = re.compile(r"[|<>][iu][1248]")


def message(kind: Kind, header: Any = None, parts: Sequence[Any] = ()) -> list[Any]:
    """A message's parts: kind, header, and bytes that are sent as they lie."""
    return [kind.value.encode(), _encoder.encode(header), *parts]


def kind_of(parts: Sequence[Any]) -> Kind:
    """What a message is. Raises ``BadMessage``."""
    if not 2 <= len(parts) <= MOST_PARTS or len(parts[0]) != 1 or len(parts[1]) > MOST_HEADER_BYTES:
        raise BadMessage("not a message of workers")
    try:
        kind = Kind(bytes(parts[0]).decode())
    except ValueError:
        raise BadMessage(f"kind {bytes(parts[0])!r} is not known") from None
    if kind not in _LONG and len(parts[1]) > MOST_SHORT_BYTES:
        raise BadMessage(f"{kind.name} of {len(parts[1])} bytes")
    return kind


def header_of(parts: Sequence[Any], kind: type[T]) -> T:
    """A message's header. Raises ``BadMessage``."""
    try:
        return msgspec.msgpack.decode(parts[1], type=kind, ext_hook=_no_extension)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # It may hold a name from the message: of any length, with line ends.
        raise BadMessage(f"header: {' '.join(str(error).split())[:_MOST_TEXT]}") from None


def _no_extension(code: int, data: memoryview) -> None:
    """What no header of ours has would stay in one as it came: no value of JSON, and part of the message's memory."""
    raise BadMessage(f"header: {len(data)} bytes of extension type {code}")


# --- arrays -----------------------------------------------------------------------------


def describe(array: npt.NDArray[Any]) -> ArrayFacts:
    """The facts of an array whose bytes are sent beside them."""
    return ArrayFacts(array.dtype.descr if array.dtype.fields else array.dtype.str, array.shape)


def read_array(facts: ArrayFacts, data: Any, dtype: np.dtype[Any], ndim: int) -> npt.NDArray[Any]:
    """The array, of the type and dimensions that it has to have; a view. Raises ``BadMessage``."""
    wanted = dtype.descr if dtype.fields else dtype.str
    fields = isinstance(facts.dtype, list) and all(isinstance(each, list) for each in facts.dtype)
    given = [tuple(each) for each in facts.dtype] if fields else facts.dtype
    if given != wanted or len(facts.shape) != ndim or any(not 0 <= side < 1 << 31 for side in facts.shape):
        said = f"{str(facts.dtype)[:60]} and {str(facts.shape)[:60]}"
        raise BadMessage(f"an array of {said}, not of {wanted} in {ndim} dimensions")
    if math.prod(facts.shape) * dtype.itemsize != len(memoryview(data)):
        raise BadMessage(f"{len(memoryview(data))} bytes are no array of {facts.shape}")
    return np.frombuffer(data, dtype).reshape(facts.shape)


def pack_flags(flags: npt.NDArray[Any]) -> bytes:
    """Which of the flags (ss, fs) are set, as bits."""
    return np.packbits(flags != 0).tobytes()


def read_flags(bits: Any, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The flags (ss, fs), 0 or 1. Raises ``BadMessage`` where the bits are not of that shape."""
    rows, columns = shape
    if not (0 < rows <= _MOST_SIDE and 0 < columns <= _MOST_SIDE and len(bits) == -(-rows * columns // 8)):
        raise BadMessage(f"flags of {rows} x {columns} in {len(bits)} bytes")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=rows * columns).reshape(rows, columns)


# --- series -----------------------------------------------------------------------------


def pack_series(series: Series, number: int) -> list[Any]:
    """The message that tells a worker of a series."""
    metadata = series.metadata
    header = HeaderFacts(**{name: getattr(metadata, name) for name in HeaderFacts.__struct_fields__})
    masks, parts = {}, []
    for channel, mask in metadata.masks.items():
        masks[channel] = (mask.shape[0], mask.shape[1])
        parts.append(pack_flags(mask))
    facts = SeriesFacts(number, series.ordinal, series.series_id, series.unique_id, header, dict(metadata.raw), masks)
    return message(Kind.SERIES, facts, parts)


def read_series(parts: Sequence[Any]) -> tuple[int, Series]:
    """Its number and the series. Raises ``BadMessage``."""
    facts = header_of(parts, SeriesFacts)
    if len(facts.masks) != len(parts) - 2:
        raise BadMessage(f"{len(facts.masks)} masks in {len(parts) - 2} parts")
    masks: dict[str, npt.NDArray[np.uint32]] = {}
    for (channel, mask_shape), bits in zip(facts.masks.items(), parts[2:], strict=True):
        masks[channel] = read_flags(bits, mask_shape).astype(np.uint32)
    header = msgspec.structs.asdict(facts.header)
    metadata = SeriesMetadata(masks=masks, raw=facts.raw, **header)
    return facts.number, Series(facts.ordinal, facts.series_id, facts.unique_id, metadata)


# --- frames -----------------------------------------------------------------------------


def frame_facts(
    frame: Frame, series: int, tags: dict[str, Any] | None, part: int = -1, place: tuple[int, int] | None = None
) -> FrameFacts:
    """A frame's facts; ``tags`` are those of its user data that records keep."""
    common = (series, frame.image_id, frame.channel, frame.start_time_s, frame.exposure_s, frame.received_at, tags)
    image = frame.image
    if isinstance(image, Defect):
        return FrameFacts(*common, defect=(image.reason, image.text))
    return FrameFacts(
        *common, image.shape, image.dtype.str, image.algorithm.value, image.element_bytes, part, place
    )  # fmt: skip


def as_received(data: Any) -> tuple[Any, tuple[int, int] | None]:
    """What to send for an image's bytes, and where in it they lie: the message that they came in, if they are nearly
    all of it, as libzmq sends its own messages on without a copy and without anybody to give them back to."""
    whole = data.obj if isinstance(data, memoryview) else None
    if not isinstance(whole, zmq.Frame):
        return data, None
    buffer = whole.buffer
    if len(buffer) - len(data) > _MOST_AROUND:
        return data, None
    return whole, (_address(data) - _address(buffer), len(data))


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


def part_of(facts: FrameFacts, parts: Sequence[Any]) -> Any:
    """A frame's bytes in its message. Raises ``BadMessage``."""
    if not 0 <= facts.part < len(parts):
        raise BadMessage(f"a frame in part {facts.part} of {len(parts)}")
    part = parts[facts.part]
    if facts.place is None:
        return part
    offset, size = facts.place
    if not (offset >= 0 and size >= 0 and offset + size <= len(part)):
        raise BadMessage(f"a frame at {offset}, {size} bytes long, of {len(part)}")
    return part[offset : offset + size]


def read_frame(facts: FrameFacts, series: Series, data: Any) -> Frame:
    """The frame, its image a view of ``data``. Raises ``BadMessage``."""
    image: ImageData | Defect
    if facts.defect is not None:
        image = Defect(*facts.defect)
    else:
        known = facts.algorithm in list(Algorithm) and _PIXELS.fullmatch(facts.dtype) is not None
        if not known or any(not 0 < side <= _MOST_SIDE for side in facts.shape):
            raise BadMessage(f"a frame of {facts.shape}, {facts.dtype[:40]!r} in {facts.algorithm[:40]!r}")
        algorithm = Algorithm(facts.algorithm)
        image = ImageData(data, facts.shape, np.dtype(facts.dtype), algorithm, facts.element_bytes)
    return Frame(
        series, facts.image_id, facts.channel, image, facts.start_time_s, facts.exposure_s, facts.received_at,
        facts.tags,
    )  # fmt: skip
