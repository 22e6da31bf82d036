"""What a run shows so far: windows, histograms, the running profile, the latest frames.

It feeds metrics and pages only; no result depends on it. The publisher writes it, HTTP
threads read it, under one lock.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.frame_peaks import FramePeaks
from analyzer.geometry import AZIMUTH_CLASSES
from analyzer.live.history import MOST_IMAGES
from analyzer.networks import PROFILE_BINS
from analyzer.parameters.bragg_spots import BraggSpots
from analyzer.parameters.frame import MOST_SATURATED
from analyzer.parameters.gathered import Gathered, Gathering
from analyzer.parameters.sums import Sums
from analyzer.peak_finder import Comparison, Disagreement
from analyzer.reduction import FrameProfile
from analyzer.results import Decision, FrameResult, Status
from streamer.messages import SeriesMetadata
from streamer.series import Series

WINDOWS = (100, 1000)
PROFILE_MEMORY_FRAMES = 1000
"""Frames after which the running profile has forgotten 63 %."""

LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
STAGE_BUCKETS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PROBABILITY_BUCKETS = (
    0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0,
)  # fmt: skip
_HISTORY = 2000
_SERIES_KEPT = 16


class ImageWindow:
    """Values of the latest images, keyed by image id, so that a late frame lands in its own place.

    Ids of successive series follow each other. Values: 1 yes, 0 no, or a probability; -1 not counted.
    """

    def __init__(self, size: int) -> None:
        self._ids = np.full(size, -1, np.int64)
        self._values = np.zeros(size)
        self._highest = -1

    def add(self, image: int, value: float) -> None:
        slot = image % len(self._ids)
        if image > self._highest:
            self._highest = image
        if image >= self._ids[slot]:
            self._ids[slot], self._values[slot] = image, value

    def counts(self, window: int) -> tuple[int, int]:
        """(yes, counted) among the last ``window`` images."""
        values = self.values(window)
        return int(values.sum()), len(values)

    def values(self, window: int) -> npt.NDArray[np.float64]:
        """The counted values among the last ``window`` images, in no order."""
        inside = (self._ids >= 0) & (self._ids > self._highest - window) & (self._values >= 0)
        return self._values[inside]


class Histogram:
    """Counts in fixed buckets, as Prometheus wants them."""

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(edges)
        self._counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def observe(self, values: Sequence[float]) -> None:
        # A batch is a few values: numpy would take ten times as long.
        for value in values:
            self._counts[bisect_left(self.edges, value)] += 1
        self.sum += sum(values)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper edge, the last one infinite."""
        cumulative = accumulate(self._counts)
        return [(str(edge), float(n)) for edge, n in zip((*self.edges, "+Inf"), cumulative, strict=True)]


def _smoothed(before: float | None, values: Sequence[float | None]) -> float | None:
    """A running mean into which a batch goes with a tenth."""
    known = [value for value in values if value is not None]
    if not known:
        return before
    mean = sum(known) / len(known)
    return mean if before is None else 0.9 * before + 0.1 * mean


