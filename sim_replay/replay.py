"""An Eiger on the wire: recorded HDF5 series played over stream v1 or v2.

A ``Recording`` is one series as it lies in files, a ``Wire`` the bound PUSH socket, a
``Replay`` the two together with the counts. Packed chunks go out byte for byte as they lie
in the file; nothing is ever compressed again. ``run_replay`` is the whole of ``cxls replay``.

Full-queue policy: ``block`` waits for the consumer, so that a run is complete and repeatable;
``drop`` never waits for an image, as the detector never does, and counts what it dropped.
"""

import contextlib
import errno
import os
import secrets
import socket as tcp
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Self

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from streamer import stream_v1, stream_v2
from streamer.files import CHANNEL, BadInput, FileSeries, expand
from streamer.messages import Buffer, ImageData, ImageMessage, SeriesMetadata

DEFAULT_BIND = "tcp://127.0.0.1:31001"
PROTOCOLS = ("v1", "v2")
HEADER_DETAILS = ("none", "basic", "all")
ON_FULL = ("block", "drop")

SEND_HWM = 16
"""Messages libzmq may queue for a consumer: a burst, yet few enough that a slow one shows."""

CONTROL_LIMIT_S = 5.0
"""How long a start or an end waits for room where images do not wait; then it is lost and counted."""

DEFAULT_FRAME_TIME_S = 0.001
"""Step of the detector clock where neither the file nor a rate says one."""

MAX_PROBLEMS = 20
"""Sentences kept about unreadable images; the rest are only counted."""

_SLICE_S = 0.05
"""Longest wait between two looks at the stop event."""

_CATCH_UP_S = 0.1
"""Lateness that a steady rate makes up for. After a longer stall, time starts anew: no burst."""

_COPY_BELOW = 64 << 10
"""Parts smaller than this are cheaper to copy than to hand over."""

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_SINGLE_IMAGE_KEYS = (
    "shape", "dtype", "photon_energy_eV", "camera_length_m", "beam_center_x_px", "beam_center_y_px",
)  # fmt: skip

Progress = Callable[[int, int], None]
"""Called after each image with (images done, images in all); the second is 0 when looping."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """What to play and how. Raises ``BadInput`` for a value that makes no sense.

    ``rate_hz`` is images a second, ``None`` as fast as the consumer takes them. ``rest`` is
    ``host:port`` of the SIMPLON server; with it, series wait for arm and trigger.
    ``header_appendix`` goes into v2 starts and v1 headers of detail ``all``.
    """

    inputs: tuple[str, ...]
    bind: str = DEFAULT_BIND
    protocol: str = "v2"
    rate_hz: float | None = None
    loop: bool = False
    header_detail: str = "basic"
    on_full: str = "block"
    rest: str | None = None
    first_series_id: int = 1
    header_appendix: Any = None
    image_appendix: Any = None
    send_hwm: int = SEND_HWM

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("stream", self.protocol, PROTOCOLS),
            ("header detail", self.header_detail, HEADER_DETAILS),
            ("full-queue policy", self.on_full, ON_FULL),
        ):
            if value not in allowed:
                raise BadInput(f"{name} {value!r} is not known; take one of {', '.join(allowed)}")
        if not self.inputs:
            raise BadInput("nothing to play; name an Eiger master or data file")
        if self.rate_hz is not None and not 0 < self.rate_hz < 1e6:
            raise BadInput(f"rate {self.rate_hz} Hz is not between 0 and 1 MHz; leave it out to play flat out")
        if not 0 <= self.first_series_id < 1 << 62:
            raise BadInput(f"first series id {self.first_series_id} is not a count")
        if self.send_hwm < 1:
            raise BadInput(f"a queue of {self.send_hwm} messages cannot send; give 1 or more")


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What was played. ``images = sent + dropped + unreadable`` unless a stop cut a series short.

    ``sent`` was handed to ZeroMQ. ``control_lost`` counts starts and ends that found no room in
    time, ``seconds`` runs from the first start to the hand-over of the last message.
    """

    series: int
    sent: int
    dropped: int
    unreadable: int
    control_lost: int
    seconds: float
    interrupted: bool
    problems: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        return self.sent + self.dropped + self.unreadable


