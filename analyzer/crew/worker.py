"""A worker: takes packed frames from a front, hands back what they show, for as long as it runs.

The thread that owns the socket never computes, so that the front hears from it every second whatever the others do.
"""

import contextlib
import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import zmq

from analyzer.bundle import BadBundle
from analyzer.cascade import Analyser, BatchOutcome, undecodable
from analyzer.crew.curve import WorkerKeys, be_a_worker
from analyzer.crew.outcome import pack_coverage, pack_outcome
from analyzer.crew.setup import read_setup
from analyzer.crew.shared import SharedFacts, SlotView
from analyzer.crew.wakeup import Wakeup
from analyzer.crew.wire import (
    BEAT_S,
    MOST_PARTS,
    PROTOCOL,
    BadMessage,
    FrameFacts,
    Hello,
    Kind,
    Told,
    Work,
    header_of,
    kind_of,
    message,
    part_of,
    read_frame,
    read_series,
)  # fmt: skip
from analyzer.door import Handshakes, RefusedConnection
from analyzer.judge import Judge
from analyzer.logs import Repeats
from analyzer.pulse import Pulse
from analyzer.warm import warm_up
from analyzer.worker_load import WorkerLoad
from streamer.connections import rest_of_message
from streamer.frames import Frame
from streamer.series import Series

log = logging.getLogger(__name__)

SILENT_S = 10.0
"""A front that says nothing for so long is another one, or there is none: it is greeted anew."""

_POLL_MS = 100
_SERIES_KEPT = 16
_LINGER_MS = 500
_ONCE_S = 60.0
_SETTLE_S = 0.5
_GATHER_S = 5.0
_JOIN_S = 5.0
_LEAVE_S = 10.0
"""How long a worker that is to end goes on with what it holds; half a second at least, for what is on its way."""

_REFUSED = {
    RefusedConnection.KEY: "the front does not allow this worker's key; add the public one to its --worker-keys",
    RefusedConnection.PROTOCOL: "the front wants keys, or has others than were given here (--worker-key, --front-key), "
    "or is none",
}

_LOCAL = ("tcp://127.", "tcp://localhost:", "tcp://[::1]:", "ipc://")


class Refused(RuntimeError):
    """The front wants no such worker, or this one cannot go on: one line."""


Make = Callable[[Judge], Analyser]


