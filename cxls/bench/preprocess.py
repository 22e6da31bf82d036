"""Unpacking and reduction by flux and water, against OM's peakfinder8 in both its modes and a read of the frame.

All on the same frames, in CPU milliseconds of one thread. Ours begins with the packed bytes, since it lists what
counted while it unpacks, and makes the background, the map that the networks see, the profile and the peaks; OM's
begins with pixels and makes the peaks.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from cxls.bench import om_peer as om
from cxls.bench.inputs import BRIGHT_FLUX, NORMAL_FLUX, decoded, packed_frames, simulate
from cxls.bench.peaks import OurFinder
from cxls.bench.report import Grid, Ratio, Report
from cxls.bench.roofs import read_words
from cxls.bench.timing import cpu_ms
from cxls.settings import BenchSettings
from streamer.frames import Frame

ROUNDS = 3
FRAMES = 12
CASES = (
    (1, NORMAL_FLUX, 1.0),
    (5, NORMAL_FLUX / 100, 1.0),
    (5, NORMAL_FLUX, 1.0),
    (5, NORMAL_FLUX, 33.0),
    (5, BRIGHT_FLUX, 1.0),
    (9, NORMAL_FLUX, 1.0),
)
"""Condition, photons a pulse, water in units of the usual."""

OURS, FLOOR = "ours", "read of the frame"


def run(settings: BenchSettings) -> Report:
    """Each case with ours, the floor and OM, in turns."""
    count = min(settings.frames, FRAMES)
    rows, best, usual = [], [], []
    names = [OURS, FLOOR, *(f"OM {mode}" for mode in om.MODES)]
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as folder, ExitStack() as stack:
        peer = stack.enter_context(om.Om()) if om.available() else None
        for condition, flux, water in CASES:
            frames = packed_frames(simulate(Path(folder), count, condition, flux, water))
            rows.append(f"condition {condition}, {flux:.0e} photons, water {water:g}".replace("e+", "e"))
            times = _times(frames, Path(folder) / "om", peer)
            best.append([min(times[name]) if name in times else None for name in names])
            usual.append([float(np.median(times[name])) if name in times else None for name in names])
    return Report(
        f"preprocess: unpacking and reduction of {count} frames of an EIGER2 4M, uint16, ms CPU a frame",
        (),
        [
            Ratio(f"{names[column]} / ours, {row}", theirs / ours)
            for row, values in zip(rows, best, strict=True)
            for column in (2, 3)
            if (theirs := values[column]) is not None and (ours := values[0]) is not None
        ],
        (
            *(() if om.available() else (f"OM: {om.NOT_THERE}",)),
            f"OM: find_peaks of peakfinder8 alone, ADC {om.ADC:g}, SNR {om.SNR:g}, {om.MIN_PIXELS} pixel; fast: "
            "background of each radius from a hundred pixels drawn once",
            "read: every 64-bit word of the frame once, compiled, one thread",
        ),
        grids=(
            Grid(f"ms CPU a frame, least of {ROUNDS}", rows, names, best),
            Grid(f"ms CPU a frame, median of {ROUNDS}", rows, names, usual),
        ),
    )


def _times(frames: Sequence[Frame], exchange: Path, peer: om.Om | None) -> dict[str, list[float]]:
    finder = OurFinder(frames[0])
    finder.find(frames[0])
    words = [decoded(frame).reshape(-1).view(np.uint64) for frame in frames]
    read_words(words[0])
    measure = {
        OURS: lambda: float(np.mean([finder.find(frame)[1] for frame in frames])),
        FLOOR: lambda: cpu_ms(lambda number: read_words(words[number]), len(words)),
    }
    return om.take_turns_with(peer, exchange, frames, measure, ROUNDS)
