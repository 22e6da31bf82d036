"""Calibrations: the threshold that a blank run supports, its rates, its file and who may use it."""

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from analyzer.bundle import DEFAULT_BUNDLE, BadBundle, Bundle, HitCard, load_bundle
from analyzer.calibration import (
    FEWEST_FRAMES,
    LOWEST_THRESHOLD,
    UNKNOWN_RATE,
    BadCalibration,
    Calibration,
    Rate,
    choose_threshold,
    load_calibration,
    operating_point,
    save_calibration,
)
from analyzer.drift import SCORE_BINS, score_histogram
from analyzer.intervals import wilson
from analyzer.metrics import corrected_ratio
from analyzer.results import HitRule

RULES = tuple(HitRule)
CONTENTS = ("salt", "ice", "lipid", "polymer")


def calibration(**changes: Any) -> Calibration:
    frames = np.arange(1000)
    facts: dict[str, Any] = {
        "format": 1, "bundle": "random-0123", "prior": 0.5, "threshold": 0.7, "false_hits": 0.005,
        "false_hits_asked": 0.005, "probabilities": (frames / 2000).tolist(),
        "peak_counts": (frames // 995 * 6).tolist(),
    }  # fmt: skip
    return Calibration(**(facts | changes))


def card(**changes: Any) -> HitCard:
    facts: dict[str, Any] = {"network": "n", "weights": "w.safetensors", "sha256": "0", "threshold": 0.6}
    return HitCard(**(facts | changes))


# --- the threshold ----------------------------------------------------------------------


@pytest.mark.parametrize("asked", [0.003, 0.01, 0.1])
def test_fresh_frames_are_called_hits_as_rarely_as_asked(asked: float) -> None:
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(300):
        chosen = choose_threshold(rng.uniform(0.1, 0.9, 1000), asked, 0.5)
        assert chosen.supported
        rates.append((0.9 - chosen.threshold) / 0.8)
    assert np.mean(rates) == pytest.approx(asked, rel=0.12)
    assert np.mean(rates) <= asked * 1.05


def test_fewer_frames_than_three_over_the_rate_set_only_what_they_support() -> None:
    scores = np.linspace(0.1, 0.4, 100)
    chosen = choose_threshold(scores, 0.005, 0.2)
    assert not chosen.supported
    assert chosen.false_hits == 0.03
    assert np.sum(scores >= chosen.threshold) == 2


def test_an_unsupported_rate_never_lowers_the_bundles_threshold() -> None:
    assert choose_threshold(np.full(100, 0.1), 0.005, 0.6).threshold == 0.6
    assert choose_threshold(np.full(1000, 0.1), 0.005, 0.6).threshold == pytest.approx(0.100001)


def test_a_threshold_stays_where_a_frame_may_be_a_hit() -> None:
    assert choose_threshold(np.zeros(1000), 0.01, 0.5).threshold == LOWEST_THRESHOLD


def test_certain_scores_leave_a_threshold_of_one() -> None:
    assert choose_threshold(np.ones(1000), 0.01, 0.5).threshold == 1.0


def test_equal_scores_are_all_called_or_none() -> None:
    chosen = choose_threshold(np.repeat([0.2, 0.8], [900, 100]), 0.05, 0.5)
    assert chosen.threshold == pytest.approx(0.800001)


# --- rates ------------------------------------------------------------------------------


def test_the_interval_of_the_set_threshold_covers_the_true_rate() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        scores = np.round(rng.uniform(0.1, 0.9, 700), 6)
        chosen = choose_threshold(scores, 0.01, 0.5)
        blank = calibration(
            probabilities=scores.tolist(), peak_counts=[0] * 700, threshold=chosen.threshold, false_hits=0.01
        )
        rate = blank.false_hits_of(HitRule.NETWORK, 5, chosen.threshold)
        covered += rate.low <= (0.9 - chosen.threshold) / 0.8 <= rate.high
    assert covered >= 279


@pytest.mark.parametrize("bundle_threshold", [0.3, 0.77])
def test_a_threshold_that_no_score_chose_has_the_rate_that_was_counted(bundle_threshold: float) -> None:
    low = np.linspace(0.001, 0.04, 100)
    chosen = choose_threshold(low, 0.005, bundle_threshold)
    assert chosen.threshold == bundle_threshold
    blank = calibration(probabilities=low.tolist(), peak_counts=[0] * 100, threshold=chosen.threshold)
    assert blank.false_hits_of(HitRule.NETWORK, 5, chosen.threshold) == Rate(0.0, *wilson(0, 100))
    floor = choose_threshold(np.full(1000, 0.01), 0.005, bundle_threshold).threshold
    assert floor == LOWEST_THRESHOLD
    blank = calibration(probabilities=[0.01] * 1000, threshold=floor)
    assert blank.false_hits_of(HitRule.NETWORK, 5, floor) == Rate(0.0, *wilson(0, 1000))
    own = choose_threshold(np.linspace(0.1, 0.9, 1000), 0.005, bundle_threshold).threshold
    blank = calibration(probabilities=np.linspace(0.1, 0.9, 1000).tolist(), threshold=own)
    assert blank.false_hits_of(HitRule.NETWORK, 5, own).estimate == 5 / 1001


def test_every_rule_has_its_own_false_hits() -> None:
    blank = calibration()
    rates = {rule: blank.false_hits_of(rule, 5, 0.4).estimate for rule in RULES}
    assert rates == {HitRule.NETWORK: 0.2, HitRule.PEAKS: 0.005, HitRule.EITHER: 0.2, HitRule.BOTH: 0.005}
    assert blank.false_hits_of(HitRule.PEAKS, 7, 0.4).estimate == 0


# --- the operating point ----------------------------------------------------------------


def test_the_command_line_wins_over_the_calibration_and_that_over_the_bundle() -> None:
    assert operating_point(card()).threshold == 0.6
    assert operating_point(card(), calibration=calibration()).threshold == 0.7
    assert operating_point(card(), threshold=0.3, calibration=calibration()).threshold == 0.3


def test_the_bundles_rate_holds_at_its_own_threshold_only() -> None:
    measured = card(performance={"false_hit_rate": [0.01, 0.005, 0.02]})
    assert operating_point(measured).false_hits == Rate(0.01, 0.005, 0.02)
    assert operating_point(measured, threshold=0.5).false_hits == UNKNOWN_RATE
    assert operating_point(measured, HitRule.BOTH).false_hits == Rate(0.0, 0.0, 0.02, spans=True)
    for rule in (HitRule.PEAKS, HitRule.EITHER):
        assert operating_point(measured, rule).false_hits == UNKNOWN_RATE


def test_a_reference_tells_the_rate_at_any_threshold() -> None:
    scores = [0.1] * 990 + [0.97] * 10
    point = operating_point(card(score_reference_empties=score_histogram(scores)), threshold=0.9)
    assert point.false_hits.estimate == 0.01
    assert point.false_hits.low < 0.01 < point.false_hits.high
    assert set(point.references) == {"bundle"}


def test_the_shipped_bundles_rate_is_that_on_water_and_spans_to_distracted_frames() -> None:
    shipped = load_bundle(DEFAULT_BUNDLE).card.hit
    rate = operating_point(shipped).false_hits
    rows = {row["set"]: row for row in shipped.performance["rows"]}
    assert rate.spans
    assert rate.estimate == rows["with water"]["false_hits"]
    assert rate.low == pytest.approx(rows["with water"]["false_hits_interval"][0])
    assert rate.high == pytest.approx(max(rows[f"with {name}"]["false_hits_interval"][1] for name in CONTENTS))
    rates = [operating_point(shipped, threshold=t).false_hits for t in (0.95, shipped.threshold, 0.6, 0.3, 0.0)]
    assert [r.estimate for r in rates] == sorted(r.estimate for r in rates)
    assert all(0 <= r.low <= r.estimate <= r.high <= 1 and r.spans for r in rates)
    assert rates[0].low == 0
    assert rates[-1].estimate == 1


@pytest.mark.parametrize(
    "rows",
    [
        None,
        "x",
        [1],
        [{"set": "with water"}],
        [{"set": "all", "empties_called_hit": "a", "empties_passed": 1}],
        [{"set": "with water", "empties_called_hit": 1e308, "empties_passed": 1e308}],
        [
            {"set": "with water", "empties_called_hit": 1, "empties_passed": 1e307},
            {"set": "all", "empties_called_hit": 1, "empties_passed": 1},
        ],
    ],
)
def test_rows_of_another_shape_in_a_card_say_nothing_of_its_rate(rows: Any) -> None:
    performance = {"false_hit_rate": [0.01, 0.005, 0.02], "rows": rows}
    assert operating_point(card(performance=performance)).false_hits == Rate(0.01, 0.005, 0.02)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("false_hits", [0.003, 0.004, 0.016, 0.04, 0.07])
def test_without_a_calibration_the_corrected_ratio_covers_the_truth_whatever_the_jet_shows(
    share: float, false_hits: float
) -> None:
    rate = operating_point(load_bundle(DEFAULT_BUNDLE).card.hit).false_hits
    rng = np.random.default_rng(1)
    crystals = rng.binomial(1000, share, 400)
    called = crystals + rng.binomial(1000 - crystals, false_hits)
    found = [corrected_ratio(int(hits), 1000, rate) for hits in called]
    assert np.mean([each["low"] <= share <= each["high"] for each in found]) >= 0.95
    if false_hits == 0.004:
        assert np.mean([each["estimate"] for each in found]) == pytest.approx(share, abs=0.002)


@pytest.mark.parametrize("rate", ["0.1", [0.1], None, {"a": 1}, [2, 3, 4], ["a", "b", "c"], [0.5, 0.1, 0.4]])
def test_a_rate_of_another_shape_in_a_card_is_refused(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"hit\.performance\.false_hit_rate is .*; give estimate, low and high end"):
        card(performance={"false_hit_rate": rate})


def test_a_calibration_measures_the_rate_at_any_threshold() -> None:
    point = operating_point(card(), threshold=0.4, calibration=calibration())
    assert point.false_hits.estimate == 0.2
    assert set(point.references) == {"calibration"}


# --- the card ---------------------------------------------------------------------------


def test_a_card_with_a_score_histogram_of_another_length_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    for path in bundle_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found = msgspec.json.decode((tmp_path / "bundle.json").read_bytes())
    found["hit"]["score_reference_empties"] = [1, 2, 3]
    (tmp_path / "bundle.json").write_bytes(msgspec.json.encode(found))
    with pytest.raises(BadBundle, match=f"score histogram of empties: 3 values, expected {SCORE_BINS}"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("hit.threshold", 2), ("hit.threshold", -1), ("hit.temperature", 0), ("hit.temperature", -1), ("hit.prior", 0),
        ("hit.prior", 1), ("hit.prior", -1), ("hit.bias", 1e308), ("hit.score_reference_hits", [2**62] * SCORE_BINS),
        ("hit.performance.false_hit_rate", [2, 3, 4]), ("hit.performance.false_hit_rate", ["a", "b", "c"]),
        ("parameters.sigma_scale", [0, 1, 1]), ("reference_background_photons_per_pixel", 0), ("no_beam_photons", -1),
        ("name", "a\n\x1b[31m"), ("name", ""), ("name", "x" * 300), ("description", "a\tb"),
    ],
)  # fmt: skip
def test_a_card_that_makes_no_sense_is_refused_by_file_field_and_value(
    bundle_folder: Path, tmp_path: Path, place: str, value: object
) -> None:
    for path in bundle_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found = msgspec.json.decode((tmp_path / "bundle.json").read_bytes())
    *folders, name = place.split(".")
    part = found
    for each in folders:
        part = part.setdefault(each, {})
    part[name] = value
    (tmp_path / "bundle.json").write_bytes(msgspec.json.encode(found))
    with pytest.raises(BadBundle) as refused:
        load_bundle(tmp_path)
    said = str(refused.value)
    assert said.isprintable()
    assert said.startswith(f"{tmp_path / 'bundle.json'}: not a bundle card: {place} is ")


