"""The detector: whether its stream can be reached, and which of its settings ours match. Nothing is changed there.

Its control unit is asked over HTTP (SIMPLON), by GET alone, and may answer anything: each answer is whole within
``TIMEOUT_S`` and ``_MOST_BYTES``, all of them within ``_ALL_S``, and a value that is not of its kind is as one that is
not there.
"""

import email.utils
import fcntl
import json
import math
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from cxls.doctor.finding import Finding, fail, ok, warn
from cxls.http_get import Answer, NoAnswer, get
from cxls.settings import AnalyzeSettings, BadSettings

TIMEOUT_S = 3.0
_ALL_S = 20.0
_MOST_BYTES = 64 << 10
_GREETING = b"\xff"
"""The first byte of ZMTP's greeting, which a ZeroMQ socket sends at once."""

_SIOCGIFADDR, _SIOCGIFMTU = 0x8915, 0x8921
_CLOCKS_APART_S = 1.0
_STREAM_PORTS = {"v2": 31001, "v1": 9999}
_FORMATS = {"cbor": "v2", "legacy": "v1"}
_KEYS = {
    "stream": ("mode", "format", "header_detail"),
    "detector": (
        "frame_time", "nimages", "ntrigger", "trigger_mode", "photon_energy", "detector_distance", "beam_center_x",
        "beam_center_y", "compression", "bit_depth_image", "x_pixels_in_detector", "y_pixels_in_detector",
        "threshold/1/mode", "threshold/2/mode", "threshold/difference/mode",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Host and port of a stream."""

    host: str
    port: int


def endpoint_of(source: str) -> Endpoint:
    """The parts of ``tcp://HOST:PORT``. Raises ``BadSettings``."""
    try:
        where = urlsplit(source)
        if where.scheme == "tcp" and where.hostname and where.port and source.isprintable():
            return Endpoint(where.hostname, where.port)
    except ValueError:
        pass
    raise BadSettings(f"SOURCE {source!a}: not a stream; give tcp://HOST:PORT, such as tcp://192.0.2.10:31001")


def stream(where: Endpoint) -> Iterator[Finding]:
    """Whether something that speaks ZeroMQ listens there, and by which interface.

    It is left before the handshake, so that the detector hands us no message: its only client may be running.
    """
    name = f"{where.host}:{where.port}"
    todo = "check cable, address and firewall, and that the stream is enabled on the detector"
    began = time.monotonic()
    try:
        with socket.create_connection((where.host, where.port), timeout=TIMEOUT_S) as connection:
            took_ms = 1e3 * (time.monotonic() - began)
            local = connection.getsockname()[0]
            connection.settimeout(TIMEOUT_S)
            try:
                greeting = connection.recv(1)
            except OSError:
                greeting = b""
    except OSError as error:
        yield fail("stream", f"{name}: {(error.strerror or str(error) or 'no connection').lower()}", todo)
        return
    if greeting != _GREETING:
        yield fail("stream", f"{name} is open, and what listens there is no ZeroMQ socket", todo)
        return
    yield ok("stream", f"{name} speaks ZeroMQ, {took_ms:.1f} ms away")
    yield from _interface(local)


def _interface(local: str) -> Iterator[Finding]:
    for _, name in socket.if_nameindex():
        if _asked(name, _SIOCGIFADDR, slice(20, 24)) == (socket.inet_aton(local) if "." in local else b"?"):
            mtu = struct.unpack("i", _asked(name, _SIOCGIFMTU, slice(16, 20)) or bytes(4))[0]
            speed = _speed_mbit(name)
            text = f"through {name}, MTU {mtu}" + (f", {speed} Mbit/s" if speed else "")
            if speed and speed < 10_000:
                yield warn("interface", text, "a 4M detector at its full rate needs 10 Gbit/s (docs/capacity.md)")
            else:
                yield ok("interface", text)


def _asked(interface: str, request: int, part: slice) -> bytes | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            return fcntl.ioctl(any_socket, request, struct.pack("256s", interface.encode()[:15]))[part]
        except OSError:
            return None


def _speed_mbit(interface: str) -> int | None:
    try:
        speed = int(Path(f"/sys/class/net/{interface}/speed").read_text())
    except (OSError, ValueError):
        return None
    return speed if speed > 0 else None


# --- the control unit ---------------------------------------------------------------------


@dataclass(slots=True)
class Told:
    """What the control unit said: values by module and key, and its clock against ours.

    ``clock_ahead_s``: the detector's clock minus ours, known to ``clock_sigma_s``.
    """

    version: str
    values: dict[str, dict[str, Any]] = field(default_factory=lambda: {module: {} for module in _KEYS})
    state: str | None = None
    clock_ahead_s: float | None = None
    clock_sigma_s: float = 0.0

    def text(self, module: str, key: str) -> str | None:
        found = self.values[module].get(key)
        return found[:60] if isinstance(found, str) else None

    def number(self, key: str) -> float | None:
        """A finite number of the detector module, not below zero."""
        found = self.values["detector"].get(key)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < 1e15:
            return None
        return float(found) if math.isfinite(found) else None

    @property
    def rate_hz(self) -> float | None:
        """Images a second that the frame time promises."""
        frame_time = self.number("frame_time")
        return 1.0 / frame_time if frame_time and frame_time >= 1e-6 else None

    @property
    def channels(self) -> list[str]:
        """The channels that stream v2 carries: thresholds that are switched on."""
        modes = {
            "threshold_1": "threshold/1/mode",
            "threshold_2": "threshold/2/mode",
            "difference": "threshold/difference/mode",
        }
        return [channel for channel, key in modes.items() if self.text("detector", key) == "enabled"]


def ask(where: SplitResult) -> Told:
    """The values of the control unit. Raises ``NoAnswer`` where there is none, or one that takes its time."""
    deadline = time.monotonic() + _ALL_S
    answer = get(where, "/stream/api/version", TIMEOUT_S, _MOST_BYTES)
    if answer.status != 200:
        raise NoAnswer(f"/stream/api/version is HTTP {answer.status}; is this the address of a control unit?")
    version = _value(answer)
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){1,3}", version):
        raise NoAnswer("/stream/api/version is no version; is this the address of a detector's control unit?")
    told = Told(version)
    for module, keys in _KEYS.items():
        for key in keys:
            found = _ask(where, f"/{module}/api/{version}/config/{quote(key)}", deadline)
            if found is not None:
                told.values[module][key] = _value(found)
    state = _ask(where, f"/detector/api/{version}/status/state", deadline)
    told.state = None if state is None else str(_value(state))[:60]
    before = time.time()
    clock = _ask(where, f"/detector/api/{version}/status/time", deadline)
    if clock is not None:
        _set_clock(told, clock, before, time.time())
    return told


def _ask(where: SplitResult, path: str, deadline: float) -> Answer | None:
    if time.monotonic() > deadline:
        raise NoAnswer(f"it takes longer than {_ALL_S:g} s to say what it is set to")
    answer = get(where, path, TIMEOUT_S, _MOST_BYTES)
    return answer if answer.status == 200 else None


def _value(answer: Answer) -> Any:
    """The ``value`` of a reply, ``None`` where it has none."""
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return found.get("value") if isinstance(found, dict) else None


def _set_clock(told: Told, answer: Answer, before: float, after: float) -> None:
    """By the control unit's own time, else by the HTTP header, which has whole seconds."""
    ours, sigma = (before + after) / 2, (after - before) / 2
    try:
        theirs = datetime.fromisoformat(str(_value(answer)))
        if theirs.tzinfo is None:
            raise ValueError("a time of which nobody says where")
        at = theirs.timestamp()
    except (ValueError, OverflowError, OSError):
        try:
            at = email.utils.parsedate_to_datetime(answer.headers.get("date", "")).timestamp() + 0.5
        except (ValueError, TypeError, OverflowError, OSError):
            return
        sigma += 0.5
    told.clock_ahead_s, told.clock_sigma_s = at - ours, sigma


def settings_match(told: Told, base: str, settings: AnalyzeSettings, where: Endpoint | None) -> Iterator[Finding]:
    """What of the detector's configuration ours has to match, and whether it does. ``base``: its address, for texts."""
    yield ok("detector", f"SIMPLON {told.version}, state {told.state or 'not told'}")
    yield from _stream_settings(told, base, settings, where)
    yield from _channel(told, settings)
    yield from _measurement(told, base)
    yield from _clock(told)


def _put(base: str, told: Told, module: str, key: str, value: str) -> str:
    return f"""curl -X PUT {base}/{module}/api/{told.version}/config/{key} -d '{{"value": {value}}}'"""


def _stream_settings(told: Told, base: str, settings: AnalyzeSettings, where: Endpoint | None) -> Iterator[Finding]:
    mode, spoken = told.text("stream", "mode"), told.text("stream", "format")
    if mode != "enabled":
        yield fail("stream mode", f"{mode or 'not told'}", _put(base, told, "stream", "mode", '"enabled"'))
    else:
        yield ok("stream mode", "enabled")
    protocol = _FORMATS.get(spoken or "")
    if protocol is None:
        yield warn("stream format", f"{spoken or 'not told'}", "set it to cbor (stream v2) or legacy (v1)")
    elif settings.stream not in ("auto", protocol):
        yield fail(
            "stream format", f"{spoken} is stream {protocol}, --stream is {settings.stream}",
            f"take --stream auto, or {_put(base, told, 'stream', 'format', _format_of(settings.stream))}",
        )  # fmt: skip
    elif where is not None and where.port in _STREAM_PORTS.values() and where.port != _STREAM_PORTS[protocol]:
        yield fail(
            "stream format", f"{spoken} is stream {protocol}, SOURCE has port {where.port}",
            f"attach to tcp://{where.host}:{_STREAM_PORTS[protocol]}",
        )  # fmt: skip
    else:
        yield ok("stream format", f"{spoken}, stream {protocol}")
    detail = told.text("stream", "header_detail")
    if detail == "all" or (detail == "basic" and settings.mask is not None):
        yield ok("header detail", detail + (" with the pixel mask" if detail == "all" else ", the mask is --mask"))
    elif detail == "basic":
        yield warn(
            "header detail", "basic: the pixel mask does not come along",
            f"{_put(base, told, 'stream', 'header_detail', chr(34) + 'all' + chr(34))}, or give --mask",
        )  # fmt: skip
    else:
        yield fail(
            "header detail", f"{detail or 'not told'}: energy, distance and beam centre may not come along",
            _put(base, told, "stream", "header_detail", '"all"'),
        )  # fmt: skip


def _format_of(protocol: str) -> str:
    return next(f'"{name}"' for name, spoken in _FORMATS.items() if spoken == protocol)


def _channel(told: Told, settings: AnalyzeSettings) -> Iterator[Finding]:
    channels = told.channels
    if not channels:
        yield warn("channels", "the detector does not say which thresholds it uses", "see its user interface")
    elif settings.channel is not None and settings.channel not in channels:
        yield fail(
            "channels",
            f"{', '.join(channels)} are on, --channel is {settings.channel}",
            f"take --channel {channels[0]}",
        )
    else:
        yield ok("channels", f"{', '.join(channels)}; analysed: {settings.channel or channels[0]}")
    packing = told.text("detector", "compression")
    if packing in ("none", None):
        yield warn("compression", packing or "not told", "bslz4 takes a tenth of the network and decodes fastest")
    else:
        yield ok("compression", packing)


def _measurement(told: Told, base: str) -> Iterator[Finding]:
    energy, distance = told.number("photon_energy"), told.number("detector_distance")
    center = told.number("beam_center_x"), told.number("beam_center_y")
    size = told.number("x_pixels_in_detector"), told.number("y_pixels_in_detector")
    wrong = [
        name
        for name, value in (("photon_energy", energy), ("detector_distance", distance), ("beam_center_x", center[0]),
                            ("beam_center_y", center[1]))
        if not value
    ]  # fmt: skip
    beam = f"beam at {_shown(center[0], '')}, {_shown(center[1], 'px')}"
    text = f"{_shown(energy, 'eV')}, {_shown(distance, 'm')}, {beam} of {_shown(size[0], '')} x {_shown(size[1], 'px')}"
    if wrong:
        yield warn("geometry", f"{text}: {', '.join(wrong)} not set", f"PUT them at {base}/detector/api/{told.version}")
    else:
        yield ok("geometry", text)
    rate, images = told.rate_hz, told.number("nimages")
    if rate is None:
        yield warn("frame rate", "frame_time is not set", "set it, or give --rate to rehearse at")
    else:
        many = "an unknown number of" if images is None else f"{images:.0f}"
        trigger = told.text("detector", "trigger_mode") or "?"
        yield ok("frame rate", f"{rate:.6g} Hz, {many} images a trigger, trigger mode {trigger}")


def _shown(value: float | None, unit: str) -> str:
    return "?" if value is None else f"{value:.6g} {unit}".strip()


def _clock(told: Told) -> Iterator[Finding]:
    if told.clock_ahead_s is None:
        yield warn("clocks", "the detector does not say its time", "set both by the same NTP server")
        return
    text = f"the detector's is {told.clock_ahead_s:+.2f} s from ours, known to {told.clock_sigma_s:.2f} s"
    if abs(told.clock_ahead_s) > _CLOCKS_APART_S + told.clock_sigma_s:
        yield warn("clocks", text, "set both by the same NTP server; records carry times of both")
    else:
        yield ok("clocks", text)
