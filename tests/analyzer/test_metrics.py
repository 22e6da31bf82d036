"""What Prometheus scrapes: every name of the contract, every label child, one consistent snapshot."""

import re
import subprocess
import threading
import time
from typing import Any

import numpy as np
import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from analyzer.bundle import Bundle
from analyzer.calibration import OperatingPoint, Rate
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.drift import ScoreReference, score_histogram
from analyzer.front import Front, FrontSettings
from analyzer.intervals import wilson
from analyzer.metrics import corrected_ratio, expected_ratio, make_registry
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
    "cxls_peaks_per_frame_count",
    "cxls_saturated_frames_total",
    "cxls_geometry_unfit_frames_total",
    "cxls_sampled_ratio",
    "cxls_device_faults",
)
WITH_DATA = {
    "cxls_hit_ratio": {("100",), ("1000",)},
    "cxls_indexable_ratio": {("100",), ("1000",)},
    "cxls_hit_ratio_corrected": {(b, w) for w in ("100", "1000") for b in ("estimate", "low", "high")},
    "cxls_hit_ratio_expected": {(b, w) for w in ("100", "1000") for b in ("estimate", "low", "high")},
    "cxls_relative_flux_ratio": {()},
    "cxls_hot_pixels": {()},
}


POINT = OperatingPoint(0.5, 0.5, Rate(0.01, 0.002, 0.03))


class Scrapes:
    """A front and its exposition."""

    def __init__(
        self, bundle: Bundle, script: list[Any], workers: int = 1, point: OperatingPoint = POINT, **settings: Any
    ) -> None:
        analysers = [Analyser(bundle, CascadeSettings(threshold=0.5)) for _ in range(workers)]
        self.front = Front(ScriptedSource(script), analysers, [], FrontSettings(**({"block": True} | settings)))
        build = {"version": "1", "bundle": 'quo"te\\n'}
        self.registry = make_registry(self.front, dict, point, build)

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
    # Those without beam have no peaks to count.
    assert samples["cxls_peaks_per_frame_count"][()] == 24
    assert samples["cxls_saturated_frames_total"][()] == 0


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
        # A scrape that follows the last at once would leave the workers no time under one interpreter's lock.
        time.sleep(0.01)
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


# --- the scores -------------------------------------------------------------------------


def drifts(bundle: Bundle, scores: list[float], reference: list[int]) -> dict[tuple[str, ...], float]:
    """What is shown of a run of these scores beside references that are this histogram."""
    references = dict.fromkeys(("bundle", "calibration"), ScoreReference(tuple(reference)))
    scrapes = Scrapes(bundle, [], point=OperatingPoint(1.0, 0.5, Rate(0.0, 0.0, 0.1), references))
    for n, score in enumerate(scores):
        scrapes.front.running.scores.add(n, score)
    return scrapes.samples().get("cxls_score_drift_ratio", {})


def test_drift_is_shown_for_every_reference_there_is(bundle: Bundle) -> None:
    scores = np.random.default_rng(0).uniform(0.01, 0.4, 400).tolist()
    assert drifts(bundle, scores, []) == {}
    same, other = (drifts(bundle, scores, score_histogram(of)) for of in (scores, np.full(400, 0.999)))
    assert same == {("bundle",): pytest.approx(0, abs=1e-6), ("calibration",): pytest.approx(0, abs=1e-6)}
    assert other == {("bundle",): pytest.approx(1, abs=1e-6), ("calibration",): pytest.approx(1, abs=1e-6)}


def test_the_expected_ratio_is_absent_for_few_frames(bundle: Bundle) -> None:
    assert "cxls_hit_ratio_expected" not in Scrapes(bundle, whole_series(10)).run().samples()
    found = Scrapes(bundle, whole_series(50)).run().samples()["cxls_hit_ratio_expected"]
    assert 0 <= found["low", "100"] <= found["estimate", "100"] <= found["high", "100"] <= 1


def test_beside_a_blank_run_faint_crystals_count_whatever_the_scale_of_the_scores() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        blank = rng.uniform(0.2, 0.4, 1000)
        level = float(np.quantile(blank, 0.9))
        rate = Rate(float((blank >= level).mean()), *wilson(int((blank >= level).sum()), 1000))
        point = OperatingPoint(0.99, 0.5, Rate(0.0, 0.0, 0.01), {}, (level, rate))
        run = np.concatenate([rng.uniform(0.2, 0.4, 900), rng.uniform(0.5, 0.9, 100)])
        found = expected_ratio(run, point)
        assert found is not None
        covered += found[1] <= 0.1 <= found[2]
    assert covered >= 186
    uncalibrated = expected_ratio(run, POINT)
    assert uncalibrated is not None
    assert uncalibrated[0] != pytest.approx(0.1, abs=0.03)


