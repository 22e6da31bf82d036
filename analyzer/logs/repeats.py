"""What is said again and again is said once in a while, with how often it was."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from analyzer.logs.formats import event

PAUSE_S = 10.0
MOST_KINDS = 64
"""Kinds can come from the wire: more than so many at once share one, so that they cannot fill memory or the log."""

_OTHERS = "others"


@dataclass(slots=True)
class _Kind:
    """``since``: when its pause began; ``held``: messages kept back in it, of which the latest is kept."""

    since: float
    said: int = 0
    held: int = 0
    level: int = logging.WARNING
    text: str = ""
    name: str = ""


class Repeats:
    """Messages of one kind: ``burst`` of them in ``pause_s`` seconds, then how many more there were.

    Whoever speaks never waits for more than a lock; what was held back is told by a timer's thread.
    """

    def __init__(self, log: logging.Logger, pause_s: float = PAUSE_S, burst: int = 1) -> None:
        self._log, self._pause_s, self._burst = log, pause_s, burst
        self._kinds: dict[str, _Kind] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def say(self, level: int, kind: str, text: str, name: str, /, **fields: Any) -> None:
        """Log ``text``, or count it where its ``kind`` was said lately. ``name`` and ``fields`` are its event's."""
        if self.admits(level, kind, text, name):
            self._log.log(level, "%s", text, extra=event(name, **fields))

    def exception(self, text: str, name: str, /, **fields: Any) -> None:
        """Log ``text``, which is its own kind, with the traceback of the exception in hand."""
        if self.admits(logging.ERROR, text, text, name):
            self._log.exception("%s", text, extra=event(name, **fields))

    def admits(self, level: int, kind: str, text: str, name: str) -> bool:
        """Whether a message may be logged now; else it is counted and told of later."""
        with self._lock:
            now = time.monotonic()
            found = self._of(kind, now)
            if found.said < self._burst:
                found.said += 1
                return True
            found.held += 1
            found.level, found.text, found.name = level, text, name
            self._wake(found.since + self._pause_s - now)
            return False

    def warning(self, kind: str, text: str, name: str, /, **fields: Any) -> None:
        """``say`` a warning."""
        self.say(logging.WARNING, kind, text, name, **fields)

    def close(self) -> None:
        """Tell what is still held back."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._tell(everything=True)

    def _of(self, kind: str, now: float) -> _Kind:
        """The kind as it stands; begun anew where its pause is over and nothing was held back in it."""
        if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
            self._kinds = {key: each for key, each in self._kinds.items() if self._runs(each, now)}
            if len(self._kinds) >= MOST_KINDS:
                kind = _OTHERS
        found = self._kinds.get(kind)
        if found is None or not self._runs(found, now):
            self._kinds[kind] = found = _Kind(now)
        return found

    def _runs(self, kind: _Kind, now: float) -> bool:
        return kind.held > 0 or now - kind.since < self._pause_s

    def _wake(self, after_s: float) -> None:
        if self._timer is None:
            self._timer = threading.Timer(max(0.0, after_s), self._tell)
            self._timer.daemon = True
            self._timer.start()

    def _tell(self, everything: bool = False) -> None:
        told: list[tuple[_Kind, int, float]] = []
        with self._lock:
            self._timer = None
            now = time.monotonic()
            for each in self._kinds.values():
                if each.held and (everything or now - each.since >= self._pause_s):
                    told.append((each, each.held, now - each.since))
                    # What goes on is told again after another pause, and only counted until then.
                    each.since, each.held, each.said = now, 0, self._burst
            due = [each.since + self._pause_s - now for each in self._kinds.values() if each.held]
            if due:
                self._wake(min(due))
        for each, held, seconds in told:
            text = f"{held} more in {seconds:.0f} s: {each.text}"
            self._log.log(each.level, "%s", text, extra=event(each.name, repeats=held, seconds=round(seconds, 3)))
