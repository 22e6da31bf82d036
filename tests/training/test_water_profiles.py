"""Profiles for training are those of the simulator's images, and their world is as wide as it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analyzer.geometry import bin_map, series_geometry
from analyzer.networks import coarse_profile, profile_index
from sim_replay.background import Surroundings, make_background
from sim_replay.detector import Condition, eiger2_4m
from streamer.messages import SeriesMetadata
from training.placements import (
    BINS,
    MARGIN_NODES,
    NODE_STEP_M,
    NODES,
    Placements,
    light_map,
    make_placements,
    node_radii_m,
    place,
)
from training.water_profiles import Scene, World, draw_profiles, expected_profiles

DETECTOR = eiger2_4m()
PURE = World(none_share=1.0, wall_share=0.0, distortion=(1e-9, 2e-9), hit_share=0.0, once_share=0.0)


@pytest.fixture(scope="module")
def placements() -> Placements:
    return make_placements(1, 12)


def images_profile(
    condition: Condition, surroundings: Surroundings, stated_x_px: float, stated_y_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Photons and pixels of each bin from the simulator's whole image."""
    background = make_background(condition, DETECTOR, surroundings)
    image = background.water.expected.astype(np.float64)
    if background.rest is not None:
        image += background.rest.expected
    header = SeriesMetadata(beam_center_x_px=stated_x_px, beam_center_y_px=stated_y_px)
    geometry = series_geometry(header, DETECTOR.shape)
    bins = bin_map(geometry)
    live = ~DETECTOR.mask
    of = bins.bin_of[live.reshape(-1)]
    photons, pixels = np.bincount(of, image[live], bins.bins), np.bincount(of, minlength=bins.bins)
    profile = coarse_profile(photons, pixels.astype(np.float64), profile_index(geometry, bins.radial_bins))
    return profile[0], profile[1]


@pytest.mark.parametrize(
    ("energy_eV", "length_m", "celsius", "air_m", "film_m", "glass_m", "shift_px"),
    [
        (1e4, 0.10, 25.0, 0.0, 0.0, 0.0, (9.0, -8.0)),
        (7e3, 0.25, 60.0, 0.01, 30e-6, 0.0, (0.0, 0.0)),
        (8e3, 0.15, 33.5, 0.02, 0.0, 20e-6, (-10.0, 3.0)),
        (5e3, 0.45, 1.0, 0.03, 0.0, 0.0, (5.5, 7.5)),
    ],
)
def test_expected_profiles_are_those_of_the_simulators_images(
    energy_eV: float,
    length_m: float,
    celsius: float,
    air_m: float,
    film_m: float,
    glass_m: float,
    shift_px: tuple[float, float],
) -> None:
    x, y = 1043.3, 1070.9
    condition = Condition(
        photon_energy_eV=energy_eV,
        camera_length_m=length_m,
        beam_center_x_px=x + shift_px[0],
        beam_center_y_px=y + shift_px[1],
    )
    surroundings = Surroundings(
        water_temperature_K=celsius + 273.15, air_path_m=air_m, film_thickness_m=film_m, capillary_wall_m=glass_m
    )
    photons, pixels = images_profile(condition, surroundings, x, y)
    stated, true = (x - 0.5, y - 0.5), (x - 0.5 + shift_px[0], y - 0.5 + shift_px[1])
    placed = Placements(*(part[None] for part in place(light_map(DETECTOR), DETECTOR.pixel_size_m, stated, true)))
    scene = Scene(*(torch.tensor([each]) for each in (energy_eV, length_m, celsius, air_m, film_m, glass_m)))
    expected = expected_profiles(placed, torch.tensor([0]), scene)[0].numpy() * 3e8
    # A pixel on an edge of bins falls to one side or the other as its radius is rounded.
    np.testing.assert_allclose(placed.pixels[0], pixels, atol=3)
    lit = pixels > 100
    np.testing.assert_allclose(expected[lit] / placed.pixels[0][lit], photons[lit] / pixels[lit], rtol=1e-3)
    assert not expected[pixels == 0].any()


def test_every_counted_pixel_of_a_placement_is_at_its_radius() -> None:
    centre = (1033.2, 1080.7)
    area, across, pixels = place(light_map(DETECTOR), DETECTOR.pixel_size_m, centre, centre)
    assert area.sum() == pytest.approx(pixels.sum(), rel=1e-6)
    assert np.all(across <= area + 1e-3)
    # Folded into a quadrant, the first class is along fs, the last along ss.
    assert across[10, 0].sum() > 0.8 * area[10, 0].sum()
    assert across[10, 2].sum() < 0.2 * area[10, 2].sum()
    assert len(node_radii_m()) == NODES
    assert node_radii_m()[MARGIN_NODES + 2] == pytest.approx(2 * NODE_STEP_M)


def test_centres_too_far_apart_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the centres are 0\.00225 m apart; give less than"):
        place(light_map(DETECTOR), DETECTOR.pixel_size_m, (1000.0, 1000.0), (1030.0, 1000.0))


