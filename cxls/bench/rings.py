"""Peaks on smooth powder rings: how many are none, and how many of the spots on a ring and beside it are found.

Rings of Poisson light about the beam on an even background, alone and with round spots. Spots on a ring are as bright
as eight deviations of what nine of the ring's pixels count, 30 photons at least; those beside it are of 8 to 60
photons. A peak within four pixels of a spot is not false, a spot with a peak within two is found.
"""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.geometry import Geometry
from analyzer.reduction import Workspace, make_plan
from cxls.bench.report import Grid, Report
from cxls.settings import BenchSettings
from streamer.validity import Validity

SIDE, CENTER, RADIUS_PX = 512, (255.3, 256.7), 150.0
BACKGROUNDS, CRESTS, SIGMAS_PX = (0.01, 0.1), (1.0, 5.0, 30.0), (1.0, 2.5)
ON, BESIDE = 8, 40
_SPOT_SIGMA_PX = 0.8
_OUT_OF_REACH_PX = 12.0
_SEED = 3

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Count:
    """What was found on the frames of one kind."""

    frames: int = 0
    false_alone: int = 0
    false: int = 0
    on_ring: int = 0
    beside: int = 0
    seconds: float = 0.0

    def row(self) -> list[float]:
        frames = max(1, self.frames)
        return [
            self.false_alone / frames, self.false / frames, self.on_ring / (ON * frames),
            self.beside / (BESIDE * frames), 1e3 * self.seconds / frames,
        ]  # fmt: skip


COLUMNS = ("false peaks, ring alone", "false peaks, with spots", "found on ring", "found beside", "ms CPU, with spots")


def run(settings: BenchSettings) -> Report:
    """``settings.frames`` are shared out over the rings and a frame without one, for each background."""
    kinds = [(0.0, 1.0), *((crest, sigma) for crest in CRESTS for sigma in SIGMAS_PX)]
    each = max(1, settings.frames // (len(kinds) * len(BACKGROUNDS)))
    geometry = Geometry((SIDE, SIDE), *CENTER, 75e-6, 0.15, 7000.0)
    plan = make_plan(geometry, Validity("all", np.ones((SIDE, SIDE), np.uint8)), 65534)
    workspace, radius = Workspace(plan, np.dtype("u2")), np.asarray(geometry.radius_map(), np.float64)
    rows, values = [], []
    for background in BACKGROUNDS:
        for crest, sigma_px in kinds:
            expected = background + crest * np.exp(-0.5 * ((radius - RADIUS_PX) / sigma_px) ** 2)
            rows.append(
                f"{crest:g} photons, sigma {sigma_px:g} px, on {background:g}" if crest else f"none, {background:g}"
            )
            values.append(_count(workspace, expected, crest, each).row())
    return Report(
        f"rings: {each} frames of {SIDE} x {SIDE} alone and with {ON} spots on the ring and {BESIDE} beside it",
        (),
        notes=("false peaks are a frame; photons are those of a pixel on the crest",),
        grids=[Grid("peaks by ring", rows, COLUMNS, values)],
    )


def _count(workspace: Workspace, expected: Floats, crest: float, frames: int) -> Count:
    rng, count = np.random.default_rng(_SEED), Count(frames)
    for _ in range(frames):
        workspace.pixels[:] = rng.poisson(expected)
        count.false_alone += len(workspace.reduce().peaks)
        places, photons = _spots(rng, crest)
        workspace.pixels[:] = rng.poisson(_lit(expected, places, photons))
        began = time.process_time()
        peaks = workspace.reduce().peaks
        count.seconds += time.process_time() - began
        apart = np.hypot(places[:, :1] - peaks["ss"][None], places[:, 1:] - peaks["fs"][None])
        if not len(peaks):
            continue
        found = apart.min(1) <= 2
        count.on_ring += int(found[:ON].sum())
        count.beside += int(found[ON:].sum())
        count.false += int((apart.min(0) > 4).sum())
    return count


def _spots(rng: np.random.Generator, crest: float) -> tuple[Floats, Floats]:
    """Places (n, 2) as ss, fs and photons (n,), those on the ring first."""
    angle = (np.arange(ON) + rng.uniform(0, 0.8, ON)) * 2 * np.pi / ON
    places = [np.stack([CENTER[1] + RADIUS_PX * np.sin(angle), CENTER[0] + RADIUS_PX * np.cos(angle)], 1)]
    while sum(map(len, places)) < ON + BESIDE:
        place = rng.uniform(10, SIDE - 10, (1, 2))
        off = abs(np.hypot(place[0, 0] - CENTER[1], place[0, 1] - CENTER[0]) - RADIUS_PX)
        if off > _OUT_OF_REACH_PX and np.hypot(*(np.concatenate(places) - place).T).min() > _OUT_OF_REACH_PX:
            places.append(place)
    bright = max(30.0, 8.0 * np.sqrt(9.0 * crest))
    return np.concatenate(places), np.concatenate([np.full(ON, bright), rng.uniform(8, 60, BESIDE)])


def _lit(expected: Floats, places: Floats, photons: Floats) -> Floats:
    lit = expected.copy()
    for (ss, fs), light in zip(places, photons, strict=True):
        y, x = np.mgrid[int(ss) - 4 : int(ss) + 5, int(fs) - 4 : int(fs) + 5]
        shape = np.exp(-((y - ss) ** 2 + (x - fs) ** 2) / (2 * _SPOT_SIGMA_PX**2))
        lit[y, x] += light * shape / shape.sum()
    return lit
