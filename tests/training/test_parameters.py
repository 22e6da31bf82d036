"""Training of the parameter network: cut short it goes on to the same weights, and a loss that is no number ends it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from analyzer.networks import ParameterNetwork
from streamer.files import BadInput
from training.loop.train import CHECKPOINT, NONFINITE, Diverged
from training.parameters import ParameterRecipe, train_parameters
from training.placements import Placements, make_placements
from training.water_profiles import World

CPU = torch.device("cpu")
RECIPE = ParameterRecipe(steps=12, batch=16, hidden=16, blocks=1)


@pytest.fixture(scope="module")
def placements() -> tuple[Placements, Placements]:
    return make_placements(1, 4), make_placements(2, 4)


def trained(
    placements: tuple[Placements, Placements], recipe: ParameterRecipe, folder: Path, stop_after: int | None = None
) -> tuple[ParameterNetwork, tuple[float, float, float]] | None:
    def keep_going(done: int, total: int) -> bool:
        assert done <= total
        return stop_after is None or done < stop_after

    return train_parameters(*placements, recipe, CPU, folder, keep_going=keep_going)


@pytest.mark.parametrize("stop_after", [1, 7, 12])
def test_a_training_that_is_told_to_stop_goes_on_to_the_same_bits(
    placements: tuple[Placements, Placements], tmp_path: Path, stop_after: int
) -> None:
    straight = trained(placements, RECIPE, tmp_path / "whole")
    assert trained(placements, RECIPE, tmp_path / "cut", stop_after) is None
    resumed = trained(placements, RECIPE, tmp_path / "cut")
    assert straight is not None
    assert resumed is not None
    assert resumed[1] == straight[1]
    for name, weights in straight[0].state_dict().items():
        assert torch.equal(resumed[0].state_dict()[name], weights)
    again = trained(placements, RECIPE, tmp_path / "cut", stop_after=0)  # nothing is left to do
    assert again is not None
    assert again[1] == straight[1]


def test_a_learning_rate_that_is_far_too_large_stops_with_the_batch_saved(
    placements: tuple[Placements, Placements], tmp_path: Path
) -> None:
    with pytest.raises(
        Diverged, match=r"^parameter network: the loss of step 2 is (nan|inf) at a learning rate"
    ) as ended:
        trained(placements, replace(RECIPE, learning_rate=1e30), tmp_path)
    assert str(tmp_path / NONFINITE) in str(ended.value)
    assert CHECKPOINT not in str(ended.value)
    saved = load_file(tmp_path / NONFINITE)
    assert saved["inputs.profiles"].shape[:2] == (16, 2)
    assert saved["target"].shape == (16, 2)
    assert torch.isfinite(saved["inputs.profiles"]).all()
    assert not (tmp_path / CHECKPOINT).exists()


def spoil(path: Path) -> None:
    """Put a weight that is no number into a checkpoint."""
    with safe_open(path, "pt") as opened:
        tensors, header = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    tensors["network.head.bias"][0] = torch.nan
    save_file(tensors, path, header)


def test_a_loss_that_is_no_number_stops_with_the_weights_before_it_named(
    placements: tuple[Placements, Placements], tmp_path: Path
) -> None:
    assert trained(placements, RECIPE, tmp_path, stop_after=3) is None
    spoil(tmp_path / CHECKPOINT)
    kept = rf", the weights before it in {CHECKPOINT}"
    with pytest.raises(Diverged, match=rf"the loss of step 4 is nan .*{NONFINITE}{kept}; lower the recipe"):
        trained(placements, RECIPE, tmp_path)


def test_weights_that_the_last_step_spoils_are_not_returned(
    placements: tuple[Placements, Placements], tmp_path: Path
) -> None:
    assert trained(placements, RECIPE, tmp_path) is not None
    spoil(tmp_path / CHECKPOINT)
    with pytest.raises(
        Diverged,
        match=rf"after 12 steps its validation gives no numbers; .*, the weights before it in {CHECKPOINT}; lower",
    ):
        trained(placements, RECIPE, tmp_path)
    assert load_file(tmp_path / NONFINITE)["target"].shape[1] == 2


def test_a_checkpoint_of_another_recipe_or_other_profiles_is_refused_by_what_differs(
    placements: tuple[Placements, Placements], tmp_path: Path
) -> None:
    trained(placements, RECIPE, tmp_path, stop_after=2)
    with pytest.raises(BadInput, match=f"{CHECKPOINT}: of another training: its recipe.batch is 16, here it is 8"):
        trained(placements, replace(RECIPE, batch=8), tmp_path)
    with pytest.raises(BadInput, match=f"{CHECKPOINT}: of another training: its world.air_m is 0.03, here it is 0.0"):
        trained(placements, replace(RECIPE, world=World(air_m=0.0)), tmp_path)
    with pytest.raises(BadInput, match=f"{CHECKPOINT}: of another training: its training_data is"):
        trained((placements[1], placements[0]), RECIPE, tmp_path)


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
    placements: tuple[Placements, Placements], tmp_path: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    trained(placements, RECIPE, tmp_path, stop_after=2)
    path = tmp_path / CHECKPOINT
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=f"{CHECKPOINT}: .*{said}"):
        trained(placements, RECIPE, tmp_path)


def test_a_batch_that_its_draws_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch 10 is no multiple of draws 4"):
        ParameterRecipe(batch=10)
