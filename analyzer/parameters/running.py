"""The estimate of a run so far: from the sums, whichever of them knows best, and against the header."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analyzer.parameters.answers import plain_answers
from analyzer.parameters.bragg import BraggEstimate
from analyzer.parameters.choice import Choice, choose
from analyzer.parameters.claims import TOO_VAGUE, judged, record_fields
from analyzer.parameters.fit import TABLE_ERRORS, Fitter, Posterior, undetermined
from analyzer.parameters.frame import off_the_panel
from analyzer.parameters.header import FAMILIES, Mismatch, Quantity, mismatches
from analyzer.parameters.model import RADIUS
from analyzer.parameters.profile import PHOTONS, PIXELS, SECTORS, Sectors
from analyzer.parameters.scattering import Scattering
from analyzer.parameters.sums import MEMORIES, Floats, Sum, Sums

LOOKS = 3
"""The header is contradicted after so many looks that say so, and no more after as many that do not."""

FEWEST_FRAMES_TO_COMPARE = 10
BRAGG = "bragg"
"""Source of an estimate: Bragg spots of a known cell."""

WINDOWS = ("latest", *(f"latest {frames}" for frames in MEMORIES[1:]), "run")
"""What a run's estimate may be of: see ``sums.MEMORIES``."""

_SAME = 11.83
"""Chi squared of two up to which a part says the same as the whole: 0.3 % by chance beyond."""

_ENOUGH_PHOTONS = 1e6
"""With which water would be known for what it is."""

_OVERDISPERSED = 1.3
_RUGGED_PHOTONS = 1e7
_MISSES_ENOUGH = 0.5
_ALL_SATURATED = 0.5

_FITTERS = 2
"""Kept: what is shown, and what a series that ends late was summed under."""

