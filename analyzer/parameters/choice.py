"""Water or Bragg spots: which of two estimates of a run is published, and what to say of the other."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analyzer.parameters.bragg import BraggEstimate
from analyzer.parameters.fit import Posterior
from analyzer.parameters.lattice import Floats
from analyzer.parameters.model import HIGHEST_LOG_ENERGY, LOWEST_LOG_ENERGY

AGREE_SIGMA = 4.0
"""Standard deviations of the difference up to which two estimates may be of one beam: once in 3000 by chance beyond."""

_ANY_ENERGY = (LOWEST_LOG_ENERGY + HIGHEST_LOG_ENERGY) / 2.0
_ANY_ENERGY_VARIANCE = (HIGHEST_LOG_ENERGY - LOWEST_LOG_ENERGY) ** 2 / 12.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What is published. ``used``: the spots' estimate is; ``disagreement``: a sentence where the two contradict."""

    posterior: Posterior
    bragg: BraggEstimate
    used: bool
    disagreement: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Plain values for the status page."""
        bragg = self.bragg
        return {
            "frames": bragg.frames,
            "spots": bragg.spots,
            "method": bragg.method,
            "reason": bragg.reason,
            "explained": round(bragg.explained, 4),
            "used": self.used,
            "disagreement": self.disagreement,
        }


def choose(water: Posterior, bragg: BraggEstimate) -> Choice:
    """The spots' estimate where it agrees with the water's and is the better one, or water says nothing.

    Better is what knows ln E better. Powder lines say nothing of E: where they know L/E better than water, they
    sharpen what water says of both (the mean and covariance of water's normal given that L/E).
    """
    if bragg.reason is not None:
        return Choice(water, bragg, False)
    if water.reason is not None:
        return Choice(_published(water, bragg, *_alone(bragg)), bragg, True)
    sigmas = _apart(water, bragg)
    if sigmas > AGREE_SIGMA:
        return Choice(water, bragg, False, _sentence(water, bragg, sigmas))
    known = 0 if bragg.log_energy is None else 1
    if bragg.covariance[known, known] >= water.covariance[known, known]:
        return Choice(water, bragg, False)
    found = _alone(bragg) if bragg.log_energy is not None else _sharpened(water, bragg)
    return Choice(_published(water, bragg, *found), bragg, True)


def _apart(water: Posterior, bragg: BraggEstimate) -> float:
    """Standard deviations of their difference, in both logarithms or in the one that the spots give."""
    if bragg.log_energy is None:
        off = float(bragg.log_ratio - water.mean[0])
        return abs(off) / math.sqrt(water.covariance[0, 0] + bragg.covariance[0, 0])
    both = np.array([bragg.log_ratio, bragg.log_energy]) - water.mean
    return math.sqrt(float(both @ np.linalg.solve(water.covariance + bragg.covariance, both)))


def _alone(bragg: BraggEstimate) -> tuple[Floats, Floats]:
    """Mean and covariance without water; of E, where the spots do not tell, no more than a beamline's range."""
    if bragg.log_energy is not None:
        return np.array([bragg.log_ratio, bragg.log_energy]), bragg.covariance
    return np.array([bragg.log_ratio, _ANY_ENERGY]), np.diag([bragg.covariance[0, 0], _ANY_ENERGY_VARIANCE])


def _sharpened(water: Posterior, bragg: BraggEstimate) -> tuple[Floats, Floats]:
    """Water's mean and covariance, given another measurement of the first of the two (Kalman's step)."""
    column = water.covariance[:, 0]
    gain = column / (column[0] + bragg.covariance[0, 0])
    return water.mean + gain * (bragg.log_ratio - water.mean[0]), water.covariance - np.outer(gain, column)


def _published(water: Posterior, bragg: BraggEstimate, mean: Floats, covariance: Floats) -> Posterior:
    return replace(
        water,
        mean=mean,
        covariance=covariance,
        center_px=np.array(bragg.center_shift_px),
        center_sigma_px=np.array(bragg.center_sigma_px),
        table_error=0.0 if bragg.log_energy is not None else water.table_error,
        reason=None,
    )


def _sentence(water: Posterior, bragg: BraggEstimate, sigmas: float) -> str:
    def said(log_ratio: float, log_energy: float) -> str:
        return f"{math.exp(log_ratio) * 1e6:.3f} mm/keV at {math.exp(log_energy) / 1e3:.3f} keV"

    if bragg.log_energy is None:
        spots, of_water = (f"{math.exp(each) * 1e6:.3f} mm/keV" for each in (bragg.log_ratio, float(water.mean[0])))
    else:
        spots, of_water = said(bragg.log_ratio, bragg.log_energy), said(*water.mean.tolist())
    return (
        f"the Bragg spots of {bragg.frames} hits say {spots}, the water {of_water}, {sigmas:.1f} standard deviations "
        "apart: the water's is kept; is the cell right?"
    )
