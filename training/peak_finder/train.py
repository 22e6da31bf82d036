"""Training of the peak network: AdamW under a cosine, clipped gradients, weights averaged over the steps.

Random numbers are seeded anew for every step, so that a run that was cut short ends at the same weights.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from analyzer.peak_network import PeakNetwork
from training.loop import checkpoint
from training.loop.train import Diverged
from training.peak_finder.losses import Wanted, brightness_loss, focal_heat_loss, one_pixel_loss, place_loss
from training.peak_finder.tiles import TileSet

NETWORK = "peaks-heat-tiles"
_CHECKPOINT = "checkpoint.safetensors"
_EMA = "mean."

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinderRecipe:
    """Hyper-parameters. averaging: of the weights that are kept, over about 1 / (1 - averaging) steps.

    least_counts: spots expected to count less are not asked for; nor are they forbidden, as their target is 1. What two
    or three counts are is a matter of how many faint spots there are, which differs from crystal to crystal: a network
    that learns it from ours gives false peaks on others.
    loss: focal, or one-pixel, what the 2024 paper trained with, to be compared with.
    """

    steps: int = 12_000
    batch: int = 256
    learning_rate: float = 2e-3
    warm_up: int = 200
    weight_decay: float = 1e-3
    clip_norm: float = 1.0
    averaging: float = 0.999
    place_weight: float = 1.0
    brightness_weight: float = 0.1
    least_counts: float = 4.0
    loss: Literal["focal", "one-pixel"] = "focal"
    seed: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class TrainedFinder:
    """The averaged network, and the mean loss of every hundredth part of the run."""

    network: PeakNetwork
    history: list[dict[str, float]]


def train_finder(
    tiles: TileSet,
    recipe: FinderRecipe,
    device: torch.device,
    folder: Path,
    *,
    progress: Progress | None = None,
    keep_going: Callable[[int, int], bool] = lambda done, total: True,
    checkpoint_s: float = 120.0,
) -> TrainedFinder | None:
    """Train on tiles; None when told to stop before the end. The same call on the same folder goes on where it was.

    Raises ``Diverged`` when the loss is no number, ``BadInput`` for a folder with another run.
    """
    if not tiles.targets.spot.any():
        raise ValueError("no tile has a spot; simulate more shots")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _CHECKPOINT
    torch.manual_seed(recipe.seed)
    run = _Run(PeakNetwork().to(device), recipe)
    what = {"network": NETWORK, "recipe": asdict(recipe), "tiles": len(tiles)}
    if path.is_file():
        run.restore(path, what)
    saved = time.monotonic()
    while run.step < recipe.steps:
        run.descend(*_drawn(tiles, recipe, run.step, device))
        if run.step % max(1, recipe.steps // 100) == 0:
            run.note()
            if progress is not None:
                progress(run.step, recipe.steps, f"loss {run.history[-1]['loss']:.4f}")
        stop = not keep_going(run.step, recipe.steps)
        if stop or time.monotonic() - saved > checkpoint_s or run.step == recipe.steps:
            run.save(path, what)
            saved = time.monotonic()
        if stop and run.step < recipe.steps:
            return None
    return TrainedFinder(run.mean.eval(), run.history)


class _Run:
    """A network on its way, with everything that a checkpoint keeps."""

    def __init__(self, network: PeakNetwork, recipe: FinderRecipe) -> None:
        self.network, self.recipe = network.train(), recipe
        self.mean = PeakNetwork().to(next(network.parameters()).device)
        self.mean.load_state_dict(network.state_dict())
        self.mean.requires_grad_(False)
        self.optimiser = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._losses: list[float] = []

    def descend(self, inputs: Tensor, facts: Tensor, wanted: Wanted) -> None:
        recipe = self.recipe
        share = (self.step + 1) / recipe.steps
        rate = recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
        for group in self.optimiser.param_groups:
            group["lr"] = rate * min(1.0, (self.step + 1) / max(1, recipe.warm_up))
        outputs = self.network(inputs, facts)
        heat_loss = focal_heat_loss if recipe.loss == "focal" else one_pixel_loss
        loss = (
            heat_loss(outputs[:, 0], wanted)
            + recipe.place_weight * place_loss(outputs, wanted)
            + recipe.brightness_weight * brightness_loss(outputs, wanted)
        )
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(f"step {self.step}: the loss is {value}; try a lower learning rate")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
        self.optimiser.step()
        self.step += 1
        self._losses.append(value)
        # In the beginning over fewer steps: the first weights are of no use.
        kept = min(recipe.averaging, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            for mean, now in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 1.0 - kept)

    def note(self) -> None:
        """Write down the mean loss since the last time."""
        self.history.append({"step": self.step, "loss": round(float(np.mean(self._losses)), 5)})
        self._losses = []

    def save(self, path: Path, what: dict[str, Any]) -> None:
        tensors, rest = checkpoint.optimiser_state(self.optimiser)
        tensors |= checkpoint.network_state(self.network)
        tensors |= {f"{_EMA}{name}": tensor for name, tensor in self.mean.state_dict().items()}
        state = {"step": self.step, "history": self.history, "losses": self._losses, "optimiser": rest}
        checkpoint.write(path, tensors, what, state)

    def restore(self, path: Path, what: dict[str, Any]) -> None:
        found = checkpoint.read(path, what)
        checkpoint.restore_network(self.network, found.tensors, path)
        mean = {name: t for name, t in found.tensors.items() if name.startswith(_EMA)}
        checkpoint.restore_network(self.mean, {f"network.{n.removeprefix(_EMA)}": t for n, t in mean.items()}, path)
        checkpoint.restore_optimiser(self.optimiser, found, path)
        self.step, self.history, self._losses = (found.state[name] for name in ("step", "history", "losses"))


def _drawn(tiles: TileSet, recipe: FinderRecipe, step: int, device: torch.device) -> tuple[Tensor, Tensor, Wanted]:
    """The batch of a step, turned and mirrored at random: the detector knows no up and no left."""
    rng = np.random.default_rng((recipe.seed, step))
    places = np.sort(rng.integers(0, len(tiles), recipe.batch))
    mirror_fs, mirror_ss, swap = rng.random(3) < 0.5
    targets = tiles.targets
    inputs = torch.from_numpy(tiles.inputs[places].astype(np.float32)).to(device)
    heat, offsets, log_counts, spot, left_out = (
        torch.from_numpy(each[places]).to(device)
        for each in (targets.heat, targets.offsets, targets.log_counts, targets.spot, targets.left_out)
    )
    maps = [inputs, heat, offsets, log_counts, spot, left_out]
    flips = [axis for axis, mirror in ((-1, mirror_fs), (-2, mirror_ss)) if mirror]
    maps = [each.flip(flips) for each in maps] if flips else maps
    offset_fs, offset_ss = maps[2][:, 0], maps[2][:, 1]
    offset_fs, offset_ss = -offset_fs if mirror_fs else offset_fs, -offset_ss if mirror_ss else offset_ss
    if swap:
        maps = [each.transpose(-1, -2) for each in maps]
        offset_fs, offset_ss = offset_ss.transpose(-1, -2), offset_fs.transpose(-1, -2)
    asked = maps[4] & (maps[3] >= math.log(recipe.least_counts))
    wanted = Wanted(maps[1], torch.stack([offset_fs, offset_ss], 1), maps[3], asked, maps[5])
    return maps[0].contiguous(), torch.from_numpy(tiles.facts[places]).to(device), wanted
