"""Which pixels count: gaps, bad pixels and sentinel values made into one mask.

A detector marks pixels without data with the largest value of its type (2^8-1, 2^16-1 or
2^32-1). The mask comes from the stream when the header carries one, else from the module
layout of the detector whose shape it is (DECTRIS user manuals, EIGER and EIGER2).
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamer.messages import SeriesMetadata


@dataclass(frozen=True, slots=True)
class ModuleLayout:
    """Modules in a grid: (ss, fs) counts of modules, pixels of one, pixels between two."""

    name: str
    grid: tuple[int, int]
    module: tuple[int, int]
    gap: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = (
            n * size + (n - 1) * gap for n, size, gap in zip(self.grid, self.module, self.gap, strict=True)
        )
        return rows, columns

    def gaps(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Half-open index ranges of the gaps along ss and along fs."""
        ss, fs = (
            [(k * (size + gap) + size, (k + 1) * (size + gap)) for k in range(n - 1)]
            for n, size, gap in zip(self.grid, self.module, self.gap, strict=True)
        )
        return ss, fs


_EIGER2, _EIGER2_GAP = (512, 1028), (38, 12)
_EIGER1, _EIGER1_GAP = (514, 1030), (37, 10)
LAYOUTS = tuple(
    ModuleLayout(f"{family} {size}", grid, module, gap)
    for family, module, gap in (("EIGER2", _EIGER2, _EIGER2_GAP), ("EIGER", _EIGER1, _EIGER1_GAP))
    for size, grid in (("500K", (1, 1)), ("1M", (2, 1)), ("4M", (4, 2)), ("9M", (6, 3)), ("16M", (8, 4)))
)


@dataclass(frozen=True, slots=True, eq=False)
class Validity:
    """``valid`` (ss, fs) uint8, 1 where a pixel counts; ``name`` says where it came from.

    ``unfit`` says why a mask that was given is not in it; empty when all are.
    """

    name: str
    valid: npt.NDArray[np.uint8]
    unfit: str = ""

    @property
    def pixels(self) -> int:
        return int(self.valid.sum())

    def misfit(self, shape: tuple[int, int]) -> str:
        """Why it is not for images of this shape, in a line."""
        rows, columns = self.valid.shape
        return (
            f"{self.name} is for images of {rows} x {columns} pixels, the images are {shape[0]} x {shape[1]}; "
            "give one of their shape"
        )

    def joined(self, other: "Validity | None") -> "Validity":
        """What both let count, under both names. Raises ``ValueError`` when they are of different shape."""
        if other is None:
            return self
        if other.valid.shape != self.valid.shape:
            raise ValueError(
                f"mask {other.name} is {other.valid.shape}, {self.name} is {self.valid.shape}; give masks of one shape"
            )
        return Validity(f"{self.name} + {other.name}", self.valid & other.valid)


def layout_of(shape: tuple[int, int]) -> ModuleLayout | None:
    """The detector with this many rows and columns, if it is one we know."""
    return next((layout for layout in LAYOUTS if layout.shape == shape), None)


def sentinel(dtype: np.dtype[Any]) -> int:
    """The value that says "no data" in an image of this type."""
    return int(np.iinfo(dtype).max)


def saturation_of(metadata: SeriesMetadata, dtype: np.dtype[Any]) -> int:
    """The count from which a pixel is saturated: the header's, else the largest below the sentinel."""
    largest = sentinel(dtype) - 1
    return min(metadata.saturation_value or largest, largest)


def _known_gaps(shape: tuple[int, int]) -> Validity | None:
    layout = layout_of(shape)
    if layout is None:
        return None
    valid = np.ones(shape, np.uint8)
    gaps_ss, gaps_fs = layout.gaps()
    for start, stop in gaps_ss:
        valid[start:stop] = 0
    for start, stop in gaps_fs:
        valid[:, start:stop] = 0
    return Validity(f"gaps of {layout.name}", valid)


def digest(valid: npt.NDArray[np.uint8]) -> str:
    """Eight letters that stand for these pixels."""
    return hashlib.sha256(np.packbits(valid).tobytes()).hexdigest()[:8]


def series_validity(
    metadata: SeriesMetadata, shape: tuple[int, int], channel: str, extra: Validity | None = None
) -> Validity:
    """The mask of a series: the stream's for this channel, else the gaps of a known detector.

    ``extra`` (a mask file) is applied on top and its name added. One of another shape than the images is left aside,
    which ``unfit`` then says.
    """
    mask = metadata.masks.get(channel)
    if mask is None and metadata.masks:
        mask = next(iter(metadata.masks.values()))
    known = _known_gaps(shape)
    if mask is not None and mask.shape == shape:
        valid = (mask == 0).astype(np.uint8)
        # A name stands for the pixels it leaves out, wherever they were learnt from.
        if known is not None and np.array_equal(valid, known.valid):
            name = known.name
        else:
            name = "none" if valid.all() else f"stream {digest(valid)}"
    elif known is not None:
        valid, name = known.valid, known.name
    else:
        valid, name = np.ones(shape, np.uint8), "none"
    if extra is None:
        return Validity(name, valid)
    if extra.valid.shape != shape:
        return Validity(name, valid, extra.misfit(shape))
    return Validity(f"{name} + {extra.name}", valid & extra.valid, extra.unfit)
