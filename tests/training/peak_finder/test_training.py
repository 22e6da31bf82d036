"""Tiles of real simulated shots, and a real training on them: short, judged on shots it has not seen."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analyzer.bundle import save_weights
from streamer.files import BadInput
from training.loop.train import Diverged
from training.peak_finder.tile_score import TileScore, best_f1
from training.peak_finder.tiles import FINDER_SHOTS, TileRecipe, TileSet, cut_tiles, make_tiles, take
from training.peak_finder.train import FinderRecipe, TrainedFinder, train_finder

BRIGHT = TileRecipe(
    shots=dataclasses.replace(
        FINDER_SHOTS, groups_per_shard=20, flux_photons=(1e8, 1e9), water_scale=(0.5, 5.0), artefacts_fraction=0.5
    )
)
SHORT = FinderRecipe(steps=400, batch=96, warm_up=30, averaging=0.98)
CPU = torch.device("cpu")

LEAST_F1 = 0.84
"""The bar of a training this short; `docs/peak-finder.md` says what a real one reaches."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiles")


@pytest.fixture(scope="module")
def tiles(folder: Path) -> TileSet:
    return make_tiles(BRIGHT, 5, range(1), folder, 1)


@pytest.fixture(scope="module")
def held_out(folder: Path) -> TileSet:
    small = dataclasses.replace(BRIGHT, shots=dataclasses.replace(BRIGHT.shots, groups_per_shard=10))
    return make_tiles(small, 6, range(1), folder, 1)


def trained(tiles: TileSet, recipe: FinderRecipe, folder: Path, **more: Any) -> TrainedFinder:
    made = train_finder(tiles, recipe, CPU, folder, **more)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def focal(tiles: TileSet, held_out: TileSet, folder: Path) -> TileScore:
    return best_f1(trained(tiles, SHORT, folder / "focal").network, held_out)


def test_tiles_have_spots_and_what_is_none(tiles: TileSet) -> None:
    with_spot = tiles.targets.spot.any((1, 2))
    assert with_spot.sum() > 100
    assert (~with_spot).sum() > 100
    assert np.isfinite(tiles.inputs).all()
    assert np.isfinite(tiles.facts).all()
    # A spot's light is where its target is: the brightest 2 x 2 of most tiles with one spot are at its heat.
    single = take(tiles, tiles.targets.spot.sum((1, 2)) == 1)
    light = single.inputs[:, 2, 8:16, 8:16].reshape(-1, 4, 2, 4, 2).max((2, 4))
    assert (light.argmax(1).shape) == (len(single), 4)
    brightest = light.reshape(len(single), -1).argmax(1)
    own = single.targets.spot.reshape(len(single), -1).argmax(1)
    row_apart, column_apart = abs(brightest // 4 - own // 4), abs(brightest % 4 - own % 4)
    assert (np.maximum(row_apart, column_apart) <= 1).mean() > 0.8


def test_no_shot_gives_more_tiles_than_its_share(tiles: TileSet) -> None:
    with_spot = tiles.targets.spot.any((1, 2))
    assert np.bincount(tiles.frame[with_spot]).max() <= BRIGHT.spots_per_shot
    assert np.bincount(tiles.frame[~with_spot]).max() <= BRIGHT.others_per_shot


def test_tiles_are_the_same_for_the_same_seed_and_are_read_back_as_they_were_cut(folder: Path) -> None:
    recipe = dataclasses.replace(BRIGHT, shots=dataclasses.replace(BRIGHT.shots, groups_per_shard=1))
    cut = cut_tiles(recipe, 9, 0)
    for again in (make_tiles(recipe, 9, range(1), folder, 1), make_tiles(recipe, 9, range(1), folder, 1)):
        np.testing.assert_array_equal(again.inputs, cut.inputs)
        np.testing.assert_array_equal(again.targets.heat, cut.targets.heat)
        np.testing.assert_array_equal(again.frame, cut.frame)


def test_a_short_training_finds_spots_of_shots_it_has_not_seen(focal: TileScore) -> None:
    assert focal.f1 >= LEAST_F1, focal


def raw(tiles: TileSet) -> TileSet:
    """The same tiles with counts and validity alone, as the 2024 paper's network sees its frames."""
    inputs = tiles.inputs.copy()
    inputs[:, 1:3] = 0.0
    return dataclasses.replace(tiles, inputs=inputs, facts=np.zeros_like(tiles.facts))


def test_it_beats_the_papers_way_of_raw_counts_and_cross_entropy_with_targets_of_one_pixel(
    tiles: TileSet, held_out: TileSet, folder: Path, focal: TileScore
) -> None:
    recipe = dataclasses.replace(SHORT, loss="one-pixel")
    paper = best_f1(trained(raw(tiles), recipe, folder / "paper").network, raw(held_out))
    assert focal.f1 > paper.f1 + 0.02, (focal, paper)


def test_a_run_that_was_cut_short_ends_at_the_same_weights(tiles: TileSet, tmp_path: Path) -> None:
    recipe = dataclasses.replace(SHORT, steps=30, batch=16)
    whole = trained(tiles, recipe, tmp_path / "whole")
    stopped = train_finder(tiles, recipe, CPU, tmp_path / "cut", keep_going=lambda done, total: done < 13)
    assert stopped is None
    resumed = trained(tiles, recipe, tmp_path / "cut")
    digests = [save_weights(each.network, tmp_path / "weights.safetensors") for each in (whole, resumed)]
    assert digests[0] == digests[1]
    assert whole.history == resumed.history


def test_a_folder_with_another_run_is_refused(tiles: TileSet, tmp_path: Path) -> None:
    recipe = dataclasses.replace(SHORT, steps=2, batch=4)
    trained(tiles, recipe, tmp_path)
    with pytest.raises(BadInput, match=r"recipe\.seed is 1, here it is 2"):
        train_finder(tiles, dataclasses.replace(recipe, seed=2), CPU, tmp_path)


def test_a_damaged_checkpoint_is_refused(tiles: TileSet, tmp_path: Path) -> None:
    recipe = dataclasses.replace(SHORT, steps=2, batch=4)
    trained(tiles, recipe, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadInput, match="damaged"):
        train_finder(tiles, recipe, CPU, tmp_path)


def test_a_loss_that_is_no_number_ends_the_run(tiles: TileSet, tmp_path: Path) -> None:
    broken = take(tiles, np.arange(20))
    broken.inputs[:] = np.nan
    with pytest.raises(Diverged, match="lower learning rate"):
        train_finder(broken, dataclasses.replace(SHORT, steps=2), CPU, tmp_path)


def test_tiles_without_any_spot_cannot_be_trained_on(tiles: TileSet, tmp_path: Path) -> None:
    empty = take(tiles, ~tiles.targets.spot.any((1, 2)))
    with pytest.raises(ValueError, match="no tile has a spot"):
        train_finder(empty, SHORT, CPU, tmp_path)
