"""Asks a running analysis for its ``/status``, again and again, whatever answers at that address."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

from analyzer.logs import printable
from cxls.http_address import open_connection

TIMEOUT_S = 3.0
MOST_BYTES = 8 << 20


class NoAnswer(Exception):
    """There is no good answer; the message says why, in a line that a terminal can show."""


def ask(where: SplitResult, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The object at ``/status``, whole within ``timeout_s`` seconds and ``MOST_BYTES`` bytes. Raises ``NoAnswer``."""
    deadline = time.monotonic() + timeout_s
    connection = open_connection(where, timeout_s)
    try:
        connection.connect()
        # A server that sends a byte now and then is cut off as one that sends none.
        cut = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, (connection.sock,))
        cut.daemon = True
        cut.start()
        try:
            connection.request("GET", where.path.rstrip("/") + "/status", headers={"Connection": "close"})
            answer = connection.getresponse()
            status, raw = answer.status, answer.read(MOST_BYTES + 1)
        finally:
            cut.cancel()
            cut.join()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise NoAnswer(f"nothing whole within {timeout_s:g} s") from None
        raise NoAnswer(printable(f"no connection: {_why(error)}")) from None
    finally:
        connection.close()
    if time.monotonic() >= deadline:
        # Cut off, which looks like an answer that ends there.
        raise NoAnswer(f"nothing whole within {timeout_s:g} s")
    if 300 <= status < 400:
        raise NoAnswer(f"it sends us elsewhere (HTTP {status}), which is not followed")
    if status != 200:
        raise NoAnswer(f"HTTP {status}; is this the address of a cxls analyze?")
    if len(raw) > MOST_BYTES:
        raise NoAnswer(f"an answer of more than {MOST_BYTES >> 20} MiB")
    if answer.length:
        raise NoAnswer(
            "the answer broke off" if time.monotonic() < deadline else f"nothing whole within {timeout_s:g} s"
        )
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NoAnswer("an answer that is not the JSON of a cxls analyze")
    return found


def _cut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


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
