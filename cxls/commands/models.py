"""``cxls models list`` and ``show``: bundles and single models at hand, and their cards."""

from pathlib import Path

import click
import msgspec
from torch import nn

from analyzer.architectures import names
from analyzer.bundle import CARD, DEFAULT_BUNDLE, BadBundle, Bundle, HitCard, ModelCard, load_bundle
from analyzer.parameters.claims import DISTANCE_SIGMA_LIMIT_M, ENERGY_SIGMA_LIMIT_EV
from analyzer.single_model import CARD as MODEL_CARD
from analyzer.single_model import load_model
from cxls.commands import networks
from training.make_bundle import table


def list_models() -> None:
    """The bundles that come with the program, then every network that can be named, one a line.

    What cannot be loaded or built says why in its own line.
    """
    click.echo("bundles")
    for folder in sorted(path.parent for path in DEFAULT_BUNDLE.parent.glob("*/bundle.json")):
        try:
            bundle = load_bundle(folder)
            click.echo(f"  {bundle.label:<28} {bundle.card.description}  ({folder})")
        except BadBundle as error:
            click.echo(f"  {folder.name:<28} cannot be used: {error}")
    networks.list_networks()


def show(what: str | None, markdown: bool, as_json: bool, shape: tuple[int, int] | None, settings: list[str]) -> None:
    """A bundle's or model's card, or the table of a network's layers. Raises ``BadBundle`` for what is neither."""
    folder = DEFAULT_BUNDLE if what is None else Path(what)
    if what in names() and not folder.is_dir():
        networks.show_network(what, shape, settings, as_json)
    elif shape is not None or settings:
        raise BadBundle(f"{folder}: --shape and --set are for networks; `cxls models list` names them")
    elif (folder / MODEL_CARD).is_file():
        click.echo(msgspec.json.format(msgspec.json.encode(load_model(folder).card), indent=2))
    elif (folder / CARD).is_file():
        _show_bundle(folder, markdown)
    else:
        raise BadBundle(
            f"{what}: neither a network (`cxls models list` names them) nor a folder with {CARD} or {MODEL_CARD}"
        )


def _show_bundle(folder: Path, markdown: bool) -> None:
    bundle = load_bundle(folder)
    if markdown:
        click.echo(model_page(bundle), nl=False)
    else:
        card = msgspec.json.encode({"label": bundle.label, "card": bundle.card})
        click.echo(msgspec.json.format(card, indent=2))


def model_page(bundle: Bundle) -> str:
    """What a bundle is and how it performed, in Markdown, from its card alone."""
    card, hit, parameters = bundle.card, bundle.card.hit, bundle.card.parameters
    shots = {name: _count(hit.training.get("shots"), name) for name in ("training", "validation", "test")}
    energy, distance = (parameters.performance.get(f"{name}_confusion") for name in ("energy", "distance"))
    return f"""# Model bundle `{bundle.label}`

{card.description[:1].upper() + card.description[1:]}. This page is the output of `cxls models show --markdown`; every
figure is from the bundle's card, measured on simulated shots of a seed that neither training nor validation used.
Trained by {_command(hit)}.

## Hit network: {hit.network}, {_weights(bundle.hit):,} weights

Trained on {shots["training"]} simulated shots, calibrated and thresholded on {shots["validation"]}, measured on
{shots["test"]}; the three sets share no crystal, background, orientation or noise seed. Half of the shots have a
crystal; the header's photon energy and camera length are shown for half of them. A frame is a hit from a probability of
{hit.threshold:.3f}. Flux and water are spread log-uniformly, so that many crystals leave next to no light: nats are the
expected log likelihood ratio for one who knows the very pattern, which nobody does; most of those below 30 look like
water to anybody. How it does in one situation at a time, and beside ideal observers, is in
[evaluation.md](evaluation.md).

{_table(hit.performance.get("rows"))}

{_calibration(hit)}## Parameter network: {parameters.network}, {_weights(bundle.parameters):,} weights

Trained by {_command(parameters)}. In the tables errors are root mean squares, of the ratio L/E as a part of
it, and uncertainties are medians, over all profiles, claimed or not; coverage is that of the stated 95 % interval. A
value is claimed, which means published, where its uncertainty is at most {ENERGY_SIGMA_LIMIT_EV:.0f} eV or
{DISTANCE_SIGMA_LIMIT_M:.2f} m.

The paper's nine conditions: water at 25 C, 3e8 photons a pulse, nothing else in the beam, 400 fresh profiles each. The
last four columns are shares of right answers, the most probable ones: nearest keV, nearest cm, and of the paper's three
energies and three camera lengths.

{_table(parameters.performance.get("rows"))}

One frame: confusion of the paper's three values, rows truth, columns the most probable:

{_matrix("photon energy, keV", ("6", "7", "8"), energy)}

{_matrix("camera length, m", ("0.15", "0.25", "0.35"), distance)}

The world that the network is for, on fresh seeds, by the photons in a profile: any energy from 5 to 10 keV and length
from 0.10 to 0.45 m, water of 1 to 77 C, air, film or glass, stray light, left-over Bragg light, a structure factor that
is not quite the simulator's, missing modules, a beam stop, pixels that count once a pulse.

{_table(parameters.performance.get("world"))}

What misleads: these are profiles of the same simulator that trained the networks. An interval is wide enough for
everything in that world, so that in most of the nine clean conditions it covers more often than it says. Where the
water of a frame is a few thousand photons, energy and distance are not determined by one frame, and records say so
instead.
{_peaks(bundle)}"""


