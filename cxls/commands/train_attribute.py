"""``cxls train ATTRIBUTE``: a network of the registry through the loop of ``training.loop``, into a run folder."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import msgspec

from analyzer.architectures import architecture
from analyzer.attributes import Attribute, Recipe, recipe_for
from analyzer.framing import Framing, parse_size
from analyzer.single_model import SingleModelCard, save_model
from cxls.cli import Failed, Interrupted, stop_on_signals
from cxls.commands.analyze import choose_device
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, TrainSettings
from training.dataset.paper import parse_datasets
from training.loop.distributed import Ranks, job_name, ranks
from training.loop.judging import metric_name
from training.loop.opening import Sides, shared_sides, simulated_sides, split_sides
from training.loop.record import RUN, Epoch, job_of
from training.loop.simulated import Simulation
from training.loop.train import CHECKPOINT, Conduct, Diverged, Job, Trained, started_from, train
from training.loop.tune import tune

MODEL = "model"
_MOST_READERS = 8
_PAIR_AHEAD = re.compile(r",(?=[A-Za-z_][A-Za-z0-9_]*=)")


def run(settings: TrainSettings, attribute: Attribute) -> None:
    """Train, or search with --tune; save the model into the run folder and say how it does."""
    network = settings.network or attribute.network
    job = Job(
        attribute=attribute,
        network=network,
        recipe=_recipe(settings, recipe_for(attribute, network)),
        settings=_pairs("--network-setting", settings.network_setting),
        seed=settings.seed,
    )
    folder = settings.run_folder or Path("runs/train") / f"{attribute.name}-{network}"
    device = choose_device(settings.device)
    framing = Framing(None if settings.size is None else parse_size(settings.size), settings.bin)
    with ranks(device) as here:
        sides = _sides(settings, framing, here)
        conduct = Conduct(
            folder=folder,
            ranks=here,
            resume=settings.resume or _cut_short(folder),
            micro_batch=settings.micro_batch,
            workers=_readers(settings, here),
            checkpoint_s=settings.checkpoint_s,
            on_begin=_echo_begin if here.writes else _silent,
            on_epoch=_echo_epochs(job.recipe.epochs, metric_name(attribute)) if here.writes else _silent,
            note={
                "command": _command(),
                "options": msgspec.to_builtins(settings.model_dump(mode="json")),
                "job": job_name(),
            },
        )
        try:
            with _going(here) as keep_going:
                conduct = replace(conduct, keep_going=keep_going)
                trained: Trained | None
                if settings.tune:
                    found = tune(job, sides, conduct, settings.tune, lambda text: click.echo(text))
                    job, trained = (job, None) if found is None else (replace(job, recipe=found[0]), found[1])
                else:
                    trained = train(job, sides.training, sides.validation, conduct, sides.test)
        except Diverged as error:
            raise Failed(str(error)) from None
        if trained is not None and here.writes:
            _save(job, trained, folder, sides, framing)


def _cut_short(folder: Path) -> bool:
    """Whether this very job has begun the run before, so that nobody can give --resume."""
    name = job_name()
    return name is not None and name == job_of(folder) and (folder / CHECKPOINT).exists()


def _save(job: Job, trained: Trained, folder: Path, sides: Sides, framing: Framing) -> None:
    attribute = job.attribute
    performance = {"validation": trained.validation.summary()}
    if trained.test is not None:
        performance["test"] = trained.test.summary()
    start = started_from(job.network, trained.settings)
    card = SingleModelCard(
        network=job.network,
        settings=trained.settings,
        attribute=attribute.name,
        values=list(attribute.values),
        unit=attribute.unit,
        framing=framing,
        view=job.recipe.views[-1],
        training={
            "command": _command(),
            "recipe": asdict(job.recipe),
            "seed": job.seed,
            "data": {"training": sides.training.name, "validation": sides.validation.name}
            | ({} if sides.test is None else {"test": sides.test.name}),
            "samples": {"training": len(sides.training), "validation": len(sides.validation)},
            "epochs": len(trained.history),
            "kept_epoch": trained.best_epoch,
        }
        | ({} if start is None else {"start": start}),
        performance=performance,
        origin=f"trained by cxls train {attribute.name}",
    )
    save_model(trained.network, card, folder / MODEL)
    early = ", ended early" if trained.stopped_early else ""
    click.echo(f"{folder / MODEL}: {job.network} for {attribute.name}, weights of epoch {trained.best_epoch}{early}")
    for name, summary in performance.items():
        click.echo(f"{name}: {_figures(summary)}")
    click.echo(f"history, plots and {RUN} are beside it")


def _figures(summary: dict[str, Any]) -> str:
    parts = [f"{summary['samples']} samples"]
    for name, value in summary.items():
        if isinstance(value, float):
            between = summary.get(f"{name}_interval")
            interval = f" ({between[0]:.4g} to {between[1]:.4g})" if between else ""
            parts.append(f"{name.replace('_', ' ')} {value:.4g}{interval}")
    return ", ".join(parts)


def _sides(settings: TrainSettings, framing: Framing, here: Ranks) -> Sides:
    if settings.split is not None:
        if settings.datasets is not None:
            raise BadSettings("--datasets with --split: a split has its data sets; choose them in `cxls data split`")
        return split_sides(settings.split, settings.data, framing)
    if settings.data:
        datasets = None if settings.datasets is None else parse_datasets(settings.datasets)
        if not here.writes:
            return shared_sides(settings.data, settings.validation_fraction, settings.seed, framing, datasets)
        with interruptible_progress("reading", "images") as after_image:
            return shared_sides(
                settings.data, settings.validation_fraction, settings.seed, framing, datasets, after_image
            )
    simulation = Simulation(
        samples=settings.frames,
        flux_photons=settings.flux,
        water_scale=settings.water_scale,
        hit_fraction=settings.hit_fraction,
    )
    return simulated_sides(simulation, settings.validation_fraction, settings.seed, framing)


def _readers(settings: TrainSettings, here: Ranks) -> int:
    """Processes that read ahead; 0, reading in this one, where there is a core for one alone."""
    workers = settings.workers or min(_MOST_READERS, (os.cpu_count() or 1) // here.world)
    return workers if workers > 1 else 0


@contextmanager
def _going(here: Ranks) -> Iterator[Callable[[int, int], bool]]:
    """What tells the loop to go on, until a signal; then, when the loop has ended, ``Interrupted`` is raised."""
    stopped: list[Interrupted] = []
    if not here.writes:
        received = stop_on_signals()
        yield lambda done, total: not received
        stopped += [Interrupted(number) for number in received]
    else:
        with interruptible_progress("training", "steps") as after_step:

            def keep_going(done: int, total: int) -> bool:
                try:
                    after_step(done, total)
                except Interrupted as error:
                    stopped.append(error)
                return not stopped

            yield keep_going
    if stopped:
        raise stopped[0]


def _echo_begin(facts: dict[str, Any]) -> None:
    training, validation = facts["samples"]["training"], facts["samples"]["validation"]
    ranks = f", {facts['ranks']} processes" if facts["ranks"] > 1 else ""
    click.echo(
        f"{facts['network']} for {facts['attribute']}: {facts['parameters']:,} parameters, {training} samples to train "
        f"on, {validation} to validate on, on {facts['device']}{ranks}"
    )
    if (over := facts.get("normalised_over")) is not None:
        click.echo(
            f"warning: {facts['network']} normalises over a batch: with --micro-batch over {over} samples at a time, "
            f"which is another training than over {facts['recipe']['batch']}",
            err=True,
        )
    if facts.get("start") == "from scratch":
        keys = " or ".join(f"--network-setting {key}=FILE" for key in architecture(facts["network"]).start_only)
        click.echo(f"{facts['network']} starts from scratch; {keys} starts it from ready weights")


def _echo_epochs(epochs: int, metric: str) -> Callable[[Epoch], None]:
    def echo(row: Epoch) -> None:
        click.echo(
            f"epoch {row.epoch}/{epochs}  loss {row.train_loss:.5g}  validation loss {row.validation_loss:.5g}  "
            f"{metric.replace('_', ' ')} {row.metric:.4g}  learning rate {row.learning_rate:.3g}  "
            f"{row.seconds:.1f} s  {row.samples_per_s:.4g} samples/s"
        )

    return echo


def _silent(said: Epoch | dict[str, Any]) -> None:
    del said


def _command() -> str:
    return "cxls " + " ".join(sys.argv[1:])


def _recipe(settings: TrainSettings, recipe: Recipe) -> Recipe:
    """The recipe with what the options say. Raises ``BadSettings``."""
    values = asdict(recipe)
    for key, value in _pairs("--recipe", settings.recipe).items():
        if key not in values:
            raise BadSettings(f"--recipe {key}: no part of a recipe; they are {', '.join(values)}")
        values[key] = value
    for key in ("epochs", "batch", "learning_rate", "optimiser", "loss", "schedule", "patience"):
        if (given := getattr(settings, key)) is not None:
            values[key] = given
    try:
        return msgspec.convert(values, type=Recipe)
    except (msgspec.ValidationError, ValueError) as error:
        raise BadSettings(f"--recipe: {error}") from None


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE, with commas between or again and again; a value is JSON where it is JSON, else text."""
    found: dict[str, Any] = {}
    for each in (part for text in given for part in _PAIR_AHEAD.split(text)):
        key, equals, text = each.partition("=")
        if not (key and equals):
            raise BadSettings(f"{option} {each!r}: not KEY=VALUE, as in hidden=64")
        try:
            found[key.strip()] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            found[key.strip()] = text
    return found
