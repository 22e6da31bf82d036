"""Bragg diffraction of one crystal, in one orientation, under one pulse with a band of photon energies.

The crystal is an ideal mosaic: blocks turned about its mean orientation by Gaussian angles. A reflection q = U B hkl
(1/angstrom, beam along +z) makes the angle theta_h = asin(-q_z/|q|) with the planes' Bragg condition, so a block turned
by delta reflects lambda = 2 d sin(theta_h + delta). With a top hat band that is a window of angles
[theta(lambda_min), theta(lambda_max)], and the photons of a reflection are

    N = J * W * r_e^2 P |F|^2 (V / V_c^2) lambda^4 / (2 sin^2 theta),      J = fluence / (bandwidth lambda_0)

where W is the share of blocks inside the window. With W = 1 this is Laue's formula for a still crystal in
polychromatic light (Zachariasen, Theory of X-ray Diffraction in Crystals, 1945, ch. III; it follows from
integrating r_e^2 |F|^2 (V/V_c^2) delta^3(q - h) over solid angle and wavelength, d^3q = 2 sin^2(theta)/lambda^4
dlambda dOmega). W smears the edges of the band: since lambda = 2 d sin theta, dlambda/lambda = cot(theta) dtheta.
Working in the angle keeps this exact at small theta, where cot(theta) dtheta is no longer small.

The angular width sums, in quadrature, the mosaic spread m, the divergence of the beam v and the finite size L of the
crystal: a cube's reciprocal-lattice points have the FWHM 0.886/L (Scherrer, sinc^2), standard deviation e = 0.376/L.
Along q that shifts lambda by e/q, across q it turns q by e/q; together dlambda/lambda = (e/q)/sin(theta), as an angle
e d / cos(theta). Hence sigma_theta^2 = m^2 + v^2 + (e d / cos theta)^2.

A block turned by delta reflects into 2 (theta_h + delta), like a mirror, in the azimuth of q: the spot is a radial
streak over the window's part of the mosaic distribution. Where sigma_theta is small this is the one direction
q + z/lambda_h with lambda_h = -2 q_z/|q|^2. Across the streak turning moves a spot by 2 sin(theta) m and size
broadens it by e lambda.

Kept out on purpose: extinction, absorption, energy-dependent detector efficiency, point spread.
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

from sim_replay.background import CLASSICAL_ELECTRON_RADIUS_M
from sim_replay.crystal import Crystal, reciprocal_basis
from sim_replay.detector import Condition, Detector, beam_center_px

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
SIZE_SIGMA_TIMES_LENGTH = 0.8859 / FWHM_PER_SIGMA
"""Standard deviation of the Gaussian with the FWHM of sinc^2, times the length (Scherrer)."""

_REACH_SIGMA = 5.0  # the mosaic Gaussian is cut here: 6e-7 of it is lost
_MIN_PIXEL_PHOTONS = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A crystal in the beam: a cube of side size_m, faces along the laboratory's axes, offset_m (x, y) off the beam.

    mosaicity_deg is the full width at half maximum of the blocks' turn about any axis; divergence_rad the standard
    deviation of the beam's direction; bandwidth the relative full width of the top hat of wavelengths;
    spot_sigma_px the standard deviation of a spot as the detector sees it (focus, crystal and pixel crosstalk).
    """

    crystal: Crystal
    size_m: float = 10e-6
    mosaicity_deg: float = 0.05
    bandwidth: float = 0.01
    spot_sigma_px: float = 0.6
    offset_m: tuple[float, float] = (0.0, 0.0)
    divergence_rad: float = 0.0

    def __post_init__(self) -> None:
        for name in ("size_m", "bandwidth", "spot_sigma_px"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} must be above 0, not {value}")
        if not all(map(math.isfinite, self.offset_m)):
            raise ValueError(f"offset_m must be two finite lengths, not {self.offset_m}")
        if self.bandwidth >= 1.0:
            raise ValueError(f"bandwidth is a relative width and must be below 1, not {self.bandwidth}")
        for name in ("mosaicity_deg", "divergence_rad"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} must be 0 or more, not {value}")

    @property
    def mosaic_sigma_rad(self) -> float:
        """Standard deviation of the blocks' turn."""
        return math.radians(self.mosaicity_deg) / FWHM_PER_SIGMA


