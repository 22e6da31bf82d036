"""The registry of networks: what a bundle's card, a recipe or a command may name.

The analyser's own networks stand here; those of ``training`` (the 2024 paper's) and of other
packages come by the entry point group ``cxls.networks``, whose names are the networks' and whose
objects are ``Architecture``. A network that is named and not installed is refused by name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from analyzer.networks import HitNetwork, ParameterNetwork
from analyzer.peak_network import PeakNetwork
from analyzer.plugins import find, known_names
from analyzer.tile_layout import CHANNELS, FACTS, TILE

GROUP = "cxls.networks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How to build a network and what it takes.

    inputs: names of the sample's fields that ``forward`` takes, in its order: ``image`` (B, 1, ss, fs) float32
    counts with invalid pixels 0; ``zones``, ``cells``, ``header`` and ``profile`` as the reduction leaves them; or
    fields of a package's own.
    shapes: of one sample of the fields of a package's own, without the batch; what the layers' table is made with.
    sized: the network is tied to one frame size and ``build`` takes it as ``shape=(ss, fs)``.
    classes: ``build`` takes the number of outputs as ``classes=N``.
    start_only: settings that say where a fresh network starts from; a saved model has weights and keeps none of them.
    source: where the layers are published.
    """

    build: Callable[..., nn.Module]
    inputs: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sized: bool = False
    classes: bool = False
    start_only: tuple[str, ...] = ()
    source: str = ""


OWN: dict[str, Architecture] = {
    "hit-zones-and-cells": Architecture(build=HitNetwork, inputs=("zones", "cells", "header")),
    "parameters-radial-profile": Architecture(build=ParameterNetwork, inputs=("profile",)),
    "peaks-heat-tiles": Architecture(
        build=PeakNetwork,
        inputs=("tiles", "tile_facts"),
        shapes={"tiles": (CHANNELS, TILE, TILE), "tile_facts": (FACTS,)},
    ),
}


def names() -> list[str]:
    """Every network that can be named here, sorted."""
    return known_names(OWN, GROUP)


def architecture(name: str) -> Architecture:
    """The architecture of a name. Raises ``KeyError`` for an unknown one, ``TypeError`` for a broken plugin."""
    return find(name, OWN, GROUP, Architecture)


def build(name: str, settings: dict[str, Any]) -> nn.Module:
    """A network from the registry. Raises as ``architecture``, ``TypeError`` for settings it does not have."""
    return architecture(name).build(**settings)
