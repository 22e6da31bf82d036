"""What a kill costs: a note beside the results while a run lives, and what the next run makes of it.

The note (``.NAME.running``) has the series that began and those that are over, with how many images were accepted. A
run that ends by itself takes it away. So where one is found, a run was killed: the series that it names are compared
with the images that have a record, and a series that still runs is joined with its own header. It names the results
by their inode: others that came in their place are not compared with it. What the run was started with and what was
changed since (``analyzer.kept_changes``) are in it as well, to be asked for again.

Written by a thread of its own, as a journal of ``analyzer.hits.journal``: a kill leaves every whole entry readable.
When it has grown it is written anew, with what of it still counts, and renamed into its own place.
"""

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from analyzer import logs
from analyzer.crew.wire import BadMessage, Kind, pack_series, read_series
from analyzer.hits.journal import Damage, Entry, Journal, UnreadableJournal, read_body, read_entries
from analyzer.kept_changes import Asked, pack, still_meant, unpack
from analyzer.sinks import ResultsFile
from analyzer.sinks.hold import Hold, note_path
from streamer.errors import first_line
from streamer.messages import ImageData, ImageMessage, SeriesMetadata
from streamer.series import Series, SeriesClosed, SeriesOpened, SeriesUpdated

log = logging.getLogger(__name__)

OPENED, CLOSED, LOST, RESULTS, SETTINGS, CHANGED = 1, 2, 3, 4, 5, 6
"""Kinds of entries."""

CLOSE_S = 10.0
KEPT_S = 1.0
"""How long whoever asked for a change waits until it is in the note: a disk that stands still holds up no answer."""
_MOST_WAITING = 1024
_MOST_NOTE_BYTES = 1 << 30
_MOST_SETTINGS_BYTES = 1 << 20
_MOST_CHANGE_BYTES = 64 << 20
_ANEW_BYTES = 16 << 20
"""The size at which a note is written anew, or twice what was left of it then. A header is some kilobytes, and comes
again with every start; the masks of 16 million pixels are 2 MB."""


class _Opened(msgspec.Struct, frozen=True):
    """A series began, or has other metadata; the body is its header, and its masks where they are ``new``."""

    ordinal: int
    arm_date: str | None
    detector_serial: str | None
    threshold_energy_eV: dict[str, float]
    new: bool


class _Closed(msgspec.Struct, frozen=True):
    """A series is over: how many images should have a record; ``lost`` by then, over all series."""

    ordinal: int
    series_id: int
    expected: int
    lost: int


class _Lost(msgspec.Struct, frozen=True):
    """Images of earlier series that are in no record."""

    lost: int


class _Results(msgspec.Struct, frozen=True):
    """Which results the note is of."""

    inode: int


class _Settings(msgspec.Struct, frozen=True):
    """What the run was started with."""

    settings: dict[str, Any]


@dataclass(slots=True)
class Left:
    """What a killed run left: images ``lost`` before it, images expected by series, the series that was open, the id of
    the latest; the ``inode`` of its results; its settings, and the latest change of each kind.
    """

    lost: int = 0
    expected: dict[int, int] = field(default_factory=dict)
    running: Series | None = None
    latest: int | None = None
    masks: list[bytes] = field(default_factory=list)
    inode: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    changes: dict[str, Asked] = field(default_factory=dict)


_What = msgspec.Struct | Series | Asked | threading.Event
_Item = tuple[int, _What]
_encode, _pack = msgspec.json.Encoder().encode, msgspec.msgpack.Encoder().encode


