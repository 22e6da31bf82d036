"""Workers elsewhere over real sockets: the same records, and no frame lost whoever dies, stalls, joins or lies."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from analyzer.bundle import BadBundle, Bundle, load_bundle
from analyzer.cascade import Analyser, BatchOutcome, CascadeSettings, PlanCache
from analyzer.crew import dispatch, shared
from analyzer.crew.dispatch import Crew
from analyzer.crew.outcome import pack_outcome
from analyzer.crew.setup import CannotShare, read_setup
from analyzer.crew.wire import PROTOCOL, Hello, Kind, Told, Work, header_of, kind_of, message, part_of, read_frame
from analyzer.front import Forget, Front, FrontSettings
from analyzer.judge import Judge
from analyzer.results import HitRule, Status
from streamer.frames import Frame
from streamer.messages import Algorithm, ImageData
from streamer.ring import FrameRing
from streamer.validity import Validity
from tests.analyzer.builders import (
    BROKEN,
    SHAPE,
    Collector,
    ScriptedSource,
    Step,
    end,
    frame,
    frames_of_a_run,
    image,
    series,
    start,
    water,
    whole_series,
    write_bundle,
)  # fmt: skip
from tests.analyzer.crew.made import BATCH, LOOPBACK, Hand, Run, comparable, make
from tests.cxls.programs import wait_for

SERIES = series()


def series_with_hits(images: int, series_id: int = 1) -> list[Step]:
    frames = frames_of_a_run(images)
    return [start(series_id, images), *(image(n, series_id, frames[n]) for n in range(images)), end(series_id)]


def in_process(bundle: Bundle, script: Sequence[Step], cascade: CascadeSettings) -> Front:
    judge, plans = Judge(bundle, cascade), PlanCache()
    analysers = [Analyser(bundle, judge.settings, "cpu", plans) for _ in range(2)]
    settings = FrontSettings(block=True, tags=cascade.tags)
    front = Front(ScriptedSource(script), analysers, [Collector()], settings)
    front.run(threading.Event())
    return front


def sums(front: Front) -> list[np.ndarray[Any, Any]]:
    """The diffuse scattering of all frames, of misses and of hits."""
    found = front.running.diffuse_sums()
    assert found is not None
    return [each.profile for each in found.run]


class Slow(Analyser):
    """Takes its time."""

    delay_s = 0.05

    def process(self, frames: Sequence[Frame]) -> BatchOutcome:
        time.sleep(self.delay_s)
        return super().process(frames)


def slow(judge: Judge) -> Analyser:
    return Slow(judge.bundle, judge.settings)


# --- the same as in process -------------------------------------------------------------


@pytest.mark.parametrize("wire", [False, True], ids=["shared memory", "wire"])
def test_records_and_products_are_those_of_workers_in_process(
    bundle: Bundle, wire: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wire:
        monkeypatch.setattr("analyzer.crew.worker._LOCAL", ("nowhere",))
    mask = np.ones(SHAPE, np.uint8)
    mask[:7] = 0
    cascade = CascadeSettings(
        hit_rule=HitRule.PEAKS, min_peaks=3, mask=Validity("a mask", mask), tags=("laser",), threshold=0.3
    )
    frames = frames_of_a_run(30)
    script = [
        start(1, 30),
        *(image(n, 1, BROKEN if n == 7 else frames[n], {"laser": n % 2 == 0, "more": b"\x00"}) for n in range(30)),
        end(1),
        *series_with_hits(10, 2),
    ]
    here = in_process(bundle, script, cascade)
    run = Run(bundle, script, cascade=cascade).start()
    hands = [Hand(run.crew.address), Hand(run.crew.address)]
    run.join()
    run.assert_closes()
    (kept,) = here.sinks
    assert comparable(run.kept.results) == comparable(kept.results)  # type: ignore[attr-defined]
    assert sum(each.status == Status.UNDECODABLE for each in run.kept.results) == 1
    mine, theirs = run.front.products.snapshot(), here.products.snapshot()
    assert mine is not None
    assert theirs is not None
    np.testing.assert_array_equal(mine.powder_peaks, theirs.powder_peaks)
    np.testing.assert_array_equal(mine.peakogram, theirs.peakogram)
    for ours, others in zip(sums(run.front), sums(here), strict=True):
        np.testing.assert_allclose(ours, others, rtol=1e-9)
    assert [each.suspect_pixels for each in run.front.reports] == [each.suspect_pixels for each in here.reports]
    shared_bytes, wire_bytes = run.crew._bytes["shared"], run.crew._bytes["wire"]
    assert (shared_bytes == 0, wire_bytes == 0) == (wire, not wire)
    for hand in hands:
        hand.end()


def test_frames_larger_than_a_slot_go_over_the_wire(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SLOT_BYTES", 512)
    run = Run(bundle, series_with_hits(20)).start()
    hand = Hand(run.crew.address)
    run.join().assert_closes()
    assert run.crew._bytes["wire"] > 0
    hand.end()


def test_workers_hold_no_more_bytes_than_may_wait_for_them(bundle: Bundle) -> None:
    huge = ImageData(bytes(3 << 20), SHAPE, np.dtype("u2"), Algorithm.BSLZ4, 2)
    script = [start(1, 30), *(image(n, 1, huge) for n in range(30)), end(1)]
    run = Run(bundle, script, ring_bytes=8 << 20).start()
    silent = Silenced(run.crew.address, credits=64)
    silent.get_ready()
    work = header_of(silent.hear(Kind.WORK), Work)
    run.wait_for(lambda: len(run.front.ring) == 2)
    time.sleep(0.2)
    # It has room for 64; the third image reached what may be held.
    facts = run.crew.facts()
    assert (facts["in_flight"], facts["held_bytes"], run.front.ring.held_bytes) == (3, 9 << 20, 6 << 20)
    assert len(work.frames) <= 3
    silent.say(Kind.BYE)
    hand = Hand(run.crew.address)
    run.join().assert_closes()
    assert run.crew.facts()["held_bytes"] == 0
    assert {each.status for each in run.kept.results} == {Status.UNDECODABLE}
    hand.end()
    silent.close()


def test_an_image_larger_than_all_that_may_wait_passes_alone(bundle: Bundle) -> None:
    huge = ImageData(bytes(40 << 20), SHAPE, np.dtype("u2"), Algorithm.BSLZ4, 2)
    run = Run(bundle, [start(1, 6), *(image(n, 1, huge) for n in range(6)), end(1)], ring_bytes=1 << 20).start()
    hand = Hand(run.crew.address)
    run.join().assert_closes()
    assert len(run.kept.results) == 6
    hand.end()


def test_shared_memory_that_a_large_image_took_is_given_back() -> None:
    slots = shared.Slots(2)

    def taken_bytes() -> int:
        return os.fstat(slots.facts.descriptor).st_blocks * 512

    large, usual = slots.put(bytes(12 << 20)), slots.put(b"x" * (1 << 20))
    assert large is not None
    assert usual is not None
    assert taken_bytes() == 13 << 20
    slots.free(large)
    assert taken_bytes() == shared.KEPT_BYTES + (1 << 20)
    view = shared.SlotView(slots.facts)
    assert bytes(view.at(usual)) == b"x" * (1 << 20)
    slots.free(usual)
    assert slots.put(b"y" * 100) is not None
    slots.close()


def test_a_worker_with_several_threads_is_given_as_much_more(bundle: Bundle) -> None:
    run = Run(bundle, series_with_hits(40)).start()
    hand = Hand(run.crew.address, threads=3)
    run.join().assert_closes()
    assert run.crew.facts()["workers"][0]["frames"] == 40
    hand.end()


def test_each_thread_of_a_worker_on_a_device_is_warm_before_the_first_frame(bundle: Bundle) -> None:
    asked: list[tuple[str, int, int]] = []
    made: list[Analyser] = []

    class OnDevice(Analyser):
        @property
        def on_device(self) -> bool:
            return True

        def process(self, frames: Sequence[Frame]) -> BatchOutcome:
            asked.append((threading.current_thread().name, made.index(self), frames[0].series.ordinal))
            return super().process(frames)

    def make_one(judge: Judge) -> Analyser:
        made.append(OnDevice(judge.bundle, judge.settings, "cpu", PlanCache()))
        return made[-1]

    step = threading.Event()
    run = Run(bundle, [lambda: step.wait(30) and None, *series_with_hits(40)]).start()
    hand = Hand(run.crew.address, make_one, threads=3)
    wait_for(lambda: hand.worker.ready)
    warmed = {(thread, number) for thread, number, ordinal in asked}
    assert {(f"worker-{number}", number) for number in range(3)} <= warmed
    assert {ordinal for *_, ordinal in asked} == {0}
    # Those of another judge are warm, too, and the threads are not held up for it.
    warm = len(asked)
    run.crew.use(Judge(bundle, CascadeSettings(threshold=0.2)))
    assert {number for _, number, _ in asked[warm:]} == {3, 4, 5}
    assert not any(thread.startswith("worker-") for thread, *_ in asked[warm:])
    step.set()
    run.join().assert_closes()
    hand.end()


def test_a_worker_whose_device_hangs_ends_and_its_frames_are_anothers(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("_LEAVE_S", "_JOIN_S"):
        monkeypatch.setattr(f"analyzer.crew.worker.{limit}", 0.6)
    given_up: list[str] = []
    hang, hangs = threading.Event(), threading.Event()

    class Hanging(Analyser):
        @property
        def on_device(self) -> bool:
            return True

        def give_up(self, reason: str) -> None:
            given_up.append(reason)

        def process(self, frames: Sequence[Frame]) -> BatchOutcome:
            if frames[0].series.ordinal:
                hangs.set()
                hang.wait(60)
            return super().process(frames)

    run = Run(bundle, series_with_hits(8)).start()
    hand = Hand(run.crew.address, lambda judge: Hanging(judge.bundle, judge.settings))
    assert hangs.wait(30)
    hand.end()
    assert given_up == ["the device does not come back from a call for 0.6 s"]
    other = Hand(run.crew.address)
    run.join().assert_closes()
    assert {result.status for result in run.kept.results} == {Status.OK}
    other.end()
    hang.set()


# --- who comes and goes -----------------------------------------------------------------


def test_frames_wait_for_the_first_worker(bundle: Bundle) -> None:
    run = Run(bundle, series_with_hits(12)).start()
    time.sleep(0.5)
    assert run.front.account.settled == 0
    hand = Hand(run.crew.address)
    run.join().assert_closes()
    hand.end()


def test_a_worker_that_joins_late_gets_its_share(bundle: Bundle) -> None:
    opening, *images = series_with_hits(120)

    def both() -> None:
        run.wait_for(lambda: run.crew.threads == 2, 60)

    # The rest comes once it is there: the first would be done with it while a busy machine lets the other join.
    run = Run(bundle, [opening, *images[:20], both, *images[20:]])
    run.start()
    first = Hand(run.crew.address, slow)
    run.wait_for(lambda: run.front.account.settled >= 10)
    second = Hand(run.crew.address, slow)
    run.join().assert_closes()
    shares = sorted(each["frames"] for each in run.crew.facts()["workers"])
    assert sum(shares) == 120
    assert shares[0] >= 20
    for hand in (first, second):
        hand.end()


def test_workers_with_nothing_to_do_take_turns(bundle: Bundle) -> None:
    hands: list[Hand] = []
    script: list[Step] = [start(1, 60)]
    for n in range(60):
        script += [image(n), 0.02]
    run = Run(bundle, [lambda: run.wait_for(lambda: run.crew.threads == 2), *script, end(1)])
    hands += [Hand(run.crew.address), Hand(run.crew.address)]
    run.start().join().assert_closes()
    assert min(each["frames"] for each in run.crew.facts()["workers"]) > 10
    for hand in hands:
        hand.end()


def test_a_worker_that_leaves_hands_back_what_it_holds_and_loses_nothing(bundle: Bundle) -> None:
    run = Run(bundle, series_with_hits(80)).start()
    hands = [Hand(run.crew.address, slow), Hand(run.crew.address, slow)]
    run.wait_for(lambda: run.front.account.settled >= 10)
    hands[0].end()
    run.join().assert_closes()
    assert {each.status for each in run.kept.results} == {Status.OK}
    assert run.crew.facts()["lost_workers"] == 0
    hands[1].end()


def test_a_worker_that_is_told_to_end_leaves_while_frames_go_on(bundle: Bundle) -> None:
    frames = [image(n, 1, water(0.1, seed=n % 50)) for n in range(3000)]
    run = Run(bundle, [start(1, 4000), *frames], live=True).start()
    hands = [Hand(run.crew.address, slow), Hand(run.crew.address, slow)]
    run.wait_for(lambda: run.front.account.settled >= 20)
    began = time.monotonic()
    hands[0].end()
    assert time.monotonic() - began < 10
    assert len(run.front.ring) > 100, "there was more to do"
    assert run.crew.facts()["lost_workers"] == 0
    run.stop.set()
    run.join().assert_closes(over=False)
    hands[1].end()


def test_frames_of_very_many_short_series_reach_their_worker(bundle: Bundle) -> None:
    script: list[Step] = []
    for n in range(1, 61):
        script += [start(n, 1, unique_id=str(n)), image(0, n), end(n)]
    run = Run(bundle, script).start()
    hand = Hand(run.crew.address, batch_frames=32)
    run.join().assert_closes()
    assert {each.status for each in run.kept.results} == {Status.OK}
    hand.end()


class Silenced:
    """A peer that speaks the protocol as far as the test wants: a worker that takes frames and says no more."""

    def __init__(self, address: str, credits: int = 8, identity: bytes = b"wsilent") -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.RCVTIMEO, 60_000)
        self.socket.connect(address)
        self.say(Kind.HELLO, Hello(PROTOCOL, "silent", "elsewhere", 1, 1, BATCH, credits))

    def say(self, kind: Kind, header: object = None, parts: Sequence[bytes] = ()) -> None:
        self.socket.send_multipart(message(kind, header, parts))

    def hear(self, wanted: Kind) -> list[bytes]:
        while True:
            parts = self.socket.recv_multipart()
            if kind_of(parts) == wanted:
                return parts

    def hear_any(self) -> list[bytes] | None:
        """What comes within a while."""
        return self.socket.recv_multipart() if self.socket.poll(200) else None

    def answer(self, work: Work, outcome: BatchOutcome) -> None:
        self.socket.send_multipart(pack_outcome(work.batch, outcome, 0.01, None))

    def get_ready(self) -> None:
        self.say(Kind.READY, Told(read_setup(self.hear(Kind.SETUP))[0]))

    def close(self) -> None:
        self.socket.close(0)


def test_what_a_silent_worker_holds_is_given_to_others_and_counted(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SILENT_S", 1.0)
    run = Run(bundle, series_with_hits(40)).start()
    silent = Silenced(run.crew.address)
    silent.get_ready()
    silent.hear(Kind.WORK)
    hand = Hand(run.crew.address)
    run.join().assert_closes()
    assert {each.status for each in run.kept.results} == {Status.OK}
    # More than this one on a busy machine, where one that lives may fall silent for a second.
    facts = run.crew.facts()
    assert facts["lost_workers"] >= 1
    assert facts["resent"] >= BATCH
    assert "silent" not in {each["name"] for each in facts["workers"]}
    hand.end()
    silent.close()


def test_a_worker_that_stalls_while_it_beats_is_given_nothing_more(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "STALL_S", 1.0)
    run = Run(bundle, series_with_hits(40)).start()
    silent = Silenced(run.crew.address)
    silent.get_ready()
    work = header_of(silent.hear(Kind.WORK), Work)
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(0.2):
            silent.say(Kind.BEAT)

    beats = threading.Thread(target=beat, daemon=True)
    beats.start()
    hand = Hand(run.crew.address)
    run.join().assert_closes()
    beating.set()
    beats.join()
    assert {each.status for each in run.kept.results} == {Status.OK}
    assert work.batch >= 1
    assert run.crew.facts()["resent"] >= BATCH
    hand.end()
    silent.close()


def test_a_frame_that_ends_every_worker_is_recorded_and_takes_no_other_with_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SILENT_S", 0.8)
    run = Run(bundle, series_with_hits(24)).start()
    honest = make(run.judge)
    # What takes long at first is over before somebody waits for it: who takes 0.8 s over frames is lost, too.
    honest.process([frame(water(0.1), of=SERIES)])

    def mortal() -> None:
        """Workers that are gone with image 5, one after the other."""
        for number in range(6):
            peer = Silenced(run.crew.address, identity=b"wmortal%d" % number)
            while run.thread.is_alive():
                parts = peer.hear_any()
                if parts is None:
                    peer.say(Kind.BEAT)
                elif kind_of(parts) == Kind.SETUP:
                    peer.say(Kind.READY, Told(read_setup(parts)[0]))
                elif kind_of(parts) == Kind.WORK:
                    work = header_of(parts, Work)
                    if any(facts.image_id == 5 for facts in work.frames):
                        break
                    peer.answer(
                        work, honest.process([read_frame(f, SERIES, part_of(f, parts[2:])) for f in work.frames])
                    )
            peer.close()

    fleet = threading.Thread(target=mortal, daemon=True)
    fleet.start()
    run.join().assert_closes()
    fleet.join(30)
    lost = [r for r in run.kept.results if r.status != Status.OK]
    assert [(r.image_id, r.status, r.reason) for r in lost] == [(5, Status.UNDECODABLE, "failed")]


def test_ctrl_c_without_any_worker_counts_every_frame_as_dropped(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.front.DRAIN_S", 0.5)
    run = Run(bundle, [start(1, 500), *(image(n) for n in range(30))], live=True).start()
    run.wait_for(lambda: run.front.account.received == 30)
    run.stop.set()
    run.join(20).assert_closes(over=False)
    assert run.front.account.dropped["shutdown"] == 30


def test_ctrl_c_amid_a_run_closes_the_account(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyzer.front.DRAIN_S", 0.3)
    monkeypatch.setattr(Slow, "delay_s", 0.3)
    run = Run(bundle, series_with_hits(200), live=True, block=False).start()
    hand = Hand(run.crew.address, slow)
    run.wait_for(lambda: run.front.account.settled >= 5)
    run.stop.set()
    run.join(20).assert_closes(over=False)
    hand.end()


def test_a_worker_outlives_the_front_and_serves_the_next_at_the_same_address(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.crew.worker.SILENT_S", 1.5)
    run = Run(bundle, series_with_hits(12)).start()
    hand = Hand(run.crew.address)
    run.join().assert_closes()
    again: list[Crew] = []

    def bound() -> bool:
        try:
            again.append(Crew(run.crew.address, run.judge, PlanCache()))
        except OSError:
            return False
        return True

    run.wait_for(bound)
    kept = Collector()
    front = Front(ScriptedSource(series_with_hits(12)), [], [kept], FrontSettings(block=True), crew=again[0])
    front.run(threading.Event())
    assert len(kept.results) == 12
    hand.end()


def test_a_change_before_anybody_is_served_waits_for_nobody_and_is_what_workers_are_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.crew.dispatch.SWITCH_S", 3.0)
    run = Run(bundle, series_with_hits(12), cascade=CascadeSettings(threshold=1.0))
    assert run.crew.use(run.judge.with_threshold(0.0)), "it was not waited in vain"
    run.start()
    hand = Hand(run.crew.address)
    run.join().assert_closes()
    assert [result.hit for result in run.kept.results] == [True] * 12
    hand.end()


def test_what_a_worker_prepared_for_an_earlier_front_judges_no_frame_of_the_next(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.crew.worker.SILENT_S", 1.0)
    first, second = (Judge(bundle, CascadeSettings(threshold=each)) for each in (0.9, 0.1))
    may_go_on = {0.9: threading.Event(), 0.1: threading.Event()}

    def preparing(judge: Judge) -> Analyser:
        assert may_go_on[judge.threshold].wait(30)
        return make(judge)

    crew = Crew(LOOPBACK, first, PlanCache())
    address, hand = crew.address, Hand(crew.address, preparing)
    crew.start(FrameRing(), 0.01, (), lambda frames, outcome: None)
    wait_for(lambda: len(crew.facts()["workers"]) == 1)
    crew.close()
    crew = Crew(address, second, PlanCache())
    kept = Collector()
    front = Front(ScriptedSource(series_with_hits(12)), [], [kept], FrontSettings(block=True), crew=crew)
    running = threading.Thread(target=front.run, args=(threading.Event(),), daemon=True)
    running.start()
    wait_for(lambda: len(crew.facts()["workers"]) == 1)
    may_go_on[0.9].set()
    wait_for(lambda: hand.worker.ready)
    time.sleep(0.5)
    assert (crew.threads, kept.results) == (0, [])
    may_go_on[0.1].set()
    running.join(30)
    hand.end()
    (here,) = in_process(bundle, series_with_hits(12), CascadeSettings(threshold=0.1)).sinks
    assert comparable(kept.results) == comparable(here.results)  # type: ignore[attr-defined]


def test_a_worker_that_cannot_open_shared_memory_is_sent_images_and_not_lost(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(facts: object) -> None:
        raise FileNotFoundError("it is another machine's")

    monkeypatch.setattr("analyzer.crew.worker.SlotView", elsewhere)
    run = Run(bundle, series_with_hits(20)).start()
    hand = Hand(run.crew.address)
    run.join().assert_closes()
    facts = run.crew.facts()
    assert (facts["lost_workers"], facts["resent"]) == (0, 0)
    assert (run.crew._bytes["shared"], run.crew._bytes["wire"] > 0) == (0, True)
    hand.end()


# --- changes ----------------------------------------------------------------------------


def test_another_bundle_is_in_force_everywhere_and_no_frame_is_lost_or_judged_twice(
    bundle: Bundle, tmp_path: Path
) -> None:
    other = load_bundle(write_bundle(tmp_path / "other", seed=3))
    run = Run(bundle, [start(1, 4000), *(image(n, 1, water(0.1, seed=n)) for n in range(400))], live=True).start()
    hands = [Hand(run.crew.address, slow), Hand(run.crew.address)]
    run.wait_for(lambda: run.front.account.settled >= 20)
    new = run.judge.with_bundle(other)
    assert run.front.replace_analysers([], new, Forget.JUDGEMENTS)
    after = run.front.account.settled
    run.wait_for(lambda: run.front.account.settled >= min(400, after + 40))
    run.stop.set()
    run.join().assert_closes(over=False)
    labels = [each.bundle for each in run.kept.results if each.status == Status.OK]
    assert set(labels) == {bundle.label, other.label}
    # Nothing was in flight under the old one when the change was reported.
    assert set(labels[after + 1 :]) == {other.label}
    for hand in hands:
        hand.end()


def test_a_bundle_that_a_worker_refuses_is_refused(bundle: Bundle) -> None:
    run = Run(bundle, [start(1, 10)], live=True).start()
    hand = Hand(run.crew.address)
    run.wait_for(lambda: run.crew.threads == 1)
    files = dict(bundle.files) | {"hit.safetensors": b"not what the card says"}
    with pytest.raises(BadBundle, match="refuses"):
        run.crew.use(Judge(replace(bundle, files=files), CascadeSettings(threshold=0.9)))
    # All judge as before, the one that refused too.
    run.wait_for(lambda: run.crew.threads == 1)
    assert run.crew._judges[run.crew._setup] is run.judge
    run.stop.set()
    run.join()
    hand.end()


def test_single_models_are_not_for_workers_elsewhere(bundle: Bundle) -> None:
    judge = Judge(bundle, CascadeSettings(models=(object(),)))  # type: ignore[arg-type]
    with pytest.raises(CannotShare, match="--model"):
        Crew(LOOPBACK, judge, PlanCache())


# --- strangers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [b""], [b"H"], [b"H", b"\xc1"], [b"?", b"\xc0"], [b"HH", b"\xc0"], [b"H", b"\x80"], [b"O", b"\xc0"],
        [b"H", b"\xde\xff\xff"], [b"S", b"\xc0"], [b"W", b"\xc0"], [b"\xff", b"\xff"],
        message(Kind.HELLO, Hello(99, "new", "h", 1, 1, 4, 8)),
        message(Kind.HELLO, Hello(PROTOCOL, "greedy", "h", 1, 1, 4, 1 << 40)),
        message(Kind.HELLO, Hello(PROTOCOL, "none", "h", 1, 1, 0, 0)),
        message(Kind.READY, Told(1)), message(Kind.OUTCOME, {"batch": 1}), message(Kind.COVERAGE, {}),
        [b"B", b"\x91" * 4000 + b"\xc0"],
    ],
)  # fmt: skip
def test_what_is_no_worker_is_refused_and_the_run_goes_on(bundle: Bundle, parts: list[bytes]) -> None:
    run = Run(bundle, series_with_hits(12)).start()
    stranger = zmq.Context.instance().socket(zmq.DEALER)
    stranger.connect(run.crew.address)
    stranger.send_multipart(parts)
    hand = Hand(run.crew.address)
    run.join().assert_closes()
    assert {each.status for each in run.kept.results} == {Status.OK}
    stranger.close(0)
    hand.end()


@pytest.mark.parametrize(
    "lie",
    [
        "other image", "too few", "wrong arrays", "peak outside", "no msgpack", "no decision", "a hit and a miss",
        "dropped", "undecodable for nonsense", "attributes", "a stage of its own", "a time that is none", "no type",
    ],
)  # fmt: skip
def test_a_worker_that_lies_is_not_believed_and_its_frames_go_to_others(bundle: Bundle, lie: str) -> None:
    run = Run(bundle, series_with_hits(20)).start()
    liar = Silenced(run.crew.address)
    liar.get_ready()
    honest = make(run.judge)
    parts = liar.hear(Kind.WORK)
    work = header_of(parts, Work)
    frames = [read_frame(facts, SERIES, part_of(facts, parts[2:])) for facts in work.frames]
    outcome = honest.process(frames)
    if lie == "other image":
        outcome.results[0] = replace(outcome.results[0], image_id=999)
    elif lie == "too few":
        outcome.results.pop()
        for each in (outcome.profiles, outcome.peaks, outcome.diffuse):
            each.pop()
    elif lie == "wrong arrays":
        outcome.profiles[0] = outcome.profiles[0].astype(np.float64)  # type: ignore[assignment]
    elif lie == "peak outside":
        lit = next(seen for seen in outcome.peaks if len(seen.peaks))
        lit.pixel[:] = 1 << 30
    first = outcome.results[0]
    changes: dict[str, dict[str, Any]] = {
        "no decision": {"decision": None},
        "a hit and a miss": {"hit": not first.hit},
        "dropped": {"status": Status.DROPPED, "reason": "nonsense"},
        "undecodable for nonsense": {"status": Status.UNDECODABLE, "reason": "nonsense"},
        "attributes": {"nulls": {"a": ("nonsense", "")}},
    }
    outcome.results[0] = replace(outcome.results[0], **changes.get(lie, {}))
    if lie == "a stage of its own":
        outcome.stage_seconds["nonsense"] = 1.0
    answer = pack_outcome(work.batch, outcome, float("nan") if lie == "a time that is none" else 0.1, None)
    if lie == "no msgpack":
        answer[1] = b"\xc1\xc1"
    if lie == "no type":
        header = msgspec.msgpack.decode(answer[1])
        header["items"][0][0] = "many"
        answer[1] = msgspec.msgpack.encode(header)
    liar.socket.send_multipart(answer)
    if lie == "no msgpack":
        liar.say(Kind.BYE)
    hand = Hand(run.crew.address)
    run.wait_for(lambda: run.crew._bad >= 1)
    liar.say(Kind.BYE)
    run.join().assert_closes()
    assert {each.status for each in run.kept.results} == {Status.OK}
    assert {each.image_id for each in run.kept.results} == set(range(20))
    hand.end()
    liar.close()


def test_whole_series_of_nothing_but_background_pass(bundle: Bundle) -> None:
    run = Run(bundle, [*whole_series(9, 1), *whole_series(3, 2)]).start()
    hand = Hand(run.crew.address)
    run.join().assert_closes()
    assert run.front.finished == 2
    hand.end()
