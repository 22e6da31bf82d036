"""Results and looks for the tests of what is watched."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from analyzer.live.frames import Look
from analyzer.reduction import FramePlan
from analyzer.results import Decision, FrameResult
from streamer.frames import Frame
from streamer.series import Series
from tests.analyzer.builders import CHANNEL, frame, plan, series


def result(image_id: int, decision: Decision = Decision.MISS, at: float = 1000.0, **changes: Any) -> FrameResult:
    fields: dict[str, Any] = {
        "series_id": 1, "image_id": image_id, "channel": CHANNEL, "start_time": None, "exposure_s": None,
        "received_at": at, "latency_s": 0.01, "decision": decision, "hit": decision == Decision.HIT,
        "indexable": decision == Decision.HIT, "peak_count": 12 if decision == Decision.HIT else 1, "ordinal": 1,
    }  # fmt: skip
    return FrameResult(**(fields | changes))


@cache
def _made(shape: tuple[int, int]) -> tuple[Series, FramePlan]:
    return series(shape=shape), plan(shape)


@dataclass(frozen=True)
class Shot:
    """A frame and what a worker makes of it."""

    frame: Frame
    result: FrameResult
    plan: FramePlan


def shot(pixels: np.ndarray[Any, Any], image_id: int = 0, **changes: Any) -> Shot:
    """A frame of the one series of its shape."""
    shape = pixels.shape
    assert len(shape) == 2
    of, made = _made((shape[0], shape[1]))
    return Shot(frame(pixels, image_id, of), result(image_id, **changes), made)


def look(pixels: np.ndarray[Any, Any], image_id: int = 0, **changes: Any) -> Look:
    """The same as it is kept."""
    one = shot(pixels, image_id, **changes)
    return Look.of(one.frame, one.result, one.plan)
