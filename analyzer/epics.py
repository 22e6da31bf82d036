"""A run's values as EPICS process variables over PVAccess: read-only, and one that resets.

Needs p4p (the optional extra ``epics``). A thread of its own reads what ``/status`` says once in ``PUBLISH_S`` and
posts it; p4p keeps a short queue a client, so that one that does not read holds up nobody.
"""

import ipaddress
import logging
import math
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from p4p.nt import NTEnum, NTNDArray, NTScalar
from p4p.server import Server, StaticProvider
from p4p.server.thread import SharedPV

from analyzer import logs
from analyzer.control import Busy
from analyzer.epics_variables import QUANTITIES, Quantity, Severity, Status, gravest
from analyzer.front import Ending
from analyzer.live.frames import Look
from analyzer.live.preview import MASKED, Renderer
from analyzer.state import State, state_of
from streamer.messages import UndecodableImage

log = logging.getLogger(__name__)

PUBLISH_S = 1.0
PREVIEW_PX = 512
"""Most blocks a side of the preview."""

_STOP_S = 3.0
_PREFIX = re.compile(r"[A-Za-z0-9_.:<>;\[\]-]{1,60}")
_NO_STATUS, _RECORD_STATUS, _UNDEFINED_STATUS = 0, 3, 6


class BadEpics(ValueError):
    """A prefix or an interface that cannot be used: which, and why."""


