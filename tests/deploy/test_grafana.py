"""The dashboards are whole, are what the code makes, and every query of theirs answers about a real run."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.cxls.programs import wait_for
from tests.deploy.preview.page import look, write_page
from tests.deploy.preview.panels import ask, filled, load, metrics, names, optional, panels, queries
from tests.deploy.preview.scene import Scene, Watched, watched
from tests.support import REPOSITORY, require

DEPLOY = REPOSITORY / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
BOARDS = pytest.mark.parametrize("name", names())
SCENE = Scene(hit_fractions=(0.4,), frames=12, repeats=16, rate_hz=30, flux=3e9)
COLOUR_BLIND_SAFE = {
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#999999",
}  # fmt: skip
UNANSWERED = {
    "GPU memory", "GPU load", "GPU temperature", "Indexed ratio", "Cell edges", "Cell angles", "Control actions",
    "Drift of the scores", "Alerts", "Alerts now", "Workers of other processes",
}  # fmt: skip
"""Panels that this run may leave empty: there is no GPU, no indexer, no other process, nothing was asked or
amiss, and it is short."""

PARTLY_UNANSWERED = {"Devices in trouble"}
"""Of which one query may have no answer."""


def rules() -> dict[str, str]:
    """Expressions of the rules, by the name of the record or alert."""
    found = {}
    for path in sorted(RULES.glob("*.yml")):
        # PyYAML is no dependency; promtool has checked the file, and here only these two keys matter.
        text = path.read_text()
        pattern = r"- (?:record|alert): (\S+)\n(?:\s*#.*\n)*\s+expr: (?:\|\n((?:\s{10,}.*\n)+)|(.*)\n)"
        found |= {name: block or line for name, block, line in re.findall(pattern, text)}
        assert len(re.findall(r"- (?:record|alert):", text)) == len(re.findall(pattern, text)), path
    return found


def alerts() -> dict[str, str]:
    return {name: expr for name, expr in rules().items() if ":" not in name}


def base_metrics(expr: str) -> set[str]:
    """Metrics that an expression asks for, those of its recording rules in their place."""
    known = rules()
    return {base for name in metrics(expr) for base in (base_metrics(known[name]) if name in known else {name})}


def documented() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "docs").glob("*.md"))


# --- the files --------------------------------------------------------------------------


def test_the_committed_dashboards_are_what_the_code_makes() -> None:
    require("grafana_foundation_sdk")
    script = DEPLOY / "grafana" / "make_dashboards.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_dashboard_that_was_edited_by_hand_is_noticed(tmp_path: Path) -> None:
    require("grafana_foundation_sdk")
    for path in (DEPLOY / "grafana").glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "dashboards").mkdir()
    for name in names():
        text = (DEPLOY / "grafana" / "dashboards" / name).read_text(encoding="utf-8")
        (tmp_path / "dashboards" / name).write_text(
            text.replace('"refresh": "5s"', '"refresh": "1s"'), encoding="utf-8"
        )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "make_dashboards.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "hit-finding.json, operations.json" in done.stderr


def test_uids_are_unique_and_each_dashboard_links_to_the_other() -> None:
    boards = [load(name) for name in names()]
    uids = {board["uid"] for board in boards}
    assert len(uids) == len(boards) == 2
    for board in boards:
        linked = {link["url"] for link in board["links"]}
        assert {f"/d/{uid}" for uid in uids - {board["uid"]}} <= linked
        assert "http://${instance}/metrics" in linked


@BOARDS
def test_the_last_quarter_of_an_hour_is_shown_and_renewed_every_five_seconds(name: str) -> None:
    board = load(name)
    assert (board["time"], board["refresh"]) == ({"from": "now-15m", "to": "now"}, "5s")
    assert board["schemaVersion"] == 41, "of Grafana 11.6"


@BOARDS
def test_panels_lie_side_by_side_on_the_grid_without_overlaps_or_holes(name: str) -> None:
    board = load(name)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    height = max(y for _, y in cells) + 1
    assert sorted(cells) == [(x, y) for x in range(24) for y in range(height)]


@BOARDS
def test_every_panel_says_what_it_is_in_its_title_description_and_unit(name: str) -> None:
    shown = panels(load(name))
    titles = [panel["title"] for panel in shown]
    assert len(set(titles)) == len(titles)
    for panel in shown:
        assert panel["title"]
        assert len(panel["description"]) > 30, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target.get("legendFormat") or target["instant"] for target in panel["targets"]), panel["title"]
        assert panel["targets"], panel["title"]


@BOARDS
def test_data_come_from_the_variables_source_and_the_chosen_analysis(name: str) -> None:
    board = load(name)
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["instance"]["query"] == "label_values(cxls_build_info, instance)"
    for panel, target in queries(board):
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert "$instance" in target["expr"], target["expr"]
        assert "datasource" not in target, "a query of its own source"


@BOARDS
def test_colours_are_those_that_colour_blind_people_tell_apart(name: str) -> None:
    board = load(name)
    assert set(re.findall(r"#[0-9A-Fa-f]{6}\b", json.dumps(board))) <= COLOUR_BLIND_SAFE
    for panel in panels(board):
        if panel["type"] == "timeseries":
            named = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
            fixed = {target["legendFormat"] for target in panel["targets"] if "{{" not in target["legendFormat"]}
            assert fixed <= named, f"{panel['title']}: a curve without a colour of its own"
        if panel["type"] == "heatmap":
            assert panel["options"]["color"]["scheme"] == "Viridis"


@BOARDS
def test_every_metric_of_a_query_is_documented_or_a_recording_rule(name: str) -> None:
    text, records = documented(), rules()
    for panel, target in queries(load(name)):
        asked = metrics(target["expr"])
        assert asked, target["expr"]
        for metric in asked:
            family = re.sub(r"_(bucket|sum|count)$", "", metric)
            known = metric in records or metric in ("up", "ALERTS") or metric.startswith("process_")
            # Some are in the documentation with others of their kind, as cxls_index_… are.
            stems = [family[:end] + "_…" for end in (pos.start() for pos in re.finditer("_", family))]
            assert known or family in text or any(stem in text for stem in stems), f"{metric} of {panel['title']}"


def test_every_alert_has_a_panel_that_names_it_and_shows_what_it_is_about() -> None:
    shown = [panel for name in names() for panel in panels(load(name))]
    assert len(alerts()) >= 15
    for alert, expr in alerts().items():
        about = [panel for panel in shown if re.search(rf"\b{alert}\b", panel["description"])]
        assert about, f"no panel names {alert}"
        drawn = {m for panel in about for target in panel["targets"] for m in base_metrics(target["expr"])}
        assert drawn & base_metrics(expr), f"{alert} is about {base_metrics(expr)}, its panels show {drawn}"


def test_panels_name_no_alert_that_is_not_there() -> None:
    for name in names():
        for panel in panels(load(name)):
            assert set(re.findall(r"\bCxls\w+", panel["description"])) <= set(alerts()), panel["title"]


def test_provisioning_names_the_source_that_the_dashboards_choose_and_allows_no_edits() -> None:
    source = (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text()
    provider = (DEPLOY / "grafana" / "provisioning" / "dashboards" / "cxls.yaml").read_text()
    assert re.search(r"^    uid: prometheus$", source, re.M)
    assert re.search(r"^    url: \$\{PROMETHEUS_URL\}$", source, re.M)
    assert re.search(r"^    type: file$", provider, re.M)
    assert re.search(r"^    allowUiUpdates: false$", provider, re.M)
    for name in names():
        (variable,) = (v for v in load(name)["templating"]["list"] if v["name"] == "datasource")
        assert variable["current"]["value"] == "prometheus"


# --- a real run -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A replayed series that was analysed whole, with Prometheus watching."""
    require("prometheus")
    with watched(tmp_path_factory.mktemp("watched"), SCENE) as made:
        yield made