_MOST_STARTS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Diffuse scattering of ``frames`` frames by ring (n,): ``radius_px``, ``measured`` and ``fitted`` counts a pixel
    and frame; ``fitted`` is ``None`` where nothing could be fitted."""

    radius_px: Floats
    measured: Floats
    fitted: Floats | None
    frames: float


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What a run shows. ``fields``: as in a record; ``frames`` it is of; ``source`` which: ``misses`` or ``all`` of the
    water, or ``bragg``; ``window`` how many: one of ``WINDOWS``; ``found`` mismatches with the header, and
    ``mismatches``, those that one look does not decide (``LOOKS``); ``choice`` what Bragg spots say, if asked for;
    ``number`` that of the sums."""

    posterior: Posterior
    frames: float
    source: str
    window: str
    found: tuple[Mismatch, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    choice: Choice | None = None
    number: int = 0

    @property
    def disagreement(self) -> str | None:
        """A sentence where Bragg spots contradict the water."""
        return None if self.choice is None else self.choice.disagreement

    @property
    def fields(self) -> dict[str, Any]:
        return record_fields(self.posterior)

    @property
    def text(self) -> str:
        """The estimate in a line, and what of the header it contradicts."""
        fields = self.fields
        parts = []
        if (energy := fields.get("photon_energy_eV")) is not None:
            parts.append(f"photon energy {energy / 1e3:.3f} ± {fields['photon_energy_sigma_eV'] / 1e3:.3f} keV")
        if (length := fields.get("camera_length_m")) is not None:
            parts.append(f"camera length {length * 1e3:.2f} ± {fields['camera_length_sigma_m'] * 1e3:.2f} mm")
        if not parts and (ratio := fields.get("camera_length_over_energy_m_per_eV")) is not None:
            sigma = fields["camera_length_over_energy_sigma_m_per_eV"]
            parts.append(f"camera length over photon energy {ratio * 1e6:.3f} ± {sigma * 1e6:.3f} mm/keV")
        if fields["estimate_reason"]:
            parts.append(f"not determined: {fields['estimate_reason']}")
        if self.source == BRAGG:
            parts.append(f"from {self.frames:.0f} hits of the known cell")
        if self.disagreement is not None:
            parts.append(self.disagreement)
        return "; ".join([*parts, *(f"HEADER WRONG? {each.text}" for each in self.found)])

    @property
    def facts(self) -> dict[str, Any]:
        """Plain values for the status page."""
        posterior, known = self.posterior, self.posterior.reason is None
        return {
            **self.fields,
            "frames": round(self.frames),
            "source": self.source,
            "window": self.window,
            "beam_center_shift_px": [round(float(v), 3) for v in posterior.center_px] if known else None,
            "beam_center_sigma_px": [round(float(v), 3) for v in posterior.center_sigma_px] if known else None,
            "water_share": round(posterior.water_share, 4) if known else None,
            "answers": plain_answers(posterior.mean, posterior.covariance) if known else None,
            "mismatches": [{"quantity": each.quantity, "text": each.text} for each in self.mismatches],
            **({} if self.choice is None else {"bragg": self.choice.facts}),
        }


class RunEstimator:
    """Keeps the estimate of a run up to date: ``look`` now and then. ``latest`` may be read from any thread.

    ``sums`` and ``scattering`` give what there is at the time; without tables nothing is estimated.
    ``bragg`` gives the latest estimate from Bragg spots, which is published where it is the better one (``choice``).
    ``curve`` is what the water was fitted to.
    """

    def __init__(
        self,
        sums: Callable[[], Sums | None],
        scattering: Callable[[], Scattering | None],
        bragg: Callable[[], BraggEstimate | None] = lambda: None,
    ) -> None:
        self._sums, self._scattering, self._bragg = sums, scattering, bragg
        self._lock = threading.Lock()
        self._fitters: list[tuple[Sectors, Scattering, Fitter]] = []
        self._looked: tuple[int, float, Scattering | None] = (-1, 0.0, None)
        self._water: RunEstimate | None = None
        self._chosen_from: tuple[RunEstimate | None, BraggEstimate | None] = (None, None)
        self._seen: Counter[frozenset[Quantity]] = Counter()
        self._alarms: dict[frozenset[Quantity], tuple[Mismatch, ...]] = {}
        self._starts: dict[tuple[int, str], Posterior] = {}
        self.latest: RunEstimate | None = None
        self.curve: Curve | None = None

    @property
    def water(self) -> Posterior | None:
        """What the diffuse scattering alone says."""
        return None if self._water is None else self._water.posterior

    def look(self) -> RunEstimate | None:
        """Estimate anew if there is anything new; about 0.1 s."""
        with self._lock:
            sums, tables = self._sums(), self._scattering()
            if sums is None or tables is None:
                self._forget()
                return None
            bragg, looked = self._bragg(), (sums.number, sums.frames, tables)
            if self._water is None or self._looked != looked:
                fitter = self._fitter_for(sums.sectors, tables)
                if self._looked[0] != sums.number or self._looked[2] is not tables:
                    self._begin()
                self._water = self._best(fitter, sums)
                self._looked = looked
                self.curve = _curve(fitter, sums, self._water)
                self._chosen_from = (None, None)
            if self._chosen_from[0] is not self._water or self._chosen_from[1] is not bragg:
                self._chosen_from = self._water, bragg
                self.latest = self._judged(_held(_chosen(self._water, bragg), sums))
            return self.latest

    def of(self, sums: Sums, bragg: BraggEstimate | None) -> RunEstimate | None:
        """What these sums and spots say, be they shown or not: ``latest`` and the alarms stay as they are."""
        with self._lock:
            tables = self._scattering()
            if tables is None:
                return None
            water = self._water
            if water is None or self._looked != (sums.number, sums.frames, tables):
                water = self._best(self._fitter_for(sums.sectors, tables), sums)
            return _held(_chosen(water, bragg), sums)

    def _forget(self) -> None:
        self.latest = self._water = self.curve = None
        self._chosen_from = (None, None)
        self._begin()
        self._looked = (-1, 0.0, None)

    def _begin(self) -> None:
        self._seen.clear()
        self._alarms.clear()

    def _fitter_for(self, sectors: Sectors, tables: Scattering) -> Fitter:
        for where, by, fitter in self._fitters:
            if where is sectors and by is tables:
                return fitter
        if any(by is not tables for _, by, _ in self._fitters):
            self._fitters.clear()
            self._starts.clear()
        made = Fitter(sectors.shape, sectors.pixels, sectors.pixel_size_m, tables, TABLE_ERRORS)
        self._fitters = [*self._fitters[1 - _FITTERS :], (sectors, tables, made)]
        return made

    def _best(self, fitter: Fitter, sums: Sums) -> RunEstimate:
        """Of as many frames as there are whose newer ones say the same; the newest alone where they say nothing."""
        off = off_the_panel(sums.shape, sums.center)
        counted = _frames(sums.run)
        if off:
            return RunEstimate(undetermined(off), 0.0, "all", "run")
        if sums.saturated_share > _ALL_SATURATED:
            return RunEstimate(undetermined("saturated pixels in most frames"), counted, "all", "run")
        newer: list[RunEstimate] = []
        best: RunEstimate | None = None
        for window, kinds in _windows(sums):
            if window != "run" and counted <= 2.0 * _frames(kinds):
                continue
            found = self._of(fitter, kinds, window, sums.number)
            if found.posterior.reason is not None:
                if not newer and _tells(found, kinds):
                    return found
                # What the newer ones know stands; without them, more frames may know something.
                best = best or (found if window == "run" else None)
                continue
            if not all(_agree(each.posterior, found.posterior) for each in newer):
                break
            newer.append(found)
            best = found
        assert best is not None, "the run itself is always looked at"
        return best

    def _of(self, fitter: Fitter, kinds: tuple[Sum, Sum], window: str, number: int) -> RunEstimate:
        """Misses alone where they are most of the light: no Bragg spot too weak to be found is in them."""
        misses, hits = kinds
        whole = misses + hits
        enough = misses.profile[0].sum() >= _MISSES_ENOUGH * whole.profile[0].sum()
        chosen, source = (misses, "misses") if enough else (whole, "all")
        start = self._starts.get((number, window))
        posterior = fit_sum(fitter, chosen.profile, chosen.pairs, start)
        if posterior.reason is None:
            self._starts[number, window] = posterior
            while len(self._starts) > _MOST_STARTS:
                del self._starts[next(iter(self._starts))]
        return RunEstimate(posterior, chosen.frames, source, window)

    def _judged(self, estimate: RunEstimate) -> RunEstimate:
        """With the alarms that this look and those before make."""
        for family in FAMILIES:
            there = tuple(each for each in estimate.found if each.quantity in family)
            self._seen[family] = max(0, min(LOOKS, self._seen[family] + (1 if there else -1)))
            if self._seen[family] == 0:
                self._alarms.pop(family, None)
            elif there and (self._seen[family] == LOOKS or family in self._alarms):
                self._alarms[family] = there
        return replace(estimate, mismatches=tuple(each for alarm in self._alarms.values() for each in alarm))


def _held(estimate: RunEstimate, sums: Sums) -> RunEstimate:
    """Against the header of the frames that are in the sums."""
    found: tuple[Mismatch, ...] = ()
    if sums.header is not None and (estimate.source == BRAGG or estimate.frames >= FEWEST_FRAMES_TO_COMPARE):
        found = tuple(mismatches(estimate.posterior, sums.header, sums.center))
    return replace(estimate, found=found, number=sums.number)


def _curve(fitter: Fitter, sums: Sums, estimate: RunEstimate) -> Curve | None:
    """What an estimate of the water was fitted to, by ring; ``None`` without a photon."""
    misses, hits = dict(_windows(sums))[estimate.window]
    chosen = misses if estimate.source == "misses" else misses + hits
    ring = np.arange(sums.sectors.bins) // SECTORS
    pixels = np.bincount(ring, chosen.profile[PIXELS])
    seen = pixels > 0
    if not chosen.profile[PHOTONS].any():
        return None

    def mean(values: Floats, weights: Floats) -> Floats:
        """Of each ring with valid pixels."""
        return np.asarray((np.bincount(ring, values) / np.maximum(np.bincount(ring, weights), 1e-12))[seen])

    area = sums.sectors.pixels
    expected = fitter.expected(estimate.posterior)
    return Curve(
        mean(sums.sectors.shape[RADIUS] * area, area),
        mean(chosen.profile[PHOTONS], chosen.profile[PIXELS]),
        None if expected is None else mean(expected * chosen.profile[PIXELS], chosen.profile[PIXELS]),
        chosen.frames,
    )


def _chosen(water: RunEstimate, bragg: BraggEstimate | None) -> RunEstimate:
    if bragg is None:
        return water
    choice = choose(water.posterior, bragg)
    if not choice.used:
        return replace(water, choice=choice)
    return RunEstimate(choice.posterior, bragg.frames, BRAGG, "run", choice=choice)


def fit_sum(fitter: Fitter, profile: Floats, pairs: float, start: Posterior | None = None) -> Posterior:
    """The posterior of a sum, as it may be believed: see ``Fitter.fit`` and ``claims.judged``."""
    photons = float(profile[PHOTONS].sum())
    if start is None and photons > _RUGGED_PHOTONS:
        # Of very many photons the likelihood has narrow maxima everywhere; of fewer it leads to the right one.
        share = _RUGGED_PHOTONS / photons
        start = fitter.fit(profile * share, pairs * share)
    posterior = fitter.fit(profile, pairs, start)
    if posterior.reason is None and posterior.misfit > _OVERDISPERSED:
        # Scatter beyond Poisson's, such as of a recording that is played again and again, counts for fewer photons.
        less = 1.0 / posterior.misfit
        tempered = fitter.fit(profile * less, pairs * less, start)
        posterior = replace(tempered, misfit=posterior.misfit, deviation=posterior.deviation)
    return judged(posterior)


def _agree(newer: Posterior, longer: Posterior) -> bool:
    """Whether both ratio and energy of a part agree with the whole, within the part's uncertainty, the larger one."""
    off = newer.mean - longer.mean
    return float(off @ np.linalg.solve(newer.covariance, off)) <= _SAME


def _frames(kinds: tuple[Sum, Sum]) -> float:
    return kinds[0].frames + kinds[1].frames


def _windows(sums: Sums) -> list[tuple[str, tuple[Sum, Sum]]]:
    """From the newest frames to all of them."""
    return [*zip(WINDOWS, (*sums.memories, sums.run), strict=True)]


def _tells(latest: RunEstimate, kinds: tuple[Sum, Sum]) -> bool:
    """Whether that nothing is determined is for another reason than that too little was seen."""
    photons = float(kinds[0].profile[PHOTONS].sum() + kinds[1].profile[PHOTONS].sum())
    seen = latest.frames >= FEWEST_FRAMES_TO_COMPARE and photons >= _ENOUGH_PHOTONS
    return seen and latest.posterior.reason != TOO_VAGUE
