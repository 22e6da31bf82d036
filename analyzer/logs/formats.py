"""How a record of the log becomes a line: text for a person, JSON for a program.

Whatever a message holds, it cannot begin a line of its own: what came over the wire is in many of them.
"""

import codecs
import json
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

MOST_CHARACTERS = 4000
"""Of a message: one refused message of a detector can be as long as it likes."""

EVENT, _FIELDS = "cxls_event", "cxls_fields"
_INDENT = "    "
_escape = codecs.lookup("unicode_escape").encode
"""Looked up now: at its first use it is a file, and there may be no descriptor left."""


def event(name: str, /, **fields: Any) -> dict[str, Any]:
    """The ``extra`` of a record: what happened, and its numbers, by name. Only JSON shows them."""
    return {EVENT: name, _FIELDS: fields}


def printable(text: str) -> str:
    """``text`` on one line: control characters, line ends and what turns the writing direction become escapes."""
    if len(text) > MOST_CHARACTERS:
        text = f"{text[:MOST_CHARACTERS]}… ({len(text) - MOST_CHARACTERS} characters more)"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each)[0].decode() for each in text)


class TextFormatter(logging.Formatter):
    """``2026-11-30 06:53:06,062 INFO series 1 began``; lines of a traceback are indented beneath."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self.formatTime(record)} {record.levelname} {printable(record.getMessage())}"
        trace = _trace(self, record)
        return "\n".join([line, *(_INDENT + printable(each) for each in trace.splitlines())])


class JsonFormatter(logging.Formatter):
    """An object a line: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``; ``event`` and its fields where
    there is one; ``exception`` with the traceback. A number that is not finite is null. ASCII alone, so that it is
    JSON whatever the terminal's letters.
    """

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        content: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        name = getattr(record, EVENT, None)
        if name is not None:
            content["event"] = name
            # A field never takes the place of the time or of the message.
            content.update({key: each for key, each in getattr(record, _FIELDS).items() if key not in content})
        trace = _trace(self, record)
        if trace:
            content["exception"] = trace
        return json.dumps(_plain(content), default=str)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    return "\n".join(parts + ([formatter.formatStack(record.stack_info)] if record.stack_info else []))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
