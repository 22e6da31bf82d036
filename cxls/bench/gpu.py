"""Whether a GPU does what the program wants of it, and how fast: all that only a device can say, in one command.

Parts are done one after the other, each in a process of its own, so that one that fails or hangs costs no other: rows
that other benchmarks have of a GPU (``gpu_parts``), and the tests that need a device, file by file. What a part found
lies in the folder, and a part that is there is not done again. One that the time did not suffice for is begun anew by
the next run, as is one that failed.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch

from cxls.bench.report import Figure, Report, as_json, as_text, from_json, machine
from cxls.bench.roofs_gpu import NOT_MEASURED
from cxls.settings import BenchSettings

SOURCES = Path(__file__).resolve().parents[2]
TABLE = "table.txt"
FIRST = {
    "limits": "PCIe, memory, products of matrices",
    "kernels": "each kernel of decoding and reduction",
    "host": "the host's CPU a frame, and the rate in process",
    "batches": "frames a second by batch",
}
"""Parts that are done before the tests: they tell most in the least time."""

LAST = {
    "start": "from the start to the first record",
    "flat-out": "the program flat out, from files and over ZeroMQ",
    "live": "message to result at a rate",
    "paper": "the paper's network",
    "crops": "simulated crops for training",
}
_LIST = "tests.txt"
_FEWEST_S = 5.0
"""A part is not begun with less time than this."""

_MOST_SHARE = 0.5
"""Of the time, for one part: one that never ends must not keep the others from their turn, run after run."""

_NODE = re.compile(r"^(\S+\.py)::", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Part:
    """``command`` leaves a report at ``NAME.json`` of the folder; ``suite``: what pytest tells, to make one of."""

    name: str
    command: Sequence[str]
    suite: Path | None = None


def run(settings: BenchSettings) -> Report:
    """What is not done yet, as far as the time goes. Without a device rows that say so."""
    if not torch.cuda.is_available():
        rows = ["tests that need a device", *FIRST.values(), *LAST.values()]
        return Report("gpu: no device is usable here", [Figure(row, "", None, note=NOT_MEASURED) for row in rows])
    deadline = time.monotonic() + 60 * settings.minutes
    settings.parts.mkdir(parents=True, exist_ok=True)
    files, without = test_files(SOURCES, settings.parts, deadline - time.monotonic())
    first, last = ([_of_rows(name, settings) for name in names] for names in (FIRST, LAST))
    parts = [*first, *(of_tests(SOURCES, file, settings.parts) for file in files), *last]
    return qualify(torch.cuda.get_device_name(), parts, settings.parts, deadline, without)


def qualify(device: str, parts: Sequence[Part], folder: Path, deadline: float, without: Sequence[str] = ()) -> Report:
    """Do those of the parts that are not done until ``deadline`` (monotonic, s); the report of all that are.

    ``without``: what cannot be done at all, a line each.
    """
    left = list(without)
    whole_s = deadline - time.monotonic()
    for part in parts:
        if _report_of(folder, part, good=True) is not None:
            continue
        said = _do(part, folder, min(deadline - time.monotonic(), _MOST_SHARE * whole_s))
        print(f"{part.name}: {said or 'done'}", file=sys.stderr, flush=True)
        if said is not None:
            left.append(f"{part.name}: {said}")
    found = [report for part in parts if (report := _report_of(folder, part)) is not None]
    report = Report(
        f"gpu: {device}, {sum(not each.failed for each in found)} of {len(parts)} parts done and in order",
        [figure for each in found for figure in each.figures],
        (),
        [note for each in found for note in each.notes] + left,
        grids=[grid for each in found for grid in each.grids],
        failed=f"{left[0]}; the same command goes on with what is not in order" if left else "",
    )
    (folder / TABLE).write_text(as_text(report, machine()) + "\n")
    return report


def _report_of(folder: Path, part: Part, *, good: bool = False) -> Report | None:
    """What a part left; with ``good`` only where nothing failed in it."""
    try:
        report = from_json((folder / f"{part.name}.json").read_bytes())[1]
    except (OSError, ValueError):
        return None
    return None if good and report.failed else report


def _do(part: Part, folder: Path, limit_s: float) -> str | None:
    """Do a part in its process; why it is not in order, ``None`` where it is."""
    if limit_s < _FEWEST_S:
        return "no time left"
    log, target = folder / f"{part.name}.log", folder / f"{part.name}.json"
    for old in (target, part.suite):
        if old is not None:
            old.unlink(missing_ok=True)
    with log.open("wb") as out:
        code = bounded(part.command, out.fileno(), limit_s)
    if code is None:
        return f"not done within {limit_s:.0f} s"
    if part.suite is not None:
        target.write_text(as_json(part.name, _of_suite(part.name, part.suite, code, log), machine()))
    report = _report_of(folder, part)
    if report is None:
        return f"ended with exit code {code}, see {log}"
    return report.failed or None


def bounded(command: Sequence[str], out: int, limit_s: float) -> int | None:
    """A command's exit code, what it says into ``out``; ``None`` where it takes longer and is ended.

    What it has started ends with it.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _of_rows(name: str, settings: BenchSettings) -> Part:
    target = settings.parts / f"{name}.json"
    return Part(name, [sys.executable, "-m", "cxls.bench.gpu_parts", name, str(target), settings.model_dump_json()])


# --- tests --------------------------------------------------------------------------------


def _pytest(root: Path) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--rootdir={root}"]


def of_tests(root: Path, file: str, folder: Path) -> Part:
    """The tests of one file below ``root`` that need a device."""
    name = file.removesuffix(".py").replace("/", "-")
    suite = (folder / f"{name}.xml").resolve()
    return Part(name, [*_pytest(root), f"--junitxml={suite}", str(root / file)], suite)


def test_files(root: Path, folder: Path, limit_s: float) -> tuple[list[str], list[str]]:
    """Files below ``root`` with tests that need a device, as pytest finds them once; and why none are found."""
    kept = folder / _LIST
    if not kept.exists():
        if not (root / "tests").is_dir():
            return [], ["tests: not here, they come with the sources"]
        with tempfile.TemporaryFile() as out:
            code = bounded([*_pytest(root), "--collect-only", str(root / "tests")], out.fileno(), limit_s)
            out.seek(0)
            said = out.read().decode(errors="replace")
        if code != 0:
            last = (said.strip().splitlines() or ["nothing was said"])[-1]
            return [], [f"tests: those that need a device cannot be listed (exit code {code}): {last}"]
        kept.write_text("".join(f"{file}\n" for file in dict.fromkeys(_NODE.findall(said))))
    return kept.read_text().split(), []


def _of_suite(name: str, suite: Path, code: int, log: Path) -> Report:
    """What pytest told of a file's tests."""
    try:
        told = ElementTree.parse(suite).getroot().find("testsuite")  # noqa: S314  of the pytest that we ran
    except (OSError, ElementTree.ParseError):
        told = None
    found = {} if told is None else told.attrib
    counts = {each: int(found.get(each, "0")) for each in ("tests", "failures", "errors", "skipped")}
    bad = counts["failures"] + counts["errors"]
    passed = counts["tests"] - bad - counts["skipped"]
    failed = f"{bad} failed, exit code {code}, see {log}" if bad or code or not passed else ""
    note = f"of {counts['tests']}, {bad} failed, {counts['skipped']} skipped"
    return Report(name, [Figure(name, "tests passed", float(passed), note=note)], failed=failed)
