"""The sufficient statistic: photons and pixels of the diffuse scattering, by distance from the beam and azimuth.

What ``analyzer.diffuse`` keeps of a frame, in rings of ``RING_PX`` pixels and twelve sectors, so that a beam centre
that is off shows as asymmetry. Profiles add: the sum over frames says all that the frames say.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.geometry import AZIMUTH_CLASSES, RADIAL_BIN_PX, BinMap, Geometry
from analyzer.kernels import QUADRANTS, describe_places

RING_PX = 16.0
SECTORS = AZIMUTH_CLASSES * QUADRANTS
_MERGED = round(RING_PX / RADIAL_BIN_PX)

PHOTONS, SQUARES, PIXELS = range(3)
"""Rows of a profile: photons, the sum of the squares of pixels' counts, pixels that they stand for."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Sectors:
    """Where the bins of a profile lie. ``place``: which of them each finer bin goes to, the reduction's (bins * 4,) or,
    of what ``merge`` made, the profile's own.

    ``shape`` (6, n) float64: see ``model.RADIUS`` on, of the valid pixels; ``pixels`` (n,) how many they are;
    ``pixel_size_m`` of the pixels that distances are in.
    """

    place: npt.NDArray[np.intp]
    shape: Floats
    pixels: Floats
    pixel_size_m: float

    @property
    def bins(self) -> int:
        return len(self.pixels)


def sectors(
    geometry: Geometry, bins: BinMap, place: npt.NDArray[np.uint16], inside: npt.NDArray[np.uint8]
) -> tuple[Sectors, Floats]:
    """The profile's bins, and how many valid pixels have an invalid neighbour and how many have none (2, bins * 4).

    ``place`` (ss * fs,) is the reduction's bin and quadrant of each pixel, ``inside`` as in ``FramePlan``.
    """
    fine = bins.bins * QUADRANTS
    ring = np.arange(fine) // SECTORS // _MERGED
    merged = ring * SECTORS + np.arange(fine) % SECTORS
    pixels, sums = np.zeros((2, fine)), np.zeros((6, fine))
    x, y = (np.broadcast_to(each, geometry.shape) for each in geometry.position_maps())
    describe_places(x, y, place, inside, pixels, sums)
    count = int(merged[-1]) + 1
    whole = np.bincount(merged, pixels.sum(0), count).astype(np.float64)
    shape = np.stack([np.bincount(merged, each, count) for each in sums]) / np.maximum(whole, 1.0)
    shape[0] = np.maximum(shape[0], 0.5)
    return Sectors(merged, shape, whole, geometry.pixel_size_m), pixels


def fill_profile(sectors: Sectors, diffuse: Floats, pixels: Floats, out: npt.NDArray[np.float32]) -> None:
    """A frame's profile into ``out`` (3, n) float32 from the reduction's ``diffuse`` (bins * 4, 2) and pixels."""
    for row, values in ((PHOTONS, diffuse[:, 0]), (SQUARES, diffuse[:, 1]), (PIXELS, pixels)):
        out[row] = np.bincount(sectors.place, values, sectors.bins)


def merge(fine: Sectors, merged: int, *, folded: bool = True) -> Sectors:
    """Bins of ``merged`` rings each and a sector, or, ``folded`` over the quadrants, an azimuth class.

    Folded and wide, they are what a single frame is fitted on.
    """
    share = QUADRANTS if folded else 1
    ring, azimuth = np.arange(fine.bins) // SECTORS // merged, np.arange(fine.bins) % SECTORS // share
    place = ring * (SECTORS // share) + azimuth
    count = int(place[-1]) + 1
    pixels = np.bincount(place, fine.pixels, count).astype(np.float64)
    shape = np.stack([np.bincount(place, each * fine.pixels, count) for each in fine.shape]) / np.maximum(pixels, 1.0)
    shape[0] = np.maximum(shape[0], 0.5)
    return Sectors(place, shape, pixels, fine.pixel_size_m)
