"""Training of the hit network on reduced simulated shots."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor, nn

from analyzer.attributes import Recipe, attribute
from analyzer.bundle import Bundle
from analyzer.networks import HitNetwork
from sim_replay.distractors import Kind
from training.loop.distributed import Ranks
from training.loop.record import Epoch
from training.loop.samples import Batch, Places, digest
from training.loop.train import Conduct, Job
from training.loop.train import train as run_loop
from training.shots import ShotSet

NETWORK = "hit-zones-and-cells"
_CHECKPOINT_S = 120.0

THRESHOLDS = (0.05, 0.99)
"""No threshold that is chosen from counts lies outside."""

_DISTRACTORS = int(Kind.SALT | Kind.ICE | Kind.LIPID | Kind.POLYMER)
_FAULTS = int(Kind.HOT_PIXEL | Kind.FLICKER | Kind.COSMIC | Kind.EDGE)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HitRecipe:
    """Hyper-parameters.

    false_hits, distracted_false_hits: the false-hit rates on water alone, whether the header is known or not, and on
    empties with salt or rings, header known; the threshold keeps both. header_known: share of the shots that show the
    network their header, which then is wrong by header_error (standard deviation, relative).
    """

    epochs: int = 8
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    channels: int = 48
    hidden: int = 96
    false_hits: float = 0.005
    distracted_false_hits: float = 0.015
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


def of_bundle(bundle: Bundle) -> TrainedHit:
    """The hit network of a bundle as its card calibrates it."""
    card = bundle.card.hit
    assert isinstance(bundle.hit, HitNetwork)
    return TrainedHit(bundle.hit, card.temperature, card.bias, card.threshold, [])


def batch_of(
    shots: ShotSet, places: npt.NDArray[np.intp], known: npt.NDArray[np.float32] | float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Network input (zones, cells, header) for these shots; headers times `known` (n, 2), 0 for none."""
    fields = (shots.zones[places], shots.cells[places], (shots.header[places] * known).astype(np.float32))
    zone_counts, cells, header = (torch.from_numpy(each).to(device) for each in fields)
    return zone_counts, cells, header


class ReducedShots:
    """Reduced shots as a source of `training.loop`: fields zones, cells, header and hit.

    For training each epoch draws shots anew, `evened`, and shows the headers of others of them; to validate with, each
    shot comes once, and those of every other group show their headers.
    """

    fields = frozenset({"zones", "cells", "header", "hit"})

    def __init__(self, shots: ShotSet, recipe: HitRecipe, *, varied: bool, epoch: int = 0, identity: str = "") -> None:
        self.name = "reduced shots"
        self.identity = identity or digest(shots.hit, shots.zones, shots.header)
        self._shots, self._recipe, self._varied = shots, recipe, varied
        rng = np.random.default_rng((recipe.seed, epoch))
        count = len(shots)
        self._drawn = rng.choice(count, count, p=evened(shots)) if varied else np.arange(count)
        known, error = rng.random((count, 1)) < recipe.header_known, rng.standard_normal((count, 2))
        self._known = (
            known * (1 + recipe.header_error * error) if varied else (shots.group % 2 == 0)[:, None].astype(np.float64)
        )
        self.groups = shots.group[self._drawn]

    def __len__(self) -> int:
        return len(self._shots)

    def lacking(self, field: str) -> str:
        return f"{self.name}: no field {field!r}"

    def at_epoch(self, epoch: int) -> "ReducedShots":
        if not self._varied:
            return self
        return ReducedShots(self._shots, self._recipe, varied=True, epoch=epoch, identity=self.identity)

    def batch(self, places: Places, names: Sequence[str]) -> Batch:
        known, drawn = self._known[places].astype(np.float32), self._drawn[places]
        zone_counts, cells, header = (each.numpy() for each in batch_of(self._shots, drawn, known, torch.device("cpu")))
        values = {"zones": zone_counts, "cells": cells, "header": header, "hit": self._shots.hit[drawn]}
        return {name: values[name] for name in names}


