"""What a kept hit costs the worker that offers it and the thread that writes it, against packing it anew."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from analyzer.hits import HitFolder, HitFolderSettings
from analyzer.results import Decision, FrameResult, HitRule, Peak
from cxls.bench.inputs import BRIGHT_FLUX, decoded, packed_frames, simulate
from cxls.bench.report import Figure, Report, over_rounds, ratios
from cxls.settings import BenchSettings
from streamer.frames import Frame

ROUNDS = 5
HITS = 200
_FRAMES = 10
_PEAKS = 60


def _result(number: int) -> FrameResult:
    """A hit with as many peaks as a good one has."""
    peaks = [Peak(20.5 + 30 * k, 17.25 + 25 * k, 100.0, 8.0, False) for k in range(_PEAKS)]
    return FrameResult(
        series_id=1, image_id=number, channel="threshold_1", start_time=0.001 * number, exposure_s=0.001,
        received_at=1e9 + number, decision=Decision.HIT, hit=True, hit_probability=0.99, hit_rule=HitRule.NETWORK,
        indexable=True, peak_count=_PEAKS, peaks=peaks, bundle="bench", mask="none", ordinal=1,
    )  # fmt: skip


def _ours(folder: Path, frames: list[Frame]) -> tuple[float, float, float]:
    """CPU ms and wall ms a hit until all is in files, and the longest offer in us."""
    results = [_result(number) for number in range(HITS)]
    output = HitFolder(folder, HitFolderSettings())
    wall, cpu, longest = time.perf_counter(), time.process_time(), 0.0
    for number, result in enumerate(results):
        began = time.perf_counter()
        output.offer(replace(frames[number % len(frames)], image_id=number), result)
        longest = max(longest, time.perf_counter() - began)
    output.close()
    if output.written != HITS:
        raise RuntimeError(f"{output.facts()}: not all hits were written")
    return (time.process_time() - cpu) / HITS * 1e3, (time.perf_counter() - wall) / HITS * 1e3, longest * 1e6


def _packed_anew(path: Path, frames: list[Frame]) -> float:
    """CPU ms an image for pixels that HDF5 packs itself, one image a chunk."""
    pixels = [decoded(frame) for frame in frames]
    shape = pixels[0].shape
    cpu = time.process_time()
    with h5py.File(path, "w") as file:
        images = file.create_dataset(
            "data", (len(pixels), *shape), np.uint16, chunks=(1, *shape), **hdf5plugin.Bitshuffle(cname="lz4")
        )
        for number, image in enumerate(pixels):
            images[number] = image
    return (time.process_time() - cpu) / len(pixels) * 1e3


def run(settings: BenchSettings) -> Report:
    """Ours and h5py's filter in turns."""
    del settings
    ours: list[tuple[float, float, float]] = []
    anew: list[float] = []
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        folder = Path(name)
        frames = packed_frames(simulate(folder, _FRAMES, flux=BRIGHT_FLUX))
        for number in range(ROUNDS):
            ours.append(_ours(folder / f"hits{number}", frames))
            anew.append(_packed_anew(folder / f"anew{number}.h5", frames))
    megabytes = sum(frame.nbytes for frame in frames) / len(frames) / 1e6
    cpu, wall, offers = ([values[k] for values in ours] for k in range(3))
    return Report(
        f"hits-to-disk: {HITS} hits of {megabytes:.2f} MB packed, {_PEAKS} peaks each",
        [
            over_rounds("a hit through journal and file", "ms CPU", cpu),
            over_rounds("the same", "ms", wall, "with the disk of the temporary folder, synced"),
            over_rounds("packed anew by h5py with hdf5plugin", "ms CPU", anew, "without journal, tables and sync"),
            over_rounds("longest offer of a round", "us", offers, "what a worker may have to wait"),
            Figure("hits a second", "1/s", 1e3 / min(wall)),
        ],
        ratios("ours / packed anew", cpu, anew),
        ("both leave one chunk an image; ours writes each image twice, to the journal and to its file",),
    )
