"""Tiles of simulated shots to train the peak network on, cut just as the finder cuts them.

The frames are whole: every tile that the finder would look at may be drawn, at its own rate, so that what fools a
finder comes as often as it does. Hot and flickering pixels, cosmic rays' tracks and glowing edges, rings with their
grains and salt have no spot in the targets; they are drawn more often than they are met. Shards make it resumable.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.learned_finder import Tiler
from analyzer.reduction import Reduced, Workspace
from analyzer.tile_layout import CHANNELS, FACTS, MAX_TILES, TILE
from sim_replay.detector import eiger2_4m
from sim_replay.scene import Scene
from sim_replay.shots import Buffers
from sim_replay.truth import ShotTruth
from training.peak_finder.light import Light
from training.peak_finder.targets import Targets, targets_of
from training.shots import ShotRecipe, group_shots, run_shards, write_arrays

_FORMAT = 2
"""Of what is cut from a shot; to be raised when inputs or targets change, so that old shards are not taken for new."""

TILE_THRESHOLD = 11.0
"""From this significance a cell is looked at: chance lifts a few tens of a 4M frame's cells there."""

FINDER_SHOTS = ShotRecipe(
    groups_per_shard=32,
    shots_per_group=3,
    flux_photons=(3e6, 3e9),
    water_scale=(0.3, 100.0),
    one_per_pulse_fraction=0.3,
    retrigger_fraction=0.15,
    artefacts_fraction=0.25,
    crystal_size_m=(3e-6, 20e-6),
    sharp_fraction=0.6,
    pixel_fraction=0.6,
    salt=0.03,
    ice=0.04,
    lipid=0.03,
    polymer=0.05,
    no_beam=0.0,
    hit_fraction=0.8,
)
"""Shots to learn peaks from: any flux, water and response, one frame of four on a detector with faults.

More spots of one pixel than the hit network is shown: what tells them from hot pixels is how many there are.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRecipe:
    """Which tiles are cut: of each shot at most so many with and without a spot, drawn at random from those the finder
    would look at."""

    shots: ShotRecipe = FINDER_SHOTS
    threshold: float = TILE_THRESHOLD
    spots_per_shot: int = 64
    others_per_shot: int = 32

    @property
    def digest(self) -> str:
        """Names the recipe, so that tiles of another one are not taken for its own."""
        return hashlib.sha256(f"{_FORMAT} {self!r}".encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True, eq=False)
class TileSet:
    """T tiles: inputs (T, CHANNELS, TILE, TILE) float16, facts (T, FACTS) float32, their targets, frame (T,) int64."""

    inputs: npt.NDArray[np.float16]
    facts: npt.NDArray[np.float32]
    targets: Targets
    frame: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.facts)


@dataclass(frozen=True, slots=True, eq=False)
class ReducedShot:
    """A reduced shot, ``number`` among its seed's; light, workspace and reduced are valid until the next one."""

    number: int
    scene: Scene
    truth: ShotTruth
    light: Light
    workspace: Workspace
    reduced: Reduced


def reduced_shots(recipe: ShotRecipe, seed: int, groups: range) -> Iterator[ReducedShot]:
    """The shots of these groups of a seed."""
    detector = eiger2_4m()
    buffers, light = Buffers(detector), Light(detector.shape)
    for group in groups:
        for member, (scene, made, workspace) in enumerate(group_shots(recipe, seed, group, detector, buffers)):
            light.show(made.light)
            number = group * recipe.shots_per_group + member
            yield ReducedShot(number, scene, made.truth, light, workspace, workspace.reduce())


def cut_tiles(recipe: TileRecipe, seed: int, shard: int) -> TileSet:
    """The tiles of one shard; the same for the same recipe, seed and shard."""
    tiler = Tiler(recipe.threshold)
    inputs = np.zeros((MAX_TILES, CHANNELS, TILE, TILE), np.float32)
    facts = np.zeros((MAX_TILES, FACTS), np.float32)
    size = recipe.shots.groups_per_shard
    parts: list[TileSet] = []
    for shot in reduced_shots(recipe.shots, seed, range(shard * size, (shard + 1) * size)):
        count = tiler.choose(shot.workspace, shot.reduced)
        tiler.fill(shot.workspace, shot.reduced, 0, count, inputs, facts)
        spots, across = shot.truth.spots, shot.reduced.significance.shape[2]
        cells = tiler.cells[:count]
        lit = shot.light.at_heats(cells, across)
        targets = targets_of(spots.fs, spots.ss, spots.counts, cells, across, lit)
        order = np.random.default_rng((seed, shot.number)).permutation(count)
        with_spot = targets.spot[order].any((1, 2))
        drawn = np.concatenate([order[with_spot][: recipe.spots_per_shot], order[~with_spot][: recipe.others_per_shot]])
        whole = TileSet(inputs[:count].astype(np.float16), facts[:count], targets, np.full(count, shot.number))
        parts.append(take(whole, np.sort(drawn)))
    return join(parts)


def make_tiles(
    recipe: TileRecipe, seed: int, shards: range, folder: Path, workers: int, progress: Any = None
) -> TileSet:
    """Tiles of several shards, from disk where they are there already.

    Every shard is written whole or not at all, so an interrupted run goes on where it was. progress(done, total) is
    called now and then and may raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run_shards(_write, [(recipe, seed, shard, folder) for shard in shards], workers, progress)
    return join([_read(_path(recipe, seed, shard, folder)) for shard in shards])


_TARGETS = ("heat", "offsets", "log_counts", "spot", "left_out")


def _path(recipe: TileRecipe, seed: int, shard: int, folder: Path) -> Path:
    return folder / f"tiles-{recipe.digest}-{seed}-{shard:04d}.npz"


def _write(recipe: TileRecipe, seed: int, shard: int, folder: Path) -> None:
    path = _path(recipe, seed, shard, folder)
    if path.exists():
        return
    made = cut_tiles(recipe, seed, shard)
    targets = {name: getattr(made.targets, name) for name in _TARGETS}
    write_arrays(path, targets | {name: getattr(made, name) for name in ("inputs", "facts", "frame")})


def _read(path: Path) -> TileSet:
    with np.load(path) as z:
        return TileSet(z["inputs"], z["facts"], Targets(*(z[name] for name in _TARGETS)), z["frame"])


def take(tiles: TileSet, places: npt.NDArray[Any]) -> TileSet:
    """These tiles alone: their places, or which of them (T,) bool."""
    targets = Targets(*(getattr(tiles.targets, name)[places] for name in _TARGETS))
    return TileSet(tiles.inputs[places], tiles.facts[places], targets, tiles.frame[places])


def join(sets: Sequence[TileSet]) -> TileSet:
    """Several sets of one seed together as one."""
    targets = Targets(*(np.concatenate([getattr(each.targets, name) for each in sets]) for name in _TARGETS))
    inputs, facts, frame = (
        np.concatenate([getattr(each, name) for each in sets]) for name in ("inputs", "facts", "frame")
    )
    return TileSet(inputs, facts, targets, frame)