@dataclass(frozen=True, slots=True, eq=False)
class Spots:
    """Reflections that a pulse excites; every array has the length n, in the order of the crystal's list.

    hkl (n, 3) int32; photons expected into the whole spot, on or off the detector; theta_rad and wavelength_angstrom
    of the excited blocks' mean; fs, ss the pixel index where that mean falls (unbounded); the rest describes the
    streak: theta_mean_rad theta_h of the mean orientation, theta_sigma_rad, the window theta_low_rad..theta_high_rad,
    cross_sigma_px across it and the unit direction (direction_fs, direction_ss) of growing angle.
    """

    hkl: NDArray[np.int32]
    photons: NDArray[np.float64]
    theta_rad: NDArray[np.float64]
    wavelength_angstrom: NDArray[np.float64]
    fs: NDArray[np.float64]
    ss: NDArray[np.float64]
    theta_mean_rad: NDArray[np.float64]
    theta_sigma_rad: NDArray[np.float64]
    theta_low_rad: NDArray[np.float64]
    theta_high_rad: NDArray[np.float64]
    cross_sigma_px: NDArray[np.float64]
    direction_fs: NDArray[np.float64]
    direction_ss: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.photons)


@dataclass(frozen=True, slots=True, eq=False)
class Footprint:
    """Expected photons of spots, pixel by pixel, live pixels only.

    index (m,) int64 flat pixel (ss * columns + fs) and photons (m,) float64; a pixel may appear more than once. For
    each of the n spots: live_photons, the part that live pixels collect, and its centroid live_fs, live_ss (NaN for
    a spot that none of it reaches).
    """

    index: NDArray[np.int64]
    photons: NDArray[np.float64]
    live_photons: NDArray[np.float64]
    live_fs: NDArray[np.float64]
    live_ss: NDArray[np.float64]


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


def disc_square_overlap_m2(radius_m: float, side_m: float, offset_m: tuple[float, float] = (0.0, 0.0)) -> float:
    """Area shared by a disc at the origin and a square centred at offset_m, faces along the axes (m^2).

    The disc's chords are summed at x = r sin(u), which is smooth at its rim: 4096 midpoints give better than 1e-6.
    """
    steps = 4096
    u = (np.arange(steps) + 0.5) / steps * math.pi - math.pi / 2.0
    x, half_chord = radius_m * np.sin(u), radius_m * np.cos(u)
    inside = np.abs(x - offset_m[0]) <= side_m / 2.0
    top = np.minimum(half_chord, offset_m[1] + side_m / 2.0)
    bottom = np.maximum(-half_chord, offset_m[1] - side_m / 2.0)
    chord = np.where(inside, np.maximum(top - bottom, 0.0), 0.0)
    return float(np.sum(chord * half_chord) * math.pi / steps)


@lru_cache(maxsize=64)
def illuminated_volume_m3(
    beam_radius_m: float, crystal_size_m: float, offset_m: tuple[float, float] = (0.0, 0.0)
) -> float:
    """Volume of a cube inside a cylinder of light along z (m^3)."""
    return disc_square_overlap_m2(beam_radius_m, crystal_size_m, offset_m) * crystal_size_m


