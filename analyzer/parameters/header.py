"""Does the header say what the data show? Photon energy, camera length and beam centre against a run's posterior.

A disagreement is one beyond the posterior's uncertainty and a floor for what no fit knows (``FLOOR``), so large that
chance makes it once in millions of looks, and seen at several looks in a row. Which of the two is wrong is said only
where the data tell them apart; else it is "distance or energy".
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from analyzer.parameters.fit import Posterior
from streamer.messages import SeriesMetadata

FLOOR = np.diag([0.003, 0.004]) ** 2
"""Of the covariance of ln(L/E) and ln E: 0.3 and 0.4 %, for a sample off its place or a sheet that leans."""

CENTER_FLOOR_PX = 0.5
LEAST_CENTER_SHIFT_PX = 2.0

_DOUBTFUL_TABLE = 0.005
"""Error of the water's table, as the data have it, at which the floor is twice as large, in variance."""

_SURE = 25.0
"""Chi squared of two that counts as disagreement: 4e-6 by chance."""

_SURE_OF_ONE = 4.6
"""Deviations that count as disagreement where a header has one of the two alone: as often by chance."""

_SURE_ALONE = 4.0
_FINE_ALONE = 2.5
_CENTER_SURE = 5.0


class Quantity(StrEnum):
    """What a header can have wrong."""

    PHOTON_ENERGY = "photon_energy"
    CAMERA_LENGTH = "camera_length"
    RATIO = "camera_length_or_photon_energy"
    BEAM_CENTER = "beam_center"


ANGLES = frozenset({Quantity.PHOTON_ENERGY, Quantity.CAMERA_LENGTH, Quantity.RATIO})
"""One and the same contradiction: which of them it is said to be may change from look to look."""

FAMILIES = (ANGLES, frozenset({Quantity.BEAM_CENTER}))


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A quantity of the header that the data contradict, and a sentence that says so."""

    quantity: Quantity
    text: str


def mismatches(
    posterior: Posterior, metadata: SeriesMetadata, center: tuple[float, float] | None = None
) -> list[Mismatch]:
    """What of a header the posterior of a run contradicts; nothing where either says nothing.

    ``center`` (fs, ss) in pixel indices: what the posterior's shift is from, where that is not the header's own.
    """
    if posterior.reason is not None:
        return []
    return [*_of_angles(posterior, metadata), *_of_center(posterior, metadata, center)]


def _of_angles(posterior: Posterior, metadata: SeriesMetadata) -> list[Mismatch]:
    # Zero is how a header says that it does not know.
    energy, length = metadata.photon_energy_eV or 0.0, metadata.camera_length_m or 0.0
    # A table that the data show to be wrong may be wrong in a way that the fit cannot see, too.
    covariance = posterior.covariance + FLOOR * (1.0 + (posterior.table_error / _DOUBTFUL_TABLE) ** 2)
    sigma_energy = math.sqrt(covariance[1, 1])
    sigma_length = math.sqrt(covariance[0, 0] + covariance[1, 1] + 2.0 * covariance[0, 1])
    found = math.exp(posterior.mean[1])
    distance = math.exp(posterior.mean[0]) * found
    of_energy = Mismatch(
        Quantity.PHOTON_ENERGY,
        f"photon energy: the header says {energy / 1e3:.3f} keV, the data show "
        f"{found / 1e3:.3f} ± {found * sigma_energy / 1e3:.3f} keV",
    )
    of_length = Mismatch(
        Quantity.CAMERA_LENGTH,
        f"camera length: the header says {length * 1e3:.1f} mm, the data show "
        f"{distance * 1e3:.1f} ± {distance * sigma_length * 1e3:.1f} mm",
    )
    energy_off = abs(math.log(energy / found)) / sigma_energy if energy > 0.0 else 0.0
    length_off = abs(math.log(length / distance)) / sigma_length if length > 0.0 else 0.0
    if energy <= 0.0 or length <= 0.0:
        each = ((of_energy, energy_off), (of_length, length_off))
        return [mismatch for mismatch, off in each if off >= _SURE_OF_ONE]
    off = np.array([math.log(length / energy), math.log(energy)]) - posterior.mean
    if off @ np.linalg.solve(covariance, off) < _SURE:
        return []
    if energy_off >= _SURE_ALONE and length_off >= _SURE_ALONE:
        return [of_energy, of_length]
    if energy_off >= _SURE_ALONE and length_off <= _FINE_ALONE:
        return [of_energy]
    if length_off >= _SURE_ALONE and energy_off <= _FINE_ALONE:
        return [of_length]
    percent, sigma = 100.0 * math.expm1(off[0]), 100.0 * math.sqrt(covariance[0, 0])
    text = (
        f"distance or energy: by the data the header's camera length over photon energy is {abs(percent):.1f} ± "
        f"{sigma:.1f} % too {'large' if percent > 0 else 'small'}"
    )
    return [Mismatch(Quantity.RATIO, text)]


def _of_center(posterior: Posterior, metadata: SeriesMetadata, center: tuple[float, float] | None) -> list[Mismatch]:
    if metadata.beam_center_x_px is None or metadata.beam_center_y_px is None:
        return []
    x, y = posterior.center_px
    if center is not None:
        # Headers count from the edge of the first pixel, indices from its middle.
        x, y = x + center[0] + 0.5 - metadata.beam_center_x_px, y + center[1] + 0.5 - metadata.beam_center_y_px
    sigma = np.hypot(posterior.center_sigma_px, CENTER_FLOOR_PX)
    if math.hypot(x, y) < LEAST_CENTER_SHIFT_PX or math.hypot(x / sigma[0], y / sigma[1]) < _CENTER_SURE:
        return []
    text = (
        f"beam centre: the header says ({metadata.beam_center_x_px:.1f}, {metadata.beam_center_y_px:.1f}), the data "
        f"show ({metadata.beam_center_x_px + x:.1f}, {metadata.beam_center_y_px + y:.1f}) ± "
        f"{float(sigma.max()):.1f} pixels"
    )
    return [Mismatch(Quantity.BEAM_CENTER, text)]
