"""Sets of shots made without a simulator."""

import numpy as np
import numpy.typing as npt

from analyzer.zones import BACKGROUND, CELL_COLUMNS, COLUMNS, NEAREST, RADIUS, SCALES, STRONGEST, VALID, ZONES
from training.shots import FACTS, ShotSet


def blank_shots(hit: npt.NDArray[np.bool_], **facts: npt.NDArray[np.float64]) -> ShotSet:
    """Shots of nothing, labelled; facts not given are 0."""
    count = len(hit)
    return ShotSet(
        zones=np.zeros((count, ZONES, COLUMNS), np.float32),
        cells=np.zeros((count, STRONGEST, CELL_COLUMNS), np.float32),
        header=np.tile(np.array([7000.0, 0.25], np.float32), (count, 1)),
        group=np.arange(count) // 8,
        hit=hit,
        facts={**{name: np.zeros(count) for name in FACTS}, **facts},
    )


def made_shots(count: int, seed: int) -> ShotSet:
    """Shots of which hits have a cell that is bright at all scales, empties one brighter in one; eight of a group."""
    rng = np.random.default_rng(seed)
    hit = np.arange(count) % 2 == 0
    shots = blank_shots(hit, bragg_photons=hit * 100.0)
    shots.cells[:, :, :SCALES] = rng.uniform(0, 12, (count, STRONGEST, SCALES))
    for place in range(count):
        scales = SCALES if hit[place] else 1
        shots.cells[place, 0, :scales] = rng.uniform(20, 200) * (2 - hit[place])
    shots.cells[:, :, RADIUS] = rng.uniform(0, 0.1, (count, STRONGEST))
    shots.cells[:, :, VALID], shots.cells[:, :, BACKGROUND] = 1.0, 0.01
    shots.cells[:, :, NEAREST] = rng.uniform(1, 50, (count, STRONGEST))
    return shots
