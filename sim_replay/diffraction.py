"""Bragg diffraction of a crystal in one orientation, under one pulse with a band of photon energies.

The crystal is an ideal mosaic: blocks turned about its mean orientation by Gaussian angles. A reflection q = U B hkl
(1/angstrom, beam along +z) makes the angle theta_h = asin(-q_z/|q|) with the planes' Bragg condition. Blocks turn it,
the beam's divergence turns the light, strain and finite size lengthen or shorten q; each moves the angle at which the
reflection is met, and together they make it Gaussian about theta_h with the variance

    sigma^2 = m^2 + v^2 + (e d)^2 + tan^2(theta) (s^2 + (e d)^2)

m mosaic spread, v divergence, s relative strain, and e = 0.376/L the standard deviation of the reciprocal-lattice
point of a cube of edge L (FWHM 0.886/L, Scherrer, sinc^2), across q as an angle e d and along q as a strain e d. What
meets the angle theta reflects lambda = 2 d sin(theta), and the photons of a reflection are

    N = n l r_e^2 P |F|^2 / V_c^2 * integral S(lambda) lambda^4 / (2 sin^2 theta) g(theta - theta_h) dtheta

with n photons a pulse, l their path through the crystal (`lit_path_m`: fluence times volume, a photon), S the share
of the photons a unit of wavelength and g the Gaussian. For a top hat wider than g this is Laue's formula for a still
crystal in polychromatic light, J W r_e^2 P |F|^2 (V/V_c^2) lambda^4/(2 sin^2 theta) with J = n/(area bandwidth
lambda) (Zachariasen, Theory of X-ray Diffraction in Crystals, 1945, ch. III; it follows from integrating
r_e^2 |F|^2 (V/V_c^2) delta^3(q - h) over solid angle and wavelength, d^3q = 2 sin^2(theta)/lambda^4 dlambda dOmega).
The check is the powder average, in the tests. Working in the angle keeps the edges of the band exact at small theta,
where dlambda/lambda = cot(theta) dtheta is no longer small.

A block turned by t reflects into 2 (theta_h + t), like a mirror; light tilted by v leaves v further out; strain moves
nothing. Given the total u = theta - theta_h, the mean exit angle is therefore 2 theta_h + k u with
k = (2 t^2 + v^2)/sigma^2 (t^2 = m^2 + (e d)^2), and what u leaves open has the variance 4 t^2 + v^2 - k^2 sigma^2: the
spot is a radial streak, blurred. Across it, turning moves light by 2 sin(theta) m, size by e lambda, divergence by v.
The lit part of the crystal and the sensor blur it evenly.

Kept out on purpose: extinction, absorption, parallax in the sensor, energy-dependent detector efficiency, the shift of
a crystal's lit part when it is off the beam. Strain is taken to first order: single reflections are off by up to 1 %
at a strain of 0.01, 8 % at 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtr

from sim_replay.beam import FWHM_PER_SIGMA, lit_path_m, lit_sigma_m
from sim_replay.crystal import Crystal, reciprocal_basis
from sim_replay.detector import Condition, Detector, beam_center_px
from sim_replay.scatter import CLASSICAL_ELECTRON_RADIUS_M

SIZE_SIGMA_TIMES_LENGTH = 0.8859 / FWHM_PER_SIGMA
"""Standard deviation of the Gaussian with the FWHM of sinc^2, times the length (Scherrer)."""

MAX_MOSAICITY_DEG = 3.0
"""Protein crystals stay below 1; the memory of a frame grows with the length of its streaks."""

MAX_STRAIN = 0.05

REACH_SIGMA = 5.0  # the Gaussian of angles is cut here: 6e-7 of it is lost
_NEGLIGIBLE_PHOTONS, _NEGLIGIBLE_SHARE = 1e-3, 1e-4
_MIN_PIXEL_PHOTONS, _MIN_PIXEL_SHARE = 1e-5, 1e-6  # a spot's pixels below both are left out
MOST_ENTRIES = 30_000_000
"""Pixels of a frame's footprints, counted once a spot: at most 3 GB."""
_MOST_KERNELS = 20_000_000
LARGEST_TWO_THETA_RAD = math.radians(85.0)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A crystal in the beam: a cube of side size_m, faces along the laboratory's axes, offset_m (x, y) off the beam.

    mosaicity_deg is the full width at half maximum of the blocks' turn about any axis; strain the standard deviation
    of the relative lattice spacing. Raises ValueError naming what makes no sense.
    """

    crystal: Crystal
    size_m: float = 10e-6
    mosaicity_deg: float = 0.05
    strain: float = 0.0
    offset_m: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not 1e-8 <= self.size_m <= 1e-2:
            raise ValueError(f"size_m is {self.size_m}; give a crystal edge from 1e-8 to 0.01 m")
        if not all(map(math.isfinite, self.offset_m)):
            raise ValueError(f"offset_m must be two finite lengths, not {self.offset_m}")
        if not 0.0 <= self.mosaicity_deg <= MAX_MOSAICITY_DEG:
            raise ValueError(f"mosaicity_deg is {self.mosaicity_deg}; give degrees, from 0 to {MAX_MOSAICITY_DEG:g}")
        if not 0.0 <= self.strain <= MAX_STRAIN:
            raise ValueError(f"strain is {self.strain}; give a relative width from 0 to {MAX_STRAIN:g}")

    @property
    def mosaic_sigma_rad(self) -> float:
        """Standard deviation of the blocks' turn."""
        return math.radians(self.mosaicity_deg) / FWHM_PER_SIGMA


