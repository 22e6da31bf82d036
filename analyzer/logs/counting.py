"""How many warnings and errors were logged, for Prometheus."""

import logging
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class LogCounts(logging.Handler, Collector):
    """Counts what is logged while it is entered, and exports it as ``cxls_log_messages_total{level}``."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._counts = {"warning": 0, "error": 0}

    def __enter__(self) -> "LogCounts":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._counts["error" if record.levelno >= logging.ERROR else "warning"] += 1

    def collect(self) -> Iterator[Metric]:
        """Both levels from the start."""
        family = CounterMetricFamily("cxls_log_messages", "Lines of the log, by level", labels=["level"])
        for level, count in self._counts.items():
            family.add_metric([level], count)
        yield family
