"""What a run shows of its crystals as a whole: virtual powder, peakogram, histograms, hot pixels.

The publisher adds to it batch by batch, so that no worker waits; pages, metrics and files read copies of it. No result
depends on it. Its size depends on the detector alone. It spans the series of a run while their images have one shape;
images of another shape begin it anew.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.frame_peaks import FramePeaks
from analyzer.geometry import Geometry
from analyzer.hot_pixels import HotPixelWatch
from analyzer.product_snapshot import LOG_INTENSITY, SPACING_EDGES_ANGSTROM, Axis, HotPixels, Snapshot
from analyzer.results import Decision, FrameResult, Status
from analyzer.running import Histogram
from streamer.validity import Validity

PEAK_EDGES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Buckets of ``cxls_peaks_per_frame``."""

MOST_PEAKS_COUNTED = 255
"""Of the peak-count histogram; its last bin holds that many and more."""

POWDER_CELLS = 1 << 21
"""The powder's most cells: it is binned 2 x 2, or more on larger detectors."""

PEAKOGRAM_BINS = 200
"""Of the detector's reach when it begins; bins of the same width are added where it comes to reach farther."""

_MOST_REACH = 4
"""Up to so many times that reach, and down to its part of one in so many, the peakogram goes on when it moves."""

_HOT_PIXELS_AGE_S = 10.0
_HOT_PIXELS_COST = 50.0
"""The map is found anew at most every ten seconds, and at most a fiftieth of the time goes into it."""


