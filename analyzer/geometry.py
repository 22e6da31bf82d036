"""Where each pixel is: beam centre, radial and azimuthal bins, resolution.

A ``Geometry`` comes from the header of a series. Radii are detector radii in pixels; azimuth
is folded into ``AZIMUTH_CLASSES`` classes between the fast-scan and the slow-scan axis, so
that a polarised background needs no knowledge of the beam to be followed.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamer.messages import HC_EV_ANGSTROM, SeriesMetadata

RADIAL_BIN_PX = 8.0
AZIMUTH_CLASSES = 3
DEFAULT_PIXEL_SIZE_M = 75e-6
_MAX_RADIAL_BINS = 4096


@dataclass(frozen=True, slots=True)
class Geometry:
    """A flat detector, perpendicular to the beam. Beam centre as pixel indices (fs, ss)."""

    shape: tuple[int, int]
    beam_center_fs: float
    beam_center_ss: float
    pixel_size_m: float
    camera_length_m: float | None = None
    photon_energy_eV: float | None = None

    def resolution_angstrom(self, radius_px: float) -> float | None:
        """Bragg's d at a detector radius; ``None`` without distance and energy in the header."""
        if not self.camera_length_m or not self.photon_energy_eV or radius_px <= 0:
            return None
        two_theta = math.atan(radius_px * self.pixel_size_m / self.camera_length_m)
        sine = math.sin(two_theta / 2)
        return HC_EV_ANGSTROM / self.photon_energy_eV / (2 * sine) if sine > 0 else None


@dataclass(frozen=True, slots=True, eq=False)
class BinMap:
    """``bin_of`` (ss * fs,) uint16: radial bin * AZIMUTH_CLASSES + azimuth class of each pixel."""

    bin_of: npt.NDArray[np.uint16]
    radial_bins: int

    @property
    def bins(self) -> int:
        return self.radial_bins * AZIMUTH_CLASSES


def series_geometry(metadata: SeriesMetadata, shape: tuple[int, int]) -> Geometry:
    """The geometry a header describes; the middle of the panel where it names no beam centre."""
    center_x, center_y = metadata.beam_center_x_px, metadata.beam_center_y_px
    reach = 4 * max(shape)
    if center_x is None or center_y is None or not (abs(center_x) < reach and abs(center_y) < reach):
        center_x, center_y = shape[1] / 2, shape[0] / 2
    return Geometry(
        shape,
        # Edge-based on the wire and in files, index-based here: the one place of the half pixel.
        center_x - 0.5,
        center_y - 0.5,
        metadata.pixel_size_x_m or DEFAULT_PIXEL_SIZE_M,
        metadata.camera_length_m,
        metadata.photon_energy_eV,
    )


def bin_map(geometry: Geometry) -> BinMap:
    """Radial and azimuthal bin of every pixel."""
    rows, columns = geometry.shape
    y = (np.arange(rows, dtype=np.float32) - geometry.beam_center_ss)[:, None]
    x = (np.arange(columns, dtype=np.float32) - geometry.beam_center_fs)[None, :]
    radial = np.minimum(np.hypot(x, y) / RADIAL_BIN_PX, _MAX_RADIAL_BINS - 1).astype(np.uint16)
    azimuth = np.arctan2(np.abs(y), np.abs(x)) * (AZIMUTH_CLASSES / (math.pi / 2))
    np.minimum(azimuth, AZIMUTH_CLASSES - 1, out=azimuth)
    bin_of = radial * np.uint16(AZIMUTH_CLASSES) + azimuth.astype(np.uint16)
    return BinMap(bin_of.reshape(-1), int(radial.max()) + 1)
