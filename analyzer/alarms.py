"""When to raise an alarm: the thresholds, which deploy/prometheus has as rules, and what of a run is past them.

The page, the terminal view and the control system show the same sentences. It is looked at when somebody asks, and now
and then in any case: counts are of the last minutes, so that who asks first hears of what was lost before.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analyzer import logs
from analyzer.drift import ALARM_RATIO
from analyzer.front import Front
from analyzer.hits import HitFolder
from analyzer.metrics.disk import Room
from analyzer.running import WINDOWS

log = logging.getLogger(__name__)

CRITICAL, WARNING = "critical", "warning"
WATCH_S = 10.0
"""How often it is looked at where nobody asks."""

_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Times in seconds, ratios of 1. Counts are looked at over so long: ``dropped_s``, others ``lost_s``.

    ``hit_ratio_s``: a hit ratio is an alarm only while images with beam come, the last of them not longer ago.
    """

    dropped_s: float = 120.0
    lost_s: float = 300.0
    no_frame_s: float = 30.0
    latency_p99_s: float = 1.0
    queue_ratio: float = 0.8
    unserved_s: float = 60.0
    no_beam_s: float = 10.0
    hit_ratio_s: float = 60.0
    stuck_hit_ratio: float = 0.99
    stuck_frames: int = 1000
    collapsed_to: float = 0.2
    collapsed_expected: float = 20.0
    drift_ratio: float = ALARM_RATIO
    disk_free_ratio: float = 0.1


THRESHOLDS = Thresholds()


@dataclass(frozen=True, slots=True)
class Alarm:
    """``name`` as of the alert rule; ``text`` says what is, and what to do."""

    name: str
    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class _Counts:
    at_s: float
    dropped: int
    gaps: int
    undecodable: int
    invalid: int
    lost: int


