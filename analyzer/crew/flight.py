"""Which worker holds which frames: the table from which no frame can fall.

A frame is waiting, in flight with one worker, or done. When a worker is lost its frames go back to the head of the
queue, each on its own, and are given to workers that hold nothing else, so that a frame that kills workers takes no
other with it; one that was in the hands of ``MOST_LOSSES`` lost workers is given up. It touches no socket and no clock.
"""

import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from streamer.frames import Frame

MOST_LOSSES = 3
"""Workers that a frame may be lost with; after so many it is the likely cause."""

NUMBER_BITS = 48
"""Numbers of batches and setups begin anywhere, so that an answer that is still on its way to an earlier front at this
address is not taken for one of ours."""


@dataclass(slots=True, eq=False)
class Batch:
    """Frames that travel together. ``losses``: workers that were lost with them; ``setup``: how they are judged."""

    frames: list[Frame]
    losses: int = 0
    number: int = 0
    setup: int = 0
    sent_s: float = 0.0
    places: list[tuple[int, int]] = field(default_factory=list)
    held_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.held_bytes = sum(frame.held_bytes for frame in self.frames)


class FlightTable:
    """Batches that wait and batches in flight, by worker.

    ``resent`` counts frames given to another worker, ``repeated`` outcomes that came too late to count. ``held_bytes``:
    what all its frames keep in memory.
    """

    def __init__(self) -> None:
        self.waiting: deque[Batch] = deque()
        self.resent = self.repeated = self.held_bytes = 0
        self._flying: dict[bytes, dict[int, Batch]] = {}
        self._numbers = secrets.randbits(NUMBER_BITS)

    def add(self, frames: Sequence[Frame]) -> None:
        """New frames, behind all that wait."""
        batch = Batch(list(frames))
        self.waiting.append(batch)
        self.held_bytes += batch.held_bytes

    @property
    def frames_waiting(self) -> int:
        return sum(len(batch.frames) for batch in self.waiting)

    @property
    def frames_flying(self) -> int:
        return sum(len(batch.frames) for held in self._flying.values() for batch in held.values())

    @property
    def head(self) -> Batch | None:
        """The batch whose turn it is."""
        return self.waiting[0] if self.waiting else None

    def held_by(self, worker: bytes) -> list[Batch]:
        """What a worker has in hand."""
        return list(self._flying.get(worker, {}).values())

    def take(self, most: int) -> Batch | None:
        """The next batch of at most ``most`` frames; a larger one is parted."""
        if not self.waiting or most < 1:
            return None
        batch = self.waiting.popleft()
        if len(batch.frames) > most:
            self.waiting.appendleft(Batch(batch.frames[most:], batch.losses))
            batch = Batch(batch.frames[:most], batch.losses)
        return batch

    def oldest_setup(self) -> int | None:
        """The earliest setup that a batch in flight is judged with."""
        return min((batch.setup for held in self._flying.values() for batch in held.values()), default=None)

    def fly(self, worker: bytes, batch: Batch, now_s: float) -> int:
        """A batch goes to a worker; returns the number that its outcome will bear."""
        self._numbers += 1
        batch.number, batch.sent_s = self._numbers, now_s
        self._flying.setdefault(worker, {})[batch.number] = batch
        return batch.number

    def land(self, worker: bytes, number: int) -> Batch | None:
        """An outcome came. ``None``: of frames that were given to another since."""
        batch = self._flying.get(worker, {}).pop(number, None)
        if batch is None:
            self.repeated += 1
        else:
            self.held_bytes -= batch.held_bytes
        return batch

    def lose(self, worker: bytes) -> list[Frame]:
        """A worker is lost: its frames wait again. Returns those that are given up."""
        return self._back(self._flying.pop(worker, {}).values())

    def fail(self, batch: Batch) -> list[Frame]:
        """A batch landed without a usable outcome: as if its worker were lost with it."""
        self.held_bytes += batch.held_bytes
        return self._back([batch])

    def _back(self, batches: Iterable[Batch]) -> list[Frame]:
        given_up: list[Frame] = []
        for batch in sorted(batches, key=lambda each: -each.number):
            losses = batch.losses + 1
            if losses >= MOST_LOSSES and len(batch.frames) == 1:
                given_up += batch.frames
                self.held_bytes -= batch.held_bytes
                continue
            self.resent += len(batch.frames)
            # Each on its own: of several frames none is known to be the cause.
            self.waiting.extendleft(Batch([frame], losses) for frame in reversed(batch.frames))
        return given_up

    def clear(self) -> list[Frame]:
        """Everything that waits or flies, oldest first, and forget it."""
        batches = [*(b for held in self._flying.values() for b in held.values()), *self.waiting]
        self._flying.clear()
        self.waiting.clear()
        self.held_bytes = 0
        return [frame for batch in batches for frame in batch.frames]