def value(seen: Watched, expr: str) -> float:
    """The one answer to a query."""
    (series,) = seen.prometheus.query(filled(expr, seen.span))
    return float(series["value"][1])


def test_prometheus_counts_exactly_what_was_sent(seen: Watched) -> None:
    assert (seen.series, seen.sent) == (16, 192)
    assert value(seen, 'cxls_frames_received_total{instance="$instance"}') == seen.sent
    processed = value(seen, 'sum(cxls_frames_processed_total{instance="$instance"})')
    dropped = value(seen, 'sum(cxls_frames_dropped_total{instance="$instance"})')
    assert processed + dropped == seen.sent
    assert dropped == 0
    assert value(seen, 'sum(cxls_series_ended_total{instance="$instance"})') == seen.series
    assert value(seen, 'cxls_peaks_per_frame_count{instance="$instance"}') == seen.sent
    account = seen.status()["account"]
    for decision, count in account["processed"].items():
        selector = f'cxls_frames_processed_total{{instance="$instance", decision="{decision}"}}'
        assert value(seen, selector) == count


@BOARDS
def test_every_query_of_every_panel_answers(seen: Watched, name: str) -> None:
    silent = {
        (panel["title"], target["expr"])
        for panel, target in queries(load(name))
        if panel["title"] not in PARTLY_UNANSWERED and not ask(seen.prometheus, target, seen.span)
    }
    assert {title for title, _ in silent} <= UNANSWERED, silent
    allowed = {panel["title"] for panel in panels(load(name)) if optional(panel)}
    assert {title for title, _ in silent} <= allowed, "a panel may be empty only where its description says when"


