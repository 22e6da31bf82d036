"""Decoding, against bare decoders on the same chunks, by pixel type and flux, with one and two threads.

The unit is gigabytes of pixels a second. With one thread it is by the process's CPU time, which other work on the
machine hardly touches; with two by the clock. The floor is a copy of the pixels: a decoder has to write them at least.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cxls.bench.decoders import DECODERS, OURS, Packed, installed, make, pack
from cxls.bench.inputs import BRIGHT_FLUX, NORMAL_FLUX, simulate
from cxls.bench.report import Grid, Ratio, Report
from cxls.bench.timing import cpu_ms, take_turns, together_s
from cxls.settings import BenchSettings
from sim_replay.detector import eiger2_4m
from streamer.validity import sentinel

ROUNDS = 7
FRAMES = 12
"""As many as are looped over: more than a cache holds."""

DTYPES = ("uint8", "uint16", "uint32")
FLUXES = (NORMAL_FLUX, BRIGHT_FLUX, 10 * BRIGHT_FLUX)
THREADS = 2


def run(settings: BenchSettings) -> Report:
    """Every type and flux; the decoders take turns."""
    count = min(settings.frames, FRAMES)
    names = installed()
    columns, notes = [], []
    best: dict[str, list[float]] = {name: [] for name in names}
    usual: dict[str, list[float]] = {name: [] for name in names}
    paired: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as folder:
        for dtype in DTYPES:
            for flux in FLUXES:
                master = simulate(Path(folder), count, flux=flux, detector=eiger2_4m(dtype))
                packed = pack(master)
                columns.append(f"u{packed.dtype.itemsize * 8} {flux:.0e}".replace("e+", "e"))
                notes.append(_described(columns[-1], packed))
                one, two = _rates(packed, names)
                for name in names:
                    best[name].append(max(one[name]))
                    usual[name].append(float(np.median(one[name])))
                    paired[name].append(max(two[name]))
    over = {name: [ours / theirs for ours, theirs in zip(best[OURS], best[name], strict=True)] for name in names}
    absent = [name for name in DECODERS if name not in names]
    return Report(
        f"decode: {count} frames of an EIGER2 4M for each type and flux (photons a pulse), GB of pixels a second",
        (),
        [
            Ratio(f"ours / {name}, one thread, slowest of all columns", min(over[name]))
            for name in names
            if name != OURS
        ],
        (
            *notes,
            *(f"{name}: not measured, it is not installed" for name in absent),
            "one thread: by CPU time; two threads: by the clock, each with frames and buffer of its own",
            "every decoder gave the same pixels; all but ours and the copy allocate what they return",
            "with the list of what counted: as the analysis unpacks, a list of pixels and counts made on the way",
        ),
        grids=(
            _grid(f"one thread, best of {ROUNDS}", names, columns, best),
            _grid(f"one thread, median of {ROUNDS}", names, columns, usual),
            _grid(f"{THREADS} threads together, best of {ROUNDS}", names, columns, paired),
        ),
    )


def _grid(title: str, names: Sequence[str], columns: Sequence[str], of: dict[str, list[float]]) -> Grid:
    return Grid(title, names, columns, [of[name] for name in names])


def _rates(packed: Packed, names: Sequence[str]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """GB of pixels a second of each round, with one thread and with two."""
    count = len(packed.images)
    gigabytes = count * packed.pixels[0].nbytes / 1e9
    threads = {name: [make(name, packed) for _ in range(THREADS)] for name in names}
    one = take_turns({name: partial(cpu_ms, threads[name][0], count) for name in names}, ROUNDS)
    two = take_turns({name: partial(together_s, threads[name], count) for name in names}, ROUNDS)
    return (
        {name: [gigabytes / (each * count / 1e3) for each in found] for name, found in one.items()},
        {name: [THREADS * gigabytes / each for each in found] for name, found in two.items()},
    )


def _described(column: str, packed: Packed) -> str:
    top = sentinel(packed.dtype)
    counted = np.concatenate([pixels[pixels != top] for pixels in packed.pixels])
    size = np.mean([len(image.data) for image in packed.images]) / 1e6
    return f"{column}: {counted.mean():.3g} counts a pixel, {size:.2f} MB packed of {packed.pixels[0].nbytes / 1e6:.1f}"
