"""What stands before every HTTP request: who may ask, how much is sent at once, how long a slow one is waited for."""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PIECE_BYTES = 64 << 10
LARGE_BYTES = 1 << 20
MOST_LARGE = 4
"""Large answers that are on their way at once: each is in memory until it is taken."""

SEND_TIMEOUT_S = 20.0
"""A client that takes nothing for so long is hung up on."""

_WRONG_HOST = 421
_BUSY = 503


class Refusals(Collector):
    """Requests refused before they reached what they asked for, by reason: ``cxls_http_refused_total``."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("host", "busy", "too_slow", "no_request", "connections"), 0)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "cxls_http_refused", "Requests refused or hung up on before an endpoint answered", labels=["reason"]
        )
        for reason, count in list(self.counts.items()):
            family.add_metric([reason], count)
        yield family


class Guard:
    """Wraps an application that is bound to ``host``.

    On a loopback address only its own names are answered: a page of another site that has its name point here
    (DNS rebinding) asks by that name, and would read what this one shows.
    """

    def __init__(self, app: ASGIApp, host: str, refusals: Refusals) -> None:
        self._app, self._refused = app, refusals.counts
        self._names = _own_names() if _is_loopback(host) else None
        self._large = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        if self._names is not None and _host_of(scope["headers"]) not in self._names:
            self._refused["host"] += 1
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            text = "this address is not known by that name here; ask by the address that it listens on\n"
            return await PlainTextResponse(text, _WRONG_HOST)(scope, receive, send)
        if scope["type"] == "websocket":
            return await self._app(scope, receive, send)
        await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = {"large": False, "refused": False}

        async def paced(message: Message) -> None:
            if state["refused"]:
                return
            if message["type"] == "http.response.start" and _length(message) > LARGE_BYTES:
                if self._large >= MOST_LARGE:
                    self._refused["busy"] += 1
                    state["refused"] = True
                    busy = PlainTextResponse(
                        "too much is being sent; ask again in a while\n", _BUSY, {"Retry-After": "5"}
                    )
                    return await busy(scope, receive, send)
                self._large += 1
                state["large"] = True
            await self._in_pieces(message, send)

        try:
            await self._app(scope, receive, paced)
        except TimeoutError:
            self._refused["too_slow"] += 1
            raise
        finally:
            self._large -= state["large"]

    async def _in_pieces(self, message: Message, send: Send) -> None:
        """Raises ``TimeoutError`` where a piece is not taken."""
        body: bytes = message.get("body", b"")
        if message["type"] != "http.response.body" or len(body) <= PIECE_BYTES:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                return await send(message)
        view, more = memoryview(body), message.get("more_body", False)
        for first in range(0, len(view), PIECE_BYTES):
            last = first + PIECE_BYTES >= len(view)
            piece = bytes(view[first : first + PIECE_BYTES])
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send({"type": message["type"], "body": piece, "more_body": more or not last})


def _length(message: Message) -> int:
    for name, value in message.get("headers", ()):
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _host_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The name that a request asks by, without its port."""
    host = next((value.decode("latin-1") for name, value in headers if name == b"host"), "")
    return host.rpartition(":")[0].lower() if host.rpartition(":")[2].isdigit() else host.lower()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _own_names() -> frozenset[str]:
    """What this machine is called, by itself and by a proxy on it."""
    names: list[Any] = ["localhost", "127.0.0.1", "[::1]", socket.gethostname(), socket.getfqdn()]
    return frozenset(name.lower() for name in names)
