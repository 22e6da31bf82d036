"""Optimiser, learning-rate schedule and the scaling of gradients in mixed precision, as a recipe states them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from analyzer.attributes import Recipe


class Descent:
    """Steps down a loss. steps: of the whole training, for the one-cycle schedule."""

    def __init__(self, recipe: Recipe, network: nn.Module, steps: int, mixed: bool) -> None:
        self._recipe = recipe
        parameters, rate, decay = list(network.parameters()), recipe.learning_rate, recipe.weight_decay
        self.optimiser: torch.optim.Optimizer
        if recipe.optimiser == "sgd":
            self.optimiser = torch.optim.SGD(parameters, rate, momentum=recipe.momentum, weight_decay=decay)
        else:
            kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.AdamW
            self.optimiser = kind(parameters, rate, weight_decay=decay)
        self._plateau: ReduceLROnPlateau | None = None
        self._cycle: OneCycleLR | None = None
        if recipe.schedule == "plateau":
            self._plateau = ReduceLROnPlateau(
                self.optimiser,
                factor=recipe.plateau_factor,
                patience=recipe.plateau_patience,
                threshold=recipe.plateau_threshold,
            )
        elif recipe.schedule == "one-cycle":
            self._cycle = OneCycleLR(self.optimiser, rate, total_steps=steps)
        self._scaler = torch.amp.GradScaler("cuda", enabled=mixed)

    @property
    def learning_rate(self) -> float:
        return float(self.optimiser.param_groups[0]["lr"])

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, network: nn.Module) -> None:
        """Go down the gradient that has been added up."""
        if self._recipe.clip_norm is not None:
            self._scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(network.parameters(), self._recipe.clip_norm)
        self._scaler.step(self.optimiser)
        self._scaler.update()
        if self._cycle is not None:
            self._cycle.step()

    def after_epoch(self, validation_loss: float) -> None:
        """Lower the learning rate where the validation loss has stood still."""
        if self._plateau is not None:
            self._plateau.step(validation_loss)

    def state(self) -> dict[str, Any]:
        """All but the optimiser's own, as JSON takes it."""
        schedule = self._plateau or self._cycle
        kept = schedule.state_dict() if schedule is not None else {}
        return {
            "schedule": {name: value for name, value in kept.items() if _is_plain(value)},
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put ``state`` back. Raises KeyError, TypeError or ValueError for something else."""
        schedule = self._plateau or self._cycle
        if schedule is not None:
            schedule.load_state_dict(state["schedule"])
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(each) for each in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    return value is None or isinstance(value, bool | int | float | str)
