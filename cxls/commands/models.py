"""``cxls models``: bundles at hand and their cards."""

from pathlib import Path

import click
import msgspec

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle


def list_bundles() -> None:
    """The bundles that come with the program, one a line."""
    for folder in sorted(path.parent for path in DEFAULT_BUNDLE.parent.glob("*/bundle.json")):
        bundle = load_bundle(folder)
        click.echo(f"{bundle.label:<28} {bundle.card.description}  ({folder})")


def show_bundle(folder: Path | None) -> None:
    """A bundle's card as JSON, with the number of parameters of each network."""
    bundle = load_bundle(folder or DEFAULT_BUNDLE)
    counts = {
        name: sum(parameter.numel() for parameter in network.parameters())
        for name, network in (("hit", bundle.hit), ("parameters", bundle.parameters))
    }
    click.echo(
        msgspec.json.format(
            msgspec.json.encode({"label": bundle.label, "weights": counts, "card": bundle.card}), indent=2
        )
    )