@dataclass(frozen=True, slots=True, eq=False)
class Spots:
    """Reflections that a pulse excites; every array has the length n, in the order of the crystal's list.

    hkl (n, 3) int32; photons expected into the whole spot, on or off the detector; partiality, what the pulse excites
    of what light of one wavelength at exact Bragg angle would of all blocks, spectrum-weighted (0 to 1); theta_rad
    and wavelength_angstrom, the mean of what reflects; fs, ss the pixel index where that mean falls (unbounded).
    The rest describes the streak: theta_mean_rad (theta_h), theta_sigma_rad, d_angstrom, slope (k), what is left open
    along (radial_sigma_rad) and across (cross_sigma_rad), the round blur blur_px, and the unit direction
    (direction_fs, direction_ss) of growing angle.
    """

    hkl: NDArray[np.int32]
    photons: NDArray[np.float64]
    partiality: NDArray[np.float64]
    theta_rad: NDArray[np.float64]
    wavelength_angstrom: NDArray[np.float64]
    fs: NDArray[np.float64]
    ss: NDArray[np.float64]
    theta_mean_rad: NDArray[np.float64]
    theta_sigma_rad: NDArray[np.float64]
    d_angstrom: NDArray[np.float64]
    slope: NDArray[np.float64]
    radial_sigma_rad: NDArray[np.float64]
    cross_sigma_rad: NDArray[np.float64]
    blur_px: NDArray[np.float64]
    direction_fs: NDArray[np.float64]
    direction_ss: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.photons)


@dataclass(frozen=True, slots=True, eq=False)
class Footprint:
    """Expected photons of n spots, pixel by pixel, live pixels only.

    index (m,) int64 flat pixel (ss * columns + fs), photons (m,) float64 and spot (m,) int32, which spot they belong
    to; a pixel may appear more than once, the entries of a spot stand together.
    """

    index: NDArray[np.int64]
    photons: NDArray[np.float64]
    spot: NDArray[np.int32]

    def spot_sums(self, values: NDArray[np.float64], spots: int) -> NDArray[np.float64]:
        """Sum of one value an entry over each spot, (spots,) float64."""
        return np.bincount(self.spot, values, spots).astype(np.float64)


NO_FOOTPRINT = Footprint(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int32))


