"""Training of the parameter network on radial profiles of simulated water, fresh physics in every batch.

What the profiles may be of is `training.water_profiles.World`.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from analyzer.attributes import Recipe
from analyzer.networks import ParameterNetwork, profile_features
from streamer.files import BadInput
from training.hit import Progress
from training.loop import checkpoint as checkpoints
from training.loop.optimising import Descent
from training.loop.samples import digest
from training.loop.train import CHECKPOINT, Diverged, save_batch
from training.placements import Placements
from training.water_profiles import World, draw_profiles

NETWORK = "parameters-radial-profile"
COVERAGE_GOAL = 0.95
Z_95 = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""
_CHECKPOINT_S = 120.0
_RANDOM = "random_numbers"
_VALIDATION = 40_000
_WORLD = "world"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterRecipe:
    """Hyper-parameters, and the world that profiles are drawn from.

    ``placements``: beam centres and masks; ``draws``: of each scene of a batch, for that costs less than a new scene.
    """

    steps: int = 6000
    batch: int = 512
    draws: int = 4
    learning_rate: float = 4e-3
    hidden: int = 192
    blocks: int = 3
    placements: int = 400
    seed: int = 1
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        if self.batch % self.draws:
            raise ValueError(f"batch {self.batch} is no multiple of draws {self.draws}")

    @property
    def descent(self) -> Recipe:
        """Optimiser and schedule, as the training loop takes them."""
        return Recipe(
            loss="gaussian-nll", optimiser="adamw", learning_rate=self.learning_rate, epochs=1, batch=self.batch,
            schedule="one-cycle", weight_decay=1e-4, clip_norm=1.0,
        )  # fmt: skip

    @property
    def settings(self) -> dict[str, int]:
        """Of the network, as a card states them."""
        return {"hidden": self.hidden, "blocks": self.blocks}


def train_parameters(
    train: Placements,
    validation: Placements,
    recipe: ParameterRecipe,
    device: torch.device,
    folder: Path,
    *,
    progress: Progress | None = None,
    keep_going: Callable[[int, int], bool] = lambda done, total: True,
) -> tuple[ParameterNetwork, tuple[float, float, float]] | None:
    """The network and the factors that make its stated sigmas cover 95 % of the validation's profiles.

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
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    profiles, target = draw_profiles(validation, recipe.world, _VALIDATION // recipe.draws, generator, recipe.draws)
    pulls = _pulls(run.network.eval(), profiles, target, device)
    if not np.isfinite(pulls).all():
        raise run.diverged(f"after {run.step} steps its validation gives no numbers", profiles, target)
    scale = np.quantile(np.abs(pulls), COVERAGE_GOAL, axis=0) / Z_95
    return run.network, (float(scale[0]), float(scale[1]), float(scale[2]))


class _Run:
    """A training from its first step, or the one its checkpoint stands at.

    Not one of `training.loop`: its samples are drawn, not had by place, its loss is of a distribution of two numbers,
    and no epoch's weights are chosen, the last are taken.
    """

    def __init__(self, train: Placements, recipe: ParameterRecipe, device: torch.device, folder: Path) -> None:
        self._train, self._recipe, self._device, self._folder = train, recipe, device, folder
        self._path = folder / CHECKPOINT
        stated = asdict(recipe)
        self._what = {
            "network": NETWORK,
            _WORLD: stated.pop(_WORLD),
            "recipe": stated,
            "training_data": digest(train.area, train.across, train.pixels),
        }
        torch.manual_seed(recipe.seed)
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self.network = ParameterNetwork(**recipe.settings).to(device)
        self._descent = Descent(recipe.descent, self.network, recipe.steps, mixed=False)
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._resume()

    def descend(self) -> float:
        """One step, and its loss."""
        recipe = self._recipe
        scenes = recipe.batch // recipe.draws
        profiles, target = draw_profiles(self._train, recipe.world, scenes, self._generator, recipe.draws)
        loss = _loss(self.network, profiles.to(self._device), target.to(self._device))
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


def _loss(network: ParameterNetwork, profiles: Tensor, target: Tensor) -> Tensor:
    """Minus the mean log density of the truth (B, 2) under the joint normal distribution, without its constant."""
    mean, log_sigma, correlation = network.joint(profile_features(profiles))
    pull = (target - mean) * torch.exp(-log_sigma)
    left = 1 - correlation.square()
    distance = (pull.square().sum(1) - 2 * correlation * pull.prod(1)) / left
    return (log_sigma.sum(1) + 0.5 * (left.log() + distance)).mean()


@torch.inference_mode()
def _pulls(
    network: ParameterNetwork, profiles: Tensor, target: Tensor, device: torch.device
) -> npt.NDArray[np.float64]:
    """Errors of ln E, ln L and ln (L/E) over their stated standard deviations, (B, 3)."""
    out = network(profile_features(profiles.to(device))).cpu()
    ratio, energy = target.unbind(1)
    truth = torch.stack([energy, ratio + energy, ratio], 1)
    pulls: npt.NDArray[np.float64] = ((truth - out[:, :3]) * torch.exp(-out[:, 3:])).double().numpy()
    return pulls
