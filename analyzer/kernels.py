"""The compiled loops of the reduction, one job each; ``reduction`` calls them in order.

Arguments are flat arrays over pixels (ss * fs,), bins (bins,) or lists of pixel indices. All
work in buffers of the caller; nothing is allocated that grows with the frame. Types are given
beforehand, so that numba compiles once, at import, and keeps the result on disk.
"""

from typing import Any

import numba
import numpy as np
from numba import types

from analyzer.evidence import LOG_LOWEST, LOG_STEP
from analyzer.geometry import AZIMUTH_CLASSES

CELL = 8
"""Pixels a side of a cell of the significance map."""

PEAK_DTYPE = np.dtype(
    [("fs", "f4"), ("ss", "f4"), ("intensity", "f4"), ("snr", "f4"), ("surprise", "f4"), ("saturated", "u1")]
)

_PEAK_SEPARATION = 3
_WINDOW = 2
_SPOT_PIXELS = 1024
_RING_INNER, _RING_OUTER = 4, 6
_RING_PRIOR_PIXELS = 50.0
_SMOOTHING_PHOTONS = 25.0
_LOG_FACTORIAL = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 65536, dtype=np.float64)))])


@numba.njit(nogil=True, cache=True, inline="always")
def _surprise(counts: Any, expected: float, log_expected: float) -> float:
    """-ln Poisson(counts; expected) for an excess, 0 otherwise."""
    if counts <= expected:
        return 0.0
    if counts < 65536:
        return float(expected - counts * log_expected + _LOG_FACTORIAL[counts])
    # Stirling; reached only by spots far beyond doubt.
    return float(expected - counts * log_expected + counts * (np.log(float(counts)) - 1.0))


@numba.njit(nogil=True, cache=True)
def _tail_surprise(counts: Any, expected: float) -> float:
    """-ln of the chance of so many counts or more, by the geometric bound of the Poisson tail."""
    surprise = _surprise(counts, expected, np.log(expected))
    return surprise + np.log(1.0 - expected / (counts + 1.0)) if surprise > 0.0 else 0.0


@numba.njit(nogil=True, cache=True)
def _smooth(counts: Any, pixels: Any, background: Any) -> None:
    """Mean counts a pixel of each bin, widened along the radius until enough photons support it."""
    classes = AZIMUTH_CLASSES
    radial_bins = background.size // classes
    for azimuth in range(classes):
        for radial in range(radial_bins):
            b = radial * classes + azimuth
            total, area = counts[b], pixels[b]
            reach = 0
            while total < _SMOOTHING_PHOTONS and reach < radial_bins:
                reach += 1
                if radial - reach >= 0:
                    total += counts[(radial - reach) * classes + azimuth]
                    area += pixels[(radial - reach) * classes + azimuth]
                if radial + reach < radial_bins:
                    total += counts[(radial + reach) * classes + azimuth]
                    area += pixels[(radial + reach) * classes + azimuth]
            background[b] = max(total, 0.5) / max(area, 1.0)


@numba.njit(nogil=True, cache=True)
def _claim(
    row: int, column: int, reach: int, rows: int, columns: int, claimed: Any, claim_index: Any, claims: int
) -> int:
    """Mark a square; new marks are listed. Returns how many are."""
    for y in range(max(0, row - reach), min(rows, row + reach + 1)):
        for x in range(max(0, column - reach), min(columns, column + reach + 1)):
            j = y * columns + x
            if claimed[j] == 0 and claims < claim_index.size:
                claimed[j] = 1
                claim_index[claims] = j
                claims += 1
    return claims


