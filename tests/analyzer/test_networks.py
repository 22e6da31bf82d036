"""The networks take whatever a detector gives."""

import numpy as np
import pytest
import torch

from analyzer.geometry import AZIMUTH_CLASSES, Geometry, bin_map
from analyzer.networks import (
    PROFILE_BIN_M,
    PROFILE_BINS,
    PROFILE_FEATURES,
    HitNetwork,
    ParameterNetwork,
    coarse_profile,
    profile_features,
    profile_index,
)
from analyzer.zones import COLUMNS, SCALES, ZONES

BINS = PROFILE_BINS * AZIMUTH_CLASSES


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (5, 1), (9, 11), (64, 130), (271, 259)])
def test_the_hit_network_judges_maps_of_any_size(size: tuple[int, int]) -> None:
    maps, zones, header = torch.rand(2, SCALES + 1, *size) * 100, torch.rand(2, ZONES, COLUMNS) * 1e6, torch.zeros(2, 2)
    with torch.inference_mode():
        logits = HitNetwork()(maps, zones, header)
    assert logits.shape == (2,)
    assert torch.isfinite(logits).all()


def test_the_hit_network_stays_finite_on_the_strongest_significance() -> None:
    with torch.inference_mode():
        maps, zones = torch.full((1, SCALES + 1, 8, 8), 30.0), torch.full((1, ZONES, COLUMNS), 1e15)
        assert torch.isfinite(HitNetwork()(maps, zones, torch.tensor([[1e4, 0.1]]))).all()


@pytest.mark.parametrize("photons", [0.0, 1e-3, 1.0, 1e9, 1e30])
@pytest.mark.parametrize("pixels", [0.0, 1.0, 1e3, 1e8])
def test_features_are_finite_on_empty_and_huge_profiles(photons: float, pixels: float) -> None:
    features = profile_features(torch.stack([torch.full((BINS,), photons), torch.full((BINS,), pixels)])[None])
    assert features.shape == (1, PROFILE_FEATURES)
    assert torch.isfinite(features).all()


def test_estimates_are_finite_on_empty_and_huge_profiles() -> None:
    network = ParameterNetwork()
    for photons in (0.0, 1e12):
        profile = torch.stack([torch.full((BINS,), photons), torch.full((BINS,), 1e4)])[None]
        with torch.inference_mode():
            estimate = network(profile_features(profile))
        assert estimate.shape == (1, 6)
        assert torch.isfinite(estimate).all()


def test_features_of_one_photon_in_a_bin_without_pixels_are_zero() -> None:
    profile = torch.zeros(1, 2, BINS)
    profile[0, 0, 5] = 1.0
    relative, weight, present = profile_features(profile)[0, :-1].reshape(3, BINS)
    assert not relative.any()
    assert not weight.any()
    assert not present.any()


def test_the_coarse_profile_keeps_every_photon_within_reach() -> None:
    geometry = Geometry((400, 400), 199.5, 199.5, 75e-6)
    bins = bin_map(geometry)
    rng = np.random.default_rng(0)
    photons, pixels = rng.poisson(9.0, bins.bins).astype(float), np.full(bins.bins, 64.0)
    coarse = coarse_profile(photons, pixels, profile_index(geometry, bins.radial_bins))
    assert coarse.shape == (2, BINS)
    assert coarse.sum(1).tolist() == [photons.sum(), pixels.sum()]


def test_what_lies_beyond_the_profiles_reach_is_left_out() -> None:
    radial_bins = 400
    index = profile_index(Geometry((10, 10), 0.0, 0.0, 75e-6), radial_bins).reshape(radial_bins, AZIMUTH_CLASSES)
    radius = (np.arange(radial_bins) + 0.5) * 8 * 75e-6
    np.testing.assert_array_equal((index[:, 0] == -1), radius >= PROFILE_BINS * PROFILE_BIN_M)
    assert index.max() == BINS - 1


@pytest.mark.parametrize("pixel_size_m", [1e-12, 75e-6, 1.0, 1e12])
def test_a_senseless_pixel_size_makes_an_index_all_the_same(pixel_size_m: float) -> None:
    index = profile_index(Geometry((10, 10), 0.0, 0.0, pixel_size_m), 20)
    assert index.min() >= -1
    assert index.max() < BINS
