"""A soak's report: a table, JSON with every sample, and a plot against time."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from cxls.bench.report import Figure, Report
from cxls.figures.drawing import BLUE, GREEN, GREY, ORANGE, RED, house_style, new_figure, save_png
from cxls.settings import SoakSettings
from cxls.soak import checks
from cxls.soak.checks import Check
from cxls.soak.samples import Sample

_MIB = 1 << 20
_WORDS = {True: "ok  ", False: "FAIL", None: "not told"}


def as_report(
    settings: SoakSettings, samples: Sequence[Sample], rests: Sequence[Sample], found: Sequence[Check], early: str
) -> Report:
    """Figures of the settled part, and a line a check."""
    failed = sum(each.kept is False for each in found)
    open_ = sum(each.kept is None for each in found)
    took = samples[-1].at_s if samples else 0.0
    rate = "flat out" if settings.rate is None else f"{settings.rate:g} images/s"
    title = f"soak: {_span(took)}, {settings.stream}, {rate}, --on-full {settings.on_full}"
    title += f", {settings.processes} worker processes" if settings.processes else ""
    if early:
        title += f"; ended early: {early}"
    notes = [f"{_WORDS[each.kept]}  {each.name}: {each.text}" for each in found]
    outcome = f"{failed} of {len(found)} checks failed" if failed else f"all {len(found) - open_} checks hold"
    notes.append(f"{outcome}, {open_} cannot be told" if open_ else outcome)
    columns = _columns(samples) | {f"rest_{name}": column for name, column in _columns(rests).items() if rests}
    return Report(title, _figures(checks.settled(samples)), notes=notes, samples=columns)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _figures(samples: Sequence[Sample]) -> list[Figure]:
    if len(samples) < 3:
        return []
    at = [each.at_s for each in samples]
    memory = checks.held(samples)
    resident = checks.growth(at, [each.usage.resident_bytes for each in samples])
    descriptors = checks.growth(at, [each.usage.descriptors for each in samples])
    threads = checks.growth(at, [each.usage.threads for each in samples])
    (first, last), whole = checks.ends(samples), checks.pace(samples[0], samples[-1])
    return [
        Figure("images received", "images", samples[-1].received),
        Figure("rate", "images/s", whole.rate_hz, note=f"first tenth {first.rate_hz:.1f}, last {last.rate_hz:.1f}"),
        Figure("memory, its own", "MiB", memory.base / _MIB,
               note="held at least while images come; first tenth after the warm-up"),
        Figure("growth by medians", "%", 100 * memory.by_medians / memory.base, note="last tenth against first"),
        Figure("growth by slope", "%", 100 * memory.by_slope / memory.base, note="median slope between two looks"),
        Figure("resident, added up", "MiB", resident.base / _MIB, note=f"growth {resident.most / _MIB:+.2f} MiB"),
        Figure("descriptors", "", descriptors.base, note=f"growth {descriptors.most:+.1f}"),
        Figure("threads", "", threads.base, note=f"growth {threads.most:+.1f}"),
        Figure("latency, median", "s", whole.median_s, note=f"first {first.median_s:.3g}, last {last.median_s:.3g}"),
        Figure("latency, 99 %", "s", whole.p99_s, note=f"first {first.p99_s:.3g}, last {last.p99_s:.3g}"),
        Figure("CPU an image", "ms", 1e3 * whole.cpu_s,
               note=f"first {1e3 * first.cpu_s:.2f}, last {1e3 * last.cpu_s:.2f}"),
    ]  # fmt: skip


def _columns(samples: Sequence[Sample]) -> dict[str, list[float]]:
    return {
        "at_s": [round(each.at_s, 3) for each in samples],
        "memory_bytes": [each.usage.own_bytes for each in samples],
        "resident_bytes": [each.usage.resident_bytes for each in samples],
        "processes": [each.usage.processes for each in samples],
        "descriptors": [each.usage.descriptors for each in samples],
        "threads": [each.usage.threads for each in samples],
        "cpu_s": [each.usage.cpu_s for each in samples],
        "received": [each.received for each in samples],
        "queued": [each.queued for each in samples],
    }


def draw(samples: Sequence[Sample], rests: Sequence[Sample], path: Path) -> None:
    """Memory, descriptors and threads, rate, latency against time. Raises ``OSError``."""
    at = np.array([each.at_s for each in samples])
    scale, unit = (1.0, "s") if at[-1] < 300 else (60.0, "min")
    warm = checks.settled(samples)[0].at_s
    paces = [checks.pace(first, last) for first, last in pairwise(samples)]
    with house_style():
        figure = new_figure(9.0, 8.0)
        memory, open_, rate, latency = figure.subplots(4, 1, sharex=True)
        memory.plot(at / scale, [each.usage.own_bytes / _MIB for each in samples], color=BLUE, label="its own")
        memory.plot(
            at / scale, [each.usage.resident_bytes / _MIB for each in samples], color=GREY, label="resident, added"
        )
        if rests:
            at_rest = [each.usage.own_bytes / _MIB for each in rests]
            memory.plot([each.at_s / scale for each in rests], at_rest, "o", color=RED, ms=4, label="its own, at rest")
        memory.set(ylabel="memory (MiB)", ylim=(0, None))
        open_.step(at / scale, [each.usage.descriptors for each in samples], color=GREEN, label="descriptors")
        open_.step(at / scale, [each.usage.threads for each in samples], color=ORANGE, label="threads")
        open_.set(ylabel="open (number)", ylim=(0, None))
        rate.step(at[1:] / scale, [each.rate_hz for each in paces], color=BLUE, label="received")
        rate.set(ylabel="rate (images/s)", ylim=(0, None))
        latency.plot(at[1:] / scale, [each.median_s for each in paces], color=BLUE, label="median")
        latency.plot(at[1:] / scale, [each.p99_s for each in paces], color=RED, label="99 %")
        latency.set(ylabel="latency (s)", yscale="log", xlabel=f"time ({unit})")
        for axes in (memory, open_, rate, latency):
            axes.axvspan(0.0, warm / scale, color="0.93", zorder=0)
            axes.legend(loc="lower right")
        memory.set_title("Analysis, all its processes; grey: warm-up, not judged")
        save_png(figure, path)
