"""What the indexer found of the hits that were handed out: the join by event id, and its running products."""

import logging
import threading
from collections import Counter, deque
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from analyzer.indexing.stream_file import Chunk, Crystal

log = logging.getLogger(__name__)

WINDOWS = (100, 1000)
CRYSTALS_KEPT = 1000
"""The running cell and resolution are of so many of the latest crystals."""

CELLS_SHOWN = 500
"""Most cells of the usual lattice that are drawn, the latest."""

HITS_REMEMBERED = 100_000
"""Handed-out event ids kept for the join, the latest; an indexer is rarely a thousand hits behind."""

_SIGMA_PER_MAD = 1.4826
"""A normal distribution's standard deviation in units of its median absolute deviation."""

_AXES, _ANGLES = ("a", "b", "c"), ("alpha", "beta", "gamma")
_M_PER_ANGSTROM = 1e-10


class Outcome(StrEnum):
    """What a chunk of the stream says of a hit."""

    INDEXED = "indexed"
    """handed out by us, at least one lattice"""
    NOT_INDEXED = "not_indexed"
    """handed out by us, no lattice"""
    REPEATED = "repeated"
    """joined before; counts once"""
    UNKNOWN = "unknown"
    """an event id that is none of this run's"""
    NO_EVENT_ID = "no_event_id"
    """indexamajig was started without --copy-header=event_id"""


class Outcomes:
    """Joins chunks to hits. The server's thread hands out, the follower's adds, HTTP threads read: one lock."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = dict.fromkeys(Outcome, 0)
        self._lock = threading.Lock()
        self._seen: dict[str, bool] = {}
        self._window: deque[bool] = deque(maxlen=max(WINDOWS))
        self._crystals: deque[Crystal] = deque(maxlen=CRYSTALS_KEPT)
        self._peak_resolutions: deque[float] = deque(maxlen=max(WINDOWS))
        self._crystal_count = 0

    def handed_out(self, event_id: str) -> None:
        """An indexer has this hit now."""
        with self._lock:
            self._seen[event_id] = False
            if len(self._seen) > HITS_REMEMBERED:
                del self._seen[next(iter(self._seen))]

    def add(self, chunk: Chunk) -> None:
        """Join a chunk of the stream."""
        with self._lock:
            outcome = self._join(chunk)
            self.counts[outcome] += 1
        if outcome == Outcome.NO_EVENT_ID and self.counts[outcome] == 1:
            log.warning("the stream names no event ids; start indexamajig with --copy-header=event_id")

    def _join(self, chunk: Chunk) -> Outcome:
        if chunk.event_id is None:
            return Outcome.NO_EVENT_ID
        seen = self._seen.get(chunk.event_id)
        if seen is None:
            return Outcome.UNKNOWN
        if seen:
            return Outcome.REPEATED
        self._seen[chunk.event_id] = True
        self._window.append(chunk.indexed)
        if chunk.peak_resolution_angstrom is not None:
            self._peak_resolutions.append(chunk.peak_resolution_angstrom)
        if not chunk.indexed:
            return Outcome.NOT_INDEXED
        self._crystals.extend(chunk.crystals)
        self._crystal_count += len(chunk.crystals)
        return Outcome.INDEXED

    def facts(self) -> dict[str, Any]:
        """Plain values for the status page. Lengths in angstrom, angles in degrees."""
        with self._lock:
            counts, latest = dict(self.counts), list(self._window)
            crystals, count = list(self._crystals), self._crystal_count
            peak_resolutions = list(self._peak_resolutions)
        indexed, joined = counts[Outcome.INDEXED], counts[Outcome.INDEXED] + counts[Outcome.NOT_INDEXED]
        lattice, cells = _usual_cells(crystals)
        return {
            "outcomes": counts,
            "indexed_ratio": {
                "all": indexed / joined if joined else None,
                **{str(window): float(np.mean(latest[-window:])) if latest else None for window in WINDOWS},
            },
            "crystals": count,
            "lattices": dict(Counter(crystal.lattice for crystal in crystals)),
            "lattice": lattice,
            "cell": _spread_of(cells),
            "resolution_angstrom": _median(
                [c.resolution_angstrom for c in crystals if c.resolution_angstrom is not None]
            ),
            "peak_resolution_angstrom": _median(peak_resolutions),
            "cells": cells[-CELLS_SHOWN:],
        }

    def collect(self) -> Iterator[Metric]:
        """The same as metrics, in metres where a length."""
        facts = self.facts()
        results = CounterMetricFamily(
            "cxls_index_results", "Frames in the indexer's stream, by what they say of our hits", labels=["outcome"]
        )
        for outcome, count in facts["outcomes"].items():
            results.add_metric([outcome], count)
        yield results
        yield CounterMetricFamily("cxls_index_crystals", "Lattices found in our hits", value=facts["crystals"])
        ratio = GaugeMetricFamily(
            "cxls_indexed_ratio", "Indexed among the latest hits that the indexer is done with", labels=["window"]
        )
        for window in WINDOWS:
            if facts["indexed_ratio"][str(window)] is not None:
                ratio.add_metric([str(window)], facts["indexed_ratio"][str(window)])
        yield ratio
        lengths = GaugeMetricFamily(
            "cxls_cell_length_meters",
            "Cell edges of the usual lattice among the latest crystals; the sigma is robust",
            labels=["axis", "statistic"],
        )
        angles = GaugeMetricFamily(
            "cxls_cell_angle_degrees",
            "Cell angles of the usual lattice among the latest crystals; the sigma is robust",
            labels=["angle", "statistic"],
        )
        for statistic, values in facts["cell"].items():
            for name, value in values.items():
                if name in _AXES:
                    lengths.add_metric([name, statistic], _or_nan(value, _M_PER_ANGSTROM))
                else:
                    angles.add_metric([name, statistic], _or_nan(value))
        yield lengths
        yield angles
        resolution = GaugeMetricFamily(
            "cxls_index_resolution_meters", "Median resolution of the latest crystals, and of peaks", labels=["of"]
        )
        resolution.add_metric(["crystals"], _or_nan(facts["resolution_angstrom"], _M_PER_ANGSTROM))
        resolution.add_metric(["peaks"], _or_nan(facts["peak_resolution_angstrom"], _M_PER_ANGSTROM))
        yield resolution


def _usual_cells(crystals: list[Crystal]) -> tuple[str | None, list[tuple[float, ...]]]:
    """The most frequent lattice and its cells: a median over different lattices would be none's."""
    with_cell = [(crystal.lattice, crystal.cell) for crystal in crystals if crystal.cell is not None]
    if not with_cell:
        return None, []
    usual = Counter(lattice for lattice, _ in with_cell).most_common(1)[0][0]
    return usual, [cell for lattice, cell in with_cell if lattice == usual]


def _spread_of(cells: list[tuple[float, ...]]) -> dict[str, dict[str, float | None]]:
    """Median and robust sigma of each cell parameter; ``None`` without cells."""
    names = (*_AXES, *_ANGLES)
    if not cells:
        return {"median": dict.fromkeys(names), "sigma": dict.fromkeys(names)}
    table = np.array(cells)
    median = np.median(table, axis=0)
    sigma = _SIGMA_PER_MAD * np.median(np.abs(table - median), axis=0)
    return {
        "median": dict(zip(names, median.round(4).tolist(), strict=True)),
        "sigma": dict(zip(names, sigma.round(4).tolist(), strict=True)),
    }


def _median(values: list[float]) -> float | None:
    return round(float(np.median(values)), 3) if values else None


def _or_nan(value: float | None, factor: float = 1.0) -> float:
    return float("nan") if value is None else value * factor
