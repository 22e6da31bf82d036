"""A bundle trained on next to nothing: every step runs and the analyser loads the result."""

import math

import numpy as np
import torch

from analyzer.bundle import load_bundle
from analyzer.zones import COLUMNS, SCALES, ZONES
from training.hit import HitRecipe, calibrate, predict, train_hit
from training.make_bundle import Plan, make_parameters, table, write_bundle
from training.parameters import ParameterRecipe
from training.shots import MapSet, pack_maps
from training.statistics import area_under_curve, confusion

CPU = torch.device("cpu")


def maps_with_a_bright_cell_in_hits(count: int, seed: int) -> MapSet:
    rng = np.random.default_rng(seed)
    maps = rng.uniform(0, 12, (count, SCALES, 32, 32)).astype(np.float32)
    hit = rng.random(count) < 0.5
    for place in np.flatnonzero(hit):
        maps[place, :, rng.integers(32), rng.integers(32)] = rng.uniform(25, 400)
    return MapSet(
        maps=pack_maps(maps),
        zones=np.zeros((count, ZONES, COLUMNS), np.float32),
        header=np.tile(np.array([7000.0, 0.25], np.float32), (count, 1)),
        valid=np.full((1, 32, 32), 255, np.uint8),
        group_place=np.zeros(count, np.intp),
        hit=hit,
        facts={"bragg_photons": hit * 100.0},
    )


def test_the_hit_network_learns_a_bright_cell_and_calibration_keeps_the_threshold_between(tmp_path) -> None:
    train, validation = maps_with_a_bright_cell_in_hits(512, 1), maps_with_a_bright_cell_in_hits(128, 2)
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


def test_a_parameter_model_trained_in_seconds_makes_a_bundle_that_loads(tmp_path) -> None:
    out = tmp_path / "tiny"
    out.mkdir()
    recipe = ParameterRecipe(steps=20, batch=32, tables=8)
    plan = Plan(out=out, work=tmp_path, shards=1, seed=1, workers=1, command="test", hit=HitRecipe(), parameters=recipe)
    parameters = make_parameters(plan, CPU, lambda done, total, text: None)
    shipped = load_bundle_card_of_default()
    (out / "hit.safetensors").write_bytes((shipped[1] / "hit.safetensors").read_bytes())
    write_bundle(plan, shipped[0].hit, parameters)
    bundle = load_bundle(out)
    assert bundle.label.startswith("tiny-")
    assert len(parameters.performance["rows"]) == 9
    assert table(parameters.performance["rows"]).startswith("| condition |")


def load_bundle_card_of_default():
    from analyzer.bundle import DEFAULT_BUNDLE

    return load_bundle(DEFAULT_BUNDLE).card, DEFAULT_BUNDLE
