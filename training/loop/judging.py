"""What a network says of a set of samples, beside their truth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from analyzer.attributes import Attribute
from analyzer.intervals import wilson
from training.statistics import area_under_curve

MATCH_PX = 1
"""A pixel said to be a peak is one when a true one is within so many pixels, and the other way round."""

_COLUMNS = ("loss", "truth", "said", "probability")


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Decisions on N samples beside the truth.

    loss (N,). For a yes or no and for classes: truth and said (N,) and probability (N,) of yes, or of the class said.
    For a value: truth and said (N,). For a map: truth (N, 2) true peaks and those found, said (N, 2) pixels said to be
    peaks and those that are.
    """

    attribute: Attribute
    loss: NDArray[np.float64]
    truth: NDArray[np.float64]
    said: NDArray[np.float64]
    probability: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, places: NDArray[np.bool_]) -> "Judged":
        """Some of the samples, (N,) bool."""
        return Judged(self.attribute, *(getattr(self, name)[places] for name in _COLUMNS))

    @property
    def metric(self) -> float:
        """The one number of the history; ``metric_name`` says which. NaN where the samples do not allow it."""
        value = self.summary()[metric_name(self.attribute)]
        return math.nan if value is None else float(value)

    def summary(self) -> dict[str, Any]:
        """Figures with their intervals, as run records and cards hold them."""
        figures: dict[str, Any] = {"samples": len(self), "loss": float(self.loss.mean()) if len(self) else None}
        kind = self.attribute.kind
        if kind == "value":
            error = np.abs(self.said - self.truth)
            figures["mean_absolute_error"] = float(error.mean()) if len(self) else None
            if len(self) > 1:
                mean, reach = float(error.mean()), 1.96 * float(error.std(ddof=1)) / math.sqrt(len(self))
                figures["mean_absolute_error_interval"] = (max(0.0, mean - reach), mean + reach)
        elif kind == "map":
            (true, found), (said, right) = self.truth.sum(0), self.said.sum(0)
            figures |= {
                "true_peaks": int(true),
                "recall": float(found / true) if true else None,
                "recall_interval": wilson(int(found), int(true)),
                "precision": float(right / said) if said else None,
                "precision_interval": wilson(int(right), int(said)),
                "f1": 2 * float(found * right / (found * said + right * true)) if found and right else 0.0,
            }
        else:
            right = int((self.said == self.truth).sum())
            figures["accuracy"] = right / len(self) if len(self) else None
            figures["accuracy_interval"] = wilson(right, len(self))
        if kind == "yes-no":
            yes = self.truth > 0.5
            found, wrong = int((yes & (self.said > 0.5)).sum()), int((~yes & (self.said > 0.5)).sum())
            figures |= {
                "recall": found / int(yes.sum()) if yes.any() else None,
                "recall_interval": wilson(found, int(yes.sum())),
                "false_hits": wrong / int((~yes).sum()) if not yes.all() else None,
                "false_hits_interval": wilson(wrong, int((~yes).sum())),
                "auc": area_under_curve(self.probability, yes) if np.isfinite(self.probability).all() else None,
            }
        return figures


def joined(parts: Sequence[Judged]) -> Judged:
    """Samples of one attribute, one part after the other; there is one part at least."""
    return Judged(parts[0].attribute, *(np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS))


def metric_name(attribute: Attribute) -> str:
    """What ``Judged.metric`` is for an attribute."""
    return {"yes-no": "accuracy", "classes": "accuracy", "map": "f1", "value": "mean_absolute_error"}[attribute.kind]


def rows(attribute: Attribute, outputs: Tensor, target: Tensor, truth: NDArray[Any]) -> NDArray[np.float64]:
    """What is kept of a batch's outputs, (B, 4) or (B, 5) float64: what ``from_rows`` takes, but for the loss."""
    if attribute.kind == "map":
        said = torch.from_numpy(np.asarray(attribute.decide(outputs).value, np.float32)).reshape(
            len(target), 1, *target.shape[-2:]
        )
        true = target.detach().float().cpu().reshape(said.shape)
        near_true, near_said = (functional.max_pool2d(m, 2 * MATCH_PX + 1, 1, MATCH_PX) for m in (true, said))
        sums = [m.sum((1, 2, 3)).double() for m in (true, true * near_said, said, said * near_true)]
        return torch.stack(sums, 1).numpy()
    decided = attribute.decide(outputs)
    probability = np.full(len(truth), np.nan) if decided.probability is None else decided.probability
    if attribute.kind == "classes":
        truth = np.array(attribute.values)[target.cpu().numpy()]
    columns = (np.asarray(c, np.float64).reshape(len(truth)) for c in (truth, decided.value, probability))
    return np.stack([*columns], 1)


def from_rows(attribute: Attribute, loss: NDArray[np.float64], table: NDArray[np.float64]) -> Judged:
    """``rows`` of all samples and their losses (N,)."""
    if attribute.kind == "map":
        return Judged(attribute, loss, table[:, :2], table[:, 2:], np.full(len(loss), np.nan))
    return Judged(attribute, loss, table[:, 0], table[:, 1], table[:, 2])
