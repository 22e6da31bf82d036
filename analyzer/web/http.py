"""An HTTP server in a thread of its own."""

import socket
import threading
from collections.abc import Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from analyzer.web.connections import MOST_HEAD_BYTES, limited
from analyzer.web.guard import Guard, Refusals

_STOP_S = 3.0
_MOST_SOCKET_BYTES = 8192
_SEND_BUFFER_BYTES = 256 << 10
_BACKLOG = 100
"""Connections taken in at once, before it is seen that they are too many."""


class HttpServer:
    """Serves ``routes`` until ``close``. ``address`` is HOST:PORT as bound; ``refusals`` counts what is turned away."""

    def __init__(self, bound: socket.socket, routes: Sequence[BaseRoute], refusals: Refusals) -> None:
        host, port = bound.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        config = uvicorn.Config(
            Guard(Starlette(routes=list(routes)), host, refusals),
            log_config=None,
            log_level="warning",
            lifespan="off",
            access_log=False,
            ws="websockets-sansio",
            ws_max_size=_MOST_SOCKET_BYTES,
            ws_per_message_deflate=False,
            http=limited(refusals),
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
            backlog=_BACKLOG,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([bound],), name="http", daemon=True)
        self._thread.start()

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