def random_orientation(rng: np.random.Generator) -> NDArray[np.float64]:
    """A rotation matrix (3, 3) uniform on SO(3): four normal numbers make a uniform unit quaternion."""
    w, x, y, z = (v := rng.standard_normal(4)) / np.linalg.norm(v)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def diffract(
    sample: Sample,
    condition: Condition,
    detector: Detector,
    orientation: NDArray[np.float64],
    min_photons: float | None = None,
) -> Spots:
    """The reflections of the sample that send at least min_photons expected photons towards the detector's side.

    orientation (3, 3) is U: it takes the crystal's Cartesian frame (a along x, b in xy) to the laboratory's.
    Reflections beyond the panel's farthest corner are left out. min_photons defaults to 1e-3, or to less where those
    left out would together hold more than 1e-4 of the light.
    """
    crystal, beam = sample.crystal, condition.beam
    ub = np.ascontiguousarray(orientation @ reciprocal_basis(crystal.cell))
    wavelength = condition.wavelength_angstrom
    edges = wavelength * np.asarray(beam.spectrum.edges)
    density = np.asarray(beam.spectrum.shares) / np.diff(edges)  # share of the photons an angstrom
    size_sigma = SIZE_SIGMA_TIMES_LENGTH / (sample.size_m * 1e10)  # e, 1/angstrom
    mosaic, divergence = sample.mosaic_sigma_rad, beam.divergence_rad

    near, q, sine = _near_bragg(
        crystal.hkl, ub, edges[0], edges[-1], math.hypot(mosaic, divergence), size_sigma, sample.strain,
        REACH_SIGMA, largest_q_inv_angstrom(sample, condition, detector),
    )  # fmt: skip
    d = 1.0 / np.sqrt(np.sum(q * q, axis=1))
    theta_h = np.arcsin(sine)
    turn2 = mosaic**2 + (size_sigma * d) ** 2
    sigma = np.sqrt(turn2 + divergence**2 + np.tan(theta_h) ** 2 * (sample.strain**2 + (size_sigma * d) ** 2))

    theta_edges = np.arcsin(np.minimum(edges[None, :] / (2.0 * d[:, None]), 1.0))
    density_met, reflected, theta = _meet(theta_edges, theta_h, sigma, density)
    slope = (2.0 * turn2 + divergence**2) / sigma**2
    exit_angle = 2.0 * theta_h + slope * (theta - theta_h)
    in_plane = np.hypot(q[:, 0], q[:, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        ux, uy = q[:, 0] / in_plane, q[:, 1] / in_plane
    xx, xy, yy = beam.polarisation_terms
    polarisation = 1.0 - np.sin(exit_angle) ** 2 * (xx * ux * ux + 2.0 * xy * ux * uy + yy * uy * uy)
    # integral S lambda^4/(2 sin^2) g with lambda = 2 d sin(theta); density is an angstrom^-1, so angstrom^3 remain.
    lambda_met = 2.0 * d * np.sin(theta)
    laue_m3 = 8.0 * d**4 * reflected * 1e-30
    photons = (
        condition.flux_photons
        * lit_path_m(beam, sample.size_m, sample.offset_m)
        * CLASSICAL_ELECTRON_RADIUS_M**2
        * polarisation
        * crystal.intensity[near]
        / (crystal.volume_angstrom3 * 1e-30) ** 2
        * laue_m3
    )

    keep = (photons > 0.0) & (exit_angle < LARGEST_TWO_THETA_RAD) & (in_plane > 0.0) & (exit_angle > 0.0)
    keep &= photons >= (_negligible(photons[keep]) if min_photons is None else min_photons)
    center_x, center_y = beam_center_px(condition, detector)
    distance_px = condition.camera_length_m / detector.pixel_size_m
    theta, ux, uy, sigma, slope, d = theta[keep], ux[keep], uy[keep], sigma[keep], slope[keep], d[keep]
    turn2, exit_angle = turn2[keep], exit_angle[keep]
    radius_px = distance_px * np.tan(exit_angle)
    blur_px = math.hypot(detector.point_spread_px, lit_sigma_m(beam, sample.size_m) / detector.pixel_size_m)
    left_open = 4.0 * turn2 + divergence**2 - slope**2 * sigma**2
    cross2 = (2.0 * np.sin(theta) * mosaic) ** 2 + (size_sigma * lambda_met[keep]) ** 2 + divergence**2
    return Spots(
        hkl=crystal.hkl[near][keep],
        photons=photons[keep],
        partiality=np.minimum(density_met[keep] / density.max(), 1.0),
        theta_rad=theta,
        wavelength_angstrom=lambda_met[keep],
        fs=center_x - 0.5 + radius_px * ux,
        ss=center_y - 0.5 + radius_px * uy,
        theta_mean_rad=theta_h[keep],
        theta_sigma_rad=sigma,
        d_angstrom=d,
        slope=slope,
        radial_sigma_rad=np.sqrt(np.maximum(left_open, 0.0)),
        cross_sigma_rad=np.sqrt(cross2),
        blur_px=np.full(len(theta), blur_px),
        direction_fs=ux,
        direction_ss=uy,
    )


def _negligible(photons: NDArray[np.float64]) -> float:
    """The photons of the weakest reflection to keep."""
    rising = np.sort(photons)
    weak = int(np.searchsorted(np.cumsum(rising), _NEGLIGIBLE_SHARE * photons.sum()))
    return min(_NEGLIGIBLE_PHOTONS, float(rising[weak])) if weak < len(rising) else 0.0


def _meet(
    theta_edges: NDArray[np.float64],
    theta_h: NDArray[np.float64],
    sigma: NDArray[np.float64],
    density: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Integrals over each reflection's Gaussian of angles: of the spectrum's density, and of that times sin^2(theta);
    and the mean angle of the light."""
    x = (theta_edges - theta_h[:, None]) / sigma[:, None]
    low, high = x[:, :-1], x[:, 1:]
    # Of the two tails take the one that does not cancel.
    share = np.where(low > 0.0, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
    bell = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    with np.errstate(divide="ignore", invalid="ignore"):
        places = theta_h[:, None] + sigma[:, None] * (bell[:, :-1] - bell[:, 1:]) / share
    places = np.clip(np.nan_to_num(places), theta_edges[:, :-1], theta_edges[:, 1:])
    # lambda^4/(2 sin^2) = 8 d^4 sin^2: the larger angles of a wide band reflect more.
    sine2 = np.sin(places) ** 2
    weight = share * density
    met = weight.sum(axis=1)
    reflected = (weight * sine2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        theta = np.nan_to_num((weight * sine2 * places).sum(axis=1) / reflected)
    return met, reflected, np.clip(theta, theta_edges[:, 0], theta_edges[:, -1])


def footprint(
    spots: Spots,
    condition: Condition,
    detector: Detector,
    transmission: NDArray[np.float32] | None = None,
    most_entries: int = MOST_ENTRIES,
) -> Footprint:
    """Lay the spots' streaks over the pixels.

    A streak is a row of Gaussians about one blur apart, each integrated over the pixels with the error function;
    their weights are the shares of what reflects into each piece. transmission (ss, fs) float32, if given, is what a
    beam stop lets through. Raises ValueError when the spots are so wide that there would be more than most_entries.
    """
    if len(spots) == 0:
        return NO_FOOTPRINT
    center_x, center_y = beam_center_px(condition, detector)
    spectrum = condition.beam.spectrum
    edges = condition.wavelength_angstrom * np.asarray(spectrum.edges)
    spot, fs, ss, sigma_px, photons, fits = _streak_kernels(
        spots.photons, spots.theta_mean_rad, spots.theta_sigma_rad, spots.d_angstrom, spots.slope,
        spots.radial_sigma_rad, spots.cross_sigma_rad, spots.blur_px, spots.direction_fs, spots.direction_ss,
        edges, np.asarray(spectrum.shares) / np.diff(edges), center_x - 0.5, center_y - 0.5,
        condition.camera_length_m / detector.pixel_size_m, REACH_SIGMA, _MOST_KERNELS,
    )  # fmt: skip
    if not fits:
        raise TooWideError
    return _laid(spot, fs, ss, sigma_px, photons, len(spots), detector, transmission, most_entries)


class TooWideError(ValueError):
    """Spots that would fill the memory."""

    def __init__(self) -> None:
        super().__init__(
            "the spots of a frame are too many and too wide to lay out; give less mosaicity, divergence or strain, "
            "fewer or larger crystals, or a smaller cell"
        )


def in_one_pixel(laid: Footprint) -> Footprint:
    """The same spots with all light of each in its brightest pixel.

    So they look on a detector far sharper than its pixels, and in images that sample a pattern at the pixels' centres.
    """
    order = np.lexsort((-laid.photons, laid.spot))
    first = order[np.flatnonzero(np.diff(laid.spot[order], prepend=-1))]
    photons = laid.spot_sums(laid.photons, 0)[laid.spot[first]]
    return Footprint(laid.index[first], photons, laid.spot[first])


def lay_gaussians(
    fs: NDArray[np.float64],
    ss: NDArray[np.float64],
    photons: NDArray[np.float64],
    sigma_px: NDArray[np.float64],
    detector: Detector,
    transmission: NDArray[np.float32] | None = None,
) -> Footprint:
    """Lay round spots over the pixels, one Gaussian each; all arrays (n,) float64, places as pixel indices."""
    spot = np.arange(len(fs), dtype=np.int32)
    return _laid(spot, fs, ss, sigma_px, photons, len(fs), detector, transmission)


def _laid(
    spot: NDArray[np.int32],
    fs: NDArray[np.float64],
    ss: NDArray[np.float64],
    sigma_px: NDArray[np.float64],
    photons: NDArray[np.float64],
    spots: int,
    detector: Detector,
    transmission: NDArray[np.float32] | None,
    most_entries: int = MOST_ENTRIES,
) -> Footprint:
    if spots == 0:
        return NO_FOOTPRINT
    live = _live(detector) if transmission is None else transmission
    index, values, owner, fits = _lay_kernels(
        spot, fs, ss, sigma_px, photons, live, detector.mask, _MIN_PIXEL_PHOTONS, _MIN_PIXEL_SHARE, most_entries
    )
    if not fits:
        raise TooWideError
    return Footprint(index, values, owner)


@lru_cache(maxsize=4)
def _live(detector: Detector) -> NDArray[np.float32]:
    live = np.ones(detector.shape, dtype=np.float32)
    live.setflags(write=False)
    return live


def largest_q_inv_angstrom(sample: Sample, condition: Condition, detector: Detector) -> float:
    """No reflection with a larger |q| (1/angstrom) sends light to the panel; drawn a little wide."""
    center_x, center_y = beam_center_px(condition, detector)
    x = max(abs(center_x), abs(detector.shape[1] - center_x))
    y = max(abs(center_y), abs(detector.shape[0] - center_y))
    corner = math.atan(math.hypot(x, y) * detector.pixel_size_m / condition.camera_length_m)
    # Turned blocks and tilted light leave a reflection up to two reaches off its own angle.
    spread = 2.0 * REACH_SIGMA * math.hypot(sample.mosaic_sigma_rad, condition.beam.divergence_rad)
    shortest = condition.wavelength_angstrom * condition.beam.spectrum.edges[0]
    strained = 1.01 * (1.0 + REACH_SIGMA * sample.strain)
    return strained * 2.0 * math.sin(min(corner + spread, LARGEST_TWO_THETA_RAD) / 2.0) / shortest


def _near_bragg_py(  # type: ignore[no-untyped-def]
    hkl, ub, shortest, longest, flat_sigma, size_sigma, strain, reach, q_max
):
    """Reflections within reach of the band: their numbers (n,), q (n, 3) in 1/angstrom and sin(theta_h) (n,)."""
    # theta_h >= -reach sigma, so that q_z <= q reach sigma, with cos(theta_h) above 1/2 in sigma's part of the size.
    highest_qz = reach * (q_max * (flat_sigma + strain) + 2.0 * size_sigma)
    count = 0
    near = np.empty(256, dtype=np.int64)
    for i in range(hkl.shape[0]):
        h, k, m = hkl[i, 0], hkl[i, 1], hkl[i, 2]
        qz = ub[2, 0] * h + ub[2, 1] * k + ub[2, 2] * m
        if qz > highest_qz:
            continue
        qx = ub[0, 0] * h + ub[0, 1] * k + ub[0, 2] * m
        qy = ub[1, 0] * h + ub[1, 1] * k + ub[1, 2] * m
        q2 = qx * qx + qy * qy + qz * qz
        if q2 > q_max * q_max or q2 == 0.0:
            continue
        q = math.sqrt(q2)
        if longest * q >= 2.0:
            continue
        sine = max(-1.0, min(1.0, -qz / q))
        cosine2 = max(1.0 - sine * sine, 1e-6)
        # (e d)^2 (1 + tan^2) and strain^2 tan^2
        sigma = math.sqrt(flat_sigma**2 + ((size_sigma / q) ** 2 + strain**2 * sine * sine) / cosine2)
        theta = math.asin(sine)
        if theta < math.asin(shortest * q / 2.0) - reach * sigma:
            continue
        if theta > math.asin(longest * q / 2.0) + reach * sigma:
            continue
        if count == near.shape[0]:
            larger = np.empty(2 * count, dtype=np.int64)
            larger[:count] = near
            near = larger
        near[count] = i
        count += 1
    near = near[:count].copy()
    q_vectors = np.empty((count, 3))
    sines = np.empty(count)
    for j in range(count):
        i = near[j]
        q2 = 0.0
        for axis in range(3):
            value = ub[axis, 0] * hkl[i, 0] + ub[axis, 1] * hkl[i, 1] + ub[axis, 2] * hkl[i, 2]
            q_vectors[j, axis] = value
            q2 += value * value
        sines[j] = max(-1.0, min(1.0, -q_vectors[j, 2] / math.sqrt(q2)))
    return near, q_vectors, sines


LARGEST_THETA_RAD = 0.78  # a streak ends before 2 theta = 90 degrees, where it never meets the panel
_MOST_PIECES = 400
_MOST_NODES = 41
_LEAST_SHARE = 1e-5  # pieces of a streak with less of its photons are left out
# Weaker spots show no shape: half the pieces do, and then a quarter.
WEAK_SPOT_PHOTONS, _FAINT_SPOT_PHOTONS = 1.0, 0.01


def _normal_share_py(low, high, mean, sigma):  # type: ignore[no-untyped-def]
    root2_sigma = math.sqrt(2.0) * sigma
    return 0.5 * (math.erf((high - mean) / root2_sigma) - math.erf((low - mean) / root2_sigma))


def _bell_py(x):  # type: ignore[no-untyped-def]
    return math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


_normal_share: Callable[..., float] = njit(cache=True)(_normal_share_py)
_bell: Callable[..., float] = njit(cache=True)(_bell_py)


def _streak_kernels_py(  # type: ignore[no-untyped-def]
    photons, theta_mean, theta_sigma, d, slope, radial_sigma, cross_sigma, blur_px, direction_fs, direction_ss,
    edges, density, origin_fs, origin_ss, distance_px, reach, most_kernels,
):  # fmt: skip
    """Each streak as Gaussians: spot (m,), fs, ss, sigma in pixels and photons (m,); and whether there were no more."""
    n, bins = photons.shape[0], density.shape[0]
    spot = np.empty(16 * n, dtype=np.int32)
    table = np.empty((16 * n, 4))
    places, weights = np.empty(2 * _MOST_PIECES + bins), np.empty(2 * _MOST_PIECES + bins)
    count = 0
    for s in range(n):
        mean, sigma = theta_mean[s], theta_sigma[s]
        lowest = math.asin(min(edges[0] / (2.0 * d[s]), 1.0))
        highest = math.asin(min(edges[bins] / (2.0 * d[s]), 1.0))
        low, high = max(lowest, mean - reach * sigma), min(highest, mean + reach * sigma, LARGEST_THETA_RAD)

        # What the angle leaves open, split into a round blur and what one direction has more of than the other.
        exit_angle = max(2.0 * mean, 0.0)
        stretch = distance_px / math.cos(min(exit_angle, 1.5)) ** 2
        radial = (radial_sigma[s] * stretch) ** 2
        across = (cross_sigma[s] * distance_px / math.cos(min(exit_angle, 1.5))) ** 2
        round2 = blur_px[s] ** 2 + min(radial, across)
        length_px = max(high - low, 0.0) * slope[s] * stretch
        streak2 = min(length_px * length_px / 12.0, (sigma * slope[s] * stretch) ** 2)
        excess = abs(across - radial)
        if excess < 0.1 * (round2 + streak2):  # too little to see beside the streak itself
            round2 += excess
            excess = 0.0
        kernel = math.sqrt(round2)
        spacing = max(1.5 * kernel, 0.5)  # Gaussians 1.5 sigma apart ripple by 3e-4
        if photons[s] < WEAK_SPOT_PHOTONS:
            spacing *= 2.0
        if photons[s] < _FAINT_SPOT_PHOTONS:
            spacing *= 2.0

        pieces = 0
        if not low < high:  # a sharp crystal: all of it at one angle
            places[0], weights[0], pieces = min(max(mean, lowest), highest), 1.0, 1
        else:
            share, moment, span = 0.0, 0.0, 0.0
            for b in range(bins):
                start = max(low, math.asin(min(edges[b] / (2.0 * d[s]), 1.0)))
                stop = min(high, math.asin(min(edges[b + 1] / (2.0 * d[s]), 1.0)))
                if not start < stop:
                    continue
                part_px = (stop - start) * slope[s] * stretch
                parts = int(min(max(math.ceil(part_px / spacing), 1.0), _MOST_PIECES // bins + 1.0))
                if bins == 1 and part_px > 0.05:
                    parts = max(parts, 4)  # at the band's edge blocks crowd at one end; keeps the centroid to 0.03 px
                step = (stop - start) / parts
                for part in range(parts):
                    a = start + part * step
                    weight = _normal_share(a, a + step, mean, sigma)
                    reflects = density[b] * math.sin(a + 0.5 * step) ** 2
                    share += reflects * weight
                    # The mean angle of the piece: on the slope of the Gaussian its middle would be too far out.
                    moment += reflects * (
                        mean * weight + sigma * (_bell((a - mean) / sigma) - _bell((a + step - mean) / sigma))
                    )
                    span += part_px / parts
                    if bins == 1 or span > 0.75 * spacing:
                        if share > 0.0:
                            places[pieces], weights[pieces] = moment / share, share
                            pieces += 1
                        share, moment, span = 0.0, 0.0, 0.0
            if share > 0.0:
                places[pieces], weights[pieces] = moment / share, share
                pieces += 1
        total = 0.0
        for p in range(pieces):
            total += weights[p]
        if not total > 0.0:
            continue

        nodes, node_step, wide = 1, 0.0, math.sqrt(excess)
        if excess > 0.0:
            nodes = int(min(2.0 * math.ceil(3.5 * wide / spacing) + 1.0, _MOST_NODES))
            node_step = 7.0 * wide / (nodes - 1)
        along_radius = radial > across
        if count + pieces * nodes > most_kernels:
            return spot[:0], table[:0, 0], table[:0, 1], table[:0, 2], table[:0, 3], False
        if count + pieces * nodes > spot.shape[0]:
            more = pieces * nodes + spot.shape[0]
            spot = np.append(spot, np.empty(more, dtype=np.int32))
            table = np.concatenate((table, np.empty((more, 4))))
        for node in range(nodes):
            away, node_share = 0.0, 1.0
            if nodes > 1:
                away = (node - (nodes - 1) / 2.0) * node_step
                node_share = _normal_share(away - node_step / 2.0, away + node_step / 2.0, 0.0, wide)
            for p in range(pieces):
                weight = weights[p] / total * node_share
                if weight < _LEAST_SHARE:
                    continue
                angle = 2.0 * mean + slope[s] * (places[p] - mean)
                r = distance_px * math.tan(min(max(angle, 0.0), 1.5))
                fs, ss = origin_fs + r * direction_fs[s], origin_ss + r * direction_ss[s]
                if along_radius:
                    fs, ss = fs + away * direction_fs[s], ss + away * direction_ss[s]
                else:
                    fs, ss = fs - away * direction_ss[s], ss + away * direction_fs[s]
                spot[count] = s
                table[count, 0], table[count, 1] = fs, ss
                table[count, 2], table[count, 3] = kernel, weight * photons[s]
                count += 1
    table = table[:count]
    return spot[:count].copy(), table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy(), table[:, 3].copy(), True


def _lay_kernels_py(  # type: ignore[no-untyped-def]
    spot, fs, ss, sigma, photons, live, mask, min_pixel_photons, min_pixel_share, most_entries
):
    """Index (m,), photons (m,) and spot (m,) of the pixels that the Gaussians, in order of their spots, fall on, and
    whether they were not too many."""
    rows, columns = mask.shape
    n = spot.shape[0]
    capacity = 1 << 14
    index, values, owner = np.empty(capacity, dtype=np.int64), np.empty(capacity), np.empty(capacity, dtype=np.int32)
    box = np.empty(1024)
    along_fs, along_ss = np.empty(columns + 1), np.empty(rows + 1)
    count = 0
    first = 0
    while first < n:
        last = first
        fs_low, fs_high, ss_low, ss_high = 1e18, -1e18, 1e18, -1e18
        while last < n and spot[last] == spot[first]:
            reach = 4.5 * sigma[last] + 0.5
            fs_low, fs_high = min(fs_low, fs[last] - reach), max(fs_high, fs[last] + reach)
            ss_low, ss_high = min(ss_low, ss[last] - reach), max(ss_high, ss[last] + reach)
            last += 1
        fs0, fs1 = int(max(0.0, math.floor(fs_low))), int(min(columns * 1.0, math.ceil(fs_high) + 1.0))
        ss0, ss1 = int(max(0.0, math.floor(ss_low))), int(min(rows * 1.0, math.ceil(ss_high) + 1.0))
        width = fs1 - fs0
        if width <= 0 or ss1 <= ss0:
            first = last
            continue
        area = (ss1 - ss0) * width
        if count + area > most_entries:
            return index[:0], values[:0], owner[:0], False
        cut = 0.0
        for g in range(first, last):
            cut += photons[g]
        cut = min(min_pixel_photons, min_pixel_share * cut)
        if area > box.shape[0]:
            box = np.empty(2 * area)
        box[:area] = 0.0
        for g in range(first, last):
            reach = 4.5 * sigma[g] + 0.5
            f0, f1 = max(fs0, math.floor(fs[g] - reach)), min(fs1, math.ceil(fs[g] + reach) + 1)
            s0, s1 = max(ss0, math.floor(ss[g] - reach)), min(ss1, math.ceil(ss[g] + reach) + 1)
            if f1 <= f0 or s1 <= s0:
                continue
            scale = 1.0 / (math.sqrt(2.0) * sigma[g])
            for edge in range(f0, f1 + 1):
                along_fs[edge - f0] = 0.5 * math.erf((edge - 0.5 - fs[g]) * scale)
            for edge in range(s0, s1 + 1):
                along_ss[edge - s0] = 0.5 * math.erf((edge - 0.5 - ss[g]) * scale)
            for row in range(s0, s1):
                in_row = photons[g] * (along_ss[row - s0 + 1] - along_ss[row - s0])
                base = (row - ss0) * width - fs0
                for column in range(f0, f1):
                    box[base + column] += in_row * (along_fs[column - f0 + 1] - along_fs[column - f0])
        if count + area > index.shape[0]:
            more = index.shape[0] + area
            index = np.append(index, np.empty(more, dtype=np.int64))
            values = np.append(values, np.empty(more))
            owner = np.append(owner, np.empty(more, dtype=np.int32))
        for row in range(ss0, ss1):
            for column in range(fs0, fs1):
                value = box[(row - ss0) * width + column - fs0]
                if value < cut or mask[row, column]:
                    continue
                value *= live[row, column]
                if value > 0.0:
                    index[count], values[count], owner[count] = row * columns + column, value, spot[first]
                    count += 1
        first = last
    return index[:count].copy(), values[:count].copy(), owner[:count].copy(), True


_near_bragg: Callable[..., tuple[Any, Any, Any]] = njit(cache=True)(_near_bragg_py)
_streak_kernels: Callable[..., tuple[Any, Any, Any, Any, Any, bool]] = njit(cache=True)(_streak_kernels_py)
_lay_kernels: Callable[..., tuple[Any, Any, Any, bool]] = njit(cache=True)(_lay_kernels_py)
