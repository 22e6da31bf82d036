"""The pace of a whole program: frames a second and CPU of its steady state, with results written.

The first quarter of a run, in which series are opened, plans made and caches filled, is left out.
"""

import threading
import time
from dataclasses import dataclass

from cxls.commands.analyze import Session

SETTLED_PART = 4
"""The steady state begins after one of so many parts."""

_LOOK_S = 0.005


@dataclass(frozen=True, slots=True)
class Pace:
    """Of a steady state: frames a second and the process's CPU milliseconds a frame."""

    rate: float
    cpu_ms: float


def measured(session: Session, frames: int) -> Pace:
    """Run a session of ``frames`` frames to its end and measure its last three quarters."""
    marks: list[tuple[float, float, int]] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_S):
            settled = session.front.account.settled
            if settled >= frames // SETTLED_PART and (not marks or settled > marks[-1][2]):
                marks.append((time.perf_counter(), time.process_time(), settled))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        session.run()
    finally:
        done.set()
        watcher.join()
    if sum(session.front.account.processed.values()) != frames:
        raise RuntimeError(f"not every frame was analysed: {session.front.account.identity()}")
    if len(marks) < 2:
        raise RuntimeError(f"{frames} frames are over before their pace can be seen; give more --frames")
    (began, cpu_began, first), (ended, cpu_ended, last) = marks[0], marks[-1]
    return Pace((last - first) / (ended - began), (cpu_ended - cpu_began) / (last - first) * 1e3)
