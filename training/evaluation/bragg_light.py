"""Where a frame's crystal sends light at all, by the patterns that the frame was made of.

A pattern has light that no listed spot accounts for: the tails of strong ones, and spots too weak to list. A peak on
it is not false.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.dataset.series import open_series
from training.evaluation.facts import Facts
from training.evaluation.ideal import Pixels
from training.evaluation.library import Unknown, library_of

Array = npt.NDArray[np.float64]
BraggLight = Callable[[int, Array], Array]
"""Of a frame's number and places (m, 2) fs, ss: expected Bragg photons (m,) within ``REACH_PX`` of each."""

REACH_PX = 3


def bragg_light(facts: Facts, folder: Path | None) -> BraggLight | None:
    """The light of a series' crystals by the sparse patterns in ``folder``; ``None`` where that is not known."""
    if folder is None:
        return None
    with open_series(facts.path) as series:
        columns = series.shape[1]
        try:
            library = library_of(facts, series.shape, folder)
        except Unknown:
            return None
    if not library.numbered:
        return None

    def light(frame: int, places: Array) -> Array:
        crystal = int(facts.crystal[frame])
        if crystal < 0:
            return np.zeros(len(places))
        factor = 1.0 if facts.flux_factor is None else float(facts.flux_factor[frame])
        return factor * _around(library.crystals[crystal], columns, places)

    return light


def _around(pixels: Pixels, columns: int, places: Array) -> Array:
    index, photons = pixels
    ss, fs = np.divmod(index, columns)
    near = (np.abs(ss - places[:, 1:]) <= REACH_PX) & (np.abs(fs - places[:, :1]) <= REACH_PX)
    found: Array = (near * photons).sum(1)
    return found
