"""What of a posterior may be published: policy in one place.

L/E is said wherever the fit says anything; photon energy and camera length each only where its uncertainty allows the
claim. A profile that the model does not describe says nothing.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.parameters.fit import NO_FIT, Posterior
from analyzer.parameters.model import HIGHEST_LOG_ENERGY, HIGHEST_LOG_LENGTH, LOWEST_LOG_ENERGY, LOWEST_LOG_LENGTH

ENERGY_SIGMA_LIMIT_EV = 1000.0
DISTANCE_SIGMA_LIMIT_M = 0.02
RATIO_SIGMA_LIMIT = 0.25
"""Of L/E, relative: beyond it nothing is said."""

TOO_VAGUE = "camera length over photon energy known to more than 25 % only"

WORST_FRAME_MISFIT = 1.75
"""Chi squared a degree of freedom from which a single frame, which has no reason to scatter more, is none either."""

WORST_MISFIT = 2.0
"""Chi squared a degree of freedom from which a profile that is also ``WORST_DEVIATION`` off is none the fit knows."""

WORST_DEVIATION = 0.03
"""Of the profile from the fit beyond noise, relative, r.m.s."""

DIVERGED_DEVIATION = 100.0
"""From which the fit is nowhere near the profile: it has run away, and its chi squared says nothing of the light."""

LEAST_WATER = 0.06
"""Share of the photons."""


def judged(posterior: Posterior, *, frame: bool = False) -> Posterior:
    """The posterior, with a reason where it may not be believed; ``frame``: it is that of a single frame."""
    if posterior.reason is not None:
        return posterior
    numbers = (posterior.covariance, posterior.mean, posterior.misfit, posterior.water_share)
    if not all(np.isfinite(each).all() for each in numbers) or (np.diag(posterior.covariance) <= 0.0).any():
        return _refused(posterior, NO_FIT)
    if posterior.deviation > DIVERGED_DEVIATION:
        return _refused(posterior, NO_FIT)
    lone = frame and posterior.misfit > WORST_FRAME_MISFIT
    if lone or (posterior.misfit > WORST_MISFIT and posterior.deviation > WORST_DEVIATION):
        text = f"the profile is not that of water (chi squared {posterior.misfit:.1f} a degree of freedom)"
        return _refused(posterior, text)
    if _out_of_range(posterior):
        return _refused(posterior, "the profile is as featureless as no water at an energy and length of a beamline")
    if posterior.water_share < LEAST_WATER:
        return _refused(posterior, f"no water: {max(posterior.water_share, 0.0):.0%} of the diffuse scattering")
    if math.sqrt(posterior.covariance[0, 0]) > RATIO_SIGMA_LIMIT:
        return _refused(posterior, TOO_VAGUE)
    return posterior


def _out_of_range(posterior: Posterior) -> bool:
    energy, length = posterior.mean[1], posterior.mean[0] + posterior.mean[1]
    return not (LOWEST_LOG_ENERGY < energy < HIGHEST_LOG_ENERGY and LOWEST_LOG_LENGTH < length < HIGHEST_LOG_LENGTH)


def _refused(posterior: Posterior, reason: str) -> Posterior:
    return replace(posterior, reason=reason)


def sigmas(covariance: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Relative standard deviations of L/E, E and L from the covariance (2, 2) of ln(L/E) and ln E."""
    ratio, energy, both = covariance[0, 0], covariance[1, 1], covariance[0, 1]
    return math.sqrt(ratio), math.sqrt(energy), math.sqrt(max(ratio + energy + 2.0 * both, 0.0))


def record_fields(posterior: Posterior) -> dict[str, Any]:
    """The parameter fields of a record; what is not claimed is left out, ``estimate_reason`` says why."""
    if posterior.reason is not None:
        return {"estimate_reason": posterior.reason}
    ratio, energy = (math.exp(value) for value in posterior.mean)
    sigma_ratio, sigma_energy, sigma_distance = sigmas(posterior.covariance)
    return claimed(
        energy, ratio * energy, ratio, sigma_energy * energy, sigma_distance * ratio * energy, sigma_ratio * ratio
    )


def claimed(
    energy_eV: float, distance_m: float, ratio: float, sigma_energy_eV: float, sigma_distance_m: float,
    sigma_ratio: float,
) -> dict[str, Any]:  # fmt: skip
    """Record fields of estimates and their standard deviations."""
    fields: dict[str, Any] = {
        "camera_length_over_energy_m_per_eV": ratio,
        "camera_length_over_energy_sigma_m_per_eV": sigma_ratio,
    }
    undetermined = []
    if sigma_energy_eV <= ENERGY_SIGMA_LIMIT_EV:
        fields |= {"photon_energy_eV": round(energy_eV, 2), "photon_energy_sigma_eV": round(sigma_energy_eV, 2)}
    else:
        undetermined.append(f"photon energy known to {sigma_energy_eV:.0f} eV only")
    if sigma_distance_m <= DISTANCE_SIGMA_LIMIT_M:
        fields |= {"camera_length_m": round(distance_m, 6), "camera_length_sigma_m": round(sigma_distance_m, 6)}
    else:
        undetermined.append(f"camera length known to {1e3 * sigma_distance_m:.0f} mm only")
    fields["estimate_reason"] = "; ".join(undetermined) or None
    return fields
