"""The 2024 paper's results beside our own by its protocol and by an honest one: tables, confusion matrices, JSON."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.intervals import wilson
from cxls.figures.drawing import condition_name, house_style, new_figure, save_png
from sim_replay.detector import CONDITIONS
from training.leak import Figure18, Outcome, Plan, Result, Role, shares

RESULTS, FIGURE_18 = "paper-results", "paper-figure-18"
"""Names of the files without their ending."""

COLUMNS: dict[Role, str] = {
    "reproduced": "reproduced",
    "new noise": "same network, new noise",
    "carried over": "same network, honest images",
    "honest": "trained on honest images",
}

_Matrix = Sequence[Sequence[float]]


def results_table(results: Iterable[Result]) -> list[str]:
    """Lines of a Markdown table: paper, reproduced, honest; counts and 95 % Wilson intervals in brackets."""
    lines = _head(["experiment", "pixels", "figure", "paper", *COLUMNS.values()])
    notes = []
    for result in results:
        for number, name in enumerate(_figures_of_merit(result)):
            cells = [
                result.title if number == 0 else "",
                f"{result.shape[0]} x {result.shape[1]}" if number == 0 else "",
                name,
                _said(result, name, number),
                *(_cell(result.outcomes.get(role), name) for role in COLUMNS),
            ]
            lines.append(_line(cells))
        if blank := result.outcomes.get("honest, no clean image"):
            said = ", ".join(f"{name} {_cell(blank, name)}" for name in _figures_of_merit(result))
            notes.append(f"{result.title}: trained on honest images and given what a detector gives, {said}.")
    return [*lines, *(["", *notes] if notes else [])]


def conditions_table(results: Sequence[Result]) -> list[str]:
    """Lines of a Markdown table: what networks trained on honest images reach at each of the nine conditions."""
    found = {result.name: result.outcomes["honest"].by_condition for result in results if "honest" in result.outcomes}
    wanted = [("hit-binary", "recall"), ("hit-binary", "false hits"), ("energy", "right"), ("camera-length", "right")]
    wanted = [(name, figure) for name, figure in wanted if name in found]
    heads = [f"{'hits' if name == 'hit-binary' else name.replace('-', ' ')}: {figure}" for name, figure in wanted]
    lines = _head(["condition", *heads])
    for number, condition in CONDITIONS.items():
        cells = [f"{number:02d}: {condition_name(condition.camera_length_m, condition.photon_energy_eV)}"]
        cells += [_proportion(found[name][number], figure) for name, figure in wanted if number in found[name]]
        lines.append(_line(cells))
    return lines


def draw_results(results: Sequence[Result]) -> Figure:
    """Confusion matrices: an experiment a row; paper, reproduced and honest side by side. Call in ``house_style``."""
    shown = [result for result in results if not result.name.startswith("hash-")]
    figure = new_figure(11.0, 1.9 * len(shown) + 0.5)
    grid = figure.subplots(len(shown), 1 + len(COLUMNS), squeeze=False)
    for row, result in enumerate(shown):
        names = result.outcomes["reproduced"].classes
        _draw_matrix(grid[row, 0], result.paper, names, None)
        grid[row, 0].set_ylabel(_wrapped(result.title))
        for column, role in enumerate(COLUMNS, 1):
            outcome = result.outcomes.get(role)
            _draw_matrix(
                grid[row, column],
                None if outcome is None else shares(outcome.confusion),
                names,
                None if outcome is None else outcome.confusion,
            )
    for axes, title in zip(grid[0], ("paper", *COLUMNS.values()), strict=True):
        axes.set_title(_wrapped(title))
    figure.supxlabel("said (columns) for what is true (rows): share of the row, and number")
    return figure


def explain_figure_18(found: Figure18) -> list[str]:
    """What the matrices show, and why cells are empty."""
    lines = ["data set  condition       the paper's tree held"]
    for number, (hits, empties) in found.held.items():
        condition = CONDITIONS[number]
        name = condition_name(condition.camera_length_m, condition.photon_energy_eV)
        held = f"{hits} hits and {empties} empties" if hits else "nothing: no image, so no count in its row"
        lines.append(f"{number:02d}        {name:14}  {held}")
    lines.append("")
    for title, outcome in _figure_18_parts(found).items():
        total = sum(map(sum, outcome.confusion))
        right = sum(row[n] for n, row in enumerate(outcome.confusion))
        low, high = wilson(right, total)
        filled = [name for name, row in zip(outcome.classes, outcome.confusion, strict=True) if sum(row)]
        rows = "; ".join(" ".join(map(str, row)) for row in outcome.confusion)
        lines.append(
            f"{title}: {right} of {total} right ({100 * low:.0f} to {100 * high:.0f} %), rows with images: "
            f"{', '.join(filled)} eV; counts {rows}"
        )
    return lines


def draw_figure_18(found: Figure18) -> Figure:
    """Its confusion matrices side by side. Call in ``house_style``."""
    parts = _figure_18_parts(found)
    figure = new_figure(11.0, 2.9)
    grid = figure.subplots(1, 1 + len(parts))
    names = found.as_held.classes
    _draw_matrix(grid[0], ((1.0, 0.0, 0.0), (math.nan,) * 3, (math.nan,) * 3), names, None)
    grid[0].set_title('the paper, "01 and 02"')
    grid[0].set_ylabel("true photon energy (eV)")
    for axes, (title, outcome) in zip(grid[1:], parts.items(), strict=True):
        _draw_matrix(axes, shares(outcome.confusion), names, outcome.confusion)
        axes.set_title(_wrapped(title))
    figure.supxlabel("said (eV)")
    return figure


def save(out: Path, name: str, figure: Figure, plan: Plan, found: Any, command: str) -> tuple[Path, Path]:
    """Write OUT/NAME.png and OUT/NAME.json; the JSON has all counts. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    picture, numbers = out / f"{name}.png", out / f"{name}.json"
    with house_style():
        save_png(figure, picture)
    content = {"command": command, "plan": asdict(plan), "results": found}
    part = numbers.with_name(f"{numbers.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, numbers)
    return picture, numbers


def _figure_18_parts(found: Figure18) -> dict[str, Outcome]:
    return {
        "the paper's images of these data sets": found.as_held,
        "all of them filled, frozen water": found.filled,
        "that network, new noise": found.filled_new_noise,
        "trained on honest images": found.honest,
    }


def _figures_of_merit(result: Result) -> tuple[str, ...]:
    classes = result.outcomes["reproduced"].classes
    if classes == ("none", "peak"):
        return ("recall", "precision")
    if classes != ("miss", "hit"):
        return ("right",)
    return ("recall", "false hits") if result.outcomes["reproduced"].auc is None else ("recall", "false hits", "AUC")


def _said(result: Result, figure: str, number: int) -> str:
    if result.paper is None:
        return result.said if number == 0 else ""
    p = result.paper
    value = {"recall": p[1][1], "false hits": p[0][1]}.get(figure)
    if figure == "right":
        value = sum(row[n] for n, row in enumerate(p)) / len(p)
    return "-" if value is None else f"{100 * value:g} %"


def _cell(outcome: Outcome | None, figure: str) -> str:
    if outcome is None:
        return "-"
    if figure == "AUC":
        return "-" if outcome.auc is None else f"{outcome.auc:.3f}"
    return _proportion(outcome.confusion, figure)


def _proportion(confusion: Sequence[Sequence[int]], figure: str) -> str:
    part, whole = {
        "recall": lambda: (confusion[1][1], sum(confusion[1])),
        "false hits": lambda: (confusion[0][1], sum(confusion[0])),
        "precision": lambda: (confusion[1][1], confusion[0][1] + confusion[1][1]),
        "right": lambda: (sum(row[n] for n, row in enumerate(confusion)), sum(map(sum, confusion))),
    }[figure]()
    if not whole:
        return "none (0/0)"
    low, high = (100 * bound for bound in wilson(part, whole))
    return f"{100 * part / whole:.1f} % ({part}/{whole}; {low:.1f} to {high:.1f})"


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|---" * len(names) + "|"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _draw_matrix(
    axes: Axes, shown: _Matrix | None, names: Sequence[str], counts: Sequence[Sequence[int]] | None
) -> None:
    """A confusion matrix of shares, with its counts where there are any; None for no matrix at all."""
    axes.set_xticks([])
    axes.set_yticks([])
    if shown is None:
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.text(0.5, 0.5, "-", ha="center", va="center", transform=axes.transAxes)
        return
    axes.imshow([list(row) for row in shown], cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    for row, values in enumerate(shown):
        for column, value in enumerate(values):
            text = "no image" if math.isnan(value) else f"{value:.3g}"
            if counts is not None and not math.isnan(value):
                text += f"\n{counts[row][column]}"
            colour = "white" if value > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def _wrapped(text: str, width: int = 24) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
