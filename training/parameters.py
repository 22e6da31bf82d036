"""Training of the parameter network on radial profiles of simulated water.

Whole frames are not needed: a profile is Poisson counts in bins whose expectation follows
from the water's structure factor, polarisation and solid angle, so millions of profiles cost
what a hundred frames would. Beam centre, thickness and flux, a flat and an air-like extra
background and left-over Bragg light are drawn anew for each.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from analyzer.attributes import Recipe
from analyzer.geometry import Geometry, bin_map, series_geometry
from analyzer.networks import ParameterNetwork, coarse_profile, profile_features, profile_index
from sim_replay.background import expected_water
from sim_replay.detector import CONDITIONS, Condition, eiger2_4m
from streamer.files import BadInput
from streamer.messages import SeriesMetadata
from training.hit import Progress
from training.loop import checkpoint as checkpoints
from training.loop.optimising import Descent
from training.loop.samples import digest
from training.loop.train import CHECKPOINT, Diverged, save_batch

COVERAGE_GOAL = 0.95
_CHECKPOINT_S = 120.0
_RANDOM = "random_numbers"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterRecipe:
    """Hyper-parameters and the ranges of the prior.

    ``tables``: water images the profiles come from; ``shape_error``: relative size of a smooth
    distortion of the profile, for what the water model does not know.
    """

    steps: int = 6000
    batch: int = 512
    learning_rate: float = 2e-3
    photon_energy_eV: tuple[float, float] = (5000.0, 10000.0)
    camera_length_m: tuple[float, float] = (0.10, 0.45)
    photons: tuple[float, float] = (1e2, 1e8)
    flat_fraction: float = 0.03
    air_fraction: float = 0.03
    bragg_fraction: float = 0.02
    shape_error: float = 0.005
    tables: int = 2400
    seed: int = 1

    @property
    def descent(self) -> Recipe:
        """Optimiser and schedule, as the training loop takes them."""
        return Recipe(
            loss="gaussian-nll", optimiser="adamw", learning_rate=self.learning_rate, epochs=1, batch=self.batch,
            schedule="one-cycle", weight_decay=1e-4, clip_norm=1.0,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class ProfileTable:
    """Expected profiles of pure water: ``water`` and ``pixels`` (N, bins), ``energy_eV`` and ``distance_m`` (N,)."""

    water: npt.NDArray[np.float32]
    pixels: npt.NDArray[np.float32]
    energy_eV: npt.NDArray[np.float64]
    distance_m: npt.NDArray[np.float64]


def make_table(recipe: ParameterRecipe, seed: int, count: int, progress: Progress | None = None) -> ProfileTable:
    """Water profiles over the prior's ranges, each with its own beam centre and error of it."""
    rng = np.random.default_rng(seed)
    detector = eiger2_4m()
    live = ~detector.mask
    water, pixels, energies, distances = [], [], [], []
    geometry, index, bins = _binning(rng, detector.shape)
    for n in range(count):
        if n % 8 == 0:
            geometry, index, bins = _binning(rng, detector.shape)
        energy, distance = rng.uniform(*recipe.photon_energy_eV), rng.uniform(*recipe.camera_length_m)
        condition = Condition(
            photon_energy_eV=energy,
            camera_length_m=distance,
            beam_center_x_px=geometry.beam_center_fs + 0.5 + rng.uniform(-10, 10),
            beam_center_y_px=geometry.beam_center_ss + 0.5 + rng.uniform(-10, 10),
        )
        image = expected_water(condition, detector)
        place = bins.bin_of[live.reshape(-1)]
        photons = np.bincount(place, image[live].astype(np.float64), bins.bins).astype(np.float64)
        area = np.bincount(place, minlength=bins.bins).astype(np.float64)
        profile = coarse_profile(photons, area, index)
        water.append(profile[0])
        pixels.append(profile[1])
        energies.append(energy)
        distances.append(distance)
        if progress is not None and n % 50 == 49:
            progress(n + 1, count, "water profiles")
    return ProfileTable(np.stack(water), np.stack(pixels), np.array(energies), np.array(distances))


def _binning(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Geometry, npt.NDArray[np.intp], Any]:
    center = SeriesMetadata(
        beam_center_x_px=shape[1] / 2 + rng.uniform(-25, 25), beam_center_y_px=shape[0] / 2 + rng.uniform(-25, 25)
    )
    geometry = series_geometry(center, shape)
    bins = bin_map(geometry)
    return geometry, profile_index(geometry, bins.radial_bins), bins


