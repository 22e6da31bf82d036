"""The whole program, results written: frames a second, two cores against one, and latency at a rate.

Rates are of the steady state (``cxls.bench.pace``). What a worker costs by itself is the cascade's benchmark.
"""

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from analyzer.bundle import load_bundle
from cxls.bench import latency, two_cores
from cxls.bench.children import replaying
from cxls.bench.inputs import repeated, simulate
from cxls.bench.pace import Pace, measured
from cxls.bench.report import Figure, Grid, Report, over_rounds
from cxls.bench.roofs_gpu import NOT_MEASURED
from cxls.bench.worker import bench_bundle
from cxls.commands.analyze import Session, choose_device
from cxls.settings import AnalyzeSettings, BenchSettings

ROUNDS = 3
REPEATS = 8
"""A run analyses the simulated frames this often over, as one series."""

PARTS = (0.25, 0.5, 0.75, 1.0)
"""Of the highest rate, at which latency is looked at."""

PROTOCOLS = ("v1", "v2")


def run(settings: BenchSettings) -> Report:
    """Flat out from files and over ZeroMQ, the bar on two cores, then latency at rates."""
    torch.set_num_threads(1)
    bundle, device = bench_bundle(), choose_device(settings.device)
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        folder = Path(name)
        master = simulate(folder, settings.frames)
        long, frames = repeated(master, REPEATS), settings.frames * REPEATS
        analysis = AnalyzeSettings(bundle=bundle, device=settings.device, results=folder / "r.jsonl", overwrite=True)
        paces = _flat_out(long, frames, analysis)
        compared = two_cores.compare(long, frames, bundle, folder, ROUNDS)
        rates = {name: max(pace.rate for pace in found) for name, found in paces.items()}
        at_rates = _latencies(settings, master, analysis, rates)
    figures = _figures(paces) + two_cores.figures(compared)
    if device == "cpu":
        figures.append(Figure("on a GPU", "frames/s", None, note=NOT_MEASURED))
    return Report(
        f"end to end: {settings.frames} simulated frames {REPEATS} times over, bundle {load_bundle(bundle).label}, "
        f"on {device}",
        figures,
        two_cores.ratios(compared),
        (
            two_cores.verdict(compared),
            f"{os.cpu_count()} cores are shared by analysis and, when live, by the sender in its own process",
            "message to result: the records' latency_s, without the first quarter of a run; dropped: no room in our "
            "queue; never came: no room at the sender",
        ),
        grids=(at_rates,),
    )


def _offline(workers: int) -> str:
    return f"offline, {workers} worker{'s' if workers > 1 else ''}"


def _live(protocol: str) -> str:
    return f"live {protocol}"


def _flat_out(master: Path, frames: int, settings: AnalyzeSettings) -> dict[str, list[Pace]]:
    paces: dict[str, list[Pace]] = {}
    for _ in range(ROUNDS):
        for workers in (1, 2):
            offline = settings.model_copy(update={"workers": workers})
            paces.setdefault(_offline(workers), []).append(measured(Session(offline, [str(master)]), frames))
        for protocol in PROTOCOLS:
            live = settings.model_copy(update={"on_full": "block", "series": 1, "listen": "127.0.0.1:0"})
            with replaying(master, protocol, loop=False) as endpoint:
                paces.setdefault(_live(protocol), []).append(measured(Session(live, [endpoint]), frames))
    return paces


def _figures(paces: Mapping[str, list[Pace]]) -> list[Figure]:
    figures = []
    for name, found in paces.items():
        rates = sorted(pace.rate for pace in found)
        figures.append(Figure(f"{name}: rate", "frames/s", rates[-1], rates[len(rates) // 2], "best, not least"))
        figures.append(over_rounds(f"{name}: CPU", "ms CPU", [pace.cpu_ms for pace in found], "whole process"))
    return figures


def _latencies(settings: BenchSettings, master: Path, analysis: AnalyzeSettings, rates: Mapping[str, float]) -> Grid:
    """In process and over ZeroMQ, each at the rate that is asked for or at parts of its own highest."""
    long = repeated(master, REPEATS)
    if settings.rate is not None:
        long = repeated(master, math.ceil(settings.rate * settings.seconds / settings.frames))
    rows, found = [], []
    for name, way, highest in (
        ("in process", latency.in_process, rates[_offline(2)]),
        ("over ZeroMQ, v2", latency.over_zeromq, rates[_live("v2")]),
    ):
        wanted = {f"{part:.0%} of its highest": part * highest for part in PARTS}
        if settings.rate is not None:
            wanted = {f"for {settings.seconds:g} s": settings.rate}
        for text, rate in wanted.items():
            rows.append(f"{name}, {text}")
            found.append(way(long, rate, analysis))
    return latency.grid(rows, found)
