"""State dicts of other programs into networks of the registry: tensors only, nothing that can execute.

The paper's authors published no names of their networks' layers, so weights whose names are not ours are matched
layer by layer: the k-th layer with certain parameters and shapes in the file is the k-th such layer of the network, in
the order in which either declares them. Only layers alike in every shape could be taken for one another.
"""

import hashlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from analyzer.bundle import BadBundle
from analyzer.single_model import SingleModelCard, save_model
from analyzer.weights import fill, meta_network
from streamer.errors import first_line

LARGEST_PICKLE_BYTES = 16 << 20
"""Of the archive's own list of tensors; that of a network of a thousand layers is a tenth of a megabyte."""

_COUNTER = "num_batches_tracked"
_CHECKED_AT_ONCE = 1 << 24

Layers = dict[str, dict[str, Tensor]]


def import_model(path: Path, card: SingleModelCard, folder: Path) -> SingleModelCard:
    """Write ``folder`` from a state dict file and a card that says what it is; returns the card with its origin.

    The file is mapped, not read, and its tensors become the network's without a copy. Raises ``BadBundle``.
    """
    state = read_state(path)
    try:
        network = meta_network(card.network, card.settings)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadBundle(f"network {card.network!r} cannot be built with {card.settings}: {first_line(error)}") from None
    try:
        state = arrange(state, network.state_dict())
    except ValueError as error:
        raise BadBundle(f"{path}: does not fit network {card.network!r}: {error}") from None
    network = fill(network, state, card.network, card.settings)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    imported: dict[str, Any] = {"file": path.name, "sha256": digest}
    origin = card.origin or f"imported from {path.name}"
    card = msgspec.structs.replace(card, training=card.training | {"imported": imported}, origin=origin)
    save_model(network, card, folder)
    return card


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that ``torch.save`` (1.6 or later) or safetensors wrote, mapped from the file.

    Raises ``BadBundle`` for whatever else it is: code, a whole network, a checkpoint with more in it, a torso.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise BadBundle(f"{path}: {error.strerror or error}; give a state dict that torch.save wrote") from None
    if start[8:9] == b"{":
        try:
            return load_file(path)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise BadBundle(f"{path}: not a safetensors file: {first_line(error)}") from None
    _check_archive(path)
    try:
        # The archive is one of torch's and nothing in it is larger than the file: what is left to go wrong is
        # whatever a hostile pickle makes torch's restricted unpickler raise.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{named.group(1)}, which is code" if named else "more than tensors"
        raise BadBundle(f"{path}: holds {what}; only a state dict is taken: {_SAVE}") from None
    except Exception as error:
        raise BadBundle(f"{path}: not a state dict that torch can read: {first_line(error)}") from None
    return _only_tensors(path, found)


_SAVE = "torch.save(network.state_dict(), FILE)"


def _check_archive(path: Path) -> None:
    """Refuse what is not an uncompressed archive of ``torch.save``, before torch sees it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        reason = f"truncated, or not an archive that torch.save writes ({first_line(error)})"
        raise BadBundle(f"{path}: {reason}; a state dict is: {_SAVE}") from None
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise BadBundle(f"{path}: a TorchScript program, which is code; only a state dict is taken: {_SAVE}")
    lists = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(lists) != 1:
        raise BadBundle(f"{path}: an archive, but not one that torch.save writes; a state dict is: {_SAVE}")
    # torch stores and never compresses; what is compressed could unpack to any size.
    size = path.stat().st_size
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size for entry in entries):
        raise BadBundle(f"{path}: a compressed archive, which torch.save does not write")
    if lists[0].file_size > LARGEST_PICKLE_BYTES:
        raise BadBundle(f"{path}: its list of tensors is larger than {LARGEST_PICKLE_BYTES >> 20} MiB")


def _only_tensors(path: Path, found: object) -> dict[str, Tensor]:
    if not isinstance(found, dict):
        raise BadBundle(f"{path}: holds a {type(found).__name__}, not a state dict: {_SAVE}")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise BadBundle(
                f"{path}: its entry {str(name)[:80]!r} is a {kind}, not a tensor; {_SAVE} saves those alone"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise BadBundle(f"{path}: {name[:80]} is no plain tensor of real numbers")
    if not found:
        raise BadBundle(f"{path}: an empty state dict")
    return dict(found)


def arrange(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under the names, shapes and dtypes of a network's.

    Names are used where all of them are the network's, otherwise layers are matched in order. A 1 x 1 convolution and
    a linear layer are the same. Raises ``ValueError`` that names the first mismatch, or a value that is not finite.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in given.items()}
    theirs, ours = _layers(given), _layers(wanted)
    pairs = {layer: layer for layer in ours} if _named(given) == _named(wanted) else _match(theirs, ours)
    arranged, taken = {}, set()
    for name, tensor in wanted.items():
        layer, _, parameter = name.rpartition(".")
        found = theirs[pairs[layer]].get(parameter)
        if found is None:  # only the counter of batches may be absent
            arranged[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
            continue
        source = f"{pairs[layer]}.{parameter}"
        if _squeezed(found) != _squeezed(tensor):
            raise ValueError(f"{source} is {tuple(found.shape)}, the network's is {tuple(tensor.shape)}")
        if tensor.is_floating_point() != found.is_floating_point():
            raise ValueError(f"{source} is of {found.dtype}, the network's of {tensor.dtype}")
        found = found.detach().reshape(tensor.shape).to(tensor.dtype).contiguous()
        if not all(torch.isfinite(part).all() for part in torch.split(found.reshape(-1), _CHECKED_AT_ONCE)):
            raise ValueError(f"{source} has values that are not finite")
        # Two names for the same memory cannot be saved.
        arranged[name] = found.clone() if found.data_ptr() in taken else found
        taken.add(found.data_ptr())
    return arranged


def _named(state: dict[str, Tensor]) -> set[str]:
    return {name for name in state if not name.endswith(_COUNTER)}


def _layers(state: dict[str, Tensor]) -> Layers:
    layers: Layers = {}
    for name, tensor in state.items():
        layer, _, parameter = name.rpartition(".")
        layers.setdefault(layer, {})[parameter] = tensor
    return layers


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _match(theirs: Layers, ours: Layers) -> dict[str, str]:
    """For each layer of ours the name of theirs. Raises ``ValueError``."""
    unused = dict.fromkeys(theirs)
    pairs = {}
    for name, layer in ours.items():
        found = next((other for other in unused if _kind(theirs[other]) == _kind(layer)), None)
        if found is None:
            left = next((f"; its first that has no counterpart is {_said(each, theirs[each])}" for each in unused), "")
            raise ValueError(f"the file has no layer like {_said(name, layer)}{left}")
        del unused[found]
        pairs[name] = found
    for name in unused:
        raise ValueError(f"the network has no layer like the file's {_said(name, theirs[name])}")
    return pairs


def _kind(layer: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: _squeezed(tensor) for name, tensor in layer.items() if name != _COUNTER}


def _said(name: str, layer: dict[str, Tensor]) -> str:
    shapes = (f"{key} {'x'.join(map(str, each.shape)) or 1}" for key, each in layer.items() if key != _COUNTER)
    return f"{name[:80]} ({', '.join(shapes)})"
