"""Bounded memory: a source that outruns the analysis, and a steady state that allocates no frame."""

import os
import re
import tempfile
import time
import tracemalloc
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from cxls.bench.children import Child, cxls, free_endpoint, memory_bytes, replaying, wait_ready
from cxls.bench.inputs import BRIGHT_FLUX, chosen_bundle, image_data, packed_frames, repeated, simulate
from cxls.bench.report import Figure, Report
from cxls.settings import BenchSettings
from streamer.frames import Frame
from streamer.receiver import RECEIVE_HWM

QUEUE_MIB = 64
BATCH = 8
WORKERS = 2
SETTLED_S = 10
"""Seconds after which growth would be a leak: every buffer has been used by then."""

SERIES_KEPT = 4
"""Series whose plan and buffers a worker keeps (``analyzer.cascade``)."""

LONG, SHORT = 2000, 20
"""How often the simulated frames make a series: one that outlasts the run, or a new one each few seconds."""

STEADY_FRAMES = 200
_WARM_FRAMES = 10
_MIB = float(1 << 20)
_SAMPLE = re.compile(r"^(cxls_\w+?)(?:\{([^}]*)\})? (\S+)$")


@dataclass(frozen=True, slots=True)
class Steady:
    """Of a warm worker, between two frames at most: bytes that Python and numpy allocated on top of
    what they held, how much more all of it held at the end, and the growth of the peak of resident
    memory (native code too), ``None`` where the kernel does not reset it."""

    traced_peak: int
    traced_growth: int
    resident_growth: int | None


def steady_state(analyser: Analyser, frames: Sequence[Frame], count: int = STEADY_FRAMES) -> Steady:
    """Judge ``count`` frames one by one on a warm worker and watch what is allocated meanwhile.

    A worker that reuses its buffers stays below one decoded frame whatever the frames.
    """
    cycle = [frames[number % len(frames)] for number in range(count)]
    for frame in cycle[:_WARM_FRAMES]:
        analyser.process([frame])
    resident = _resident_growth(analyser, cycle)
    tracemalloc.start()
    try:
        analyser.process([cycle[0]])
        start = tracemalloc.get_traced_memory()[0]
        worst = 0
        for frame in cycle:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            analyser.process([frame])
            worst = max(worst, tracemalloc.get_traced_memory()[1] - before)
        growth = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    return Steady(worst, growth, resident)


def _resident_growth(analyser: Analyser, frames: Sequence[Frame]) -> int | None:
    try:
        # 5 resets the peak of this process to what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = memory_bytes(os.getpid())
    for frame in frames:
        analyser.process([frame])
    return memory_bytes(os.getpid(), "VmHWM") - before


def worker_bytes(bundle: Path, frame: Frame) -> int:
    """What a worker takes for a series of such frames: plan, workspace and their making, at the peak."""
    analyser = Analyser(load_bundle(bundle), CascadeSettings())
    tracemalloc.start()
    try:
        analyser.process([frame])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@dataclass(frozen=True, slots=True)
class Flooded:
    """A run under load: resident bytes before the source, each second after, and the account."""

    base: int
    resident: list[int]
    peak: int
    scraped: dict[str, float]
    summary: str
    exit_code: int


def flood(master: Path, seconds: float, bundle: Path, results: Path) -> Flooded:
    """Run ``cxls analyze --on-full drop`` under a source that never waits for it."""
    endpoint = free_endpoint()
    with cxls(
        "analyze", endpoint, "--bundle", str(bundle), "--on-full", "drop", "--queue-mib", str(QUEUE_MIB),
        "--batch", str(BATCH), "--workers", str(WORKERS), "--device", "cpu", "--listen", "127.0.0.1:0",
        "--results", str(results),
    ) as child:  # fmt: skip
        url = f"http://{child.address('http')}"
        wait_ready(url)
        pid = child.process.pid
        base = memory_bytes(pid)
        resident = []
        with replaying(master, "v2", bind=endpoint):
            began = time.monotonic()
            for second in range(1, max(2, round(seconds)) + 1):
                time.sleep(max(0.0, began + second - time.monotonic()))
                if child.process.poll() is not None:
                    raise RuntimeError(f"the analysis ended: {' | '.join(child.errors[-3:])}")
                resident.append(memory_bytes(pid))
            scraped = scrape(url)
            peak = memory_bytes(pid, "VmHWM")
            code = child.interrupt()
        summary = _summary(child)
    return Flooded(base, resident, peak, scraped, summary, code)


