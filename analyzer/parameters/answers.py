"""Plain answers from what is known of photon energy and camera length: the nearest keV, the nearest cm, and the 2024
CXLS paper's classes (6, 7 or 8 keV; 0.15, 0.25 or 0.35 m).

What is known is a joint normal distribution of ln (L/E) and ln E, L in m and E in eV, within the ranges that are
answered for: 4.5 to 10.5 keV and 0.095 to 0.455 m. All answers are sums over one table of cells of both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

Floats = npt.NDArray[np.float64]

KEV = tuple(range(5, 11))
CM = tuple(range(10, 46))
PAPER_ENERGIES_EV = (6000.0, 7000.0, 8000.0)
PAPER_LENGTHS_M = (0.15, 0.25, 0.35)

LARGEST_CORRELATION = 0.999
"""Three standard deviations that were rounded or scaled apart may belong to no distribution; this much makes one."""

_SLICES = 32
"""Slices of equal probability that a keV is summed in."""
_LEAST_INSIDE = 1e-9


def _cell_edges(centres: Sequence[float], half: float, more: Sequence[float] = ()) -> Floats:
    return np.unique(np.array([*(c - half for c in centres), centres[-1] + half, *more]))


_ENERGY_EDGES_EV = _cell_edges([1000.0 * each for each in KEV], 500.0)
# The paper's lengths change over at 20 and 30 cm, in the middle of a cell of 1 cm.
_LENGTH_EDGES_M = _cell_edges([each / 100 for each in CM], 0.005, (0.20, 0.30))
_ENERGIES_EV = (_ENERGY_EDGES_EV[1:] + _ENERGY_EDGES_EV[:-1]) / 2
_LENGTHS_M = (_LENGTH_EDGES_M[1:] + _LENGTH_EDGES_M[:-1]) / 2


def _nearest(values: Floats, of: Sequence[float]) -> npt.NDArray[np.intp]:
    nearest: npt.NDArray[np.intp] = np.abs(values[:, None] - np.array(of)).argmin(1)
    return nearest


_KEV_OF = _nearest(_ENERGIES_EV, [1000.0 * each for each in KEV])
_CM_OF = _nearest(_LENGTHS_M, [each / 100 for each in CM])
_PAPER_ENERGY_OF = _nearest(_ENERGIES_EV, PAPER_ENERGIES_EV)
_PAPER_LENGTH_OF = _nearest(_LENGTHS_M, PAPER_LENGTHS_M)


@dataclass(frozen=True, slots=True)
class Answers:
    """Probabilities that sum to 1, each tuple in the order of its constant.

    These are KEV, CM, PAPER_ENERGIES_EV and PAPER_LENGTHS_M. They hold for an energy and a length within the ranges;
    ``inside`` is the probability of that. Where it is next to nothing (below 1e-9), or the distribution is none, it is
    0 and all classes are alike, for nothing is known of them.
    """

    kev: tuple[float, ...]
    cm: tuple[float, ...]
    paper_energy: tuple[float, ...]
    paper_length: tuple[float, ...]
    inside: float

    @property
    def nearest_kev(self) -> int:
        """The most probable whole keV."""
        return KEV[int(np.argmax(self.kev))]

    @property
    def nearest_cm(self) -> int:
        """The most probable whole cm."""
        return CM[int(np.argmax(self.cm))]

    @property
    def paper_energy_eV(self) -> float:
        """The most probable of the paper's energies."""
        return PAPER_ENERGIES_EV[int(np.argmax(self.paper_energy))]

    @property
    def paper_length_m(self) -> float:
        """The most probable of the paper's camera lengths."""
        return PAPER_LENGTHS_M[int(np.argmax(self.paper_length))]


