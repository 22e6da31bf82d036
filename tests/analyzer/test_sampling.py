"""Every k-th image: the same choice everywhere, a closed account, and a k that follows the load without flapping."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import zmq

from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, BatchOutcome, CascadeSettings
from analyzer.front import Front, FrontSettings
from analyzer.results import Status
from analyzer.sampling import CALM_S, LATE_S, LOOK_S, MOST_EVERY, Load, Sampler
from streamer import stream_v2
from streamer.frames import Frame
from streamer.receiver import StreamReceiver
from tests.analyzer.builders import (
    BROKEN,
    Collector,
    ScriptedSource,
    assert_account_closes,
    end,
    image,
    start,
    whole_series,
)


class Queue:
    """Workers behind a queue, in made-up time: ``rate`` images a second, ``cost`` seconds of a worker for a frame."""

    def __init__(self, workers: int = 2, batch: int = 8) -> None:
        self.sampler = Sampler(None, workers)
        self.changes: list[tuple[float, int]] = []
        self.longest_s = 0.0
        self._batch = batch
        self._free = [0.0] * workers
        self._waiting: list[tuple[float, int]] = []
        self._running: list[tuple[float, int, float]] = []
        self._now = self._busy = 0.0
        self._arrived = self._analysed = 0

    def run(self, seconds: float, rate: float, cost: float) -> int:
        """k at the end of so many seconds."""
        self.longest_s, until = 0.0, self._now + seconds
        while self._now < until:
            self._now += 1.0 / rate
            self._work(cost)
            self._look()
            if self.sampler.wants(self._arrived):
                self._waiting.append((self._now, self._arrived))
            self._arrived += 1
        return self.sampler.every

    def rest(self, seconds: float) -> None:
        """Nothing arrives."""
        until = self._now + seconds
        while self._now < until:
            self._now += 0.1
            self._work(0.0)
            self._look()

    def _work(self, cost: float) -> None:
        for worker, free in enumerate(self._free):
            if free <= self._now and self._waiting:
                taken, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
                self.longest_s = max(self.longest_s, self._now - taken[0][0])
                took = cost * len(taken)
                self._free[worker] = self._now + took
                self._running.append((self._now + took, len(taken), took))
        for done in [each for each in self._running if each[0] <= self._now]:
            self._running.remove(done)
            self._analysed += done[1]
            self._busy += done[2]

    def _look(self) -> None:
        if not self.sampler.due(self._now):
            return
        before = self.sampler.every
        oldest = self._now - self._waiting[0][0] if self._waiting else 0.0
        if self.sampler.look(self._now, Load(self._arrived, self._analysed, self._busy, oldest)):
            self._waiting = [each for each in self._waiting if self.sampler.keeps_waiting(each[1])]
        if self.sampler.every != before:
            self.changes.append((self._now, self.sampler.every))


@pytest.mark.parametrize(
    ("rate", "cost", "least"),
    [(100, 0.005, 1), (300, 0.01, 2), (1000, 0.01, 5), (2200, 0.03, 33), (205, 0.01, 2), (190, 0.01, 1)],
)
def test_k_becomes_the_smallest_that_the_workers_keep_up_with(rate: float, cost: float, least: int) -> None:
    queue = Queue()
    assert least <= queue.run(60, rate, cost) <= max(least, 1.25 * least), queue.changes
    assert queue.longest_s < 2.0, "no image waited long even while k was found"
    settled = len(queue.changes)
    queue.run(300, rate, cost)
    assert len(queue.changes) - settled <= 1, "k does not flap"
    assert queue.longest_s < LATE_S + 2 * LOOK_S


def test_k_falls_again_when_the_load_does() -> None:
    queue = Queue()
    assert queue.run(20, 1000, 0.01) >= 5
    assert queue.run(3 * CALM_S, 300, 0.01) == 2
    assert queue.run(3 * CALM_S, 50, 0.01) == 1


def test_a_load_at_the_edge_of_two_ks_does_not_flap() -> None:
    queue = Queue()
    for n in range(60):
        queue.run(5, 390 if n % 2 else 410, 0.01)
    assert len(queue.changes) <= 3, queue.changes


def test_a_pause_between_series_changes_nothing() -> None:
    queue = Queue()
    every = queue.run(30, 1000, 0.01)
    queue.rest(10 * CALM_S)
    assert queue.sampler.every == every
    queue.run(10, 1000, 0.01)
    assert queue.longest_s < LATE_S + 2 * LOOK_S


def test_workers_that_stand_still_for_a_while_do_not_make_k_grow() -> None:
    sampler = Sampler(None, 2)
    for n in range(6):
        assert not sampler.look(n * LOOK_S, Load(100 * n, 0, 0.0, n * LOOK_S))
    assert sampler.every == 1


def test_k_has_an_end_where_workers_never_finish() -> None:
    sampler = Sampler(None, 1)
    for n in range(200):
        sampler.look(n * 1.0, Load(10_000_000 * n, 0, 0.0, n * 1.0))
    assert sampler.every == MOST_EVERY


def test_a_k_that_is_given_follows_nothing() -> None:
    sampler = Sampler(7)
    assert not sampler.due(1e9)
    assert [n for n in range(50) if sampler.wants(n)] == [0, 7, 14, 21, 28, 35, 42, 49]
    assert sampler.facts == {"every": 7, "ratio": 1 / 7, "adaptive": False}


# --- in the front -----------------------------------------------------------------------


def sampled_run(bundle: Bundle, script: Sequence[Any], every: int) -> tuple[Front, Collector]:
    kept = Collector()
    front = Front(
        ScriptedSource(script),
        [Analyser(bundle, CascadeSettings()) for _ in range(2)],
        [kept],
        FrontSettings(block=True, sample=every),
    )
    front.run(threading.Event())
    return front, kept


def test_every_tenth_image_is_analysed_and_all_have_a_record(bundle: Bundle) -> None:
    front, kept = sampled_run(bundle, [*whole_series(95, 1), *whole_series(41, 2)], 10)
    assert_account_closes(front.account)
    analysed = [pair for pair, r in zip(kept.pairs, kept.results, strict=True) if r.status == Status.OK]
    assert sorted(analysed) == [*((1, n) for n in range(0, 95, 10)), *((2, n) for n in range(0, 41, 10))]
    assert front.account.dropped["sampled"] == 85 + 36
    assert len(set(kept.pairs)) == len(kept.pairs) == 95 + 41
    left_out = [r for r in kept.results if r.status == Status.DROPPED]
    assert {(r.status_text, r.hit, r.peaks) for r in left_out} == {("sampled", None, None)}
    assert [report.analysed for report in front.reports] == [10, 5]


def test_the_choice_does_not_depend_on_the_order_of_arrival(bundle: Bundle) -> None:
    mixed = [start(1, 30), *(image(n * 7 % 30) for n in range(30)), end()]
    _, kept = sampled_run(bundle, mixed, 4)
    assert {r.image_id for r in kept.results if r.status == Status.OK} == set(range(0, 30, 4))


def test_an_image_left_out_is_never_decoded(bundle: Bundle) -> None:
    script = [start(1, 4), *(image(n, pixels=BROKEN) for n in range(4)), end()]
    front, _ = sampled_run(bundle, script, 2)
    assert sum(front.account.undecodable.values()) == 2
    assert front.account.dropped["sampled"] == 2
    assert_account_closes(front.account)


def test_duplicates_and_strays_keep_their_own_reason(bundle: Bundle) -> None:
    script = [start(1, 6), *(image(n) for n in range(6)), image(3), image(99), end(), image(2)]
    front, _ = sampled_run(bundle, script, 3)
    assert_account_closes(front.account)
    dropped = front.account.dropped
    assert (dropped["sampled"], dropped["duplicate"], dropped["out_of_range"], dropped["stale_series"]) == (4, 1, 1, 1)


def test_hit_windows_count_only_what_was_analysed(bundle: Bundle) -> None:
    front, _ = sampled_run(bundle, whole_series(300), 10)
    assert front.running.hits.counts(100)[1] == 10, "the latest 100 images by id, of which every tenth was looked at"
    assert front.running.hits.counts(1000)[1] == 30


# --- over a socket ----------------------------------------------------------------------


class Paced(Analyser):
    """Takes its time for a frame."""

    def process(self, frames: Sequence[Frame]) -> BatchOutcome:
        time.sleep(0.01 * len(frames))
        return super().process(frames)


@pytest.fixture
def push() -> Iterator[tuple[Any, str]]:
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.PUSH)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    yield socket, f"tcp://127.0.0.1:{port}"
    context.destroy(linger=0)


def test_a_source_faster_than_the_workers_is_sampled_evenly_and_without_delay(
    bundle: Bundle, push: tuple[Any, str]
) -> None:
    socket, endpoint = push
    images, rate = 2000, 400.0
    kept = Collector()
    settings = FrontSettings(sample=None, series=1, batch_frames=2, ring_frames=512)
    front = Front(StreamReceiver([endpoint]), [Paced(bundle, CascadeSettings())], [kept], settings)
    runner = threading.Thread(target=front.run, args=(threading.Event(),), daemon=True)
    runner.start()
    socket.send(stream_v2.encode_start(1, start(1, images).metadata))
    bodies = [image(n) for n in range(8)]
    most = 1
    began = time.monotonic()
    for n in range(images):
        body = bodies[n % 8]
        socket.send(stream_v2.encode_image(type(body)(1, n, body.channels)))
        most = max(most, front.sampler.every)
        time.sleep(max(0.0, began + (n + 1) / rate - time.monotonic()))
    socket.send(stream_v2.encode_end(1))
    runner.join(30)
    assert not runner.is_alive()
    front.source.close()
    assert_account_closes(front.account)
    assert front.account.dropped["queue_full"] == 0
    assert front.account.dropped["sampled"] > images / 3
    assert front.sampler.every >= 4, "a frame takes 10 ms and more, and comes each 2.5 ms"
    late = sorted((r.image_id, r.latency_s) for r in kept.results if r.status == Status.OK and r.image_id > images / 2)
    gaps = {b - a for (a, _), (b, _) in itertools.pairwise(late)}
    assert max(gaps) <= 4 * most, f"gaps {gaps} where one image in up to {most} is chosen"
    assert max(latency for _, latency in late) < 3.0
