"""The front's side: gives packed frames to workers that have room, takes their outcomes, and notices who is gone.

One thread owns the socket and the table; another takes frames from the front's queue as long as workers have room, so
that what nobody has room for stays where it is counted and, if need be, dropped.
"""

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq
from msgspec.structs import replace
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from analyzer.bundle import BadBundle
from analyzer.cascade import BatchOutcome, PlanCache, plan_of, tags_of, undecodable
from analyzer.crew.curve import FrontKeys, Gate
from analyzer.crew.flight import NUMBER_BITS, Batch, FlightTable
from analyzer.crew.outcome import read_coverage, read_outcome
from analyzer.crew.setup import pack_setup
from analyzer.crew.shared import Slots
from analyzer.crew.wakeup import Wakeup
from analyzer.crew.wire import (
    BEAT_S,
    MOST_PARTS,
    PROTOCOL,
    BadMessage,
    Done,
    Hello,
    Kind,
    Told,
    Work,
    as_received,
    frame_facts,
    header_of,
    kind_of,
    message,
    pack_series,
)  # fmt: skip
from analyzer.door import LOOK_S, Door, Limits, RefusedConnection
from analyzer.judge import Judge
from analyzer.logs import Repeats
from analyzer.reduction import Coverage, FramePlan
from analyzer.worker_load import WorkerLoad
from streamer.connections import keep_no_buffers, rest_of_message
from streamer.errors import first_line
from streamer.frames import Frame
from streamer.messages import ImageData, SeriesMetadata
from streamer.ring import FrameRing
from streamer.series import Series

log = logging.getLogger(__name__)

SILENT_S = 6.0
"""A worker that says nothing for so long is lost; it beats every second, whatever it computes."""

STALL_S = 30.0
"""A batch that takes longer is given to others; its worker gets nothing more until it answers."""

SWITCH_S = 60.0
"""How long a change waits for workers to be ready for it: a new bundle is loaded and warmed up."""

_COVERAGE_S = 3.0
_TELL_S = 10.0
_LINGER_MS = 500
_END_S = 10.0
_PAUSE_S = 2.0
_AT_ONCE = 1024
_MOST_NAME, _MOST_TEXT = 100, 500
_POLL_MS = 100
_READABLE = int(zmq.POLLIN)
_MOST_WORKERS = 256
_MOST_CREDITS, _MOST_BATCH = 4096, 256
_MOST_UNREAD = 64
"""Messages of one worker that wait to be read here."""

MOST_PART_BYTES = 32 << 20
"""Of what workers send: records and peaks of a batch, coverage of a series. libzmq hangs up on who sends more."""

LIMITS = Limits(
    connections=2 * _MOST_WORKERS, unread_bytes=128 << 20, all_unread_bytes=1 << 30, first_s=10.0, silent_s=30.0
)
"""A worker that comes back has a second connection for a moment; it says hello at once and then beats."""

_HANDSHAKE_MS = 5000
_MOST_STRANGERS = 256
"""Peers that are asked in a second who they are."""

_REFUSED = {
    RefusedConnection.KEY: "its key is not in the file of --worker-keys",
    RefusedConnection.PROTOCOL: "it speaks without keys, takes another key for ours, or is no worker",
    RefusedConnection.TOO_MANY: "too many are connected",
    RefusedConnection.TOO_MUCH: "it sent without end and never a whole message",
    RefusedConnection.SILENT: "it says nothing",
}
_SERIES_KEPT = 16

Deliver = Callable[[list[Frame], BatchOutcome], None]


@dataclass(slots=True, eq=False)
class _Member:
    """A worker: what it said of itself, frames it still has room for, the setup it is ready for, series it knows.

    ``late``: of each batch that others have since, how many frames and where they lie.
    """

    identity: bytes
    hello: Hello
    heard_s: float
    room: int
    ready: int = 0
    unfit: str = ""
    leaving: bool = False
    given_s: float = 0.0
    answered_s: float = 0.0
    late: dict[int, tuple[int, list[tuple[int, int]]]] = field(default_factory=dict)
    series: set[int] = field(default_factory=set)
    ordinals: set[int] = field(default_factory=set)
    slots: Slots | None = None
    frames: int = 0
    busy_s: float = 0.0
    fault: str | None = None


