"""The HTTP endpoints of a running analysis."""

import socket
import threading
from collections.abc import Sequence
from importlib.resources import files

import msgspec
import uvicorn
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from analyzer.live.status import StatusReport

_STOP_S = 3.0
_MOST_SOCKET_BYTES = 8192
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'self'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "LICENSE": "text/plain",
}
_SEND_BUFFER_BYTES = 256 << 10
_MOST_CONNECTIONS = 500
"""Idle connections count too, so a few dozen forgotten browsers must not shut out Prometheus."""


class WebServer:
    """Serves one run's ``report``, which says when it is ready. ``address`` is HOST:PORT as bound.

    ``routes`` are served besides its own.
    """

    def __init__(self, bound: socket.socket, report: StatusReport, routes: Sequence[BaseRoute] = ()) -> None:
        host, port = bound.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._report = report
        static = files("analyzer.web") / "static"
        self._static = {
            each.name: (each.read_bytes(), _MEDIA_TYPES[suffix])
            for each in static.iterdir()
            if (suffix := each.name.rpartition(".")[2]) in _MEDIA_TYPES
        }
        app = Starlette(
            routes=[
                Route("/", self._index),
                Route("/metrics", self._metrics),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/status", self._status),
                Route("/static/{name}", self._file),
                *routes,
            ]
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            lifespan="off",
            access_log=False,
            ws="websockets-sansio",
            ws_max_size=_MOST_SOCKET_BYTES,
            ws_per_message_deflate=False,
            limit_concurrency=_MOST_CONNECTIONS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([bound],), name="http", daemon=True)
        self._thread.start()

    async def _index(self, request: Request) -> Response:
        del request
        return self._answer("index.html")

    async def _file(self, request: Request) -> Response:
        return self._answer(str(request.path_params["name"]))

    def _answer(self, name: str) -> Response:
        if name not in self._static:
            return PlainTextResponse("no such file\n", 404)
        body, media_type = self._static[name]
        return Response(body, media_type=media_type, headers=_HEADERS)

    def _metrics(self, request: Request) -> Response:
        del request
        return Response(generate_latest(self._report.view.registry), media_type=CONTENT_TYPE_LATEST)

    async def _healthz(self, request: Request) -> Response:
        del request
        return PlainTextResponse("alive\n")

    async def _readyz(self, request: Request) -> Response:
        del request
        if self._report.is_ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("not ready\n", 503)

    def _status(self, request: Request) -> Response:
        del request
        return Response(msgspec.json.encode(self._report.snapshot()), media_type="application/json")

    def close(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        self._thread.join(_STOP_S)


def bind(listen: str) -> socket.socket:
    """Bind HOST:PORT; port 0 takes a free one.

    Raises ``ValueError`` for an address that is none, ``OSError`` when it cannot be bound.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("an address is HOST:PORT, for instance 127.0.0.1:8080")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.create_server((host.strip("[]"), int(port)), family=family)
    # Connections inherit it: what a slow browser has not read yet is news of long ago.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    return bound
