"""What a run did over time and over its images, in bins that a late frame still finds.

A frame counts in the second it arrived and at its own image id, whenever its result comes. Rates are another matter:
what is analysed a second, and how late, is of the results that were published in it, however long ago their frames
arrived; else an analysis that is behind would seem to stand. The reader adds arrivals and the publisher results, many
at a time; HTTP threads read copies.
"""

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from analyzer.results import Decision, FrameResult, Status

SECONDS_KEPT, MINUTES_KEPT = 900, 1440
IMAGE_BINS = 1024
"""Most bins along the images; when a run needs more, two become one."""

FIRST_IMAGE_WIDTH = 10
SERIES_KEPT = 64
LATENCIES_KEPT = 2048
MOST_IMAGES = 1 << 40
"""Beyond this a detector's ids are no count of images."""

RATE_S = 10.0
"""Rates are means over so many seconds."""

COLUMNS = ("received", "analysed", "beam", "hits", "indexable", "dropped", "peaks", "latency_s")
"""Of a bin of time. ``received`` are frames accepted; ``peaks`` is a sum over frames with beam; ``latency_s`` the
longest, ``None`` without a result; ``dropped`` are images lost to load or to the end of a run, not those that sampling
left out."""

_OF_IMAGES = ("beam", "hits", "indexable")
_RECEIVED, _ANALYSED, _BEAM, _HITS, _INDEXABLE, _DROPPED, _PEAKS, _LATENCY = range(len(COLUMNS))


