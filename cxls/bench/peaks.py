"""Our peak list against OM's peakfinder8, scored on the truth of the same frames.

A true spot is the expected photons of one reflection; spots closer than the matching radius
are one, as no finder can part them. Peaks and spots are matched one to one, nearest first. A
peak with hardly any Bragg light near it is false; an unmatched peak on Bragg light is neither
right nor false.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from analyzer.geometry import series_geometry
from analyzer.reduction import Workspace, make_plan
from cxls.bench import om_peer as om
from cxls.bench.inputs import image_data, packed_frames, simulate
from cxls.bench.report import Figure, Ratio, Report, over_rounds, ratios
from cxls.settings import BenchSettings
from streamer.frames import Frame
from streamer.validity import saturation_of, series_validity

ROUNDS = 3
MATCH_RADIUS_PX = 4.0
THRESHOLDS = (5.0, 10.0)
LIGHT_PHOTONS = 0.3
"""Expected Bragg photons within the matching radius below which a peak there is false."""

Positions = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TrueSpots:
    """Spots of one frame: (n, 2) fs and ss as pixel indices, and expected photons."""

    positions: Positions
    photons: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """Of one frame or of many: true spots over each threshold, those found, peaks on no Bragg
    light, and peaks on the light of a spot that another peak has already."""

    true: tuple[int, ...]
    matched: tuple[int, ...]
    false: int
    doubled: int
    found: int


def read_truth(master: Path) -> list[TrueSpots]:
    """The true spots of each frame of a simulated series."""
    with h5py.File(master) as file:
        truth = file["entry/truth"]
        count, frame = len(truth["hit"]), truth["spot_frame"][()]
        positions = np.stack([truth["spot_fs"][()], truth["spot_ss"][()]], 1)
        photons = truth["spot_photons"][()]
    return [TrueSpots(positions[frame == n], photons[frame == n]) for n in range(count)]


def merged(spots: TrueSpots) -> TrueSpots:
    """Spots closer than the matching radius become one, at the brightest, with all their photons."""
    kept: list[int] = []
    photons = spots.photons.copy()
    for spot in np.argsort(-spots.photons, kind="stable"):
        near = [k for k in kept if np.hypot(*(spots.positions[spot] - spots.positions[k])) < MATCH_RADIUS_PX]
        if near:
            photons[near[0]] += photons[spot]
        else:
            kept.append(int(spot))
    return TrueSpots(spots.positions[kept], photons[kept])


def score(found: Positions, spots: TrueSpots) -> Score:
    """Match the peaks of one frame to its true spots."""
    single = merged(spots)
    distance = np.hypot(*(found[:, None] - single.positions[None]).transpose(2, 0, 1))
    rows, columns = np.nonzero(distance <= MATCH_RADIUS_PX)
    order = np.argsort(distance[rows, columns], kind="stable")
    peaks: set[int] = set()
    right: set[int] = set()
    for peak, spot in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if peak not in peaks and spot not in right:
            peaks.add(peak)
            right.add(spot)
    near = np.hypot(*(found[:, None] - spots.positions[None]).transpose(2, 0, 1)) <= MATCH_RADIUS_PX
    light = near @ spots.photons
    left = [peak for peak in range(len(found)) if peak not in peaks]
    false = sum(bool(light[peak] < LIGHT_PHOTONS) for peak in left)
    hit = [float(single.photons[spot]) for spot in right]
    return Score(
        tuple(int((single.photons >= least).sum()) for least in THRESHOLDS),
        tuple(sum(photons >= least for photons in hit) for least in THRESHOLDS),
        false,
        len(left) - false,
        len(found),
    )


def total(scores: Sequence[Score]) -> Score:
    """Scores of many frames together."""
    return Score(
        tuple(sum(column) for column in zip(*(each.true for each in scores), strict=True)),
        tuple(sum(column) for column in zip(*(each.matched for each in scores), strict=True)),
        sum(each.false for each in scores),
        sum(each.doubled for each in scores),
        sum(each.found for each in scores),
    )


class OurFinder:
    """Unpack and reduce, without the networks: what makes our peak list. The two cannot be told apart in fairness.

    What counted is listed while a frame is unpacked.
    """

    def __init__(self, frame: Frame) -> None:
        metadata, image = frame.series.metadata, image_data(frame)
        geometry = series_geometry(metadata, image.shape)
        validity = series_validity(metadata, image.shape, frame.channel, None)
        plan = make_plan(geometry, validity, saturation_of(metadata, image.dtype))
        self._workspace = Workspace(plan, image.dtype)

    def find(self, frame: Frame) -> tuple[Positions, float]:
        """Peaks as (n, 2) fs and ss, and the CPU milliseconds from the packed bytes to them."""
        began = time.process_time()
        self._workspace.load(image_data(frame))
        reduced = self._workspace.reduce()
        spent = time.process_time() - began
        return np.stack([reduced.peaks["fs"], reduced.peaks["ss"]], 1).astype(np.float64), spent * 1e3


def run(settings: BenchSettings) -> Report:
    """Two conditions: the middle one, and the nearest detector with the softest beam."""
    figures: list[Figure] = []
    found: list[Ratio] = []
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as folder:
        for condition in (5, 1):
            some, ratio = _compare(Path(folder), condition, settings.frames)
            figures += some
            found += ratio
    return Report(
        f"peaks: {settings.frames} frames a condition, matched one to one within {MATCH_RADIUS_PX:g} pixels",
        figures,
        found,
        (
            f"OM: peakfinder8, full, ADC {om.ADC:g}, SNR {om.SNR:g}, {om.MIN_PIXELS} pixel; CPU of find_peaks alone",
            "ours: CPU of unpacking and the whole reduction, which also makes the background, the map and the profile",
        ),
    )


def _compare(folder: Path, condition: int, count: int) -> tuple[list[Figure], list[Ratio]]:
    master = simulate(folder, count, condition)
    frames, truth = packed_frames(master), read_truth(master)
    finder = OurFinder(frames[0])
    finder.find(frames[0])
    ours_ms: list[float] = []
    om_ms: list[float] = []
    om_scores: list[Score] = []
    exchange = folder / f"om-{condition}"
    if om.available():
        om.lay_out(exchange, frames)
    for _ in range(ROUNDS):
        peaks = [finder.find(frame) for frame in frames]
        ours_ms.append(float(np.mean([spent for _, spent in peaks])))
        if om.available():
            theirs = om.find_peaks(exchange)
            om_ms.append(float(np.mean([each.cpu_ms for each in theirs])))
            om_scores = [score(each.positions, spots) for each, spots in zip(theirs, truth, strict=True)]
    ours = [score(positions, spots) for (positions, _), spots in zip(peaks, truth, strict=True)]
    name = f"condition {condition}"
    figures = _figures(f"{name}: ours", total(ours), count, ours_ms)
    if not om_ms:
        return [*figures, Figure(f"{name}: OM", "", None, note=om.NOT_THERE)], []
    figures += _figures(f"{name}: OM", total(om_scores), count, om_ms)
    return figures, ratios(f"{name}: OM CPU / ours", om_ms, ours_ms)


def _figures(name: str, of: Score, frames: int, cpu_ms: Sequence[float]) -> list[Figure]:
    recall = [
        Figure(f"{name} recall, {least:g} photons and more", "", matched / max(1, true), note=f"{matched} of {true}")
        for least, matched, true in zip(THRESHOLDS, of.matched, of.true, strict=True)
    ]
    return [
        *recall,
        Figure(f"{name} false peaks", "a frame", of.false / frames, note=f"{of.false} of {of.found} peaks found"),
        Figure(f"{name} second peaks on a spot", "a frame", of.doubled / frames, note=f"{of.doubled}"),
        over_rounds(f"{name} CPU", "ms CPU", cpu_ms),
    ]
