"""Results belong to one analysis at a time: a lock beside them, which the note of a live run holds as well."""

import contextlib
import logging
import threading
from pathlib import Path

from analyzer.hits.places import Lock, reason
from analyzer.sinks.base import ResultsExist

log = logging.getLogger(__name__)

WAIT_S = 2.0
"""So long a process that was killed may take until the system has let go of its lock."""


def note_path(results: Path) -> Path:
    """Where the note of a run with these results lies."""
    return results.with_name(f".{results.name}.running")


def lock_path(results: Path) -> Path:
    """Where the lock of these results lies, by whatever link they are named."""
    path = results.resolve()
    return path.with_name(f".{path.name}.lock")


class Hold:
    """A lock on results that is let go of when all who share it have released it."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._holders = 1
        self._changing = threading.Lock()

    def share(self) -> "Hold":
        with self._changing:
            self._holders += 1
        return self

    def release(self) -> None:
        with self._changing:
            self._holders -= 1
            if self._holders == 0:
                self._lock.release(remove=True)


def hold(results: Path) -> Hold | None:
    """The results for this process alone; ``None``, with a warning, where they cannot be locked, and for devices.

    Raises ``ResultsExist`` when another process holds them, ``FileNotFoundError`` when their folder is not there.
    """
    if results.exists() and not (results.is_file() or results.is_dir()):
        return None
    path = lock_path(results)
    lock, there = Lock(path), path.exists()
    try:
        if lock.acquire(WAIT_S):
            return Hold(lock)
    except FileNotFoundError:
        raise
    except OSError as error:
        log.warning("%s: cannot be locked (%s); see that no other analysis writes to it", results, reason(error))
        if not there:
            with contextlib.suppress(OSError):
                path.unlink()
        return None
    raise ResultsExist(f"{results}: another analysis writes to it; end that one, or give other results")
