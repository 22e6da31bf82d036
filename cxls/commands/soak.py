"""``cxls soak``: the whole program under load and faults, and whether it held."""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cxls.bench import report as bench
from cxls.cli import Failed, Interrupted, stop_on_signals
from cxls.settings import BadSettings, Resolved, SoakSettings
from cxls.soak import report
from cxls.soak.faults import arguments as fault_arguments
from cxls.soak.running import Progress, Soak, room

_LINE_S = 60.0
_MIB = 1 << 20


def run(resolved: Resolved[SoakSettings], files: Sequence[str]) -> None:
    """Soak, print the figures and checks, write JSON and plot. Raises ``Failed`` where a check does not hold."""
    settings = resolved.settings
    _refuse(settings, files)
    stop = threading.Event()
    interrupted = stop_on_signals(stop)
    where = bench.machine()
    with _folder(settings) as folder:
        room(settings, folder)
        with _told() as tell:
            soak = Soak(settings, [Path(file) for file in files], folder, stop, tell)
            try:
                soak.run()
            except (RuntimeError, OSError, ValueError) as error:
                raise Failed(f"soak: {error}") from error
        found = soak.checks()
        seen = soak.seen
        for name, lines in seen.stderr.items():
            (folder / f"{name.replace(' ', '-')}.log").write_text("".join(f"{line}\n" for line in lines))
    whole = report.as_report(settings, seen.samples, found, seen.early)
    bench.show(whole, where)
    settings.report.parent.mkdir(parents=True, exist_ok=True)
    settings.report.write_text(bench.as_json(settings.report.stem, whole, where))
    click.echo(f"figures and samples in {settings.report}")
    if len(seen.samples) > 2:
        plot = settings.report.with_suffix(".png")
        report.draw(seen.samples, plot)
        click.echo(f"plot in {plot}")
    if failed := [each.name for each in found if not each.kept]:
        raise Failed(f"soak: {len(failed)} of {len(found)} checks failed: {', '.join(failed)}")
    if interrupted:
        raise Interrupted(interrupted[0])


def _refuse(settings: SoakSettings, files: Sequence[str]) -> None:
    if settings.kills is not None and not settings.processes:
        raise BadSettings("--kills: no worker processes to kill; give --processes N")
    fault_arguments(settings.faults, "v2", True)
    for file in files:
        if not Path(file).is_file():
            raise BadSettings(f"{file}: no such file; give an Eiger master, or none to soak with simulated frames")
    if settings.report.suffix != ".json":
        raise BadSettings(f"--report {settings.report}: it is JSON; let its name end in .json")


@contextmanager
def _folder(settings: SoakSettings) -> Iterator[Path]:
    if settings.work is None:
        with tempfile.TemporaryDirectory(prefix="cxls-soak-") as name:
            yield Path(name)
        return
    folder = settings.work
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise BadSettings(f"--work {folder}: not empty; give a new folder")
    except OSError as error:
        raise BadSettings(f"--work {folder}: {error.strerror or error}; choose a place that can be written") from None
    if not os.access(folder, os.W_OK):
        raise BadSettings(f"--work {folder}: cannot be written; choose another place")
    yield folder


@contextmanager
def _told() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, else a line a minute."""
    console = Console(stderr=True)
    columns = (TextColumn("soak"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    last = -_LINE_S
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("waiting for the first image", total=None)

        def tell(now: Progress) -> None:
            nonlocal last
            text = f"{now.received} images, {now.rate_hz:.1f} images/s, {now.memory_bytes / _MIB:.0f} MiB"
            text += f", {now.kills} kills" if now.kills else ""
            bar.update(task, description=text, completed=min(now.seconds, now.of_s), total=now.of_s)
            if bar.disable and now.seconds - last >= _LINE_S:
                last = now.seconds
                click.echo(f"{now.seconds:.0f} s of {now.of_s:.0f}: {text}", err=True)

        yield tell
