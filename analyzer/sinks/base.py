"""What an output of results is."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from prometheus_client.core import Metric

from analyzer.results import FrameResult
from streamer.frames import Frame


class ResultsExist(ValueError):
    """A results file that is there already, with neither append nor overwrite asked for."""


class Sink(Protocol):
    """Takes results in order of completion. A fault is counted in ``lost``, never raised."""

    @property
    def lost(self) -> int: ...

    def write(self, results: Sequence[FrameResult]) -> None: ...

    def tick(self) -> None:
        """Time passes without records."""

    def close(self) -> None: ...


class HitOutput(Protocol):
    """Takes hits together with their frames, packed as they came: hits on disk, an indexer.

    It is a Prometheus collector of its own metrics; ``facts`` go into /status under ``name``.
    """

    @property
    def name(self) -> str: ...

    def offer(self, frame: Frame, result: FrameResult) -> None:
        """Take a hit or count it as lost; called by workers, so it neither waits nor raises."""

    def facts(self) -> dict[str, Any]: ...

    def collect(self) -> Iterable[Metric]: ...

    def close(self) -> None:
        """Finish what was taken."""
