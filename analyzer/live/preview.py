"""A frame, or a region of it, made small enough for a browser: the largest count of each block, so that peaks stay.

A picture is unpacked only when someone looks, from the packed bytes that came; frames that nobody sees cost nothing.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from analyzer.geometry import Geometry
from analyzer.live.frames import Look
from streamer.decoding import decode
from streamer.validity import sentinel

MASKED = 65535
"""In a picture: no pixel of the block counts."""

LARGEST = MASKED - 1
MOST_PEAKS = 1000
_PERCENTILES = (50.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a detector, in pixels: its first column and row, how wide and high it is."""

    fs: int
    ss: int
    width: int
    height: int

    def within(self, shape: tuple[int, int]) -> "Region":
        """The part of it that lies on a detector of (ss, fs) pixels, at least one pixel."""
        fs, ss = min(max(self.fs, 0), shape[1] - 1), min(max(self.ss, 0), shape[0] - 1)
        width = min(self.fs + self.width, shape[1]) - fs
        height = min(self.ss + self.height, shape[0]) - ss
        return Region(fs, ss, max(width, 1), max(height, 1))


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """``pixels`` (rows, columns) uint16 of ``region``, blocks of ``bin_px`` squared; ``MASKED`` where none counts."""

    pixels: npt.NDArray[np.uint16]
    region: Region
    bin_px: int


class Renderer:
    """Makes pictures; keeps the pixels unpacked last. One thread at a time."""

    def __init__(self) -> None:
        self._pixels: npt.NDArray[Any] | None = None
        self._look: Look | None = None

    def render(self, look: Look, region: Region | None, most_px: int) -> Picture:
        """A picture of at most ``most_px`` blocks a side. Raises ``UndecodableImage``."""
        pixels = self._unpacked(look)
        rows, columns = pixels.shape
        part = Region(0, 0, columns, rows) if region is None else region.within((rows, columns))
        bin_px = max(1, -(-max(part.width, part.height) // most_px))
        cut = (slice(part.ss, part.ss + part.height), slice(part.fs, part.fs + part.width))
        return Picture(pool(pixels[cut], look.validity.valid[cut], bin_px), part, bin_px)

    def _unpacked(self, look: Look) -> npt.NDArray[Any]:
        image = look.image
        kind = image.shape, image.dtype.newbyteorder("=")
        if self._pixels is None or (self._pixels.shape, self._pixels.dtype) != kind:
            self._pixels, self._look = np.empty(*kind), None
        if self._look is not look:
            self._look = None
            decode(image, self._pixels)
            self._look = look
        return self._pixels


def pool(pixels: npt.NDArray[Any], valid: npt.NDArray[np.uint8], bin_px: int) -> npt.NDArray[np.uint16]:
    """The largest valid count of each ``bin_px`` x ``bin_px`` block of ``pixels`` (ss, fs); see ``Picture``.

    Pixels with the type's sentinel do not count. Blocks at the far edges may be smaller.
    """
    counts = pixels.astype(np.uint16) if pixels.itemsize <= 2 else np.minimum(pixels, LARGEST).astype(np.uint16)
    # One more than the count, so that 0 can say that nothing counts.
    counts += 1
    counts *= (valid != 0) & (pixels != sentinel(pixels.dtype))
    for axis in (0, 1):
        counts = _largest_along(counts, axis, bin_px)
    counts -= 1
    return counts


def _largest_along(values: npt.NDArray[np.uint16], axis: int, size: int) -> npt.NDArray[np.uint16]:
    """The largest of each ``size`` neighbours along an axis, the last group as large as is left."""
    if size == 1:
        return values
    whole = values.shape[axis] // size
    moved = np.moveaxis(values, axis, 0)
    found = moved[: whole * size : size].copy()
    for place in range(1, size):
        np.maximum(found, moved[place : whole * size : size], out=found)
    if whole * size < len(moved):
        found = np.concatenate([found, moved[whole * size :].max(0, keepdims=True)])
    return np.ascontiguousarray(np.moveaxis(found, 0, axis))


def encode(look: Look, picture: Picture, show: str) -> bytes:
    """The message of a picture: length, JSON, pixels (docs/live-page.md)."""
    result, pixels = look.result, picture.pixels
    counted = pixels[pixels != MASKED]
    quantiles = np.percentile(counted, _PERCENTILES) if counted.size else np.zeros(len(_PERCENTILES))
    region = picture.region
    facts = {
        "kind": "image",
        "show": show,
        **look.facts,
        "decision": result.decision,
        "peaks": [
            [round(peak.fs, 2), round(peak.ss, 2), round(peak.intensity_photons, 1), round(peak.snr, 2), peak.saturated]
            for peak in _brightest(result.peaks or [])
        ],
        "shape": look.geometry.shape,
        "region": [region.fs, region.ss, region.width, region.height],
        "bin": picture.bin_px,
        "rows": pixels.shape[0],
        "columns": pixels.shape[1],
        "masked": MASKED,
        "counts": {
            "max": int(counted.max()) if counted.size else 0,
            **{name: float(value) for name, value in zip(("p50", "p99", "p999"), quantiles, strict=True)},
        },
        "geometry": _geometry(look.geometry),
    }
    header = msgspec.json.encode(facts)
    packed = zlib.compress(pixels.astype("<u2", copy=False).tobytes(), 1)
    return struct.pack("<I", len(header)) + header + packed


def _brightest(peaks: Sequence[Any]) -> Sequence[Any]:
    if len(peaks) <= MOST_PEAKS:
        return peaks
    return sorted(peaks, key=lambda peak: -peak.intensity_photons)[:MOST_PEAKS]


def _geometry(geometry: Geometry) -> dict[str, float | None]:
    """As a header has it: beam centre from the detector's edge, in pixels."""
    return {
        "beam_center_x_px": geometry.beam_center_fs + 0.5,
        "beam_center_y_px": geometry.beam_center_ss + 0.5,
        "camera_length_m": geometry.camera_length_m,
        "photon_energy_eV": geometry.photon_energy_eV,
        "pixel_size_m": geometry.pixel_size_m,
    }
