"""Where a worker's time goes: by stage, by statement of ours, and by the library that the processor is in.

By library: samples that ``perf`` takes of this process, where it is there. Compiled kernels of ours belong to no file
and are told by that.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from analyzer.bundle import load_bundle
from analyzer.cascade import Analyser
from cxls.bench.inputs import BRIGHT_FLUX, NORMAL_FLUX, packed_frames, simulate
from cxls.bench.report import Grid, Report
from cxls.bench.statements import Statement, timed
from cxls.bench.worker import BATCH, bench_bundle, make_worker, stage_ms, worker_cpu_ms
from cxls.settings import BenchSettings
from streamer.frames import Frame

ROUNDS = 3
FRAMES = 16
CASES = {
    "condition 5, usual": (5, NORMAL_FLUX),
    "condition 1, usual": (1, NORMAL_FLUX),
    "condition 5, bright": (5, BRIGHT_FLUX),
}
MOST = 10
"""Statements listed of each case."""

SAMPLED_S = 4.0
_SAMPLES_HZ = 499
_LINE = re.compile(r"^\s*(\d+(?:\.\d+)?)%\s+(\S.*?)\s*$")
_LIBRARIES = (
    ("our compiled kernels", r"JIT|anon|memfd|perf-\d+\.map|^\[unknown\]"),
    ("bitshuffle", r"bitshuffle|^ext\."),
    ("torch", r"torch|libc10|libgomp|mkl|libshm"),
    ("numpy and scipy", r"numpy|scipy|multiarray|umath|openblas|_nd_image|ni_label|quadmath|gfortran"),
    ("Python", r"python|msgspec|^_[a-z]+\.cpython"),
    ("operating system", r"kernel|vdso|hypervisor"),
    ("C library", r"libc[.-]|libm[.-]|ld-linux|libstdc"),
)
OTHER = "other"


def run(settings: BenchSettings) -> Report:
    """Each case in turn."""
    bundle, count = bench_bundle(), min(settings.frames, FRAMES)
    libraries: dict[str, dict[str, float]] = {}
    stages, grids, notes = [], [], []
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        folder = Path(name)
        for label, (condition, flux) in CASES.items():
            frames = packed_frames(simulate(folder, count, condition, flux))
            analyser = make_worker(bundle)
            cpu = min(worker_cpu_ms(analyser, frames) for _ in range(ROUNDS + 1))
            stages.append({**stage_ms(analyser, frames, ROUNDS), "CPU in all": cpu})
            grids.append(_by_statement(label, analyser, frames))
            try:
                libraries[label] = _by_library(analyser, frames, folder / "perf.data")
            except RuntimeError as error:
                notes.append(f"{label}, by library: not measured: {error}")
    if libraries:
        kinds = _seen(libraries)
        values = [[each.get(kind, 0.0) for kind in kinds] for each in libraries.values()]
        grids.insert(0, Grid("% of samples", list(libraries), kinds, values))
    return Report(
        f"profile: one worker, {count} frames of an EIGER2 4M, uint16, bundle {load_bundle(bundle).label}",
        (),
        (),
        (
            "stages: by the wall, least over rounds of each frame, then the mean; CPU in all: least of rounds",
            "by statement: under a watch that slows short statements; share of all that was watched",
            f"by library: perf, {_SAMPLES_HZ} samples a second for {SAMPLED_S:g} s",
            *notes,
        ),
        grids=(
            Grid("ms a frame", list(CASES), list(stages[0]), [list(each.values()) for each in stages]),
            *grids,
        ),
    )


def _by_statement(label: str, analyser: Analyser, frames: Sequence[Frame]) -> Grid:
    def work() -> None:
        for start in range(0, len(frames), BATCH):
            analyser.process(frames[start : start + BATCH])

    found = timed(work)
    total = sum(each.seconds for each in found)
    most = found[:MOST]
    return Grid(
        f"{label}: statement",
        [_row(each) for each in most],
        ("ms a frame", "share, %"),
        [(each.seconds * 1e3 / len(frames), 100 * each.seconds / total) for each in most],
    )


def _row(each: Statement) -> str:
    return f"{each.where}  {each.text}"


def _by_library(analyser: Analyser, frames: Sequence[Frame], target: Path) -> dict[str, float]:
    """Percent of perf's samples in each kind of library. Raises ``RuntimeError`` where perf cannot."""
    perf = shutil.which("perf")
    if perf is None:
        raise RuntimeError("perf is not installed")
    watch = subprocess.Popen(
        [perf, "record", "-q", "-F", str(_SAMPLES_HZ), "-o", str(target), "-p", str(os.getpid()),
         "--", "sleep", str(SAMPLED_S)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    number = 0
    deadline = time.monotonic() + 10 * SAMPLED_S
    while watch.poll() is None:
        analyser.process([frames[number % len(frames)]])
        number += 1
        if time.monotonic() > deadline:
            watch.kill()
    said = watch.communicate()[1]
    if watch.returncode:
        raise RuntimeError(f"perf failed: {(said.strip().splitlines() or ['?'])[0]}")
    listed = subprocess.run(
        [perf, "report", "-i", str(target), "--stdio", "-F", "overhead,dso", "--sort", "dso"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return by_kind(listed.stdout)


def by_kind(report: str) -> dict[str, float]:
    """Percent by kind of library, of perf's lines of percent and library. Raises ``RuntimeError`` without any."""
    shares: dict[str, float] = {}
    for line in report.splitlines():
        if found := _LINE.match(line):
            kind = next((kind for kind, pattern in _LIBRARIES if re.search(pattern, found[2])), OTHER)
            shares[kind] = shares.get(kind, 0.0) + float(found[1])
    if not shares:
        raise RuntimeError("perf took no sample")
    return shares


def _seen(libraries: dict[str, dict[str, float]]) -> list[str]:
    kinds = [*(kind for kind, _ in _LIBRARIES), OTHER]
    return [kind for kind in kinds if any(kind in each for each in libraries.values())]