@dataclass(frozen=True, slots=True)
class StreamStyle:
    """How a series is written. ``config`` replaces keys of the v1 header's configuration."""

    protocol: str = "v2"
    header_detail: str = "basic"
    header_appendix: Any = None
    image_appendix: Any = None
    enabled: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RunningSeries:
    """A series between its start and its end. ``cancel`` stops its images at the next one.

    ``clock_s`` is the detector clock (seconds) at image 0.
    """

    series_id: int
    recording: "Recording"
    metadata: SeriesMetadata
    style: StreamStyle
    unique_id: str
    arm_date: str
    clock_s: float
    cancel: threading.Event
    next_image: int = 0


class Recording:
    """One series as it lies in a file, or in a run of alike single-image files."""

    def __init__(self, members: list[tuple[Path, list[int] | None]], first: FileSeries) -> None:
        self._members = members
        self._open = first
        self._open_at = 0
        self.path = first.path
        self.problems = list(first.problems)
        images = len(first) if len(members) == 1 else len(members)
        announced = first.metadata.number_of_images if len(members) == 1 else images
        self.images = images
        self.metadata = first.metadata.with_changes(number_of_images=announced)

    def __len__(self) -> int:
        return self.images

    def image(self, position: int) -> ImageData:
        """The image at ``position`` (0-based), packed as in the file. Raises ``OSError`` when unreadable."""
        if len(self._members) == 1:
            return self._open.image(position)
        if position != self._open_at:
            self._open.close()
            self._open, self._open_at = FileSeries(*self._members[position]), position
        return self._open.image(0)

    def packing(self) -> str:
        """``bslz4``, ``lz4`` or ``none``: what the first image's bytes are."""
        algorithm = str(self.image(0).algorithm)
        return "none" if algorithm == "raw" else "lz4" if algorithm.startswith("lz4") else algorithm

    def check_carried(self, protocol: str) -> None:
        """Raises ``BadInput`` when the stream has no name for the way the first image is packed."""
        try:
            encode_image(protocol, ImageMessage(0, 0, {CHANNEL: self.image(0)}))
        except (OSError, RuntimeError):
            pass  # it is counted as unreadable when its turn comes
        except ValueError as error:
            raise BadInput(_not_carried(self.path, protocol, error)) from None

    def close(self) -> None:
        self._open.close()


def open_recordings(inputs: tuple[str, ...]) -> list[Recording]:
    """The series that files, globs and lists name, in order. Raises ``BadInput``."""
    files = expand(inputs)
    found: list[Recording] = []
    position = 0
    try:
        while position < len(files):
            first = FileSeries(*files[position])
            end = position + 1
            while len(first) == 1 and end < len(files) and _continues(first, files[end]):
                end += 1
            found.append(Recording(files[position:end], first))
            if not len(first):
                raise BadInput(f"{first.path}: holds no images; nothing to play")
            position = end
    except BaseException:
        for recording in found:
            recording.close()
        raise
    return found


def _continues(first: FileSeries, member: tuple[Path, list[int] | None]) -> bool:
    """Whether a single-image file belongs to the series of ``first``."""
    other = FileSeries(*member)
    try:
        return len(other) == 1 and all(
            getattr(first.metadata, key) == getattr(other.metadata, key) for key in _SINGLE_IMAGE_KEYS
        )
    finally:
        other.close()


