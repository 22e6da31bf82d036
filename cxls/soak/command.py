"""What ``cxls soak`` does once it can be told to end."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cxls.bench import report as bench
from cxls.cli import Failed, Interrupted
from cxls.settings import BadSettings, SoakSettings
from cxls.soak import report
from cxls.soak.checks import Check
from cxls.soak.faults import arguments as fault_arguments
from cxls.soak.leftovers import temporary
from cxls.soak.running import Progress, Soak, room

_LINE_S = 60.0
_MIB = 1 << 20


def run(settings: SoakSettings, files: Sequence[str], stop: threading.Event, interrupted: list[int]) -> None:
    """Soak, print the figures and checks, write JSON and plot. Raises ``Failed`` where a check does not hold, else
    ``Interrupted`` where there is a signal's number in ``interrupted``."""
    _refuse(settings, files)
    with _folder(settings) as (folder, holding):
        room(settings, folder)
        soak, failure = Soak(settings, [Path(file) for file in files], folder, stop, holding), ""
        try:
            with _told() as tell:
                soak.run(tell)
        except (RuntimeError, OSError, ValueError) as error:
            soak.seen.early = failure = str(error)
        finally:  # whatever came: an hour's samples are not to be lost
            try:
                found = soak.checks()
                _show(soak, found)
            finally:
                _logs(soak, folder)
    if failure:
        raise Failed(f"soak: {failure}")
    if failed := [each.name for each in found if each.kept is False]:
        raise Failed(f"soak: {len(failed)} of {len(found)} checks failed: {', '.join(failed)}")
    if interrupted:
        raise Interrupted(interrupted[0])


def _logs(soak: Soak, folder: Path) -> None:
    for name, lines in soak.seen.stderr.items():
        (folder / f"{name.replace(' ', '-')}.log").write_text("".join(f"{line}\n" for line in lines))


def _show(soak: Soak, found: Sequence[Check]) -> None:
    """The report, printed and written, and the plot."""
    settings, seen, where = soak.settings, soak.seen, bench.machine()
    whole = report.as_report(settings, seen.samples, seen.rests, found, seen.early)
    settings.report.parent.mkdir(parents=True, exist_ok=True)
    settings.report.write_text(bench.as_json(settings.report.stem, whole, where))
    bench.show(whole, where)
    click.echo(f"figures and samples in {settings.report}")
    if len(seen.samples) > 2:
        plot = settings.report.with_suffix(".png")
        report.draw(seen.samples, seen.rests, plot)
        click.echo(f"plot in {plot}")


def _refuse(settings: SoakSettings, files: Sequence[str]) -> None:
    if settings.kills is not None and not settings.processes:
        raise BadSettings("--kills: no worker processes to kill; give --processes N")
    if settings.kills is not None and settings.kills >= settings.time:
        raise BadSettings(f"--kills {settings.kills:g}s: none in a soak of {settings.time:g} s; give a shorter time")
    fault_arguments(settings.faults, "v2", True)
    for file in files:
        if not Path(file).is_file():
            raise BadSettings(f"{file}: no such file; give an Eiger master, or none to soak with simulated frames")
    if settings.report.suffix != ".json":
        raise BadSettings(f"--report {settings.report}: it is JSON; let its name end in .json")


@contextmanager
def _folder(settings: SoakSettings) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """Where to write, and what processes that write there are to inherit."""
    if settings.work is None:
        with temporary("cxls-soak-") as (name, holding):
            yield name, (holding,)
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
    yield folder, ()


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
