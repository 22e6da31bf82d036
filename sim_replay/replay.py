"""An Eiger on the wire: recorded HDF5 series played over stream v1 or v2.

A ``Replay`` is recordings on a bound socket, with the counts. Packed chunks go out byte for
byte as they lie in the file; nothing is ever compressed again. ``run_replay`` is the whole of
``cxls replay``.

Full-queue policy: ``block`` waits for the consumer, so that a run is complete and repeatable;
``drop`` never waits for an image, as the detector never does, and counts what it dropped.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Self

from sim_replay.faults import FaultPlan, Ledger
from sim_replay.faults.line import Fate, FaultyLine
from sim_replay.pace import Pace
from sim_replay.recordings import Recording, open_recordings
from sim_replay.running import RunningSeries, StreamStyle, check_carried
from sim_replay.wire import DEFAULT_BIND, SEND_HWM, Wire
from streamer.files import BadInput
from streamer.messages import SeriesMetadata

PROTOCOLS = ("v1", "v2")
HEADER_DETAILS = ("none", "basic", "all")
ON_FULL = ("block", "drop")

CONTROL_LIMIT_S = 5.0
"""How long a start or an end waits for room where images do not wait; then it is lost and counted."""

DEFAULT_FRAME_TIME_S = 0.001
"""Step of the detector clock where neither the file nor a rate says one."""

MAX_PROBLEMS = 20
"""Sentences kept about unreadable images; the rest are only counted."""

_WATCH_S = 0.1
"""Between two looks at the socket's events while the REST side plays."""

