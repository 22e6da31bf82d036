"""``cxls simulate``: a series with its truth."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cxls.cli import Failed
from cxls.progress import interruptible_progress
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
    with refusals(), interruptible_progress("simulating", "frames") as after_frame:
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
