"""Random shots for training: every nuisance drawn anew, reduced as the analyser would.

Shots come in groups that share one geometry (whose water takes a while to compute) and one
crystal; each shot has its own orientation, flux, water and noise. Splits never cut a group,
so no crystal, background or seed is on both sides. Shard files make generation resumable.
"""

import hashlib
import math
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.geometry import series_geometry
from analyzer.reduction import Workspace, make_plan
from sim_replay.background import Surroundings
from sim_replay.beam import Beam, top_hat
from sim_replay.crystal import proteinase_k
from sim_replay.detector import Condition, Detector, beam_center_px, eiger2_4m
from sim_replay.diffraction import Sample
from sim_replay.response import Response
from sim_replay.scene import Scene
from sim_replay.shots import Buffers, frame_rng, simulate_shot
from streamer.messages import SeriesMetadata
from streamer.validity import series_validity

_WATER_UNIT_M = 100e-6
_MOST_WATER = 60.0
"""Largest water in units of 100 micrometres at 3e8 photons: 2 photons a pixel, dense enough."""


@dataclass(frozen=True, slots=True)
class ShotRecipe:
    """Ranges that shots are drawn from; flux and water are log-uniform."""

    groups_per_shard: int = 32
    shots_per_group: int = 16
    flux_photons: tuple[float, float] = (3e5, 1e9)
    water_scale: tuple[float, float] = (0.1, 50.0)
    photon_energy_eV: tuple[float, float] = (5000.0, 10000.0)
    camera_length_m: tuple[float, float] = (0.10, 0.45)
    crystal_size_m: tuple[float, float] = (3e-6, 15e-6)
    center_error_px: float = 10.0
    one_per_pulse_fraction: float = 0.25
    sampled_fraction: float = 0.5
    hit_fraction: float = 0.5

    @property
    def digest(self) -> str:
        """Names the recipe, so that shots of another one are not taken for its own."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True, eq=False)
class MapSet:
    """Reduced shots: ``maps`` (N, 2, rows, columns) float16, ``hit`` (N,), ``facts`` by name (N,)."""

    maps: npt.NDArray[np.float16]
    cell_valid: npt.NDArray[np.float32]
    hit: npt.NDArray[np.bool_]
    facts: dict[str, npt.NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.hit)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def draw_group(recipe: ShotRecipe, detector: Detector, rng: np.random.Generator) -> Scene:
    """What the shots of a group share: crystal, beam and where the detector stands."""
    center = (detector.shape[1] / 2, detector.shape[0] / 2)
    condition = Condition(
        photon_energy_eV=rng.uniform(*recipe.photon_energy_eV),
        camera_length_m=rng.uniform(*recipe.camera_length_m),
        beam_center_x_px=center[0] + rng.uniform(-20, 20),
        beam_center_y_px=center[1] + rng.uniform(-20, 20),
        beam=Beam(spectrum=top_hat(_log_uniform(rng, 0.002, 0.03))),
    )
    crystal = proteinase_k(seed=int(rng.integers(1 << 30)), wilson_b_angstrom2=rng.uniform(5, 40), d_min_angstrom=2.2)
    # Other cells by stretching this one: the scattering grows with what the cell holds.
    stretch = rng.uniform(0.6, 1.8, 2)[[0, 0, 1]]
    a, b, c, *angles = crystal.cell
    cell = (a * stretch[0], b * stretch[1], c * stretch[2], *angles)
    crystal = replace(crystal, cell=cell, intensity=crystal.intensity * float(np.prod(stretch)))
    sample = Sample(
        crystal, size_m=_log_uniform(rng, *recipe.crystal_size_m), mosaicity_deg=_log_uniform(rng, 0.01, 0.3)
    )
    return Scene(sample, condition, replace(detector, point_spread_px=rng.uniform(0.3, 1.2)))


def draw_shot(recipe: ShotRecipe, scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene of one shot of a group; its hit_fraction is 0 or 1."""
    flux = _log_uniform(rng, *recipe.flux_photons)
    water = min(_log_uniform(rng, *recipe.water_scale), _MOST_WATER * 3e8 / flux)
    sample = scene.sample
    hit = rng.random() < recipe.hit_fraction
    if hit and rng.random() < recipe.sampled_fraction:
        # A perfect crystal in a narrow beam meets few reflections and meets them hard.
        width = rng.uniform(0.5, 2.5)
        factor = np.exp(width * rng.standard_normal(len(sample.crystal.intensity)) - width * width / 2)
        sample = replace(sample, crystal=replace(sample.crystal, intensity=sample.crystal.intensity * factor))
    one_per_pulse = rng.random() < recipe.one_per_pulse_fraction
    return replace(
        scene,
        sample=sample,
        condition=replace(scene.condition, flux_photons=flux),
        surroundings=Surroundings(water_thickness_m=water * _WATER_UNIT_M),
        response=Response("one_per_pulse" if one_per_pulse else "integrating"),
        hit_fraction=float(hit),
    )


