"""The posterior of photon energy and camera length, given a profile.

A likelihood fit of ``model`` under normal priors of what is not asked for, whose widths are in units of 100 um of
water. What may or may not be there (a polyimide film, a glass wall, an error of the water's table and how large) is
weighed by the evidence of each (Laplace's approximation about one fit, in which they enter linearly) and averaged
over, so that the stated uncertainty holds whether they are there or not.
"""

import math
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from analyzer.diffuse import QUADRANTS
from analyzer.geometry import AZIMUTH_CLASSES
from analyzer.parameters import model
from analyzer.parameters.model import (
    CENTER_X,
    CENTER_Y,
    ENERGY,
    FLAT,
    OTHERS,
    PILE_UP,
    RATIO,
    SCALE,
    WARMER,
    climb,
    curvature,
    expect,
)  # fmt: skip
from analyzer.parameters.profile import PHOTONS, PIXELS, SQUARES
from analyzer.parameters.scattering import OTHER_TABLES, Scattering

AIR, FILM, GLASS = (OTHERS + n for n in range(len(OTHER_TABLES)))
ERRORS = OTHERS + len(OTHER_TABLES)

CENTER_SIGMA_PX = 6.0
"""A header's beam centre is within some 10 pixels of the true one."""

POLARISATION = (1.0, 0.0, 0.0)
"""Linear along the first axis (fast scan): (pxx, pxy, pyy)."""

_SIGMA = {AIR: 2.0, FILM: 0.7, GLASS: 0.7, FLAT: 0.3, WARMER: 1.2}
"""Of the priors: 2 cm of air, 18 um of film, 7 um of glass a 100 um of water; stray light; 12 K."""

_PILE_UP_UNKNOWN = 0.5
_PILE_UP_SURE = 0.02
_THERE = 0.2
"""Prior probability that there is a film, and that there is a glass wall."""

TABLE_ERRORS = (3e-4, 2e-3, 6e-3, 2e-2, 5e-2)
"""Relative errors of the water's table that are weighed against each other."""

FRAME_TABLE_ERRORS = (1e-2,)
"""A single frame cannot tell; this one is assumed."""

_ABSENT = 1e10
"""Precision of what is not there."""

_START_LOG_ENERGIES = np.log([5500.0, 7200.0, 9400.0])
_START_LOG_RATIOS = np.arange(math.log(0.09 / 9800.0), math.log(0.47 / 5200.0), 0.06)
_MOST_STEPS = 60
FEWEST_PHOTONS = 300.0

Floats = npt.NDArray[np.float64]
_BASE = np.array([RATIO, ENERGY, CENTER_X, CENTER_Y, SCALE, PILE_UP, FLAT, WARMER, AIR, FILM, GLASS])
_BASE_FILM, _BASE_GLASS = len(_BASE) - 2, len(_BASE) - 1
_MIXED = np.array([SCALE, FLAT, AIR, FILM, GLASS])
_MIXED_PRECISION = np.array([0.0, *(_SIGMA[unknown] ** -2.0 for unknown in (FLAT, AIR, FILM, GLASS))])
_FIRST_SOLID = 3
_GRID_ERROR = 0.05
_SAME = 0.01
_APART = 0.1
_OTHERS = 2
_HOPELESS = 15.0
_DOUBTFUL = 5.0

_NARROW, _HOPELESSLY_WIDE = 0.05, 0.5
"""Standard deviations of ln E between which the posterior's tails are looked at: narrower ones are normal."""

_MOST_WIDENED = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """What a profile says. ``mean`` (2,): ln(L/E in m/eV) and ln(E/eV); ``covariance`` (2, 2) of them.

    ``center_px`` (2,): how far the beam is from the header's centre, and ``center_sigma_px``; ``misfit``: Pearson's chi
    squared a degree of freedom; ``deviation``: of the profile from the fit beyond noise, relative; ``water_share``: of
    the photons; ``film``, ``glass``: the probability that there is one; ``table_error``: of the water's table, as the
    data have it. ``reason`` says why nothing is determined, else ``None``.
    """

    mean: Floats
    covariance: Floats
    center_px: Floats
    center_sigma_px: Floats
    misfit: float = 1.0
    deviation: float = 0.0
    water_share: float = 0.0
    film: float = 0.0
    glass: float = 0.0
    table_error: float = 0.0
    reason: str | None = None


def undetermined(reason: str) -> Posterior:
    """The posterior that says nothing but why."""
    return Posterior(np.full(2, np.nan), np.full((2, 2), np.nan), np.full(2, np.nan), np.full(2, np.nan), reason=reason)


