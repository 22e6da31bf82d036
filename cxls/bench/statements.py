"""Time by statement of our own packages: what a profiler of functions cannot tell of compiled calls.

A call of a compiled kernel, of a library or of torch is one statement of ours, so that its time shows, whatever it does
inside. Time in functions of ours is that of their own statements, not of the caller's.
"""

import ast
import linecache
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import analyzer
import streamer

_ROOTS = tuple(package.__path__[0] for package in (analyzer, streamer))
_TEXT = 72

Place = tuple[str, int]
"""File and line."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Where it stands, its first line, and the seconds of CPU that this thread spent in it."""

    where: str
    text: str
    seconds: float


def timed(work: Callable[[], object]) -> list[Statement]:
    """Run ``work`` in this thread; its statements in our packages, the longest first.

    It runs slower under the watch, mostly where statements are short: the places are right, the sum is not.
    """
    spent: dict[Place, int] = defaultdict(int)
    now: Place | None = None
    last = 0

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal now, last
        moment = time.thread_time_ns()
        if event == "call" and not frame.f_code.co_filename.startswith(_ROOTS):
            return None
        if now is not None:
            spent[now] += moment - last
        now = _place(_ours(frame.f_back) if event == "return" else frame)
        del argument
        last = time.thread_time_ns()
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        work()
    finally:
        sys.settrace(before)
    found: dict[Place, int] = defaultdict(int)
    for (file, line), nanoseconds in spent.items():
        found[file, _starts(file).get(line, line)] += nanoseconds
    ordered = sorted(found.items(), key=lambda each: -each[1])
    return [Statement(*_described(place), nanoseconds / 1e9) for place, nanoseconds in ordered]


def _ours(frame: FrameType | None) -> FrameType | None:
    """The nearest caller that is ours: what lies between, such as torch, is part of its statement."""
    while frame is not None and not frame.f_code.co_filename.startswith(_ROOTS):
        frame = frame.f_back
    return frame


def _place(frame: FrameType | None) -> Place | None:
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


@cache
def _starts(file: str) -> dict[int, int]:
    """The first line of the innermost statement that each line belongs to."""
    starts: dict[int, int] = {}
    # Outer before inner, so that the inner one has the last word.
    for node in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(node, ast.stmt):
            starts.update(dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), node.lineno))
    return starts


def _described(place: Place) -> tuple[str, str]:
    file, line = place
    text = linecache.getline(file, line).strip()
    return f"{'/'.join(Path(file).parts[-2:])}:{line}", text if len(text) <= _TEXT else text[: _TEXT - 3] + "..."
