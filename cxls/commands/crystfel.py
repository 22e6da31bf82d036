"""``cxls crystfel …``: geometry, inputs of pattern_sim, and its patterns as series."""

from pathlib import Path

import click
import numpy as np

from cxls.commands.simulate import refusals, simulation_progress
from cxls.scene import scene_of
from cxls.settings import (
    BadSettings,
    CrystfelGeometrySettings,
    CrystfelImportSettings,
    CrystfelInputsSettings,
    Resolved,
)
from sim_replay.crystfel import geometry_of, read_patterns, write_pattern_sim_inputs
from sim_replay.diffraction import random_orientation
from sim_replay.importing import import_series
from sim_replay.shots import frame_rng
from streamer.geometry_file import write_geometry


def geometry(resolved: Resolved[CrystfelGeometrySettings], out: Path) -> None:
    """Write the geometry file OUT."""
    with refusals():
        scene = scene_of(resolved.settings)
        mask = resolved.settings.mask_file
        write_geometry(out, geometry_of(scene.detector, scene.condition, None if mask is None else str(mask)))
    click.echo(f"{out}: {scene.detector.name}, {scene.condition.camera_length_m:g} m")


def inputs(resolved: Resolved[CrystfelInputsSettings], folder: Path) -> None:
    """Write pattern_sim's inputs into FOLDER."""
    settings = resolved.settings
    with refusals():
        scene = scene_of(settings)
        turns = np.stack([random_orientation(frame_rng(settings.seed, n)) for n in range(settings.patterns)])
        script = write_pattern_sim_inputs(
            folder,
            folder.name or "patterns",
            scene.sample.crystal,
            scene.condition,
            scene.detector,
            turns,
            point_group=settings.point_group,
            crystal_size_m=scene.sample.size_m,
        )
    click.echo(f"{script}: run it where CrystFEL 0.10.2 is, then `cxls crystfel import OUT {folder}`")


def import_(resolved: Resolved[CrystfelImportSettings], out: Path, sources: tuple[str, ...]) -> None:
    """Write OUT_master.h5 from patterns."""
    settings = resolved.settings
    for name in ("condition", "energy", "camera_length", "geometry"):
        if getattr(settings, name) is not None:
            raise BadSettings(f"--{name.replace('_', '-')} does not apply here: the patterns have their own")
    with refusals():
        scene = scene_of(settings)
        patterns = list(read_patterns(sources, scene.detector))
        with simulation_progress("importing") as after_frame:
            master = import_series(
                out,
                patterns,
                scene,
                repeat=settings.repeat,
                seed=settings.seed,
                overwrite=settings.overwrite,
                progress=after_frame,
            )
    click.echo(f"{master}: {len(patterns)} patterns, truth in /entry/truth")
