"""Losses, one number a sample: means over a batch are taken by the loop, whoever holds which part of the batch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from analyzer.attributes import Recipe

PerSample = Callable[[Tensor, Tensor], Tensor]


def per_sample_loss(recipe: Recipe, pos_weight: float) -> PerSample:
    """(outputs, target) to the loss of each sample (B,), float32; over a map it is the mean over its pixels.

    bce, focal    logits and target of one shape; focal as in Lin et al., ICCV 2017, with the class's weight alpha, or
                  alpha for both classes (``Recipe.focal_alpha_both``)
    cross-entropy logits (B, classes), target (B,) int64
    mse           outputs and target of one shape
    gaussian-nll  outputs (B, 2): mean and logarithm of the variance; target (B,)
    """
    weight = torch.tensor(pos_weight)

    def bce(outputs: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            outputs, target, reduction="none", pos_weight=weight.to(outputs.device)
        )

    def focal(outputs: Tensor, target: Tensor) -> Tensor:
        plain = functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        missed = torch.sigmoid(torch.where(target > 0.5, -outputs, outputs))  # 1 - probability of the true class
        alpha = recipe.focal_alpha
        share = alpha if recipe.focal_alpha_both else torch.where(target > 0.5, alpha, 1 - alpha)
        return share * missed**recipe.focal_gamma * plain

    def mse(outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs - target).square()

    def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
        if outputs.ndim != 2 or target.ndim != 1 or len(outputs) != len(target):
            raise _unfit(outputs, target, "(B, classes) and (B,)")
        return functional.cross_entropy(outputs, target, reduction="none")

    def gaussian_nll(outputs: Tensor, target: Tensor) -> Tensor:
        if outputs.ndim != 2 or outputs.shape[1] != 2 or len(outputs) != target.numel():
            raise _unfit(outputs, target, "(B, 2) and (B,)")
        mean, log_variance = outputs.unbind(1)
        return 0.5 * ((mean - target.reshape(-1)).square() * torch.exp(-log_variance) + log_variance)

    def same_shape(of: PerSample) -> PerSample:
        def loss(outputs: Tensor, target: Tensor) -> Tensor:
            if outputs.numel() != target.numel() or len(outputs) != len(target):
                raise _unfit(outputs, target, "the same")
            each = of(outputs.reshape(target.shape), target)
            return each.reshape(len(target), -1).mean(1)

        return loss

    named = {
        "bce": same_shape(bce),
        "focal": same_shape(focal),
        "mse": same_shape(mse),
        "cross-entropy": cross_entropy,
        "gaussian-nll": gaussian_nll,
    }
    chosen = named[recipe.loss]

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        # In single precision: under autocast outputs may be of 16 bits, in which a sum over a map overflows.
        return chosen(outputs.float(), target)

    return loss


def _unfit(outputs: Tensor, target: Tensor, wanted: str) -> ValueError:
    return ValueError(
        f"outputs of shape {tuple(outputs.shape)} for a target of shape {tuple(target.shape)}, wanted are {wanted}; "
        "take a network or a loss that fits"
    )
