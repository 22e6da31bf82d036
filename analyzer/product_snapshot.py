"""What a run shows of its crystals as a whole, at one time: plain arrays and their axes.

Who draws, serves or writes them needs nothing of what gathers them, and none of its libraries.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.geometry import Geometry
from streamer.validity import Validity, digest

LOG_INTENSITY = np.linspace(0.0, 6.0, 61)
"""Decimal logarithm of photons a peak; what lies outside counts in the first or last bin."""

SPACING_EDGES_ANGSTROM = np.round(np.arange(0.5, 20.05, 0.1), 1)
"""Of the histogram of resolution estimates; what lies outside counts in the first or last bin."""

HOT_PIXELS = "hot-pixels"
"""What the map of hot pixels is applied by."""


@dataclass(frozen=True, slots=True, eq=False)
class HotPixels:
    """The map of ``analyzer.hot_pixels`` at one time. ``pixel`` (n,) int64: flat indices, ascending;
    ``firings`` (n,): frames each made a peak in.

    Of ``frames`` distinct frames that spoke. ``tied`` pixels fire as often and are left out by rules 5 to 7;
    ``fewest_firings`` is what rule 4 asked.
    """

    shape: tuple[int, int]
    pixel: npt.NDArray[np.int64]
    firings: npt.NDArray[np.int64]
    frames: int
    tied: int
    fewest_firings: int

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """(ss, fs) uint8, 1 where a pixel is hot: as ``--mask`` takes it."""
        mask = np.zeros(self.shape, np.uint8)
        mask.reshape(-1)[self.pixel] = 1
        return mask

    def frozen(self, before: Validity | None = None) -> Validity:
        """The map, with what was applied ``before``, as a mask that has the name of the file it is saved as."""
        valid = 1 - self.mask
        if before is not None:
            valid &= before.valid
        return Validity(f"{HOT_PIXELS}-{digest(valid)}.npy", valid)


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """The peakogram's abscissa: ``name`` q or radius, its unit and its edges (n + 1,), n from PEAKOGRAM_BINS on."""

    name: str
    unit: str
    edges: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Products at one time, arrays that nobody writes to any more.

    ``powder_photons`` float64 and ``powder_peaks`` uint32 (ss / bin_px, fs / bin_px): photons and peaks of hits;
    ``powder_saturated``: where one of these peaks is saturated, whose photons say nothing.
    ``peakogram`` (n, 60) int64: peaks of hits by ``axis`` and ``LOG_INTENSITY``. ``peak_counts``
    (2, 256) int64: frames with beam by peak count, no hits and hits. ``resolution`` int64: hits by resolution estimate,
    ``SPACING_EDGES_ANGSTROM``. ``frames`` is by decision; ``saturated_frames`` have saturated pixels.
    """

    geometry: Geometry
    bin_px: int
    powder_photons: npt.NDArray[np.float64]
    powder_peaks: npt.NDArray[np.uint32]
    powder_saturated: npt.NDArray[np.bool_]
    axis: Axis
    peakogram: npt.NDArray[np.int64]
    peak_counts: npt.NDArray[np.int64]
    resolution: npt.NDArray[np.int64]
    frames: dict[str, int]
    saturated_frames: int
    saturated_peaks: int
    hot_pixels: HotPixels


def spacing_of(q: float) -> float:
    """d in angstrom of q in 1/angstrom, infinite at 0."""
    return 2 * math.pi / q if q > 0 else math.inf
