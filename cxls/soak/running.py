"""One soak from beginning to end: start, look now and then, kill, end, and gather what the checks need."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from cxls import allocator
from cxls.bench.children import START_S, Child, free_endpoint, is_ready
from cxls.http_address import parse_address
from cxls.http_get import NoAnswer
from cxls.settings import BadSettings, SoakSettings
from cxls.soak import checks
from cxls.soak.checks import Check
from cxls.soak.children import (
    Leg,
    Places,
    Replayed,
    Said,
    ToldToEnd,
    analysing,
    legs,
    replayed,
    replaying,
    said,
    simulated,
)
from cxls.soak.faults import committed
from cxls.soak.outputs import Follower, HitsFollower, Problems, finished, follower
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

TOLD = "told to end"

_ENOUGH, _ENOUGH_TOLD = 3, 10
"""Looks after the warm-up that growth is judged by; a soak that is told to end has just begun with fewer than ten."""

_UP_S = 5 * START_S
"""For an analysis to listen and to have its models warm, on a machine that does other work and has to compile first."""

_MOST_ROOM = re.compile(r"attached, room for (\d+) images")

_DRAIN_S = 30.0
_DRAIN_APART_S = 1.5
_REST_S = allocator.GIVES_BACK_EVERY_S + 4.0
"""Until what was freed has gone back to the system, and something is seen of what is left."""

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
    """What was seen. ``stderr`` by process, ``codes``: exit codes seen and meant.

    ``rests``: a sample of each time in which nothing was played. ``until_s``: when replaying ended, counted as samples
    are: time in which something was played.
    """

    samples: list[Sample] = field(default_factory=list)
    rests: list[Sample] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    replay: Replayed = field(default_factory=Replayed)
    words: Said | None = None
    until_s: float = 0.0
    kills: int = 0
    early: str = ""
    stderr: dict[str, list[str]] = field(default_factory=dict)
    codes: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)


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
    """``files``: what to replay, simulated where there are none. ``stop`` ends it early, with all its checks.

    ``holding``: descriptors that its processes inherit.
    """

    def __init__(
        self,
        settings: SoakSettings,
        files: Sequence[Path],
        folder: Path,
        stop: threading.Event,
        holding: tuple[int, ...] = (),
    ) -> None:
        self.settings, self.stop = settings, stop
        self.places = Places(folder, folder / f"results.{settings.format}", holding)
        self.records: Follower = follower(self.places.results)
        self.hits = HitsFollower(self.places.hits)
        self.seen = Soaked()
        self._files = list(files)
        self._chance = random.Random(settings.seed)
        self._apart_s = min(max(settings.time / LOOKS, LEAST_APART_S), MOST_APART_S)
        self._began: float | None = None
        self._next_look = self._next_kill = 0.0

    def run(self, tell: Callable[[Progress], None]) -> None:
        """Play all legs, end, and read what is left; ``seen`` has it all, and as much as there was where it raises.
        ``tell`` is called at each look.

        Call it from the main thread: its processes end with the thread that starts them. Raises ``RuntimeError``,
        ``OSError`` where a process cannot be started or a disk is full.
        """
        try:
            files = self._files or [simulated(self.places, self.settings, self.stop)]
            endpoint = free_endpoint()
            with analysing(endpoint, self.settings, self.places) as analysis:
                self.seen.stderr["analysis"] = analysis.errors
                url = self._up(analysis)
                for leg in legs(self.settings):
                    if not self._over(analysis):
                        self._play(analysis, url, files, endpoint, leg, tell)
                    if leg.calm and self._began is not None and not self._over(analysis):
                        self._began += self._rest(analysis, url, self._began)
                self._drain(analysis, url)
                self.seen.codes["analysis"] = self._end(analysis, "the analysis"), 128 + signal.SIGINT
        except ToldToEnd:
            self.seen.early = TOLD
        if not self._nothing_yet:
            self._gather(analysis)

    def _gather(self, analysis: Child) -> None:
        """What an analysis that ended said and left."""
        self.seen.words = said(analysis.output)
        self.records.follow(last=True)
        self.hits.follow(last=True)
        problems = finished(self.places.results, self.places.products, self.places.reports)
        for text in (*problems, *self.records.recorded.problems.texts, *self.hits.problems.texts):
            self.seen.problems.add(text)

    @property
    def _nothing_yet(self) -> bool:
        """Told to end before the first image, so that there is nothing to check."""
        return self.seen.early == TOLD and self._began is None

    def _up(self, analysis: Child) -> str:
        """The address of the analysis once its models are warm. Raises ``RuntimeError``, ``ToldToEnd``."""
        latest = time.monotonic() + _UP_S
        while not self.stop.is_set():
            if analysis.process.poll() is not None or time.monotonic() > latest:
                raise RuntimeError(f"the analysis is not ready: {' | '.join(analysis.errors[-3:])}")
            if (address := analysis.addresses.get("http")) is not None:
                with contextlib.suppress(OSError):
                    is_ready(f"http://{address}")
                    return f"http://{address}"
            self.stop.wait(0.1)
        raise ToldToEnd

    def _end(self, child: Child, name: str) -> int:
        """The exit code of a process, which is told to end unless it has."""
        if (code := child.process.poll()) is not None:
            return code
        try:
            return child.interrupt()
        except subprocess.TimeoutExpired:
            self.seen.problems.add(f"{name} did not end when it was told to")
            child.process.kill()
            return child.process.wait()

    def _over(self, analysis: Child) -> bool:
        if analysis.process.poll() is not None:
            self.seen.early = "the analysis ended by itself"
        elif self.stop.is_set():
            self.seen.early = TOLD
        elif shutil.disk_usage(self.places.folder).free < LEAST_FREE_BYTES:
            self.seen.early = f"less than {LEAST_FREE_BYTES >> 20} MiB free in {self.places.folder}"
        return bool(self.seen.early)

    def _play(
        self,
        analysis: Child,
        url: str,
        files: list[Path],
        endpoint: str,
        leg: Leg,
        tell: Callable[[Progress], None],
    ) -> None:
        first_series, name = self.seen.replay.series + 1, f"replay {leg.number} {leg.protocol}"
        with replaying(files, endpoint, leg, self.settings, first_series, self.places) as replay:
            self.seen.stderr[name] = replay.errors
            latest, received = time.monotonic() + leg.seconds + _STUCK_S, -1
            while replay.process.poll() is None and not self._over(analysis) and time.monotonic() < latest:
                if self._look(analysis, url):
                    tell(self._progress())
                if self.seen.samples and self.seen.samples[-1].received != received:
                    received = self.seen.samples[-1].received
                    latest = max(latest, time.monotonic() + _STUCK_S)
                self.stop.wait(min(0.2, self._apart_s))
            if self._began is not None:
                self.seen.until_s = time.monotonic() - self._began
            if cut := replay.process.poll() is None:
                with contextlib.suppress(RuntimeError):
                    replay.address("replay")  # before it listens it may not know yet how to end
                if not self.seen.early:
                    self.seen.problems.add(f"{name} did not end, and sent nothing for {_STUCK_S:.0f} s")
            self.seen.codes[name] = self._end(replay, name), 128 + signal.SIGINT if cut else 0
        try:
            self.seen.replay += replayed(replay.output, cut)
        except ValueError as error:
            self.seen.problems.add(f"{name}: {error}")

    def _rest(self, analysis: Child, url: str, began: float) -> float:
        """Wait until everything that came is analysed and what that took is given back, and look at what is left;
        the seconds that it took."""
        since = time.monotonic()
        self._drain(analysis, url)
        looks: list[Sample] = []
        until = time.monotonic() + _REST_S
        while time.monotonic() < until and not self._over(analysis):
            self.stop.wait(self._apart_s / 2)
            looks += self._sample(analysis, since - began)
        if looks:
            self.seen.rests.append(min(looks, key=lambda look: look.usage.own_bytes))
        return time.monotonic() - since

    def _sample(self, analysis: Child, at_s: float) -> list[Sample]:
        """A look beside the latest metrics, none where there is nothing to look at."""
        try:
            return [sample(analysis.process.pid, self.seen.metrics, at_s)]
        except (OSError, ValueError) as error:
            if analysis.process.poll() is None:
                self.seen.problems.add(f"the processes of the analysis cannot be looked at: {error}")
            return []

    def _look(self, analysis: Child, url: str) -> bool:
        """Read what is finished, sample, and kill, each when it is due; whether there is a new sample."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + self._apart_s
        self.records.follow()
        self.hits.follow()
        metrics = self._scrape(analysis, url)
        if metrics is None:
            return False
        if self._began is None:
            if not count(metrics, "cxls_frames_received_total"):
                return False
            self._began, self._next_kill = now, now + (self.settings.kills or 0.0)
        self.seen.metrics = metrics
        seen = self._sample(analysis, now - self._began)
        self.seen.samples += seen
        if not seen:
            return False
        if self.settings.kills is not None and now >= self._next_kill:
            self._kill(url)
            self._next_kill = now + self.settings.kills
        return True

    def _scrape(self, analysis: Child, url: str) -> dict[str, float] | None:
        """The metrics; ``None`` where there is no answer, which is a problem as long as the analysis runs."""
        try:
            return scrape(url)
        except (OSError, HTTPException, ValueError) as error:
            if analysis.process.poll() is None:
                self.seen.problems.add(f"no answer at {url}/metrics: {error}")
            return None

    def _kill(self, url: str) -> None:
        """One worker process that is ready, by chance."""
        with contextlib.suppress(NoAnswer, ProcessLookupError):
            workers = items(value(ask(parse_address(url, "soak")), "crew"), "workers")
            ready = [each["pid"] for each in workers if each.get("state") == "ready"]
            if ready:
                os.kill(self._chance.choice(ready), signal.SIGKILL)
                self.seen.kills += 1

    def _progress(self) -> Progress:
        last = self.seen.samples[-1]
        before = self.seen.samples[-2] if len(self.seen.samples) > 1 else last
        took = last.at_s - before.at_s
        rate = (last.received - before.received) / took if took else 0.0
        memory = last.usage.own_bytes
        return Progress(last.at_s, self.settings.time, last.received, rate, memory, self.seen.kills)

    def _drain(self, analysis: Child, url: str) -> None:
        """Wait until nothing is in any queue and the last series is over; then the last look."""
        deadline, before = time.monotonic() + _DRAIN_S, -1
        while analysis.process.poll() is None and time.monotonic() < deadline:
            if (metrics := self._scrape(analysis, url)) is not None:
                self.seen.metrics = metrics
                received = count(metrics, "cxls_frames_received_total")
                if received == before and not count(metrics, "cxls_queue_frames"):
                    return
                before = received
            time.sleep(_DRAIN_APART_S)

    def checks(self) -> list[Check]:
        """Every check there is of such a soak."""
        seen, recorded = self.seen, self.records.recorded
        if self._nothing_yet:
            return [
                Check("images", None, "told to end before the first one"),
                checks.readable(seen.problems.texts, "nothing to read yet"),
                checks.ended(seen.codes),
            ]
        quiet = checks.settled(seen.samples)
        rests = [each for each in seen.rests if quiet and each.at_s >= quiet[0].at_s]
        faults = committed([self.places.faults(leg) for leg in legs(self.settings)])
        cut = bool(seen.replay.cut)
        found = [
            checks.every_look(seen.samples),
            checks.account(seen.metrics, seen.words),
            checks.announced(seen.metrics, seen.words, faults.headless, cut),
            checks.sent(seen.metrics, seen.replay, faults.totals.exact["received"]),
            checks.records(seen.metrics, recorded, faults.same_id),
            checks.hits(seen.metrics, self.hits.hits),
            checks.readable(seen.problems.texts, self._looked_at()),
            checks.ended(seen.codes),
            checks.words_on_stderr(seen.stderr),
            checks.standstill(seen.samples, seen.until_s),
        ]
        told = seen.early == TOLD
        if len(rests) >= _ENOUGH:
            found.append(checks.memory_at_rest(rests))
        if len(quiet) >= (_ENOUGH_TOLD if told else _ENOUGH):
            found += [
                checks.memory(quiet),
                checks.descriptors(quiet),
                checks.threads(quiet),
                checks.latency(quiet, self.settings.rate is None),
                checks.cpu(quiet),
            ]
        else:
            text = f"{len(quiet)} looks after the warm-up show none; soak for longer"
            found.append(Check("growth", None if told else False, text))
        if seen.words is not None and self.settings.faults != "none":
            found.append(checks.ledger(seen.words.reasons, faults, cut, self._most_failed()))
        if self.settings.kills is not None:
            if told and not seen.kills:
                found.append(Check("kills", None, "told to end before the first one"))
            else:
                found.append(checks.kills(seen.kills, seen.metrics))
        return found

    def _most_failed(self) -> int:
        """Images that the kills may have made undecodable, by the room of the workers as the analysis told of it."""
        told = [_MOST_ROOM.search(line) for line in self.seen.stderr.get("analysis", [])]
        return checks.most_failed(self.seen.kills, max((int(found[1]) for found in told if found), default=0))

    def _looked_at(self) -> str:
        return f"{self.records.recorded.records} records, {self.hits.hits} hits in {self.hits.files} files read"
