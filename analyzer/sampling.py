"""Which images are analysed when not all can be: every k-th by image id.

The choice is ``image_id % k == 0``, so that it is the same on any machine and in any order of
arrival. k is given, or follows the load: it grows while images wait too long, and falls only
once the workers were idle enough that the smaller k would leave them idle still. Between the two
lies a gap, so that k does not flap.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

MOST_EVERY = 1_000_000
LOOK_S = 0.25
"""How often the load is looked at."""

LATE_S = 0.4
"""Images that wait longer than this for a worker make k grow."""

CALM_S = 5.0
"""k falls at most so often, by what was seen since it last changed."""

_STUCK_S = 2.0
"""The same where no frame was finished since the last look: the first of a series waits for its plan."""

_LOOKS = 4
"""Latest looks of which the rate of images and the cost of a frame are taken: single ones hang on where batches end."""

_LATE_LOOKS = 8
"""Looks in a row after which k grows though images wait no longer than before."""

_GROWTH = 2
"""How many times larger k becomes in one look, at most."""

_BUSY = 0.85
"""A smaller k must leave the workers busy for no more than this share of the time."""


@dataclass(frozen=True, slots=True)
class Load:
    """How the workers stand. All but ``oldest_s`` count from the start of the run.

    ``arrived``: images accepted; ``analysed``: frames that workers have finished; ``busy_s``: time that they
    took, over all ``workers``; ``oldest_s``: how long the oldest waiting frame has waited, 0 without one.
    """

    arrived: int
    analysed: int
    busy_s: float
    oldest_s: float


class Sampler:
    """Says of each image whether it is analysed. ``every`` is k, ``adaptive`` whether it follows the load.

    Not for two threads at once; ``every`` may be read by any.
    """

    def __init__(self, every: int | None, workers: int = 1) -> None:
        """``every``: k from 1 to ``MOST_EVERY``, or ``None`` for one that follows the load of so many ``workers``."""
        self.every = every or 1
        self.adaptive = every is None
        self.workers = workers
        self._last = self._calm = Load(0, 0, 0.0, 0.0)
        self._last_s: float | None = None
        self._came: deque[tuple[int, float]] = deque(maxlen=_LOOKS)
        self._cost: deque[tuple[int, float]] = deque(maxlen=_LOOKS)
        self._calm_s = 0.0
        self._late = 0

    @property
    def ratio(self) -> float:
        """The share of images that are chosen."""
        return 1.0 / self.every

    @property
    def facts(self) -> dict[str, Any]:
        """For the status page: k, the share of images that it chooses, and whether it follows the load."""
        return {"every": self.every, "ratio": self.ratio, "adaptive": self.adaptive}

    def wants(self, image_id: int) -> bool:
        return image_id % self.every == 0

    def keeps_waiting(self, image_id: int) -> bool:
        """Whether an image that waits since before k grew is analysed still: half as many, to catch up."""
        return image_id % (2 * self.every) == 0

    def due(self, now_s: float) -> bool:
        """Whether it is time to look at the load; ``now_s`` is of a monotonic clock."""
        return self.adaptive and (self._last_s is None or now_s - self._last_s >= LOOK_S)

    def look(self, now_s: float, load: Load) -> bool:
        """Choose k by what happened since the last look. True when it grew: what waits is to be thinned then."""
        before, last_s = self._last, self._last_s
        self._last, self._last_s = load, now_s
        arrived, analysed = load.arrived - before.arrived, load.analysed - before.analysed
        if last_s is not None:
            self._came.append((arrived, now_s - last_s))
        if analysed:
            self._cost.append((analysed, load.busy_s - before.busy_s))
        if last_s is None or arrived == 0:
            # Between series nothing is learnt; the next one begins with the k of this.
            self._start_calm(load)
            self._late = 0
        elif load.oldest_s > (LATE_S if analysed else _STUCK_S):
            self._start_calm(load)
            self._late += 1
            if load.oldest_s > before.oldest_s or self._late >= _LATE_LOOKS:
                return self._grow()
        else:
            self._late = 0
            self._calm_s += now_s - last_s
            if self._calm_s >= CALM_S:
                self._fall((load.busy_s - self._calm.busy_s) / (self.workers * self._calm_s))
                self._start_calm(load)
        return False

    def _grow(self) -> bool:
        self._late = 0
        before, most = self.every, _GROWTH * self.every
        if self._cost:
            arrived, took_s = map(sum, zip(*self._came, strict=True))
            analysed, busy_s = map(sum, zip(*self._cost, strict=True))
            most = min(most, math.ceil(arrived / took_s * busy_s / analysed / self.workers))
        self.every = min(max(before + 1, most), MOST_EVERY)
        return self.every > before

    def _fall(self, busy: float) -> None:
        self.every = min(self.every, max(1, math.ceil(self.every * busy / _BUSY)))

    def _start_calm(self, load: Load) -> None:
        self._calm, self._calm_s = load, 0.0
