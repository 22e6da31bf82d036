"""Camera length over photon energy from where spots lie among the powder lines of a known cell; nothing is indexed.

A spot of spacing d lies at the radius r = L tan(2 asin(lambda/2d)). Against a smooth density of spots along ln r, the
lines of the cell make some radii likelier: the ratio of the two, over the spots, is a likelihood of u = ln(L/E), of the
beam centre and (weakly, through the tangent) of the wavelength. How bright the lines are is not used.

The likelihood is looked at on a coarse grid first, blurred by as much as the grid is coarse; its best places are then
looked at closely.
"""

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from analyzer.parameters.lattice import Floats, Lattice, powder_lines
from streamer.messages import HC_EV_ANGSTROM

LOWEST_ENERGY_EV, HIGHEST_ENERGY_EV = 4500.0, 11000.0
"""Photon energies that are looked at."""

LOWEST_LOG_RATIO, HIGHEST_LOG_RATIO = math.log(0.09 / 10500.0), math.log(0.5 / 4800.0)
"""ln(L/E), metres over eV, that is looked at where nothing is known."""

CENTER_REACH_PX = 12.0
"""The beam is looked for this far from its nominal place."""

_STEP, _COARSE_STEP = 2e-4, 6e-4
"""Of ln r and of u, in detail and at first."""

_COARSE_PX = 2.4
_PART = 0.3
"""The range of u is gone through in parts of this length, each with the spots that lie among its lines."""

_APART = 0.006
"""Places nearer in u, and in the centre, are one."""

_LEAST_SPOTS = 5

_Q_MAX_SHARE = 1.6
"""Lines are used up to where this many stand in three standard deviations of the spectrum."""

_LOST = 0.15
"""Share of spots that are no reflection of this cell: the likelihood's floor."""

_SMOOTH = 0.04
"""Standard deviation in ln q of what counts as the smooth density."""

_RADIUS_CLASSES = 10
_SPECTRUM_SIGMA = 0.0029
"""Of ln lambda: a top hat of 1 % full width. A narrower one makes sharper lines, which costs a little, no more."""

_SPOT_PX = 0.6
_MOST_SPOTS = 2000


@dataclass(frozen=True, slots=True)
class LinesCandidate:
    """A place of the likelihood: mean and covariance of (u, dx, dy), dx and dy the beam's from its nominal place.

    ``log_likelihood``: logarithm of the likelihood's mean over the place, in nats over that of a smooth density.
    """

    mean: Floats
    covariance: Floats
    log_likelihood: float


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """``values``: ln of the spot density's ratio (wavelengths, classes of radius, bins) by ln tan(2 theta) - ln lambda.

    ``first`` and ``step``: of the bins. ``class_edges``: between the classes of radius, pixels.
    """

    values: npt.NDArray[np.float32]
    first: float
    step: float
    class_edges: Floats


@dataclass(frozen=True, slots=True, eq=False)
class LineTables:
    """A cell's lines up to ``q_max_per_angstrom``, as `lines_candidates` looks them up."""

    q_max_per_angstrom: float
    coarse: _Table
    fine: _Table


def line_tables(lattice: Lattice) -> LineTables:
    """Half a second's work, once a cell."""
    q_max = _resolved(lattice)
    coarse = _table(lattice, q_max, 3, _COARSE_STEP, _COARSE_PX / math.sqrt(6.0))
    return LineTables(q_max, coarse, _table(lattice, q_max, 8, _STEP, 0.0))


def lines_candidates(
    x_px: Floats,
    y_px: Floats,
    pixel_size_m: float,
    tables: LineTables,
    log_ratio_range: tuple[float, float],
    most: int = 20,
) -> list[LinesCandidate]:
    """The likeliest places within a range of ln(L/E), best first; none without spots among the lines.

    x_px, y_px (n,): spots from the nominal beam centre, all frames together, latest last.
    """
    q_max, coarse, fine = tables.q_max_per_angstrom, tables.coarse, tables.fine
    steps = np.arange(-CENTER_REACH_PX, CENTER_REACH_PX + 0.1, _COARSE_PX)
    shifts = np.array([(a, b) for a in steps for b in steps if math.hypot(a, b) <= CENTER_REACH_PX * 1.2])
    places: list[tuple[float, Floats, float, Floats, Floats]] = []
    low, high = log_ratio_range
    parts = max(1, math.ceil((high - low) / _PART))
    for part in range(parts):
        first, last = low + (high - low) * part / parts, low + (high - low) * (part + 1) / parts
        reach_px = math.exp(last) * HC_EV_ANGSTROM * q_max * 1.05 / pixel_size_m + CENTER_REACH_PX
        near = np.flatnonzero(np.hypot(x_px, y_px) < reach_px)[-_MOST_SPOTS:]
        x, y = x_px[near], y_px[near]
        if len(x) < _LEAST_SPOTS:
            continue
        logs = np.arange(first, last + _COARSE_STEP, _COARSE_STEP)
        surface = _surface(coarse, x, y, pixel_size_m, shifts, logs).max(0)
        places += [(*each, x, y) for each in _peaks(surface, shifts, logs, most)]
    found: list[LinesCandidate] = []
    for _, shift, log, x, y in sorted(places, key=lambda each: -each[0])[:most]:
        place = _look(fine, x, y, pixel_size_m, shift, log)
        if all(_apart(place.mean, other.mean) for other in found):
            found.append(place)
    return sorted(found, key=lambda each: -each.log_likelihood)