Progress = Callable[[int, int], None]
"""Called after each image with (images done, images in all); the second is 0 when looping."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """What to play and how. Raises ``BadInput`` for a value that makes no sense.

    ``rate_hz`` is images a second, ``None`` as fast as the consumer takes them. ``rest`` is
    ``host:port`` of the SIMPLON server; with it, series wait for arm and trigger. ``loop_s``: when
    looping, seconds after which no further series begins (``None``: until stopped).
    ``header_appendix`` goes into v2 starts and v1 headers of detail ``all``. ``fault_report`` is
    the file that tells of the faults of ``faults``, a JSON object a line.
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
    loop_s: float | None = None
    faults: FaultPlan | None = None
    fault_report: Path | None = None

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
    """What was played. ``images = sent + dropped + unreadable + withheld`` unless a stop cut a series short.

    ``sent`` was handed to ZeroMQ, ``withheld`` was not because of a fault. ``faults`` counts those by kind,
    ``faults_left_out`` names those asked for that had no place. ``control_lost`` counts starts and ends
    that found no room in time, ``seconds`` runs from the first start to the hand-over of the last message.
    """

    series: int
    sent: int
    dropped: int
    unreadable: int
    control_lost: int
    seconds: float
    interrupted: bool
    problems: tuple[str, ...] = ()
    withheld: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    faults_left_out: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        return self.sent + self.dropped + self.unreadable + self.withheld


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
                    check_carried(recording, settings.protocol)
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
        self._faulty: FaultyLine | None = None
        if settings.faults is not None:
            try:
                ledger = Ledger(settings.fault_report)
            except BaseException:
                self.close()
                raise
            patience_s, rearms = self._control_wait(), settings.rest is None
            self._faulty = FaultyLine(settings.faults, self.wire, ledger, self._rearm, patience_s, rearms)
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
        total = 0 if self.settings.loop else sum(map(len, self.recordings))
        pace = Pace(self.settings.rate_hz)
        if self.wire.wait_for_consumer(stop):
            for recording in self._playlist():
                if stop.is_set():
                    break
                running = self.prepare(recording, recording.metadata, self.style, stop)
                if self.start(running):
                    self.play_images(running, len(recording), pace, progress, total)
                    self.end(running)
        self._interrupted = stop.is_set()
        return self.report()

    def _playlist(self) -> Iterator[Recording]:
        began, limit_s = time.monotonic(), self.settings.loop_s
        yield from self.recordings
        while self.settings.loop:
            for recording in self.recordings:
                if limit_s is not None and time.monotonic() - began >= limit_s:
                    return
                yield recording

    def prepare(
        self, recording: Recording, metadata: SeriesMetadata, style: StreamStyle, cancel: threading.Event
    ) -> RunningSeries:
        """A new series with the next id, armed now; nothing is sent yet."""
        rate = self.settings.rate_hz
        frame_time = metadata.frame_time_s or (1 / rate if rate else DEFAULT_FRAME_TIME_S)
        metadata = metadata.with_changes(
            arm_date=_now(),
            frame_time_s=frame_time,
            count_time_s=metadata.count_time_s or frame_time,
            user_data=style.header_appendix,
        )
        # Played without a client, each series starts at zero, as its file says; v2 counts from its series date.
        clock = time.monotonic() - self._clock_zero if self.settings.rest and style.protocol == "v1" else 0.0
        return RunningSeries(next(self._ids), recording, metadata, style, clock, cancel)

    def start(self, running: RunningSeries) -> bool:
        """Send the start. False when the series was cancelled before its start found room."""
        if self._began is None:
            self._began = time.monotonic()
        if running.style.enabled:
            sent = self._send_start(running)
            if not sent and running.cancel.is_set():
                return False
            self.control_lost += not sent
        self.series += 1
        return True

    def _send_start(self, running: RunningSeries) -> bool:
        if self._faulty is None:
            return self.wire.send(running.start_parts(), running.cancel, self._control_wait())
        # A client may arm for more images than the file has.
        images = len(running.recording) if self.settings.rest is None else running.metadata.number_of_images
        return self._faulty.start(running, images or len(running.recording), self._control_wait())

    def _rearm(self, running: RunningSeries, from_one: bool) -> None:
        """The running series breaks off; the images that are left are a new one."""
        if from_one:
            self._ids = count(1)
        before = running.metadata.arm_date
        while (now := _now()) == before:
            time.sleep(0.001)
        running.begin_again(next(self._ids), now)
        self.series += 1

    def play_images(
        self, running: RunningSeries, images: int, pace: Pace, progress: Progress | None = None, total: int = 0
    ) -> int:
        """Send the next ``images`` images of the series, from the file's first again after its last.

        Returns how many were played (sent, dropped or unreadable): fewer when cancelled. Raises
        ``BadInput`` for an image that the stream cannot carry.
        """
        played = 0
        pace.restart()
        while played < images and pace.wait(running.cancel) and self._play_image(running):
            running.next_image += 1
            played += 1
            if progress is not None:
                progress(self.sent + self.dropped + self.unreadable, total)
        return played

    def _play_image(self, running: RunningSeries) -> bool:
        """One image, counted; False when cancelled while waiting for room, or where the series ends before it."""
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
        block = self.settings.on_full == "block"
        wait_s = None if block else 0.0
        if self._faulty is None:
            sent = self.wire.send(running.image_parts(image), running.cancel, wait_s)
        else:
            fate = self._faulty.image(running, image, wait_s)
            if fate in (Fate.WITHHELD, Fate.SERIES_OVER):
                return fate == Fate.WITHHELD
            sent = fate == Fate.SENT
        self.sent += sent
        self.dropped += not sent and not block
        return sent or not block

    def end(self, running: RunningSeries, patient: bool = False) -> None:
        """Send the end. A cancelled series' end does not wait, unless ``patient``: then up to the limit."""
        if running.style.enabled:
            if patient and running.cancel.is_set():
                sent = self._send_end(running, threading.Event(), CONTROL_LIMIT_S)
            else:
                sent = self._send_end(running, running.cancel, self._control_wait())
            self.control_lost += not sent
        self._ended = time.monotonic()

    def _send_end(self, running: RunningSeries, cancel: threading.Event, wait_s: float | None) -> bool:
        if self._faulty is None:
            return self.wire.send(running.end_parts(), cancel, wait_s)
        return self._faulty.end(running, cancel, wait_s)

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
        faulty = self._faulty
        unsent = 0 if faulty is None else faulty.unsent
        return ReplayReport(
            series=self.series,
            sent=self.sent - unsent,
            dropped=self.dropped + (unsent if self.settings.on_full == "drop" else 0),
            unreadable=self.unreadable,
            control_lost=self.control_lost,
            seconds=0.0 if self._began is None else ended - self._began,
            interrupted=self._interrupted,
            problems=tuple(self.problems),
            withheld=0 if faulty is None else faulty.withheld,
            faults={} if faulty is None else dict(faulty.ledger.counts),
            faults_left_out=() if faulty is None else tuple(faulty.left_out),
        )

    def close(self) -> None:
        """Close the socket at once and the files."""
        if self._faulty is not None:
            self._faulty.close()
        self.wire.close()
        self._close_recordings()

    def _close_recordings(self) -> None:
        for recording in self.recordings:
            recording.close()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


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
        from sim_replay.simplon_http import SimplonServer

        with SimplonServer(replay, settings.rest, progress) as server:
            announce("replay", replay.endpoint)
            announce("simplon", server.url)
            while not stop.wait(_WATCH_S):
                replay.wire.watch()
        replay.hand_over(stop)
        return replay.report()
