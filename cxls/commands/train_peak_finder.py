"""``cxls train peak-finder``: the network that finds peaks, as a part of a bundle."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import msgspec
import torch

from analyzer.bundle import BundleCard, save_card
from cxls.cli import Failed, Interrupted, stop_on_signals
from cxls.commands.analyze import choose_device
from cxls.settings import TrainSettings
from training.loop.train import Diverged
from training.make_bundle import put_bundle, table
from training.peak_finder.make import FinderPlan, make_peaks
from training.peak_finder.tiles import TileRecipe
from training.peak_finder.train import FinderRecipe

SHARDS = 40
"""Of 96 shots each, where --shards says nothing."""

TILING = TileRecipe()


def run(
    settings: TrainSettings, shards: int, steps: int | None, workshop: Path, base: Callable[[Path], BundleCard]
) -> None:
    """Train, and put together in ``workshop`` the bundle for --out: its card and other weights come from ``base``."""
    workers = settings.workers or os.cpu_count() or 1
    torch.set_num_threads(workers)
    recipe = FinderRecipe(seed=settings.seed)
    plan = FinderPlan(
        out=workshop,
        work=settings.work,
        shards=shards,
        seed=settings.seed,
        workers=workers,
        command="cxls " + " ".join(sys.argv[1:]),
        recipe=recipe if steps is None else replace(recipe, steps=steps),
        tiling=TILING,
    )
    card = base(workshop)
    stopped = stop_on_signals()

    def progress(done: int, total: int, text: str) -> None:
        click.echo(f"{done}/{total} {text}", err=True)
        if stopped:
            raise Interrupted(stopped[0])

    try:
        peaks = make_peaks(
            plan, torch.device(choose_device(settings.device)), progress, lambda done, total: not stopped
        )
    except Diverged as error:
        raise Failed(str(error)) from None
    if peaks is None:
        raise Interrupted(stopped[0])
    save_card(msgspec.structs.replace(card, peaks=peaks), workshop)
    put_bundle(workshop, settings.out)
    click.echo(f"{settings.out}: bundle {card.name}, peaks from a heat of {peaks.threshold:.3f}")
    for name, rows in peaks.performance.items():
        if isinstance(rows, list):
            click.echo(f"\n{name}\n{table(rows)}")
