"""Random shots for training: every nuisance drawn anew, reduced as the analyser would.

Shots come in groups that share one geometry (whose water takes a while to compute) and one
crystal; each shot has its own orientation, flux, water and noise. Splits never cut a group,
so no crystal, background or seed is on both sides. Shard files make generation resumable.
"""

import hashlib
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer import zones
from analyzer.geometry import series_geometry
from analyzer.reduction import Workspace, make_plan
from sim_replay.artefacts import Artefacts, FixedPixels, fixed_pixels
from sim_replay.background import Surroundings
from sim_replay.beam import Beam, gaussian, top_hat
from sim_replay.cells import READY_CELLS, wilson_crystal
from sim_replay.detector import CONDITIONS, MAX_FLUX_PHOTONS, Condition, Detector, beam_center_px, eiger2_4m
from sim_replay.diffraction import Sample, TooWideError
from sim_replay.distractors import Distractors
from sim_replay.response import Response
from sim_replay.scene import Scene
from sim_replay.shots import Buffers, Shot, frame_rng, simulate_shot
from streamer.messages import SeriesMetadata
from streamer.validity import series_validity

HELD_OUT_CELLS = (
    "lysozyme", "lysozyme-1vds", "thaumatin", "insulin", "hemoglobin", "t4-lysozyme", "crambin", "photosystem-i"
)  # fmt: skip
"""Never trained on: what a network makes of them tells whether it knows crystals or these crystals."""

TRAINING_CELLS = tuple(name for name in READY_CELLS if name not in HELD_OUT_CELLS)

_WATER_UNIT_M = 100e-6
_MOST_WATER = 60.0
"""Largest water in units of 100 micrometres at 3e8 photons: 2 photons a pixel, dense enough."""

_DETECTOR_CORNER_M = 0.112
_FINEST_D_ANGSTROM = 1.8
_MATCHED = 1 << 40
"""Beyond the number of any group: the random numbers of matched shots are nobody else's."""

