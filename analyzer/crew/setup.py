"""How frames are judged, as a message: the bundle's files, the mask, the geometry, the finder, the rules.

A worker needs nothing on its own disk: what it is sent is checked against the bundle's hashes as if it came from there.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from analyzer.bundle import load_bundle
from analyzer.cascade import CascadeSettings
from analyzer.crew.wire import BadMessage, Kind, header_of, message, pack_flags, read_flags
from analyzer.judge import Judge
from analyzer.panels import GivenGeometry
from analyzer.peak_finder import BUILT_IN, LEARNED, FinderKind, Peakfinder8Finder
from analyzer.peakfinder8 import Peakfinder8Settings
from analyzer.results import HitRule
from streamer.geometry_file import DetectorGeometry
from streamer.validity import Validity

_MOST_FILES = 16
_MOST_BYTES = 1 << 30


class CannotShare(ValueError):
    """What frames are judged with cannot be handed to workers: one line."""


class _Mask(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, int]


class _Geometry(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, int]
    mask: _Mask | None
    detector: DetectorGeometry


class _Finder(msgspec.Struct, frozen=True):
    name: str
    settings: Peakfinder8Settings | None = None


class _Setup(msgspec.Struct, frozen=True):
    """``files``: names of the bundle's files, whose bytes are parts; then the mask's bits and the geometry's."""

    number: int
    label: str
    files: list[str]
    hit_rule: HitRule
    min_peaks: int
    indexable_peaks: int
    threshold: float
    tags: tuple[str, ...]
    finder: _Finder
    shadow: _Finder | None
    mask: _Mask | None
    geometry: _Geometry | None


def pack_setup(number: int, judge: Judge) -> list[Any]:
    """The message. Raises ``CannotShare``."""
    settings = judge.settings
    if settings.models:
        raise CannotShare("single models (--model) are asked in the analysis' own process only; leave them out")
    names, parts = list(judge.bundle.files), list(judge.bundle.files.values())
    mask, geometry = settings.mask, settings.geometry
    masks = (mask, None if geometry is None else geometry.mask)
    parts += [pack_flags(each.valid) for each in masks if each is not None]
    setup = _Setup(
        number,
        judge.bundle.label,
        names,
        settings.hit_rule,
        settings.min_peaks,
        settings.indexable_peaks,
        judge.threshold,
        settings.tags,
        _finder_facts(settings.finder),
        None if settings.shadow is None else _finder_facts(settings.shadow),
        _mask_facts(mask),
        None
        if geometry is None
        else _Geometry(geometry.name, geometry.shape, _mask_facts(geometry.mask), geometry.detector),
    )
    return message(Kind.SETUP, setup, parts)


def read_setup(parts: Sequence[Any]) -> tuple[int, Judge]:
    """Its number and the judge. Raises ``BadMessage``, ``BadBundle``."""
    setup = header_of(parts, _Setup)
    rest = list(parts[2:])
    if not 0 < len(setup.files) <= _MOST_FILES or sum(map(len, rest)) > _MOST_BYTES:
        raise BadMessage("a setup of too many files, or of too large ones")
    with tempfile.TemporaryDirectory(prefix="cxls-worker-") as name:
        for file in setup.files:
            if not file or Path(file).name != file or not rest:
                raise BadMessage(f"a bundle's file named {file!r}")
            (Path(name) / file).write_bytes(rest.pop(0))
        bundle = load_bundle(Path(name))
    if bundle.label != setup.label:
        raise BadMessage(f"bundle {bundle.label} came for {setup.label}")
    mask = _read_mask(setup.mask, rest)
    given = setup.geometry
    geometry = None
    if given is not None:
        geometry = GivenGeometry(given.name, given.shape, _read_mask(given.mask, rest), given.detector)
    cascade = CascadeSettings(
        hit_rule=setup.hit_rule,
        min_peaks=setup.min_peaks,
        indexable_peaks=setup.indexable_peaks,
        threshold=setup.threshold,
        mask=mask,
        geometry=geometry,
        tags=setup.tags,
        finder=_read_finder(setup.finder),
        shadow=None if setup.shadow is None else _read_finder(setup.shadow),
    )
    return setup.number, Judge(bundle, cascade)


def _mask_facts(mask: Validity | None) -> _Mask | None:
    return None if mask is None else _Mask(mask.name, (mask.valid.shape[0], mask.valid.shape[1]))


def _read_mask(facts: _Mask | None, rest: list[Any]) -> Validity | None:
    if facts is None:
        return None
    if not rest:
        raise BadMessage(f"mask {facts.name} without its bits")
    return Validity(facts.name, read_flags(rest.pop(0), facts.shape))


def _finder_facts(finder: FinderKind) -> _Finder:
    if isinstance(finder, Peakfinder8Finder):
        return _Finder(finder.name, finder.settings)
    return _Finder(finder.name)


def _read_finder(facts: _Finder) -> FinderKind:
    if facts.settings is not None:
        return Peakfinder8Finder(facts.settings)
    for known in (BUILT_IN, LEARNED):
        if known.name == facts.name:
            return known
    raise BadMessage(f"peak finder {facts.name!r} is not known here")
