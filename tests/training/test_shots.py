"""Random training shots: reproducible, labelled, split by group."""

import dataclasses

import numpy as np
import pytest

from sim_replay.cells import READY_CELLS
from sim_replay.distractors import Kind
from training.shots import (
    HELD_OUT_CELLS,
    TRAINING_CELLS,
    MapSet,
    ShotRecipe,
    join,
    make_shard,
    make_shots,
    pack_maps,
    unpack_maps,
)

SMALL = ShotRecipe(groups_per_shard=1, shots_per_group=6, flux_photons=(1e8, 3e8), water_scale=(0.5, 1.0))


@pytest.fixture(scope="module")
def shard() -> MapSet:
    return make_shard(SMALL, seed=11, shard=0)


def test_a_shard_is_the_same_for_the_same_seed(shard: MapSet) -> None:
    again = make_shard(SMALL, seed=11, shard=0)
    np.testing.assert_array_equal(again.maps, shard.maps)
    np.testing.assert_array_equal(again.hit, shard.hit)


def test_another_shard_has_another_geometry_and_other_noise(shard: MapSet) -> None:
    other = make_shard(SMALL, seed=11, shard=1)
    assert other.facts["photon_energy_eV"][0] != shard.facts["photon_energy_eV"][0]
    assert other.facts["group"][0] != shard.facts["group"][0]


def test_labels_agree_with_the_bragg_light(shard: MapSet) -> None:
    np.testing.assert_array_equal(shard.facts["bragg_photons"] > 0, shard.hit)
    np.testing.assert_array_equal((shard.facts["kinds"].astype(int) & Kind.PROTEIN) != 0, shard.hit)


def test_networks_train_on_twenty_cells_and_more_and_never_on_those_held_out() -> None:
    assert len(TRAINING_CELLS) >= 20
    assert len(HELD_OUT_CELLS) >= 5
    assert {READY_CELLS[name].cell for name in TRAINING_CELLS}.isdisjoint(
        READY_CELLS[name].cell for name in HELD_OUT_CELLS
    )


def test_packed_maps_keep_the_significance_to_five_per_cent() -> None:
    significance = np.concatenate([[0.0], np.geomspace(0.05, 3e5, 500)]).astype(np.float32)
    unpacked = unpack_maps(pack_maps(significance))
    assert unpacked[0] == 0
    assert (np.abs(unpacked - np.log1p(significance)) <= 0.0251).all()


def test_each_kind_of_distractor_is_in_the_shots_that_ask_for_it() -> None:
    for name, kind in (("salt", Kind.SALT), ("ice", Kind.ICE), ("no_beam", Kind.NO_BEAM)):
        recipe = dataclasses.replace(
            SMALL, **{"salt": 0.0, "ice": 0.0, "lipid": 0.0, "polymer": 0.0, "no_beam": 0.0, name: 1.0},
            hit_fraction=0.0, photon_energy_eV=(9e3, 10e3), camera_length_m=(0.1, 0.12), paper_fraction=0.0,
        )  # fmt: skip
        made = make_shard(recipe, 3, 0)
        assert ((made.facts["kinds"].astype(int) & kind) != 0).mean() > 0.6, name
        assert not made.hit.any()


def test_joined_sets_keep_each_shot_with_its_mask(shard: MapSet) -> None:
    other = make_shard(SMALL, seed=11, shard=1)
    both = join([shard, other], len(shard) + len(other))
    for place in (0, len(shard), len(both) - 1):
        source, own = (shard, place) if place < len(shard) else (other, place - len(shard))
        np.testing.assert_array_equal(both.valid[both.group_place[place]], source.valid[source.group_place[own]])
        np.testing.assert_array_equal(both.maps[place], source.maps[own])


def test_shots_on_disk_are_used_again_and_only_by_their_own_recipe(tmp_path) -> None:
    first = make_shots(SMALL, 5, range(1), tmp_path, 1)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    second = make_shots(SMALL, 5, range(1), tmp_path, 1)
    assert path.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(first.maps, second.maps)
    make_shots(dataclasses.replace(SMALL, hit_fraction=0.0), 5, range(1), tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 2