class Wire:
    """The PUSH socket an Eiger binds. Calls from several threads take turns.

    Raises ``BadInput`` when ``bind`` cannot be bound; port 0 takes a free port, which
    ``endpoint`` then names.
    """

    def __init__(self, bind: str, send_hwm: int = SEND_HWM) -> None:
        self._lock = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 0)
        # libzmq gives each new peer the limit known at that moment: before bind, or never.
        self._socket.setsockopt(zmq.SNDHWM, send_hwm)
        self._peers: set[int] = set()
        self._greeted = False
        self._closed = False
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        try:
            if (port := bind.rpartition(":")[2]).isdigit() and int(port) > 65535:
                # libzmq would bind its remainder by 65536 without a word.
                raise zmq.ZMQError(errno.EINVAL)
            self._socket.bind(bind)
        except zmq.ZMQError as error:
            self.close()
            raise BadInput(_bind_failure(bind, error)) from None
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def consumers(self) -> int:
        """Connections now open, as far as the socket's events have been read."""
        return len(self._peers)

    def watch(self) -> None:
        """Read the socket's events; call now and then while nothing is sent."""
        with self._lock:
            self._follow()

    def wait_for_consumer(self, stop: threading.Event) -> bool:
        """Wait until a consumer's handshake has succeeded; False when stopped first."""
        while not stop.is_set():
            with self._lock:
                self._monitor.poll(round(_SLICE_S * 1000))
                self._follow()
                if self._greeted:
                    return True
        return False

    def send(self, parts: list[Buffer], stop: threading.Event, wait_s: float | None) -> bool:
        """Queue one message whole, or not at all and return False.

        Waits for room at most ``wait_s`` seconds (``None`` without limit), less when ``stop`` is set.
        """
        flags = zmq.SNDMORE if len(parts) > 1 else 0
        deadline = None if wait_s is None else time.monotonic() + wait_s
        with self._lock:
            self._follow()
            while True:
                try:
                    self._put(parts[0], flags | zmq.NOBLOCK)
                    break
                except zmq.Again:
                    left = _SLICE_S if deadline is None else deadline - time.monotonic()
                    if left <= 0 or stop.is_set():
                        return False
                    self._socket.poll(max(1, round(min(left, _SLICE_S) * 1000)), zmq.POLLOUT)
                    self._follow()
            # libzmq counts whole messages, so the later parts always find room. Waiting for them
            # matters only when the peer goes away in between; libzmq then discards the rest.
            for number, part in enumerate(parts[1:], 2):
                self._put(part, zmq.SNDMORE if number < len(parts) else 0)
        return True

    def _put(self, part: Buffer, flags: int) -> None:
        self._socket.send(part, flags, copy=len(part) < _COPY_BELOW)

    def _follow(self) -> None:
        while not self._closed and self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._peers.add(event["value"])
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._peers.discard(event["value"])
            else:
                self._greeted = True

    def hand_over(self, stop: threading.Event, limit_s: float | None = None) -> bool:
        """Close once the consumer has taken what is queued; False when cut short.

        Ends a moment after ``stop`` is set, or after ``limit_s`` seconds; what is queued is then lost.
        """
        with self._lock:
            self._follow()
            connections = [copy for peer in self._peers if (copy := _own_copy(peer, self.endpoint)) is not None]
            self._release(linger_ms=-1)
        done = threading.Event()

        def terminate() -> None:
            self._context.term()
            done.set()

        threading.Thread(target=terminate, name="replay-linger", daemon=True).start()
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while not done.wait(_SLICE_S) and not stop.is_set() and (deadline is None or time.monotonic() < deadline):
            pass
        complete = done.is_set()
        for connection in connections:
            if not complete:
                # A lingering libzmq cannot be called off, but it gives up when the line goes dead.
                with contextlib.suppress(OSError):
                    connection.shutdown(tcp.SHUT_RDWR)
            connection.close()
        return complete

    def close(self) -> None:
        """Close at once; what is still queued is lost. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._release(linger_ms=0)
        self._context.term()

    def _release(self, linger_ms: int) -> None:
        self._closed = True
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=linger_ms)


def _own_copy(descriptor: int, endpoint: str) -> tcp.socket | None:
    """A second handle on libzmq's connection, checked to be that of our endpoint."""
    try:
        copy = tcp.socket(fileno=os.dup(descriptor))
        if copy.family == tcp.AF_UNIX or str(copy.getsockname()[1]) == endpoint.rpartition(":")[2]:
            return copy
        copy.close()
    except OSError:
        pass
    return None


