"""The front's side: gives packed frames to workers that have room, takes their outcomes, and notices who is gone.

One thread owns the socket and the table; another takes frames from the front's queue as long as workers have room, so
that what nobody has room for stays where it is counted and, if need be, dropped.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from analyzer.bundle import BadBundle
from analyzer.cascade import BatchOutcome, PlanCache, plan_of, tags_of, undecodable
from analyzer.crew.flight import Batch, FlightTable
from analyzer.crew.outcome import read_coverage, read_outcome
from analyzer.crew.setup import pack_setup
from analyzer.crew.shared import Slots
from analyzer.crew.wire import (
    PROTOCOL,
    BadMessage,
    Done,
    Hello,
    Kind,
    Told,
    Work,
    frame_facts,
    header_of,
    kind_of,
    message,
    pack_series,
)  # fmt: skip
from analyzer.judge import Judge
from analyzer.reduction import Coverage, FramePlan
from analyzer.worker_load import WorkerLoad
from streamer.frames import Frame
from streamer.messages import ImageData, UndecodableImage
from streamer.ring import FrameRing
from streamer.series import Series

log = logging.getLogger(__name__)

BEAT_S = 1.0
SILENT_S = 6.0
"""A worker that says nothing for so long is lost; it beats every second, whatever it computes."""

STALL_S = 30.0
"""A batch that takes longer is given to others; its worker gets nothing more until it answers."""

SWITCH_S = 60.0
"""How long a change waits for workers to be ready for it: a new bundle is loaded and warmed up."""

_COVERAGE_S = 3.0
_TELL_S = 10.0
_LINGER_MS = 500
_POLL_MS = 100
_MOST_WORKERS = 256
_MOST_CREDITS = 4096
_SERIES_KEPT = 16

Deliver = Callable[[list[Frame], BatchOutcome], None]


@dataclass(slots=True, eq=False)
class _Member:
    """A worker: what it said of itself, frames it still has room for, the setup it is ready for, series it knows."""

    identity: bytes
    hello: Hello
    heard_s: float
    room: int
    ready: int = 0
    unfit: str = ""
    stalled: bool = False
    series: set[int] = field(default_factory=set)
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

    ``plans`` is shared with whoever makes plans in this process. ``load`` adds up what all workers did.
    """

    def __init__(self, address: str, judge: Judge, plans: PlanCache) -> None:
        self.load = WorkerLoad()
        self._plans = plans
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # One that comes back over a new connection has its old name.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        # Bounded by what workers say they have room for.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 30)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._socket.close()
            raise OSError(f"{address}: {error}") from None
        self.address = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))
        self._wake_in, self._wake_out = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        inner = f"inproc://crew-{id(self)}"
        self._wake_out.bind(inner)
        self._wake_in.connect(inner)
        self._wake_lock = threading.Lock()
        self._setup, self._setup_parts = 1, pack_setup(1, judge)
        self._judges = {1: judge}
        self._table = FlightTable()
        self._members: dict[bytes, _Member] = {}
        self._changed = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._series: OrderedDict[int, tuple[Series, int]] = OrderedDict()
        self._series_numbers = 0
        self._known_plans: OrderedDict[tuple[Any, ...], FramePlan] = OrderedDict()
        self._awaited: dict[int, _Awaited] = {}
        self._lost = self._bad = 0
        self._bytes = {"wire": 0, "shared": 0}
        self._closing = self._fed = False
        self._batch = 1
        self._beat_s = 0.0
        self._deliver: Deliver = lambda frames, outcome: None
        self._tags: tuple[str, ...] = ()
        self._threads: list[threading.Thread] = []

    # --- from the front -----------------------------------------------------------------

    def start(self, ring: FrameRing, linger_s: float, tags: tuple[str, ...], deliver: Deliver) -> None:
        """Serve workers with the ring's frames until it is closed and empty; ``deliver`` is called by one thread."""
        self._deliver, self._tags = deliver, tags
        self._threads = [
            threading.Thread(target=self._feed, args=(ring, linger_s), name="crew-feeder", daemon=True),
            threading.Thread(target=self._serve, name="crew", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def threads(self) -> int:
        """How many threads of workers judge."""
        with self._changed:
            return sum(member.hello.threads for member in self._members.values() if self._usable(member))

    def use(self, judge: Judge) -> bool:
        """Judge so from the next batch on; returns whether all workers were ready for it in time and none holds an
        older batch. Raises ``BadBundle`` where a worker refuses the bundle, ``CannotShare``."""
        parts = pack_setup(self._setup + 1, judge)

        def change() -> None:
            self._setup, self._setup_parts = self._setup + 1, parts
            # The one before, too: its batches are still on their way.
            self._judges = {self._setup - 1: self._judges[self._setup - 1], self._setup: judge}
            for member in list(self._members.values()):
                self._tell(member, parts)

        self._do(change)
        deadline = time.monotonic() + SWITCH_S
        with self._changed:
            settled = self._changed.wait_for(self._settled, deadline - time.monotonic())
            unfit = [member.unfit for member in self._members.values() if member.unfit]
        if unfit:
            raise BadBundle(f"a worker refuses it: {unfit[0]}")
        return settled

    def _settled(self) -> bool:
        """Whether everybody judges, and has judged, as the latest setup says."""
        oldest = self._table.oldest_setup()
        old = oldest is not None and oldest < self._setup
        return not self._inbox and not old and all(m.ready == self._setup or m.unfit for m in self._members.values())

    def covered(self, series: Series) -> list[Coverage]:
        """What workers' frames of a series that is over covered; they forget it. Waits a while for them."""
        awaited = _Awaited(set())

        def ask() -> None:
            awaited.waiting.update(m.identity for m in self._members.values() if not m.stalled)
            self._awaited[series.ordinal] = awaited
            for member in list(self._members.values()):
                self._tell(member, message(Kind.FORGET, series.ordinal))
            if not awaited.waiting:
                awaited.done.set()

        if not self._closing:
            self._do(ask)
            awaited.done.wait(_COVERAGE_S)
        self._awaited.pop(series.ordinal, None)
        return awaited.found

    def drain(self, patient: Callable[[], bool]) -> list[Frame]:
        """Wait until nothing waits or flies, as long as ``patient`` says so; returns frames that are left over.

        The ring has to be closed.
        """
        told = time.monotonic()
        while patient():
            with self._changed:
                feeding = bool(self._threads) and self._threads[0].is_alive()
                if not feeding and not self._inbox and not self._table.waiting and not self._table.frames_flying:
                    return []
                self._changed.wait(0.1)
                alone = not any(map(self._usable, self._members.values()))
            if alone and time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                log.warning("no worker is ready at %s; %d images wait", self.address, self._table.frames_waiting)
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
            thread.join(2.0)
        self._closing = True
        for each in (self._socket, self._wake_in, self._wake_out):
            each.close(_LINGER_MS)
        for member in self._members.values():
            if member.slots is not None:
                member.slots.close()

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
        for state in ("ready", "starting", "stalled", "unfit"):
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

    # --- the feeder ---------------------------------------------------------------------

    def _feed(self, ring: FrameRing, linger_s: float) -> None:
        while not ring.finished and not self._fed:
            with self._changed:
                room = self._changed.wait_for(self._room, 0.1)
            if not room:
                continue
            frames = ring.take(min(self._batch, room), linger_s, 0.1)
            if frames:
                self._do(lambda frames=frames: self._table.add(frames))  # type: ignore[misc]
        with self._changed:
            self._changed.notify_all()

    def _room(self) -> int:
        """Frames that workers have room for beyond those that wait here."""
        usable = [member for member in self._members.values() if self._usable(member)]
        self._batch = max((member.hello.batch for member in usable), default=1)
        room = sum(member.room for member in usable)
        return max(0, room - self._table.frames_waiting - len(self._inbox) * self._batch)

    def _do(self, work: Callable[[], None]) -> None:
        """Have the socket's thread do something."""
        with self._wake_lock:
            self._inbox.append(work)
            self._wake_in.send(b"", zmq.DONTWAIT)

    # --- the socket's thread ------------------------------------------------------------

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        while not self._closing:
            try:
                ready = dict(poller.poll(_POLL_MS))
                with self._changed:
                    self._turn(ready)
                    self._changed.notify_all()
            except Exception:
                # A fault of ours must not end the run: frames in flight are looked after by the next turn.
                log.exception("crew: a turn failed")

    def _turn(self, ready: Container[Any]) -> None:
        if self._wake_out in ready:
            self._wake_out.recv()
        while self._inbox:
            self._inbox.popleft()()
        if self._socket in ready:
            self._receive()
        self._look_after()
        self._send_out()

    def _receive(self) -> None:
        for _ in range(256):
            try:
                identity, *parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                self._heard(bytes(identity), parts)
            except BadMessage as error:
                self._bad += 1
                log.warning("crew: a message was refused: %s", error)

    def _heard(self, identity: bytes, parts: Sequence[Any]) -> None:
        kind = kind_of(parts)
        if kind == Kind.HELLO:
            self._welcome(identity, header_of(parts, Hello))
            return
        member = self._members.get(identity)
        if member is None:
            # One that was given up, or of an earlier front: it says hello again and is new.
            self._send(identity, message(Kind.HELLO))
            return
        member.heard_s = time.monotonic()
        if kind == Kind.READY:
            member.ready, member.unfit = header_of(parts, Told).number, ""
            log.info("worker %s on %s is ready", member.hello.name, member.hello.host)
        elif kind == Kind.UNFIT:
            member.unfit = header_of(parts, Told).text[:500] or "no reason given"
            log.warning("worker %s on %s refuses: %s", member.hello.name, member.hello.host, member.unfit)
        elif kind == Kind.OUTCOME:
            self._landed(member, parts)
        elif kind == Kind.COVERAGE:
            self._covered(member, parts)
        elif kind == Kind.BYE:
            self._part_from(member, "left")
        elif kind != Kind.BEAT:
            raise BadMessage(f"{kind.name} from a worker")

    def _welcome(self, identity: bytes, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            raise BadMessage(f"worker {hello.name} speaks protocol {hello.protocol}, this is {PROTOCOL}; update it")
        if not 0 < hello.batch <= hello.credits <= _MOST_CREDITS:
            raise BadMessage(f"worker {hello.name} takes {hello.batch} frames at once and holds {hello.credits}")
        if (old := self._members.get(identity)) is not None:
            self._part_from(old, "began anew")
        if len(self._members) >= _MOST_WORKERS:
            raise BadMessage(f"more than {_MOST_WORKERS} workers")
        member = _Member(identity, hello, time.monotonic(), hello.credits)
        self._members[identity] = member
        log.info("worker %s on %s attached, room for %d images", hello.name, hello.host, hello.credits)
        if hello.shared:
            member.slots = Slots(hello.credits)
            self._tell(member, message(Kind.HELLO, member.slots.facts))
        self._tell(member, self._setup_parts)

    def _landed(self, member: _Member, parts: Sequence[Any]) -> None:
        done = header_of(parts, Done)
        batch = self._table.land(member.identity, done.batch)
        if batch is None:
            member.stalled = False
            member.room = member.hello.credits - sum(len(b.frames) for b in self._table.held_by(member.identity))
            return
        self._free(member, batch)
        member.stalled = False
        member.room += len(batch.frames)
        try:
            outcome = read_outcome(done, parts[2:], batch.frames, lambda frame: self._plan(frame, batch.setup))
        except BadMessage as error:
            self._bad += 1
            member.unfit = f"answers what cannot be used: {error}"
            log.warning("worker %s %s; it gets no more images", member.hello.name, member.unfit)
            self._give_up(self._table.fail(batch))
            return
        member.frames += len(batch.frames)
        member.busy_s += done.busy_s
        if done.fault is not None and member.fault is None:
            member.fault = done.fault
            log.warning("worker %s: its device failed, it uses the CPU: %s", member.hello.name, done.fault)
        self.load.add(batch.frames, outcome.results, done.busy_s)
        self._deliver(batch.frames, outcome)

    def _plan(self, frame: Frame, setup: int) -> FramePlan:
        """The plan of a frame that a worker analysed, as the worker made it."""
        assert isinstance(frame.image, ImageData)
        dtype = frame.image.dtype.newbyteorder("=")
        key = (frame.series.ordinal, setup, id(frame.series.metadata), frame.channel, frame.image.shape, dtype)
        plan = self._known_plans.get(key)
        if plan is None:
            try:
                plan = plan_of(self._judges[setup].settings, self._plans, frame, frame.image.shape, dtype)
            except UndecodableImage as error:
                raise BadMessage(str(error)) from None
            self._known_plans[key] = plan
            while len(self._known_plans) > _SERIES_KEPT:
                self._known_plans.popitem(last=False)
        return plan

    def _covered(self, member: _Member, parts: Sequence[Any]) -> None:
        ordinal, found = read_coverage(parts, list(self._known_plans.items()))
        awaited = self._awaited.get(ordinal)
        if awaited is None:
            return
        awaited.found.extend(found)
        awaited.waiting.discard(member.identity)
        if not awaited.waiting:
            awaited.done.set()

    # --- who is there -------------------------------------------------------------------

    def _look_after(self) -> None:
        now = time.monotonic()
        for member in list(self._members.values()):
            if now - member.heard_s > SILENT_S:
                self._part_from(member, f"said nothing for {now - member.heard_s:.0f} s")
                continue
            held = self._table.held_by(member.identity)
            if held and not member.stalled and now - min(batch.sent_s for batch in held) > STALL_S:
                member.stalled = True
                self._lost += 1
                log.warning("worker %s holds images for %.0f s; others get them", member.hello.name, STALL_S)
                # Their bytes stay where they are: it may still be reading them.
                self._give_up(self._table.lose(member.identity))
        if now - self._beat_s >= BEAT_S:
            self._beat_s = now
            for member in list(self._members.values()):
                self._tell(member, message(Kind.BEAT))

    def _part_from(self, member: _Member, why: str) -> None:
        self._members.pop(member.identity, None)
        held = sum(len(batch.frames) for batch in self._table.held_by(member.identity))
        if why != "left" or held:
            self._lost += 1
            log.warning("worker %s on %s %s with %d images in hand", member.hello.name, member.hello.host, why, held)
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
        if member.stalled:
            return "stalled"
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
            member = max(free, key=lambda m: m.room, default=None)
            if member is None:
                return
            taken = self._table.take(min(member.hello.batch, member.room))
            assert taken is not None
            self._give(member, taken)

    def _give(self, member: _Member, batch: Batch) -> None:
        parts: list[Any] = []
        facts = []
        for frame in batch.frames:
            number = self._number_of(member, frame.series)
            tags = tags_of(frame.user_data, self._tags)
            place = None
            if isinstance(frame.image, ImageData):
                size = memoryview(frame.image.data).nbytes
                place = None if member.slots is None else member.slots.put(frame.image.data)
                self._bytes["wire" if place is None else "shared"] += size
                if place is None:
                    parts.append(frame.image.data)
                else:
                    batch.places.append(place)
            facts.append(frame_facts(frame, number, tags, len(parts) - 1 if place is None else -1, place))
        member.room -= len(batch.frames)
        batch.setup = self._setup
        batch_number = self._table.fly(member.identity, batch, time.monotonic())
        self._tell(member, message(Kind.WORK, Work(batch_number, self._setup, facts), parts))

    def _number_of(self, member: _Member, series: Series) -> int:
        """The number of a series' header, which the worker is told first."""
        known = self._series.get(id(series))
        if known is None or known[0] is not series:
            self._series_numbers += 1
            known = self._series[id(series)] = (series, self._series_numbers)
            while len(self._series) > _SERIES_KEPT:
                self._series.popitem(last=False)
        if known[1] not in member.series:
            member.series.add(known[1])
            self._tell(member, pack_series(series, known[1]))
        return known[1]

    def _free(self, member: _Member, batch: Batch) -> None:
        if member.slots is not None:
            for place in batch.places:
                member.slots.free(place)

    def _tell(self, member: _Member, parts: list[Any]) -> None:
        if not self._send(member.identity, parts) and member.identity in self._members:
            self._part_from(member, "is gone")

    def _send(self, identity: bytes, parts: list[Any]) -> bool:
        try:
            self._socket.send_multipart([identity, *parts], zmq.DONTWAIT, copy=False)
        except zmq.ZMQError:
            return False
        return True
