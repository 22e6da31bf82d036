"""How well peaks stand and weigh: against the twin's noise-free spots, and against what photons allow at best.

The least variance an unbiased estimate of a spot's place can have is that of Cramer and Rao (Cramer, Mathematical
Methods of Statistics, 1946, section 32.3): the inverse of the Fisher information of its place and intensity, here of
the expected counts, whose change with the place comes from laying the same spot a little aside.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim_replay.background import make_background, mix, scales
from sim_replay.detector import Condition
from sim_replay.diffraction import diffract, footprint, in_one_pixel
from sim_replay.response import ResponseWorkspace
from sim_replay.scene import Scene
from sim_replay.truth import ShotTruth, expect

STEP_PX = 0.05
REACH_PX = 6
"""A spot is looked at in 13 x 13 pixels, all of them live."""

ALONE_PX = 9.0
"""No other spot stands nearer: what two that overlap may claim of each other's light is another question."""

LEAST_COUNTS = 4.0
_SEEN_COUNTS = 0.3
_RAYLEIGH_MEDIAN = float(np.sqrt(2.0 * np.log(2.0)))


@dataclass(frozen=True, slots=True)
class LoneSpot:
    """A spot of a frame, far from others and from dead pixels.

    ss, fs: centroid of its expected counts, as pixel indices. largest_share: of the counts in one pixel. bound_px:
    median distance from its place of an estimate that reaches the bound of Cramer and Rao.
    """

    ss: float
    fs: float
    counts: float
    largest_share: float
    bound_px: float


class SpotMaker:
    """Makes the lone spots of the frames of one scene with one crystal in a frame.

    pixel_spots: all light of a spot falls in one pixel, as in frames simulated so.
    """

    def __init__(self, scene: Scene, pixel_spots: bool = False) -> None:
        if scene.crystals != 1:
            raise ValueError(f"the scene has {scene.crystals} crystals in a hit; give one")
        self._scene, self._pixel_spots = scene, pixel_spots
        self._work = ResponseWorkspace()
        self._diffuse = np.zeros(scene.detector.shape, np.float32)

    def lone_spots(self, truth: ShotTruth) -> Iterator[LoneSpot]:
        """The lone spots of a frame with at least ``LEAST_COUNTS`` expected counts; none of a frame without crystal."""
        if not truth.crystal or len(truth.orientations) != 1:
            return
        scene, condition = self._scene, truth.condition
        surroundings = dataclasses.replace(scene.surroundings, water_thickness_m=truth.water_thickness_m)
        background = make_background(condition, scene.detector, surroundings)
        mix(background, scales(condition, surroundings), self._diffuse)
        sample = dataclasses.replace(scene.sample, offset_m=tuple(truth.offsets_m[0]))
        beams = diffract(sample, condition, scene.detector, truth.orientations[0])

        def laid(x: float, y: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
            prints = footprint(beams, _moved(condition, x, y), scene.detector)
            prints = in_one_pixel(prints) if self._pixel_spots else prints
            counts = expect((prints,), self._diffuse, 1.0, scene.response, scene.detector, self._work).counts[0]
            return prints.index, prints.spot, counts

        middle = laid(0.0, 0.0)
        moved = [laid(*step) for step in ((STEP_PX, 0.0), (-STEP_PX, 0.0), (0.0, STEP_PX), (0.0, -STEP_PX))]
        index, spot, counts = middle
        spots, columns = len(beams), scene.detector.shape[1]
        total = np.bincount(spot, counts, spots + 1)[:spots]
        ss, fs = np.divmod(index, columns)
        sums = [np.bincount(spot, counts * axis, spots + 1)[:spots] for axis in (ss, fs)]
        place = np.stack(sums, 1) / np.maximum(total, 1e-12)[:, None]
        seen = np.flatnonzero(total > _SEEN_COUNTS)
        for n in np.flatnonzero(total >= LEAST_COUNTS).tolist():
            others = seen[seen != n]
            if len(others) and np.hypot(*(place[others] - place[n]).T).min() < ALONE_PX:
                continue
            row, column = (round(float(value)) for value in place[n])
            window = self._window(row, column)
            if window is None:
                continue
            of = [_picture(each, n, row, column, columns) for each in (middle, *moved)]
            bound = self._bound_px(of, self._diffuse[window], float(total[n]))
            yield LoneSpot(
                float(place[n, 0]), float(place[n, 1]), float(total[n]), float(of[0].max() / total[n]), bound
            )

    def _window(self, row: int, column: int) -> tuple[slice, slice] | None:
        shape = self._scene.detector.shape
        if not (REACH_PX <= row < shape[0] - REACH_PX and REACH_PX <= column < shape[1] - REACH_PX):
            return None
        window = slice(row - REACH_PX, row + REACH_PX + 1), slice(column - REACH_PX, column + REACH_PX + 1)
        return None if np.any(self._scene.detector.mask[window]) else window

    def _bound_px(self, of: list[npt.NDArray[np.float64]], background: npt.NDArray[np.float32], total: float) -> float:
        expected = of[0] + background
        once = self._scene.response.kind == "one_per_pulse" and self._scene.response.pulses == 1
        variance = np.maximum(expected * (1.0 - expected) if once else expected, 1e-9)
        slopes = np.stack([(of[1] - of[2]) / (2 * STEP_PX), (of[3] - of[4]) / (2 * STEP_PX), of[0] / total])
        information = np.einsum("aij,bij->ab", slopes / variance, slopes)
        try:
            covariance = np.linalg.inv(information)[:2, :2]
        except np.linalg.LinAlgError:
            return float("nan")
        return _RAYLEIGH_MEDIAN * float(np.sqrt(max(np.trace(covariance) / 2.0, 0.0)))


def _moved(condition: Condition, x: float, y: float) -> Condition:
    """The condition with the beam, and so every spot, moved over the detector by x, y pixels."""
    assert condition.beam_center_x_px is not None
    assert condition.beam_center_y_px is not None
    return dataclasses.replace(
        condition,
        beam_center_x_px=condition.beam_center_x_px + x,
        beam_center_y_px=condition.beam_center_y_px + y,
    )


def _picture(
    laid: tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float64]],
    spot: int,
    row: int,
    column: int,
    columns: int,
) -> npt.NDArray[np.float64]:
    """Expected counts of one spot around a pixel."""
    index, spots, counts = laid
    own = spots == spot
    ss, fs = np.divmod(index[own], columns)
    y, x = ss - row + REACH_PX, fs - column + REACH_PX
    inside = (y >= 0) & (y <= 2 * REACH_PX) & (x >= 0) & (x <= 2 * REACH_PX)
    picture = np.zeros((2 * REACH_PX + 1,) * 2)
    np.add.at(picture, (y[inside], x[inside]), counts[own][inside])
    return picture
