"""Where a header has the detector, and whether two headers have it in one place as far as spots can tell.

A header that is read from instruments says 7000.2 eV after 7000.4; that is no other place. The measure is what an
estimate states for all that is not modelled, and half of what a spot's place is known to.
"""

import math
from dataclasses import dataclass

from streamer.messages import SeriesMetadata

SAME_LOG = 2e-4
"""Of ln L and of ln E: `bragg.FLOOR`."""

SAME_CENTER_PX = 0.25


@dataclass(frozen=True, slots=True)
class Stand:
    """What of a header says where pixels are. ``center_px`` (x, y) from the outer edge of the first pixel."""

    shape: tuple[int, int] | None
    pixel_size_m: float | None
    center_px: tuple[float | None, float | None]
    camera_length_m: float | None
    photon_energy_eV: float | None

    @classmethod
    def of(cls, metadata: SeriesMetadata) -> "Stand":
        return cls(
            metadata.shape,
            metadata.pixel_size_x_m,
            (metadata.beam_center_x_px, metadata.beam_center_y_px),
            metadata.camera_length_m,
            metadata.photon_energy_eV,
        )


def moved(one: Stand | None, other: Stand | None) -> bool:
    """Whether two headers have the detector in different places, or one of them is not known."""
    if one is None or other is None:
        return one is not other
    if (one.shape, one.pixel_size_m) != (other.shape, other.pixel_size_m):
        return True
    return not (
        all(map(_near, one.center_px, other.center_px))
        and _alike(one.camera_length_m, other.camera_length_m)
        and _alike(one.photon_energy_eV, other.photon_energy_eV)
    )


def _near(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= SAME_CENTER_PX


def _alike(one: float | None, other: float | None) -> bool:
    if one is None or other is None or one <= 0.0 or other <= 0.0:
        return one == other
    return abs(math.log(one / other)) <= SAME_LOG