class Restart(Collector):
    """Counts the images that kills cost. ``crashed``: an earlier run with these results was killed.

    ``append``: the results are added to, so what an earlier run left counts. ``settings``: what this run is started
    with. ``asked``: the changes of the killed run that are still meant, by kind; ``overruled``: kinds of those that are
    not, with the settings that were changed since. ``on_header`` is called with each header before its images are
    taken, until it returns true.
    """

    def __init__(
        self, results: Path, file: ResultsFile, append: bool, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._path = note_path(results)
        self._results, self._file = results, file
        self._inode = _inode(results)
        left = _read(self._path) if append else None
        if left is not None and None not in (left.inode, self._inode) and left.inode != self._inode:
            log.warning("%s: is of other results than those that are there now; not used", self._path)
            with contextlib.suppress(OSError):
                self._path.unlink()
            left = None
        self.crashed = left is not None
        self._left = left.running if left is not None else None
        self._latest = left.latest if left is not None else None
        self._before = 0
        self._head: tuple[int, int] | None = None
        if left is not None:
            recorded = file.recorded
            gone = {series: expected - recorded.of(series).count for series, expected in left.expected.items()}
            self._before = left.lost + sum(max(0, each) for each in gone.values())
        self._settings = dict(settings or {})
        self.asked: dict[str, Asked] = {}
        self.overruled: list[tuple[str, list[str]]] = []
        self.on_header: Callable[[SeriesMetadata], bool] | None = None
        if left is not None:
            self._look_at_changes(left)
        self._first = True
        self._waiting: queue.Queue[_Item | None] = queue.Queue(_MOST_WAITING)
        self._masks: list[bytes] = []
        self._thread: threading.Thread | None = None
        self._hold: Hold | None = None
        self._own: int | None = None
        self._anew_at = _ANEW_BYTES
        self._left_out = False

    @property
    def lost(self) -> int:
        """Images in no record, by what is known so far."""
        head = self._head
        return self._before + (0 if head is None else head[1])

    def collect(self) -> Iterator[Metric]:
        """``cxls_frames_lost_in_crash_total`` and ``cxls_results_repeated_total``."""
        yield CounterMetricFamily(
            "cxls_frames_lost_in_crash",
            "Images of series that a killed run with these results had open, in no record",
            value=self.lost,
        )
        yield CounterMetricFamily(
            "cxls_results_repeated", "Records that the results held already, and not written", value=self._file.repeated
        )

    def known(self, image: ImageMessage) -> SeriesMetadata | None:
        """The header of the series that a killed run had open, where this image goes on with it."""
        left = self._left
        if left is None or image.series_id != left.series_id or not self._first:
            return None
        if image.unique_id and left.unique_id:
            return left.metadata if image.unique_id == left.unique_id else None
        shape, pixels = left.metadata.shape, next(iter(image.channels.values()), None)
        if shape is not None and isinstance(pixels, ImageData) and pixels.shape != shape:
            return None
        # Ids that have a record come again from a detector that counts anew.
        return None if image.image_id in self._file.recorded.of(left.series_id) else left.metadata

    def _look_at_changes(self, left: Left) -> None:
        for kind, asked in left.changes.items():
            try:
                meant, instead = still_meant(asked, left.settings, self._settings)
            except ValueError as error:
                why = first_line(error)
                log.warning(
                    "%s: %s cannot be restored: %s", self._path, kind, why,
                    extra=logs.event("control_unrestored", action=kind, why=why),
                )  # fmt: skip
                continue
            if meant is not None:
                self.asked[kind] = meant
            if instead:
                self.overruled.append((kind, instead))

    def keep(self, asked: Asked) -> None:
        """Note a change, in the place of the one of its kind before; any thread. Waits until it is noted, not long."""
        if self._thread is None or not self._put(CHANGED, asked) or not asked.holds:
            return
        noted = threading.Event()
        if self._put(CHANGED, noted):
            noted.wait(KEPT_S)

    # --- called by one thread -----------------------------------------------------------

    def start(self) -> None:
        """Begin this run's note, and say what the earlier one left."""
        left = self._left
        if self.crashed:
            recorded = 0 if left is None else self._file.recorded.of(left.series_id).count
            announced = None if left is None else left.metadata.number_of_images
            series = "no series was open"
            if left is not None:
                of = "an unannounced number" if announced is None else announced
                series = f"series {left.series_id} was open, {recorded} of {of} images are recorded"
            log.warning(
                "%s: an earlier run was killed: %s; %d images of series that were over are in no record",
                self._results, series, self._before,
                extra=logs.event(
                    "restart", series_id=None if left is None else left.series_id, recorded=recorded,
                    images=announced, lost=self._before,
                ),
            )  # fmt: skip
        if self._file.hold is not None:
            # Nobody else may take the note for that of a killed run before it is gone.
            self._hold = self._file.hold.share()
        try:
            # Until they are asked for again, the changes are those of the killed run.
            journal = self._write(
                Left(self._before, running=self._left, inode=self._inode, settings=self._settings, changes=self.asked)
            )
        except OSError as error:
            self._fail(error)
            return
        self._thread = threading.Thread(target=self._run, args=(journal,), name="restart", daemon=True)
        self._thread.start()

    def event(self, event: SeriesOpened | SeriesUpdated | SeriesClosed) -> None:
        """Follow the series of this run; waits for no disk."""
        series = event.series
        if isinstance(event, SeriesClosed):
            self._closed(event)
            return
        if isinstance(event, SeriesOpened) and self._first:
            if self.crashed:
                self._continue(event)
            self._first = False
        if self.on_header is not None and self.on_header(series.metadata):
            self.on_header = None
        self._put(OPENED, series)

    def close(self, began: bool = True) -> None:
        """The run ends by itself: the note goes. Where it never ``began``, what a killed run left stays."""
        stays = self.crashed and not began
        if self._left is not None and not stays:
            self._give_up(self._left)
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=CLOSE_S)
            self._thread.join(CLOSE_S)
            self._thread = None
            if not stays and self._own is not None and _inode(self._path) == self._own:
                with contextlib.suppress(OSError):
                    self._path.unlink()
        held, self._hold = self._hold, None
        if held is not None:
            held.release()

    def _continue(self, event: SeriesOpened) -> None:
        """The first series after a kill: the one that was open, or another."""
        series, left = event.series, self._left
        same = left is not None and _same(left, series)
        if left is not None and not same:
            self._give_up(left)
        self._left = None
        if self._latest is not None and series.series_id > self._latest + 1:
            log.warning(
                "series %d to %d came while nobody listened, as their ids say; how many images they had is not known",
                self._latest + 1, series.series_id - 1,
                extra=logs.event("series_unseen", first=self._latest + 1, last=series.series_id - 1),
            )  # fmt: skip
        if series.joined:
            self._head = series.ordinal, self._unrecorded(series, event.first or 0)
            log.info(
                "series %d goes on at image %d: %d before it are in no record",
                series.series_id, event.first or 0, self._head[1],
            )  # fmt: skip

    def _closed(self, event: SeriesClosed) -> None:
        series, expected = event.series, event.accepted
        if self._head is not None and self._head[0] == series.ordinal:
            lost = self._unrecorded(series, event.missing["head"])
            expected += self._file.recorded.of(series.series_id).count
            self._head = None
            self._count(series, lost)
        self._put(CLOSED, _Closed(series.ordinal, series.series_id, expected, self._before))

    def _unrecorded(self, series: Series, first: int) -> int:
        """Images of a series before this one that have no record."""
        return first - self._file.recorded.of(series.series_id).below(first)

    def _give_up(self, left: Series) -> None:
        """Nothing came of the series that was open: what has no record now never will."""
        recorded, announced = self._file.recorded.of(left.series_id), left.metadata.number_of_images
        highest = -1 if recorded.highest is None else recorded.highest
        self._left = None
        self._count(left, max(highest + 1, announced or 0) - recorded.count)
        self._put(LOST, _Lost(self._before))

    def _count(self, series: Series, lost: int) -> None:
        self._before += lost
        if lost:
            log.warning(
                "%s: %d images of series %d are in no record: a killed run had received them, or nobody did",
                self._results, lost, series.series_id,
                extra=logs.event("lost_in_crash", series_id=series.series_id, lost=lost, total=self._before),
            )  # fmt: skip

    # --- the note -----------------------------------------------------------------------

    def _put(self, kind: int, what: _What) -> bool:
        try:
            self._waiting.put_nowait((kind, what))
        except queue.Full:
            if not self._left_out:
                log.warning(
                    "%s: %d entries wait for the disk, more are left out; what a kill of this run costs will be "
                    "counted less exactly, and what was changed may not be restored", self._path, self._waiting.maxsize,
                )  # fmt: skip
            self._left_out = True
            return False
        return True

    def _run(self, journal: Journal) -> None:
        failed = False
        while (item := self._waiting.get()) is not None:
            if isinstance(item[1], threading.Event):
                item[1].set()
                continue
            try:
                if not failed:
                    self._append(journal, *item)
                    if journal.nbytes > self._anew_at:
                        journal = self._anew(journal)
            except OSError as error:
                failed = True
                self._fail(error)
        journal.close()

    def _fail(self, error: OSError) -> None:
        log.warning(
            "%s: %s; what a kill of this run costs will not be known, nor will what was changed be restored",
            self._path, error.strerror or error,
        )  # fmt: skip

    def _anew(self, journal: Journal) -> Journal:
        """The note without what does not count any more; where there is no room for a second one it goes on growing."""
        masks = self._masks
        try:
            smaller = self._write(_entries(journal.fileno()))
        except (OSError, ValueError):
            self._masks, self._anew_at = masks, 2 * journal.nbytes
            return journal
        journal.close()
        self._anew_at = max(_ANEW_BYTES, 2 * smaller.nbytes)
        return smaller

    def _write(self, left: Left) -> Journal:
        """A new note that says this, in the place of the old one."""
        temporary = self._path.with_name(f"{self._path.name}.new")
        temporary.unlink(missing_ok=True)
        journal = Journal(temporary)
        self._masks = []
        try:
            if left.inode is not None:
                self._append(journal, RESULTS, _Results(left.inode))
            self._append(journal, SETTINGS, _Settings(dict(left.settings)))
            for asked in left.changes.values():
                self._append(journal, CHANGED, asked)
            self._append(journal, LOST, _Lost(left.lost))
            # The latest at the end, as when they came.
            for series in sorted(left.expected, key=lambda series: series == left.latest):
                self._append(journal, CLOSED, _Closed(0, series, left.expected[series], left.lost))
            if left.running is not None:
                self._append(journal, OPENED, left.running)
            own = _inode(temporary)
            os.replace(temporary, self._path)
        except OSError:
            journal.close()
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._own = own
        return journal

    def _append(self, journal: Journal, kind: int, what: _What) -> None:
        if isinstance(what, Asked):
            journal.append(kind, *pack(what))
            return
        if not isinstance(what, Series):
            journal.append(kind, _encode(what), b"")
            return
        metadata = what.metadata
        try:
            _, facts, *masks = pack_series(what, 0)
        except (TypeError, ValueError, OverflowError, RecursionError):
            # Whatever else a header holds, the series is named.
            plain = SeriesMetadata(number_of_images=metadata.number_of_images)
            _, facts, *masks = pack_series(replace(what, metadata=plain), 0)
        new = masks != self._masks
        opened = _Opened(
            what.ordinal,
            metadata.arm_date,
            metadata.detector_serial,
            dict(metadata.threshold_energy_eV),
            new,
        )
        journal.append(kind, _encode(opened), _pack([facts, *(masks if new else ())]))
        self._masks = masks


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _same(left: Series, series: Series) -> bool:
    if left.series_id != series.series_id:
        return False
    if left.unique_id and series.unique_id:
        return left.unique_id == series.unique_id
    old, new = left.metadata.arm_date, series.metadata.arm_date
    return series.joined or (old is not None and old == new)


