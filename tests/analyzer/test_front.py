"""The whole way in one process: source, series, ring, workers, outputs; the account closes after every fault."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, BatchOutcome, CascadeSettings
from analyzer.front import Front, FrontSettings, SeriesReport
from analyzer.results import FrameResult, Status
from analyzer.sinks import JsonLinesSink
from streamer.files import FileSource
from streamer.frames import Frame
from streamer.messages import Algorithm, ImageData, InvalidMessage
from tests.analyzer.builders import (
    BROKEN,
    SHAPE,
    Collector,
    ScriptedSource,
    Step,
    assert_account_closes,
    end,
    frames_of_a_run,
    image,
    start,
    water,
    whole_series,
    with_spots,
    write_series,
)


class Run:
    """A front that has run to its end, with everything it said."""

    def __init__(
        self,
        bundle: Bundle,
        script: Sequence[Step],
        *,
        analysers: Sequence[Analyser] | None = None,
        workers: int = 2,
        stop: threading.Event | None = None,
        sinks: Sequence[Any] = (),
        live: bool = False,
        source: Any = None,
        **settings: Any,
    ) -> None:
        self.kept = Collector()
        self.stop = stop or threading.Event()
        analysers = analysers or [Analyser(bundle, CascadeSettings()) for _ in range(workers)]
        self.seen: list[SeriesReport] = []
        self.front = Front(
            source or ScriptedSource(script, live),
            analysers,
            [self.kept, *sinks],
            FrontSettings(**({"block": True} | settings)),
            self.seen.append,
        )
        self.account = self.front.account
        runner = threading.Thread(target=self.front.run, args=(self.stop,), daemon=True)
        runner.start()
        runner.join(60)
        assert not runner.is_alive(), "the run did not end"

    @property
    def results(self) -> list[FrameResult]:
        return self.kept.results

    def assert_closes(self, over: bool = True) -> None:
        """Both identities, one record for each accepted image, none twice."""
        assert_account_closes(self.account, over)
        pairs = [(r.ordinal, r.image_id) for r in self.results]
        assert len(pairs) == len(set(pairs)) == self.account.accepted
        assert self.front.reports == self.seen

    def images(self, series_id: int = 1, status: Status = Status.OK) -> list[int]:
        return sorted(r.image_id for r in self.results if (r.series_id, r.status) == (series_id, status))


class SlowAnalyser(Analyser):
    """Analyses, after a while."""

    delay_s = 0.03

    def process(self, frames: Sequence[Frame]) -> BatchOutcome:
        time.sleep(self.delay_s)
        return super().process(frames)


class FailingAnalyser(Analyser):
    """Has a fault of its own on every image whose id ends in 3."""

    def process(self, frames: Sequence[Frame]) -> BatchOutcome:
        if any(frame.image_id % 10 == 3 for frame in frames):
            raise RuntimeError("a fault of ours")
        return super().process(frames)


# --- the ordinary way -------------------------------------------------------------------


def test_every_image_of_a_series_is_recorded_once(bundle: Bundle) -> None:
    run = Run(bundle, whole_series(30))
    run.assert_closes()
    assert run.images() == list(range(30))
    (report,) = run.front.reports
    assert (report.analysed, report.undecodable, report.closed.why) == (30, 0, "end message")


def test_an_image_left_out_has_arrived_as_one_analysed_has(bundle: Bundle) -> None:
    run = Run(bundle, whole_series(30), sample=3)
    seconds = run.front.history.curves()["time"]
    assert (sum(seconds["received"]), sum(seconds["analysed"])) == (30, 10)


def test_files_are_analysed_to_their_end(bundle: Bundle, tmp_path: Path) -> None:
    masters = [write_series(tmp_path, frames_of_a_run(n), f"run{n}") for n in (3, 7)]
    run = Run(bundle, [], source=FileSource([str(m) for m in masters]))
    run.assert_closes()
    assert (run.images(1), run.images(2)) == ([0, 1, 2], list(range(7)))
    assert all(r.latency_s is not None and r.latency_s >= 0 for r in run.results)


def test_a_series_without_images_is_reported(bundle: Bundle) -> None:
    run = Run(bundle, [start(1, 5), end(1), start(2, 0), end(2)])
    run.assert_closes()
    assert [r.closed.missing["tail"] for r in run.front.reports] == [5, 0]


def test_the_order_of_workers_changes_no_record(bundle: Bundle) -> None:
    script = whole_series(40)

    def fields(run: Run) -> list[tuple[Any, ...]]:
        return sorted((r.image_id, r.hit_probability, r.peak_count, r.background_photons) for r in run.results)

    assert fields(Run(bundle, script, workers=1, batch_frames=1)) == fields(
        Run(bundle, script, workers=4, batch_frames=7)
    )


# --- what goes missing, comes twice or comes late ---------------------------------------


class LateAnalyser(Analyser):
    """Takes its time over the last images of series 1."""

    def process(self, frames: Sequence[Frame]) -> BatchOutcome:
        if any(frame.series.series_id == 1 and frame.image_id >= 8 for frame in frames):
            time.sleep(0.5)
        return super().process(frames)


def test_late_images_of_a_series_do_not_take_the_places_of_the_next(bundle: Bundle) -> None:
    analysers = [LateAnalyser(bundle, CascadeSettings()) for _ in range(3)]
    run = Run(bundle, [*whole_series(10), *whole_series(10, 2)], analysers=analysers, batch_frames=1)
    run.assert_closes()
    assert run.front.running.hits.counts(1000)[1] == 20


def test_missing_images_are_counted_where_they_are_missing(bundle: Bundle) -> None:
    run = Run(bundle, [start(1, 10), *(image(n) for n in (1, 2, 5, 6)), end()])
    run.assert_closes()
    assert run.account.missing == {"head": 0, "gap": 3, "tail": 3}


def test_duplicates_are_dropped_and_recorded_once(bundle: Bundle) -> None:
    run = Run(bundle, [start(1, 4), *(image(n) for n in (0, 1, 1, 2, 0, 3, 3)), end()])
    run.assert_closes()
    assert run.account.dropped["duplicate"] == 3
    assert run.images() == [0, 1, 2, 3]


def test_an_undecodable_first_copy_keeps_its_record(bundle: Bundle) -> None:
    run = Run(bundle, [start(1, 2), image(0, pixels=BROKEN), image(0), image(1), end()])
    run.assert_closes()
    assert (run.images(status=Status.UNDECODABLE), run.images()) == ([0], [1])
    assert (run.account.dropped["duplicate"], run.account.undecodable) == (1, {"size_mismatch": 1})


def test_images_out_of_range_are_refused(bundle: Bundle) -> None:
    run = Run(bundle, [start(1, 2), image(0), image(2), image(-1), image(1 << 40), image(1), end()])
    run.assert_closes()
    assert run.account.dropped["out_of_range"] == 3


def test_images_of_a_series_that_is_over_are_stale(bundle: Bundle) -> None:
    run = Run(bundle, [*whole_series(3), image(1), image(2), *whole_series(3, 2), image(0, 1)])
    run.assert_closes()
    assert run.account.dropped["stale_series"] == 3
    assert [r.series_id for r in run.results].count(1) == 3


def test_a_foreign_end_ends_nothing(bundle: Bundle) -> None:
    run = Run(bundle, [start(1, 4), image(0), end(7), image(1), image(0, 9), image(2), image(3), end(1)])
    run.assert_closes()
    assert run.images() == [0, 1, 2, 3]
    assert run.account.dropped["stale_series"] == 1


def test_a_series_without_a_start_is_joined(bundle: Bundle) -> None:
    run = Run(bundle, [*(image(n, 5) for n in range(10, 20)), end(5), *whole_series(2, 6)])
    run.assert_closes(over=False)
    assert run.images(5) == list(range(10, 20))
    (report,) = [r for r in run.front.reports if r.closed.series.series_id == 5]
    assert report.closed.series.joined
    assert report.closed.announced is None
    assert report.closed.missing["head"] == 10


def test_two_images_alone_join_nothing(bundle: Bundle) -> None:
    run = Run(bundle, [image(0, 5), image(1, 5), *whole_series(3)])
    run.assert_closes()
    assert run.account.dropped["stale_series"] == 2


def test_a_rebooted_detector_counts_from_one_again(bundle: Bundle) -> None:
    run = Run(bundle, [*whole_series(3), *whole_series(3), *whole_series(2)])
    run.assert_closes()
    assert [r.closed.accepted for r in run.front.reports] == [3, 3, 2]


def test_a_start_ends_the_series_before_it(bundle: Bundle) -> None:
    run = Run(bundle, [start(1, 5), image(0), start(2, 2), image(0, 2), image(1, 2)])
    run.assert_closes()
    assert [r.closed.why for r in run.front.reports] == ["new start", "source ended"]
    assert run.account.missing["tail"] == 4


def test_silence_after_the_last_image_ends_a_series(bundle: Bundle) -> None:
    run = Run(bundle, [start(1, 2), image(0), image(1), 1.1, 0.0], live=True, series=1)
    run.assert_closes()
    assert run.front.reports[0].closed.why == "last announced image"


def test_waiting_for_room_does_not_count_as_silence(bundle: Bundle) -> None:
    # The last image comes first; then the ring is full for longer than the grace of a series.
    slow = SlowAnalyser(bundle, CascadeSettings())
    slow.delay_s = 0.4
    script = [start(1, 6), image(5), *(image(n) for n in range(5)), end()]
    run = Run(bundle, script, analysers=[slow], ring_frames=1, batch_frames=1)
    run.assert_closes()
    assert run.images() == list(range(6))


# --- faults -----------------------------------------------------------------------------


def test_undecodable_images_are_counted_by_reason_and_the_series_goes_on(bundle: Bundle) -> None:
    empty = ImageData(b"", SHAPE, np.dtype("u2"), Algorithm.RAW, 2)
    run = Run(bundle, [start(1, 4), image(0), image(1, pixels=BROKEN), image(2, pixels=empty), image(3), end()])
    run.assert_closes()
    assert run.images() == [0, 3]
    assert sum(run.account.undecodable.values()) == 2
    assert run.front.reports[0].undecodable == 2


def test_a_fault_of_a_worker_costs_its_batch_and_not_the_run(bundle: Bundle) -> None:
    analysers = [FailingAnalyser(bundle, CascadeSettings()) for _ in range(2)]
    run = Run(bundle, whole_series(30), analysers=analysers, batch_frames=1)
    run.assert_closes()
    assert run.images(status=Status.UNDECODABLE) == [3, 13, 23]
    assert run.account.undecodable == {"failed": 3}


def test_refused_messages_are_counted_and_the_run_goes_on(bundle: Bundle) -> None:
    script = [InvalidMessage("malformed", "noise"), start(1, 1), InvalidMessage("too_large", "big"), image(0), end()]
    run = Run(bundle, script)
    run.assert_closes()
    assert run.account.invalid == {"malformed": 1, "too_large": 1}


class BrokenSink(Collector):
    """Loses everything."""

    def write(self, results: Sequence[Any]) -> None:
        self.lost += len(results)


def test_a_sink_that_loses_records_stops_nothing(bundle: Bundle) -> None:
    broken = BrokenSink()
    run = Run(bundle, whole_series(5), sinks=[broken])
    run.assert_closes()
    assert broken.lost == 5


class SlowSink(Collector):
    def write(self, results: Sequence[Any]) -> None:
        time.sleep(0.05)
        super().write(results)


def test_a_slow_sink_drops_no_image(bundle: Bundle) -> None:
    slow = SlowSink()
    run = Run(bundle, whole_series(40), sinks=[slow], block=False, batch_frames=4)
    run.assert_closes()
    assert len(slow.results) == 40
    assert sum(run.account.dropped.values()) == 0


def test_shapes_and_types_may_change_in_the_middle_of_a_series(bundle: Bundle) -> None:
    kinds = [("u2", (61, 75)), ("u4", (61, 75)), ("u1", (1, 1)), ("u2", (7, 300)), ("u4", (64, 64))]
    images = [image(n, pixels=water(0.3, shape, n, dtype)) for n, (dtype, shape) in enumerate(kinds * 4)]
    run = Run(bundle, [start(1, 20, shape=None), *images, end()])
    run.assert_closes()
    assert run.images() == list(range(20))


def test_metadata_replaced_in_the_middle_of_a_series_does_not_stop_the_run(bundle: Bundle) -> None:
    # A far beam centre has more radial bins than a near one.
    script = [
        start(1, 12), *(image(n) for n in range(4)),
        start(1, 12, beam_center_x_px=-150.0), *(image(n) for n in range(4, 8)),
        start(1, 12, beam_center_x_px=5.0), *(image(n) for n in range(8, 12)), end(),
        *whole_series(2, 2),
    ]  # fmt: skip
    run = Run(bundle, script, workers=1)
    run.assert_closes()
    assert [r.closed.accepted for r in run.front.reports] == [12, 2]


def test_an_id_far_beyond_all_others_is_refused_where_nothing_was_announced(bundle: Bundle) -> None:
    run = Run(
        bundle, [start(1, None), image(0), image(1 << 40), image((1 << 63) - 1), image(1), end(), *whole_series(3, 2)]
    )
    run.assert_closes(over=False)
    assert run.account.dropped["out_of_range"] == 2
    assert (run.images(1), run.images(2)) == ([0, 1], [0, 1, 2])


@pytest.mark.parametrize(
    "image_id",
    [
        1 << 40,
        pytest.param(
            (1 << 63) - 2,
        ),
    ],
)
def test_ids_that_jump_within_what_was_announced_do_not_stop_the_run(bundle: Bundle, image_id: int) -> None:
    jumping: list[Step] = [start(1, (1 << 63) - 1), image(0), image(image_id), image(1), end(), 0.5]
    run = Run(bundle, [*jumping, *whole_series(3, 2), *jumping, *whole_series(3, 3)])
    run.assert_closes()
    assert run.images(2) == run.images(3) == [0, 1, 2]
    assert run.account.processed["miss"] + run.account.processed["hit"] == 12


def test_a_huge_number_of_announced_images_costs_nothing(bundle: Bundle) -> None:
    run = Run(bundle, [start(1, (1 << 126) - 1), image(0), image(1 << 62), end()])
    run.assert_closes()
    assert run.account.announced == (1 << 126) - 1


def test_many_series_in_a_row_leave_nothing_behind(bundle: Bundle) -> None:
    small = water(0.3, (5, 7))
    analysers = [Analyser(bundle, CascadeSettings()) for _ in range(2)]
    script: list[Step] = []
    for n in range(300):
        script += [start(n + 1, 1, shape=(5, 7)), image(0, n + 1, small), end(n + 1)]
    run = Run(bundle, script, analysers=analysers)
    run.assert_closes()
    assert len(run.front.reports) == 300
    assert run.front._tallies == {}
    assert all(len(analyser._prepared) <= 4 for analyser in analysers)


# --- drop and block ---------------------------------------------------------------------


def test_a_full_ring_drops_and_records_what_it_drops(bundle: Bundle) -> None:
    slow = SlowAnalyser(bundle, CascadeSettings())
    run = Run(bundle, whole_series(60), analysers=[slow], block=False, ring_frames=2, batch_frames=1)
    run.assert_closes()
    dropped = run.account.dropped["queue_full"]
    assert dropped > 0
    assert len(run.images(status=Status.DROPPED)) == dropped
    assert len(run.front.reports) == 1, "starts and ends are never dropped"
    unseen = [r for r in run.results if r.status == Status.DROPPED]
    assert {r.status_text for r in unseen} == {"queue_full"}
    assert all(r.hit is None and r.latency_s is not None for r in unseen)


def test_blocking_drops_nothing(bundle: Bundle) -> None:
    slow = SlowAnalyser(bundle, CascadeSettings())
    run = Run(bundle, whole_series(20), analysers=[slow], block=True, ring_frames=2, batch_frames=1)
    run.assert_closes()
    assert run.images() == list(range(20))


def test_an_image_larger_than_the_ring_passes_alone(bundle: Bundle) -> None:
    run = Run(bundle, whole_series(3), ring_bytes=16)
    run.assert_closes()
    assert run.images() == [0, 1, 2]


# --- how a run ends ---------------------------------------------------------------------


def test_a_run_ends_after_the_series_asked_for(bundle: Bundle) -> None:
    run = Run(bundle, [*whole_series(3, 1), *whole_series(4, 2)], live=True, series=2)
    run.assert_closes()
    assert len(run.front.reports) == 2


def test_a_stop_in_the_middle_keeps_what_was_received(bundle: Bundle) -> None:
    stop = threading.Event()
    script = [start(1, 100), *(image(n) for n in range(10)), stop.set, *(image(n) for n in range(10, 100)), end()]
    run = Run(bundle, script, stop=stop)
    run.assert_closes()
    assert run.images() == list(range(10))
    assert run.account.missing["tail"] == 90
    assert run.front.reports[0].closed.why == "source ended"


def test_a_stop_while_the_ring_is_full_records_the_image_in_hand(bundle: Bundle) -> None:
    stop = threading.Event()

    class Interrupted(SlowAnalyser):
        """Stopped a while after its first image came, when the ring is full behind it."""

        delay_s = 0.5

        def process(self, frames: Sequence[Frame]) -> BatchOutcome:
            threading.Timer(0.2, stop.set).start()
            return super().process(frames)

    slow = Interrupted(bundle, CascadeSettings())
    run = Run(bundle, whole_series(50), analysers=[slow], stop=stop, ring_frames=1, batch_frames=1)
    run.assert_closes()
    assert run.account.dropped["shutdown"] == 1
    assert len(run.images(status=Status.DROPPED)) == 1


def test_what_cannot_be_drained_in_time_is_a_shutdown_drop(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyzer.front.DRAIN_S", 0.3)
    stop = threading.Event()
    slow = SlowAnalyser(bundle, CascadeSettings())
    slow.delay_s = 1.0
    run = Run(bundle, [*whole_series(20)[:-1], stop.set], analysers=[slow], stop=stop, batch_frames=1)
    run.assert_closes()
    assert run.account.dropped["shutdown"] > 10


def test_a_run_stopped_before_the_first_message_ends_at_once(bundle: Bundle) -> None:
    stop = threading.Event()
    stop.set()
    run = Run(bundle, whole_series(3), stop=stop)
    run.assert_closes()
    assert run.results == []


def test_records_are_complete_on_disk_when_a_run_returns(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Run(bundle, whole_series(25), sinks=[JsonLinesSink(path)]).assert_closes()
    assert len(path.read_text().splitlines()) == 25


def test_hits_of_a_series_are_reported(bundle: Bundle) -> None:
    script = [start(1, 6), *(image(n, pixels=with_spots(water(0.1, seed=n))) for n in range(6)), end()]
    run = Run(bundle, script, analysers=[Analyser(bundle, CascadeSettings(threshold=0.0))])
    assert run.front.reports[0].hits == 6
    assert run.account.processed == {"hit": 6, "miss": 0, "no_beam": 0}


def test_the_identity_holds_at_every_moment_as_a_bound(bundle: Bundle) -> None:
    slow = SlowAnalyser(bundle, CascadeSettings())
    slow.delay_s = 0.005
    front = Front(ScriptedSource(whole_series(60)), [slow], [], FrontSettings(block=True, batch_frames=1))
    runner = threading.Thread(target=front.run, args=(threading.Event(),), daemon=True)
    runner.start()
    while runner.is_alive():
        settled = front.account.settled
        assert settled <= front.account.received
        time.sleep(0.001)
    assert_account_closes(front.account)
