"""``cxls simulate``: a series with its truth."""

from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from cxls.settings import BadSettings, Resolved, SimulateSettings, SimulationOptions
from sim_replay.series_file import SimulationSettings, simulate_series


def run(resolved: Resolved[SimulateSettings], out: Path) -> None:
    """Write OUT_master.h5 and its data files."""
    settings = resolved.settings
    part, parts = (int(number) for number in settings.shard.split("/"))
    master = write(
        out,
        settings,
        settings.frames,
        hkl=settings.hkl,
        dtype=settings.dtype,
        shard=(part, parts),
        overwrite=settings.overwrite,
    )
    click.echo(f"{master}: {settings.frames} frames, truth in /entry/truth")


def write(
    out: Path,
    options: SimulationOptions,
    frames: int,
    *,
    hkl: Path | None = None,
    dtype: str = "uint16",
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
) -> Path:
    """Simulate with a progress bar; returns the master's path."""
    try:
        settings = SimulationSettings(
            frames=frames,
            condition=options.condition,
            camera_length_m=options.camera_length,
            photon_energy_eV=options.energy,
            flux_photons=options.flux,
            water_scale=options.water_scale,
            hit_fraction=options.hit_fraction,
            seed=options.seed,
            hkl_path=hkl,
            crystal_size_m=options.crystal_size,
            dtype=dtype,
            shard=shard,
            overwrite=overwrite,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("simulating", total=None)
            return simulate_series(
                out, settings, lambda done, total: progress.update(task, total=total, completed=done)
            )
    except FileExistsError as error:
        raise BadSettings(f"{error}; use --overwrite to replace") from None
    except (ValueError, FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise BadSettings(str(error)) from None
