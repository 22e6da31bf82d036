"""Camera length, photon energy and beam centre from all indexed crystals of a run at once.

A spot at (x, y) stands for q = (s - s0)/lambda, s towards the spot and s0 along the beam; its reflection, as the
crystal stands, for g = U B hkl. Three numbers compare them:

    along    ln |q| - ln |g|: of the light that was reflected. Noise: the spectrum, the place along the radius.
    rocking  the angle from q to g in the plane of scattering. Noise: mosaicity, the place along the radius.
    about    the angle from q to g about the beam. Noise: the place across the radius.

A still picks its wavelength from the spectrum, so that the first says where the spectrum's middle is, given L and the
cell's size. The second says how curved the Ewald sphere is: it needs L alone, and the cell's shape, not its size
(Laue's geometry: the direction of a plane's normal follows from the spot's place). All unknowns, ln(L/E), ln E, the
beam centre and each crystal's small turn, are found together by weighted least squares (Gauss-Newton, the turns
eliminated crystal by crystal), spots far off weighing less. The three noises are measured from what is left over.

The covariance is the sandwich over crystals (Huber 1967; Liang and Zeger 1986), which holds whatever the noise within a
crystal is. The cell's edges are refined along, held by their own uncertainty: their ratio is measured, their scale is
what was given, and its uncertainty goes into E.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.parameters.lattice import Floats, Lattice
from streamer.messages import HC_EV_ANGSTROM

_FAR_CHI2 = 12.0
"""A spot whose three residuals have this chi^2 weighs half."""

_TRUST_RATIO, _TRUST_ENERGY, _TRUST_CENTER_PX, _TRUST_CELL = 0.01, 0.06, 3.0, 0.02
"""Largest change in a step."""

_SMALL = 1e-4
"""Stretch of an edge that its derivatives are taken with."""


@dataclass(frozen=True, slots=True)
class Beamline:
    """What all frames share. ``center_px`` (2,): the beam from its nominal place, along fs and ss."""

    log_ratio: float
    log_energy: float
    center_px: tuple[float, float]

    @property
    def camera_length_m(self) -> float:
        """L of L/E and E."""
        return math.exp(self.log_ratio + self.log_energy)

    def q(self, x_px: Floats, y_px: Floats, pixel_size_m: float) -> tuple[Floats, Floats]:
        """q (n, 3) in 1/angstrom, the beam along z, and radius (n,) in pixels, of places from the nominal centre."""
        x, y = x_px - self.center_px[0], y_px - self.center_px[1]
        distance = self.camera_length_m / pixel_size_m
        length = np.sqrt(x * x + y * y + distance * distance)
        wave = math.exp(self.log_energy) / HC_EV_ANGSTROM
        return wave * np.stack([x / length, y / length, distance / length - 1.0], 1), np.maximum(np.hypot(x, y), 1.0)


@dataclass(frozen=True, slots=True)
class Noise:
    """Standard deviations: of ln lambda, of the turn of planes (radians), of a spot's place (pixels)."""

    spectrum: float = 0.003
    rocking_rad: float = 5e-4
    place_px: float = 0.35

    def of(self, theta: Floats, radius_px: Floats, distance_px: float) -> Floats:
        """Variances (n, 3) of along, rocking and about."""
        turn = self.place_px * 0.5 * np.cos(2 * theta) ** 2 / distance_px
        return np.stack(
            [
                self.spectrum**2 + (turn / np.tan(theta)) ** 2,
                self.rocking_rad**2 + turn**2,
                (self.place_px * np.cos(theta) / radius_px) ** 2 + 1e-10,
            ],
            1,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Indexed:
    """Spots with their reflections: places (n,) in pixels from the nominal centre, hkl (n, 3), and ``crystal`` (n,),
    the number of the orientation in ``turns`` (crystals, 3, 3)."""

    x_px: Floats
    y_px: Floats
    hkl: npt.NDArray[np.int64]
    crystal: npt.NDArray[np.int64]
    turns: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Refined:
    """``covariance`` (4, 4) of (ln(L/E), ln E, dx, dy), the cell's uncertainty in it.

    ``stretch`` (groups,): by how much the lattice's groups of edges turned out longer, relative. ``spots``: that weigh
    half or more.
    """

    beamline: Beamline
    noise: Noise
    stretch: Floats
    covariance: Floats
    spots: int


def refine(
    indexed: Indexed,
    lattice: Lattice,
    pixel_size_m: float,
    start: Beamline,
    noise: Noise,
    cell_sigma: float,
    steps: int = 8,
) -> Refined:
    """Refine from a start near enough that the reflections are right.

    cell_sigma: relative standard deviation of each edge as it is given, above 0. Raises ValueError without four spots.
    """
    if len(indexed.x_px) < 4:
        raise ValueError(f"{len(indexed.x_px)} spots are too few to refine on")
    at, turns, stretch = start, indexed.turns, np.zeros(len(lattice.edge_groups))
    for last in range(steps + 1):
        system = _System(indexed, lattice, stretch, turns, pixel_size_m, at)
        weights = system.weights(noise)
        noise = system.measured_noise(noise, weights)
        step = system.step(system.variances(noise), weights, cell_sigma)
        if last == steps:
            break
        ratio, energy = np.clip(step.shared[:2], [-_TRUST_RATIO, -_TRUST_ENERGY], [_TRUST_RATIO, _TRUST_ENERGY])
        shift = np.clip(step.shared[2:4], -_TRUST_CENTER_PX, _TRUST_CENTER_PX)
        center = at.center_px[0] + float(shift[0]), at.center_px[1] + float(shift[1])
        at = Beamline(at.log_ratio + float(ratio), at.log_energy + float(energy), center)
        turns, stretch = _turned(turns, step.turns), stretch + np.clip(step.shared[4:], -_TRUST_CELL, _TRUST_CELL)
    return Refined(at, noise, stretch, step.covariance[:4, :4], int(np.count_nonzero(weights >= 0.5)))


def match(
    x_px: Floats,
    y_px: Floats,
    turn: Floats,
    lattice: Lattice,
    pixel_size_m: float,
    at: Beamline,
    noise: Noise,
    sigmas: float,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Nearest hkl (n, 3) of one frame's spots, and which (n,) lie within so many standard deviations."""
    q, _ = at.q(x_px, y_px, pixel_size_m)
    hkl = np.rint(q @ turn @ np.linalg.inv(lattice.basis).T).astype(np.int64)
    some = (hkl != 0).any(1)
    safe = np.where(some[:, None], hkl, np.array([1, 0, 0]))
    one = Indexed(x_px, y_px, safe, np.zeros(len(x_px), np.int64), turn[None])
    system = _System(one, lattice, np.zeros(len(lattice.edge_groups)), one.turns, pixel_size_m, at)
    inside = (np.abs(system.residuals) < sigmas * np.sqrt(system.variances(noise))).all(1)
    return hkl, inside & some


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    shared: Floats
    turns: Floats
    covariance: Floats


class _System:
    """Residuals (n, 3), their derivatives by the shared unknowns, the edges among them (n, 3, 4 + groups), and by each
    crystal's turn (n, 3, 3)."""

    def __init__(
        self, indexed: Indexed, lattice: Lattice, stretch: Floats, turns: Floats, pixel_size_m: float, at: Beamline
    ) -> None:
        self.crystal, self.crystals = indexed.crystal, len(turns)
        x, y = indexed.x_px - at.center_px[0], indexed.y_px - at.center_px[1]
        self.distance_px = distance = at.camera_length_m / pixel_size_m
        self.radius = radius = np.maximum(np.hypot(x, y), 1.0)
        self.theta = theta = 0.5 * np.arctan(radius / distance)
        c, s = x / radius, y / radius
        sine, cosine = np.sin(theta), np.cos(theta)
        zero = np.zeros_like(c)
        toward = np.stack([cosine * c, cosine * s, -sine], 1)
        tilt = np.stack([-sine * c, -sine * s, -cosine], 1)
        around = np.stack([-s, c, zero], 1)
        basis, turn, groups = lattice.stretched(stretch), turns[indexed.crystal], len(stretch)
        g = np.einsum("nij,nj->ni", turn, indexed.hkl @ basis.T)
        length = np.sqrt((g * g).sum(1))
        wave = math.exp(at.log_energy) / HC_EV_ANGSTROM
        self.residuals = np.stack(
            [np.log(2.0 * sine * wave / length), (g * tilt).sum(1) / length, (g * around).sum(1) / length], 1
        )
        by_length = -0.25 * np.sin(4 * theta)  # d theta / d ln L
        by_radius = 0.5 * np.cos(2 * theta) ** 2 / distance
        cot = cosine / sine
        shared = np.zeros((len(x), 3, 4 + groups))
        shared[:, 0, 0] = cot * by_length
        shared[:, 0, 1] = cot * by_length + 1.0
        shared[:, 1, 0] = shared[:, 1, 1] = -by_length
        # A centre farther out shortens the radius and turns the azimuth.
        shared[:, 0, 2], shared[:, 0, 3] = -cot * by_radius * c, -cot * by_radius * s
        shared[:, 1, 2], shared[:, 1, 3] = by_radius * c, by_radius * s
        shared[:, 2, 2], shared[:, 2, 3] = -cosine * s / radius, cosine * c / radius
        for group in range(groups):
            longer = lattice.stretched(stretch + _SMALL * (np.arange(groups) == group))
            change = np.einsum("nij,nj->ni", turn, indexed.hkl @ (longer - basis).T) / (_SMALL * length[:, None])
            shared[:, 0, 4 + group] = -(g * change).sum(1) / length
            # What is left turns g; a length that changes alone must not pull, or noise would push the cell's scale.
            change -= (g * change).sum(1)[:, None] * g / (length * length)[:, None]
            shared[:, 1, 4 + group], shared[:, 2, 4 + group] = (change * tilt).sum(1), (change * around).sum(1)
        self.shared = shared
        self.away = np.concatenate([np.zeros(4), stretch])
        own = np.zeros((len(x), 3, 3))
        own[:, 1], own[:, 2] = np.cross(toward, tilt), np.cross(toward, around)
        self.own = own

    def variances(self, noise: Noise) -> Floats:
        return noise.of(self.theta, self.radius, self.distance_px)

    def weights(self, noise: Noise) -> Floats:
        """Of each spot (n,), 1 to 0."""
        chi2 = (self.residuals**2 / self.variances(noise)).sum(1)
        return np.asarray(1.0 / (1.0 + (chi2 / _FAR_CHI2) ** 2), np.float64)

    def measured_noise(self, noise: Noise, weights: Floats) -> Noise:
        """What the residuals show, moved half of the way; turns take up some of it, two unknowns of the second kind."""
        good = weights >= 0.5
        if np.count_nonzero(good) < 12:
            return noise
        variances, residuals = self.variances(noise)[good], self.residuals[good]
        excess = np.array([_scale(residuals[:, k] / np.sqrt(variances[:, k])) for k in range(3)])
        left = max(1.0 - 2.0 * self.crystals / np.count_nonzero(good), 0.25)
        excess[1] /= left
        spectrum, rocking, place = np.sqrt(excess)
        return Noise(
            float(np.clip(noise.spectrum * spectrum, 2e-4, 0.02)),
            float(np.clip(noise.rocking_rad * rocking, 3e-5, 0.01)),
            float(np.clip(noise.place_px * place, 0.1, 2.0)),
        )

    def step(self, variances: Floats, weights: Floats, cell_sigma: float) -> _Step:
        """The Gauss-Newton step and the sandwich covariance of the shared unknowns.

        The edges as given count as one more observation each.
        """
        w = weights[:, None] / variances
        shared, own = self.shared, self.own
        a = np.einsum("nki,nk,nkj->ij", shared, w, shared)
        cross = self._by_crystal(np.einsum("nki,nk,nkj->nij", own, w, shared))
        block = self._by_crystal(np.einsum("nki,nk,nkj->nij", own, w, own))
        # A crystal of few spots leaves a turn open: hold it to a degree or so.
        block += np.eye(3) / 0.02**2
        rhs = -self._by_crystal(np.einsum("nki,nk,nk->ni", own, w, self.residuals))
        inverse = np.linalg.inv(block)
        gain = np.einsum("cij,cjk->cik", inverse, cross)
        normal = a - np.einsum("cji,cjk->ik", cross, gain)
        scores = self._by_crystal(-np.einsum("nki,nk,nk->ni", shared, w, self.residuals)) - np.einsum(
            "cji,cj->ci", gain, rhs
        )
        known = np.zeros(len(normal))
        known[4:] = 1.0 / cell_sigma**2
        normal += np.diag(known)
        scaled = np.sqrt(np.diag(normal))
        spread = np.linalg.pinv(normal / np.outer(scaled, scaled), rcond=1e-12) / np.outer(scaled, scaled)
        step = spread @ (scores.sum(0) - known * self.away)
        influence = scores @ spread
        sandwich = influence.T @ influence * (1.0 + 4.0 / self.crystals) + (spread * known) @ spread
        covariance = _larger(sandwich, spread)
        turns = np.einsum("cij,cj->ci", inverse, rhs - cross @ step)
        return _Step(step, turns, covariance)

    def _by_crystal(self, values: Floats) -> Floats:
        out = np.zeros((self.crystals, *values.shape[1:]))
        np.add.at(out, self.crystal, values)
        return out


def _larger(one: Floats, other: Floats) -> Floats:
    """A covariance that is at least each of two, in every direction: few crystals may agree by luck."""
    root = np.linalg.cholesky(other + np.diag(np.diag(other)) * 1e-9)
    values, vectors = np.linalg.eigh(np.linalg.solve(root, np.linalg.solve(root, one).T))
    whole = root @ vectors
    return np.asarray((whole * np.maximum(values, 1.0)) @ whole.T, np.float64)


def _scale(normalised: Floats) -> float:
    """The variance of the middle two thirds of a sample, on the scale of a normal distribution's."""
    return float((np.quantile(np.abs(normalised), 0.683)) ** 2)


def _turned(turns: Floats, vectors: Floats) -> Floats:
    """Orientations turned by small rotation vectors (crystals, 3); Rodrigues' formula."""
    angle = np.sqrt((vectors * vectors).sum(1))
    axis = vectors / np.maximum(angle, 1e-300)[:, None]
    k = np.zeros((len(turns), 3, 3))
    k[:, 0, 1], k[:, 0, 2], k[:, 1, 2] = -axis[:, 2], axis[:, 1], -axis[:, 0]
    k -= k.transpose(0, 2, 1)
    turn = np.eye(3) + np.sin(angle)[:, None, None] * k + (1 - np.cos(angle))[:, None, None] * (k @ k)
    return np.asarray(turn @ turns, np.float64)
