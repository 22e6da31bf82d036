"""What the kernels of the reduction are told: their constants, their one parameter, and where results lie.

The CPU's constants are the kernels' constants. Both sides of every structure are written from one table here:
``header`` gives the text of ``sources/reduce_layout.cuh``, ``Reduction`` is the kernels' parameter, ``result_dtype``
how to read what comes back. After a change of a constant, here or on the CPU,

    python -m analyzer.cuda.layout

writes the header anew; a test tells when that was forgotten.
"""

import ctypes
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer import arcs, diffuse, evidence, geometry, kernels, reduction, spots, zones
from analyzer.cuda.compiler import SOURCES
from analyzer.geometry import AZIMUTH_CLASSES

MOST_CANDIDATES, MOST_CLAIMS = 1 << 16, 1 << 20
"""As on the CPU: see ``reduction.Workspace``."""

SHARED_BINS, SHARED_RADII = 2304, 768
"""Bins and radial bins up to which sums are made in shared memory: a detector of 16 megapixels needs 1128."""

COUNTED_WORDS = 1024
"""Words of 64 pixels a block counts. Times 64 times the largest count it stays below 2^32."""

CLEARED_WORDS = 2048
SPREAD = 32
"""Blocks a frame's candidates, spots and claims are spread over."""

MOST_CELLS_ACROSS = 1024
"""As a row of cells is one block's, in shared memory. Frames may be 8192 pixels wide."""

SHARES_OF_CELLS = 1024
LONE, SINGLE_PIXEL = 1, 2
COUNTERS = ("CANDIDATES", "SPOTS", "PEAKS", "CLAIMS", "AGAIN")
KEPT_WHOLE = 0x7FFFFFFF
MOST_COUNTS = 0xFFFE
"""Of a pixel; brighter ones of 32-bit images are cut to this."""

GAP_BYTES = 256
"""Between the buffers of a slab, and what each begins at a multiple of."""

SPOT_DTYPE = np.dtype(
    [("evidence", "f8"), ("mean", "f8"), ("local", "f8"), ("around", "f8"), ("pixel", "i4"), ("beside", "i4")]
)
HEADER_DTYPE = np.dtype(
    [("total_photons", "i8"), ("counting_pixels", "i8"), ("saturated_pixels", "i8"), ("at_limit", "i8"),
     ("background_photons", "f8"), ("pairs", "f8"), ("peaks", "i4"), ("candidates", "i4"), ("claims", "i4"),
     ("spots", "i4")]
)  # fmt: skip

PLAN: dict[str, str] = {
    "inside": "u1", "place": "u2", "bin_pixels": "f8", "place_pixels": "f8", "cell_bin": "i4", "cell_zone": "u1",
    "cell_pixels": "f8", "log_cell_pixels": "f8", "cell_valid": "f4", "cell_radius_m": "f8", "zone_first": "i4",
    "sector_first": "i4", "sector_places": "i4", "log_factorial": "f8", "evidence_table": "f4", "alone_means": "f8",
    "around_means": "f8", "levels": "f8", "panels": "f8",
}  # fmt: skip
"""Arrays that do not change from frame to frame."""

BATCH: dict[str, str] = {"pixels": "u2", "lit": "u8", "blank": "u8", "faults": "i4"}

