"""The crystals' own light in a frame: where a peak is not false, and where nothing must be asked for."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from analyzer.kernels import CELL
from analyzer.tile_layout import HEATS, STRIDE
from sim_replay.diffraction import Footprint

REACH_PX = 3
LEAST_PHOTONS = 0.3
"""A peak with so many expected photons within 3 pixels stands on light."""


class Light:
    """Expected photons of a frame of ``shape`` (ss, fs), in a buffer that the next frame uses again."""

    def __init__(self, shape: tuple[int, int]) -> None:
        down, across = -(-shape[0] // CELL), -(-shape[1] // CELL)
        self._columns = shape[1]
        self._image = np.zeros((down * CELL + 2 * REACH_PX, across * CELL + 2 * REACH_PX), np.float32)
        self._lit: npt.NDArray[np.intp] = np.empty(0, np.intp)

    def show(self, footprints: Sequence[Footprint]) -> None:
        """Take another frame's light."""
        flat = self._image.reshape(-1)
        flat[self._lit] = 0.0
        index = np.concatenate([np.empty(0, np.int64), *(each.index for each in footprints)])
        photons = np.concatenate([np.empty(0), *(each.photons for each in footprints)])
        row, column = np.divmod(index, self._columns)
        self._lit = (row + REACH_PX) * self._image.shape[1] + column + REACH_PX
        np.add.at(flat, self._lit, photons.astype(np.float32))

    def at(self, places: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """(m,) bool: whether places (m, 2) fs, ss stand on light."""
        side = 2 * REACH_PX + 1
        sums = [
            float(self._image[ss : ss + side, fs : fs + side].sum())
            for fs, ss in np.maximum(np.round(places), 0.0).astype(np.intp)
        ]
        return np.array(sums, np.float64) >= LEAST_PHOTONS

    def at_heats(self, cells: npt.NDArray[np.int32], across: int) -> npt.NDArray[np.bool_]:
        """(T, HEATS, HEATS) bool: whether the heats of these cells stand on light."""
        side = CELL + 2 * REACH_PX
        row, column = cells // across * CELL, cells % across * CELL
        steps = np.arange(side)
        windows = self._image[row[:, None, None] + steps[:, None], column[:, None, None] + steps]
        reach = STRIDE + 2 * REACH_PX
        sums = np.lib.stride_tricks.sliding_window_view(windows, (reach, reach), (1, 2))[:, ::STRIDE, ::STRIDE]
        lit: npt.NDArray[np.bool_] = sums.sum((3, 4)) >= LEAST_PHOTONS
        assert lit.shape[1:] == (HEATS, HEATS)
        return lit