class TimeBins:
    """Sums by bins of ``width_s`` seconds of Unix time, the latest ``kept`` of them."""

    def __init__(self, width_s: int, kept: int) -> None:
        self.width_s, self._kept = width_s, kept
        self._bins: dict[int, list[float]] = {}
        self._latest = -1

    def row(self, at_s: float) -> list[float]:
        """The bin to add to. One from before all that is kept means that the clock was set back: it begins anew."""
        index = int(at_s // self.width_s)
        row = self._bins.get(index)
        if row is not None:
            return row
        if index <= self._latest - self._kept:
            self._bins, self._latest = {}, -1
        row = self._bins[index] = [0.0] * len(COLUMNS)
        if index > self._latest:
            self._latest = index
            for old in [each for each in self._bins if each <= index - self._kept]:
                del self._bins[old]
        return row

    def columns(self) -> dict[str, Any]:
        """Bins from the first to the last without a gap: ``t`` (where each begins, Unix s) and ``COLUMNS``."""
        found: dict[str, Any] = {"width_s": self.width_s, "t": [], **{name: [] for name in COLUMNS}}
        if not self._bins:
            return found
        empty = [0.0] * len(COLUMNS)
        for index in range(min(self._bins), self._latest + 1):
            row = self._bins.get(index, empty)
            found["t"].append(index * self.width_s)
            for name, value in zip(COLUMNS[:-1], row, strict=False):
                found[name].append(int(value))
            found["latency_s"].append(round(row[_LATENCY], 4) if row[_ANALYSED] else None)
        return found

    def total(self, column: int, first_s: float, last_s: float) -> float:
        """The sum of a column over the bins that begin from ``first_s`` to before ``last_s``."""
        first, last = math.ceil(first_s / self.width_s), math.ceil(last_s / self.width_s)
        return sum(row[column] for index, row in self._bins.items() if first <= index < last)


class ImageBins:
    """Frames with beam, hits and indexable ones by place among all images of a run."""

    def __init__(self) -> None:
        self.width = FIRST_IMAGE_WIDTH
        self._bins: dict[int, list[int]] = {}

    def row(self, place: int) -> list[int]:
        """The bin of a place: ``_OF_IMAGES``."""
        row = self._bins.get(place // self.width)
        while row is None:
            row = self._bins[place // self.width] = [0, 0, 0]
            if len(self._bins) > IMAGE_BINS:
                self._halve()
                row = self._bins.get(place // self.width)
        return row

    def _halve(self) -> None:
        self.width *= 2
        merged: dict[int, list[int]] = {}
        for index, row in self._bins.items():
            into = merged.setdefault(index // 2, [0, 0, 0])
            for n, value in enumerate(row):
                into[n] += value
        self._bins = merged

    def columns(self) -> dict[str, Any]:
        """``first`` image of each bin in order, and its counts."""
        order = sorted(self._bins)
        counts = {name: [self._bins[index][n] for index in order] for n, name in enumerate(_OF_IMAGES)}
        return {"width": self.width, "first": [index * self.width for index in order], **counts}


class History:
    """The run so far. ``place_of`` says where a series' images begin among all, ``None`` where that is not known."""

    def __init__(self, place_of: Callable[[int], int | None]) -> None:
        self._place_of = place_of
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        with self._lock:
            self._seconds, self._minutes = TimeBins(1, SECONDS_KEPT), TimeBins(60, MINUTES_KEPT)
            self._images = ImageBins()
            self._published = TimeBins(1, 2 * math.ceil(RATE_S))
            self._series: deque[dict[str, Any]] = deque(maxlen=SERIES_KEPT)
            self._latencies: deque[tuple[float, float]] = deque(maxlen=LATENCIES_KEPT)

    def begin_series(self, series_id: int, ordinal: int, now: float) -> None:
        """A series began or was joined."""
        place = self._place_of(ordinal)
        with self._lock:
            if not self._series or self._series[-1]["ordinal"] != ordinal:
                self._series.append(
                    {"series_id": series_id, "ordinal": ordinal, "began_at": round(now, 3), "first_image": place or 0}
                )

    def arrived(self, times_s: Sequence[float]) -> None:
        """Frames were accepted; ``times_s`` is when each arrived (Unix s)."""
        with self._lock:
            for second, count in Counter(map(int, times_s)).items():
                for bins in (self._seconds, self._minutes):
                    bins.row(second)[_RECEIVED] += count

    def add(self, results: Sequence[FrameResult]) -> None:
        """Take in a batch of results, published together."""
        analysed = hits = 0
        published_at = 0.0
        with self._lock:
            for result in results:
                for bins in (self._seconds, self._minutes):
                    _enter(bins.row(result.received_at), result)
                if result.status == Status.OK:
                    latency_s = result.latency_s or 0.0
                    published_at = result.received_at + latency_s
                    analysed += 1
                    hits += bool(result.hit)
                    self._latencies.append((published_at, latency_s))
                    self._add_image(result)
            if analysed:
                row = self._published.row(published_at)
                row[_ANALYSED] += analysed
                row[_HITS] += hits

    def _add_image(self, result: FrameResult) -> None:
        first = self._place_of(result.ordinal)
        if result.decision == Decision.NO_BEAM:
            return
        if first is None or result.image_id >= MOST_IMAGES:
            return
        row = self._images.row(first + result.image_id)
        row[0] += 1
        row[1] += bool(result.hit)
        row[2] += bool(result.indexable)

    def curves(self) -> dict[str, Any]:
        """All bins: ``time`` by second, ``minutes``, ``images`` and ``series``, where each began."""
        with self._lock:
            return {
                "time": self._seconds.columns(),
                "minutes": self._minutes.columns(),
                "images": self._images.columns(),
                "series": list(self._series),
            }

    def rates(self, now: float) -> dict[str, float | None]:
        """Means over the last whole ``RATE_S`` seconds: frames that arrived, and results that were published.

        Percentiles are of the latency of those results, ``None`` where there are none.
        """
        last = math.floor(now)
        first = last - RATE_S
        with self._lock:
            frames = self._seconds.total(_RECEIVED, first, last) / RATE_S
            analysed, hits = (self._published.total(column, first, last) / RATE_S for column in (_ANALYSED, _HITS))
            latencies = [seconds for at, seconds in self._latencies if at >= now - RATE_S]
        p50, p99 = (None, None) if not latencies else (round(float(v), 4) for v in np.percentile(latencies, (50, 99)))
        return {
            "frames_hz": frames,
            "analysed_hz": analysed,
            "hits_hz": hits,
            "latency_p50_s": p50,
            "latency_p99_s": p99,
        }


def _enter(row: list[float], result: FrameResult) -> None:
    if result.status != Status.OK:
        row[_DROPPED] += result.status == Status.DROPPED and result.reason != "sampled"
        return
    row[_ANALYSED] += 1
    row[_LATENCY] = max(row[_LATENCY], result.latency_s or 0.0)
    if result.decision != Decision.NO_BEAM:
        row[_BEAM] += 1
        row[_HITS] += bool(result.hit)
        row[_INDEXABLE] += bool(result.indexable)
        row[_PEAKS] += result.peak_count or 0