@dataclass(frozen=True, slots=True, eq=False)
class _Mode:
    """A maximum ``x``, its height ``log``, and what each hypothesis makes of it: evidence, and place and covariance of
    the first four unknowns.

    ``mean`` (bins,): expected counts a pixel there.
    """

    x: Floats
    log: float
    logs: Floats
    places: Floats
    covariances: Floats
    mean: Floats


class Fitter:
    """Fits profiles on one set of bins; its buffers are its own, so one thread at a time.

    ``shape`` (6, bins), ``pixels`` (bins,), ``pixel_size_m``: see ``profile``. ``table_errors``: sizes weighed against
    each other, the largest of which the fit starts from; a single one leaves the errors out of the fit and adds them
    after.
    """

    def __init__(
        self, shape: Floats, pixels: Floats, pixel_size_m: float, scattering: Scattering,
        table_errors: tuple[float, ...] = FRAME_TABLE_ERRORS, polarisation: tuple[float, float, float] = POLARISATION,
    ) -> None:  # fmt: skip
        self._shape, self._pixels = np.ascontiguousarray(shape), pixels
        self._pixel_m, self._scattering = pixel_size_m, scattering
        self._polarisation = np.array(polarisation)
        self._table_errors = table_errors
        self._unknowns = OTHERS + len(scattering.tables) - model.OTHER_TABLES
        bins = shape.shape[1]
        self._mean, self._slopes = np.zeros(bins), np.zeros((self._unknowns, bins))
        self._all = np.concatenate([_BASE, np.arange(ERRORS, self._unknowns)])
        self._base_tables = np.ascontiguousarray(scattering.tables[: ERRORS - OTHERS + model.OTHER_TABLES])
        self._hypotheses = list(product((False, True), (False, True), range(len(table_errors))))
        self._starts = self._templates()

    def _templates(self) -> tuple[Floats, Floats]:
        """Where a fit may begin: (ln(L/E), ln E) (n, 2), and what each of ``_MIXED`` adds there (n, 5, folded bins)."""
        points = np.array([
            (ratio, energy) for energy in _START_LOG_ENERGIES for ratio in _START_LOG_RATIOS
            if model.LOWEST_LOG_LENGTH < ratio + energy < model.HIGHEST_LOG_LENGTH
        ])  # fmt: skip
        return points, np.array([self._parts(point) for point in points])

    def _parts(self, where: Floats) -> Floats:
        x = np.zeros(self._unknowns)
        x[:2] = where
        self._expect(x, self._base_tables)
        return np.array([self._folded(self._slopes[each] * self._pixels) for each in _MIXED])

    def _folded(self, values: Floats) -> Floats:
        """Sums over the quadrants, which a beam that is a little off does not change much: where a fit begins."""
        folded: Floats = values.reshape(-1, QUADRANTS).sum(1)
        return folded

    def _expect(self, x: Floats, tables: Floats) -> None:
        expect(
            x, self._shape, self._pixel_m, self._polarisation, tables, self._scattering.q_step_inv_angstrom,
            self._mean, self._slopes,
        )  # fmt: skip

    def fit(self, profile: Floats, pairs: float, start: Posterior | None = None) -> Posterior:
        """The posterior of a profile (3, bins) float64; ``pairs``: see ``kernels.diffuse_areas``, summed."""
        photons, pixels = profile[PHOTONS], profile[PIXELS]
        total = float(photons.sum())
        if total < FEWEST_PHOTONS:
            return undetermined(f"only {total:.0f} photons of diffuse scattering")
        prior, precision = self._prior(float((profile[SQUARES] - photons).sum()), pairs)
        modes: list[_Mode] = []
        best = -math.inf
        for x in self._starts_for(photons, pixels, start):
            log = self._climb(x, prior, precision, photons, pixels, best - _HOPELESS)
            best = max(best, log)
            new = all(np.abs(x[:2] - mode.x[:2]).max() > _SAME for mode in modes)
            if new and np.isfinite(log) and np.isfinite(x).all():
                modes.append(self._mode(x, log, prior, precision, photons, pixels))
        if not modes:
            return undetermined("the fit of water to the profile fails")
        posterior = self._average(modes, photons, pixels)
        spread = math.sqrt(posterior.covariance[1, 1])
        if not _NARROW < spread < _HOPELESSLY_WIDE:
            return posterior
        mode = max(modes, key=lambda each: each.log)
        widened = max(
            1.0, *(self._tail(side * spread, mode, posterior, prior, precision, photons, pixels) for side in (-2, 2))
        )
        return replace(posterior, covariance=posterior.covariance * widened**2)

    def _climb(
        self, x: Floats, prior: Floats, precision: Floats, photons: Floats, pixels: Floats, hopeless: float
    ) -> float:
        many = len(self._table_errors) > 1
        free = self._all if many else _BASE
        whole = self._with_errors(precision, max(self._table_errors)) if many else precision[: len(free), : len(free)]
        log, _ = climb(
            x, free, prior[: len(free)], np.ascontiguousarray(whole), photons, pixels, self._shape, self._pixel_m,
            self._polarisation, self._scattering.tables if many else self._base_tables,
            self._scattering.q_step_inv_angstrom, self._mean, self._slopes, _MOST_STEPS, hopeless,
        )  # fmt: skip
        return float(log)

    def _tail(
        self, away: float, mode: "_Mode", posterior: Posterior, prior: Floats, precision: Floats, photons: Floats,
        pixels: Floats,
    ) -> float:  # fmt: skip
        """How much wider than normal the posterior is at ln E so far away: by what the best fit there loses."""
        x = mode.x.copy()
        x[ENERGY] = posterior.mean[1] + away
        x[RATIO] = posterior.mean[0] + posterior.covariance[0, 1] / posterior.covariance[1, 1] * away
        held, tight = prior.copy(), precision.copy()
        held[ENERGY], tight[ENERGY, ENERGY] = x[ENERGY], _ABSENT
        lost = mode.log - self._climb(x, held, tight, photons, pixels, -math.inf)
        return min(2.0 / math.sqrt(2.0 * max(lost, 1e-3)), _MOST_WIDENED)

    def _starts_for(self, photons: Floats, pixels: Floats, start: Posterior | None) -> list[Floats]:
        """Where to begin: the best mixture of water and the rest on a grid of L and E, and what may do as well.

        That is the best without solids, for near a wrong point of the grid solids can stand for anything, and the
        best ones at another L/E.
        """
        points, parts = self._starts
        if start is not None and start.reason is None:
            points = np.concatenate([points, start.mean[None]])
            parts = np.concatenate([parts, self._parts(start.mean)[None]])
        counts, area, whole = self._folded(photons), self._folded(pixels), self._folded(self._pixels)
        ring = np.arange(len(counts)) // AZIMUTH_CLASSES
        rate = (np.bincount(ring, counts) + 1.0) / np.maximum(np.bincount(ring, area), 1.0)
        # Besides noise, what the points of the grid are apart: else a wrong mixture near a point beats the right one.
        expected = np.maximum(area * rate[ring], 1e-3)
        weight = 1.0 / np.sqrt(expected + (_GRID_ERROR * expected) ** 2)
        share = area / np.maximum(whole, 1.0)
        mixed, gains = np.zeros((2, len(points), len(_MIXED))), np.zeros((2, len(points)))
        design = np.zeros(parts.shape[1:])
        model.mix(parts, share, counts, weight, _MIXED_PRECISION, _FIRST_SOLID, design, mixed, gains)
        plain, solid = (int(each.argmax()) for each in gains)
        chosen = [(1, solid)]
        if mixed[1, solid, _FIRST_SOLID:].any() and gains[0, plain] > gains[1, solid] - _HOPELESS:
            chosen.append((0, plain))
        left = gains[1].copy()
        for _ in range(_OTHERS):
            left[np.abs(points[:, 0] - points[chosen[-1][1], 0]) < _APART] = -np.inf
            left[np.abs(points[:, 0] - points[solid, 0]) < _APART] = -np.inf
            other = int(left.argmax())
            if left[other] < gains[1, solid] - _DOUBTFUL:
                break
            chosen.append((1, other))
        return [self._unknown(points[place], mixed[kind, place]) for kind, place in chosen if gains[kind, place] > 0.0]

    def _unknown(self, where: Floats, mixed: Floats) -> Floats:
        x = np.zeros(self._unknowns)
        x[:2] = where
        x[SCALE] = math.log(mixed[0])
        x[_MIXED[1:]] = mixed[1:] / mixed[0]
        return x

    def _prior(self, pairs: float, expected_pairs: float) -> tuple[Floats, Floats]:
        """Middle (all,) and precision (all, all) of the priors, table errors left out."""
        prior, sigma = np.zeros(len(self._all)), np.full(len(self._all), np.inf)
        for place, unknown in enumerate(self._all):
            sigma[place] = _SIGMA.get(int(unknown), np.inf)
        sigma[[CENTER_X, CENTER_Y]] = CENTER_SIGMA_PX
        if expected_pairs > 10.0:
            prior[PILE_UP] = 1.0 - pairs / expected_pairs
            sigma[PILE_UP] = min(math.hypot(_PILE_UP_SURE, 1.0 / math.sqrt(expected_pairs)), _PILE_UP_UNKNOWN)
        else:
            sigma[PILE_UP] = _PILE_UP_UNKNOWN
        return prior, np.diag(sigma**-2.0)

    def _with_errors(self, precision: Floats, size: float) -> Floats:
        whole = precision.copy()
        errors = slice(len(self._all) - len(self._scattering.precision), None)
        whole[errors, errors] = self._scattering.precision / size**2
        return whole

    def _mode(
        self, x: Floats, climbed: float, prior: Floats, precision: Floats, photons: Floats, pixels: Floats
    ) -> "_Mode":
        """Everything that may be there, by the likelihood's expansion about ``x``."""
        free = self._all
        information, score = np.zeros((len(free), len(free))), np.zeros(len(free))
        self._expect(x, self._scattering.tables)
        log = curvature(photons, pixels, self._mean, self._slopes, free, information, score)
        wall = np.zeros(5)
        log += model.wall(x, wall)
        score[:2] += wall[:2]
        walled = information.copy()
        walled[:2, :2] += [[wall[2], wall[3]], [wall[3], wall[4]]]
        off = x[free] - prior
        there = self._hypotheses
        precisions = np.array([self._held(precision, *each) for each in there])
        logs, steps, covariances = np.zeros(len(there)), np.zeros((len(there), 4)), np.zeros((len(there), 4, 4))
        model.weigh(information, walled, score, off, precisions, logs, steps, covariances)
        for n, (film, glass, size) in enumerate(there):
            logs[n] += sum(math.log(_THERE if each else 1.0 - _THERE) for each in (film, glass))
            logs[n] += self._log_normalisation(film, glass, self._table_errors[size])
        return _Mode(x, climbed, log + logs, x[:4] + steps, covariances, self._mean.copy())

    def _average(self, modes: list["_Mode"], photons: Floats, pixels: Floats) -> Posterior:
        logs = np.concatenate([mode.logs for mode in modes])
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        places = np.concatenate([mode.places for mode in modes])
        where = weights @ places
        apart = places - where
        covariances = np.concatenate([mode.covariances for mode in modes])
        covariance = np.einsum("k,kij->ij", weights, covariances) + np.einsum("k,ki,kj->ij", weights, apart, apart)
        best = modes[int(weights.argmax()) // len(self._hypotheses)]
        expected = pixels * best.mean
        used = expected > 0
        freedom = max(1, int(np.count_nonzero(used)) - len(_BASE))
        misfit = float(((photons - expected)[used] ** 2 / expected[used]).sum()) / freedom
        deviation = math.sqrt(max(0.0, misfit - 1.0) * freedom / float(photons.sum()))
        water = math.exp(best.x[SCALE]) * float(pixels @ self._water_part(best.x)) / float(photons.sum())
        there = self._hypotheses * len(modes)
        solids = weights @ np.array([each[:2] for each in there], np.float64)
        sizes = np.log([self._table_errors[size] for _, _, size in there])
        return Posterior(
            where[:2], covariance[:2, :2], where[2:4], np.sqrt(np.diag(covariance)[2:4]), misfit, deviation, water,
            float(solids[0]), float(solids[1]), math.exp(float(weights @ sizes)),
        )  # fmt: skip

    def _held(self, precision: Floats, film: bool, glass: bool, size: int) -> Floats:
        whole = self._with_errors(precision, self._table_errors[size])
        for place, there in ((_BASE_FILM, film), (_BASE_GLASS, glass)):
            if not there:
                whole[place, place] = _ABSENT
        return whole

    def _log_normalisation(self, film: bool, glass: bool, size: float) -> float:
        """Of the priors that differ between hypotheses."""
        solids = sum(
            0.5 * math.log(_SIGMA[each] ** -2.0 if there else _ABSENT) for each, there in ((FILM, film), (GLASS, glass))
        )
        return solids - len(self._scattering.precision) * math.log(size)

    def _water_part(self, x: Floats) -> Floats:
        pure = x.copy()
        pure[SCALE] = pure[FLAT] = 0.0
        pure[PILE_UP] = 0.0
        pure[OTHERS:] = 0.0
        mean, slopes = np.zeros_like(self._mean), np.zeros_like(self._slopes)
        expect(
            pure, self._shape, self._pixel_m, self._polarisation, self._base_tables,
            self._scattering.q_step_inv_angstrom, mean, slopes,
        )  # fmt: skip
        return mean
