"""Asks a running analysis for its ``/status``, again and again, whatever answers at that address."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

from cxls.http_get import NoAnswer, get

TIMEOUT_S = 3.0
MOST_BYTES = 8 << 20


def ask(where: SplitResult, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The object at ``/status``, whole within ``timeout_s`` seconds and ``MOST_BYTES`` bytes. Raises ``NoAnswer``."""
    answer = get(where, "/status", timeout_s, MOST_BYTES)
    if answer.status != 200:
        raise NoAnswer(f"HTTP {answer.status}; is this the address of a cxls analyze?")
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NoAnswer("an answer that is not the JSON of a cxls analyze")
    return found


@dataclass(frozen=True, slots=True)
class Heard:
    """What was heard last: ``status``, ``None`` before the first good answer, ``at_s`` when it was asked for
    (monotonic), ``why`` no answer came since, ``asked`` how often it was asked."""

    status: dict[str, Any] | None
    at_s: float
    why: str | None = None
    asked: int = 0


class Poller:
    """Asks every ``interval_s`` seconds in a thread, so that no server holds up the terminal. ``heard`` is the latest.

    ``on_answer`` is called in that thread with each good answer and its time.
    """

    def __init__(
        self, where: SplitResult, interval_s: float, on_answer: Callable[[dict[str, Any], float], None]
    ) -> None:
        self.heard = Heard(None, time.monotonic())
        self._where, self._interval_s, self._on_answer = where, interval_s, on_answer
        self._stop = threading.Event()
        self._changed = threading.Condition()
        threading.Thread(target=self._poll, name="status", daemon=True).start()

    def wait(self, asked: int, timeout_s: float) -> Heard:
        """The latest, once it was asked for more than ``asked`` times or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.heard.asked > asked, timeout_s)
            return self.heard

    def close(self) -> None:
        """Ask no more; not waited for."""
        self._stop.set()

    def _poll(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            before = self.heard
            try:
                status = ask(self._where)
                self._on_answer(status, began)
                now = Heard(status, began, None, before.asked + 1)
            except NoAnswer as error:
                now = Heard(before.status, before.at_s, str(error), before.asked + 1)
            with self._changed:
                self.heard = now
                self._changed.notify_all()
            self._stop.wait(max(0.0, began + self._interval_s - time.monotonic()))
