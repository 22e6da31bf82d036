"""A worker that answers without looking, so that what is measured is the way there and back.

``python -m cxls.bench.idle_worker ADDRESS shared|wire [SECRET_KEY FRONT_KEY]``; keys as of ``cxls worker-keys``.
"""

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace

from analyzer.cascade import Analyser, BatchOutcome, PlanCache
from analyzer.crew.curve import WorkerKeys
from analyzer.crew.worker import Worker
from analyzer.judge import Judge
from cxls import allocator
from streamer.frames import Frame
from streamer.series import Series


class Idle(Analyser):
    """Says of every frame what it found in the first of its kind."""

    _first: tuple[Series, BatchOutcome] | None = None

    def process(self, frames: Sequence[Frame]) -> BatchOutcome:
        if self._first is None or self._first[0] is not frames[0].series:
            self._first = (frames[0].series, super().process(frames[:1]))
        first = self._first[1]
        outcome = BatchOutcome(
            [
                replace(
                    first.results[0],
                    series_id=frame.series.series_id,
                    image_id=frame.image_id,
                    received_at=frame.received_at,
                    ordinal=frame.series.ordinal,
                )
                for frame in frames
            ],
            stage_seconds=first.stage_seconds,
        )
        outcome.profiles = first.profiles * len(frames)
        outcome.peaks, outcome.diffuse = first.peaks * len(frames), first.diffuse * len(frames)
        return outcome


def make(judge: Judge) -> Analyser:
    return Idle(judge.bundle, judge.settings, "cpu", PlanCache())


if __name__ == "__main__":
    allocator.settle()
    shared = sys.argv[2] == "shared"
    given = [each.encode() for each in sys.argv[3:]]
    keys = WorkerKeys(*given) if given else None
    Worker(sys.argv[1], make, name="idle", batch_frames=8, once=True, shared=shared, keys=keys).run(threading.Event())
