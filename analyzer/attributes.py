"""Attributes: what is asked of a frame, as declarations that drive training, evaluation and the cascade.

An attribute says which truth it learns, how a value becomes a target (the mapping to classes, where it has
classes), which network learns it with which loss and optimiser, and how the network's output becomes a decision.
Other packages add theirs by the entry point group ``cxls.attributes``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from analyzer.plugins import find, known_names

GROUP = "cxls.attributes"

Loss = Literal["bce", "cross-entropy", "focal", "mse", "gaussian-nll"]
Optimiser = Literal["adam", "adamw", "sgd"]
Schedule = Literal["plateau", "one-cycle", "constant"]
Kind = Literal["yes-no", "classes", "map", "value"]
"""What an attribute's values are: a yes or no, one of some classes, a yes or no a pixel, a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is trained unless told otherwise.

    batch: most samples of a step. momentum: of SGD. pos_weight: weight of positives in the loss: a number, or
    "counts" for the negatives over the positives of the training set. focal_alpha: weight of positives in the focal
    loss, that of negatives being 1 - alpha; with focal_alpha_both it weights either, as the 2024 paper's program had
    it. plateau_*: factor, epochs of patience and relative threshold of ReduceLROnPlateau, stepped on the validation
    loss. patience: epochs without a better validation loss before training stops early, None for never. clip_norm:
    largest norm of the gradient. mixed_precision acts on CUDA only. views: fields that are fed as the image one after
    the other, a step of the optimiser each; validation takes the last.
    """

    loss: Loss
    optimiser: Optimiser
    learning_rate: float
    epochs: int
    batch: int
    schedule: Schedule = "plateau"
    weight_decay: float = 0.0
    momentum: float = 0.0
    pos_weight: float | Literal["counts"] = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    focal_alpha_both: bool = False
    plateau_factor: float = 0.1
    plateau_patience: int = 3
    plateau_threshold: float = 0.1
    patience: int | None = None
    clip_norm: float | None = None
    mixed_precision: bool = True
    views: tuple[str, ...] = ("image",)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "batch", "epochs", "patience", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; give a number above 0")
        for name in ("weight_decay", "focal_gamma", "plateau_patience", "plateau_threshold"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; give a number of 0 or more")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; give a number of 0 or more and below 1")
        if not 0 <= self.focal_alpha <= 1:
            raise ValueError(f"focal_alpha is {self.focal_alpha}; give a number from 0 to 1")
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"plateau_factor is {self.plateau_factor}; give a number above 0 and below 1")
        if self.pos_weight != "counts" and not 0 < self.pos_weight < math.inf:
            raise ValueError(f"pos_weight is {self.pos_weight}; give counts or a number above 0")
        if not self.views:
            raise ValueError("views is empty; name the field that is fed as the image")


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """Decisions of a batch: ``value`` in the attribute's unit (or bool), ``probability`` of it where there is one."""

    value: npt.NDArray[np.generic]
    probability: npt.NDArray[np.float64] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One thing asked of a frame.

    name: what commands and cards call it. field: the sample's field that holds the truth. unit: of its values.
    values: what each class stands for, in the order of the network's outputs; empty where there are no classes.
    network: the default architecture. target: truth (B, ...) to the loss's target; raises ValueError for a truth it
    has no target for. decide: outputs to decisions. dense: the truth is a yes or no for each pixel of the frame.
    of_hits: the cascade asks it of hits alone, as the paper's program asked for energy and camera length.
    """

    name: str
    field: str
    network: str
    recipe: Recipe
    target: Callable[[npt.NDArray[np.generic]], Tensor]
    decide: Callable[[Tensor], Decided]
    values: tuple[float, ...] = ()
    unit: str = ""
    dense: bool = False
    of_hits: bool = False

    @property
    def kind(self) -> Kind:
        """What its values are."""
        if self.dense:
            return "map"
        if self.values:
            return "classes"
        return "yes-no" if self.recipe.loss in ("bce", "focal") else "value"


def binary_target(truth: npt.NDArray[np.generic]) -> Tensor:
    """Truth (B, ...) bool to float32 of its shape."""
    return torch.from_numpy(np.asarray(truth, np.float32))


def decide_binary(logits: Tensor) -> Decided:
    """Logits (B,) to yes where the probability is above a half, as the paper decides."""
    probability = torch.sigmoid(logits.detach().double()).reshape(-1).cpu().numpy()
    return Decided(probability > 0.5, probability)


def class_target(values: tuple[float, ...]) -> Callable[[npt.NDArray[np.generic]], Tensor]:
    """Mapping of truth (B,) to the index of its class (B,) int64; a value that is no class is refused.

    A value belongs to a class when it is within a thousandth of it: files hold 0.15 in single precision too.
    """
    classes = np.array(values)

    def target(truth: npt.NDArray[np.generic]) -> Tensor:
        given = np.asarray(truth, np.float64).reshape(-1)
        distance = np.abs(given[:, None] - classes)
        nearest = distance.argmin(1)
        strange = ~(distance[np.arange(len(given)), nearest] <= 1e-3 * np.abs(classes[nearest]))
        if strange.any():
            known = ", ".join(f"{value:g}" for value in values)
            raise ValueError(f"{given[strange][0]:g} is none of the classes {known}")
        return torch.from_numpy(nearest)

    return target


def decide_class(values: tuple[float, ...]) -> Callable[[Tensor], Decided]:
    """Outputs (B, classes) to the value of the likeliest class."""
    classes = np.array(values)

    def decide(outputs: Tensor) -> Decided:
        probability = torch.softmax(outputs.detach().double(), 1).cpu().numpy()
        best = probability.argmax(1)
        return Decided(classes[best], probability[np.arange(len(best)), best])

    return decide


PAPER_ENERGIES_EV = (6000.0, 7000.0, 8000.0)
PAPER_CAMERA_LENGTHS_M = (0.15, 0.25, 0.35)


def decide_map(logits: Tensor) -> Decided:
    """Logits (B, ss, fs) to yes at each pixel where the probability is above a half, as the paper decides."""
    probability = torch.sigmoid(logits.detach().double()).cpu().numpy()
    return Decided(probability > 0.5, probability)


# The 2024 paper's four, with the hyper-parameters of the program that made its figures. Its weight of positives is
# the empty images over the hits, 0.49 in its logs; its focal loss weighted both classes by alpha. It lowered the
# learning rate on the loss of its test set, which here nothing but the report may see.
PEAK = Attribute(
    name="peak",
    field="hit",
    network="paper-binary-cnn",
    recipe=Recipe(loss="bce", optimiser="adam", learning_rate=1e-4, epochs=30, batch=10, pos_weight="counts"),
    target=binary_target,
    decide=decide_binary,
)
PHOTON_ENERGY = Attribute(
    name="energy",
    field="photon_energy_eV",
    network="paper-linear",
    recipe=Recipe(loss="cross-entropy", optimiser="sgd", learning_rate=1e-6, epochs=5, batch=10),
    target=class_target(PAPER_ENERGIES_EV),
    decide=decide_class(PAPER_ENERGIES_EV),
    values=PAPER_ENERGIES_EV,
    unit="eV",
    of_hits=True,
)
CAMERA_LENGTH = Attribute(
    name="camera-length",
    field="camera_length_m",
    network="paper-linear",
    recipe=Recipe(loss="cross-entropy", optimiser="sgd", learning_rate=1e-5, epochs=5, batch=10),
    target=class_target(PAPER_CAMERA_LENGTHS_M),
    decide=decide_class(PAPER_CAMERA_LENGTHS_M),
    values=PAPER_CAMERA_LENGTHS_M,
    unit="m",
    of_hits=True,
)
PEAK_LOCATION = Attribute(
    name="peaks",
    field="peak_map",
    network="paper-heatmap-cnn",
    recipe=Recipe(loss="focal", optimiser="adam", learning_rate=1e-5, epochs=15, batch=1, focal_alpha_both=True),
    target=binary_target,
    decide=decide_map,
    dense=True,
)

_OTHER_RECIPES: dict[tuple[str, str], Recipe] = {
    ("peak", "paper-dual-input"): replace(PEAK.recipe, epochs=10, pos_weight=1.0),
}
"""Where a network of an attribute is published with other hyper-parameters than the attribute's."""

OWN = {each.name: each for each in (PEAK, PHOTON_ENERGY, CAMERA_LENGTH, PEAK_LOCATION)}


def names() -> list[str]:
    """Every attribute that can be named here, sorted."""
    return known_names(OWN, GROUP)


def attribute(name: str) -> Attribute:
    """The attribute of a name. Raises ``KeyError`` for an unknown one, ``TypeError`` for a broken plugin."""
    return find(name, OWN, GROUP, Attribute)


def recipe_for(attribute: Attribute, network: str) -> Recipe:
    """The recipe that this network was published with for the attribute, else the attribute's own."""
    return _OTHER_RECIPES.get((attribute.name, network), attribute.recipe)
