"""``cxls train``: models of a bundle from simulated shots."""

import os
import sys
from dataclasses import replace

import click
import msgspec
import torch

from analyzer.bundle import CARD, DEFAULT_BUNDLE, BadBundle, BundleCard
from cxls.commands.analyze import choose_device
from cxls.settings import Resolved, TrainSettings
from training.hit import HitRecipe
from training.make_bundle import Plan, make_hit, make_parameters, table, write_bundle
from training.parameters import ParameterRecipe


def run(resolved: Resolved[TrainSettings], task: str) -> None:
    """Train the hit model, the parameter model or both into the bundle folder.

    With one task, the other model comes from the bundle already in the folder, else from the
    one shipped. Simulated shots on disk are used again, so an interrupted run goes on.
    """
    settings = resolved.settings
    device = torch.device(choose_device(settings.device))
    workers = settings.workers or os.cpu_count() or 1
    torch.set_num_threads(workers)
    command = "cxls " + " ".join(sys.argv[1:])
    plan = Plan(
        out=settings.out,
        work=settings.work,
        shards=settings.shards,
        seed=settings.seed,
        workers=workers,
        command=command,
        hit=HitRecipe(epochs=settings.epochs, seed=settings.seed),
        parameters=replace(ParameterRecipe(), steps=settings.steps, seed=settings.seed),
    )
    plan.out.mkdir(parents=True, exist_ok=True)
    base = None if task == "all" else _base(plan)

    def progress(done: int, total: int, text: str) -> None:
        click.echo(f"{done}/{total} {text}", err=True)

    hit = make_hit(plan, device, progress) if task != "parameters" or base is None else base.hit
    parameters = make_parameters(plan, device, progress) if task != "hit" or base is None else base.parameters
    card = write_bundle(plan, hit, parameters)
    click.echo(f"{plan.out}: bundle {card.name}")
    click.echo(table(card.hit.performance["rows"]))
    click.echo(table(card.parameters.performance["rows"]))


def _base(plan: Plan) -> BundleCard:
    """The card of the bundle to add to; its weights are copied where they are missing."""
    folder = plan.out if (plan.out / CARD).exists() else DEFAULT_BUNDLE
    try:
        card = msgspec.json.decode((folder / CARD).read_bytes(), type=BundleCard)
    except (OSError, msgspec.DecodeError) as error:
        raise BadBundle(f"{folder / CARD}: {error}; train both models with `cxls train all`") from None
    for name in (card.hit.weights, card.parameters.weights):
        if folder != plan.out:
            (plan.out / name).write_bytes((folder / name).read_bytes())
    return card
