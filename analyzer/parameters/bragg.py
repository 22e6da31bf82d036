"""Photon energy and camera length from the spots of many hits of a crystal whose unit cell is known.

First the spots of all frames are held against the cell's powder lines, which gives places for ln(L/E) and the beam
centre (`bragg_lines`). At each, frames are indexed for a ladder of photon energies (`bragg_index`): the spots of a
crystal lie on a curved Ewald sphere, and only near the right energy do many of them agree. Where frames index beyond
chance, all of them are, and what they share is refined (`bragg_refine`). Where none does (a few spots a frame), the
lines alone give L/E, if they say so clearly.

A prior only says where to look first: what is found there must stand by itself, and else everything is looked at. The
result is free of the prior. It rests on the cell: one larger in all edges by a share gives an L/E larger, and a photon
energy smaller, by that share, and nothing in the spots can tell; L itself rests on the cell's shape alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from analyzer.parameters.bragg_index import Tolerance, directory, find_orientation
from analyzer.parameters.bragg_lines import (
    HIGHEST_LOG_RATIO,
    LOWEST_LOG_RATIO,
    LinesCandidate,
    line_tables,
    lines_candidates,
)
from analyzer.parameters.bragg_refine import Beamline, Indexed, Noise, Refined, match, refine
from analyzer.parameters.bragg_spots import BraggSpots, FrameSpots
from analyzer.parameters.lattice import Cell, Floats, Lattice, make_lattice

CELL_UNCERTAINTY = 1e-3
"""Of each edge, relative, where nothing else is said: cells of one protein differ by as much."""

FLOOR = 2e-4
"""Of ln(L/E) and of ln E, for all that is not modelled; standard deviation."""

_SURE_NATS = 8.0
"""A frame is indexed when it agrees by this much beyond the price of the search: by chance, once in 3000."""

_SURE_LINES_NATS, _CLEAR_NATS = 12.0, 6.0
"""What lines alone must rise to, and by how much over the next place."""

_ENERGIES_EV = np.geomspace(4900.0, 10300.0, 11)
_LADDER_FRAMES, _TRIAL_FRAMES, _MOST_INDEXED_FRAMES = 3, 10, 300
_LEAST_SPOTS = 5
_INDEXABLE_SPOTS, _MANY_FRAMES = 10, 10
"""Of so many frames with so many spots some would be indexed, were the cell theirs."""

_MOST_CRYSTALS = 3
"""Of one frame."""

_EXPLAINED, _LEAST_INDEXED, _LEAST_REFINED = 0.35, 0.25, 12
"""Of the indexed frames' spots, the share that must belong to a crystal; of the frames, the share that must be indexed;
spots that must be left."""

_MISSHAPEN = 4.0
"""Standard deviations of the cell's uncertainty by which an edge may turn out to differ."""

_ROUGH = Tolerance(along=0.006, rocking_rad=0.008, about_rad=0.001, place_px=1.2)
_FINE = Tolerance(along=0.006, rocking_rad=0.003, about_rad=0.001, place_px=0.8)
_ROUGH_NOISE = Noise(spectrum=0.004, rocking_rad=0.005, place_px=1.0)
_FINE_NOISE = Noise(spectrum=0.003, rocking_rad=0.001, place_px=0.5)

_PLACED = 0.004
"""Of ln(L/E): within it frames index at once."""

_Q_MAX_PAIRS = 0.2
_MOST_LISTED = 40_000
"""Reflections that pairs are looked up in: fewer for a large cell."""


