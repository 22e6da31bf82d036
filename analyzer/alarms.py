"""When to raise an alarm: the thresholds, which deploy/prometheus has as rules, and what of a run is past them.

The page, the terminal view and the control system show the same sentences. It is looked at when somebody asks, so that
a run that nobody watches spends nothing on it.
"""

import math
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyzer.front import Front
from analyzer.running import WINDOWS

CRITICAL, WARNING = "critical", "warning"
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Times in seconds, ratios of 1. ``window_s``: counts are looked at over so long."""

    window_s: float = 60.0
    no_frame_s: float = 10.0
    latency_p99_s: float = 1.0
    queue_ratio: float = 0.8
    no_beam_s: float = 10.0
    stuck_hit_ratio: float = 0.98
    stuck_frames: int = 1000
    collapsed_to: float = 0.2
    collapsed_from: float = 0.02
    drift_ratio: float = 0.1
    disk_warning_ratio: float = 0.1
    disk_critical_ratio: float = 0.05


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
    ``disks`` the folders that outputs write to, by output.
    """

    def __init__(
        self,
        front: Front,
        estimate: Callable[[], Mapping[str, Any]],
        drift: Callable[[], float | None] = lambda: None,
        disks: Mapping[str, Path] | None = None,
    ) -> None:
        self._front, self._estimate, self._drift, self._disks = front, estimate, drift, disks or {}
        self._lock = threading.Lock()
        self._samples: deque[_Counts] = deque()
        self._since: dict[str, float] = {}
        self._kept: tuple[float, list[dict[str, Any]]] = (-math.inf, [])

    def facts(self) -> list[dict[str, Any]]:
        """What is past its threshold, the gravest first: ``name``, ``severity``, ``text`` and ``since`` (Unix s)."""
        with self._lock:
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

    def _look(self, now: float) -> Iterator[Alarm]:
        yield from self._of_stream(now)
        yield from self._of_counts(now)
        yield from self._of_load(now)
        yield from self._of_science()
        yield from self._of_machine()

    def _of_stream(self, now: float) -> Iterator[Alarm]:
        front, history, limits = self._front, self._front.history, THRESHOLDS
        if front.stopping:
            return
        if not front.source.connected:
            yield Alarm("CxlsNotConnected", WARNING, "The detector is not connected: check that its stream is enabled.")
        if not front.series_open or history.last_at is None:
            return
        silent = now - max(history.last_at, front.running.began_at or 0.0)
        if silent > limits.no_frame_s:
            yield Alarm(
                "CxlsNoFramesWhileArmed",
                WARNING,
                f"No image for {silent:.0f} s in a series that is not over: check the trigger and the shutter.",
            )
        else:
            dark = history.last_at - max(history.last_beam_at or 0.0, history.first_at or 0.0)
            if dark > limits.no_beam_s:
                yield Alarm(
                    "CxlsNoBeam", WARNING, f"No beam in the images of the last {dark:.0f} s: check shutter and source."
                )

    def _of_counts(self, now: float) -> Iterator[Alarm]:
        front, account = self._front, self._front.account
        here = _Counts(
            now,
            account.dropped["queue_full"],
            account.missing["gap"],
            sum(account.undecodable.values()),
            sum(account.invalid.values()),
            sum(sink.lost for sink in front.sinks),
        )
        samples = self._samples
        samples.append(here)
        while len(samples) > 2 and now - samples[1].at_s >= THRESHOLDS.window_s:
            samples.popleft()
        before = samples[0]
        for name, severity, count, text in (
            ("CxlsFramesDropped", CRITICAL, here.dropped - before.dropped,
             "images dropped in the last minute: analysis is behind; --sample auto follows with fewer images."),
            ("CxlsResultsLost", CRITICAL, here.lost - before.lost,
             "records could not be written in the last minute: check the disk of --results."),
            ("CxlsFrameGaps", WARNING, here.gaps - before.gaps,
             "images missing within series that ended in the last minute: check the network and other clients."),
            ("CxlsUndecodable", WARNING, here.undecodable - before.undecodable,
             "images did not decode in the last minute: see the log."),
            ("CxlsInvalidMessages", WARNING, here.invalid - before.invalid,
             "messages refused in the last minute: see the log, and check what else sends here."),
        ):  # fmt: skip
            if count > 0:
                yield Alarm(name, severity, f"{count} {text}")

    def _of_load(self, now: float) -> Iterator[Alarm]:
        front, limits = self._front, THRESHOLDS
        latency = front.history.rates(now)["latency_p99_s"]
        if latency is not None and latency > limits.latency_p99_s and not front.settings.block:
            yield Alarm(
                "CxlsLatencyOverDeadline",
                WARNING,
                f"Results come {latency:.1f} s after their images (99 %): what you see is that old.",
            )
        ring = front.ring
        filled = max(len(ring) / ring.capacity, ring.held_bytes / ring.capacity_bytes)
        if filled > limits.queue_ratio and not front.settings.block:
            yield Alarm(
                "CxlsQueueFilling",
                WARNING,
                f"The queue is {filled:.0%} full: images will be dropped; --sample auto follows with fewer.",
            )

    def _of_science(self) -> Iterator[Alarm]:
        front, limits = self._front, THRESHOLDS
        with front.running.lock:
            hits, counted = front.running.hits.counts(max(WINDOWS))
            recent, latest = front.running.hits.counts(min(WINDOWS))
        if counted >= limits.stuck_frames and hits > limits.stuck_hit_ratio * counted:
            yield Alarm(
                "CxlsHitRatioStuckAtOne",
                WARNING,
                f"{hits / counted:.1%} of the last {counted} images are hits: a hot pixel or a ring may be behind it.",
            )
        whole = hits / counted if counted else 0.0
        if counted >= limits.stuck_frames // 2 and whole >= limits.collapsed_from:
            # Fewer than chance would leave at a fifth of the longer window's ratio.
            expected = limits.collapsed_to * whole * latest
            if recent < expected and (1.0 - whole) ** latest < 1e-3:
                yield Alarm(
                    "CxlsHitRatioCollapsed",
                    WARNING,
                    f"{recent} hits in the last {latest} images, {whole:.1%} before: check jet, overlap and beam.",
                )
        for mismatch in self._estimate().get("mismatches") or ():
            yield Alarm(f"CxlsHeaderDisagrees {mismatch['quantity']}", WARNING, mismatch["text"])
        drift = self._drift()
        if drift is not None and drift > limits.drift_ratio:
            yield Alarm(
                "CxlsModelDrift",
                WARNING,
                f"Scores of misses are unlike the reference's (divergence {drift:.2f}): calibrate on a blank run.",
            )

    def _of_machine(self) -> Iterator[Alarm]:
        faults = self._front.device_faults
        if faults:
            yield Alarm(
                "CxlsDeviceFault", WARNING, f"The GPU failed in {len(faults)} worker(s), which use the CPU: {faults[0]}"
            )
        for output, folder in self._disks.items():
            try:
                usage = shutil.disk_usage(folder)
            except OSError:
                continue
            free = usage.free / max(usage.total, 1)
            if free < THRESHOLDS.disk_warning_ratio:
                severity = CRITICAL if free < THRESHOLDS.disk_critical_ratio else WARNING
                yield Alarm(
                    f"CxlsDiskLow {output}",
                    severity,
                    f"{usage.free / 1e9:.1f} GB ({free:.0%}) are free where --{output} writes: make room.",
                )
