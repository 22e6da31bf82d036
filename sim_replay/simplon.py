"""The SIMPLON REST interface of a replayed Eiger: a subset of API 1.8.0.

``Simplon`` is the detector's control unit as a state machine that knows no HTTP; ``SimplonServer``
puts it on a port. Commands block as the real ones do (``trigger`` until its images are sent), so
``abort``, ``cancel`` and ``disarm`` come in on another request and end them.

Differences from the real one: the pixels are those of the file whatever is configured, so keys
that would change them are fixed; both stream formats leave by the same socket; the detector is
``idle``, not ``na``, from the beginning; each arm plays the next file, after the last the first.
"""

import base64
import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

import msgspec
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sim_replay.replay import Pace, Progress, Recording, Replay, RunningSeries, StreamStyle
from streamer import stream_v1
from streamer.files import CHANNEL, BadInput
from streamer.messages import HC_EV_ANGSTROM, SeriesMetadata

API_VERSION = "1.8.0"
MAX_BODY_BYTES = 1 << 20
MAX_IMAGES = 10**9

_STARTED_LIMIT_S = 10.0
_SETTLE_LIMIT_S = 10.0


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
            raise Refused(400, f"{name} takes a {self.value_type}, not {_short(value)}")
        if self.allowed and checked not in self.allowed:
            raise Refused(400, f"{name} cannot be {_short(value)}; allowed here: {', '.join(map(str, self.allowed))}")
        too_small = self.minimum is not None and checked < self.minimum
        if too_small or (self.maximum is not None and checked > self.maximum):
            bounds = f"{self.minimum} and {self.maximum} {self.unit}".rstrip()
            raise Refused(400, f"{name} {_short(value)} is not between {bounds}")
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
_DETECTOR_KEYS: dict[str, Key] = {
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
_ARRAY_KEYS = ("flatfield", "pixel_mask", "threshold/1/flatfield", "threshold/1/pixel_mask")

_STREAM_KEYS: dict[str, Key] = {
    "format": Key("string", writable=True, allowed=("legacy", "cbor")),
    "header_appendix": Key("any", writable=True),
    "header_detail": Key("string", writable=True, allowed=("none", "basic", "all")),
    "image_appendix": Key("any", writable=True),
    "mode": Key("string", writable=True, allowed=("enabled", "disabled")),
}
_COMMANDS = {
    "detector": ("abort", "arm", "cancel", "disarm", "initialize", "trigger"),
    "stream": ("initialize",),
}
_STATUS = {
    "detector": {
        "state": "string", "error": "string[]", "time": "string", "temperature": "float", "humidity": "float",
        "high_voltage/state": "string",
    },
    "stream": {"state": "string", "dropped": "uint", "error": "string[]"},
}  # fmt: skip


class Simplon:
    """The control unit: configuration, commands and status, safe from several threads.

    Raises ``Refused`` with the HTTP status that says why a request is not served.
    """

    def __init__(self, replay: Replay, progress: Progress | None = None) -> None:
        self._replay = replay
        self._progress = progress
        # Guards all below; held only for moments, never while images or control messages are sent.
        self._changed = threading.Condition()
        self._file_values: dict[int, dict[str, Any]] = {}
        self._written: dict[str, Any] = {}
        self._stream = self._stream_defaults()
        self._running: RunningSeries | None = None
        self._busy = False
        self._triggers_left = 0
        self._sequence_id = 0
        self._arms = 0
        self._dropped_before = 0
        self._errors: list[str] = []
        self._closed = False
        self._external: threading.Thread | None = None

    # --- configuration ----------------------------------------------------------------

    def _stream_defaults(self) -> dict[str, Any]:
        settings = self._replay.settings
        return {
            "format": "legacy" if settings.protocol == "v1" else "cbor",
            "header_appendix": settings.header_appendix or "",
            "header_detail": settings.header_detail,
            "image_appendix": settings.image_appendix or "",
            "mode": "disabled",
        }

    def _number(self) -> int:
        """Which recording is played, or which one the next arm plays."""
        arms = self._arms if self._running is None else self._arms - 1
        return arms % len(self._replay.recordings)

    def _recording(self) -> Recording:
        return self._replay.recordings[self._number()]

    def _detector_values(self) -> dict[str, Any]:
        number = self._number()
        if number not in self._file_values:
            # Once a file, before it plays: the thread that plays has the file for itself.
            self._file_values[number] = _file_values(self._replay.recordings[number])
        return self._file_values[number] | self._written

    def get_config(self, module: str, name: str) -> Any:
        """The reply to GET config/``name``."""
        with self._changed:
            if module == "stream":
                if name == "keys":
                    return sorted(_STREAM_KEYS)
                if name in _STREAM_KEYS:
                    return _STREAM_KEYS[name].described(self._stream[name])
            else:
                if name == "keys":
                    return sorted((*_DETECTOR_KEYS, *_ARRAY_KEYS))
                if name in _ARRAY_KEYS:
                    return _array(self._recording().metadata, name)
                if name in _DETECTOR_KEYS:
                    values = self._detector_values()
                    return _key(name, values).described(values[name])
        raise Refused(404, f"{module} has no configuration key {name!r}; GET config/keys lists them")

    def put_config(self, module: str, changes: Mapping[str, Any]) -> list[str]:
        """Write keys, all or none; returns the keys that changed with them."""
        with self._changed:
            keys = _STREAM_KEYS if module == "stream" else _DETECTOR_KEYS
            for name in changes:
                if name in _ARRAY_KEYS and module == "detector":
                    raise Refused(403, f"{name} is read-only here: it comes with the recorded series")
                if name not in keys:
                    raise Refused(404, f"{module} has no configuration key {name!r}; GET config/keys lists them")
                if not keys[name].writable:
                    raise Refused(403, f"{name} is read-only")
            if self._running is not None:
                raise Refused(
                    409, f"series {self._running.series_id} is armed; disarm it before writing the configuration"
                )
            if module == "stream":
                checked = {name: keys[name].check(name, value) for name, value in changes.items()}
                self._stream |= checked
                return sorted(checked)
            values = self._detector_values()
            written: dict[str, Any] = {}
            for name, value in changes.items():
                checked_value = _key(name, values).check(name, value)
                written |= _with_dependents(name, checked_value, values | written)
            self._written |= written
            return sorted(written)

    # --- status -----------------------------------------------------------------------

    def get_status(self, module: str, name: str) -> Any:
        """The reply to GET status/``name``."""
        kinds = _STATUS[module]
        if name == "keys":
            return sorted(kinds)
        if name not in kinds:
            raise Refused(404, f"{module} has no status {name!r}; GET status/keys lists them")
        with self._changed:
            value: Any
            if name == "state":
                value = self._stream_state() if module == "stream" else self._detector_state()
            elif name == "dropped":
                value = self._replay.dropped - self._dropped_before
            elif name == "error":
                value = list(self._errors)
            elif name == "time":
                value = datetime.now().astimezone().isoformat(timespec="milliseconds")
            else:
                value = {"temperature": 22.0, "humidity": 2.0, "high_voltage/state": "READY"}[name]
        return {"value": value, "value_type": kinds[name], "access_mode": "r"}

    def _detector_state(self) -> str:
        if self._running is None:
            return "idle"
        return "acquire" if self._busy else "ready"

    def _stream_state(self) -> str:
        if self._stream["mode"] == "disabled":
            return "disabled"
        return "ready" if self._running is None else "acquire"

    # --- commands ---------------------------------------------------------------------

    def command(self, module: str, name: str, argument: Any = None) -> dict[str, Any]:
        """Run a command to its end. ``argument`` is the count time in seconds of an ``inte`` trigger."""
        if name not in _COMMANDS[module]:
            raise Refused(404, f"{module} has no command {name!r}; known: {', '.join(_COMMANDS[module])}")
        if module == "stream":
            return self._initialize_stream()
        if name == "arm":
            return self._arm()
        if name == "trigger":
            return self._trigger(argument)
        if name == "initialize":
            return self._initialize()
        return self._stop_series()

    def _initialize_stream(self) -> dict[str, Any]:
        with self._changed:
            if self._running is not None:
                raise Refused(409, f"series {self._running.series_id} is armed; disarm before initialising the stream")
            self._stream = self._stream_defaults()
        return {}

    def _initialize(self) -> dict[str, Any]:
        self._stop_series()
        with self._changed:
            self._written = {}
            self._errors = []
            self._replay.reset_clock()
        return {}

    def _arm(self) -> dict[str, Any]:
        with self._changed:
            if self._closed:
                raise Refused(409, "the replay is ending")
            if self._running is not None:
                raise Refused(409, f"series {self._running.series_id} is armed already; disarm it first")
            recording = self._recording()
            values = self._detector_values()
            style = self._style(values)
            if style.enabled:
                try:
                    recording.check_carried(style.protocol)
                except BadInput as error:
                    raise Refused(400, str(error)) from None
            running = self._replay.prepare(recording, _metadata(recording, values), style, threading.Event())
            self._running = running
            self._busy = True
            self._sequence_id = running.series_id
            self._triggers_left = values["ntrigger"]
            self._dropped_before = self._replay.dropped
            self._errors = []
            self._arms += 1
        started = False
        try:
            started = self._replay.start(running)
        finally:
            with self._changed:
                self._busy = False
                if not started:
                    self._running = None
                self._changed.notify_all()
        if not started:
            raise Refused(409, f"series {running.series_id} was ended before a consumer took its start")
        if values["trigger_mode"] in ("exts", "exte"):
            # Nobody pulses the trigger input of a replay: the pulses come at once, at its rate.
            images = running.metadata.number_of_images or 0
            self._external = threading.Thread(
                target=self._acquire_external, args=(running, images), name="simplon-external", daemon=True
            )
            self._external.start()
        return {"sequence id": running.series_id}

    def _style(self, values: Mapping[str, Any]) -> StreamStyle:
        stream = self._stream
        return StreamStyle(
            protocol="v1" if stream["format"] == "legacy" else "v2",
            header_detail=stream["header_detail"],
            # An empty appendix is no appendix.
            header_appendix=None if stream["header_appendix"] == "" else stream["header_appendix"],
            image_appendix=None if stream["image_appendix"] == "" else stream["image_appendix"],
            enabled=stream["mode"] == "enabled",
            # The date of collection is that of the arm, not the file's.
            config={key: value for key, value in values.items() if key != "data_collection_date"},
        )

    def _trigger(self, argument: Any) -> dict[str, Any]:
        with self._changed:
            running = self._running
            if running is None:
                raise Refused(409, "the detector is not armed; arm it before a trigger")
            mode = running.style.config["trigger_mode"]
            if mode in ("exts", "exte"):
                raise Refused(409, f"trigger mode {mode} takes no trigger command")
            if self._busy:
                raise Refused(409, "the trigger before is not done; wait for it, or cancel")
            if argument is not None and mode == "inte":
                count_time = _DETECTOR_KEYS["count_time"].check("the count time of a trigger", argument)
                running.metadata = running.metadata.with_changes(count_time_s=count_time)
            self._busy = True
            self._triggers_left -= 1
        self._acquire(running, 1 if mode == "inte" else running.style.config["nimages"])
        return {"sequence id": running.series_id}

    def _acquire_external(self, running: RunningSeries, images: int) -> None:
        with self._changed:
            if self._running is not running or running.cancel.is_set():
                return
            self._busy = True
            self._triggers_left = 0
        # A failure's sentence is in status/error.
        with contextlib.suppress(Refused):
            self._acquire(running, images)

    def _acquire(self, running: RunningSeries, images: int) -> None:
        """Send the images of a trigger; after the last trigger, or a failure, end the series."""
        failure: BadInput | None = None
        try:
            self._replay.play_images(running, images, Pace(self._replay.settings.rate_hz), self._progress)
        except BadInput as error:
            failure = error
        with self._changed:
            if failure is not None:
                self._errors.append(str(failure))
            ended = (self._triggers_left <= 0 or failure is not None) and not running.cancel.is_set()
            if not ended:
                self._busy = False
                self._changed.notify_all()
        if ended:
            self._finish(running)
        if failure is not None:
            raise Refused(500, str(failure))

    def _finish(self, running: RunningSeries) -> None:
        """Send the end and be idle."""
        try:
            self._replay.end(running, patient=not self._closed)
        finally:
            with self._changed:
                if self._running is running:
                    self._running = None
                self._busy = False
                self._changed.notify_all()

    def _stop_series(self) -> dict[str, Any]:
        """Disarm, cancel and abort: no image after the present one, then the end."""
        with self._changed:
            running = self._running
            if running is None:
                return {"sequence id": self._sequence_id}
            running.cancel.set()
            self._changed.wait_for(lambda: not self._busy, _SETTLE_LIMIT_S)
            if self._running is not running:
                return {"sequence id": running.series_id}
            if self._busy:
                raise Refused(500, f"series {running.series_id} does not stop")
            self._busy = True
        self._finish(running)
        return {"sequence id": running.series_id}

    def close(self) -> None:
        """End a running series, without waiting for a consumer that does not read."""
        with self._changed:
            self._closed = True
        self._stop_series()
        if self._external is not None:
            self._external.join(_SETTLE_LIMIT_S)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _key(name: str, values: Mapping[str, Any]) -> Key:
    key = _DETECTOR_KEYS[name]
    # The packing is the file's: it may be written only as what it is.
    return replace(key, allowed=(values["compression"],)) if name == "compression" else key


def _file_values(recording: Recording) -> dict[str, Any]:
    """The detector configuration as the recorded series has it."""
    meta = recording.metadata.with_changes(number_of_images=len(recording))
    values: dict[str, Any] = msgspec.json.decode(stream_v1.encode_start(0, meta, header_detail="basic")[1])
    try:
        values["compression"] = recording.packing()
    except (OSError, RuntimeError):
        values["compression"] = "bslz4"
    mask = meta.masks.get(CHANNEL)
    # The replay sends no v1 metadata that a file lacks, but a key of the interface needs a value.
    frame_time = values["frame_time"] or 0.001
    values |= {
        "bit_depth_readout": values["bit_depth_image"],
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
    return {name: values[name] for name in _DETECTOR_KEYS}


def _with_dependents(name: str, value: Any, values: Mapping[str, Any]) -> dict[str, Any]:
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


def _metadata(recording: Recording, values: Mapping[str, Any]) -> SeriesMetadata:
    """The header of a series armed with this configuration."""
    meta = stream_v1.metadata_from_config(values)
    return meta.with_changes(
        shape=recording.metadata.shape,
        dtype=recording.metadata.dtype,
        channels=recording.metadata.channels,
        masks=recording.metadata.masks,
        flatfields=recording.metadata.flatfields,
        countrate_table=recording.metadata.countrate_table,
    )


def _array(meta: SeriesMetadata, name: str) -> dict[str, Any]:
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


# --- HTTP -----------------------------------------------------------------------------


def make_app(simplon: Simplon) -> Starlette:
    """The HTTP side: paths, bodies and status codes; every error is ``{"error": sentence}``."""

    def serve(answer: Callable[[Request, bytes], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                body = await _body(request)
                # Commands block, for long: never on the event loop.
                return JSONResponse(await run_in_threadpool(answer, request, body))
            except Refused as error:
                return JSONResponse({"error": str(error)}, error.status)

        return endpoint

    def version(request: Request, body: bytes) -> Any:
        del body
        _module(request)
        return {"value": API_VERSION, "value_type": "string"}

    def config(request: Request, body: bytes) -> Any:
        module = _checked(request)
        name = request.path_params.get("name", "").rstrip("/")
        if request.method == "PUT":
            return simplon.put_config(module, _changes(name, body))
        if not name:
            raise Refused(404, "name a key; GET config/keys lists them")
        return simplon.get_config(module, name)

    def status(request: Request, body: bytes) -> Any:
        del body
        return simplon.get_status(_checked(request), request.path_params["name"].rstrip("/"))

    def command(request: Request, body: bytes) -> Any:
        module, name = _checked(request), request.path_params["name"].rstrip("/")
        if request.method == "GET":
            if name == "keys":
                return sorted(_COMMANDS[module])
            raise Refused(405, f"command {name} is run with PUT")
        value = _json(body) if body.strip() else None
        if isinstance(value, dict):
            value = value.get("value")
        return simplon.command(module, name, value)

    async def not_found(request: Request, error: Exception) -> Response:
        del error
        return JSONResponse({"error": f"{request.url.path} is no part of SIMPLON API {API_VERSION} here"}, 404)

    async def not_allowed(request: Request, error: Exception) -> Response:
        del error
        return JSONResponse({"error": f"{request.method} is not for {request.url.path}"}, 405)

    base = "/{module}/api/{version}"
    return Starlette(
        routes=[
            Route("/{module}/api/version", serve(version), methods=["GET"]),
            Route("/{module}/api/version/", serve(version), methods=["GET"]),
            Route(base + "/config", serve(config), methods=["PUT", "GET"]),
            Route(base + "/config/{name:path}", serve(config), methods=["GET", "PUT"]),
            Route(base + "/status/{name:path}", serve(status), methods=["GET"]),
            Route(base + "/command/{name:path}", serve(command), methods=["GET", "PUT"]),
        ],
        exception_handlers={404: not_found, 405: not_allowed},
    )


async def _body(request: Request) -> bytes:
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise Refused(400, f"a body of more than {MAX_BODY_BYTES} bytes is not read")
    except ClientDisconnect:
        raise Refused(400, "the client went away before its body was complete") from None
    return body


def _module(request: Request) -> str:
    module: str = request.path_params["module"]
    if module not in _COMMANDS:
        raise Refused(404, f"module {module!r} is not served; known: {', '.join(_COMMANDS)}")
    return module


def _checked(request: Request) -> str:
    module = _module(request)
    if request.path_params["version"] != API_VERSION:
        raise Refused(404, f"API version {request.path_params['version']!r} is not served; take {API_VERSION}")
    return module


def _changes(name: str, body: bytes) -> dict[str, Any]:
    """The keys and values of a PUT: one by its path, or several as {"key": {"value": v}}."""
    value = _json(body)
    if not isinstance(value, dict):
        raise Refused(400, 'the body is not a JSON object like {"value": ...}')
    if name:
        if "value" not in value:
            raise Refused(400, 'the body has no "value"')
        return {name: value["value"]}
    changes = {}
    for key, entry in value.items():
        if not isinstance(entry, dict) or "value" not in entry:
            raise Refused(400, f'{_short(key)} is not given as {{"value": ...}}')
        changes[key] = entry["value"]
    if not changes:
        raise Refused(400, "the body names no key")
    return changes


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None


class SimplonServer:
    """``Simplon`` on ``host:port``, in a thread of its own; port 0 takes a free port.

    ``url`` is the base of the served addresses. Raises ``BadInput`` when the address cannot be
    bound. A context manager; leaving it ends a running series and the server.
    """

    def __init__(self, replay: Replay, address: str, progress: Progress | None = None) -> None:
        self._socket = _listen(address)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.simplon = Simplon(replay, progress)
        config = uvicorn.Config(
            make_app(self.simplon),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="simplon", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + _STARTED_LIMIT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.__exit__()
                raise BadInput(f"{self.url}: the SIMPLON server did not start")
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.simplon.close()
        self._server.should_exit = True
        self._thread.join(_SETTLE_LIMIT_S)
        self._socket.close()


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise BadInput(f"{address}: not an address; give host:port, for instance 127.0.0.1:8000")
    try:
        return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise BadInput(
            f"{address}: cannot be bound: {error.strerror or error}; stop what listens there or take another port"
        ) from None
