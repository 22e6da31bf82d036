"""What a simulated frame costs, and how many training inputs a second two cores make.

CrystFEL's pattern_sim is not run here (it left CrystFEL in 0.11): its figures are those of version 0.10.2 on the
paper's parameters, one core, noise-free and without water, as built and with its inner loop accelerated.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch

from cxls.bench.report import Figure, Ratio, Report, over_rounds
from cxls.bench.roofs_gpu import NOT_MEASURED
from cxls.settings import BenchSettings
from sim_replay.background import Surroundings
from sim_replay.crystal import proteinase_k
from sim_replay.detector import CONDITIONS
from sim_replay.diffraction import Sample
from sim_replay.response import Response
from sim_replay.scene import Scene
from sim_replay.simulation import FrameMaker
from training.crops import simulate_crops
from training.shots import ShotRecipe, make_shard

PATTERN_SIM_CPU_S = 540.0
ACCELERATED_PATTERN_SIM_CPU_S = 2.2

_PROCESSES = 2
_ROUNDS = 5
_CROP_GROUPS = 16
_CROP_PX = 256
_MIX = ShotRecipe(groups_per_shard=8, shots_per_group=16)
_PLAIN = replace(
    _MIX, cells=("proteinase-k",), several_crystals_fraction=0.0, retrigger_fraction=0.0, shared_charge_fraction=0.0,
    surroundings_fraction=0.0, artefacts_fraction=0.0, masked_fraction=0.0, salt=0.0, ice=0.0, lipid=0.0, polymer=0.0,
)  # fmt: skip


def run(settings: BenchSettings) -> Report:
    """Full frames on one core, then training inputs on two."""
    figures, held = [], []
    crystal = proteinase_k()
    for condition in (1, 3, 5, 9):
        for name, flux, water, bar in (("3e8 photons, 100 um", 3e8, 1.0, 0.1), ("1e9 photons, 10 mm", 1e9, 100.0, 0.6)):
            scene = Scene(
                Sample(crystal),
                replace(CONDITIONS[condition], flux_photons=flux),
                surroundings=Surroundings(water_thickness_m=water * 100e-6),
            )
            seconds = _frame_cpu_s(scene, settings.frames)
            figures.append(over_rounds(f"condition {condition}, {name} of water", "s CPU a frame", seconds))
            held.append(Ratio(f"condition {condition}, {name}: CPU / bar of {bar} s", min(seconds) / bar))
    usual = figures[4].value or 1.0
    for kind in ("one_per_pulse", "retrigger"):
        for charge_m in (0.0, 8e-6):
            scene = Scene(Sample(crystal), response=Response(kind, charge_sigma_m=charge_m))
            seconds = _frame_cpu_s(scene, settings.frames)
            sharing = "shared charge" if charge_m else "no sharing"
            figures.append(over_rounds(f"condition 5, {kind}, {sharing}", "s CPU a frame", seconds))
    maps = _rate(_shard, [(_PLAIN, seed) for seed in range(4)])
    everything = _rate(_shard, [(_MIX, seed) for seed in range(4)])
    crops = _rate(_crops, list(range(4)))
    figures += [
        Figure("reduced maps of whole frames", "a second", maps, note="mixed flux, water, crystals; two processes"),
        Figure(
            "the same as hit models train on",
            "a second",
            everything,
            note="besides 23 cells, salt, rings, faults, shared charge, retriggering; two processes",
        ),
        Figure(f"crops of {_CROP_PX} x {_CROP_PX}", "a second", crops, note="the same mix; two processes"),
        crops_on_gpu(),
    ]
    return Report(
        "simulate: EIGER2 4M frames with water, noise, truth and compression",
        figures,
        (
            Ratio("pattern_sim 0.10.2 / ours at condition 5", PATTERN_SIM_CPU_S / usual),
            Ratio("accelerated pattern_sim / ours at condition 5", ACCELERATED_PATTERN_SIM_CPU_S / usual),
            *held,
            Ratio("reduced maps a second / bar of 40", maps / 40.0),
            Ratio("crops a second / bar of 200", crops / 200.0),
        ),
        ("pattern_sim: 540 s CPU a frame as built, 2.2 s with its inner loop accelerated; without water or noise",),
    )


def crops_on_gpu() -> Figure:
    """Crops a second of one process on a device; without one a row that says so."""
    name = f"crops of {_CROP_PX} x {_CROP_PX} on a GPU"
    if not torch.cuda.is_available():
        return Figure(name, "a second", None, note=NOT_MEASURED)

    def work(seed: int) -> int:
        made = len(simulate_crops(_MIX, seed, range(_CROP_GROUPS), _CROP_PX, "cuda").counts)
        torch.cuda.synchronize()
        return made

    work(0)
    began = time.perf_counter()
    made = sum(work(seed) for seed in range(1, 5))
    return Figure(name, "a second", made / (time.perf_counter() - began), note="the same mix; one process")


def _frame_cpu_s(scene: Scene, frames: int) -> list[float]:
    maker = FrameMaker(scene, seed=1)
    maker.packed_frame(0)  # compile, and make the water
    each = max(frames // _ROUNDS, 2)
    found = []
    for turn in range(_ROUNDS):
        began = time.process_time()
        for frame in range(turn * each, (turn + 1) * each):
            maker.packed_frame(frame)
        found.append((time.process_time() - began) / each)
    return found


def _rate(work: Any, jobs: list[Any]) -> float:
    """Inputs a second of all processes together, once they are warm."""
    with ProcessPoolExecutor(_PROCESSES, get_context("spawn")) as pool:
        list(pool.map(work, jobs[:_PROCESSES]))
        began = time.perf_counter()
        made = sum(pool.map(work, jobs))
        return float(made / (time.perf_counter() - began))


def _shard(job: tuple[ShotRecipe, int]) -> int:
    recipe, seed = job
    return len(make_shard(recipe, seed, 0))


def _crops(seed: int) -> int:
    torch.set_num_threads(1)  # a process has a core
    return len(simulate_crops(_MIX, seed, range(_CROP_GROUPS), _CROP_PX).counts)
