"""Following a stream file while indexamajig writes it, in a thread of its own.

What the file holds already when we begin cannot be about hits of this run and is passed over. A file that does not
exist yet is waited for; one that was truncated, replaced or written anew is read from its start.
"""

import contextlib
import io
import logging
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from analyzer.indexing.stream_file import Chunk, StreamParser

log = logging.getLogger(__name__)

POLL_S = 0.5
_PIECE_BYTES = 1 << 20
_TAIL_BYTES = 4096
"""So many bytes before our place are looked at again, a chunk's names with them: others there mean another file."""

_NOT_YET = "waiting for the file"


class StreamFollower:
    """Calls ``take`` with every chunk that is complete; ``state`` says how it goes.

    ``unread_bytes`` is what ``close`` had no time for.
    """

    def __init__(self, path: Path, take: Callable[[Chunk], None]) -> None:
        self.path = path
        self.state = _NOT_YET
        self.read_bytes = 0
        self.restarts = 0
        self.unread_bytes = 0
        self._take = take
        self._parser = StreamParser()
        self._file: io.FileIO | None = None
        self._tail = b""
        self._opened_before = False
        self._stop = threading.Event()
        self._until = math.inf
        self._thread = threading.Thread(target=self._run, name="index-stream", daemon=True)
        self._pass_over()

    @property
    def following(self) -> bool:
        """Whether the file is open."""
        return self._file is not None

    def facts(self) -> dict[str, Any]:
        """Plain values for the status page."""
        return {
            "file": str(self.path),
            "state": self.state,
            "read_bytes": self.read_bytes,
            "restarts": self.restarts,
        }

    def collect(self) -> Iterator[Metric]:
        """How the following goes, as metrics."""
        yield GaugeMetricFamily(
            "cxls_index_stream_following", "Whether the indexer's stream file is open", value=float(self.following)
        )
        yield CounterMetricFamily(
            "cxls_index_stream_read_bytes", "Bytes read of the indexer's stream file", value=self.read_bytes
        )
        yield CounterMetricFamily(
            "cxls_index_stream_restarts", "Times the indexer's stream file was begun anew", value=self.restarts
        )

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self, patience_s: float = math.inf) -> None:
        """Read what is there now, for so many seconds at most, then end."""
        self._until = time.monotonic() + patience_s
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._file is not None and time.monotonic() >= self._until:
            with contextlib.suppress(OSError):
                self.unread_bytes = max(0, os.fstat(self._file.fileno()).st_size - self._file.tell())
        self._close_file()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            self.poll()
        except OSError as error:
            self._say(f"cannot be read: {error.strerror or error}")
            self._close_file()
        except Exception:
            # The indexer's file must not end the thread that would read its next chunk.
            log.exception("%s: a chunk could not be taken", self.path)

    def poll(self) -> None:
        """Read what has come since the last time. Raises ``OSError``."""
        if self._file is not None and not self._still_there(self._file):
            self._close_file()
        if self._file is None:
            self._open()
        if self._file is not None:
            self._read(self._file)

    def _read(self, file: io.FileIO) -> None:
        while time.monotonic() < self._until and (data := file.read(_PIECE_BYTES)):
            self.read_bytes += len(data)
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            for chunk in self._parser.feed(data):
                self._take(chunk)

    def _open(self) -> None:
        """Open the file at its start, if it is there."""
        try:
            # Without O_NONBLOCK a pipe would be waited for, perhaps for ever.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            self.state = _NOT_YET
            return
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            self._say("not a regular file; name the one that indexamajig -o writes")
            return
        self._file = io.FileIO(descriptor)
        self._parser, self._tail = StreamParser(), b""
        self.state = "following"
        if self._opened_before:
            self.restarts += 1
            log.info("%s: written anew; reading it from its start", self.path)
        self._opened_before = True

    def _pass_over(self) -> None:
        """Begin at the end of what is there already."""
        with contextlib.suppress(OSError):
            self._open()
            if self._file is not None:
                end = self._file.seek(0, os.SEEK_END)
                self._tail = os.pread(self._file.fileno(), _TAIL_BYTES, max(0, end - _TAIL_BYTES))

    def _still_there(self, file: io.FileIO) -> bool:
        """Whether the name still stands for this file, and what we have read of it is still in it."""
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            self._read(file)  # moved away or removed: its last bytes are still ours
            return False
        own = os.fstat(file.fileno())
        if (named.st_dev, named.st_ino) != (own.st_dev, own.st_ino):
            self._read(file)
            return False
        place = file.tell()
        return own.st_size >= place and os.pread(file.fileno(), len(self._tail), place - len(self._tail)) == self._tail

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _say(self, state: str) -> None:
        """Warn once for each kind of trouble, not at every look."""
        if state != self.state:
            log.warning("%s: %s; trying again", self.path, state)
        self.state = state