_POLL_S = 0.5
_MOST_TRIES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotRecipe:
    """Ranges that shots are drawn from; flux, water and sizes are log-uniform, shares are chances.

    paper_fraction of the groups stand at one of the paper's nine conditions, the others anywhere in the ranges.
    sampled_fraction: hits whose reflections are as uneven as a perfect crystal's in a narrow beam; sharp_fraction:
    groups of perfect crystals on a detector that spreads their spots little; pixel_fraction: those of them whose spots
    are one pixel each. salt to no_beam: chance of each kind, in any frame. salt_size_m: a micrometre sends some 300
    photons of 3e8 into its strongest spot. ring_strength: thickness of ice, lipid and polymer, times what
    `sim_replay.distractors` takes for usual.
    """

    groups_per_shard: int = 64
    shots_per_group: int = 8
    cells: tuple[str, ...] = TRAINING_CELLS
    flux_photons: tuple[float, float] = (1e5, 1e9)
    water_scale: tuple[float, float] = (0.1, 100.0)
    photon_energy_eV: tuple[float, float] = (5000.0, 10000.0)
    camera_length_m: tuple[float, float] = (0.10, 0.45)
    crystal_size_m: tuple[float, float] = (2e-6, 15e-6)
    wilson_b_angstrom2: tuple[float, float] = (5.0, 60.0)
    mosaicity_deg: tuple[float, float] = (0.01, 0.5)
    strain: tuple[float, float] = (1e-4, 5e-3)
    perfect_mosaicity_deg: tuple[float, float] = (5e-4, 0.02)
    perfect_strain: tuple[float, float] = (1e-6, 2e-4)
    sharp_spread_px: tuple[float, float] = (0.01, 0.25)
    spread_px: tuple[float, float] = (0.25, 1.2)
    bandwidth: tuple[float, float] = (0.002, 0.03)
    paper_fraction: float = 0.3
    center_error_px: float = 10.0
    several_crystals_fraction: float = 0.2
    one_per_pulse_fraction: float = 0.35
    retrigger_fraction: float = 0.1
    shared_charge_fraction: float = 0.3
    sharp_fraction: float = 0.5
    pixel_fraction: float = 0.5
    sampled_fraction: float = 0.35
    surroundings_fraction: float = 0.3
    artefacts_fraction: float = 0.05
    masked_fraction: float = 0.25
    salt: float = 0.2
    ice: float = 0.08
    lipid: float = 0.06
    polymer: float = 0.08
    no_beam: float = 0.01
    salt_size_m: tuple[float, float] = (3e-7, 2e-5)
    salt_crystals: tuple[int, int] = (3, 150)
    ring_strength: tuple[float, float] = (0.3, 20.0)
    hit_fraction: float = 0.5
    matched: bool = False

    @property
    def digest(self) -> str:
        """Names the recipe, so that shots of another one are not taken for its own."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


DISTRACTED: dict[str, Any] = {
    "salt": 0.5, "ice": 0.2, "lipid": 0.15, "polymer": 0.25, "no_beam": 0.0, "flux_photons": (1e6, 1e9)
}  # fmt: skip
"""Changes that make nine frames of ten hold what is no protein, and bright enough to be seen: what training needs more
of than there is in a mix."""

FACTS = (
    "photon_energy_eV", "camera_length_m", "flux_photons", "water_scale", "bragg_photons", "strongest_photons",
    "log_likelihood_ratio", "kinds", "response", "crystals", "cell", "salt_spots",
)  # fmt: skip
"""What is kept of each shot's truth: response 0 integrating, 1 one per pulse, 2 retrigger; cell by its place in
READY_CELLS; kinds as the bits of `sim_replay.distractors.Kind`; strongest_photons of any spot, salt's too; salt_spots
of at least 3 photons."""

RESPONSES = ("integrating", "one_per_pulse", "retrigger")


@dataclass(frozen=True, slots=True, eq=False)
class ShotSet:
    """Reduced shots.

    zones (N, ZONES, COLUMNS) and cells (N, STRONGEST, CELL_COLUMNS) float32, see ``analyzer.zones``; header (N, 2)
    float32, the true photon energy (eV) and camera length (m); group (N,), which shots have a crystal and a geometry
    in common; hit (N,) bool; facts (N,) float64 by name, see `FACTS`.
    """

    zones: npt.NDArray[np.float32]
    cells: npt.NDArray[np.float32]
    header: npt.NDArray[np.float32]
    group: npt.NDArray[np.int64]
    hit: npt.NDArray[np.bool_]
    facts: dict[str, npt.NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.hit)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def draw_group(recipe: ShotRecipe, detector: Detector, rng: np.random.Generator) -> Scene:
    """What the shots of a group share: crystal, beam, where the detector stands and what is wrong with it."""
    # Spots of one pixel with nothing beside it, as a hot pixel is, have to be met, and hot pixels as rarely as on a
    # detector that is looked after: or sharp spots are given up for them.
    sharp = rng.random() < recipe.sharp_fraction
    spread = _log_uniform(rng, *recipe.sharp_spread_px) if sharp else rng.uniform(*recipe.spread_px)
    condition = _draw_condition(recipe, detector, sharp, rng)
    finest = condition.wavelength_angstrom / (
        2.0 * math.sin(0.5 * math.atan(_DETECTOR_CORNER_M / condition.camera_length_m))
    )
    name = recipe.cells[int(rng.integers(len(recipe.cells)))]
    crystal = wilson_crystal(
        name,
        int(rng.integers(1 << 30)),
        max(finest, _FINEST_D_ANGSTROM, READY_CELLS[name].d_min_angstrom),
        rng.uniform(*recipe.wilson_b_angstrom2),
    )
    sample = Sample(
        crystal,
        size_m=_log_uniform(rng, *recipe.crystal_size_m),
        mosaicity_deg=_log_uniform(rng, *(recipe.perfect_mosaicity_deg if sharp else recipe.mosaicity_deg)),
        strain=_log_uniform(rng, *(recipe.perfect_strain if sharp else recipe.strain)),
    )
    return Scene(
        sample,
        condition,
        replace(detector, point_spread_px=spread),
        surroundings=_draw_surroundings(recipe, rng),
        response=_draw_response(recipe, rng),
        artefacts=_draw_artefacts(recipe, rng),
    )


def _draw_condition(recipe: ShotRecipe, detector: Detector, sharp: bool, rng: np.random.Generator) -> Condition:
    center = (detector.shape[1] / 2, detector.shape[0] / 2)
    bandwidth = _log_uniform(rng, *recipe.bandwidth)
    if rng.random() < recipe.paper_fraction:
        nominal = CONDITIONS[int(rng.integers(1, len(CONDITIONS) + 1))]
        energy = nominal.photon_energy_eV * (1 + 0.005 * rng.standard_normal())
        length = nominal.camera_length_m * (1 + 0.005 * rng.standard_normal())
    else:
        energy, length = rng.uniform(*recipe.photon_energy_eV), rng.uniform(*recipe.camera_length_m)
    return Condition(
        photon_energy_eV=energy,
        camera_length_m=length,
        beam_center_x_px=center[0] + rng.uniform(-20, 20),
        beam_center_y_px=center[1] + rng.uniform(-20, 20),
        beam=Beam(
            spectrum=top_hat(bandwidth) if rng.random() < 0.7 else gaussian(bandwidth),
            divergence_rad=0.0 if sharp or rng.random() < 0.6 else _log_uniform(rng, 1e-4, 3e-3),
            polarisation_fraction=1.0 if rng.random() < 0.7 else rng.uniform(0.0, 1.0),
            polarisation_deg=0.0 if rng.random() < 0.8 else rng.uniform(0.0, 180.0),
        ),
    )


def _draw_surroundings(recipe: ShotRecipe, rng: np.random.Generator) -> Surroundings:
    if rng.random() >= recipe.surroundings_fraction:
        return Surroundings()

    def sometimes(low: float, high: float) -> float:
        return _log_uniform(rng, low, high) if rng.random() < 0.4 else 0.0

    return Surroundings(
        water_temperature_K=rng.uniform(278.0, 320.0),
        air_path_m=sometimes(1e-3, 0.1),
        helium_path_m=sometimes(1e-2, 0.3),
        capillary_wall_m=sometimes(1e-6, 5e-5),
        film_thickness_m=sometimes(1e-6, 5e-5),
        beam_stop_radius_m=sometimes(5e-4, 2e-3),
        flat_photons_per_pixel=sometimes(1e-5, 3e-3),
    )


def _draw_response(recipe: ShotRecipe, rng: np.random.Generator) -> Response:
    draw = rng.random() - recipe.one_per_pulse_fraction
    kind = RESPONSES[1] if draw < 0 else RESPONSES[2] if draw < recipe.retrigger_fraction else RESPONSES[0]
    return Response(
        kind,  # type: ignore[arg-type]
        pulses=1 if rng.random() < 0.8 else int(rng.integers(2, 11)),
        charge_sigma_m=rng.uniform(4e-6, 12e-6) if rng.random() < recipe.shared_charge_fraction else 0.0,
    )


def _draw_artefacts(recipe: ShotRecipe, rng: np.random.Generator) -> Artefacts:
    if rng.random() >= recipe.artefacts_fraction:
        return Artefacts()

    def number(most: int, chance: float = 0.5) -> int:
        return int(rng.integers(1, most + 1)) if rng.random() < chance else 0

    return Artefacts(
        dead_pixels=number(300),
        # A pixel that is always hot is in the mask, or soon will be.
        hot_pixels=number(3, 0.1),
        hot_counts=_log_uniform(rng, 3.0, 1e4),
        flickering_pixels=number(5, 0.2),
        flicker_counts=_log_uniform(rng, 2.0, 300.0),
        dark_counts=_log_uniform(rng, 1e-7, 1e-4) if rng.random() < 0.4 else 0.0,
        cosmics=rng.uniform(0.0, 0.05),
        edge_excess=rng.uniform(0.0, 1.5) if rng.random() < 0.3 else 0.0,
        edge_glow_share=rng.uniform(0.0, 0.2) if rng.random() < 0.2 else 0.0,
    )


def _draw_mask(recipe: ShotRecipe, scene: Scene, rng: np.random.Generator) -> npt.NDArray[np.uint32]:
    """The detector's gaps, and now and then what a user leaves out besides: a beam stop, a module, a stripe."""
    mask = scene.detector.mask.astype(np.uint32)
    if rng.random() >= recipe.masked_fraction:
        return mask
    rows, columns = mask.shape
    center_x, center_y = beam_center_px(scene.condition, scene.detector)
    if rng.random() < 0.6:
        y, x = np.ogrid[:rows, :columns]
        mask[(x - center_x) ** 2 + (y - center_y) ** 2 < rng.uniform(10, 120) ** 2] = 1
    if rng.random() < 0.3:
        top, left = int(rng.integers(4)) * 550, int(rng.integers(2)) * 1040
        mask[top : top + 512, left : left + 1028] = 1
    if rng.random() < 0.3:
        left = int(rng.integers(columns - 40))
        mask[int(center_y) :, left : left + int(rng.integers(5, 40))] = 1
    return mask


