"""``cxls soak``: the whole program under load and faults, and whether it held."""

import importlib
import threading
from collections.abc import Sequence

import click

from cxls.cli import stop_on_signals
from cxls.settings import Resolved, SoakSettings


def run(resolved: Resolved[SoakSettings], files: Sequence[str]) -> None:
    """See ``cxls.soak.command.run``, which takes seconds to import: signals are answered before."""
    stop = threading.Event()
    interrupted = stop_on_signals(stop)
    threading.Thread(target=_answer, args=(stop,), name="soak-told", daemon=True).start()
    importlib.import_module("cxls.soak.command").run(resolved.settings, files, stop, interrupted)


def _answer(stop: threading.Event) -> None:
    stop.wait()
    click.echo("ending; checking what there is (again: end at once)", err=True)
