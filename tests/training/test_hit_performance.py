"""Rows say what was counted, of the shots that were asked about."""

from dataclasses import fields

import numpy as np
import pytest

from sim_replay.distractors import Kind
from tests.training.made_shots import blank_shots
from training.hit_performance import (
    SCENARIOS,
    Scenario,
    count_row,
    in_question,
    mix_rows,
    paired_difference,
    recall_at_equal_light,
)
from training.shots import HELD_OUT_CELLS, ShotRecipe


def test_a_row_counts_at_the_threshold() -> None:
    row = count_row("x", np.array([0.1, 0.6, 0.6, 0.9]), np.array([False, False, True, True]), 0.6)
    assert (row["hits_found"], row["hits_missed"], row["empties_called_hit"], row["empties_passed"]) == (2, 0, 1, 1)
    assert row["recall"] == 1.0
    assert row["recall_interval"][0] < 1.0


def test_rows_of_the_mix_split_by_what_is_in_the_frame() -> None:
    hit = np.array([True, True, False, False])
    kinds = np.array([Kind.PROTEIN, Kind.PROTEIN | Kind.SALT, Kind.SALT, Kind.WATER], float)
    set_ = blank_shots(hit, kinds=kinds, log_likelihood_ratio=np.array([1.0, 50.0, 0, 0]), flux_photons=np.full(4, 2e6))
    rows = {row["set"]: row for row in mix_rows(np.array([0.0, 1.0, 1.0, 0.0]), set_, 0.5)}
    assert (rows["with salt"]["hits_found"], rows["with salt"]["empties_called_hit"]) == (1, 1)
    assert rows["with water"]["empties_passed"] == 1
    assert rows["a hit shows 0 to 3 nats"]["hits_missed"] == 1
    assert rows["a hit shows 30 to 100 nats"]["hits_found"] == 1
    assert rows["1e6 to 1e7 photons a pulse"]["hits_found"] == 1
    assert rows["1e8 to 1e9 photons a pulse"]["recall"] is None


def test_salt_counts_only_where_its_spots_could_be_a_hits() -> None:
    salt = float(Kind.SALT)
    set_ = blank_shots(
        np.zeros(4, bool),
        kinds=np.array([salt, salt, salt, Kind.WATER]),
        salt_spots=np.array([10.0, 2.0, 10.0, 10.0]),
        strongest_photons=np.array([100.0, 100.0, 2e4, 100.0]),
    )
    assert in_question(SCENARIOS["salt"], set_).tolist() == [True, False, False, False]
    assert in_question(Scenario("all", ShotRecipe()), set_).all()


def test_equal_light_compares_like_with_like() -> None:
    light = np.repeat([5.0, 500.0], 100)
    bright = blank_shots(np.ones(200, bool), bragg_photons=light)
    faint = blank_shots(np.ones(110, bool), bragg_photons=np.repeat([5.0, 500.0], [100, 10]))
    # Both find nothing at 5 photons and everything at 500: equal, although the recalls are not.
    one, other = (np.where(each.facts["bragg_photons"] > 100, 1.0, 0.0) for each in (faint, bright))
    mine, reference = recall_at_equal_light(one, faint, other, bright, 0.5)
    assert mine == pytest.approx(reference)


def test_scenarios_of_new_cells_have_no_cell_that_was_trained_on() -> None:
    for name in ("cells", "two-crystals"):
        assert set(SCENARIOS[name].recipe.cells) <= set(HELD_OUT_CELLS)


def test_a_paired_difference_is_as_sure_as_the_trials_that_differ() -> None:
    one, other = np.zeros(1000, bool), np.zeros(1000, bool)
    one[:600], other[:620] = True, True
    difference, low, high = paired_difference(one, other)
    assert difference == pytest.approx(-0.02)
    assert -0.032 < low < -0.025
    assert -0.015 < high < -0.008
    other[:] = one
    _, low, high = paired_difference(one, other)
    assert low == pytest.approx(-high)
    assert high < 0.005


def test_protein_with_and_without_a_distractor_is_the_same_protein() -> None:
    one, other = SCENARIOS["protein"].recipe, SCENARIOS["protein-salt"].recipe
    differing = {field.name for field in fields(one) if getattr(one, field.name) != getattr(other, field.name)}
    assert differing == {"salt"}
    assert one.matched