class _Gathered:
    """The arrays of one detector."""

    def __init__(self, geometry: Geometry) -> None:
        rows, columns = geometry.shape
        self.geometry = geometry
        self.bin_px = 2
        while -(-rows // self.bin_px) * -(-columns // self.bin_px) > POWDER_CELLS:
            self.bin_px *= 2
        cells = -(-rows // self.bin_px), -(-columns // self.bin_px)
        self.powder_photons = np.zeros(cells)
        self.powder_peaks = np.zeros(cells, np.uint32)
        self.powder_saturated = np.zeros(cells, np.bool_)
        self.peak_counts = np.zeros((2, MOST_PEAKS_COUNTED + 1), np.int64)
        self.resolution = np.zeros(len(SPACING_EDGES_ANGSTROM) - 1, np.int64)
        self.frames = dict.fromkeys((str(decision) for decision in Decision), 0)
        self.saturated_frames = self.saturated_peaks = 0
        self.begin_peakogram(geometry)

    def begin_peakogram(self, geometry: Geometry) -> None:
        self.axis = _axis(geometry)
        self.peakogram = np.zeros((PEAKOGRAM_BINS, len(LOG_INTENSITY) - 1), np.int64)
        self._reaches = geometry

    def _reach(self, geometry: Geometry) -> None:
        """Let the peakogram's axis go as far as a detector that stands elsewhere; q is q wherever it stands."""
        new = _axis(geometry)
        width = self.axis.edges[1]
        bins = math.ceil(new.edges[-1] / width - 1e-6)
        near = PEAKOGRAM_BINS / _MOST_REACH <= bins <= PEAKOGRAM_BINS * _MOST_REACH
        if new.name != self.axis.name or not near:
            self.begin_peakogram(geometry)
        elif (more := bins - len(self.peakogram)) > 0:
            self.axis = replace(new, edges=width * np.arange(bins + 1))
            self.peakogram = np.pad(self.peakogram, ((0, more), (0, 0)))
        self._reaches = geometry

    def add(self, result: FrameResult, seen: FramePeaks) -> None:
        self.geometry = seen.plan.geometry
        self.frames[str(result.decision)] += 1
        self.saturated_frames += bool(result.saturated_pixels)
        if result.decision == Decision.NO_BEAM:
            return
        self.peak_counts[int(bool(result.hit)), min(len(seen.peaks), MOST_PEAKS_COUNTED)] += 1
        if result.hit:
            self._add_hit(result, seen)

    def _add_hit(self, result: FrameResult, seen: FramePeaks) -> None:
        if seen.plan.geometry is not self._reaches:
            self._reach(seen.plan.geometry)
        if result.resolution_angstrom is not None:
            self.resolution[_bins(SPACING_EDGES_ANGSTROM, np.array([result.resolution_angstrom]))] += 1
        if not len(seen.peaks):
            return
        peaks = seen.peaks
        self.saturated_peaks += int(np.count_nonzero(peaks["saturated"]))
        cell = tuple(
            np.clip(np.rint(peaks[key]).astype(np.intp) // self.bin_px, 0, size - 1)
            for key, size in zip(("ss", "fs"), self.powder_peaks.shape, strict=True)
        )
        np.add.at(self.powder_photons, cell, peaks["intensity"])
        np.add.at(self.powder_peaks, cell, 1)
        blinded = peaks["saturated"].astype(np.bool_)
        self.powder_saturated[tuple(each[blinded] for each in cell)] = True
        along = seen.radius_px if seen.q_per_angstrom is None else seen.q_per_angstrom
        with np.errstate(divide="ignore", invalid="ignore"):
            height = np.nan_to_num(np.log10(peaks["intensity"]), neginf=0.0)
        np.add.at(self.peakogram, (_bins(self.axis.edges, along), _bins(LOG_INTENSITY, height)), 1)


def _axis(geometry: Geometry) -> Axis:
    """q, or the radius where it is not known, to the detector's farthest corner."""
    reach = geometry.reach_px + 1.0
    q = geometry.q_at(reach)
    if q is None:
        return Axis("radius", "px", np.linspace(0.0, reach, PEAKOGRAM_BINS + 1))
    return Axis("q", "1/angstrom", np.linspace(0.0, float(q), PEAKOGRAM_BINS + 1))


def _bins(edges: npt.NDArray[np.float64], values: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """The bin of each value; of those outside the first or last."""
    place: npt.NDArray[np.intp] = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return place


class Products:
    """Products of a run; see ``Snapshot``. ``counts`` and ``saturated_frames`` go on for ever, as Prometheus wants.

    ``applied`` is the hot-pixel map that was applied by name, frozen. ``mask_unfit`` says why the user's mask was left
    aside for the latest frame; empty when it was not.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.peaks_per_frame = Histogram(PEAK_EDGES)
        self.saturated_frames = 0
        self.unfit_frames = 0
        self.mask_unfit_frames = 0
        self.mask_unfit = ""
        self.applied: Validity | None = None
        self.on_applied: Callable[[Validity], None] = lambda applied: None
        self.added = 0
        self._gathered: _Gathered | None = None
        self._watch: HotPixelWatch | None = None
        self._finding = threading.Lock()
        self._found: tuple[HotPixelWatch, HotPixels, float] | None = None

    def add(
        self,
        results: Sequence[FrameResult],
        peaks: Sequence[FramePeaks],
        profiles: Sequence[npt.NDArray[np.float32]],
    ) -> None:
        """Take in a batch: ``peaks`` and ``profiles`` are those of its good results, in their order."""
        good = [result for result in results if result.status == Status.OK]
        with self.lock:
            for result, seen, profile in zip(good, peaks, profiles, strict=False):
                gathered, watch = self._for(seen.plan.geometry)
                gathered.add(result, seen)
                watch.add(seen, profile)
                self.saturated_frames += bool(result.saturated_pixels)
                self.unfit_frames += bool(seen.plan.geometry.unfit)
                self.mask_unfit = seen.plan.validity.unfit
                self.mask_unfit_frames += bool(self.mask_unfit)
            counts = [float(r.peak_count or 0) for r in good if r.decision != Decision.NO_BEAM]
            if counts:
                self.peaks_per_frame.observe(counts)
            self.added += len(good)

    def apply(self, hot: Validity | None) -> None:
        """This frozen map is in force from now on, or none is; who keeps maps is told of it."""
        self.applied = hot
        if hot is not None:
            self.on_applied(hot)

    def _for(self, geometry: Geometry) -> tuple[_Gathered, HotPixelWatch]:
        if self._gathered is None or self._watch is None or self._watch.shape != geometry.shape:
            self._gathered, self._watch = _Gathered(geometry), HotPixelWatch(geometry.shape)
        return self._gathered, self._watch

    @property
    def geometry(self) -> Geometry | None:
        """The detector's, as of the latest frame."""
        gathered = self._gathered
        return None if gathered is None else gathered.geometry

    def reset(self) -> None:
        """Begin anew, but for what Prometheus counts."""
        with self.lock:
            self._gathered = self._watch = None
            self.mask_unfit = ""

    def hot_pixels(self, fresh: bool = False) -> HotPixels | None:
        """The running map, ten seconds old or a little more unless it has to be ``fresh``.

        ``None`` before the first frame. While another thread finds it anew, the last one.
        """
        watch, last = self._watch, self._found
        if not fresh and self._finding.locked() and last is not None and last[0] is watch:
            return last[1]
        with self._finding:
            watch, now = self._watch, time.monotonic()
            if watch is None:
                return None
            if self._found is not None and self._found[0] is watch and not fresh and now < self._found[2]:
                return self._found[1]
            found = watch.find()
            took = time.monotonic() - now
            self._found = watch, found, now + max(_HOT_PIXELS_AGE_S, _HOT_PIXELS_COST * took)
            return found

    def snapshot(self) -> Snapshot | None:
        """All products, copied; ``None`` before the first frame."""
        hot = self.hot_pixels()
        with self.lock:
            gathered = self._gathered
            if gathered is None or hot is None or hot.shape != gathered.geometry.shape:
                return None
            return Snapshot(
                gathered.geometry,
                gathered.bin_px,
                gathered.powder_photons.copy(),
                gathered.powder_peaks.copy(),
                gathered.powder_saturated.copy(),
                gathered.axis,
                gathered.peakogram.copy(),
                gathered.peak_counts.copy(),
                gathered.resolution.copy(),
                dict(gathered.frames),
                gathered.saturated_frames,
                gathered.saturated_peaks,
                hot,
            )
