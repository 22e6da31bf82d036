"""What a run adds up to: counts that are never reset, medians of its hits, and where one run ends."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from analyzer.bundle import Bundle
from analyzer.intervals import wilson
from analyzer.results import Decision, FrameResult
from analyzer.runs import BadRun, Estimate, RunInfo
from analyzer.tallies import MOST_PEAKS, RESOLUTION_STEP_ANGSTROM, SERIES_KEPT, Tallies
from streamer.account import Account
from tests.analyzer.builders import end, image, start, whole_series
from tests.analyzer.test_control import Controlled


def result(image_id: int = 0, ordinal: int = 1, **fields: Any) -> FrameResult:
    facts: dict[str, Any] = {
        "series_id": 100 + ordinal, "image_id": image_id, "channel": "threshold_1", "start_time": None,
        "exposure_s": None, "received_at": 0.0, "ordinal": ordinal, "decision": Decision.MISS, "hit": False,
    }  # fmt: skip
    return FrameResult(**(facts | fields))


def hit(peaks: int, resolution: float | None = None, **fields: Any) -> FrameResult:
    facts = {"decision": Decision.HIT, "hit": True, "peak_count": peaks, "resolution_angstrom": resolution}
    return result(**(facts | fields))


# --- counts -----------------------------------------------------------------------------


def test_a_run_is_the_difference_of_two_totals() -> None:
    tallies, account = Tallies(), Account()
    tallies.add([hit(200, 9.0, indexable=True), result()])
    account.processed["hit"] = account.processed["miss"] = 1
    began = tallies.totals(account, 3)
    tallies.add([hit(10, 2.0, ordinal=2), hit(20, 3.0, ordinal=2, indexable=True), hit(31, None, ordinal=2)])
    account.processed["hit"] += 3
    account.drop("queue_full", 5)
    account.undecodable["failed"] = 2
    counts = tallies.totals(account, 10).since(began)
    assert counts.processed == {"hit": 3, "miss": 0, "no_beam": 0}
    assert counts.dropped["queue_full"] == 5
    assert (counts.undecodable, counts.indexable, counts.indexed, counts.frames) == (2, 1, 7, 10)
    assert counts.median_peaks == 20, "none of the hits before"
    assert counts.median_resolution_angstrom == pytest.approx(2.01)
    assert counts.series_ids == (102,)


def test_medians_are_those_of_sorting() -> None:
    rng = np.random.default_rng(4)
    peaks, spacings = rng.integers(1, 300, 501), rng.uniform(1.5, 8.0, 501)
    tallies = Tallies()
    nothing = tallies.totals(Account())
    tallies.add([hit(int(n), float(d)) for n, d in zip(peaks, spacings, strict=True)])
    counts = tallies.totals(Account()).since(nothing)
    assert counts.median_peaks == int(np.median(peaks))
    assert counts.median_resolution_angstrom == pytest.approx(np.median(spacings), abs=RESOLUTION_STEP_ANGSTROM)


def test_senseless_values_stay_in_the_last_bin() -> None:
    tallies = Tallies()
    nothing = tallies.totals(Account())
    tallies.add([hit(10**9, 1e12), hit(0, 0.0), hit(10**9, 1e12)])
    counts = tallies.totals(Account()).since(nothing)
    assert counts.median_peaks == MOST_PEAKS
    assert counts.median_resolution_angstrom == pytest.approx(49.99)


def test_without_hits_there_is_no_median() -> None:
    tallies = Tallies()
    counts = tallies.totals(Account()).since(tallies.totals(Account()))
    assert (counts.median_peaks, counts.median_resolution_angstrom, counts.series_ids, counts.indexed) == (
        None, None, (), None,
    )  # fmt: skip


def test_a_series_that_goes_on_belongs_to_both_runs_and_an_earlier_one_to_none() -> None:
    tallies = Tallies()
    tallies.add([result(ordinal=1), result(ordinal=2)])
    began = tallies.totals(Account())
    tallies.add([result(ordinal=2), result(ordinal=3), result(ordinal=2)])
    assert tallies.totals(Account()).since(began).series_ids == (102, 103)


def test_series_remembered_are_bounded() -> None:
    tallies = Tallies()
    nothing = tallies.totals(Account())
    tallies.add([result(ordinal=n) for n in range(SERIES_KEPT + 50)])
    found = tallies.totals(Account()).since(nothing).series_ids
    assert len(found) == SERIES_KEPT
    assert found[-1] == 100 + SERIES_KEPT + 49


# --- summaries --------------------------------------------------------------------------


def test_a_summary_counts_every_frame_and_states_its_interval(bundle: Bundle) -> None:
    run = Controlled(bundle)
    run.control.use_threshold(0.0)
    run.run([*whole_series(20, 5), *whole_series(10, 6)])
    summary = run.control.summary()
    assert summary.counts.frames == summary.hits == summary.beam == 30
    assert summary.hit_rate == (1.0, *wilson(30, 30))
    assert summary.counts.series_ids == (5, 6)
    assert summary.judging.threshold == 0.0
    assert summary.judging.bundle == bundle.label
    assert summary.photon_energy_eV.header == 7000.0
    assert not summary.over
    assert 0 <= summary.duration_s < 60


def test_before_the_first_frame_there_is_no_rate(bundle: Bundle) -> None:
    summary = Controlled(bundle).control.summary()
    assert (summary.hit_rate, summary.hits, summary.counts.frames) == (None, 0, 0)


def test_a_reset_takes_nothing_from_the_counts(bundle: Bundle) -> None:
    run = Controlled(bundle)
    images = [image(n) for n in range(40)]
    run.run([start(1, 40), *images[:20], run.during(run.control.reset), run.wait, *images[20:], end()])
    capture = run.control.capture(over=True)
    assert capture.summary.counts.frames == 40
    assert capture.summary.over
    assert capture.gathered_since > capture.summary.info.began_at
    assert capture.products is not None
    assert sum(capture.products.frames.values()) < 40
    assert [changed.action for changed in capture.changes] == ["reset"]


def test_runs_follow_each_other_without_a_gap(bundle: Bundle) -> None:
    run = Controlled(bundle)
    ended: list[Any] = []
    run.control.runs._on_end = ended.append

    def turns() -> None:
        for _ in range(3):
            run.control.use_run({}, new=True)
            time.sleep(0.05)

    images = [image(n) for n in range(90)]
    run.run([start(1, 90), *images[:20], run.during(turns), *images[20:70], run.wait, *images[70:], end()])
    assert run.raised == []
    over = run.control.runs.over
    assert [capture.summary for capture in ended] == over
    assert [one.until for one in over] == [other.info.began_at for other in [*over[1:], run.control.summary()]]
    assert sum(summary.counts.frames for summary in [*over, run.control.summary()]) == 90


def test_a_run_that_ends_while_it_is_summed_up_is_never_less_than_nothing(bundle: Bundle) -> None:
    run = Controlled(bundle)
    run.run([start(1, 12), *(image(n) for n in range(12)), end()])
    runs, judging = run.control.runs, run.control.judging
    turning: list[threading.Thread] = []

    def indexed() -> int:
        """Asked for amid a sum: the run ends now, as far as it can."""
        if not turning:
            turning.append(threading.Thread(target=runs.turn, args=(RunInfo(number=2), judging, (), {})))
            turning[0].start()
            turning[0].join(0.2)
        return 0

    run.front.account.processed[Decision.MISS] += 5
    runs._indexed = indexed
    summary = runs.summary(judging, ())
    turning[0].join(10)
    assert summary.info.number is None
    assert summary.counts.frames == 17
    assert runs.info.number == 2
    after = runs.summary(judging, ())
    assert (after.info.number, after.counts.frames) == (2, 0)


def test_what_fails_when_a_run_ends_ends_it_all_the_same(bundle: Bundle) -> None:
    run = Controlled(bundle)

    def broken(capture: Any) -> None:
        raise OSError("no more")

    run.control.runs._on_end = broken
    images = [image(n) for n in range(30)]
    change = run.during(lambda: run.control.use_run({"number": 9}, new=True))
    run.run([start(1, 30), *images[:10], 0.5, change, run.wait, *images[10:], end()])
    run.assert_closes(30)
    assert run.control.runs.info.number == 9
    assert run.front.running.hits.counts(100)[1] <= 20, "what was shown began anew"


# --- names ------------------------------------------------------------------------------


def test_a_run_is_named_by_its_number_else_by_its_time() -> None:
    assert RunInfo(number=7).name == "0007"
    assert RunInfo(number=123456).name == "123456"
    assert RunInfo(began_at=1e9).name == "20010909T014640Z"


@pytest.mark.parametrize("number", [-1, 10**9, 10**30])
def test_a_number_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(BadRun, match="0 to 999999999"):
        RunInfo(number=number)


def test_the_header_is_so_many_standard_deviations_away() -> None:
    assert Estimate(value=7000.0, sigma=10.0, header=7025.0).pull == pytest.approx(2.5)
    for estimate in (Estimate(), Estimate(value=1.0, sigma=0.0, header=1.0), Estimate(value=1.0, sigma=1.0)):
        assert estimate.pull is None
