"""Where peaks stand and what they weigh, against the twin's expected counts and the bound of Cramer and Rao.

Spots that stand alone, found within four pixels, by the counts they are expected to have: median distance from the
centroid of those counts with its interval, the same of an estimate at the bound, and the sum of intensities over that
of the expected counts. Below some 50 counts mostly upward fluctuations are found, so that intensities are too large
there: selection, not the measurement. All is on hits of one crystal under each of the detector's responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from analyzer.geometry import Geometry
from analyzer.reduction import Workspace, make_plan
from cxls.bench.report import Figure, Report
from cxls.scene import scene_of
from cxls.settings import BenchSettings, SceneOptions
from sim_replay.scene import Scene
from sim_replay.shots import Buffers, frame_rng, simulate_shot
from streamer.validity import Validity
from training.evaluation.peak_metrics import MATCH_PX
from training.evaluation.spot_accuracy import LoneSpot, SpotMaker

CONDITIONS = (1, 5, 9)
RESPONSES = ("integrating", "retrigger", "one_per_pulse")
COUNTS = (4.0, 10.0, 20.0, 50.0, 200.0, np.inf)
ONE_PIXEL_SHARE = 0.9
_SEED = 90210
_FEWEST = 8
_DRAWS = 400


@dataclass(frozen=True, slots=True)
class Measured:
    """A lone spot and the peak that was found of it: offset ss, fs from its counts in pixels, photons."""

    spot: LoneSpot
    found: bool
    offset_px: tuple[float, float]
    intensity: float


def run(settings: BenchSettings) -> Report:
    """``settings.frames`` hits are shared out over the conditions, for each response and water."""
    figures: list[Figure] = []
    for response in RESPONSES:
        figures += _figures(response, _measure(response, 1.0, settings.frames))
    figures += _figures("water x 33", _measure("integrating", 33.0, settings.frames))
    figures += _figures("spots of one pixel", _measure("integrating", 1.0, settings.frames, pixel_spots=True))
    return Report(
        f"spots: {settings.frames} hits for each detector response, conditions {', '.join(map(str, CONDITIONS))}",
        figures,
        notes=(
            "bound: Cramer and Rao's for that spot's expected counts; ratio: of the medians",
            "spots of one pixel: distance from a place anywhere in the pixel, as no count tells where",
            "retriggering pixels' counts scatter less than Poisson's, for which the bound is",
        ),
    )


def _measure(response: str, water_scale: float, frames: int, pixel_spots: bool = False) -> list[Measured]:
    found: list[Measured] = []
    for condition in CONDITIONS:
        options = SceneOptions(condition=condition, hit_fraction=1.0, response=response, water_scale=water_scale)  # type: ignore[arg-type]
        found += _measure_scene(scene_of(options), max(1, frames // len(CONDITIONS)), _SEED + condition, pixel_spots)
    return found


def _measure_scene(scene: Scene, frames: int, seed: int, pixel_spots: bool) -> list[Measured]:
    spots, detector, buffers = SpotMaker(scene, pixel_spots), scene.detector, Buffers(scene.detector)
    workspace: Workspace | None = None
    measured: list[Measured] = []
    for n in range(frames):
        shot = simulate_shot(scene, frame_rng(seed, n), buffers=buffers, pixel_spots=pixel_spots)
        condition = shot.truth.condition
        if workspace is None:
            assert condition.beam_center_x_px is not None
            assert condition.beam_center_y_px is not None
            geometry = Geometry(
                detector.shape, condition.beam_center_x_px - 0.5, condition.beam_center_y_px - 0.5,
                detector.pixel_size_m, condition.camera_length_m, condition.photon_energy_eV,
            )  # fmt: skip
            valid = Validity("detector", (detector.mask == 0).astype(np.uint8))
            workspace = Workspace(make_plan(geometry, valid, detector.largest_count), np.dtype(detector.dtype))
        workspace.pixels[:] = shot.counts
        peaks = workspace.reduce().peaks.copy()
        measured += [_found(spot, peaks) for spot in spots.lone_spots(shot.truth)]
    return measured


def _found(spot: LoneSpot, peaks: npt.NDArray[np.void]) -> Measured:
    distance = np.hypot(peaks["ss"] - spot.ss, peaks["fs"] - spot.fs)
    if not len(peaks) or distance.min() > MATCH_PX:
        return Measured(spot, False, (np.nan, np.nan), np.nan)
    peak = peaks[int(distance.argmin())]
    offset = float(peak["ss"]) - spot.ss, float(peak["fs"]) - spot.fs
    return Measured(spot, True, offset, float(peak["intensity"]))


def _figures(name: str, measured: Sequence[Measured]) -> list[Figure]:
    figures: list[Figure] = []
    one_pixel = [each for each in measured if each.found and each.spot.largest_share >= ONE_PIXEL_SHARE]
    if len(one_pixel) >= _FEWEST and np.mean([each.spot.largest_share for each in measured]) >= ONE_PIXEL_SHARE:
        places = np.random.default_rng(_SEED).uniform(-0.5, 0.5, (len(one_pixel), 2))
        distances = np.hypot(*(np.array([each.offset_px for each in one_pixel]) - places).T)
        figures.append(Figure(f"{name}: position", "px", float(np.median(distances)), note=f"{len(one_pixel)} found"))
    rest = [each for each in measured if each.spot.largest_share < ONE_PIXEL_SHARE]
    for low, high in pairwise(COUNTS):
        some = [each for each in rest if low <= each.spot.counts < high]
        seen = [each for each in some if each.found]
        if len(seen) < _FEWEST:
            continue
        label = f"{name}: {low:g} to {high:g} counts" if np.isfinite(high) else f"{name}: {low:g} counts and more"
        errors = np.hypot(*np.array([each.offset_px for each in seen]).T)
        bound = float(np.median([each.spot.bound_px for each in seen]))
        median, (lowest, highest) = float(np.median(errors)), _interval(errors)
        expected = np.array([each.spot.counts for each in seen])
        intensity = np.array([each.intensity for each in seen])
        bias = float(intensity.sum() / expected.sum() - 1.0)
        spread = float(np.sqrt(expected.sum()) / expected.sum())
        figures += [
            Figure(f"{label}, found", "", len(seen) / len(some), note=f"{len(seen)} of {len(some)}"),
            Figure(f"{label}, position", "px", median,
                   note=f"{lowest:.3f} to {highest:.3f}; bound {bound:.3f}, ratio {median / bound:.2f}"),
            Figure(f"{label}, intensity bias", "", bias, note=f"+- {spread:.3f}"),
        ]  # fmt: skip
    return figures


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap."""
    rng = np.random.default_rng(1)
    medians = np.median(rng.choice(values, (_DRAWS, len(values))), 1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)
