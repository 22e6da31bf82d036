"""Model bundles: a folder with a card and weights, nothing that can execute.

``bundle.json`` names each model's architecture and settings, the SHA-256 of its
``.safetensors`` file, thresholds, how it was trained and how it performed. The analyser
builds the networks the card names and refuses whatever does not match.
"""

import hashlib
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from analyzer.architectures import names
from analyzer.drift import ScoreReference
from analyzer.parameters.scattering import Scattering, scattering
from analyzer.weights import PICKLE, UNBUILDABLE, fill, is_pickle, meta_network, misfit
from streamer.errors import first_line

CARD = "bundle.json"
FORMAT = 1
_LONGEST_NAME, _MOST_COUNTED, _LARGEST_BIAS = 255, 1 << 53, 1e3
_MOST_CARD_BYTES, _MOST_WEIGHT_BYTES = 16 << 20, 4 << 30
DEFAULT_BUNDLE = Path(__file__).parent / "bundles" / "default"


class BadBundle(ValueError):
    """A bundle that cannot be used: one line with what, where and what to do."""


def _sensible(name: str, value: object, good: bool, what: str) -> None:
    if not good:
        said = ascii(value)
        raise ValueError(f"{name} is {said if len(said) <= 80 else f'{said[:77]}...'}; {what}")


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its architecture in the registry, its settings, its weights and their hash."""

    network: str
    weights: str
    sha256: str
    settings: dict[str, Any] = {}
    training: dict[str, Any] = {}
    performance: dict[str, Any] = {}


class HitCard(ModelCard, frozen=True, kw_only=True):
    """The hit model: a frame is a hit at ``threshold``; logits are divided by ``temperature``.

    ``prior`` is the fraction of hits for which the probability is calibrated. ``score_reference_*``
    are the scores of held-out frames without and with a crystal, as ``drift.score_histogram`` makes
    them; a bundle may lack them.
    """

    threshold: float = 0.5
    temperature: float = 1.0
    bias: float = 0.0
    prior: float = 0.5
    score_reference_empties: list[int] = []
    score_reference_hits: list[int] = []

    def __post_init__(self) -> None:
        """Raises ``ValueError``, naming the field and its value, for what makes no sense."""
        ScoreReference(tuple(self.score_reference_empties), tuple(self.score_reference_hits))
        for name in ("empties", "hits"):
            counts = getattr(self, f"score_reference_{name}")
            _sensible(f"hit.score_reference_{name}", sum(counts), sum(counts) <= _MOST_COUNTED, "too many frames")
        _sensible("hit.threshold", self.threshold, 0 <= self.threshold <= 1, "give a probability, 0 to 1")
        _sensible("hit.prior", self.prior, 0 < self.prior < 1, "give a share above 0 and below 1")
        _sensible("hit.temperature", self.temperature, 0 < self.temperature < math.inf, "give a number above 0")
        _sensible("hit.bias", self.bias, abs(self.bias) <= _LARGEST_BIAS, f"give at most {_LARGEST_BIAS:g} either way")
        rate = self.performance.get("false_hit_rate", [0.0, 0.0, 0.0])
        good = isinstance(rate, list | tuple) and len(rate) == 3 and all(type(each) in (int, float) for each in rate)
        good = good and 0 <= rate[1] <= rate[0] <= rate[2] <= 1
        _sensible("hit.performance.false_hit_rate", rate, good, "give estimate, low and high end, from 0 to 1")


class ParametersCard(ModelCard, frozen=True, kw_only=True):
    """The parameter model; ``sigma_scale`` makes its stated uncertainties cover what they claim."""

    sigma_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        """Raises ``ValueError``, naming the field and its value, for what is no scale."""
        good = all(0 < each < math.inf for each in self.sigma_scale)
        _sensible("parameters.sigma_scale", self.sigma_scale, good, "give three numbers above 0")


class PeaksCard(ModelCard, frozen=True, kw_only=True):
    """The learned peak finder: a heat from ``threshold`` is a peak, cells from ``tile_threshold`` are looked at.

    chosen: the bundle's peaks are this finder's; else they are the classical one's, and this one is there on request.
    Raises ``ValueError`` for thresholds that nothing, or everything, would pass.
    """

    threshold: float
    tile_threshold: float
    chosen: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"peaks: threshold {self.threshold} is no heat between 0 and 1")
        if not 0.0 <= self.tile_threshold < float("inf"):
            raise ValueError(f"peaks: tile_threshold {self.tile_threshold} is no significance of 0 or more")


class ScatteringCard(msgspec.Struct, frozen=True, kw_only=True):
    """Tables of what scatters (``analyzer.parameters.scattering``), their hash and where they are from."""

    weights: str
    sha256: str
    sources: dict[str, str] = {}


class BundleCard(msgspec.Struct, frozen=True, kw_only=True):
    """``bundle.json``. ``no_beam_photons``: a frame with light at fewer separate places has seen no beam.

    ``reference_background_photons_per_pixel``: the background that has a relative flux of one. ``peaks``,
    ``scattering``: a bundle may lack them; without the latter parameters are the network's, else those of a fit.
    """

    format: int
    name: str
    description: str
    hit: HitCard
    parameters: ParametersCard
    peaks: PeaksCard | None = None
    scattering: ScatteringCard | None = None
    no_beam_photons: int = 5
    reference_background_photons_per_pixel: float = 0.005

    def __post_init__(self) -> None:
        """Raises ``ValueError``, naming the field and its value, for what makes no sense."""
        good = self.name.isprintable() and 0 < len(self.name) <= _LONGEST_NAME
        _sensible("name", self.name, good, f"give 1 to {_LONGEST_NAME} characters that can be printed")
        _sensible("description", self.description, self.description.isprintable(), "give one line that can be printed")
        good = 0 <= self.no_beam_photons <= _MOST_COUNTED
        _sensible("no_beam_photons", self.no_beam_photons, good, "give a count of 0 or more")
        level = self.reference_background_photons_per_pixel
        good = 0 < level < math.inf
        _sensible("reference_background_photons_per_pixel", level, good, "give a number above 0")


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A loaded bundle. ``label`` (name and hash) goes into every record.

    ``peaks`` and ``scattering`` are None where the card has none. ``files`` are its bytes by name, card first.
    """

    card: BundleCard
    label: str
    hit: nn.Module
    parameters: nn.Module
    peaks: nn.Module | None = None
    scattering: Scattering | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    def copy_on(self, device: torch.device | str) -> "Bundle":
        """The same with networks of its own on a device."""
        hit, parameters = (deepcopy(network).to(device) for network in (self.hit, self.parameters))
        peaks = None if self.peaks is None else deepcopy(self.peaks).to(device)
        return replace(self, hit=hit, parameters=parameters, peaks=peaks)


