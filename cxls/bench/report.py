"""Figures of a benchmark: as a table for people, as JSON for comparison and for the documentation."""

import io
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

import msgspec
import torch
from rich.console import Console
from rich.table import Table

_PACKAGES = (
    "cxls-analyzer", "numpy", "numba", "torch", "bitshuffle", "hdf5plugin", "dectris-compression", "imagecodecs",
    "pyzmq", "cbor2", "h5py", "prometheus-client",
)  # fmt: skip

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
class Grid:
    """Figures of one kind, read down and across; ``values`` (rows, columns), ``None`` where not measured."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found. ``failed``: why the command fails although it measured, empty where it does not."""

    title: str
    figures: Sequence[Figure]
    ratios: Sequence[Ratio] = ()
    notes: Sequence[str] = ()
    samples: dict[str, Any] = field(default_factory=dict)
    grids: Sequence[Grid] = ()
    failed: str = ""


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
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "system": platform.platform(),
        "load_average_at_start": load,
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["cxls", *sys.argv[1:]]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def show(report: Report, where: dict[str, Any]) -> None:
    """Print the report on stdout; without a terminal it is as wide as its content."""
    _print(Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH), report, where)


def as_text(report: Report, where: dict[str, Any]) -> str:
    """What ``show`` prints, for a page."""
    page = io.StringIO()
    _print(Console(file=page, highlight=False, width=_WIDTH, color_system=None), report, where)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def _print(console: Console, report: Report, where: dict[str, Any]) -> None:
    console.print(report.title, soft_wrap=True)
    load = " ".join(map(str, where["load_average_at_start"]))
    console.print(
        f"{where['date']}  {where['cpu_count']} cores {where['processor']}  load {load}  $ {where['command']}",
        style="dim",
        soft_wrap=True,
    )
    if where.get("gpu"):
        console.print(where["gpu"], style="dim", soft_wrap=True)
    for grid in report.grids:
        console.print(_across(grid))
        console.print()
    if report.figures:
        console.print(_down(report.figures))
    for ratio in report.ratios:
        console.print(
            f"ratio  {ratio.name}: {ratio.value:.2f}" + (f"  ({ratio.bar})" if ratio.bar else ""), soft_wrap=True
        )
    for note in report.notes:
        console.print(note, soft_wrap=True)


def _down(figures: Sequence[Figure]) -> Table:
    table = Table("figure", "least", "median", "unit", "note", box=None, pad_edge=False, header_style="bold")
    for column in (1, 2):
        table.columns[column].justify = "right"
    for figure in figures:
        value = "not measured" if figure.value is None else _number(figure.value)
        table.add_row(
            figure.name, value, "" if figure.median is None else _number(figure.median), figure.unit, figure.note
        )
    return table


def _across(grid: Grid) -> Table:
    table = Table(grid.title, *grid.columns, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row, values in zip(grid.rows, grid.values, strict=True):
        table.add_row(row, *("-" if value is None else _number(value) for value in values))
    return table


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def as_json(name: str, report: Report, where: dict[str, Any]) -> str:
    """The report with the machine it ran on; what is no number is null."""
    encoded = msgspec.json.encode({"benchmark": name, "machine": where, **asdict(report)})
    return msgspec.json.format(encoded, indent=2).decode() + "\n"


def from_json(text: str | bytes) -> tuple[str, Report, dict[str, Any]]:
    """The benchmark's name, its report and the machine that ``as_json`` wrote. Raises ``ValueError``."""
    try:
        whole = msgspec.json.decode(text, type=dict[str, Any])
        name, where = whole.pop("benchmark"), whole.pop("machine")
        report = msgspec.convert(whole, Report)
    except KeyError as error:
        raise ValueError(f"no figures of a benchmark: it has no {error}") from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"no figures of a benchmark: {error}") from None
    return str(name), report, where
