"""Spot lists as a detector would give them: places from the digital twin, counting and centroid noise, false peaks."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.parameters.bragg_spots import BraggSpots
from sim_replay.crystal import Crystal, proteinase_k
from sim_replay.detector import CONDITIONS, Condition, eiger2_4m
from sim_replay.diffraction import Sample, diffract, random_orientation

CELL = (67.288, 67.288, 106.582, 90.0, 90.0, 90.0)
SPACE_GROUP = "P 43 21 2"
PIXEL_SIZE_M = 75e-6
CENTER = (6.0, -8.0)
"""Where the beam is from its nominal place, pixels."""


@dataclass(frozen=True, slots=True)
class Hit:
    """Pixels from the nominal beam centre along fs and ss, and photons, (n,) each."""

    x_px: npt.NDArray[np.float64]
    y_px: npt.NDArray[np.float64]
    photons: npt.NDArray[np.float64]


def hits(
    condition: Condition, frames: int, seed: int, crystal: Crystal | None = None, crystals: int = 1, false: float = 0.05
) -> list[Hit]:
    """Hits of a crystal (proteinase K) on an EIGER2 X 4M; ``false`` peaks for every true one."""
    rng, detector = np.random.default_rng(seed), eiger2_4m()
    sample = Sample(proteinase_k() if crystal is None else crystal)
    rows, columns = detector.shape
    made = []
    for _ in range(frames):
        lit = [diffract(sample, condition, detector, random_orientation(rng), 2.0) for _ in range(crystals)]
        fs, ss = np.concatenate([each.fs for each in lit]), np.concatenate([each.ss for each in lit])
        photons = rng.poisson(np.concatenate([each.photons for each in lit])).astype(np.float64)
        column, row = np.rint(fs).astype(int), np.rint(ss).astype(int)
        seen = (photons >= 5) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        seen[seen] &= ~detector.mask[row[seen], column[seen]]
        blur = np.sqrt(0.8**2 / photons[seen] + 0.05**2)
        others = rng.poisson(false * seen.sum())
        x = np.append(fs[seen] + rng.normal(size=seen.sum()) * blur, rng.uniform(0, columns, others))
        y = np.append(ss[seen] + rng.normal(size=seen.sum()) * blur, rng.uniform(0, rows, others))
        x += CENTER[0] - (columns / 2 - 0.5)
        y += CENTER[1] - (rows / 2 - 0.5)
        made.append(Hit(x, y, np.append(photons[seen], rng.uniform(5, 10, others))))
    return made


def kept(made: list[Hit]) -> BraggSpots:
    """The hits as the analyser keeps them."""
    spots = BraggSpots(PIXEL_SIZE_M)
    for hit in made:
        spots.add(hit.x_px, hit.y_px, hit.photons)
    return spots


def log_ratio(condition: Condition) -> float:
    """ln(L/E)."""
    return math.log(condition.camera_length_m / condition.photon_energy_eV)


def condition_at(length_m: float, energy_eV: float) -> Condition:
    """One of the nine."""
    return next(
        each for each in CONDITIONS.values() if (each.camera_length_m, each.photon_energy_eV) == (length_m, energy_eV)
    )
