"""How much water, and what else stands in the beam, scatters at each q: the tables of the fit.

They come with the bundle, so that a site may have its own. ``TABLES`` names what the file holds, each (samples,) on one
grid of q from 0: photons per steradian in any one unit, of 100 um of water at 25 C (``water``), its change by 10 K and
the second-order one (``water_warmed``, ``water_warmed_twice``), of 1 cm of air, 25 um of polyimide, 10 um of silica.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.interpolate import CubicSpline

WATER_TABLES = ("water", "water_warmed", "water_warmed_twice")
OTHER_TABLES = ("air", "polyimide", "glass")
TABLES = WATER_TABLES + OTHER_TABLES
Q_STEP = "q_step_inv_angstrom"

KNOT_STEP_INV_ANGSTROM = 0.3
KNOTS = np.arange(13) * KNOT_STEP_INV_ANGSTROM
"""Where errors of the water's table are free; between them they are smooth."""

CORRELATION_INV_ANGSTROM = 0.4
"""Over which distance in q such errors are alike."""

_UNCORRELATED = 1e-4

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scattering:
    """``tables`` (6 + knots, samples) float64 in the order of ``TABLES``, then an error of the water of size 1 at each
    knot, all in units of water at q = 0; ``q_step_inv_angstrom`` their step; ``precision`` (knots, knots) of the errors
    at the knots when they are of size 1."""

    tables: Floats
    q_step_inv_angstrom: float
    precision: Floats


def scattering(tensors: dict[str, torch.Tensor]) -> Scattering:
    """From what a bundle holds. Raises ``ValueError`` for tables that are missing, or no scattering."""
    missing = [name for name in (*TABLES, Q_STEP) if name not in tensors]
    if missing:
        raise ValueError(f"scattering tables lack {', '.join(missing)}")
    if not all(tensors[name].dtype.is_floating_point for name in (*TABLES, Q_STEP)):
        raise ValueError("scattering tables are not of numbers with a fraction")
    tables = [tensors[name].double().numpy() for name in TABLES]
    step = tensors[Q_STEP].double().reshape(-1).numpy()
    if len({table.shape for table in tables}) != 1 or tables[0].ndim != 1 or len(tables[0]) < 3 or len(step) != 1:
        raise ValueError("scattering tables are of different lengths, or of none")
    whole = np.stack(tables)
    if not np.isfinite(whole).all() or not np.isfinite(step).all() or step[0] <= 0 or not (whole[0] > 0).all():
        raise ValueError("scattering tables hold what is no number, or water that does not scatter")
    if (whole[len(WATER_TABLES) :] < 0).any():
        raise ValueError("scattering tables hold what scatters less than nothing")
    with np.errstate(over="ignore"):
        whole = whole / whole[0, 0]
    if not np.isfinite(whole).all():
        raise ValueError("scattering tables hold what is no number in units of water")
    q = np.arange(whole.shape[1]) * step[0]
    if q[-1] < KNOTS[-1]:
        raise ValueError(f"scattering tables reach {q[-1]:.3g} 1/angstrom only, {KNOTS[-1]:.3g} are asked for")
    bumps = CubicSpline(KNOTS, np.eye(len(KNOTS)), bc_type="natural")(np.minimum(q, KNOTS[-1])).T
    apart = (KNOTS[:, None] - KNOTS) / CORRELATION_INV_ANGSTROM
    covariance = np.exp(-0.5 * apart**2) + _UNCORRELATED * np.eye(len(KNOTS))
    precision: Floats = np.linalg.inv(covariance).astype(np.float64)
    return Scattering(np.ascontiguousarray(np.concatenate([whole, bumps * whole[0]])), float(step[0]), precision)
