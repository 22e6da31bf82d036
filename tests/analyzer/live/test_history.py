"""A run in bins of time and of images: late frames in their own, memory bounded, rates of whole seconds."""

import random
from collections.abc import Sequence

import pytest

from analyzer.live.history import IMAGE_BINS, MINUTES_KEPT, SECONDS_KEPT, SERIES_KEPT, History, ImageBins, TimeBins
from analyzer.results import Decision, FrameResult, Status
from tests.analyzer.live.made import result

HIT, MISS, DARK = Decision.HIT, Decision.MISS, Decision.NO_BEAM


def history() -> History:
    return History({1: 0, 2: 1000}.get)


def take(seen: History, results: Sequence[FrameResult]) -> None:
    """Frames that arrive and are published, one by one."""
    seen.arrived([each.received_at for each in results])
    for each in results:
        seen.add([each])


def test_a_late_frame_counts_in_the_second_it_arrived_and_at_its_own_image() -> None:
    seen = history()
    seen.add([result(n, at=1000.2 + n) for n in (0, 1, 2, 30)])
    seen.add([result(3, HIT, at=1001.9)])
    curves = seen.curves()
    assert curves["time"]["t"][:3] == [1000, 1001, 1002]
    assert curves["time"]["hits"][:3] == [0, 1, 0]
    assert curves["time"]["analysed"][:3] == [1, 2, 1]
    assert curves["images"]["first"] == [0, 30]
    assert curves["images"]["hits"] == [1, 0]


def test_seconds_without_a_frame_are_there_and_empty() -> None:
    seen = history()
    take(seen, [result(0, at=1000.0), result(1, at=1005.0)])
    columns = seen.curves()["time"]
    assert columns["t"] == list(range(1000, 1006))
    assert columns["received"] == [1, 0, 0, 0, 0, 1]
    assert columns["latency_s"] == [0.01, None, None, None, None, 0.01]


def test_frames_without_beam_count_as_analysed_and_neither_as_beam_nor_along_images() -> None:
    seen = history()
    seen.add([result(0, DARK), result(1, HIT), result(2, MISS)])
    columns = seen.curves()["time"]
    assert (columns["analysed"], columns["beam"], columns["hits"], columns["peaks"]) == ([3], [2], [1], [13])
    assert seen.curves()["images"]["beam"] == [2]


def test_what_sampling_left_out_is_no_loss() -> None:
    seen = history()
    left = [
        result(n, status=Status.DROPPED, decision=None, reason=why) for n, why in enumerate(("sampled", "queue_full"))
    ]
    take(seen, [*left, result(2, status=Status.UNDECODABLE, decision=None, reason="bad_block")])
    columns = seen.curves()["time"]
    assert (columns["received"], columns["dropped"], columns["analysed"]) == ([3], [1], [0])


def test_series_follow_each_other_along_the_images() -> None:
    seen = history()
    seen.begin_series(1, 1, 999.0)
    seen.begin_series(1, 2, 1001.0)
    seen.begin_series(1, 2, 1002.0)
    seen.add([result(5, HIT, ordinal=2)])
    curves = seen.curves()
    assert [(each["began_at"], each["first_image"]) for each in curves["series"]] == [(999.0, 0), (1001.0, 1000)]
    assert curves["images"]["first"] == [1000]


def test_results_of_a_series_of_long_ago_have_no_place_and_do_no_harm() -> None:
    seen = history()
    seen.add([result(0, ordinal=77), result(1 << 60)])
    assert seen.curves()["images"]["first"] == []
    assert seen.curves()["time"]["analysed"] == [2]


def test_a_month_of_frames_takes_no_more_memory_than_a_day() -> None:
    seen = history()
    for n in range(0, 40 * 86400, 61):
        seen.add([result(n, at=float(n))])
    curves = seen.curves()
    assert len(curves["time"]["t"]) <= SECONDS_KEPT
    assert len(curves["minutes"]["t"]) == MINUTES_KEPT
    assert len(curves["images"]["first"]) <= IMAGE_BINS
    assert sum(curves["images"]["beam"]) == len(range(0, 40 * 86400, 61))


