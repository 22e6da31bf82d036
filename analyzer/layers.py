"""A network as a table: its layers, what leaves them, their parameters and what one frame costs.

Reckoned on torch's meta device, which has shapes and no memory, so that a network larger than the machine can be
looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.architectures import Architecture, architecture
from analyzer.networks import PROFILE_FEATURES
from analyzer.weights import meta_network
from analyzer.zones import CELL_COLUMNS, COLUMNS, STRONGEST, ZONES


@dataclass(frozen=True, slots=True)
class Layer:
    """A row. ``output`` with a batch of one; multiply-adds of one frame, of convolutions and linear layers."""

    name: str
    kind: str
    detail: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True, slots=True)
class LayerTable:
    """``inputs``: field and shape, without the batch; ``output``: shape of what the network returns for a batch of one.

    ``output_bytes``: what all layers hand on for one frame, kept while training.
    """

    inputs: list[tuple[str, tuple[int, ...]]]
    output: tuple[int, ...]
    layers: list[Layer]
    parameters: int
    multiply_adds: int
    weight_bytes: int
    output_bytes: int


def network_table(name: str, settings: dict[str, Any], shape: tuple[int, int]) -> LayerTable:
    """The table of a network from the registry for frames of ``shape`` (ss, fs).

    Raises as ``architectures.build``; ``ValueError`` where a frame is too small or an input's shape is not known.
    """
    found = architecture(name)
    network = meta_network(name, sized(found, shape) | settings)
    inputs = [(each, input_shape(found, each, shape)) for each in found.inputs]
    try:
        return layer_table(network, inputs)
    except RuntimeError as error:
        raise ValueError(f"network {name!r} does not take frames of {shape[0]}x{shape[1]}: {error}") from None


def sized(found: Architecture, shape: tuple[int, int]) -> dict[str, Any]:
    """The setting that ties a network to a frame size, for one that has it."""
    return {"shape": shape} if found.sized else {}


def input_shape(found: Architecture, name: str, shape: tuple[int, int]) -> tuple[int, ...]:
    """The shape of one sample of an input field, for frames of ``shape``. Raises ``ValueError`` for an unknown one."""
    known: dict[str, tuple[int, ...]] = {
        "image": (1, *shape),
        "clean_image": (1, *shape),
        "photon_energy_eV": (),
        "camera_length_m": (),
        "zones": (ZONES, COLUMNS),
        "cells": (STRONGEST, CELL_COLUMNS),
        "header": (2,),
        "profile": (PROFILE_FEATURES,),
        **found.shapes,
    }
    if name not in known:
        raise ValueError(f"the shape of input {name!r} is not known; its Architecture must give it in shapes")
    return known[name]


def layer_table(network: nn.Module, inputs: Sequence[tuple[str, tuple[int, ...]]]) -> LayerTable:
    """Run one frame of nothing through a network on the meta device and write down each layer as it is called."""
    layers: list[Layer] = []
    counted: set[int] = set()
    output_bytes = 0

    def written(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], outputs: Any) -> None:
            nonlocal output_bytes
            # A recurrent layer hands on its states too; the first is what the next layer sees.
            output: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
            fresh = [each for each in module.parameters() if id(each) not in counted]
            counted.update(map(id, fresh))
            if not getattr(module, "inplace", False):
                output_bytes += output.numel() * output.element_size()
            layers.append(
                Layer(
                    name,
                    type(module).__name__,
                    _detail(module),
                    tuple(output.shape),
                    sum(each.numel() for each in fresh),
                    _multiply_adds(module, given, output),
                )
            )

        return hook

    leaves = [(name, each) for name, each in network.named_modules() if not any(each.children())]
    handles = [each.register_forward_hook(written(name)) for name, each in leaves]
    try:
        with torch.no_grad(), torch.device("meta"):
            returned = network.eval()(*(torch.empty(1, *shape) for _, shape in inputs))
    finally:
        for handle in handles:
            handle.remove()
    kept = [*network.parameters(), *network.buffers()]
    parameters = sum(each.numel() for each in network.parameters())
    if rest := parameters - sum(layer.parameters for layer in layers):
        layers.append(Layer("", "(outside layers)", "", (), rest, 0))
    return LayerTable(
        inputs=list(inputs),
        output=tuple(returned.shape),
        layers=layers,
        parameters=parameters,
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        weight_bytes=sum(each.numel() * each.element_size() for each in kept),
        output_bytes=output_bytes,
    )


_SHOWN = (("kernel_size", "k", None), ("stride", "s", None), ("padding", "p", 0), ("dilation", "d", 1))


def _detail(module: nn.Module) -> str:
    if isinstance(module, nn.GroupNorm):
        return f"{module.num_groups} groups"
    if isinstance(module, nn.Dropout):
        return f"{module.p:g}"
    parts = []
    for attribute, letter, usual in _SHOWN:
        value = getattr(module, attribute, None)
        if isinstance(value, tuple):
            value = value[0] if len(set(value)) == 1 else "x".join(map(str, value))
        if value is not None and value != usual:
            parts.append(f"{letter}{value}")
    return " ".join(parts)


def _multiply_adds(module: nn.Module, given: Any, output: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return int(given[0].numel()) * module.weight[0].numel()
    return 0
