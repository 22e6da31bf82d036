"""How well a hit network does: on the mix it was trained for, and scenario by scenario.

A scenario is a recipe of shots that asks one question, such as whether salt alone is called a hit. Its shots are of
seeds that training never saw, each with an orientation, background and noise of its own.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.intervals import wilson
from sim_replay.distractors import Kind
from training.shots import HELD_OUT_CELLS, RESPONSES, ShotRecipe, ShotSet
from training.statistics import area_under_curve, confusion

_CLEAN: dict[str, Any] = {"salt": 0.0, "ice": 0.0, "lipid": 0.0, "polymer": 0.0, "no_beam": 0.0}
_PLAIN: dict[str, Any] = {
    **_CLEAN, "artefacts_fraction": 0.0, "surroundings_fraction": 0.0, "masked_fraction": 0.0,
    "several_crystals_fraction": 0.0, "one_per_pulse_fraction": 0.0, "retrigger_fraction": 0.0,
    "shared_charge_fraction": 0.0,
}  # fmt: skip
_SALT_SEEN: dict[str, Any] = {
    "photon_energy_eV": (7000.0, 10000.0),
    "camera_length_m": (0.10, 0.16),
    "paper_fraction": 0.0,
}
"""Where salt's first reflections fall on the panel; elsewhere it is not there to be mistaken."""

_DISTRACTED: dict[str, Any] = {"flux_photons": (1e7, 1e9), "artefacts_fraction": 0.0}


@dataclass(frozen=True, slots=True)
class Scenario:
    """Shots that ask one question; `kind`: only frames with it count, all where it is none."""

    question: str
    recipe: ShotRecipe
    kind: Kind | None = None


def _at_flux(flux: float, **more: Any) -> ShotRecipe:
    """The paper's crystal at its nine conditions, pulse energy and water each spread by about 30 %."""
    return ShotRecipe(**{
        **_PLAIN, "cells": ("proteinase-k",), "paper_fraction": 1.0, "crystal_size_m": (1e-5, 1e-5),
        "wilson_b_angstrom2": (10.6, 10.6), "mosaicity_deg": (0.05, 0.05), "bandwidth": (0.01, 0.01),
        "flux_photons": (0.6 * flux, 1.67 * flux), "water_scale": (0.6, 1.67), "sampled_fraction": 0.0, **more,
    })  # fmt: skip


SCENARIOS: Mapping[str, Scenario] = {
    "salt": Scenario(
        "salt alone", ShotRecipe(**{**_CLEAN, **_DISTRACTED, **_SALT_SEEN, "salt": 1.0, "hit_fraction": 0.0}), Kind.SALT
    ),
    "ice": Scenario("ice alone", ShotRecipe(**{**_CLEAN, **_DISTRACTED, "ice": 1.0, "hit_fraction": 0.0}), Kind.ICE),
    "lipid": Scenario(
        "lipid alone", ShotRecipe(**{**_CLEAN, **_DISTRACTED, "lipid": 1.0, "hit_fraction": 0.0}), Kind.LIPID
    ),
    "polymer": Scenario(
        "PEG alone", ShotRecipe(**{**_CLEAN, **_DISTRACTED, "polymer": 1.0, "hit_fraction": 0.0}), Kind.POLYMER
    ),
    "faults": Scenario(
        "hot, flickering and cosmic pixels alone",
        ShotRecipe(**{**_CLEAN, "artefacts_fraction": 1.0, "hit_fraction": 0.0}),
    ),
    "water": Scenario("water alone", ShotRecipe(**{**_PLAIN, "hit_fraction": 0.0})),
    "cells": Scenario("cells never trained on", ShotRecipe(**{**_PLAIN, "cells": HELD_OUT_CELLS})),
    "two-crystals": Scenario(
        "two or three crystals of cells never trained on",
        ShotRecipe(**{**_PLAIN, "cells": HELD_OUT_CELLS, "several_crystals_fraction": 1.0}),
    ),
    "proteinase-k": Scenario("proteinase K", ShotRecipe(**{**_PLAIN, "cells": ("proteinase-k",)})),
    "protein": Scenario("protein alone", ShotRecipe(**{**_PLAIN, **_SALT_SEEN, "hit_fraction": 1.0, "matched": True})),
    **{
        f"protein-{name}": Scenario(
            f"protein with {name}",
            ShotRecipe(**{**_PLAIN, **_SALT_SEEN, "hit_fraction": 1.0, "matched": True, name: 1.0}),
        )
        for name in ("salt", "ice", "lipid", "polymer")
    },
    **{f"flux-{flux:.0e}".replace("e+0", "e"): Scenario(f"{flux:g} photons a pulse", _at_flux(flux))
       for flux in (3e5, 1e6, 3e6, 3e7, 3e8)},
    **{
        f"one-per-pulse-{flux:.0e}".replace("e+0", "e"): Scenario(
            f"one count a pixel a pulse, {flux:g} photons", _at_flux(flux, one_per_pulse_fraction=1.0)
        )
        for flux in (3e7, 3e8)
    },
    "bright-water": Scenario("3e8 photons, water 33 times brighter", _at_flux(3e8, water_scale=(20.0, 50.0))),
    "no-beam": Scenario("no beam", ShotRecipe(**{**_PLAIN, "no_beam": 1.0, "hit_fraction": 0.0}), Kind.NO_BEAM),
}  # fmt: skip


