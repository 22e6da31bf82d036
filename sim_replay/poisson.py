"""Drawing photons: Poisson counts from expectations, exact, and quick from empty to bright images.

Two ways, chosen by the mean. *Dealing* walks from photon to photon: how many there are is one Poisson number, where
they fall are sorted uniform places along the cumulative expectation. *Levels* splits each expectation into the nearest
level below it and a rest of at most 1/64 (a sum of Poisson numbers is Poisson): the level's count is looked up in a
table by 12 random bits, and where those leave more than one count open, by inverting the cumulative distribution with
64 bits; the rests are dealt. So probabilities are right to 2^-64 in the tails and to 1e-12 elsewhere, and
expectations are taken as float32. The same generator state gives the same image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import pdtr, pdtrc

LEVELS_ABOVE_MEAN = 0.25
"""Photons a pixel above which levels are the faster way (measured)."""

_MANTISSA_BITS = 6  # a level keeps these bits of an expectation, so a rest is at most 1/64 of it
_SHIFT = 23 - _MANTISSA_BITS
_LOWEST_EXPONENT, _HIGHEST_EXPONENT = -7, 10  # levels from 1/128 photon (below: dealt) to 1024 (above: numpy's own)
_LOWEST_KEY = (_LOWEST_EXPONENT + 127) << _MANTISSA_BITS
_LEVEL_COUNT = (_HIGHEST_EXPONENT - _LOWEST_EXPONENT) << _MANTISSA_BITS
_CELL_BITS = 12
_OPEN = 255  # a cell of a table that more than one count falls into
_BLOCK = 1 << 16  # pixels at a time: bounds memory and stays in the cache


def walk_total(expected: NDArray[Any]) -> float:
    """Sum of a 1-D array in the order of a walk through it, in float64: the total that dealing must meet.

    Raises ValueError when an expectation is negative or not finite.
    """
    total = float(_walk_total(expected))
    if not (math.isfinite(total) and total >= 0.0):
        raise ValueError("expected photons must be finite and 0 or more in every pixel")
    return total


def draw_dense(
    expected: NDArray[np.float32],
    total: float,
    scale: float,
    rng: np.random.Generator,
    out: NDArray[np.unsignedinteger],
    largest_count: int,
) -> None:
    """Add a Poisson draw of scale * expected to `out`, in place, clipped at largest_count.

    expected is (n,) float32, total its `walk_total`, scale any number of 0 or more; out holds n unsigned integers,
    C-contiguous. Raises ValueError when shapes or numbers are not that.
    """
    flat = _flat(out, largest_count)
    if expected.shape != flat.shape:
        raise ValueError(f"expectations of shape {expected.shape} do not fit an image of {flat.size} pixels")
    _draw(expected, total, scale, _EVERY_PIXEL, rng, flat, largest_count)


def draw_sparse(
    index: NDArray[np.int64],
    photons: NDArray[np.float64],
    rng: np.random.Generator,
    out: NDArray[np.unsignedinteger],
    largest_count: int,
) -> None:
    """Add a Poisson draw of `photons` expected at flat pixel `index` to `out`, in place; an index may repeat.

    index (n,) int64, photons (n,) float64; out as for `draw_dense`. Raises ValueError when they are not that.
    """
    flat = _flat(out, largest_count)
    if index.shape != photons.shape or index.ndim != 1:
        raise ValueError(f"index {index.shape} and photons {photons.shape} must be two lists of one length")
    if len(index) == 0:
        return
    if index.min() < 0 or index.max() >= flat.size:
        raise ValueError(f"a pixel index is outside an image of {flat.size} pixels")
    _draw(photons, walk_total(photons), 1.0, index, rng, flat, largest_count)


_EVERY_PIXEL = np.empty(0, dtype=np.int64)


def _flat(out: NDArray[np.unsignedinteger], largest_count: int) -> NDArray[np.unsignedinteger]:
    if not out.flags.c_contiguous:
        raise ValueError("the image to draw into must be C-contiguous")
    if out.dtype.kind != "u" or not 0 <= largest_count <= np.iinfo(out.dtype).max:
        raise ValueError(f"an image of {out.dtype} cannot hold counts up to {largest_count}; give unsigned integers")
    return out.reshape(-1)


def _draw(
    expected: NDArray[Any],
    total: float,
    scale: float,
    index: NDArray[np.int64],
    rng: np.random.Generator,
    out: NDArray[np.unsignedinteger],
    largest_count: int,
) -> None:
    if not (math.isfinite(scale) and scale >= 0.0 and math.isfinite(total) and total >= 0.0):
        raise ValueError(f"expected photons must be finite and 0 or more, not {total} times {scale}")
    mean = total * scale / max(len(expected), 1)
    if not math.isfinite(mean * len(expected)):
        raise ValueError(f"{total} expected photons times {scale} is no finite number")
    if mean == 0.0:
        return
    if mean > LEVELS_ABOVE_MEAN:
        _draw_levels(expected, scale, index, rng, out, largest_count)
    else:
        _deal(expected, total, scale, index, rng, out, largest_count)


def _deal(
    expected: NDArray[Any],
    total: float,
    scale: float,
    index: NDArray[np.int64],
    rng: np.random.Generator,
    out: NDArray[np.unsignedinteger],
    largest_count: int,
) -> None:
    photons = int(rng.poisson(scale * total))
    if photons == 0:
        return
    # The running sums of n + 1 exponentials, divided by the last, are n sorted uniform numbers: the photons' places
    # along the cumulative expectation, in order, so one walk over the pixels deals them all.
    places = rng.standard_exponential(photons + 1)
    np.cumsum(places, out=places)
    places *= total / places[-1]
    reached = _deal_photons(expected, places, photons, index, out, largest_count)
    if not abs(reached - total) <= 1e-6 * total:
        raise ValueError(f"expected photons sum to {reached}, not to the total {total} that was given")


def _draw_levels(
    expected: NDArray[Any],
    scale: float,
    index: NDArray[np.int64],
    rng: np.random.Generator,
    out: NDArray[np.unsignedinteger],
    largest_count: int,
) -> None:
    levels = _levels()
    block = min(_BLOCK, len(expected))
    rest = np.empty(block, dtype=np.float32)
    open_at, open_key, high_at = np.empty((3, block), dtype=np.int64)
    open_bits = np.empty(block, dtype=np.uint16)
    for start in range(0, len(expected), block):
        part = expected[start : start + block]
        size = len(part)
        with np.errstate(over="ignore"):  # such pixels are drawn from the expectation itself
            np.multiply(part, scale, out=rest[:size], casting="same_kind")
        if len(index):
            into, target = index[start : start + size], out
        else:
            into, target = _EVERY_PIXEL, out[start : start + size]
        bits = _random_words((size + 3) // 4, rng).view(np.uint16)
        opened, high, rests = _look_up(
            rest[:size], rest[:size].view(np.uint32), bits, *levels.lookup, open_at, open_key, open_bits, high_at,
            into, target, largest_count,
        )  # fmt: skip
        if opened:
            more = _random_words(opened, rng)
            _invert(opened, open_at, open_key, open_bits, more, *levels.inversion, into, target, largest_count)
        if high:
            at = high_at[:high]
            _draw_high(part[at].astype(np.float64) * scale, at, rng, into, target, largest_count)
        if rests > 0.0:
            _deal(rest[:size], rests, 1.0, into, rng, target, largest_count)


def _random_words(count: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    return rng.integers(0, 2**64 - 1, count, dtype=np.uint64, endpoint=True)


def _draw_high(
    expected: NDArray[np.float64],
    at: NDArray[np.int64],
    rng: np.random.Generator,
    index: NDArray[np.int64],
    out: NDArray[np.unsignedinteger],
    largest_count: int,
) -> None:
    if not np.all((expected >= 0.0) & np.isfinite(expected)):
        raise ValueError("expected photons must be finite and 0 or more in every pixel")
    # numpy refuses means near 2^63; from 2^60 photons on every image is full, whatever is drawn.
    drawn = rng.poisson(np.minimum(expected, 2.0**60))
    _add_counts(drawn, index[at] if len(index) else at, out, largest_count)


@dataclass(frozen=True, slots=True, eq=False)
class _Levels:
    """Poisson distributions of `_LEVEL_COUNT` means.

    lookup: level (L,) float32, base (L,) uint16 and table (L, 4096) uint8, where a count is base + table or open.
    inversion: bounds, all levels' cumulative probabilities times 2^64, uint64 rising; first (L + 1,) int64, where each
    level's bounds begin. The count for 64 random bits is the number of bounds at or below them.
    """

    lookup: tuple[NDArray[np.float32], NDArray[np.uint16], NDArray[np.uint8]]
    inversion: tuple[NDArray[np.uint64], NDArray[np.int64]]


@lru_cache(maxsize=1)
def _levels() -> _Levels:
    """Made at the first bright image, in about 0.1 s; 5 MB."""
    keys = np.arange(_LEVEL_COUNT, dtype=np.uint32) + np.uint32(_LOWEST_KEY)
    level = (keys << np.uint32(_SHIFT)).view(np.float32)
    bounds = [_bounds(float(mean)) for mean in level]
    first = np.concatenate([[0], np.cumsum([len(b) for b in bounds])]).astype(np.int64)
    base = np.empty(_LEVEL_COUNT, dtype=np.uint16)
    table = np.empty((_LEVEL_COUNT, 1 << _CELL_BITS), dtype=np.uint8)
    low = np.arange(1 << _CELL_BITS, dtype=np.uint64) << np.uint64(64 - _CELL_BITS)
    high = low | np.uint64((1 << (64 - _CELL_BITS)) - 1)
    for i, rising in enumerate(bounds):
        count = np.searchsorted(rising, low, side="right")
        closed = count == np.searchsorted(rising, high, side="right")
        base[i] = count[closed].min()
        table[i] = np.where(closed, count - int(base[i]), _OPEN)
        if (count[closed] - int(base[i])).max() >= _OPEN:
            raise AssertionError("a level's counts do not fit its table")
    return _Levels((level, base, table), (np.concatenate(bounds), first))


def _bounds(mean: float) -> NDArray[np.uint64]:
    """Cumulative probabilities of a Poisson mean times 2^64, up to where the upper tail rounds to nothing.

    Each tail is taken from its own end, so that small probabilities keep their digits.
    """
    counts = np.arange(int(mean + 12.0 * math.sqrt(mean)) + 40)
    below, above = pdtr(counts, mean), pdtrc(counts, mean)
    counts = counts[above * 2.0**64 >= 1.0]
    lower = below[counts] <= 0.5
    from_below = (below[counts[lower]] * 2.0**64).astype(np.uint64)
    from_above = ~((above[counts[~lower]] * 2.0**64).astype(np.uint64) - np.uint64(1))  # 2^64 - x
    return np.concatenate([from_below, from_above])


def _walk_total_py(expected):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(expected.shape[0]):
        value = expected[i]
        if not value >= 0.0:
            return np.nan
        total += value
    return total


def _deal_photons_py(expected, places, photons, index, out, largest_count):  # type: ignore[no-untyped-def]
    """Sum of the expectations. Photons beyond it, by rounding, go to the last pixel that expects any."""
    reached = 0.0
    j = 0
    everywhere = index.shape[0] == 0
    for i in range(expected.shape[0]):
        value = expected[i]
        if not value >= 0.0:
            return np.nan
        reached += value
        if j < photons and places[j] < reached:
            pixel = i if everywhere else index[i]
            count = np.int64(out[pixel])
            while j < photons and places[j] < reached:
                count += 1
                j += 1
            out[pixel] = min(count, largest_count)
    if j < photons:
        i = expected.shape[0] - 1
        while i > 0 and expected[i] == 0.0:
            i -= 1
        pixel = i if everywhere else index[i]
        out[pixel] = min(np.int64(out[pixel]) + photons - j, largest_count)
    return reached


def _look_up_py(  # type: ignore[no-untyped-def]
    rest, keys, bits, level, base, table, open_at, open_key, open_bits, high_at, index, out, largest_count
):
    """Counts of the levels into `out`; rest becomes what is left to deal. Returns open cells, high pixels, rests."""
    opened = 0
    high = 0
    rests = 0.0
    everywhere = index.shape[0] == 0
    for i in range(rest.shape[0]):
        key = np.int64(keys[i] >> _SHIFT) - _LOWEST_KEY
        if key >= 0:
            if key >= _LEVEL_COUNT:  # bright, not finite or negative
                high_at[high] = i
                high += 1
                rest[i] = 0.0
                continue
            rest[i] -= level[key]
            above = np.int64(table[key, bits[i] >> (16 - _CELL_BITS)])
            if above == _OPEN:
                open_at[opened] = i
                open_key[opened] = key
                open_bits[opened] = bits[i]
                opened += 1
            else:
                pixel = i if everywhere else index[i]
                out[pixel] = min(np.int64(out[pixel]) + np.int64(base[key]) + above, largest_count)
        rests += rest[i]
    return opened, high, rests


def _invert_py(  # type: ignore[no-untyped-def]
    opened, open_at, open_key, open_bits, more, bounds, first, index, out, largest_count
):
    everywhere = index.shape[0] == 0
    for i in range(opened):
        uniform = (np.uint64(open_bits[i]) << np.uint64(48)) | (more[i] >> np.uint64(16))
        start = first[open_key[i]]
        low = start
        high = first[open_key[i] + 1]
        while low < high:  # the first bound above
            middle = (low + high) >> 1
            if bounds[middle] <= uniform:
                low = middle + 1
            else:
                high = middle
        pixel = open_at[i] if everywhere else index[open_at[i]]
        out[pixel] = min(np.int64(out[pixel]) + low - start, largest_count)


def _add_counts_py(drawn, at, out, largest_count):  # type: ignore[no-untyped-def]
    for i in range(drawn.shape[0]):
        out[at[i]] = min(np.int64(out[at[i]]) + drawn[i], largest_count)


_walk_total: Callable[..., float] = njit(cache=True)(_walk_total_py)
_deal_photons: Callable[..., float] = njit(cache=True)(_deal_photons_py)
_look_up: Callable[..., tuple[int, int, float]] = njit(cache=True)(_look_up_py)
_invert: Callable[..., None] = njit(cache=True)(_invert_py)
_add_counts: Callable[..., None] = njit(cache=True)(_add_counts_py)
