"""Where the learned finder looks, what it sees there, and how its answer becomes places: compiled loops, one job each.

A tile is a cell of the significance map with a margin around it: ``TILE`` x ``TILE`` pixels, of which the network
answers for the middle ``CELL`` x ``CELL``, one heat for each 2 x 2 of them. Tiles lie on the cells' grid, so that the
answers of neighbours fit together without a seam. Nothing is allocated that grows with the frame; a frame that is
significant everywhere has its strongest cells looked at, ``MAX_TILES`` of them.
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types

from analyzer.kernels import CELL
from analyzer.tile_layout import CHANNELS, HEATS, MARGIN, STRIDE, TILE
from streamer.instructions import compiled

STRONG = 20.0
"""A cell of this significance is strong: chance gives a 4M frame one in a hundred."""

_LARGEST_ROOT, _SMALLEST_ROOT = 40.0, -8.0
_SMALLEST_MEAN = 1e-8
_RATIO_PRIOR_COUNTS = 4.0
_WINDOW = 2
_RING_INNER, _RING_OUTER = 4, 6
_RING_PRIOR_PIXELS = 50.0
_SEPARATION_PX = 2.5
_BISECTIONS = 40


@numba.njit(nogil=True, cache=True, inline="always")
def _root(counts: float, expected: float) -> float:
    """Signed root of the Poisson deviance: about the excess in standard deviations, and right where means are small."""
    deviance = expected - counts
    if counts > 0.0:
        deviance += counts * math.log(counts / expected)
    root = math.sqrt(2.0 * max(deviance, 0.0))
    return min(root, _LARGEST_ROOT) if counts > expected else max(-root, _SMALLEST_ROOT)


_FLAT_U8, _I32 = types.Array(types.uint8, 1, "C"), types.Array(types.int32, 1, "C")
_BINS, _F64 = types.Array(types.uint16, 1, "C"), types.Array(types.float64, 1, "C")
_MAP = types.Array(types.float32, 3, "C")
_SHAPE: Any = types.Tuple((types.int64, types.int64))  # type: ignore[no-untyped-call]


@numba.njit(nogil=True, cache=True)
def _count_above(significance: Any, threshold: float) -> int:
    count = 0
    for row in range(significance.shape[1]):
        for column in range(significance.shape[2]):
            if max(significance[1, row, column], significance[2, row, column]) > threshold:
                count += 1
    return count


@numba.njit(nogil=True, cache=True)
def _significant(
    pixels: Any, shape: Any, top: int, inside: Any, bin_of: Any, background: Any, i: int, least: float
) -> bool:
    """Whether a pixel or the valid ones of the 3 x 3 around it lie so far above what is expected."""
    if inside[i] == 0 or pixels[i] == 0 or pixels[i] == top:
        return False
    rows, columns = shape
    row, column = i // columns, i % columns
    if _root(float(pixels[i]), max(background[bin_of[i]], _SMALLEST_MEAN)) > least:
        return True
    counts, expected = 0.0, _SMALLEST_MEAN
    for y in range(max(0, row - 1), min(rows, row + 2)):
        for x in range(max(0, column - 1), min(columns, column + 2)):
            j = y * columns + x
            if inside[j] and pixels[j] != top:
                counts += float(pixels[j])
                expected += background[bin_of[j]]
    return _root(counts, expected) > least


@compiled(
    None, _SHAPE, types.int64, _FLAT_U8, _BINS, _F64, _MAP, types.float64, _FLAT_U8,
    _I32, _F64, returns=types.int64,
)  # fmt: skip
def choose_tiles(
    pixels: Any, shape: Any, top: int, inside: Any, bin_of: Any, background: Any, significance: Any, threshold: float,
    marked: Any, tiles: Any, frame_facts: Any,
) -> int:  # fmt: skip
    """List the cells to look at in ``tiles`` (MAX_TILES,), row by row; returns how many.

    Those above ``threshold`` in the map, and a neighbour where what is significant touches it, as the spot's middle may
    lie there, unless more cells are significant than there is room for. ``marked`` (cells,) is 0 before and after.
    ``frame_facts`` (3,): strong cells, tiles, most counts.
    """
    rows, columns = shape
    down, across = significance.shape[1], significance.shape[2]
    limit = tiles.size
    # Of too many, those above a level that leaves few enough, then the first of those between it and one that does not.
    spare_above, spare = threshold, 0
    if _count_above(significance, threshold) > limit:
        too_low, high = threshold, 1e30
        for _ in range(_BISECTIONS):
            middle = math.sqrt(max(too_low, 1.0) * high)
            if _count_above(significance, middle) > limit:
                too_low = middle
            else:
                high = middle
        spare_above, threshold = too_low, high
        spare = limit - _count_above(significance, threshold)
    # The deviance lacks the Poisson law's own normalisation, worth up to 2 for the counts that matter here.
    least = math.sqrt(2.0 * max(threshold - 2.0, 0.0))
    strong = 0
    for row in range(down):
        for column in range(across):
            value = max(significance[1, row, column], significance[2, row, column])
            strong += value > STRONG
            if value <= threshold:
                if spare == 0 or value <= spare_above:
                    continue
                spare -= 1
            marked[row * across + column] = 1
            if spare_above < threshold:
                continue  # no room for neighbours
            for y in range(row * CELL, min(rows, (row + 1) * CELL)):
                for x in range(column * CELL, min(columns, (column + 1) * CELL)):
                    up, low = y % CELL == 0 and row > 0, y % CELL == CELL - 1 and row + 1 < down
                    left, right = x % CELL == 0 and column > 0, x % CELL == CELL - 1 and column + 1 < across
                    if not (up or low or left or right):
                        continue
                    if not _significant(pixels, shape, top, inside, bin_of, background, y * columns + x, least):
                        continue
                    for dy in range(-1 if up else 0, 2 if low else 1):
                        for dx in range(-1 if left else 0, 2 if right else 1):
                            marked[(row + dy) * across + column + dx] = 1
    chosen, most = 0, 0.0
    for cell in range(marked.size):
        if marked[cell] == 0:
            continue
        marked[cell] = 0
        if chosen == limit:
            continue
        row, column, area = cell // across, cell % across, 0
        for y in range(row * CELL, min(rows, (row + 1) * CELL)):
            for x in range(column * CELL, min(columns, (column + 1) * CELL)):
                i = y * columns + x
                if inside[i] and pixels[i] != top:
                    area += 1
                    most = max(most, float(pixels[i]))
        if area > 0:
            tiles[chosen] = cell
            chosen += 1
    frame_facts[0], frame_facts[1], frame_facts[2] = strong, chosen, most
    return chosen


@compiled(
    None, _SHAPE, types.int64, _FLAT_U8, _BINS, _F64, types.int64, _I32, types.int64,
    types.int64, _F64, types.Array(types.float32, 4, "C"), types.Array(types.float32, 2, "C"),
    returns=types.void,
)  # fmt: skip
def fill_tiles(
    pixels: Any, shape: Any, top: int, inside: Any, bin_of: Any, background: Any, across: int, tiles: Any, first: int,
    last: int, frame_facts: Any, inputs: Any, facts: Any,
) -> None:  # fmt: skip
    """What the network sees of the tiles from ``first`` to before ``last``.

    ``inputs`` (n, CHANNELS, TILE, TILE) and ``facts`` (n, FACTS), see there; n is at least last - first.
    """
    rows, columns = shape
    side = TILE + 2
    counts, means, valid = np.empty((side, side)), np.empty((side, side)), np.empty((side, side))
    for t in range(first, last):
        row0 = tiles[t] // across * CELL - MARGIN
        column0 = tiles[t] % across * CELL - MARGIN
        all_counts, all_expected, area = 0.0, 0.0, 0.0
        for y in range(side):
            for x in range(side):
                row, column = row0 + y - 1, column0 + x - 1
                counts[y, x], means[y, x], valid[y, x] = 0.0, 0.0, 0.0
                if row < 0 or row >= rows or column < 0 or column >= columns:
                    continue
                i = row * columns + column
                if inside[i] == 0 or pixels[i] == top:
                    continue
                mean = max(background[bin_of[i]], _SMALLEST_MEAN)
                counts[y, x], means[y, x], valid[y, x] = float(pixels[i]), mean, 1.0
                if 0 < y < side - 1 and 0 < x < side - 1:
                    all_counts += min(counts[y, x], mean + 5.0 * math.sqrt(mean) + 3.0)
                    all_expected += mean
                    area += 1.0
        n = t - first
        for y in range(TILE):
            for x in range(TILE):
                one, mean = counts[y + 1, x + 1], means[y + 1, x + 1]
                if valid[y + 1, x + 1] == 0.0:
                    for channel in range(CHANNELS):
                        inputs[n, channel, y, x] = 0.0
                    continue
                nine, expected = 0.0, 0.0
                for dy in range(3):
                    for dx in range(3):
                        nine += counts[y + dy, x + dx]
                        expected += means[y + dy, x + dx]
                inputs[n, 0, y, x] = 0.5 * math.log1p(one)
                inputs[n, 1, y, x] = 0.25 * _root(one, mean)
                inputs[n, 2, y, x] = 0.25 * _root(nine, expected)
                inputs[n, 3, y, x] = 1.0
        facts[n, 0] = 0.25 * math.log(max(all_expected / max(area, 1.0), _SMALLEST_MEAN))
        facts[n, 1] = math.log((all_counts + _RATIO_PRIOR_COUNTS) / (all_expected + _RATIO_PRIOR_COUNTS))
        facts[n, 2] = area / TILE**2
        facts[n, 3] = 0.2 * math.log1p(frame_facts[0])
        facts[n, 4] = 0.2 * math.log1p(frame_facts[1])
        facts[n, 5] = 0.125 * math.log1p(frame_facts[2])


@numba.njit(
    types.int64(
        types.Array(types.float32, 4, "C"), _I32, types.int64, _I32, types.int64, types.float64,
        types.Array(types.float64, 2, "C"),
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def list_maxima(
    outputs: Any, tiles: Any, count: int, tile_of: Any, across: int, least_logit: float, maxima: Any
) -> int:
    """Heats above ``least_logit`` that no neighbour exceeds, across tiles too; of equals the earlier one.

    ``outputs`` (n, OUTPUTS, HEATS, HEATS); ``tile_of`` (cells,) is -1 before and after. ``maxima`` (m, 4) becomes fs,
    ss, logit and ln(expected counts); returns how many there are, m at most.
    """
    down = tile_of.size // across
    for t in range(count):
        tile_of[tiles[t]] = t
    found = 0
    for t in range(count):
        row0, column0 = tiles[t] // across * HEATS, tiles[t] % across * HEATS
        for y in range(HEATS):
            for x in range(HEATS):
                logit = outputs[t, 0, y, x]
                # Written so that no number at all is no maximum.
                if not logit > least_logit or found == maxima.shape[0]:
                    continue
                highest = True
                for dy in range(-1, 2):
                    for dx in range(-1, 2):
                        row, column = row0 + y + dy, column0 + x + dx
                        if (dy == 0 and dx == 0) or row < 0 or column < 0:
                            continue
                        if row >= down * HEATS or column >= across * HEATS:
                            continue
                        other = tile_of[row // HEATS * across + column // HEATS]
                        if other < 0:
                            continue
                        theirs = outputs[other, 0, row % HEATS, column % HEATS]
                        earlier = dy < 0 or (dy == 0 and dx < 0)
                        if theirs > logit or (theirs == logit and earlier):
                            highest = False
                if highest and math.isfinite(outputs[t, 1, y, x]) and math.isfinite(outputs[t, 2, y, x]):
                    middle = 0.5 * (STRIDE - 1)
                    maxima[found, 0] = STRIDE * (column0 + x + outputs[t, 1, y, x]) + middle
                    maxima[found, 1] = STRIDE * (row0 + y + outputs[t, 2, y, x]) + middle
                    maxima[found, 2] = logit
                    maxima[found, 3] = outputs[t, 3, y, x]
                    found += 1
    for t in range(count):
        tile_of[tiles[t]] = -1
    return found


@numba.njit(nogil=True, cache=True)
def _lacks_data(pixels: Any, shape: Any, top: int, row: int, column: int) -> bool:
    """Whether a pixel or one of the eight around it has no data."""
    for y in range(max(0, row - 1), min(shape[0], row + 2)):
        for x in range(max(0, column - 1), min(shape[1], column + 2)):
            if pixels[y * shape[1] + x] == top:
                return True
    return False


@compiled(
    None, _SHAPE, types.int64, types.int64, _FLAT_U8, _BINS, _F64,
    types.Array(types.float64, 2, "C"), types.int64, types.Array(types.float64, 2, "C"), returns=types.int64,
)  # fmt: skip
def measure(
    pixels: Any, shape: Any, top: int, saturation: int, inside: Any, bin_of: Any, background: Any, maxima: Any,
    count: int, peaks: Any,
) -> int:  # fmt: skip
    """Counts of the maxima that lie on pixels with valid ones that have data all around; returns how many.

    ``peaks`` (m, 6), surest first: fs, ss, net counts in 5 x 5, their ratio to the root of all counts there, the heat's
    logit, whether a pixel is saturated. One nearer than 2.5 pixels to a surer one is the same spot; one without counts
    over the background, the larger of the bin's mean and that of a ring around, is none.
    """
    rows, columns = shape
    found = 0
    for k in np.argsort(-maxima[:count, 2], kind="mergesort"):
        fs, ss = maxima[k, 0], maxima[k, 1]
        row, column = math.floor(ss + 0.5), math.floor(fs + 0.5)
        if row < 0 or row >= rows or column < 0 or column >= columns or inside[row * columns + column] != 2:
            continue
        if found == peaks.shape[0] or _lacks_data(pixels, shape, top, row, column):
            continue
        again = False
        for other in range(found):
            if (peaks[other, 0] - fs) ** 2 + (peaks[other, 1] - ss) ** 2 < _SEPARATION_PX**2:
                again = True
                break
        if again:
            continue
        mean = background[bin_of[row * columns + column]]
        limit = mean + 5.0 * math.sqrt(mean) + 3.0
        ring_counts, ring_area = _RING_PRIOR_PIXELS * mean, _RING_PRIOR_PIXELS
        net, gross, area, saturated = 0.0, 0.0, 0.0, 0.0
        for y in range(max(0, row - _RING_OUTER), min(rows, row + _RING_OUTER + 1)):
            for x in range(max(0, column - _RING_OUTER), min(columns, column + _RING_OUTER + 1)):
                j = y * columns + x
                if inside[j] == 0 or pixels[j] == top:
                    continue
                away = max(abs(y - row), abs(x - column))
                if away >= _RING_INNER:
                    ring_area += 1.0
                    ring_counts += min(float(pixels[j]), limit)
                elif away <= _WINDOW:
                    gross += float(pixels[j])
                    area += 1.0
                    if pixels[j] >= saturation:
                        saturated = 1.0
        net = gross - area * max(mean, ring_counts / ring_area)
        if net <= 0.0:
            continue
        peaks[found, 0], peaks[found, 1], peaks[found, 2], peaks[found, 3] = fs, ss, net, net / math.sqrt(gross)
        peaks[found, 4], peaks[found, 5] = maxima[k, 2], saturated
        found += 1
    return found
