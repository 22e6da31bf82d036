"""What the peak network's answers cost.

The heat: the focal loss of CenterNet (Zhou, Wang, Krahenbuhl 2019, eq. 1), its penalty reduced beside a spot,

    -(1 - p)^2 ln p               where the target is exactly 1
    -(1 - y)^4 p^2 ln(1 - p)      elsewhere, y the target

summed and divided by the number of spots. Sure answers weigh next to nothing, so that the many heats of nothing do not
drown the few of spots. Places and brightness: mean distance where there is a spot.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

FOCUS, RELIEF = 2.0, 4.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Targets of a batch: heat, log_counts (B, HEATS, HEATS); offsets (B, 2, HEATS, HEATS); spot, left_out bool."""

    heat: Tensor
    offsets: Tensor
    log_counts: Tensor
    spot: Tensor
    left_out: Tensor


def focal_heat_loss(logits: Tensor, wanted: Wanted) -> Tensor:
    """Of logits (B, HEATS, HEATS), a number."""
    heat = torch.sigmoid(logits)
    found = -((1.0 - heat) ** FOCUS) * functional.logsigmoid(logits)
    nothing = -((1.0 - wanted.heat) ** RELIEF) * heat**FOCUS * functional.logsigmoid(-logits)
    each = torch.where(wanted.spot, found, nothing * ~wanted.left_out)
    return each.sum() / wanted.spot.sum().clamp(min=1)


def one_pixel_loss(logits: Tensor, wanted: Wanted, pos_weight: float = 1e5) -> Tensor:
    """What the 2024 paper trained with: cross-entropy with targets of one pixel and a weight for them, the mean."""
    weight = torch.tensor(pos_weight, device=logits.device)
    return functional.binary_cross_entropy_with_logits(logits, wanted.spot.to(logits.dtype), pos_weight=weight)


def place_loss(outputs: Tensor, wanted: Wanted) -> Tensor:
    """Mean distance along fs and ss, in heats, where there is a spot; of outputs (B, OUTPUTS, HEATS, HEATS)."""
    away = (outputs[:, 1:3] - wanted.offsets).abs().sum(1)
    return (away * wanted.spot).sum() / wanted.spot.sum().clamp(min=1)


def brightness_loss(outputs: Tensor, wanted: Wanted) -> Tensor:
    """Mean error of ln(counts) where there is a spot; of outputs (B, OUTPUTS, HEATS, HEATS)."""
    away = (outputs[:, 3] - wanted.log_counts).abs()
    return (away * wanted.spot).sum() / wanted.spot.sum().clamp(min=1)
