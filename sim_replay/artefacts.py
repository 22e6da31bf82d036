"""What a detector adds to its counts or hides of them, after counting.

Dead, hot and flickering pixels have fixed places in a series; dark counts, cosmic rays and the edges of modules are
drawn frame by frame. Nothing is ever added to gaps or dead pixels, and counts are clipped like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["ArtefactTruth", "Artefacts", "FixedPixels", "apply", "fixed_pixels"]

LONGEST_TRACK_PX = 30
MEAN_TRACK_PX = 6.0
"""Length of a cosmic ray's track: exponential with this mean, cut at the longest; a choice of ours."""

SHORTEST_EDGE_PX = 16
"""A shorter straight run of pixels beside masked ones is no module's edge."""

_FIXED_PIXELS_STREAM = 0xF17ED  # apart from whatever else draws from a series' seed


@dataclass(frozen=True, slots=True)
class Artefacts:
    """What a detector adds or hides; the default is nothing at all.

    dead_pixels, hot_pixels, flickering_pixels: how many of each a panel has, at places fixed for a series. Dead ones
    read 0, or the sentinel if dead_reads_sentinel. hot_counts and flicker_counts are mean counts of such a pixel a
    frame, Poisson; each flickering pixel is on in flicker_share of the frames, at random. dark_counts is the mean a
    pixel a frame. cosmics is tracks a frame: straight, 1 to 30 pixels, 1 to 3 counts in each (at sea level about one
    a minute and square centimetre arrives: 4 a second on 4 megapixels of 75 um). edge_excess is how much more of the
    background pixels beside a gap count, 1.0 for pixels of double size. In edge_glow_share of the frames one line of
    pixels beside a gap glows with a mean of edge_glow_counts a pixel.
    """

    dead_pixels: int = 0
    dead_reads_sentinel: bool = False
    hot_pixels: int = 0
    hot_counts: float = 50.0
    flickering_pixels: int = 0
    flicker_counts: float = 20.0
    flicker_share: float = 0.1
    dark_counts: float = 0.0
    cosmics: float = 0.0
    edge_excess: float = 0.0
    edge_glow_share: float = 0.0
    edge_glow_counts: float = 3.0

    def __post_init__(self) -> None:
        for name in ("dead_pixels", "hot_pixels", "flickering_pixels"):
            number = getattr(self, name)
            if not (isinstance(number, int) and number >= 0):
                raise ValueError(f"{name} must be a whole number from 0 up, not {number}")
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not 0.0 <= value <= most:
                raise ValueError(f"{name} must be from 0 to {most:g}, not {value}")


# They bound what a frame draws: a count a pixel of dark noise is 36 MB of places on 4 megapixels.
_MOST = {
    "hot_counts": 1e9,
    "flicker_counts": 1e9,
    "flicker_share": 1.0,
    "dark_counts": 1.0,
    "cosmics": 1000.0,
    "edge_excess": 100.0,
    "edge_glow_share": 1.0,
    "edge_glow_counts": 1e6,
}


@dataclass(frozen=True, slots=True, eq=False)
class FixedPixels:
    """Places of a series. dead, hot, flickering: flat indices (n,) int64, ascending, no pixel in two of them.

    silent (ss, fs) bool is True in gaps and dead pixels. edge_lines (n, 3) int64: straight runs of pixels beside a
    gap as first flat index, length, step of the index; edge: all their pixels (n,) int64, ascending.
    """

    dead: NDArray[np.int64]
    hot: NDArray[np.int64]
    flickering: NDArray[np.int64]
    silent: NDArray[np.bool_]
    edge_lines: NDArray[np.int64]
    edge: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ArtefactTruth:
    """Flat pixels (n,) int64 that artefacts added counts to in one frame; one may appear more than once."""

    hot: NDArray[np.int64]
    flicker: NDArray[np.int64]
    cosmic: NDArray[np.int64]
    edge: NDArray[np.int64]
    dark: NDArray[np.int64]

    @property
    def names(self) -> tuple[str, ...]:
        """Which of 'hot', 'flicker', 'cosmic' and 'edge' are in this frame."""
        return tuple(name for name in ("hot", "flicker", "cosmic", "edge") if len(getattr(self, name)))


def fixed_pixels(artefacts: Artefacts, mask: NDArray[np.bool_], seed: int) -> FixedPixels:
    """Choose a series' dead, hot and flickering pixels among those mask (ss, fs) leaves, the same for one seed.

    Raises ValueError when there are not that many pixels.
    """
    live = np.flatnonzero(~mask)
    numbers = (artefacts.dead_pixels, artefacts.hot_pixels, artefacts.flickering_pixels)
    if sum(numbers) > len(live):
        raise ValueError(f"{sum(numbers)} dead, hot and flickering pixels are more than the panel's {len(live)}")
    rng = np.random.default_rng([seed, _FIXED_PIXELS_STREAM])
    chosen = rng.choice(live, sum(numbers), replace=False)
    dead, hot, flickering = (np.sort(part) for part in np.split(chosen, np.cumsum(numbers)[:2]))
    silent = mask.copy()
    silent.reshape(-1)[dead] = True
    silent.setflags(write=False)
    lines = _edge_lines(mask)
    pixels = [np.arange(length) * step + first for first, length, step in lines.tolist()]
    edge = np.unique(np.concatenate(pixels)) if pixels else _NONE
    return FixedPixels(dead, hot, flickering, silent, lines, edge)


