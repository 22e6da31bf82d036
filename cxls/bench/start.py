"""From the start of ``cxls analyze`` to its first record of a live stream, on the CPU unless a device is asked for.

With what numba compiled in its cache, as always but once, and with that cache empty, as after a fresh installation. A
second process goes through the same steps one by one and says where the time goes.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cxls.bench.children import Child, cxls
from cxls.bench.inputs import simulate
from cxls.bench.report import Figure, Report, over_rounds
from cxls.settings import BenchSettings

ROUNDS = 5
BAR_S = 10.0
RATE_HZ = 50
"""Of the source: slow enough not to take the analysis's cores while that begins."""

_FRAMES = 4
_LONGEST_S = 900.0
_LOOK_S = 0.005
_CACHE = "NUMBA_CACHE_DIR"


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds after the start of the process: it listened, it had written a record."""

    listening_s: float
    record_s: float


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Children keep what numba compiles in this folder."""
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CACHE]
        else:
            os.environ[_CACHE] = before


def first_record(master: Path, results: Path, device: str = "cpu") -> Start:
    """Start an analysis beside a source that waits for it. Raises ``RuntimeError`` when it ends without a record."""
    with cxls("replay", str(master), "--bind", "tcp://127.0.0.1:0", "--rate", str(RATE_HZ), "--loop") as source:
        endpoint = source.address("replay")
        began = time.monotonic()
        with cxls(
            "analyze", endpoint, "--device", device, "--listen", "127.0.0.1:0", "--results", str(results)
        ) as child:
            listening = None
            while not (results.exists() and results.read_bytes().count(b"\n")):
                if listening is None and "http" in child.addresses:
                    listening = time.monotonic() - began
                _check(child, began)
                time.sleep(_LOOK_S)
            took = time.monotonic() - began
            child.interrupt()
    return Start(took if listening is None else listening, took)


def _check(child: Child, began: float) -> None:
    if child.process.poll() is not None or time.monotonic() - began > _LONGEST_S:
        raise RuntimeError(f"the analysis wrote no record: {' | '.join(child.errors[-3:])}")


def phases(master: Path) -> dict[str, float]:
    """Seconds by step, in their order."""
    command = [sys.executable, "-m", "cxls.bench.start_phases", str(master)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=_LONGEST_S, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(settings: BenchSettings) -> Report:
    """Starts with everything in the cache, in rounds; one start with nothing in it; and their steps."""
    device = "cpu" if settings.device == "auto" else settings.device
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        folder = Path(name)
        master = simulate(folder, _FRAMES)
        # The first makes sure that all is compiled, and read from the disk before.
        first_record(master, folder / "first.jsonl", device)
        warm = [first_record(master, folder / f"{number}.jsonl", device) for number in range(ROUNDS)]
        steps = [phases(master) for _ in range(ROUNDS)]
        with _cache_in(folder / "empty"):
            cold = first_record(master, folder / "cold.jsonl", device)
        with _cache_in(folder / "empty too"):
            cold_steps = phases(master)
    figures = [
        over_rounds("start to first record", "s", [each.record_s for each in warm], f"bar {BAR_S:.0f}"),
        over_rounds("start to listening", "s", [each.listening_s for each in warm]),
        *(over_rounds(f"step: {step}", "s", [each[step] for each in steps]) for step in steps[0]),
        Figure("empty cache: start to first record", "s", cold.record_s, note="once, as numba compiles"),
        *(
            Figure(f"empty cache, step: {step}", "s", took)
            for step, took in cold_steps.items()
            if took > 2 * min(each[step] for each in steps) + 0.5
        ),
    ]
    worst = max(each.record_s for each in warm)
    verdict = "kept by all" if worst <= BAR_S else f"missed: the slowest took {worst:.1f} s"
    return Report(
        f"start: to the first record of a live stream, on the {device.upper().replace('CUDA', 'GPU')}", figures, (),
        (f"bar {BAR_S:.0f} s with what was compiled in the cache: {verdict}",
         "steps, on the CPU, are of a process that does one after the other; those not listed for an empty cache are "
         "as above"),
    )  # fmt: skip
