"""A front with workers elsewhere, as the program makes them, and workers in threads of the test."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, CascadeSettings, PlanCache
from analyzer.crew.curve import FrontKeys
from analyzer.crew.dispatch import Crew
from analyzer.crew.worker import Worker
from analyzer.front import Front, FrontSettings
from analyzer.judge import Judge
from analyzer.results import FrameResult, record
from tests.analyzer.builders import Collector, ScriptedSource, Step, assert_account_closes

BATCH = 4
LOOPBACK = "tcp://127.0.0.1:0"


def make(judge: Judge) -> Analyser:
    return Analyser(judge.bundle, judge.settings, "cpu", PlanCache())


class Hand:
    """A worker in threads of this process."""

    def __init__(self, address: str, make: Callable[[Judge], Analyser] = make, **settings: Any) -> None:
        self.stop = threading.Event()
        self.worker = Worker(address, make, **({"name": "hand", "batch_frames": BATCH} | settings))
        self.thread = threading.Thread(target=self.worker.run, args=(self.stop,), daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


class Run:
    """A front that has all its workers elsewhere."""

    def __init__(
        self,
        bundle: Bundle,
        script: Sequence[Step],
        *,
        cascade: CascadeSettings | None = None,
        live: bool = False,
        keys: FrontKeys | None = None,
        **settings: Any,
    ) -> None:
        self.judge = Judge(bundle, cascade or CascadeSettings())
        self.crew = Crew(LOOPBACK, self.judge, PlanCache(), keys)
        self.kept = Collector()
        self.stop = threading.Event()
        wanted = FrontSettings(**({"block": True, "batch_frames": BATCH, "tags": self.judge.cascade.tags} | settings))
        self.front = Front(ScriptedSource(script, live), [], [self.kept], wanted, crew=self.crew)
        self.thread = threading.Thread(target=self.front.run, args=(self.stop,), daemon=True)

    def start(self) -> "Run":
        self.thread.start()
        return self

    def join(self, timeout_s: float = 60) -> "Run":
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), f"the run did not end: {self.front.account.identity()}, {self.crew.facts()}"
        return self

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, (self.front.account.identity(), self.crew.facts())
            time.sleep(0.01)

    def assert_closes(self, over: bool = True) -> None:
        """Both identities, one record for each accepted image, none twice."""
        assert_account_closes(self.front.account, over)
        pairs = [(r.ordinal, r.image_id) for r in self.kept.results]
        assert len(pairs) == len(set(pairs)) == self.front.account.accepted


def comparable(results: Sequence[FrameResult]) -> list[dict[str, Any]]:
    """Records in the order of images without what differs from run to run."""
    plain = [replace(each, received_at=0.0, latency_s=None) for each in results]
    return [record(each) for each in sorted(plain, key=lambda each: (each.ordinal, each.image_id))]
