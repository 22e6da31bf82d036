"""Counts of a program's whole time that the account does not have; a run is the difference of two of them.

The publisher adds, batch by batch; nothing is ever reset, so that a run's counts do not depend on what was shown.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.results import FrameResult
from streamer.account import Account

MOST_PEAKS = 2048
"""Of the histogram of a hit's peaks; its last bin holds that many and more."""

RESOLUTION_STEP_ANGSTROM = 0.02
_RESOLUTION_BINS = 2500
SERIES_KEPT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What came between two moments, of images whose fate is known.

    ``processed`` by decision, ``dropped`` by reason; ``indexed``: ``None`` where no indexer is followed. Medians are of
    hits, ``None`` without one; that of the resolution is to half a step of its histogram. ``series_ids``: those with a
    result, in the order in which they were measured.
    """

    processed: dict[str, int]
    dropped: dict[str, int]
    undecodable: int
    missing: int
    indexable: int
    indexed: int | None
    median_peaks: int | None
    median_resolution_angstrom: float | None
    series_ids: tuple[int, ...]

    @property
    def frames(self) -> int:
        """All of them: processed, dropped or undecodable."""
        return sum(self.processed.values()) + sum(self.dropped.values()) + self.undecodable


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """Counts since the program began. ``peaks`` (MOST_PEAKS + 1,) int64: hits by number of peaks; ``resolution`` int64:
    hits by resolution estimate in steps of ``RESOLUTION_STEP_ANGSTROM``; ``series``: of the latest, by ordinal, the id
    and the number of results when its last one came."""

    processed: dict[str, int]
    dropped: dict[str, int]
    undecodable: int
    missing: int
    indexable: int
    indexed: int | None
    results: int
    peaks: npt.NDArray[np.int64]
    resolution: npt.NDArray[np.int64]
    series: dict[int, tuple[int, int]]

    def since(self, began: "Totals") -> Counts:
        """What came between ``began`` and now."""
        found = _middle(self.resolution - began.resolution)
        return Counts(
            processed=_less(self.processed, began.processed),
            dropped=_less(self.dropped, began.dropped),
            undecodable=self.undecodable - began.undecodable,
            missing=self.missing - began.missing,
            indexable=self.indexable - began.indexable,
            indexed=None if self.indexed is None else self.indexed - (began.indexed or 0),
            median_peaks=_middle(self.peaks - began.peaks),
            median_resolution_angstrom=None if found is None else round((found + 0.5) * RESOLUTION_STEP_ANGSTROM, 3),
            series_ids=tuple(series_id for series_id, last in self.series.values() if last > began.results),
        )


class Tallies:
    """Adds up results; see ``Totals``. The publisher adds, any thread asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._indexable = 0
        self._results = 0
        self._peaks = np.zeros(MOST_PEAKS + 1, np.int64)
        self._resolution = np.zeros(_RESOLUTION_BINS, np.int64)
        self._series: dict[int, tuple[int, int]] = {}

    def add(self, results: Sequence[FrameResult]) -> None:
        """Take in a batch."""
        with self._lock:
            for result in results:
                self._results += 1
                # Ordered by when a series was first seen; a late result of an earlier one moves nothing.
                self._series[result.ordinal] = result.series_id, self._results
                self._indexable += bool(result.indexable)
                if result.hit:
                    self._peaks[min(result.peak_count or 0, MOST_PEAKS)] += 1
                    if (spacing := result.resolution_angstrom) is not None:
                        self._resolution[min(int(spacing / RESOLUTION_STEP_ANGSTROM), _RESOLUTION_BINS - 1)] += 1
            while len(self._series) > SERIES_KEPT:
                del self._series[next(iter(self._series))]

    def totals(self, account: Account, indexed: int | None = None) -> Totals:
        """All counts now, together with the account's."""
        with self._lock:
            return Totals(
                dict(account.processed),
                dict(account.dropped),
                sum(account.undecodable.values()),
                sum(account.missing.values()),
                self._indexable,
                indexed,
                self._results,
                self._peaks.copy(),
                self._resolution.copy(),
                dict(self._series),
            )


def _less(now: dict[str, int], began: dict[str, int]) -> dict[str, int]:
    return {key: count - began.get(key, 0) for key, count in now.items()}


def _middle(counts: npt.NDArray[Any]) -> int | None:
    """The bin of the median; of an even number of values that of the lower one."""
    total = int(counts.sum())
    return int(np.searchsorted(np.cumsum(counts), (total + 1) // 2)) if total else None