def joint(
    estimate: Sequence[float], sigma_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> tuple[Floats, Floats]:
    """Mean (2,) and covariance (2, 2) of (ln (L/E), ln E) from a parameter network's six numbers for a frame.

    These are the means of ln E, ln L and ln (L/E), and the logarithms of their standard deviations; each deviation is
    multiplied by its scale, in the same order.
    """
    energy, length, ratio = (
        scale * math.exp(log_sigma) for scale, log_sigma in zip(sigma_scale, estimate[3:], strict=True)
    )
    most = LARGEST_CORRELATION * ratio * energy
    shared = min(max((length**2 - ratio**2 - energy**2) / 2, -most), most)
    return np.array([estimate[2], estimate[0]]), np.array([[ratio**2, shared], [shared, energy**2]])


def answers(mean: Floats, covariance: Floats) -> Answers:
    """Answers from the mean (2,) and covariance (2, 2) of (ln (L/E), ln E)."""
    known = bool(np.isfinite(mean).all() and np.isfinite(covariance).all())
    table = _cells(mean, covariance) if known else np.zeros((len(_ENERGIES_EV), len(_LENGTHS_M)))
    inside = float(table.sum())
    if inside < _LEAST_INSIDE:
        return Answers(_alike(KEV), _alike(CM), _alike(PAPER_ENERGIES_EV), _alike(PAPER_LENGTHS_M), 0.0)
    table = table / inside
    energies, lengths = table.sum(1), table.sum(0)
    return Answers(
        _gathered(energies, _KEV_OF, len(KEV)),
        _gathered(lengths, _CM_OF, len(CM)),
        _gathered(energies, _PAPER_ENERGY_OF, len(PAPER_ENERGIES_EV)),
        _gathered(lengths, _PAPER_LENGTH_OF, len(PAPER_LENGTHS_M)),
        min(inside, 1.0),
    )


def plain_answers(mean: Floats, covariance: Floats) -> dict[str, float] | None:
    """The most probable answers with their probabilities as plain values; ``None`` where nothing is known of them.

    ``inside_probability``: that energy and length lie where there are answers, see the module.
    """
    said = answers(mean, covariance)
    if not said.inside:
        return None
    values: dict[str, float] = {}
    for name, answer, chances in (
        ("nearest_kev", said.nearest_kev, said.kev),
        ("nearest_cm", said.nearest_cm, said.cm),
        ("paper_kev", said.paper_energy_eV / 1e3, said.paper_energy),
        ("paper_cm", said.paper_length_m * 1e2, said.paper_length),
    ):
        values |= {name: round(answer), f"{name}_probability": round(max(chances), 4)}
    return values | {"inside_probability": round(said.inside, 4)}


def _alike(classes: Sequence[float]) -> tuple[float, ...]:
    return (1 / len(classes),) * len(classes)


def _gathered(cells: Floats, answer_of: npt.NDArray[np.intp], count: int) -> tuple[float, ...]:
    return tuple(np.bincount(answer_of, cells, count).tolist())


def _cells(mean: Floats, covariance: Floats) -> Floats:
    """Probability of each cell of energy and length, (energies, lengths) float64.

    Over the energy in slices of equal probability within each keV; exactly over the length, whose logarithm is normal
    where ln E is given.
    """
    sigma = math.sqrt(max(float(covariance[1, 1]), np.finfo(np.float64).tiny))
    slope = 1.0 + float(covariance[0, 1]) / sigma**2
    given = float(covariance[0, 0]) - float(covariance[0, 1]) ** 2 / sigma**2
    edge = (np.log(_ENERGY_EDGES_EV) - mean[1]) / sigma
    # Above the mean through the other tail, where its digits are.
    above = edge[:-1] > 0
    low, high = np.where(above, -edge[1:], edge[:-1]), np.where(above, -edge[:-1], edge[1:])
    start, end = ndtr(low), ndtr(high)
    middles = start[:, None] + (end - start)[:, None] * ((np.arange(_SLICES) + 0.5) / _SLICES)
    deviation = np.clip(ndtri(middles), low[:, None], high[:, None]) * np.where(above, -1.0, 1.0)[:, None]
    length_mean = mean[0] + mean[1] + slope * sigma * deviation
    length_sigma = math.sqrt(max(given, 1e-24))
    below = ndtr((np.log(_LENGTH_EDGES_M) - length_mean[:, :, None]) / length_sigma)
    cells: Floats = (end - start)[:, None] * np.diff(below, axis=2).mean(1)
    return cells
