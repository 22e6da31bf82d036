"""The HTTP endpoints of a worker: its own metrics, and whether it is alive and ready."""

import socket
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from analyzer.crew.worker import Worker
from analyzer.metrics.families import gauge
from analyzer.metrics.load import of_loads
from analyzer.web.http import HttpServer


class _WorkerCollector(Collector):
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        yield from of_loads([self._worker.load])
        yield gauge("cxls_worker_ready", "Whether it judges as the front wants", float(self._worker.ready))
        yield gauge(
            "cxls_device_faults", "1 where its device failed and it uses the CPU", float(bool(self._worker.fault))
        )


class WorkerServer(HttpServer):
    """Serves one worker's ``/metrics``, ``/healthz`` and ``/readyz``."""

    def __init__(self, bound: socket.socket, worker: Worker) -> None:
        self._worker = worker
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_WorkerCollector(worker))
        ProcessCollector(registry=self._registry)
        super().__init__(
            bound,
            [
                Route("/metrics", self._metrics),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
            ],
        )

    def _metrics(self, request: Request) -> Response:
        del request
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _healthz(self, request: Request) -> Response:
        del request
        return PlainTextResponse("alive\n")

    async def _readyz(self, request: Request) -> Response:
        del request
        return PlainTextResponse("ready\n") if self._worker.ready else PlainTextResponse("not ready\n", 503)
