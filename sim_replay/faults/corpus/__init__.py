"""The corpus of malformed messages: what no detector should send, and what has to become of each.

One list for the parser, a receiver, a whole analysis and the fault ``malformed`` of a replay: every message is built
around a good image of a given series, so that it can take that image's place on a live wire.
"""

from functools import lru_cache

from sim_replay.faults.corpus import v1, v2
from sim_replay.faults.corpus.good import Good
from sim_replay.faults.corpus.malformed import Malformed

__all__ = ["Good", "Malformed", "corpus"]


@lru_cache(maxsize=1)
def corpus() -> tuple[Malformed, ...]:
    """Every malformed message, in an order that does not change."""
    return (
        *v1.foreign(), *v2.framing(), *v2.images(), *v2.starts(), *v1.framing(), *v1.images(), *v1.starts(),
    )  # fmt: skip
