"""Scattering by the water around the crystal, and drawing photons from an expectation.

Expected photons in a pixel: I = N r_e^2 P dOmega F^2(q) rho t, with N photons in the pulse, r_e the classical electron
radius, F^2 the squared scattering factor of one water molecule in the liquid (interference between molecules
included), rho the number density of molecules and t the thickness; the beam's area cancels. Everything is linear in N
and t, so an expectation is kept for one reference pulse and scaled when drawn.
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
from scipy.interpolate import CubicSpline

from sim_replay.detector import Condition, Detector, beam_center_px

CLASSICAL_ELECTRON_RADIUS_M = 2.8179403262e-15
"""CODATA 2018."""

WATER_MOLECULES_PER_M3 = 3.33679e28
WATER_REFERENCE_THICKNESS_M = 100e-6
REFERENCE_PHOTONS = 3e8

# F^2 of liquid water per molecule at 25 C in electrons^2 (already squared) against q = 4 pi sin(theta)/lambda in
# 1/angstrom: Clark et al. 2010 at low q joined to Hura et al. 2003 at high q. A straight line between these points is
# 2.4 % too high where the ring rises, enough to shift an energy fitted to it by 5 %; a cubic spline stays within 0.3 %.
_WATER_TABLE = np.array(
    [
        (0.0, 6.50), (0.2, 6.32), (0.4, 6.19), (0.6, 6.31), (0.8, 6.75), (1.0, 7.87), (1.2, 10.7), (1.4, 17.3),
        (1.6, 30.4), (1.8, 46.2), (2.0, 55.6), (2.05, 56.2), (2.2, 54.1), (2.4, 46.7), (2.6, 41.5), (2.8, 38.8),
        (3.0, 34.3), (3.3, 22.7), (3.6, 14.5), (4.0, 12.5), (4.5, 12.2), (5.0, 10.1), (6.0, 5.39), (7.0, 4.48),
        (8.0, 3.29), (10.0, 2.50),
    ]
)  # fmt: skip
WATER_Q_STEP_INV_ANGSTROM = 0.005
WATER_F2_ELECTRONS2 = CubicSpline(_WATER_TABLE[:, 0], _WATER_TABLE[:, 1])(np.arange(2001) * WATER_Q_STEP_INV_ANGSTROM)


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """Expected photons a pixel for one reference pulse (3e8 photons through 100 um of water).

    expected is (ss, fs) float32, read-only, 0 where there is no sensor; total is its sum in the order of a walk
    through the pixels.
    """

    expected: NDArray[np.float32]
    total: float

    def scale(self, condition: Condition) -> float:
        """By how much the reference is multiplied under a condition's flux and thickness."""
        return condition.water_scale * condition.flux_photons / REFERENCE_PHOTONS


def expected_water(condition: Condition, detector: Detector) -> NDArray[np.float32]:
    """Expected photons a pixel from the water of a condition, (ss, fs) float32, gaps not masked.

    Solid angle of a pixel dOmega = A cos(2 theta)/R^2; polarisation P = 1 - (x/R)^2, fully along fs.
    """
    reference = np.empty(detector.shape, dtype=np.float32)
    center_x, center_y = beam_center_px(condition, detector)
    _fill_water(
        reference,
        center_x - 0.5,
        center_y - 0.5,
        detector.pixel_size_m,
        condition.camera_length_m,
        condition.wavelength_angstrom,
        condition.flux_photons
        * CLASSICAL_ELECTRON_RADIUS_M**2
        * WATER_MOLECULES_PER_M3
        * WATER_REFERENCE_THICKNESS_M
        * condition.water_scale,
        WATER_Q_STEP_INV_ANGSTROM,
        WATER_F2_ELECTRONS2,
    )
    return reference


def water_background(condition: Condition, detector: Detector) -> Background:
    """The `Background` of a condition, remembered for the last few geometries; flux and thickness do not matter."""
    center_x, center_y = beam_center_px(condition, detector)
    return _water_background(
        detector, condition.photon_energy_eV, condition.camera_length_m, float(center_x), float(center_y)
    )


@lru_cache(maxsize=4)  # 18 MB each for 4 megapixels
def _water_background(
    detector: Detector, photon_energy_eV: float, camera_length_m: float, center_x_px: float, center_y_px: float
) -> Background:
    condition = Condition(photon_energy_eV, camera_length_m, REFERENCE_PHOTONS, 1.0, center_x_px, center_y_px)
    expected = expected_water(condition, detector)
    expected[detector.mask] = 0.0
    expected.setflags(write=False)
    return Background(expected, float(_walk_total(expected.reshape(-1))))


