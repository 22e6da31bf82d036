"""Detectors, and the conditions under which they look at the beam.

Axes of the laboratory: x along fs (fast scan), y along ss (slow scan), z along the beam; one flat panel stands
perpendicular to the beam. Pixel indices are 0 at the centre of the first pixel; a beam centre is edge-based as in
files and streams, so index = centre - 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sim_replay.beam import Beam

HC_EV_ANGSTROM = 12398.4198
"""Planck's constant times the speed of light."""

MAX_FLUX_PHOTONS = 1e15
"""A thousand times a free-electron laser's pulse; from 1e23 a pixel's counts pass 64 bits."""

SMALLEST_CAMERA_LENGTH_M = 0.01
"""Nearer than this the detector would stand inside the sample's surroundings."""


@dataclass(frozen=True, slots=True)
class Detector:
    """One flat panel of square pixels; gaps are half-open ranges of rows (ss) and columns (fs) without sensor.

    shape is (ss, fs) in pixels; dtype is 'uint8', 'uint16' or 'uint32', the type its images are written in.
    point_spread_px is the standard deviation by which the sensor blurs a spot. bad holds rectangles
    (ss low, ss high, fs low, fs high), half-open, that are masked although there is sensor.
    """

    name: str
    shape: tuple[int, int]
    pixel_size_m: float = 75e-6
    gaps_ss: tuple[tuple[int, int], ...] = ()
    gaps_fs: tuple[tuple[int, int], ...] = ()
    dtype: str = "uint16"
    point_spread_px: float = 0.4
    bad: tuple[tuple[int, int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"detector shape must be two sizes above 0, not {self.shape}")
        if not (math.isfinite(self.pixel_size_m) and self.pixel_size_m > 0.0):
            raise ValueError(f"pixel_size_m must be above 0, not {self.pixel_size_m}")
        if self.dtype not in ("uint8", "uint16", "uint32"):
            raise ValueError(f"dtype must be uint8, uint16 or uint32, not '{self.dtype}'")
        if not 0.01 <= self.point_spread_px <= 10.0:
            raise ValueError(f"point_spread_px is {self.point_spread_px}; give pixels from 0.01 to 10")
        for ss_low, ss_high, fs_low, fs_high in self.bad:
            if not (0 <= ss_low < ss_high <= self.shape[0] and 0 <= fs_low < fs_high <= self.shape[1]):
                raise ValueError(f"bad region {(ss_low, ss_high, fs_low, fs_high)} is outside a panel {self.shape}")
        for axis, gaps in enumerate((self.gaps_ss, self.gaps_fs)):
            for low, high in gaps:
                if not 0 <= low < high <= self.shape[axis]:
                    raise ValueError(f"gap {(low, high)} is outside a panel of shape {self.shape}")

    @property
    def sentinel(self) -> int:
        """What a pixel without sensor reads: the dtype's largest value."""
        return int(np.iinfo(self.dtype).max)

    @property
    def largest_count(self) -> int:
        """Counts are clipped here, one below the sentinel."""
        return self.sentinel - 1

    @property
    def saturation_value(self) -> int:
        """Counts above this are not to be trusted; the value the metadata state."""
        return self.sentinel - 2

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(ss, fs) bool, True where a pixel is no use; shared and read-only."""
        return _mask(self)

    def fill_gaps(self, image: NDArray[np.unsignedinteger]) -> None:
        """Write the sentinel where the mask is set in an image (ss, fs), in place."""
        for ss_low, ss_high, fs_low, fs_high in self.bad:
            image[ss_low:ss_high, fs_low:fs_high] = self.sentinel
        for low, high in self.gaps_ss:
            image[low:high] = self.sentinel
        for low, high in self.gaps_fs:
            image[:, low:high] = self.sentinel


@lru_cache(maxsize=8)
def _mask(detector: Detector) -> NDArray[np.bool_]:
    mask = np.zeros(detector.shape, dtype=np.bool_)
    for low, high in detector.gaps_ss:
        mask[low:high] = True
    for low, high in detector.gaps_fs:
        mask[:, low:high] = True
    for ss_low, ss_high, fs_low, fs_high in detector.bad:
        mask[ss_low:ss_high, fs_low:fs_high] = True
    mask.setflags(write=False)
    return mask


def eiger2_4m(dtype: str = "uint16") -> Detector:
    """The EIGER2 X 4M: 2 x 4 modules of 1028 x 512 pixels of 75 um, gaps of 12 columns and 38 rows."""
    return Detector(
        "Dectris EIGER2 Si 4M",
        (2162, 2068),
        gaps_ss=((512, 550), (1062, 1100), (1612, 1650)),
        gaps_fs=((1028, 1040),),
        dtype=dtype,
    )


def eiger1_4m(dtype: str = "uint16") -> Detector:
    """The EIGER X 4M: 2 x 4 modules of 1030 x 514 pixels of 75 um, gaps of 10 columns and 37 rows."""
    return Detector(
        "Dectris EIGER Si 4M",
        (2167, 2070),
        gaps_ss=((514, 551), (1065, 1102), (1616, 1653)),
        gaps_fs=((1030, 1040),),
        dtype=dtype,
    )


def plain_panel(shape: tuple[int, int] = (2163, 2069), dtype: str = "uint16", pixel_size_m: float = 75e-6) -> Detector:
    """A panel without gaps; the default shape is the one of the 2024 CXLS hit-finding paper."""
    return Detector(f"panel {shape[0]}x{shape[1]}", shape, pixel_size_m, dtype=dtype)


@dataclass(frozen=True, slots=True)
class Condition:
    """What a pulse is and where the detector stands.

    flux_photons is photons a pulse at the sample. Beam centres are edge-based pixels; None means the panel's middle.
    """

    photon_energy_eV: float
    camera_length_m: float
    flux_photons: float = 3e8
    beam_center_x_px: float | None = None
    beam_center_y_px: float | None = None
    beam: Beam = field(default_factory=Beam)

    def __post_init__(self) -> None:
        for name in ("photon_energy_eV", "camera_length_m"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.camera_length_m < SMALLEST_CAMERA_LENGTH_M:
            raise ValueError(
                f"camera_length_m is {self.camera_length_m}, inside the sample chamber; "
                f"give {SMALLEST_CAMERA_LENGTH_M} m or more"
            )
        if not 0.0 <= self.flux_photons <= MAX_FLUX_PHOTONS:
            raise ValueError(
                f"flux_photons is {self.flux_photons}; give photons a pulse from 0 to {MAX_FLUX_PHOTONS:g}"
            )
        for name in ("beam_center_x_px", "beam_center_y_px"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number of pixels or None, not {value}")

    @property
    def wavelength_angstrom(self) -> float:
        """Wavelength at the middle of the band."""
        return HC_EV_ANGSTROM / self.photon_energy_eV


def beam_center_px(condition: Condition, detector: Detector) -> tuple[float, float]:
    """Edge-based beam centre (x along fs, y along ss) in pixels."""
    x, y = condition.beam_center_x_px, condition.beam_center_y_px
    return (detector.shape[1] / 2.0 if x is None else x, detector.shape[0] / 2.0 if y is None else y)


CONDITIONS: dict[int, Condition] = {
    1 + 3 * i + j: Condition(photon_energy_eV=energy, camera_length_m=length)
    for i, length in enumerate((0.15, 0.25, 0.35))
    for j, energy in enumerate((6000.0, 7000.0, 8000.0))
}
"""The nine conditions of the 2024 CXLS paper: camera length is the outer loop, photon energy the inner one."""
