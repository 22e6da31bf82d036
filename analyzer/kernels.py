"""The compiled loops of the reduction, one job each; ``reduction`` calls them in order.

Arguments are flat arrays over pixels (ss * fs,), bins (bins,) or lists of pixel indices. All
work in buffers of the caller; nothing is allocated that grows with the frame. Types are given
beforehand, so that numba compiles once, at import, and keeps the result on disk.
"""

from typing import Any

import numba
import numpy as np
from numba import types

from analyzer.arcs import expect_beside
from analyzer.evidence import LOG_LOWEST, LOG_STEP
from analyzer.geometry import AZIMUTH_CLASSES
from analyzer.spots import (
    CLASS,
    CLASS_PIXELS,
    DISC_LOG_WEIGHT,
    DISCS,
    LIT_CHANCES,
    LOG_WEIGHT,
    PHOTONS,
    REACH,
    SHARES,
)
from streamer.instructions import compiled, lowest_bit

CELL = 8
"""Pixels a side of a cell of the significance map."""

PEAK_DTYPE = np.dtype(
    [("fs", "f4"), ("ss", "f4"), ("intensity", "f4"), ("snr", "f4"), ("surprise", "f4"), ("saturated", "u1")]
)

_PEAK_SEPARATION = 3
_WINDOW = 2
_WHOLE_FROM_PHOTONS = 30.0
"""A brighter peak is measured over all pixels of its spot: there noise costs less than what a window cuts off."""

_TAIL_CONTRAST = 3.0
"""A Gaussian of 0.8 pixels falls to less than a third from its second pixel out to the third."""

_WHOLE_KEEPS = 0.9
"""Of the window's photons, at least; else the rest of the spot's pixels holds less than the background: noise."""

_SMALLEST_SPOT_PIXELS = 45
"""Of a spot that claims nothing but the pixels nearer than four."""

_OWN_SHARE = 0.2
"""Of the photons around its middle; a peak with fewer that are no other's is that one's tail."""

_PROFILE_KNOWS = 0.1
"""Of what is expected by its own radius; a narrow ring's slope is not known better, and no spot is less over it."""

_SPOT_PIXELS = 1024
EXPONENTS = SHARES.shape[0] * len(PHOTONS) + len(DISCS) * len(LIT_CHANCES)
"""Things that a spot may be."""

KEPT_MEANS = 64
_NEGLIGIBLE = 45.0
"""Nats below the largest of a sum of exponentials: less than its last bit."""

SURE_PEAKS_FOR_AS_MANY = 6.0
"""A crystal that gives sure peaks gives weak ones too: n of them lower the evidence asked for by ln(1 + n / this)."""

QUADRANTS = 4
"""Of the azimuth about the beam; a bin has a place for each, number bin * 4 + quadrant."""

FACTS = 8
_MEAN, _LOG_MEAN, _ZONE, _TABLED, _ALONE, _AROUND, _SINGLE_OF_ONE, _WIDE_OF_ONE = range(FACTS)
"""What ``map_significance`` asks of a bin: the background, its logarithm, the bin's zone and the evidence's row, the
most counts that are diffuse, and how significant a pixel is, alone and in windows, that counted once and none around it
did."""

KEPT_WHOLE = 1 << 40
"""As the most counts of a pixel that is kept: every one is."""

_BLINDED = 2
"""Mark of a pixel whose 3 x 3 holds one without data."""

_RING_INNER, _RING_OUTER = 5, 7
_RING_PRIOR_PIXELS = 50.0
_SMOOTHING_PHOTONS = 25.0
_NEVER_OUTLIER = 3
"""Counts of a pixel, on any background."""

_LOG_FACTORIAL = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 65536, dtype=np.float64)))])
_HALF_LOG_2PI = 0.5 * np.log(2.0 * np.pi)


@numba.njit(nogil=True, cache=True, inline="always")
def _surprise(counts: Any, expected: float, log_expected: float) -> float:
    """-ln Poisson(counts; expected) for an excess, 0 otherwise."""
    if counts <= expected:
        return 0.0
    if counts < 65536:
        return float(expected - counts * log_expected + _LOG_FACTORIAL[counts])
    # Stirling.
    log_factorial = (counts + 0.5) * np.log(float(counts)) - counts + _HALF_LOG_2PI
    return float(expected - counts * log_expected + log_factorial)


@numba.njit(nogil=True, cache=True)
def _smooth(counts: Any, pixels: Any, background: Any) -> None:
    """Mean counts a pixel of each bin, widened along the radius until enough photons support it."""
    classes = AZIMUTH_CLASSES
    radial_bins = background.size // classes
    # Sums up to each radius, so that a dark frame, whose windows are all wide, costs no more than a bright one.
    total, area = np.zeros(radial_bins + 1), np.zeros(radial_bins + 1)
    for azimuth in range(classes):
        for radial in range(radial_bins):
            b = radial * classes + azimuth
            total[radial + 1] = total[radial] + counts[b]
            area[radial + 1] = area[radial] + pixels[b]
        for radial in range(radial_bins):
            short, reach = -1, 0
            while total[min(radial + reach + 1, radial_bins)] - total[max(radial - reach, 0)] < _SMOOTHING_PHOTONS:
                short, reach = reach, 2 * reach + 1
                if short >= radial_bins:
                    break
            while reach - short > 1:
                middle = (short + reach) // 2
                inner = total[min(radial + middle + 1, radial_bins)] - total[max(radial - middle, 0)]
                if inner < _SMOOTHING_PHOTONS:
                    short = middle
                else:
                    reach = middle
            low, high = max(radial - reach, 0), min(radial + reach + 1, radial_bins)
            b = radial * classes + azimuth
            background[b] = max(total[high] - total[low], 0.5) / max(area[high] - area[low], 1.0)


@numba.njit(nogil=True, cache=True)
def _keep_above(candidate_index: Any, candidate_score: Any, threshold: float) -> int:
    """Of a full list of candidates only those with more than ``threshold``, in their order; returns how many."""
    kept = 0
    for n in range(candidate_index.size):
        if -candidate_score[n] > threshold:
            candidate_index[kept], candidate_score[kept] = candidate_index[n], candidate_score[n]
            kept += 1
    return kept


@numba.njit(nogil=True, cache=True)
def _claim(
    row: int, column: int, reach: int, rows: int, columns: int, claimed: Any, claim_index: Any, claims: int
) -> int:
    """Mark a square; new marks are listed. Returns how many are."""
    for y in range(max(0, row - reach), min(rows, row + reach + 1)):
        for x in range(max(0, column - reach), min(columns, column + reach + 1)):
            j = y * columns + x
            if (y - row) ** 2 + (x - column) ** 2 > 15:
                continue
            if claimed[j] == 0 and claims < claim_index.size:
                claimed[j] = 1
                claim_index[claims] = j
                claims += 1
    return claims


