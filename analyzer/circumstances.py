"""What a blank run was measured with, and what another run does otherwise.

A rate of false hits holds for the peaks, the channel, the mask and the geometry that it was measured with.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict

import msgspec
import numpy as np

from analyzer.logs import event
from analyzer.peak_finder import FinderKind, Peakfinder8Finder
from streamer.frames import DIFFERENCE
from streamer.messages import SeriesMetadata
from streamer.validity import Validity

log = logging.getLogger(__name__)

NO_MASK = "none"
_CENTRE_PX, _SHARE = 2.0, 0.01
"""A beam centre further off, and an energy or distance that differs by more than this share, are others."""


class Circumstances(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Finder with its own numbers, channel (``None``: the first threshold, named or not), geometry of the header where
    it has one.

    ``masks``: digests of extra masks under which the run's scores hold, ``NO_MASK`` for none.
    """

    finder: str
    finder_numbers: dict[str, int | float | None] = {}
    channel: str | None = None
    masks: list[str]
    beam_center_px: tuple[float, float] | None = None
    camera_length_m: float | None = None
    photon_energy_eV: float | None = None


def circumstances(
    finder: FinderKind, channel: str | None, masks: Sequence[Validity | None], metadata: SeriesMetadata | None
) -> Circumstances:
    """Those of a run; ``metadata`` is of its series, ``None`` before there is one."""
    numbers = asdict(finder.settings) if isinstance(finder, Peakfinder8Finder) else {}
    names = () if metadata is None else metadata.channels
    first = next((name for name in names if name != DIFFERENCE), "threshold_1")
    centre = None
    if metadata is not None and metadata.beam_center_x_px is not None and metadata.beam_center_y_px is not None:
        centre = (metadata.beam_center_x_px, metadata.beam_center_y_px)
    return Circumstances(
        finder=finder.name,
        finder_numbers={
            name: value
            for name, value in numbers.items()
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        },
        channel=None if channel == first else channel,
        masks=list(dict.fromkeys(digest(mask) for mask in masks)),
        beam_center_px=centre,
        camera_length_m=None if metadata is None else metadata.camera_length_m,
        photon_energy_eV=None if metadata is None else metadata.photon_energy_eV,
    )


def digest(mask: Validity | None) -> str:
    """What tells masks apart, whatever their names."""
    if mask is None or bool(np.all(mask.valid)):
        return NO_MASK
    bits = np.packbits(mask.valid != 0).tobytes()
    return hashlib.sha256(f"{mask.valid.shape}".encode() + bits).hexdigest()[:16]


def differences(blank: Circumstances, run: Circumstances, by_peaks: bool) -> tuple[str, ...]:
    """What a run does otherwise than the blank run did, a phrase each; ``by_peaks``: hits are called by peaks too."""
    found = []
    if by_peaks and run.finder != blank.finder:
        found.append(f"peak finder {run.finder}, then {blank.finder}")
    elif by_peaks and run.finder_numbers != blank.finder_numbers:
        names = [name for name, value in run.finder_numbers.items() if blank.finder_numbers.get(name) != value]
        found.append(f"{', '.join(names) or 'numbers'} of {run.finder}")
    if run.channel != blank.channel:
        first = "the first threshold"
        found.append(f"channel {_text(run.channel or first)}, then {_text(blank.channel or first)}")
    if not set(run.masks) & set(blank.masks):
        found.append("no extra mask, then one" if NO_MASK in run.masks else "another extra mask")
    if run.beam_center_px is not None and blank.beam_center_px is not None:
        off = max(abs(a - b) for a, b in zip(run.beam_center_px, blank.beam_center_px, strict=True))
        if not off <= _CENTRE_PX:
            found.append(f"a beam centre {off:.3g} pixels off")
    for name, unit, now, then in (
        ("camera length", "m", run.camera_length_m, blank.camera_length_m),
        ("photon energy", "eV", run.photon_energy_eV, blank.photon_energy_eV),
    ):
        if now is not None and then is not None and not abs(now - then) <= _SHARE * abs(then):
            found.append(f"{name} {now:g} {unit}, then {then:g} {unit}")
    return tuple(found)


def warn_of(found: Sequence[str]) -> None:
    """Say in one line that the calibration is of something else."""
    if found:
        log.warning(
            "the calibration was measured otherwise (%s): its rate of false hits is widened; calibrate again",
            "; ".join(found),
            extra=event("calibration_elsewhere", differences=list(found)),
        )


def _text(name: str) -> str:
    return name if name.isprintable() else ascii(name)
