"""A malformed message and what becomes of it."""

from collections.abc import Callable
from dataclasses import dataclass

from sim_replay.faults.corpus.good import Good


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message and what becomes of it.

    ``outcome``: ``invalid REASON``, ``defect REASON`` (seen by the parser), ``undecodable REASON`` (by the decoder), or
    ``harmless``: taken as a message of the protocol, its nonsense left out. ``on_any_wire``: it does so in a series of
    any shape and ids, and begins no series.
    """

    name: str
    stream: str
    outcome: str
    build: Callable[[Good], list[bytes]]
    on_any_wire: bool = True
