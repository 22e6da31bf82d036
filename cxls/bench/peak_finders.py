"""The learned peak finder of a bundle beside the classical one, on the same reduced frames.

On simulated shots of a seed that is never trained on, ``--frames`` of them, or on ``--series`` with truth, so many
frames of each.
"""

import math
from pathlib import Path

import torch

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.learned_finder import LearnedFinder
from cxls.bench.report import Figure, Report
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, BenchSettings
from training.dataset.sources import find_sources
from training.dataset.tree import Tree
from training.make_bundle import table
from training.peak_finder.comparison import FLOOR, Cost, Judged, judge_series, judge_twin
from training.peak_finder.make import comparison
from training.peak_finder.tiles import FINDER_SHOTS

SEED = 9_001


def run(settings: BenchSettings) -> Report:
    """Both finders on every frame; the tables are those of the bundle's card."""
    torch.set_num_threads(1)
    bundle = load_bundle(settings.bundle or DEFAULT_BUNDLE)
    card = bundle.card.peaks
    if card is None or bundle.peaks is None:
        raise BadSettings(f"bundle {bundle.label}: has no learned peak finder; `cxls train peak-finder` adds one")
    # From a floor, and then from the card's threshold: what is surer does not depend on what is less sure.
    finder = LearnedFinder(bundle.peaks, min(FLOOR, card.threshold), card.tile_threshold)
    cost = Cost()
    frames, where = _on_series(settings, finder, cost) if settings.series else _on_twin(settings, finder, cost)
    figures = (
        Figure("learned finder", "ms CPU a frame", 1e3 * cost.learned_s / cost.frames),
        Figure(
            "reduction with the classical finder",
            "ms CPU a frame",
            1e3 * cost.reduce_s / cost.frames if cost.reduce_s else None,
            note="" if cost.reduce_s else "simulated and reduced at once; --series measures it",
        ),
    )
    tables = comparison(frames, card.threshold)
    notes = [where, *(f"\n{name}\n{table(rows)}" for name, rows in tables.items() if rows)]
    return Report(
        f"peak-finders: {bundle.label}, peaks from a heat of {card.threshold:.3f}", figures, (), notes, tables
    )


def _on_twin(settings: BenchSettings, finder: LearnedFinder, cost: Cost) -> tuple[list[Judged], str]:
    groups = math.ceil(settings.frames / FINDER_SHOTS.shots_per_group)
    with interruptible_progress("shots", "groups") as after_group:
        frames = list(judge_twin(finder, FINDER_SHOTS, SEED, range(groups), cost, after_group))
    return frames, f"{len(frames)} simulated EIGER2 4M shots of seed {SEED}, by expected counts"


def _on_series(settings: BenchSettings, finder: LearnedFinder, cost: Cost) -> tuple[list[Judged], str]:
    masters: list[Path] = []
    for source in find_sources(settings.series):
        if isinstance(source, Tree):
            raise BadSettings(f"--series {source.images}: a tree; give Eiger masters with truth")
        masters.append(source)
    with interruptible_progress("frames", "of a series") as after_frame:
        frames = list(judge_series(finder, masters, cost, settings.frames, after_frame))
    return frames, f"{len(frames)} frames of {len(masters)} series, by the photons of their truth"
