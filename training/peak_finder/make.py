"""From shots to the part of a bundle that finds peaks: train, set the threshold, compare on a fresh seed, card."""

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from analyzer.bundle import PeaksCard, save_weights
from analyzer.learned_finder import LearnedFinder
from training.peak_finder.comparison import (
    CLASSICAL,
    COUNT_BINS,
    FLOOR,
    LEARNED,
    SNR_BINS,
    Cost,
    Judged,
    Matched,
    Row,
    false_rows,
    judge_twin,
    least_rows,
    matched,
    place_rows,
    recall_rows,
    threshold_for,
)
from training.peak_finder.tiles import TileRecipe, make_tiles
from training.peak_finder.train import NETWORK, FinderRecipe, Progress, train_finder

WEIGHTS = "peaks.safetensors"

FALSE_PEAKS_A_FRAME = 0.04
"""In the mean over frames of protein and water, or of water alone, of the validation seed; sets the threshold."""

_VALIDATION_SHARE, _TEST_SHARE = 8, 8

KeepGoing = Callable[[int, int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinderPlan:
    """What to train and with what. Validation uses ``seed + 1``, test ``seed + 2``."""

    out: Path
    work: Path
    shards: int
    seed: int
    workers: int
    command: str
    recipe: FinderRecipe
    tiling: TileRecipe = field(default_factory=TileRecipe)


def make_peaks(
    plan: FinderPlan,
    device: torch.device,
    progress: Progress,
    keep_going: KeepGoing = lambda done, total: True,
) -> PeaksCard | None:
    """Train the peak network; writes its weights and returns its card, or None when told to stop before the end.

    Tiles and the run itself lie in the plan's folder for work: the same call goes on where it was.
    """
    tiling = plan.tiling
    tiles = make_tiles(
        tiling, plan.seed, range(plan.shards), plan.work, plan.workers, lambda n, of: progress(n, of, "shards of tiles")
    )
    settings = hashlib.sha256(f"{tiling.digest} {plan.recipe} {plan.seed} {plan.shards}".encode()).hexdigest()[:8]
    trained = train_finder(
        tiles, plan.recipe, device, plan.work / f"peaks-{settings}", progress=progress, keep_going=keep_going
    )
    if trained is None:
        return None
    network = trained.network.cpu()
    finder = LearnedFinder(network, FLOOR, tiling.threshold)
    groups = plan.shards * tiling.shots.groups_per_shard

    def judged(seed: int, count: int, name: str) -> tuple[list[Judged], Cost]:
        cost = Cost()
        said: Callable[[int, int], None] = lambda n, of: progress(n, of, f"groups of {name} shots")  # noqa: E731
        return list(judge_twin(finder, tiling.shots, seed, range(count), cost, said)), cost

    validation, _ = judged(plan.seed + 1, max(1, groups // _VALIDATION_SHARE), "validation")
    surprise = threshold_for(validation, LEARNED, FALSE_PEAKS_A_FRAME)
    threshold = min(max(-math.expm1(-surprise), FLOOR), 1.0 - 1e-6)
    test, cost = judged(plan.seed + 2, max(1, groups // _TEST_SHARE), "test")
    performance = comparison(test, threshold) | {
        "cpu_ms_a_frame": round(1e3 * cost.learned_s / max(1, cost.frames), 2),
    }
    digest = save_weights(network, plan.out / WEIGHTS)
    return PeaksCard(
        network=NETWORK,
        weights=WEIGHTS,
        sha256=digest,
        threshold=round(threshold, 6),
        tile_threshold=tiling.threshold,
        training={
            "command": plan.command,
            "tiles": len(tiles),
            "tiles_with_spot": int(tiles.targets.spot.any((1, 2)).sum()),
            "shots": groups * tiling.shots.shots_per_group,
            "seeds": {"training": plan.seed, "validation": plan.seed + 1, "test": plan.seed + 2},
            "shot_recipe": asdict(tiling.shots),
            "recipe": asdict(plan.recipe),
            "history": trained.history,
            "machine": {"device": str(device), "cores": os.cpu_count(), "torch": str(torch.__version__)},
        },
        performance=performance,
    )


def sets_of(frames: list[Judged], threshold: float) -> dict[str, list[Matched]]:
    """Both finders at work: the classical one as it is, the learned one from this heat."""
    return {
        CLASSICAL: matched(frames, CLASSICAL),
        LEARNED: matched(frames, LEARNED, -math.log1p(-threshold)),
    }


def clean(sets: dict[str, list[Matched]]) -> dict[str, list[Matched]]:
    """Frames of protein and water, or of water alone."""
    return {name: [each for each in some if each.frame.clean] for name, some in sets.items()}


def comparison(frames: list[Judged], threshold: float) -> dict[str, list[Row]]:
    """The tables of a comparison by name. Recall and places are of clean frames."""
    sets = sets_of(frames, threshold)
    tables: dict[str, list[Row]] = {
        "from_counts": least_rows(clean(sets)),
        "by_counts": recall_rows(clean(sets), "counts", COUNT_BINS),
        "by_snr": recall_rows(clean(sets), "snr", SNR_BINS),
        "false_peaks": false_rows(sets),
        "places_px": place_rows(clean(sets)),
    }
    for response in dict.fromkeys(frame.response for frame in frames):
        some: dict[str, Any] = {
            name: [each for each in each_set if each.frame.response == response] for name, each_set in sets.items()
        }
        tables[f"from_counts, {response}"] = least_rows(clean(some))
    return tables
