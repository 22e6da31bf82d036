"""Reading the dashboards: their panels, and what their queries are once the variables are filled in."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.preview.server import Prometheus

DASHBOARDS = Path(__file__).parents[3] / "deploy" / "grafana" / "dashboards"
_METRIC = re.compile(r"\b(?:cxls[_:][a-zA-Z0-9_:]+|process_[a-z_]+|up|ALERTS)\b")
_NO_METRIC = re.compile(r'"[^"]*"|\b(?:by|without|on|ignoring)\s*\([^)]*\)')


@dataclass(frozen=True)
class Span:
    """The time that is shown, Unix seconds, and of which analysis."""

    start: float
    end: float
    instance: str


def load(name: str) -> dict[str, Any]:
    """One of the committed dashboards."""
    board: dict[str, Any] = json.loads((DASHBOARDS / name).read_text(encoding="utf-8"))
    return board


def names() -> list[str]:
    return sorted(path.name for path in DASHBOARDS.glob("*.json"))


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that show data."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def optional(panel: dict[str, Any]) -> bool:
    """Whether the panel's description says that it may be empty, and when."""
    return " No data " in panel["description"]


def queries(board: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each query with its panel."""
    for panel in panels(board):
        for target in panel["targets"]:
            yield panel, target


def metrics(expr: str) -> set[str]:
    """Names of the metrics and recording rules that an expression asks for."""
    return set(_METRIC.findall(_NO_METRIC.sub("", expr)))


def filled(expr: str, span: Span) -> str:
    """The expression as Prometheus takes it."""
    values = {
        "$__rate_interval": "1m",
        "$__range": f"{max(1, round(span.end - span.start))}s",
        "$instance": span.instance,
    }
    for name, value in values.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, f"a variable that nobody fills in: {expr}"
    return expr


def ask(prometheus: Prometheus, target: dict[str, Any], span: Span) -> list[dict[str, Any]]:
    """What a query of a panel answers: curves as [name, labels, [[Unix s, value or None], ...]]."""
    expr = filled(target["expr"], span)
    if target.get("instant"):
        found = [(series["metric"], [series["value"]]) for series in prometheus.query(expr)]
    else:
        step = max(1.0, round((span.end - span.start) / 300))
        answer = prometheus.query_range(expr, span.start, span.end, step)
        found = [(series["metric"], series["values"]) for series in answer]
    return [
        {
            "name": named(target.get("legendFormat", ""), labels),
            "labels": labels,
            "points": [[at, _number(value)] for at, value in values],
        }
        for labels, values in found
    ]


def named(template: str, labels: dict[str, str]) -> str:
    """A legend: the template with its labels filled in."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), template)


def _number(text: str) -> float | None:
    """A sample's value; ``None`` where there is no finite one, which JSON has no word for."""
    value = float(text)
    return value if abs(value) < float("inf") else None