def _bind_failure(bind: str, error: zmq.ZMQError) -> str:
    if error.errno == zmq.EADDRINUSE:
        return f"{bind}: the address is in use; stop what listens there or take another port (port 0 finds a free one)"
    return f"{bind}: {error.strerror}; an address to bind looks like {DEFAULT_BIND}"


class Replay:
    """Recordings on a bound socket, with the counts of what was played.

    Raises ``BadInput`` for inputs that cannot be played and for an address that cannot be bound.
    A context manager; leaving it closes at once.
    """

    def __init__(self, settings: ReplaySettings) -> None:
        self.settings = settings
        self.recordings = open_recordings(settings.inputs)
        try:
            if settings.rest is None:
                for recording in self.recordings:
                    recording.check_carried(settings.protocol)
            self.wire = Wire(settings.bind, settings.send_hwm)
        except BaseException:
            self._close_recordings()
            raise
        self.series = 0
        self.sent = 0
        self.dropped = 0
        self.unreadable = 0
        self.control_lost = 0
        self.problems = [problem for recording in self.recordings for problem in recording.problems]
        self._ids = count(settings.first_series_id)
        self._clock_zero = time.monotonic()
        self._began: float | None = None
        self._ended: float | None = None
        self._interrupted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """The bound address with its true port."""
        return self.wire.endpoint

    @property
    def style(self) -> StreamStyle:
        """How the settings want series to be written."""
        settings = self.settings
        return StreamStyle(settings.protocol, settings.header_detail, settings.header_appendix, settings.image_appendix)

    def play(self, stop: threading.Event, progress: Progress | None = None) -> ReplayReport:
        """Wait for a consumer, then play every recording once, or over and over when looping.

        ``stop`` ends it between two images and within 0.2 s while it waits. Raises ``BadInput``
        for an image that the stream cannot carry.
        """
        total = 0 if self.settings.loop else sum(len(recording) for recording in self.recordings)
        pace = Pace(self.settings.rate_hz)
        if self.wire.wait_for_consumer(stop):
            for recording in self._playlist():
                if stop.is_set():
                    break
                self._play_series(recording, stop, pace, progress, total)
        self._interrupted = stop.is_set()
        return self.report()

    def _playlist(self) -> Iterator[Recording]:
        yield from self.recordings
        while self.settings.loop:
            yield from self.recordings

    def _play_series(
        self, recording: Recording, stop: threading.Event, pace: "Pace", progress: Progress | None, total: int
    ) -> None:
        running = self.prepare(recording, recording.metadata, self.style, stop)
        if self.start(running):
            self.play_images(running, len(recording), pace, progress, total)
            self.end(running)

    def prepare(
        self, recording: Recording, metadata: SeriesMetadata, style: StreamStyle, cancel: threading.Event
    ) -> RunningSeries:
        """A new series with the next id, armed now; nothing is sent yet."""
        now = time.time()
        arm_date = datetime.fromtimestamp(now).astimezone().isoformat(timespec="milliseconds")
        frame_time = metadata.frame_time_s or (1 / self.settings.rate_hz if self.settings.rate_hz else None)
        frame_time = frame_time or DEFAULT_FRAME_TIME_S
        metadata = metadata.with_changes(
            arm_date=arm_date,
            frame_time_s=frame_time,
            count_time_s=metadata.count_time_s or frame_time,
            user_data=style.header_appendix,
        )
        # Played without a client, each series starts at zero, as its file says; v2 counts from its series date.
        clock = time.monotonic() - self._clock_zero if self.settings.rest and style.protocol == "v1" else 0.0
        return RunningSeries(next(self._ids), recording, metadata, style, _ulid(now), arm_date, clock, cancel)

    def start(self, running: RunningSeries) -> bool:
        """Send the start. False when the series was cancelled before its start found room."""
        if self._began is None:
            self._began = time.monotonic()
        if running.style.enabled:
            sent = self.wire.send(_start(running), running.cancel, self._control_wait())
            if not sent and running.cancel.is_set():
                return False
            self.control_lost += not sent
        self.series += 1
        return True

    def play_images(
        self,
        running: RunningSeries,
        images: int,
        pace: "Pace",
        progress: Progress | None = None,
        total: int = 0,
    ) -> int:
        """Send the next ``images`` images of the series, from the file's first again after its last.

        Returns how many were played (sent, dropped or unreadable): fewer when cancelled. Raises
        ``BadInput`` for an image that the stream cannot carry.
        """
        played = 0
        pace.restart()
        while played < images and pace.wait(running.cancel):
            if not self._play_image(running):
                break
            running.next_image += 1
            played += 1
            if progress is not None:
                progress(self.sent + self.dropped + self.unreadable, total)
        return played

    def _play_image(self, running: RunningSeries) -> bool:
        """One image, counted; False when cancelled while waiting for room."""
        if not running.style.enabled:
            return True
        recording = running.recording
        position = running.next_image % len(recording)
        try:
            image = recording.image(position)
        except (OSError, RuntimeError, BadInput) as error:
            self.unreadable += 1
            if len(self.problems) < MAX_PROBLEMS:
                self.problems.append(f"{recording.path}: image {position} cannot be read: {error}")
            return True
        try:
            parts = encode_image(running.style.protocol, _message(running, image), running.arm_date)
        except ValueError as error:
            raise BadInput(_not_carried(recording.path, running.style.protocol, error)) from None
        if self.wire.send(parts, running.cancel, None if self.settings.on_full == "block" else 0.0):
            self.sent += 1
        elif self.settings.on_full == "drop":
            self.dropped += 1
        else:
            return False
        return True

    def end(self, running: RunningSeries, patient: bool = False) -> None:
        """Send the end. A cancelled series' end does not wait, unless ``patient``: then up to the limit."""
        self._ended = time.monotonic()
        if not running.style.enabled:
            return
        parts: list[Buffer]
        if running.style.protocol == "v1":
            parts = list(stream_v1.encode_end(running.series_id))
        else:
            parts = [stream_v2.encode_end(running.series_id, running.unique_id)]
        if patient and running.cancel.is_set():
            sent = self.wire.send(parts, threading.Event(), CONTROL_LIMIT_S)
        else:
            sent = self.wire.send(parts, running.cancel, self._control_wait())
        self.control_lost += not sent
        self._ended = time.monotonic()

    def _control_wait(self) -> float | None:
        return None if self.settings.on_full == "block" else CONTROL_LIMIT_S

    def reset_clock(self) -> None:
        """Set the detector clock to zero, as initialize does."""
        self._clock_zero = time.monotonic()

    def hand_over(self, stop: threading.Event) -> bool:
        """Close once the consumer has taken everything; False when stopped, or in ``drop`` mode out of time."""
        complete = self.wire.hand_over(stop, self._control_wait())
        if self._began is not None:
            self._ended = time.monotonic()
        if not complete:
            self.problems.append(f"{self.endpoint}: the consumer did not take the last messages; they are lost")
        self._interrupted |= stop.is_set() and not complete
        return complete

    def report(self) -> ReplayReport:
        """The counts so far."""
        ended = self._ended or time.monotonic()
        return ReplayReport(
            series=self.series,
            sent=self.sent,
            dropped=self.dropped,
            unreadable=self.unreadable,
            control_lost=self.control_lost,
            seconds=0.0 if self._began is None else ended - self._began,
            interrupted=self._interrupted,
            problems=tuple(self.problems),
        )

    def close(self) -> None:
        """Close the socket at once and the files."""
        self.wire.close()
        self._close_recordings()

    def _close_recordings(self) -> None:
        for recording in self.recordings:
            recording.close()


