"""What the SIMPLON interface of a replayed Eiger names: configuration keys, status and commands.

The keys' values come from the recorded series; a key that would change its pixels is fixed.
"""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from sim_replay.recordings import Recording
from streamer import stream_v1
from streamer.files import CHANNEL
from streamer.messages import HC_EV_ANGSTROM, SeriesMetadata

API_VERSION = "1.8.0"
MAX_IMAGES = 10**9


class Refused(Exception):
    """A request that is not served: an HTTP status and one sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Key:
    """A configuration key: its type, whether it may be written, and what it may be."""

    value_type: str
    unit: str = ""
    writable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[Any, ...] = ()

    def check(self, name: str, value: Any) -> Any:
        """``value`` in the key's type. Raises ``Refused`` (400)."""
        checked = self._typed(value)
        if checked is None:
            raise Refused(400, f"{name} takes a {self.value_type}, not {short(value)}")
        if self.allowed and checked not in self.allowed:
            raise Refused(400, f"{name} cannot be {short(value)}; allowed here: {', '.join(map(str, self.allowed))}")
        too_small = self.minimum is not None and checked < self.minimum
        if too_small or (self.maximum is not None and checked > self.maximum):
            bounds = f"{self.minimum} and {self.maximum} {self.unit}".rstrip()
            raise Refused(400, f"{name} {short(value)} is not between {bounds}")
        return checked

    def _typed(self, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if self.value_type == "any":
            return "" if value is None else value
        if self.value_type == "bool":
            # Old clients write 0 and 1.
            return bool(value) if isinstance(value, bool) or (number and value in (0, 1)) else None
        if self.value_type == "string":
            return value if isinstance(value, str) else None
        if self.value_type == "float":
            return float(value) if number else None
        return int(value) if number and value == int(value) else None

    def described(self, value: Any) -> dict[str, Any]:
        """The reply to a GET."""
        reply: dict[str, Any] = {
            "value": value,
            "value_type": "string" if self.value_type == "any" else self.value_type,
            "access_mode": "rw" if self.writable else "r",
        }
        for name, entry in (("min", self.minimum), ("max", self.maximum)):
            if entry is not None:
                reply[name] = entry
        if self.unit:
            reply["unit"] = self.unit
        if self.allowed:
            reply["allowed_values"] = list(self.allowed)
        return reply


def _count(writable: bool = False, maximum: float | None = None) -> Key:
    return Key("uint", writable=writable, minimum=1 if writable else None, maximum=maximum)


def _quantity(unit: str, low: float | None = None, high: float | None = None, writable: bool = True) -> Key:
    return Key("float", unit, writable, low, high)


def _fixed(value: Any, value_type: str = "string") -> Key:
    """Writable only with the value it has: another would change the pixels."""
    return Key(value_type, writable=True, allowed=(value,))


_ANGLES = ("chi", "kappa", "omega", "phi", "two_theta")
DETECTOR_KEYS: dict[str, Key] = {
    "auto_summation": Key("bool", writable=True),
    "beam_center_x": _quantity("pixel"),
    "beam_center_y": _quantity("pixel"),
    "bit_depth_image": _count(),
    "bit_depth_readout": _count(),
    "compression": Key("string", writable=True),
    "count_time": _quantity("s", 1e-7, 1e5),
    "countrate_correction_applied": _fixed(False, "bool"),
    "countrate_correction_count_cutoff": _count(),
    "data_collection_date": Key("string"),
    "description": Key("string"),
    "detector_distance": _quantity("m", 0.0, 1e3),
    "detector_number": Key("string"),
    "detector_readout_time": _quantity("s", writable=False),
    "eiger_fw_version": Key("string"),
    "flatfield_correction_applied": _fixed(False, "bool"),
    "frame_time": _quantity("s", 1e-7, 1e5),
    "incident_energy": _quantity("eV", 1.0, 1e6),
    "mask_to_zero": _fixed(False, "bool"),
    "nimages": _count(True, MAX_IMAGES),
    "ntrigger": _count(True, MAX_IMAGES),
    "number_of_excluded_pixels": _count(),
    "photon_energy": _quantity("eV", 1.0, 1e6),
    "pixel_mask_applied": _fixed(True, "bool"),
    "roi_mode": _fixed("disabled"),
    "sensor_material": Key("string"),
    "sensor_thickness": _quantity("m", writable=False),
    "software_version": Key("string"),
    "threshold/1/energy": _quantity("eV", 1.0, 1e6),
    "threshold/1/mode": _fixed("enabled"),
    "threshold/2/energy": _quantity("eV", 1.0, 1e6),
    "threshold/2/mode": _fixed("disabled"),
    "threshold/difference/mode": _fixed("disabled"),
    "threshold_energy": _quantity("eV", 1.0, 1e6),
    "trigger_mode": Key("string", writable=True, allowed=("ints", "inte", "exts", "exte")),
    "virtual_pixel_correction_applied": _fixed(False, "bool"),
    "wavelength": _quantity("angstrom", 1e-2, 1e4),
    "x_pixel_size": _quantity("m", writable=False),
    "x_pixels_in_detector": _count(),
    "y_pixel_size": _quantity("m", writable=False),
    "y_pixels_in_detector": _count(),
} | {f"{axis}_{part}": _quantity("degree") for axis in _ANGLES for part in ("increment", "start")}
_NOT_IN_HEADER = (
    "bit_depth_readout", "data_collection_date", "detector_readout_time", "eiger_fw_version", "incident_energy",
    "mask_to_zero",
)  # fmt: skip
ARRAY_KEYS = ("flatfield", "pixel_mask", "threshold/1/flatfield", "threshold/1/pixel_mask")

STREAM_KEYS: dict[str, Key] = {
    "format": Key("string", writable=True, allowed=("legacy", "cbor")),
    "header_appendix": Key("any", writable=True),
    "header_detail": Key("string", writable=True, allowed=("none", "basic", "all")),
    "image_appendix": Key("any", writable=True),
    "mode": Key("string", writable=True, allowed=("enabled", "disabled")),
}
COMMANDS = {
    "detector": ("abort", "arm", "cancel", "disarm", "initialize", "trigger"),
    "stream": ("initialize",),
}
STATUS = {
    "detector": {
        "state": "string", "error": "string[]", "time": "string", "temperature": "float", "humidity": "float",
        "high_voltage/state": "string",
    },
    "stream": {"state": "string", "dropped": "uint", "error": "string[]"},
}  # fmt: skip


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def detector_key(name: str, values: Mapping[str, Any]) -> Key:
    key = DETECTOR_KEYS[name]
    # The packing is the file's: it may be written only as what it is.
    return replace(key, allowed=(values["compression"],)) if name == "compression" else key


def file_values(recording: Recording) -> dict[str, Any]:
    """The detector configuration as the recorded series has it."""
    meta = recording.metadata.with_changes(number_of_images=len(recording))
    values: dict[str, Any] = msgspec.json.decode(stream_v1.encode_start(0, meta)[1])
    mask = meta.masks.get(CHANNEL)
    # The replay sends no v1 metadata that a file lacks, but a key of the interface needs a value.
    frame_time = values["frame_time"] or 0.001
    values |= {
        "bit_depth_readout": values["bit_depth_image"],
        "compression": recording.packing(),
        "count_time": values["count_time"] or frame_time,
        "detector_readout_time": 0.0,
        "eiger_fw_version": API_VERSION,
        "frame_time": frame_time,
        "incident_energy": values["photon_energy"],
        "mask_to_zero": False,
        "number_of_excluded_pixels": 0 if mask is None else int(np.count_nonzero(mask)),
        "threshold/1/energy": values["threshold_energy"],
        "threshold/1/mode": "enabled",
        "threshold/2/energy": values["photon_energy"],
        "threshold/2/mode": "disabled",
        "threshold/difference/mode": "disabled",
    }
    return {name: values[name] for name in DETECTOR_KEYS}


def with_dependents(name: str, value: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What else a written key changes, as on the detector."""
    written = {name: value}
    if name in ("photon_energy", "incident_energy", "wavelength"):
        energy = HC_EV_ANGSTROM / value if name == "wavelength" else value
        written |= {"photon_energy": energy, "incident_energy": energy, "wavelength": HC_EV_ANGSTROM / energy}
        written |= {"threshold_energy": energy / 2, "threshold/1/energy": energy / 2}
    elif name in ("threshold_energy", "threshold/1/energy"):
        written |= {"threshold_energy": value, "threshold/1/energy": value}
    elif name == "count_time" and value > values["frame_time"]:
        written["frame_time"] = value
    elif name == "frame_time" and value < values["count_time"]:
        written["count_time"] = value
    return {key: entry for key, entry in written.items() if key == name or values[key] != entry}


def header_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a v1 header says of the configuration; its date is that of the arm, not the file's."""
    return {name: value for name, value in values.items() if "/" not in name and name not in _NOT_IN_HEADER}


def armed_metadata(recording: Recording, values: Mapping[str, Any]) -> SeriesMetadata:
    """The header of a series armed with this configuration."""
    meta = stream_v1.metadata_from_config(values)
    of_file = ("shape", "dtype", "channels", "masks", "flatfields", "countrate_table")
    return meta.with_changes(**{name: getattr(recording.metadata, name) for name in of_file})


def array_reply(meta: SeriesMetadata, name: str) -> dict[str, Any]:
    """A 2-D key as a darray: little-endian, rows first, ``shape`` as [width, height]."""
    shape = meta.shape or (0, 0)
    if name.endswith("pixel_mask"):
        array = np.asarray(meta.masks.get(CHANNEL, np.zeros(shape)), "<u4")
    else:
        array = np.asarray(meta.flatfields.get(CHANNEL, np.ones(shape)), "<f4")
    darray = {
        "__darray__": [1, 0, 0],
        "type": array.dtype.str,
        "shape": [array.shape[1], array.shape[0]],
        "filters": ["base64"],
        "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii"),
    }
    return {"value": darray, "value_type": "darray", "access_mode": "r"}