class Alarms:
    """The alarms of one run, for whoever asks: from any thread, about once a second.

    ``estimate`` gives the running parameters, ``drift`` the divergence of scores from a reference or ``None``,
    ``rooms`` size and free bytes of the disks of outputs, ``throttled`` whether a GPU's clock is held down.
    """

    def __init__(
        self,
        front: Front,
        estimate: Callable[[], Mapping[str, Any]],
        drift: Callable[[], float | None] = lambda: None,
        rooms: Callable[[], Mapping[str, Room]] = dict,
        throttled: Callable[[], bool] = bool,
    ) -> None:
        self._front, self._estimate, self._drift, self._rooms = front, estimate, drift, rooms
        self._throttled = throttled
        self._lock = threading.Lock()
        self._samples = deque([self._counts()])
        self._since: dict[str, float] = {}
        self._kept: tuple[float, list[dict[str, Any]]] = (-math.inf, [])

    def watch(self, done: threading.Event) -> None:
        """Look every ``WATCH_S`` seconds until ``done``."""
        repeats = logs.Repeats(log)
        while not done.wait(WATCH_S):
            try:
                self.facts()
            except Exception:
                # Only shown, so a fault of it costs no frame.
                repeats.exception("the alarms cannot be looked at", "page_failed")
        repeats.close()

    def facts(self) -> list[dict[str, Any]]:
        """What is past its threshold, the gravest first: ``name``, ``severity``, ``text`` and ``since`` (Unix s)."""
        # Who comes while another looks gets the last look: nobody waits, whatever a look waits for.
        if not self._lock.acquire(blocking=False):
            return self._kept[1]
        try:
            now = time.time()
            at, kept = self._kept
            if 0.0 <= now - at < _LOOK_S:
                return kept
            found = sorted(self._look(now), key=lambda each: each.severity != CRITICAL)
            self._since = {each.name: self._since.get(each.name, now) for each in found}
            facts = [
                {"name": e.name, "severity": e.severity, "text": e.text, "since": round(self._since[e.name], 3)}
                for e in found
            ]
            self._kept = now, facts
            return facts
        finally:
            self._lock.release()

    def _look(self, now: float) -> Iterator[Alarm]:
        yield from self._of_stream(now)
        yield from self._of_counts()
        yield from self._of_load(now)
        yield from self._of_hits(now)
        yield from self._of_science()
        yield from self._of_machine()

    def _of_stream(self, now: float) -> Iterator[Alarm]:
        front, running = self._front, self._front.running
        if front.stopping:
            return
        if not front.source.connected:
            yield Alarm("CxlsNotConnected", WARNING, "The detector is not connected: check that its stream is enabled.")
        if not front.series_open:
            return
        began = running.began_at or now
        silent = now - max(front.last_frame_at or 0.0, began)
        if silent > THRESHOLDS.no_frame_s:
            yield Alarm(
                "CxlsNoFramesWhileArmed",
                WARNING,
                f"No image for {silent:.0f} s in a series that is not over: check the trigger and the shutter.",
            )
        elif running.last_result_at is not None:
            dark = running.last_result_at - max(running.last_beam_at or 0.0, began)
            if dark > THRESHOLDS.no_beam_s:
                yield Alarm(
                    "CxlsNoBeam", WARNING, f"No beam in the images of the last {dark:.0f} s: check shutter and source."
                )

    def _of_counts(self) -> Iterator[Alarm]:
        here, samples = self._counts(), self._samples
        steady = here.at_s
        while samples and steady - samples[0].at_s > THRESHOLDS.lost_s:
            samples.popleft()
        samples.append(here)
        before = samples[0]
        dropped = next(each for each in samples if steady - each.at_s <= THRESHOLDS.dropped_s).dropped
        for name, severity, count, text in (
            ("CxlsFramesDropped", CRITICAL, here.dropped - dropped,
             "images dropped in two minutes: analysis is behind; --sample auto follows with fewer images."),
            ("CxlsResultsLost", CRITICAL, here.lost - before.lost,
             "records or hits could not be written in five minutes: check the disk."),
            ("CxlsFrameGaps", WARNING, here.gaps - before.gaps,
             "images missing within series that ended in five minutes: check the network and other clients."),
            ("CxlsUndecodable", WARNING, here.undecodable - before.undecodable,
             "images did not decode in five minutes: see the log."),
            ("CxlsInvalidMessages", WARNING, here.invalid - before.invalid,
             "messages refused in five minutes: see the log, and check what else sends here."),
        ):  # fmt: skip
            if count > 0:
                yield Alarm(name, severity, f"{count} {text}")

    def _counts(self) -> _Counts:
        account = self._front.account
        return _Counts(
            time.monotonic(),
            account.dropped["queue_full"],
            account.missing["gap"],
            sum(account.undecodable.values()),
            sum(account.invalid.values()),
            self._lost(),
        )

    def _lost(self) -> int:
        """Records and hits that could not be written."""
        hits = (each.lost_hits for each in self._front.hit_outputs if isinstance(each, HitFolder))
        return sum(sink.lost for sink in self._front.sinks) + sum(hits)

    def _of_load(self, now: float) -> Iterator[Alarm]:
        front, limits = self._front, THRESHOLDS
        if not front.stopping and (unserved_s := front.unserved_s) > limits.unserved_s:
            yield Alarm(
                "CxlsNoWorkerReady",
                CRITICAL,
                f"No worker has been ready for {unserved_s:.0f} s, so images wait: see whether cxls worker runs.",
            )
        if front.settings.block:
            # The sender waits, nothing is dropped, and the queue is full wherever it is the faster of the two: that,
            # and results as late as the queue is long, is what was asked for. The rules see it by cxls_sender_waits.
            return
        latency = front.history.rates(now)["latency_p99_s"]
        if latency is not None and latency > limits.latency_p99_s:
            yield Alarm(
                "CxlsLatencyOverDeadline",
                WARNING,
                f"Results come {latency:.1f} s after their images (99 %): what you see is that old.",
            )
        ring = front.ring
        filled = max(len(ring) / ring.capacity, ring.held_bytes / ring.capacity_bytes)
        if filled > limits.queue_ratio:
            yield Alarm(
                "CxlsQueueFilling",
                WARNING,
                f"The queue is {filled:.0%} full: images will be dropped; --sample auto follows with fewer.",
            )

    def _of_hits(self, now: float) -> Iterator[Alarm]:
        running, limits = self._front.running, THRESHOLDS
        with running.lock:
            hits, counted = running.hits.counts(max(WINDOWS))
            recent, latest = running.hits.counts(min(WINDOWS))
            last = running.last_beam_at
        if last is None or now - last > limits.hit_ratio_s:
            return
        if counted >= limits.stuck_frames and hits > limits.stuck_hit_ratio * counted:
            yield Alarm(
                "CxlsHitRatioStuckAtOne",
                WARNING,
                f"{hits / counted:.1%} of the last {counted} images are hits: a hot pixel or a ring may be behind it.",
            )
        whole = hits / counted if counted else 0.0
        # Twenty were to be expected, so that fewer than four are no chance.
        if whole * latest > limits.collapsed_expected and recent < limits.collapsed_to * whole * latest:
            yield Alarm(
                "CxlsHitRatioCollapsed",
                WARNING,
                f"{recent} hits in the last {latest} images, {whole:.1%} of {counted}: check jet, overlap and beam.",
            )

    def _of_science(self) -> Iterator[Alarm]:
        for mismatch in self._estimate().get("mismatches") or ():
            yield Alarm(f"CxlsHeaderDisagrees {mismatch['quantity']}", WARNING, mismatch["text"])
        drift = self._drift()
        if drift is not None and drift > THRESHOLDS.drift_ratio:
            yield Alarm(
                "CxlsModelDrift",
                WARNING,
                f"Scores of misses are unlike the reference's (divergence {drift:.2f}): calibrate on a blank run.",
            )

    def _of_machine(self) -> Iterator[Alarm]:
        faults = self._front.device_faults
        if faults:
            text = f"The GPU failed in {len(faults)} worker(s), which use the CPU: {faults[0]}"
            yield Alarm("CxlsDeviceFault", CRITICAL, text)
        if self._throttled():
            yield Alarm(
                "CxlsGpuThrottled",
                WARNING,
                "Heat or a fault of power holds the GPU's clock down, so that it is slower: check cooling and power.",
            )
        for output, (size, free) in self._rooms().items():
            if size > 0 and free < THRESHOLDS.disk_free_ratio * size:
                yield Alarm(
                    f"CxlsDiskLow {output}",
                    WARNING,
                    f"{free / 1e9:.1f} GB ({free / size:.0%}) are free where --{output} writes: make room.",
                )
