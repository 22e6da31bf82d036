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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from analyzer.architectures import architecture, build, names
from analyzer.bundle import BadBundle
from analyzer.framing import Framing

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
    if reason := misfit(state, _on_meta(card, folder / CARD).state_dict()):
        raise BadBundle(f"{folder / CARD}: the card does not describe the network to be saved: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    with _complete(folder / WEIGHTS) as part:
        save_file(state, part)
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
        raise BadBundle(f"{path}: a pickle, which can execute code; weights must be safetensors")
    if digest != card.sha256:
        raise BadBundle(f"{path}: SHA-256 {digest[:12]}…, the card says {card.sha256[:12]}…; get the model again")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise BadBundle(f"{path}: not a safetensors file: {first_line(error)}") from None
    network = _on_meta(card, folder / CARD)
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
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBundle(f"{path}: not a model card: {error}") from None
    if card.format != FORMAT:
        raise BadBundle(f"{path}: format {card.format}, this program reads format {FORMAT}")
    return card


def meta_network(name: str, settings: dict[str, Any]) -> nn.Module:
    """A network without memory for its weights, from no starting point. Raises as ``architectures.build``."""
    with torch.device("meta"):
        return build(name, _lasting(name, settings))


def fill(network: nn.Module, state: dict[str, Tensor], name: str, settings: dict[str, Any]) -> nn.Module:
    """A network of ``meta_network`` with these tensors as its own, without a copy; they must fit (``misfit``)."""
    network.load_state_dict(state, assign=True)
    kept = [*network.parameters(), *network.buffers()]
    if any(tensor.is_meta for tensor in kept):
        # Buffers that are not saved exist only once the network is built in earnest.
        network = build(name, _lasting(name, settings))
        network.load_state_dict(state, assign=True)
    return network


def misfit(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """The first way in which tensors are not those of a network: by name, shape, then dtype. Empty when none."""
    for name, tensor in wanted.items():
        if name not in state:
            return f"there is no {name} {tuple(tensor.shape)}"
        if state[name].shape != tensor.shape:
            return f"{name} is {tuple(state[name].shape)}, the network's is {tuple(tensor.shape)}"
        if state[name].dtype != tensor.dtype:
            return f"{name} is of {state[name].dtype}, the network's of {tensor.dtype}"
    for name in state:
        if name not in wanted:
            return f"the network has no {name}"
    return ""


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins so is a pickle, bare or in the archive that ``torch.save`` writes.

    A safetensors file begins with the length of its header, 8 bytes, and a brace.
    """
    return start[8:9] != b"{" and (start[:4] == b"PK\x03\x04" or start[:1] == b"\x80")


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind when it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """A place to write to that becomes ``path`` when all is written, and nothing when it is not."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _lasting(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    start_only = architecture(name).start_only
    return {key: value for key, value in settings.items() if key not in start_only}


def _on_meta(card: SingleModelCard, path: Path) -> nn.Module:
    if card.network not in names():
        raise BadBundle(f"{path}: network {card.network!r} is not known; known: {', '.join(names())}")
    try:
        return meta_network(card.network, card.settings)
    except (TypeError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        raise BadBundle(f"{path}: network {card.network!r} cannot be built: {first_line(error)}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
