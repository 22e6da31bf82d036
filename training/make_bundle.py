"""From shots to a bundle: train, calibrate, evaluate on a fresh seed, write card and weights."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from analyzer.bundle import (
    CARD,
    FORMAT,
    BundleCard,
    HitCard,
    ParametersCard,
    PeaksCard,
    ScatteringCard,
    save_card,
    save_weights,
)
from analyzer.drift import score_histogram
from training.evaluation.calibration import HIT_FRACTIONS, at_fraction
from training.hit import NETWORK, HitRecipe, TrainedHit, predict, train_hit
from training.hit_performance import mix_rows
from training.parameter_performance import evaluate_parameters
from training.parameters import NETWORK as PARAMETER_NETWORK
from training.parameters import ParameterRecipe, train_parameters
from training.placements import make_placements
from training.scattering import write_scattering
from training.shots import DISTRACTED, ShotRecipe, ShotSet, join, make_shots

Progress = Callable[[int, int, str], None]
KeepGoing = Callable[[int, int], bool]
PRIOR = 0.5
"""The share of hits at which probabilities are calibrated."""

_VALIDATION_SHARE, _TEST_SHARE = 8, 8
_DISTRACTED_SHARE = 2
"""One shard of so many is of frames with distractors, for training alone: calibration and figures are of the mix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to train and with what. Validation uses ``seed + 1``, test ``seed + 2``.

    out: where the bundle is put together, apart from the place it is for; name: what its card calls it.
    """

    out: Path
    name: str
    work: Path
    shards: int
    seed: int
    workers: int
    command: str
    hit: HitRecipe
    parameters: ParameterRecipe


def make_hit(
    plan: Plan,
    device: torch.device,
    progress: Progress,
    keep_going: KeepGoing = lambda done, total: True,
) -> HitCard | None:
    """Train the hit network; writes its weights and returns its card, or None when told to stop before the end.

    What is simulated and the run itself lie in the plan's folder for work: the same call goes on where it was.
    """
    recipe = ShotRecipe()
    distracted = replace(recipe, **DISTRACTED)

    def shots(recipe: ShotRecipe, seed: int, shards: range, name: str) -> list[ShotSet]:
        if not shards:
            return []
        return [
            make_shots(recipe, seed, shards, plan.work, plan.workers, lambda n, of: progress(n, of, f"{name} shots"))
        ]

    plain = plan.shards - plan.shards // _DISTRACTED_SHARE
    train = join([
        *shots(recipe, plan.seed, range(plain), "training"),
        *shots(distracted, plan.seed, range(plain, plan.shards), "distracted training"),
    ])  # fmt: skip
    (validation,) = shots(recipe, plan.seed + 1, range(max(1, plan.shards // _VALIDATION_SHARE)), "validation")
    (test,) = shots(recipe, plan.seed + 2, range(max(1, plan.shards // _TEST_SHARE)), "test")
    settings = hashlib.sha256(f"{recipe.digest} {plan.hit} {plan.seed} {plan.shards}".encode()).hexdigest()[:8]
    folder = plan.work / f"hit-{settings}"
    trained = train_hit(
        train, validation, plan.hit, device, folder, progress=progress, keep_going=keep_going, resume=folder.is_dir()
    )
    if trained is None:
        return None
    probability = trained.probability(predict(trained.network, test, device))
    rows = mix_rows(probability, test, trained.threshold)
    performance = {
        "frames": len(test),
        "rows": rows,
        "calibration": _calibration_rows(trained, test, device),
        "false_hit_rate": [rows[0]["false_hits"], *rows[0]["false_hits_interval"]],
    }
    digest = save_weights(trained.network, plan.out / "hit.safetensors")
    return HitCard(
        network=NETWORK,
        settings={"channels": plan.hit.channels, "hidden": plan.hit.hidden},
        weights="hit.safetensors",
        sha256=digest,
        threshold=round(trained.threshold, 6),
        temperature=trained.temperature,
        bias=trained.bias,
        prior=PRIOR,
        training={
            "command": plan.command,
            "shots": {"training": len(train), "validation": len(validation), "test": len(test)},
            "seeds": {"training": plan.seed, "validation": plan.seed + 1, "test": plan.seed + 2},
            "shot_recipe": asdict(recipe),
            "distracted": {
                "shots": len(train) - plain * recipe.groups_per_shard * recipe.shots_per_group,
                **DISTRACTED,
            },
            "recipe": asdict(plan.hit),
            "history": trained.history,
            "seconds": round(sum(epoch["seconds"] for epoch in trained.history), 1),
            "machine": {"device": str(device), "cores": os.cpu_count(), "torch": str(torch.__version__)},
        },
        performance=performance,
        score_reference_empties=score_histogram(probability[~test.hit]),
        score_reference_hits=score_histogram(probability[test.hit]),
    )


def _calibration_rows(trained: TrainedHit, test: ShotSet, device: torch.device) -> list[dict[str, Any]]:
    """Expected calibration errors with and without a header, at other shares of hits after correction of the prior."""
    rows = []
    for known in (True, False):
        probability = trained.probability(predict(trained.network, test, device, known))
        for fraction in HIT_FRACTIONS:
            error = at_fraction(probability, test.hit, PRIOR, fraction).error
            rows.append({"header": "known" if known else "none", "share_of_hits": fraction, "calibration_error": error})
    return rows


def make_parameters(
    plan: Plan,
    device: torch.device,
    progress: Progress,
    keep_going: KeepGoing = lambda done, total: True,
) -> ParametersCard | None:
    """Train the parameter network; writes its weights and returns its card, or None when told to stop before the end.

    The run lies in the plan's folder for work: the same call goes on where it was.
    """
    recipe = plan.parameters
    train = make_placements(plan.seed, recipe.placements, progress)
    validation = make_placements(plan.seed + 1, max(4, recipe.placements // _VALIDATION_SHARE), progress)
    settings = hashlib.sha256(f"{recipe} {plan.seed}".encode()).hexdigest()[:8]
    folder = plan.work / f"parameters-{settings}"
    trained = train_parameters(train, validation, recipe, device, folder, progress=progress, keep_going=keep_going)
    if trained is None:
        return None
    network, scale = trained
    test = make_placements(plan.seed + 2, max(4, recipe.placements // _TEST_SHARE), progress)
    performance = evaluate_parameters(network, scale, recipe.world, test, 1000 * (plan.seed + 2), device)
    digest = save_weights(network, plan.out / "parameters.safetensors")
    return ParametersCard(
        network=PARAMETER_NETWORK,
        settings=recipe.settings,
        weights="parameters.safetensors",
        sha256=digest,
        sigma_scale=scale,
        training={
            "command": plan.command,
            "recipe": asdict(recipe),
            "seeds": {"training": plan.seed, "validation": plan.seed + 1, "test": plan.seed + 2},
            "machine": {"device": str(device), "cores": os.cpu_count(), "torch": str(torch.__version__)},
        },
        performance=performance,
    )


def write_bundle(
    plan: Plan,
    hit: HitCard,
    parameters: ParametersCard,
    peaks: PeaksCard | None = None,
    scattering: ScatteringCard | None = None,
) -> BundleCard:
    """Write the card that makes the plan's folder a bundle, and tables of what scatters where it has none."""
    card = BundleCard(
        format=FORMAT,
        name=plan.name,
        description="hit and parameter networks trained on simulated EIGER2 4M shots",
        hit=hit,
        parameters=parameters,
        peaks=peaks,
        scattering=scattering or write_scattering(plan.out),
    )
    save_card(card, plan.out)
    return card


def put_bundle(made: Path, out: Path) -> None:
    """Put a complete bundle into ``out``, in the place of one that is there, the card last.

    Until all its files lie beside those that they replace, nothing has changed. Raises ``OSError``, naming the file.
    """
    card = msgspec.json.decode((made / CARD).read_bytes(), type=BundleCard)
    named = [each for each in (card.hit, card.parameters, card.peaks, card.scattering) if each is not None]
    parts = {out / f"{name}.part": name for name in (*(each.weights for each in named), CARD)}
    try:
        for part, name in parts.items():
            shutil.copyfile(made / name, part)
        for part, name in parts.items():
            os.replace(part, out / name)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, intervals and fractions to three digits."""

    def cell(value: Any) -> str:
        if value is None:
            return "–"
        if isinstance(value, (tuple, list)):
            return " to ".join(f"{v:.3f}" for v in value)
        return f"{value:.3f}" if isinstance(value, (float, np.floating)) else str(value)

    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([cell(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
