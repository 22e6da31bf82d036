"""How far a run is from what it is to collect: hits and indexed patterns, their rate and the time left."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

RATE_OVER_S = 300.0
_SAMPLE_S = 5.0
_FEWEST_S = 10.0

Collected = Callable[[], int | None]


class Targets:
    """``hits`` and ``indexed`` count what there is since the program began; ``None`` where nothing counts it.

    What counts towards a target begins anew with ``restart``. Whoever asks for ``facts`` samples the rate.
    """

    def __init__(self, hits: Collected, indexed: Collected = lambda: None) -> None:
        self._collected: dict[str, Collected] = {"hits": hits, "indexed": indexed}
        self._targets: dict[str, int | None] = dict.fromkeys(self._collected)
        self._lock = threading.Lock()
        self.restart()

    def set(self, **targets: int | None) -> None:
        """Set ``hits`` or ``indexed``, ``None`` for no target; the other stays."""
        with self._lock:
            for name, target in targets.items():
                if name not in self._targets:
                    raise KeyError(name)
                self._targets[name] = target

    def restart(self) -> None:
        """Count from here on."""
        with self._lock:
            self._base = {name: count() or 0 for name, count in self._collected.items()}
            self._samples = deque([(time.monotonic(), dict.fromkeys(self._base, 0))])

    def facts(self) -> dict[str, Any]:
        """By what is collected: ``target``, ``collected``, ``rate_hz`` over the last minutes and ``left_s``.

        A rate is ``None`` in the first ten seconds, and time left without a target or without a rate. What nothing
        counts is ``None``.
        """
        now = time.monotonic()
        counts = {name: count() for name, count in self._collected.items()}
        with self._lock:
            here = {name: (count or 0) - self._base[name] for name, count in counts.items()}
            if now - self._samples[-1][0] >= _SAMPLE_S:
                self._samples.append((now, here))
            while len(self._samples) > 2 and now - self._samples[1][0] >= RATE_OVER_S:
                self._samples.popleft()
            then, before = self._samples[0]
            return {
                name: None if count is None else _progress(self._targets[name], here[name], before[name], now - then)
                for name, count in counts.items()
            }


def _progress(target: int | None, collected: int, before: int, over_s: float) -> dict[str, Any]:
    rate = (collected - before) / over_s if over_s >= _FEWEST_S else None
    left = None
    if target is not None and collected >= target:
        left = 0.0
    elif target is not None and rate:
        left = round((target - collected) / rate, 1)
    return {
        "target": target,
        "collected": collected,
        "rate_hz": None if rate is None else round(rate, 4),
        "left_s": left,
    }