# --- the corrected ratio ----------------------------------------------------------------

NO_FALSE_HITS = Rate(0.0, 0.0, 0.0)


@pytest.mark.parametrize("hit_share", [0.0, 0.01, 0.1, 0.5])
@pytest.mark.parametrize(
    ("window", "blanks", "false_hits"), [(100, 600, 0.005), (1000, 600, 0.005), (1000, 3000, 0.02)]
)
def test_the_interval_covers_the_share_of_crystals(
    hit_share: float, window: int, blanks: int, false_hits: float
) -> None:
    rng = np.random.default_rng(4)
    runs, covered = 600, 0
    for _ in range(runs):
        by_mistake = int(rng.binomial(blanks, false_hits))
        rate = Rate(by_mistake / blanks, *wilson(by_mistake, blanks))
        hits = int(rng.binomial(window, hit_share + (1 - hit_share) * false_hits))
        found = corrected_ratio(hits, window, rate)
        covered += found["low"] <= hit_share <= found["high"]
    assert covered / runs >= 0.93


def test_the_interval_covers_what_a_known_recall_lets_through() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(600):
        found_hits = int(rng.binomial(400, 0.8))
        recall = Rate(found_hits / 400, *wilson(found_hits, 400))
        hits = int(rng.binomial(1000, 0.2 * 0.8 + 0.8 * 0.01))
        found = corrected_ratio(hits, 1000, Rate(0.01, 0.01, 0.01), recall)
        covered += found["low"] <= 0.2 <= found["high"]
    assert covered / 600 >= 0.93


def test_an_interval_of_false_hits_widens_that_of_the_ratio() -> None:
    sure, unsure = (corrected_ratio(30, 1000, rate) for rate in (Rate(0.01, 0.01, 0.01), Rate(0.01, 0.0, 0.05)))
    assert unsure["low"] < sure["low"]
    assert unsure["high"] > sure["high"]


def test_fewer_hits_than_false_ones_leave_room_for_some_crystals() -> None:
    found = corrected_ratio(0, 100, Rate(0.05, 0.02, 0.1))
    assert found["low"] == found["estimate"] == 0
    assert 0.01 < found["high"] < 0.1


def test_an_unknown_rate_of_false_hits_leaves_no_lower_bound() -> None:
    found = corrected_ratio(300, 1000, Rate(0.0, 0.0, 1.0))
    assert (found["low"], found["estimate"]) == (0.0, 0.3)


def test_without_false_hits_the_estimate_is_the_ratio_within_wilsons_interval() -> None:
    found = corrected_ratio(30, 100, NO_FALSE_HITS)
    assert found["estimate"] == 0.3
    # Wilson's 95 % interval of 30 in 100.
    assert (found["low"], found["high"]) == (pytest.approx(0.2189, abs=1e-3), pytest.approx(0.3958, abs=1e-3))


@pytest.mark.parametrize("counted", [1, 10, 100, 1000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("rate", [(0.0, 0.0, 0.0), (0.01, 0.002, 0.03), (0.5, 0.4, 0.6), (0.0, 0.0, 1.0), (1, 1, 1)])
@pytest.mark.parametrize("recall", [(1.0, 1.0, 1.0), (0.8, 0.7, 0.9), (0.0, 0.0, 0.1)])
def test_the_bounds_enclose_the_estimate_and_stay_ratios(
    counted: int, share: float, rate: tuple[float, float, float], recall: tuple[float, float, float]
) -> None:
    found = corrected_ratio(round(share * counted), counted, Rate(*rate), Rate(*recall))
    rounding = 1e-9
    assert 0 <= found["low"] <= found["estimate"] + rounding
    assert found["estimate"] <= found["high"] + rounding
    assert found["high"] <= 1


def test_false_hits_are_removed() -> None:
    # 20 % crystals, and a tenth of the rest called hits: 0.2 + 0.8 * 0.1.
    assert corrected_ratio(280, 1000, Rate(0.1, 0.1, 0.1))["estimate"] == pytest.approx(0.2)


def test_nothing_but_false_hits_is_no_crystal() -> None:
    assert corrected_ratio(5, 1000, Rate(0.01, 0.005, 0.02))["estimate"] == 0
