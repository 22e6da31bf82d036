"""What Prometheus scrapes: every name of the contract, every label child, one consistent snapshot."""

import math
import re
import subprocess
import threading
import time
from collections.abc import Sequence
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
from tests.analyzer.builders import (
    BROKEN,
    SHAPE,
    Collector,
    ScriptedSource,
    end,
    frame,
    image,
    metadata,
    start,
    water,
    whole_series,
    with_spots,
)
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
    "cxls_stream_oddities_total": (
        "kind",
        {"repeated_start", "repeated_end", "late_image", "clock_back", "clock_jump", "pause"},
    ),
    "cxls_photon_energy_electronvolts": ("statistic", {"estimate", "sigma", "header"}),
    "cxls_camera_length_meters": ("statistic", {"estimate", "sigma", "header"}),
    "cxls_stage_seconds_count": ("stage", {"receive", "decode", "reduce", "infer", "peaks", "publish"}),
    "cxls_queue_frames": ("queue", {"frames", "results"}),
    "cxls_queue_capacity_frames": ("queue", {"frames"}),
    "cxls_queue_bytes": ("queue", {"frames"}),
    "cxls_queue_capacity_bytes": ("queue", {"frames"}),
    "cxls_series_ended_total": (
        "why",
        {"end message", "last announced image", "new start", "another series runs", "source ended"},
    ),
    "cxls_collected_total": ("of", {"hits", "indexable"}),
    "cxls_worker_busy_seconds_total": ("worker", {"0"}),
    "cxls_worker_frames_total": ("worker", {"0"}),
}
WITHOUT_LABELS = (
    "cxls_frames_announced_total",
    "cxls_frames_received_total",
    "cxls_receive_to_result_seconds_count",
    "cxls_build_info",
    "cxls_peaks_per_frame_count",
    "cxls_saturated_frames_total",
    "cxls_geometry_unfit_frames_total",
    "cxls_mask_unfit_frames_total",
    "cxls_sampled_ratio",
    "cxls_unserved_seconds",
    "cxls_device_faults",
    "cxls_series_open",
    "cxls_detector_frame_rate_hertz",
    "cxls_sender_waits",
    "cxls_backpressure_seconds_total",
    "cxls_batch_frames_count",
    "cxls_hit_probability_count",
    "cxls_decoded_bytes_total",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
)
WITH_DATA = {
    "cxls_hit_ratio": {("100",), ("1000",)},
    "cxls_indexable_ratio": {("100",), ("1000",)},
    "cxls_hit_ratio_corrected": {(b, w) for w in ("100", "1000") for b in ("estimate", "low", "high")},
    "cxls_hit_ratio_expected": {(b, w) for w in ("100", "1000") for b in ("estimate", "low", "high")},
    "cxls_relative_flux_ratio": {()},
    "cxls_hot_pixels": {()},
    "cxls_background_photons": {()},
    "cxls_last_frame_timestamp_seconds": {()},
    "cxls_last_result_timestamp_seconds": {()},
    "cxls_last_beam_timestamp_seconds": {()},
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
    assert samples["cxls_hit_probability_count"][()] == 24
    assert samples["cxls_worker_frames_total"] == {("0",): 28}
    # The one that did not decode gave no pixels.
    assert samples["cxls_decoded_bytes_total"][()] == 27 * SHAPE[0] * SHAPE[1] * 2


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


def test_what_waits_for_publication_is_counted_in_images(bundle: Bundle) -> None:
    go_on, blocks = threading.Event(), threading.Event()

    class Slow(Collector):
        def write(self, results: Sequence[Any]) -> None:
            blocks.set()
            go_on.wait(20)
            super().write(results)

    scrapes = Scrapes(bundle, whole_series(40), batch_frames=8)
    scrapes.front.sinks.append(Slow())
    runner = threading.Thread(target=scrapes.run, daemon=True)
    runner.start()
    assert blocks.wait(20)
    deadline = time.monotonic() + 20
    # All but the batch in the publisher's hand.
    while scrapes.front.results_waiting + 8 < 40 and time.monotonic() < deadline:
        time.sleep(0.02)
    waiting = scrapes.samples()["cxls_queue_frames"][("results",)]
    go_on.set()
    runner.join(20)
    assert 40 - 8 <= waiting < 40
    assert scrapes.samples()["cxls_queue_frames"][("results",)] == 0


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


# --- series, queue and workers ----------------------------------------------------------


def test_a_series_is_counted_by_what_ended_it(bundle: Bundle) -> None:
    joined = [image(n, 3) for n in range(3)]
    script = [
        *whole_series(2),
        start(2, 9),
        start(4, 9),
        *joined,
        *whole_series(2, 5)[:-1],
        1.2,
        lambda: None,
        start(6),
    ]
    ended = Scrapes(bundle, script).run().samples()["cxls_series_ended_total"]
    assert ended == {
        ("end message",): 1,
        ("new start",): 2,
        ("another series runs",): 1,
        ("last announced image",): 1,
        ("source ended",): 1,
    }


def test_a_series_is_open_from_its_start_to_its_end(bundle: Bundle) -> None:
    seen: list[float] = []
    script: list[Any] = []
    scrapes = Scrapes(bundle, [])

    def look() -> None:
        seen.append(scrapes.samples()["cxls_series_open"][()])

    script += [look, start(1, 2), look, image(0), look, image(1), end(), look, start(2, 1), look, start(3, 1), look]
    scrapes.front.source = ScriptedSource(script)
    scrapes.run()
    assert seen == [0, 1, 1, 0, 1, 1]
    assert scrapes.samples()["cxls_series_open"][()] == 0


@pytest.mark.parametrize(("period_s", "rate"), [(0.002, 500.0), (None, math.nan), (0.0, math.nan), (-1.0, math.nan)])
def test_the_detectors_rate_is_what_its_header_promises(bundle: Bundle, period_s: float | None, rate: float) -> None:
    samples = Scrapes(bundle, [start(1, 1, frame_time_s=period_s), image(0), end()]).run().samples()
    assert samples["cxls_detector_frame_rate_hertz"][()] == pytest.approx(rate, nan_ok=True)


def test_times_of_the_last_image_result_and_beam_follow_each_other(bundle: Bundle) -> None:
    began = time.time()
    dark = [image(n, pixels=water(0.0)) for n in (1, 2)]
    script = [start(1, 3), image(0), 0.3, *dark, end()]
    samples = Scrapes(bundle, script).run().samples()
    frame, result, beam = (samples[f"cxls_last_{what}_timestamp_seconds"][()] for what in ("frame", "result", "beam"))
    assert began <= beam < frame <= result <= time.time()
    assert result - beam > 0.2


def test_without_beam_there_is_no_time_of_it(bundle: Bundle) -> None:
    samples = Scrapes(bundle, [start(1, 1), image(0, pixels=water(0.0)), end()]).run().samples()
    assert "cxls_last_result_timestamp_seconds" in samples
    assert "cxls_last_beam_timestamp_seconds" not in samples
    assert samples["cxls_hit_probability_count"][()] == 0


def test_a_reset_keeps_what_prometheus_counts(bundle: Bundle) -> None:
    scrapes = Scrapes(bundle, eventful()).run()
    before = scrapes.samples()
    scrapes.front.running.reset()
    scrapes.front.products.reset()
    after = scrapes.samples()
    assert "cxls_background_photons" not in after
    for name in before:
        if name.startswith("cxls_") and name.endswith(("_total", "_count", "_sum", "_bucket", "_timestamp_seconds")):
            assert after[name] == before[name], name


def test_the_queue_says_how_much_it_holds_and_could_hold(bundle: Bundle) -> None:
    scrapes = Scrapes(bundle, [], ring_bytes=1 << 20, ring_frames=7)
    kept = frame(water(0.05))
    assert scrapes.front.ring.put(kept)
    samples = scrapes.samples()
    assert samples["cxls_queue_capacity_frames"] == {("frames",): 7}
    assert samples["cxls_queue_capacity_bytes"] == {("frames",): 1 << 20}
    assert samples["cxls_queue_bytes"] == {("frames",): kept.held_bytes}


@pytest.mark.parametrize("block", [True, False])
def test_the_reader_waits_for_room_only_where_it_blocks(bundle: Bundle, block: bool) -> None:
    scrapes = Scrapes(bundle, whole_series(60), block=block, ring_frames=1, batch_frames=1)
    samples = scrapes.run().samples()
    waited, dropped = samples["cxls_backpressure_seconds_total"][()], samples["cxls_frames_dropped_total"]
    assert (waited > 0) == block
    assert samples["cxls_sender_waits"][()] == block
    assert (dropped["queue_full",] > 0) != block


def test_every_worker_is_there_and_together_they_took_every_image(bundle: Bundle) -> None:
    before = Scrapes(bundle, [], workers=3).samples()
    assert before["cxls_worker_busy_seconds_total"] == {("0",): 0, ("1",): 0, ("2",): 0}
    samples = Scrapes(bundle, whole_series(50), workers=3).run().samples()
    assert sum(samples["cxls_worker_frames_total"].values()) == 50
    assert sum(samples["cxls_worker_busy_seconds_total"].values()) > 0


def test_batches_are_counted_by_their_size(bundle: Bundle) -> None:
    samples = Scrapes(bundle, whole_series(50), workers=2, batch_frames=8, batch_linger_s=0.2).run().samples()
    cumulative = samples["cxls_batch_frames_bucket"]
    assert samples["cxls_batch_frames_sum"][()] == 50
    assert cumulative["+Inf",] == cumulative["8",] == samples["cxls_batch_frames_count"][()] >= 50 / 8
    assert list(cumulative.values()) == sorted(cumulative.values())


def test_probabilities_fall_into_buckets_that_are_finer_at_both_ends(bundle: Bundle) -> None:
    scrapes = Scrapes(bundle, [])
    scrapes.front.running.hit_probabilities.observe([0.0, 0.0005, 0.15, 0.5, 0.9995, 1.0])
    cumulative = scrapes.samples()["cxls_hit_probability_bucket"]
    assert {edge: cumulative[edge,] for edge in ("0.001", "0.1", "0.2", "0.5", "0.999", "1.0", "+Inf")} == {
        "0.001": 2, "0.1": 2, "0.2": 3, "0.5": 4, "0.999": 4, "1.0": 6, "+Inf": 6,
    }  # fmt: skip


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
