"""Single models whose answers are known, for the tests of evaluation and cascade."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analyzer import architectures
from analyzer.architectures import Architecture
from analyzer.single_model import SingleModelCard, save_model


class Brightest(nn.Module):
    """(B, 1, ss, fs) to (B,): how far the brightest pixel lies above a level."""

    def __init__(self, level: float = 40.0) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, images: Tensor) -> Tensor:
        brightest: Tensor = images.amax((1, 2, 3))
        return brightest - self.level


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it known while a test runs, as an installed package's entry point would."""
    monkeypatch.setitem(architectures.OWN, "brightest", Architecture(build=Brightest, inputs=("image",)))


def hit_model(folder: Path, level: float = 40.0, **card: Any) -> Path:
    save_model(Brightest(level), SingleModelCard(**{"network": "brightest", "attribute": "peak", **card}), folder)
    return folder


def linear_model(folder: Path, shape: tuple[int, int], **card: Any) -> Path:
    """Says 7000 eV of whatever it sees."""
    settings = {"shape": list(shape), "classes": 3}
    network = architectures.build("paper-linear", settings)
    for name, parameter in network.named_parameters():
        nn.init.zeros_(parameter)
        if name.endswith("bias"):
            parameter.data[-2] = 1.0
    values = [6000.0, 7000.0, 8000.0]
    fields = {"network": "paper-linear", "settings": settings, "attribute": "energy", "values": values, **card}
    save_model(network, SingleModelCard(**fields), folder)
    return folder
