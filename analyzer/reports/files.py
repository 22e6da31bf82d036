"""Reports on the disk: ``run-0012.html`` a run, and ``runs.csv``.

Written in a thread of its own. A fault costs a report: it is said and counted, and the analysis knows nothing of it.
"""

import contextlib
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from analyzer.pictures import Draw
from analyzer.placing import placed
from analyzer.reports.page import make_page
from analyzer.reports.rows import header_line, row_line
from analyzer.reports.table_file import OtherColumns, append_row, check_table
from analyzer.runs import Capture

log = logging.getLogger(__name__)

TABLE = "runs.csv"
CLOSE_S = 60.0
"""How long the end of the program waits for the last report."""

_LEFT_S = 3600.0
"""An unfinished page that is older was left by a kill."""

_MOST_WAITING = 4
"""Runs that end faster than their reports are written: each holds its pictures' arrays in memory."""


class BadReports(ValueError):
    """A folder that reports cannot be written into: one line with what to do."""


def prepare(folder: Path) -> None:
    """Make the folder and see that reports can be written there. Raises ``BadReports``, ``OSError``."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    for unfinished in folder.glob(".run-*.html.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > _LEFT_S:
                unfinished.unlink()
    try:
        check_table(folder / TABLE, header_line())
    except OtherColumns as error:
        raise BadReports(str(error)) from None


class ReportFiles(Collector):
    """Writes what runs leave into ``folder``, which ``prepare`` has seen."""

    def __init__(self, folder: Path, draw: Draw) -> None:
        self.folder, self._draw = folder, draw
        self.unwritten = 0
        self._waiting: queue.Queue[Callable[[], Capture] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        self._thread.start()

    def collect(self) -> Iterator[Metric]:
        """``cxls_reports_unwritten_total``."""
        yield CounterMetricFamily(
            "cxls_reports_unwritten", "Runs whose report or row could not be written", value=self.unwritten
        )

    def write(self, capture: Capture) -> None:
        """Write this run's report and row as soon as may be; waits for nothing."""
        try:
            self._waiting.put_nowait(lambda: capture)
        except queue.Full:
            self._lost("runs end faster than their reports can be written")

    def close(self, last: Callable[[], Capture]) -> None:
        """Write the last run and whatever waits, for ``CLOSE_S`` at most."""
        deadline = time.monotonic() + CLOSE_S
        try:
            self._waiting.put(last, timeout=CLOSE_S)
            self._waiting.put(None, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._lost(f"{self.folder} was not written in {CLOSE_S:.0f} s")

    def _run(self) -> None:
        while (take := self._waiting.get()) is not None:
            try:
                capture = take()
                if not _is_nothing(capture):
                    self._place(capture)
            except Exception as error:
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                self._lost(f"{self.folder} could not be written: {' '.join(str(why).split())}")

    def _place(self, capture: Capture) -> None:
        # The row first: it is what is asked of a run when nothing else is left.
        append_row(self.folder / TABLE, header_line(), row_line(capture.summary))
        path = self._free_path(capture.summary.info.name)
        with placed(path) as temporary:
            temporary.write_bytes(make_page(capture, self._draw))
        log.info("report of run %s: %s", capture.summary.info.name, path)

    def _free_path(self, name: str) -> Path:
        """The report's path; a number that was used before gets a second one."""
        path, again = self.folder / f"run-{name}.html", 2
        while path.exists():
            path, again = self.folder / f"run-{name}-{again}.html", again + 1
        return path

    def _lost(self, why: str) -> None:
        self.unwritten += 1
        log.warning("reports: %s", why)


def _is_nothing(capture: Capture) -> bool:
    """Whether nothing came, and nobody said what the run was to be."""
    info = capture.summary.info
    return capture.summary.counts.frames == 0 and info.number is None and not info.sample and not info.notes