def evened(shots: ShotSet) -> npt.NDArray[np.float64]:
    """Chances (N,) to draw each shot by, such that hits and empties are even in every group.

    A crystal that happens to send no light leaves an empty. It does so far more often at some camera lengths and
    energies than at others, and a network that is shown these would make of a header what a jet's hit rate has to say:
    hits would be rare where crystals are faint, and the faintest of them no longer stand out from empties elsewhere.
    Groups of hits or of empties alone are not drawn, unless there are no others.
    """
    _, group = np.unique(shots.group, return_inverse=True)
    hits, empties = np.bincount(group, shots.hit), np.bincount(group, ~shots.hit)
    weight = np.where(shots.hit, empties[group], hits[group])
    if not weight.any():
        weight = np.ones(len(shots))
    chances: npt.NDArray[np.float64] = weight / weight.sum()
    return chances


def train_hit(
    train: ShotSet,
    validation: ShotSet,
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
    history = [
        {"train_loss": each.train_loss, "validation_loss": each.validation_loss, "seconds": round(each.seconds, 1)}
        for each in trained.history
    ]
    made = TrainedHit(network, temperature, bias, 0.5, history)
    judged = {known: made.probability(predict(network, validation, device, known)) for known in (False, True)}
    return replace(made, threshold=choose_threshold(judged, validation, recipe))


def choose_threshold(judged: Mapping[bool, npt.NDArray[np.float64]], shots: ShotSet, recipe: HitRecipe) -> float:
    """The lowest probability at which the recipe's false-hit rates are kept on these shots, within `THRESHOLDS`.

    judged: probabilities (N,) without (False) and with (True) the headers. Frames with faulty pixels do not count:
    those are the mask's business. Nor do distractors without a header, which nothing then tells from protein.
    """
    kinds = shots.facts["kinds"].astype(np.int64)
    plain = ~shots.hit & ((kinds & ~int(Kind.WATER)) == 0)
    distracted = ~shots.hit & ((kinds & _DISTRACTORS) != 0) & ((kinds & _FAULTS) == 0)
    rates = [
        *((judged[known][plain], recipe.false_hits) for known in judged),
        (judged[True][distracted], recipe.distracted_false_hits),
    ]
    chosen = max((np.quantile(scores, 1 - rate) for scores, rate in rates if len(scores)), default=THRESHOLDS[0])
    return float(np.clip(chosen, *THRESHOLDS))


@torch.inference_mode()
def predict(
    network: nn.Module, shots: ShotSet, device: torch.device, known: bool | None = None, batch: int = 128
) -> npt.NDArray[np.float64]:
    """Logits (N,) of a set: with headers, without, or (None) with those of every other group."""
    network.eval()
    places = np.arange(len(shots))
    shown = (shots.group % 2 == 0) if known is None else np.full(len(shots), known)
    parts = []
    for k in range(0, len(shots), batch):
        some = places[k : k + batch]
        parts.append(network(*batch_of(shots, some, shown[some, None].astype(np.float32), device)).double().cpu())
    return torch.cat(parts).numpy()


def calibrate(logits: npt.NDArray[np.float64], hit: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Temperature and bias that make (logit + bias) / temperature the log-odds where half are hits (Platt scaling).

    As Platt does (in Advances in Large Margin Classifiers, 2000), hits and empties are each counted as if one more had
    been seen of the other kind, without which the temperature of a set that is told apart without a fault is 0. Of
    logits (N,) that are no numbers, or alike, no scale follows: they are left as they are, 1 and 0.
    """
    spread = float(np.std(logits))
    if not (np.isfinite(spread) and spread > 0):
        return 1.0, 0.0
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    # The search begins at a scale of one, and does not find its way from one far off.
    scores, hits, empties = torch.from_numpy(logits / spread), int(hit.sum()), int((~hit).sum())
    target = torch.from_numpy(np.where(hit, (hits + 1) / (hits + 2), 1 / (empties + 2)))
    weight = torch.from_numpy(np.where(hit, 0.5 / max(hits, 1), 0.5 / max(empties, 1)))
    optimiser = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            (scores + parameters[1]) * torch.exp(parameters[0]), target, weight, reduction="sum"
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    log_scale, bias = parameters.detach().tolist()
    return spread * math.exp(-log_scale), spread * bias
