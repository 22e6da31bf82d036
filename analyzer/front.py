"""The front: source to ring to workers to outputs, and the account that closes over it all.

Three kinds of thread. The reader (the caller's) owns the source and the series tracker and
never decodes. Each worker owns an ``Analyser`` and whole frames; it can be given another one
between two batches. The publisher owns every output, so that a slow or broken one never holds
up analysis.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Protocol

from analyzer import logs
from analyzer.attribute_cascade import Unsaid
from analyzer.cascade import Analyser, BatchOutcome, dropped, undecodable
from analyzer.judge import Judge
from analyzer.live.frames import LatestFrames
from analyzer.live.history import History
from analyzer.live.splits import TagMap, TagSplit
from analyzer.live.targets import Targets
from analyzer.peak_finder import Disagreement
from analyzer.products import Products
from analyzer.pulse import Pulse
from analyzer.reduction import Coverage, suspect_pixels
from analyzer.restart import Restart
from analyzer.results import Decision, FrameResult, Status
from analyzer.running import Running
from analyzer.sampling import Load, Sampler
from analyzer.sinks import HitOutput, Reporting, Sink
from analyzer.tallies import Tallies
from analyzer.unfit import tell_unfit
from analyzer.warm import FrameKind
from analyzer.worker_load import WorkerLoad
from analyzer.worker_thread import WorkerThread
from streamer.account import Account
from streamer.frames import DIFFERENCE, Frame, make_frame
from streamer.messages import ImageData, InvalidMessage, SeriesMetadata
from streamer.receiver import Received
from streamer.ring import DEFAULT_RING_BYTES, DEFAULT_RING_FRAMES, FrameRing
from streamer.series import Event, ImageAccepted, Series, SeriesClosed, SeriesOpened, SeriesTracker, SeriesUpdated

log = logging.getLogger(__name__)

POLL_S = 0.1
_MOST_HELD = 64
"""Records of images left out that go to the publisher together."""

_REPORTS_KEPT = 1000
DRAIN_S = 8.0
"""How long a stopped run goes on with what it has already received."""

SERIES_LINES = 20
"""Series that begin, or change what they say of themselves, in ten seconds with a line of the log each."""

HANDOVER_S = 30.0
"""How long a change, or the end, waits for the batches in hand: far longer than any batch takes on a device."""


class Ending(RuntimeError):
    """Asked of a run that is ending."""


class Forget(StrEnum):
    """What of the running products starts anew."""

    JUDGEMENTS = "judgements"
    """what follows from the bundle and the threshold"""
    PEAKS = "peaks"
    """what follows from peaks and judgements; not the sums of diffuse scattering"""
    EVERYTHING = "everything"
    """windows, profiles and the rest; never the account"""


class Elsewhere(Protocol):
    """Workers of other processes and hosts (``analyzer.crew.dispatch.Crew``)."""

    load: WorkerLoad

    @property
    def threads(self) -> int: ...

    @property
    def unserved_s(self) -> float: ...

    def start(
        self,
        ring: FrameRing,
        linger_s: float,
        tags: tuple[str, ...],
        deliver: Callable[[list[Frame], BatchOutcome], None],
    ) -> None: ...

    def use(self, judge: Judge) -> bool: ...

    def covered(self, series: Series) -> list[Coverage]: ...

    def drain(self, patient: Callable[[], bool]) -> list[Frame]: ...

    def close(self) -> None: ...


class Source(Protocol):
    """Where messages come from: a socket or files."""

    @property
    def connected(self) -> bool: ...

    @property
    def exhausted(self) -> bool: ...

    def receive(self, timeout_s: float) -> Received | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """``block``: wait when the ring is full (else drop and count). ``series``: end after so many.
    ``tags``: keys of user data to keep in records. ``attributes``: those that single models say.
    ``finders``: names of the published peak finder and of its shadow, where there is one.
    ``sample``: analyse the images whose id is a multiple of this, ``None``: as many as the workers keep up with.
    ``split_tag`` and ``map_tags``: tags by which hits are split and mapped for those who watch.
    """

    block: bool = False
    batch_frames: int = 8
    batch_linger_s: float = 0.01
    ring_bytes: int = DEFAULT_RING_BYTES
    ring_frames: int = DEFAULT_RING_FRAMES
    channel: str | None = None
    series: int | None = None
    tags: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    finders: tuple[str, str] | None = None
    sample: int | None = 1
    split_tag: str | None = None
    map_tags: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class SeriesReport:
    """What became of one series, once its last frame is published; its metadata are left out."""

    closed: SeriesClosed
    analysed: int
    hits: int
    undecodable: int
    suspect_pixels: int


@dataclass(slots=True)
class _Tally:
    published: int = 0
    analysed: int = 0
    hits: int = 0
    undecodable: int = 0
    closed: SeriesClosed | None = None


@dataclass(slots=True)
class _Worker:
    """``analyser`` judges the next batch, ``busy`` is judging ``batch``, after ``ended`` others, since ``since_s``.

    ``given_up``: its device does not come back from that, and its frames are dropped.
    """

    analyser: Analyser
    busy: Analyser | None = None
    load: WorkerLoad = field(default_factory=WorkerLoad)
    ended: int = 0
    batch: list[Frame] | None = None
    since_s: float = 0.0
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class _Reset:
    """Takes its turn among the results: what comes before it is forgotten, what comes after is not.

    ``before`` is done first, by the publisher.
    """

    forget: Forget
    before: Callable[[], object] | None = None
    done: threading.Event = field(default_factory=threading.Event)


_Published = BatchOutcome | SeriesOpened | SeriesUpdated | SeriesClosed | _Reset


class Front:
    """Runs one analysis. ``account``, ``running`` and ``products`` can be read while it runs, and what
    ``analyzer.live`` gathers for those who watch: ``history``, ``latest``, ``split``, ``map`` and ``targets``.

    ``kind`` is that of the last frame judged, ``None`` before the first. ``nulls`` counts the frames of which an
    attribute says nothing, by attribute and reason. ``last_frame_at``: when the last image of a running series arrived
    (Unix s). ``blocked_s``: how long the reader has waited for room in the queue. ``over``: everything is published.
    ``pulse``: whether its threads get on.
    ``contradicted``: what of a header is not so by what was given, a line each.
    ``channel`` is the one asked for, ``None`` for the first threshold. ``gathered_since``: when the running products
    began (Unix s). ``threads``: those in which the analysers are warm, in their order, where they were made before.
    """

    def __init__(
        self,
        source: Source,
        analysers: Sequence[Analyser],
        sinks: Sequence[Sink],
        settings: FrontSettings,
        on_series: Callable[[SeriesReport], None] = lambda report: None,
        hit_outputs: Sequence[HitOutput] = (),
        crew: Elsewhere | None = None,
        restart: Restart | None = None,
        contradicted: Callable[[SeriesMetadata], list[str]] = lambda metadata: [],
        threads: Sequence[WorkerThread] = (),
    ) -> None:
        self.account = Account()
        self.running = Running(disagreement=Disagreement(*settings.finders) if settings.finders else None)
        self.products = Products()
        self.tallies = Tallies()
        self.gathered_since = time.time()
        self.channel = settings.channel
        self.history = History(self.running.place_of)
        self.latest = LatestFrames()
        self.split = TagSplit(settings.split_tag) if settings.split_tag else None
        self.map = TagMap(*settings.map_tags) if settings.map_tags else None
        self.targets = Targets(lambda: self.account.processed[Decision.HIT])
        self.source = source
        self.sinks = list(sinks)
        self.hit_outputs = list(hit_outputs)
        self.ring = FrameRing(settings.ring_bytes, settings.ring_frames)
        self.sampler = Sampler(settings.sample, len(analysers))
        self.reports: list[SeriesReport] = []
        self.pulse = Pulse()
        self.nulls = {(name, reason): 0 for name in settings.attributes for reason in Unsaid}
        self.finished = 0
        self._closed = 0
        self.kind: FrameKind | None = None
        self._workers = [_Worker(analyser) for analyser in analysers]
        self._threads = list(threads) or [WorkerThread(f"worker-{n}") for n in range(len(analysers))]
        self._crew = crew
        self._handover = threading.Condition()
        self._started = False
        self.settings = settings
        self._on_series = on_series
        self._contradicted = contradicted
        self._restart = restart
        self._tracker = SeriesTracker(self.account) if restart is None else SeriesTracker(self.account, restart.known)
        self._results: queue.Queue[_Published | None] = queue.Queue()
        self._tallies: dict[int, _Tally] = {}
        self.blocked_s = 0.0
        self.last_frame_at: float | None = None
        self._reads = 0
        # What the reader hands on now and then, so that it wakes nobody for each image.
        self._receive_seconds: list[float] = []
        self._arrivals: list[float] = []
        self._unseen: list[FrameResult] = []
        self._handed_s = 0.0
        self._repeats = logs.Repeats(log)
        self._series_lines = logs.Repeats(log, burst=SERIES_LINES)
        self._faults: dict[int, str] = {}
        self.stopping = self.over = False

    @property
    def reporting(self) -> list[Reporting]:
        """Outputs that have metrics and facts of their own."""
        return [output for output in (*self.hit_outputs, *self.sinks) if isinstance(output, Reporting)]

    @property
    def results_waiting(self) -> int:
        """Images that are judged, or left out, and not yet published."""
        return sum(len(item.results) for item in list(self._results.queue) if isinstance(item, BatchOutcome))

    @property
    def unserved_s(self) -> float:
        """For how long nobody has been ready to analyse: no worker elsewhere, where there is none here."""
        return 0.0 if self._workers or self._crew is None else self._crew.unserved_s

    def run(self, stop: threading.Event) -> None:
        """Read until the source is exhausted, enough series are over or ``stop`` is set; then drain.

        Everything received is published before it returns, except what could not be analysed
        within ``DRAIN_S`` seconds after ``stop``, and what a device does not come back from within ``HANDOVER_S``: that
        is recorded as dropped.
        """
        for thread, worker in zip(self._threads, self._workers, strict=True):
            thread.give(partial(self._work, worker))
            thread.end()
            if thread.ident is None:
                thread.start()
        publisher = threading.Thread(target=self._publish, name="publisher", daemon=True)
        publisher.start()
        if self._crew is not None:
            self._crew.start(self.ring, self.settings.batch_linger_s, self.settings.tags, self._take_in)
        self._started = True
        try:
            self._read(stop)
        finally:
            self.pulse.rest()
            self.stopping = True
            self._dispatch(self._tracker.finish(), time.time(), stop)
            self._hand_on()
            self.ring.close()
            self._drain(stop)
            self._results.put(None)
            publisher.join()
            if self._crew is not None:
                self._crew.close()
            self.over = True
            self._repeats.close()
            self._series_lines.close()

    @property
    def workers(self) -> int:
        return len(self._workers)

    @property
    def worker_loads(self) -> list[WorkerLoad]:
        """What each worker has done."""
        return [worker.load for worker in self._workers] + ([self._crew.load] if self._crew is not None else [])

    @property
    def series_open(self) -> bool:
        """Whether a series began and is not over."""
        return self._tracker.running is not None

    @property
    def device_faults(self) -> list[str]:
        """Of each worker whose device failed in this run, the error's first line."""
        return list(self._faults.values())

    def replace_analysers(self, analysers: Sequence[Analyser], judge: Judge, forget: Forget) -> bool:
        """Judge with these from the next batch on, one a worker, and elsewhere as ``judge`` says; batches in hand end
        with the old ones.

        Frames stay where they are, so none is lost and none judged twice. Then the running products
        of the old ones are forgotten. Returns whether the old ones ended in time. Raises ``Ending``, and ``BadBundle``
        where a worker elsewhere refuses the bundle.
        """
        self.refuse_when_ending()
        settled = self._crew is None or self._crew.use(judge)
        with self._handover:
            for worker, analyser in zip(self._workers, analysers, strict=True):
                worker.analyser = analyser
            ended = self._handover.wait_for(
                lambda: all(worker.busy in (None, worker.analyser) for worker in self._workers), HANDOVER_S
            )
        self._forget(forget)
        return ended and settled

    def reset(self, before: Callable[[], object] | None = None) -> None:
        """Begin the running products anew; the account and the series go on. Raises ``Ending``.

        ``before`` is called by the publisher right before, when all earlier results are in and no later one.
        """
        self.refuse_when_ending()
        self._forget(Forget.EVERYTHING, before)

    @property
    def channels(self) -> tuple[str, ...]:
        """Those of the latest series that can be analysed; none where its header does not say."""
        # The reader knows of a series before the publisher does.
        series = self._tracker.running
        metadata = self.running.metadata if series is None else series.metadata
        return () if metadata is None else tuple(name for name in metadata.channels if name != DIFFERENCE)

    def use_channel(self, channel: str | None) -> bool:
        """Analyse this channel from the next frame on, ``None`` for the first threshold; products begin anew.

        They do when the frames received before are published, so that they hold one channel alone. Returns whether
        that was within ``HANDOVER_S``. Raises ``Ending``.
        """
        self.refuse_when_ending()
        self.channel, now, reads = channel, time.time(), self._reads
        deadline = time.monotonic() + HANDOVER_S

        def left() -> bool:
            oldest = self.ring.oldest_received_at
            # A round of the reader: the frame in its hand is of the old channel, and not in the ring yet.
            return self._reads == reads or (oldest is not None and oldest <= now)

        while self._started and not self.stopping and left() and time.monotonic() < deadline:
            time.sleep(POLL_S / 2)
        with self._handover:
            in_hand = [(worker, worker.ended) for worker in self._workers if worker.busy is not None]
            done = self._handover.wait_for(
                lambda: all(worker.ended > ended for worker, ended in in_hand),
                max(0.0, deadline - time.monotonic()),
            )
        self._forget(Forget.EVERYTHING)
        return done and not (self._started and left())

    def refuse_when_ending(self) -> None:
        if self.stopping:
            raise Ending("the analysis is ending; nothing can be changed any more")

    def _forget(self, forget: Forget, before: Callable[[], object] | None = None) -> None:
        if before is not None and not self._started:
            before()
            before = None
        reset = _Reset(forget, before)
        self._results.put(reset)
        deadline = time.monotonic() + HANDOVER_S
        while self._started and not self.stopping and time.monotonic() < deadline and not reset.done.wait(POLL_S):
            pass

    def _read(self, stop: threading.Event) -> None:
        while not stop.is_set() and not self._enough:
            self.pulse.beat()
            self._reads += 1
            received = self.source.receive(POLL_S)
            now = time.monotonic() - self.blocked_s
            if self.sampler.due(now):
                self._adapt(now)
            if received is None or now - self._handed_s >= POLL_S:
                self._hand_on()
                self._handed_s = now
            if received is None:
                if self.source.exhausted:
                    return
                self._dispatch(self._tracker.tick(now), time.time(), stop)
                continue
            self.account.received_bytes += received.nbytes
            try:
                if isinstance(received.message, InvalidMessage):
                    raise received.message
                self._dispatch(self._tracker.handle(received.message, now), received.received_at, stop)
            except InvalidMessage as error:
                self.account.refuse_message(error.reason)
                self._repeats.warning(
                    f"refused {error.reason}", f"message refused ({error.reason}): {error}", "message_refused",
                    reason=error.reason,
                )  # fmt: skip

    @property
    def _enough(self) -> bool:
        return self.settings.series is not None and self._closed >= self.settings.series

    def _dispatch(self, events: Iterable[Event], received_at: float, stop: threading.Event) -> None:
        for event in events:
            if isinstance(event, ImageAccepted):
                frame = make_frame(event.series, event.image, received_at, self.channel)
                self.last_frame_at = received_at
                self._receive_seconds.append(max(0.0, time.time() - received_at))
                self._arrivals.append(received_at)
                if not self.sampler.wants(frame.image_id):
                    self._leave_out(frame, "sampled")
                elif not self._queue(frame, stop):
                    self._leave_out(frame, "shutdown" if stop.is_set() else "queue_full")
            else:
                self._hand_on()
                if self._restart is not None:
                    # Here and not behind what waits to be published: a kill may come any moment.
                    self._restart.event(event)
                self._results.put(event)
                self._closed += isinstance(event, SeriesClosed)
                if self._enough:
                    # What follows, such as the next series' start, is not ours any more.
                    return

    def _adapt(self, now: float) -> None:
        """Let the sampling follow the load."""
        loads, oldest = self.worker_loads, self.ring.oldest_received_at
        if self._crew is not None:
            self.sampler.workers = len(self._workers) + max(1, self._crew.threads)
        before = self.sampler.every
        grew = self.sampler.look(
            now,
            Load(
                self.account.accepted,
                sum(load.frames for load in loads),
                sum(load.seconds for load in loads),
                0.0 if oldest is None else max(0.0, time.time() - oldest),
            ),
        )
        if self.sampler.every != before:
            log.info(
                "analysing one image in %d, before one in %d", self.sampler.every, before,
                extra=logs.event("sampling", every=self.sampler.every, before=before),
            )  # fmt: skip
        if grew:
            for frame in self.ring.thin(lambda frame: self.sampler.keeps_waiting(frame.image_id)):
                self._leave_out(frame, "sampled")

    def _leave_out(self, frame: Frame, reason: str) -> None:
        self._unseen.append(dropped(frame, reason, self.settings.tags))
        if len(self._unseen) >= _MOST_HELD:
            self._hand_on()

    def _hand_on(self) -> None:
        if self._receive_seconds:
            self.running.received(self._receive_seconds)
            self.history.arrived(self._arrivals)
            self._receive_seconds, self._arrivals = [], []
        if self._unseen:
            self._results.put(BatchOutcome(self._unseen))
            self._unseen = []

    def _queue(self, frame: Frame, stop: threading.Event) -> bool:
        if self.ring.put(frame):
            return True
        began = time.monotonic()
        if self.settings.block:
            self._hand_on()
        placed = False
        while self.settings.block and not placed and not stop.is_set():
            placed = self.ring.put(frame, POLL_S)
            self.pulse.beat()
            # While we wait, so does the sender: that time must not end a series.
            now = time.monotonic()
            self.blocked_s, began = self.blocked_s + now - began, now
        return placed

    def _drain(self, stop: threading.Event) -> None:
        deadline = time.monotonic() + DRAIN_S
        self._join(lambda: not stop.is_set() or time.monotonic() < deadline)
        left = self._crew.drain(lambda: not stop.is_set() or time.monotonic() < deadline) if self._crew else []
        while left := left or self.ring.take(_MOST_HELD, 0.0, 0.0):
            self._results.put(BatchOutcome([dropped(frame, "shutdown", self.settings.tags) for frame in left]))
            left = []
        self._join(lambda: True)

    def _join(self, patient: Callable[[], bool]) -> None:
        """Wait until the workers end, or are given up."""
        for thread, worker in zip(self._threads, self._workers, strict=True):
            while thread.is_alive() and patient() and not self._gives_up(worker):
                thread.join(POLL_S)

    def _gives_up(self, worker: _Worker) -> bool:
        """Whether a worker's thread is not to be waited for: its device does not come back from a call.

        What is waited for on a device has a limit of its own, but not what the driver does within a call.
        """
        with self._handover:
            analyser, batch = worker.busy, worker.batch
            long = time.monotonic() - worker.since_s > HANDOVER_S
            if worker.given_up or batch is None or analyser is None or not analyser.on_device or not long:
                return worker.given_up
            worker.batch, worker.given_up = None, True
        reason = f"the device does not come back from a call for {HANDOVER_S:g} s"
        log.error(
            "%s; the program ends without it, %d frames are not analysed", reason, len(batch),
            extra=logs.event("device_given_up", frames=len(batch)),
        )  # fmt: skip
        analyser.give_up(reason)
        self._faults[id(worker)] = reason
        self._results.put(BatchOutcome([dropped(frame, "shutdown", self.settings.tags) for frame in batch]))
        return True

    def _work(self, worker: _Worker) -> None:
        settings = self.settings
        while not self.ring.finished:
            batch = self.ring.take(settings.batch_frames, settings.batch_linger_s, POLL_S)
            if batch:
                self.pulse.beat()
                self._judge(worker, batch)
                self.pulse.rest()

    def _judge(self, worker: _Worker, batch: list[Frame]) -> None:
        with self._handover:
            analyser = worker.busy = worker.analyser
            began = worker.since_s = time.monotonic()
            worker.batch = batch
        outcome = self._analyse(analyser, batch)
        with self._handover:
            if worker.given_up:
                # Its frames are dropped already.
                return
            worker.batch = None
        if (fault := analyser.fault) is not None:
            self._faults[id(worker)] = fault
        worker.load.add(batch, outcome.results, time.monotonic() - began)
        self._take_in(batch, outcome)
        with self._handover:
            worker.busy = None
            worker.ended += 1
            self._handover.notify_all()

    def _take_in(self, batch: list[Frame], outcome: BatchOutcome) -> None:
        """A batch is judged, here or elsewhere."""
        self._hand_out(batch, outcome.results)
        try:
            self.latest.add(batch, outcome.results, [seen.plan for seen in outcome.peaks])
        except Exception:
            # Only looked at, so a fault of it costs no frame.
            self._repeats.exception("the latest frames cannot be kept to be looked at", "page_failed")
        outcome.series = [each.series for each in batch]
        self._results.put(outcome)
        frame, result = batch[-1], outcome.results[-1]
        if result.status == Status.OK and isinstance(frame.image, ImageData):
            dtype = frame.image.dtype.newbyteorder("=")
            self.kind = FrameKind(frame.series.metadata, frame.channel, frame.image.shape, dtype)

    def _analyse(self, analyser: Analyser, batch: list[Frame]) -> BatchOutcome:
        try:
            return analyser.process(batch)
        except Exception:
            # A fault of ours must not cost the account its frames, nor the run the rest.
            self._repeats.exception("analysis of a batch failed", "analysis_failed", frames=len(batch))
            return BatchOutcome([undecodable(frame, "failed", "internal error, see the log") for frame in batch])

    def _hand_out(self, frames: Sequence[Frame], results: Sequence[FrameResult]) -> None:
        """Offer hits while their frames are at hand; what waits for publication holds none."""
        for frame, result in zip(frames, results, strict=True):
            if result.hit:
                for output in self.hit_outputs:
                    output.offer(frame, result)

    def _publish(self) -> None:
        while (item := self._results.get()) is not None:
            self.pulse.beat()
            try:
                self._publish_one(item)
            except Exception:
                # Whatever one item does, the next ones are published and the outputs closed.
                self._repeats.exception("publishing failed", "publishing_failed")
            self.pulse.rest()
        outputs: list[Sink | HitOutput] = [*self.sinks, *self.hit_outputs]
        for output in outputs:
            try:
                output.close()
            except Exception:
                self._repeats.exception("an output could not be closed", "output_failed")

    def _publish_one(self, item: _Published) -> None:
        if isinstance(item, BatchOutcome):
            self._publish_results(item)
        elif isinstance(item, _Reset):
            try:
                if item.before is not None:
                    item.before()
            finally:
                self._begin_anew(item.forget)
                item.done.set()
        else:
            self._publish_event(item)

    def _begin_anew(self, forget: Forget) -> None:
        if forget == Forget.JUDGEMENTS:
            self.running.forget_judgements()
            return
        self.products.reset()
        self.gathered_since = time.time()
        if forget == Forget.PEAKS:
            self.running.forget_peaks()
            return
        self.running.reset()
        self.latest.reset()
        for gathered in (self.history, self.split, self.map):
            if gathered is not None:
                gathered.reset()
        self.targets.restart()

    def _publish_results(self, outcome: BatchOutcome) -> None:
        began = time.perf_counter()
        now = time.time()
        results = [replace(result, latency_s=round(now - result.received_at, 6)) for result in outcome.results]
        try:
            for sink in self.sinks:
                sink.write(results)
            outcome.stage_seconds["publish"] = time.perf_counter() - began
            self.running.add(
                results,
                outcome.profiles,
                outcome.stage_seconds,
                outcome.comparisons,
                outcome.diffuse,
                outcome.peaks,
                outcome.series,
            )
            self.products.add(results, outcome.peaks, outcome.profiles)
            for gathered in (self.history, self.split, self.map):
                if gathered is not None:
                    gathered.add(results)
            for seen in outcome.peaks:
                tell_unfit(seen.plan, self._repeats)
        finally:
            self._settle(results)

    def _settle(self, results: Sequence[FrameResult]) -> None:
        """Enter results in the account and in the tally of their series."""
        account = self.account
        self.tallies.add(results)
        for result in results:
            tally = self._tallies.setdefault(result.ordinal, _Tally())
            tally.published += 1
            if result.status == Status.OK and result.decision is not None:
                account.processed[result.decision] += 1
                tally.analysed += 1
                tally.hits += bool(result.hit)
                self._settle_attributes(result)
            elif result.status == Status.UNDECODABLE:
                reason = result.reason or "failed"
                account.undecodable[reason] = account.undecodable.get(reason, 0) + 1
                tally.undecodable += 1
                self._repeats.warning(
                    f"undecodable {reason}",
                    f"series {result.series_id} image {result.image_id} is undecodable: {result.status_text}",
                    "image_undecodable", series_id=result.series_id, image_id=result.image_id, reason=reason,
                )  # fmt: skip
            else:
                account.drop(result.reason or "shutdown")
        self._finish_complete()

    def _settle_attributes(self, result: FrameResult) -> None:
        for name, (reason, text) in (result.nulls or {}).items():
            key = name, Unsaid(reason)
            self.nulls[key] = self.nulls.get(key, 0) + 1
            if text:
                where = f"series {result.series_id} image {result.image_id}"
                self._repeats.warning(
                    f"attribute {name} {reason}", f"{where}: attribute {name} is null ({reason}): {text}",
                    "attribute_null", series_id=result.series_id, image_id=result.image_id, attribute=name,
                    reason=reason,
                )  # fmt: skip

    def _publish_event(self, event: SeriesOpened | SeriesUpdated | SeriesClosed) -> None:
        series = event.series
        if isinstance(event, SeriesClosed):
            self._tallies.setdefault(series.ordinal, _Tally()).closed = event
            self.running.end(series, event.accepted + event.missing["head"] + event.missing["gap"])
            self._finish_complete()
            return
        self.running.begin(series)
        self.history.begin_series(series.series_id, series.ordinal, time.time())
        for problem in series.metadata.problems:
            self._repeats.warning(
                f"header {problem[:40]}", f"series {series.series_id}: {problem}", "header_problem",
                series_id=series.series_id,
            )  # fmt: skip
        for n, text in enumerate(self._contradicted(series.metadata)):
            self._repeats.warning(
                f"contradicted {n}", f"series {series.series_id}: {text}", "geometry_contradicts",
                series_id=series.series_id,
            )  # fmt: skip
        self._tell_series(event, series)

    def _tell_series(self, happened: SeriesOpened | SeriesUpdated, series: Series) -> None:
        images = series.metadata.number_of_images
        if isinstance(happened, SeriesUpdated):
            kind, what = "series_metadata", "has new metadata"
        else:
            kind, what = ("series_joined", "joined") if series.joined else ("series_began", "began")
        self._series_lines.say(
            logging.INFO,
            kind,
            f"series {series.series_id} {what}, {'no' if images is None else images} images announced",
            kind,
            series_id=series.series_id,
            images=images,
        )

    def _finish_complete(self) -> None:
        """Report series that are over and published, in the order they were measured."""
        for ordinal in sorted(self._tallies):
            tally = self._tallies[ordinal]
            if tally.closed is None or tally.published < tally.closed.accepted:
                return
            del self._tallies[ordinal]
            self._finish(tally, tally.closed)

    def _finish(self, tally: _Tally, closed: SeriesClosed) -> None:
        analysers = [worker.analyser for worker in self._workers]
        covered = [each for analyser in analysers for each in analyser.covered(closed.series)]
        if self._crew is not None:
            covered += self._crew.covered(closed.series)
        alike = [each for each in covered if each.plan.geometry == covered[0].plan.geometry]
        suspects = len(suspect_pixels(alike)) if alike else 0
        for analyser in analysers:
            analyser.forget(closed.series)
        # Kept for long: without the header, whose mask and flat field take 36 MB of a 4M, again in each series.
        told = replace(closed, series=replace(closed.series, metadata=SeriesMetadata()))
        report = SeriesReport(told, tally.analysed, tally.hits, tally.undecodable, suspects)
        self.reports.append(report)
        del self.reports[:-_REPORTS_KEPT]
        self._on_series(report)
        self.finished += 1
