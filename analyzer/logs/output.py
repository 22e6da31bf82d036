"""Where lines of the log go: to stderr, by a thread, so that a terminal that stands still holds up no frame."""

import contextlib
import logging
import sys
import threading
import time
from collections import deque
from typing import Literal, TextIO

from analyzer.logs.formats import EVENT, JsonFormatter, TextFormatter, event
from analyzer.logs.repeats import Repeats

Format = Literal["text", "json"]
MOST_WAITING = 2000
"""Lines; more are lost, and how many is said once there is room."""

FLUSH_S = 2.0
_SERVING = ("asyncio", "uvicorn.error", "websockets.server", "p4p.server.raw", "p4p.server.thread")
"""Loggers of libraries that serve strangers, who could fill the log through them."""


class Output(logging.Handler):
    """Writes records to ``stream`` in a thread of its own; never blocks whoever logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._lost = 0
        self._writing = False
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:
            # One line, whatever failed: logging's own answer is a traceback for each record.
            line = self.format(_unsaid(record, error))
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                self._lost += 1
                return
            self._waiting.append(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                lines, lost = list(self._waiting), self._lost
                self._waiting.clear()
                self._lost = 0
                self._writing = True
            if lost:
                lines.append(self.format(_loss(lost)))
            # Nobody reads it any more: then there is nowhere to say so.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()

    def flush(self) -> None:
        """Wait until all is written, ``FLUSH_S`` seconds at most."""
        deadline = time.monotonic() + FLUSH_S
        with self._changed:
            while (self._waiting or self._writing) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)


def _unsaid(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    text = f"a line of {record.name} cannot be written: {type(error).__name__}, {record.filename}:{record.lineno}"
    made = logging.LogRecord(__name__, record.levelno, __file__, 0, "%s", (text,), None)
    made.__dict__.update(event("log_line_failed"))
    return made


def _loss(lines: int) -> logging.LogRecord:
    text = "%d lines of the log are lost: they came faster than they could be written"
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (lines,), None)
    record.__dict__.update(event("log_lost", lines=lines))
    return record


class _Strangers(logging.Filter):
    """Of a library's lines one a kind in a while."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._repeats = Repeats(logger)

    def filter(self, record: logging.LogRecord) -> bool:
        # What is told later of those kept back comes past here too.
        if hasattr(record, EVENT):
            return True
        return self._repeats.admits(record.levelno, str(record.msg), record.getMessage(), "library")


def configure(format: Format = "text", detached: bool = False) -> None:
    """Write the root logger's lines from INFO on to stderr in this format; ``detached``: by a thread.

    Called again, the last call holds. Where a host program has handlers of its own, nothing is done.
    """
    root = logging.getLogger()
    ours = [each for each in root.handlers if isinstance(each.formatter, TextFormatter | JsonFormatter)]
    if root.handlers and not ours:
        return
    for each in ours:
        each.flush()
        root.removeHandler(each)
    handler = Output() if detached else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _SERVING:
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Strangers) for each in logger.filters):
            logger.addFilter(_Strangers(logger))


def as_json() -> bool:
    """Whether lines are JSON."""
    return any(isinstance(each.formatter, JsonFormatter) for each in logging.getLogger().handlers)


def settle() -> None:
    """Wait for what was logged to be written, ``FLUSH_S`` seconds at most."""
    for each in logging.getLogger().handlers:
        each.flush()
