"""What an output of results is."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prometheus_client.core import Metric

from analyzer.results import FrameResult
from analyzer.sinks.recorded import Recorded
from streamer.frames import Frame

if TYPE_CHECKING:
    from analyzer.sinks.hold import Hold


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


class ResultsFile(Sink, Protocol):
    """Results on disk. ``recorded``: what was there before; ``repeated``: records that were there, and not written;
    ``hold``: what keeps other processes away until it is closed, where there are locks."""

    recorded: Recorded
    repeated: int
    hold: "Hold | None"


@runtime_checkable
class Reporting(Protocol):
    """An output with metrics of its own; ``facts`` go into /status under ``name``."""

    @property
    def name(self) -> str: ...

    def facts(self) -> dict[str, Any]: ...

    def collect(self) -> Iterable[Metric]: ...


class HitOutput(Reporting, Protocol):
    """Takes hits together with their frames, packed as they came: hits on disk, an indexer."""

    def offer(self, frame: Frame, result: FrameResult) -> None:
        """Take a hit or count it as lost; called by workers, so it neither waits nor raises."""

    def close(self) -> None:
        """Finish what was taken."""
