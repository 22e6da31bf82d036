"""How a worker's cost grows with the batch, the frame's size and the flux, and the rate with the workers.

Frame sizes are those of the EIGER2 family, as panels without gaps, in the middle condition; what the networks say of
sizes that they were not trained on does not matter here.
"""

import gc
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from analyzer.bundle import load_bundle
from analyzer.cascade import Analyser
from cxls.bench.decoders import pack
from cxls.bench.inputs import BRIGHT_FLUX, NORMAL_FLUX, packed_frames, simulate
from cxls.bench.report import Figure, Grid, Ratio, Report
from cxls.bench.roofs_gpu import NOT_MEASURED
from cxls.bench.timing import take_turns, together_s
from cxls.bench.worker import bench_bundle, make_worker, stage_ms, worker_cpu_ms
from cxls.settings import BenchSettings
from sim_replay.detector import plain_panel
from streamer.frames import Frame
from streamer.validity import sentinel

ROUNDS = 3
BATCHES = (1, 2, 4, 8, 16, 32)
WORKERS = (1, 2, 4)
SIZES = {"0.5M": (512, 1028), "1M": (1062, 1028), "4M": (2162, 2068), "9M": (3262, 3108), "16M": (4362, 4148)}
FLUXES = (NORMAL_FLUX / 100, NORMAL_FLUX / 10, NORMAL_FLUX, 10 * NORMAL_FLUX, BRIGHT_FLUX, 10 * BRIGHT_FLUX)
FRAMES = 8
"""Of each size and flux."""


def run(settings: BenchSettings) -> Report:
    """Batches and workers on one series, then a series for each size and flux."""
    bundle, count = bench_bundle(), min(settings.frames, FRAMES)
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        folder = Path(name)
        frames = packed_frames(simulate(folder, min(settings.frames, max(BATCHES))))
        batches = _batches(bundle, frames)
        workers = _workers(bundle, frames)
        sizes = _sizes(bundle, folder, count)
        fluxes = _fluxes(bundle, folder, count)
    rates = {each: workers.values[n][0] or 0.0 for n, each in enumerate(WORKERS)}
    smallest, largest = (list(SIZES)[n] for n in (0, -1))
    return Report(
        f"scaling: one worker unless said otherwise, condition 5, uint16, bundle {load_bundle(bundle).label}",
        on_gpu(bundle, frames),
        [
            *(Ratio(f"{each} workers / one, frames a second", rates[each] / rates[WORKERS[0]]) for each in WORKERS[1:]),
            Ratio(f"a pixel of {largest} / a pixel of {smallest}, CPU", _last(sizes, -1) / _last(sizes, 0)),
        ],
        (
            f"batches and workers: {len(frames)} frames of an EIGER2 4M; workers are threads, {os.cpu_count()} cores",
            f"sizes and fluxes: {count} frames; stages by the wall, least over rounds of each frame, then the mean",
        ),
        grids=(batches, workers, sizes, fluxes),
    )


def _last(grid: Grid, row: int) -> float:
    return grid.values[row][-1] or 0.0


def _batches(bundle: Path, frames: Sequence[Frame]) -> Grid:
    analyser = make_worker(bundle)
    analyser.process([frames[0]])
    sizes = [size for size in BATCHES if size <= len(frames)]
    times = take_turns({str(size): partial(worker_cpu_ms, analyser, frames, size) for size in sizes}, ROUNDS)
    return _least_and_median("frames a batch", "ms CPU a frame", times)


def on_gpu(bundle: Path, frames: Sequence[Frame]) -> list[Figure]:
    """Frames a second of one worker by the clock, by batch; without a GPU a row that says so."""
    if not torch.cuda.is_available():
        return [Figure("batches on a GPU", "frames/s", None, note=NOT_MEASURED)]
    analyser = make_worker(bundle, "cuda")
    figures = []
    for size in (each for each in BATCHES if each <= len(frames)):
        batches = [frames[start : start + size] for start in range(0, len(frames), size)]
        analyser.process(batches[0])
        work = partial(_judge, analyser, batches)
        seconds = min(together_s([work], len(batches)) for _ in range(ROUNDS))
        figures.append(Figure(f"batch of {size}, GPU", "frames/s", len(frames) / seconds, note="best, not least"))
    return figures


def _workers(bundle: Path, frames: Sequence[Frame]) -> Grid:
    analysers = [make_worker(bundle) for _ in range(max(WORKERS))]
    works = [partial(_judge, analyser, [[frame] for frame in frames]) for analyser in analysers]
    for work in works:
        work(0)
    seconds = take_turns({str(count): partial(together_s, works[:count], len(frames)) for count in WORKERS}, ROUNDS)
    values = []
    for count in WORKERS:
        rates = [count * len(frames) / each for each in seconds[str(count)]]
        values.append((max(rates), float(np.median(rates))))
    return Grid("workers", [str(count) for count in WORKERS], ("frames/s, best", "median"), values)


def _judge(analyser: Analyser, batches: Sequence[Sequence[Frame]], number: int) -> object:
    return analyser.process(batches[number])


def _sizes(bundle: Path, folder: Path, count: int) -> Grid:
    rows, stages = [], []
    for name, shape in SIZES.items():
        frames = packed_frames(simulate(folder / "sizes", count, detector=plain_panel(shape)))
        costs = _costs(bundle, frames)
        rows.append(f"{name}, {shape[0]} x {shape[1]}")
        stages.append(costs | {"CPU a pixel, ns": costs["CPU"] * 1e6 / (shape[0] * shape[1])})
    return _by_stage("ms a frame by size", rows, stages)


def _fluxes(bundle: Path, folder: Path, count: int) -> Grid:
    rows, stages = [], []
    for flux in FLUXES:
        master = simulate(folder / "flux", count, flux=flux)
        packed = pack(master)
        counted = [pixels[pixels != sentinel(packed.dtype)] for pixels in packed.pixels]
        rows.append(f"{flux:.0e} photons".replace("e+", "e"))
        stages.append(
            _costs(bundle, packed_frames(master))
            | {
                "MB packed": float(np.mean([len(image.data) for image in packed.images])) / 1e6,
                "counts a pixel": float(np.mean([each.mean() for each in counted])),
                "pixels that count, %": float(np.mean([100 * (each > 0).mean() for each in counted])),
            }
        )
    return _by_stage("ms a frame by flux", rows, stages)


def _costs(bundle: Path, frames: Sequence[Frame]) -> dict[str, float]:
    analyser = make_worker(bundle)
    costs = stage_ms(analyser, frames, ROUNDS)
    costs["CPU"] = min(worker_cpu_ms(analyser, frames) for _ in range(ROUNDS))
    # Large frames' buffers go before the next size's come.
    del analyser
    gc.collect()
    return costs


def _by_stage(title: str, rows: Sequence[str], stages: Sequence[dict[str, float]]) -> Grid:
    return Grid(title, rows, list(stages[0]), [list(each.values()) for each in stages])


def _least_and_median(title: str, unit: str, times: dict[str, list[float]]) -> Grid:
    return Grid(
        title, list(times), (f"{unit}, least", "median"),
        [(min(found), float(np.median(found))) for found in times.values()],
    )  # fmt: skip
