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
from analyzer.parameters.starts import Starts

AIR, FILM, GLASS = (OTHERS + n for n in range(len(OTHER_TABLES)))
ERRORS = OTHERS + len(OTHER_TABLES)

CENTER_SIGMA_PX = 6.0
"""A header's beam centre is within some 10 pixels of the true one."""

POLARISATION = (1.0, 0.0, 0.0)
"""Linear along the first axis (fast scan): (pxx, pxy, pyy)."""

PRIOR_SIGMA = {AIR: 2.0, FILM: 0.7, GLASS: 0.7, FLAT: 0.3, WARMER: 1.2}
"""Of the priors: 2 cm of air, 18 um of film, 7 um of glass a 100 um of water; stray light; 12 K."""

PILE_UP_UNKNOWN, PILE_UP_SURE = 0.5, 0.02
"""Of eta's prior, where there are no pairs of counts to tell, and at best where there are."""

_THERE = 0.2
"""Prior probability that there is a film, and that there is a glass wall."""

_THIN, _THIN_CHANCE = 10.0, 0.1
"""There may be a tenth of the water and less, so that all the rest is as much more; and how likely that is."""

_STRAIN, _STRAINED_MISFIT = 5.0, 2.5
"""Nats against the prior, and standard deviations of chi squared, from which it is looked for."""

TABLE_ERRORS = (3e-4, 2e-3, 6e-3, 2e-2, 5e-2)
"""Relative errors of the water's table that are weighed against each other."""

FRAME_TABLE_ERRORS = (1e-2,)
"""A single frame cannot tell; this one is assumed."""

_ABSENT = 1e10
"""Precision of what is not there."""

_FRAME_STEPS, _SUM_STEPS, _TAIL_STEPS = 40, 300, 6
_SETTLING = 3
"""Hypotheses that a maximum is fitted anew under, until one holds."""

_NOWHERE = np.zeros((0, 2))
FEWEST_PHOTONS = 300.0
"""Of a profile that is fitted at all."""

Floats = npt.NDArray[np.float64]
# The first of these are the first places of the unknowns, so that such a place is one among these, too.
_BASE = np.array([RATIO, ENERGY, CENTER_X, CENTER_Y, SCALE, PILE_UP, FLAT, WARMER, AIR, FILM, GLASS])
_BASE_FILM, _BASE_GLASS = len(_BASE) - 2, len(_BASE) - 1
_LIQUID = [int(np.flatnonzero(each == _BASE)[0]) for each in (FLAT, AIR)]
_OF_WATER = [*_LIQUID, _BASE_FILM, _BASE_GLASS]
"""Places of what is measured against the water."""

_FAR = 0.05
"""In ln(L/E): a climb that ends farther away has found another maximum."""

_HOPELESS, _UNLIKELY = 15.0, 8.0
"""Nats below the best, at which a climb is given up, and from which a maximum does not count."""

_FLOOR = np.diag([1.5e-4, 7e-4]) ** 2
"""Of the covariance of u and v, of sums: bins and tables are only so fine."""

_NARROW, _HOPELESSLY_WIDE = 0.05, 0.3
"""Standard deviations of ln E between which the posterior's tails are looked at: narrower ones are normal."""

