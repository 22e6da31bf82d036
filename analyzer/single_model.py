"""One network in a folder: ``model.json`` (the card) beside ``model.safetensors``, nothing that can execute.

What training saves and ``cxls models import`` writes; a bundle holds what the analyser runs. Weights are mapped
from disk rather than read, so a network larger than half of the memory can still be loaded.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from analyzer.architectures import architecture
from analyzer.bundle import BadBundle, network_on_meta
from analyzer.framing import Framing
from analyzer.weights import PICKLE, fill, is_pickle, misfit, save_tensors
from streamer.errors import first_line

CARD, WEIGHTS = "model.json", "model.safetensors"
FORMAT = 1
LARGEST_CARD_BYTES = 16 << 20


class SingleModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """``model.json``. ``save_model`` fills in ``sha256``, that of the weights' file.

    network, settings: its name in the registry and what it is built with (``shape``, ``variant``, …).
    attribute, values, unit: what it says of a frame; the value of each class in the order of the outputs, where it
    has classes. framing: how frames are cut and binned before it sees them; a card without it is of whole frames. view:
    the field that is fed as the image. training, performance: how it came to be and how it does. origin: where the
    weights are from.
    """

    format: int = FORMAT
    network: str
    settings: dict[str, Any] = {}
    attribute: str
    values: list[float] = []
    unit: str = ""
    framing: Framing = Framing()
    view: str = "image"
    sha256: str = ""
    training: dict[str, Any] = {}
    performance: dict[str, Any] = {}
    origin: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A card and its network, in evaluation mode, without gradients."""

    card: SingleModelCard
    network: nn.Module


def save_model(network: nn.Module, card: SingleModelCard, folder: Path) -> None:
    """Write network and card to ``folder``, made where absent; each file replaces its forerunner when complete.

    Settings that only say where training started (``Architecture.start_only``) move to the card's ``training``.
    Raises ``BadBundle`` when the card would not build this network, before anything is written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if reason := misfit(state, network_on_meta(card.network, card.settings, folder / CARD).state_dict()):
        raise BadBundle(f"{folder / CARD}: the card does not describe the network to be saved: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    with _complete(folder / WEIGHTS) as part:
        save_tensors(state, part)
        digest = _sha256(part)
    start = {name: card.settings[name] for name in architecture(card.network).start_only if name in card.settings}
    card = msgspec.structs.replace(
        card,
        sha256=digest,
        settings={name: value for name, value in card.settings.items() if name not in start},
        training={**card.training, **({"start": start} if start else {})},
    )
    with _complete(folder / CARD) as part:
        part.write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")


def load_model(folder: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Load and check a folder that ``save_model`` wrote.

    Raises ``BadBundle``: no card, another format, a network that is not installed, weights that are missing,
    truncated, changed, a pickle or of another architecture.
    """
    card = load_card(folder)
    path = folder / WEIGHTS
    try:
        with path.open("rb") as file:
            start = file.read(9)
        digest = _sha256(path)
    except OSError as error:
        raise BadBundle(f"{path}: {error.strerror or error}; {CARD} goes with this file") from None
    if is_pickle(start):
        raise BadBundle(f"{path}: {PICKLE}")
    if digest != card.sha256:
        raise BadBundle(f"{path}: SHA-256 {digest[:12]}…, the card says {card.sha256[:12]}…; get the model again")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise BadBundle(f"{path}: not a safetensors file: {first_line(error)}") from None
    network = network_on_meta(card.network, card.settings, folder / CARD)
    if reason := misfit(state, network.state_dict()):
        raise BadBundle(f"{path}: the weights do not fit network {card.network!r}: {reason}")
    network = fill(network, state, card.network, card.settings)
    return LoadedModel(card, network.to(device).eval().requires_grad_(False))


def load_card(folder: Path) -> SingleModelCard:
    """The card alone. Raises ``BadBundle``."""
    path = folder / CARD
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_CARD_BYTES + 1)
        if len(raw) > LARGEST_CARD_BYTES:
            raise BadBundle(f"{path}: larger than {LARGEST_CARD_BYTES >> 20} MiB, which no card is")
        card = msgspec.json.decode(raw, type=SingleModelCard)
    except OSError as error:
        raise BadBundle(f"{path}: {error.strerror or error}; a model is a folder with {CARD} and {WEIGHTS}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadBundle(f"{path}: not a model card: {error}") from None
    if card.format != FORMAT:
        raise BadBundle(f"{path}: format {card.format}, this program reads format {FORMAT}")
    return card


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """A place to write to that becomes ``path`` when all is written, and nothing when it is not."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
