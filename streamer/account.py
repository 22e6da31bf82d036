"""Every image counted: what came, what became of it, what never came."""

from dataclasses import dataclass, field

from streamer.oddities import Oddity

DROP_REASONS = ("queue_full", "shutdown", "duplicate", "stale_series", "out_of_range", "sampled")
MISSING_PLACES = ("head", "gap", "tail")
SERIES_ENDS = ("end message", "last announced image", "new start", "another series runs", "source ended")
_NOT_ACCEPTED = ("duplicate", "stale_series", "out_of_range")


@dataclass(slots=True)
class Account:
    """The counts of a run. One writer a count, so no lock; a reader may be an image behind.

    With the queues empty, ``received == processed + dropped + undecodable``; for series whose
    start was seen and that are over, ``announced == accepted + missing``. ``oddities`` are in no sum.
    """

    announced: int = 0
    received: int = 0
    received_bytes: int = 0
    processed: dict[str, int] = field(default_factory=lambda: {"hit": 0, "miss": 0, "no_beam": 0})
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    undecodable: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MISSING_PLACES, 0))
    invalid: dict[str, int] = field(default_factory=dict)
    series_ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SERIES_ENDS, 0))
    oddities: dict[Oddity, int] = field(default_factory=lambda: dict.fromkeys(Oddity, 0))

    def drop(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] += count

    def refuse_message(self, reason: str) -> None:
        self.invalid[reason] = self.invalid.get(reason, 0) + 1

    @property
    def accepted(self) -> int:
        return self.received - sum(self.dropped[reason] for reason in _NOT_ACCEPTED)

    @property
    def settled(self) -> int:
        """Images whose fate is known: processed, dropped or undecodable."""
        return sum(self.processed.values()) + sum(self.dropped.values()) + sum(self.undecodable.values())

    @property
    def in_flight(self) -> int:
        return self.received - self.settled

    def identity(self) -> str:
        """The first identity with its numbers, to print and to assert."""
        processed, dropped, undecodable = (
            sum(part.values()) for part in (self.processed, self.dropped, self.undecodable)
        )
        return f"received {self.received} = processed {processed} + dropped {dropped} + undecodable {undecodable}" + (
            f" + in flight {self.in_flight}" if self.in_flight else ""
        )