def test_only_the_latest_bins_of_time_are_kept() -> None:
    bins = TimeBins(1, 10)
    for second in (100, 91, 105):
        bins.row(float(second))[0] += 1
    assert bins.columns()["t"] == list(range(100, 106))


def test_a_clock_that_jumps_a_year_ahead_and_is_set_back_leaves_curves_that_go_on() -> None:
    seen = history()
    seen.add([result(0, at=1000.0), result(1, at=1000.0 + 3.15e7), result(2, at=1001.0), result(3, at=1002.0)])
    assert seen.curves()["time"]["t"] == [1001, 1002]


def test_bins_of_images_merge_in_pairs_and_keep_every_count() -> None:
    bins = ImageBins()
    places = random.Random(5).sample(range(200_000), 5000)
    for place in places:
        row = bins.row(place)
        row[0] += 1
        row[1] += place % 2
    columns = bins.columns()
    assert columns["width"] > 10
    assert sum(columns["beam"]) == 5000
    assert sum(columns["hits"]) == sum(place % 2 for place in places)
    assert columns["first"] == sorted(columns["first"])
    assert all(first % columns["width"] == 0 for first in columns["first"])


def test_rates_are_of_the_last_ten_whole_seconds() -> None:
    seen = history()
    take(
        seen,
        [result(n, HIT if n % 4 == 0 else MISS, at=1000.0 + n / 20, latency_s=0.001 * (n % 100)) for n in range(400)],
    )
    rates = seen.rates(1020.5)
    assert rates["frames_hz"] == pytest.approx(20.0)
    assert rates["analysed_hz"] == pytest.approx(20.0, abs=0.5)
    assert rates["hits_hz"] == pytest.approx(5.0, abs=0.5)
    assert rates["latency_p50_s"] == pytest.approx(0.05, abs=0.02)
    assert rates["latency_p99_s"] == pytest.approx(0.098, abs=0.005)
    later = seen.rates(2000.0)
    assert (later["frames_hz"], later["analysed_hz"], later["latency_p99_s"]) == (0.0, 0.0, None)


@pytest.mark.parametrize("lag_s", [0, 2, 11, 60])
def test_an_analysis_that_is_behind_is_as_fast_as_it_is_and_its_latency_is_told(lag_s: int) -> None:
    seen, now = history(), 2000.0
    # The detector sends twice as fast as the results come, which are of images of ``lag_s`` ago.
    seen.arrived([now - 80 + n / 400 for n in range(80 * 400)])
    results = [
        result(n, HIT if n % 4 == 0 else MISS, at=now - 20 + n / 200 - lag_s, latency_s=float(lag_s))
        for n in range(20 * 200)
    ]
    for n in range(0, len(results), 8):
        seen.add(results[n : n + 8])
    assert seen.rates(now) == {
        "frames_hz": pytest.approx(400.0),
        "analysed_hz": pytest.approx(200.0),
        "hits_hz": pytest.approx(50.0),
        "latency_p50_s": lag_s,
        "latency_p99_s": lag_s,
    }
    assert seen.rates(now + 30)["analysed_hz"] == 0.0, "and once it stands, it stands"


def test_what_waits_for_its_result_has_arrived_all_the_same() -> None:
    seen = history()
    seen.arrived([1000.0, 1000.5, 1001.0])
    seen.add([result(0, at=1000.0)])
    columns = seen.curves()["time"]
    assert (columns["received"], columns["analysed"]) == ([2, 1], [1, 0])


def test_only_the_latest_series_are_marked() -> None:
    seen = history()
    for ordinal in range(200):
        seen.begin_series(ordinal, ordinal, float(ordinal))
    assert len(seen.curves()["series"]) == SERIES_KEPT
