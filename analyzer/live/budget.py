"""How many bytes a browser may be sent: in no second more than so many, and pictures evenly within it."""

from collections import deque

_LEAST_WAIT_S = 1e-3


class Budget:
    """``per_s`` bytes in any second, whichever second one looks at. Times are those of one clock (s)."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._sent: deque[tuple[float, int]] = deque()
        self._total = 0
        self._even_s = float("-inf")

    def wait_s(self, size: int, now_s: float) -> float:
        """How long until ``size`` more bytes may be sent. More than a second's worth goes when nothing else did."""
        self._forget(now_s)
        left, wait = self._total + size - self._per_s, 0.0
        for at_s, sent in self._sent:
            if left <= 0:
                break
            # Never nothing, whatever the clock's rounding makes of a difference.
            left, wait = left - sent, max(at_s + 1.0 - now_s, _LEAST_WAIT_S)
        return wait

    def even_in_s(self, now_s: float) -> float:
        """How long until the bytes so far are spread evenly over the time."""
        return max(0.0, self._even_s - now_s)

    def spend(self, size: int, now_s: float) -> None:
        """So many bytes are sent now."""
        self._forget(now_s)
        self._sent.append((now_s, size))
        self._total += size
        self._even_s = max(self._even_s, now_s) + size / self._per_s

    def _forget(self, now_s: float) -> None:
        while self._sent and self._sent[0][0] <= now_s - 1.0:
            self._total -= self._sent.popleft()[1]
