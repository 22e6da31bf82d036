"""Networks of the registry on the command line: their list, their tables of layers, and weights from elsewhere."""

from pathlib import Path
from typing import Any

import click
import msgspec
from safetensors import SafetensorError

from analyzer import attributes
from analyzer.architectures import Architecture, architecture, names
from analyzer.attributes import Attribute
from analyzer.bundle import BadBundle
from analyzer.framing import Framing
from analyzer.layers import LayerTable, network_table, sized
from analyzer.single_model import CARD, SingleModelCard
from analyzer.weights import UNBUILDABLE
from cxls.cli import Failed
from streamer.errors import first_line
from training.published.importing import import_model
from training.published.sizes import PAPER_SHAPE

_LONG_BYTES = 1 << 30
_TASKS = {"hit-zones-and-cells": "hit", "parameters-radial-profile": "parameters"}
"""Networks that are trained under the name of a task: what they read is reduced frames, which no data set has."""


def list_networks() -> None:
    """Every network with its parameters at the paper's frame size, its inputs and its source or its own task."""
    click.echo(f"networks, with their parameters for frames of {_by(PAPER_SHAPE)}")
    for name in names():
        try:
            found, table = architecture(name), network_table(name, {}, PAPER_SHAPE)
            source = f"own, trained by cxls train {_TASKS[name]}" if name in _TASKS else found.source or "own"
            line = f"{table.parameters:>15,}  {' + '.join(found.inputs):<42} {source}"
        except UNBUILDABLE as error:
            line = f"cannot be used: {first_line(error)}"
        click.echo(f"  {name:<28} {line}")
    click.echo("trained by cxls train ATTRIBUTE --network NAME, but for those with a task of their own")


def show_network(name: str, shape: tuple[int, int] | None, settings: list[str], as_json: bool) -> None:
    """The table of a network's layers. Raises ``BadBundle``."""
    found = _architecture(name)
    given = parse_settings(settings)
    table = _table(name, found, given, shape or PAPER_SHAPE)
    if as_json:
        about = {"network": name, "source": found.source, "shape": shape or PAPER_SHAPE, "settings": given}
        click.echo(msgspec.json.format(msgspec.json.encode(about | msgspec.to_builtins(table)), indent=2))
        return
    click.echo(f"{name}: {found.source or 'own network'}")
    inputs = ", ".join(f"{each} {_by(side) or 'number'}" for each, side in table.inputs)
    click.echo(f"one frame: {inputs} -> {_by(table.output[1:]) or 'number'}\n")
    rows: list[tuple[str, ...]] = [("layer", "kind", "", "output", "parameters", "multiply-adds")]
    for layer in table.layers:
        counts = (f"{layer.parameters:,}" if layer.parameters else "", _millions(layer.multiply_adds))
        rows.append((layer.name, layer.kind, layer.detail, _by(layer.output[1:]), *counts))
    rows.append(("total", "", "", "", f"{table.parameters:,}", _millions(table.multiply_adds)))
    _columns(rows)
    weights, outputs = table.weight_bytes, table.output_bytes
    click.echo("\nmultiply-adds in millions, of convolutions and linear layers")
    click.echo(
        f"memory: weights {_size(weights)}; to train with Adam {_size(4 * weights)} (gradients and two moments),"
    )
    click.echo(f"and {_size(outputs)} for each frame of a batch, which layers hand on")
    for key in found.start_only:
        click.echo(f"a fresh network starts from scratch, or from a file: {key}=FILE")


