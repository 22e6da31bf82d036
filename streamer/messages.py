"""The vocabulary of the wire: what a detector says, whatever protocol it says it in.

Parsers (``stream_v1``, ``stream_v2``) and file readers (``files``) turn bytes into
these messages and decide nothing; ``series`` decides. Every pixel array is kept as the
compressed bytes it came in: an ``ImageData`` holds a view, never a copy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

HC_EV_ANGSTROM = 12398.4198
"""h c in eV angstrom (CODATA 2018)."""

Buffer = memoryview | bytes | bytearray


class Algorithm(StrEnum):
    """How the bytes of an image are packed."""

    RAW = "raw"
    """Pixels as they are, in the byte order of the dtype."""
    BSLZ4 = "bslz4"
    """Bitshuffle blocks in LZ4 behind a 12-byte header; HDF5 filter 32008."""
    LZ4_BLOCK = "lz4-block"
    """One bare LZ4 block, as stream v1 sends ``lz4<``."""
    LZ4_HDF5 = "lz4-hdf5"
    """Framed LZ4 blocks of HDF5 filter 32004, as stream v2 sends ``lz4``."""
    BSZSTD = "bszstd"
    """Bitshuffle with Zstandard; decoded only where ``dectris-compression`` is installed."""
    TRPX = "trpx"
    """TERSE/PROLIX; decoded only where ``dectris-compression`` is installed."""


@dataclass(frozen=True, slots=True)
class ImageData:
    """One image as received: a view of its packed bytes and how to read them.

    ``shape`` is (ss, fs), rows before columns; ``element_bytes`` is the width that
    bitshuffle was told, which need not be the dtype's (reference: stream v1 encodings).
    """

    data: Buffer
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    algorithm: Algorithm
    element_bytes: int

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def decoded_bytes(self) -> int:
        return self.pixels * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Defect:
    """Why an image cannot be decoded, found while parsing: a bounded reason and a sentence."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class SeriesMetadata:
    """What the detector said of a series; ``None`` where it said nothing.

    Beam centres are edge-based as on the wire and in files (pixel index = value - 0.5).
    ``masks`` and ``flatfields`` map a channel name to a (ss, fs) array; a mask is nonzero
    where a pixel is bad. ``countrate_table`` is (N, 2) counts in and corrected (v1) or
    (N, 1) corrected counts (v2). ``raw`` keeps the header's own keys, arrays left out.
    ``problems`` says what the header announced that could not be used. Every value is within
    the bounds of ``bounds``; one that was not is as if it had not been said.
    """

    number_of_images: int | None = None
    shape: tuple[int, int] | None = None
    dtype: np.dtype[Any] | None = None
    channels: tuple[str, ...] = ()
    beam_center_x_px: float | None = None
    beam_center_y_px: float | None = None
    camera_length_m: float | None = None
    photon_energy_eV: float | None = None
    threshold_energy_eV: Mapping[str, float] = field(default_factory=dict)
    pixel_size_x_m: float | None = None
    pixel_size_y_m: float | None = None
    count_time_s: float | None = None
    frame_time_s: float | None = None
    saturation_value: int | None = None
    sensor_material: str | None = None
    sensor_thickness_m: float | None = None
    detector_description: str | None = None
    detector_serial: str | None = None
    arm_date: str | None = None
    masks: Mapping[str, npt.NDArray[np.uint32]] = field(default_factory=dict)
    flatfields: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    countrate_table: npt.NDArray[Any] | None = None
    user_data: Any = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def with_changes(self, **changes: Any) -> "SeriesMetadata":
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class StartMessage:
    """A series begins. ``complete`` is False for a v1 header whose configuration follows apart."""

    series_id: int
    metadata: SeriesMetadata
    unique_id: str | None = None
    complete: bool = True


@dataclass(frozen=True, slots=True)
class ConfigMessage:
    """Configuration of a v1 header that came as a message of its own (split header)."""

    metadata: SeriesMetadata


@dataclass(frozen=True, slots=True)
class ImageMessage:
    """One image, possibly in several channels, keyed by channel name.

    A message whose series and image id can be read but whose image cannot carries a
    ``defect``, for the whole message or for a channel, so that the image is still accounted
    for. Times are the detector's clock in
    seconds (v2 counts them from the series date, v1 from a zero of the detector's own).
    """

    series_id: int
    image_id: int
    channels: Mapping[str, ImageData | Defect] = field(default_factory=dict)
    start_time_s: float | None = None
    stop_time_s: float | None = None
    exposure_s: float | None = None
    unique_id: str | None = None
    user_data: Any = None
    defect: Defect | None = None


@dataclass(frozen=True, slots=True)
class EndMessage:
    """A series is over, complete or not."""

    series_id: int
    unique_id: str | None = None


Message = StartMessage | ConfigMessage | ImageMessage | EndMessage


class InvalidMessage(ValueError):
    """A message that says nothing we can attribute to an image.

    ``reason`` is one of ``INVALID_REASONS``; the text names what and where.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


INVALID_REASONS = (
    "malformed",
    "unknown_type",
    "missing_field",
    "bad_value",
    "too_large",
    "wrong_protocol",
)
"""Bounded label values of ``cxls_messages_invalid_total``."""

UNDECODABLE_REASONS = (
    "bad_header",
    "bad_block",
    "size_mismatch",
    "unknown_algorithm",
    "unknown_dtype",
    "missing_channel",
    "missing_data",
    "failed",
)
"""Bounded label values of ``cxls_frames_undecodable_total``."""


class UndecodableImage(ValueError):
    """An image whose bytes do not decode; ``reason`` is one of ``UNDECODABLE_REASONS``."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
