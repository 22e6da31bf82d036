"""The twin's lone spots, and how well their places can be known."""

import dataclasses

import numpy as np
import pytest

from cxls.scene import scene_of
from cxls.settings import SceneOptions
from sim_replay.shots import Buffers, Shot, frame_rng, simulate_shot
from training.evaluation.spot_accuracy import ALONE_PX, LEAST_COUNTS, REACH_PX, LoneSpot, SpotMaker

SCENE = scene_of(SceneOptions(condition=5, hit_fraction=1.0))


def shot_of(scene=SCENE, frame: int = 0, **options: bool) -> Shot:  # type: ignore[no-untyped-def]
    return simulate_shot(scene, frame_rng(3, frame), buffers=Buffers(scene.detector), **options)


@pytest.fixture(scope="module")
def shots() -> list[Shot]:
    return [shot_of(frame=n) for n in range(3)]


@pytest.fixture(scope="module")
def spots(shots: list[Shot]) -> list[list[LoneSpot]]:
    return [list(SpotMaker(SCENE).lone_spots(shot.truth)) for shot in shots]


def test_lone_spots_are_the_truth_s_own(shots: list[Shot], spots: list[list[LoneSpot]]) -> None:
    assert sum(map(len, spots)) > 20
    for shot, lone in zip(shots, spots, strict=True):
        true = shot.truth.spots
        for spot in lone:
            distance = np.hypot(true.ss - spot.ss, true.fs - spot.fs)
            nearest, next_nearest = np.argsort(distance)[:2]
            assert distance[nearest] < 0.05
            assert true.counts[nearest] == pytest.approx(spot.counts, rel=0.05)
            assert distance[next_nearest] > ALONE_PX - 1.0


def test_they_are_away_from_dead_pixels_and_hold_counts(spots: list[list[LoneSpot]]) -> None:
    for spot in (each for lone in spots for each in lone):
        row, column = round(spot.ss), round(spot.fs)
        window = slice(row - REACH_PX, row + REACH_PX + 1), slice(column - REACH_PX, column + REACH_PX + 1)
        assert SCENE.detector.mask[window].shape == (2 * REACH_PX + 1,) * 2
        assert not SCENE.detector.mask[window].any()
        assert spot.counts >= LEAST_COUNTS
        assert 0.0 < spot.largest_share <= 1.0


def test_a_spot_of_four_times_the_photons_is_known_at_least_twice_as_well(shots: list[Shot]) -> None:
    def bounds(flux: float) -> dict[tuple[float, float], LoneSpot]:
        truth = shots[0].truth
        truth = dataclasses.replace(truth, condition=dataclasses.replace(truth.condition, flux_photons=flux))
        dim = dataclasses.replace(SCENE.surroundings, water_thickness_m=1e-9)
        maker = SpotMaker(dataclasses.replace(SCENE, surroundings=dim))
        truth = dataclasses.replace(truth, water_thickness_m=1e-9)
        return {(round(each.ss, 1), round(each.fs, 1)): each for each in maker.lone_spots(truth)}

    one, four = bounds(3e8), bounds(12e8)
    both = [(one[place], four[place]) for place in one if place in four and one[place].counts > 20]
    assert len(both) > 5
    for weak, strong in both:
        assert strong.counts == pytest.approx(4 * weak.counts, rel=0.01)
        assert strong.bound_px == pytest.approx(weak.bound_px / 2, rel=0.02)


def test_the_bound_without_background_is_the_spread_over_the_root_of_the_counts() -> None:
    """Of a Gaussian wide against a pixel: sigma / sqrt(N) along each axis."""
    scene = dataclasses.replace(
        SCENE,
        detector=dataclasses.replace(SCENE.detector, point_spread_px=1.5),
        condition=dataclasses.replace(SCENE.condition, beam=dataclasses.replace(SCENE.condition.beam, radius_m=1e-7)),
        surroundings=dataclasses.replace(SCENE.surroundings, water_thickness_m=1e-9),
    )
    truth = shot_of(scene).truth
    found = [spot for spot in SpotMaker(scene).lone_spots(truth) if spot.counts > 50]
    assert found
    least = np.sqrt(2 * np.log(2)) * 1.5
    for spot in found:
        assert least * 0.97 <= spot.bound_px * np.sqrt(spot.counts) <= 3 * least


def test_water_costs_knowledge(shots: list[Shot], spots: list[list[LoneSpot]]) -> None:
    bright = dataclasses.replace(shots[0].truth, water_thickness_m=33 * shots[0].truth.water_thickness_m)
    in_bright = {round(s.ss, 2): s for s in SpotMaker(SCENE).lone_spots(bright)}
    both = [(spot, in_bright[round(spot.ss, 2)]) for spot in spots[0] if round(spot.ss, 2) in in_bright]
    assert len(both) > 5
    assert all(wet.bound_px > dry.bound_px for dry, wet in both)


def test_spots_of_one_pixel_have_all_in_it() -> None:
    shot = shot_of(pixel_spots=True)
    found = list(SpotMaker(SCENE, pixel_spots=True).lone_spots(shot.truth))
    assert found
    assert all(spot.largest_share == 1.0 for spot in found)
    assert all(abs(spot.ss - round(spot.ss)) < 1e-9 for spot in found)


def test_a_frame_without_crystal_has_none() -> None:
    empty = dataclasses.replace(SCENE, hit_fraction=0.0)
    assert list(SpotMaker(empty).lone_spots(shot_of(empty).truth)) == []


def test_two_crystals_are_refused() -> None:
    with pytest.raises(ValueError, match="2 crystals in a hit; give one"):
        SpotMaker(dataclasses.replace(SCENE, crystals=2))
