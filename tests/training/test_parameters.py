"""Training of the parameter network: cut short it goes on to the same weights, and a loss that is no number ends it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from analyzer.networks import ParameterNetwork
from streamer.files import BadInput
from training.loop.train import CHECKPOINT, NONFINITE, Diverged
from training.parameters import ParameterRecipe, ProfileTable, make_table, train_parameters

CPU = torch.device("cpu")
RECIPE = ParameterRecipe(steps=12, batch=16, tables=4)


@pytest.fixture(scope="module")
def tables() -> tuple[ProfileTable, ProfileTable]:
    return make_table(RECIPE, 1, 4), make_table(RECIPE, 2, 4)


def trained(
    tables: tuple[ProfileTable, ProfileTable], recipe: ParameterRecipe, folder: Path, stop_after: int | None = None
) -> tuple[ParameterNetwork, tuple[float, float, float]] | None:
    def keep_going(done: int, total: int) -> bool:
        assert done <= total
        return stop_after is None or done < stop_after

    return train_parameters(*tables, recipe, CPU, folder, keep_going=keep_going)


@pytest.mark.parametrize("stop_after", [1, 7, 12])
def test_a_training_that_is_told_to_stop_goes_on_to_the_same_bits(
    tables: tuple[ProfileTable, ProfileTable], tmp_path: Path, stop_after: int
) -> None:
    straight = trained(tables, RECIPE, tmp_path / "whole")
    assert trained(tables, RECIPE, tmp_path / "cut", stop_after) is None
    resumed = trained(tables, RECIPE, tmp_path / "cut")
    assert straight is not None
    assert resumed is not None
    assert resumed[1] == straight[1]
    for name, weights in straight[0].state_dict().items():
        assert torch.equal(resumed[0].state_dict()[name], weights)
    again = trained(tables, RECIPE, tmp_path / "cut", stop_after=0)  # nothing is left to do
    assert again is not None
    assert again[1] == straight[1]


def test_a_learning_rate_that_is_far_too_large_stops_with_the_batch_saved(
    tables: tuple[ProfileTable, ProfileTable], tmp_path: Path
) -> None:
    with pytest.raises(
        Diverged, match=r"^parameter network: the loss of step 2 is (nan|inf) at a learning rate"
    ) as ended:
        trained(tables, replace(RECIPE, learning_rate=1e30), tmp_path)
    assert str(tmp_path / NONFINITE) in str(ended.value)
    assert CHECKPOINT not in str(ended.value)
    saved = load_file(tmp_path / NONFINITE)
    assert saved["inputs.profiles"].shape[:2] == (16, 2)
    assert saved["target"].shape == (16, 3)
    assert torch.isfinite(saved["inputs.profiles"]).all()
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_truth_that_is_no_number_stops_with_the_weights_before_it_named(
    tables: tuple[ProfileTable, ProfileTable], tmp_path: Path
) -> None:
    train, validation = tables
    spoiled = replace(train, energy_eV=np.where(np.arange(4) == 2, np.nan, train.energy_eV))
    # So few of a batch that the first steps may miss it.
    few = replace(RECIPE, batch=1, steps=100)
    kept = rf", the weights before it in {CHECKPOINT}"
    assert trained((spoiled, validation), few, tmp_path, stop_after=1) is None
    with pytest.raises(Diverged, match=rf"the loss of step [0-9]+ is nan .*{NONFINITE}{kept}; lower the recipe"):
        trained((spoiled, validation), few, tmp_path)


def test_weights_that_the_last_step_spoils_are_not_returned(
    tables: tuple[ProfileTable, ProfileTable], tmp_path: Path
) -> None:
    train, validation = tables
    spoiled = replace(validation, energy_eV=np.full_like(validation.energy_eV, np.nan))
    with pytest.raises(
        Diverged,
        match=rf"after 12 steps its validation gives no numbers; .*, the weights before it in {CHECKPOINT}; lower",
    ):
        trained((train, spoiled), RECIPE, tmp_path)
    assert torch.isnan(load_file(tmp_path / NONFINITE)["target"]).any()


def test_a_checkpoint_of_another_recipe_or_other_profiles_is_refused_by_what_differs(
    tables: tuple[ProfileTable, ProfileTable], tmp_path: Path
) -> None:
    trained(tables, RECIPE, tmp_path, stop_after=2)
    with pytest.raises(BadInput, match=f"{CHECKPOINT}: of another training: its recipe.batch is 16, here it is 8"):
        trained(tables, replace(RECIPE, batch=8), tmp_path)
    with pytest.raises(BadInput, match=f"{CHECKPOINT}: of another training: its training_data is"):
        trained((tables[1], tables[0]), RECIPE, tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "damaged, not a checkpoint"),
        (lambda raw: b"\x80\x04\x95" + raw, "a pickle, which can execute code"),
        (lambda raw: raw.replace(b'\\"step\\": 2', b'\\"stop\\": 2'), "its position cannot be read"),
        (lambda raw: raw.replace(b"random_numbers", b"random_nonsense"[:14]), "its position cannot be read"),
    ],
    ids=["truncated", "pickle", "no step", "no random numbers"],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    tables: tuple[ProfileTable, ProfileTable], tmp_path: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    trained(tables, RECIPE, tmp_path, stop_after=2)
    path = tmp_path / CHECKPOINT
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=f"{CHECKPOINT}: .*{said}"):
        trained(tables, RECIPE, tmp_path)
