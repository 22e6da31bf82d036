"""What the machine can do, measured in this run, and the share of it that the stages of a worker reach.

A decoder reads the packed bytes and writes the pixels, so copying memory bounds it; a reduction that begins with
pixels has to read them, and what reading memory allows is the measure for ours too, which does not; the networks
multiply, so a product of matrices bounds them. A share far below 1 says that something else limits: instructions.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from analyzer.bundle import Bundle, load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from cxls.bench import host_gpu, kernels_gpu, roofs, roofs_gpu
from cxls.bench.decoders import HEADER_BYTES, OURS, Packed, make, pack
from cxls.bench.inputs import BRIGHT_FLUX, NORMAL_FLUX, packed_frames, simulate
from cxls.bench.peaks import OurFinder
from cxls.bench.report import Figure, Grid, Report
from cxls.bench.timing import cpu_ms
from cxls.bench.worker import bench_bundle
from cxls.settings import BenchSettings
from streamer.decoding import DEFAULT_BLOCK_BYTES
from streamer.frames import Frame

ROUNDS = 5
FRAMES = 12
FRAME_BYTES = 2162 * 2068 * 2
LARGE_BYTES = 256 << 20
"""More than any cache holds."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What a stage takes of a frame, and what it moves or computes by it, beside the roof (GB or GFLOP a second)."""

    name: str
    ms: float
    rate: float
    roof: float


def run(settings: BenchSettings) -> Report:
    """The roofs, then what stands under them, on usual and on bright frames."""
    torch.set_num_threads(1)
    bundle = load_bundle(bench_bundle())
    read, copy = roofs.read_gb_s(FRAME_BYTES), roofs.copy_gb_s(FRAME_BYTES)
    peak = roofs.matmul_gflop_s()
    best = f"best of {roofs.ROUNDS}"
    figures = [
        Figure("memory read, one thread", "GB/s", roofs.read_gb_s(LARGE_BYTES), note=best),
        Figure("memory read, two threads together", "GB/s", roofs.read_gb_s(LARGE_BYTES, 2), note=best),
        Figure("memory copy, one thread", "GB/s", roofs.copy_gb_s(LARGE_BYTES), note=best),
        Figure("memory copy, two threads together", "GB/s", roofs.copy_gb_s(LARGE_BYTES, 2), note=best),
        Figure("a frame's size read again and again", "GB/s", read, note=best),
        Figure("a frame's size copied again and again", "GB/s", copy, note=best),
        Figure("product of matrices, float32, one thread", "GFLOP/s", peak, note=best),
    ]
    reached: list[Reached] = []
    by_flux: dict[str, list[Frame]] = {}
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        for label, flux in (("usual", NORMAL_FLUX), ("bright", BRIGHT_FLUX)):
            master = simulate(Path(name), min(settings.frames, FRAMES), flux=flux)
            frames, packed = packed_frames(master), pack(master)
            by_flux[label] = frames
            reached += [
                _decode(label, packed, copy),
                *_lz4(label, packed, copy),
                _reduction(label, frames, read),
                *_networks(label, bundle, frames, peak),
            ]
    return Report(
        f"roofline: the machine's limits and what is reached, EIGER2 4M, uint16, bundle {bundle.label}",
        [
            *figures,
            *roofs_gpu.measure(),
            *kernels_gpu.measure(by_flux),
            *host_gpu.measure(by_flux["usual"], bench_bundle()),
        ],
        (),
        (
            "memory: every byte read and every byte written is counted, by the clock; the stages by CPU time, least of "
            f"{ROUNDS} rounds; LZ4 alone goes into one buffer of a block and leaves the bits shuffled",
            "roofs: copy and read at a frame's size, which fits the last cache here and there; matrices for networks",
            *(() if roofs.lz4_blocks() else ("LZ4 alone: not measured, bitshuffle hides its own here",)),
        ),
        grids=(
            Grid(
                "reached",
                [each.name for each in reached],
                ("ms", "GB/s or GFLOP/s", "roof", "share, %"),
                [(each.ms, each.rate, each.roof, 100 * each.rate / each.roof) for each in reached],
            ),
        ),
    )


def _least_ms(work: Callable[[int], object], count: int) -> float:
    return min(cpu_ms(work, count) for _ in range(ROUNDS))


def _packed_bytes(packed: Packed) -> float:
    return float(np.mean([len(image.data) for image in packed.images]))


def _decode(label: str, packed: Packed, roof: float) -> Reached:
    ms = _least_ms(make(OURS, packed), len(packed.images))
    return Reached(f"{label}: plain decode", ms, (packed.pixels[0].nbytes + _packed_bytes(packed)) / ms / 1e6, roof)


def _lz4(label: str, packed: Packed, roof: float) -> list[Reached]:
    walk = roofs.lz4_blocks()
    if walk is None:
        return []
    bodies = [np.frombuffer(image.data, np.uint8)[HEADER_BYTES:] for image in packed.images]
    block = np.empty(DEFAULT_BLOCK_BYTES, np.uint8)
    # Fewer than 8 pixels may follow the last block as they are.
    wanted = packed.pixels[0].size // 8 * 8 * packed.dtype.itemsize
    decoded = walk(bodies[0], block, wanted)
    if decoded != wanted:
        raise RuntimeError(f"LZ4 alone gives {decoded} bytes of a frame of {packed.pixels[0].nbytes}")
    ms = _least_ms(lambda number: walk(bodies[number], block, wanted), len(bodies))
    return [Reached(f"{label}: LZ4 alone", ms, (decoded + _packed_bytes(packed)) / ms / 1e6, roof)]


def _reduction(label: str, frames: Sequence[Frame], roof: float) -> Reached:
    finder = OurFinder(frames[0])
    finder.find(frames[0])
    ms = min(float(np.mean([finder.find(frame)[1] for frame in frames])) for _ in range(ROUNDS))
    return Reached(f"{label}: unpack and reduce", ms, FRAME_BYTES / ms / 1e6, roof)


def _networks(label: str, bundle: Bundle, frames: Sequence[Frame], peak: float) -> list[Reached]:
    """The hit network as a worker calls it, one frame at a time; none where torch runs none."""
    analyser = Analyser(bundle, CascadeSettings())
    analyser.process([frames[0]])
    began, spent = [0.0], []

    def enter(*_: Any) -> None:
        began[0] = time.thread_time()

    def leave(*_: Any) -> None:
        spent.append(time.thread_time() - began[0])

    hooks = bundle.hit.register_forward_pre_hook(enter), bundle.hit.register_forward_hook(leave)
    try:
        for frame in [each for _ in range(ROUNDS) for each in frames]:
            analyser.process([frame])
    finally:
        for hook in hooks:
            hook.remove()
    with FlopCounterMode(display=False) as counter:
        analyser.process([frames[0]])
    if not spent:
        return []
    ms = 1e3 * float(np.array(spent).reshape(ROUNDS, -1).min(0).mean())
    return [Reached(f"{label}: hit network", ms, counter.get_total_flops() / ms / 1e6, peak)]