def test_the_numbers_of_the_panels_are_those_of_the_account(seen: Watched) -> None:
    """The account and series panels show what the replay sent, to the image."""
    last = {
        (name, panel["title"], curve["name"]): curve["points"][-1][1]
        for name in names()
        for panel, target in queries(load(name))
        if panel["title"] in ("Account", "Series and images", "How series ended")
        for curve in ask(seen.prometheus, target, seen.span)
    }
    assert last["operations.json", "Account", "received"] == seen.sent
    assert last["operations.json", "Account", "processed"] == seen.sent
    assert last["operations.json", "Account", "waiting"] == 0
    assert last["hit-finding.json", "Series and images", "begun"] == seen.series
    assert last["hit-finding.json", "Series and images", "announced"] == seen.sent
    assert last["hit-finding.json", "How series ended", "end message"] == seen.series


def test_every_rule_is_taken_and_every_record_has_a_value(seen: Watched) -> None:
    groups = seen.prometheus.get("rules")["groups"]
    taken = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(taken) == set(rules())
    assert {name: rule.get("lastError", "") for name, rule in taken.items() if rule["health"] != "ok"} == {}
    for name in set(rules()) - set(alerts()):
        answers = seen.prometheus.query(f'{name}{{instance="{seen.span.instance}"}}')
        assert answers, f"{name} has no value"
    everything = set(seen.prometheus.get("label/__name__/values"))
    absent_here = {"cxls_score_drift_ratio", "cxls_gpu_throttled"}
    for name, expr in alerts().items():
        missing = base_metrics(expr) - everything - absent_here
        assert missing == set(), f"{name} asks for {missing}, which nothing exports"


@BOARDS
def test_a_browser_draws_every_panel(seen: Watched, name: str, tmp_path: Path) -> None:
    require("chromium")
    require("playwright")
    board = load(name)
    found = {
        drawn["id"]: drawn for drawn in look(write_page(tmp_path / "page.html", board, seen.prometheus, seen.span))
    }
    assert set(found) == {panel["id"] for panel in panels(board)}
    for panel in panels(board):
        drawn = found[panel["id"]]
        if panel["title"] in UNANSWERED:
            continue
        if optional(panel) and drawn["state"] == "empty":
            assert panel["fieldConfig"]["defaults"]["noValue"] in drawn["text"], panel["title"]
            continue
        assert drawn["state"] == "drawn", f"{panel['title']}: {drawn['text']}"
        assert drawn["marks"] > 0, panel["title"]
        assert "No data" not in drawn["text"], panel["title"]
        assert "NaN" not in drawn["text"], panel["title"]
        assert "undefined" not in drawn["text"], panel["title"]
    boxes = [drawn["box"] for drawn in found.values()]
    assert not any(_overlap(one, other) for one, other in combinations(boxes, 2))


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    across = min(one["right"], other["right"]) - max(one["left"], other["left"])
    along = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return bool(across > 0 and along > 0)


def test_an_analysis_that_ends_shows_in_the_panels_of_alerts(seen: Watched) -> None:
    """Last, for the analysis is gone after it."""
    (now,) = (panel for panel in panels(load("operations.json")) if panel["title"] == "Alerts now")
    seen.analysis.end(signal.SIGINT)

    def pending() -> bool:
        found = ask(seen.prometheus, now["targets"][0], seen.span)
        return "CxlsTargetAbsent" in {row["labels"]["alertname"] for row in found}

    wait_for(pending, 20)
    (scraped,) = (panel for panel in panels(load("operations.json")) if panel["title"] == "Scraped")
    assert value(seen, scraped["targets"][0]["expr"]) == 0
