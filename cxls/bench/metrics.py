"""What metrics cost: counting on a frame's way, and a scrape every second of a program that has analysed a run.

Counting is the program's own code at batches of eight, with records as a worker makes them: the account, the worker's
load, and what the publisher keeps for /metrics, the windows of hit ratios included. The peer is prometheus_client with
cached children, its counters, gauges and histograms of the same names incremented once a frame. A scrape goes over HTTP
to a program in a process of its own, whose CPU is read from outside and compared with seconds in which nobody scrapes.
"""

import math
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.products import PEAK_EDGES
from analyzer.products import Products as RunProducts
from analyzer.results import FrameResult
from analyzer.running import LATENCY_BUCKETS_S, PROBABILITY_BUCKETS, STAGE_BUCKETS_S, Running
from analyzer.worker_load import WorkerLoad
from cxls.bench.children import cxls, replaying
from cxls.bench.inputs import packed_frames, repeated, simulate
from cxls.bench.report import Figure, Report, over_rounds, ratios
from cxls.bench.timing import cpu_ms, take_turns
from cxls.settings import BenchSettings
from streamer.account import Account
from streamer.frames import Frame

BATCH = 8
RATE_HZ = 1000.0
BAR_PERCENT = 2.0
ROUNDS = 5
IMAGES = 1000
"""As many as the longer window of hit ratios holds."""

_REPEATS = 25
_WINDOWS = 3
_HANDED_ON = 100
"""Images whose way to the queue the reader hands on together: those of 0.1 s."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a worker took and what came of it."""

    frames: Sequence[Frame]
    results: Sequence[FrameResult]
    stage_seconds: dict[str, float]


