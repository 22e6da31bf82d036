"""Figures of a benchmark: as a table for people, as JSON for comparison."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_PACKAGES = ("cxls-analyzer", "numpy", "numba", "torch", "bitshuffle", "pyzmq", "cbor2", "h5py")

_WIDTH = 150
"""Columns of a table that goes into a file."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value; ``median`` is over rounds and absent for a single measurement.

    ``value`` is the least over rounds, or ``None`` when it was not measured and ``note`` says why.
    """

    name: str
    unit: str
    value: float | None
    median: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over the peer's, or the other way where ``name`` says so; ``bar`` is what it is held against."""

    name: str
    value: float
    bar: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found."""

    title: str
    figures: Sequence[Figure]
    ratios: Sequence[Ratio] = ()
    notes: Sequence[str] = ()
    samples: dict[str, Any] = field(default_factory=dict)


def over_rounds(name: str, unit: str, values: Sequence[float], note: str = "") -> Figure:
    """Least and median over rounds: the least is the code's cost, the median shows the neighbours'."""
    return Figure(name, unit, min(values), statistics.median(values), note)


def ratios(name: str, ours: Sequence[float], peer: Sequence[float], bar: str = "") -> list[Ratio]:
    """Of the least values and of the medians of rounds that took turns."""
    return [
        Ratio(f"{name}, least", min(ours) / min(peer), bar),
        Ratio(f"{name}, median", statistics.median(ours) / statistics.median(peer), bar),
    ]


def machine() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    load = [round(value, 2) for value in os.getloadavg()]
    return {
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "system": platform.platform(),
        "load_average_at_start": load,
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "cxls " + " ".join(sys.argv[1:]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def show(report: Report, where: dict[str, Any]) -> None:
    """Print the report on stdout; without a terminal it is as wide as its content."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(report.title)
    load = " ".join(map(str, where["load_average_at_start"]))
    console.print(
        f"{where['date']}  {where['cpu_count']} cores {where['processor']}  load {load}  $ {where['command']}",
        style="dim",
    )
    table = Table("figure", "least", "median", "unit", "note", box=None, pad_edge=False, header_style="bold")
    for column in (1, 2):
        table.columns[column].justify = "right"
    for figure in report.figures:
        value = "not measured" if figure.value is None else _number(figure.value)
        table.add_row(
            figure.name, value, "" if figure.median is None else _number(figure.median), figure.unit, figure.note
        )
    console.print(table)
    for ratio in report.ratios:
        console.print(f"ratio  {ratio.name}: {ratio.value:.2f}" + (f"  ({ratio.bar})" if ratio.bar else ""))
    for note in report.notes:
        console.print(note)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def as_json(name: str, report: Report, where: dict[str, Any]) -> str:
    """The report with the machine it ran on."""
    return json.dumps({"benchmark": name, "machine": where, **asdict(report)}, indent=2) + "\n"
