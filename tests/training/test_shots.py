"""Random training shots: reproducible, labelled, split by group."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from sim_replay.cells import READY_CELLS
from sim_replay.detector import eiger2_4m
from sim_replay.diffraction import TooWideError
from sim_replay.distractors import Kind
from training import shots
from training.shots import (
    HELD_OUT_CELLS,
    TRAINING_CELLS,
    ShotRecipe,
    ShotSet,
    draw_group,
    join,
    make_shard,
    make_shots,
    take,
)

SMALL = ShotRecipe(groups_per_shard=1, shots_per_group=6, flux_photons=(1e8, 3e8), water_scale=(0.5, 1.0))


@pytest.fixture(scope="module")
def shard() -> ShotSet:
    return make_shard(SMALL, seed=11, shard=0)


def test_a_shard_is_the_same_for_the_same_seed(shard: ShotSet) -> None:
    again = make_shard(SMALL, seed=11, shard=0)
    np.testing.assert_array_equal(again.cells, shard.cells)
    np.testing.assert_array_equal(again.hit, shard.hit)


def test_another_shard_has_another_geometry_and_other_noise(shard: ShotSet) -> None:
    other = make_shard(SMALL, seed=11, shard=1)
    assert other.facts["photon_energy_eV"][0] != shard.facts["photon_energy_eV"][0]
    assert set(other.group).isdisjoint(shard.group)


def test_labels_agree_with_the_bragg_light(shard: ShotSet) -> None:
    np.testing.assert_array_equal(shard.facts["bragg_photons"] > 0, shard.hit)
    np.testing.assert_array_equal((shard.facts["kinds"].astype(int) & Kind.PROTEIN) != 0, shard.hit)


def test_networks_train_on_twenty_cells_and_more_and_never_on_those_held_out() -> None:
    assert len(TRAINING_CELLS) >= 20
    assert len(HELD_OUT_CELLS) >= 5
    assert {READY_CELLS[name].cell for name in TRAINING_CELLS}.isdisjoint(
        READY_CELLS[name].cell for name in HELD_OUT_CELLS
    )


def test_each_kind_of_distractor_is_in_the_shots_that_ask_for_it() -> None:
    for name, kind in (("salt", Kind.SALT), ("ice", Kind.ICE), ("no_beam", Kind.NO_BEAM)):
        recipe = dataclasses.replace(
            SMALL, **{"salt": 0.0, "ice": 0.0, "lipid": 0.0, "polymer": 0.0, "no_beam": 0.0, name: 1.0},
            hit_fraction=0.0, photon_energy_eV=(9e3, 10e3), camera_length_m=(0.1, 0.12), paper_fraction=0.0,
        )  # fmt: skip
        made = make_shard(recipe, 3, 0)
        assert ((made.facts["kinds"].astype(int) & kind) != 0).mean() > 0.6, name
        assert not made.hit.any()


def test_matched_shots_show_the_same_crystals_whatever_is_beside_them() -> None:
    clean = dataclasses.replace(SMALL, salt=0.0, ice=0.0, lipid=0.0, polymer=0.0, no_beam=0.0, hit_fraction=1.0)
    beside = {"ice": 1.0, "lipid": 1.0}

    def light(**changes: Any) -> list[float]:
        return make_shard(dataclasses.replace(clean, **changes), 3, 0).facts["bragg_photons"].tolist()

    assert light(matched=True) == light(matched=True, **beside)
    assert light() != light(**beside)
    assert len(set(light(matched=True))) > 3


def test_joined_sets_keep_their_shots_in_order_and_shots_can_be_taken_out_again(shard: ShotSet) -> None:
    other = make_shard(SMALL, seed=11, shard=1)
    both = join([shard, other])
    again = take(both, both.group == other.group[0])
    np.testing.assert_array_equal(again.zones, other.zones)
    np.testing.assert_array_equal(again.cells, other.cells)
    np.testing.assert_array_equal(again.facts["flux_photons"], other.facts["flux_photons"])


def test_perfect_crystals_on_a_sharp_detector_are_among_the_groups() -> None:
    sharp, blurred = (
        draw_group(dataclasses.replace(SMALL, sharp_fraction=share), eiger2_4m(), np.random.default_rng(1))
        for share in (1.0, 0.0)
    )
    assert sharp.detector.point_spread_px <= 0.25 <= blurred.detector.point_spread_px
    assert sharp.sample.mosaicity_deg <= SMALL.perfect_mosaicity_deg[1]
    assert sharp.sample.strain <= SMALL.perfect_strain[1]
    assert sharp.condition.beam.divergence_rad == 0.0


def test_shots_on_disk_are_used_again_and_only_by_their_own_recipe(tmp_path) -> None:
    first = make_shots(SMALL, 5, range(1), tmp_path, 1)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    second = make_shots(SMALL, 5, range(1), tmp_path, 1)
    assert path.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(first.cells, second.cells)
    make_shots(dataclasses.replace(SMALL, hit_fraction=0.0), 5, range(1), tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_recipe_of_spots_that_are_always_too_wide_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def too_wide(*arguments: object, **options: object) -> None:
        tries.append(1)
        raise TooWideError

    monkeypatch.setattr(shots, "simulate_shot", too_wide)
    with pytest.raises(TooWideError, match="give less mosaicity"):
        make_shard(SMALL, 1, 0)
    assert len(tries) == shots._MOST_TRIES
