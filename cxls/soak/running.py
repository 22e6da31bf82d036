"""One soak from beginning to end: start, look now and then, kill, end, and gather what the checks need."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cxls.bench.children import Child, free_endpoint, wait_ready
from cxls.http_address import parse_address
from cxls.http_get import NoAnswer
from cxls.settings import BadSettings, SoakSettings
from cxls.soak import checks
from cxls.soak.checks import Check
from cxls.soak.children import Leg, Places, Replayed, Said, analysing, legs, replayed, replaying, said, simulated
from cxls.soak.faults import committed
from cxls.soak.outputs import Follower, HitsFollower, finished, follower
from cxls.soak.samples import Sample, count, sample, scrape
from cxls.watching.client import ask
from cxls.watching.reading import items, value

LOOKS = 100
LEAST_APART_S, MOST_APART_S = 0.5, 5.0
"""Between two looks: a scrape costs milliseconds, and a minute shows enough with a hundred."""

ROOM_BYTES = 2 << 30
"""For hits and results that wait to be read, and the journal."""

LINE_BYTES = 4096
MOST_RATE_HZ = 1000.0
"""Of records kept as lines: their usual size, and a rate that no machine was seen to exceed."""

LEAST_FREE_BYTES = 512 << 20
"""With less than that left the soak ends early: a full disk harms others."""

_DRAIN_S = 30.0
_STUCK_S = 60.0
"""A replay whose time is over ends its last series; it is told to end where nothing came from it for so long."""

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a soak is; ``rate_hz`` and ``memory_bytes`` of the latest look."""

    seconds: float
    of_s: float
    received: int
    rate_hz: float
    memory_bytes: int
    kills: int


@dataclass(slots=True)
class Soaked:
    """What was seen. ``stderr`` by process, ``codes``: exit codes seen and meant."""

    samples: list[Sample] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    replay: Replayed = field(default_factory=Replayed)
    words: Said | None = None
    kills: int = 0
    early: str = ""
    stderr: dict[str, list[str]] = field(default_factory=dict)
    codes: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def room(settings: SoakSettings, folder: Path) -> None:
    """Raises ``BadSettings`` where the disk has not what the soak may need."""
    needed = ROOM_BYTES
    if settings.format == "jsonl":
        needed += round(settings.time * (settings.rate or MOST_RATE_HZ)) * LINE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        advice = ", or let --format be parquet" if settings.format == "jsonl" else ""
        raise BadSettings(
            f"{folder}: {free >> 20} MiB free, {needed >> 20} MiB needed; give --work on another disk{advice}"
        )


