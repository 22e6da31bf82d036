"""``cxls train hit --finetune``: a bundle's hit network adapted to the series of a beam line."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch

from analyzer.bundle import CARD, DEFAULT_BUNDLE, Bundle, load_bundle
from analyzer.mask_file import BadMask, read_mask
from analyzer.warm import check_bundle
from cxls.cli import Failed
from cxls.commands.analyze import choose_device
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, TrainSettings
from training.dataset.sources import find_sources
from training.finetune import (
    Finetuned,
    FinetuneRecipe,
    Origin,
    RealFrames,
    SimulatedShots,
    finetune,
    make_card,
    rejected_folder,
    rejection,
    require_trainable,
    simulate_shots,
    write_bundle,
)
from training.loop.train import Diverged
from training.make_bundle import table
from training.real_labels import LabelRule, class_counts, doubts, label_frames, split_blocks
from training.reduced_series import reduce_series

OPTIONS = ("finetune", "bundle", "labels", "label_peaks", "label_empty_peaks", "mix", "real_frames", "mask")
"""Settings of `cxls train` that only this reads."""

SHARED_OPTIONS = ("out", "work", "shards", "epochs", "seed", "workers", "device")
SHARDS = 6
"""Simulated training shards where --shards is left at its default: real frames are the news, these keep the old."""


def run(settings: TrainSettings, sources: Sequence[str], shards: int = SHARDS) -> None:
    """Fine-tune on the sources, compare with the parent, write the bundle where it is no worse.

    A bundle that is worse goes to OUT.rejected, and ``Failed`` says by how much. An interrupted run writes no bundle;
    simulated shots and the training's checkpoint stay in --work, and the same command goes on there.
    """
    parent_folder = settings.bundle or DEFAULT_BUNDLE
    parent = _parent(settings, parent_folder)
    workers = settings.workers or os.cpu_count() or 1
    torch.set_num_threads(workers)
    device = torch.device(choose_device(settings.device))
    real = _real_frames(settings, parent, sources)
    with interruptible_progress("simulating", "shards") as after_shard:
        simulated = simulate_shots(settings.seed, shards, settings.work, workers, after_shard)
    recipe = _recipe(settings)
    with interruptible_progress("training", "steps") as after_step:
        try:
            made = finetune(parent, real, simulated, recipe, device, settings.work, after_step)
            after_step(1, 1)  # a signal while the bundles were compared ends it here, with nothing written
        except Diverged as error:
            raise Failed(f"{settings.out}: not written: {error}") from None
    _finish(settings, parent_folder, parent, made, real, simulated, recipe)


def _parent(settings: TrainSettings, folder: Path) -> Bundle:
    """The bundle to start from. Raises ``BadSettings`` for a folder that may not be written to."""
    out = settings.out
    if (out / CARD).exists() or (out.exists() and not out.is_dir()):
        raise BadSettings(f"--out {out}: exists; an adapted bundle goes to a folder of its own, name another", "out")
    if folder.resolve() == rejected_folder(out).resolve():
        raise BadSettings(f"--out {out}: the parent {folder} would be replaced if this is refused; name another", "out")
    parent = load_bundle(folder)
    require_trainable(parent, folder)
    check_bundle(parent)
    return parent


def _real_frames(settings: TrainSettings, parent: Bundle, sources: Sequence[str]) -> RealFrames:
    if not sources:
        raise BadSettings("cxls train hit --finetune: no series given; name Eiger masters, a folder of them or a glob")
    found = find_sources(sources)
    masters = [source for source in found if isinstance(source, Path)]
    if len(masters) < len(found):
        raise BadSettings(f"{' '.join(sources)[:200]}: a tree of single images is no series; give Eiger masters")
    try:
        mask = read_mask(settings.mask) if settings.mask else None
    except BadMask as error:
        raise BadSettings(f"--mask {error}") from None
    with interruptible_progress("reducing", "frames") as after_frame:
        reduced = reduce_series(masters, parent, mask=mask, frames=settings.real_frames, progress=after_frame)
    for count in reduced.counts:
        if count.bad:
            click.echo(f"warning: {count.path}: {count.bad} frames left out: {count.problem}", err=True)
    rule = LabelRule(source=settings.labels, peaks=settings.label_peaks, empty_peaks=settings.label_empty_peaks)
    labels = label_frames(reduced, rule)
    real = RealFrames(reduced, labels, *split_blocks(reduced, labels))
    left_out = sum(count.bad + count.no_beam for count in reduced.counts)
    click.echo(
        f"{len(reduced)} frames of {len(masters)} series ({left_out} undecodable or without beam): {labels.hits} hits, "
        f"{labels.empties} empties by {labels.kind}, {int((~labels.used).sum())} without a label"
    )
    for name, places in (("training", real.train), ("validation", real.validation)):
        counts = class_counts(labels.hit, places)
        click.echo(f"{name}: {counts['hits']} hits, {counts['empties']} empties")
    for doubt in doubts(reduced, labels, rule, parent.card.hit.threshold, settings.mix):
        click.echo(f"warning: {doubt}", err=True)
    return real


def _recipe(settings: TrainSettings) -> FinetuneRecipe:
    recipe = FinetuneRecipe(mix=settings.mix, seed=settings.seed)
    return recipe if settings.epochs is None else replace(recipe, epochs=settings.epochs)


def _finish(
    settings: TrainSettings,
    parent_folder: Path,
    parent: Bundle,
    made: Finetuned,
    real: RealFrames,
    simulated: SimulatedShots,
    recipe: FinetuneRecipe,
) -> None:
    click.echo(table([each.row() for each in made.compared]))
    click.echo(table(list(made.at_threshold)))
    refused = bool(made.failures)
    folder = rejected_folder(settings.out) if refused else settings.out
    origin = Origin(command="cxls " + " ".join(sys.argv[1:]), folder=parent_folder, seed=settings.seed)
    card = make_card(folder, parent, made, real, simulated, recipe, origin)
    try:
        write_bundle(card, made, parent_folder, folder)
    except OSError as error:
        raise Failed(f"{error.filename or folder}: {error.strerror or error}") from None
    if made.checkpoint is not None:
        made.checkpoint.unlink(missing_ok=True)
    if refused:
        raise Failed(f"{settings.out}: not written, {rejection(made.failures)}; the bundle is kept as {folder}")
    click.echo(f"{folder}: bundle {load_bundle(folder).label}")
    click.echo(f"use: cxls analyze SOURCE --bundle {folder}, or in a running analysis: cxls models use {folder}")
