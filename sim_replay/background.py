"""What reaches the detector besides Bragg light: scattering by water, gas, glass and film, stray light, the beam stop.

Expected photons in a pixel: I = N P dOmega w(q), with N photons in the pulse, P the polarisation factor,
dOmega = A cos(2 theta)/R^2 and w(q) of `sim_replay.scatter`; the beam's area cancels. All is linear in N, and water's
part in its thickness, so expectations are kept as two layers for one reference pulse, water and all the rest, and
scaled when drawn. A layer takes the middle of the band and the beam's axis for all photons.
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

from sim_replay.detector import Condition, Detector, beam_center_px
from sim_replay.poisson import draw_dense
from sim_replay.scatter import (
    LONGEST_GAS_M,
    LONGEST_SOLID_M,
    LONGEST_WATER_M,
    Q_INV_ANGSTROM,
    Q_STEP_INV_ANGSTROM,
    ROOM_TEMPERATURE_K,
    air_per_sr,
    check_length,
    check_water_temperature,
    glass_per_sr,
    helium_per_sr,
    polyimide_per_sr,
    water_per_sr,
)

WATER_REFERENCE_THICKNESS_M = 100e-6
REFERENCE_PHOTONS = 3e8

PENUMBRA_PX = 1.0
"""Over this distance the edge of a shadow goes from dark to light, evenly."""

_LONGEST_STOP_M = 0.1
_MOST_FLAT_PHOTONS = 1e6
_FARTHEST_BEAM_PX = 1e5
# Steps of the table over the distance from the beam: in pixels, and in q where that is finer.
_RADIUS_STEP_PX = 0.1
_RADIUS_STEP_INV_ANGSTROM = 2e-4
_LONGEST_TABLE = 500_000


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What stands in the beam besides the crystal, and the beam stop.

    water_thickness_m, air_path_m, helium_path_m (both at room temperature and 1 atm), capillary_wall_m (silica, both
    walls together) and film_thickness_m (polyimide) lie along the beam. The stop is a disc of beam_stop_radius_m at
    beam_stop_distance_m behind the sample, 0 for none; its holder is beam_stop_arm_width_m wide and leaves it at
    beam_stop_arm_deg, from fs towards ss, to the panel's edge. flat_photons_per_pixel is stray light for 3e8 photons a
    pulse, which no stop shades. Raises ValueError for what is out of range.
    """

    water_thickness_m: float = WATER_REFERENCE_THICKNESS_M
    water_temperature_K: float = ROOM_TEMPERATURE_K
    air_path_m: float = 0.0
    helium_path_m: float = 0.0
    capillary_wall_m: float = 0.0
    beam_stop_radius_m: float = 0.0
    beam_stop_distance_m: float = 0.03
    beam_stop_arm_width_m: float = 0.0
    beam_stop_arm_deg: float = 90.0
    flat_photons_per_pixel: float = 0.0
    film_thickness_m: float = 0.0

    def __post_init__(self) -> None:
        for name, longest in (
            ("water_thickness_m", LONGEST_WATER_M),
            ("air_path_m", LONGEST_GAS_M),
            ("helium_path_m", LONGEST_GAS_M),
            ("capillary_wall_m", LONGEST_SOLID_M),
            ("film_thickness_m", LONGEST_SOLID_M),
            ("beam_stop_radius_m", _LONGEST_STOP_M),
            ("beam_stop_arm_width_m", _LONGEST_STOP_M),
        ):
            check_length(name, getattr(self, name), longest)
        check_water_temperature("water_temperature_K", self.water_temperature_K)
        if not (math.isfinite(self.beam_stop_distance_m) and self.beam_stop_distance_m > 0.0):
            raise ValueError(f"beam_stop_distance_m is {self.beam_stop_distance_m}; give metres above 0")
        if self.beam_stop_arm_width_m > 0.0 and self.beam_stop_radius_m == 0.0:
            raise ValueError("beam_stop_arm_width_m needs a beam stop; give beam_stop_radius_m as well")
        if not abs(self.beam_stop_arm_deg) <= 360.0:
            raise ValueError(f"beam_stop_arm_deg is {self.beam_stop_arm_deg}; give degrees from -360 to 360")
        if not 0.0 <= self.flat_photons_per_pixel <= _MOST_FLAT_PHOTONS:
            raise ValueError(
                f"flat_photons_per_pixel is {self.flat_photons_per_pixel}; give 0 to {_MOST_FLAT_PHOTONS:g}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Expected photons a pixel for one reference pulse of 3e8 photons; a layer of water is 100 um thick.

    expected is (ss, fs) float32, read-only, 0 where the detector is no use, dimmed where the beam stop shades it; total
    is its sum.
    """

    expected: NDArray[np.float32]
    total: float


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """Water, and all the rest (gas, glass, film, stray light, what the caller added); None where there is no rest."""

    water: Layer
    rest: Layer | None

    def photons(self, scales: tuple[float, float]) -> float:
        """Photons expected on the whole detector, each layer multiplied by its scale."""
        return self.water.total * scales[0] + (0.0 if self.rest is None else self.rest.total * scales[1])


def scales(condition: Condition, surroundings: Surroundings) -> tuple[float, float]:
    """By how much the layers (water, rest) are multiplied under a condition's flux and the water's thickness."""
    flux = condition.flux_photons / REFERENCE_PHOTONS
    return flux * surroundings.water_thickness_m / WATER_REFERENCE_THICKNESS_M, flux


def make_background(
    condition: Condition,
    detector: Detector,
    surroundings: Surroundings,
    extra_per_sr: NDArray[np.float64] | None = None,
) -> Background:
    """The layers of a condition, about 20 ms each for 4 megapixels.

    extra_per_sr (2001,) float64 is more scattering w(q) on the grid of `scatter.Q_INV_ANGSTROM`, in the rest. Layers
    without it are remembered for the last few geometries, whatever the flux and the water's thickness. Raises
    ValueError for an extra that is no such table, or a beam stop that is not in front of the detector.
    """
    shade = _shade(condition, surroundings)
    geometry = _geometry(condition, detector)
    water = _water_layer(detector, geometry, shade, surroundings.water_temperature_K)
    materials = (
        surroundings.air_path_m,
        surroundings.helium_path_m,
        surroundings.capillary_wall_m,
        surroundings.film_thickness_m,
    )
    flat = surroundings.flat_photons_per_pixel
    if extra_per_sr is not None:
        if extra_per_sr.shape != Q_INV_ANGSTROM.shape or not np.all(np.isfinite(extra_per_sr) & (extra_per_sr >= 0.0)):
            raise ValueError(f"extra_per_sr must be {len(Q_INV_ANGSTROM)} finite numbers of 0 or more")
        return Background(water, _layer(detector, geometry, shade, _materials_per_sr(*materials) + extra_per_sr, flat))
    if not any(materials) and flat == 0.0:
        return Background(water, None)
    return Background(water, _rest_layer(detector, geometry, shade, materials, flat))


def expected_water(
    condition: Condition, detector: Detector, surroundings: Surroundings | None = None
) -> NDArray[np.float32]:
    """Expected photons a pixel from the water, (ss, fs) float32, under a condition's flux; neither gaps nor shadows.

    surroundings default to 100 um at 25 C.
    """
    surroundings = Surroundings() if surroundings is None else surroundings
    table = water_per_sr(surroundings.water_thickness_m, surroundings.water_temperature_K)
    return _scattered(detector, _geometry(condition, detector), table * condition.flux_photons)


def expected_at(
    background: Background, scales: tuple[float, float], flat_index: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Expected photons at flat pixel indices (n,): (n,) float64, all layers, scaled."""
    expected = background.water.expected.reshape(-1)[flat_index] * np.float64(scales[0])
    if background.rest is not None:
        expected += background.rest.expected.reshape(-1)[flat_index] * np.float64(scales[1])
    return expected


def mix(background: Background, scales: tuple[float, float], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Expected photons a pixel of all layers, scaled, written into out (ss, fs) float32, which is returned."""
    if background.rest is None:
        return np.multiply(background.water.expected, np.float32(scales[0]), out=out)
    _mix(background.water.expected, background.rest.expected, np.float32(scales[0]), np.float32(scales[1]), out)
    return out


def shadow(condition: Condition, detector: Detector, surroundings: Surroundings) -> NDArray[np.float32] | None:
    """The share of light from the sample that passes the beam stop to each pixel, (ss, fs) float32, read-only.

    None without a stop. Remembered for the last few geometries. Raises ValueError when the stop is behind the detector.
    """
    shade = _shade(condition, surroundings)
    return None if shade is None else _shadow(detector, _geometry(condition, detector), shade)


def draw_background(
    background: Background,
    scales: tuple[float, float],
    rng: np.random.Generator,
    out: NDArray[np.unsignedinteger],
    largest_count: int,
) -> None:
    """Add a Poisson draw of the scaled layers to `out` (ss, fs), in place, clipped at largest_count."""
    if out.shape != background.water.expected.shape:
        raise ValueError(f"the background is {background.water.expected.shape}, the image {out.shape}")
    for layer, scale in zip((background.water, background.rest), scales, strict=True):
        if layer is not None:
            draw_dense(layer.expected.reshape(-1), layer.total, scale, rng, out, largest_count)


@dataclass(frozen=True, slots=True)
class _Geometry:
    """What of a condition shapes a layer; the beam in pixel indices."""

    wavelength_angstrom: float
    camera_length_m: float
    beam_fs: float
    beam_ss: float
    polarisation: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Shade:
    """The beam stop as seen from the sample: sizes over distance."""

    radius: float
    arm_width: float
    arm_deg: float


def _geometry(condition: Condition, detector: Detector) -> _Geometry:
    center_x, center_y = beam_center_px(condition, detector)
    if not max(abs(center_x), abs(center_y)) <= _FARTHEST_BEAM_PX:
        raise ValueError(
            f"the beam centre ({center_x:g}, {center_y:g}) is far off any detector; "
            f"give pixels within {_FARTHEST_BEAM_PX:g}"
        )
    return _Geometry(
        condition.wavelength_angstrom,
        condition.camera_length_m,
        float(center_x) - 0.5,
        float(center_y) - 0.5,
        condition.beam.polarisation_terms,
    )


def _shade(condition: Condition, surroundings: Surroundings) -> _Shade | None:
    distance = surroundings.beam_stop_distance_m
    if surroundings.beam_stop_radius_m == 0.0:
        return None
    if distance > condition.camera_length_m:
        raise ValueError(
            f"beam_stop_distance_m is {distance}, behind the detector at {condition.camera_length_m:g} m; "
            "put the stop in front"
        )
    return _Shade(
        surroundings.beam_stop_radius_m / distance,
        surroundings.beam_stop_arm_width_m / distance,
        surroundings.beam_stop_arm_deg,
    )


def _materials_per_sr(air_m: float, helium_m: float, glass_m: float, film_m: float) -> NDArray[np.float64]:
    return air_per_sr(air_m) + helium_per_sr(helium_m) + glass_per_sr(glass_m) + polyimide_per_sr(film_m)


@lru_cache(maxsize=4)  # 18 MB each for 4 megapixels, here and below
def _water_layer(detector: Detector, geometry: _Geometry, shade: _Shade | None, temperature_K: float) -> Layer:
    return _layer(detector, geometry, shade, water_per_sr(WATER_REFERENCE_THICKNESS_M, temperature_K), 0.0)


@lru_cache(maxsize=4)
def _rest_layer(
    detector: Detector,
    geometry: _Geometry,
    shade: _Shade | None,
    materials: tuple[float, float, float, float],
    flat_photons: float,
) -> Layer:
    return _layer(detector, geometry, shade, _materials_per_sr(*materials), flat_photons)


def _layer(
    detector: Detector, geometry: _Geometry, shade: _Shade | None, per_sr: NDArray[np.float64], flat_photons: float
) -> Layer:
    expected = _scattered(detector, geometry, per_sr * REFERENCE_PHOTONS)
    if shade is not None:
        expected *= _shadow(detector, geometry, shade)
    if flat_photons > 0.0:
        expected += np.float32(flat_photons)
    for low, high in detector.gaps_ss:
        expected[low:high] = 0.0
    for low, high in detector.gaps_fs:
        expected[:, low:high] = 0.0
    for ss_low, ss_high, fs_low, fs_high in detector.bad:
        expected[ss_low:ss_high, fs_low:fs_high] = 0.0
    expected.setflags(write=False)
    return Layer(expected, float(_total(expected.reshape(-1))))


def _scattered(detector: Detector, geometry: _Geometry, photons_per_sr: NDArray[np.float64]) -> NDArray[np.float32]:
    """P dOmega w(q) of every pixel: a table over the distance from the beam times the polarisation's polynomial.

    In float32, within 1e-5 of the formula.
    """
    distance = geometry.camera_length_m / detector.pixel_size_m
    near, far = _reach(detector.shape, geometry)
    step = min(_RADIUS_STEP_PX, _RADIUS_STEP_INV_ANGSTROM * geometry.wavelength_angstrom / (2.0 * math.pi) * distance)
    step = max(step, (far - near) / _LONGEST_TABLE)
    radius = near + np.arange(int((far - near) / step) + 3) * step
    r2 = radius**2 + distance**2
    cosine = distance / np.sqrt(r2)
    # sin^2(theta) = (1 - cos 2theta)/2, written so that it keeps its digits near the beam
    q = 4.0 * math.pi * np.sqrt(radius**2 / r2 / (1.0 + cosine) / 2.0) / geometry.wavelength_angstrom
    # Beyond the table w is taken as at its end, 10 per angstrom.
    scattered = np.interp(np.minimum(q / Q_STEP_INV_ANGSTROM, len(photons_per_sr) - 1.0), _STEPS, photons_per_sr)
    table = scattered * cosine / r2  # a pixel's area over R^2, both in pixels
    image = np.empty(detector.shape, dtype=np.float32)
    xx, xy, yy = geometry.polarisation
    numbers = (geometry.beam_fs, geometry.beam_ss, distance**2, near, 1.0 / step)
    _spread(
        image, *map(np.float32, numbers), table.astype(np.float32), np.diff(table, append=table[-1]).astype(np.float32),
        *map(np.float32, (xx, 2.0 * xy, yy)),
    )  # fmt: skip
    return image


_STEPS = np.arange(len(Q_INV_ANGSTROM), dtype=np.float64)


def _reach(shape: tuple[int, int], geometry: _Geometry) -> tuple[float, float]:
    """Smallest and largest distance of a pixel's centre from the beam, in pixels."""
    near, far = 0.0, 0.0
    for size, beam in zip(shape, (geometry.beam_ss, geometry.beam_fs), strict=True):
        near += max(0.0, -beam, beam - (size - 1)) ** 2
        far += max(abs(beam), abs(beam - (size - 1))) ** 2
    return math.sqrt(near), math.sqrt(far)


@lru_cache(maxsize=2)
def _shadow(detector: Detector, geometry: _Geometry, shade: _Shade) -> NDArray[np.float32]:
    per_px = geometry.camera_length_m / detector.pixel_size_m
    radius, half_arm = shade.radius * per_px, shade.arm_width * per_px / 2.0
    angle = math.radians(shade.arm_deg)
    image = np.empty(detector.shape, dtype=np.float32)
    _shade_panel(
        image, geometry.beam_fs, geometry.beam_ss, radius, half_arm, math.cos(angle), math.sin(angle), PENUMBRA_PX
    )
    image.setflags(write=False)
    return image


def _spread_py(  # type: ignore[no-untyped-def]
    image, beam_fs, beam_ss, distance2, near, per_step, table, slope, xx, xy, yy
):
    one = np.float32(1.0)
    end = np.float32(table.shape[0] - 1)
    for ss in range(image.shape[0]):
        row = image[ss]
        y = np.float32(ss) - beam_ss
        y2 = y * y
        for fs in range(row.shape[0]):
            x = np.float32(fs) - beam_fs
            radius2 = x * x + y2
            place = min(max((math.sqrt(radius2) - near) * per_step, np.float32(0.0)), end)
            low = np.uint32(place)
            across = (xx * x + xy * y) * x + yy * y2
            row[fs] = (table[low] + (place - np.float32(low)) * slope[low]) * (one - across / (radius2 + distance2))


def _shade_panel_py(  # type: ignore[no-untyped-def]
    image, beam_fs, beam_ss, radius, half_arm, arm_x, arm_y, penumbra
):
    for ss in range(image.shape[0]):
        y = ss - beam_ss
        for fs in range(image.shape[1]):
            x = fs - beam_fs
            outside = math.sqrt(x * x + y * y) - radius
            if half_arm > 0.0 and x * arm_x + y * arm_y > 0.0:
                outside = min(outside, abs(x * arm_y - y * arm_x) - half_arm)
            image[ss, fs] = min(max(outside / penumbra + 0.5, 0.0), 1.0)


def _mix_py(water, rest, water_scale, rest_scale, out):  # type: ignore[no-untyped-def]
    for ss in range(out.shape[0]):
        for fs in range(out.shape[1]):
            out[ss, fs] = water[ss, fs] * water_scale + rest[ss, fs] * rest_scale


def _total_py(expected):  # type: ignore[no-untyped-def]
    """Four sums side by side, four times as fast as a walk and equal to it but for rounding."""
    a = b = c = d = 0.0
    whole = expected.shape[0] // 4 * 4
    for i in range(0, whole, 4):
        a += expected[i]
        b += expected[i + 1]
        c += expected[i + 2]
        d += expected[i + 3]
    for i in range(whole, expected.shape[0]):
        a += expected[i]
    return a + b + c + d


_spread: Callable[..., None] = njit(cache=True, error_model="numpy", fastmath=True)(_spread_py)
_shade_panel: Callable[..., None] = njit(cache=True, error_model="numpy")(_shade_panel_py)
_mix: Callable[..., None] = njit(cache=True)(_mix_py)
_total: Callable[[NDArray[Any]], float] = njit(cache=True)(_total_py)