def apply(
    artefacts: Artefacts,
    fixed: FixedPixels,
    counts: NDArray[np.unsignedinteger],
    rng: np.random.Generator,
    largest_count: int,
    sentinel: int,
    edge_background: NDArray[np.floating] | None = None,
    edge_scale: float = 1.0,
) -> ArtefactTruth:
    """Draw one frame's artefacts into counts (ss, fs), C-contiguous, in place; clipped at largest_count.

    edge_background (ss, fs) times edge_scale is the frame's expected background; needed only with an edge_excess.
    Raises ValueError when counts do not fit the places or the background is missing.
    """
    if counts.shape != fixed.silent.shape or not counts.flags.c_contiguous:
        raise ValueError(f"counts must be a C-contiguous {fixed.silent.shape} image")
    if artefacts.edge_excess > 0.0 and (edge_background is None or edge_background.shape != counts.shape):
        raise ValueError(f"edge_excess needs the expected background, a {counts.shape} image")
    image, silent = counts.reshape(-1), fixed.silent.reshape(-1)

    def add(index: NDArray[np.int64], more: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(index):
            return _NONE
        touched = np.empty(len(index), dtype=np.int64)
        return touched[: _add(image, silent, index, more, largest_count, touched)]

    hot = add(fixed.hot, rng.poisson(artefacts.hot_counts, len(fixed.hot)))
    on = fixed.flickering[rng.random(len(fixed.flickering)) < artefacts.flicker_share]
    flicker = add(on, rng.poisson(artefacts.flicker_counts, len(on)))
    dark_places = rng.integers(0, image.size, rng.poisson(artefacts.dark_counts * image.size))
    dark = add(dark_places, np.ones(len(dark_places), dtype=np.int64))
    cosmic = add(*_cosmic_tracks(artefacts.cosmics, counts.shape[0], counts.shape[1], rng))
    edge = _NONE
    if edge_background is not None and artefacts.edge_excess > 0.0:
        expected = edge_background.reshape(-1)[fixed.edge].astype(np.float64) * (artefacts.edge_excess * edge_scale)
        edge = add(fixed.edge, rng.poisson(expected))
    if rng.random() < artefacts.edge_glow_share and len(fixed.edge_lines):
        first, length, step = fixed.edge_lines[rng.integers(len(fixed.edge_lines))].tolist()
        glow = add(np.arange(length) * step + first, rng.poisson(artefacts.edge_glow_counts, length))
        edge = np.concatenate([edge, glow])
    image[fixed.dead] = sentinel if artefacts.dead_reads_sentinel else 0
    return ArtefactTruth(hot, flicker, cosmic, edge, dark)


def _cosmic_tracks(
    mean: float, rows: int, columns: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels (n,) and counts (n,) of a Poisson number of straight tracks, each starting anywhere on the panel."""
    tracks = int(rng.poisson(mean))
    length = np.clip(np.ceil(rng.exponential(MEAN_TRACK_PX, tracks)), 1, LONGEST_TRACK_PX)[:, None]
    angle = rng.uniform(0.0, 2.0 * math.pi, tracks)
    along = np.stack([np.sin(angle), np.cos(angle)])
    along /= np.abs(along).max(axis=0)  # one pixel a step along the steeper axis, so none twice
    start = rng.random((2, tracks)) * np.array([[rows], [columns]])
    steps = np.arange(LONGEST_TRACK_PX)
    ss = np.floor(start[0][:, None] + steps * along[0][:, None]).astype(np.int64)
    fs = np.floor(start[1][:, None] + steps * along[1][:, None]).astype(np.int64)
    on = (steps < length) & (ss >= 0) & (ss < rows) & (fs >= 0) & (fs < columns)
    index = (ss * columns + fs)[on]
    return index, rng.integers(1, 4, len(index))


def _edge_lines(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    columns = mask.shape[1]
    lines = []
    # Looking up and down, then, in the transposed mask, left and right.
    for image, step in ((mask, 1), (np.ascontiguousarray(mask.T), columns)):
        length = image.shape[1]
        for here, there in ((slice(1, None), slice(-1)), (slice(-1), slice(1, None))):
            beside = np.zeros(image.shape, dtype=bool)
            np.less(image[here], image[there], out=beside[here])
            place = np.flatnonzero(beside)
            begins = np.flatnonzero((np.diff(place, prepend=-2) != 1) | (place % length == 0))
            row, first = np.divmod(place[begins], length)
            start = row * columns + first if step == 1 else first * columns + row
            lines.append(np.stack([start, np.diff(begins, append=len(place)), np.full(len(row), step)], axis=1))
    found = np.concatenate(lines).astype(np.int64)
    return found[found[:, 1] >= SHORTEST_EDGE_PX]


_NONE = np.empty(0, dtype=np.int64)


def _add_py(image, silent, index, more, largest_count, touched):  # type: ignore[no-untyped-def]
    n = 0
    for i in range(index.shape[0]):
        pixel = index[i]
        if more[i] > 0 and not silent[pixel]:
            image[pixel] = min(np.int64(image[pixel]) + more[i], largest_count)
            touched[n] = pixel
            n += 1
    return n


_add: Callable[..., int] = njit(cache=True)(_add_py)