class Pace:
    """Waits for the moments of a steady rate, counted from a fixed origin so that it cannot drift."""

    def __init__(self, rate_hz: float | None) -> None:
        self._period_s = None if rate_hz is None else 1 / rate_hz
        self._due = 0.0

    def restart(self) -> None:
        """The next image is due now, unless the rate makes it due a little later."""
        now = time.monotonic()
        if self._period_s is None or not 0 <= self._due - now <= self._period_s:
            self._due = now

    def wait(self, cancel: threading.Event) -> bool:
        """Wait until the next image is due; False when cancelled."""
        if self._period_s is not None:
            now = time.monotonic()
            if now - self._due > max(_CATCH_UP_S, self._period_s):
                self._due = now
            if self._due > now:
                cancel.wait(self._due - now)
            self._due += self._period_s
        return not cancel.is_set()


def encode_image(protocol: str, message: ImageMessage, series_date: str | None = None) -> list[Buffer]:
    """The parts of an image message of stream ``v1`` or ``v2``; ``ValueError`` for what it cannot carry."""
    if protocol == "v1":
        return stream_v1.encode_image(message)
    if any(isinstance(i, ImageData) and i.dtype.byteorder == ">" for i in message.channels.values()):
        raise ValueError("stream v2 carries little-endian pixels only")
    if series_date is None:
        return [stream_v2.encode_image(message)]
    return [stream_v2.encode_image(message, series_date=series_date)]


