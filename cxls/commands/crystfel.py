"""``cxls crystfel …``: geometry, inputs of pattern_sim, and its patterns as series."""

from pathlib import Path

import click
import numpy as np

from cxls.commands.simulate import refusals
from cxls.progress import interruptible_progress
from cxls.scene import scene_of
from cxls.settings import (
    BadSettings,
    CrystfelGeometrySettings,
    CrystfelImportSettings,
    CrystfelInputsSettings,
    Resolved,
)
from sim_replay.crystfel import geometry_of, read_patterns, write_files, write_pattern_sim_inputs
from sim_replay.diffraction import random_orientation
from sim_replay.importing import collect_patterns, import_series
from sim_replay.shots import frame_rng
from streamer.geometry_file import format_geometry


def geometry(resolved: Resolved[CrystfelGeometrySettings], out: Path) -> None:
    """Write the geometry file OUT."""
    settings = resolved.settings
    _refuse_unprintable(out)
    with refusals():
        scene = scene_of(settings)
        mask = None if settings.mask_file is None else str(settings.mask_file)
        text = format_geometry(geometry_of(scene.detector, scene.condition, mask))
        write_files({out: text.encode()}, overwrite=settings.overwrite)
    click.echo(f"{out}: {scene.detector.name}, {scene.condition.camera_length_m:g} m")


def inputs(resolved: Resolved[CrystfelInputsSettings], folder: Path) -> None:
    """Write pattern_sim's inputs into FOLDER."""
    settings = resolved.settings
    _refuse_unprintable(folder)
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
            overwrite=settings.overwrite,
        )
    click.echo(f"{script}: run it where CrystFEL 0.10.2 is, then `cxls crystfel import OUT {folder}`")


def import_(resolved: Resolved[CrystfelImportSettings], out: Path, sources: tuple[str, ...]) -> None:
    """Write OUT_master.h5 from patterns."""
    settings = resolved.settings
    for name in ("condition", "energy", "camera_length", "geometry"):
        if getattr(settings, name) is not None:
            raise BadSettings(f"--{name.replace('_', '-')} does not apply here: the patterns have their own")
    _refuse_unprintable(out, *sources)
    with refusals():
        scene = scene_of(settings)
        with interruptible_progress("reading", "patterns") as after_pattern:
            patterns = collect_patterns(read_patterns(sources, scene.detector), after_pattern)
        with interruptible_progress("importing", "frames") as after_frame:
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


def _refuse_unprintable(*paths: str | Path) -> None:
    """A line break in a name would break the one line of a message, ours or the system's."""
    for path in map(str, paths):
        if not path.isprintable():
            raise BadSettings(f"{path!r}: a name with line breaks or other unprintable characters; rename it")
