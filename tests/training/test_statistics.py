"""Intervals and curves against values worked out by hand."""

import numpy as np
import pytest

from analyzer.intervals import wilson
from training.statistics import area_under_curve, confusion


def test_wilson_matches_its_formula_at_known_points() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)


def test_area_is_the_chance_that_a_positive_scores_higher() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8, 0.35])
    positive = np.array([False, False, True, True, True])
    # Pairs: (.35 > .1), (.35 < .4), (.8 > both), (.35 > .1), (.35 < .4): 4 of 6.
    assert area_under_curve(scores, positive) == pytest.approx(4 / 6)
    assert area_under_curve(np.zeros(4), np.array([True, False, True, False])) == pytest.approx(0.5)
    assert area_under_curve(np.zeros(2), np.array([True, True])) is None


def test_confusion_counts_add_up() -> None:
    counts = confusion(np.array([True, True, False, False]), np.array([True, False, True, False]))
    assert counts == {"hits_found": 1, "hits_missed": 1, "empties_called_hit": 1, "empties_passed": 1}


def test_wilson_holds_the_proportion_itself_at_nothing_and_at_all() -> None:
    for trials in range(1, 400):
        assert wilson(0, trials)[0] == 0.0
        assert wilson(trials, trials)[1] == 1.0
