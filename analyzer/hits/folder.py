"""Hits to a folder: a bounded queue, one thread that journals them and makes files of the journal, one for the lists.

Policy. A hit is taken when the queue has room for its bytes, else it is lost and counted; nobody waits. The thread
appends it to the journal, and every ``journal_hits`` hits, ``journal_s`` seconds or ``file_bytes`` bytes the journal
becomes files and goes; sooner where the disk has hardly room for both, so that a full disk never holds a journal of
which no file can be made. A disk that fails costs no hit that the queue can hold: the same hit is tried again every
``RETRY_S`` seconds, and what meanwhile finds the queue full is lost because of the disk. A journal of which no file
can be made stays, and is tried again too. Each fault is one line in the log when it begins and one when it is over.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from analyzer.hits.files import make_files
from analyzer.hits.held import Held
from analyzer.hits.listing import Listing
from analyzer.hits.lists import Lists
from analyzer.hits.places import (
    JOURNALS,
    UnusableFolder,
    new_run,
    prepare_folder,
    reason,
    run_lock,
    sync_folder,
)
from analyzer.hits.recover import Recovery, recover, settle
from analyzer.hits.writer import JournalWriter
from analyzer.logs import Repeats
from analyzer.panels import GivenGeometry
from analyzer.results import FrameResult
from streamer.frames import Frame
from streamer.messages import ImageData

log = logging.getLogger(__name__)

LOST_REASONS = ("queue_full", "disk", "failed", "shutdown")
RETRY_S = 1.0
CLOSE_S = 60.0
"""How long the end of a run waits for a disk on which nothing moves."""
_WHAT = {"journal": "hits", "files": "files of hits", "lists": "lists of hits"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HitFolderSettings:
    """``queue_bytes``: most packed frames waiting in memory; ``append``: hits that earlier runs put into files are not
    written again. The others: when a journal becomes files.
    """

    queue_bytes: int = 512 << 20
    file_bytes: int = 512 << 20
    journal_hits: int = 100
    journal_s: float = 10.0
    append: bool = False


@dataclass(frozen=True, slots=True)
class _Waiting:
    frame: Frame
    image: ImageData
    result: FrameResult
    nbytes: int


class HitFolder:
    """Writes hits to a folder; see ``HitOutput``. ``recovered`` is what earlier runs had left there.

    ``geometry`` is the geometry file of the analysis, of which its ``.geom`` is then made. Raises ``UnusableFolder``
    when the folder cannot be written to.
    """

    name = "hits"

    def __init__(
        self, folder: Path, settings: HitFolderSettings | None = None, geometry: GivenGeometry | None = None
    ) -> None:
        self.folder = folder
        self.written = 0
        self.files = 0
        self.repeated = 0
        self.lost = dict.fromkeys(LOST_REASONS, 0)
        self._settings = settings or HitFolderSettings()
        prepare_folder(folder)
        try:
            # A recovery that comes upon the new lock first takes it for that of a run that is over.
            while True:
                self._run_name = new_run()
                self._lock = run_lock(folder, self._run_name)
                if self._lock.acquire():
                    break
        except OSError as error:
            raise UnusableFolder(f"{folder}: {reason(error)}; choose a folder that can be written") from None
        self.recovered = _recover(folder, self._run_name)
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._journaled = 0
        self._changed = threading.Condition()
        self._closing = False
        self._faults: dict[str, str] = {}
        self._writer = JournalWriter(folder, self._run_name, geometry)
        lists = Lists(folder)
        # Before the first hit can come: it reads the ids of every file.
        self._held = Held(folder, lists) if self._settings.append else None
        self._retry_at = 0.0
        self._steps = 0
        self._repeats = Repeats(log)
        self._listing = Listing(folder, lists, self._step, self._listed)
        if self.recovered.files:
            self._listing.due()
        self._thread = threading.Thread(target=self._run, name="hits", daemon=True)
        self._thread.start()

    # --- what workers and pages call ----------------------------------------------------

    def offer(self, frame: Frame, result: FrameResult) -> None:
        """Take a hit, or count it as lost; neither waits nor raises."""
        if not isinstance(frame.image, ImageData):
            return
        nbytes = frame.held_bytes
        with self._changed:
            # A hit larger than the whole queue still passes when it is alone.
            if self._closing:
                self.lost["shutdown"] += 1
            elif not self._waiting_bytes or self._waiting_bytes + nbytes <= self._settings.queue_bytes:
                self._waiting.append(_Waiting(frame, frame.image, result, nbytes))
                self._waiting_bytes += nbytes
                self._changed.notify_all()
                return
            else:
                self.lost["disk" if "journal" in self._faults else "queue_full"] += 1
            if self._faults:
                return
        text = f"{self.folder}: hits come faster than they can be written; those lost are counted"
        self._repeats.warning("behind", text, "hits_behind")

    @property
    def lost_hits(self) -> int:
        return sum(self.lost.values())

    @property
    def unfinished(self) -> int:
        """Hits that are in no file yet: in the queue or in a journal."""
        return len(self._waiting) + self._journaled

    def facts(self) -> dict[str, Any]:
        with self._changed:
            return {
                "folder": str(self.folder),
                "written": self.written,
                "files": self.files,
                "waiting": self.unfinished,
                "lost": dict(self.lost),
                "recovered": self.recovered.hits,
                "repeated": self.repeated,
                "fault": next(iter(dict(self._faults).values()), None),
            }

    def collect(self) -> Iterator[Metric]:
        with self._changed:
            written, files, lost_by = self.written, self.files, dict(self.lost)
            queued, journaled, nbytes = len(self._waiting), self._journaled, self._waiting_bytes
        yield CounterMetricFamily("cxls_hits_written", "Hits in finished files", value=written)
        yield CounterMetricFamily("cxls_hits_files", "Files of hits finished", value=files)
        yield CounterMetricFamily(
            "cxls_hits_recovered", "Hits of earlier runs put into files when this one began", value=self.recovered.hits
        )
        yield CounterMetricFamily(
            "cxls_hits_repeated", "Hits that the folder held already, and not written again", value=self.repeated
        )
        lost = CounterMetricFamily("cxls_hits_lost", "Hits that were not written, by reason", labels=["reason"])
        for why in LOST_REASONS:
            lost.add_metric([why], lost_by[why])
        yield lost
        waiting = GaugeMetricFamily("cxls_hits_waiting", "Hits that are in no file yet, by place", labels=["place"])
        waiting.add_metric(["queue"], queued)
        waiting.add_metric(["journal"], journaled)
        yield waiting
        yield GaugeMetricFamily("cxls_hits_waiting_bytes", "Memory of waiting hits", value=nbytes)
        yield GaugeMetricFamily(
            "cxls_hits_disk_fault", "1 while hits cannot be written, else 0", value=float(bool(self._faults))
        )

    def close(self) -> None:
        """Write what waits and finish the files; gives up when nothing has moved for ``CLOSE_S`` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        steps, deadline = self._steps, time.monotonic() + CLOSE_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(min(1.0, CLOSE_S))
            if steps != self._steps:
                steps, deadline = self._steps, time.monotonic() + CLOSE_S
        if self._thread.is_alive():
            with self._changed:
                while len(self._waiting) > 1:  # the first is in hand
                    self._waiting_bytes -= self._waiting.pop().nbytes
                    self.lost["shutdown"] += 1
            log.error(
                "%s: the disk has stood still for %.0f s; `cxls data recover %s` makes files of what is in the journal",
                self.folder,
                CLOSE_S,
                self.folder,
            )

    # --- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._closing:
                    self._changed.wait(self._until_next())
                closing = self._closing
                item = self._waiting[0] if self._waiting else None
            if item is not None and not self._take(item):
                self._give_up() if closing else self._pause()
            self._tick(closing and not self._waiting)
            if closing and not self._waiting:
                break
        self._end()

    def _until_next(self) -> float | None:
        """Seconds until there is something to do without a new hit, if there will be."""
        if self._faults or self._writer.left:
            return RETRY_S
        if self._writer.current is None:
            return None
        return max(0.0, self._writer.current.since + self._settings.journal_s - time.monotonic())

    def _pause(self) -> None:
        with self._changed:
            if not self._closing:
                self._changed.wait_for(lambda: self._closing, RETRY_S)

    def _take(self, item: _Waiting) -> bool:
        """Put the first hit that waits into the journal; False when the disk does not take it."""
        good = True
        try:
            result = item.result
            repeated = self._held is not None and self._held.has(result.series_id, result.image_id, item.image)
            if not repeated:
                self._append(item)
        except OSError as error:
            self._fail("journal", error)
            return False
        except Exception:
            # A fault of ours must not cost the hits behind this one.
            good = repeated = False
            self._repeats.exception("a hit could not be written", "hit_failed")
        self._step()
        with self._changed:
            # In one step, so that at any moment each hit is in one place.
            self._waiting.popleft()
            self._waiting_bytes -= item.nbytes
            self._journaled += good and not repeated
            self.repeated += repeated
            self.lost["failed"] += not good
        self._good("journal")
        return True

    def _step(self) -> None:
        """Something was written; the end of the run waits on."""
        self._steps += 1

    def _append(self, item: _Waiting) -> None:
        if not self._writer.has_room(item.frame, item.image):
            self._writer.finish()
            self._make()
        self._writer.append(item.frame, item.image, item.result)

    def _tick(self, ending: bool) -> None:
        """Close a journal that is due, make files of those closed."""
        if ending or self._due():
            self._writer.finish()
        now = time.monotonic()
        if self._writer.left and (ending or now >= self._retry_at):
            self._make()

    def _due(self) -> bool:
        settings, current = self._settings, self._writer.current
        if current is None:
            return False
        if current.journal.nbytes >= settings.file_bytes:
            return True
        if self._writer.left:  # files cannot be made now: few large journals, not many small ones
            return False
        return current.hits >= settings.journal_hits or time.monotonic() - current.since >= settings.journal_s

    def _make(self) -> None:
        left = self._writer.left
        while left:
            current = left[0]
            path = current.journal.path
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                made = make_files(current.journal.fileno(), self.folder, path, self._step)
                settle(path, made.complete)
            except OSError as error:
                self._fail("files", error)
                self._retry_at = time.monotonic() + RETRY_S
                return
            except Exception:
                # Its hits are not lost: it stays where it is, for a program that knows better.
                log.exception("%s: no files could be made of it", path)
            else:
                for text in (*(damage.text for damage in made.damage), *made.unstored):
                    log.error("%s: %s", path, text)
                with self._changed:
                    self.written += made.hits
                    self.files += len(made.files)
                    self.lost["failed"] += current.hits - made.hits
                    self._journaled -= current.hits
                self._listing.due()
            current.journal.close()
            left.popleft()
        self._good("files")

    def _listed(self, error: OSError | None) -> None:
        """What became of the lists, in their thread."""
        if error is None:
            self._good("lists")
        else:
            self._fail("lists", error)

    def _give_up(self) -> None:
        """The run ends and the disk takes nothing: what waits is lost."""
        with self._changed:
            self.lost["disk"] += len(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0

    def _fail(self, what: str, error: OSError) -> None:
        with self._changed:
            first = not self._faults
            self._faults[what] = f"{_WHAT[what]} cannot be written: {reason(error)}"
        if first:
            log.error(
                "%s: %s cannot be written: %s; analysis goes on, lost hits are counted, writing is tried again",
                self.folder,
                _WHAT[what],
                reason(error),
            )

    def _good(self, what: str) -> None:
        with self._changed:
            over = self._faults.pop(what, None) is not None and not self._faults
        if over:
            log.warning("%s: hits are written again; %d were lost until now", self.folder, self.lost_hits)

    def _end(self) -> None:
        if self._held is not None:
            self._held.close()
        self._listing.close()
        self._repeats.close()
        left = self._journaled
        for current in self._writer.left:
            current.journal.close()
        if left:
            log.error("%s: %d hits are in the journal alone; `cxls data recover %s` makes files of them", self.folder,
                      left, self.folder)  # fmt: skip
        if self.lost_hits:
            log.error("%s: %d hits were lost: %s", self.folder, self.lost_hits,
                      ", ".join(f"{why} {count}" for why, count in self.lost.items() if count))  # fmt: skip
        self._lock.release(remove=not left)
        with contextlib.suppress(OSError):  # not empty: another run, or a journal that is kept
            (self.folder / JOURNALS).rmdir()
        with contextlib.suppress(OSError):
            sync_folder(self.folder)


def _recover(folder: Path, own_run: str) -> Recovery:
    found = recover(folder, own_run)
    if found.files:
        log.info("%s: %d hits of an earlier run are in %d files now", folder, found.hits, len(found.files))
    for text in (*found.notes, *found.problems):
        log.warning("%s", text)
    return found
