"""What every kind of ``cxls evaluate`` prints and writes of its figures."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from cxls.cli import Failed
from cxls.settings import BadSettings
from training.evaluation.evaluation import Evaluation, Table
from training.evaluation.report import as_json, cell_text, tables, write_report

_WIDTH_OF_A_PIPE = 160


def refuse_files(report: Path | None, json_path: Path | None) -> None:
    """Raises ``BadSettings`` where a folder to write to is a file."""
    for path, option in ((report, "--report"), (json_path and json_path.parent, "--json")):
        if path is not None and path.exists() and not path.is_dir():
            raise BadSettings(f"{option}: {path} is a file; give a folder")


def write_evaluation(
    made: Evaluation,
    report: Path | None,
    json_path: Path | None,
    draw: Callable[[Path], Sequence[Path]] = lambda folder: (),
) -> None:
    """Write what is asked for; ``draw`` puts further plots into the report's folder. Raises ``Failed``."""
    command = "cxls " + " ".join(sys.argv[1:])
    try:
        if report is not None:
            report.mkdir(parents=True, exist_ok=True)
            write_report(made, report, command, draw(report))
            click.echo(f"{report / 'report.html'}: the report; report.md beside it")
        if json_path is not None:
            json_path.write_text(json.dumps(as_json(made, command), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror or error}") from None


def print_evaluation(made: Evaluation) -> None:
    """Notes and tables on stdout."""
    click.echo(f"{made.bundle}: {made.evaluated_on}")
    for note in made.notes:
        click.echo(f"  {note}")
    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH_OF_A_PIPE)
    for table in tables(made):
        console.print(_rich(table))
    for reason in made.not_measured:
        click.echo(f"not measured: {reason}")


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE, caption=escape(table.note))
    for number, head in enumerate(table.heads):
        shown.add_column(escape(head), justify="left" if number == 0 else "right")
    for row in table.rows:
        shown.add_row(*(escape(cell_text(cell, table.digits)) for cell in row))
    return shown