def test_a_number_that_is_none_in_a_card_is_refused_in_one_line(bundle_folder: Path, tmp_path: Path) -> None:
    card_of = (bundle_folder / "bundle.json").read_text()
    assert '"threshold"' in card_of
    for number in ("NaN", "1e999", "Infinity"):
        text = re.sub(r'"temperature": [0-9.e-]+', f'"temperature": {number}', card_of, count=1)
        (tmp_path / "bundle.json").write_text(text)
        with pytest.raises(BadBundle, match=r"bundle\.json: not a bundle card: [^\n]+$"):
            load_bundle(tmp_path)


def test_a_card_without_score_histograms_is_good(bundle: Bundle) -> None:
    assert bundle.card.hit.score_reference_empties == []


# --- the file ---------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = calibration(sources=["tcp://a:1"], mask="none", warnings=["few"])
    save_calibration(saved, tmp_path / "c.json")
    assert load_calibration(tmp_path / "c.json", "random-0123") == saved
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_a_calibration_of_another_bundle_is_refused_by_name(tmp_path: Path) -> None:
    save_calibration(calibration(), tmp_path / "c.json")
    with pytest.raises(BadCalibration, match=r"c\.json: made with bundle random-0123, this run uses other-9"):
        load_calibration(tmp_path / "c.json", "other-9")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": None}, "threshold"),
        ({"probabilities": [2.0] * 1000}, "probabilities"),
        ({"peak_counts": [-1] * 1000}, "peak_counts"),
        ({"peak_counts": [1]}, "1000 probabilities and 1 peak counts"),
        ({"probabilities": [0.1] * 3, "peak_counts": [0] * 3}, f"at least {FEWEST_FRAMES}"),
        ({"colour": "red"}, "colour"),
        ({"format": 9}, "format 9"),
    ],
)
def test_a_senseless_calibration_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    values = msgspec.to_builtins(calibration()) | changes
    (tmp_path / "c.json").write_bytes(msgspec.json.encode(values))
    with pytest.raises(BadCalibration, match=rf"c\.json.*{text}"):
        load_calibration(tmp_path / "c.json", "random-0123")


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", b"[]", b'{"format": 1}'])
def test_what_is_no_calibration_is_refused_in_one_line(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "c.json").write_bytes(raw)
    with pytest.raises(BadCalibration, match=r"c\.json") as refused:
        load_calibration(tmp_path / "c.json", "random-0123")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["absent.json", "", "/dev/zero"])
def test_no_file_a_folder_and_a_device_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadCalibration):
        load_calibration(tmp_path / name, "random-0123")