@dataclass(frozen=True, slots=True)
class BraggPrior:
    """Where to look first: ln(L/E), metres over eV, and its standard deviation.

    ``center_px``: the beam from its nominal place, where that is known to 2 px, as from an estimate before. With it and
    a standard deviation of 0.4 % or less the search for both is tried without, which lets a few frames do.
    """

    log_ratio: float
    log_ratio_sigma: float
    center_px: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        numbers = (self.log_ratio, self.log_ratio_sigma, *(self.center_px or ()))
        if not all(map(math.isfinite, numbers)) or self.log_ratio_sigma <= 0.0:
            raise ValueError(f"a prior of {numbers} must be finite, its standard deviation above 0")

    @property
    def place(self) -> LinesCandidate | None:
        """The one place it names, where it is that sure."""
        if self.center_px is None or self.log_ratio_sigma > _PLACED:
            return None
        return LinesCandidate(np.array([self.log_ratio, *self.center_px]), np.zeros((3, 3)), 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class BraggEstimate:
    """What the spots say.

    ``log_ratio``: ln of camera length over photon energy (m/eV), NaN where ``reason`` says why there is none.
    ``log_energy``: ln of the photon energy (eV), the spectrum's mean; ``None`` where the lines alone were used.
    ``covariance`` (2, 2): of (ln(L/E), ln E), the cell's uncertainty and a floor included; infinite where unknown.
    ``center_shift_px``: the beam from its nominal place along fs and
    ss, ``center_sigma_px`` its standard deviation. ``spots`` and ``frames``: that were used. ``explained``: share of
    the indexed frames' spots that belong to a crystal.
    """

    log_ratio: float
    log_energy: float | None
    covariance: npt.NDArray[np.float64]
    center_shift_px: tuple[float, float]
    center_sigma_px: tuple[float, float]
    spots: int
    frames: int
    method: Literal["lines", "indexed"]
    reason: str | None = None
    explained: float = 0.0


def estimate_bragg(
    spots: BraggSpots,
    cell: Cell,
    space_group: str | None = None,
    prior: BraggPrior | None = None,
    cell_uncertainty: float = CELL_UNCERTAINTY,
) -> BraggEstimate:
    """L/E, and L and E each where frames can be indexed, from the frames kept. Some seconds of one core.

    cell_uncertainty: of each edge, relative, above 0. Raises ValueError for a cell or space group that is none.
    """
    if not 0.0 < cell_uncertainty < 0.1:
        raise ValueError(f"cell_uncertainty is {cell_uncertainty}; give a relative one above 0 and below 0.1")
    lattice = make_lattice(cell, space_group)
    frames = [each for each in spots.frames() if len(each.x_px)]
    if not frames:
        return _nothing(0, 0, "no spots yet")
    search = _Search(lattice, spots.pixel_size_m, frames, cell_uncertainty)
    ranges = [(LOWEST_LOG_RATIO, HIGHEST_LOG_RATIO)]
    if prior is not None:
        reach = max(5.0 * prior.log_ratio_sigma, 0.03)
        near = max(prior.log_ratio - reach, LOWEST_LOG_RATIO), min(prior.log_ratio + reach, HIGHEST_LOG_RATIO)
        ranges = [near, *ranges] if near[0] < near[1] else ranges
        refined = search.indexed([prior.place] if prior.place else [])
        if refined is not None:
            return search.estimate(refined)
    candidates: list[LinesCandidate] = []
    for low, high in ranges:
        candidates = search.lines(low, high)
        refined = search.indexed(candidates)
        if refined is not None:
            return search.estimate(refined)
    return search.from_lines(candidates)


def _widened(noise: Noise) -> tuple[Noise, Tolerance]:
    """Where to look for spots of so much noise; a wide spectrum must not be cut."""
    room = replace(
        _FINE_NOISE,
        spectrum=max(_FINE_NOISE.spectrum, noise.spectrum),
        rocking_rad=max(_FINE_NOISE.rocking_rad, noise.rocking_rad),
    )
    return room, replace(
        _FINE, along=max(_FINE.along, 2.5 * noise.spectrum), rocking_rad=max(_FINE.rocking_rad, 3.0 * noise.rocking_rad)
    )


def _q_max_pairs(lattice: Lattice) -> float:
    most = (3.0 * _MOST_LISTED / (4.0 * math.pi * lattice.volume_angstrom3)) ** (1.0 / 3.0)
    return min(_Q_MAX_PAIRS, float(most))


class _Search:
    """One estimate's frames and what is looked up for them."""

    def __init__(self, lattice: Lattice, pixel_size_m: float, frames: Sequence[FrameSpots], cell_sigma: float) -> None:
        self.lattice, self.pixel_size_m, self.frames, self.cell_sigma = lattice, pixel_size_m, frames, cell_sigma
        rich = [each for each in frames if len(each.x_px) >= _LEAST_SPOTS][-_MOST_INDEXED_FRAMES:]
        self.rich = rich
        self.trial = sorted(rich, key=lambda each: -len(each.x_px))[:_TRIAL_FRAMES]
        self.spots = sum(len(each.x_px) for each in frames)
        self.tables = line_tables(lattice)
        self.directory = directory(lattice, _q_max_pairs(lattice))
        self._explained = 0.0
        self._frames_indexed = 0

    def lines(self, low: float, high: float) -> list[LinesCandidate]:
        x, y = (np.concatenate([getattr(each, name) for each in self.frames]) for name in ("x_px", "y_px"))
        return lines_candidates(x, y, self.pixel_size_m, self.tables, (low, high))

    def indexed(self, candidates: Sequence[LinesCandidate]) -> Refined | None:
        """The refinement at the first place where frames index beyond chance."""
        if not self.trial:
            return None
        for each in candidates:
            center = float(each.mean[1]), float(each.mean[2])
            ladder = [Beamline(float(each.mean[0]), math.log(energy), center) for energy in _ENERGIES_EV]
            score, best = self._best(ladder)
            if score > 2.0 * _SURE_NATS:
                between = [replace(best, log_energy=best.log_energy + step) for step in (-0.025, 0.0, 0.025)]
                refined = self._refined(self._best(between)[1])
                if refined is not None:
                    return refined
        return None

    def _best(self, places: Sequence[Beamline]) -> tuple[float, Beamline]:
        scores = [self._trial_score(each) for each in places]
        best = int(np.argmax(scores))
        return scores[best], places[best]

    def _trial_score(self, at: Beamline) -> float:
        total = 0.0
        for frame in self.trial[:_LADDER_FRAMES]:
            q, radius = at.q(frame.x_px, frame.y_px, self.pixel_size_m)
            _, score = find_orientation(q, radius, _ROUGH, self.directory)
            total += max(score - _SURE_NATS / 2.0, 0.0)
        return total

    def _refined(self, at: Beamline) -> Refined | None:
        """Refined on the trial frames, then on all."""
        noise, tolerance, sigmas = _ROUGH_NOISE, _ROUGH, 2.5
        for last, frames in enumerate((self.trial, self.trial, self.rich, self.rich)):
            indexed = self._index(frames, at, tolerance, noise, sigmas)
            if indexed is None:
                return None
            refined = refine(indexed, self.lattice, self.pixel_size_m, at, noise, self.cell_sigma)
            if last > 0 and not self._stands(refined, len(frames)):
                return None
            at, sigmas = refined.beamline, 4.0
            noise, tolerance = _widened(refined.noise)
        return refined

    def _stands(self, refined: Refined, frames: int) -> bool:
        """Whether what was indexed is a crystal of this cell: many frames, many of their spots, and close.

        Spots that lie near reflections by chance fill the room that they were given, in all three directions.
        """
        noise = refined.noise
        filled = noise.spectrum * noise.rocking_rad * noise.place_px
        return (
            refined.spots >= _LEAST_REFINED
            and self._frames_indexed >= _LEAST_INDEXED * frames
            and self._explained >= _EXPLAINED
            and filled < _FINE_NOISE.spectrum * _FINE_NOISE.rocking_rad * _FINE_NOISE.place_px
        )

    def _index(
        self, frames: Sequence[FrameSpots], at: Beamline, tolerance: Tolerance, noise: Noise, sigmas: float
    ) -> Indexed | None:
        """All crystals of the frames, one after another in each."""
        parts: list[tuple[Floats, Floats, npt.NDArray[np.int64], int]] = []
        turns: list[Floats] = []
        had = used = self._frames_indexed = 0
        for frame in frames:
            left = np.ones(len(frame.x_px), bool)
            for crystal in range(_MOST_CRYSTALS):
                x, y = frame.x_px[left], frame.y_px[left]
                if len(x) < _LEAST_SPOTS:
                    break
                q, radius = at.q(x, y, self.pixel_size_m)
                turn, score = find_orientation(q, radius, tolerance, self.directory)
                if score < _SURE_NATS:
                    break
                hkl, near = match(x, y, turn, self.lattice, self.pixel_size_m, at, noise, sigmas)
                if np.count_nonzero(near) < _LEAST_SPOTS - 1:
                    break
                parts.append((x[near], y[near], hkl[near], len(turns)))
                turns.append(turn)
                had += 0 if crystal else len(frame.x_px)
                self._frames_indexed += 0 if crystal else 1
                used += int(np.count_nonzero(near))
                left[np.flatnonzero(left)[near]] = False
        if not parts:
            return None
        self._explained = used / had
        return Indexed(
            np.concatenate([part[0] for part in parts]),
            np.concatenate([part[1] for part in parts]),
            np.concatenate([part[2] for part in parts]),
            np.concatenate([np.full(len(part[0]), part[3]) for part in parts]),
            np.array(turns),
        )

    def estimate(self, refined: Refined) -> BraggEstimate:
        """What was refined, unless the cell's edges turned out to be others."""
        at = refined.beamline
        if np.abs(refined.stretch).max() > _MISSHAPEN * self.cell_sigma:
            off = ", ".join(
                f"{'abc'[edges[0]]} {100 * share:+.2g} %"
                for edges, share in zip(self.lattice.edge_groups, refined.stretch.tolist(), strict=True)
            )
            why = f"the spots fit a cell of another shape ({off}), of which only the ratios of edges are known"
            return _nothing(refined.spots, self._frames_indexed, why)
        sigma = np.sqrt(np.diag(refined.covariance))
        return BraggEstimate(
            at.log_ratio,
            at.log_energy,
            refined.covariance[:2, :2] + np.eye(2) * FLOOR**2,
            at.center_px,
            (float(sigma[2]), float(sigma[3])),
            refined.spots,
            self._frames_indexed,
            "indexed",
            explained=self._explained,
        )

    def from_lines(self, candidates: Sequence[LinesCandidate]) -> BraggEstimate:
        """The first of the places where the lines tell it clearly, or why they do not."""
        spots, frames = self.spots, len(self.frames)
        if not candidates:
            return _nothing(spots, frames, "too few spots among the cell's powder lines")
        best = candidates[0]
        if best.log_likelihood < _SURE_LINES_NATS:
            return _nothing(spots, frames, f"{spots} spots of {frames} frames do not tell the cell's lines from chance")
        reach = 4.0 * math.sqrt(float(best.covariance[0, 0]))
        others = [each for each in candidates[1:] if abs(each.mean[0] - best.mean[0]) > reach]
        if others and best.log_likelihood - others[0].log_likelihood < _CLEAR_NATS:
            ratios = " and ".join(f"{math.exp(each.mean[0]):.4g}" for each in (best, others[0]))
            return _nothing(spots, frames, f"the cell's lines fit at more than one L/E: {ratios} m/eV")
        unfit = sum(len(each.x_px) >= _INDEXABLE_SPOTS for each in self.rich)
        if unfit >= _MANY_FRAMES:
            return _nothing(spots, frames, f"none of {unfit} frames with many spots fits the cell")
        covariance = np.diag([float(best.covariance[0, 0]) + self.cell_sigma**2 + FLOOR**2, math.inf])
        sigma = np.sqrt(np.diag(best.covariance))
        return BraggEstimate(
            float(best.mean[0]),
            None,
            covariance,
            (float(best.mean[1]), float(best.mean[2])),
            (float(sigma[1]), float(sigma[2])),
            spots,
            frames,
            "lines",
        )


def _nothing(spots: int, frames: int, reason: str) -> BraggEstimate:
    unknown = np.diag([math.inf, math.inf])
    nan, inf = (math.nan, math.nan), (math.inf, math.inf)
    return BraggEstimate(math.nan, None, unknown, nan, inf, spots, frames, "lines", reason)
