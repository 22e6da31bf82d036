"""The HTTP endpoints of a running analysis."""

import socket
from collections.abc import Sequence
from importlib.resources import files

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from analyzer.live.status import StatusReport
from analyzer.web.http import HttpServer

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


class WebServer(HttpServer):
    """Serves one run's ``report``, which says when it is ready; ``routes`` are served besides its own."""

    def __init__(self, bound: socket.socket, report: StatusReport, routes: Sequence[BaseRoute] = ()) -> None:
        self._report = report
        static = files("analyzer.web") / "static"
        self._static = {
            each.name: (each.read_bytes(), _MEDIA_TYPES[suffix])
            for each in static.iterdir()
            if (suffix := each.name.rpartition(".")[2]) in _MEDIA_TYPES
        }
        super().__init__(
            bound,
            [
                Route("/", self._index),
                Route("/metrics", self._metrics),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/status", self._status),
                Route("/static/{name}", self._file),
                *routes,
            ],
        )

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
