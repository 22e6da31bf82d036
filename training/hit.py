"""Training of the hit network on reduced simulated shots."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor, nn

from analyzer.attributes import Recipe, attribute
from analyzer.networks import HitNetwork
from training.loop.distributed import Ranks
from training.loop.record import Epoch
from training.loop.samples import Batch, Places, digest
from training.loop.train import Conduct, Job
from training.loop.train import train as run_loop
from training.shots import MapSet, unpack_maps

NETWORK = "hit-map-and-zones"
_CHECKPOINT_S = 120.0

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HitRecipe:
    """Hyper-parameters.

    false_hits: the false-hit rate on empties (distractors among them) that sets the threshold. header_known: share
    of the shots that show the network their header, which then is wrong by header_error (standard deviation,
    """

    epochs: int = 12
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    channels: int = 8
    hidden: int = 64
    false_hits: float = 0.004
    header_known: float = 0.5
    header_error: float = 0.005
    seed: int = 1

    @property
    def loop(self) -> Recipe:
        """As the training loop takes it."""
        return Recipe(
            loss="bce", optimiser="adamw", learning_rate=self.learning_rate, epochs=self.epochs, batch=self.batch,
            schedule="one-cycle", weight_decay=self.weight_decay, clip_norm=1.0,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class TrainedHit:
    """A trained network with its calibration (logit + bias) / temperature and its threshold."""

    network: HitNetwork
    temperature: float
    bias: float
    threshold: float
    history: list[dict[str, float]]

    def probability(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Calibrated probabilities (N,) of logits (N,)."""
        probability: npt.NDArray[np.float64] = expit((logits + self.bias) / self.temperature)
        return probability


def batch_of(
    shots: MapSet, places: npt.NDArray[np.intp], known: npt.NDArray[np.float32] | float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Network input (map, zones, header) for these shots; headers times `known` (n, 2), 0 for none."""
    significance = torch.from_numpy(unpack_maps(shots.maps[places]))
    valid = torch.from_numpy(shots.valid[shots.group_place[places]]).float()[:, None] / 255.0
    header = torch.from_numpy((shots.header[places] * known).astype(np.float32))
    whole = torch.cat([significance, valid], 1).to(device)
    return whole, torch.from_numpy(shots.zones[places]).to(device), header.to(device)


class ReducedShots:
    """Reduced shots as a source of `training.loop`: fields map, zones, header and hit.

    For training each epoch shows the headers of other shots and turns other patterns over; to validate with, shots of
    every other group show theirs.
    """

    fields = frozenset({"map", "zones", "header", "hit"})

    def __init__(self, shots: MapSet, recipe: HitRecipe, *, varied: bool, epoch: int = 0, identity: str = "") -> None:
        self.name = "reduced shots"
        self.identity = identity or digest(shots.hit, shots.zones, shots.header)
        self.groups = shots.group_place.astype(np.int64)
        self._shots, self._recipe, self._varied = shots, recipe, varied
        rng = np.random.default_rng((recipe.seed, epoch))
        count = len(shots)
        known, error = rng.random((count, 1)) < recipe.header_known, rng.standard_normal((count, 2))
        self._flips = rng.random((count, 2)) < 0.5 if varied else np.zeros((count, 2), bool)
        self._known = (
            known * (1 + recipe.header_error * error) if varied else (self.groups % 2 == 0)[:, None].astype(np.float64)
        )

    def __len__(self) -> int:
        return len(self._shots)

    def lacking(self, field: str) -> str:
        return f"{self.name}: no field {field!r}"

    def at_epoch(self, epoch: int) -> "ReducedShots":
        if not self._varied:
            return self
        return ReducedShots(self._shots, self._recipe, varied=True, epoch=epoch, identity=self.identity)

    def batch(self, places: Places, names: Sequence[str]) -> Batch:
        known = self._known[places].astype(np.float32)
        maps, zone_counts, header = (each.numpy() for each in batch_of(self._shots, places, known, torch.device("cpu")))
        for place, (down, across) in enumerate(self._flips[places]):
            # A pattern turned over is as good a pattern; polarisation is in the significance already.
            maps[place] = maps[place, :, :: -1 if down else 1, :: -1 if across else 1].copy()
        values = {"map": maps, "zones": zone_counts, "header": header, "hit": self._shots.hit[places]}
        return {name: values[name] for name in names}


def train_hit(
    train: MapSet,
    validation: MapSet,
    recipe: HitRecipe,
    device: torch.device,
    folder: Path,
    *,
    progress: Progress | None = None,
    keep_going: Callable[[int, int], bool] = lambda done, total: True,
    resume: bool = False,
) -> TrainedHit | None:
    """Train with the best weights on validation kept, then calibrate and set the threshold there.

    The run is one of `training.loop`, in `folder`: it ends at a checkpoint when keep_going says no, which gives None,
    and goes on from there with resume. Raises ``Diverged`` when the loss is no number.
    """

    def on_epoch(epoch: Epoch) -> None:
        if progress is not None:
            text = f"validation loss {epoch.validation_loss:.4f}, {epoch.seconds:.0f} s"
            progress(epoch.epoch, recipe.epochs, text)

    settings = {"channels": recipe.channels, "hidden": recipe.hidden}
    trained = run_loop(
        Job(attribute=attribute("peak"), network=NETWORK, recipe=recipe.loop, settings=settings, seed=recipe.seed),
        ReducedShots(train, recipe, varied=True),
        ReducedShots(validation, recipe, varied=False),
        Conduct(
            folder=folder,
            ranks=Ranks(device),
            resume=resume,
            keep_going=keep_going,
            on_epoch=on_epoch,
            checkpoint_s=_CHECKPOINT_S,
        ),
    )  # fmt: skip
    if trained is None:
        return None
    network = trained.network
    assert isinstance(network, HitNetwork)
    logits = predict(network, validation, device)
    temperature, bias = calibrate(logits, validation.hit)
    threshold = float(np.quantile(expit((logits + bias) / temperature)[~validation.hit], 1 - recipe.false_hits))
    history = [{"train_loss": each.train_loss, "validation_loss": each.validation_loss} for each in trained.history]
    return TrainedHit(network, temperature, bias, min(max(threshold, 0.05), 0.99), history)


@torch.inference_mode()
def predict(
    network: nn.Module, shots: MapSet, device: torch.device, known: bool | None = None, batch: int = 128
) -> npt.NDArray[np.float64]:
    """Logits (N,) of a set: with headers, without, or (None) with those of every other group."""
    network.eval()
    places = np.arange(len(shots))
    shown = (shots.group_place % 2 == 0) if known is None else np.full(len(shots), known)
    parts = []
    for k in range(0, len(shots), batch):
        some = places[k : k + batch]
        parts.append(network(*batch_of(shots, some, shown[some, None].astype(np.float32), device)).double().cpu())
    return torch.cat(parts).numpy()


def calibrate(logits: npt.NDArray[np.float64], hit: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Temperature and bias that make (logit + bias) / temperature the log-odds (Platt scaling)."""
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    scores, target = torch.from_numpy(logits), torch.from_numpy(hit.astype(np.float64))
    optimiser = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            (scores + parameters[1]) * torch.exp(parameters[0]), target
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    log_scale, bias = parameters.detach().tolist()
    return math.exp(-log_scale), bias
