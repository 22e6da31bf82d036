"""Random training shots: reproducible, labelled, split by group."""

import dataclasses

import numpy as np
import pytest

from training.shots import MapSet, ShotRecipe, make_shard, make_shots

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


def test_shots_on_disk_are_used_again_and_only_by_their_own_recipe(tmp_path) -> None:
    first = make_shots(SMALL, 5, range(1), tmp_path, 1)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    second = make_shots(SMALL, 5, range(1), tmp_path, 1)
    assert path.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(first.maps, second.maps)
    make_shots(dataclasses.replace(SMALL, hit_fraction=0.0), 5, range(1), tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 2
