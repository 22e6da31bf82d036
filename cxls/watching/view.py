"""The lines of the terminal view: what each says, the same drawn, printed once, or as one line."""

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from analyzer.state import State, state_of
from cxls.watching.reading import counts, items, number, text, value

MINUTES_S = 300.0
"""How far back the sparkline goes."""

_RATE_S = 10.0
_MOST_ALARMS, _MOST_CHANGES = 5, 3
SIGNS = {
    State.RUNNING: "[>]",
    State.IDLE: "[ ]",
    State.NOT_READY: "[.]",
    State.DISCONNECTED: "[x]",
    State.OVER: "[=]",
}
ALARM_SIGNS = {"critical": "[!!]", "warning": "[! ]"}
NO_ANSWER = "[??]"
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-:=+*#"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing said: ``label`` in a column of its own, ``kind`` for its colour; ``rank`` 0 is shown in any case."""

    label: str
    text: str
    kind: str = "plain"
    rank: int = 0


@dataclass(slots=True)
class Memory:
    """What was seen over the last minutes. ``add`` and the rest are of one thread each; deques bear both."""

    ratios: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=4000))
    received: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=400))

    def add(self, status: dict[str, Any], at_s: float) -> None:
        """Keep what is drawn against time; ``at_s`` is of a monotonic clock."""
        ratio, received = number(status, "hit_ratio", "100"), number(status, "account", "received")
        if ratio is not None:
            self.ratios.append((at_s, ratio))
        if received is not None:
            if self.received and received < self.received[-1][1]:
                # Another run answers at this address now.
                self.received.clear()
                self.ratios.clear()
            self.received.append((at_s, received))

    def frames_hz(self) -> float | None:
        """Images received a second over the last ten seconds."""
        seen = list(self.received)
        recent = [each for each in seen if each[0] >= seen[-1][0] - _RATE_S]
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return None
        return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])

    def sparkline(self, width: int, bars: str) -> str:
        """The hit ratio over the last minutes, oldest first, from 0 to 1; a blank where nothing was seen."""
        seen = list(self.ratios)
        if len(seen) < 2 or width < 1:
            return ""
        now = seen[-1][0]
        cells: list[list[float]] = [[] for _ in range(width)]
        for at, ratio in seen:
            place = width - 1 - int((now - at) / MINUTES_S * width)
            if place >= 0:
                cells[place].append(min(max(ratio, 0.0), 1.0))
        means = [sum(cell) / len(cell) if cell else None for cell in cells]
        return "".join(" " if mean is None else bars[min(int(mean * len(bars)), len(bars) - 1)] for mean in means)


def lines(status: dict[str, Any], memory: Memory, bars: str, width: int) -> Iterator[Line]:
    """Everything of a good answer, the most important first."""
    state = state_of(status)
    yield Line("state", f"{SIGNS[state]} {state}{_run(status)}", "good" if state == State.RUNNING else "plain")
    yield from _alarms(status)
    yield Line("", _series(status), rank=1)
    yield Line("hit rate", _hit_rate(status), "good")
    spark = memory.sparkline(min(60, width - 20), bars)
    if spark.strip():
        yield Line("", f"{spark} {MINUTES_S / 60:.0f} min", rank=2)
    yield Line("frames", _frames(status, memory))
    yield Line("latency", _latency(status), rank=1)
    yield Line("last hit", _last_hit(status), rank=1)
    yield Line("energy", _against_header(status, "photon_energy", "eV", 1e-3, "keV", 3), rank=1)
    yield Line("distance", _against_header(status, "camera_length", "m", 1e3, "mm", 2), rank=1)
    yield Line("account", text(status, "account", "identity") or "not said")
    for label, key in (("dropped", "dropped"), ("undecoded", "undecodable"), ("missing", "missing"),
                       ("refused", "messages_invalid")):  # fmt: skip
        found = counts(status, "account", key)
        if found:
            told = ", ".join(f"{name} {count}" for name, count in found.items())
            yield Line(label, told, "warning" if label != "dropped" or set(found) - {"sampled"} else "plain", 1)
    yield from _targets(status)
    for change in items(status, "changes")[-_MOST_CHANGES:]:
        yield Line(
            "change", f"{_clock(number(change, 'time'))} {text(change, 'text') or text(change, 'action')}", rank=3
        )


def one_line(status: dict[str, Any], memory: Memory) -> str:
    """The least that is worth a line, for a file or a pipe."""
    frames = _frames_hz(status, memory)
    dropped = {key: n for key, n in counts(status, "account", "dropped").items() if key != "sampled"}
    parts = [
        f"{_clock(time.time())} {state_of(status)}",
        f"hit rate {_hit_rate(status)}",
        "no frame rate yet" if frames is None else f"{frames:.1f} frames/s",
        f"queue {_count(number(status, 'queue_frames'))}",
        f"dropped {sum(dropped.values())}",
        *(f"{each.label}: {each.text}" for each in _alarms(status)),
    ]
    return " | ".join(parts)


def no_answer(why: str | None, seconds: float) -> str:
    """What is said when the server has gone, or is none."""
    return f"{NO_ANSWER} no answer for {seconds:.0f} s: {why or 'asking'}"