_MOST_WIDENED = 10.0
"""Times, that a tail makes a posterior wider."""


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """What a profile says. ``mean`` (2,): ln(L/E in m/eV) and ln(E/eV); ``covariance`` (2, 2) of them.

    ``center_px`` (2,): how far the beam is from the header's centre, and ``center_sigma_px``; ``misfit``: Pearson's chi
    squared a degree of freedom; ``deviation``: of the profile from the fit beyond noise, relative; ``water_share``: of
    the photons; ``film``, ``glass``: the probability that there is one; ``table_error``: of the water's table, as the
    data have it. ``reason`` says why nothing is determined, else ``None``. ``at``: all unknowns where it is highest,
    for the next fit to begin at.
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
    at: Floats | None = None


NO_FIT = "the fit of water to the profile fails"


def undetermined(reason: str) -> Posterior:
    """The posterior that says nothing but why."""
    return Posterior(np.full(2, np.nan), np.full((2, 2), np.nan), np.full(2, np.nan), np.full(2, np.nan), reason=reason)


@dataclass(frozen=True, slots=True, eq=False)
class _Mode:
    """A maximum ``x``, its height ``log``, and what each hypothesis makes of it: evidence, and place and covariance of
    the first four unknowns.

    ``mean`` (bins,): expected counts a pixel there; ``water``: expected photons of water.
    """

    x: Floats
    log: float
    logs: Floats
    places: Floats
    covariances: Floats
    mean: Floats
    water: float


class Fitter:
    """Fits profiles on one set of bins; its buffers are its own, so one thread at a time.

    ``shape`` (6, bins), ``pixels`` (bins,), ``pixel_size_m``: see ``profile``. ``table_errors``: sizes weighed against
    each other, the largest of which the fit starts from; a single one leaves the errors out of the fit and adds them
    after. ``folded``: the bins are of all quadrants together.
    """

    def __init__(
        self, shape: Floats, pixels: Floats, pixel_size_m: float, scattering: Scattering,
        table_errors: tuple[float, ...] = FRAME_TABLE_ERRORS, *, folded: bool = False,
        polarisation: tuple[float, float, float] = POLARISATION,
    ) -> None:  # fmt: skip
        self._shape = np.ascontiguousarray(shape)
        self._pixel_m, self._scattering = pixel_size_m, scattering
        self._polarisation = np.array(polarisation)
        self._table_errors, self._folded = table_errors, folded
        self._unknowns = OTHERS + len(scattering.tables) - model.OTHER_TABLES
        bins = shape.shape[1]
        self._mean, self._slopes = np.zeros(bins), np.zeros((self._unknowns, bins))
        self._all = np.concatenate([_BASE, np.arange(ERRORS, self._unknowns)])
        self._base_tables = np.ascontiguousarray(scattering.tables[: ERRORS - OTHERS + model.OTHER_TABLES])
        kinds = list(product((False, True), (False, True), (False, True)))
        self._hypotheses = [(*kind, size) for kind in kinds for size in table_errors]
        self._base_precisions = np.array([self._precision(*kind) for kind in kinds])
        self._sizes = np.array(table_errors)
        self._log_chances = np.array([[self._log_chance(*kind, size) for size in table_errors] for kind in kinds])
        many = len(table_errors) > 1
        self._steps = _SUM_STEPS if many else _FRAME_STEPS
        self._climbed = self._all if many else _BASE
        self._tables = scattering.tables if many else self._base_tables
        loosest = max(table_errors)
        self._climbing = self._with_errors(self._precision(True, True, False), loosest)
        self._climbing_thin = self._with_errors(self._precision(True, True, True), loosest)
        self._starts = Starts(
            self._shape, pixels, pixel_size_m, self._polarisation, self._base_tables,
            scattering.q_step_inv_angstrom, _BASE, self._precision(True, True, False), thorough=many, folded=folded,
        )  # fmt: skip

    def _expect(self, x: Floats, tables: Floats) -> None:
        expect(
            x, self._shape, self._pixel_m, self._polarisation, tables, self._scattering.q_step_inv_angstrom,
            self._mean, self._slopes,
        )  # fmt: skip

    def fit(self, profile: Floats, pairs: float, start: Posterior | None = None) -> Posterior:
        """The posterior of a profile (3, bins) float64; ``pairs``: see ``kernels.diffuse_areas``, summed."""
        try:
            return self._fit(profile, pairs, start)
        except np.linalg.LinAlgError:
            # Where climbs end there is no maximum to expand about: a profile of noise, or of anything but water.
            return undetermined(NO_FIT)

    def _fit(self, profile: Floats, pairs: float, start: Posterior | None) -> Posterior:
        photons, pixels = profile[PHOTONS], profile[PIXELS]
        total = float(photons.sum())
        if not (np.isfinite(profile).all() and profile.min() >= 0.0 and pixels.any()):
            return undetermined("the profile holds what is no count of photons")
        if total < FEWEST_PHOTONS:
            return undetermined(f"only {total:.0f} photons of diffuse scattering")
        prior = np.zeros(len(self._all))
        pile_up = self._pile_up(float((profile[SQUARES] - photons).sum()), pairs)
        prior[PILE_UP], tight = pile_up
        self._base_precisions[:, PILE_UP, PILE_UP] = tight
        self._climbing[PILE_UP, PILE_UP] = self._climbing_thin[PILE_UP, PILE_UP] = tight
        guess = None if start is None or start.reason is not None else start.mean
        starts = self._starts.find(photons, pixels, pile_up, guess)
        if start is not None and start.at is not None and not self._folded:
            starts.insert(0, (-math.inf, start.at.copy()))
        modes = self._maxima(starts, prior, photons, pixels)
        if modes and self._strained(modes[0], prior, photons, pixels):
            # There may be little water, or none.
            x = modes[0].x.copy()
            log = self._climb(x, prior, self._climbing_thin, photons, pixels, self._steps, -math.inf, _NOWHERE)
            if np.isfinite(log) and np.isfinite(x).all():
                modes.append(self._mode(x, log, prior, photons, pixels))
        if not modes:
            return undetermined(NO_FIT)
        most = max(float(mode.logs.max()) for mode in modes)
        likely = [mode for mode in modes if mode.logs.max() > most - _UNLIKELY]
        settled = [each for mode in likely for each in self._settled(mode, prior, photons, pixels)]
        posterior = self._average(settled, photons, pixels)
        spread = math.sqrt(posterior.covariance[1, 1])
        if not _NARROW < spread < _HOPELESSLY_WIDE:
            return posterior
        mode = max(settled, key=lambda each: float(each.logs.max()))
        tails = [self._tail(side * spread, mode, posterior, prior, photons, pixels) for side in (-2, 2)]
        return replace(posterior, covariance=_widened(posterior.covariance, tails))

    def expected(self, posterior: Posterior) -> Floats | None:
        """Counts a pixel of each bin (bins,) where a posterior is highest; ``None`` of one that has no such place."""
        if posterior.at is None or len(posterior.at) != self._unknowns:
            return None
        self._expect(posterior.at, self._scattering.tables)
        return self._mean.copy()

    def _maxima(
        self, starts: list[tuple[float, Floats]], prior: Floats, photons: Floats, pixels: Floats
    ) -> list["_Mode"]:
        """Where climbs from these places end, the highest first."""
        if self._folded:
            # They were climbed to on these bins already.
            return [self._mode(x, log, prior, photons, pixels) for log, x in self._padded(starts)]
        modes: list[_Mode] = []
        best = -math.inf
        for _, x in self._padded(starts):
            known = np.array([mode.x[:2] for mode in modes]).reshape(-1, 2)
            log = self._climb(x, prior, self._climbing, photons, pixels, self._steps, best - _HOPELESS, known)
            best = max(best, log)
            new = not (np.abs(x[:2] - known) < model.SAME).all(1).any()
            if new and np.isfinite(log) and np.isfinite(x).all():
                modes.append(self._mode(x, log, prior, photons, pixels))
        return sorted(modes, key=lambda each: -each.log)

    def _padded(self, starts: list[tuple[float, Floats]]) -> list[tuple[float, Floats]]:
        return [(log, np.pad(x, (0, self._unknowns - len(x)))) for log, x in starts]

    def _settled(self, mode: "_Mode", prior: Floats, photons: Floats, pixels: Floats) -> list["_Mode"]:
        """Maxima under the hypotheses that are likeliest there: expansions reach only so far.

        One that ends far away was not about this place; then the next likeliest is.
        """
        found = []
        logs = mode.logs.copy()
        for _ in range(_SETTLING):
            likeliest = int(logs.argmax())
            precision = self._of_climbed(likeliest)
            x = mode.x.copy()
            x[self._climbed[np.diag(precision) >= _ABSENT]] = 0.0
            log = self._climb(x, prior, precision, photons, pixels, self._steps, -math.inf, _NOWHERE)
            if np.isfinite(log) and np.isfinite(x).all():
                found.append(self._mode(x, log, prior, photons, pixels))
                if abs(x[RATIO] - mode.x[RATIO]) < _FAR:
                    break
            logs[likeliest] = -np.inf
        return found or [mode]

    def _of_climbed(self, hypothesis: int) -> Floats:
        kind, size = divmod(hypothesis, len(self._sizes))
        return self._with_errors(self._base_precisions[kind], float(self._sizes[size]))

    def _climb(
        self, x: Floats, prior: Floats, precision: Floats, photons: Floats, pixels: Floats, steps: int, hopeless: float,
        known: Floats,
    ) -> float:  # fmt: skip
        free = self._climbed
        log, _ = climb(
            x, free, prior[: len(free)], precision, photons, pixels, self._shape, self._pixel_m, self._polarisation,
            self._tables, self._scattering.q_step_inv_angstrom, self._mean, self._slopes, steps, hopeless, known,
        )  # fmt: skip
        return float(log)

    def _strained(self, mode: "_Mode", prior: Floats, photons: Floats, pixels: Floats) -> bool:
        """Whether a maximum is far from its prior, or far from the data."""
        count = len(self._climbed)
        off = mode.x[self._climbed] - prior[:count]
        squares, used = _chi_squared(photons, pixels * mode.mean)
        most = 1.0 + _STRAINED_MISFIT * math.sqrt(2.0 / max(1, used))
        return bool(0.5 * off @ self._climbing @ off > _STRAIN or not used or squares / used > most)

    def _tail(
        self, away: float, mode: "_Mode", posterior: Posterior, prior: Floats, photons: Floats, pixels: Floats
    ) -> tuple[float, float]:
        """How much wider than about its middle the posterior is at ln E so far away; and the slope of u towards there.

        By what the best fit there loses, and by how much less the data would say of E, were it there: a frame in which
        chance makes energy and length small must not seem to know them well.
        """
        x = mode.x.copy()
        x[ENERGY] = posterior.mean[1] + away
        x[RATIO] = posterior.mean[0] + posterior.covariance[0, 1] / posterior.covariance[1, 1] * away
        held, tight = prior.copy(), self._of_climbed(int(mode.logs.argmax()))
        held[ENERGY], tight[ENERGY, ENERGY] = x[ENERGY], _ABSENT
        lost = mode.log - self._climb(x, held, tight, photons, pixels, _TAIL_STEPS, -math.inf, _NOWHERE)
        there, here = (self._variance(each, mode, photons, pixels) for each in (x, mode.x))
        # With next to no photons the information may be singular to rounding, and a variance no number.
        wider = math.sqrt(there / here) if there > 0.0 < here else _MOST_WIDENED
        factor = min(max(2.0 / math.sqrt(2.0 * max(lost, 1e-3)), wider * math.exp(away)), _MOST_WIDENED)
        return factor, float((x[RATIO] - posterior.mean[0]) / away)

    def _variance(self, x: Floats, mode: "_Mode", photons: Floats, pixels: Floats) -> float:
        """Of ln E, if ``x`` is the truth, under what is likeliest at a maximum."""
        count = len(self._climbed)
        information, score = np.zeros((count, count)), np.zeros(count)
        self._expect(x, self._tables)
        curvature(photons, pixels, self._mean, self._slopes, self._climbed, information, score)
        return float(np.linalg.inv(information + self._of_climbed(int(mode.logs.argmax())))[1, 1])

    def _pile_up(self, pairs: float, expected_pairs: float) -> tuple[float, float]:
        """What the pairs of counts in one pixel say of eta: the middle and the precision of its prior."""
        if expected_pairs <= 10.0:
            return 0.0, PILE_UP_UNKNOWN**-2.0
        sigma = min(math.hypot(PILE_UP_SURE, 1.0 / math.sqrt(expected_pairs)), PILE_UP_UNKNOWN)
        return 1.0 - pairs / expected_pairs, sigma**-2.0

    def _mode(self, x: Floats, climbed: float, prior: Floats, photons: Floats, pixels: Floats) -> "_Mode":
        """Everything that may be there, by the likelihood's expansion about ``x``."""
        free = self._all
        information, score = np.zeros((len(free), len(free))), np.zeros(len(free))
        self._expect(x, self._scattering.tables)
        log = curvature(photons, pixels, self._mean, self._slopes, free, information, score)
        wall = np.zeros(5)
        log += model.wall(x, wall)
        score[:2] += wall[:2]
        off = x[free] - prior
        shape = (len(self._base_precisions), len(self._table_errors))
        logs, steps, covariances = np.zeros(shape), np.zeros((*shape, 4)), np.zeros((*shape, 4, 4))
        bound = np.array([[wall[2], wall[3]], [wall[3], wall[4]]])
        model.weigh(
            information, bound, score, off, self._base_precisions, self._scattering.precision, self._sizes, logs, steps,
            covariances,
        )  # fmt: skip
        others = self._mean - x[FLAT] * self._slopes[FLAT] - x[OTHERS:] @ self._slopes[OTHERS:]
        return _Mode(
            x,
            climbed,
            (log + logs + self._log_chances).reshape(-1),
            (x[:4] + steps).reshape(-1, 4),
            covariances.reshape(-1, 4, 4),
            self._mean.copy(),
            float(others @ pixels),
        )

    def _average(self, modes: list["_Mode"], photons: Floats, pixels: Floats) -> Posterior:
        logs = np.concatenate([mode.logs for mode in modes])
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        places = np.concatenate([mode.places for mode in modes])
        where = weights @ places
        apart = places - where
        covariances = np.concatenate([mode.covariances for mode in modes])
        covariance = np.einsum("k,kij->ij", weights, covariances) + np.einsum("k,ki,kj->ij", weights, apart, apart)
        if not self._folded:
            covariance[:2, :2] += _FLOOR
        best = modes[int(weights.argmax()) // len(self._hypotheses)]
        squares, used = _chi_squared(photons, pixels * best.mean)
        freedom = max(1, used - len(_BASE))
        misfit = squares / freedom
        deviation = math.sqrt(max(0.0, misfit - 1.0) * freedom / float(photons.sum()))
        water = best.water / float(photons.sum())
        there = self._hypotheses * len(modes)
        solids = weights @ np.array([each[:2] for each in there], np.float64)
        sizes = np.log([each[-1] for each in there])
        return Posterior(
            where[:2], covariance[:2, :2], where[2:4], np.sqrt(np.diag(covariance)[2:4]), misfit, deviation, water,
            float(solids[0]), float(solids[1]), math.exp(float(weights @ sizes)), at=best.x,
        )  # fmt: skip

    def _precision(self, film: bool, glass: bool, thin: bool) -> Floats:
        """Of the first unknowns' priors, (first, first), but for what a profile says of pile-up."""
        sigma = np.array([PRIOR_SIGMA.get(int(unknown), np.inf) for unknown in _BASE])
        sigma[[CENTER_X, CENTER_Y]] = CENTER_SIGMA_PX
        sigma[_OF_WATER] *= _THIN if thin else 1.0
        precision = np.diag(sigma**-2.0)
        for place, there in ((_BASE_FILM, film), (_BASE_GLASS, glass)):
            if not there:
                precision[place, place] = _ABSENT
        return precision

    def _log_chance(self, film: bool, glass: bool, thin: bool, size: float) -> float:
        """The logarithm of a hypothesis' prior chance and of its priors' normalisation."""
        precision = self._precision(film, glass, thin)
        log = math.log(_THIN_CHANCE if thin else 1.0 - _THIN_CHANCE) - len(self._scattering.precision) * math.log(size)
        log += sum(math.log(_THERE if there else 1.0 - _THERE) for there in (film, glass))
        return log + 0.5 * sum(math.log(precision[place, place]) for place in _OF_WATER)

    def _with_errors(self, first: Floats, size: float) -> Floats:
        """The precision of what is climbed over, from that of the first unknowns."""
        count, base = len(self._climbed), len(_BASE)
        precision = np.zeros((count, count))
        precision[:base, :base] = first
        if count > base:
            precision[base:, base:] = self._scattering.precision / size**2
        return precision


def _chi_squared(photons: Floats, expected: Floats) -> tuple[float, int]:
    """Pearson's, and how many bins it is of: those where anything is expected."""
    used = expected > 0
    return float(((photons - expected)[used] ** 2 / expected[used]).sum()), int(np.count_nonzero(used))


def _widened(covariance: Floats, tails: list[tuple[float, float]]) -> Floats:
    """The covariance with ln E as uncertain as its wider tail; u goes along as it does towards both."""
    more = covariance[1, 1] * (max(1.0, *(factor for factor, _ in tails)) ** 2 - 1.0)
    along = [np.outer((slope, 1.0), (slope, 1.0)) for _, slope in tails]
    widened: Floats = covariance + more * np.mean(along, 0)
    return widened
