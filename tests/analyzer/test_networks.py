"""The networks take whatever a detector gives."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
from analyzer.zones import CELL_COLUMNS, COLUMNS, STRONGEST, ZONES

BINS = PROFILE_BINS * AZIMUTH_CLASSES


def test_the_hit_network_gives_each_frame_of_a_batch_what_it_gets_alone() -> None:
    torch.manual_seed(1)
    network = HitNetwork()
    zones, cells = torch.rand(3, ZONES, COLUMNS) * 1e4, torch.rand(3, STRONGEST, CELL_COLUMNS) * 100
    cells[1, 5:] = 0
    header = torch.tensor([[7000.0, 0.25], [0.0, 0.0], [6000.0, 0.15]])
    with torch.inference_mode():
        whole = network(zones, cells, header)
        alone = torch.cat([network(zones[n : n + 1], cells[n : n + 1], header[n : n + 1]) for n in range(3)])
    assert whole.shape == (3,)
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


def test_the_hit_network_stays_finite_on_nothing_and_on_the_strongest_significance() -> None:
    for zone_count, strength in ((0.0, 0.0), (1e15, 1e12)):
        zones, cells = torch.full((1, ZONES, COLUMNS), zone_count), torch.full((1, STRONGEST, CELL_COLUMNS), strength)
        with torch.inference_mode():
            assert torch.isfinite(HitNetwork()(zones, cells, torch.tensor([[1e4, 0.1]]))).all()


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


def test_the_ratios_uncertainty_and_the_energys_make_the_lengths() -> None:
    torch.manual_seed(3)
    network = ParameterNetwork(hidden=32, blocks=1)
    profiles = torch.stack([torch.poisson(torch.full((5, BINS), 9.0)), torch.full((5, BINS), 1e3)], 1)
    with torch.inference_mode():
        features = profile_features(profiles)
        out = network(features)
        mean, log_sigma, correlation = network.joint(features)
    torch.testing.assert_close(out[:, 1], out[:, 0] + out[:, 2])
    torch.testing.assert_close(out[:, [2, 0]], mean)
    torch.testing.assert_close(out[:, [5, 3]], log_sigma)
    assert (correlation.abs() < 1).all()
    variance = log_sigma.exp().square().sum(1) + 2 * correlation * log_sigma.sum(1).exp()
    torch.testing.assert_close(out[:, 4].exp().square(), variance)


def test_features_do_not_change_when_frames_like_the_first_are_added_but_for_the_number_of_photons() -> None:
    profile = torch.stack([torch.arange(1.0, BINS + 1) * 1e3, torch.full((BINS,), 1e3)])[None]
    once, often = profile_features(profile), profile_features(100 * profile)
    torch.testing.assert_close(once[:, :-1], often[:, :-1], rtol=1e-3, atol=1e-3)
    assert often[0, -1] > once[0, -1]


def test_features_of_one_photon_in_a_bin_without_pixels_are_zero() -> None:
    profile = torch.zeros(1, 2, BINS)
    profile[0, 0, 5] = 1.0
    relative, excess, present = profile_features(profile)[0, :-1].reshape(3, BINS)
    assert not relative.any()
    assert not excess.any()
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


def test_where_its_inputs_are_on_a_device_the_hit_network_fetches_nothing_from_the_cpu() -> None:
    """A copy of a tensor that was made here would wait for the device in the middle of a batch."""
    elsewhere: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = op(*args, **(kwargs or {}))
            if any(isinstance(each, Tensor) and each.device.type == "cpu" for each in tree_leaves((args, kwargs, out))):
                elsewhere.append(str(op))
            return out

    network = HitNetwork().to("meta").eval()
    inputs = [
        torch.zeros(shape, device="meta") for shape in ((32, ZONES, COLUMNS), (32, STRONGEST, CELL_COLUMNS), (32, 2))
    ]
    with torch.inference_mode(), Watch():
        assert network(*inputs).shape == (32,)
        assert elsewhere == []
        torch.zeros(2) + 1.0
    assert elsewhere, "the watch sees what is on the CPU"
