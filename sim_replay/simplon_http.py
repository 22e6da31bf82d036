"""SIMPLON over HTTP: paths, bodies and status codes, and the server in a thread of its own."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sim_replay.replay import Progress, Replay
from sim_replay.simplon import SETTLE_LIMIT_S, Simplon
from sim_replay.simplon_keys import API_VERSION, COMMANDS, Refused, short
from streamer.files import BadInput

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 10.0
MOST_CONNECTIONS = 100

_STARTED_LIMIT_S = 10.0


def make_app(simplon: Simplon) -> Starlette:
    """The HTTP side: paths, bodies and status codes; every error is ``{"error": sentence}``."""

    def serve(answer: Callable[[Request, bytes], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                body = await _body(request)
                # Commands block, for long: never on the event loop.
                return JSONResponse(await run_in_threadpool(answer, request, body))
            except Refused as error:
                return JSONResponse({"error": str(error)}, error.status)

        return endpoint

    def version(request: Request, body: bytes) -> Any:
        del body
        _module(request)
        return {"value": API_VERSION, "value_type": "string"}

    def config(request: Request, body: bytes) -> Any:
        module = _checked(request)
        name = request.path_params.get("name", "").rstrip("/")
        if request.method == "PUT":
            return simplon.put_config(module, _changes(name, body))
        if not name:
            raise Refused(404, "name a key; GET config/keys lists them")
        return simplon.get_config(module, name)

    def status(request: Request, body: bytes) -> Any:
        del body
        return simplon.get_status(_checked(request), request.path_params["name"].rstrip("/"))

    def command(request: Request, body: bytes) -> Any:
        module, name = _checked(request), request.path_params["name"].rstrip("/")
        if request.method == "GET":
            if name == "keys":
                return sorted(COMMANDS[module])
            raise Refused(405, f"command {name} is run with PUT")
        value = _json(body) if body.strip() else None
        if isinstance(value, dict):
            value = value.get("value")
        return simplon.command(module, name, value)

    async def not_found(request: Request, error: Exception) -> Response:
        del error
        return JSONResponse({"error": f"{request.url.path} is no part of SIMPLON API {API_VERSION} here"}, 404)

    async def not_allowed(request: Request, error: Exception) -> Response:
        del error
        return JSONResponse({"error": f"{request.method} is not for {request.url.path}"}, 405)

    base = "/{module}/api/{version}"
    return Starlette(
        routes=[
            Route("/{module}/api/version", serve(version), methods=["GET"]),
            Route("/{module}/api/version/", serve(version), methods=["GET"]),
            Route(base + "/config", serve(config), methods=["PUT", "GET"]),
            Route(base + "/config/{name:path}", serve(config), methods=["GET", "PUT"]),
            Route(base + "/status/{name:path}", serve(status), methods=["GET"]),
            Route(base + "/command/{name:path}", serve(command), methods=["GET", "PUT"]),
        ],
        exception_handlers={404: not_found, 405: not_allowed},
    )


async def _body(request: Request) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise Refused(400, f"a body of more than {MAX_BODY_BYTES} bytes is not read")
    except TimeoutError:
        raise Refused(408, f"no whole body in {BODY_TIMEOUT_S:.0f} s") from None
    except ClientDisconnect:
        raise Refused(400, "the client went away before its body was complete") from None
    return body


def _module(request: Request) -> str:
    module: str = request.path_params["module"]
    if module not in COMMANDS:
        raise Refused(404, f"module {module!r} is not served; known: {', '.join(COMMANDS)}")
    return module


def _checked(request: Request) -> str:
    module = _module(request)
    if request.path_params["version"] != API_VERSION:
        raise Refused(404, f"API version {request.path_params['version']!r} is not served; take {API_VERSION}")
    return module


def _changes(name: str, body: bytes) -> dict[str, Any]:
    """The keys and values of a PUT: one by its path, or several as {"key": {"value": v}}."""
    value = _json(body)
    if not isinstance(value, dict):
        raise Refused(400, 'the body is not a JSON object like {"value": ...}')
    if name:
        if "value" not in value:
            raise Refused(400, 'the body has no "value"')
        return {name: value["value"]}
    changes = {}
    for key, entry in value.items():
        if not isinstance(entry, dict) or "value" not in entry:
            raise Refused(400, f'{short(key)} is not given as {{"value": ...}}')
        changes[key] = entry["value"]
    if not changes:
        raise Refused(400, "the body names no key")
    return changes


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None


class SimplonServer:
    """``Simplon`` on ``host:port``, in a thread of its own; port 0 takes a free port.

    ``url`` is the base of the served addresses. Raises ``BadInput`` when the address cannot be
    bound. A context manager; leaving it ends a running series and the server.
    """

    def __init__(self, replay: Replay, address: str, progress: Progress | None = None) -> None:
        self._socket = _listen(address)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.simplon = Simplon(replay, progress)
        config = uvicorn.Config(
            make_app(self.simplon),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            limit_concurrency=MOST_CONNECTIONS,
            backlog=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="simplon", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + _STARTED_LIMIT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.__exit__()
                raise BadInput(f"{self.url}: the SIMPLON server did not start")
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.simplon.close()
        self._server.should_exit = True
        self._thread.join(SETTLE_LIMIT_S)
        self._socket.close()


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise BadInput(f"{address}: not an address; give host:port, for instance 127.0.0.1:8000")
    try:
        return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise BadInput(
            f"{address}: cannot be bound: {error.strerror or error}; stop what listens there or take another port"
        ) from None