@numba.njit(nogil=True, cache=True)
def _claim_spot(
    pixels: Any,
    columns: int,
    start: int,
    limit: float,
    top: int,
    inside: Any,
    claimed: Any,
    claim_index: Any,
    claims: int,
) -> int:
    """Mark what belongs to the spot around ``start``: pixels over the background that lead down from it.

    A streak or a mosaic tail so gives one peak. Noise may rise by two standard deviations on
    the way down; a neighbour that rises more is a spot of its own.
    """
    rows = pixels.size // columns
    first = claims
    claims = _claim(start // columns, start % columns, _PEAK_SEPARATION, rows, columns, claimed, claim_index, claims)
    n = first
    while n < claims and n - first < _SPOT_PIXELS:
        j = claim_index[n]
        n += 1
        row, column = j // columns, j % columns
        value = float(pixels[j])
        if inside[j] == 0 or pixels[j] == top or value <= limit:
            continue
        ceiling = value + 2.0 * np.sqrt(value)
        for y in range(max(0, row - 1), min(rows, row + 2)):
            for x in range(max(0, column - 1), min(columns, column + 2)):
                k = y * columns + x
                if inside[k] and pixels[k] != top and limit < pixels[k] <= ceiling:
                    claims = _claim(y, x, 1, rows, columns, claimed, claim_index, claims)
    return claims


def _compiled(*arguments: Any, returns: Any) -> Any:
    """Compile for the three pixel types; ``None`` among the arguments stands for the pixels."""
    kinds = (types.uint8, types.uint16, types.uint32)
    signatures = [
        returns(*(types.Array(kind, 1, "C") if argument is None else argument for argument in arguments))
        for kind in kinds
    ]
    return numba.njit(signatures, nogil=True, cache=True)


def _array(kind: Any, dimensions: int = 1) -> Any:
    return types.Array(kind, dimensions, "C")


_U8, _I64, _F64 = _array(types.uint8), _array(types.int64), _array(types.float64)
_BINS, _LIST = _array(types.uint16), _array(types.int32)
_WORDS, _MAP = _array(types.uint64), _array(types.float32, 3)
_PEAKS = _array(numba.from_dtype(PEAK_DTYPE))


@_compiled(_WORDS, None, types.int64, types.int64, _U8, _BINS, _LIST, _U8, _F64, _F64, _F64, _I64, returns=types.int64)
def list_counts(
    words: Any, padded: Any, top: int, saturation: int, inside: Any, bin_of: Any, index: Any, seen: Any,
    photons: Any, occupied: Any, lost: Any, totals: Any,
) -> int:  # fmt: skip
    """List the valid pixels that counted; returns how many.

    ``words`` is the frame as 64-bit words: most are zero and are passed over whole. ``padded``
    is the same memory as pixels, up to the end of the last word, with zeros after the frame. Sets the
    photons, counting pixels and pixels without data (``top``) of each bin, ``seen``, and
    ``totals``: photons and saturated pixels.
    """
    per_word = 8 // padded.itemsize
    for b in range(photons.size):
        photons[b] = 0.0
        occupied[b] = 0.0
        lost[b] = 0.0
    found, total, saturated = 0, np.int64(0), 0
    for w in range(words.size):
        if words[w] == 0:
            continue
        for k in range(per_word):
            i = w * per_word + k
            value = padded[i]
            if value == 0 or inside[i] == 0:
                continue
            b = bin_of[i]
            if value == top:
                lost[b] += 1.0
                continue
            if value >= saturation:
                saturated += 1
            total += np.int64(value)
            photons[b] += value
            occupied[b] += 1.0
            seen[i] = 1
            index[found] = i
            found += 1
    totals[0], totals[1] = total, saturated
    return found


@_compiled(None, _LIST, types.int64, _BINS, _F64, _F64, _F64, _F64, _F64, returns=types.void)
def estimate_background(
    pixels: Any, index: Any, found: int, bin_of: Any, photons: Any, counted: Any, occupied: Any, clipped: Any,
    background: Any,
) -> None:  # fmt: skip
    """Mean counts a pixel of each bin, unmoved by Bragg light.

    The first guess is from how many pixels counted at all: Bragg light, however bright, is few
    pixels; where nearly all count, the mean has to serve. Then twice the mean without outliers.
    ``occupied`` (from ``list_counts``) and ``clipped`` are used up.
    """
    bins = background.size
    for b in range(bins):
        share = occupied[b] / counted[b] if counted[b] > 0 else 0.0
        clipped[b] = -np.log1p(-share) * counted[b] if share < 0.8 else photons[b]
    _smooth(clipped, counted, background)
    for _ in range(2):
        clipped[:] = 0.0
        occupied[:] = counted
        for n in range(found):
            i = index[n]
            b = bin_of[i]
            if pixels[i] <= background[b] + 5.0 * np.sqrt(background[b]) + 3.0:
                clipped[b] += pixels[i]
            else:
                occupied[b] -= 1.0
        _smooth(clipped, occupied, background)


@_compiled(
    None,
    _LIST,
    types.int64,
    types.int64,
    types.int64,
    _U8,
    _BINS,
    _F64,
    _F64,
    types.float64,
    _MAP,
    _F64,
    _F64,
    _MAP,
    _I64,
    _array(types.float64, 2),
    _I64,
    _F64,
    returns=types.int64,
)
def map_significance(
    pixels: Any, index: Any, found: int, columns: int, top: int, inside: Any, bin_of: Any, background: Any,
    log_background: Any, threshold: float, significance: Any, cell_counts: Any, cell_expected: Any,
    evidence_table: Any, bin_zone: Any, evidence: Any, candidate_index: Any, candidate_score: Any,
) -> int:  # fmt: skip
    """Significance of cells, of one pixel, the best of 2 x 2 and 3 x 3 around it and what supports it; evidence.

    Support is the 3 x 3 without its middle, where that is the highest: a spot has it, a hot pixel has not. Sets the
    cell's own and the largest in each cell in ``significance`` (4, rows, columns) and lists
    the pixels above ``threshold`` with their score, negated so that ascending order is brightest first;
    returns how many. ``cell_expected`` (rows * columns,) is the background of each cell;
    ``cell_counts`` (rows * columns,) is used up. ``evidence`` (zones, rates) becomes what the 3 x 3 of each zone of
    ``bin_zone`` (bins,) say together, by ``evidence_table`` (``evidence.TABLE``).
    """
    significance[:] = 0.0
    evidence[:] = 0.0
    most_counts = evidence_table.shape[2] - 1
    cell_counts[:] = 0.0
    cells_across = significance.shape[2]
    log4, log8, log9 = np.log(4.0), np.log(8.0), np.log(9.0)
    candidates = 0
    for n in range(found):
        i = index[n]
        b = bin_of[i]
        mean, log_mean = background[b], log_background[b]
        value = np.int64(pixels[i])
        row, column = i // columns // CELL, i % columns // CELL
        cell_counts[row * cells_across + column] += value
        # In bright water a pixel below the mean is not the middle of a spot.
        if mean > 0.3 and value <= mean:
            continue
        one, wide, support = _surprise(value, mean, log_mean), 0.0, 0.0
        if inside[i] == 2:
            up, down = i - columns, i + columns
            a0, a1, a2 = np.int64(pixels[up - 1]), np.int64(pixels[up]), np.int64(pixels[up + 1])
            a3, a5 = np.int64(pixels[i - 1]), np.int64(pixels[i + 1])
            a6, a7, a8 = np.int64(pixels[down - 1]), np.int64(pixels[down]), np.int64(pixels[down + 1])
            highest = max(a0, a1, a2, a3, a5, a6, a7, a8)
            if highest != top:
                four = value + max(a0 + a1 + a3, a1 + a2 + a5, a3 + a6 + a7, a5 + a7 + a8)
                nine = value + a0 + a1 + a2 + a3 + a5 + a6 + a7 + a8
                wide = max(_surprise(four, 4.0 * mean, log_mean + log4), _surprise(nine, 9.0 * mean, log_mean + log9))
                tabled = max(np.int64((log_mean + log9 - LOG_LOWEST) / LOG_STEP + 0.5), np.int64(0))
                if tabled < evidence_table.shape[1]:
                    for rate in range(evidence.shape[1]):
                        evidence[bin_zone[b], rate] += evidence_table[rate, tabled, min(nine, most_counts)]
                if highest <= value:
                    support = _surprise(nine - value, 8.0 * mean, log_mean + log8)
        if one > significance[1, row, column]:
            significance[1, row, column] = one
        if wide > significance[2, row, column]:
            significance[2, row, column] = wide
        if support > significance[3, row, column]:
            significance[3, row, column] = support
        best = max(one, wide)
        if best > threshold and candidates < candidate_index.size:
            candidate_index[candidates] = i
            # Ties go to the brighter pixel, then to the earlier: the order is the frame's own.
            candidate_score[candidates] = -(best + 1e-3 * min(value, np.int64(1000)))
            candidates += 1
    for cell in range(cell_counts.size):
        counts, expected = np.int64(cell_counts[cell]), cell_expected[cell]
        if counts > 1 and counts > expected:
            significance[0, cell // cells_across, cell % cells_across] = _surprise(counts, expected, np.log(expected))
    return candidates


@numba.njit(
    types.void(_MAP, types.Array(types.uint8, 1, "C"), _F64, types.Array(types.float32, 2, "C"), _F64),
    nogil=True,
    cache=True,
)
def count_levels(significance: Any, zone_of_cell: Any, levels: Any, counts: Any, strength: Any) -> None:
    """How many cells of each zone reach each level of significance, on each scale of the map; and how strong each is.

    ``zone_of_cell`` (rows * columns,), ``levels`` ascending; ``counts`` (zones, scales * levels) and ``strength``
    (rows * columns,), the product of 1 + significance over the scales, are overwritten.
    """
    counts[:] = 0.0
    strength[:] = 1.0
    scales, rows, columns = significance.shape
    for scale in range(scales):
        for row in range(rows):
            for column in range(columns):
                value = significance[scale, row, column]
                if value == 0.0:
                    continue
                cell = row * columns + column
                strength[cell] *= 1.0 + value
                for level in range(levels.size):
                    if value < levels[level]:
                        break
                    counts[zone_of_cell[cell], scale * levels.size + level] += 1.0


@numba.njit(
    types.void(
        _MAP, _F64, types.Array(types.float32, 2, "C"), _F64, _F64, _I64, types.Array(types.float32, 2, "C"),
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def list_strongest(
    significance: Any, strength: Any, valid: Any, radius_m: Any, expected: Any, chosen: Any, cells: Any
) -> None:
    """The strongest cells of the map, strongest first; of equals the earlier.

    ``strength``, ``radius_m``, ``expected`` (rows * columns,): as ``count_levels`` leaves it; of the middle of each
    cell; its expected counts. ``valid`` (rows, columns): share of valid pixels. ``chosen`` (n,) is used up; ``cells``
    (n, scales + 4) is overwritten: significances, radius, valid share, expected counts a valid pixel and the distance
    in cells to the nearest other, 0 throughout where there are fewer cells above nothing.
    """
    scales, _, columns = significance.shape
    most, found = chosen.size, 0
    for cell in range(strength.size):
        value = strength[cell]
        if value <= 1.0 or (found == most and value <= strength[chosen[most - 1]]):
            continue
        place = min(found, most - 1)
        while place > 0 and strength[chosen[place - 1]] < value:
            chosen[place] = chosen[place - 1]
            place -= 1
        chosen[place] = cell
        found = min(found + 1, most)
    cells[:] = 0.0
    for n in range(found):
        row, column = chosen[n] // columns, chosen[n] % columns
        for scale in range(scales):
            cells[n, scale] = significance[scale, row, column]
        cells[n, scales] = radius_m[chosen[n]]
        cells[n, scales + 1] = valid[row, column]
        cells[n, scales + 2] = expected[chosen[n]] / max(valid[row, column] * CELL**2, 1.0)
        nearest = np.int64(0)
        for other in range(found):
            if other != n:
                apart = (chosen[other] // columns - row) ** 2 + (chosen[other] % columns - column) ** 2
                nearest = apart if nearest == 0 else min(nearest, apart)
        cells[n, scales + 3] = np.sqrt(float(nearest))


@numba.njit(nogil=True, cache=True)
def _local_background(pixels: Any, columns: int, row: int, column: int, top: int, inside: Any, mean: float) -> float:
    """The larger of the bin's mean and that of a ring around: on streaks and ring edges the ring decides."""
    rows = pixels.size // columns
    limit = mean + 5.0 * np.sqrt(mean) + 3.0
    counts, area = _RING_PRIOR_PIXELS * mean, _RING_PRIOR_PIXELS
    for y in range(max(0, row - _RING_OUTER), min(rows, row + _RING_OUTER + 1)):
        for x in range(max(0, column - _RING_OUTER), min(columns, column + _RING_OUTER + 1)):
            if max(abs(y - row), abs(x - column)) < _RING_INNER:
                continue
            j = y * columns + x
            if inside[j] and pixels[j] != top:
                area += 1.0
                counts += min(float(pixels[j]), limit)
    return max(mean, counts / area)


@numba.njit(nogil=True, cache=True)
def _best_score(pixels: Any, columns: int, row: int, column: int, top: int, inside: Any, local: float) -> float:
    """Significance of the pixel, of the best 2 x 2 and of the 3 x 3 around it over a background."""
    rows = pixels.size // columns
    nine, nine_area, best_four = np.int64(0), 0, np.int64(0)
    for y in range(max(0, row - 1), min(rows, row + 2)):
        for x in range(max(0, column - 1), min(columns, column + 2)):
            j = y * columns + x
            if inside[j] and pixels[j] != top:
                nine += np.int64(pixels[j])
                nine_area += 1
    for y in range(max(0, row - 1), min(rows - 1, row + 1)):
        for x in range(max(0, column - 1), min(columns - 1, column + 1)):
            four = np.int64(0)
            for dy in range(2):
                for dx in range(2):
                    j = (y + dy) * columns + x + dx
                    if inside[j] and pixels[j] != top:
                        four += np.int64(pixels[j])
            best_four = max(best_four, four)
    return max(
        _tail_surprise(np.int64(pixels[row * columns + column]), local),
        _tail_surprise(best_four, 4.0 * local),
        _tail_surprise(nine, max(nine_area, 1) * local),
    )


@numba.njit(nogil=True, cache=True)
def _measure(
    pixels: Any, columns: int, row: int, column: int, top: int, saturation: int, inside: Any, local: float, peak: Any
) -> bool:
    """Centroid, net photons and their ratio to noise in the window; False when nothing is left over the background."""
    rows = pixels.size // columns
    weight, sum_y, sum_x, net, gross, saturated = 0.0, 0.0, 0.0, 0.0, 0.0, np.uint8(0)
    for y in range(max(0, row - _WINDOW), min(rows, row + _WINDOW + 1)):
        for x in range(max(0, column - _WINDOW), min(columns, column + _WINDOW + 1)):
            j = y * columns + x
            if inside[j] == 0 or pixels[j] == top:
                continue
            value = np.int64(pixels[j])
            gross += value
            net += value - local
            if value >= saturation:
                saturated = np.uint8(1)
            if value > local:
                weight += value - local
                sum_y += (value - local) * (y - row)
                sum_x += (value - local) * (x - column)
    if net <= 0.0:
        return False
    peak.ss = row + sum_y / weight
    peak.fs = column + sum_x / weight
    peak.intensity = net
    peak.snr = net / np.sqrt(gross)
    peak.saturated = saturated
    return True


@_compiled(
    None,
    types.int64,
    types.int64,
    types.int64,
    _U8,
    _BINS,
    _F64,
    types.float64,
    _I64,
    _F64,
    types.int64,
    _U8,
    _I64,
    _PEAKS,
    _I64,
    returns=types.int64,
)
def find_peaks(
    pixels: Any, columns: int, top: int, saturation: int, inside: Any, bin_of: Any, background: Any,
    threshold: float, candidate_index: Any, candidate_score: Any, candidates: int, claimed: Any, claim_index: Any,
    peaks: Any, totals: Any,
) -> int:  # fmt: skip
    """One peak for each spot among the candidates, brightest first; returns how many.

    Pixels of spots are marked in ``claimed`` and listed in ``claim_index``, ``totals[2]`` of them.
    """
    found, claims = 0, 0
    for k in np.argsort(candidate_score[:candidates], kind="mergesort"):
        i = candidate_index[k]
        if claimed[i] or found >= peaks.size:
            continue
        row, column = i // columns, i % columns
        mean = background[bin_of[i]]
        local = _local_background(pixels, columns, row, column, top, inside, mean)
        score = _best_score(pixels, columns, row, column, top, inside, local)
        if score <= threshold:
            continue
        if not _measure(pixels, columns, row, column, top, saturation, inside, local, peaks[found]):
            continue
        peaks[found].surprise = score
        found += 1
        tail = mean + 3.0 * np.sqrt(mean) + 1.0
        claims = _claim_spot(pixels, columns, i, tail, top, inside, claimed, claim_index, claims)
    totals[2] = claims
    return found


@_compiled(None, types.int64, _U8, _BINS, _F64, _F64, _U8, _I64, types.int64, returns=types.void)
def leave_out_spots(
    pixels: Any, top: int, inside: Any, bin_of: Any, photons: Any, counted: Any, claimed: Any, claim_index: Any,
    claims: int,
) -> None:  # fmt: skip
    """Take the pixels of spots out of the profile, and wipe their marks for the next frame."""
    for n in range(claims):
        j = claim_index[n]
        claimed[j] = 0
        if inside[j] and pixels[j] != top:
            photons[bin_of[j]] -= pixels[j]
            counted[bin_of[j]] -= 1.0
