"""Checkpoints: tensors in safetensors, everything else as JSON in its header, one file that is replaced as a whole.

The state of random numbers is none of it: they are seeded anew for every step from the seed and the position.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from analyzer.weights import PICKLE, is_pickle, misfit, save_tensors
from streamer.errors import first_line
from streamer.files import BadInput

FORMAT = "cxls-checkpoint-1"
_HEADER = "cxls"


@dataclass(frozen=True, slots=True)
class Position:
    """Steps of an epoch that are done; a step is a batch in all its views."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A file's tensors by name, and the rest: ``what`` was trained, its position and the loop's own state."""

    tensors: dict[str, Tensor]
    what: dict[str, Any]
    state: dict[str, Any]


def write(path: Path, tensors: Mapping[str, Tensor], what: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint and put it in the place of its forerunner when it is complete and on the disk.

    Raises ``OSError``, naming the file, when it cannot be written; the forerunner stays.
    """
    header = json.dumps({"format": FORMAT, "what": what, "state": state})
    part = path.with_name(f"{path.name}.part")
    # Copies: safetensors refuses tensors that share their memory, as tied weights do.
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    try:
        save_tensors(own, part, {_HEADER: header})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def read(path: Path, what: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint of the same ``what``. Raises ``BadInput``, naming what differs or is damaged."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if is_pickle(start):
            raise BadInput(f"{path}: {PICKLE}")
        with safe_open(path, "pt") as opened:
            header = json.loads((opened.metadata() or {}).get(_HEADER, "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dict)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}; leave out --resume to begin anew") from None
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"{path}: damaged, not a checkpoint: {first_line(error)}; begin anew in another folder"
        ) from None
    if (
        not isinstance(header, dict)
        or header.get("format") != FORMAT
        or not all(isinstance(header.get(part), dict) for part in ("what", "state"))
    ):
        raise BadInput(f"{path}: not a checkpoint of this program; begin anew in another folder")
    theirs: dict[str, Any] = dict(header["what"])
    refuse_other(path, theirs, what)
    return Checkpoint(tensors, theirs, header["state"])


def refuse_other(path: Path, theirs: Mapping[str, Any], what: Mapping[str, Any]) -> None:
    """Raises ``BadInput``, naming the first difference, when a file is of something else than ``what``."""
    # As JSON has it: a tuple comes back as a list.
    for key, value in json.loads(json.dumps(what)).items():
        there = theirs.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            differ = [name for name in {**there, **value} if there.get(name) != value.get(name)]
            if differ:
                key, there, value = f"{key}.{differ[0]}", there.get(differ[0]), value.get(differ[0])
        if there != value:
            raise BadInput(
                f"{path}: of another training: its {key} is {_brief(there)}, here it is {_brief(value)}; "
                "give the same options, or another --run-folder"
            )


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


def network_state(network: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name, as checkpoints name them."""
    return {f"network.{name}": tensor for name, tensor in network.state_dict().items()}


def restore_network(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put weights back. Raises ``BadInput`` when they are not this network's."""
    state = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
    if reason := misfit(state, network.state_dict()):
        raise BadInput(f"{path}: not the weights of this network: {reason}; begin anew in another folder")
    network.load_state_dict(state)


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an optimiser by name, and the rest of its state."""
    state = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for number, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{number}.{name}"] = value
            else:
                scalars.setdefault(str(number), {})[name] = value
    return tensors, {"scalars": scalars, "groups": state["param_groups"]}


def restore_optimiser(optimiser: torch.optim.Optimizer, checkpoint: Checkpoint, path: Path) -> None:
    """Put an optimiser's state back. Raises ``BadInput`` when it is not this optimiser's."""
    rest = checkpoint.state["optimiser"]
    state: dict[int, dict[str, Any]] = {int(number): dict(values) for number, values in rest["scalars"].items()}
    for name, tensor in checkpoint.tensors.items():
        if name.startswith("optimiser."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = tensor
    try:
        optimiser.load_state_dict({"state": state, "param_groups": rest["groups"]})
    except (ValueError, KeyError) as error:
        raise BadInput(f"{path}: not the state of this optimiser: {first_line(error)}; begin anew elsewhere") from None
