"""The SIMPLON interface of a replayed Eiger: a subset of API 1.8.0.

``Simplon`` is the detector's control unit as a state machine that knows no HTTP. Commands block
as the real ones do (``trigger`` until its images are sent), so ``abort``, ``cancel`` and
``disarm`` come in on another request and end them.

Differences from the real one: the pixels are those of the file whatever is configured, so keys
that would change them are fixed; both stream formats leave by the same socket; the detector is
``idle``, not ``na``, from the beginning; each arm plays the next file, after the last the first.
"""

import contextlib
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sim_replay.pace import Pace
from sim_replay.recordings import Recording
from sim_replay.replay import Progress, Replay
from sim_replay.running import RunningSeries, StreamStyle, check_carried
from sim_replay.simplon_keys import (
    ARRAY_KEYS,
    COMMANDS,
    DETECTOR_KEYS,
    STATUS,
    STREAM_KEYS,
    Refused,
    armed_metadata,
    array_reply,
    detector_key,
    file_values,
    header_config,
    with_dependents,
)
from streamer.files import BadInput

SETTLE_LIMIT_S = 10.0
"""How long a series that is told to end may take to do so."""


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
            self._file_values[number] = file_values(self._replay.recordings[number])
        return self._file_values[number] | self._written

    def get_config(self, module: str, name: str) -> Any:
        """The reply to GET config/``name``."""
        with self._changed:
            if module == "stream":
                if name == "keys":
                    return sorted(STREAM_KEYS)
                if name in STREAM_KEYS:
                    return STREAM_KEYS[name].described(self._stream[name])
            else:
                if name == "keys":
                    return sorted((*DETECTOR_KEYS, *ARRAY_KEYS))
                if name in ARRAY_KEYS:
                    return array_reply(self._recording().metadata, name)
                if name in DETECTOR_KEYS:
                    values = self._detector_values()
                    return detector_key(name, values).described(values[name])
        raise Refused(404, f"{module} has no configuration key {name!r}; GET config/keys lists them")

    def put_config(self, module: str, changes: Mapping[str, Any]) -> list[str]:
        """Write keys, all or none; returns the keys that changed with them."""
        with self._changed:
            keys = STREAM_KEYS if module == "stream" else DETECTOR_KEYS
            for name in changes:
                if name in ARRAY_KEYS and module == "detector":
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
                checked_value = detector_key(name, values).check(name, value)
                written |= with_dependents(name, checked_value, values | written)
            self._written |= written
            return sorted(written)

    # --- status -----------------------------------------------------------------------

    def get_status(self, module: str, name: str) -> Any:
        """The reply to GET status/``name``."""
        kinds = STATUS[module]
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
        if name not in COMMANDS[module]:
            raise Refused(404, f"{module} has no command {name!r}; known: {', '.join(COMMANDS[module])}")
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
                    check_carried(recording, style.protocol)
                except BadInput as error:
                    raise Refused(400, str(error)) from None
            running = self._replay.prepare(recording, armed_metadata(recording, values), style, threading.Event())
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
            config=header_config(values),
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
                count_time = DETECTOR_KEYS["count_time"].check("the count time of a trigger", argument)
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
            self._changed.wait_for(lambda: not self._busy, SETTLE_LIMIT_S)
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
            self._external.join(SETTLE_LIMIT_S)
