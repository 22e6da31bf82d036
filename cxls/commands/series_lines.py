"""The line of the log at the end of a series, with what its frames say of photon energy and camera length.

An estimate takes up to 0.2 s, which the publisher has not. So lines are said by a thread of their own, in the order in
which series are over, with no more than a fifth of its time spent on estimates; a line may come moments later.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from analyzer import logs
from analyzer.front import SERIES_LINES, SeriesReport
from analyzer.parameters.gathered import Gathered
from analyzer.parameters.running import RunEstimate

log = logging.getLogger(__name__)

MOST_ESTIMATED = 8
"""Series that wait with their sums; the lines of further ones have no estimate of their own."""

_PAUSES = 4.0
_ENOUGH_MORE = 1.1
_RECENT_S = 1.0


@dataclass(frozen=True, slots=True)
class _Last:
    estimate: RunEstimate | None
    number: int
    frames: float
    at_s: float


class SeriesLines:
    """``over`` gives, once for each ordinal, what a series is told from; ``estimate`` what that says."""

    def __init__(
        self,
        over: Callable[[int, bool], Gathered | None],
        estimate: Callable[[Gathered], RunEstimate | None],
    ) -> None:
        self._over, self._estimate = over, estimate
        self._repeats = logs.Repeats(log, burst=SERIES_LINES)
        self._waiting: queue.SimpleQueue[tuple[SeriesReport, Gathered | None] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._last: _Last | None = None
        self._next_s = 0.0
        self._thread = threading.Thread(target=self._run, name="series lines", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def report(self, report: SeriesReport) -> None:
        """A series is over and published; returns at once."""
        few = self._waiting.qsize() < MOST_ESTIMATED
        self._waiting.put((report, self._over(report.closed.series.ordinal, few)))

    def close(self) -> None:
        """Say what is left, at once; after ``start``."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join()
        self._repeats.close()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            report, gathered = item
            try:
                _say(self._repeats, report, None if gathered is None else self._estimated(gathered))
            except Exception:
                # Whatever one line does, the next ones are said.
                log.exception("the line of a series failed")

    def _estimated(self, gathered: Gathered) -> RunEstimate | None:
        sums, last = gathered.sums, self._last
        if sums is None:
            return None
        now = time.monotonic()
        if (
            last is not None
            and last.number == sums.number
            and last.frames <= sums.frames < _ENOUGH_MORE * last.frames
            and now < last.at_s + _RECENT_S
        ):
            return last.estimate
        self._closing.wait(max(0.0, self._next_s - now))
        began = time.thread_time()
        try:
            estimate = self._estimate(gathered)
        except Exception:
            # Only shown, so a fault of it costs no line.
            log.exception("the photon energy and camera length of a series failed")
            estimate = None
        now = time.monotonic()
        self._next_s = now + _PAUSES * (time.thread_time() - began)
        self._last = _Last(estimate, sums.number, sums.frames, now)
        return estimate


def _say(repeats: logs.Repeats, report: SeriesReport, estimate: RunEstimate | None) -> None:
    closed = report.closed
    repeats.say(
        logging.INFO,
        "series_over",
        _text(report) + (f"; {estimate.text}" if estimate is not None else ""),
        "series_over",
        series_id=closed.series.series_id,
        why=closed.why,
        images=closed.accepted,
        announced=closed.announced,
        analysed=report.analysed,
        hits=report.hits,
        undecodable=report.undecodable,
        missing=closed.missing,
        suspect_pixels=report.suspect_pixels,
        **numbers(estimate),
    )


def _text(report: SeriesReport) -> str:
    closed = report.closed
    missing = sum(closed.missing.values())
    ratio = f"{report.hits / report.analysed:.1%}" if report.analysed else "none analysed"
    announced = "an unannounced number" if closed.announced is None else closed.announced
    text = (
        f"series {closed.series.series_id} over ({closed.why}): {closed.accepted} images of {announced}, "
        f"hits {report.hits} ({ratio})"
    )
    if report.analysed < closed.accepted - report.undecodable:
        text += f", {report.analysed} analysed"
    if missing:
        text += ", missing " + ", ".join(f"{n} {where}" for where, n in closed.missing.items() if n)
    if report.undecodable:
        text += f", undecodable {report.undecodable}"
    if report.suspect_pixels:
        text += f"; {report.suspect_pixels} pixels stayed zero where counts were expected"
    return text


def numbers(estimate: RunEstimate | None) -> dict[str, object]:
    """Photon energy and camera length of the run, for the log's event."""
    if estimate is None:
        return {}
    names = ("photon_energy_eV", "photon_energy_sigma_eV", "camera_length_m", "camera_length_sigma_m")
    return {name: estimate.facts.get(name) for name in names}
