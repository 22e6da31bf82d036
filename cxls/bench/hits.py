"""Hits found and false hits of a bundle on simulated shots, scenario by scenario, with Wilson intervals.

The shots' seed is never trained on; every hit has an orientation of its own. ``--frames`` is shots a scenario.
"""

import math
import os
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from cxls.bench.report import Figure, Ratio, Report
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, BenchSettings
from training.hit import NETWORK, of_bundle, predict
from training.hit_performance import (
    SCENARIOS,
    count_row,
    in_question,
    paired_difference,
    recall_at_equal_light,
    smaller,
)
from training.shots import ShotSet, make_shots
from training.statistics import recall_at

SEED = 7_001
_GROUPS_A_SHARD = 16


def run(settings: BenchSettings) -> Report:
    """Judge every scenario with and without the header's photon energy and camera length."""
    bundle = load_bundle(settings.bundle or DEFAULT_BUNDLE)
    if bundle.card.hit.network != NETWORK:
        raise BadSettings(f"bundle {bundle.label}: network {bundle.card.hit.network} does not read reduced shots")
    names = [name.strip() for name in settings.scenarios.split(",") if name.strip()] or list(SCENARIOS)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise BadSettings(f"--scenarios {unknown[0]}: unknown; take some of {', '.join(SCENARIOS)}")
    judged_by = of_bundle(bundle)
    figures: list[Figure] = []
    judged: dict[bool, dict[str, tuple[npt.NDArray[np.float64], ShotSet]]] = {False: {}, True: {}}
    for name in names:
        with interruptible_progress(name, "shards of shots") as after_shard:
            shots = _shots(settings, name, after_shard)
        for known in (False, True):
            probability = judged_by.probability(predict(judged_by.network, shots, torch.device("cpu"), known))
            figures += _figures(name, known, probability, shots, bundle.card.hit.threshold)
            judged[known][name] = (probability, shots)
    return Report(
        f"hits: {bundle.label}, threshold {bundle.card.hit.threshold:.3f}",
        figures,
        tuple(ratio for known in judged for ratio in _ratios(judged[known], known, bundle.card.hit.threshold)),
        (
            f"simulated EIGER2 4M shots of seed {SEED}",
            "of salt only frames of 3 to 30 spots, the strongest of 10 to 1e4 photons",
        ),
    )


def _shots(settings: BenchSettings, name: str, after_shard: Callable[[int, int], None]) -> ShotSet:
    recipe = smaller(SCENARIOS[name].recipe, _GROUPS_A_SHARD)
    shards = math.ceil(settings.frames / (recipe.groups_per_shard * recipe.shots_per_group))
    return make_shots(recipe, SEED, range(shards), settings.work, os.cpu_count() or 1, after_shard)


def _figures(
    name: str, known: bool, probability: npt.NDArray[np.float64], shots: ShotSet, threshold: float
) -> list[Figure]:
    scenario = SCENARIOS[name]
    chosen = in_question(scenario, shots)
    row = count_row(scenario.question, probability[chosen], shots.hit[chosen], threshold)
    title = f"{scenario.question}, {_header(known)}"
    figures = []
    if row["false_hits"] is not None:
        total = row["empties_called_hit"] + row["empties_passed"]
        note = f"{row['empties_called_hit']} of {total}, {_percent(row['false_hits_interval'])}"
        figures.append(Figure(f"{title}: empties called hits", "%", 100 * row["false_hits"], note=note))
    if row["recall"] is not None:
        total = row["hits_found"] + row["hits_missed"]
        note = f"{row['hits_found']} of {total}, {_percent(row['recall_interval'])}"
        figures.append(Figure(f"{title}: hits found", "%", 100 * row["recall"], note=note))
    if row["auc"] is not None:
        figures.append(Figure(f"{title}: AUC", "", row["auc"]))
        one_percent = recall_at(probability[chosen], shots.hit[chosen], 0.01)
        figures.append(Figure(f"{title}: hits found at 1 % false hits", "%", 100 * one_percent))
    return figures


def _percent(interval: tuple[float, float]) -> str:
    return f"95 %: {100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"


def _ratios(
    judged: dict[str, tuple[npt.NDArray[np.float64], ShotSet]], known: bool, threshold: float
) -> Iterator[Ratio]:
    """Recalls that are to be equal, as differences."""
    header = _header(known)
    for name, (probability, shots) in judged.items():
        if name.startswith("protein-") and "protein" in judged:
            alone_probability, alone = judged["protein"]
            # The same crystals in the same light, but for shots that had to be drawn again.
            both = shots.hit & alone.hit & (shots.facts["bragg_photons"] == alone.facts["bragg_photons"])
            difference, low, high = paired_difference(
                probability[both] >= threshold, alone_probability[both] >= threshold
            )
            title = f"{SCENARIOS[name].question}, {header}: recall less that of the same {both.sum()} alone"
            yield Ratio(title, difference, f"at least -0.02; 95 %: {low:+.3f} to {high:+.3f}")
        elif name in ("cells", "two-crystals") and "proteinase-k" in judged:
            mine, reference = recall_at_equal_light(probability, shots, *judged["proteinase-k"], threshold)
            title = f"{SCENARIOS[name].question}, {header}: recall less proteinase K's at equal Bragg light"
            yield Ratio(title, mine - reference, "at least -0.01")


def _header(known: bool) -> str:
    return "header known" if known else "no header"