class EpicsServer:
    """Serves PREFIX:NAME for each of ``QUANTITIES``, PREFIX:State, :Preview and :Reset from when it is made.

    ``status`` gives what /status says, ``latest`` the frame that was analysed last. ``reset`` is done at a put of 1 to
    PREFIX:Reset; without it that is refused like every other put. Raises ``BadEpics``. ``address`` is INTERFACE:PORT.
    """

    def __init__(
        self,
        prefix: str,
        interface: str,
        status: Callable[[], Status],
        latest: Callable[[], Look | None],
        reset: Callable[[], object] | None = None,
    ) -> None:
        self._prefix = prefix.rstrip(":")
        if not _PREFIX.fullmatch(self._prefix):
            raise BadEpics(f"prefix {prefix!a}: 1 to 60 letters, digits and _.:<>;[]- are a prefix, such as CXLS:HITS")
        self._status, self._latest = status, latest
        self._repeats = logs.Repeats(log)
        self._renderer, self._shown = Renderer(), ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="epics", daemon=True)
        self._numbers = {each.name: _variable(each) for each in QUANTITIES}
        self._state = SharedPV(
            handler=_ReadOnly(), nt=NTEnum(), initial={"index": 0, "choices": [str(each) for each in State]}
        )
        self._picture = SharedPV(handler=_ReadOnly(), initial=NTNDArray().wrap(np.zeros((1, 1), np.uint16)))
        self._reset = SharedPV(handler=_Reset(reset), nt=NTScalar("i"), initial=0)
        provider = StaticProvider("cxls")
        named = {**self._numbers, "State": self._state, "Preview": self._picture, "Reset": self._reset}
        for name, variable in named.items():
            provider.add(f"{self._prefix}:{name}", variable)
        self._provider = provider
        host, port = _parts(interface)
        self.loopback = host.is_loopback
        try:
            self._server = Server(providers=[provider], conf=_configuration(host, port))
        except RuntimeError as error:
            raise BadEpics(f"interface {interface}: {' '.join(str(error).split())}") from None
        self.address = f"{host}:{self._server.conf()['EPICS_PVAS_SERVER_PORT']}"

    def start(self) -> None:
        """Publish from now on."""
        self._thread.start()

    def close(self) -> None:
        """Publish once more what there is in the end, and serve no more."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        stopping = threading.Thread(target=self._server.stop, name="epics stop", daemon=True)
        stopping.start()
        stopping.join(_STOP_S)
        self._repeats.close()

    def _publish(self) -> None:
        while True:
            over = self._done.is_set()
            try:
                self._post(self._status())
            except Exception:
                # Only shown, so a fault of it costs no frame.
                self._repeats.exception("epics: the values could not be published", "epics_failed")
            if over:
                return
            self._done.wait(PUBLISH_S)

    def _post(self, status: Status) -> None:
        now = float(status["time"])
        alarms = list(status.get("alarms") or ())
        for quantity in QUANTITIES:
            value = quantity.value(status)
            raised = (
                [each for each in alarms if str(each["name"]).startswith(quantity.alarms)] if quantity.alarms else []
            )
            severity, text = gravest(raised)
            code = _RECORD_STATUS if severity else _NO_STATUS
            if value is None and severity < Severity.INVALID:
                severity, code, text = Severity.INVALID, _UNDEFINED_STATUS, text or "not known"
            shown: float | int = (math.nan if value is None else value) if quantity.code == "d" else int(value or 0)
            self._post_one(self._numbers[quantity.name], {"value": shown}, severity, code, text, now)
        severity, text = gravest(alarms)
        index = list(State).index(state_of(status))
        self._post_one(
            self._state, {"value": {"index": index}}, severity, _RECORD_STATUS if severity else _NO_STATUS, text, now
        )
        self._post_picture()

    def _post_one(
        self, variable: Any, content: dict[str, Any], severity: int, code: int, text: str, timestamp: float
    ) -> None:
        alarm = {"severity": severity, "status": code, "message": text}
        variable.post({**content, "alarm": alarm}, timestamp=timestamp)

    def _post_picture(self) -> None:
        look = self._latest()
        if look is None or look.key == self._shown:
            return
        try:
            picture = self._renderer.render(look, None, PREVIEW_PX)
        except UndecodableImage:
            return
        self._shown = look.key
        result = look.result
        attributes = {
            "series_id": result.series_id,
            "image_id": result.image_id,
            "peak_count": result.peak_count or 0,
            "hit": bool(result.hit),
            "bin_px": picture.bin_px,
            "masked": MASKED,
        }
        value = NTNDArray().wrap(picture.pixels, attrib=attributes, timestamp=result.received_at)
        value["uniqueId"] = result.image_id & 0x7FFFFFFF
        value["dimension"] = [
            {"size": blocks, "offset": 0, "fullSize": pixels, "binning": picture.bin_px, "reverse": False}
            for blocks, pixels in zip(reversed(picture.pixels.shape), reversed(look.geometry.shape), strict=True)
        ]
        self._picture.post(value)


def _variable(quantity: Quantity) -> Any:
    """One with a number, which nothing is known of yet."""
    limits: dict[str, Any] = {}
    if quantity.high_warning is not None:
        limits = {"active": True, "highWarningLimit": quantity.high_warning, "highWarningSeverity": Severity.MINOR}
    initial = {
        "value": math.nan if quantity.code == "d" else 0,
        "alarm": {"severity": Severity.INVALID, "status": _UNDEFINED_STATUS, "message": "nothing yet"},
        "display": {
            "units": quantity.units,
            "description": quantity.text,
            "precision": quantity.precision,
            "limitLow": quantity.low,
            "limitHigh": quantity.high,
        },
        "valueAlarm": limits,
    }
    nt = NTScalar(quantity.code, display=True, form=True, valueAlarm=True)
    return SharedPV(handler=_ReadOnly(), nt=nt, initial=initial)


class _ReadOnly:
    """Refuses every put."""

    def put(self, variable: Any, operation: Any) -> None:
        del variable
        operation.done(error="read-only")


class _Reset:
    """Resets at a put of 1, in p4p's thread."""

    def __init__(self, reset: Callable[[], object] | None) -> None:
        self._reset = reset

    def put(self, variable: Any, operation: Any) -> None:
        if self._reset is None:
            operation.done(error="read-only; start cxls analyze with --epics-reset")
            return
        try:
            if int(operation.value()) != 1:
                operation.done(error="put 1 to begin windows and profiles anew")
                return
            log.info("epics: reset asked for", extra=logs.event("epics_reset"))
            self._reset()
        except (Busy, Ending, ValueError) as error:
            operation.done(error=str(error))
        except Exception:
            log.exception("epics: the reset failed")
            operation.done(error="internal error, see the log of the analysis")
        else:
            # Ready for the next one.
            variable.post(0)
            operation.done()


def _parts(interface: str) -> tuple[ipaddress.IPv4Address, int | None]:
    """Address and port, ``None`` where none is given. Raises ``BadEpics``."""
    host, colon, port = interface.partition(":")
    try:
        if colon and (not port.isdigit() or int(port) > 65535):
            raise ValueError
        return ipaddress.IPv4Address(host), int(port) if colon else None
    except ValueError:
        raise BadEpics(
            f"interface {interface!a}: give an IPv4 address of this machine, such as 127.0.0.1 or 10.0.0.5:5075"
        ) from None


def _configuration(host: ipaddress.IPv4Address, port: int | None) -> dict[str, str]:
    """What is not left to the environment of EPICS."""
    conf = {"EPICS_PVAS_INTF_ADDR_LIST": str(host)}
    if host.is_loopback:
        # What listens on the loopback interface announces itself to nobody.
        conf["EPICS_PVAS_AUTO_BEACON_ADDR_LIST"] = "NO"
    return conf if port is None else conf | {"EPICS_PVAS_SERVER_PORT": str(port)}
