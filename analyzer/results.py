"""The result record: what is published of a frame, on the disk and on the wire.

Field names and meaning are a contract with users; see ``docs/records.md``.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec


class Status(StrEnum):
    """What became of an accepted image."""

    OK = "ok"
    UNDECODABLE = "undecodable"
    DROPPED = "dropped"
    SKIPPED = "skipped"


class Decision(StrEnum):
    """What an analysed frame shows."""

    HIT = "hit"
    MISS = "miss"
    NO_BEAM = "no_beam"


class HitRule(StrEnum):
    """What makes a hit."""

    NETWORK = "network"
    """hit_probability at or above the bundle's threshold"""
    PEAKS = "peaks"
    """at least --min-peaks peaks"""
    EITHER = "either"
    """network or peaks"""
    BOTH = "both"
    """network and peaks"""


@dataclass(frozen=True, slots=True)
class Peak:
    """One Bragg peak: centroid as pixel indices (0 is the middle of the first pixel).

    q = 2 pi / d; both are ``None`` where the geometry has no camera length or no photon energy.
    """

    fs: float
    ss: float
    intensity_photons: float
    snr: float
    saturated: bool
    q_per_angstrom: float | None = None
    resolution_angstrom: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameResult:
    """One accepted image. Everything from ``decision`` on is ``None`` unless ``status`` is ok.

    ``status_text`` says why where it is not. ``attributes`` has what single models say, by
    attribute, ``None`` without models. ``ordinal`` (which series of this run), ``reason`` (a
    bounded label) and ``nulls`` (attributes that are null: a bounded label and a sentence, by
    attribute) are for the program, not for the record.
    """

    series_id: int
    image_id: int
    channel: str
    start_time: float | None
    exposure_s: float | None
    received_at: float
    latency_s: float | None = None
    tags: dict[str, Any] | None = None
    status_text: str | None = None
    status: Status = Status.OK
    decision: Decision | None = None
    hit: bool | None = None
    hit_probability: float | None = None
    hit_rule: HitRule | None = None
    indexable: bool | None = None
    peak_count: int | None = None
    peaks: list[Peak] | None = None
    resolution_angstrom: float | None = None
    saturated_pixels: int | None = None
    background_photons: float | None = None
    relative_flux: float | None = None
    photon_energy_eV: float | None = None
    photon_energy_sigma_eV: float | None = None
    camera_length_m: float | None = None
    camera_length_sigma_m: float | None = None
    camera_length_over_energy_m_per_eV: float | None = None
    camera_length_over_energy_sigma_m_per_eV: float | None = None
    estimate_reason: str | None = None
    attributes: dict[str, Any] | None = None
    bundle: str | None = None
    mask: str | None = None
    ordinal: int = 0
    reason: str | None = None
    nulls: dict[str, tuple[str, str]] | None = None


_PRIVATE = ("ordinal", "reason", "nulls")
RECORD_FIELDS = tuple(name for name in FrameResult.__dataclass_fields__ if name not in _PRIVATE)
_encode = msgspec.json.Encoder().encode


def record(result: FrameResult) -> dict[str, Any]:
    """The record's fields as plain values, in order."""
    return {name: getattr(result, name) for name in RECORD_FIELDS}


def to_json_line(result: FrameResult) -> bytes:
    """The record as one line of JSON, newline included."""
    return _encode(record(result)) + b"\n"
