"""``cxls train``: a network for an attribute, or the models of a bundle."""

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import click
import torch

from analyzer import attributes
from analyzer.attributes import Attribute
from analyzer.bundle import CARD, DEFAULT_BUNDLE, BadBundle, BundleCard, HitCard, ParametersCard, load_bundle
from cxls.cli import Failed, Interrupted, stop_on_signals
from cxls.commands import finetune, train_attribute, train_peak_finder
from cxls.commands.analyze import choose_device
from cxls.settings import BadSettings, Resolved, TrainSettings
from training.hit import HitRecipe
from training.loop.distributed import world_size
from training.loop.train import Diverged
from training.make_bundle import Plan, make_hit, make_parameters, put_bundle, table, write_bundle
from training.parameters import ParameterRecipe

BUNDLE_TASKS = ("hit", "parameters", "all", "peak-finder")
_OF_BUNDLES = ("out", "work", "shards", "steps")
_OF_BOTH = ("epochs", "seed", "workers", "device")
_OF_SIMULATION = {"frames", "flux", "water_scale", "hit_fraction"}
_UNUSED = {"hit": {"steps"}, "parameters": {"epochs", "shards"}}
"""Options of bundles that one of their tasks does not look at."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Card = TypeVar("Card", HitCard, ParametersCard)


def run(resolved: Resolved[TrainSettings], task: str, paths: Sequence[str]) -> None:
    """Train what the task names. Raises ``BadSettings`` for an unknown task and for options of the other kind.

    What cannot be written, as on a full disk, is a failure; a checkpoint that is there stays.
    """
    try:
        _run(resolved, task, paths)
    except OSError as error:
        mend = "make room" if error.errno in _FULL else "mend that"
        again = "give the same command again" + (" with --resume" if task not in BUNDLE_TASKS else "")
        raise Failed(
            f"{error.filename or resolved.settings.work}: {error.strerror or error}; what was trained up to the last "
            f"checkpoint is kept: {mend}, and {again}"
        ) from None


def _run(resolved: Resolved[TrainSettings], task: str, paths: Sequence[str]) -> None:
    if resolved.settings.finetune or task in BUNDLE_TASKS:
        resolved = replace(resolved, settings=_with_a_name(resolved.settings))
    if resolved.settings.finetune:
        _refuse_several_processes(f"{task} --finetune")
        _finetune(resolved, task, paths)
    elif task in BUNDLE_TASKS:
        if paths:
            raise BadSettings(f"cxls train {task} {paths[0]}: a bundle is trained on simulated shots, not on files")
        _refuse_several_processes(task)
        others = {*TrainSettings.model_fields} - {*_OF_BUNDLES, *_OF_BOTH}
        _refuse_adaptation(resolved, task)
        text = "goes on by itself where it was cut short, given the same --work and options; leave out --{}"
        _refuse(resolved, {"resume"}, f"cxls train {task}: {text}")
        _refuse(resolved, others, f"cxls train {task}: of a bundle; --{{}} is for attributes such as peak or energy")
        _refuse(resolved, _UNUSED.get(task, set()), f"cxls train {task}: --{{}} is not used by it; leave it out")
        if task == "peak-finder":
            _train_peak_finder(resolved)
        else:
            _train_bundle(resolved.settings, task)
    else:
        attribute = _attribute(task)
        _refuse_adaptation(resolved, task)
        _refuse(resolved, {*_OF_BUNDLES}, f"cxls train {task}: an attribute; --{{}} is for {', '.join(BUNDLE_TASKS)}")
        settings = resolved.settings
        settings = settings.model_copy(update={"data": (*settings.data, *paths)})
        _refuse_of_other_data(resolved, settings, task)
        train_attribute.run(settings, attribute)


def _with_a_name(settings: TrainSettings) -> TrainSettings:
    """With an --out by whose name a card can call the bundle, ``.`` and ``..`` too. Raises BadSettings."""
    out = settings.out.resolve() if settings.out.name in ("", "..") else settings.out
    if not (out.name and out.name.isprintable()):
        text = "a bundle is called as its folder; give one whose name can be printed"
        raise BadSettings(f"--out {str(settings.out)!a}: {text}", "out")
    return settings.model_copy(update={"out": out})


def _refuse_of_other_data(resolved: Resolved[TrainSettings], settings: TrainSettings, task: str) -> None:
    """Raises BadSettings for what is not looked at with data of this kind."""
    if settings.split is not None:
        text = "a split has its sides; leave out --{}, or choose it in `cxls data split`"
        _refuse(resolved, {"validation_fraction"}, f"cxls train {task} --split: {text}")
    if settings.data or settings.split is not None:
        _refuse(resolved, _OF_SIMULATION, f"cxls train {task}: --{{}} is of frames simulated on the fly, not of data")
    else:
        _refuse(resolved, {"datasets"}, f"cxls train {task}: --{{}} picks from the trees of --data; give --data too")


def _refuse_several_processes(task: str) -> None:
    """Raises BadSettings under torchrun: each process would write the same files."""
    if (count := world_size()) > 1:
        raise BadSettings(
            f"cxls train {task}: one process trains, torchrun started {count}; run it without torchrun, --workers says "
            "how many processes simulate (attributes such as peak or energy take several)"
        )


def _refuse_adaptation(resolved: Resolved[TrainSettings], task: str) -> None:
    _refuse(resolved, {*finetune.OPTIONS}, f"cxls train {task}: --{{}} is for cxls train hit --finetune")


def _finetune(resolved: Resolved[TrainSettings], task: str, paths: Sequence[str]) -> None:
    if task != "hit":
        raise BadSettings(f"cxls train {task} --finetune: only the hit network of a bundle is adapted, as task hit")
    others = {*TrainSettings.model_fields} - {*finetune.OPTIONS, *finetune.SHARED_OPTIONS}
    _refuse(resolved, others, "cxls train hit --finetune: --{} is not for adaptation")
    shards = finetune.SHARDS if resolved.origin["shards"] == "default" else resolved.settings.shards
    finetune.run(resolved.settings, paths, shards)


def _refuse(resolved: Resolved[TrainSettings], names: set[str], text: str) -> None:
    for name in TrainSettings.model_fields:
        if name in names and resolved.origin[name] == "command line":
            raise BadSettings(text.format(name.replace("_", "-")), name)


def _attribute(name: str) -> Attribute:
    try:
        return attributes.attribute(name)
    except KeyError:
        known = f"attributes {', '.join(attributes.names())}; of a bundle {', '.join(BUNDLE_TASKS)}"
        raise BadSettings(f"cxls train {name}: not a task; {known}") from None
    except TypeError as error:
        raise BadSettings(f"cxls train {name}: {error}") from None


def _train_peak_finder(resolved: Resolved[TrainSettings]) -> None:
    settings, origin = resolved.settings, resolved.origin
    _refuse(resolved, {"epochs"}, "cxls train peak-finder: counts steps; --{} is for the others")
    train_peak_finder.run(
        settings,
        train_peak_finder.SHARDS if origin["shards"] == "default" else settings.shards,
        None if origin["steps"] == "default" else settings.steps,
        _workshop(settings),
        lambda workshop: _base(settings.out, workshop),
    )


def _train_bundle(settings: TrainSettings, task: str) -> None:
    """Train the hit model, the parameter model or both into the bundle folder.

    With one task, the other model comes from the bundle already in the folder, else from the
    one shipped. Simulated shots on disk are used again, so an interrupted run goes on. The bundle is put together in
    the folder for work: one that is in --out stays whole until the new one is.
    """
    device = torch.device(choose_device(settings.device))
    workers = settings.workers or os.cpu_count() or 1
    torch.set_num_threads(workers)
    recipe = HitRecipe(seed=settings.seed)
    plan = Plan(
        out=_workshop(settings),
        name=settings.out.name,
        work=settings.work,
        shards=settings.shards,
        seed=settings.seed,
        workers=workers,
        command="cxls " + " ".join(sys.argv[1:]),
        hit=recipe if settings.epochs is None else replace(recipe, epochs=settings.epochs),
        parameters=replace(ParameterRecipe(), steps=settings.steps, seed=settings.seed),
    )
    base = None if task == "all" else _base(settings.out, plan.out)

    stopped = stop_on_signals()

    def progress(done: int, total: int, text: str) -> None:
        click.echo(f"{done}/{total} {text}", err=True)
        if stopped:
            raise Interrupted(stopped[0])

    def keep_going(done: int, total: int) -> bool:
        del done, total
        return not stopped

    def made(make: Callable[..., Card | None]) -> Card:
        try:
            card = make(plan, device, progress, keep_going)
        except Diverged as error:
            raise Failed(str(error)) from None
        if card is None:
            raise Interrupted(stopped[0])
        return card

    hit = base.hit if task == "parameters" and base is not None else made(make_hit)
    parameters = made(make_parameters) if task != "hit" or base is None else base.parameters
    others = (None, None) if base is None else (base.peaks, base.scattering)
    card = write_bundle(plan, hit, parameters, *others)
    put_bundle(plan.out, settings.out)
    click.echo(f"{settings.out}: bundle {card.name}")
    click.echo(table(card.hit.performance["rows"]))
    click.echo(table(card.parameters.performance["rows"]))


def _workshop(settings: TrainSettings) -> Path:
    """The folder in which the bundle for --out is put together; both are there, or it ends here."""
    settings.out.mkdir(parents=True, exist_ok=True)
    place = settings.work / f"bundle-{hashlib.sha256(str(settings.out.resolve()).encode()).hexdigest()[:8]}"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _base(out: Path, workshop: Path) -> BundleCard:
    """The card of the bundle to add to; its weights are copied to where the new one is put together.

    Raises ``BadBundle`` for one that cannot be used: what is kept of it is in the new one too.
    """
    try:
        bundle = load_bundle(out if (out / CARD).exists() else DEFAULT_BUNDLE)
    except BadBundle as error:
        raise BadBundle(f"{error}, or train both models with `cxls train all`") from None
    for name, data in bundle.files.items():
        if name != CARD:
            (workshop / name).write_bytes(data)
    return bundle.card