def import_weights(
    file: Path,
    network: str,
    out: Path,
    attribute: str | None,
    shape: tuple[int, int] | None,
    settings: list[str],
    force: bool,
    framing: Framing,
) -> None:
    """Write a single model from another program's state dict. Raises ``BadBundle``."""
    found = _architecture(network)
    asked = _attribute(network, attribute)
    if (out / CARD).exists() and not force:
        raise BadBundle(f"{out / CARD} is there already; --force replaces the model")
    shape = _fed(framing, shape)
    given = sized(found, shape) | parse_settings(settings)
    if found.classes:
        given = {"classes": len(asked.values) or 1} | given
    table = _table(network, found, given, shape)
    _refuse_other_output(network, asked, table)
    card = SingleModelCard(
        network=network,
        settings=given,
        attribute=asked.name,
        values=list(asked.values),
        unit=asked.unit,
        framing=framing,
    )
    if file.is_file() and file.stat().st_size > _LONG_BYTES:
        click.echo(f"importing {_size(file.stat().st_size)}: it is read twice and written once", err=True)
    try:
        import_model(file, card, out)
    except (OSError, SafetensorError) as error:
        raise Failed(f"{out}: {first_line(error)}; nothing was imported") from None
    click.echo(f"{out}: {network}, {table.parameters:,} parameters, attribute {asked.name}, from {file.name}")


def _fed(framing: Framing, shape: tuple[int, int] | None) -> tuple[int, int]:
    """The frame that reaches the network. Raises ``BadBundle`` where --shape says another than --size and --bin."""
    left = framing.shape(PAPER_SHAPE)
    if not all(left):
        raise BadBundle(f"--bin {framing.bin}: nothing is left of {framing.text}; give a smaller one")
    if shape is not None and framing.size is not None and shape != left:
        raise BadBundle(f"--shape {_by(shape)}: --size and --bin leave {_by(left)} of a frame; leave out --shape")
    return shape or left


def parse_settings(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE, the value as JSON where it is JSON and as text elsewhere. Raises ``BadBundle``."""
    settings: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not (name and equals):
            raise BadBundle(f"--set {each!r} must be NAME=VALUE, for instance variant=code")
        try:
            settings[name] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            settings[name] = text
    return settings


def _architecture(name: str) -> Architecture:
    try:
        return architecture(name)
    except KeyError:
        raise BadBundle(f"network {name!r} is not known; known: {', '.join(names())}") from None
    except TypeError as error:
        raise BadBundle(str(error)) from None


def _attribute(network: str, name: str | None) -> Attribute:
    known = attributes.names()
    if name is None:
        own = [each for each in attributes.OWN.values() if each.network == network]
        if len(own) != 1:
            choice = " or ".join(each.name for each in own) or ", ".join(known)
            raise BadBundle(f"what {network} says of a frame is not clear; say --attribute {choice}")
        return own[0]
    try:
        return attributes.attribute(name)
    except KeyError:
        raise BadBundle(f"attribute {name!r} is not known; known: {', '.join(known)}") from None
    except (TypeError, ImportError, AttributeError) as error:
        raise BadBundle(f"attribute {name!r} cannot be used: {first_line(error)}") from None


def _table(name: str, found: Architecture, settings: dict[str, Any], shape: tuple[int, int]) -> LayerTable:
    try:
        return network_table(name, settings, shape)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadBundle(f"network {name!r} with {sized(found, shape) | settings}: {first_line(error)}") from None


def _refuse_other_output(network: str, asked: Attribute, table: LayerTable) -> None:
    numbers = {"yes-no": 0, "classes": 1, "map": 2}.get(asked.kind)
    outputs = table.output[1:]
    if numbers is not None and (len(outputs) != numbers or (asked.values and outputs != (len(asked.values),))):
        wanted = f"{len(asked.values)} classes" if asked.values else ("one number", "classes", "a map")[numbers]
        given = _by(outputs) or "one number"
        raise BadBundle(f"network {network!r} gives {given} a frame, attribute {asked.name!r} takes {wanted}")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _millions(multiply_adds: int) -> str:
    return f"{multiply_adds / 1e6:,.3f}" if multiply_adds else ""


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.3g} MB"


def _columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row[:4], widths[:4], strict=True)]
        cells += [text.rjust(width) for text, width in zip(row[4:], widths[4:], strict=True)]
        click.echo("  ".join(cells).rstrip())