def scrape(url: str) -> dict[str, float]:
    """The metrics of a running analysis, labels summed away."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if found := _SAMPLE.match(line):
            sums[found[1]] = sums.get(found[1], 0.0) + float(found[3])
    return sums


def _summary(child: Child) -> str:
    for follower in range(20):
        del follower
        if line := next((line for line in child.output if line.startswith("received ")), ""):
            return line
        time.sleep(0.1)
    return "no summary"


def run(settings: BenchSettings) -> Report:
    """A flood of one long series, a shorter flood of short series, then the steady state of one worker."""
    torch.set_num_threads(1)
    bundle = chosen_bundle() or DEFAULT_BUNDLE
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        folder = Path(name)
        master = simulate(folder, min(settings.frames, 40), flux=BRIGHT_FLUX)
        frames = packed_frames(master)
        packed = max(frame.nbytes for frame in frames)
        decoded = image_data(frames[0]).decoded_bytes
        workspace = worker_bytes(bundle, frames[0])
        steady = steady_state(Analyser(load_bundle(bundle), CascadeSettings()), frames)
        figures = [
            Figure("packed frame", "MiB", packed / _MIB),
            Figure("decoded frame", "MiB", decoded / _MIB),
            *_steady_figures(steady),
        ]
        notes = []
        samples: dict[str, object] = {}
        for label, repeats, kept, share in (("one series", LONG, 1, 1.0), ("short series", SHORT, SERIES_KEPT, 0.5)):
            flooded = flood(repeated(master, repeats), share * settings.seconds, bundle, folder / f"{repeats}.jsonl")
            buffers = WORKERS * kept * workspace
            bound = flooded.base + (QUEUE_MIB << 20) + (RECEIVE_HWM + WORKERS * BATCH + 1) * packed + buffers
            what = (
                f"resident after warm-up, ring {QUEUE_MIB}, {RECEIVE_HWM} messages in libzmq, {WORKERS} x {BATCH} in "
                f"hand, {WORKERS} workers x {kept} series x {workspace / _MIB:.0f}"
            )
            figures += _flood_figures(label, flooded, bound)
            verdict = f"kept by {(bound - flooded.peak) / _MIB:.0f} MiB"
            if flooded.peak > bound:
                verdict = f"EXCEEDED by {(flooded.peak - bound) / _MIB:.0f} MiB"
            closes = "the account closes" if _closes(flooded.summary) else "THE ACCOUNT DOES NOT CLOSE"
            notes += [f"{label}: bound = {what}: {verdict}", f"{label}: {flooded.summary}: {closes}"]
            samples[label] = {"resident_bytes_each_second": flooded.resident, "metrics": flooded.scraped}
    title = f"memory: {settings.seconds:g} s of a source that outruns the analysis (v2, --on-full drop)"
    return Report(title, figures, (), notes, samples)


def _steady_figures(steady: Steady) -> list[Figure]:
    native = steady.resident_growth
    return [
        Figure("worker: allocated in a frame, at most", "MiB", steady.traced_peak / _MIB,
               note="Python and numpy; must stay below a decoded frame"),
        Figure(f"worker: held more after {STEADY_FRAMES} frames", "MiB", steady.traced_growth / _MIB),
        Figure("worker: growth of resident peak", "MiB", None if native is None else native / _MIB,
               note="the kernel does not reset it here" if native is None else "native code too"),
    ]  # fmt: skip


def _flood_figures(label: str, flooded: Flooded, bound: int) -> list[Figure]:
    seconds = len(flooded.resident)
    settled = flooded.resident[min(SETTLED_S, seconds) - 1]
    scraped = flooded.scraped
    received, dropped = scraped["cxls_frames_received_total"], scraped["cxls_frames_dropped_total"]
    processed, undecodable = scraped["cxls_frames_processed_total"], scraped["cxls_frames_undecodable_total"]
    queued = scraped["cxls_queue_frames"]
    return [
        Figure(f"{label}: resident after warm-up", "MiB", flooded.base / _MIB, note="before the source came"),
        Figure(f"{label}: resident peak", "MiB", flooded.peak / _MIB, note=f"bound {bound / _MIB:.0f}"),
        Figure(f"{label}: growth, second 10 to {seconds}", "MiB", (flooded.resident[-1] - settled) / _MIB),
        Figure(f"{label}: received", "frames", received, note=f"{received / seconds:.0f} a second, "
               f"{scraped['cxls_series_begun_total']:.0f} series"),
        Figure(f"{label}: processed", "frames", processed, note=f"{processed / seconds:.1f} a second"),
        Figure(f"{label}: dropped", "frames", dropped, note=f"{dropped / max(1.0, received):.0%} of received"),
        Figure(f"{label}: unaccounted when scraped", "frames", received - processed - dropped - undecodable - queued,
               note="received - processed - dropped - undecodable - queued"),
    ]  # fmt: skip


def _closes(summary: str) -> bool:
    found = re.fullmatch(r"received (\d+) = processed (\d+) \+ dropped (\d+) \+ undecodable (\d+)", summary)
    return found is not None and int(found[1]) == sum(int(found[n]) for n in (2, 3, 4))
