"""Two conditions that are easily taken for each other: how their posterior lies, and how many frames part them.

The counts are those expected, without noise, of which the log posterior is looked at: minus twice what it loses at a
place, against its maximum, is the square of the distance in standard deviations where the posterior is normal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.parameters import fit, model
from analyzer.parameters.bound import FULL, PLAIN, prior_precision
from analyzer.parameters.scattering import Scattering
from sim_replay.detector import CONDITIONS, Detector
from training.evaluation.parameter_profiles import Profiles

PAIR = (4, 9)
"""0.25 m with 6 keV and 0.35 m with 8 keV: their L/E differ by 5 %."""

SCANNED_EV = np.arange(4500.0, 10_001.0, 500.0)
SCANNED_FRAMES = 100
APART = 9.0
"""Three standard deviations."""

TABLE_ERROR = fit.FRAME_TABLE_ERRORS[0]
"""Of the water's table, where errors of it are free."""

_STEPS = 200
_GAIN = 1e-6
_HALVINGS = 25
_MOST_FRAMES = 1e7

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Apart:
    """``truth`` and ``other``: E in eV and L in m. ``loss``: minus twice the log posterior of the truth's counts at the
    other, with ``SCANNED_FRAMES``, and from how many ``frames`` it is ``APART``. ``full``: with all free that the fit
    allows."""

    truth: tuple[float, float]
    other: tuple[float, float]
    full: bool
    loss: float
    frames: float


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """Along ``SCANNED_EV`` the likeliest ``lengths_m`` and minus twice the log posterior there, ``losses``, of the
    first of the pair with ``SCANNED_FRAMES``; ``minima``: how many of the losses are less than those beside them."""

    lengths_m: Floats
    losses: Floats
    minima: int


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """``plain`` and ``full`` scans, and how far the two are ``apart``."""

    plain: Scan
    full: Scan
    apart: tuple[Apart, ...]


def study_pair(detector: Detector, tables: Scattering) -> Pair:
    """Look at the pair, in some seconds."""
    profiles = Profiles(detector)
    truths = [(CONDITIONS[number].photon_energy_eV, CONDITIONS[number].camera_length_m) for number in PAIR]
    counts = [_counts(profiles, number) for number in PAIR]
    scans, apart = [], []
    for full in (False, True):
        posterior = _Posterior(profiles, tables, full)
        scans.append(_scan(posterior, counts[0], truths[0]))
        for own, truth, other in zip(counts, truths, truths[::-1], strict=True):
            loss = posterior.loss(own, SCANNED_FRAMES, truth, other)
            apart.append(Apart(truth, other, full, loss, _frames_apart(posterior, own, truth, other)))
    return Pair(scans[0], scans[1], tuple(apart))


def _counts(profiles: Profiles, number: int) -> Floats:
    """Expected photons of each bin in a frame."""
    where = profiles.sectors
    expected = profiles.expected(CONDITIONS[number], (0.0, 0.0))
    return np.bincount(where.place, expected.counts, where.bins).astype(np.float64)


def _scan(posterior: "_Posterior", counts: Floats, truth: tuple[float, float]) -> Scan:
    best = posterior.best(counts, SCANNED_FRAMES, truth)
    found = [posterior.held(counts, SCANNED_FRAMES, truth, energy) for energy in SCANNED_EV.tolist()]
    losses = np.array([2.0 * (best - log) for log, _ in found])
    walled = np.concatenate([[np.inf], losses, [np.inf]])
    minima = int(np.count_nonzero((losses < walled[:-2]) & (losses < walled[2:])))
    return Scan(np.array([length for _, length in found]), losses, minima)


def _frames_apart(
    posterior: "_Posterior", counts: Floats, truth: tuple[float, float], other: tuple[float, float]
) -> float:
    low, high = 1.0, _MOST_FRAMES
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if posterior.loss(counts, middle, truth, other) >= APART else (middle, high)
    return high


class _Posterior:
    """The log posterior of expected counts of pure water at places of E and L, with ``PLAIN`` or all else free."""

    def __init__(self, profiles: Profiles, tables: Scattering, full: bool) -> None:
        where = profiles.sectors
        self._shape, self._pixels, self._pixel_m = np.ascontiguousarray(where.shape), where.pixels, where.pixel_size_m
        self._q_step = tables.q_step_inv_angstrom
        first = model.OTHER_TABLES + fit.ERRORS - model.OTHERS
        self._tables = tables.tables if full else np.ascontiguousarray(tables.tables[:first])
        self._unknowns = model.OTHERS + len(self._tables) - model.OTHER_TABLES
        known = FULL if full else PLAIN
        self._free = np.concatenate([known, np.arange(fit.ERRORS, self._unknowns)])
        self._precision = np.zeros((len(self._free), len(self._free)))
        self._precision[: len(known), : len(known)] = prior_precision(known)
        if full:
            self._precision[len(known) :, len(known) :] = tables.precision / TABLE_ERROR**2
        self._mean = np.zeros(len(where.pixels))
        self._slopes = np.zeros((self._unknowns, len(where.pixels)))

    def best(self, counts: Floats, frames: float, truth: tuple[float, float]) -> float:
        """The maximum, from the truth on."""
        return self._climb(counts, frames, truth, ())[0]

    def held(self, counts: Floats, frames: float, truth: tuple[float, float], energy_eV: float) -> tuple[float, float]:
        """The log posterior at a photon energy, and the camera length that is likeliest there."""
        length = truth[1] * energy_eV / truth[0]
        log, x = self._climb(counts, frames, (energy_eV, length), (model.ENERGY,))
        return log, math.exp(x[model.RATIO] + x[model.ENERGY])

    def loss(self, counts: Floats, frames: float, truth: tuple[float, float], other: tuple[float, float]) -> float:
        """Minus twice the log posterior at the other's energy and length."""
        at_other = self._climb(counts, frames, other, (model.RATIO, model.ENERGY))[0]
        return 2.0 * (self.best(counts, frames, truth) - at_other)

    def _climb(
        self, counts: Floats, frames: float, start: tuple[float, float], held: Sequence[int]
    ) -> tuple[float, Floats]:
        """Fisher scoring from there on, halved until it climbs; what is ``held`` stays."""
        x = np.zeros(self._unknowns)
        x[model.RATIO], x[model.ENERGY] = math.log(start[1] / start[0]), math.log(start[0])
        photons, pixels = counts * frames, self._pixels * frames
        x[model.SCALE] = math.log(photons.sum() / pixels.sum())
        moved = ~np.isin(self._free, held)
        free, precision = self._free[moved], self._precision[np.ix_(moved, moved)]
        information, score = np.zeros_like(precision), np.zeros(len(free))
        best, step, log = x.copy(), np.zeros(len(free)), -math.inf
        for _ in range(_STEPS):
            here = self._log(x, free, precision, photons, pixels, information, score)
            if here > log:
                gained, log = here - log, here
                best[:] = x
                step = np.linalg.solve(information + precision, score - precision @ x[free])
                if gained < _GAIN:
                    break
            else:
                step *= 0.5
            x[:] = best
            x[free] += step
        return log, best

    def _log(
        self, x: Floats, free: npt.NDArray[np.int64], precision: Floats, photons: Floats, pixels: Floats,
        information: Floats, score: Floats,
    ) -> float:  # fmt: skip
        model.expect(
            x, self._shape, self._pixel_m, np.array(fit.POLARISATION), self._tables, self._q_step, self._mean,
            self._slopes,
        )  # fmt: skip
        log = model.curvature(photons, pixels, self._mean, self._slopes, free, information, score)
        return float(log - 0.5 * x[free] @ precision @ x[free])
