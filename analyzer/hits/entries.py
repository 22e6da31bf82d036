"""What a journal's records say: series and hits as JSON heads, the mask and the images as bodies.

A series is described once in each journal, before its first hit; each hit names it by a digest of all it says. So a
journal alone is enough to make files.
"""

import hashlib
import struct
from dataclasses import replace
from typing import Any

import bitshuffle
import msgspec
import numpy as np
import numpy.typing as npt

from analyzer.hits.geometry import given_text
from analyzer.panels import BadGeometry, GivenGeometry
from analyzer.results import FrameResult, to_json_line
from streamer.decoding import decode
from streamer.files import CHANNEL
from streamer.frames import Frame
from streamer.messages import Algorithm, ImageData, SeriesMetadata
from streamer.validity import series_validity

SERIES, HIT = 1, 2
"""Kinds of records."""

_FACTS = (
    "beam_center_x_px", "beam_center_y_px", "camera_length_m", "photon_energy_eV", "pixel_size_x_m", "pixel_size_y_m",
    "count_time_s", "frame_time_s", "saturation_value", "sensor_material", "sensor_thickness_m",
    "detector_description", "detector_serial", "arm_date",
)  # fmt: skip
"""Of a series' metadata; what comes with arrays is apart."""

_BLOCK_PIXELS = 2048
_DIGEST_CHARACTERS = 24

LEFT_OUT = 1 << 8
"""The bit of a pixel mask (NXdetector: user defined) for what a geometry file leaves out."""


class SeriesEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A series as its header described it. ``mask_shape`` (ss, fs) is that of the body, None without a mask.

    ``geometry`` is the text of its ``.geom`` where a geometry file was given and fits, else None.
    """

    series_id: int
    unique_id: str | None
    channel: str
    facts: dict[str, Any]
    threshold_energy_eV: float | None
    mask_shape: tuple[int, int] | None
    geometry: str | None = None


class HitEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A hit: which series (a digest), how its image is packed, and its result record as it is in the results file."""

    series: str
    shape: tuple[int, int]
    dtype: str
    algorithm: str
    element_bytes: int
    record: msgspec.Raw


_encode = msgspec.json.Encoder().encode


def series_entry(frame: Frame, shape: tuple[int, int], given: GivenGeometry | None = None) -> tuple[str, bytes, bytes]:
    """Digest, head and body of a frame's series; the head begins with the digest.

    given: the geometry file of the analysis.
    """
    metadata, mask = frame.series.metadata, bad_pixels(frame.series.metadata, shape, frame.channel)
    geometry = None
    if given is not None:
        try:
            left_out = given.left_out(metadata)
        except BadGeometry:  # then it is not for these images
            left_out = None
        geometry = given_text(given, metadata, shape, mask is not None or left_out is not None)
        if geometry is not None and left_out is not None:
            bits = np.where(left_out.valid == 0, np.uint32(LEFT_OUT), np.uint32(0))
            mask = bits if mask is None else mask | bits
    threshold = metadata.threshold_energy_eV.get(frame.channel)
    if threshold is None:
        threshold = next(iter(metadata.threshold_energy_eV.values()), None)
    entry = SeriesEntry(
        series_id=frame.series.series_id,
        unique_id=frame.series.unique_id,
        channel=frame.channel,
        facts={name: getattr(metadata, name) for name in _FACTS},
        threshold_energy_eV=threshold,
        mask_shape=None if mask is None else shape,
        geometry=geometry,
    )
    head, body = _encode(entry), b"" if mask is None else _packed(mask)
    digest = hashlib.blake2b(head + body, digest_size=_DIGEST_CHARACTERS // 2).hexdigest()
    return digest, digest.encode() + head, body


def bad_pixels(metadata: SeriesMetadata, shape: tuple[int, int], channel: str) -> npt.NDArray[np.uint32] | None:
    """(ss, fs), nonzero where bad: the stream's mask for the channel, else the gaps of a known detector."""
    mask = metadata.masks.get(channel)
    if mask is None and metadata.masks:
        mask = next(iter(metadata.masks.values()))
    if mask is not None and mask.shape == shape:
        return np.ascontiguousarray(mask, np.uint32)
    validity = series_validity(metadata.with_changes(masks={}), shape, channel)
    return None if validity.name == "none" else (validity.valid == 0).astype(np.uint32)


def _packed(mask: npt.NDArray[np.uint32]) -> bytes:
    return struct.pack(">QI", mask.nbytes, 4 * _BLOCK_PIXELS) + bytes(
        bitshuffle.compress_lz4(mask.reshape(-1), _BLOCK_PIXELS)
    )


def hit_head(frame: Frame, image: ImageData, result: FrameResult, series: str) -> bytes:
    """The head of a hit; its body is the image's bytes as received."""
    try:
        record = to_json_line(result)
    except (ValueError, TypeError, OverflowError, RecursionError):
        # A hit is worth more than its tags: what cannot be written as JSON is kept as text.
        record = to_json_line(replace(result, tags=_as_text(result.tags), attributes=None, status_text=None))
    entry = HitEntry(
        series=series,
        shape=image.shape,
        dtype=image.dtype.str,
        algorithm=str(image.algorithm),
        element_bytes=image.element_bytes,
        record=msgspec.Raw(record.rstrip(b"\n")),
    )
    return _encode(entry)


def _as_text(tags: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if tags is None else {ascii(key): ascii(value)[:4096] for key, value in tags.items()}


def digest_of(head: bytes) -> str:
    """By what hits name the series with this head."""
    return head[:_DIGEST_CHARACTERS].decode("ascii", "replace")


def read_series(head: bytes, body: bytes) -> tuple[SeriesMetadata, str | None]:
    """A series' record as metadata of the channel that our files have, and its ``.geom`` where it has one.

    Raises ``ValueError`` for a record that is none.
    """
    entry = msgspec.json.decode(head[_DIGEST_CHARACTERS:], type=SeriesEntry)
    masks = {}
    if entry.mask_shape is not None:
        mask = np.empty(entry.mask_shape, np.uint32)
        decode(ImageData(body, entry.mask_shape, mask.dtype, Algorithm.BSLZ4, 4), mask)
        masks = {CHANNEL: mask}
    threshold = {} if entry.threshold_energy_eV is None else {CHANNEL: entry.threshold_energy_eV}
    facts = {name: entry.facts.get(name) for name in _FACTS}
    metadata = SeriesMetadata(channels=(CHANNEL,)).with_changes(threshold_energy_eV=threshold, masks=masks, **facts)
    return metadata, entry.geometry


def read_hit(head: bytes) -> HitEntry:
    """A hit's record. Raises ``ValueError`` for one that is none."""
    return msgspec.json.decode(head, type=HitEntry)


def result_of(entry: HitEntry) -> dict[str, Any]:
    """The fields of a hit's result record. Raises ``ValueError`` where they are not such a record's."""
    record = msgspec.json.decode(entry.record)
    if not isinstance(record, dict) or not isinstance(record.get("peaks") or [], list):
        raise ValueError("a hit without a result")
    return record
