"""``cxls figures``: draw the figures of the documentation and print their tables."""

from collections.abc import Callable
from dataclasses import asdict, replace

import click

from cxls.cli import Failed
from cxls.commands.simulate import refusals
from cxls.figures import paper
from cxls.figures.drawing import Request, house_style
from cxls.figures.simulation import FIGURES, draw
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, FiguresSettings, Resolved
from streamer.files import BadInput
from training.dataset.paper import parse_datasets
from training.leak import QUICK, Plan, Step, figure_18, reproduce
from training.loop.train import Diverged


def run(resolved: Resolved[FiguresSettings], topic: str) -> None:
    """Draw the figures of a topic: simulation or paper."""
    {"simulation": _simulation, "paper": _paper}[topic](resolved.settings)


def _simulation(settings: FiguresSettings) -> None:
    names = list(FIGURES) if settings.only is None else [name.strip() for name in settings.only.split(",")]
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise BadSettings(f"--only {unknown[0]}: no such figure; take of {', '.join(FIGURES)}, with commas between")
    if settings.crystfel is not None and settings.hkl is None:
        raise BadSettings("--crystfel needs --hkl, the reflection list that its patterns were made with")
    request = Request(settings.orientations, settings.crystfel, settings.hkl, settings.cell)
    with refusals():
        for name, drawn, paths in draw(names, settings.out, request):
            click.echo(f"# {name}: {', '.join(map(str, paths)) or 'no picture'}")
            click.echo("\n".join(drawn.lines) + "\n")


def _paper(settings: FiguresSettings) -> None:
    """The paper's results, or its Figure 18 where conditions are named."""
    plan = replace(QUICK if settings.quick else Plan(bin=settings.bin), seed=settings.seed)
    plan = replace(plan, frozen_water=settings.frozen_water, fine_bin=min(plan.bin, plan.fine_bin))
    try:
        chosen = None if settings.conditions is None else parse_datasets(settings.conditions)
    except BadInput as error:
        raise BadSettings(str(error).replace("--datasets", "--conditions", 1)) from None
    try:
        if chosen is None:
            _results(settings, plan)
        else:
            _figure_18(settings, plan, chosen)
    except Diverged as error:
        raise Failed(str(error)) from None
    except OSError as error:
        raise Failed(f"{error.filename or settings.out}: {error.strerror or error}") from None


def _results(settings: FiguresSettings, plan: Plan) -> None:
    results = []
    with interruptible_progress("the paper's results", "steps") as after_step:
        for result in reproduce(plan, settings.work, _said_once(after_step)):
            results.append(result)
    click.echo("\n".join([*paper.results_table(results), "", *paper.conditions_table(results)]))
    with house_style():
        figure = paper.draw_results(results)
    command = _command(settings)
    written = paper.save(settings.out, paper.RESULTS, figure, plan, [asdict(each) for each in results], command)
    click.echo(f"\n# {command}: {', '.join(map(str, written))}")


def _figure_18(settings: FiguresSettings, plan: Plan, chosen: frozenset[int]) -> None:
    with interruptible_progress("the paper's Figure 18", "steps") as after_step:
        found = figure_18(plan, chosen, settings.work, _said_once(after_step))
    click.echo("\n".join(paper.explain_figure_18(found)))
    with house_style():
        figure = paper.draw_figure_18(found)
    command = _command(settings)
    written = paper.save(settings.out, paper.FIGURE_18, figure, plan, asdict(found), command)
    click.echo(f"\n# {command}: {', '.join(map(str, written))}")


def _said_once(after_step: Callable[[int, int], None]) -> Step:
    """A line on stderr for each part of the work, a bar for how much of the part is done."""
    last = ""

    def step(what: str, done: int, total: int) -> None:
        nonlocal last
        if what != last:
            click.echo(what, err=True)
            last = what
        after_step(done, total)

    return step


def _command(settings: FiguresSettings) -> str:
    """The command that does the same again."""
    options = [f"--conditions {settings.conditions}"] if settings.conditions is not None else []
    options += ["--quick"] if settings.quick else []
    for name in ("bin", "frozen_water", "seed"):
        value = getattr(settings, name)
        if value != FiguresSettings.model_fields[name].default:
            options.append(f"--{name.replace('_', '-')} {value:g}")
    return " ".join(["cxls figures paper", *options])
