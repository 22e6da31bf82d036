"""Where a fit may begin: the likelihood has several maxima, for a polyimide ring can pass for one of water.

A grid of L/E and E, at each point the best mixture of water and the rest, none of it negative; from the best points at
different L/E a few steps of the fit itself, on bins that are folded over the quadrants, which a beam that is a little
off does not change much. What remains within reach of the best of them is worth the whole fit.
"""

import numpy as np
import numpy.typing as npt

from analyzer.geometry import AZIMUTH_CLASSES
from analyzer.kernels import QUADRANTS
from analyzer.parameters import model
from analyzer.parameters.model import CENTER_X, CENTER_Y, FLAT, OTHERS, RATIO, SCALE, climb, expect

_LOG_ENERGIES = np.log([5500.0, 7200.0, 9400.0])
_MORE_LOG_ENERGIES = np.log([5000.0, 5800.0, 6700.0, 7700.0, 8800.0, 10000.0])
_LOG_RATIOS = np.arange(np.log(0.09 / 9800.0), np.log(0.47 / 5200.0), 0.06)
_GRID_ERROR = 0.05
_SIMPLE = 3
"""Of the mixture's parts the first: water, stray light, air. The others are solids, which have rings of their own."""

_APART = 0.1
"""In ln(L/E), between points that are tried."""

_TRIED, _MORE_TRIED = 3, 8
_STEPS = 12
_LIKELY, _LIKELY_OF_MISFIT = 8.0, 0.2
"""How much less likely than the best a maximum may be that is followed: nats, and of what the best one misses."""

_FOLLOWED = 2

Floats = npt.NDArray[np.float64]


