"""Networks are found by name, and nothing else is run."""

import pytest

from analyzer.architectures import OWN, build
from analyzer.networks import HitNetwork, ParameterNetwork
from analyzer.peak_network import PeakNetwork


def test_a_registry_name_builds_its_network() -> None:
    assert {name: type(build(name, {})) for name in OWN} == {
        "hit-zones-and-cells": HitNetwork,
        "parameters-radial-profile": ParameterNetwork,
        "peaks-heat-tiles": PeakNetwork,
    }


def test_a_setting_of_the_card_reaches_the_network() -> None:
    small, large = (build("hit-zones-and-cells", {"channels": n}) for n in (4, 8))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in large.parameters())


def test_an_unknown_network_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        build("os.system", {})