@numba.njit(nogil=True, cache=True)
def _belongs(pixels: Any, columns: int, pixel: int, limit: float, most_lit: float, top: int, inside: Any) -> bool:
    """Whether a pixel counted more than ``limit``, or is one of more than ``most_lit`` that counted in its 3 x 3."""
    if pixels[pixel] == 0 or pixels[pixel] > limit:
        return bool(pixels[pixel] > limit)
    rows, row, column, lit = pixels.size // columns, pixel // columns, pixel % columns, 0
    for y in range(max(0, row - 1), min(rows, row + 2)):
        for x in range(max(0, column - 1), min(columns, column + 2)):
            j = y * columns + x
            lit += inside[j] != 0 and pixels[j] != top and pixels[j] > 0
    return lit > most_lit


@numba.njit(nogil=True, cache=True)
def _claim_spot(
    pixels: Any,
    columns: int,
    start: int,
    mean: float,
    top: int,
    inside: Any,
    claimed: Any,
    claim_index: Any,
    claims: int,
) -> int:
    """Mark what belongs to the spot around ``start``: pixels over the background that lead down from it.

    A pixel belongs by its own counts or, where pixels count but once a pulse, by how many around it counted. A streak
    or a mosaic tail so gives one peak. Noise may rise by two standard deviations on the way down; a neighbour that
    rises more is a spot of its own.
    """
    rows = pixels.size // columns
    limit, share = mean + 3.0 * np.sqrt(mean) + 1.0, -np.expm1(-mean)
    most_lit = 9.0 * share + 3.0 * np.sqrt(9.0 * share * (1.0 - share)) + 2.0
    first = claims
    claims = _claim(start // columns, start % columns, _PEAK_SEPARATION, rows, columns, claimed, claim_index, claims)
    n = first
    while n < claims and n - first < _SPOT_PIXELS:
        j = claim_index[n]
        n += 1
        row, column = j // columns, j % columns
        value = float(pixels[j])
        if inside[j] == 0 or pixels[j] == top or not _belongs(pixels, columns, j, limit, most_lit, top, inside):
            continue
        ceiling = value + 2.0 * np.sqrt(value)
        for y in range(max(0, row - 1), min(rows, row + 2)):
            for x in range(max(0, column - 1), min(columns, column + 2)):
                k = y * columns + x
                if inside[k] == 0 or pixels[k] > ceiling or pixels[k] == top:
                    continue
                if _belongs(pixels, columns, k, limit, most_lit, top, inside):
                    claims = _claim(y, x, 1, rows, columns, claimed, claim_index, claims)
    return claims


def _array(kind: Any, dimensions: int = 1) -> Any:
    return types.Array(kind, dimensions, "C")


_U8, _I64, _F64 = _array(types.uint8), _array(types.int64), _array(types.float64)
_BINS, _LIST = _array(types.uint16), _array(types.int32)
_WORDS, _MAP = _array(types.uint64), _array(types.float32, 3)
_CELL_BINS = _array(types.intp)
_PANELS, _PARTS = _array(types.float64, 2), _array(types.float64, 3)
_PEAKS, _FLAGS = _array(numba.from_dtype(PEAK_DTYPE)), _array(types.boolean)
_SOME_PEAKS = types.Array(numba.from_dtype(PEAK_DTYPE), 1, "A", readonly=True)


@compiled(_LIST, None, _LIST, types.int64, _BINS, _BINS, _WORDS, _F64, _F64, _F64, _I64, returns=types.void)
def tally(
    index: Any, value: Any, blank: Any, saturation: int, place: Any, at: Any, seen: Any, photons: Any, occupied: Any,
    lost: Any, totals: Any,
) -> None:  # fmt: skip
    """Sums over the pixels that counted, listed by ``index`` and ``value`` (found,), and over the ``blank`` ones.

    Sets the ``place`` of each in ``at`` (found,); the photons, counting pixels and pixels without data of each bin;
    its bit in ``seen``, a word each 64 pixels; and ``totals``: photons and saturated pixels.
    """
    photons[:] = 0.0
    occupied[:] = 0.0
    lost[:] = 0.0
    total, saturated, one = np.int64(0), np.int64(0), np.uint64(1)
    for n in range(index.size):
        i, counts = np.uint64(index[n]), value[n]
        at[n] = place[i]
        b = np.uint64(place[i]) // np.uint64(QUADRANTS)
        photons[b] += counts
        occupied[b] += 1.0
        total += np.int64(counts)
        saturated += np.int64(counts) >= saturation
        seen[i // np.uint64(64)] |= one << (i % np.uint64(64))
    for n in range(blank.size):
        lost[np.uint64(place[np.uint64(blank[n])]) // np.uint64(QUADRANTS)] += 1.0
    totals[0], totals[1] = total, saturated


@compiled(None, _BINS, _F64, _F64, _F64, _F64, _F64, _F64, returns=types.void)
def estimate_background(
    value: Any, at: Any, photons: Any, counted: Any, occupied: Any, clipped: Any, most: Any, background: Any
) -> None:
    """Mean counts a pixel of each bin, unmoved by Bragg light; ``value`` and ``at`` (found,): see ``tally``.

    The first guess is from how many pixels counted at all: Bragg light, however bright, is few
    pixels; where nearly all count, the mean has to serve. Then twice the mean without outliers.
    ``occupied`` (from ``tally``), ``clipped`` and ``most`` are used up.
    """
    bins = background.size
    for b in range(bins):
        share = occupied[b] / counted[b] if counted[b] > 0 else 0.0
        clipped[b] = -np.log1p(-share) * counted[b] if share < 0.8 else photons[b]
    _smooth(clipped, counted, background)
    for _ in range(2):
        for b in range(bins):
            clipped[b], occupied[b] = photons[b], counted[b]
            most[b] = background[b] + 5.0 * np.sqrt(background[b]) + _NEVER_OUTLIER
        for n in range(value.size):
            if value[n] <= _NEVER_OUTLIER:
                continue
            here = np.uint64(at[n]) // np.uint64(QUADRANTS)
            if value[n] > most[here]:
                clipped[here] -= value[n]
                occupied[here] -= 1.0
        _smooth(clipped, occupied, background)


@numba.njit(nogil=True, cache=True, inline="always")
def _run(lit: Any, first: Any, mask: Any) -> Any:
    """The bits of the pixels from the ``first`` on, as many as ``mask`` has."""
    word, shift = first // np.uint64(64), first % np.uint64(64)
    # Twice, for shifting by all 64 bits is undefined.
    above = (lit[word + np.uint64(1)] << (np.uint64(63) - shift)) << np.uint64(1)
    return ((lit[word] >> shift) | above) & mask


@numba.njit(nogil=True, cache=True)
def _gather_facts(
    background: Any, log_background: Any, evidence_table: Any, most_alone: Any, most_around: Any, bin_zone: Any,
    facts: Any,
) -> None:  # fmt: skip
    """All that a pixel asks of its bin, side by side in the cache: ``facts`` (bins, ``FACTS``)."""
    log4, log9 = np.log(4.0), np.log(9.0)
    for b in range(background.size):
        mean, log_mean, fact = background[b], log_background[b], facts[b]
        row = np.int64((log_mean + log9 - LOG_LOWEST) / LOG_STEP + 0.5)
        tabled = min(max(row, np.int64(0)), np.int64(evidence_table.shape[0]))
        four = _surprise(np.int64(1), 4.0 * mean, log_mean + log4)
        fact[_MEAN], fact[_LOG_MEAN], fact[_ZONE], fact[_TABLED] = mean, log_mean, bin_zone[b], tabled
        fact[_ALONE], fact[_AROUND] = most_alone[b], most_around[b]
        fact[_SINGLE_OF_ONE] = _surprise(np.int64(1), mean, log_mean)
        fact[_WIDE_OF_ONE] = max(four, _surprise(np.int64(1), 9.0 * mean, log_mean + log9))


@compiled(
    None, _WORDS, _LIST, None, _BINS, types.int64, types.int64, _WORDS, _F64, _F64, types.float64, _MAP, _MAP,
    _array(types.float64, 2), _I64, _array(types.float64, 2), _I64, _F64, _I64, _I64, _array(types.float64, 2),
    returns=types.int64,
)  # fmt: skip
def map_significance(
    pixels: Any, lit: Any, index: Any, value: Any, at: Any, columns: int, top: int, surrounded: Any, background: Any,
    log_background: Any, threshold: float, cells: Any, evidence_table: Any, facts: Any, bin_zone: Any, evidence: Any,
    candidate_index: Any, candidate_score: Any, most_alone: Any, most_around: Any, diffuse: Any,
) -> int:  # fmt: skip
    """Significance of one pixel, the best of 2 x 2 and 3 x 3 around it and what supports it; evidence.

    ``lit``: see ``streamer.listing``; ``surrounded``: see ``FramePlan``; ``index``, ``value``, ``at`` (found,): see
    ``tally``. Support is the 3 x 3 without its middle, where that is the highest: a spot has it, a hot pixel has not.
    Sets the counts of each cell and the largest of each of the three in ``cells`` (rows, columns, 4), and lists the
    pixels above ``threshold`` with their score, negated so that ascending order is brightest first; returns how many.
    ``evidence`` (zones, rates) becomes what the 3 x 3 of each zone of ``bin_zone`` (bins,) say together, by
    ``evidence_table`` (``evidence.BY_COUNTS``); ``facts`` (bins, ``FACTS``) is used up. ``diffuse`` (bins * 4, 2)
    becomes the photons and their squares of the pixels that ``analyzer.diffuse`` keeps, by their place.
    """
    cells[:] = 0.0
    evidence[:] = 0.0
    diffuse[:] = 0.0
    rows_tabled, most_counts = evidence_table.shape[0], evidence_table.shape[1] - 1
    log4, log8, log9 = np.log(4.0), np.log(8.0), np.log(9.0)
    _gather_facts(background, log_background, evidence_table, most_alone, most_around, bin_zone, facts)
    candidates = 0
    one, across, three, sides = np.uint64(1), np.uint64(columns), np.uint64(0b111), np.uint64(0b101)
    row, row_end = np.int64(0), np.int64(columns)
    for n in range(index.size):
        pixel = np.int64(index[n])
        i, place, counts = np.uint64(pixel), np.uint64(at[n]), np.int64(value[n])
        fact = facts[place // np.uint64(QUADRANTS)]
        mean, log_mean = fact[_MEAN], fact[_LOG_MEAN]
        while pixel >= row_end:
            row, row_end = row + 1, row_end + columns
        cell = cells[np.uint64(row // CELL), np.uint64((pixel + columns - row_end) // CELL)]
        cell[0] += counts
        windowed = (surrounded[i // np.uint64(64)] >> (i % np.uint64(64))) & one != 0
        alone = not windowed or fact[_AROUND] < 0.0
        if alone and counts <= fact[_ALONE]:
            diffuse[place, 0] += counts
            diffuse[place, 1] += float(counts) * counts
        # In bright water a pixel below the mean is not the middle of a spot.
        if mean > 0.3 and counts <= mean:
            continue
        up, down, plain = i - across, i + across, False
        if windowed and counts == 1:
            beside = _run(lit, up - one, three) | _run(lit, down - one, three) | _run(lit, i - one, sides)
            plain = beside == 0
        zone, tabled = np.uint64(fact[_ZONE]), np.uint64(fact[_TABLED])
        single, wide, support = 0.0, 0.0, 0.0
        if plain:
            # Most pixels that counted are so, and what they say is known beforehand.
            single, wide = fact[_SINGLE_OF_ONE], fact[_WIDE_OF_ONE]
            if fact[_AROUND] >= 1.0:
                diffuse[place, 0] += 1.0
                diffuse[place, 1] += 1.0
            if tabled < rows_tabled:
                for rate in range(evidence.shape[1]):
                    evidence[zone, rate] += evidence_table[tabled, 1, rate]
        else:
            single = _surprise(counts, mean, log_mean)
        if windowed and not plain:
            a0, a1, a2 = np.int64(pixels[up - one]), np.int64(pixels[up]), np.int64(pixels[up + one])
            a3, a5 = np.int64(pixels[i - one]), np.int64(pixels[i + one])
            a6, a7, a8 = np.int64(pixels[down - one]), np.int64(pixels[down]), np.int64(pixels[down + one])
            highest = max(a0, a1, a2, a3, a5, a6, a7, a8)
            if highest != top:
                four = counts + max(a0 + a1 + a3, a1 + a2 + a5, a3 + a6 + a7, a5 + a7 + a8)
                nine = counts + a0 + a1 + a2 + a3 + a5 + a6 + a7 + a8
                if not alone and nine <= fact[_AROUND]:
                    diffuse[place, 0] += counts
                    diffuse[place, 1] += float(counts) * counts
                wide = max(_surprise(four, 4.0 * mean, log_mean + log4), _surprise(nine, 9.0 * mean, log_mean + log9))
                if tabled < rows_tabled:
                    column = np.uint64(min(nine, most_counts))
                    for rate in range(evidence.shape[1]):
                        evidence[zone, rate] += evidence_table[tabled, column, rate]
                if highest <= counts:
                    support = _surprise(nine - counts, 8.0 * mean, log_mean + log8)
        cell[1] = max(cell[1], np.float32(single))
        cell[2] = max(cell[2], np.float32(wide))
        cell[3] = max(cell[3], np.float32(support))
        best = max(single, wide)
        if best > threshold:
            candidate_index[candidates] = pixel
            # Ties go to the brighter pixel, then to the earlier: the order is the frame's own.
            candidate_score[candidates] = -(best + 1e-3 * min(counts, np.int64(1000)))
            candidates += 1
            if candidates == candidate_index.size:
                # A frame all of spots: those that stand out most are kept, wherever they are.
                threshold = -np.median(candidate_score)
                candidates = _keep_above(candidate_index, candidate_score, threshold)
    return candidates


@numba.njit(
    types.int64(
        _MAP, _CELL_BINS, _F64, _F64, _F64, _F64, _MAP, types.Array(types.uint8, 1, "C"), _F64,
        types.Array(types.float32, 2, "C"), _I64, _F64,
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def weigh_cells(
    cells: Any, cell_bin: Any, cell_pixels: Any, log_cell_pixels: Any, background: Any, log_background: Any,
    significance: Any, zone_of_cell: Any, levels: Any, reached: Any, lit: Any, strength: Any,
) -> int:  # fmt: skip
    """The cells that counted, ``lit`` of them by number, and how strong each is; returns how many.

    ``cells``: see ``map_significance``. Sets the map ``significance`` (4, rows, columns), of the cell itself and of
    the three, and how many cells of each zone reach each of the ascending ``levels`` on each scale: ``reached``
    (zones, scales * levels). ``cell_bin``, ``cell_pixels``,
    ``log_cell_pixels``, ``zone_of_cell`` (rows * columns,): bin of the middle, valid pixels and their logarithm, zone.
    ``strength`` is the product of 1 + significance over the scales.
    """
    found, flat, scales = 0, cells.reshape(-1, cells.shape[2]), significance.shape[0]
    for cell in range(len(flat)):
        # Without a branch: which cells counted cannot be foreseen.
        lit[np.uint64(found)] = cell
        found += flat[cell, 0] > 0.0
    reached[:] = 0.0
    significance[:] = 0.0
    by_cell = significance.reshape(scales, -1)
    for n in range(found):
        cell = lit[n]
        counts, b, zone = np.int64(flat[cell, 0]), cell_bin[cell], zone_of_cell[cell]
        expected = background[b] * cell_pixels[cell]
        if counts > 1 and counts > expected:
            by_cell[0, cell] = _surprise(counts, expected, log_background[b] + log_cell_pixels[cell])
        for scale in range(1, scales):
            by_cell[scale, cell] = flat[cell, scale]
        product = 1.0
        for scale in range(scales):
            value = by_cell[scale, cell]
            product *= 1.0 + value
            for level in range(levels.size):
                if value < levels[level]:
                    break
                reached[zone, scale * levels.size + level] += 1.0
        strength[n] = product
    return found


@numba.njit(
    types.void(
        _I64, types.int64, _F64, _MAP, types.Array(types.float32, 2, "C"), _F64, _CELL_BINS, _F64, _F64, _I64,
        types.Array(types.float32, 2, "C"),
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def list_strongest(
    lit: Any, lit_cells: int, strength: Any, significance: Any, valid: Any, radius_m: Any, cell_bin: Any,
    cell_pixels: Any, background: Any, chosen: Any, cells: Any,
) -> None:  # fmt: skip
    """The strongest of the first ``lit_cells`` of ``lit``, strongest first; of equals the earlier.

    ``lit``, ``strength``, ``cell_bin``, ``cell_pixels``: see ``weigh_cells``; ``radius_m`` (rows * columns,): of the
    middle of each cell. ``valid`` (rows, columns): share of valid pixels. ``chosen`` (n,) is used up; ``cells``
    (n, scales + 4) is overwritten: significances, radius, valid share, expected counts a valid pixel and the distance
    in cells to the nearest other, 0 throughout where there are fewer cells above nothing.
    """
    scales, _, columns = significance.shape
    most, found = chosen.size, 0
    least = 1.0
    for n in range(lit_cells):
        value = strength[n]
        if value <= least:
            continue
        place = min(found, most - 1)
        while place > 0 and strength[chosen[place - 1]] < value:
            chosen[place] = chosen[place - 1]
            place -= 1
        chosen[place] = n
        found = min(found + 1, most)
        if found == most:
            least = strength[chosen[most - 1]]
    for n in range(found):
        chosen[n] = lit[chosen[n]]
    cells[:] = 0.0
    for n in range(found):
        cell = chosen[n]
        row, column = cell // columns, cell % columns
        for scale in range(scales):
            cells[n, scale] = significance[scale, row, column]
        cells[n, scales] = radius_m[cell]
        cells[n, scales + 1] = valid[row, column]
        cells[n, scales + 2] = background[cell_bin[cell]] * cell_pixels[cell] / max(valid[row, column] * CELL**2, 1.0)
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
    limit = mean + 3.0 * np.sqrt(mean) + 1.0
    counts, area = _RING_PRIOR_PIXELS * mean, _RING_PRIOR_PIXELS
    for y in range(max(0, row - _RING_OUTER), min(rows, row + _RING_OUTER + 1)):
        for x in range(max(0, column - _RING_OUTER), min(columns, column + _RING_OUTER + 1)):
            if max(abs(y - row), abs(x - column)) < _RING_INNER:
                continue
            j = y * columns + x
            if inside[j] and pixels[j] != top:
                if pixels[j] > limit:
                    continue
                area += 1.0
                counts += float(pixels[j])
    if counts - mean * area < 3.0 * np.sqrt(mean * area):
        return mean
    return max(mean, counts / area)


@numba.njit(nogil=True, cache=True)
def _count_window(pixels: Any, columns: int, row: int, column: int, top: int, inside: Any, counts: Any) -> bool:
    """By distance from the middle: pixels with data, their counts, and how many counted; ``counts`` (3, distances).

    False where one beside the middle has no data.
    """
    rows = pixels.size // columns
    counts[:] = 0.0
    for y in range(max(0, row - REACH), min(rows, row + REACH + 1)):
        for x in range(max(0, column - REACH), min(columns, column + REACH + 1)):
            j = y * columns + x
            if inside[j] == 0 or pixels[j] == top:
                if max(abs(y - row), abs(x - column)) <= 1:
                    return False
                continue
            distance = CLASS[y - row + REACH, x - column + REACH]
            counts[0, distance] += 1.0
            counts[1, distance] += pixels[j]
            counts[2, distance] += pixels[j] > 0
    return True


@numba.njit(nogil=True, cache=True)
def _count_whole_window(pixels: Any, lit: Any, columns: int, middle: int, top: int, counts: Any) -> bool:
    """As ``_count_window``, where all pixels are valid, by those that are ``lit``; False where one has no data."""
    across, reach, one = np.uint64(columns), np.uint64(REACH), np.uint64(1)
    first = np.uint64(middle) - reach * across - reach
    counts[0] = CLASS_PIXELS
    counts[1:] = 0.0
    for y in range(2 * REACH + 1):
        start = first + np.uint64(y) * across
        left = _run(lit, start, np.uint64((1 << (2 * REACH + 1)) - 1))
        while left:
            x = lowest_bit(left)
            left &= left - one
            value = pixels[start + x]
            if value == top:
                return False
            distance = CLASS[y, x]
            counts[1, distance] += value
            counts[2, distance] += 1.0
    return True


@numba.njit(nogil=True, cache=True)
def _disc_exponents(counts: Any, mean: float, exponents: Any) -> None:
    """Logarithms of the weighted likelihood ratios of the discs, ``exponents`` (chances * discs,)."""
    by_chance, n = -np.expm1(-mean), 0
    for chance in LIT_CHANCES:
        of_lit, of_dark = np.log(chance / by_chance), np.log1p(-chance) + mean
        for disc in range(DISCS.shape[0]):
            lit, dark = 0.0, 0.0
            for c in range(DISCS.shape[1]):
                if DISCS[disc, c]:
                    lit += counts[2, c]
                    dark += counts[0, c] - counts[2, c]
            exponents[n] = DISC_LOG_WEIGHT + lit * of_lit + dark * of_dark
            n += 1


@numba.njit(nogil=True, cache=True)
def _log_of_sum(exponents: Any) -> float:
    """Logarithm of the sum of exponentials."""
    largest, total = np.max(exponents), 0.0
    for exponent in exponents:
        if exponent > largest - _NEGLIGIBLE:
            total += np.exp(exponent - largest)
    return float(largest + np.log(total))


@numba.njit(nogil=True, cache=True)
def _window_evidence(counts: Any, mean: float, slot: int, exponents: Any, terms: Any, known: Any, means: Any) -> float:
    """Log-likelihood ratio of a spot against ``mean`` counts a pixel alone, in nats; see ``analyzer.spots``.

    ``exponents`` (``EXPONENTS``,) is used up. ``terms`` (slots, distances, shapes * photons) keeps logarithms for the
    means in ``means`` (slots,), as far as they are ``known`` (slots, distances): neighbours ask for the same.
    """
    spots = PHOTONS.size * SHARES.shape[0]
    if means[slot] != mean:
        means[slot], known[slot] = mean, False
    for shape in range(SHARES.shape[0]):
        seen = 0.0
        for c in range(SHARES.shape[1]):
            seen += counts[0, c] * SHARES[shape, c]
        for k in range(PHOTONS.size):
            exponents[shape * PHOTONS.size + k] = LOG_WEIGHT - PHOTONS[k] * seen
    for c in range(SHARES.shape[1]):
        if counts[1, c] == 0.0:
            continue
        if not known[slot, c]:
            known[slot, c] = True
            for n in range(spots):
                shape, k = n // PHOTONS.size, n % PHOTONS.size
                terms[slot, c, n] = np.log1p(PHOTONS[k] * SHARES[shape, c] / mean)
        for n in range(spots):
            exponents[n] += counts[1, c] * terms[slot, c, n]
    _disc_exponents(counts, mean, exponents[spots:])
    return _log_of_sum(exponents)


@numba.njit(nogil=True, cache=True)
def _spot_evidence(
    pixels: Any, lit: Any, roomy: Any, columns: int, middle: int, top: int, inside: Any, mean: float, slot: int,
    counts: Any, exponents: Any, terms: Any, known: Any, means: Any,
) -> float:  # fmt: skip
    """Evidence of a spot around a pixel; ``counts`` (3, distances) becomes what was counted.

    Pixels without data say nothing; one beside the middle rules a spot out. The rest: see ``_window_evidence``.
    """
    at = np.uint64(middle)
    whole = (roomy[at // np.uint64(64)] >> (at % np.uint64(64))) & np.uint64(1) != 0
    if not (whole and _count_whole_window(pixels, lit, columns, middle, top, counts)):
        row, column = middle // columns, middle % columns
        if not _count_window(pixels, columns, row, column, top, inside, counts):
            return -np.inf
    return float(_window_evidence(counts, mean, slot, exponents, terms, known, means))


@numba.njit(nogil=True, cache=True)
def _touches(pixels: Any, columns: int, pixel: int, top: int, inside: Any) -> bool:
    """Whether a pixel beside this one is masked or has no data."""
    rows, row, column = pixels.size // columns, pixel // columns, pixel % columns
    for y in range(max(0, row - 1), min(rows, row + 2)):
        for x in range(max(0, column - 1), min(columns, column + 2)):
            j = y * columns + x
            if inside[j] == 0 or pixels[j] == top:
                return True
    return False


@numba.njit(nogil=True, cache=True)
def _brighter_at_rim(pixels: Any, columns: int, middle: int, listed: Any, top: int, inside: Any) -> bool:
    """Whether the ``listed`` pixels around the middle have one that touches what is masked and is far brighter.

    Then the spot stands in what is masked, and the middle is its tail.
    """
    row, column = middle // columns, middle % columns
    limit = _TAIL_CONTRAST * pixels[middle]
    for n in range(listed.size):
        j = listed[n]
        if max(abs(j // columns - row), abs(j % columns - column)) > _WINDOW or inside[j] == 0 or pixels[j] == top:
            continue
        if pixels[j] > limit and _touches(pixels, columns, j, top, inside):
            return True
    return False


@numba.njit(nogil=True, cache=True)
def _net_around(pixels: Any, columns: int, row: int, column: int, top: int, inside: Any, local: float) -> float:
    """Photons over the background in the window around a pixel, whatever spot they belong to."""
    rows, net = pixels.size // columns, 0.0
    for y in range(max(0, row - _WINDOW), min(rows, row + _WINDOW + 1)):
        for x in range(max(0, column - _WINDOW), min(columns, column + _WINDOW + 1)):
            j = y * columns + x
            if inside[j] and pixels[j] != top:
                net += pixels[j] - local
    return net


@numba.njit(nogil=True, cache=True)
def _place_peak(
    row: int, column: int, sum_y: float, sum_x: float, net: float, gross: float, low_y: int, high_y: int, low_x: int,
    high_x: int, saturated: Any, peak: Any,
) -> None:  # fmt: skip
    """The fields of a ``peak`` from what was added up of its pixels, in steps from the middle one."""
    # Where little is left of much background, noise must not carry the centroid out of the pixels it is made of.
    peak.ss = row + min(max(sum_y / net, low_y), high_y)
    peak.fs = column + min(max(sum_x / net, low_x), high_x)
    peak.intensity = net
    peak.snr = net / np.sqrt(gross)
    peak.saturated = saturated


@numba.njit(nogil=True, cache=True)
def _measure(
    pixels: Any, columns: int, middle: int, listed: Any, top: int, saturation: int, inside: Any, local: float,
    reach: int, least: float, peak: Any,
) -> bool:  # fmt: skip
    """Centroid, net photons and their ratio to noise over the ``listed`` pixels within ``reach`` of the middle one.

    False, and ``peak`` as it was, when nothing is left over the background, or fewer photons than ``least``.
    """
    row, column = middle // columns, middle % columns
    sum_y, sum_x, net, gross, saturated = 0.0, 0.0, 0.0, 0.0, np.uint8(0)
    low_y, high_y, low_x, high_x = 0, 0, 0, 0
    for n in range(listed.size):
        j = listed[n]
        y, x = j // columns - row, j % columns - column
        if inside[j] == 0 or pixels[j] == top or max(abs(y), abs(x)) > reach:
            continue
        low_y, high_y, low_x, high_x = min(low_y, y), max(high_y, y), min(low_x, x), max(high_x, x)
        value = np.int64(pixels[j])
        gross += value
        net += value - local
        sum_y += (value - local) * y
        sum_x += (value - local) * x
        if value >= saturation:
            saturated = np.uint8(1)
    if net <= 0.0 or net < least:
        return False
    _place_peak(row, column, sum_y, sum_x, net, gross, low_y, high_y, low_x, high_x, saturated, peak)
    return True


@numba.njit(nogil=True, cache=True)
def _evidence_beside(pixels: Any, columns: int, middle: int, expected: Any, counts: Any, exponents: Any) -> float:
    """Log-likelihood ratio of a spot against what is ``expected`` (9,) of the 3 x 3, in nats.

    As ``_window_evidence``, but each pixel has a background of its own, spots are as strong as would be seen on it,
    and a disc counts where it is brighter than the ring. ``counts`` (3, distances): of the whole window, for discs.
    """
    rows, row, column = pixels.size // columns, middle // columns, middle % columns
    most, light, background = 0.0, 0.0, 0.0
    for n in range(9):
        y, x = row + n // 3 - 1, column + n % 3 - 1
        if 0 <= y < rows and 0 <= x < columns:
            most = max(most, expected[n])
            background += expected[n]
            light += pixels[y * columns + x]
    if light - background < np.sqrt(background) + _PROFILE_KNOWS * background:
        return -np.inf
    stronger, spots = max(1.0, np.sqrt(most)), PHOTONS.size * SHARES.shape[0]
    for e in range(spots):
        shape, photons, exponent = e // PHOTONS.size, stronger * PHOTONS[e % PHOTONS.size], LOG_WEIGHT
        for n in range(9):
            y, x = row + n // 3 - 1, column + n % 3 - 1
            if y < 0 or y >= rows or x < 0 or x >= columns:
                continue
            value = pixels[y * columns + x]
            share = photons * SHARES[shape, CLASS[n // 3 - 1 + REACH, n % 3 - 1 + REACH]]
            exponent -= share
            if value > 0:
                exponent += value * np.log1p(share / expected[n])
        exponents[e] = exponent
    _disc_exponents(counts, most, exponents[spots:])
    for n in range(len(LIT_CHANCES)):
        if LIT_CHANCES[n] <= -np.expm1(-most):
            exponents[spots + n * DISCS.shape[0] : spots + (n + 1) * DISCS.shape[0]] = -np.inf
    return _log_of_sum(exponents)


@numba.njit(nogil=True, cache=True)
def _measure_beside(
    pixels: Any, columns: int, middle: int, listed: Any, top: int, saturation: int, inside: Any, expected: Any,
    peak: Any,
) -> bool:  # fmt: skip
    """As ``_measure``, over the ``listed`` pixels of the 5 x 5, each of which has its own background: ``expected``.

    False also where most of the light around is another peak's.
    """
    row, column = middle // columns, middle % columns
    rows, side = pixels.size // columns, 2 * _WINDOW + 1
    around = 0.0
    for n in range(side * side):
        y, x = row + n // side - _WINDOW, column + n % side - _WINDOW
        j = y * columns + x
        if 0 <= y < rows and 0 <= x < columns and inside[j] != 0 and pixels[j] != top:
            around += pixels[j] - expected[n]
    sum_y, sum_x, net, gross, saturated = 0.0, 0.0, 0.0, 0.0, np.uint8(0)
    low_y, high_y, low_x, high_x = 0, 0, 0, 0
    for n in range(listed.size):
        j = listed[n]
        y, x = j // columns - row, j % columns - column
        if inside[j] == 0 or pixels[j] == top or max(abs(y), abs(x)) > _WINDOW:
            continue
        low_y, high_y, low_x, high_x = min(low_y, y), max(high_y, y), min(low_x, x), max(high_x, x)
        value = np.int64(pixels[j])
        over = value - expected[(y + _WINDOW) * side + x + _WINDOW]
        gross += value
        net += over
        sum_y += over * y
        sum_x += over * x
        if value >= saturation:
            saturated = np.uint8(1)
    if net <= 0.0 or net < _OWN_SHARE * around:
        return False
    _place_peak(row, column, sum_y, sum_x, net, gross, low_y, high_y, low_x, high_x, saturated, peak)
    return True


@numba.njit(nogil=True, cache=True)
def _measure_spot(
    pixels: Any, columns: int, middle: int, spot: Any, top: int, saturation: int, inside: Any, local: float, peak: Any
) -> bool:  # fmt: skip
    """The peak of the pixels of a ``spot``; False where it is none."""
    row, column = middle // columns, middle % columns
    if not _measure(pixels, columns, middle, spot, top, saturation, inside, local, _WINDOW, 0.0, peak):
        return False
    if peak.intensity < _OWN_SHARE * _net_around(pixels, columns, row, column, top, inside, local):
        return False
    if _brighter_at_rim(pixels, columns, middle, spot, top, inside):
        return False
    if peak.intensity >= _WHOLE_FROM_PHOTONS or spot.size > _SMALLEST_SPOT_PIXELS:
        least = _WHOLE_KEEPS * peak.intensity
        _measure(pixels, columns, middle, spot, top, saturation, inside, local, columns, least, peak)
    return True


@numba.njit(nogil=True, cache=True)
def _pick(
    pixels: Any, columns: int, top: int, saturation: int, inside: Any, bin_of: Any, background: Any, threshold: float,
    candidate_index: Any, candidate_score: Any, candidates: int, panels: Any, beside: bool, parts: Any, profile: Any,
    expected: Any, claimed: Any, claim_index: Any, peaks: Any, picked: Any,
) -> Any:  # fmt: skip
    """One peak for each spot, the most certain first: how many, and how many pixels they claim.

    ``picked``: the candidate of each.

    With ``beside`` a peak on a ring has the background of its own radius, and no more pixels than the nearest.
    """
    found, claims, enough = 0, 0, threshold
    for k in np.argsort(candidate_score[:candidates], kind="mergesort"):
        i = candidate_index[k]
        evidence = -candidate_score[k]
        if evidence > threshold:
            enough = threshold - np.log1p((found + 1) / SURE_PEAKS_FOR_AS_MANY)
        if evidence <= enough or found >= peaks.size:
            break
        if claimed[i]:
            continue
        row, column, rows = i // columns, i % columns, pixels.size // columns
        mean, first, peak = background[bin_of[i]], claims, peaks[found]
        if beside and expect_beside(pixels, columns, i, top, inside, panels, mean, _WINDOW, parts, profile, expected):
            claims = _claim(row, column, _PEAK_SEPARATION, rows, columns, claimed, claim_index, claims)
            spot = claim_index[first:claims]
            is_peak = _measure_beside(pixels, columns, i, spot, top, saturation, inside, expected, peak)
            is_peak = is_peak and not _brighter_at_rim(pixels, columns, i, spot, top, inside)
        else:
            local = _local_background(pixels, columns, row, column, top, inside, mean)
            claims = _claim_spot(pixels, columns, i, mean, top, inside, claimed, claim_index, claims)
            spot = claim_index[first:claims]
            is_peak = _measure_spot(pixels, columns, i, spot, top, saturation, inside, local, peak)
        if is_peak:
            peak.surprise = evidence
            picked[found] = k
            found += 1
    return found, claims


@compiled(
    None, _WORDS, _WORDS, types.int64, types.int64, types.int64, _U8, _BINS, _F64, types.float64, _I64, _F64,
    types.int64, _PANELS, _PARTS, _PANELS, _F64, _array(types.float64, 2), _U8, _I64, _PEAKS, _I64, _I64,
    returns=types.int64,
)  # fmt: skip
def find_peaks(
    pixels: Any, lit: Any, roomy: Any, columns: int, top: int, saturation: int, inside: Any, bin_of: Any,
    background: Any, threshold: float, candidate_index: Any, candidate_score: Any, candidates: int, panels: Any,
    parts: Any, profile: Any, expected: Any, distance_counts: Any, claimed: Any, claim_index: Any, peaks: Any,
    picked: Any, totals: Any,
) -> int:  # fmt: skip
    """One peak for each spot among the candidates, the most certain first; returns how many.

    ``lit``, ``roomy``: see ``streamer.listing``, ``FramePlan``. ``candidate_score`` becomes the evidence for a spot at
    each candidate, negated; a spot has more than ``threshold``.
    Pixels of spots are marked in ``claimed`` and listed in ``claim_index``, ``totals[2]`` of them; ``picked`` has the
    candidate of each peak. The other arrays are for ``judge_beside``.
    """
    exponents = np.empty(EXPONENTS)
    terms = np.empty((KEPT_MEANS, SHARES.shape[1], SHARES.shape[0] * PHOTONS.size))
    known, means = np.zeros((KEPT_MEANS, SHARES.shape[1]), np.bool_), np.full(KEPT_MEANS, -1.0)
    lowest = threshold - np.log1p(peaks.size / SURE_PEAKS_FOR_AS_MANY)
    for k in range(candidates):
        i = candidate_index[k]
        row, column, mean = i // columns, i % columns, background[bin_of[i]]
        slot = bin_of[i] % KEPT_MEANS
        evidence = _spot_evidence(
            pixels, lit, roomy, columns, i, top, inside, mean, slot, distance_counts, exponents, terms, known, means
        )
        if evidence > lowest:
            local = _local_background(pixels, columns, row, column, top, inside, mean)
            if local > mean:
                evidence = _window_evidence(distance_counts, local, slot, exponents, terms, known, means)
        candidate_score[k] = -evidence
    found, totals[2] = _pick(
        pixels, columns, top, saturation, inside, bin_of, background, threshold, candidate_index, candidate_score,
        candidates, panels, False, parts, profile, expected, claimed, claim_index, peaks, picked,
    )  # fmt: skip
    return int(found)


@numba.njit(nogil=True, cache=True)
def _judge(
    pixels: Any, columns: int, middle: int, top: int, inside: Any, panels: Any, mean: float, evidence: float,
    parts: Any, profile: Any, expected: Any, distance_counts: Any, exponents: Any,
) -> float:  # fmt: skip
    """The evidence for a spot at a candidate; less of it where its own radius counts as much beside it."""
    if not expect_beside(pixels, columns, middle, top, inside, panels, mean, 1, parts, profile, expected):
        return evidence
    _count_window(pixels, columns, middle // columns, middle % columns, top, inside, distance_counts)
    return min(evidence, _evidence_beside(pixels, columns, middle, expected, distance_counts, exponents))


@compiled(
    None, types.int64, types.int64, types.int64, _U8, _BINS, _F64, types.float64, _I64, _F64, types.int64, _PANELS,
    _PARTS, _PANELS, _F64, _array(types.float64, 2), _U8, _I64, _PEAKS, types.int64, _I64, returns=types.int64,
)  # fmt: skip
def judge_beside(
    pixels: Any, columns: int, top: int, saturation: int, inside: Any, bin_of: Any, background: Any, threshold: float,
    candidate_index: Any, candidate_score: Any, candidates: int, panels: Any, parts: Any, profile: Any, expected: Any,
    distance_counts: Any, claimed: Any, claim_index: Any, peaks: Any, found: int, picked: Any,
) -> int:  # fmt: skip
    """Look again at the ``found`` peaks of ``find_peaks``, by what their own radii count; returns how many there are.

    Where one is none by that, the frame has a smooth ring: all candidates are judged so, and peaks picked anew. Else
    nothing changes. ``claimed`` has to be without marks and is left so. ``panels``: see ``Geometry.panel_table``;
    ``parts``, ``profile``, ``expected`` (25,): see ``arcs.expect_beside``.
    """
    exponents, again = np.empty(EXPONENTS), False
    least = threshold - np.log1p(found / SURE_PEAKS_FOR_AS_MANY)
    for n in range(found):
        k = picked[n]
        i = candidate_index[k]
        evidence = _judge(
            pixels, columns, i, top, inside, panels, background[bin_of[i]], -candidate_score[k], parts, profile,
            expected, distance_counts, exponents,
        )  # fmt: skip
        again = again or (evidence < -candidate_score[k] and evidence <= least)
    if not again:
        return found
    lowest = threshold - np.log1p(peaks.size / SURE_PEAKS_FOR_AS_MANY)
    for k in range(candidates):
        if -candidate_score[k] > lowest:
            i = candidate_index[k]
            candidate_score[k] = -_judge(
                pixels, columns, i, top, inside, panels, background[bin_of[i]], -candidate_score[k], parts, profile,
                expected, distance_counts, exponents,
            )  # fmt: skip
    found, claims = _pick(
        pixels, columns, top, saturation, inside, bin_of, background, threshold, candidate_index, candidate_score,
        candidates, panels, True, parts, profile, expected, claimed, claim_index, peaks, picked,
    )  # fmt: skip
    for n in range(claims):
        claimed[claim_index[n]] = 0
    return found


@compiled(
    None, types.int64, types.int64, _U8, _BINS, _F64, _SOME_PEAKS, _I64, _FLAGS, _FLAGS, returns=types.void,
)  # fmt: skip
def describe_peaks(
    pixels: Any, columns: int, top: int, inside: Any, bin_of: Any, background: Any, peaks: Any, brightest: Any,
    lone: Any, single: Any,
) -> None:  # fmt: skip
    """Of each peak (n,) the brightest pixel, and whether it is alone: two questions, asked of different 3 x 3.

    ``brightest`` is a flat index; ``lone``: nothing but background is in the eight around that pixel; ``single``: no
    other pixel around the peak's own place counts.
    """
    rows = pixels.size // columns
    for n in range(peaks.size):
        row, column = np.int64(np.rint(peaks[n].ss)), np.int64(np.rint(peaks[n].fs))
        most, counted = np.int64(-2), 0
        for y in range(row - 1, row + 2):
            for x in range(column - 1, column + 2):
                there, value = 0 <= y < rows and 0 <= x < columns, np.int64(-1)
                j = y * columns + x if there else 0
                if there and inside[j] != 0:
                    counted += pixels[j] != 0
                    if pixels[j] != top:
                        value = np.int64(pixels[j])
                if value > most:
                    most, brightest[n] = value, j
        single[n] = counted <= 1
        middle, light, area = brightest[n], 0.0, 0.0
        row, column = middle // columns, middle % columns
        for y in range(max(row - 1, 0), min(row + 2, rows)):
            for x in range(max(column - 1, 0), min(column + 2, columns)):
                j = y * columns + x
                if j != middle and inside[j] != 0 and pixels[j] != top:
                    light += pixels[j]
                    area += 1.0
        expected = background[bin_of[middle]] * area
        # Poisson exceeds this once in a thousand times or more rarely, for any mean.
        lone[n] = light <= expected + 3.1 * np.sqrt(expected) + 1.0


@numba.njit(nogil=True, cache=True)
def _leave_out_blank(
    pixels: Any, columns: int, top: int, inside: Any, place: Any, claimed: Any, blank: Any, most_around: Any, areas: Any
) -> None:  # fmt: skip
    """Take the ``blank`` pixels, and those whose 3 x 3 holds one, out of ``areas``; not those ``claimed`` before."""
    rows = pixels.size // columns
    for n in range(blank.size):
        i = blank[n]
        areas[inside[i] - 1, place[i]] -= 1.0
        row, column = i // columns, i % columns
        for y in range(max(0, row - 1), min(rows, row + 2)):
            for x in range(max(0, column - 1), min(columns, column + 2)):
                k = y * columns + x
                if inside[k] != 2 or pixels[k] == top or claimed[k] != 0:
                    continue
                if most_around[place[k] // QUADRANTS] >= 0:
                    claimed[k] = _BLINDED
                    areas[1, place[k]] -= 1.0
    for n in range(blank.size):
        row, column = blank[n] // columns, blank[n] % columns
        for y in range(max(0, row - 1), min(rows, row + 2)):
            for x in range(max(0, column - 1), min(columns, column + 2)):
                if claimed[y * columns + x] == _BLINDED:
                    claimed[y * columns + x] = 0


@compiled(
    None, types.int64, types.int64, _U8, _BINS, _F64, _F64, _U8, _I64, types.int64, _LIST, _I64, _I64,
    _array(types.float64, 2), _array(types.float64, 2), returns=types.void,
)  # fmt: skip
def leave_out_spots(
    pixels: Any, columns: int, top: int, inside: Any, place: Any, photons: Any, counted: Any, claimed: Any,
    claim_index: Any, claims: int, blank: Any, most_alone: Any, most_around: Any, diffuse: Any, areas: Any,
) -> None:  # fmt: skip
    """Take the pixels of spots out of the profiles, and wipe their marks for the next frame.

    ``areas`` (2, bins * 4): pixels that ``analyzer.diffuse`` judges alone and by what is around them. The ``blank``
    ones, without data, are taken out too, with the pixels around that they blind.
    """
    for n in range(claims):
        j = claim_index[n]
        if inside[j] == 0 or pixels[j] == top:
            continue
        at, value = np.int64(place[j]), np.int64(pixels[j])
        b = at // QUADRANTS
        photons[b] -= value
        counted[b] -= 1.0
        areas[inside[j] - 1, at] -= 1.0
        if inside[j] != 2 or most_around[b] < 0:
            kept = value <= most_alone[b]
        else:
            total = np.int64(0)
            for y in range(-1, 2):
                for x in range(-1, 2):
                    around = np.int64(pixels[j + y * columns + x])
                    total += around if around != top else KEPT_WHOLE
            kept = total <= most_around[b]
        if kept:
            diffuse[at, 0] -= value
            diffuse[at, 1] -= float(value) * value
    _leave_out_blank(pixels, columns, top, inside, place, claimed, blank, most_around, areas)
    for n in range(claims):
        claimed[claim_index[n]] = 0


@numba.njit(nogil=True, cache=True, inline="always")
def _at_most(counts: int, mean: float) -> float:
    """Chance of a Poisson number of ``counts`` or fewer; 0 for counts below 0."""
    if counts < 0:
        return 0.0
    term = np.exp(-mean)
    total = term
    for n in range(1, counts + 1):
        term *= mean / n
        total += term
    return float(min(total, 1.0))


@numba.njit(
    types.void(_array(types.float64, 2), _array(types.float64, 2), _I64, _I64, _F64, _F64, _F64, _F64, _F64),
    nogil=True,
    cache=True,
)
def diffuse_areas(
    diffuse: Any, areas: Any, most_alone: Any, most_around: Any, mean: Any, counts: Any, area: Any, pixels: Any,
    pairs: Any,
) -> None:  # fmt: skip
    """How many pixels the kept photons of each bin and quadrant stand for, (bins * 4,): ``pixels``.

    A pixel of a Poisson mean m adds m times the chance that one count fewer is kept, since a Poisson number weighted
    with itself is one more of the same: the share by which the pixels shrink. ``pairs`` (bins,) becomes the kept
    n (n - 1) expected of a detector that counts every photon. ``mean`` (bins,), the background, is made anew from what
    is kept, twice, for Bragg light is in it; ``counts``, ``area`` (bins,) are used up.
    """
    for turn in range(3):
        for b in range(mean.size):
            alone = 1.0 if most_alone[b] >= KEPT_WHOLE else _at_most(most_alone[b] - 1, mean[b])
            around = alone if most_around[b] < 0 else _at_most(most_around[b] - 1, 9.0 * mean[b])
            counts[b], area[b] = 0.0, 0.0
            for at in range(QUADRANTS * b, QUADRANTS * (b + 1)):
                pixels[at] = areas[0, at] * alone + areas[1, at] * around
                counts[b] += diffuse[at, 0]
                area[b] += pixels[at]
            if turn == 2:
                two = 1.0 if most_alone[b] >= KEPT_WHOLE else _at_most(most_alone[b] - 2, mean[b])
                both = two if most_around[b] < 0 else _at_most(most_around[b] - 2, 9.0 * mean[b])
                pairs[b] = 0.0
                for at in range(QUADRANTS * b, QUADRANTS * (b + 1)):
                    pairs[b] += mean[b] ** 2 * (areas[0, at] * two + areas[1, at] * both)
        if turn < 2:
            _smooth(counts, area, mean)


@numba.njit(
    types.void(
        types.Array(types.float32, 2, "A", readonly=True), types.Array(types.float32, 2, "A", readonly=True), _BINS,
        _U8, _array(types.float64, 2), _array(types.float64, 2),
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def describe_places(x: Any, y: Any, place: Any, inside: Any, pixels: Any, sums: Any) -> None:
    """Add to the number of pixels of each place, and to sums of what the model of diffuse scattering asks of them.

    ``x``, ``y`` (ss, fs): from the beam. ``pixels`` (2, bins * 4): those with an invalid neighbour and the others;
    ``sums`` (6, bins * 4): distance from the beam, cos phi, sin phi, cos^2, cos sin, sin^2.
    """
    rows, columns = x.shape
    for row in range(rows):
        for column in range(columns):
            i = row * columns + column
            if inside[i] == 0:
                continue
            across, up = np.float64(x[row, column]), np.float64(y[row, column])
            radius = max(np.sqrt(across * across + up * up), 0.5)
            c, s, at = across / radius, up / radius, place[i]
            pixels[inside[i] - 1, at] += 1.0
            sums[0, at] += radius
            sums[1, at] += c
            sums[2, at] += s
            sums[3, at] += c * c
            sums[4, at] += c * s
            sums[5, at] += s * s
