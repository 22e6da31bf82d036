"""What one worker costs, decode to record, without the program around it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.judge import Judge
from cxls.bench.inputs import chosen_bundle
from cxls.bench.timing import cpu_ms
from cxls.makers import Makers
from streamer.frames import Frame

BATCH = 8
"""Frames that a worker takes at once in the program."""


def bench_bundle() -> Path:
    """The bundle that is measured: the one of the settings, or the one shipped."""
    return chosen_bundle() or DEFAULT_BUNDLE


def make_worker(bundle: Path, device: str = "cpu") -> Analyser:
    """A worker on one core, as the program makes them; on a ``device`` frames are unpacked and reduced there too."""
    torch.set_num_threads(1)
    return Makers(device, (), ()).make(Judge(load_bundle(bundle), CascadeSettings()))


def stage_ms(analyser: Analyser, frames: Sequence[Frame], rounds: int) -> dict[str, float]:
    """Milliseconds a frame in each stage: the least over rounds of each frame, then the mean.

    The stages are timed by the wall; the least over rounds is free of the times we were set aside.
    """
    names = list(analyser.process([frames[0]]).stage_seconds)
    table = np.zeros((rounds, len(frames), len(names)))
    for again in range(rounds):
        for number, frame in enumerate(frames):
            seconds = analyser.process([frame]).stage_seconds
            table[again, number] = [seconds[stage] * 1e3 for stage in names]
    return dict(zip(names, table.min(0).mean(0).tolist(), strict=True))


def worker_cpu_ms(analyser: Analyser, frames: Sequence[Frame], batch: int = BATCH) -> float:
    """CPU milliseconds a frame, decode to record, in batches."""
    starts = range(0, len(frames), batch)
    each = cpu_ms(lambda number: analyser.process(frames[starts[number] : starts[number] + batch]), len(starts))
    return each * len(starts) / len(frames)
