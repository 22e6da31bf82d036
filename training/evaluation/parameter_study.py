"""How well the fit to diffuse scattering does: many draws of the twin's profiles, against the bound and the truth.

A cell is one condition, flux and number of frames added up: each repeat has another noise, and one of some beam centres
that the header does not know. Profiles are of the twin (``parameter_profiles``), the estimates those of records and of
a run: a single frame is fitted as ``analyzer.parameters.frame`` does, a sum on all its rings.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from analyzer.bundle import Bundle
from analyzer.networks import profile_features
from analyzer.parameters.bound import Bound, Information
from analyzer.parameters.claims import sigmas
from analyzer.parameters.fit import FRAME_TABLE_ERRORS, TABLE_ERRORS, Fitter, Posterior
from analyzer.parameters.frame import FrameEstimator
from analyzer.parameters.header import Quantity, mismatches
from analyzer.parameters.running import fit_sum
from analyzer.parameters.scattering import Scattering
from sim_replay.detector import CONDITIONS, Condition, Detector
from streamer.messages import SeriesMetadata
from training.evaluation.parameter_profiles import Drawn, Expected, Profiles
from training.evaluation.parameter_scenarios import SCENARIOS, Scenario

WRONG_CENTER_PX = 10.0
"""The beam is up to so far from where the header has it, along each axis."""

MOST_CENTERS, FEWEST_CENTERS = 40, 10
"""Beam centres of a cell, and of one of a scenario."""

ENOUGH_ENERGY_EV, ENOUGH_LENGTH_M = 190.0, 1.9e-3
"""Standard deviations at which 99 in 100 are within half a keV, and within half a cm."""

SCENARIO_CONDITIONS = (1, 5, 9)
SCENARIO_SUMS = (1, 1000, 100_000)
_SCENARIO_SHARE = 5
LARGEST_SUM = 10_000_000

RATIO, ENERGY, LENGTH = range(3)
"""Columns of values: L/E in m/eV, E in eV, L in m."""

Floats = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is studied. ``sums``: numbers of frames added up; ``scenarios``: names of ``SCENARIOS``.

    ``needed``: besides, as many frames as the bound asks for before the nearest keV and cm are sure.
    """

    conditions: tuple[int, ...] = tuple(CONDITIONS)
    fluxes: tuple[float, ...] = (3e8,)
    sums: tuple[int, ...] = (1, 10, 100, 1000, 200_000)
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    needed: bool = True
    repeats: int = 200
    seed: int = 0

    @property
    def scenario_repeats(self) -> int:
        """Fewer, as there are many."""
        return max(self.repeats // _SCENARIO_SHARE, min(self.repeats, FEWEST_CENTERS))


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """Of each repeat ``value`` and ``sigma`` (repeats, 3): L/E, E, L; NaN where nothing is determined."""

    value: Floats
    sigma: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One cell: the truth, what was estimated, and the bounds.

    ``photons`` expected in the sum; ``truth`` (3,): L/E, E, L; ``plain`` and ``full``: bounds (see ``bound.PLAIN``);
    ``learned``: what a network says of the same profiles; ``misfit``, ``table_error`` (repeats,) of the fit;
    ``needed``: the cell of as many frames as the bound asks for; ``contradicted``: repeats that call a right header
    wrong.
    """

    condition: int
    flux: float
    frames: int
    scenario: str | None
    truth: Floats
    photons: float
    fitted: Values
    misfit: Floats
    table_error: Floats
    plain: Bound
    full: Bound
    learned: Values | None = None
    needed: bool = False
    contradicted: int = 0


def contradicts(posterior: Posterior, photon_energy_eV: float, camera_length_m: float) -> bool:
    """Whether a posterior calls this photon energy or camera length of a header wrong."""
    header = SeriesMetadata(photon_energy_eV=photon_energy_eV, camera_length_m=camera_length_m)
    return any(each.quantity != Quantity.BEAM_CENTER for each in mismatches(posterior, header))


@dataclass(slots=True, eq=False)
class Study:
    """All cells of a plan, in its order."""

    plan: Plan
    cells: list[Cell] = field(default_factory=list)
    mismatched: list[Cell] = field(default_factory=list)
    frames_needed: dict[tuple[int, float], tuple[float, float]] = field(default_factory=dict)
    """By condition and flux: frames at which the bound is ``ENOUGH_ENERGY_EV``, and ``ENOUGH_LENGTH_M``."""


class Estimators:
    """The fits of one detector, of a single frame and of a sum."""

    def __init__(self, profiles: Profiles, tables: Scattering) -> None:
        where = profiles.sectors
        self._frame = FrameEstimator(where, tables, profiles.detector.shape, profiles.center_px)
        self._run = Fitter(where.shape, where.pixels, where.pixel_size_m, tables, TABLE_ERRORS)

    def posterior(self, drawn: Drawn, frames: int) -> Posterior:
        """Of a sum of so many frames."""
        if frames == 1:
            return self._frame.posterior(drawn.profile.astype(np.float32), drawn.pairs, 0)
        return fit_sum(self._run, drawn.profile, drawn.pairs)


class Studying:
    """Works through a plan; ``bundle`` has the tables of the fit. Raises ``ValueError`` where it has none."""

    def __init__(self, plan: Plan, bundle: Bundle, detector: Detector) -> None:
        if bundle.scattering is None:
            raise ValueError(f"bundle {bundle.label} has no tables of scattering, so nothing is fitted")
        self._plan, self._bundle, self._detector = plan, bundle, detector
        self._tables = bundle.scattering
        self._profiles = Profiles(detector)
        self._estimators = Estimators(self._profiles, self._tables)

    def run(self, progress: Progress) -> Study:
        """All of it. ``progress`` is told repeats done and in all, and may raise to end the work."""
        plan, study = self._plan, Study(self._plan)
        cells = len(plan.conditions) * len(plan.fluxes) * (len(plan.sums) + plan.needed)
        scenario_cells = len(plan.scenarios) * len(SCENARIO_CONDITIONS) * len(SCENARIO_SUMS)
        counter = _Counter(progress, cells * plan.repeats + scenario_cells * plan.scenario_repeats)
        for number in plan.conditions:
            study.cells += self._condition(number, study, counter)
        for name in plan.scenarios:
            study.mismatched += self._scenario(name, counter)
        return study

    def _condition(self, number: int, study: Study, counter: "_Counter") -> Iterator[Cell]:
        condition = CONDITIONS[number]
        rng = np.random.default_rng((self._plan.seed, number, _kind(None)))
        shifts = _shifts(min(self._plan.repeats, MOST_CENTERS), rng)
        made = [self._profiles.expected(condition, shift) for shift in shifts]
        for flux in self._plan.fluxes:
            brighter = flux / condition.flux_photons
            photons = float(np.mean([each.counts.sum() for each in made])) * brighter
            of_frame = self._information(self._profiles, condition, photons)
            needed = of_frame.frames_for(ENOUGH_ENERGY_EV), of_frame.frames_for(camera_length_m=ENOUGH_LENGTH_M)
            study.frames_needed[number, flux] = needed
            sums = [(frames, False) for frames in self._plan.sums]
            if self._plan.needed:
                sums.append((max(1, math.ceil(min(max(needed), LARGEST_SUM))), True))
            for frames, as_needed in sums:
                draws = self._draws(number, None, flux, frames)
                found = [
                    self._one(self._estimators, self._profiles, made[n % len(made)], brighter, frames, draws, counter)
                    for n in range(self._plan.repeats)
                ]
                yield self._cell(number, flux, frames, None, photons, of_frame, found, as_needed)

    def _scenario(self, name: str, counter: "_Counter") -> Iterator[Cell]:
        scenario = SCENARIOS[name]
        profiles, estimators = self._profiles, self._estimators
        if scenario.detector is not None:
            profiles = Profiles(scenario.detector(self._detector))
            estimators = Estimators(profiles, self._tables)
        repeats = self._plan.scenario_repeats
        for number in SCENARIO_CONDITIONS:
            condition = CONDITIONS[number]
            rng = np.random.default_rng((self._plan.seed, number, _kind(name)))
            centers = repeats if scenario.extra is not None else min(repeats, FEWEST_CENTERS)
            made = [_expected(profiles, scenario, condition, shift, rng) for shift in _shifts(centers, rng)]
            photons = float(np.mean([each.counts.sum() for each in made]))
            of_frame = self._information(profiles, condition, max(photons, 1.0))
            for frames in SCENARIO_SUMS:
                draws = self._draws(number, name, condition.flux_photons, frames)
                found = [
                    self._one(estimators, profiles, made[n % len(made)], 1.0, frames, draws, counter)
                    for n in range(repeats)
                ]
                yield self._cell(number, condition.flux_photons, frames, name, photons, of_frame, found, False)

    def _draws(self, number: int, scenario: str | None, flux: float, frames: int) -> np.random.Generator:
        """Random numbers of one cell, the same whatever else is studied."""
        return np.random.default_rng((self._plan.seed, number, _kind(scenario), round(flux), frames))

    def _information(self, profiles: Profiles, condition: Condition, photons: float) -> Information:
        where = profiles.sectors
        return Information(
            where.shape, where.pixels, where.pixel_size_m, self._tables, condition.photon_energy_eV,
            condition.camera_length_m, photons,
        )  # fmt: skip

    def _one(
        self, estimators: Estimators, profiles: Profiles, expected: Expected, brighter: float, frames: int,
        rng: np.random.Generator, counter: "_Counter",
    ) -> tuple[Posterior, Drawn]:  # fmt: skip
        drawn = profiles.draw(expected, brighter, frames, rng)
        posterior = estimators.posterior(drawn, frames)
        counter.one_more()
        return posterior, drawn

    def _cell(
        self, number: int, flux: float, frames: int, scenario: str | None, photons: float, of_frame: Information,
        found: Sequence[tuple[Posterior, Drawn]], needed: bool,
    ) -> Cell:  # fmt: skip
        condition = CONDITIONS[number]
        energy, length = condition.photon_energy_eV, condition.camera_length_m
        posteriors = [posterior for posterior, _ in found]
        errors = np.array([each.table_error for each in posteriors])
        usual = FRAME_TABLE_ERRORS[0] if frames == 1 else float(np.median(errors))
        return Cell(
            number, flux, frames, scenario, np.array([length / energy, energy, length]), photons * frames,
            _values(posteriors), np.array([each.misfit for each in posteriors]), errors, of_frame.bound(frames),
            of_frame.bound(frames, usual or TABLE_ERRORS[0]), self._learned([drawn for _, drawn in found]), needed,
            sum(contradicts(each, energy, length) for each in posteriors),
        )  # fmt: skip

    @torch.inference_mode()
    def _learned(self, drawn: Sequence[Drawn]) -> Values:
        """What the bundle's network says of the same profiles."""
        out = self._bundle.parameters(profile_features(torch.from_numpy(np.stack([each.coarse for each in drawn]))))
        scale = np.array(self._bundle.card.parameters.sigma_scale)
        numbers = out.double().numpy()
        values = np.exp(numbers[:, :3])
        stated = values * np.exp(numbers[:, 3:]) * scale
        # The network has energy, length, ratio.
        return Values(values[:, [2, 0, 1]], stated[:, [2, 0, 1]])


class _Counter:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def one_more(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)


def _kind(scenario: str | None) -> int:
    return 0 if scenario is None else list(SCENARIOS).index(scenario) + 1


def _shifts(count: int, rng: np.random.Generator) -> Floats:
    return rng.uniform(-WRONG_CENTER_PX, WRONG_CENTER_PX, (count, 2))


def _expected(
    profiles: Profiles, scenario: Scenario, condition: Condition, shift: Floats, rng: np.random.Generator
) -> Expected:
    extra = None if scenario.extra is None else scenario.extra(rng)
    return profiles.expected(condition, shift, scenario.surroundings, extra, scenario.once)


def _values(posteriors: Sequence[Posterior]) -> Values:
    value, sigma = (np.full((len(posteriors), 3), np.nan) for _ in range(2))
    for n, posterior in enumerate(posteriors):
        if posterior.reason is None:
            ratio, energy = (math.exp(each) for each in posterior.mean)
            value[n] = ratio, energy, ratio * energy
            sigma[n] = value[n] * sigmas(posterior.covariance)
    return Values(value, sigma)
