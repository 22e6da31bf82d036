"""A worker from packed bytes to the record, by stage, condition and flux, with its peers on the same frames.

Peers: OM's peakfinder8 in both modes, which gets frames already decoded and finds peaks alone, and the 2024 paper's
network for hit or miss at its full resolution, on counts that are ready in memory.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from analyzer.bundle import load_bundle
from analyzer.cascade import Analyser
from cxls.bench import om_peer as om
from cxls.bench import roofs
from cxls.bench.inputs import BRIGHT_FLUX, NORMAL_FLUX, decoded, packed_frames, simulate
from cxls.bench.report import Figure, Grid, Ratio, Report, over_rounds
from cxls.bench.roofs_gpu import NOT_MEASURED
from cxls.bench.timing import cpu_ms
from cxls.bench.worker import bench_bundle, make_worker, stage_ms, worker_cpu_ms
from cxls.settings import BenchSettings
from streamer.frames import Frame
from training.published.binary import BinaryCNN

ROUNDS = 3
FRAMES = 16
CASES = (*((condition, NORMAL_FLUX) for condition in range(1, 10)), (5, NORMAL_FLUX / 100), (5, BRIGHT_FLUX))
PAPER_FRAMES = 2
"""Of the paper's network, whose cost is seconds a frame and does not depend on what is in it."""

BAR = "bar 8 or more"
OURS = "decode to record"


def run(settings: BenchSettings) -> Report:
    """Every case, our worker and OM in turns; the paper's network once."""
    count = min(settings.frames, FRAMES)
    bundle = bench_bundle()
    analyser = make_worker(bundle)
    rows, stages, best, usual = [], [], [], []
    names = [OURS, *(f"OM {mode}" for mode in om.MODES)]
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        peer = stack.enter_context(om.Om()) if om.available() else None
        for condition, flux in CASES:
            frames = packed_frames(simulate(folder, count, condition, flux))
            rows.append(f"condition {condition}, {flux:.0e} photons".replace("e+", "e"))
            stages.append(stage_ms(analyser, frames, ROUNDS))
            times = _turns(analyser, frames, folder / "om", peer)
            best.append([min(times[each]) if each in times else None for each in names])
            usual.append([float(np.median(times[each])) if each in times else None for each in names])
        paper = _paper_ms(frames[:PAPER_FRAMES])
        on_gpu = paper_on_gpu(frames[:PAPER_FRAMES])
    usual_case = CASES.index((5, NORMAL_FLUX))
    figure = over_rounds("the paper's network for hit or miss", "ms CPU a frame", paper)
    return Report(
        f"cascade: one worker, {count} frames of an EIGER2 4M, uint16, bundle {load_bundle(bundle).label}",
        (figure, on_gpu),
        [
            *_ratios(rows, best),
            Ratio(f"the paper's network / ours, {rows[usual_case]}", min(paper) / (best[usual_case][0] or 1.0)),
        ],
        (
            *(() if om.available() else (f"OM: {om.NOT_THERE}",)),
            "stages: by the wall, least over rounds of each frame, then the mean; the rest is by CPU time",
            f"OM: find_peaks of peakfinder8 alone on frames already decoded, ADC {om.ADC:g}, SNR {om.SNR:g}, "
            f"{om.MIN_PIXELS} pixel; ours: with networks, parameters and the record",
            "the paper's network: all of its weights drawn anew, 4M pixels as float32, one thread",
        ),
        grids=(
            Grid("ms a frame by stage", rows, list(stages[0]), [list(each.values()) for each in stages]),
            Grid(f"ms CPU a frame, least of {ROUNDS}", rows, names, best),
            Grid(f"ms CPU a frame, median of {ROUNDS}", rows, names, usual),
        ),
    )


def _turns(analyser: Analyser, frames: Sequence[Frame], exchange: Path, peer: om.Om | None) -> dict[str, list[float]]:
    measure = {OURS: lambda: worker_cpu_ms(analyser, frames)}
    return om.take_turns_with(peer, exchange, frames, measure, ROUNDS)


def _ratios(rows: Sequence[str], best: Sequence[Sequence[float | None]]) -> list[Ratio]:
    found = []
    for row, (ours, full, fast) in zip(rows, best, strict=True):
        if ours is not None and full is not None and fast is not None:
            found += [Ratio(f"OM full / ours, {row}", full / ours, BAR), Ratio(f"OM fast / ours, {row}", fast / ours)]
    return found


def _paper_ms(frames: Sequence[Frame]) -> list[float]:
    """CPU milliseconds of each frame through the paper's network, after one that does not count."""
    images = _images(frames)
    network = BinaryCNN(images[0].shape[-2:]).eval()
    with torch.inference_mode():
        return [cpu_ms(lambda _, image=image: network(image), 1) for image in (images[0], *images)][1:]  # type: ignore[misc]


def paper_on_gpu(frames: Sequence[Frame]) -> Figure:
    """Milliseconds a frame of the paper's network on a device; without one a row that says so."""
    name = "the paper's network on a GPU, bfloat16"
    if not torch.cuda.is_available():
        return Figure(name, "ms a frame", None, note=NOT_MEASURED)
    batch = torch.cat(_images(frames)).to("cuda", torch.bfloat16)
    network = BinaryCNN(batch.shape[-2:]).eval().to("cuda", torch.bfloat16)

    def work() -> None:
        network(batch)
        torch.cuda.synchronize()

    with torch.inference_mode():
        return Figure(name, "ms a frame", roofs.best_s(work) * 1e3 / len(batch), note=f"batch of {len(batch)}, eager")


def _images(frames: Sequence[Frame]) -> list[torch.Tensor]:
    return [torch.from_numpy(decoded(frame).astype(np.float32))[None, None] for frame in frames]
