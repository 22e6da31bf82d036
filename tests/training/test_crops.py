import torch

from sim_replay.detector import eiger2_4m
from training.crops import draw_crops, simulate_crops
from training.shots import ShotRecipe

RECIPE = ShotRecipe(shots_per_group=6, flux_photons=(1e8, 1e9))


def test_the_same_groups_make_the_same_windows_and_others_make_others() -> None:
    one, again, other = (simulate_crops(RECIPE, seed, range(2), 64) for seed in (3, 3, 4))
    assert one.counts.shape == (12, 64, 64)
    assert torch.equal(one.counts, again.counts)
    assert not torch.equal(one.counts, other.counts)
    assert 0 < int(one.hit.sum()) < 12


def test_windows_lie_all_over_the_panel_and_inside_it() -> None:
    detector = eiger2_4m()
    crops = [crop for group in range(30) for crop in draw_crops(RECIPE, detector, 1, group, 256)]
    assert {crop.ss0 // 700 for crop in crops} == {0, 1, 2}
    assert all(0 <= crop.ss0 <= 2162 - 256 and 0 <= crop.fs0 <= 2068 - 256 for crop in crops)


def test_true_spots_stand_on_valid_light_of_their_window() -> None:
    recipe = ShotRecipe(shots_per_group=8, flux_photons=(1e9, 1e9), hit_fraction=1.0, sharp_fraction=0.0)
    batch = simulate_crops(recipe, 2, range(3))
    spots = batch.spots
    assert len(spots)
    bright = spots.counts > 20
    fs, ss = spots.fs[bright].round().long().clamp(0, 255), spots.ss[bright].round().long().clamp(0, 255)
    assert (batch.bragg[spots.item[bright], ss, fs] > 0.05).float().mean() > 0.95
    assert (batch.counts[~batch.valid] == 0).all()
