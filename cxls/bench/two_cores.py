"""Two cores against one: the program over ZeroMQ, and what two independent one-core programs reach together.

A worker that had a core to itself would double the rate. Whether two do is limited by what is shared, memory and caches
among it; what two programs that share nothing of ours reach together is what the machine allows.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from cxls.bench.children import replaying
from cxls.bench.pace import Pace, measured
from cxls.bench.report import Figure, Ratio
from cxls.commands.analyze import Session
from cxls.settings import AnalyzeSettings

OF_ONE_CORE, OF_TWO_PROGRAMS = 1.7, 0.9
"""The bar: one of these."""


class OneCore:
    """A program held to one core, warm and waiting. A context manager."""

    def __init__(self, core: int, master: Path, frames: int, bundle: Path, results: Path) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cxls.bench.one_core",
                str(core),
                str(master),
                str(frames),
                str(bundle),
                str(results),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def prepare(self) -> None:
        """Begin to warm an analysis."""
        self._tell()

    def await_ready(self) -> None:
        """Returns when ``start`` begins at once."""
        self._answer()

    def start(self) -> None:
        """Run what was prepared."""
        self._tell()

    def _tell(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def pace(self) -> Pace:
        """Of the run that was started, once it is over."""
        return Pace(**json.loads(self._answer()))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a program on one core ended; its words are above")
        return line.strip()


@dataclass(frozen=True, slots=True)
class Compared:
    """Frames a second of each round: on one core, of two programs together, over ZeroMQ on two cores."""

    one: Sequence[float]
    independent: Sequence[float]
    live: Sequence[float]

    @property
    def of_one(self) -> float:
        return max(self.live) / max(self.one)

    @property
    def of_independent(self) -> float:
        return max(self.live) / max(self.independent)

    @property
    def kept(self) -> bool:
        return self.of_one >= OF_ONE_CORE or self.of_independent >= OF_TWO_PROGRAMS


@contextlib.contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
    """This thread, and all threads and processes it begins, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def compare(master: Path, frames: int, bundle: Path, folder: Path, rounds: int) -> Compared | None:
    """The three of them in turns; ``None`` where there are no two cores."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        return None
    one: list[float] = []
    independent: list[float] = []
    live: list[float] = []
    with ExitStack() as stack:
        programs = [
            stack.enter_context(OneCore(core, master, frames, bundle, folder / f"core-{core}.jsonl")) for core in cores
        ]
        for _ in range(rounds):
            one += _rates(programs[:1])
            independent.append(sum(_rates(programs)))
            with _on(cores):
                live.append(_live(master, frames, bundle, folder / "live.jsonl").rate)
    return Compared(one, independent, live)


def _rates(programs: Sequence[OneCore]) -> list[float]:
    """Frames a second of each, all of them at once."""
    for program in programs:
        program.prepare()
    for program in programs:
        program.await_ready()
    for program in programs:
        program.start()
    return [program.pace().rate for program in programs]


def _live(master: Path, frames: int, bundle: Path, results: Path) -> Pace:
    torch.set_num_threads(1)
    settings = AnalyzeSettings(
        bundle=bundle, workers=2, device="cpu", results=results, overwrite=True, on_full="block", series=1,
        listen="127.0.0.1:0",
    )  # fmt: skip
    with replaying(master, "v2", loop=False) as endpoint:
        return measured(Session(settings, [endpoint]), frames)


def figures(found: Compared | None) -> list[Figure]:
    """Its rates."""
    names = ("one core, in process", "two independent programs, a core each", "two cores, over ZeroMQ")
    if found is None:
        return [Figure(f"{name}: rate", "frames/s", None, note="not measured: needs two cores") for name in names]
    return [
        Figure(f"{name}: rate", "frames/s", max(rates), sorted(rates)[len(rates) // 2], "best, not least")
        for name, rates in zip(names, (found.one, found.independent, found.live), strict=True)
    ]


def ratios(found: Compared | None) -> list[Ratio]:
    """What the bar is of."""
    if found is None:
        return []
    return [
        Ratio("two cores over ZeroMQ / one core, best", found.of_one, f"bar {OF_ONE_CORE}, or the next"),
        Ratio("two cores over ZeroMQ / two independent programs, best", found.of_independent, f"bar {OF_TWO_PROGRAMS}"),
    ]


def verdict(found: Compared | None) -> str:
    """In one line."""
    bar = f"two cores over ZeroMQ: {OF_ONE_CORE} times one core, or {OF_TWO_PROGRAMS} of two independent programs"
    if found is None:
        return f"{bar}: not measured, there are no two cores"
    return f"{bar}: {'kept' if found.kept else 'MISSED'}; the sender has its part of the two cores"