@dataclass(frozen=True, slots=True, eq=False)
class _Setup:
    """What frames are judged with: an analyser a thread."""

    judge: Judge
    analysers: Sequence[Analyser]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A batch and the setup it is to be judged with."""

    batch: int
    setup: _Setup
    frames: list[Frame]


class _Warming:
    """Has each thread of a worker warm its own analyser of a setup, before any frame comes."""

    def __init__(self, setup: _Setup) -> None:
        self._setup = setup
        self._all_here = threading.Barrier(len(setup.analysers))
        self._done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def by(self, place: int) -> None:
        """In the thread of that place."""
        with contextlib.suppress(threading.BrokenBarrierError):
            # So that no thread takes two of them.
            self._all_here.wait(_GATHER_S)
        try:
            warm_up(self._setup.analysers[place], self._setup.judge)
        except Exception as error:
            self._done.put(error)
        else:
            self._done.put(None)

    def wait(self) -> None:
        """Until all are warm. Raises as ``warm_up``."""
        for error in [self._done.get() for _ in self._setup.analysers]:
            if error is not None:
                raise error


class Worker:
    """Serves one front at ``address``. ``make`` makes an analyser of what the front says; ``threads`` of them work.

    ``load`` adds up what was done; ``ready``: it judges as the front wants; ``pulse``: its threads get on. ``once``: it
    ends with the front's run. Without ``shared`` frames come over the wire even on one machine. With ``keys`` it speaks
    to that front alone.
    """

    def __init__(
        self,
        address: str,
        make: Make,
        *,
        name: str,
        threads: int = 1,
        batch_frames: int = 8,
        once: bool = False,
        shared: bool = True,
        keys: WorkerKeys | None = None,
    ) -> None:
        self.load = WorkerLoad()
        self.pulse = Pulse()
        self.ready = False
        self.fault: str | None = None
        self.name = name
        self._address, self._make, self._threads, self._once = address, make, threads, once
        self._batch, self._credits = batch_frames, 2 * batch_frames * threads
        self._shared = shared and address.startswith(_LOCAL)
        self._keys = keys
        self._slots: SlotView | None = None
        self._setups: OrderedDict[int, _Setup] = OrderedDict()
        self._series: OrderedDict[int, Series] = OrderedDict()
        self._jobs: queue.Queue[_Job | _Warming | None] = queue.Queue()
        self._out: queue.Queue[list[Any]] = queue.Queue()
        self._held = 0
        self._making, self._counting = threading.Lock(), threading.Lock()
        self._wanted: list[Any] | None = None
        self._failure: str | None = None
        self._heard_s = self._greeted_s = time.monotonic()
        self._repeats = Repeats(log)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._wakeup = Wakeup()
        self._over = False

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set, or with ``once`` until the front's run is over or it is silent for long.

        What it holds is handed back. Raises ``OSError`` for an address that is none, and ``Refused`` where the front
        wants no such worker, or a thread of this one failed.
        """
        names = [f"worker-{number}" for number in range(self._threads)]
        threads = [
            threading.Thread(target=self._work, args=(number,), name=name, daemon=True)
            for number, name in enumerate(names)
        ]
        self._dealer = self._connect()
        for thread in threads:
            thread.start()
        try:
            self._serve(stop)
            self.pulse.rest()
            self._send(message(Kind.BYE))
        finally:
            for _ in threads:
                self._jobs.put(None)
            for place, thread in enumerate(threads):
                thread.join(_JOIN_S)
                if thread.is_alive():
                    self._give_up(place)
            self._handshakes.close()
            self._dealer.close(_LINGER_MS)
            self._wakeup.close()
            self._repeats.close()
        if self._failure is not None:
            raise Refused(self._failure)

    def _serve(self, stop: threading.Event) -> None:
        poller = zmq.Poller()
        poller.register(self._wakeup.descriptor, zmq.POLLIN)
        poller.register(self._dealer, zmq.POLLIN)
        poller.register(self._handshakes.socket, zmq.POLLIN)
        beaten = self._heard_s = time.monotonic()
        leaving_s: float | None = None
        while not self._over and self._failure is None:
            poller.poll(_POLL_MS)
            self.pulse.beat()
            self._turn()
            now = time.monotonic()
            if stop.is_set() and leaving_s is None:
                leaving_s = now
                self._send(message(Kind.LEAVING))
            if leaving_s is not None and (now - leaving_s > _LEAVE_S or (now - leaving_s > _SETTLE_S and self._idle)):
                return
            if now - beaten >= BEAT_S and self._heard_s > self._greeted_s:
                # Not before the front has answered: beats to nobody would wait for the next one.
                beaten = now
                self._send(message(Kind.BEAT))
            if now - max(self._heard_s, self._greeted_s) > SILENT_S:
                self._greet_anew(poller)
            if self._once and now - self._heard_s > _ONCE_S:
                self._failure = f"no front at {self._address} for {_ONCE_S:.0f} s"

    def _give_up(self, place: int) -> None:
        """A thread does not end: what it does on a device is not to be freed under it, nor waited for."""
        for setup in list(self._setups.values()):
            if setup.analysers[place].on_device:
                setup.analysers[place].give_up(f"the device does not come back from a call for {_JOIN_S:g} s")

    @property
    def _idle(self) -> bool:
        with self._counting:
            return self._held == 0 and self._out.empty()

    def _greet_anew(self, poller: zmq.Poller) -> None:
        """Over another connection: what waits in the old one is for a front that is gone."""
        for each in (self._dealer, self._handshakes.socket):
            poller.unregister(each)
        self._handshakes.close()
        self._dealer.close(0)
        self.ready = False
        self._series.clear()
        self._setups.clear()
        self._dealer = self._connect()
        for each in (self._dealer, self._handshakes.socket):
            poller.register(each, zmq.POLLIN)

    def _connect(self) -> "zmq.Socket[bytes]":
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, b"w" + secrets.token_bytes(15))
        dealer.setsockopt(zmq.MAXMSGSIZE, 1 << 30)
        dealer.setsockopt(zmq.IPV6, int("[" in self._address))
        # Bounded by the room that this worker says it has.
        dealer.setsockopt(zmq.SNDHWM, 0)
        dealer.setsockopt(zmq.RCVHWM, 0)
        dealer.setsockopt(zmq.RECONNECT_IVL, 200)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
        if self._keys is not None:
            be_a_worker(dealer, self._keys)
        self._handshakes = Handshakes(dealer)
        try:
            dealer.connect(self._address)
        except zmq.ZMQError as error:
            self._handshakes.close()
            dealer.close(0)
            raise OSError(f"{self._address}: {error}") from None
        with contextlib.suppress(zmq.Again):
            dealer.send_multipart(self._hello(), zmq.DONTWAIT)
        self._greeted_s = time.monotonic()
        return dealer

    def _send(self, parts: list[Any]) -> None:
        """Never waits: where a front refused us there is nobody to take it, and no connection until we greet anew."""
        with contextlib.suppress(zmq.Again):
            self._dealer.send_multipart(parts, zmq.DONTWAIT, copy=False)

    def _hello(self) -> list[Any]:
        hello = Hello(
            PROTOCOL,
            self.name,
            socket.gethostname(),
            os.getpid(),
            self._threads,
            self._batch,
            self._credits,
            self._shared,
        )
        return message(Kind.HELLO, hello)

    def _turn(self) -> None:
        """Take what came and send what is done."""
        self._wakeup.drain()
        for reason in self._handshakes.failed():
            text = f"no entry at {self._address}: {_REFUSED[reason]}"
            self._repeats.warning(f"handshake {reason}", text, "front_refuses", reason=reason)
        while not self._out.empty():
            self._send(self._out.get())
        for _ in range(64):
            try:
                first = self._dealer.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            rest, beyond = rest_of_message(self._dealer, MOST_PARTS - 1) if first.more else ([], 0)
            self._heard_s = time.monotonic()
            try:
                if beyond:
                    raise BadMessage(f"a message of {1 + len(rest) + beyond} parts")
                self._heard([frame.buffer for frame in (first, *rest)])
            except Exception as error:
                # Whatever one message does, the next ones are read and the front hears of this worker.
                text = f"the front at {self._address} sends what cannot be used: {error}"
                self._repeats.warning("front", text, "front_message_refused")

    def _heard(self, parts: list[Any]) -> None:
        kind = kind_of(parts)
        if kind == Kind.HELLO:
            self._greeted(parts)
        elif kind == Kind.SETUP:
            self.ready = False
            with self._counting:
                self._wanted = parts
            threading.Thread(target=self._set_up, name="setup", daemon=True).start()
        elif kind == Kind.SERIES:
            number, series = read_series(parts)
            self._series[number] = series
            while len(self._series) > _SERIES_KEPT + self._credits:
                self._series.popitem(last=False)
        elif kind == Kind.WORK:
            self._take(parts)
        elif kind == Kind.FORGET:
            self._forget(header_of(parts, int))
        elif kind == Kind.UNFIT:
            self._failure = f"the front at {self._address}: {header_of(parts, Told).text}"
        elif kind == Kind.END:
            self.ready, self._over = False, self._once
            self._setups.clear()
        elif kind != Kind.BEAT:
            raise BadMessage(f"{kind.name} from a front")

    def _greeted(self, parts: list[Any]) -> None:
        """Where frames are shared; or, by a front that does not know this worker, the question who it is."""
        facts: SharedFacts | None = header_of(parts, SharedFacts | None)  # type: ignore[arg-type]
        if facts is None:
            # Asked by each message that a front does not know the sender of: once is enough.
            if time.monotonic() - self._greeted_s > BEAT_S:
                self._greeted_s = time.monotonic()
                self._series.clear()
                self._say(self._hello())
            return
        try:
            self._slots = SlotView(facts)
        except (OSError, ValueError, OverflowError) as error:
            log.info("frames come over the wire: the front's memory cannot be opened from here: %s", error)
            self._shared, self._slots = False, None
            self._say(self._hello())

    def _take(self, parts: list[Any]) -> None:
        work = header_of(parts, Work)
        try:
            setup = self._setups.get(work.setup)
            if setup is None:
                raise BadMessage(f"a batch for setup {work.setup}, which is not known here")
            frames = [self._frame(facts, parts[2:]) for facts in work.frames]
        except BadMessage as error:
            # Said, so that the front gives the frames to another at once.
            self._say(message(Kind.REFUSED, Told(work.batch, str(error))))
            raise
        with self._counting:
            self._held += 1
        self._jobs.put(_Job(work.batch, setup, frames))

    def _frame(self, facts: FrameFacts, parts: Sequence[Any]) -> Frame:
        series = self._series.get(facts.series)
        if series is None:
            raise BadMessage(f"a frame of series {facts.series}, which was not told")
        data: Any = b""
        if facts.part >= 0 or (facts.place is None and facts.defect is None):
            data = part_of(facts, parts)
        elif facts.place is not None:
            if self._slots is None:
                raise BadMessage("a frame in shared memory, which is not open here")
            data = self._slots.at(facts.place)
        return read_frame(facts, series, data)

    def _forget(self, ordinal: int) -> None:
        """Tell what frames of a series covered, and let go of it."""
        known = [(number, series) for number, series in self._series.items() if series.ordinal == ordinal]
        analysers = [analyser for setup in list(self._setups.values()) for analyser in setup.analysers]
        covered = [each for analyser in analysers for _, series in known[-1:] for each in analyser.covered(series)]
        self._say(pack_coverage(ordinal, covered))
        for number, series in known:
            del self._series[number]
            for analyser in analysers:
                analyser.forget(series)

    # --- other threads ------------------------------------------------------------------

    def _set_up(self) -> None:
        with self._making:
            with self._counting:
                # Only the latest of those that came meanwhile.
                parts, self._wanted = self._wanted, None
            if parts is None:
                return
            number = 0
            try:
                number, judge = read_setup(parts)
                setup = _Setup(judge, [self._make(judge) for _ in range(self._threads)])
                self._warm(setup)
            except (BadMessage, BadBundle) as error:
                log.warning("cannot judge as the front says: %s", error)
                self._say(message(Kind.UNFIT, Told(number, str(error))))
                return
            except Exception as error:
                log.exception("cannot judge as the front says")
                self._say(message(Kind.UNFIT, Told(number, f"{type(error).__name__}, see the worker's log")))
                return
            self._setups[number] = setup
            while len(self._setups) > 2:
                self._setups.popitem(last=False)
            self.ready = True
            log.info("ready: bundle %s, threshold %.4g", judge.bundle.label, judge.threshold)
            self._say(message(Kind.READY, Told(number)))

    def _warm(self, setup: _Setup) -> None:
        warm_up(setup.analysers[0], setup.judge)
        on_device = [analyser for analyser in setup.analysers if analyser.on_device]
        if self._setups:
            # The threads are at work, and have opened what is theirs: frames are not to wait.
            for analyser in on_device:
                warm_up(analyser, setup.judge)
        elif on_device:
            warming = _Warming(setup)
            for _ in setup.analysers:
                self._jobs.put(warming)
            warming.wait()

    def _work(self, place: int) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                self.pulse.beat()
                if isinstance(job, _Warming):
                    job.by(place)
                else:
                    self._answer(job, place)
                self.pulse.rest()
        except Exception as error:
            # A worker that lives and does not work would hold its frames for long: it ends, and is started again.
            log.exception("a thread of this worker failed")
            self._failure = f"a thread of this worker failed: {type(error).__name__}"

    def _answer(self, job: _Job, place: int) -> None:
        began = time.monotonic()
        analyser = job.setup.analysers[place]
        try:
            outcome = analyser.process(job.frames)
        except Exception:
            log.exception("analysis of %d frames failed", len(job.frames))
            tags = job.setup.judge.settings.tags
            text = "internal error, see the worker's log"
            outcome = BatchOutcome([undecodable(frame, "failed", text, tags) for frame in job.frames])
        busy_s = time.monotonic() - began
        self.fault = analyser.fault or self.fault
        self.load.add(job.frames, outcome.results, busy_s)
        self._say(pack_outcome(job.batch, outcome, busy_s, analyser.fault))
        with self._counting:
            self._held -= 1

    def _say(self, parts: list[Any]) -> None:
        self._out.put(parts)
        self._wakeup.wake()