def _peaks(
    surface: npt.NDArray[np.float32], shifts: Floats, logs: Floats, most: int
) -> list[tuple[float, Floats, float]]:
    """The highest places of a surface (shifts, u), well apart: height, shift and u of each."""
    surface, found = surface.copy(), []
    for _ in range(most):
        shift, log = np.unravel_index(int(surface.argmax()), surface.shape)
        height = float(surface[shift, log])
        if not math.isfinite(height):
            break
        found.append((height, shifts[shift], float(logs[log])))
        beside = np.hypot(*(shifts - shifts[shift]).T) < 1.6 * _COARSE_PX
        surface[np.ix_(beside, np.abs(logs - logs[log]) < _APART)] = -np.inf
    return found


def _apart(one: Floats, other: Floats) -> bool:
    return bool(abs(one[0] - other[0]) > _APART or np.hypot(*(one[1:] - other[1:])) > 2.0)


def _resolved(lattice: Lattice) -> float:
    """1/d up to which lines are used: beyond, they stand too close for the spectrum."""
    q_max = min(0.02, 3.0 / max(lattice.cell[:3]))
    while q_max < 0.5:
        lines = powder_lines(lattice, q_max * 1.2).q_per_angstrom
        here = np.count_nonzero(lines > q_max / 1.2) / math.log(1.2**2)
        if here * 3.0 * _SPECTRUM_SIGMA > _Q_MAX_SHARE:
            break
        q_max *= 1.1
    return q_max


def _table(lattice: Lattice, q_max: float, energies: int, step: float, blur_px: float) -> _Table:
    lines = powder_lines(lattice, q_max * 1.05)
    log_q = np.log(lines.q_per_angstrom)
    first = log_q[0] - 0.05
    bins = int((math.log(q_max) + 0.1 - first) / step)
    # Evenly in lambda^2, which is what moves the lines.
    squares = np.linspace(HIGHEST_ENERGY_EV**-2, LOWEST_ENERGY_EV**-2, energies + 1)
    wavelengths = HC_EV_ANGSTROM * np.sqrt((squares[1:] + squares[:-1]) / 2.0)
    edges = np.geomspace(15.0, 600.0, _RADIUS_CLASSES - 1)
    radii = np.concatenate([[12.0], np.sqrt(edges[1:] * edges[:-1]), [700.0]])
    values = np.zeros((energies, _RADIUS_CLASSES, bins), np.float32)
    for e, wavelength in enumerate(wavelengths):
        place = np.log(np.tan(2.0 * np.arcsin(wavelength * lines.q_per_angstrom / 2.0)) / wavelength)
        comb = np.bincount(np.clip(((place - first) / step).astype(int), 0, bins - 1), lines.multiplicity, bins).astype(
            np.float64
        )
        inside = np.ones(bins)
        inside[np.arange(bins) * step + first > math.log(q_max)] = 0.0
        smooth = gaussian_filter1d(comb, _SMOOTH / step, mode="constant", truncate=3.5)
        for c, radius in enumerate(radii):
            sigma = math.sqrt(_SPECTRUM_SIGMA**2 + (_SPOT_PX**2 + blur_px**2) / radius**2)
            sharp = gaussian_filter1d(comb, min(sigma, _SMOOTH) / step, mode="constant", truncate=3.5)
            ratio = sharp / np.maximum(smooth, 1e-12 * smooth.max() + 1e-12)
            values[e, c] = np.log(_LOST + (1.0 - _LOST) * ratio) * inside
    return _Table(values, first, step, edges)


def _surface(
    table: _Table, x: Floats, y: Floats, pixel_size_m: float, shifts: Floats, logs: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """Log likelihood (energies, shifts, u)."""
    out = np.zeros((len(table.values), len(shifts), len(logs)), np.float32)
    origin = table.first + logs[0] + math.log(HC_EV_ANGSTROM) - math.log(pixel_size_m)
    _sum_logs(table.values, x, y, shifts, table.class_edges, origin, table.step, out)
    return out


@numba.njit(nogil=True, cache=True)
def _sum_logs(values, x, y, shifts, edges, origin, step, out):  # type: ignore[no-untyped-def]
    """Add up, for every shift and u, the table's values at ln r - u; r/(L lambda) = r E/(L hc)."""
    energies, _, bins = values.shape
    logs = out.shape[2]
    for s in range(shifts.shape[0]):
        for n in range(x.size):
            radius = math.hypot(x[n] - shifts[s, 0], y[n] - shifts[s, 1])
            if radius < 1.0:
                continue
            which = 0
            while which < edges.size and radius > edges[which]:
                which += 1
            at = math.floor((math.log(radius) - origin) / step)
            low, high = max(0, at - bins + 1), min(logs, at + 1)
            for e in range(energies):
                for u in range(low, high):
                    out[e, s, u] += values[e, which, at - u]


def _look(table: _Table, x: Floats, y: Floats, pixel_size_m: float, shift: Floats, log: float) -> LinesCandidate:
    """A place in detail."""
    for reach, step in ((3.0, 1.0), (2.0, 0.5)):
        steps = np.arange(-reach, reach + 0.01, step)
        shifts = shift + np.array([(a, b) for a in steps for b in steps])
        logs = log + np.arange(-30, 31) * _STEP
        surface = _surface(table, x, y, pixel_size_m, shifts, logs).astype(np.float64)
        best = np.unravel_index(int(surface.argmax()), surface.shape)
        shift, log = shifts[best[1]], float(logs[best[2]])
    top = float(surface.max())
    weight = np.exp(surface - top)
    total = weight.sum()
    grid = np.empty((len(shifts), len(logs), 3))
    grid[..., 0] = logs[None, :]
    grid[..., 1:] = shifts[:, None, :]
    place, share = grid.reshape(-1, 3), (weight.sum(0) / total).reshape(-1)
    mean = share @ place
    away = place - mean
    covariance = (away * share[:, None]).T @ away + np.diag([_STEP**2, step**2, step**2]) / 12.0
    return LinesCandidate(mean, covariance, top + math.log(total / weight.size))