def batches(frames: Sequence[Frame], bundle: Path | None) -> list[Batch]:
    """``IMAGES`` images in batches, their records made by the worker from so many different frames."""
    analyser = Analyser(load_bundle(bundle or DEFAULT_BUNDLE), CascadeSettings())
    judged = [analyser.process(frames[n : n + BATCH]) for n in range(0, len(frames) - BATCH + 1, BATCH)]
    made = []
    for number in range(IMAGES // BATCH):
        outcome = judged[number % len(judged)]
        first = number % len(judged) * BATCH
        results = [
            replace(result, image_id=number * BATCH + place, latency_s=0.02, ordinal=1)
            for place, result in enumerate(outcome.results)
        ]
        stages = outcome.stage_seconds | {"publish": 0.0001}
        made.append(Batch(frames[first : first + BATCH], results, stages))
    return made


def ours(made: Sequence[Batch]) -> Callable[[int], object]:
    """Counts one batch as the program does."""
    account, load, running, products = Account(), WorkerLoad(), Running(), RunProducts()
    receive_seconds: list[float] = []
    running.begin(made[0].frames[0].series)

    def count(number: int) -> None:
        batch = made[number % len(made)]
        arrived = time.time()
        for frame in batch.frames:
            account.received += 1
            account.received_bytes += frame.nbytes
            receive_seconds.append(max(0.0, time.time() - arrived))
        if len(receive_seconds) >= _HANDED_ON:
            running.received(receive_seconds)
            receive_seconds.clear()
        load.add(batch.frames, batch.results, 0.02)
        running.add(batch.results, [], batch.stage_seconds)
        products.peaks_per_frame.observe([float(result.peak_count or 0) for result in batch.results])
        for result in batch.results:
            products.saturated_frames += bool(result.saturated_pixels)
            account.processed[result.decision or "miss"] += 1

    return count


def peer(made: Sequence[Batch]) -> Callable[[int], object]:
    """Counts one batch with prometheus_client, once a frame, with children that are looked up once."""
    registry = CollectorRegistry()

    def counter(name: str, *labels: str) -> Counter:
        return Counter(name, name, labels, registry=registry)

    def gauge(name: str) -> Gauge:
        return Gauge(name, name, registry=registry)

    def histogram(name: str, edges: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, name, labels, buckets=edges, registry=registry)

    received, received_bytes, decoded = (counter(f"cxls_{n}") for n in ("frames_received", "received_bytes", "decoded"))
    processed = counter("cxls_frames_processed", "decision")
    decisions = {decision: processed.labels(decision) for decision in ("hit", "miss", "no_beam")}
    taken, busy, saturated = (counter(f"cxls_{n}") for n in ("worker_frames", "worker_busy_seconds", "saturated"))
    last = [gauge(f"cxls_last_{what}_timestamp_seconds") for what in ("frame", "result", "beam")]
    flux, background = gauge("cxls_relative_flux_ratio"), gauge("cxls_background_photons")
    latency = histogram("cxls_receive_to_result_seconds", LATENCY_BUCKETS_S)
    stage = histogram("cxls_stage_seconds", STAGE_BUCKETS_S, "stage")
    stages = {name: stage.labels(name) for name in ("receive", *made[0].stage_seconds)}
    probability = histogram("cxls_hit_probability", PROBABILITY_BUCKETS)
    peaks = histogram("cxls_peaks_per_frame", PEAK_EDGES)

    def count(number: int) -> None:
        batch = made[number % len(made)]
        for frame, result in zip(batch.frames, batch.results, strict=True):
            received.inc()
            received_bytes.inc(frame.nbytes)
            decoded.inc(1)
            taken.inc()
            busy.inc(0.0025)
            decisions[result.decision or "miss"].inc()
            saturated.inc(bool(result.saturated_pixels))
            for each in last:
                each.set(time.time())
            flux.set(result.relative_flux or 0.0)
            background.set(result.background_photons or 0.0)
            latency.observe(result.latency_s or 0.0)
            stages["receive"].observe(1e-4)
            for name, seconds in batch.stage_seconds.items():
                stages[name].observe(seconds / BATCH)
            probability.observe(result.hit_probability or 0.0)
            peaks.observe(result.peak_count or 0)

    return count


def counting_us(count: Callable[[int], object], calls: int) -> float:
    """CPU microseconds a frame."""
    return cpu_ms(count, calls) * 1e3 / BATCH


@dataclass(frozen=True, slots=True)
class Scraped:
    """CPU milliseconds of one scrape in each window of seconds, and bytes of the last."""

    cpu_ms: list[float]
    nbytes: int


def scraped(master: Path, images: int, seconds: float, windows: int = _WINDOWS) -> Scraped:
    """Analyse a replayed run to its end, then look at the idle program with and without a scrape each second."""
    with (
        replaying(master, "v2", loop=False) as source,
        cxls("analyze", source, "--device", "cpu", "--listen", "127.0.0.1:0", "--on-full", "block") as child,
    ):
        url = f"http://{child.address('http')}/metrics"
        while f"cxls_receive_to_result_seconds_count {float(images)}\n" not in _scrape(url):
            if child.process.poll() is not None:
                raise RuntimeError(f"the analysis ended: {' | '.join(child.errors[-3:])}")
            time.sleep(0.5)
        clock = ~child.process.pid << 3 | 2
        each_s, costs, text = max(1.0, seconds / (2 * windows)), [], ""
        for _ in range(windows):
            before = time.clock_gettime(clock)
            time.sleep(each_s)
            idle = time.clock_gettime(clock) - before
            before = time.clock_gettime(clock)
            scrapes = max(1, math.floor(each_s))
            for _ in range(scrapes):
                text = _scrape(url)
                time.sleep(each_s / scrapes)
            costs.append((time.clock_gettime(clock) - before - idle) / scrapes * 1e3)
        child.interrupt()
    return Scraped(costs, len(text))


def _scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def run(settings: BenchSettings) -> Report:
    """Counting in rounds with the peer, then the scrapes; ``--seconds`` is the length of those."""
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        frames = max(BATCH, min(settings.frames, 40) // BATCH * BATCH)
        master = simulate(Path(name), frames)
        made = batches(packed_frames(master), settings.bundle)
        calls = _REPEATS * len(made)
        counts = {"ours": ours(made), "peer": peer(made)}
        found = take_turns({name: lambda c=count: counting_us(c, calls) for name, count in counts.items()}, ROUNDS)  # type: ignore[misc]
        times = max(2, math.ceil(IMAGES / frames))
        scrape = scraped(repeated(master, times), times * frames, settings.seconds)
    a_frame, a_scrape = min(found["ours"]), max(0.0, min(scrape.cpu_ms))
    counted, looked = a_frame * RATE_HZ / 1e4, a_scrape / 10
    verdict = "kept" if counted + looked < BAR_PERCENT else "MISSED"
    return Report(
        f"metrics: counting at batches of {BATCH}, and a scrape a second after {times * frames} images of 4M",
        [
            over_rounds("counting, a frame", "us CPU", found["ours"]),
            over_rounds("prometheus_client once a frame, cached children", "us CPU", found["peer"]),
            over_rounds("a scrape over HTTP", "ms CPU", scrape.cpu_ms, f"{scrape.nbytes / 1e3:.0f} kB"),
            Figure(f"counting at {RATE_HZ:.0f} frames/s", "% of a core", counted),
            Figure("a scrape a second", "% of a core", looked),
            Figure("both", "% of a core", counted + looked, note=f"bar {BAR_PERCENT:g} %: {verdict}"),
        ],
        ratios("counting, ours / prometheus_client", found["ours"], found["peer"]),
        (
            "counting: windows of hit ratios and the page's history included, which the peer has not",
            "a scrape: all CPU of the program above its idle seconds, HTTP and the look for hot pixels included",
        ),
    )
