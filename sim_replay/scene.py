"""What a simulated series shows: everything that its shots share, and by how much they differ."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np

from sim_replay.artefacts import Artefacts
from sim_replay.background import Surroundings
from sim_replay.detector import (
    CONDITIONS,
    MAX_FLUX_PHOTONS,
    SMALLEST_CAMERA_LENGTH_M,
    Condition,
    Detector,
    beam_center_px,
    eiger2_4m,
)
from sim_replay.diffraction import Sample
from sim_replay.distractors import Distractors
from sim_replay.response import Response
from sim_replay.scatter import LONGEST_WATER_M

MAX_CRYSTALS = 16
_MOST_JITTER = 2.0
_FARTHEST_NORMAL = 9.0  # no normal number drawn in a lifetime is larger


@dataclass(frozen=True, slots=True)
class Jitter:
    """How much shots of a series differ.

    pulse_energy and thickness: standard deviation of the logarithm, with the mean kept at 1; beam_center_px,
    photon_energy_eV, camera_length_m and crystal_offset_m (each axis): standard deviation of a normal distribution.
    """

    pulse_energy: float = 0.0
    thickness: float = 0.0
    beam_center_px: float = 0.0
    photon_energy_eV: float = 0.0
    camera_length_m: float = 0.0
    crystal_offset_m: float = 0.0

    def __post_init__(self) -> None:
        for name in (each.name for each in dataclasses.fields(self)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"jitter {name} is {value}; give a standard deviation of 0 or more")
        for name in ("pulse_energy", "thickness"):
            if getattr(self, name) > _MOST_JITTER:
                raise ValueError(
                    f"jitter {name} is {getattr(self, name)}; give a relative width up to {_MOST_JITTER:g}"
                )


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in front of the detector, and the detector.

    sample is the crystal of the hits, crystals how many of it are in a hit, each turned its own way (fixed_orientation
    (9 numbers, row by row) turns them all alike instead). hit_fraction is the share of shots with crystals.
    """

    sample: Sample
    condition: Condition = CONDITIONS[5]
    detector: Detector = field(default_factory=eiger2_4m)
    surroundings: Surroundings = field(default_factory=Surroundings)
    distractors: Distractors = field(default_factory=Distractors)
    jitter: Jitter = field(default_factory=Jitter)
    response: Response = field(default_factory=Response)
    artefacts: Artefacts = field(default_factory=Artefacts)
    hit_fraction: float = 0.5
    crystals: int = 1
    fixed_orientation: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.hit_fraction <= 1.0:
            raise ValueError(f"hit_fraction is {self.hit_fraction}; give a number from 0 to 1")
        if not 1 <= self.crystals <= MAX_CRYSTALS:
            raise ValueError(f"crystals is {self.crystals}; give 1 to {MAX_CRYSTALS} in a hit")
        if self.fixed_orientation is not None:
            turn = np.array(self.fixed_orientation, dtype=np.float64)
            if turn.shape != (9,) or not is_rotation(turn.reshape(3, 3)):
                raise ValueError("fixed_orientation must be the 9 numbers of a rotation matrix, row by row")
        energy, length = self.condition.photon_energy_eV, self.condition.camera_length_m
        if self.condition.flux_photons * self.response.pulses > MAX_FLUX_PHOTONS:
            raise ValueError(
                f"{self.response.pulses} pulses of {self.condition.flux_photons:g} photons are too many for a frame; "
                f"give at most {MAX_FLUX_PHOTONS:g} photons in all"
            )
        for name, spread, value in (
            ("photon_energy_eV", self.jitter.photon_energy_eV, energy),
            ("camera_length_m", self.jitter.camera_length_m, length),
        ):
            if spread > 0.1 * value:
                raise ValueError(f"jitter {name} is {spread}; give at most a tenth of {value:g}")
        stop = self.surroundings
        nearest = max(SMALLEST_CAMERA_LENGTH_M, stop.beam_stop_distance_m if stop.beam_stop_radius_m > 0.0 else 0.0)
        if self.jitter.camera_length_m > 0.0 and length - _FARTHEST_NORMAL * self.jitter.camera_length_m < nearest:
            raise ValueError(
                f"jitter camera_length_m is {self.jitter.camera_length_m}; from {length:g} m that would bring the "
                f"detector to the beam stop or the sample, at {nearest:g} m"
            )


def is_rotation(matrix: np.ndarray) -> bool:  # type: ignore[type-arg]
    """Whether a (3, 3) matrix is a proper rotation, to 1e-3."""
    if not np.all(np.isfinite(matrix)):
        return False
    return bool(np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3) and np.linalg.det(matrix) > 0.0)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the jitter makes of one shot."""

    condition: Condition
    surroundings: Surroundings
    offsets_m: tuple[tuple[float, float], ...]


def jittered(scene: Scene, rng: np.random.Generator) -> Drawn:
    """One shot's condition and surroundings. The same count of random numbers is drawn whatever the settings."""
    jitter, condition = scene.jitter, scene.condition
    pulse, thickness, x, y, energy, length = rng.standard_normal(6)
    offsets = rng.standard_normal((MAX_CRYSTALS, 2))[: scene.crystals] * jitter.crystal_offset_m
    offsets += np.array(scene.sample.offset_m)
    center_x, center_y = beam_center_px(condition, scene.detector)
    return Drawn(
        dataclasses.replace(
            condition,
            flux_photons=min(
                condition.flux_photons * _log_normal(pulse, jitter.pulse_energy),
                MAX_FLUX_PHOTONS / scene.response.pulses,
            ),
            beam_center_x_px=center_x + jitter.beam_center_px * x,
            beam_center_y_px=center_y + jitter.beam_center_px * y,
            photon_energy_eV=condition.photon_energy_eV + jitter.photon_energy_eV * energy,
            camera_length_m=condition.camera_length_m + jitter.camera_length_m * length,
        ),
        dataclasses.replace(
            scene.surroundings,
            water_thickness_m=min(
                scene.surroundings.water_thickness_m * _log_normal(thickness, jitter.thickness), LONGEST_WATER_M
            ),
        ),
        tuple((float(u), float(v)) for u, v in offsets),
    )


def _log_normal(normal: float, sigma: float) -> float:
    return math.exp(sigma * normal - sigma * sigma / 2.0)