def _read(path: Path) -> Left | None:
    """What a note says, ``None`` where there is none. Whatever is wrong with it costs no start."""
    try:
        if path.stat().st_size > _MOST_NOTE_BYTES:
            raise UnreadableJournal("too large")
        with open(path, "rb") as file:
            return _entries(file.fileno())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: %s; what the earlier run left is not known", path, first_line(error))
        return Left()


def _entries(fd: int) -> Left:
    left = Left()
    for entry in read_entries(fd):
        if isinstance(entry, Damage):
            continue
        try:
            _take(left, fd, entry)
        except (ValueError, TypeError, KeyError, BadMessage, RecursionError) as error:
            log.warning("an entry of an earlier run cannot be used: %s", first_line(error))
    return left


def _take(left: Left, fd: int, entry: Entry) -> None:
    if entry.kind == RESULTS:
        left.inode = msgspec.json.decode(entry.head, type=_Results).inode
    elif entry.kind == LOST:
        left.lost = msgspec.json.decode(entry.head, type=_Lost).lost
    elif entry.kind == SETTINGS:
        _check_bytes(entry, _MOST_SETTINGS_BYTES)
        left.settings = msgspec.json.decode(entry.head, type=_Settings).settings
    elif entry.kind == CHANGED:
        _check_bytes(entry, _MOST_CHANGE_BYTES)
        asked = unpack(entry.head, read_body(fd, entry))
        left.changes.pop(asked.kind, None)
        if asked.holds:
            left.changes[asked.kind] = asked
    elif entry.kind == CLOSED:
        closed = msgspec.json.decode(entry.head, type=_Closed)
        left.lost = closed.lost
        left.expected[closed.series_id] = max(closed.expected, left.expected.get(closed.series_id, 0))
        left.running, left.latest = None, closed.series_id
    elif entry.kind == OPENED:
        opened = msgspec.json.decode(entry.head, type=_Opened)
        facts, *masks = msgspec.msgpack.decode(read_body(fd, entry), type=list[bytes])
        left.masks = masks if opened.new else left.masks
        series = read_series([Kind.SERIES.value.encode(), facts, *left.masks])[1]
        metadata = series.metadata.with_changes(
            arm_date=opened.arm_date,
            detector_serial=opened.detector_serial,
            threshold_energy_eV=opened.threshold_energy_eV,
        )
        left.running, left.latest = Series(0, series.series_id, series.unique_id, metadata), series.series_id


def _check_bytes(entry: Entry, most: int) -> None:
    size = len(entry.head) + entry.body_bytes
    if size > most:
        raise ValueError(f"{size} bytes, where a run writes {most} at most")