class Soak:
    """``files``: what to replay, simulated where there are none. ``stop`` ends it early, with all its checks."""

    def __init__(
        self,
        settings: SoakSettings,
        files: Sequence[Path],
        folder: Path,
        stop: threading.Event,
        tell: Callable[[Progress], None],
    ) -> None:
        self.settings, self.stop, self.tell = settings, stop, tell
        self.places = Places(folder, folder / f"results.{settings.format}")
        self.records: Follower = follower(self.places.results)
        self.hits = HitsFollower(self.places.hits)
        self.seen = Soaked()
        self._files = list(files)
        self._chance = random.Random(settings.seed)
        self._apart_s = min(max(settings.time / LOOKS, LEAST_APART_S), MOST_APART_S)
        self._began: float | None = None
        self._next_look = self._next_kill = 0.0

    def run(self) -> None:
        """Play all legs, end, and read what is left; ``seen`` has it all. Raises ``RuntimeError``, ``OSError`` where
        a process cannot be started."""
        files = self._files or [simulated(self.places.folder, self.settings)]
        endpoint = free_endpoint()
        with analysing(endpoint, self.settings, self.places) as analysis:
            url = f"http://{analysis.address('http')}"
            wait_ready(url)
            for leg in legs(self.settings):
                if not self._over(analysis):
                    self._play(analysis, url, files, endpoint, leg)
            self._drain(analysis, url)
            self.seen.codes["analysis"] = self._end(analysis), 128 + signal.SIGINT
        self.seen.stderr["analysis"] = analysis.errors
        self.seen.words = said(analysis.output)
        self.records.follow(last=True)
        self.hits.follow(last=True)
        self.seen.problems += finished(self.places.results, self.places.products, self.places.reports)
        self.seen.problems += [*self.records.recorded.problems.texts, *self.hits.problems.texts]

    def _end(self, analysis: Child) -> int:
        """The exit code of the analysis, which is told to end unless it has."""
        if (code := analysis.process.poll()) is not None:
            return code
        try:
            return analysis.interrupt()
        except subprocess.TimeoutExpired:
            self.seen.problems.append("the analysis did not end when it was told to")
            analysis.process.kill()
            return analysis.process.wait()

    def _over(self, analysis: Child) -> bool:
        if analysis.process.poll() is not None:
            self.seen.early = "the analysis ended by itself"
        elif self.stop.is_set():
            self.seen.early = "told to end"
        elif shutil.disk_usage(self.places.folder).free < LEAST_FREE_BYTES:
            self.seen.early = f"less than {LEAST_FREE_BYTES >> 20} MiB free in {self.places.folder}"
        return bool(self.seen.early)

    def _play(self, analysis: Child, url: str, files: list[Path], endpoint: str, leg: Leg) -> None:
        first_series = self.seen.replay.series + 1
        with ExitStack() as opened:
            report = self.places.faults(leg)
            replay = opened.enter_context(replaying(files, endpoint, leg, self.settings, first_series, report))
            latest, received = time.monotonic() + leg.seconds + _STUCK_S, -1
            while replay.process.poll() is None and not self._over(analysis) and time.monotonic() < latest:
                self._look(analysis, url)
                if self.seen.samples and self.seen.samples[-1].received != received:
                    received = self.seen.samples[-1].received
                    latest = max(latest, time.monotonic() + _STUCK_S)
                self.stop.wait(min(0.2, self._apart_s))
            if cut := replay.process.poll() is None:
                replay.interrupt()
                if not self.seen.early:
                    self.seen.problems.append(
                        f"replay of {leg.protocol} did not end, and sent nothing for {_STUCK_S:.0f} s"
                    )
        name = f"replay {leg.number} {leg.protocol}"
        self.seen.codes[name] = replay.process.returncode, 128 + signal.SIGINT if cut else 0
        self.seen.stderr[name] = replay.errors
        self.seen.replay += replayed(replay.output, cut)

    def _look(self, analysis: Child, url: str) -> None:
        """Sample, read what is finished, and kill, each when it is due."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self._apart_s
        metrics = self._scrape(analysis, url)
        if metrics is None:
            return
        if self._began is None:
            if not count(metrics, "cxls_frames_received_total"):
                return
            self._began, self._next_kill = now, now + (self.settings.kills or 0.0)
        self.seen.metrics = metrics
        try:
            self.seen.samples.append(sample(analysis.process.pid, metrics, now - self._began))
        except (OSError, ValueError):
            return  # it has just ended, as the next look says
        self.records.follow()
        self.hits.follow()
        if self.settings.kills is not None and now >= self._next_kill:
            self._kill(url)
            self._next_kill = now + self.settings.kills
        self._tell()

    def _scrape(self, analysis: Child, url: str) -> dict[str, float] | None:
        """The metrics; ``None`` where there is no answer, which is a problem as long as the analysis runs."""
        try:
            return scrape(url)
        except OSError as error:
            if analysis.process.poll() is None:
                self.seen.problems.append(f"no answer at {url}/metrics: {error}")
            return None

    def _kill(self, url: str) -> None:
        """One worker process that is ready, by chance."""
        with contextlib.suppress(NoAnswer, ProcessLookupError):
            workers = items(value(ask(parse_address(url, "soak")), "crew"), "workers")
            ready = [each["pid"] for each in workers if each.get("state") == "ready"]
            if ready:
                os.kill(self._chance.choice(ready), signal.SIGKILL)
                self.seen.kills += 1

    def _tell(self) -> None:
        last = self.seen.samples[-1]
        before = self.seen.samples[-2] if len(self.seen.samples) > 1 else last
        took = last.at_s - before.at_s
        rate = (last.received - before.received) / took if took else 0.0
        memory = last.usage.shared_bytes
        self.tell(Progress(last.at_s, self.settings.time, last.received, rate, memory, self.seen.kills))

    def _drain(self, analysis: Child, url: str) -> None:
        """Wait until nothing is in any queue and the last series is over; then the last look."""
        deadline, before = time.monotonic() + _DRAIN_S, -1
        while analysis.process.poll() is None and time.monotonic() < deadline:
            metrics = self._scrape(analysis, url)
            if metrics is None:
                continue
            self.seen.metrics = metrics
            received = count(metrics, "cxls_frames_received_total")
            if received == before and not count(metrics, "cxls_queue_frames"):
                return
            before = received
            time.sleep(1.5)

    def checks(self) -> list[Check]:
        """Every check there is of such a soak."""
        seen, recorded = self.seen, self.records.recorded
        quiet = checks.settled(seen.samples)
        faults = committed([self.places.faults(leg) for leg in legs(self.settings)])
        cut = bool(seen.replay.cut)
        found = [
            checks.every_look(seen.samples),
            checks.account(seen.metrics, seen.words),
            checks.announced(seen.metrics, seen.words, faults.headless, cut),
            checks.sent(seen.metrics, seen.replay, faults.totals.exact["received"]),
            checks.records(seen.metrics, recorded, faults.same_id),
            checks.hits(seen.metrics, self.hits.hits),
            checks.readable(seen.problems, self._looked_at()),
            checks.ended(seen.codes),
            checks.words_on_stderr(seen.stderr),
            checks.standstill(seen.samples),
        ]
        if len(quiet) >= 3:
            found += [
                checks.memory(quiet),
                checks.descriptors(quiet),
                checks.threads(quiet),
                checks.latency(quiet, self.settings.rate is None),
                checks.cpu(quiet),
            ]
        else:
            found.append(Check("growth", False, f"{len(quiet)} looks after the warm-up show none; soak for longer"))
        if seen.words is not None and self.settings.faults != "none":
            found.append(checks.ledger(seen.words.reasons, faults, cut, self.settings.kills is not None))
        if self.settings.kills is not None:
            found.append(checks.kills(seen.kills, seen.metrics))
        return found

    def _looked_at(self) -> str:
        return f"{self.records.recorded.records} records, {self.hits.hits} hits in {self.hits.files} files read"
