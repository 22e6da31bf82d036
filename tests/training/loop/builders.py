"""Tiny networks, attributes and data for the loop: separable blobs in small images, and 1-D spectra."""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analyzer.architectures import Architecture
from analyzer.attributes import PEAK, Attribute, Decided, Recipe, class_target, decide_class
from training.loop.arrays import ArraySource
from training.loop.samples import Source
from training.loop.train import Job

LINES_EV = (6400.0, 7050.0, 7480.0)


class TinyHit(nn.Module):
    """(B, 1, ss, fs) to (B,), with a batch normalisation and dropout where asked for."""

    def __init__(self, normalised: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(4) if normalised else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(4, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.first(images.sqrt()))).amax((2, 3))
        logit: Tensor = self.last(self.dropout(features))
        return logit.squeeze(1)


class TinyHeat(nn.Module):
    """(B, 1, ss, fs) to (B, ss, fs)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        heat: Tensor = self.layer(images).squeeze(1)
        return heat


class SpectrumNetwork(nn.Module):
    """(B, bins) to (B, classes)."""

    def __init__(self, bins: int = 64, classes: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(bins, 16), nn.ReLU(), nn.Linear(16, classes))

    def forward(self, spectrum: Tensor) -> Tensor:
        logits: Tensor = self.layers(spectrum)
        return logits


class Straight(nn.Module):
    """(B, 3) to (B, 2): mean and logarithm of the variance."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.layer(features)
        return out


NETWORKS = {
    "tiny-hit": Architecture(build=TinyHit, inputs=("image",)),
    "tiny-heat": Architecture(build=TinyHeat, inputs=("image",)),
    "tiny-spectrum": Architecture(build=SpectrumNetwork, inputs=("spectrum",), classes=True),
    "tiny-straight": Architecture(build=Straight, inputs=("features",)),
}

SPECTRUM_LINE = Attribute(
    name="line",
    field="line_eV",
    network="tiny-spectrum",
    recipe=Recipe(loss="cross-entropy", optimiser="adamw", learning_rate=1e-2, epochs=6, batch=32),
    target=class_target(LINES_EV),
    decide=decide_class(LINES_EV),
    values=LINES_EV,
    unit="eV",
)


def decide_mean(outputs: Tensor) -> Decided:
    return Decided(outputs[:, 0].double().numpy(), None)


def value_target(truth: Any) -> Tensor:
    return torch.from_numpy(np.asarray(truth, np.float32))


THICKNESS = Attribute(
    name="thickness",
    field="thickness",
    network="tiny-straight",
    recipe=Recipe(loss="gaussian-nll", optimiser="adam", learning_rate=3e-2, epochs=20, batch=32, schedule="constant"),
    target=value_target,
    decide=decide_mean,
)

PEAK_TINY = Attribute(
    name="peak",
    field="hit",
    network="tiny-hit",
    recipe=Recipe(loss="bce", optimiser="adam", learning_rate=1e-2, epochs=3, batch=8, pos_weight="counts"),
    target=PEAK.target,
    decide=PEAK.decide,
)


def images_with_spots(count: int, seed: int, shape: tuple[int, int] = (12, 14)) -> dict[str, Any]:
    """Poisson water; hits have three bright pixels."""
    rng = np.random.default_rng(seed)
    image = rng.poisson(1.0, (count, 1, *shape)).astype(np.float32)
    peak_map = np.zeros_like(image)
    hit = np.arange(count) % 3 != 0
    for n in np.flatnonzero(hit):
        peak_map[n, 0].reshape(-1)[rng.choice(shape[0] * shape[1], 3, replace=False)] = 1.0
    return {"image": image + 25 * peak_map, "clean_image": 25 * peak_map, "peak_map": peak_map, "hit": hit}


def spots(count: int = 48, seed: int = 1, **options: Any) -> Source:
    return ArraySource(images_with_spots(count, seed), name=f"spots {seed}", **options)


def spectra(count: int, seed: int) -> Source:
    """Fluorescence lines on a background, counted."""
    rng = np.random.default_rng(seed)
    line = rng.choice(LINES_EV, count)
    energy = np.linspace(6000, 8000, 64)
    expected = 2 + 12 * np.exp(-((energy - line[:, None]) ** 2) / 2 / 80**2)
    return ArraySource({"spectrum": rng.poisson(expected).astype(np.float32), "line_eV": line}, name=f"spectra {seed}")


def register() -> None:
    """Make the tiny networks known in this process, as an installed package's entry points would."""
    from analyzer import architectures, attributes

    architectures.OWN.update(NETWORKS)
    attributes.OWN.setdefault("line", SPECTRUM_LINE)


def one_thread() -> None:
    """As tests that compare bits want it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


DROPOUT_JOB = Job(
    attribute=PEAK_TINY,
    network="tiny-hit",
    recipe=PEAK_TINY.recipe,
    settings={"normalised": True, "dropout": 0.3},
    seed=5,
)
SGD_JOB = Job(
    attribute=PEAK_TINY,
    network="tiny-hit",
    recipe=Recipe(loss="bce", optimiser="sgd", learning_rate=0.05, epochs=4, batch=9, pos_weight="counts"),
    seed=5,
)
