"""A bundle trained on next to nothing: every step runs and the analyser loads the result."""

import math

import numpy as np
import pytest
import torch

from analyzer.bundle import load_bundle
from sim_replay.distractors import Kind
from tests.training.made_shots import blank_shots, made_shots
from training.hit import HitRecipe, ReducedShots, calibrate, choose_threshold, evened, predict, train_hit
from training.make_bundle import Plan, make_parameters, table, write_bundle
from training.parameter_performance import FRAMES
from training.parameters import ParameterRecipe
from training.statistics import area_under_curve, confusion

CPU = torch.device("cpu")


def test_the_hit_network_learns_a_bright_cell_and_calibration_keeps_the_threshold_between(tmp_path) -> None:
    train, validation = made_shots(512, 1), made_shots(128, 2)
    trained = train_hit(train, validation, HitRecipe(epochs=6, batch=32), CPU, tmp_path / "run")
    assert trained is not None
    assert trained.history[-1]["validation_loss"] < trained.history[0]["validation_loss"]
    assert (
        confusion(trained.probability(predict(trained.network, validation, CPU)) > 0.5, validation.hit)["hits_missed"]
        <= 3
    )
    assert 0.05 <= trained.threshold <= 0.99
    assert math.isfinite(trained.temperature)
    assert math.isfinite(trained.bias)


def test_the_threshold_keeps_each_false_hit_rate_and_stays_within_limits() -> None:
    rng = np.random.default_rng(1)
    kinds = np.repeat([0, int(Kind.WATER), int(Kind.SALT), int(Kind.SALT | Kind.HOT_PIXEL)], [10, 1000, 200, 50])
    shots = blank_shots(np.arange(1260) < 10, kinds=kinds.astype(float))
    water, salt, faulty = (kinds == int(each) for each in (Kind.WATER, Kind.SALT, Kind.SALT | Kind.HOT_PIXEL))
    plain, known = rng.uniform(0.0, 0.6, 1260), rng.uniform(0.0, 0.4, 1260)
    known[salt] += 0.3
    known[faulty] = plain[faulty] = 0.98

    def chosen(**rates: float) -> float:
        return choose_threshold({False: plain, True: known}, shots, HitRecipe(**rates))

    for rates in (
        {"false_hits": 0.01, "distracted_false_hits": 0.5},
        {"false_hits": 0.2, "distracted_false_hits": 0.02},
    ):
        threshold = chosen(**rates)
        assert threshold < 0.98
        for judged in (plain, known):
            assert (judged[water] >= threshold).mean() <= rates["false_hits"]
        assert (known[salt] >= threshold).mean() <= rates["distracted_false_hits"]
    assert chosen(false_hits=0.2, distracted_false_hits=0.02) > chosen(false_hits=0.2, distracted_false_hits=0.5)
    nothing, everything = np.zeros(1260), np.ones(1260)
    assert choose_threshold({False: nothing, True: nothing}, shots, HitRecipe()) == 0.05
    assert choose_threshold({False: everything, True: everything}, shots, HitRecipe()) == 0.99


def test_hits_and_empties_of_a_group_are_drawn_about_evenly_and_groups_without_hits_never() -> None:
    hit = np.array([True] * 4 + [False] * 4 + [True] + [False] * 7 + [False] * 8)
    chances = evened(blank_shots(hit))
    assert chances.sum() == pytest.approx(1.0)
    balanced, rare, dark = chances.reshape(3, 8)
    assert balanced[:4].sum() == pytest.approx(balanced[4:].sum())
    assert rare[0] == pytest.approx(rare[1:].sum())
    assert rare[0] < balanced[:4].sum(), "one lucky shot does not stand for a whole group"
    assert not dark.any()
    assert evened(blank_shots(np.zeros(8, bool))).sum() == pytest.approx(1.0)


def test_each_epoch_draws_other_shots_and_validation_draws_every_one_once() -> None:
    shots = made_shots(64, 1)
    train = ReducedShots(shots, HitRecipe(), varied=True)
    everywhere = np.arange(64)
    first, again, second = (train.at_epoch(epoch).batch(everywhere, ("cells", "hit", "header")) for epoch in (1, 1, 2))
    np.testing.assert_array_equal(first["cells"], again["cells"])
    assert not np.array_equal(first["cells"], second["cells"])
    assert 0 < (first["header"][:, 0] > 0).sum() < 64
    fixed = ReducedShots(shots, HitRecipe(), varied=False)
    np.testing.assert_array_equal(fixed.at_epoch(3).batch(everywhere, ("cells",))["cells"], shots.cells)


def test_calibration_recovers_a_known_temperature_and_bias() -> None:
    rng = np.random.default_rng(3)
    log_odds = rng.normal(0, 2, 20_000)
    hit = rng.random(20_000) < 1 / (1 + np.exp(-log_odds))
    temperature, bias = calibrate(log_odds * 2 - 1, hit)
    assert math.isclose(temperature, 2.0, rel_tol=0.05)
    assert math.isclose(bias, 1.0, abs_tol=0.1)
    area = area_under_curve(log_odds, hit)
    assert area is not None
    assert area > 0.8


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_a_set_that_is_told_apart_without_a_fault_has_a_temperature(scale: float) -> None:
    hit = np.arange(200) < 80
    temperature, bias = calibrate(np.where(hit, 3.0, 1.0) * scale, hit)
    probability = 1 / (1 + np.exp(-(np.array([3.0, 1.0]) * scale + bias) / temperature))
    # One more of the other kind: Platt's rule.
    np.testing.assert_allclose(probability, [81 / 82, 1 / 122], rtol=1e-3)


def test_logits_that_are_no_numbers_are_left_as_they_are() -> None:
    hit = np.arange(10) < 4
    assert calibrate(np.full(10, np.nan), hit) == (1.0, 0.0)
    assert calibrate(np.full(10, 2.0), hit) == (1.0, 0.0)


def test_a_parameter_model_trained_in_seconds_makes_a_bundle_that_loads(tmp_path) -> None:
    out = tmp_path / "tiny"
    out.mkdir()
    recipe = ParameterRecipe(steps=20, batch=32, placements=8)
    plan = Plan(
        out=out, name="tiny", work=tmp_path, shards=1, seed=1, workers=1, command="test", hit=HitRecipe(),
        parameters=recipe,
    )  # fmt: skip
    parameters = make_parameters(plan, CPU, lambda done, total, text: None)
    shipped = load_bundle_card_of_default()
    (out / "hit.safetensors").write_bytes((shipped[1] / "hit.safetensors").read_bytes())
    write_bundle(plan, shipped[0].hit, parameters)
    bundle = load_bundle(out)
    assert bundle.label.startswith("tiny-")
    assert bundle.scattering is not None
    assert len(parameters.performance["rows"]) == 9 * len(FRAMES)
    assert sum(row["profiles"] for row in parameters.performance["world"]) > 10_000
    assert table(parameters.performance["rows"]).startswith("| condition |")


def load_bundle_card_of_default():
    from analyzer.bundle import DEFAULT_BUNDLE

    return load_bundle(DEFAULT_BUNDLE).card, DEFAULT_BUNDLE
