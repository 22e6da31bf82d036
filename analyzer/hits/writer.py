"""The journals of one run: hits go into the one that is open, those closed wait to become files."""

import errno
import os
import time
from collections import deque
from pathlib import Path

from analyzer.hits.entries import HIT, SERIES, hit_head, series_entry
from analyzer.hits.journal import Journal
from analyzer.hits.packing import stored_bytes
from analyzer.hits.places import JOURNALS, journal_path
from analyzer.panels import GivenGeometry
from analyzer.results import FrameResult
from streamer.frames import Frame
from streamer.messages import ImageData, SeriesMetadata

SPARE_BYTES = 4 << 20
"""Room for what a file holds besides images: the tables of a hundred hits with a thousand peaks each."""

_SERIES_KEPT = 4


class OpenJournal:
    """A journal, which series it describes already, how many hits it has and since when."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.series: set[str] = set()
        self.hits = 0
        self.unpacked_bytes = 0
        """By so much its files are larger, of images that are stored unpacked."""
        self.since = time.monotonic()


class JournalWriter:
    """Used by one thread. ``current`` is written to, ``left`` are closed, in order, and readable by their files.

    ``given`` is the geometry file of the analysis.
    """

    def __init__(self, folder: Path, run: str, given: GivenGeometry | None = None) -> None:
        self.current: OpenJournal | None = None
        self.left: deque[OpenJournal] = deque()
        self._folder = folder
        self._run = run
        self._given = given
        self._number = 0
        self._series: dict[tuple[int, str, tuple[int, int]], tuple[SeriesMetadata, tuple[str, bytes, bytes]]] = {}

    def append(self, frame: Frame, image: ImageData, result: FrameResult) -> None:
        """Put a hit into the current journal, or a new one. Raises ``OSError``; nothing is then left of it."""
        if not self.has_room(frame, image):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.current is None:
            self._number += 1
            self.current = OpenJournal(Journal(journal_path(self._folder, self._run, self._number)))
        current = self.current
        digest, head, body = self._series_of(frame, image)
        if digest not in current.series:
            current.journal.append(SERIES, head, body)
            current.series.add(digest)
        current.journal.append(HIT, hit_head(frame, image, result, digest), image.data)
        current.hits += 1
        current.unpacked_bytes += stored_bytes(image) - len(image.data)

    def has_room(self, frame: Frame, image: ImageData) -> bool:
        """Whether the disk has room for this hit in the journal and then for the files of all journals.

        Raises ``OSError`` when the disk does not say.
        """
        (self._folder / JOURNALS).mkdir(parents=True, exist_ok=True)
        _, head, body = self._series_of(frame, image)
        journals = [each for each in (*self.left, self.current) if each is not None]
        to_be_filed = sum(each.journal.nbytes + each.unpacked_bytes for each in journals)
        disk = os.statvfs(self._folder)
        nbytes = 2 * (len(head) + len(body)) + len(image.data) + stored_bytes(image)
        return disk.f_bavail * disk.f_frsize >= to_be_filed + nbytes + SPARE_BYTES

    def finish(self) -> None:
        """Close the current journal, if there is one."""
        if self.current is not None:
            self.left.append(self.current)
            self.current = None

    def _series_of(self, frame: Frame, image: ImageData) -> tuple[str, bytes, bytes]:
        """The record of a frame's series; packing a mask costs as much as a hit, so the latest are kept."""
        metadata = frame.series.metadata
        key = id(metadata), frame.channel, image.shape
        kept = self._series.get(key)
        if kept is None or kept[0] is not metadata:
            kept = metadata, series_entry(frame, image.shape, self._given)
            while len(self._series) >= _SERIES_KEPT:
                del self._series[next(iter(self._series))]
            self._series[key] = kept
        return kept[1]
