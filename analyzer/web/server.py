"""The HTTP endpoints of a running analysis."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import msgspec
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from analyzer.front import Front

_STOP_S = 3.0
_MOST_CONNECTIONS = 500
"""Idle connections count too, so a few dozen forgotten browsers must not shut out Prometheus."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What depends on what frames are judged with; replaced as a whole when that changes.

    ``estimate`` gives the running parameters; ``facts`` (bundle, threshold, mask) go into /status.
    """

    registry: CollectorRegistry
    estimate: Callable[[], dict[str, Any]]
    facts: dict[str, Any]


class WebServer:
    """Serves one front. ``address`` is HOST:PORT as bound; ``ready`` turns /readyz to 200.

    ``view`` may be replaced while it serves; ``routes`` are served besides its own.
    """

    def __init__(self, bound: socket.socket, front: Front, view: View, routes: Sequence[BaseRoute] = ()) -> None:
        host, port = bound.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.ready = False
        self.view = view
        self._front = front
        self._page = (files("analyzer.web") / "page.html").read_text()
        app = Starlette(
            routes=[
                Route("/", self._index),
                Route("/metrics", self._metrics),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/status", self._status),
                *routes,
            ]
        )
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", lifespan="off", access_log=False, ws="none",
            limit_concurrency=_MOST_CONNECTIONS,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([bound],), name="http", daemon=True)
        self._thread.start()

    async def _index(self, request: Request) -> Response:
        del request
        return HTMLResponse(self._page)

    def _metrics(self, request: Request) -> Response:
        del request
        return Response(generate_latest(self.view.registry), media_type=CONTENT_TYPE_LATEST)

    async def _healthz(self, request: Request) -> Response:
        del request
        return PlainTextResponse("alive\n")

    async def _readyz(self, request: Request) -> Response:
        del request
        if self.ready and not self._front.stopping:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("not ready\n", 503)

    def _status(self, request: Request) -> Response:
        del request
        return Response(msgspec.json.encode(self._snapshot()), media_type="application/json")

    def _snapshot(self) -> dict[str, Any]:
        front, account, view = self._front, self._front.account, self.view
        # Outcomes before arrivals, so that a frame in between is in flight and not lost.
        settled = {
            "processed": dict(account.processed),
            "dropped": dict(account.dropped),
            "undecodable": dict(account.undecodable),
        }
        metadata = front.running.metadata
        geometry = None
        if metadata is not None:
            geometry = {
                "shape": metadata.shape,
                "photon_energy_eV": metadata.photon_energy_eV,
                "camera_length_m": metadata.camera_length_m,
                "beam_center_x_px": metadata.beam_center_x_px,
                "beam_center_y_px": metadata.beam_center_y_px,
                "number_of_images": metadata.number_of_images,
            }
        return {
            "time": time.time(),
            "ready": self.ready and not front.stopping,
            "connected": front.source.connected,
            **view.facts,
            "queue_frames": len(front.ring),
            "sampling": front.sampler.facts,
            "device_faults": front.device_faults,
            "account": {
                "announced": account.announced,
                "received": account.received,
                **settled,
                "missing": account.missing,
                "messages_invalid": account.invalid,
                "identity": account.identity(),
            },
            "estimate": view.estimate(),
            "header": geometry,
            **{output.name: output.facts() for output in front.reporting},
            **front.running.snapshot(),
        }

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
    return socket.create_server((host.strip("[]"), int(port)), family=family)
