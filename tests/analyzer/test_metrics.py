"""What Prometheus scrapes: every name of the contract, every label child, one consistent snapshot."""

import re
import subprocess
import threading
from typing import Any

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.front import Front, FrontSettings
from analyzer.metrics import corrected_ratio, make_registry
from streamer.messages import InvalidMessage
from tests.analyzer.builders import BROKEN, ScriptedSource, end, image, metadata, start, water, whole_series, with_spots
from tests.support import require

CHILDREN = {
    "cxls_frames_processed_total": ("decision", {"hit", "miss", "no_beam"}),
    "cxls_frames_dropped_total": (
        "reason",
        {"queue_full", "shutdown", "duplicate", "stale_series", "out_of_range", "sampled"},
    ),
    "cxls_frames_undecodable_total": ("reason", {"bad_block", "size_mismatch", "missing_channel", "failed"}),
    "cxls_frames_missing_total": ("where", {"head", "gap", "tail"}),
    "cxls_messages_invalid_total": ("reason", {"malformed", "too_large", "wrong_protocol"}),
    "cxls_photon_energy_electronvolts": ("statistic", {"estimate", "sigma", "header"}),
    "cxls_camera_length_meters": ("statistic", {"estimate", "sigma", "header"}),
    "cxls_stage_seconds_count": ("stage", {"receive", "decode", "reduce", "infer", "peaks", "publish"}),
    "cxls_queue_frames": ("queue", {"frames", "results"}),
}
WITHOUT_LABELS = (
    "cxls_frames_announced_total",
    "cxls_frames_received_total",
    "cxls_receive_to_result_seconds_count",
    "cxls_build_info",
)
WITH_DATA = {
    "cxls_hit_ratio": {("100",), ("1000",)},
    "cxls_indexable_ratio": {("100",), ("1000",)},
    "cxls_hit_ratio_corrected": {(b, w) for w in ("100", "1000") for b in ("estimate", "low", "high")},
    "cxls_relative_flux_ratio": {()},
}


class Scrapes:
    """A front and its exposition."""

    def __init__(self, bundle: Bundle, script: list[Any], workers: int = 1, **settings: Any) -> None:
        analysers = [Analyser(bundle, CascadeSettings(threshold=0.5)) for _ in range(workers)]
        self.front = Front(ScriptedSource(script), analysers, [], FrontSettings(**({"block": True} | settings)))
        build = {"version": "1", "bundle": 'quo"te\\n'}
        self.registry = make_registry(self.front, dict, (0.01, 0.002, 0.03), build)

    def run(self) -> "Scrapes":
        self.front.run(threading.Event())
        return self

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def samples(self) -> dict[str, dict[tuple[str, ...], float]]:
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = (
                    sample.value
                )
        return found


def eventful() -> list[Any]:
    """Something of everything."""
    spots = [image(n, 2, with_spots(water(0.1, seed=n))) for n in range(20)]
    dark = [image(n, 2, water(0.0)) for n in range(20, 23)]
    bad = [image(23, 2, BROKEN), image(0, 2), image(40, 2), image(0, 1)]
    return [*whole_series(4), InvalidMessage("malformed", "x"), start(2, 30), *spots, *dark, *bad, end(2)]


def test_every_name_and_label_is_there_before_the_first_message(bundle: Bundle) -> None:
    samples = Scrapes(bundle, []).samples()
    for name in WITHOUT_LABELS:
        assert name in samples
    for name, (_, values) in CHILDREN.items():
        assert {value for labels in samples[name] for value in labels} >= values, name
    assert samples["cxls_frames_received_total"] == {(): 0.0}


def test_labels_have_the_names_of_the_contract(bundle: Bundle) -> None:
    text = Scrapes(bundle, eventful()).run().text
    for name, (label, values) in CHILDREN.items():
        for value in values:
            assert re.search(rf'^{name}{{{label}="{value}"}} ', text, re.M), (name, value)
    assert re.search(r'^cxls_hit_ratio_corrected{(?=.*window="100")(?=.*bound="low").*} ', text, re.M)


def test_ratios_are_absent_until_there_is_data(bundle: Bundle) -> None:
    before = Scrapes(bundle, []).samples()
    assert not set(WITH_DATA) & set(before)
    samples = Scrapes(bundle, eventful()).run().samples()
    for name, labels in WITH_DATA.items():
        assert set(samples[name]) == labels


def test_ratios_are_absent_when_no_frame_saw_beam(bundle: Bundle) -> None:
    script = [start(1, 3), *(image(n, pixels=water(0.0)) for n in range(3)), end()]
    samples = Scrapes(bundle, script).run().samples()
    assert "cxls_hit_ratio" not in samples
    assert samples["cxls_frames_processed_total"][("no_beam",)] == 3


def test_the_children_do_not_change_with_the_events(bundle: Bundle) -> None:
    before, after = Scrapes(bundle, []).samples(), Scrapes(bundle, eventful()).run().samples()
    for name, labels in before.items():
        assert set(after[name]) == set(labels), name


