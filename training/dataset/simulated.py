"""The one place where data sets call the simulator."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim_replay.background import WATER_REFERENCE_THICKNESS_M, expected_water
from sim_replay.crystal import proteinase_k, read_hkl
from sim_replay.detector import CONDITIONS, Condition, Detector, plain_panel
from sim_replay.diffraction import Sample, diffract, footprint, random_orientation
from sim_replay.poisson import draw_dense, draw_sparse, walk_total
from sim_replay.shots import frame_rng

__all__ = [
    "WATER_REFERENCE_THICKNESS_M",
    "Expectation",
    "Pulse",
    "SignalShot",
    "frame_rng",
    "make_sample",
    "signal_shot",
    "water_expectation",
]

_LARGEST_COUNT = int(np.iinfo(np.uint32).max)


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the paper's condition leaves open: photons a pulse, and water in units of 100 um."""

    flux_photons: float = 3e8
    water_scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class SignalShot:
    """Bragg photons of one crystal alone: counts (ss, fs) uint32, orientation (3, 3), expected photons in all."""

    counts: NDArray[np.uint32]
    orientation: NDArray[np.float64]
    bragg_photons: float


class Expectation:
    """Photons expected a pixel (ss, fs), ready to be drawn again and again."""

    def __init__(self, expected: NDArray[np.float32]) -> None:
        self._flat = np.ascontiguousarray(expected, np.float32).reshape(-1)
        self._total = walk_total(self._flat)

    def draw(self, scale: float, rng: np.random.Generator, out: NDArray[np.uint32]) -> None:
        """Add a fresh Poisson draw of scale times the expectation to out (ss, fs), in place."""
        draw_dense(self._flat, self._total, scale, rng, out, _LARGEST_COUNT)


def make_sample(crystal_size_m: float, hkl_path: Path | None) -> Sample:
    """A proteinase K crystal, with the intensities of a CrystFEL reflection list where one is given."""
    return Sample(proteinase_k() if hkl_path is None else read_hkl(hkl_path), size_m=crystal_size_m)


def signal_shot(
    dataset: int, pulse: Pulse, sample: Sample, shape: tuple[int, int], rng: np.random.Generator
) -> SignalShot:
    """Photons that a crystal in a random orientation sends to a panel without gaps; no water."""
    condition = replace(CONDITIONS[dataset], flux_photons=pulse.flux_photons)
    detector = plain_panel(shape, "uint32")
    orientation = random_orientation(rng)
    laid = footprint(diffract(sample, condition, detector, orientation), condition, detector)
    counts = np.zeros(shape, np.uint32)
    draw_sparse(laid.index, laid.photons, rng, counts, _LARGEST_COUNT)
    return SignalShot(counts, orientation, float(laid.photons.sum()))


def water_expectation(
    camera_length_m: float,
    photon_energy_eV: float,
    pulse: Pulse,
    shape: tuple[int, int],
    pixel_size_m: float = 75e-6,
    beam_center_px: tuple[float, float] | None = None,
) -> NDArray[np.float32]:
    """Photons expected a pixel (ss, fs) from water; the beam centre (x, y) is edge-based, by default the middle."""
    x, y = beam_center_px or (None, None)
    condition = Condition(
        photon_energy_eV,
        camera_length_m,
        flux_photons=pulse.flux_photons * pulse.water_scale,  # linear in both
        beam_center_x_px=x,
        beam_center_y_px=y,
    )
    return expected_water(condition, Detector("panel", shape, pixel_size_m))
