"""What the cascade is told of a frame, whoever reduced it: a worker's own loops, or a GPU."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import label

from analyzer.frame_peaks import FramePeaks
from analyzer.kernels import CELL
from analyzer.reduction import FramePlan, FrameProfile

_BEAM_SHARE = 0.05
"""Light in more of the cells than this is a beam; places are then too many to be told apart."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameView:
    """One good frame; all of it is its own. ``peaks``: those to publish; ``profile``: see ``coarse_profile``."""

    plan: FramePlan
    peaks: FramePeaks
    no_beam: bool
    profile: npt.NDArray[np.float32]
    saturated_pixels: int
    background_photons: float
    diffuse: FrameProfile


def saw_no_beam(
    plan: FramePlan, lit: npt.NDArray[np.bool_], peaks: npt.NDArray[Any], single: npt.NDArray[np.bool_], fewest: int
) -> bool:
    """Whether a frame saw no beam: light at fewer separate places than this, hot pixels left out.

    ``lit`` (rows, columns): cells with a significant pixel, overwritten; ``single`` (n,): which of all ``peaks`` (n,)
    are a single pixel. A photon of water is a place, and so is a Bragg spot where nothing else scatters; but a cosmic
    ray's whole track is one, too, and so is a module's glowing edge. A peak of a single pixel is none.
    """
    if np.count_nonzero(lit) > _BEAM_SHARE * np.count_nonzero(plan.cell_valid):
        return False
    row, column = (np.rint(peaks[axis][single]).astype(np.intp) // CELL for axis in ("ss", "fs"))
    lit[np.clip(row, 0, lit.shape[0] - 1), np.clip(column, 0, lit.shape[1] - 1)] = False
    _, places = label(lit, np.ones((3, 3)))
    return bool(places < fewest)
