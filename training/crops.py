"""Windows of random shots for networks that look at pixels, drawn from the mix that whole frames are drawn from.

Nothing is ever as large as a frame: each window is simulated by itself, on the CPU or a GPU, with its true spots.
"""

from dataclasses import replace

import torch

from sim_replay.batch import Crop, CropBatch, make_crops
from sim_replay.detector import Detector, eiger2_4m
from sim_replay.diffraction import random_orientation
from sim_replay.response import Response
from sim_replay.shots import frame_rng
from training.shots import ShotRecipe, draw_group, draw_shot


def draw_crops(recipe: ShotRecipe, detector: Detector, seed: int, group: int, size_px: int) -> list[Crop]:
    """The windows of one group, each of a shot of its own; the same for the same recipe, seed and group."""
    rng = frame_rng(seed, group)
    scene = draw_group(recipe, detector, rng)
    crops = []
    for _ in range(recipe.shots_per_group):
        shot = draw_shot(recipe, scene, rng)
        ss0, fs0 = (int(rng.integers(size - size_px + 1)) for size in detector.shape)
        crystals = ((shot.sample, random_orientation(rng)),) if shot.hit_fraction else ()
        # Windows know neither shared charge nor pixels that trigger again: see `sim_replay.batch`.
        once = shot.response.kind == "one_per_pulse"
        response = Response("one_per_pulse" if once else "integrating", shot.response.pulses)
        crops.append(Crop(shot.condition, shot.surroundings, ss0, fs0, crystals, response=response))
    return crops


def simulate_crops(
    recipe: ShotRecipe, seed: int, groups: range, size_px: int = 256, device: torch.device | str = "cpu"
) -> CropBatch:
    """Windows of size_px x size_px pixels of some groups of shots, with their truth; see `CropBatch`.

    The same for the same arguments on one kind of device. Groups share nothing, so a split by groups leaks nothing.
    """
    rng = frame_rng(seed, groups.start)
    detector = replace(eiger2_4m(), point_spread_px=rng.uniform(0.3, 1.2))
    crops = [crop for group in groups for crop in draw_crops(recipe, detector, seed, group, size_px)]
    generator = torch.Generator(device).manual_seed(int(rng.integers(1 << 62)))
    return make_crops(crops, detector, (size_px, size_px), device=device, generator=generator)
