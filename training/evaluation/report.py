"""An evaluation as a report in Markdown and in HTML, as JSON, and as text for a terminal."""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from training.evaluation.evaluation import Cell, Evaluation, Table
from training.evaluation.metrics import Estimate
from training.evaluation.plots import reliability_png, roc_png

MOST_MISSED = 200
"""Rows of the list of missed hits in a report; the JSON has them all."""


def write_report(made: Evaluation, folder: Path, command: str, drawn: Sequence[Path] = ()) -> list[Path]:
    """Write report.html, which holds all it needs, report.md and its plots. Raises OSError.

    drawn: plots that lie in the folder already, PNG files, which the report is to show too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = {"roc.png": roc_png(made), "reliability.png": reliability_png(made)}
    pictures = {name: data for name, data in plots.items() if data is not None}
    written = []
    for name, data in pictures.items():
        written.append(folder / name)
        written[-1].write_bytes(data)
    pictures |= {path.name: path.read_bytes() for path in drawn}
    text_of = {"report.md": markdown(made, command, tuple(pictures)), "report.html": _html(made, command, pictures)}
    for name, text in text_of.items():
        written.append(folder / name)
        written[-1].write_text(text, encoding="utf-8")
    return written


def tables(made: Evaluation) -> list[Table]:
    """The summary, all tables, and the missed hits."""
    summary = Table(
        "Summary",
        ("figure", "value", "95 % interval", "note"),
        tuple((name, each.value, _interval(each), each.note) for name, each in made.summary),
    )
    shown = [summary, *made.tables] if made.summary else list(made.tables)
    if made.missed:
        heads = ("crystal", "series", "frame", "probability", "Bragg photons", "spots of 5 photons")
        rows = tuple(
            (m.crystal, m.series, m.frame, m.probability, m.bragg_photons, m.spots_of_5_photons)
            for m in made.missed[:MOST_MISSED]
        )
        crystals = len({m.crystal for m in made.missed})
        note = f"{len(made.missed)} frames of {crystals} crystals" + (
            f", the first {MOST_MISSED} of them" if len(made.missed) > MOST_MISSED else ""
        )
        shown.append(Table("Hits that were missed", heads, rows, note))
    return shown


def markdown(made: Evaluation, command: str, pictures: Sequence[str] = ()) -> str:
    """The report as Markdown, with its plots, PNG files of these names, beside it."""
    lines = [f"# Evaluation of `{_plain(made.bundle)}`", "", f"    {_plain(command)}", "", *_about(made), ""]
    lines += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]
    for table in tables(made):
        lines += ["", f"## {table.title}", ""]
        lines += [_row(table.heads), _row("---" for _ in table.heads)]
        lines += [_row(_pipes(cell_text(cell, table.digits)) for cell in row) for row in table.rows]
        lines += ["", table.note] if table.note else []
    return "\n".join(lines) + "\n"


def _about(made: Evaluation) -> list[str]:
    threshold = "" if made.threshold is None else f", a hit from a probability of {made.threshold:.4g}"
    lines = [f"{made.evaluated_on}{threshold}.", ""]
    lines += [f"- {_pipes(note)}" for note in made.notes]
    return lines + [f"- not measured: {_pipes(reason)}" for reason in made.not_measured]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _pipes(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """One line of what a file may have named."""
    return " ".join(text.split())


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left } th { border-bottom: 2px solid #888 }
pre { background: #f4f4f4; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere }
.note { color: #666 } img { max-width: 100% } li.missing { color: #a33 }
"""


def _html(made: Evaluation, command: str, pictures: dict[str, bytes]) -> str:
    title = html.escape(f"Evaluation of {made.bundle}")
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head><body>',
        f"<h1>{title}</h1><pre>{html.escape(command)}</pre>",
        f"<p>{html.escape(_about(made)[0])}</p><ul>",
        *(f"<li>{html.escape(note)}</li>" for note in made.notes),
        *(f'<li class="missing">not measured: {html.escape(reason)}</li>' for reason in made.not_measured),
        "</ul>",
    ]
    for name, data in pictures.items():
        encoded = base64.b64encode(data).decode()
        parts.append(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}">')
    for table in tables(made):
        heads = "".join(f"<th>{html.escape(head)}</th>" for head in table.heads)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell_text(cell, table.digits))}</td>" for cell in row) + "</tr>"
            for row in table.rows
        )
        parts.append(f"<h2>{html.escape(table.title)}</h2><table><thead><tr>{heads}</tr></thead>{rows}</table>")
        if table.note:
            parts.append(f'<p class="note">{html.escape(table.note)}</p>')
    if made.series:
        parts += ["<h2>Series</h2><ul>", *(f"<li>{html.escape(name)}</li>" for name in made.series), "</ul>"]
    return "\n".join([*parts, "</body></html>", ""])


def cell_text(cell: Cell, digits: int | None = None) -> str:
    """A cell as it is printed, numbers to so many digits."""
    if cell is None:
        return "-"
    if isinstance(cell, Estimate):
        text = _number(cell.value, digits)
        text += f" ({_interval(cell, digits)})" if cell.low is not None else ""
        return f"{text}, {cell.note}" if cell.note else text
    return _number(cell, digits) if isinstance(cell, float) else str(cell)


def _number(value: float, digits: int | None) -> str:
    if not math.isfinite(value):
        return "-"
    if digits is not None:
        return f"{value:.{digits}g}" if abs(value) < 10.0**digits else f"{value:.0f}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 10.0 else f"{value:.4g}"


def _interval(each: Estimate, digits: int | None = None) -> str:
    if each.low is None or each.high is None:
        return "-"
    return f"{_number(each.low, digits)} to {_number(each.high, digits)}"


def as_json(made: Evaluation, command: str) -> dict[str, Any]:
    """All figures as plain values."""
    return {
        "bundle": made.bundle,
        "threshold": made.threshold,
        "command": command,
        "series": list(made.series),
        "frames": made.frames,
        "summary": {name: _json_cell(each) for name, each in made.summary},
        "tables": [
            {
                "title": table.title,
                "rows": [
                    {head: _json_cell(cell) for head, cell in zip(table.heads, row, strict=True)} for row in table.rows
                ],
            }
            for table in made.tables
        ],
        "missed": [
            {
                "series": m.series,
                "frame": m.frame,
                "crystal": m.crystal,
                "probability": m.probability,
                "bragg_photons": m.bragg_photons,
                "spots_of_5_photons": m.spots_of_5_photons,
            }
            for m in made.missed
        ],
        "reliability": {
            name: {"weight": bins.weight.tolist(), "said": bins.said.tolist(), "found": bins.found.tolist()}
            for name, bins in made.reliability.items()
        },
        "notes": made.notes,
        "not_measured": made.not_measured,
    }


def _json_cell(cell: Cell) -> Any:
    if isinstance(cell, Estimate):
        finite = cell.value if math.isfinite(cell.value) else None
        return {"value": finite, "low": cell.low, "high": cell.high, "note": cell.note}
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
