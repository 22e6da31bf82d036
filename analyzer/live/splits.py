"""Hits by what a frame is tagged with: one tag's values (pump laser on or off), or two numbers (scan position)."""

import itertools
import math
import threading
from collections.abc import Sequence
from typing import Any

from analyzer.intervals import wilson
from analyzer.results import Decision, FrameResult, Status

MOST_VALUES = 16
"""Of the tag that splits; further ones count together."""

OTHER, ABSENT = "other values", "not tagged"
MOST_CELLS = 4096
_LABEL = 40
_FINEST = 1e-9


class TagSplit:
    """Counts by the values of ``tag``."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._counts: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    def reset(self) -> None:
        with self._lock:
            self._counts = {}

    def add(self, results: Sequence[FrameResult]) -> None:
        """Take in a batch; frames without beam are left out."""
        with self._lock:
            for result in results:
                if result.status != Status.OK or result.decision == Decision.NO_BEAM:
                    continue
                row = self._row(_label((result.tags or {}).get(self.tag)))
                row[0] += 1
                row[1] += bool(result.hit)
                row[2] += bool(result.indexable)

    def _row(self, label: str) -> list[int]:
        if label not in self._counts and label != ABSENT and len(self._counts) >= MOST_VALUES:
            label = OTHER
        return self._counts.setdefault(label, [0, 0, 0])

    def facts(self) -> dict[str, Any]:
        """Each value's frames with beam, hits, indexable ones, and the hit ratio with Wilson's 95 % interval."""
        with self._lock:
            rows = {label: tuple(row) for label, row in self._counts.items()}
        values = []
        for label in sorted(rows, key=lambda each: (each in (OTHER, ABSENT), each)):
            beam, hits, indexable = rows[label]
            low, high = wilson(hits, beam)
            values.append(
                {
                    "value": label, "beam": beam, "hits": hits, "indexable": indexable,
                    "ratio": hits / beam, "low": low, "high": high,
                }
            )  # fmt: skip
        return {"tag": self.tag, "values": values}


class TagMap:
    """Counts by two numbers, on a grid that becomes coarser where there are too many places.

    Cells begin at multiples of a step, at first a very small one; steps double, of the axis with more places first.
    """

    def __init__(self, x: str, y: str) -> None:
        self.tags = (x, y)
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._step = [_FINEST, _FINEST]
            self._cells: dict[tuple[int, int], list[int]] = {}

    def add(self, results: Sequence[FrameResult]) -> None:
        """Take in a batch; frames without beam, and those not tagged with two finite numbers, are left out."""
        with self._lock:
            for result in results:
                if result.status != Status.OK or result.decision == Decision.NO_BEAM or not result.tags:
                    continue
                x, y = (_number(result.tags.get(tag)) for tag in self.tags)
                if x is None or y is None:
                    continue
                key = math.floor(x / self._step[0]), math.floor(y / self._step[1])
                row = self._cells.setdefault(key, [0, 0])
                row[0] += 1
                row[1] += bool(result.hit)
                while len(self._cells) > MOST_CELLS:
                    self._coarsen()

    def _coarsen(self) -> None:
        axis = 0 if len({x for x, _ in self._cells}) >= len({y for _, y in self._cells}) else 1
        self._step[axis] *= 2
        merged: dict[tuple[int, int], list[int]] = {}
        for (x, y), row in self._cells.items():
            key = (x // 2, y) if axis == 0 else (x, y // 2)
            into = merged.setdefault(key, [0, 0])
            into[0] += row[0]
            into[1] += row[1]
        self._cells = merged

    def facts(self) -> dict[str, Any]:
        """``cells`` of [x, y, frames with beam, hits], places in their middles, ``step``: how large to draw them."""
        with self._lock:
            cells = [
                [(x + 0.5) * self._step[0], (y + 0.5) * self._step[1], *row] for (x, y), row in self._cells.items()
            ]
            grid = tuple(self._step)
        step = [max(grid[axis], _spacing({cell[axis] for cell in cells})) for axis in (0, 1)]
        return {"tags": list(self.tags), "step": step, "cells": sorted(cells)}


def _spacing(places: set[float]) -> float:
    """The usual distance between neighbours."""
    order = sorted(places)
    gaps = sorted(after - before for before, after in itertools.pairwise(order))
    return gaps[len(gaps) // 2] if gaps else 0.0


def _label(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value if isinstance(value, str) else repr(value)
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= _LABEL else text[: _LABEL - 1] + "…"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) < 1e9 else None
