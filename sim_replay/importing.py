"""Series of patterns that another program computed: its Bragg light, our water, noise and detector."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim_replay.crystfel import MAX_PATTERNS, Pattern
from sim_replay.scene import Scene
from sim_replay.series_file import IMAGES_PER_FILE
from sim_replay.simulation import FrameMaker, describe

MAX_PATTERN_BYTES = 4 << 30
"""Of all patterns of a series, which are in memory at once; a real one takes 0.1 to 0.3 MB."""

MAX_FRAMES = 10_000_000
"""Of a series: a day at 100 Hz."""

_ORDER_STREAM = 0x0DE5  # apart from whatever else draws from a series' seed


def collect_patterns(patterns: Iterable[Pattern], progress: Callable[[int, int], None] | None = None) -> list[Pattern]:
    """All of them, for `import_series`; progress is called with (patterns so far, the same) after each.

    Raises ValueError when they are more than MAX_PATTERNS or take more than MAX_PATTERN_BYTES.
    """
    found: list[Pattern] = []
    size = 0
    for pattern in patterns:
        found.append(pattern)
        size += pattern.index.nbytes + pattern.photons.nbytes
        if len(found) > MAX_PATTERNS or size > MAX_PATTERN_BYTES:
            raise ValueError(
                f"there are more than {MAX_PATTERNS} patterns or {MAX_PATTERN_BYTES >> 30} GB of them; import fewer "
                "sources at once"
            )
        if progress is not None:
            progress(len(found), len(found))
    return found


def import_series(
    prefix: str | os.PathLike[str],
    patterns: Sequence[Pattern],
    scene: Scene,
    *,
    repeat: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write each pattern `repeat` times and empty frames among them, shuffled; returns the master's path.

    The patterns must be fitted to the scene's detector (`crystfel.fit_to`) and of one photon energy, camera length
    and beam centre, which replace the scene's; its flux scales them. The scene's hit_fraction of the frames have a
    pattern; the truth's `pattern` (N,) says which, -1 for none, and its spots have no hkl. Raises ValueError when the
    patterns are none or not alike or the frames more than MAX_FRAMES, FileExistsError and OSError like
    `simulate_series`.
    """
    if not patterns:
        raise ValueError("there are no patterns to import")
    first = patterns[0]
    if any(_stands(each) != _stands(first) for each in patterns):
        raise ValueError(
            "the patterns are of several photon energies, camera lengths or beam centres; import each as its own series"
        )
    if not scene.hit_fraction > 0.0:
        raise ValueError("hit_fraction is 0, so that no pattern would be written; give a number above 0")
    energy, length, center_x, center_y = _stands(first)
    scene = dataclasses.replace(
        scene,
        condition=dataclasses.replace(
            scene.condition,
            photon_energy_eV=energy,
            camera_length_m=length,
            beam_center_x_px=center_x,
            beam_center_y_px=center_y,
        ),
    )
    order = _order(len(patterns), repeat, scene.hit_fraction, seed)
    maker = FrameMaker(dataclasses.replace(scene, hit_fraction=0.0), seed)
    writer = maker.writer(prefix, IMAGES_PER_FILE, overwrite)
    writer.describe(**describe(scene) | {"crystal_name": "imported patterns"})
    shown: list[int] = []
    with writer:
        for frame, number in enumerate(order.tolist()):
            shot = maker.frame(frame, patterns[number] if number >= 0 else None)
            writer.append(shot.counts, shot.truth, frame)
            shown.append(number if shot.truth.crystal else -1)
            if progress is not None:
                progress(frame + 1, len(order))
        writer.describe(pattern=np.array(shown, dtype=np.int64))
    return writer.master_path


def _stands(pattern: Pattern) -> tuple[float, float, float, float]:
    return (
        pattern.photon_energy_eV,
        pattern.camera_length_m,
        pattern.beam_center_x_px,
        pattern.beam_center_y_px,
    )


def _order(patterns: int, repeat: int, hit_fraction: float, seed: int) -> NDArray[np.int64]:
    hits = patterns * repeat
    if hits > MAX_FRAMES * hit_fraction:
        raise ValueError(
            f"{patterns} patterns, {repeat} times each, with the hit fraction {hit_fraction:g} make more than "
            f"{MAX_FRAMES} frames; repeat them less, or raise the hit fraction"
        )
    empties = round(hits * (1.0 - hit_fraction) / hit_fraction)
    order = np.concatenate([np.repeat(np.arange(patterns), repeat), np.full(empties, -1)])
    np.random.default_rng([seed, _ORDER_STREAM]).shuffle(order)
    return order.astype(np.int64)
