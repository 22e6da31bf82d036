"""``cxls figures``: draw the figures of the documentation and print their tables."""

import click

from cxls.commands.simulate import refusals
from cxls.figures.drawing import Request
from cxls.figures.simulation import FIGURES, draw
from cxls.settings import BadSettings, FiguresSettings, Resolved


def run(resolved: Resolved[FiguresSettings], topic: str) -> None:
    """Draw the figures of a topic; simulation is the only one."""
    del topic
    settings = resolved.settings
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
