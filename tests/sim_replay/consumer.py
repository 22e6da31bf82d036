"""A live analysis on a real socket that replays come to one after the other, and what its account gained from each."""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import zmq

from analyzer.bundle import load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.front import Front, FrontSettings
from analyzer.results import FrameResult, Status
from sim_replay.faults import Totals
from sim_replay.faults.images import WRONG_PIXELS
from sim_replay.replay import ReplayReport, ReplaySettings, run_replay
from streamer.account import Account
from streamer.receiver import StreamReceiver
from tests.analyzer.builders import Collector

SETTLE_S = 20.0


def counts(account: Account) -> Counter[str]:
    """Every counter of the account that is not zero, by the names that a report of faults uses."""
    found = Counter({"announced": account.announced, "received": account.received})
    for name in ("dropped", "undecodable", "missing", "invalid", "series_ended"):
        found.update({f"{name}.{child}": value for child, value in getattr(account, name).items()})
    return +found


class Consumer:
    """A whole analysis in this process, connected to an address where replays are bound in turn."""

    def __init__(self, bundle_folder: Path) -> None:
        context = zmq.Context()
        with context.socket(zmq.PUSH) as probe:
            self.address = f"tcp://127.0.0.1:{probe.bind_to_random_port('tcp://127.0.0.1')}"
        context.term()
        self.receiver = StreamReceiver([self.address])
        self.kept = Collector()
        self.front = Front(
            self.receiver,
            [Analyser(load_bundle(bundle_folder), CascadeSettings())],
            [self.kept],
            FrontSettings(block=True),
        )
        self._next_id = 1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.front.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.receiver.close()

    def take(self, inputs: Sequence[Path], expected: Mapping[str, int] | None = None, **settings: object) -> "Gain":
        """Play these, and wait until the account has gained what it is to gain, or for no longer than a while."""
        before, records = counts(self.front.account), len(self.kept.results)
        given = {"first_series_id": self._next_id} | settings
        # Far on, so that no id of stream v1 comes again.
        self._next_id += 100
        report = run_replay(
            ReplaySettings(tuple(map(str, inputs)), bind=self.address, **given),  # type: ignore[arg-type]
            threading.Event(),
            lambda *_: None,
        )
        return Gain(self, before, records, report)


class Gain:
    """What one replay brought."""

    def __init__(self, consumer: Consumer, before: Counter[str], records: int, report: ReplayReport) -> None:
        self._consumer, self._before, self._records = consumer, before, records
        self.report = report

    @property
    def counts(self) -> Counter[str]:
        now = counts(self._consumer.front.account)
        now.subtract(self._before)
        return Counter({name: value for name, value in now.items() if value})

    @property
    def results(self) -> list[FrameResult]:
        return self._consumer.kept.results[self._records :]

    def images(self, series_id: int, status: Status = Status.OK) -> list[int]:
        return sorted(r.image_id for r in self.results if (r.series_id, r.status) == (series_id, status))

    def settled(self, series: int, images: int, totals: Totals) -> Counter[str]:
        """What the account gained beside so many good series of so many images and beside ``totals``, once it is
        nothing, or after a while."""
        expected = Counter({"announced": series * images, "received": series * images})
        expected["series_ended.end message"] = series
        expected.update(totals.exact)
        deadline = time.monotonic() + SETTLE_S
        while True:
            left = self.counts
            left.subtract(expected)
            left = _explained(Counter({name: value for name, value in left.items() if value}), totals.open)
            account = self._consumer.front.account
            if (not left and account.in_flight == 0) or time.monotonic() > deadline:
                return left
            time.sleep(0.01)


def _explained(left: Counter[str], open_: Counter[tuple[str, ...]]) -> Counter[str]:
    """What is left when each open fault accounts for one count, or for none where it may be seen nowhere."""
    for names, times in open_.items():
        for _ in range(times):
            name = next((name for name in names if left[name] > 0), None)
            if name is not None:
                left[name] -= 1
            elif WRONG_PIXELS not in names:
                left[" or ".join(names)] -= 1
    return Counter({name: value for name, value in left.items() if value})
