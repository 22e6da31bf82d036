"""Training of the hit network on reduced simulated shots."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from analyzer.intervals import wilson
from analyzer.networks import HitNetwork
from training.shots import MapSet
from training.statistics import area_under_curve, confusion

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HitRecipe:
    """Hyper-parameters. ``false_hits`` is the false-hit rate on empties that sets the threshold."""

    epochs: int = 12
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    false_hits: float = 0.004
    seed: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class TrainedHit:
    """A trained network with its calibration (logit + bias) / temperature and its threshold."""

    network: HitNetwork
    temperature: float
    bias: float
    threshold: float
    history: list[dict[str, float]]


def batch_of(maps: MapSet, places: npt.NDArray[np.intp], device: torch.device) -> Tensor:
    """Network input (B, 3, rows, columns) for these shots."""
    significance = torch.from_numpy(maps.maps[places]).to(device).float()
    valid = torch.from_numpy(maps.cell_valid).to(device).expand(len(places), 1, -1, -1)
    return torch.cat([significance, valid], 1)


def train_hit(
    train: MapSet, validation: MapSet, recipe: HitRecipe, device: torch.device, progress: Progress | None = None
) -> TrainedHit:
    """Train, keep the weights of the best validation loss, calibrate and set the threshold on validation."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    network = HitNetwork().to(device)
    optimiser = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = math.ceil(len(train) / recipe.batch) * recipe.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, steps)
    loss_of = nn.BCEWithLogitsLoss()
    truth = torch.from_numpy(train.hit.astype(np.float32)).to(device)
    best, best_state, history = math.inf, {}, []
    for epoch in range(recipe.epochs):
        network.train()
        began, total = time.monotonic(), 0.0
        order = rng.permutation(len(train))
        for start in range(0, len(order), recipe.batch):
            places = np.sort(order[start : start + recipe.batch])
            inputs = batch_of(train, places, device)
            # A pattern turned over is as good a pattern; polarisation is in the significance already.
            flips = [axis for axis in (2, 3) if rng.random() < 0.5]
            loss = loss_of(network(inputs.flip(flips) if flips else inputs), truth[places])
            if not torch.isfinite(loss):
                raise ArithmeticError(f"loss is {loss.item()} in epoch {epoch + 1}; lower the learning rate")
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item() * len(places)
        logits = predict(network, validation, device)
        validation_loss = float(loss_of(torch.from_numpy(logits), torch.from_numpy(validation.hit.astype(np.float64))))
        history.append({"train_loss": total / len(train), "validation_loss": validation_loss})
        if validation_loss < best:
            best = validation_loss
            best_state = {name: value.detach().clone() for name, value in network.state_dict().items()}
        if progress is not None:
            seconds = time.monotonic() - began
            progress(epoch + 1, recipe.epochs, f"validation loss {validation_loss:.4f}, {seconds:.0f} s")
    network.load_state_dict(best_state)
    logits = predict(network, validation, device)
    temperature, bias = calibrate(logits, validation.hit)
    probabilities = 1 / (1 + np.exp(-(logits + bias) / temperature))
    threshold = float(np.quantile(probabilities[~validation.hit], 1 - recipe.false_hits))
    return TrainedHit(network, temperature, bias, min(max(threshold, 0.05), 0.99), history)


@torch.inference_mode()
def predict(network: nn.Module, maps: MapSet, device: torch.device, batch: int = 128) -> npt.NDArray[np.float64]:
    """Logits (N,) of a set."""
    network.eval()
    places = np.arange(len(maps))
    parts = [network(batch_of(maps, places[k : k + batch], device)).double().cpu() for k in range(0, len(maps), batch)]
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


def evaluate_hit(trained: TrainedHit, test: MapSet, device: torch.device) -> dict[str, Any]:
    """Confusion counts at the bundle's threshold, with intervals, over all and by expected Bragg light.

    A hit is *detectable* here when at least ten Bragg photons are expected on the panel; below that
    a frame with a crystal may hold no photon of it.
    """
    logits = predict(trained.network, test, device)
    probability = 1 / (1 + np.exp(-(logits + trained.bias) / trained.temperature))
    said, bragg = probability >= trained.threshold, test.facts["bragg_photons"]

    def row(name: str, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
        counts = confusion(said[chosen], test.hit[chosen])
        hits = counts["hits_found"] + counts["hits_missed"]
        empties = counts["empties_called_hit"] + counts["empties_passed"]
        return {
            "set": name,
            **counts,
            "recall": counts["hits_found"] / hits if hits else None,
            "recall_interval": wilson(counts["hits_found"], hits),
            "false_hits": counts["empties_called_hit"] / empties if empties else None,
            "false_hits_interval": wilson(counts["empties_called_hit"], empties),
            "auc": area_under_curve(probability[chosen], test.hit[chosen]),
        }

    rows = [row("all", np.ones(len(test), bool))]
    edges = (0, 10, 30, 100, 300, 1000, math.inf)
    for low, high in itertools.pairwise(edges):
        chosen = ~test.hit | ((bragg >= low) & (bragg < high))
        rows.append(row(f"{low} to {high} Bragg photons", chosen))
    for low in (5, 6, 7, 8):
        flux = np.log10(test.facts["flux_photons"])
        rows.append(row(f"1e{low} to 1e{low + 1} photons a pulse", (flux >= low) & (flux < low + 1)))
    rows.append(row("one count a pixel a pulse", test.facts["response"] > 0))
    return {"frames": len(test), "threshold": trained.threshold, "rows": rows}
