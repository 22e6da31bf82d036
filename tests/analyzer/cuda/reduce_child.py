"""A child of ``test_reduce_build``: hostile frames through the kernels, built with sanitizers.

The space between buffers is poisoned, so that a step out of one is not a step into the next.
"""

import ctypes
from typing import Any

import numpy as np
import torch

from analyzer.cuda.decode import DecodedBatch
from analyzer.cuda.layout import GAP_BYTES, Sizes, _scratch, _zeroed, slab
from analyzer.cuda.reduce import BatchReducer
from analyzer.reduction import FramePlan
from tests.analyzer.builders import SHAPE, plan
from tests.analyzer.cuda.host_reduce import Sanitized, decoded, programs
from tests.analyzer.cuda.test_reduce import RINGS, drawn, kinds, plan_of_panels, with_rings

_RUNTIME = ctypes.CDLL(None)


def poison(reducer: BatchReducer, sizes: Sizes, on: bool) -> None:
    """Forbid or allow what lies behind each buffer of a frame, as far as nothing is zeroed there."""
    offsets, _, slab_bytes = slab(sizes)
    mark = _RUNTIME.__asan_poison_memory_region if on else _RUNTIME.__asan_unpoison_memory_region
    for frame in range(len(reducer._slab)):
        for name, (kind, length) in (_zeroed(sizes) | _scratch(sizes)).items():
            used = length * (40 if kind == "Spot" else np.dtype(kind).itemsize)
            end = reducer._slab.data_ptr() + frame * slab_bytes + offsets[name] + used
            # Memory is marked by eights; a buffer may end within one.
            start = -(-end // 8) * 8
            mark(ctypes.c_void_p(start), ctypes.c_size_t(GAP_BYTES))


class Watched:
    """A program whose kernels, but the one that zeroes all at once, run with the gaps forbidden."""

    def __init__(self, program: Any, around: Any) -> None:
        self.device = program.device
        self._program, self._around = program, around

    def launch(self, name: str, *arguments: Any) -> None:
        self._around(name != "reduce_clear")
        self._program.launch(name, *arguments)


def run(made: FramePlan, batch: DecodedBatch) -> None:
    frames = len(batch.pixels)
    reducer: Any = None
    watched = {
        source: Watched(program, lambda on: poison(reducer, reducer._sizes, on))
        for source, program in programs(Sanitized).items()
    }
    reducer = BatchReducer(made, frames, watched)
    into = reducer.outputs(batch, torch.zeros(frames, dtype=torch.int32))
    for _ in range(2):
        reducer.reduce(into, frames)
    poison(reducer, reducer._sizes, False)


def main() -> None:
    rng = np.random.default_rng(5)
    count = 0
    for shape in (SHAPE, (8, 8), (1, 1), (1, 130), (70, 1), (3, 5)):
        for dtype in ("u1", "u2", "u4"):
            valid = (rng.random(shape) < 0.95).astype(np.uint8)
            frames = np.concatenate([kinds(shape, dtype), np.stack([drawn(rng, shape, dtype) for _ in range(12)])])
            run(plan(shape, dtype, valid), decoded(frames, plan(shape, dtype, valid)))
            count += len(frames)
        # What no decoder leaves: bitmaps and pixels that have nothing to do with each other.
        words = -(-shape[0] * shape[1] // 64)
        pixels = rng.integers(0, 1 << 16, (16, 64 * words)).astype(np.uint16)
        lit, blank = rng.integers(0, 1 << 64, (2, 16, words), np.uint64)
        run(plan(shape), DecodedBatch(*(torch.from_numpy(each) for each in (pixels, lit, blank))))
        count += 16
    # More candidates than the list holds, nearly all alike, so that few are kept; all pixels in the last bin there is.
    y, x = np.indices((366, 368))
    many = np.where((x + y) % 2, 200, 0).astype("u2")
    many[rng.random(many.shape) < 0.001] = 4000
    remote = plan(many.shape, center=(150.0, -40000.0))
    run(remote, decoded(many[None], remote))
    for made in (plan(RINGS), plan_of_panels()):
        run(made, decoded(with_rings(), made))
    far = plan(SHAPE, center=(-7000.0, -20.0))
    run(far, decoded(kinds(SHAPE, "u2"), far))
    print(f"{count} frames")


main()
