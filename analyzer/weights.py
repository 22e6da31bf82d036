"""Weights and the networks they are for: what a file is before it is trusted, and whether its tensors fit.

What bundles, single models and checkpoints share; each says in its own words what it refuses.
"""

import errno
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from analyzer.architectures import architecture, build

PICKLE = "a pickle, which can execute code, as torch.save writes it; only safetensors are read"
"""What a refusal says of a file for which ``is_pickle`` is true."""

UNBUILDABLE = (
    TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, ImportError, AttributeError, MemoryError, OSError
)  # fmt: skip
"""What a network's constructor, maybe of another package, raises for settings that make no sense."""


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins so is a pickle, bare or in the archive that ``torch.save`` writes.

    A safetensors file begins with the length of its header, 8 bytes, and a brace.
    """
    return start[8:9] != b"{" and (start[:4] == b"PK\x03\x04" or start[:1] == b"\x80")


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


def _lasting(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    start_only = architecture(name).start_only
    return {key: value for key, value in settings.items() if key not in start_only}


def save_tensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises ``OSError``, naming it, when that fails, as on a full disk."""
    try:
        save_file(tensors, path, header)
    except SafetensorError as error:
        # It has no errno; one that has is the system's own word for it.
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None
