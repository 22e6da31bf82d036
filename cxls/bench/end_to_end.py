"""The whole program: frames a second, CPU by stage, beside OM's peakfinder8 on the same frames.

The rate is that of the steady state: the first quarter of a run, in which series are opened,
plans made and caches filled, is left out.
"""

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from cxls.bench import om_peer as om
from cxls.bench.children import replaying
from cxls.bench.inputs import chosen_bundle, packed_frames, repeated, simulate
from cxls.bench.report import Figure, Ratio, Report, over_rounds, ratios
from cxls.commands.analyze import Session
from cxls.settings import AnalyzeSettings, BenchSettings
from streamer.frames import Frame

ROUNDS = 3
REPEATS = 8
"""A run analyses the simulated frames this often over, as one series."""

PEER_FRAMES = 30
_STAGES = ("decode", "reduce", "peaks", "infer")
_LOOK_S = 0.005


@dataclass(frozen=True, slots=True)
class Pace:
    """Of a steady state: frames a second and the process's CPU milliseconds a frame."""

    rate: float
    cpu_ms: float


def measured(session: Session, frames: int) -> Pace:
    """Run a session of ``frames`` frames to its end and measure its last three quarters."""
    marks: list[tuple[float, float, int]] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_S):
            settled = session.front.account.settled
            if settled >= frames // 4 and (not marks or settled > marks[-1][2]):
                marks.append((time.perf_counter(), time.process_time(), settled))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        session.run()
    finally:
        done.set()
        watcher.join()
    if len(marks) < 2 or sum(session.front.account.processed.values()) != frames:
        raise RuntimeError(f"not every frame was analysed: {session.front.account.identity()}")
    (began, cpu_began, first), (ended, cpu_ended, last) = marks[0], marks[-1]
    return Pace((last - first) / (ended - began), (cpu_ended - cpu_began) / (last - first) * 1e3)


def stage_ms(analyser: Analyser, frames: Sequence[Frame]) -> dict[str, float]:
    """Milliseconds a frame in each stage on one worker: the least over rounds of each frame, then the mean.

    The stages are timed by the wall; the least over rounds is free of the times we were set aside.
    """
    table = np.zeros((ROUNDS, len(frames), len(_STAGES)))
    analyser.process([frames[0]])
    for again in range(ROUNDS):
        for number, frame in enumerate(frames):
            seconds = analyser.process([frame]).stage_seconds
            table[again, number] = [seconds[stage] * 1e3 for stage in _STAGES]
    return dict(zip(_STAGES, table.min(0).mean(0).tolist(), strict=True))


def worker_cpu_ms(analyser: Analyser, frames: Sequence[Frame]) -> float:
    """CPU milliseconds a frame of a worker, decode to record, without the program around it."""
    analyser.process([frames[0]])
    began = time.process_time()
    for start in range(0, len(frames), 8):
        analyser.process(frames[start : start + 8])
    return (time.process_time() - began) / len(frames) * 1e3


def run(settings: BenchSettings) -> Report:
    """Offline with one and two workers, live over ZeroMQ, then a worker alone against OM."""
    torch.set_num_threads(1)
    bundle = chosen_bundle() or DEFAULT_BUNDLE
    figures: list[Figure] = []
    found: list[Ratio] = []
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        folder = Path(name)
        master = simulate(folder, settings.frames)
        figures += _whole_program(repeated(master, REPEATS), settings.frames * REPEATS, bundle, folder)
        for condition in (5, 1):
            each = master if condition == 5 else simulate(folder, settings.frames, condition)
            some, ratio = _worker(each, condition, bundle, folder / f"om-{condition}")
            figures += some
            found += ratio
    return Report(
        f"end to end: {settings.frames} simulated frames {REPEATS} times over, bundle {load_bundle(bundle).label}",
        figures,
        found,
        (
            f"{os.cpu_count()} cores are shared by analysis and, when live, by the sender in its own process",
            "OM: CPU of find_peaks on frames already decoded; ours: decode to record, with networks and parameters",
            "GPU: not measured on a GPU",
        ),
    )


def _whole_program(master: Path, frames: int, bundle: Path, folder: Path) -> list[Figure]:
    paces: dict[str, list[Pace]] = {}
    for _ in range(ROUNDS):
        for workers in (1, 2):
            settings = AnalyzeSettings(
                bundle=bundle, workers=workers, device="cpu", results=folder / "r.jsonl", overwrite=True
            )
            pace = measured(Session(settings, [str(master)]), frames)
            paces.setdefault(f"offline, {workers} worker{'s' if workers > 1 else ''}", []).append(pace)
        for protocol in ("v1", "v2"):
            live = AnalyzeSettings(
                bundle=bundle, device="cpu", results=folder / "r.jsonl", overwrite=True, on_full="block", series=1,
                listen="127.0.0.1:0",
            )  # fmt: skip
            with replaying(master, protocol, loop=False) as endpoint:
                pace = measured(Session(live, [endpoint]), frames)
            paces.setdefault(f"live {protocol}, {os.cpu_count()} workers", []).append(pace)
    figures = []
    for name, found in paces.items():
        rates = sorted(pace.rate for pace in found)
        figures.append(Figure(f"{name}: rate", "frames/s", rates[-1], rates[len(rates) // 2], "best, not least"))
        figures.append(over_rounds(f"{name}: CPU", "ms CPU", [pace.cpu_ms for pace in found], "whole process"))
    return figures


def _worker(master: Path, condition: int, bundle: Path, exchange: Path) -> tuple[list[Figure], list[Ratio]]:
    # Both on exactly these: the cost of a frame depends on what is in it.
    frames = packed_frames(master)[:PEER_FRAMES]
    analyser = Analyser(load_bundle(bundle), CascadeSettings())
    name = f"worker, condition {condition}"
    figures = [
        Figure(f"{name}: {stage}", "ms", value, note="least over rounds a frame, then mean")
        for stage, value in stage_ms(analyser, frames).items()
    ]
    ours: list[float] = []
    peer: list[float] = []
    if om.available():
        om.lay_out(exchange, frames)
    for _ in range(ROUNDS):
        ours.append(worker_cpu_ms(analyser, frames))
        if om.available():
            peer.append(float(np.mean([each.cpu_ms for each in om.find_peaks(exchange)])))
    figures.append(over_rounds(f"{name}: decode to record", "ms CPU", ours))
    if not peer:
        return [*figures, Figure(f"OM peakfinder8, condition {condition}", "ms CPU", None, note=om.NOT_THERE)], []
    figures.append(over_rounds(f"OM peakfinder8, condition {condition}", "ms CPU", peer))
    return figures, ratios(
        f"condition {condition}: OM peakfinder8 / ours, decode to record", peer, ours, "bar 8 or more"
    )
