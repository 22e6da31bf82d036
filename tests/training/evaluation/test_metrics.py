"""Figures of a score: the curve, intervals that count crystals, rates."""

import numpy as np
import pytest

from training.evaluation.metrics import (
    Ranking,
    Sample,
    area,
    area_difference,
    balanced_estimate,
    best_balanced,
    draws,
    number_groups,
    of_curve,
    rate,
    recall_at,
    recall_estimate,
    wilson_share,
)
from training.statistics import area_under_curve


def sample(hits: list[float], empties: list[float], groups: list[int] | None = None, threshold: float = 0.5) -> Sample:
    score = np.array(hits + empties)
    positive = np.arange(len(score)) < len(hits)
    group = np.arange(len(score)) if groups is None else np.array(groups)
    return Sample(positive, score, group, score >= threshold)


def curve(of: Sample):  # type: ignore[no-untyped-def]
    return Ranking(of).curve(np.ones(len(of.score)))


def test_the_area_is_that_of_mann_and_whitney_ties_and_all() -> None:
    rng = np.random.default_rng(1)
    score = rng.integers(0, 8, 200).astype(float)
    positive = rng.random(200) < 0.4
    pairs = score[positive][:, None] - score[~positive][None]
    expected = (pairs > 0).mean() + 0.5 * (pairs == 0).mean()
    of = Sample(positive, score, np.arange(200))
    assert area(curve(of)) == pytest.approx(expected)
    assert area_under_curve(score, positive) == pytest.approx(expected)


def test_a_weight_is_a_frame_that_often() -> None:
    rng = np.random.default_rng(2)
    score, positive, times = rng.normal(size=30), rng.random(30) < 0.5, rng.integers(0, 4, 30)
    weighted = Ranking(Sample(positive, score, np.arange(30))).curve(times.astype(float))
    repeated = Sample(np.repeat(positive, times), np.repeat(score, times), np.arange(int(times.sum())))
    assert area(weighted) == pytest.approx(area(curve(repeated)))
    assert recall_at(weighted, 0.2) == pytest.approx(recall_at(curve(repeated), 0.2))


def test_recall_at_a_false_rate_never_lets_more_empties_through() -> None:
    of = sample([0.9, 0.8, 0.3, 0.1], [0.5, 0.2, 0.05, 0.01])
    assert recall_at(curve(of), 0.0) == 0.5
    assert recall_at(curve(of), 0.24) == 0.5
    assert recall_at(curve(of), 0.25) == 0.75
    assert recall_at(curve(sample([0.5, 0.9], [0.5, 0.1])), 0.0) == 0.5, "a tie is not above"


def test_a_difference_of_areas_is_drawn_in_pairs() -> None:
    rng = np.random.default_rng(4)
    score, positive, group = rng.normal(size=200), np.arange(200) < 100, np.arange(200)
    score[:100] += 1.0
    one = Sample(positive, score, group)
    other = Sample(positive, score + 0.2 * rng.normal(size=200), group)
    difference, alone = area_difference(one, other), of_curve(one, area)
    assert difference.value == pytest.approx(area(curve(one)) - area(curve(other)))
    assert difference.high is not None
    assert difference.low is not None
    assert alone.high is not None
    assert alone.low is not None
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)


def test_too_few_empties_for_a_false_rate_are_named() -> None:
    of = sample([0.9] * 6, [0.1] * 50)
    assert "none of 50 empties" in recall_estimate(of, 0.01).note
    assert recall_estimate(sample([0.9] * 6, [0.1] * 100), 0.01).note == ""


def test_draws_take_whole_crystals() -> None:
    of = sample([0.1] * 6, [0.2] * 4, groups=[0, 0, 0, 1, 1, 1, 2, 3, 4, 5])
    for weight in draws(of, 20):
        assert weight[:6].sum() == 6
        assert len(set(weight[:3])) == 1
        assert len(set(weight[3:6])) == 1
        assert weight[6:].sum() == 4


def test_an_interval_of_crystals_is_wider_than_one_of_frames() -> None:
    rng = np.random.default_rng(3)
    brightness = np.repeat(rng.normal(1.0, 1.0, 12), 10)
    hits = (brightness + 0.1 * rng.normal(size=120)).tolist()
    empties = rng.normal(0.0, 1.0, 120).tolist()
    by_crystal = of_curve(sample(hits, empties, [*np.repeat(np.arange(12), 10), *range(12, 132)]), area)
    by_frame = of_curve(sample(hits, empties), area)
    assert by_crystal.value == by_frame.value
    assert by_crystal.low is not None
    assert by_crystal.high is not None
    assert by_frame.low is not None
    assert by_frame.high is not None
    assert by_crystal.high - by_crystal.low > 1.5 * (by_frame.high - by_frame.low)
    assert by_crystal.low < by_crystal.value < by_crystal.high


def test_few_crystals_have_no_interval() -> None:
    estimate = of_curve(sample([0.9] * 20, [0.1] * 20, [0] * 10 + [1] * 10 + list(range(2, 22))), area)
    assert (estimate.value, estimate.low, estimate.high) == (1.0, None, None)


def test_draws_that_are_all_alike_have_no_interval() -> None:
    estimate = of_curve(sample([0.9] * 20, [0.1] * 20), area)
    assert (estimate.value, estimate.low, estimate.high) == (1.0, None, None)


def test_a_rate_counts_its_groups_as_trials() -> None:
    called = np.array([True] * 10 + [False] * 10)
    alone, paired = rate(called, np.arange(20)), rate(called, np.arange(20) // 2)
    assert alone.value == paired.value == 0.5
    assert paired.high - paired.low > alone.high - alone.low  # type: ignore[operator]
    assert "no such frame" in rate(np.zeros(0, bool), np.zeros(0, int)).note


def test_a_share_of_no_whole_number_widens_both_ways() -> None:
    low, high = wilson_share(0.55, 10)
    assert low == wilson_share(0.5, 10)[0]
    assert high == wilson_share(0.6, 10)[1]


def test_balanced_accuracy_is_of_what_was_called() -> None:
    of = sample([0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.1, 0.9])
    assert balanced_estimate(of).value == pytest.approx((0.5 + 0.75) / 2)
    assert best_balanced(curve(of)) >= balanced_estimate(of).value


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Sample(np.array([True]), np.array([np.nan]), np.array([0]))


def test_groups_are_numbered_by_name() -> None:
    assert number_groups(["b", "a", "b"]).tolist() == [1, 0, 1]
