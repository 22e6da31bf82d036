"""The bundle's tables of what scatters: what the simulation knows of water, air, polyimide and glass."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from analyzer.bundle import ScatteringCard
from analyzer.parameters.scattering import Q_STEP
from sim_replay.scatter import (
    Q_STEP_INV_ANGSTROM,
    ROOM_TEMPERATURE_K,
    air_per_sr,
    glass_per_sr,
    polyimide_per_sr,
    water_per_sr,
)

WEIGHTS = "scattering.safetensors"
SOURCES = {
    "water": "Clark et al. 2010 joined to Hura et al. 2003, 25 C; its change with temperature from Hura et al. 2003",
    "air": "free atoms (International Tables 1992), Debye; Compton part after Balyuzi 1975",
    "polyimide": "Peplow and Verghese 1998",
    "glass": "a model of vitreous silica",
}
_WATER_M, _WARMER_K = 100e-6, 10.0


def write_scattering(folder: Path) -> ScatteringCard:
    """Write the tables into a bundle's folder; returns their part of its card."""
    water, warm, cold = (
        water_per_sr(_WATER_M, ROOM_TEMPERATURE_K + difference) for difference in (0.0, _WARMER_K, -_WARMER_K)
    )
    tables = {
        "water": water,
        "water_warmed": (warm - cold) / 2.0,
        "water_warmed_twice": (warm + cold) / 2.0 - water,
        "air": air_per_sr(0.01),
        "polyimide": polyimide_per_sr(25e-6),
        "glass": glass_per_sr(10e-6),
        Q_STEP: np.array([Q_STEP_INV_ANGSTROM]),
    }
    data = save({name: torch.from_numpy(np.ascontiguousarray(table)) for name, table in tables.items()})
    (folder / WEIGHTS).write_bytes(data)
    return ScatteringCard(weights=WEIGHTS, sha256=hashlib.sha256(data).hexdigest(), sources=SOURCES)