def draw_background(
    background: Background,
    scale: float,
    rng: np.random.Generator,
    out: NDArray[np.unsignedinteger],
    largest_count: int,
) -> None:
    """Add a Poisson draw of scale * background to `out` (ss, fs), in place, clipped at largest_count."""
    if scale > 0.0:
        _draw(background.expected.reshape(-1), background.total, scale, None, rng, out.reshape(-1), largest_count)


def draw_sparse(
    index: NDArray[np.int64],
    photons: NDArray[np.float64],
    rng: np.random.Generator,
    out: NDArray[np.unsignedinteger],
    largest_count: int,
) -> None:
    """Add a Poisson draw of `photons` expected at flat pixel `index` to `out`, in place; an index may repeat."""
    if len(index):
        _draw(photons, float(_walk_total(photons)), 1.0, index, rng, out.reshape(-1), largest_count)


_DENSE_ABOVE_MEAN = 2.5  # photons a cell; measured: below it, walking from photon to photon is the faster


def _draw(
    expected: NDArray[Any],
    total: float,
    scale: float,
    index: NDArray[np.int64] | None,
    rng: np.random.Generator,
    out: NDArray[np.unsignedinteger],
    largest_count: int,
) -> None:
    if not np.shares_memory(out, out.reshape(-1)) or not out.flags.c_contiguous:
        raise ValueError("the image to draw into must be C-contiguous")
    if index is None:
        index = _EVERY_PIXEL
    if scale * total > _DENSE_ABOVE_MEAN * len(expected):
        block = 1 << 18  # bounds the memory of the int64 draw
        for start in range(0, len(expected), block):
            drawn = rng.poisson(expected[start : start + block].astype(np.float64) * scale)
            _add_counts(drawn, start, index, out, largest_count)
        return
    photons = int(rng.poisson(scale * total))
    if photons == 0:
        return
    # The running sums of n + 1 exponentials, divided by the last, are n sorted uniform numbers: the photons' places
    # along the cumulative expectation, in order, so one walk over the pixels deals them all.
    places = np.cumsum(rng.standard_exponential(photons + 1))
    places *= total / places[-1]
    _deal_photons(expected, places, photons, index, out, largest_count)


_EVERY_PIXEL = np.empty(0, dtype=np.int64)


def _fill_water_py(  # type: ignore[no-untyped-def]
    image, center_fs, center_ss, pixel_m, distance_m, wavelength_angstrom, factor, step, table_f2
):
    for ss in range(image.shape[0]):
        y = (ss - center_ss) * pixel_m
        for fs in range(image.shape[1]):
            x = (fs - center_fs) * pixel_m
            r2 = x * x + y * y + distance_m * distance_m
            cosine = distance_m / math.sqrt(r2)
            # sin^2(theta) = (1 - cos 2theta)/2, written so that it keeps its digits near the beam
            sine2 = (x * x + y * y) / r2 / (1.0 + cosine) / 2.0
            q = 4.0 * math.pi * math.sqrt(sine2) / wavelength_angstrom
            place = min(q / step, table_f2.shape[0] - 1.0)
            low = min(int(place), table_f2.shape[0] - 2)
            f2 = table_f2[low] + (place - low) * (table_f2[low + 1] - table_f2[low])
            image[ss, fs] = factor * (1.0 - x * x / r2) * pixel_m * pixel_m * cosine / r2 * f2


def _walk_total_py(expected):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(expected.shape[0]):
        total += expected[i]
    return total


def _deal_photons_py(expected, places, photons, index, out, largest_count):  # type: ignore[no-untyped-def]
    reached = 0.0
    j = 0
    everywhere = index.shape[0] == 0
    for i in range(expected.shape[0]):
        reached += expected[i]
        while j < photons and places[j] < reached:
            pixel = i if everywhere else index[i]
            if out[pixel] < largest_count:
                out[pixel] += 1
            j += 1
        if j == photons:
            return


def _add_counts_py(drawn, start, index, out, largest_count):  # type: ignore[no-untyped-def]
    everywhere = index.shape[0] == 0
    for i in range(drawn.shape[0]):
        pixel = start + i if everywhere else index[start + i]
        out[pixel] = min(np.int64(out[pixel]) + drawn[i], largest_count)


_fill_water: Callable[..., None] = njit(cache=True)(_fill_water_py)
_walk_total: Callable[..., float] = njit(cache=True)(_walk_total_py)
_deal_photons: Callable[..., None] = njit(cache=True)(_deal_photons_py)
_add_counts: Callable[..., None] = njit(cache=True)(_add_counts_py)