def draw_shot(recipe: ShotRecipe, scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene of one shot of a group; its hit_fraction is 0 or 1."""
    flux = _log_uniform(rng, *recipe.flux_photons)
    pulses = scene.response.pulses
    water = min(_log_uniform(rng, *recipe.water_scale), _MOST_WATER * 3e8 / (flux * pulses))
    sample = scene.sample
    hit = rng.random() < recipe.hit_fraction
    if hit and rng.random() < recipe.sampled_fraction:
        # A perfect crystal in a narrow beam meets few reflections and meets them hard.
        width = rng.uniform(0.5, 2.5)
        factor = np.exp(width * rng.standard_normal(len(sample.crystal.intensity)) - width * width / 2)
        sample = replace(sample, crystal=replace(sample.crystal, intensity=sample.crystal.intensity * factor))
    several = rng.random() < recipe.several_crystals_fraction
    salt_size_m = _log_uniform(rng, *recipe.salt_size_m)
    crystallites = round(_log_uniform(rng, *recipe.salt_crystals))
    distractors = Distractors(
        salt=recipe.salt,
        ice_ring=recipe.ice,
        lipid_ring=recipe.lipid,
        polymer_ring=recipe.polymer,
        no_beam=recipe.no_beam,
        ring_strength=min(_log_uniform(rng, *recipe.ring_strength) * max(water, 0.3), 100.0),
        salt_size_m=(salt_size_m, 1.5 * salt_size_m),
        salt_crystals=(crystallites, crystallites),
    )
    return replace(
        scene,
        sample=sample,
        condition=replace(scene.condition, flux_photons=min(flux, MAX_FLUX_PHOTONS / pulses)),
        surroundings=replace(scene.surroundings, water_thickness_m=water * _WATER_UNIT_M),
        distractors=distractors,
        crystals=int(rng.integers(2, 4)) if several else 1,
        hit_fraction=float(hit),
    )


def make_shard(recipe: ShotRecipe, seed: int, shard: int) -> ShotSet:
    """Reduced shots of one shard; the same for the same recipe, seed and shard."""
    detector = eiger2_4m()
    count = recipe.groups_per_shard * recipe.shots_per_group
    made = ShotSet(
        zones=np.zeros((count, zones.ZONES, zones.COLUMNS), np.float32),
        cells=np.zeros((count, zones.STRONGEST, zones.CELL_COLUMNS), np.float32),
        header=np.zeros((count, 2), np.float32),
        group=shard * recipe.groups_per_shard + np.repeat(np.arange(recipe.groups_per_shard), recipe.shots_per_group),
        hit=np.zeros(count, bool),
        facts={name: np.zeros(count) for name in FACTS},
    )
    buffers = Buffers(detector)
    for group in range(recipe.groups_per_shard):
        number = shard * recipe.groups_per_shard + group
        for member, (shot_scene, made_shot, workspace) in enumerate(
            group_shots(recipe, seed, number, detector, buffers)
        ):
            truth = made_shot.truth
            place = group * recipe.shots_per_group + member
            workspace.reduce()
            made.zones[place], made.cells[place] = workspace.zones, workspace.cells
            made.header[place] = truth.condition.photon_energy_eV, truth.condition.camera_length_m
            made.hit[place] = truth.hit
            spots = np.concatenate([truth.spots.photons, truth.distractor_spots.photons, [0.0]])
            known = (
                truth.condition.photon_energy_eV, truth.condition.camera_length_m, truth.condition.flux_photons,
                truth.water_thickness_m / _WATER_UNIT_M, truth.bragg_photons, float(spots.max()),
                truth.log_likelihood_ratio, int(truth.kinds), RESPONSES.index(shot_scene.response.kind),
                shot_scene.crystals if truth.hit else 0, list(READY_CELLS).index(_cell_name(shot_scene)),
                int((truth.distractor_spots.photons >= 3.0).sum()),
            )  # fmt: skip
            for name, value in zip(FACTS, known, strict=True):
                made.facts[name][place] = value
    return made


def group_shots(
    recipe: ShotRecipe, seed: int, number: int, detector: Detector, buffers: Buffers
) -> Iterator[tuple[Scene, Shot, Workspace]]:
    """The shots of group ``number`` of a seed, one after another, in the workspace that they share, not yet reduced."""
    rng = frame_rng(seed, number)
    scene = draw_group(recipe, detector, rng)
    fixed = fixed_pixels(scene.artefacts, scene.detector.mask, int(rng.integers(1 << 62)))
    workspace = _workspace(recipe, scene, rng)
    sharp = scene.detector.point_spread_px < recipe.spread_px[0]
    pixel_spots = sharp and rng.random() < recipe.pixel_fraction
    for member in range(recipe.shots_per_group):
        if recipe.matched:
            rng = frame_rng(seed, _MATCHED + number * recipe.shots_per_group + member)
        shot_scene, made = _simulate(recipe, scene, rng, fixed, buffers, workspace, pixel_spots)
        yield shot_scene, made, workspace


def _simulate(
    recipe: ShotRecipe, scene: Scene, rng: np.random.Generator, fixed: FixedPixels, buffers: Buffers,
    workspace: Workspace, pixel_spots: bool,
) -> tuple[Scene, Shot]:  # fmt: skip
    """A shot of the group where the reduction reads it: no frame is copied, compressed or stored."""
    for _ in range(_MOST_TRIES):
        shot = draw_shot(recipe, scene, rng)
        try:
            made = simulate_shot(shot, rng, fixed=fixed, buffers=buffers, out=workspace.pixels, pixel_spots=pixel_spots)
        except TooWideError:
            continue  # three crystals of a large cell may be; one is not, and an empty never
        return shot, made
    raise TooWideError


def _cell_name(scene: Scene) -> str:
    cell = scene.sample.crystal.cell
    return next(name for name, entry in READY_CELLS.items() if entry.cell == cell)


def _workspace(recipe: ShotRecipe, scene: Scene, rng: np.random.Generator) -> Workspace:
    """Where the frames of a group are reduced: with a mask, and a beam centre that is as wrong as headers are."""
    detector = scene.detector
    center_x, center_y = beam_center_px(scene.condition, detector)
    metadata = SeriesMetadata(
        shape=detector.shape,
        beam_center_x_px=center_x + rng.uniform(-1, 1) * recipe.center_error_px,
        beam_center_y_px=center_y + rng.uniform(-1, 1) * recipe.center_error_px,
        masks={"threshold_1": _draw_mask(recipe, scene, rng)},
    )
    geometry = series_geometry(metadata, detector.shape)
    validity = series_validity(metadata, detector.shape, "threshold_1")
    return Workspace(make_plan(geometry, validity, detector.saturation_value), np.dtype(np.uint16))


def make_shots(
    recipe: ShotRecipe, seed: int, shards: range, folder: Path, workers: int, progress: Any = None
) -> ShotSet:
    """Reduced shots of several shards, from disk where they are there already.

    Every shard is written whole or not at all, so an interrupted run goes on where it was. progress(done, total) is
    called now and then and may raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run_shards(_write_shard, [(recipe, seed, shard, folder) for shard in shards], workers, progress)
    return join([_read_shard(_shard_path(recipe, seed, shard, folder)) for shard in shards])


def run_shards(write: Callable[..., None], jobs: Sequence[tuple[Any, ...]], workers: int, progress: Any = None) -> None:
    """Call ``write`` with the arguments of each job, in so many processes; it leaves out what is written already.

    progress(done, total) is called now and then and may raise.
    """
    # Ctrl-C reaches the whole group of processes; the parent decides.
    pool = ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        waiting, done = {pool.submit(write, *job) for job in jobs}, 0
        while waiting:
            finished, waiting = wait(waiting, _POLL_S, FIRST_COMPLETED)
            for each in finished:
                each.result()
            done += len(finished)
            if progress is not None:
                progress(done, len(jobs))
    except BaseException:
        # Half a shard is worth nothing, and a whole one may take minutes.
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_ARRAYS = ("zones", "cells", "header", "group", "hit")


def _shard_path(recipe: ShotRecipe, seed: int, shard: int, folder: Path) -> Path:
    return folder / f"shots-{recipe.digest}-{seed}-{shard:04d}.npz"


def _write_shard(recipe: ShotRecipe, seed: int, shard: int, folder: Path) -> None:
    path = _shard_path(recipe, seed, shard, folder)
    if path.exists():
        return
    made = make_shard(recipe, seed, shard)
    facts = {f"fact_{name}": values for name, values in made.facts.items()}
    write_arrays(path, facts | {name: getattr(made, name) for name in _ARRAYS})


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named arrays to an .npz, whole or not at all, whoever else writes the same."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
    np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    temporary.rename(path)


def _read_shard(path: Path) -> ShotSet:
    with np.load(path) as z:
        facts = {name.removeprefix("fact_"): z[name] for name in z.files if name.startswith("fact_")}
        return ShotSet(**{name: z[name] for name in _ARRAYS}, facts=facts)


def join(sets: Sequence[ShotSet]) -> ShotSet:
    """Several sets of one seed together as one."""
    arrays = {name: np.concatenate([getattr(each, name) for each in sets]) for name in _ARRAYS}
    facts = {name: np.concatenate([each.facts[name] for each in sets]) for name in sets[0].facts}
    return ShotSet(**arrays, facts=facts)


def take(shots: ShotSet, places: npt.NDArray[Any]) -> ShotSet:
    """These shots alone: their places, or which of them (N,) bool."""
    facts = {name: values[places] for name, values in shots.facts.items()}
    return ShotSet(**{name: getattr(shots, name)[places] for name in _ARRAYS}, facts=facts)