def _start(running: RunningSeries) -> list[Buffer]:
    detail = running.style.header_detail
    if running.style.protocol == "v2":
        return [
            stream_v2.encode_start(
                running.series_id, running.metadata, header_detail=detail, unique_id=running.unique_id
            )
        ]
    parts: list[Buffer] = list(stream_v1.encode_start(running.series_id, running.metadata, header_detail=detail))
    if len(parts) > 1:
        config = msgspec.json.decode(parts[1])
        packing: dict[str, Any] = {}
        with contextlib.suppress(OSError, RuntimeError):
            packing = {"compression": running.recording.packing()}
        config |= {key: value for key, value in (packing | dict(running.style.config)).items() if key in config}
        parts[1] = msgspec.json.encode(config, order="sorted")
    return parts


def _message(running: RunningSeries, image: ImageData) -> ImageMessage:
    meta = running.metadata
    frame_time, count_time = meta.frame_time_s or 0.0, meta.count_time_s or 0.0
    start = running.clock_s + running.next_image * frame_time
    return ImageMessage(
        running.series_id,
        running.next_image,
        {CHANNEL: image},
        start_time_s=start,
        stop_time_s=start + count_time,
        exposure_s=count_time,
        unique_id=running.unique_id,
        user_data=running.style.image_appendix,
    )


def _not_carried(path: Path, protocol: str, error: ValueError) -> str:
    other = "v2" if protocol == "v1" else "v1"
    return f"{path}: cannot be played over stream {protocol}: {error}; try stream {other}"


def _ulid(unix_s: float) -> str:
    """26 characters, time (48 bit, milliseconds) then chance (80 bit): as detectors name a series."""
    value = (int(unix_s * 1000) & ((1 << 48) - 1)) << 80 | secrets.randbits(80)
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def run_replay(
    settings: ReplaySettings,
    stop: threading.Event,
    announce: Callable[[str, str], None],
    progress: Progress | None = None,
) -> ReplayReport:
    """Be an Eiger until all is played, or with ``settings.rest`` until ``stop`` is set.

    ``announce`` is called with ("replay", endpoint) and ("simplon", "http://host:port") once
    bound. Raises ``BadInput``.
    """
    with Replay(settings) as replay:
        if settings.rest is None:
            announce("replay", replay.endpoint)
            replay.play(stop, progress)
            replay.hand_over(stop)
            return replay.report()
        # Only the REST side needs an HTTP server; without it none is loaded.
        from sim_replay.simplon import SimplonServer

        with SimplonServer(replay, settings.rest, progress) as server:
            announce("replay", replay.endpoint)
            announce("simplon", server.url)
            while not stop.wait(_CATCH_UP_S):
                replay.wire.watch()
        replay.hand_over(stop)
        return replay.report()