def draw_profiles(
    table: ProfileTable, recipe: ParameterRecipe, count: int, generator: torch.Generator, photons: float | None = None
) -> tuple[Tensor, Tensor]:
    """Noisy profiles (count, 2, bins) and their (ln E, ln L, ln L/E) (count, 3)."""
    chosen = torch.randint(len(table.energy_eV), (count,), generator=generator)
    water, pixels = torch.from_numpy(table.water)[chosen], torch.from_numpy(table.pixels)[chosen]
    low, high = (math.log(v) for v in recipe.photons)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    total = torch.exp(low + (high - low) * uniform(count, 1)) if photons is None else torch.full((count, 1), photons)
    shape = water / water.sum(1, keepdim=True)
    flat = pixels / pixels.sum(1, keepdim=True)
    radial = torch.arange(water.shape[1]).div(3, rounding_mode="floor") + 0.5
    air = pixels / radial
    air = air / air.sum(1, keepdim=True)
    mean = shape + recipe.flat_fraction * uniform(count, 1) * flat + recipe.air_fraction * uniform(count, 1) * air
    # Bragg light below the peak threshold: uneven, positive, in hits only.
    bragg = flat * torch.exp(1.5 * torch.randn(mean.shape, generator=generator))
    hits = (uniform(count, 1) < 0.5).float()
    mean = mean + recipe.bragg_fraction * uniform(count, 1) * hits * bragg / bragg.sum(1, keepdim=True)
    # No table of the water's structure factor is perfect: a smooth distortion of each profile
    # keeps the network from claiming more than such a table can carry.
    phase = torch.arange(1, 4) * math.pi * (radial / radial.max())[:, None]
    waves = torch.randn(count, 3, generator=generator) @ torch.cos(phase).T
    mean = mean * torch.exp(recipe.shape_error * waves)
    counts = torch.poisson(mean * total, generator=generator)
    energy, distance = torch.from_numpy(table.energy_eV)[chosen], torch.from_numpy(table.distance_m)[chosen]
    target = torch.stack([energy.log(), distance.log(), (distance / energy).log()], 1).float()
    return torch.stack([counts, pixels], 1), target


def train_parameters(
    train: ProfileTable,
    validation: ProfileTable,
    recipe: ParameterRecipe,
    device: torch.device,
    folder: Path,
    *,
    progress: Progress | None = None,
    keep_going: Callable[[int, int], bool] = lambda done, total: True,
) -> tuple[ParameterNetwork, tuple[float, float, float]] | None:
    """The network and the factors that make its stated sigmas cover 95 % of the validation set.

    Goes on from the checkpoint in `folder` where there is one, to the same weights; ends at one when keep_going, called
    with (steps done, steps in all) after each, says no, which gives None. Raises ``Diverged`` when a loss is no number,
    with its batch saved there, and ``BadInput`` for a checkpoint of another training.
    """
    run = _Run(train, recipe, device, folder)
    began = written = time.monotonic()
    while run.step < recipe.steps:
        loss = run.descend()
        going = keep_going(run.step, recipe.steps)
        if not going or run.step == recipe.steps or time.monotonic() - written >= _CHECKPOINT_S:
            run.write_checkpoint()
            written = time.monotonic()
        if not going:
            return None
        if progress is not None and run.step % 200 == 0:
            progress(run.step, recipe.steps, f"loss {loss:.3f}, {time.monotonic() - began:.0f} s")
    profiles, target = draw_profiles(validation, recipe, 20_000, torch.Generator().manual_seed(recipe.seed + 1))
    pulls = _pulls(run.network.eval(), profiles, target, device)
    if not np.isfinite(pulls).all():
        raise run.diverged(f"after {run.step} steps its validation gives no numbers", profiles, target)
    scale = np.quantile(np.abs(pulls), COVERAGE_GOAL, axis=0) / 1.96
    return run.network, (float(scale[0]), float(scale[1]), float(scale[2]))


