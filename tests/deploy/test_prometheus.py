"""Prometheus takes the configuration and the rules, every alert says what to do, and each does what its tests say."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from analyzer.bundle import DEFAULT_BUNDLE
from analyzer.drift import ALARM_RATIO
from analyzer.metrics import GpuLoad
from analyzer.metrics.gpu import Health, Memory
from tests.analyzer.builders import frames_of_a_run, write_series
from tests.cxls.programs import LOOPBACK, Analysis, replaying, wait_for
from tests.cxls.test_http import get
from tests.support import REPOSITORY, require

DEPLOY = REPOSITORY / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
CONFIG = PROMETHEUS / "prometheus.yml"
ALERTMANAGER = DEPLOY / "alertmanager" / "alertmanager.yml"
DOCS = REPOSITORY / "docs"


def promtool(*arguments: object, given: str | None = None) -> subprocess.CompletedProcess[str]:
    require("promtool", "prometheus")
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for path in rule_files() for group in read(path)["groups"] for rule in group["rules"]]


def rule_files() -> list[Path]:
    return sorted((PROMETHEUS / "rules").glob("*.yml"))


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What the program serves after a replayed run, with every output in use and every address served."""
    folder = tmp_path_factory.mktemp("scrape")
    token = folder / "token"
    token.write_text("a-token-for-tests-0123456789\n")
    token.chmod(0o600)
    master = write_series(folder / "series", frames_of_a_run(24))
    with replaying(master) as (endpoint, _):
        analysis = Analysis(
            [endpoint], DEFAULT_BUNDLE, folder / "r.jsonl", hits=folder / "hits", products=folder / "products",
            reports=folder / "reports", control_token=token, broadcast=LOOPBACK, index_listen=LOOPBACK,
            worker_listen=LOOPBACK,
        ).start()  # fmt: skip
        try:
            web = analysis.session.web
            assert web is not None
            wait_for(lambda: bool(analysis.session.front.reports))
            # The data are compared with the header once a second.
            wait_for(lambda: "cxls_header_mismatch" in get(web.address, "/metrics")[2])
            yield get(web.address, "/metrics")[2]
        finally:
            analysis.stop()


@pytest.fixture(scope="module")
def of_a_gpu() -> str:
    """What a device with NVML adds to it."""
    registry = CollectorRegistry()
    registry.register(GpuLoad(lambda: Memory(1 << 30, 2 << 30), lambda: Health(0.5, 60.0, True)))
    return generate_latest(registry).decode()


