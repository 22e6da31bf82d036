"""A live analysis on a real socket that replays come to one after the other, and what its account gained from each."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq

from analyzer.bundle import load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.front import Front, FrontSettings
from analyzer.results import FrameResult, Status
from sim_replay.faults import Entry, FaultPlan, Totals, parse_specs, read_report
from sim_replay.faults.images import WRONG_PIXELS
from sim_replay.faults.plan import SeriesFaults, Stream
from sim_replay.replay import Replay, ReplayReport, ReplaySettings, run_replay
from streamer.account import Account
from streamer.oddities import Oddity
from streamer.receiver import StreamReceiver
from tests.analyzer.builders import Collector

SETTLE_S = 20.0


def counts(account: Account) -> Counter[str]:
    """Every counter of the account that is not zero, by the names that a report of faults uses."""
    found = Counter({"announced": account.announced, "received": account.received})
    for name in ("dropped", "undecodable", "missing", "invalid", "series_ended", "oddities"):
        found.update({f"{name}.{child}": value for child, value in getattr(account, name).items()})
    return +found


class Script(FaultPlan):
    """A plan that is another one for each play of the same replay."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        super().__init__(())
        self.use(())

    def use(self, specs: Sequence[str]) -> None:
        object.__setattr__(self, "now", FaultPlan(parse_specs(specs)))

    def series(self, ordinal: int, stream: Stream) -> SeriesFaults:
        return self.now.series(ordinal, stream)


class Consumer:
    """A whole analysis in this process, connected to two addresses.

    At ``address`` replays are bound in turn; ``streams`` has replays that stay.
    """

    def __init__(self, bundle_folder: Path, folder: Path, stays: Path) -> None:
        self.streams = {stream: Staying(folder, stream, stays) for stream in ("v1", "v2")}
        context = zmq.Context()
        with context.socket(zmq.PUSH) as probe:
            self.address = f"tcp://127.0.0.1:{probe.bind_to_random_port('tcp://127.0.0.1')}"
        context.term()
        self.receiver = StreamReceiver([self.address, *(each.replay.endpoint for each in self.streams.values())])
        self.kept = Collector()
        self.front = Front(
            self.receiver,
            [Analyser(load_bundle(bundle_folder), CascadeSettings())],
            [self.kept],
            FrontSettings(block=True),
        )
        self._next_id = 1_000_000
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.front.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.receiver.close()
        for each in self.streams.values():
            each.replay.close()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SETTLE_S
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)

    def gain(self) -> "Gain":
        """What is gained from now on."""
        return Gain(self, counts(self.front.account), len(self.kept.results))

    def play(self, stream: str, *specs: str) -> "Gain":
        """The series that stays, with these faults."""
        gain = self.gain()
        gain.entries = self.streams[stream].play(specs)
        return gain

    def take(self, inputs: Sequence[Path], report: Path, **settings: Any) -> "Gain":
        """A replay of these, from its beginning to its end."""
        gain = self.gain()
        given = {"first_series_id": self._next_id} | settings
        # Far on, so that no id of stream v1 comes again.
        self._next_id += 100
        gain.report = run_replay(
            ReplaySettings(tuple(map(str, inputs)), bind=self.address, fault_report=report, **given),
            threading.Event(),
            lambda *_: None,
        )
        gain.entries = read_report(report)
        return gain


class Staying:
    """A replay of one series, bound once and played again and again."""

    def __init__(self, folder: Path, stream: str, master: Path) -> None:
        self._script = Script()
        self._file = folder / f"{stream}.jsonl"
        self._seen = 0
        # Of an id that a series without unique id had, one with such an id would be over.
        first = 100_000 if stream == "v1" else 500_000
        settings = ReplaySettings((str(master),), bind="tcp://127.0.0.1:0", protocol=stream, first_series_id=first)
        self.replay = Replay(replace(settings, faults=self._script, fault_report=self._file))

    def play(self, specs: Sequence[str]) -> list[Entry]:
        self._script.use(specs)
        self.replay.play(threading.Event())
        entries = read_report(self._file)[self._seen :]
        self._seen += len(entries)
        return entries


class Gain:
    """What a replay brought."""

    entries: list[Entry]
    report: ReplayReport

    def __init__(self, consumer: Consumer, before: Counter[str], records: int) -> None:
        self._consumer, self._before, self._records = consumer, before, records

    @property
    def totals(self) -> Totals:
        """What the ledger says that the account is to show."""
        found = Totals()
        for entry in self.entries:
            found.add(entry.expected)
        return found

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
            left = _without_chance(left, malformed=any(entry.kind == "malformed" for entry in self.entries))
            left = _explained(Counter({name: value for name, value in left.items() if value}), totals.open)
            account = self._consumer.front.account
            if (not left and account.in_flight == 0) or time.monotonic() > deadline:
                return left
            time.sleep(0.01)


def _without_chance(left: Counter[str], malformed: bool) -> Counter[str]:
    """Without what a busy machine adds: its own pauses; and what malformed messages, with times of their own, do."""
    more = [Oddity.PAUSE, Oddity.CLOCK_BACK, Oddity.CLOCK_JUMP] if malformed else [Oddity.PAUSE]
    chance = {f"oddities.{kind}" for kind in more}
    return Counter({name: value for name, value in left.items() if value < 0 or name not in chance})


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