def load_bundle(folder: Path, device: torch.device | str = "cpu") -> Bundle:
    """Load and check a bundle. Raises ``BadBundle``."""
    path = folder / CARD
    try:
        raw = _bytes(path, _MOST_CARD_BYTES)
        card = msgspec.json.decode(raw, type=BundleCard)
    except OSError as error:
        raise BadBundle(f"{path}: {error.strerror or error}; a bundle is a folder with {CARD}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadBundle(f"{path}: not a bundle card: {error}") from None
    if card.format != FORMAT:
        raise BadBundle(f"{path}: format {card.format}, this program reads format {FORMAT}")
    digest = hashlib.sha256(raw).hexdigest()
    named = [each for each in (card.hit, card.parameters, card.peaks, card.scattering) if each is not None]
    files = {CARD: raw} | {each.weights: _checked(folder, each) for each in named}
    return Bundle(
        card,
        f"{card.name}-{digest[:12]}",
        _load(folder, card.hit, files, device),
        _load(folder, card.parameters, files, device),
        None if card.peaks is None else _load(folder, card.peaks, files, device),
        None if card.scattering is None else _load_scattering(folder, card.scattering, files),
        files,
    )


def _bytes(path: Path, most: int) -> bytes:
    """What a file holds. Raises ``OSError``, also for a pipe or a device, and ``BadBundle`` for one too large."""
    if path.exists() and not path.is_file():
        raise BadBundle(f"{path}: not a regular file; get the bundle again")
    if path.stat().st_size > most:
        raise BadBundle(f"{path}: {path.stat().st_size} bytes, a bundle's has at most {most}; get the bundle again")
    return path.read_bytes()


def _checked(folder: Path, card: ModelCard | ScatteringCard) -> bytes:
    """The file that a card names, if it is the one. Raises ``BadBundle``."""
    path = folder / card.weights
    plain = Path(card.weights).name == card.weights and card.weights.isprintable()
    if not plain or not card.weights.endswith(".safetensors"):
        raise BadBundle(f"{folder / CARD}: weights {card.weights!r} must be a .safetensors file in the bundle's folder")
    try:
        data = _bytes(path, _MOST_WEIGHT_BYTES)
    except OSError as error:
        raise BadBundle(f"{path}: {error.strerror or error}; the card names this file") from None
    if is_pickle(data[:9]):
        raise BadBundle(f"{path}: {PICKLE}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != card.sha256:
        raise BadBundle(f"{path}: SHA-256 {digest[:12]}…, the card says {card.sha256[:12]}…; get the bundle again")
    return data


def _tensors(data: bytes, path: Path) -> dict[str, torch.Tensor]:
    try:
        return load(data)
    except (SafetensorError, RuntimeError, TypeError, KeyError) as error:
        raise BadBundle(f"{path}: not a safetensors file: {first_line(error)}; get the bundle again") from None


def _load_scattering(folder: Path, card: ScatteringCard, files: Mapping[str, bytes]) -> Scattering:
    path = folder / card.weights
    try:
        return scattering(_tensors(files[card.weights], path))
    except ValueError as error:
        raise error if isinstance(error, BadBundle) else BadBundle(f"{path}: {error}; get the bundle again") from None


def _load(folder: Path, card: ModelCard, files: Mapping[str, bytes], device: torch.device | str) -> nn.Module:
    path = folder / card.weights
    data = files[card.weights]
    network = network_on_meta(card.network, card.settings, folder / CARD)
    state = _tensors(data, path)
    if reason := misfit(state, network.state_dict()):
        raise BadBundle(f"{path}: the weights do not fit network {card.network!r}: {reason}")
    network = fill(network, state, card.network, card.settings)
    return network.to(device).eval().requires_grad_(False)


def network_on_meta(name: str, settings: dict[str, Any], card: Path) -> nn.Module:
    """The network that a card names, without memory for its weights. Raises ``BadBundle``, naming the card's file."""
    if name not in names():
        raise BadBundle(f"{card}: network {name!r} is not known; known: {', '.join(names())}")
    try:
        return meta_network(name, settings)
    except UNBUILDABLE as error:
        raise BadBundle(f"{card}: network {name!r} cannot be built: {first_line(error)}") from None


def save_weights(network: nn.Module, path: Path) -> str:
    """Write a network's weights; returns their SHA-256 for the card."""
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def save_card(card: BundleCard, folder: Path) -> None:
    """Write the card of a bundle whose weights are in place."""
    (folder / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")
