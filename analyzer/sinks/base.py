"""What an output of results is."""

from collections.abc import Sequence
from typing import Protocol

from analyzer.results import FrameResult


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