def in_question(scenario: Scenario, shots: ShotSet) -> npt.NDArray[np.bool_]:
    """Which shots (N,) a scenario is about: those with its kind; of salt, those of 3 to 30 spots, up to 1e4 photons."""
    kinds = shots.facts["kinds"].astype(np.int64)
    chosen = (kinds & scenario.kind) != 0 if scenario.kind is not None else np.ones(len(shots), bool)
    if scenario.kind == Kind.SALT:
        spots, strongest = shots.facts["salt_spots"], shots.facts["strongest_photons"]
        chosen &= (spots >= 3) & (spots <= 30) & (strongest >= 10) & (strongest <= 1e4)
    return chosen


def count_row(
    name: str, probability: npt.NDArray[np.float64], hit: npt.NDArray[np.bool_], threshold: float
) -> dict[str, Any]:
    """Confusion counts at the threshold with rates, Wilson intervals and the area under the curve."""
    counts = confusion(probability >= threshold, hit)
    hits = counts["hits_found"] + counts["hits_missed"]
    empties = counts["empties_called_hit"] + counts["empties_passed"]
    return {
        "set": name,
        **counts,
        "recall": counts["hits_found"] / hits if hits else None,
        "recall_interval": wilson(counts["hits_found"], hits),
        "false_hits": counts["empties_called_hit"] / empties if empties else None,
        "false_hits_interval": wilson(counts["empties_called_hit"], empties),
        "auc": area_under_curve(probability, hit),
    }


def mix_rows(probability: npt.NDArray[np.float64], shots: ShotSet, threshold: float) -> list[dict[str, Any]]:
    """Rows over all shots and by what a hit shows, flux, response and what else is in the frame.

    Shows: the expected log likelihood ratio of the crystal's light, in nats; below 3 a frame with a crystal is not
    to be told from one without, whoever looks.
    """
    hit, facts = shots.hit, shots.facts
    kinds = facts["kinds"].astype(np.int64)

    def row(name: str, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
        return count_row(name, probability[chosen], hit[chosen], threshold)

    rows = [row("all", np.ones(len(shots), bool))]
    for low, high in itertools.pairwise((0, 3, 10, 30, 100, math.inf)):
        llr = facts["log_likelihood_ratio"]
        rows.append(row(f"a hit shows {low} to {high} nats", ~hit | ((llr >= low) & (llr < high))))
    for decade in (5, 6, 7, 8):
        flux = np.log10(np.maximum(facts["flux_photons"], 1.0))
        rows.append(row(f"1e{decade} to 1e{decade + 1} photons a pulse", (flux >= decade) & (flux < decade + 1)))
    for number, response in enumerate(RESPONSES):
        rows.append(row(f"response {response}", facts["response"] == number))
    for kind in (Kind.WATER, Kind.SALT, Kind.ICE, Kind.LIPID, Kind.POLYMER, Kind.HOT_PIXEL, Kind.FLICKER, Kind.COSMIC):
        rows.append(row(f"with {str(kind.name).lower().replace('_', ' ')}", hit_or(kinds, kind, hit)))
    return rows


def hit_or(kinds: npt.NDArray[np.int64], kind: Kind, hit: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Frames with a kind; water's stand beside all hits, as a hit is never water alone."""
    chosen: npt.NDArray[np.bool_] = (kinds & int(kind)) != 0
    return chosen | hit if kind == Kind.WATER else chosen


def recall_at_equal_light(
    probability: npt.NDArray[np.float64],
    shots: ShotSet,
    reference_probability: npt.NDArray[np.float64],
    reference: ShotSet,
    threshold: float,
) -> tuple[float, float]:
    """Recall of two sets' hits over the range of Bragg photons that both have, each weighted by the reference's."""
    edges = np.geomspace(3.0, 1e5, 19)
    mine, theirs = shots.facts["bragg_photons"][shots.hit], reference.facts["bragg_photons"][reference.hit]
    said, reference_said = probability[shots.hit] >= threshold, reference_probability[reference.hit] >= threshold
    weight, recall, reference_recall = 0.0, 0.0, 0.0
    for low, high in itertools.pairwise(edges):
        a, b = (mine >= low) & (mine < high), (theirs >= low) & (theirs < high)
        if a.sum() < 10 or b.sum() < 10:
            continue
        weight += b.sum()
        recall += b.sum() * said[a].mean()
        reference_recall += b.sum() * reference_said[b].mean()
    return (recall / weight, reference_recall / weight) if weight else (math.nan, math.nan)


def paired_difference(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    """Share of `one` less that of `other`, of the same trials (N,), with its 95 % interval: (difference, low, high).

    Only trials in which they differ say anything of it (Agresti and Min, Statistics in Medicine 24, 2005, 729: a half
    added to each of the four counts).
    """
    gained, lost, count = (one & ~other).sum() + 0.5, (other & ~one).sum() + 0.5, len(one) + 2.0
    difference = (gained - lost) / count
    reach = 1.96 * math.sqrt((gained + lost) / count - difference**2) / math.sqrt(count)
    return float(one.mean() - other.mean()), difference - reach, difference + reach


def smaller(recipe: ShotRecipe, groups: int) -> ShotRecipe:
    """The recipe in shards of so many groups."""
    return replace(recipe, groups_per_shard=groups)