@dataclass(slots=True, eq=False)
class _Awaited:
    """Coverages of a series that are on their way."""

    waiting: set[bytes]
    found: list[Coverage] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


class Crew:
    """Workers elsewhere. ``address``: where they attach, as bound. Raises ``OSError`` where it cannot be bound.

    ``plans`` is shared with whoever makes plans in this process. ``load`` adds up what all workers did. With ``keys``
    only workers that have one of those allowed are let in.
    """

    def __init__(self, address: str, judge: Judge, plans: PlanCache, keys: FrontKeys | None = None) -> None:
        self.load = WorkerLoad()
        self._plans = plans
        # One of its own: whoever decides about keys decides for all of a context.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        keep_no_buffers(self._context)
        self._socket = self._context.socket(zmq.ROUTER)
        self._gate = None if keys is None else Gate(self._socket, keys)
        self._door = Door(self._socket, LIMITS)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # One that comes back over a new connection has its old name.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        # More than workers can have room for: nothing waits here but for who does not read.
        self._socket.setsockopt(zmq.SNDHWM, 3 * _MOST_CREDITS)
        self._socket.setsockopt(zmq.RCVHWM, _MOST_UNREAD)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MOST_PART_BYTES)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        self._socket.setsockopt(zmq.IPV6, int("[" in address))
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._close_socket()
            raise OSError(f"{address}: {error}") from None
        self.address = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))
        self._wakeup = Wakeup()
        self._setup = secrets.randbits(NUMBER_BITS)
        self._setup_parts = pack_setup(self._setup, judge)
        self._judges = {self._setup: judge}
        self._table = FlightTable()
        self._members: dict[bytes, _Member] = {}
        self._changed = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._series: OrderedDict[int, tuple[Series, int]] = OrderedDict()
        self._series_numbers = 0
        self._known_plans: OrderedDict[tuple[Any, ...], tuple[SeriesMetadata, FramePlan]] = OrderedDict()
        self._awaited: dict[int, _Awaited] = {}
        self._lost = self._bad = 0
        self._bytes = {"wire": 0, "shared": 0}
        self._closing = self._fed = False
        self._turned_s = self._served_s = self._looked_s = time.monotonic()
        self._ring: FrameRing | None = None
        self._repeats = Repeats(log)
        self._batch = 1
        self._beat_s = self._asked_s = 0.0
        self._asked = 0
        self._deliver: Deliver = lambda frames, outcome: None
        self._tags: tuple[str, ...] = ()
        self._threads: list[threading.Thread] = []

    # --- from the front -----------------------------------------------------------------

    def start(self, ring: FrameRing, linger_s: float, tags: tuple[str, ...], deliver: Deliver) -> None:
        """Serve workers with the ring's frames until it is closed and empty; ``deliver`` is called by one thread."""
        self._deliver, self._tags, self._ring = deliver, tags, ring
        self._threads = [
            threading.Thread(target=self._feed, args=(ring, linger_s), name="crew-feeder", daemon=True),
            threading.Thread(target=self._serve, name="crew", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def bind_also(self, address: str) -> str:
        """Serve workers here too, before ``start``; returns the address as bound. Raises ``OSError``."""
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            raise OSError(f"{address}: {error}") from None
        return str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    @property
    def threads(self) -> int:
        """How many threads of workers judge."""
        with self._changed:
            return sum(member.hello.threads for member in self._members.values() if self._usable(member))

    @property
    def unserved_s(self) -> float:
        """For how long no worker has been ready; 0 while one is."""
        with self._changed:
            if any(map(self._usable, self._members.values())):
                return 0.0
            return time.monotonic() - self._served_s

    def use(self, judge: Judge) -> bool:
        """Judge so from the next batch on; returns whether all workers were ready for it in time and none holds an
        older batch. Raises ``BadBundle`` where a worker refuses the bundle, and all judge as before.

        Raises ``CannotShare`` too."""
        before = self._judges[self._setup]
        settled = self._change(judge)
        with self._changed:
            unfit = [member.unfit for member in self._members.values() if member.unfit]
        if unfit:
            self._change(before)
            raise BadBundle(f"a worker refuses it: {unfit[0]}")
        return settled

    def _change(self, judge: Judge) -> bool:
        parts = pack_setup(self._setup + 1, judge)

        def change() -> None:
            self._setup, self._setup_parts = self._setup + 1, parts
            # The one before, too: its batches are still on their way.
            self._judges = {self._setup - 1: self._judges[self._setup - 1], self._setup: judge}
            for member in list(self._members.values()):
                member.unfit = ""
                self._tell(member, parts)

        if not self._threads:
            # Before ``start`` nobody is served yet, and nobody else touches what changes.
            change()
            return True
        self._do(change)
        with self._changed:
            return self._changed.wait_for(self._settled, SWITCH_S)

    def _settled(self) -> bool:
        """Whether everybody judges, and has judged, as the latest setup says."""
        oldest = self._table.oldest_setup()
        old = oldest is not None and oldest < self._setup
        return not self._inbox and not old and all(m.ready == self._setup or m.unfit for m in self._members.values())

    def covered(self, series: Series) -> list[Coverage]:
        """What workers' frames of a series that is over covered; they forget it. Waits a while for them."""
        awaited = _Awaited(set())

        def ask() -> None:
            served = [m for m in self._members.values() if series.ordinal in m.ordinals]
            awaited.waiting.update(member.identity for member in served if not member.late)
            self._awaited[series.ordinal] = awaited
            for member in served:
                member.ordinals.discard(series.ordinal)
                self._tell(member, message(Kind.FORGET, series.ordinal))
            if not awaited.waiting:
                awaited.done.set()

        if not self._closing:
            self._do(ask)
            awaited.done.wait(_COVERAGE_S)
        with self._changed:
            self._awaited.pop(series.ordinal, None)
        return awaited.found

    def drain(self, patient: Callable[[], bool]) -> list[Frame]:
        """Wait until nothing waits or flies, as long as ``patient`` says so; returns frames that are left over.

        The ring has to be closed.
        """
        while patient():
            with self._changed:
                feeding = bool(self._threads) and self._threads[0].is_alive()
                if not feeding and not self._inbox and not self._table.waiting and not self._table.frames_flying:
                    return []
                self._changed.wait(0.1)
        self._fed = True
        if self._threads:
            self._threads[0].join(2.0)
        with self._changed:
            self._changed.wait_for(lambda: not self._inbox, 2.0)
            return self._table.clear()

    def close(self) -> None:
        """Tell workers that it is over, and let go of sockets and memory."""

        def end() -> None:
            for member in list(self._members.values()):
                self._tell(member, message(Kind.END))
            self._closing = True

        self._do(end)
        for thread in self._threads:
            thread.join(_END_S)
        if not self._threads:
            self._close_sockets()
        self._repeats.close()

    def facts(self) -> dict[str, Any]:
        """Plain values for the status page."""
        now = time.monotonic()
        with self._changed:
            members = [
                {
                    "name": m.hello.name,
                    "host": m.hello.host,
                    "pid": m.hello.pid,
                    "state": self._state(m),
                    "shared_memory": m.slots is not None,
                    "frames": m.frames,
                    "busy_s": round(m.busy_s, 3),
                    "in_flight": sum(len(batch.frames) for batch in self._table.held_by(m.identity)),
                    "silent_s": round(now - m.heard_s, 3),
                    "fault": m.fault or m.unfit or None,
                }
                for m in self._members.values()
            ]
            return {
                "address": self.address,
                "workers": members,
                "in_flight": self._table.frames_flying,
                "held_bytes": self._table.held_bytes,
                "waiting": self._table.frames_waiting,
                "resent": self._table.resent,
                "lost_workers": self._lost,
            }

    def collect(self) -> Iterator[Metric]:
        """``cxls_crew_…``, every child from the start."""
        facts = self.facts()
        states = GaugeMetricFamily(
            "cxls_crew_workers", "Workers of other processes and hosts, by state", labels=["state"]
        )
        for state in ("ready", "starting", "stalled", "leaving", "unfit"):
            states.add_metric([state], sum(each["state"] == state for each in facts["workers"]))
        yield states
        yield GaugeMetricFamily(
            "cxls_crew_frames_in_flight", "Images in the hands of workers", value=facts["in_flight"]
        )
        for name, text, value in (
            ("cxls_crew_frames_resent", "Images given to another worker because the first was lost", facts["resent"]),
            ("cxls_crew_outcomes_repeated", "Outcomes that came after their images were given to others",
             self._table.repeated),
            ("cxls_crew_workers_lost", "Workers that ended, stalled or fell silent with or without images", self._lost),
            ("cxls_crew_messages_invalid", "Messages refused at the workers' socket", self._bad),
        ):  # fmt: skip
            yield CounterMetricFamily(name, text, value=value)
        sent = CounterMetricFamily("cxls_crew_sent_bytes", "Packed images handed to workers", labels=["by"])
        for by, count in self._bytes.items():
            sent.add_metric([by], count)
        yield sent
        yield self._door.collect("cxls_crew_connections_refused")

    # --- the feeder ---------------------------------------------------------------------

    def _feed(self, ring: FrameRing, linger_s: float) -> None:
        while not ring.finished and not self._fed:
            with self._changed:
                room = self._changed.wait_for(self._room, 0.1)
                # What workers hold is bounded as what waits for them is, but for one frame.
                most_bytes = ring.capacity_bytes - self._table.held_bytes
            if not room:
                continue
            if frames := ring.take(min(self._batch, room), linger_s, 0.1, most_bytes):
                with self._changed:
                    self._table.add(frames)
                self._wakeup.wake()
        with self._changed:
            self._changed.notify_all()

    def _room(self) -> int:
        """Frames that workers have room for beyond those that wait here."""
        if self._ring is None or self._table.held_bytes >= self._ring.capacity_bytes:
            return 0
        room, self._batch = 0, 1
        for member in self._members.values():
            if self._usable(member):
                room += member.room
                self._batch = max(self._batch, member.hello.batch)
        return max(0, room - self._table.frames_waiting)

    def _do(self, work: Callable[[], None]) -> None:
        """Have the socket's thread do something."""
        if not self._wakeup.closed:
            self._inbox.append(work)
            self._wakeup.wake()

    # --- the socket's thread ------------------------------------------------------------

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wakeup.descriptor, zmq.POLLIN)
        poller.register(self._door.socket, zmq.POLLIN)
        if self._gate is not None:
            poller.register(self._gate.asked, zmq.POLLIN)
        while not self._closing:
            try:
                poller.poll(_POLL_MS)
                with self._changed:
                    self._turn()
                    self._changed.notify_all()
            except Exception:
                # A fault of ours must not end the run: frames in flight are looked after by the next turn.
                self._repeats.exception("crew: a turn failed", "crew_failed")
        self._close_sockets()

    def _close_socket(self) -> None:
        self._door.close()
        if self._gate is not None:
            self._gate.close()
        self._socket.close(_LINGER_MS)
        self._context.term()

    def _close_sockets(self) -> None:
        self._wakeup.close()
        self._close_socket()
        for member in self._members.values():
            if member.slots is not None:
                member.slots.close()

    def _turn(self) -> None:
        self._forgive_pause()
        self._wakeup.drain()
        while self._inbox:
            work = self._inbox.popleft()
            self._guarded(work)
        self._guarded(self._let_in)
        caught_up = self._receive()
        # After what is there was read: after a pause much of it is. Not in every turn: there are hundreds a second.
        if not caught_up or time.monotonic() - self._looked_s >= LOOK_S:
            self._guarded(lambda: self._tell_refused(self._door.weigh(caught_up)))
            self._guarded(lambda: self._look_after(caught_up))
        self._guarded(self._send_out)

    def _guarded(self, work: Callable[[], None]) -> None:
        """A fault of one thing must not keep the next from its turn."""
        try:
            work()
        except Exception:
            self._repeats.exception("crew: a part of a turn failed", "crew_failed")

    def _forgive_pause(self) -> None:
        """Nobody was silent while this process stood still."""
        now = time.monotonic()
        paused, self._turned_s = now - self._turned_s, now
        if paused > _PAUSE_S:
            for member in self._members.values():
                member.heard_s += paused
                for batch in self._table.held_by(member.identity):
                    batch.sent_s += paused

    def _let_in(self) -> None:
        """Workers with a key that is allowed; who was refused is counted, and said once in a while."""
        if self._gate is not None:
            self._gate.answer()
        self._tell_refused(self._door.admit())

    def _tell_refused(self, reasons: Sequence[RefusedConnection]) -> None:
        for reason in reasons:
            text = f"a connection to {self.address} was refused: {_REFUSED[reason]}"
            self._repeats.warning(f"connection {reason}", text, "worker_refused_at_the_door", reason=reason)

    def _receive(self) -> bool:
        """Take what came; returns whether that was all."""
        for _ in range(_AT_ONCE):
            if not int(self._socket.get(zmq.EVENTS)) & _READABLE:
                return True
            first = self._socket.recv(zmq.DONTWAIT, copy=False)
            # Whole: libzmq gives no part before all are there.
            parts, beyond = rest_of_message(self._socket, MOST_PARTS) if first.more else ([], 0)
            identity = first.bytes
            self._door.heard(first)
            try:
                if beyond:
                    raise BadMessage(f"a message of {len(parts) + beyond} parts")
                self._heard(identity, [part.bytes for part in parts])
            except Exception as error:
                self._bad += 1
                why = first_line(error)[:_MOST_TEXT]
                self._repeats.warning(
                    "refused",
                    f"crew: a message was refused: {why}",
                    "worker_message_refused",
                )
        return False

    def _heard(self, identity: bytes, parts: Sequence[Any]) -> None:
        kind = kind_of(parts)
        if kind == Kind.HELLO:
            self._welcome(identity, header_of(parts, Hello))
            return
        member = self._members.get(identity)
        if member is None:
            # One that was given up, or of an earlier front: it says hello again and is new.
            self._ask(identity)
            return
        member.heard_s = time.monotonic()
        if kind == Kind.READY:
            member.ready, member.unfit = header_of(parts, Told).number, ""
            log.info("worker %s on %s is ready", member.hello.name, member.hello.host)
        elif kind == Kind.REFUSED:
            self._refused(member, header_of(parts, Told))
        elif kind == Kind.LEAVING:
            member.leaving = True
        elif kind == Kind.UNFIT:
            told = header_of(parts, Told)
            if told.number not in (0, self._setup):
                return
            member.unfit = told.text[:_MOST_TEXT] or "no reason given"
            log.warning("worker %s on %s refuses: %s", member.hello.name, member.hello.host, member.unfit)
        elif kind == Kind.OUTCOME:
            self._landed(member, parts)
        elif kind == Kind.COVERAGE:
            self._covered(member, parts)
        elif kind == Kind.BYE:
            self._part_from(member, "left")
        elif kind != Kind.BEAT:
            raise BadMessage(f"{kind.name} from a worker")

    def _ask(self, identity: bytes) -> None:
        """Ask a stranger who it is; of very many some, since each answer takes memory until it is read."""
        now = time.monotonic()
        if now - self._asked_s >= BEAT_S:
            self._asked_s, self._asked = now, 0
        self._asked += 1
        if self._asked <= _MOST_STRANGERS:
            self._send(identity, message(Kind.HELLO))

    def _welcome(self, identity: bytes, hello: Hello) -> None:
        old = self._members.get(identity)
        held = old is not None and bool(self._table.held_by(identity) or old.late)
        if old is not None and not held and old.hello == hello:
            # Said again, because this front was not heard for a while.
            old.heard_s = time.monotonic()
            return
        if old is not None and not held and old.hello.shared and hello == replace(old.hello, shared=False):
            # It cannot open the memory that it was told of.
            old.heard_s, old.hello = time.monotonic(), hello
            if old.slots is not None:
                old.slots.close()
                old.slots = None
            return
        if (why := _unwelcome(hello)) is not None:
            self._send(identity, message(Kind.UNFIT, Told(0, why)))
            raise BadMessage(f"worker {hello.name[:_MOST_NAME]!r}: {why}")
        if old is not None:
            self._part_from(old, "began anew")
        if len(self._members) >= _MOST_WORKERS:
            raise BadMessage(f"more than {_MOST_WORKERS} workers")
        member = _Member(identity, hello, time.monotonic(), hello.credits)
        self._members[identity] = member
        log.info("worker %s on %s attached, room for %d images", hello.name, hello.host, hello.credits)
        if hello.shared:
            try:
                member.slots = Slots(hello.credits)
                self._tell(member, message(Kind.HELLO, member.slots.facts))
            except OSError as error:
                log.warning("images go to worker %s over the wire: no memory to share: %s", hello.name, error)
        self._tell(member, self._setup_parts)

    def _landed(self, member: _Member, parts: Sequence[Any]) -> None:
        done = header_of(parts, Done)
        member.answered_s = time.monotonic()
        batch = self._table.land(member.identity, done.batch)
        if batch is None:
            if (late := member.late.pop(done.batch, None)) is not None:
                count, places = late
                self._free(member, places)
                member.room += count
            return
        self._free(member, batch.places)
        member.room += len(batch.frames)
        try:
            outcome = read_outcome(done, parts[2:], batch.frames, lambda frame: self._plan(frame, batch.setup))
        except Exception as error:
            # Whatever is wrong with what it says, its frames are not lost for it.
            self._bad += 1
            member.unfit = f"answers what cannot be used: {first_line(error)[:_MOST_TEXT]}"
            self._repeats.warning(
                "unfit", f"worker {member.hello.name} {member.unfit}; it gets no more images", "worker_unfit"
            )
            self._give_up(self._table.fail(batch))
            return
        member.frames += len(batch.frames)
        member.busy_s += done.busy_s
        if done.fault is not None and member.fault is None:
            member.fault = done.fault[:_MOST_TEXT]
            log.warning("worker %s: its device failed, it uses the CPU: %s", member.hello.name, member.fault)
        self.load.add(batch.frames, outcome.results, done.busy_s)
        self._hand_back(batch.frames, outcome)

    def _refused(self, member: _Member, told: Told) -> None:
        """A worker could not take a batch: it is told of the series anew."""
        batch = self._table.land(member.identity, told.number)
        if batch is None:
            return
        member.series.clear()
        self._free(member, batch.places)
        member.room += len(batch.frames)
        text = f"worker {member.hello.name} could not take a batch: {told.text[:_MOST_TEXT]}"
        self._repeats.warning("batch refused", text, "worker_refused")
        self._give_up(self._table.fail(batch))

    def _hand_back(self, frames: list[Frame], outcome: BatchOutcome) -> None:
        try:
            self._deliver(frames, outcome)
        except Exception:
            log.exception("crew: an outcome cannot be taken in")
            text = "internal error, see the log"
            self._deliver(frames, BatchOutcome([undecodable(each, "failed", text, self._tags) for each in frames]))

    def _plan(self, frame: Frame, setup: int) -> FramePlan:
        """The plan of a frame that a worker analysed, as the worker made it."""
        assert isinstance(frame.image, ImageData)
        dtype = frame.image.dtype.newbyteorder("=")
        key = (frame.series.ordinal, setup, id(frame.series.metadata), frame.channel, frame.image.shape, dtype)
        held, plan = self._known_plans.get(key, (None, None))
        if plan is None or held is not frame.series.metadata:
            plan = plan_of(self._judges[setup].settings, self._plans, frame, frame.image.shape, dtype)
            self._known_plans[key] = (frame.series.metadata, plan)
            while len(self._known_plans) > _SERIES_KEPT:
                self._known_plans.popitem(last=False)
        return plan

    def _covered(self, member: _Member, parts: Sequence[Any]) -> None:
        ordinal, found = read_coverage(parts, [(key, plan) for key, (_, plan) in self._known_plans.items()])
        awaited = self._awaited.get(ordinal)
        if awaited is None:
            return
        awaited.found.extend(found)
        awaited.waiting.discard(member.identity)
        if not awaited.waiting:
            awaited.done.set()

    # --- who is there -------------------------------------------------------------------

    def _look_after(self, caught_up: bool) -> None:
        now = time.monotonic()
        if caught_up:
            self._looked_s = now
        for member in list(self._members.values()):
            # What is not read yet may be its word.
            if caught_up and now - member.heard_s > SILENT_S:
                self._part_from(member, f"said nothing for {now - member.heard_s:.0f} s")
                continue
            held = self._table.held_by(member.identity)
            since = max(min((batch.sent_s for batch in held), default=now), member.answered_s)
            if held and now - since > STALL_S:
                self._lost += 1
                log.warning("worker %s holds images for %.0f s; others get them", member.hello.name, now - since)
                # Their bytes stay where they are: it may still be reading them.
                member.late.update((batch.number, (len(batch.frames), batch.places)) for batch in held)
                self._give_up(self._table.lose(member.identity))
        if any(map(self._usable, self._members.values())):
            self._served_s = now
        elif self._ring is not None and len(self._ring) and now - self._served_s > _TELL_S:
            text = f"no worker is ready at {self.address}; {len(self._ring)} images wait"
            self._repeats.warning("nobody", text, "no_worker")
        if now - self._beat_s >= BEAT_S:
            self._beat_s = now
            for member in list(self._members.values()):
                self._tell(member, message(Kind.BEAT))

    def _part_from(self, member: _Member, why: str) -> None:
        self._members.pop(member.identity, None)
        held = sum(len(batch.frames) for batch in self._table.held_by(member.identity))
        if why != "left" or held:
            self._lost += 1
            text = f"worker {member.hello.name} on {member.hello.host} {why} with {held} images in hand"
            self._repeats.warning(f"lost {member.hello.name}", text, "worker_lost")
        else:
            log.info("worker %s on %s left", member.hello.name, member.hello.host)
        self._give_up(self._table.lose(member.identity))
        if member.slots is not None:
            member.slots.close()
            member.slots = None
        for awaited in self._awaited.values():
            awaited.waiting.discard(member.identity)
            if not awaited.waiting:
                awaited.done.set()

    def _give_up(self, frames: Sequence[Frame]) -> None:
        """Record frames that no worker survives."""
        if frames:
            text = "the workers that analysed it ended or gave no answer"
            self._deliver(list(frames), BatchOutcome([undecodable(f, "failed", text, self._tags) for f in frames]))

    def _state(self, member: _Member) -> str:
        if member.unfit:
            return "unfit"
        if member.late:
            return "stalled"
        if member.leaving:
            return "leaving"
        return "ready" if member.ready == self._setup else "starting"

    def _usable(self, member: _Member) -> bool:
        """Whether it may be given frames: not while it has one in hand that may be its last."""
        return self._state(member) == "ready" and not any(b.losses for b in self._table.held_by(member.identity))

    # --- frames out ---------------------------------------------------------------------

    def _send_out(self) -> None:
        while (batch := self._table.head) is not None:
            free = [m for m in self._members.values() if self._usable(m) and m.room > 0]
            if batch.losses:
                # It may be what its worker was lost with: it goes alone, so that no other frame goes down with it.
                free = [m for m in free if not self._table.held_by(m.identity)]
            # Of those with as much room the one that waits longest, so that none goes without.
            member = max(free, key=lambda m: (m.room, -m.given_s), default=None)
            if member is None:
                return
            taken = self._table.take(min(member.hello.batch, member.room))
            assert taken is not None
            self._give(member, taken)

    def _give(self, member: _Member, batch: Batch) -> None:
        """Send a batch. In flight before the first message, so that whatever fails then, its frames come back."""
        batch.setup, member.given_s = self._setup, time.monotonic()
        number = self._table.fly(member.identity, batch, member.given_s)
        member.room -= len(batch.frames)
        try:
            told, work = self._packed(member, batch, number)
        except Exception:
            self._repeats.exception("crew: frames cannot be packed", "crew_failed")
            self._table.land(member.identity, number)
            self._free(member, batch.places)
            member.room += len(batch.frames)
            self._give_up(batch.frames)
            return
        for series_number, parts in told:
            member.series.add(series_number)
            self._tell(member, parts)
        if self._members.get(member.identity) is member:
            self._tell(member, work)

    def _packed(self, member: _Member, batch: Batch, number: int) -> tuple[list[tuple[int, list[Any]]], list[Any]]:
        """Messages of the series that the worker does not know yet, and of the batch."""
        parts: list[Any] = []
        facts, told = [], {}
        series: Series | None = None
        series_number = 0
        for frame in batch.frames:
            if frame.series is not series:
                series = frame.series
                series_number = self._number_of(series)
                member.ordinals.add(series.ordinal)
                if series_number not in member.series and series_number not in told:
                    told[series_number] = pack_series(series, series_number)
            tags = tags_of(frame.user_data, self._tags)
            part, place = -1, None
            if isinstance(frame.image, ImageData):
                data = frame.image.data
                place = None if member.slots is None else member.slots.put(data)
                if place is not None:
                    batch.places.append(place)
                    self._bytes["shared"] += place[1]
                else:
                    self._bytes["wire"] += memoryview(data).nbytes
                    whole, place = as_received(data)
                    parts.append(whole)
                    part = len(parts) - 1
            facts.append(frame_facts(frame, series_number, tags, part, place))
        return list(told.items()), message(Kind.WORK, Work(number, batch.setup, facts), parts)

    def _number_of(self, series: Series) -> int:
        """The number by which workers know a series' header."""
        known = self._series.get(id(series))
        if known is None or known[0] is not series:
            self._series_numbers += 1
            known = self._series[id(series)] = (series, self._series_numbers)
            while len(self._series) > _SERIES_KEPT:
                _, (_, gone) = self._series.popitem(last=False)
                for member in self._members.values():
                    member.series.discard(gone)
        return known[1]

    def _free(self, member: _Member, places: list[tuple[int, int]]) -> None:
        if member.slots is not None:
            for place in places:
                member.slots.free(place)

    def _tell(self, member: _Member, parts: list[Any]) -> None:
        if not self._send(member.identity, parts) and member.identity in self._members:
            self._part_from(member, "is gone")

    def _send(self, identity: bytes, parts: list[Any]) -> bool:
        try:
            self._socket.send(identity, zmq.DONTWAIT | zmq.SNDMORE)
            for place, part in enumerate(parts, 1):
                # Kind and header are copied, which costs less than to keep them; images are not.
                self._socket.send(part, zmq.DONTWAIT | (zmq.SNDMORE if place < len(parts) else 0), copy=place <= 2)
        except zmq.ZMQError:
            return False
        return True


def _unwelcome(hello: Hello) -> str | None:
    """Why a worker cannot work here, ``None`` where it can."""
    if hello.protocol != PROTOCOL:
        return f"it speaks protocol {hello.protocol}, the front {PROTOCOL}; install the same version"
    room = 0 < hello.batch <= min(hello.credits, _MOST_BATCH) and hello.credits <= _MOST_CREDITS
    if not room or not 0 < hello.threads <= hello.credits:
        return f"batches of {hello.batch} and room for {hello.credits} images in {hello.threads} threads are too many"
    names = (hello.name, hello.host)
    if not all(0 < len(each) <= _MOST_NAME and each.isprintable() for each in names):
        return f"names are printable and of at most {_MOST_NAME} characters"
    return None
