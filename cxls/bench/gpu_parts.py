"""Rows of ``cxls bench gpu``, each kind measured in a process of its own.

Run as ``python -m cxls.bench.gpu_parts NAME TARGET SETTINGS``, the settings of the benchmark as JSON; the report goes
to TARGET.
"""

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from cxls.bench import cascade, host_gpu, kernels_gpu, latency, roofs_gpu, scaling, simulate, start
from cxls.bench.children import replaying
from cxls.bench.inputs import BRIGHT_FLUX, NORMAL_FLUX, packed_frames, repeated
from cxls.bench.inputs import simulate as simulated
from cxls.bench.pace import Pace, measured
from cxls.bench.report import Figure, Report, as_json, machine, over_rounds
from cxls.bench.worker import bench_bundle
from cxls.commands.analyze import Session
from cxls.settings import AnalyzeSettings, BenchSettings
from streamer.frames import Frame

ROUNDS = 3
FRAMES = 12
"""As many as are looped over, where no more are wanted."""

FLAT_OUT_FRAMES = 6000
START_BAR_S = 20.0
RATE_HZ = 1000.0
"""Of the live run, where no other is asked for."""


def main() -> None:
    """Do one part."""
    name, target, given = sys.argv[1:]
    torch.set_num_threads(1)
    report = PARTS[name](BenchSettings.model_validate_json(given))
    Path(target).write_text(as_json(name, report, machine()))


def _frames(folder: Path, flux: float = NORMAL_FLUX, count: int = FRAMES) -> list[Frame]:
    return packed_frames(simulated(folder, count, flux=flux))


def _limits(settings: BenchSettings) -> Report:
    del settings
    return Report("limits", roofs_gpu.measure())


def _kernels(settings: BenchSettings) -> Report:
    del settings
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        of_flux = {
            label: _frames(Path(name), flux) for label, flux in (("usual", NORMAL_FLUX), ("bright", BRIGHT_FLUX))
        }
    return Report("kernels", kernels_gpu.measure(of_flux))


def _host(settings: BenchSettings) -> Report:
    del settings
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        frames = _frames(Path(name))
    return Report("host", host_gpu.measure(frames, bench_bundle()))


def _batches(settings: BenchSettings) -> Report:
    del settings
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        frames = _frames(Path(name), count=max(scaling.BATCHES))
    return Report("batches", scaling.on_gpu(bench_bundle(), frames))


def _start(settings: BenchSettings) -> Report:
    del settings
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        folder = Path(name)
        master = simulated(folder, FRAMES)
        start.first_record(master, folder / "first.jsonl", "cuda")
        found = [start.first_record(master, folder / f"{turn}.jsonl", "cuda") for turn in range(ROUNDS)]
    seconds = [each.record_s for each in found]
    return Report("start", [over_rounds("GPU: start to first record", "s", seconds, f"bar {START_BAR_S:.0f}")])


def _analysis(folder: Path) -> AnalyzeSettings:
    return AnalyzeSettings(bundle=bench_bundle(), device="cuda", results=folder / "r.jsonl", overwrite=True)


def _flat_out(settings: BenchSettings) -> Report:
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        folder = Path(name)
        times = math.ceil(FLAT_OUT_FRAMES / settings.frames)
        master, frames = repeated(simulated(folder, settings.frames), times), times * settings.frames
        offline = [measured(Session(_analysis(folder), [str(master)]), frames) for _ in range(ROUNDS)]
        online: list[Pace] = []
        wanted = {"on_full": "block", "series": 1, "listen": "127.0.0.1:0"}
        for _ in range(ROUNDS):
            with replaying(master, "v2", loop=False) as endpoint:
                online.append(measured(Session(_analysis(folder).model_copy(update=wanted), [endpoint]), frames))
    figures = []
    for way, paces in (("from files", offline), ("over ZeroMQ, v2", online)):
        rates = sorted(pace.rate for pace in paces)
        figures += [
            Figure(f"GPU, {way}: rate", "frames/s", rates[-1], rates[len(rates) // 2], "best, not least"),
            over_rounds(f"GPU, {way}: CPU", "ms CPU a frame", [pace.cpu_ms for pace in paces], "whole process"),
        ]
    return Report("flat-out", figures)


def _live(settings: BenchSettings) -> Report:
    rate = settings.rate or RATE_HZ
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        folder = Path(name)
        master = repeated(simulated(folder, settings.frames), math.ceil(rate * settings.seconds / settings.frames))
        found = latency.over_zeromq(master, rate, _analysis(folder))
    return Report("live", (), grids=[latency.grid([f"GPU, over ZeroMQ, v2, for {settings.seconds:g} s"], [found])])


def _paper(settings: BenchSettings) -> Report:
    del settings
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        frames = _frames(Path(name), count=cascade.PAPER_FRAMES)
    return Report("paper", [cascade.paper_on_gpu(frames)])


def _crops(settings: BenchSettings) -> Report:
    del settings
    return Report("crops", [simulate.crops_on_gpu()])


PARTS: dict[str, Callable[[BenchSettings], Report]] = {
    "limits": _limits,
    "kernels": _kernels,
    "host": _host,
    "batches": _batches,
    "start": _start,
    "flat-out": _flat_out,
    "live": _live,
    "paper": _paper,
    "crops": _crops,
}

if __name__ == "__main__":
    main()
