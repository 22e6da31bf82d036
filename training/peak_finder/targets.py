"""What the peak network should answer in a tile, from the true spots of the frame.

A heat's target is a Gaussian about the spot it belongs to, exactly 1 in the spot's own heat, so that an answer beside
it is half right and not wrong. A spot too weak to be told from nothing is neither asked for nor forbidden; nor is any
other light of the crystals that is far from a spot, as the tail of a streak.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.tile_layout import HEATS, STRIDE

SIGMA = 0.8
"""Of the Gaussian, in heats."""

LEAST_COUNTS = 1.5
"""Spots expected to count this much are to be found."""

LEAST_LIGHT = 0.3
"""Spots that count less are no reason to spare a heat: there is nothing."""

_FAR_HEAT = 1e-3
"""The target three heats, 6 pixels, from a spot."""

_SPARED = 1
"""Heats about a spot between the two that are left out."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Of T tiles. heat (T, HEATS, HEATS) float32; offsets (T, 2, HEATS, HEATS) float32, fs and ss in heats, and
    log_counts (T, HEATS, HEATS) float32, both right only where ``spot`` is set; spot, left_out (T, HEATS, HEATS) bool.
    """

    heat: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.float32]
    log_counts: npt.NDArray[np.float32]
    spot: npt.NDArray[np.bool_]
    left_out: npt.NDArray[np.bool_]


def targets_of(
    fs: Array, ss: Array, counts: Array, cells: npt.NDArray[np.int32], across: int, lit: npt.NDArray[np.bool_]
) -> Targets:
    """Targets of the tiles of these flat cells, ``across`` of which make a row, for spots (n,) at pixel indices.

    lit (T, HEATS, HEATS): which heats stand on light of the crystals.
    """
    tiles = len(cells)
    shape = (tiles, HEATS, HEATS)
    steps = np.arange(HEATS)
    row = np.broadcast_to((cells // across * HEATS)[:, None, None] + steps[:, None], shape).astype(np.float64)
    column = np.broadcast_to((cells % across * HEATS)[:, None, None] + steps, shape).astype(np.float64)
    made = Targets(
        np.zeros(shape, np.float32), np.zeros((tiles, 2, HEATS, HEATS), np.float32), np.zeros(shape, np.float32),
        np.zeros(shape, np.bool_), np.zeros(shape, np.bool_),
    )  # fmt: skip
    middle = 0.5 * (STRIDE - 1)
    # Dimmest first: where two spots share a heat, the brighter one is written last.
    for n in np.argsort(counts, kind="stable"):
        x, y = (fs[n] - middle) / STRIDE, (ss[n] - middle) / STRIDE
        own_column, own_row = np.floor(x + 0.5), np.floor(y + 0.5)
        away2 = (row - own_row) ** 2 + (column - own_column) ** 2
        if counts[n] < LEAST_COUNTS:
            if counts[n] >= LEAST_LIGHT:
                made.left_out[np.maximum(abs(row - own_row), abs(column - own_column)) <= _SPARED] = True
            continue
        np.maximum(made.heat, np.exp(-0.5 * away2 / SIGMA**2), out=made.heat, casting="same_kind")
        own = away2 == 0.0
        made.spot[own] = True
        made.offsets[:, 0][own], made.offsets[:, 1][own] = x - own_column, y - own_row
        made.log_counts[own] = np.log(counts[n])
    made.left_out[lit & (made.heat < _FAR_HEAT)] = True
    made.left_out[made.spot] = False
    return made