RUN: dict[str, str] = {"seen": "u8", "expected": "f8"}
"""Over all frames."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What lengths of buffers follow from. ``words``: of 64 pixels, the last one perhaps in part."""

    rows: int
    columns: int
    bins: int
    sector_bins: int
    saturation: int
    panels_here: int

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @property
    def words(self) -> int:
        return -(-self.count // 64)

    @property
    def radial_bins(self) -> int:
        return self.bins // AZIMUTH_CLASSES

    @property
    def places(self) -> int:
        return self.bins * kernels.QUADRANTS

    @property
    def cells_down(self) -> int:
        return -(-self.rows // kernels.CELL)

    @property
    def cells_across(self) -> int:
        return -(-self.columns // kernels.CELL)

    @property
    def lit_cell_words(self) -> int:
        return -(-self.cells_across // 32)


_SIZES = (
    "rows", "columns", "count", "words", "bins", "radial_bins", "places", "sector_bins", "cells_down", "cells_across",
    "lit_cell_words", "saturation", "panels_here",
)  # fmt: skip


def _zeroed(s: Sizes) -> dict[str, tuple[str, int]]:
    """Of each frame, added to: type and length."""
    return {
        "counters": ("u4", 16), "totals": ("u8", 4), "photons": ("u8", s.bins), "occupied": ("u4", s.bins),
        "lost": ("u4", s.bins), "clipped": ("u8", 2 * s.bins), "outliers": ("u4", 2 * s.bins),
        "diffuse": ("u8", 2 * s.places), "windows": ("u4", s.bins * evidence.TABLE.shape[2]),
        "level_counts": ("u4", zones.ZONES * zones.SCALES * len(zones.LEVELS)), "spot_photons": ("u8", s.bins),
        "spot_pixels": ("u4", s.bins), "left_out": ("u4", 2 * s.places), "claimed": ("u4", 2 * s.words),
    }  # fmt: skip


def _scratch(s: Sizes) -> dict[str, tuple[str, int]]:
    """Of each frame, overwritten: type and length."""
    cells, sums = s.cells_down * s.cells_across, s.bins + AZIMUTH_CLASSES
    return {
        "background": ("f8", s.bins), "log_background": ("f8", s.bins), "kept_mean": ("f8", s.bins),
        "kept_counts": ("f8", s.bins), "kept_area": ("f8", s.bins), "pairs": ("f8", s.bins),
        "diffuse_pixels": ("f8", s.places), "sums_counts": ("f8", sums), "sums_area": ("f8", sums),
        "most_kept": ("u4", s.bins), "most_alone": ("i4", s.bins), "most_around": ("i4", s.bins),
        "table_row": ("i4", s.bins), "significance": ("f4", zones.SCALES * cells), "strength": ("f8", cells),
        "strong_cells": ("i4", zones.STRONGEST * (cells // SHARES_OF_CELLS + 1)),
        "candidates": ("i4", MOST_CANDIDATES), "scores": ("f8", MOST_CANDIDATES), "spots": ("Spot", MOST_CANDIDATES),
        "order": ("i4", MOST_CANDIDATES), "claims": ("i4", MOST_CLAIMS), "picked": ("i4", reduction.MAX_PEAKS),
    }  # fmt: skip


_RESULTS = (
    "photons", "pixels", "background", "zones", "cells", "profile", "lit_cells", "peak_pixels", "peak_flags", "peaks",
)  # fmt: skip
_STRIDES = ("pixel_stride", "word_stride", "slab_bytes", "result_bytes", "zeroed_words")
_CTYPES = {
    "u1": "uint8_t", "u2": "uint16_t", "u4": "uint32_t", "i4": "int32_t", "u8": "uint64_t", "i8": "int64_t",
    "f4": "float", "f8": "double", "Spot": "Spot",
}  # fmt: skip


def _members() -> list[tuple[str, str, Any]]:
    """Of the parameter: C type, name, type here."""
    pointer = ctypes.c_uint64
    constant = [(f"const {_CTYPES[kind]}*", name, pointer) for name, kind in (PLAN | BATCH).items()]
    written = [(f"{_CTYPES[kind]}*", name, pointer) for name, kind in RUN.items()]
    buffers = _zeroed(Sizes(1, 1, 1, 1, 1, 1)) | _scratch(Sizes(1, 1, 1, 1, 1, 1))
    written += [(f"{_CTYPES[kind]}*", name, pointer) for name, (kind, _) in buffers.items()]
    # The zeroed buffers together, as words.
    written += [("uint64_t*", "zeroed", pointer), ("uint8_t*", "results", pointer)]
    numbers: list[tuple[str, str, Any]] = [("int64_t", name, ctypes.c_int64) for name in _STRIDES]
    numbers += [("double", name, ctypes.c_double) for name in ("peak_threshold", "lowest_evidence")]
    numbers += [("int32_t", name, ctypes.c_int32) for name in _SIZES]
    numbers += [("int32_t", f"result_{name}", ctypes.c_int32) for name in _RESULTS]
    return constant + written + numbers


class Reduction(ctypes.Structure):
    """The parameter of every kernel: addresses on the device, strides in elements or bytes, sizes, offsets."""

    _fields_ = [(name, kind) for _, name, kind in _members()]


def constants() -> dict[str, int | float]:
    """The numbers that the kernels' text names."""
    numbers: dict[str, int | float] = {
        "AZIMUTH_CLASSES": AZIMUTH_CLASSES, "QUADRANTS": kernels.QUADRANTS, "CELL": kernels.CELL, "NO_DATA": 0xFFFF,
        "MOST_COUNTS": MOST_COUNTS, "SHARED_BINS": SHARED_BINS, "SHARED_RADII": SHARED_RADII,
        "COUNTED_WORDS": COUNTED_WORDS, "CLEARED_WORDS": CLEARED_WORDS, "SPREAD": SPREAD, "PIECE_WORDS": 128,
        "OVERFLOW_WORDS": 64, "MOST_CELLS_ACROSS": MOST_CELLS_ACROSS, "SHARES_OF_CELLS": SHARES_OF_CELLS, "PARTS": 64,
        "MOST_CANDIDATES": MOST_CANDIDATES, "MOST_CLAIMS": MOST_CLAIMS, "MOST_PEAKS": reduction.MAX_PEAKS,
        "PEAK_BYTES": kernels.PEAK_DTYPE.itemsize, "LONE": LONE, "SINGLE_PIXEL": SINGLE_PIXEL,
        "KEPT_WHOLE": KEPT_WHOLE, "SMOOTHING_PHOTONS": kernels._SMOOTHING_PHOTONS,
        "LOG_4": float(np.log(4.0)), "LOG_8": float(np.log(8.0)), "LOG_9": float(np.log(9.0)),
        "LOG_LOWEST": evidence.LOG_LOWEST, "LOG_STEP": evidence.LOG_STEP, "RATES": len(evidence.RATES),
        "TABLE_ROWS": evidence.TABLE.shape[1], "TABLE_COUNTS": evidence.TABLE.shape[2],
        "ALONE_MEANS": len(diffuse._ALONE), "AROUND_MEANS": len(diffuse._AROUND),
        "FAINTEST_BRIGHT": diffuse._FAINTEST_BRIGHT, "CANDIDATE_NATS": reduction.CANDIDATE_NATS,
        "ZONES": zones.ZONES, "ZONE_COLUMNS": zones.COLUMNS, "LIGHT": zones.LIGHT, "FIRST_LEVEL": zones.FIRST_LEVEL,
        "SCALES": zones.SCALES, "LEVELS": len(zones.LEVELS), "STRONGEST": zones.STRONGEST,
        "CELL_COLUMNS": zones.CELL_COLUMNS, "RING_INNER": kernels._RING_INNER, "RING_OUTER": kernels._RING_OUTER,
        "RING_PRIOR_PIXELS": kernels._RING_PRIOR_PIXELS, "REACH": spots.REACH, "DISTANCES": len(spots.DISTANCES),
        "SHAPES": len(spots.SHARES), "SPOT_PHOTONS": len(spots.PHOTONS), "DISCS": len(spots.DISCS),
        "CHANCES": len(spots.LIT_CHANCES), "LOG_WEIGHT": spots.LOG_WEIGHT, "DISC_LOG_WEIGHT": spots.DISC_LOG_WEIGHT,
        "EXPONENTS": kernels.EXPONENTS, "NEGLIGIBLE": kernels._NEGLIGIBLE,
        "WINDOW_REACH": kernels._WINDOW, "SEPARATION": kernels._PEAK_SEPARATION,
        "SPOT_PIXELS": kernels._SPOT_PIXELS, "OWN_SHARE": kernels._OWN_SHARE, "TAIL_CONTRAST": kernels._TAIL_CONTRAST,
        "WHOLE_FROM_PHOTONS": kernels._WHOLE_FROM_PHOTONS, "WHOLE_KEEPS": kernels._WHOLE_KEEPS,
        "SMALLEST_SPOT_PIXELS": kernels._SMALLEST_SPOT_PIXELS,
        "SURE_PEAKS_FOR_AS_MANY": kernels.SURE_PEAKS_FOR_AS_MANY, "PROFILE_KNOWS": kernels._PROFILE_KNOWS,
        "PANEL_NUMBERS": geometry.PANEL_NUMBERS, "ARC_NEAREST_PX": arcs.NEAREST_PX, "ARC_STEPS": arcs.STEPS,
        "ARC_STEPS_A_PART": arcs.STEPS_A_PART, "ARC_PARTS": arcs.PARTS, "ARC_ROWS": arcs.ROWS, "ARC_BINS": arcs.BINS,
        "ARC_BINS_A_PIXEL": arcs.BINS_A_PIXEL, "ARC_FEWEST_PARTS": arcs._FEWEST_PARTS,
        "ARC_FEWEST_OF_PART": arcs._FEWEST_OF_PART, "ARC_FEWEST_OF_POINT": arcs._FEWEST_OF_POINT,
        "ARC_OTHER_SPOT": arcs._OTHER_SPOT, "ARC_OTHER_PHOTONS": arcs._OTHER_PHOTONS,
        "ARC_STANDS_OUT": arcs._STANDS_OUT, "ARC_STANDS_OUT_PHOTONS": arcs._STANDS_OUT_PHOTONS,
        "ARC_LEAST_RADIUS_PX": arcs._LEAST_RADIUS_PX,
    }  # fmt: skip
    return numbers | {name: n for n, name in enumerate(COUNTERS)}


def _table(kind: str, name: str, values: Any) -> str:
    flat = np.asarray(values).reshape(-1).tolist()
    written = [str(int(value)) if kind == "int" else repr(float(value)) for value in flat]
    return "\n".join([f"CONSTANT {kind} {name}[{len(flat)}] = {{", *_wrapped(", ".join(written)), "};"])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, initial_indent="    ", subsequent_indent="    ")


def _struct(name: str, members: list[tuple[str, str]]) -> str:
    return "\n".join([f"struct {name} {{", *(f"    {kind} {member};" for kind, member in members), "};"])


def _record(name: str, dtype: np.dtype[Any]) -> str:
    assert dtype.names is not None
    return _struct(name, [(_CTYPES[dtype[each].str[1:].lstrip("|")], each) for each in dtype.names])


def header() -> str:
    """The text of ``sources/reduce_layout.cuh``."""
    lines = ["// Written by python -m analyzer.cuda.layout: change that, not this.", "#pragma once"]
    lines += [
        f"#define {name} {value!r}" if value >= 0 else f"#define {name} ({value!r})"
        for name, value in constants().items()
    ]
    lines += ["#ifdef CXLS_HOST", "#define CONSTANT static const", "#else"]
    lines += ["#define CONSTANT static __constant__ const", "#endif"]
    lines += [
        _table("int", "DISTANCE_OF", spots.CLASS),
        _table("double", "SHARES", spots.SHARES),
        _table("double", "PHOTONS", spots.PHOTONS),
        _table("int", "IN_DISC", spots.DISCS),
        _table("double", "LIT_CHANCES", spots.LIT_CHANCES),
        _record("Spot", SPOT_DTYPE),
        _record("PeakFields", kernels.PEAK_DTYPE),
        _record("Header", HEADER_DTYPE),
        "// Pointers are addresses on the device; of a frame's buffers and results, those of the first frame's.",
        _struct("Reduction", [(kind, name) for kind, name, _ in _members()]),
    ]
    return "\n".join([*lines, ""])


def result_dtype(sizes: Sizes) -> np.dtype[Any]:
    """A frame's result as it comes back, a multiple of 256 bytes; see ``reduce.FrameViews`` for what is what."""
    fields: list[tuple[str, Any, tuple[int, ...]]] = [
        ("header", HEADER_DTYPE, ()),
        ("photons", np.float64, (sizes.bins,)),
        ("pixels", np.float64, (sizes.bins,)),
        ("background", np.float64, (sizes.bins,)),
        ("zones", np.float32, (zones.ZONES, zones.COLUMNS)),
        ("cells", np.float32, (zones.STRONGEST, zones.CELL_COLUMNS)),
        ("profile", np.float32, (3, sizes.sector_bins)),
        ("lit_cells", np.uint32, (sizes.cells_down, sizes.lit_cell_words)),
        ("peak_pixels", np.int32, (reduction.MAX_PEAKS,)),
        ("peak_flags", np.uint8, (reduction.MAX_PEAKS,)),
        ("peaks", kernels.PEAK_DTYPE, (reduction.MAX_PEAKS,)),
    ]
    offsets, end = [], 0
    for _, kind, shape in fields:
        offsets.append(end)
        end += int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        end = -(-end // 8) * 8
    return np.dtype(
        {
            "names": [name for name, _, _ in fields],
            "formats": [(kind, shape) for _, kind, shape in fields],
            "offsets": offsets,
            "itemsize": -(-end // 256) * 256,
        }
    )


def slab(sizes: Sizes) -> tuple[dict[str, int], int, int]:
    """Offsets of a frame's buffers, the bytes to zero, which come first, and all bytes."""
    offsets, end, zeroed = {}, 0, 0
    for part in (_zeroed(sizes), _scratch(sizes)):
        for name, (kind, length) in part.items():
            offsets[name] = end
            item = SPOT_DTYPE.itemsize if kind == "Spot" else np.dtype(kind).itemsize
            end += -(-length * item // GAP_BYTES) * GAP_BYTES + GAP_BYTES
        zeroed = zeroed or end
    return offsets, zeroed, end


def sizes_of(sizes: Sizes) -> dict[str, int]:
    """The sizes that the kernels are told."""
    return {name: getattr(sizes, name) for name in _SIZES}


def tables() -> dict[str, npt.NDArray[Any]]:
    """The arrays of ``PLAN`` that are the same for every series."""
    return {
        "log_factorial": kernels._LOG_FACTORIAL,
        "evidence_table": evidence.TABLE,
        "alone_means": diffuse._ALONE,
        "around_means": diffuse._AROUND,
        "levels": zones.LEVELS,
    }


if __name__ == "__main__":
    (SOURCES / "reduce_layout.cuh").write_text(header(), encoding="utf-8")