def test_placements_hide_modules_and_the_middle_in_some_cases_only() -> None:
    plain = make_placements(5, 3, varied=False)
    whole = plain.pixels.sum(1).mean()
    varied = make_placements(5, 40)
    share = varied.pixels.sum(1) / whole
    assert np.mean(share < 0.9) == pytest.approx(0.15, abs=0.13)
    dark = 1 - varied.area.sum((1, 2, 3)) / varied.pixels.sum(1)
    assert 0 < np.sum(dark > 1e-4) < 12
    assert np.all(share > 0.4)


def test_the_same_seed_gives_the_same_placements() -> None:
    for one, other in zip(*(vars_of(make_placements(9, 2)) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(one, other)


def vars_of(placements: Placements) -> list[np.ndarray]:
    return [placements.area, placements.across, placements.pixels]


def test_drawn_profiles_are_counts_over_the_whole_world(placements: Placements) -> None:
    world = World()
    profiles, target = draw_profiles(placements, world, 600, torch.Generator().manual_seed(1), draws=2)
    assert profiles.shape == (1200, 2, BINS)
    assert profiles.dtype == target.dtype == torch.float32
    photons, pixels = profiles[:, 0], profiles[:, 1]
    assert torch.isfinite(profiles).all()
    torch.testing.assert_close(photons, photons.round())
    assert not photons[pixels == 0].any()
    energy, length = target[:, 1].exp(), target.sum(1).exp()
    for values, (low, high) in ((energy, world.photon_energy_eV), (length, world.camera_length_m)):
        assert low * 0.999 <= values.min() < low * 1.1
        assert high * 0.9 < values.max() <= high * 1.001
    total = photons.sum(1).log10()
    assert 2.3 < total.min() < 2.8
    assert 7.9 < total.max() < 8.4
    # The same scene, drawn again with another number of photons.
    torch.testing.assert_close(target[:600], target[600:])
    assert not torch.equal(photons[:600], photons[600:])


def test_the_same_generator_draws_the_same_profiles(placements: Placements) -> None:
    first, again = (draw_profiles(placements, World(), 32, torch.Generator().manual_seed(4))[0] for _ in range(2))
    assert torch.equal(first, again)


def test_pure_water_scatters_as_expected_and_noise_is_poissons(placements: Placements) -> None:
    narrow = replace(
        PURE, photon_energy_eV=(7e3, 7e3), camera_length_m=(0.15, 0.15), photons=(1e6, 1e6), room_C=(25.0, 25.0),
        room_share=1.0,
    )  # fmt: skip
    one = Placements(placements.area[:1], placements.across[:1], placements.pixels[:1])
    photons = draw_profiles(one, narrow, 400, torch.Generator().manual_seed(2))[0][:, 0].double().numpy()
    scene = Scene(*(torch.tensor([each]) for each in (7e3, 0.15, 25.0, 0.0, 0.0, 0.0)))
    expected = expected_profiles(one, torch.tensor([0]), scene)[0].double().numpy()
    expected *= 1e6 / expected.sum()
    seen = expected > 100
    pull = (photons[:, seen] - expected[seen]) / np.sqrt(expected[seen])
    assert pull.mean() == pytest.approx(0.0, abs=0.03)
    assert pull.std() == pytest.approx(1.0, abs=0.02)


def test_pixels_that_count_once_a_pulse_lose_most_where_it_is_brightest(placements: Placements) -> None:
    bright = replace(PURE, photons=(1e7, 1e7), once_mean=(0.4, 0.4))
    profiles = {
        once: draw_profiles(placements, replace(bright, once_share=once), 200, torch.Generator().manual_seed(3))[0]
        for once in (0.0, 1.0)
    }
    plain, once = (profiles[each][:, 0] for each in (0.0, 1.0))
    pixels = profiles[0.0][:, 1]
    assert 0.6 < (once.sum() / plain.sum()).item() < 0.95
    kept = once.sum(0) / plain.sum(0).clamp(min=1)
    brightness = plain.sum(0) / pixels.sum(0).clamp(min=1)
    seen = pixels.sum(0) > 1e4
    order = brightness[seen].argsort()
    assert kept[seen][order][-10:].mean() < kept[seen][order][:10].mean()


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("air", {"none_share": 0.0, "flat": 0.0, "air_m": 0.03}),
        ("stray light", {"none_share": 0.0, "air_m": 0.0, "flat": 0.3}),
        ("film and glass", {"wall_share": 1.0}),
        ("distortion", {"distortion": (0.03, 0.0300001)}),
        ("Bragg light", {"hit_share": 1.0}),
        ("temperature", {"room_share": 0.0}),
    ],
)
def test_each_part_of_the_world_changes_profiles_and_all_stay_finite(
    placements: Placements, named: str, change: dict[str, float]
) -> None:
    def drawn(world: World) -> torch.Tensor:
        profiles = draw_profiles(placements, world, 64, torch.Generator().manual_seed(6))[0][:, 0]
        return profiles / profiles.sum(1, keepdim=True)

    pure = replace(PURE, photons=(1e8, 1e8))
    with_it, without = drawn(replace(pure, **change)), drawn(pure)
    assert torch.isfinite(with_it).all()
    assert (with_it - without).abs().sum(1).mean() > 5e-3, named