def make_shard(recipe: ShotRecipe, seed: int, shard: int) -> MapSet:
    """Reduced shots of one shard; the same for the same recipe, seed and shard."""
    detector = eiger2_4m()
    rows, columns = detector.shape
    count = recipe.groups_per_shard * recipe.shots_per_group
    hit = np.zeros(count, bool)
    names = ("photon_energy_eV", "camera_length_m", "flux_photons", "water_scale", "bragg_photons", "group", "response")
    facts = {name: np.zeros(count) for name in names}
    maps: npt.NDArray[np.float16] | None = None
    buffers = Buffers(detector)
    for group in range(recipe.groups_per_shard):
        number = shard * recipe.groups_per_shard + group
        rng = frame_rng(seed, number)
        scene = draw_group(recipe, detector, rng)
        center_x, center_y = beam_center_px(scene.condition, detector)
        metadata = SeriesMetadata(
            shape=(rows, columns),
            beam_center_x_px=center_x + rng.uniform(-1, 1) * recipe.center_error_px,
            beam_center_y_px=center_y + rng.uniform(-1, 1) * recipe.center_error_px,
        )
        plan = make_plan(
            series_geometry(metadata, detector.shape),
            series_validity(metadata, detector.shape, "threshold_1"),
            detector.saturation_value,
        )
        workspace = Workspace(plan, np.dtype(np.uint16))
        if maps is None:
            maps = np.zeros((count, 2, *plan.cell_valid.shape), np.float16)
        for member in range(recipe.shots_per_group):
            place = group * recipe.shots_per_group + member
            shot_scene = draw_shot(recipe, scene, rng)
            # Simulated where the reduction reads it: no frame is copied, compressed or stored.
            truth = simulate_shot(shot_scene, rng, buffers=buffers, out=workspace.pixels).truth
            reduced = workspace.reduce()
            maps[place] = np.minimum(reduced.significance, 6e4)
            hit[place] = truth.hit
            for name, value in (
                ("photon_energy_eV", truth.condition.photon_energy_eV),
                ("camera_length_m", truth.condition.camera_length_m),
                ("flux_photons", truth.condition.flux_photons),
                ("water_scale", truth.water_thickness_m / _WATER_UNIT_M),
                ("bragg_photons", truth.bragg_photons),
                ("group", number),
                ("response", shot_scene.response.kind == "one_per_pulse"),
            ):
                facts[name][place] = value
    assert maps is not None
    return MapSet(maps, plan.cell_valid, hit, facts)


def _write_shard(recipe: ShotRecipe, seed: int, shard: int, folder: Path) -> Path:
    path = folder / f"shots-{recipe.digest}-{seed}-{shard:04d}.npz"
    if not path.exists():
        made = make_shard(recipe, seed, shard)
        temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
        fields: dict[str, Any] = {f"fact_{name}": values for name, values in made.facts.items()}
        np.savez(temporary, maps=made.maps, cell_valid=made.cell_valid, hit=made.hit, **fields)
        temporary.rename(path)
    return path


def make_shots(
    recipe: ShotRecipe, seed: int, shards: range, folder: Path, workers: int, progress: Any = None
) -> MapSet:
    """Reduced shots of several shards, from disk where they are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(_write_shard, recipe, seed, shard, folder) for shard in shards]
        paths = []
        for job in jobs:
            paths.append(job.result())
            if progress is not None:
                progress(len(paths), len(jobs))
    return _join([_read_shard(path) for path in paths])


def _read_shard(path: Path) -> MapSet:
    with np.load(path) as z:
        facts = {name.removeprefix("fact_"): z[name] for name in z.files if name.startswith("fact_")}
        return MapSet(z["maps"], z["cell_valid"], z["hit"], facts)


def _join(sets: list[MapSet]) -> MapSet:
    return MapSet(
        np.concatenate([s.maps for s in sets]),
        sets[0].cell_valid,
        np.concatenate([s.hit for s in sets]),
        {name: np.concatenate([s.facts[name] for s in sets]) for name in sets[0].facts},
    )