def _alarms(status: dict[str, Any]) -> Iterator[Line]:
    found = items(status, "alarms")
    for alarm in found[:_MOST_ALARMS]:
        severity = text(alarm, "severity")
        kind = severity if severity in ALARM_SIGNS else "warning"
        since = number(alarm, "since")
        when = f" (since {_clock(since)})" if since is not None else ""
        yield Line("alarm", f"{ALARM_SIGNS[kind]} {text(alarm, 'text') or 'not said'}{when}", kind)
    if len(found) > _MOST_ALARMS:
        yield Line("alarm", f"and {len(found) - _MOST_ALARMS} more", "warning")


def _run(status: dict[str, Any]) -> str:
    run, sample = number(status, "run", "number"), text(status, "run", "sample")
    return (f", run {run:.0f}" if run is not None else "") + (f", {sample}" if sample else "")


def _series(status: dict[str, Any]) -> str:
    series = text(status, "series_id")
    images = number(status, "header", "number_of_images")
    parts = ["no series yet" if series is None else f"series {series}"]
    if images is not None:
        parts.append(f"{images:.0f} images announced")
    threshold, bundle = number(status, "threshold"), text(status, "bundle")
    if threshold is not None:
        parts.append(f"threshold {threshold:.3g}")
    if bundle is not None:
        parts.append(f"bundle {bundle}")
    return ", ".join(parts)


def _hit_rate(status: dict[str, Any]) -> str:
    told = [
        f"{ratio:.1%} of {window}"
        for window in ("100", "1000")
        if (ratio := number(status, "hit_ratio", window)) is not None
    ]
    return ", ".join(told) or "no frame yet"


def _frames_hz(status: dict[str, Any], memory: Memory) -> float | None:
    said = number(status, "rates", "frames_hz")
    return memory.frames_hz() if said is None else said


def _frames(status: dict[str, Any], memory: Memory) -> str:
    rate, frame_time = _frames_hz(status, memory), number(status, "header", "frame_time_s")
    told = "no rate yet" if rate is None else f"{rate:.1f} a second"
    if frame_time is not None and frame_time > 0:
        told += f" of the detector's {1 / frame_time:.1f}"
        if rate is not None:
            told += f" ({rate * frame_time:.0%})"
    every = number(status, "sampling", "every")
    if every is not None and every > 1:
        told += f", one image in {every:.0f} analysed"
    return told


def _latency(status: dict[str, Any]) -> str:
    half, most = (number(status, "rates", key) for key in ("latency_p50_s", "latency_p99_s"))
    last = number(status, "last", "latency_s")
    if half is not None and most is not None:
        told = f"{_milliseconds(half)}, 99 % within {_milliseconds(most)}"
    else:
        told = "none yet" if last is None else f"{_milliseconds(last)} of the last image"
    capacity = number(status, "queue_capacity_frames")
    return f"{told}; queue {_count(number(status, 'queue_frames'))}" + (f" of {capacity:.0f}" if capacity else "")


def _last_hit(status: dict[str, Any]) -> str:
    if not isinstance(value(status, "last_hit"), dict):
        return "none yet"
    parts = [
        f"image {text(status, 'last_hit', 'image_id')}",
        f"{_count(number(status, 'last_hit', 'peak_count'))} peaks",
    ]
    resolution = number(status, "last_hit", "resolution_angstrom")
    probability = number(status, "last_hit", "hit_probability")
    if resolution is not None:
        parts.append(f"to {resolution:.2f} angstrom")
    if probability is not None:
        parts.append(f"probability {probability:.3f}")
    return ", ".join(parts)


def _against_header(status: dict[str, Any], name: str, unit: str, scale: float, shown: str, digits: int) -> str:
    found = number(status, "estimate", f"{name}_{unit}")
    sigma = number(status, "estimate", f"{name}_sigma_{unit}")
    header = number(status, "header", f"{name}_{unit}")
    if found is None:
        reason = text(status, "estimate", "estimate_reason")
        told = f"not determined{f' ({reason})' if reason else ''}"
    else:
        told = (
            f"{found * scale:.{digits}f}"
            + (f" ± {sigma * scale:.{digits}f}" if sigma is not None else "")
            + f" {shown}"
        )
    if header is None:
        return f"{told}; the header says nothing"
    told += f"; header {header * scale:.{digits}f}"
    if found is not None and sigma:
        told += f" ({(found - header) / sigma:+.1f} sigma)"
    return told


def _targets(status: dict[str, Any]) -> Iterator[Line]:
    for name in ("hits", "indexed"):
        collected, target = number(status, "targets", name, "collected"), number(status, "targets", name, "target")
        if collected is None:
            continue
        rate, left = number(status, "targets", name, "rate_hz"), number(status, "targets", name, "left_s")
        parts = [f"{collected:.0f}" + (f" of {target:.0f} {name}" if target is not None else f" {name}, no target")]
        if rate is not None:
            parts.append(f"{rate:.2f} a second")
        if left is not None:
            parts.append("done" if left == 0 else f"{_duration(left)} left")
        yield Line("collected", ", ".join(parts), rank=2)


def _count(found: float | None) -> str:
    return "?" if found is None else f"{found:.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _clock(unix_s: float | None) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(math.nan if unix_s is None else unix_s))
    except (ValueError, OverflowError, OSError):
        return "--:--:--"
