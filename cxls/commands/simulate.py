"""``cxls simulate``: a series with its truth."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cxls.cli import Failed, Interrupted, stop_on_signals
from cxls.scene import scene_of
from cxls.settings import BadSettings, Resolved, SimulateSettings, SimulationOptions
from sim_replay.simulation import Plan, simulate_series


def run(resolved: Resolved[SimulateSettings], out: Path) -> None:
    """Write OUT_master.h5 and its data files."""
    settings = resolved.settings
    part, parts = (int(number) for number in settings.shard.split("/"))
    master = write(
        out,
        settings,
        settings.frames,
        shard=(part, parts),
        workers=settings.workers,
        overwrite=settings.overwrite,
    )
    click.echo(f"{master}: {_shard_text(settings.frames, part, parts)}, truth in /entry/truth")


def _shard_text(frames: int, part: int, parts: int) -> str:
    return f"{frames} frames" if parts == 1 else f"part {part} of {parts} of {frames} frames"


def write(
    out: Path,
    options: SimulationOptions,
    frames: int,
    *,
    shard: tuple[int, int] = (0, 1),
    workers: int = 1,
    overwrite: bool = False,
) -> Path:
    """Simulate with a progress bar; returns the master's path. A signal leaves no file behind."""
    with refusals(), simulation_progress("simulating") as after_frame:
        plan = Plan(frames, options.seed, shard, workers, overwrite=overwrite)
        return simulate_series(out, scene_of(options), plan, after_frame)


@contextmanager
def refusals() -> Iterator[None]:
    """Say what the packages refuse as the user's input, and what the system refuses as a failure."""
    try:
        yield
    except FileExistsError as error:
        raise BadSettings(f"{error}; use --overwrite to replace") from None
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        raise BadSettings(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
    except ValueError as error:
        raise BadSettings(str(error)) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Failed(f"{where}{error.strerror or error}; nothing was written") from None


@contextmanager
def simulation_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over frames, as a function of (done, total) that raises ``Interrupted`` after a signal."""
    interrupted = stop_on_signals()
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def after_frame(done: int, total: int) -> None:
            progress.update(task, total=total, completed=done)
            # Between frames: an exception thrown inside HDF5's callbacks would be swallowed there.
            if interrupted:
                raise Interrupted(interrupted[0])

        yield after_frame
