"""A source faster than the analysis: the queue that fills beside ``--sample auto``.

What counts is how long a result takes after its image, and how evenly the images analysed lie among all.
"""

import itertools
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import sleep

import numpy as np

from cxls.bench.children import cxls
from cxls.bench.inputs import repeated, simulate
from cxls.bench.report import Figure, Report
from cxls.settings import BenchSettings

RATE_HZ = 1000
SETTLED = 0.5
"""The share of a run after which k has been found."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The second half of a run: seconds from image to result, and steps between the ids that were analysed."""

    latency_s: list[float]
    steps: list[int]
    images: int
    summary: list[str]


def under_load(master: Path, results: Path, seconds: float, sample: str) -> Seen:
    """Analyse for so long what comes at ``RATE_HZ``. Raises ``RuntimeError`` when nothing was analysed."""
    with cxls(
        "replay", str(master), "--bind", "tcp://127.0.0.1:0", "--rate", str(RATE_HZ), "--on-full", "drop"
    ) as source, cxls(
        "analyze", source.address("replay"), "--device", "cpu", "--listen", "127.0.0.1:0", "--results", str(results),
        "--on-full", "drop", "--sample", sample,
    ) as child:  # fmt: skip
        child.address("http")
        sleep(seconds)
        child.interrupt()
        summary = [line for line in child.output if line.startswith(("received ", "sampled:", "dropped:"))]
    return _seen(results, seconds, summary)


def _seen(results: Path, seconds: float, summary: list[str]) -> Seen:
    records = [json.loads(line) for line in results.read_bytes().splitlines()]
    began = min(record["received_at"] for record in records)
    # By when they were done: what a full queue lets through in the second half came long before.
    done = [(record["received_at"] + record["latency_s"] - began, record) for record in records]
    late = [record for when, record in done if SETTLED * seconds < when < seconds]
    good = sorted((record for record in late if record["status"] == "ok"), key=lambda record: record["image_id"])
    if len(good) < 2:
        raise RuntimeError("nothing was analysed in the second half of the run; give --seconds more")
    steps = [after["image_id"] - before["image_id"] for before, after in itertools.pairwise(good)]
    return Seen([record["latency_s"] for record in good], steps, len(late), summary)


def run(settings: BenchSettings) -> Report:
    """One run with the queue alone, one with sampling; ``--seconds`` is the length of both together."""
    figures: list[Figure] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        folder = Path(name)
        simulated = simulate(folder, min(settings.frames, 40))
        images = round(settings.seconds * RATE_HZ)
        master = repeated(simulated, max(2, images // min(settings.frames, 40)))
        for label, sample in (("queue alone", "1"), ("--sample auto", "auto")):
            seen = under_load(master, folder / f"{sample}.jsonl", settings.seconds / 2, sample)
            low, middle, high = np.quantile(seen.latency_s, (0.5, 0.99, 1.0))
            figures += [
                Figure(f"{label}: image to result, median", "s", float(low)),
                Figure(f"{label}: image to result, 99 %", "s", float(middle), note=f"longest {high:.2f}"),
                Figure(f"{label}: analysed", "", len(seen.latency_s) / seen.images, note=f"of {seen.images} images"),
                Figure(
                    f"{label}: step between analysed ids", "images", statistics.median(seen.steps),
                    note=f"99 % at most {np.quantile(seen.steps, 0.99):.0f}, longest {max(seen.steps)}",
                ),
            ]  # fmt: skip
            notes += [f"{label}: {line}" for line in seen.summary]
    title = f"sampling: {RATE_HZ} Hz, {settings.seconds / 2:g} s each, figures of the second half"
    return Report(title, figures, (), notes)
