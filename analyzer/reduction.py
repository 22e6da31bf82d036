"""One pass from pixels to what every decision needs: background, significance, peaks.

A frame at a compact source is nearly empty, so one fast scan lists its nonzero pixels and
everything after works on that list. The background is a mean count for each radial and
azimuthal bin, estimated so that Bragg light does not enter. Significance of n counts where
b are expected is the surprise -ln Poisson(n; b) of an excess: a scale on which frames of any
flux and any water compare, and on which ln(number of pixels) is what chance reaches once a
frame. It is taken over one pixel, the best 2 x 2 and the 3 x 3 around each nonzero pixel,
and its largest value in each 8 x 8 cell makes the map that the network sees, so that a
single bright pixel survives the reduction.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from analyzer.geometry import AZIMUTH_CLASSES, BinMap, Geometry, bin_map
from streamer.validity import Validity, sentinel

CELL = 8
"""Pixels a side of a cell of the significance map."""

FALSE_PEAKS_PER_FRAME = 0.02
"""Chance peaks allowed in a frame of pure background, for each of the three windows; sets the peak threshold."""

MAX_PEAKS = 2048
_PEAK_SEPARATION = 3
_WINDOW = 2
_SPOT_PIXELS = 1024
_RING_INNER, _RING_OUTER = 4, 6
_RING_PRIOR_PIXELS = 50.0
_SMOOTHING_PHOTONS = 25.0
_LOG_FACTORIAL = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 65536, dtype=np.float64)))])

PEAK_DTYPE = np.dtype(
    [("fs", "f4"), ("ss", "f4"), ("intensity", "f4"), ("snr", "f4"), ("surprise", "f4"), ("saturated", "u1")]
)


@dataclass(frozen=True, slots=True, eq=False)
class FramePlan:
    """Everything about a series' frames that does not change from frame to frame.

    ``inside`` (ss * fs,) uint8: 0 invalid, 1 valid, 2 valid with all eight neighbours valid.
    ``bin_pixels`` (bins,) float64: valid pixels of each bin. ``cell_valid`` (rows, columns)
    float32: valid share of each cell of the map.
    """

    geometry: Geometry
    validity: Validity
    bins: BinMap
    inside: npt.NDArray[np.uint8]
    bin_pixels: npt.NDArray[np.float64]
    cell_valid: npt.NDArray[np.float32]
    saturation: int
    peak_threshold: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.geometry.shape


def make_plan(geometry: Geometry, validity: Validity, saturation: int) -> FramePlan:
    """Prepare the reduction of frames of one shape, geometry and mask."""
    rows, columns = geometry.shape
    valid = validity.valid
    padded = np.zeros((rows + 2, columns + 2), np.uint8)
    padded[1:-1, 1:-1] = valid
    around = np.ones((rows, columns), np.uint8)
    for dy in range(3):
        for dx in range(3):
            around &= padded[dy : dy + rows, dx : dx + columns]
    bins = bin_map(geometry)
    bin_pixels = np.bincount(bins.bin_of[valid.reshape(-1) != 0], minlength=bins.bins).astype(np.float64)
    cell_rows, cell_columns = -(-rows // CELL), -(-columns // CELL)
    whole = np.zeros((cell_rows * CELL, cell_columns * CELL), np.float32)
    whole[:rows, :columns] = valid
    cell_valid = whole.reshape(cell_rows, CELL, cell_columns, CELL).mean((1, 3))
    pixels = max(1, int(valid.sum()))
    return FramePlan(
        geometry,
        validity,
        bins,
        (valid + (valid & around)).reshape(-1),
        bin_pixels,
        cell_valid,
        saturation,
        float(np.log(pixels) - np.log(FALSE_PEAKS_PER_FRAME)),
    )


class Workspace:
    """The buffers one worker reuses for frames of one shape and type; nothing is allocated a frame.

    ``pixels`` (ss, fs) is where the decoder writes. After ``reduce``: ``significance``
    (2, rows, columns) float32, ``photons`` and ``pixels_counted`` (bins,) without the pixels
    of peaks, ``background`` (bins,) photons a pixel. Over all frames: ``seen`` (ss * fs,)
    uint8, set where a pixel has ever counted, and ``expected`` (bins,), the background summed.
    """

    def __init__(self, plan: FramePlan, dtype: np.dtype[Any]) -> None:
        rows, columns = plan.shape
        count = rows * columns
        self.plan = plan
        self.dtype = dtype
        # Rounded up to whole 64-bit words for the scan; the tail stays zero.
        self._words = np.zeros(-(-count * dtype.itemsize // 8), np.uint64)
        self._flat = self._words.view(dtype)[:count]
        self.pixels = self._flat.reshape(rows, columns)
        self._index = np.empty(count, np.int32)
        self._claimed = np.zeros(count, np.uint8)
        self.seen = np.zeros(count, np.uint8)
        bins = plan.bins.bins
        self.photons = np.zeros(bins)
        self.pixels_counted = np.zeros(bins)
        self.background = np.zeros(bins)
        self.expected = np.zeros(bins)
        self._scratch = np.zeros((4, bins))
        self.significance = np.zeros((2, *plan.cell_valid.shape), np.float32)
        self._candidate_index = np.empty(65536, np.int64)
        self._candidate_score = np.empty(65536)
        self._claim_index = np.empty(1 << 20, np.int64)
        self._peaks = np.zeros(MAX_PEAKS, PEAK_DTYPE)
        self._totals = np.zeros(4, np.int64)

    def reduce(self) -> "Reduced":
        """Reduce the frame in ``pixels``. The arrays in the result are views valid until the next call."""
        plan = self.plan
        found = _reduce(
            self._words,
            self._flat,
            sentinel(self.dtype),
            plan.saturation,
            plan.inside,
            plan.bins.bin_of,
            plan.bin_pixels,
            plan.shape[1],
            plan.peak_threshold,
            self._index,
            self._claimed,
            self.seen,
            self.photons,
            self.pixels_counted,
            self.background,
            self._scratch,
            self.significance,
            self._candidate_index,
            self._candidate_score,
            self._claim_index,
            self._peaks,
            self._totals,
        )
        self.expected += self.background
        return Reduced(
            significance=self.significance,
            peaks=self._peaks[:found],
            photons=self.photons,
            pixels_counted=self.pixels_counted,
            total_photons=int(self._totals[0]),
            saturated_pixels=int(self._totals[1]),
            background_photons=float(self.background @ plan.bin_pixels),
        )


SUSPECT_COUNTS = 30.0
"""A pixel that stayed zero where this many counts were expected is suspect (chance: 1e-13)."""


def suspect_pixels(workspaces: list[Workspace]) -> npt.NDArray[np.intp]:
    """Valid pixels (flat indices) that never counted although at least ``SUSPECT_COUNTS`` were expected.

    The workspaces are those of one series, of one shape.
    """
    plan = workspaces[0].plan
    enough = np.sum([workspace.expected for workspace in workspaces], 0) >= SUSPECT_COUNTS
    if not enough.any():
        return np.empty(0, np.intp)
    seen = np.logical_or.reduce([workspace.seen for workspace in workspaces])
    return np.flatnonzero((plan.inside != 0) & ~seen & enough[plan.bins.bin_of])


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """What is left of a frame: see ``Workspace`` for shapes.

    ``peaks`` has ``PEAK_DTYPE``: centroid as pixel indices, net photons in 5 x 5, net photons
    over the root of all counts there. ``background_photons`` is the background's expected sum
    over the valid pixels.
    """

    significance: npt.NDArray[np.float32]
    peaks: npt.NDArray[Any]
    photons: npt.NDArray[np.float64]
    pixels_counted: npt.NDArray[np.float64]
    total_photons: int
    saturated_pixels: int
    background_photons: float


@numba.njit(nogil=True, cache=True, inline="always")
def _surprise(counts: Any, expected: float, log_expected: float, log_factorial: Any) -> float:
    """-ln Poisson(counts; expected) for an excess, 0 otherwise."""
    if counts <= expected:
        return 0.0
    if counts < 65536:
        return float(expected - counts * log_expected + log_factorial[counts])
    # Stirling; reached only by spots far beyond doubt.
    return float(expected - counts * log_expected + counts * (np.log(float(counts)) - 1.0))


@numba.njit(nogil=True, cache=True)
def _tail_surprise(counts: Any, expected: float, log_factorial: Any) -> float:
    """-ln of the chance of so many counts or more, by the geometric bound of the Poisson tail."""
    surprise = _surprise(counts, expected, np.log(expected), log_factorial)
    return surprise + np.log(1.0 - expected / (counts + 1.0)) if surprise > 0.0 else 0.0


@numba.njit(nogil=True, cache=True)
def _estimate_background(counts: Any, pixels: Any, background: Any, radial_bins: int, classes: int) -> None:
    """Mean counts a pixel of each bin, widened along the radius until enough photons support it."""
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


def _reduce_kernel(
    words: Any,
    pixels: Any,
    top: int,
    saturation: int,
    inside: Any,
    bin_of: Any,
    bin_pixels: Any,
    columns: int,
    threshold: float,
    index: Any,
    claimed: Any,
    seen: Any,
    photons: Any,
    counted: Any,
    background: Any,
    scratch: Any,
    significance: Any,
    candidate_index: Any,
    candidate_score: Any,
    claim_index: Any,
    peaks: Any,
    totals: Any,
) -> int:
    count = pixels.size
    per_word = 8 // pixels.itemsize
    bins = bin_pixels.size
    rows = count // columns
    lost, occupied, clipped, log_background = scratch[0], scratch[1], scratch[2], scratch[3]
    for b in range(bins):
        photons[b] = 0.0
        lost[b] = 0.0
        occupied[b] = 0.0
    found = 0
    total, saturated = np.int64(0), 0
    # The list of nonzero valid pixels, and sums over the bins.
    for w in range(words.size):
        if words[w] == 0:
            continue
        for i in range(w * per_word, min((w + 1) * per_word, count)):
            value = pixels[i]
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
    totals[0], totals[1], totals[2] = total, saturated, found
    # First guess of the background from how many pixels counted at all: Bragg light, however
    # bright, is few pixels. Where nearly all count, the mean has to serve.
    for b in range(bins):
        counted[b] = bin_pixels[b] - lost[b]
        share = occupied[b] / counted[b] if counted[b] > 0 else 0.0
        clipped[b] = -np.log1p(-share) * counted[b] if share < 0.8 else photons[b]
    radial_bins = bins // AZIMUTH_CLASSES
    _estimate_background(clipped, counted, background, radial_bins, AZIMUTH_CLASSES)
    # Then the mean without outliers, twice: counts and pixels over the limit are left out.
    for _ in range(2):
        for b in range(bins):
            clipped[b] = 0.0
            occupied[b] = counted[b]
            log_background[b] = background[b] + 5.0 * np.sqrt(background[b]) + 3.0
        for n in range(found):
            i = index[n]
            b = bin_of[i]
            if pixels[i] <= log_background[b]:
                clipped[b] += pixels[i]
            else:
                occupied[b] -= 1.0
        _estimate_background(clipped, occupied, background, radial_bins, AZIMUTH_CLASSES)
    for b in range(bins):
        log_background[b] = np.log(background[b])
    # Significance around each nonzero pixel, the largest of each cell, and candidates for peaks.
    significance[:] = 0.0
    log4, log9 = np.log(4.0), np.log(9.0)
    candidates = 0
    for n in range(found):
        i = index[n]
        b = bin_of[i]
        mean, log_mean = background[b], log_background[b]
        value = np.int64(pixels[i])
        # In bright water a pixel below the mean is not the middle of a spot.
        if mean > 0.3 and value <= mean:
            continue
        row, column = i // columns, i % columns
        one = _surprise(value, mean, log_mean, _LOG_FACTORIAL)
        if inside[i] == 2:
            up, down = i - columns, i + columns
            a0, a1, a2 = np.int64(pixels[up - 1]), np.int64(pixels[up]), np.int64(pixels[up + 1])
            a3, a5 = np.int64(pixels[i - 1]), np.int64(pixels[i + 1])
            a6, a7, a8 = np.int64(pixels[down - 1]), np.int64(pixels[down]), np.int64(pixels[down + 1])
            if a0 == top or a1 == top or a2 == top or a3 == top or a5 == top or a6 == top or a7 == top or a8 == top:
                wide = 0.0
            else:
                four = value + max(max(a0 + a1 + a3, a1 + a2 + a5), max(a3 + a6 + a7, a5 + a7 + a8))
                nine = value + a0 + a1 + a2 + a3 + a5 + a6 + a7 + a8
                wide = max(
                    _surprise(four, 4.0 * mean, log_mean + log4, _LOG_FACTORIAL),
                    _surprise(nine, 9.0 * mean, log_mean + log9, _LOG_FACTORIAL),
                )
        else:
            wide = 0.0
        cell_row, cell_column = row // CELL, column // CELL
        if one > significance[0, cell_row, cell_column]:
            significance[0, cell_row, cell_column] = one
        if wide > significance[1, cell_row, cell_column]:
            significance[1, cell_row, cell_column] = wide
        best = max(one, wide)
        if best > threshold and candidates < candidate_index.size:
            candidate_index[candidates] = i
            # Ties go to the brighter pixel, then to the earlier: the order is the frame's own.
            candidate_score[candidates] = -(best + 1e-3 * min(value, np.int64(1000)))
            candidates += 1
    found_peaks, claims = 0, 0
    order = np.argsort(candidate_score[:candidates], kind="mergesort")
    for k in order:
        i = candidate_index[k]
        if claimed[i]:
            continue
        row, column = i // columns, i % columns
        mean = background[bin_of[i]]
        # The ring around decides with the radial mean: streaks and ring edges are no peaks.
        limit = mean + 5.0 * np.sqrt(mean) + 3.0
        ring_counts, ring_pixels = _RING_PRIOR_PIXELS * mean, _RING_PRIOR_PIXELS
        for y in range(max(0, row - _RING_OUTER), min(rows, row + _RING_OUTER + 1)):
            for x in range(max(0, column - _RING_OUTER), min(columns, column + _RING_OUTER + 1)):
                if max(abs(y - row), abs(x - column)) < _RING_INNER:
                    continue
                j = y * columns + x
                if inside[j] and pixels[j] != top:
                    ring_pixels += 1.0
                    ring_counts += min(float(pixels[j]), limit)
        local = max(mean, ring_counts / ring_pixels)
        weight, sum_y, sum_x, net, gross, area, flagged = 0.0, 0.0, 0.0, 0.0, 0.0, 0, np.uint8(0)
        best_four, nine, nine_area = np.int64(0), np.int64(0), 0
        for y in range(max(0, row - _WINDOW), min(rows, row + _WINDOW + 1)):
            for x in range(max(0, column - _WINDOW), min(columns, column + _WINDOW + 1)):
                j = y * columns + x
                if inside[j] == 0 or pixels[j] == top:
                    continue
                value = np.int64(pixels[j])
                gross += value
                net += value - local
                area += 1
                if value >= saturation:
                    flagged = np.uint8(1)
                if value > local:
                    weight += value - local
                    sum_y += (value - local) * (y - row)
                    sum_x += (value - local) * (x - column)
                if abs(y - row) <= 1 and abs(x - column) <= 1:
                    nine += value
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
        value = np.int64(pixels[i])
        score = max(
            _tail_surprise(value, local, _LOG_FACTORIAL),
            _tail_surprise(best_four, 4.0 * local, _LOG_FACTORIAL),
            _tail_surprise(nine, max(nine_area, 1) * local, _LOG_FACTORIAL),
        )
        if score <= threshold or net <= 0.0 or found_peaks >= peaks.size:
            continue
        peak = peaks[found_peaks]
        peak.ss = row + sum_y / weight
        peak.fs = column + sum_x / weight
        peak.intensity = net
        peak.snr = net / np.sqrt(gross)
        peak.surprise = score
        peak.saturated = flagged
        found_peaks += 1
        tail = mean + 3.0 * np.sqrt(mean) + 1.0
        claims = _claim_spot(pixels, columns, i, tail, top, inside, claimed, claim_index, claims)
    # The profile without spots and their halo; the marks are wiped for the next frame.
    for n in range(claims):
        j = claim_index[n]
        claimed[j] = 0
        if inside[j] and pixels[j] != top:
            b = bin_of[j]
            photons[b] -= pixels[j]
            counted[b] -= 1.0
    return found_peaks


def _signature(pixel: Any) -> Any:
    def array(kind: Any, ndim: int = 1) -> Any:
        return types.Array(kind, ndim, "C")

    f8, u1 = types.float64, types.uint8
    return types.int64(
        array(types.uint64), array(pixel), types.int64, types.int64, array(u1), array(types.uint16), array(f8),
        types.int64, f8, array(types.int32), array(u1), array(u1), array(f8), array(f8), array(f8), array(f8, 2),
        array(types.float32, 3), array(types.int64), array(f8), array(types.int64),
        array(numba.from_dtype(PEAK_DTYPE)), array(types.int64),
    )  # fmt: skip


_reduce = numba.njit([_signature(kind) for kind in (types.uint8, types.uint16, types.uint32)], nogil=True, cache=True)(
    _reduce_kernel
)
