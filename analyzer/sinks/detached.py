"""A sink in a thread of its own: a slow disk delays records, never analysis."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence

from analyzer.logs import Repeats
from analyzer.results import FrameResult
from analyzer.sinks.base import Sink

log = logging.getLogger(__name__)

MAX_WAITING_BATCHES = 20_000
"""A batch is at most a few hundred records of a few kilobytes; a minute at a kilohertz fits."""

TICK_S = 1.0
"""How often a sink without new records may finish what it holds."""

CLOSE_S = 60.0
"""How long the end of a run waits for a sink that is behind."""


class DetachedSink:
    """Hands batches to another sink. What finds the queue full is counted as lost."""

    def __init__(self, sink: Sink, max_batches: int = MAX_WAITING_BATCHES) -> None:
        self._sink = sink
        self._overflow = self._failed = 0
        self._repeats = Repeats(log)
        self._waiting: queue.Queue[Sequence[FrameResult] | None] = queue.Queue(max_batches)
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Records that could not be written, or of which that is not known."""
        return self._sink.lost + self._overflow + self._failed

    def write(self, results: Sequence[FrameResult]) -> None:
        try:
            self._waiting.put_nowait(results)
        except queue.Full:
            if not self._overflow:
                log.error("an output is %d batches behind; its records are lost and counted", self._waiting.maxsize)
            self._overflow += len(results)

    def tick(self) -> None:
        """Nothing to do: the thread ticks the sink behind."""

    def close(self) -> None:
        """Write what waits, then close; gives up after ``CLOSE_S`` seconds and counts the rest as lost."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSE_S)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            while not self._waiting.empty():
                self._overflow += len(self._waiting.get_nowait() or ())
            log.error("an output did not finish in %.0f s; %d records are lost", CLOSE_S, self._overflow)
        self._repeats.close()

    def _run(self) -> None:
        while True:
            try:
                results = self._waiting.get(timeout=TICK_S)
            except queue.Empty:
                self._guarded(self._sink.tick)
                continue
            if results is None:
                break
            if not self._guarded(lambda results=results: self._sink.write(results)):  # type: ignore[misc]
                self._failed += len(results)
        if not self._guarded(self._sink.close):
            # How much it still held is not known; the run must not end as one that lost nothing.
            self._failed += 1

    def _guarded(self, work: Callable[[], None]) -> bool:
        """Whatever one batch does, the next ones are written, and what is lost is counted."""
        try:
            work()
        except Exception:
            self._repeats.exception("an output failed", "output_failed")
            return False
        return True