class Starts:
    """Finds starts on one set of bins; its buffers are its own, so one thread at a time.

    ``shape`` (6, bins), ``pixels`` (bins,), ``pixel_size_m``, ``polarisation``, ``tables``, ``q_step``: see ``model``.
    ``free`` names the unknowns, all of these tables, with ``precision`` (free, free) of their priors.
    ``thorough``: look at more places. ``folded``: the bins are folded already.
    """

    def __init__(
        self, shape: Floats, pixels: Floats, pixel_size_m: float, polarisation: Floats, tables: Floats, q_step: float,
        free: npt.NDArray[np.int64], precision: Floats, thorough: bool, folded: bool,
    ) -> None:  # fmt: skip
        self._quadrants = 1 if folded else QUADRANTS
        self._whole = self._folded(pixels)
        moments = [self._folded(row * pixels) / np.maximum(self._whole, 1.0) for row in shape]
        self._shape = np.ascontiguousarray(moments)
        self._shape[model.RADIUS] = np.maximum(self._shape[model.RADIUS], 0.5)
        self._fixed = (self._shape, pixel_size_m, polarisation, tables, q_step)
        unknowns = OTHERS + len(tables) - model.OTHER_TABLES
        self._mean, self._slopes = np.zeros(len(self._whole)), np.zeros((unknowns, len(self._whole)))
        kept = np.flatnonzero((free != CENTER_X) & (free != CENTER_Y))
        self._free = np.ascontiguousarray(free[kept])
        self._pile_up = int(np.flatnonzero(self._free == model.PILE_UP)[0])
        self._precision = np.ascontiguousarray(precision[np.ix_(kept, kept)])
        self._tried = _MORE_TRIED if thorough else _TRIED
        self._mixed = np.array([SCALE, FLAT, *range(OTHERS, unknowns)])
        inverse = dict(zip(free.tolist(), np.diag(precision).tolist(), strict=True))
        self._ridge = np.array([0.0, *(inverse[unknown] for unknown in self._mixed[1:])])
        self._points = np.array([
            (ratio, energy) for energy in (_MORE_LOG_ENERGIES if thorough else _LOG_ENERGIES) for ratio in _LOG_RATIOS
            if model.LOWEST_LOG_LENGTH < ratio + energy < model.HIGHEST_LOG_LENGTH
        ])  # fmt: skip
        self._parts = np.array([self._parts_at(point) for point in self._points])
        self._design = np.zeros(self._parts.shape[1:])

    def find(
        self, photons: Floats, pixels: Floats, pile_up: tuple[float, float], guess: Floats | None = None
    ) -> list[tuple[float, Floats]]:
        """Unknowns to begin with and their log posterior, the likeliest first, of a profile (bins,).

        ``pile_up``: middle and precision of eta.

        ``guess`` (2,): u and v where the fit ended before.
        """
        points, parts = self._points, self._parts
        if guess is not None:
            points, parts = np.concatenate([points, guess[None]]), np.concatenate([parts, self._parts_at(guess)[None]])
        counts, area = self._folded(photons), self._folded(pixels)
        mixed, gains = self._mix(parts, counts, area)
        prior = np.zeros(len(self._free))
        prior[self._pile_up], self._precision[self._pile_up, self._pile_up] = pile_up
        found: list[tuple[float, Floats]] = []
        for kind, place in _chosen(points[:, RATIO], gains, self._tried):
            x = self._unknowns_at(points[place], mixed[kind, place])
            known = np.array([other[:2] for _, other in found]).reshape(-1, 2)
            shape, pixel_m, polarisation, tables, q_step = self._fixed
            log, _ = climb(
                x, self._free, prior, self._precision, counts, area, shape, pixel_m, polarisation, tables, q_step,
                self._mean, self._slopes, _STEPS, -np.inf, known,
            )  # fmt: skip
            if np.isfinite(log) and np.isfinite(x).all():
                found.append((log, x))
        if not found:
            return []
        found.sort(key=lambda each: -each[0])
        best = found[0][0]
        return [(log, x) for log, x in found[:_FOLLOWED] if log > best - _LIKELY + _LIKELY_OF_MISFIT * best]

    def _folded(self, values: Floats) -> Floats:
        folded: Floats = values.reshape(-1, self._quadrants).sum(1)
        return folded

    def _mix(self, parts: Floats, counts: Floats, area: Floats) -> tuple[Floats, Floats]:
        """Amounts (2, points, parts) and gains (2, points): without solids, and with."""
        ring = np.arange(len(counts)) // AZIMUTH_CLASSES
        rate = (np.bincount(ring, counts) + 1.0) / np.maximum(np.bincount(ring, area), 1.0)
        # Besides noise, what the points of the grid are apart: else a wrong mixture near a point beats the right one.
        expected = np.maximum(area * rate[ring], 1e-3)
        weight = 1.0 / np.sqrt(expected + (_GRID_ERROR * expected) ** 2)
        share = area / np.maximum(self._whole, 1.0)
        mixed, gains = np.zeros((2, len(parts), len(self._mixed))), np.zeros((2, len(parts)))
        model.mix(parts, share, counts, weight, self._ridge, _SIMPLE, self._design, mixed, gains)
        return mixed, gains

    def _parts_at(self, where: Floats) -> Floats:
        x = np.zeros(len(self._slopes))
        x[:2] = where
        expect(x, *self._fixed, self._mean, self._slopes)
        return np.array(self._slopes[self._mixed] * self._whole)

    def _unknowns_at(self, where: Floats, mixed: Floats) -> Floats:
        x = np.zeros(len(self._slopes))
        x[:2] = where
        x[SCALE] = np.log(mixed[0])
        x[self._mixed[1:]] = mixed[1:] / mixed[0]
        return x


def _chosen(ratios: Floats, gains: Floats, tried: int) -> list[tuple[int, int]]:
    """Points (kind, place) to try: the best without solids, then the best ones that lie apart from each other."""
    chosen = [(0, int(gains[0].argmax()))]
    left = gains[1].copy()
    for _ in range(tried):
        place = int(left.argmax())
        if not left[place] > 0.0:
            break
        chosen.append((1, place))
        left[np.abs(ratios - ratios[place]) < _APART] = -np.inf
    return [(kind, place) for kind, place in chosen if gains[kind, place] > 0.0]
