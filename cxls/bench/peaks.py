"""Our peak list against OM's peakfinder8, scored on the truth of the same frames.

Peaks and spots are matched as ``cxls evaluate`` matches them (``training.evaluation.peak_metrics``). A peak on light
that no listed spot accounts for is false here; a second peak on a spot is neither right nor false.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analyzer.geometry import series_geometry
from analyzer.reduction import Workspace, make_plan
from cxls.bench import om_peer as om
from cxls.bench.inputs import image_data, packed_frames, simulate
from cxls.bench.report import Figure, Ratio, Report, over_rounds, ratios
from cxls.settings import BenchSettings
from streamer.files import CHANNEL
from streamer.frames import Frame
from streamer.validity import saturation_of, series_validity
from training.dataset.series import open_series
from training.evaluation.facts import Facts, read_facts
from training.evaluation.peak_metrics import MATCH_PX, PHOTONS, PeakCount, beside_invalid, match, spots_of

ROUNDS = 3
Positions = npt.NDArray[np.float64]


class Truth:
    """The true spots of a series, which peaks are counted against."""

    def __init__(self, master: Path) -> None:
        with open_series(master) as series:
            self._facts: Facts = read_facts(series)
            self._beside = beside_invalid(series_validity(series.metadata, series.shape, CHANNEL).valid)

    def count(self, found: Sequence[Positions]) -> PeakCount:
        """What the peaks of each frame, from the first on, add up to."""
        count = PeakCount()
        for frame, positions in enumerate(found):
            ss, fs, photons = self._facts.truth.spots(frame)
            count.add(match(positions, spots_of(fs, ss), photons), self._beside)
        return count


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
        f"peaks: {settings.frames} frames a condition, matched one to one within {MATCH_PX:g} pixels",
        figures,
        found,
        (
            f"OM: peakfinder8, full, ADC {om.ADC:g}, SNR {om.SNR:g}, {om.MIN_PIXELS} pixel; CPU of find_peaks alone",
            "ours: CPU of unpacking and the whole reduction, which also makes the background, the map and the profile",
        ),
    )


def _compare(folder: Path, condition: int, count: int) -> tuple[list[Figure], list[Ratio]]:
    master = simulate(folder, count, condition)
    frames, truth = packed_frames(master), Truth(master)
    finder = OurFinder(frames[0])
    finder.find(frames[0])
    ours_ms: list[float] = []
    om_ms: list[float] = []
    om_count = PeakCount()
    exchange = folder / f"om-{condition}"
    if om.available():
        om.lay_out(exchange, frames)
    for _ in range(ROUNDS):
        peaks = [finder.find(frame) for frame in frames]
        ours_ms.append(float(np.mean([spent for _, spent in peaks])))
        if om.available():
            theirs = om.find_peaks(exchange)
            om_ms.append(float(np.mean([each.cpu_ms for each in theirs])))
            om_count = truth.count([each.positions for each in theirs])
    ours = truth.count([positions for positions, _ in peaks])
    name = f"condition {condition}"
    figures = _figures(f"{name}: ours", ours, ours_ms)
    if not om_ms:
        return [*figures, Figure(f"{name}: OM", "", None, note=om.NOT_THERE)], []
    figures += _figures(f"{name}: OM", om_count, om_ms)
    return figures, ratios(f"{name}: OM CPU / ours", om_ms, ours_ms)


def _figures(name: str, of: PeakCount, cpu_ms: Sequence[float]) -> list[Figure]:
    recall = [
        Figure(f"{name} recall, {least:g} photons and more", "", found / max(1, true), note=f"{found} of {true}")
        for least, (true, found) in zip(PHOTONS, of.by_photons, strict=True)
    ]
    return [
        *recall,
        Figure(f"{name} false peaks", "a frame", of.false / of.frames, note=f"{of.false} of {of.peaks} peaks found"),
        Figure(f"{name} second peaks on a spot", "a frame", of.doubled / of.frames, note=f"{of.doubled}"),
        over_rounds(f"{name} CPU", "ms CPU", cpu_ms),
    ]