class _Run:
    """A training from its first step, or the one its checkpoint stands at.

    Not one of `training.loop`: its samples are drawn, not had by place, its loss is of three numbers with an
    uncertainty each, and no epoch's weights are chosen, the last are taken.
    """

    def __init__(self, train: ProfileTable, recipe: ParameterRecipe, device: torch.device, folder: Path) -> None:
        self._train, self._recipe, self._device, self._folder = train, recipe, device, folder
        self._path = folder / CHECKPOINT
        self._what = {
            "network": "parameters-radial-profile",
            "recipe": asdict(recipe),
            "training_data": digest(train.water, train.pixels, train.energy_eV, train.distance_m),
        }
        torch.manual_seed(recipe.seed)
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self.network = ParameterNetwork().to(device)
        self._descent = Descent(recipe.descent, self.network, recipe.steps, mixed=False)
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._resume()

    def descend(self) -> float:
        """One step, and its loss."""
        profiles, target = draw_profiles(self._train, self._recipe, self._recipe.batch, self._generator)
        out = self.network(profile_features(profiles.to(self._device)))
        mean, log_sigma = out[:, :3], out[:, 3:]
        loss = (log_sigma + 0.5 * ((target.to(self._device) - mean) * torch.exp(-log_sigma)) ** 2).mean()
        if not torch.isfinite(loss):
            rate = self._descent.learning_rate
            text = f"the loss of step {self.step + 1} is {loss.item()} at a learning rate of {rate:g}"
            raise self.diverged(text, profiles, target)
        self._descent.optimiser.zero_grad()
        self._descent.backward(loss)
        self._descent.step(self.network)
        self.step += 1
        return float(loss.detach())

    def diverged(self, text: str, profiles: Tensor, target: Tensor) -> Diverged:
        """The error to raise, its batch saved."""
        path = save_batch(self._folder, {"profiles": profiles}, target, {"step": self.step})
        kept = f", the weights before it in {CHECKPOINT}" if self._path.exists() else ""
        return Diverged(f"parameter network: {text}; its batch is in {path}{kept}; lower the recipe's learning_rate")

    def write_checkpoint(self) -> None:
        """Everything that the next step depends on."""
        tensors, optimiser = checkpoints.optimiser_state(self._descent.optimiser)
        tensors = tensors | checkpoints.network_state(self.network) | {_RANDOM: self._generator.get_state()}
        state = {"step": self.step, "optimiser": optimiser, "descent": self._descent.state()}
        checkpoints.write(self._path, tensors, self._what, state)

    def _resume(self) -> None:
        kept = checkpoints.read(self._path, self._what)
        checkpoints.restore_network(self.network, kept.tensors, self._path)
        checkpoints.restore_optimiser(self._descent.optimiser, kept, self._path)
        try:
            self._descent.restore(kept.state["descent"])
            self._generator.set_state(kept.tensors[_RANDOM])
            self.step = int(kept.state["step"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"{self._path}: damaged, its position cannot be read: {error}; delete it") from None


@torch.inference_mode()
def _pulls(
    network: ParameterNetwork, profiles: Tensor, target: Tensor, device: torch.device
) -> npt.NDArray[np.float64]:
    out = network(profile_features(profiles.to(device))).cpu()
    pulls: npt.NDArray[np.float64] = ((target - out[:, :3]) * torch.exp(-out[:, 3:])).double().numpy()
    return pulls


@torch.inference_mode()
def evaluate_parameters(
    network: ParameterNetwork,
    scale: tuple[float, float, float],
    recipe: ParameterRecipe,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """For each of the paper's nine conditions: nearest keV and 10 cm class, error, coverage; one frame of 3e8 photons.

    The 3 x 3 confusion matrices (rows: truth) are of the nearest of the paper's values, from
    every estimate, claimed or not.
    """
    network.eval()
    generator = torch.Generator().manual_seed(seed)
    rows = []
    energy_matrix, distance_matrix = np.zeros((3, 3), int), np.zeros((3, 3), int)
    for number, condition in CONDITIONS.items():
        narrow = ParameterRecipe(
            photon_energy_eV=(condition.photon_energy_eV,) * 2, camera_length_m=(condition.camera_length_m,) * 2
        )
        table = make_table(narrow, seed + number, 8)
        photons = float(table.water.sum(1).mean())
        profiles, _ = draw_profiles(table, recipe, 400, generator, photons=photons)
        out = network(profile_features(profiles.to(device))).cpu().double()
        energy, distance = out[:, 0].exp().numpy(), out[:, 1].exp().numpy()
        sigma_e = energy * out[:, 3].exp().numpy() * scale[0]
        sigma_l = distance * out[:, 4].exp().numpy() * scale[1]
        energy_class = np.clip(np.rint(energy / 1000), 6, 8).astype(int) - 6
        distance_class = np.clip(np.rint((distance - 0.15) / 0.1), 0, 2).astype(int)
        energy_matrix[(number - 1) % 3] += np.bincount(energy_class, minlength=3)
        distance_matrix[(number - 1) // 3] += np.bincount(distance_class, minlength=3)
        rows.append(
            {
                "condition": number,
                "photons_in_frame": round(photons),
                "energy_error_eV": round(float(np.sqrt(np.mean((energy - condition.photon_energy_eV) ** 2))), 1),
                "energy_sigma_eV": round(float(np.median(sigma_e)), 1),
                "energy_coverage_95": float(np.mean(np.abs(energy - condition.photon_energy_eV) <= 1.96 * sigma_e)),
                "distance_error_m": round(float(np.sqrt(np.mean((distance - condition.camera_length_m) ** 2))), 5),
                "distance_sigma_m": round(float(np.median(sigma_l)), 5),
                "distance_coverage_95": float(np.mean(np.abs(distance - condition.camera_length_m) <= 1.96 * sigma_l)),
            }
        )
    return {"rows": rows, "energy_confusion": energy_matrix.tolist(), "distance_confusion": distance_matrix.tolist()}