def exported(scrape: str) -> set[str]:
    """Names that a query may use."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", scrape, re.M):
        names |= {name, *(f"{name}_{part}" for part in ("bucket", "sum", "count") if kind == "histogram")}
    return names


# --- files that Prometheus takes --------------------------------------------------------


def test_promtool_accepts_the_configuration_and_its_rules() -> None:
    done = promtool("check", "config", CONFIG)
    assert done.returncode == 0, done.stderr
    assert f"{len(rule_files())} rule files found" in done.stdout
    assert "SUCCESS" in done.stdout


def test_the_lines_about_an_alertmanager_work_once_their_marks_are_off(tmp_path: Path) -> None:
    marked = re.compile(r"^# (alerting:\n(?:#  .*\n)+)", re.M)
    found = marked.search(CONFIG.read_text())
    assert found is not None
    lines = found[1].replace("\n# ", "\n")
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    copy = tmp_path / "prometheus" / "prometheus.yml"
    copy.write_text(CONFIG.read_text().replace(found[0], lines))
    assert read(copy)["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == ["127.0.0.1:9093"]
    assert promtool("check", "config", copy).returncode == 0


def test_the_job_that_is_missed_is_the_one_that_is_scraped() -> None:
    (job,) = read(CONFIG)["scrape_configs"]
    assert f'job="{job["job_name"]}"' in ALERTS["CxlsTargetAbsent"]["expr"]


# --- metrics that it finds in order, and rules that fit them ------------------------------


def test_promtool_finds_nothing_to_say_of_a_real_scrape(scrape: str, of_a_gpu: str) -> None:
    families = set(re.findall(r"^# TYPE cxls_([a-z]+)_", scrape, re.M))
    assert families >= {
        "frames", "queue", "stage", "hits", "disk", "log", "control", "web", "http", "crew", "broadcast", "index",
        "products", "reports", "results", "build",
    }  # fmt: skip
    done = promtool("check", "metrics", given=scrape + of_a_gpu)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_promtool_has_something_to_say_of_a_metric_without_help_or_unit() -> None:
    assert promtool("check", "metrics", given="# TYPE cxls_lag_ms counter\ncxls_lag_ms 3\n").returncode != 0


def test_every_metric_in_a_rule_is_one_that_the_program_exports(scrape: str, of_a_gpu: str) -> None:
    names = exported(scrape + of_a_gpu)
    for rule in rules():
        used = set(re.findall(r"(?<![:\w])cxls_\w+", rule["expr"]))
        assert used <= names, rule


def test_every_label_value_in_a_rule_is_one_that_the_program_exports(scrape: str) -> None:
    labels: dict[tuple[str, str], set[str]] = {}
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            for label, value in sample.labels.items():
                labels.setdefault((sample.name, label), set()).add(value)
    checked = 0
    for rule in rules():
        for name, matchers in re.findall(r"(cxls_\w+)\{([^}]*)\}", rule["expr"]):
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
                assert set(values.split("|")) <= labels[name, label], (name, label)
                checked += 1
    assert checked >= 8


def test_every_recorded_series_that_an_alert_asks_for_is_recorded() -> None:
    for rule in rules():
        assert set(re.findall(r"cxls:[\w:]+", rule["expr"])) <= RECORDED, rule


def test_everything_exported_is_explained(scrape: str, of_a_gpu: str) -> None:
    text = "".join(page.read_text() for page in DOCS.glob("*.md"))
    for name in re.findall(r"^# TYPE (cxls_\S+) ", scrape + of_a_gpu, re.M):
        assert f"`{name}" in text, f"{name} stands in no page of docs"


# --- alerts that say what to do ---------------------------------------------------------


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_severity_a_summary_a_description_and_one_sentence_to_act_on(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "action"}
    assert all(annotations.values())
    assert re.fullmatch(r"[A-Z][^.]*(\.\w[^.]*)*\.", annotations["action"]), "one sentence"
    assert annotations["description"].endswith(".")


def test_every_alert_stands_in_the_documentation() -> None:
    text = (DOCS / "metrics.md").read_text()
    for name in ALERTS:
        assert f"`{name}`" in text


def test_the_threshold_of_drift_is_the_analysis_own() -> None:
    assert ALERTS["CxlsModelDrift"]["expr"].split()[-1] == str(ALARM_RATIO)


# --- alerts that fire when they should --------------------------------------------------


def unit_tests(folder: Path = PROMETHEUS) -> list[Path]:
    return sorted((folder / "tests").glob("*.yml"))


def test_the_rules_do_what_their_unit_tests_say() -> None:
    done = promtool("test", "rules", *unit_tests())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == len(unit_tests())


def test_every_alert_is_tested_where_it_fires_and_where_it_does_not() -> None:
    cases: dict[str, list[bool]] = {name: [] for name in ALERTS}
    for path in unit_tests():
        for test in read(path)["tests"]:
            for alert in ALERTS:
                checks = [c for c in test.get("alert_rule_test", ()) if c["alertname"] == alert]
                if checks:
                    cases[alert].append(any(check["exp_alerts"] for check in checks))
    for name, fired in cases.items():
        assert set(fired) == {True, False}, name


@pytest.mark.parametrize("expression", ["vector(0) > 1", "vector(1)"], ids=["never", "always"])
def test_an_alert_that_never_or_always_fires_fails_its_test(expression: str, tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    shutil.copytree(PROMETHEUS, folder)
    for path in (folder / "rules").glob("*.yml"):
        content = read(path)
        for rule in content["groups"][0]["rules"]:
            if "alert" in rule:
                rule["expr"] = expression
        path.write_text(yaml.safe_dump(content))
    done = promtool("test", "rules", *unit_tests(folder))
    assert done.returncode != 0
    failed = set(re.findall(r"alertname: (\w+), time", done.stdout + done.stderr))
    assert failed == set(ALERTS)


def test_every_recording_rule_is_tested() -> None:
    asked = " ".join(
        check["expr"]
        for path in unit_tests()
        for test in read(path)["tests"]
        for check in test.get("promql_expr_test", ())
    )
    for name in RECORDED:
        assert name in asked


# --- Alertmanager -----------------------------------------------------------------------


def test_the_example_for_alertmanager_routes_every_severity_to_a_receiver_there_is() -> None:
    config = read(ALERTMANAGER)
    receivers = {receiver["name"] for receiver in config["receivers"]}
    routes = [config["route"], *config["route"]["routes"]]
    assert {route["receiver"] for route in routes} == receivers
    matchers = [m for route in routes for m in route.get("matchers", ())]
    assert 'severity = "critical"' in matchers
    for rule in config["inhibit_rules"]:
        named = re.findall(r'alertname = "(\w+)"', " ".join(rule["source_matchers"]))
        assert named
        assert set(named) <= set(ALERTS)


def test_amtool_accepts_the_example_for_alertmanager() -> None:
    require("amtool", "prometheus-alertmanager")
    done = subprocess.run(["amtool", "check-config", str(ALERTMANAGER)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
