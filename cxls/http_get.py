"""One GET of a server that may be anything: whole within a time and a size, or a sentence that says why not."""

import http.client
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult

from analyzer.logs import printable
from cxls.http_address import open_connection


class NoAnswer(Exception):
    """There is no good answer; the message says why, in a line that a terminal can show."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``headers`` by their names in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def get(where: SplitResult, path: str, timeout_s: float, most_bytes: int) -> Answer:
    """What is at ``path`` below ``where``, of any status but a redirection. Raises ``NoAnswer``."""
    deadline = time.monotonic() + timeout_s
    connection = open_connection(where, timeout_s)
    try:
        connection.connect()
        # A server that sends a byte now and then is cut off as one that sends none.
        cut = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, (connection.sock,))
        cut.daemon = True
        cut.start()
        try:
            connection.request("GET", where.path.rstrip("/") + path, headers={"Connection": "close"})
            answer = connection.getresponse()
            status, raw = answer.status, answer.read(most_bytes + 1)
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
    if status == 200 and len(raw) > most_bytes:
        size = f"{most_bytes >> 20} MiB" if most_bytes >= 1 << 20 else f"{most_bytes >> 10} KiB"
        raise NoAnswer(f"an answer of more than {size}")
    if status == 200 and answer.length:
        raise NoAnswer("the answer broke off")
    return Answer(status, {name.lower(): value for name, value in answer.getheaders()}, raw)


def _cut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
