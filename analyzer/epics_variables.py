"""Which process variables a run has: names, units, limits, and which alarms raise them. Needs no p4p."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from analyzer.alarms import CRITICAL, THRESHOLDS

Status = Mapping[str, Any]


class Severity(IntEnum):
    """Alarm severities as EPICS numbers them."""

    NONE = 0
    MINOR = 1
    """an alarm of severity warning"""
    MAJOR = 2
    """an alarm of severity critical"""
    INVALID = 3
    """the value is not known"""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A process variable with a number. ``code``: its PVAccess type. ``low`` and ``high``: of its display.

    ``value`` reads it from the status, ``None`` where it is not known. ``alarms``: what begins with one of these names
    raises it. ``high_warning``: the limit that clients show; severities come from ``alarms`` alone.
    """

    name: str
    code: str
    units: str
    text: str
    value: Callable[[Status], float | None]
    precision: int = 0
    low: float = 0.0
    high: float = 0.0
    alarms: tuple[str, ...] = ()
    high_warning: float | None = None


def _at(status: Status, *path: str) -> Any:
    found: Any = status
    for key in path:
        if found is None:
            return None
        found = found.get(key) if isinstance(found, Mapping) else getattr(found, key, None)
    return found


def _read(*path: str, scale: float = 1.0) -> Callable[[Status], float | None]:
    def read(status: Status) -> float | None:
        found = _at(status, *path)
        return None if found is None else float(found) * scale

    return read


def _sum(*path: str) -> Callable[[Status], float | None]:
    return lambda status: float(sum((_at(status, *path) or {}).values()))


_OF_HITS = ("CxlsHitRatio", "CxlsNoBeam", "CxlsModelDrift")
_OF_ENERGY = ("CxlsHeaderDisagrees photon_energy", "CxlsHeaderDisagrees camera_length_or_photon_energy")
_OF_LENGTH = ("CxlsHeaderDisagrees camera_length",)
QUANTITIES = (
    Quantity("HitRate100", "d", "%", "hits among the last 100 images with beam", _read("hit_ratio", "100", scale=100.0),
             1, 0, 100, _OF_HITS),
    Quantity("HitRate1000", "d", "%", "hits among the last 1000 images with beam",
             _read("hit_ratio", "1000", scale=100.0), 1, 0, 100, _OF_HITS, 100.0 * THRESHOLDS.stuck_hit_ratio),
    Quantity("FrameRate", "d", "Hz", "images received, mean of 10 s", _read("rates", "frames_hz"), 1, 0, 2000,
             ("CxlsNoFramesWhileArmed", "CxlsNotConnected")),
    Quantity("Received", "l", "images", "images received since the start", _read("account", "received"),
             alarms=("CxlsFrameGaps", "CxlsUndecodable", "CxlsInvalidMessages")),
    Quantity("Processed", "l", "images", "images analysed since the start", _sum("account", "processed"),
             alarms=("CxlsResultsLost", "CxlsDeviceFault")),
    Quantity("Dropped", "l", "images", "images not analysed since the start", _sum("account", "dropped"),
             alarms=("CxlsFramesDropped",)),
    Quantity("SeriesId", "l", "", "id of the latest series", _read("series_id")),
    Quantity("PhotonEnergy", "d", "eV", "photon energy of the run, from the data",
             _read("estimate", "photon_energy_eV"), 1, 1000, 100_000, _OF_ENERGY),
    Quantity("PhotonEnergySigma", "d", "eV", "standard deviation of PhotonEnergy",
             _read("estimate", "photon_energy_sigma_eV"), 1),
    Quantity("CameraLength", "d", "m", "camera length of the run, from the data", _read("estimate", "camera_length_m"),
             5, 0, 10, _OF_LENGTH),
    Quantity("CameraLengthSigma", "d", "m", "standard deviation of CameraLength",
             _read("estimate", "camera_length_sigma_m"), 5),
    Quantity("Latency", "d", "s", "99 % of results come within this after their image, last 10 s",
             _read("rates", "latency_p99_s"), 4, 0, 10, ("CxlsLatencyOverDeadline",), THRESHOLDS.latency_p99_s),
    Quantity("Queue", "l", "images", "images that wait for analysis", _read("queue_frames"),
             alarms=("CxlsQueueFilling",)),
    Quantity("Peaks", "l", "peaks", "Bragg peaks of the latest image", _read("last", "peak_count")),
)  # fmt: skip


def gravest(alarms: Sequence[Mapping[str, Any]]) -> tuple[Severity, str]:
    """The severity and text of the gravest, none and nothing without one."""
    if not alarms:
        return Severity.NONE, ""
    worst = next((each for each in alarms if each["severity"] == CRITICAL), alarms[0])
    return Severity.MAJOR if worst["severity"] == CRITICAL else Severity.MINOR, str(worst["text"])
