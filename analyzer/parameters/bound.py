"""The least standard deviation that an estimate of photon energy and camera length from a profile can have.

The bound of Cramer and Rao (Cramer, Mathematical Methods of Statistics, 1946, section 32.3): the inverse of the Fisher
information of Poisson counts, to which what is known beforehand of everything else adds its precision (van Trees,
Detection, Estimation, and Modulation Theory, 1968, section 2.4). Of energy and length themselves nothing is known
beforehand, so a posterior that leans on where beamlines are can be better where the bound is wide.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.parameters import fit, model
from analyzer.parameters.scattering import Scattering

PLAIN = (model.RATIO, model.ENERGY, model.CENTER_X, model.CENTER_Y, model.SCALE, model.FLAT, fit.AIR)
"""Free in a run of pure water: where the beam is, how bright, stray light and air."""

FULL = (*PLAIN, model.PILE_UP, model.WARMER, fit.FILM, fit.GLASS)
"""Free in the fit, besides errors of the water's table."""

_HALVINGS = 60
_FEWEST, _MOST = 1e-3, 1e12

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bound:
    """Standard deviations: ``ratio`` of L/E, relative; ``photon_energy_eV``; ``camera_length_m``."""

    ratio: float
    photon_energy_eV: float
    camera_length_m: float


class Information:
    """What one frame's profile says of everything unknown, water and nothing else being there.

    ``shape`` (6, bins), ``pixels`` (bins,), ``pixel_size_m``: see ``profile``; ``photons``: expected in a frame.
    ``polarisation``: (pxx, pxy, pyy) of the beam.
    """

    def __init__(
        self, shape: Floats, pixels: Floats, pixel_size_m: float, scattering: Scattering, photon_energy_eV: float,
        camera_length_m: float, photons: float, polarisation: tuple[float, float, float] = fit.POLARISATION,
    ) -> None:  # fmt: skip
        self._energy_eV, self._length_m = photon_energy_eV, camera_length_m
        self._errors = scattering.precision
        unknowns = model.OTHERS + len(scattering.tables) - model.OTHER_TABLES
        x = np.zeros(unknowns)
        x[model.RATIO] = math.log(camera_length_m / photon_energy_eV)
        x[model.ENERGY] = math.log(photon_energy_eV)
        mean, slopes = np.zeros(len(pixels)), np.zeros((unknowns, len(pixels)))
        shape = np.ascontiguousarray(shape)
        for _ in range(2):
            # The second time as bright as asked for.
            model.expect(
                x, shape, pixel_size_m, np.array(polarisation), scattering.tables, scattering.q_step_inv_angstrom,
                mean, slopes,
            )  # fmt: skip
            x[model.SCALE] += math.log(photons / float(pixels @ mean))
        self._pairs = float(pixels @ mean**2)
        self._information = np.zeros((unknowns, unknowns))
        free, score = np.arange(unknowns), np.zeros(unknowns)
        model.curvature(pixels * mean, pixels, mean, slopes, free, self._information, score)

    def bound(self, frames: float = 1.0, table_error: float | None = None) -> Bound:
        """Of the sum of so many frames; ``PLAIN`` without a ``table_error``, else ``FULL`` with errors of this size."""
        free = np.array(PLAIN if table_error is None else FULL)
        precision = prior_precision(tuple(free.tolist()), frames * self._pairs)
        if table_error is not None:
            errors = np.arange(fit.ERRORS, len(self._information))
            free = np.concatenate([free, errors])
            whole = np.zeros((len(free), len(free)))
            whole[: len(precision), : len(precision)] = precision
            whole[len(precision) :, len(precision) :] = self._errors / table_error**2
            precision = whole
        whole = frames * self._information[np.ix_(free, free)] + precision
        # Unknowns of very different sizes: the inverse keeps its digits when each is measured in its own.
        unit = 1.0 / np.sqrt(np.diag(whole))
        covariance = np.linalg.inv(whole * np.outer(unit, unit)) * np.outer(unit, unit)
        ratio, energy, both = covariance[0, 0], covariance[1, 1], covariance[0, 1]
        return Bound(
            math.sqrt(ratio),
            math.sqrt(energy) * self._energy_eV,
            math.sqrt(max(ratio + energy + 2.0 * both, 0.0)) * self._length_m,
        )

    def frames_for(
        self, photon_energy_eV: float = math.inf, camera_length_m: float = math.inf, table_error: float | None = None
    ) -> float:
        """How many frames bring the bounds down to these, a fraction where part of one would; inf where none do."""

        def enough(frames: float) -> bool:
            here = self.bound(frames, table_error)
            return here.photon_energy_eV <= photon_energy_eV and here.camera_length_m <= camera_length_m

        low, high = _FEWEST, _MOST
        if enough(low):
            return low
        if not enough(high):
            return math.inf
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high


def prior_precision(free: tuple[int, ...], pairs: float = 0.0) -> Floats:
    """What the fit knows beforehand of the unknowns ``free``, (free, free); ``pairs``: as in the fit."""
    sigma = {unknown: fit.PRIOR_SIGMA.get(unknown, math.inf) for unknown in free}
    sigma |= {model.CENTER_X: fit.CENTER_SIGMA_PX, model.CENTER_Y: fit.CENTER_SIGMA_PX}
    sigma[model.PILE_UP] = fit.PILE_UP_UNKNOWN
    if pairs > 10.0:
        sigma[model.PILE_UP] = min(math.hypot(fit.PILE_UP_SURE, 1.0 / math.sqrt(pairs)), fit.PILE_UP_UNKNOWN)
    return np.diag([sigma[unknown] ** -2.0 for unknown in free])
