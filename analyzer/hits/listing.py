"""The lists of a folder kept up by a thread of their own: to look through the files of earlier runs may take minutes,
in which hits have to be journaled.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from analyzer.hits.lists import LAST_LOCK_S, LOCK_S, Lists

log = logging.getLogger(__name__)

LIST_S = 10.0
"""The lists of a long run are long: they follow the files at this distance, and at the end."""
LAST_LIST_S = 30.0
"""How long the end of a run waits for the lists in all."""
_LIST_SHARE = 50
"""Of the time between two writings of the lists, one part in so many is spent on it."""


class Listing:
    """Writes ``lists`` after ``due`` was called, again and again until ``close``.

    ``step`` is called for every file that was looked into, ``fault`` with what the disk said, or ``None`` when the
    lists are written. Both are called in its thread.
    """

    def __init__(
        self, folder: Path, lists: Lists, step: Callable[[], None], fault: Callable[[OSError | None], None]
    ) -> None:
        self._folder = folder
        self._lists = lists
        self._step = step
        self._fault = fault
        self._changed = threading.Condition()
        self._due = False
        self._at = 0.0
        self._closing = False
        self._late = threading.Event()
        self._unlisted: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="hit lists", daemon=True)
        self._thread.start()

    def due(self) -> None:
        """There are files that the lists do not have."""
        with self._changed:
            self._due = True
            self._changed.notify_all()

    def close(self) -> None:
        """Write the lists if they are due, and end; after ``LAST_LIST_S`` seconds without them, which is logged."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(LAST_LIST_S)
        if self._thread.is_alive():
            self._late.set()
            text = "%s: the lists were not brought up to date in %.0f s; `cxls data recover %s` writes them anew"
            log.warning(text, self._folder, LAST_LIST_S, self._folder)

    def _run(self) -> None:
        closing = False
        while not closing:
            with self._changed:
                while not self._closing and not (self._due and time.monotonic() >= self._at):
                    self._changed.wait(max(0.0, self._at - time.monotonic()) if self._due else None)
                closing, due = self._closing, self._due
                self._due = False
            if due and not self._turn(closing):
                self.due()

    def _turn(self, closing: bool) -> bool:
        """Whether the lists are as good as they will be without another file."""
        pause_s = LIST_S
        try:
            self._lists.look(self._looked)
            began = time.monotonic()
            problems = self._lists.refresh(LAST_LOCK_S if closing else LOCK_S, self._looked)
            pause_s = max(LIST_S, _LIST_SHARE * (time.monotonic() - began))
        except _Late:
            return False
        except BlockingIOError as error:
            # Another analysis has its turn: no fault of the disk.
            if closing:
                log.warning("%s; `cxls data recover %s` writes the lists anew", error, self._folder)
            return False
        except OSError as error:
            self._fault(error)
            return False
        except Exception:
            # A fault of ours, which would come again: until there is another file, the lists stay as they are.
            log.exception("%s: the lists could not be written", self._folder)
            return True
        finally:
            self._at = time.monotonic() + pause_s
        for problem in problems:
            if problem not in self._unlisted:
                self._unlisted.add(problem)
                log.warning("%s: not in the lists", problem)
        self._fault(None)
        return True

    def _looked(self) -> None:
        self._step()
        if self._late.is_set():
            raise _Late


class _Late(Exception):
    """The run is over and nobody waits for the lists any more."""