@dataclass(slots=True)
class Running:
    """Running products of a run. ``began_at``: when the latest series did (Unix s). ``disagreement``: of a shadow
    finder, ``None`` without one; ``gathering``: sums of diffuse scattering, and spots of hits where the crystals' cell
    is known; ``metadata``: the header that was read last, of which no frame may have come yet. ``last_result_at``
    and ``last_beam_at``: when the last image analysed was published, and the last that saw beam (Unix s).
    ``indexable_frames``: since the program began, whatever is reset."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    hits: ImageWindow = field(default_factory=lambda: ImageWindow(max(WINDOWS)))
    indexable: ImageWindow = field(default_factory=lambda: ImageWindow(max(WINDOWS)))
    scores: ImageWindow = field(default_factory=lambda: ImageWindow(max(WINDOWS)))
    latency: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_S))
    stages: dict[str, Histogram] = field(default_factory=dict)
    profile: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, PROFILE_BINS * AZIMUTH_CLASSES)))
    profile_frames: float = 0.0
    gathering: Gathering = field(default_factory=Gathering)
    metadata: SeriesMetadata | None = None
    series_id: int | None = None
    series_began: int = 0
    began_at: float | None = None
    relative_flux: float | None = None
    background_photons: float | None = None
    hit_probabilities: Histogram = field(default_factory=lambda: Histogram(PROBABILITY_BUCKETS))
    indexable_frames: int = 0
    last_result_at: float | None = None
    last_beam_at: float | None = None
    last_hit: FrameResult | None = None
    last: FrameResult | None = None
    history: list[tuple[int, int, float]] = field(default_factory=list)
    disagreement: Disagreement | None = None
    _ordinal: int = 0
    _offsets: dict[int, int] = field(default_factory=dict)
    _next_offset: int = 0

    def begin(self, series: Series) -> None:
        """A series began, was joined or has new metadata."""
        with self.lock:
            if series.ordinal != self._ordinal:
                self._ordinal = series.ordinal
                self._place_series(series.ordinal)
                self.series_began += 1
                self.began_at = time.time()
                self.profile[:] = 0.0
                self.profile_frames = 0.0
            self.series_id, self.metadata = series.series_id, series.metadata

    @property
    def shown_header(self) -> SeriesMetadata | None:
        """That of the frames whose sums are shown, else the latest."""
        header = self.gathering.header
        return self.metadata if header is None else header

    def header_of(self, ordinal: int) -> SeriesMetadata | None:
        """The metadata of a series while it is the latest."""
        with self.lock:
            return self.metadata if ordinal == self._ordinal else None

    def end(self, series: Series, images: int) -> None:
        """A series is over; ``images`` is its highest image id and one."""
        with self.lock:
            if images <= MOST_IMAGES:
                self._next_offset = max(self._next_offset, self._place_series(series.ordinal) + images)

    def forget_judgements(self) -> None:
        """Another bundle or threshold judges from here on: what mixes both would be neither's."""
        with self.lock:
            self.hits, self.scores = ImageWindow(max(WINDOWS)), ImageWindow(max(WINDOWS))

    def forget_peaks(self) -> None:
        """Other peaks are found or asked for from here on."""
        self.forget_judgements()
        with self.lock:
            self.indexable = ImageWindow(max(WINDOWS))
            if self.gathering.spots is not None:
                self.gathering.spots.reset()
            self.history = []
            if self.disagreement is not None:
                self.disagreement.latest.clear()

    def compare_finders(self, names: tuple[str, str] | None) -> None:
        """The published finder and its shadow are these from here on; of others nothing is kept."""
        with self.lock:
            now = None if self.disagreement is None else (self.disagreement.published, self.disagreement.shadow)
            if names != now:
                self.disagreement = None if names is None else Disagreement(*names)

    def reset(self) -> None:
        """Forget what was shown so far; the series, its place and what Prometheus counts go on."""
        self.forget_peaks()
        with self.lock:
            self.profile[:] = 0.0
            self.profile_frames = 0.0
            self.gathering.reset()
            self.relative_flux = self.background_photons = self.last_hit = self.last = None

    def place_of(self, ordinal: int) -> int | None:
        """Where a series' images begin among all; ``None`` for one of long ago."""
        return self._offsets.get(ordinal)

    def _place_series(self, ordinal: int) -> int:
        """Where a series' images lie among all; late results of an earlier one keep their place."""
        if ordinal not in self._offsets:
            self._offsets[ordinal] = self._next_offset
            if len(self._offsets) > _SERIES_KEPT:
                del self._offsets[next(iter(self._offsets))]
        return self._offsets[ordinal]

    def received(self, seconds: Sequence[float]) -> None:
        """Frames went from their arrival to the queue in so many seconds each."""
        with self.lock:
            self.stages.setdefault("receive", Histogram(STAGE_BUCKETS_S)).observe(seconds)

    def add(
        self,
        results: Sequence[FrameResult],
        profiles: Sequence[npt.NDArray[np.float32]],
        stage_seconds: dict[str, float],
        comparisons: Sequence[Comparison | None] = (),
        diffuse: Sequence[FrameProfile] = (),
        peaks: Sequence[FramePeaks] = (),
        series: Sequence[Series] = (),
    ) -> None:
        """Take in a batch; ``profiles``, ``diffuse`` and ``peaks`` are those of its good results, in their order;
        ``series`` those of all results, each with the header that the frame had."""
        good = [result for result in results if result.status == Status.OK]
        of = [each for result, each in zip(results, series, strict=False) if result.status == Status.OK]
        of_good: Sequence[Series | None] = of or [None] * len(good)
        with self.lock:
            for result in good:
                self._add_one(result)
            if good:
                self.last = good[-1]
                self.relative_flux = _smoothed(self.relative_flux, [result.relative_flux for result in good])
                background = [result.background_photons for result in good]
                self.background_photons = _smoothed(self.background_photons, background)
                with_beam = [result for result in good if result.decision != Decision.NO_BEAM]
                self.last_result_at = now = time.time()
                if with_beam:
                    self.last_beam_at = now
                self.hit_probabilities.observe(
                    [result.hit_probability for result in with_beam if result.hit_probability is not None]
                )
                self.latency.observe([result.latency_s or 0.0 for result in good])
                for stage, seconds in stage_seconds.items():
                    self.stages.setdefault(stage, Histogram(STAGE_BUCKETS_S)).observe([seconds / len(good)])
            if profiles:
                kept = (1.0 - 1.0 / PROFILE_MEMORY_FRAMES) ** len(profiles)
                self.profile *= kept
                self.profile += np.sum(profiles, 0)
                self.profile_frames = self.profile_frames * kept + len(profiles)
            for result, one, seen in zip(good, of_good, diffuse, strict=False):
                self._add_diffuse(result, one, seen)
            for result, one, spots in zip(good, of_good, peaks, strict=False):
                self._add_spots(result, one, spots)
            if self.disagreement is not None:
                for comparison in comparisons:
                    self.disagreement.add(comparison)

    def _add_diffuse(self, result: FrameResult, series: Series | None, seen: FrameProfile) -> None:
        gathering, plan = self.gathering, seen.plan
        # Without beam, too, a frame says that its header is in use.
        if not gathering.takes(series, plan) or result.decision == Decision.NO_BEAM:
            return
        gathering.belongs(series)
        geometry = plan.geometry
        center = (geometry.beam_center_fs, geometry.beam_center_ss)
        saturated = (result.saturated_pixels or 0) > MOST_SATURATED * plan.sectors.pixels.sum()
        gathering.sums.add(plan.sectors, geometry.shape, center, seen.profile, seen.pairs, bool(result.hit), saturated)

    def _add_spots(self, result: FrameResult, series: Series | None, seen: FramePeaks) -> None:
        gathering = self.gathering
        if gathering.keeps_spots(series, seen.plan) and result.hit and gathering.spots is not None:
            gathering.spots.add(seen)

    def over(self, ordinal: int, *, copied: bool = True) -> Gathered | None:
        """What a series that is over and published is told from; see ``Gathering.over``."""
        with self.lock:
            return self.gathering.over(ordinal, copied=copied)

    def hit_spots(self) -> BraggSpots | None:
        """Those kept of this geometry's hits, another object when they begin anew."""
        with self.lock:
            return None if self.gathering.spots is None else self.gathering.spots.kept

    def diffuse_sums(self) -> Sums | None:
        """A copy of the sums of the frames' diffuse scattering."""
        with self.lock:
            return self.gathering.sums.copy()

    def _add_one(self, result: FrameResult) -> None:
        counted = result.decision != Decision.NO_BEAM
        if result.hit:
            self.last_hit = result
        self.indexable_frames += counted and bool(result.indexable)
        if result.image_id >= MOST_IMAGES:
            return
        place = self._place_series(result.ordinal) + result.image_id
        self._next_offset = max(self._next_offset, place + 1)
        self.hits.add(place, int(bool(result.hit)) if counted else -1)
        self.indexable.add(place, int(bool(result.indexable)) if counted else -1)
        if result.hit_probability is not None:
            self.scores.add(place, result.hit_probability if counted else -1)
        self.history.append((place, result.peak_count or 0, result.hit_probability or 0.0))
        if len(self.history) > 2 * _HISTORY:
            del self.history[:_HISTORY]

    def latest_history(self) -> list[tuple[int, int, float]]:
        """(place, peaks, hit probability) of the latest frames, in the order of their results; under the lock."""
        return self.history[-_HISTORY:]

    def snapshot(self) -> dict[str, Any]:
        """Plain values for the status page, consistent with each other."""
        with self.lock:
            ratios = {}
            for window in WINDOWS:
                yes, counted = self.hits.counts(window)
                ratios[str(window)] = yes / counted if counted else None
            return {
                "series_id": self.series_id,
                "hit_ratio": ratios,
                "relative_flux": self.relative_flux,
                "history": self.latest_history(),
                "last_hit": self.last_hit,
                "last": self.last,
                "peak_finders": None if self.disagreement is None else self.disagreement.facts,
            }
