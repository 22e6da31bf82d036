"""How well heats tell spots in tiles by themselves: F1, at the threshold that is best on them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from training.peak_finder.tiles import TileSet

_BATCH = 256
_THRESHOLDS = np.concatenate([np.geomspace(1e-3, 0.5, 40), 1.0 - np.geomspace(0.49, 1e-6, 40)])


@dataclass(frozen=True, slots=True)
class TileScore:
    """At the threshold with the best F1: a heat that is the highest around and stands on or beside a spot is right."""

    f1: float
    precision: float
    recall: float
    threshold: float


@torch.inference_mode()
def heats(network: nn.Module, tiles: TileSet) -> npt.NDArray[np.float32]:
    """(T, HEATS, HEATS), 0 to 1, where no neighbour in the tile is higher, elsewhere 0."""
    network.eval()
    parts = []
    for first in range(0, len(tiles), _BATCH):
        some = slice(first, first + _BATCH)
        inputs, facts = torch.from_numpy(tiles.inputs[some].astype(np.float32)), torch.from_numpy(tiles.facts[some])
        heat = torch.sigmoid(network(inputs, facts)[:, :1])
        highest = functional.max_pool2d(heat, 3, 1, 1)
        parts.append((heat * (heat == highest))[:, 0])
    found: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def best_f1(network: nn.Module, tiles: TileSet, least_counts: float = 4.0) -> TileScore:
    """The score on these tiles, of which at least one has a spot of so many counts.

    Heats left out of the targets, and those of dimmer spots, are neither right nor wrong.
    """
    heat, targets = heats(network, tiles), tiles.targets
    spot = targets.spot & (targets.log_counts >= np.log(least_counts))
    near = _around(spot)
    ignored = _around(targets.left_out | (targets.spot & ~spot))
    reached = _around_max(heat)
    best = TileScore(0.0, 0.0, 0.0, 1.0)
    for threshold in _THRESHOLDS:
        said = heat >= threshold
        right, wrong = int((said & near).sum()), int((said & ~near & ~ignored).sum())
        recall = float((reached[spot] >= threshold).mean())
        precision = right / max(1, right + wrong)
        f1 = 2.0 * precision * recall / max(1e-9, precision + recall)
        if f1 > best.f1:
            best = TileScore(f1, precision, recall, float(threshold))
    return best


def _around(marks: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    wide: npt.NDArray[np.bool_] = _around_max(marks.astype(np.float32)) > 0
    return wide


def _around_max(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    wide: npt.NDArray[np.float32] = functional.max_pool2d(torch.from_numpy(values)[:, None], 3, 1, 1)[:, 0].numpy()
    return wide