def _peaks(bundle: Bundle) -> str:
    """The learned peak finder beside the classical one, where the bundle carries one."""
    card = bundle.card.peaks
    if card is None or bundle.peaks is None:
        return ""
    role = "Published peaks are its." if card.chosen else "Published peaks are the classical finder's."
    return f"""
## Peak network: {card.network}, {_weights(bundle.peaks):,} weights

Trained by {_command(card)} on {_count(card.training, "tiles")} tiles of {_count(card.training, "shots")} simulated
shots. {role} A peak is a heat from {card.threshold:.3f}. Frames of protein and water, or water alone; spots by the
counts they are expected to add; flux, water and pixel response over the whole range. [peak-finder.md](peak-finder.md)
says what it does and how it does elsewhere.

{_table(card.performance.get("from_counts"))}

{_table(card.performance.get("by_counts"))}
"""


def _calibration(hit: HitCard) -> str:
    """What the card knows of probabilities and of the time it took; cards of adapted bundles know other things."""
    if "calibration" not in hit.performance:
        return ""
    training = hit.training
    machine, history = training.get("machine"), training.get("history")
    took = ""
    if isinstance(machine, dict) and isinstance(history, list) and isinstance(training.get("seconds"), (int, float)):
        where = f"{machine.get('device')}, {machine.get('cores')}\ncores"
        took = f"Its {len(history)} epochs took {training['seconds']:.0f} s ({where}).\n\n"
    return f"""Whether a probability means what it says, on all of these shots: the expected calibration error at other
shares of hits, after correction of the prior.

{_table(hit.performance["calibration"])}

{took}"""


def _weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


_NOT_SAID = "not said by the card"


def _command(card: ModelCard) -> str:
    command = card.training.get("command")
    return f"`{command}`" if isinstance(command, str) else f"a command that is {_NOT_SAID}"


def _count(of: object, name: str) -> str:
    value = of.get(name) if isinstance(of, dict) else None
    return f"{value:,}" if isinstance(value, int) else f"a number ({_NOT_SAID})"


def _table(rows: object) -> str:
    """Rows of a card, which may be of any shape, as a table."""
    try:
        return table(rows)  # type: ignore[arg-type]
    except (TypeError, KeyError, IndexError, ValueError, AttributeError):
        return f"({_NOT_SAID})"


def _matrix(title: str, names: tuple[str, ...], counts: object) -> str:
    if not isinstance(counts, list) or not all(isinstance(row, list) and len(row) == len(names) for row in counts):
        return _table(None)
    return _table(
        [{title: name, **dict(zip(names, row, strict=True))} for name, row in zip(names, counts, strict=False)]
    )