def test_the_counts_are_those_of_the_account(bundle: Bundle) -> None:
    scrapes = Scrapes(bundle, eventful()).run()
    samples, account = scrapes.samples(), scrapes.front.account
    assert samples["cxls_frames_announced_total"][()] == account.announced == 34
    assert samples["cxls_frames_received_total"][()] == account.received == 31
    assert samples["cxls_frames_undecodable_total"][("size_mismatch",)] == 1
    assert samples["cxls_frames_dropped_total"][("duplicate",)] == 1
    assert samples["cxls_frames_dropped_total"][("out_of_range",)] == 1
    assert samples["cxls_frames_dropped_total"][("stale_series",)] == 1
    assert samples["cxls_frames_missing_total"] == {("head",): 0, ("gap",): 0, ("tail",): 6}
    assert samples["cxls_messages_invalid_total"][("malformed",)] == 1
    assert samples["cxls_receive_to_result_seconds_count"][()] == 27
    assert samples["cxls_queue_frames"] == {("frames",): 0, ("results",): 0}
    assert samples["cxls_series_begun_total"][()] == 2


@pytest.mark.parametrize("stage", ["decode", "reduce", "infer", "peaks", "publish"])
def test_every_stage_of_a_worker_is_timed(bundle: Bundle, stage: str) -> None:
    samples = Scrapes(bundle, whole_series(4)).run().samples()
    assert samples["cxls_stage_seconds_count"][(stage,)] > 0
    assert samples["cxls_stage_seconds_sum"][(stage,)] > 0


def test_receiving_is_timed(bundle: Bundle) -> None:
    assert Scrapes(bundle, whole_series(4)).run().samples()["cxls_stage_seconds_count"][("receive",)] > 0


def test_the_identity_holds_within_every_scrape(bundle: Bundle) -> None:
    images = [image(n, pixels=BROKEN if n % 7 == 3 else None) for n in range(400)]
    scrapes = Scrapes(bundle, [start(1, 400), *images, image(5), end()], workers=2, batch_frames=3)
    runner = threading.Thread(target=scrapes.run, daemon=True)
    runner.start()
    seen = 0
    while runner.is_alive():
        samples = scrapes.samples()
        parts = ("processed", "dropped", "undecodable")
        settled = sum(sum(samples[f"cxls_frames_{part}_total"].values()) for part in parts)
        queues = samples["cxls_queue_frames"]
        assert all(value >= 0 for value in queues.values())
        assert samples["cxls_frames_received_total"][()] == settled + sum(queues.values())
        seen += 1
    assert seen > 3
    assert scrapes.samples()["cxls_frames_received_total"][()] == 401


def test_promtool_finds_nothing(bundle: Bundle) -> None:
    require("promtool", "prometheus")
    for script in ([], eventful()):
        text = Scrapes(bundle, script).run().text
        lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
        assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")


def test_the_header_of_the_series_is_shown_beside_the_estimate(bundle: Bundle) -> None:
    samples = Scrapes(bundle, whole_series(3)).run().samples()
    assert samples["cxls_photon_energy_electronvolts"][("header",)] == metadata().photon_energy_eV
    assert samples["cxls_camera_length_meters"][("header",)] == metadata().camera_length_m
    assert (
        samples["cxls_photon_energy_electronvolts"][("estimate",)]
        != samples["cxls_photon_energy_electronvolts"][("estimate",)]
    ), "unknown is NaN"


# --- the corrected ratio ----------------------------------------------------------------


def test_without_false_hits_the_estimate_is_the_ratio_within_wilsons_interval() -> None:
    found = corrected_ratio(30, 100, (0.0, 0.0, 0.0))
    assert found["estimate"] == 0.3
    # Wilson's 95 % interval of 30 in 100.
    assert (found["low"], found["high"]) == (pytest.approx(0.2189, abs=1e-3), pytest.approx(0.3958, abs=1e-3))


@pytest.mark.parametrize("counted", [1, 10, 100, 1000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("rate", [(0.0, 0.0, 0.0), (0.01, 0.002, 0.03), (0.5, 0.4, 0.6)])
def test_the_bounds_enclose_the_estimate_and_stay_ratios(
    counted: int, share: float, rate: tuple[float, float, float]
) -> None:
    found = corrected_ratio(round(share * counted), counted, rate)
    rounding = 1e-9
    assert 0 <= found["low"] <= found["estimate"] + rounding
    assert found["estimate"] <= found["high"] + rounding
    assert found["high"] <= 1


def test_false_hits_are_removed() -> None:
    # 20 % crystals, and a tenth of the rest called hits: 0.2 + 0.8 * 0.1.
    assert corrected_ratio(280, 1000, (0.1, 0.1, 0.1))["estimate"] == pytest.approx(0.2)


def test_nothing_but_false_hits_is_no_crystal() -> None:
    assert corrected_ratio(5, 1000, (0.01, 0.005, 0.02))["estimate"] == 0
