"""The metrics of one run, as a snapshot made when they are scraped.

Nothing is incremented a frame for them: what they show is counted where it happens, as plain
numbers, and read here, so that the account's identity holds within one scrape. Names, labels
and units are a contract; every label value is present from the start.
"""

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from analyzer.calibration import OperatingPoint
from analyzer.front import Front
from analyzer.metrics import findings, load, traffic

Estimate = Callable[[], dict[str, Any]]


def make_registry(front: Front, estimate: Estimate, point: OperatingPoint, build: dict[str, str]) -> CollectorRegistry:
    """A registry that exports one run and the process it runs in.

    ``estimate`` gives the parameter fields of the running profile; ``point`` says how hits are
    called and what is known of it; ``build`` labels the program.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_RunCollector(front, estimate, point, build))
    ProcessCollector(registry=registry)
    return registry


class _RunCollector(Collector):
    def __init__(self, front: Front, estimate: Estimate, point: OperatingPoint, build: dict[str, str]) -> None:
        self._front = front
        self._estimate = estimate
        self._point = point
        self._build = build

    def collect(self) -> Iterator[Metric]:
        front, running = self._front, self._front.running
        yield from traffic.traffic(front)
        yield from traffic.series(front)
        yield from load.queue(front)
        yield from load.workers(front)
        yield from load.times(running)
        yield from findings.ratios(running, self._point)
        yield from findings.scores(running, self._point)
        yield from findings.parameters(self._estimate(), running.shown_header)
        yield from findings.peaks(front.products)
        yield from findings.disagreement(running)
        info = InfoMetricFamily("cxls_build", "Version of the program, its libraries and the model bundle")
        info.add_metric([], self._build)
        yield info
