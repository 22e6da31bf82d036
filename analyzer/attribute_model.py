"""A single model with the attribute that it is for: what it is fed, and whether that fits."""

import math
from dataclasses import dataclass
from pathlib import Path

from torch import device as Device
from torch import nn

from analyzer.architectures import architecture
from analyzer.attributes import Attribute, attribute, names
from analyzer.bundle import BadBundle
from analyzer.single_model import CARD, SingleModelCard, load_model
from streamer.errors import first_line

MOST_PIXELS = 1 << 28
"""That a frame is padded to; no detector has so many."""


@dataclass(frozen=True, slots=True, eq=False)
class AttributeModel:
    """``inputs``: the sample's fields that the network takes, in its order; ``shape``: the only images it takes."""

    folder: Path
    card: SingleModelCard
    attribute: Attribute
    network: nn.Module
    inputs: tuple[str, ...]
    shape: tuple[int, int] | None

    @property
    def label(self) -> str:
        """Its network and the beginning of its weights' hash; every training calls its folder ``model``."""
        return f"{self.card.network}-{self.card.sha256[:12]}"

    def misfit(self, left: tuple[int, int]) -> str:
        """Why images of this shape, which the framing leaves, cannot be fed; empty where they can."""
        if self.shape is None or left == self.shape:
            return ""
        rows, columns = self.shape
        return (
            f"{self.card.network} takes {rows} x {columns} pixels, {self.card.framing.text} leave {left[0]} x {left[1]}"
        )


def open_model(folder: Path, device: Device | str = "cpu") -> AttributeModel:
    """Load a single model and find its attribute.

    Raises ``BadBundle`` as ``load_model``, and for an attribute that no package here offers or that has other classes.
    """
    loaded = load_model(folder, device)
    card = loaded.card
    try:
        found = attribute(card.attribute)
    except KeyError:
        known = ", ".join(names())
        raise BadBundle(f"{folder / CARD}: attribute {card.attribute!r} is not known; known: {known}") from None
    except TypeError as error:
        raise BadBundle(f"{folder / CARD}: attribute {card.attribute!r}: {first_line(error)}") from None
    if card.values and tuple(card.values) != found.values:
        theirs, ours = (", ".join(f"{value:g}" for value in values) for values in (card.values, found.values))
        raise BadBundle(
            f"{folder / CARD}: classes {theirs} of {found.name!r}, which here has {ours or 'none'}; train it again"
        )
    if math.prod(card.framing.size or ()) > MOST_PIXELS:
        raise BadBundle(f"{folder / CARD}: takes {card.framing.text}, more than any frame has; its framing is wrong")
    built = architecture(card.network)
    inputs = tuple(card.view if name == "image" else name for name in built.inputs)
    return AttributeModel(folder, card, found, loaded.network, inputs, _shape(card) if built.sized else None)


def _shape(card: SingleModelCard) -> tuple[int, int]:
    # A network that was built with it took it for two numbers.
    rows, columns = card.settings["shape"]
    return int(rows), int(columns)