def diffract(
    sample: Sample,
    condition: Condition,
    detector: Detector,
    orientation: NDArray[np.float64],
    min_photons: float = 1e-3,
) -> Spots:
    """Every reflection of the sample that sends at least min_photons expected photons towards the detector's side.

    orientation (3, 3) is U: it takes the crystal's Cartesian frame (a along x, b in xy) to the laboratory's.
    Reflections beyond the panel's farthest corner are left out.
    """
    crystal = sample.crystal
    ub = np.ascontiguousarray(orientation @ reciprocal_basis(crystal.cell))
    wavelength = condition.wavelength_angstrom
    size_sigma = SIZE_SIGMA_TIMES_LENGTH / (sample.size_m * 1e10)  # 1/angstrom
    flat_sigma = math.hypot(sample.mosaic_sigma_rad, sample.divergence_rad)
    shortest, longest = wavelength * (1.0 - sample.bandwidth / 2.0), wavelength * (1.0 + sample.bandwidth / 2.0)
    q_max = 2.0 * math.sin(_largest_two_theta(condition, detector) / 2.0) / shortest

    near, q_all, sine_all = _near_bragg(
        crystal.hkl, ub, shortest, longest, flat_sigma, size_sigma, _REACH_SIGMA, q_max * 1.01
    )
    q = q_all[:, 0], q_all[:, 1], q_all[:, 2]
    length = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
    d = 1.0 / length
    theta_h = np.arcsin(sine_all)
    sigma = np.sqrt(flat_sigma**2 + (size_sigma * d / np.cos(theta_h)) ** 2)
    theta_low, theta_high = np.arcsin(shortest / (2.0 * d)), np.arcsin(longest / (2.0 * d))

    # Share of the blocks inside the window, and their mean turn (a truncated normal distribution).
    alpha, beta = (theta_low - theta_h) / sigma, (theta_high - theta_h) / sigma
    # Of the two tails take the one that does not cancel.
    share = np.where(alpha > 0.0, ndtr(-alpha) - ndtr(-beta), ndtr(beta) - ndtr(alpha))
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = (np.exp(-0.5 * alpha**2) - np.exp(-0.5 * beta**2)) / (math.sqrt(2.0 * math.pi) * share)
    theta = np.clip(theta_h + sigma * np.nan_to_num(turn), theta_low, theta_high)

    lambda_m = 2.0 * d * np.sin(theta) * 1e-10
    in_plane = np.hypot(q[0], q[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        ux, uy = q[0] / in_plane, q[1] / in_plane
    polarisation = 1.0 - (np.sin(2.0 * theta) * ux) ** 2
    fluence_per_wavelength = (
        condition.flux_photons / (math.pi * condition.beam_radius_m**2) / (sample.bandwidth * wavelength * 1e-10)
    )
    cell_volume_m3 = crystal.volume_angstrom3 * 1e-30
    volume = illuminated_volume_m3(condition.beam_radius_m, sample.size_m, sample.offset_m)
    photons = (
        fluence_per_wavelength
        * share
        * CLASSICAL_ELECTRON_RADIUS_M**2
        * polarisation
        * crystal.intensity[near]
        * (volume / cell_volume_m3**2)
        * lambda_m**4
        / (2.0 * np.sin(theta) ** 2)
    )

    keep = (photons >= min_photons) & (2.0 * theta < math.radians(85.0)) & (in_plane > 0.0)
    theta, ux, uy, sigma = theta[keep], ux[keep], uy[keep], sigma[keep]
    center_x, center_y = beam_center_px(condition, detector)
    distance_px = condition.camera_length_m / detector.pixel_size_m
    radius_px = distance_px * np.tan(2.0 * theta)
    cross_px = (
        distance_px
        / np.cos(2.0 * theta)
        * np.hypot(2.0 * np.sin(theta) * sample.mosaic_sigma_rad, size_sigma * lambda_m[keep] * 1e10)
    )
    return Spots(
        hkl=crystal.hkl[near][keep],
        photons=photons[keep],
        theta_rad=theta,
        wavelength_angstrom=lambda_m[keep] * 1e10,
        fs=center_x - 0.5 + radius_px * ux,
        ss=center_y - 0.5 + radius_px * uy,
        theta_mean_rad=theta_h[keep],
        theta_sigma_rad=sigma,
        theta_low_rad=theta_low[keep],
        theta_high_rad=theta_high[keep],
        cross_sigma_px=np.hypot(sample.spot_sigma_px, cross_px),
        direction_fs=ux,
        direction_ss=uy,
    )


def footprint(spots: Spots, condition: Condition, detector: Detector) -> Footprint:
    """Lay the spots' streaks over the pixels.

    A streak is a row of Gaussians, at most one standard deviation apart, each integrated over the pixels with the
    error function; their weights are the shares of blocks that reflect into each piece.
    """
    center_x, center_y = beam_center_px(condition, detector)
    index, photons, live = _lay_spots(
        spots.photons,
        spots.theta_mean_rad,
        spots.theta_sigma_rad,
        spots.theta_low_rad,
        spots.theta_high_rad,
        spots.cross_sigma_px,
        spots.direction_fs,
        spots.direction_ss,
        center_x - 0.5,
        center_y - 0.5,
        condition.camera_length_m / detector.pixel_size_m,
        detector.mask,
        _REACH_SIGMA,
        _MIN_PIXEL_PHOTONS,
    )
    return Footprint(index, photons, live[:, 0], live[:, 1], live[:, 2])


def _largest_two_theta(condition: Condition, detector: Detector) -> float:
    """Scattering angle of the panel's corner farthest from the beam (rad)."""
    center_x, center_y = beam_center_px(condition, detector)
    x = max(abs(center_x), abs(detector.shape[1] - center_x))
    y = max(abs(center_y), abs(detector.shape[0] - center_y))
    return math.atan(math.hypot(x, y) * detector.pixel_size_m / condition.camera_length_m)


def _near_bragg_py(  # type: ignore[no-untyped-def]
    hkl, ub, shortest, longest, flat_sigma, size_sigma, reach, q_max
):
    """Reflections within reach of the band: their numbers (n,), q (n, 3) in 1/angstrom and sin(theta_h) (n,)."""
    # theta_h >= -reach sigma, so that q_z <= q reach sigma, with cos(theta_h) above 1/2 in sigma's part of the size.
    highest_qz = reach * (q_max * flat_sigma + 2.0 * size_sigma)
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
        theta = math.asin(sine)
        sigma = math.sqrt(flat_sigma**2 + (size_sigma / (q * max(math.cos(theta), 1e-3))) ** 2)
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


_MAX_PIECES = 400
_LARGEST_THETA_RAD = 0.78  # a streak ends before 2 theta = 90 degrees, where it never meets the panel


def _normal_share_py(low, high, mean, sigma):  # type: ignore[no-untyped-def]
    root2_sigma = math.sqrt(2.0) * sigma
    return 0.5 * (math.erf((high - mean) / root2_sigma) - math.erf((low - mean) / root2_sigma))


_normal_share: Callable[..., float] = njit(cache=True)(_normal_share_py)


def _lay_spots_py(  # type: ignore[no-untyped-def]
    photons, theta_mean, theta_sigma, theta_low, theta_high, cross_sigma, direction_fs, direction_ss,
    origin_fs, origin_ss, distance_px, mask, reach, min_pixel_photons,
):  # fmt: skip
    """Index (m,), photons (m,) and, per spot, live photons and their centroid fs, ss (n, 3)."""
    rows, columns = mask.shape
    n = photons.shape[0]
    live = np.zeros((n, 3))
    ends = np.empty((n, 2))
    boxes = np.zeros((n, 4), dtype=np.int64)
    largest = 1
    for s in range(n):
        low = max(theta_low[s], theta_mean[s] - reach * theta_sigma[s])
        high = min(theta_high[s], theta_mean[s] + reach * theta_sigma[s], _LARGEST_THETA_RAD)
        if not low < high:  # a sharp crystal: all of it at one angle
            low = high = min(max(theta_mean[s], theta_low[s]), theta_high[s])
        ends[s, 0], ends[s, 1] = low, high
        r_low, r_high = distance_px * math.tan(2.0 * low), distance_px * math.tan(2.0 * high)
        pad = max(4.0, 5.0 * cross_sigma[s])
        fs_low = origin_fs + min(r_low * direction_fs[s], r_high * direction_fs[s]) - pad
        fs_high = origin_fs + max(r_low * direction_fs[s], r_high * direction_fs[s]) + pad
        ss_low = origin_ss + min(r_low * direction_ss[s], r_high * direction_ss[s]) - pad
        ss_high = origin_ss + max(r_low * direction_ss[s], r_high * direction_ss[s]) + pad
        if fs_high < 0.0 or ss_high < 0.0 or fs_low > columns or ss_low > rows:
            continue
        boxes[s, 0], boxes[s, 1] = max(0, math.floor(ss_low)), min(rows, math.ceil(ss_high) + 1)
        boxes[s, 2], boxes[s, 3] = max(0, math.floor(fs_low)), min(columns, math.ceil(fs_high) + 1)
        largest = max(largest, (boxes[s, 1] - boxes[s, 0]) * (boxes[s, 3] - boxes[s, 2]))
    index = np.empty(largest, dtype=np.int64)
    values = np.empty(largest)
    box = np.empty(largest)
    along_fs = np.empty(columns + 1)
    along_ss = np.empty(rows + 1)
    root2 = math.sqrt(2.0)
    count = 0
    for s in range(n):
        ss0, ss1, fs0, fs1 = boxes[s, 0], boxes[s, 1], boxes[s, 2], boxes[s, 3]
        width = fs1 - fs0
        if ss1 <= ss0 or width <= 0:
            continue
        area = (ss1 - ss0) * width
        if count + area > index.shape[0]:
            index = np.append(index, np.empty(index.shape[0] + area, dtype=np.int64))
            values = np.append(values, np.empty(values.shape[0] + area))
        box[:area] = 0.0
        low, high, sigma = ends[s, 0], ends[s, 1], theta_sigma[s]
        streak_px = distance_px * (math.tan(2.0 * high) - math.tan(2.0 * low))
        pieces = int(min(max(math.ceil(streak_px / cross_sigma[s]), 1), _MAX_PIECES))
        if streak_px > 0.05:  # at the band's edge the blocks crowd at one end; four pieces keep the centroid to 0.03 px
            pieces = max(pieces, 4)
        step = (high - low) / pieces
        whole = 1.0
        if pieces > 1:
            whole = _normal_share(low, high, theta_mean[s], sigma)
        reach_px = max(4.0, 5.0 * cross_sigma[s])
        for piece in range(pieces):
            a, b = low + piece * step, low + (piece + 1) * step
            weight = 1.0
            if pieces > 1:
                weight = _normal_share(a, b, theta_mean[s], sigma)
                weight = weight / whole if whole > 0.0 else 1.0 / pieces
            if weight <= 0.0:
                continue
            r = distance_px * math.tan(a + b)
            fs, ss = origin_fs + r * direction_fs[s], origin_ss + r * direction_ss[s]
            f0, f1 = max(fs0, math.floor(fs - reach_px)), min(fs1, math.ceil(fs + reach_px) + 1)
            s0, s1 = max(ss0, math.floor(ss - reach_px)), min(ss1, math.ceil(ss + reach_px) + 1)
            if f1 <= f0 or s1 <= s0:
                continue
            for edge in range(f0, f1 + 1):
                along_fs[edge - f0] = 0.5 * math.erf((edge - 0.5 - fs) / (root2 * cross_sigma[s]))
            for edge in range(s0, s1 + 1):
                along_ss[edge - s0] = 0.5 * math.erf((edge - 0.5 - ss) / (root2 * cross_sigma[s]))
            for row in range(s0, s1):
                in_row = photons[s] * weight * (along_ss[row - s0 + 1] - along_ss[row - s0])
                base = (row - ss0) * width - fs0
                for column in range(f0, f1):
                    box[base + column] += in_row * (along_fs[column - f0 + 1] - along_fs[column - f0])
        for row in range(ss0, ss1):
            for column in range(fs0, fs1):
                value = box[(row - ss0) * width + column - fs0]
                if value < min_pixel_photons or mask[row, column]:
                    continue
                index[count] = row * columns + column
                values[count] = value
                count += 1
                live[s, 0] += value
                live[s, 1] += value * column
                live[s, 2] += value * row
    for s in range(n):
        if live[s, 0] > 0.0:
            live[s, 1] /= live[s, 0]
            live[s, 2] /= live[s, 0]
        else:
            live[s, 1] = live[s, 2] = math.nan
    return index[:count].copy(), values[:count].copy(), live


_near_bragg: Callable[..., tuple[Any, Any, Any]] = njit(cache=True)(_near_bragg_py)
_lay_spots: Callable[..., tuple[Any, Any, Any]] = njit(cache=True)(_lay_spots_py)
