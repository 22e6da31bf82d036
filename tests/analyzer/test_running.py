"""What a run shows so far: windows keyed by image, series that follow each other, histograms."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from analyzer.geometry import AZIMUTH_CLASSES
from analyzer.networks import PROFILE_BINS
from analyzer.reduction import FramePlan, FrameProfile
from analyzer.results import Decision, FrameResult, Status
from analyzer.running import Histogram, ImageWindow, Running
from streamer.series import Series
from tests.analyzer.builders import CHANNEL, metadata, plan, series


def result(image_id: int, decision: Decision = Decision.MISS, ordinal: int = 1, **changes: Any) -> FrameResult:
    fields: dict[str, Any] = {
        "series_id": ordinal, "image_id": image_id, "channel": CHANNEL, "start_time": None, "exposure_s": None,
        "received_at": 0.0, "latency_s": 0.01, "decision": decision, "hit": decision == Decision.HIT,
        "indexable": False, "peak_count": 0, "hit_probability": 0.5, "relative_flux": 1.0, "ordinal": ordinal,
    }  # fmt: skip
    return FrameResult(**(fields | changes))


def shown(*batches: list[FrameResult], ordinals: int = 1) -> Running:
    running = Running()
    for ordinal in range(1, ordinals + 1):
        running.begin(series(ordinal, ordinal))
        for results in batches:
            running.add([r for r in results if r.ordinal == ordinal], [], {})
    return running


# --- windows ----------------------------------------------------------------------------


def test_a_window_counts_the_latest_images() -> None:
    window = ImageWindow(10)
    for n in range(25):
        window.add(n, n % 2)
    assert window.counts(10) == (5, 10)
    assert window.counts(4) == (2, 4)


def test_a_late_image_lands_in_its_own_place() -> None:
    window = ImageWindow(10)
    for n in (0, 1, 2, 4, 5, 6):
        window.add(n, 0)
    window.add(3, 1)
    assert window.counts(10) == (1, 7)
    # Image 3 is the fourth but last: the last three do not hold it.
    assert window.counts(3) == (0, 3)
    assert window.counts(4) == (1, 4)


def test_an_image_later_than_the_window_changes_nothing() -> None:
    window = ImageWindow(10)
    for n in range(100, 110):
        window.add(n, 0)
    window.add(95, 1)
    window.add(3, 1)
    assert window.counts(10) == (0, 10)


def test_an_image_older_than_a_window_leaves_it_when_ids_jump() -> None:
    window = ImageWindow(10)
    window.add(3, 1)
    window.add(1 << 40, 0)
    assert window.counts(10) == (0, 1)


def test_an_empty_window_has_counted_nothing() -> None:
    assert ImageWindow(10).counts(10) == (0, 0)


def test_frames_without_beam_leave_the_denominator() -> None:
    running = shown([result(0, Decision.HIT), result(1, Decision.NO_BEAM), result(2), result(3, Decision.NO_BEAM)])
    assert running.hits.counts(100) == (1, 2)
    assert running.indexable.counts(100) == (0, 2)


def test_indexable_images_with_beam_are_counted_for_good() -> None:
    rows = [
        result(0, indexable=True),
        result(1),
        result(2, Decision.NO_BEAM, indexable=True),
        result(3, indexable=None),
    ]
    running = shown(rows, [result(2**50, indexable=True)])
    running.reset()
    assert running.indexable.counts(100) == (0, 0)
    assert running.indexable_frames == 2


def test_the_scores_of_frames_with_beam_are_kept_by_image() -> None:
    results = [result(n, hit_probability=n / 10) for n in range(5)]
    results.append(result(5, Decision.NO_BEAM, hit_probability=0.0))
    running = shown([results[n] for n in (3, 0, 5, 1, 4, 2)])
    assert sorted(running.scores.values(100)) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert sorted(running.scores.values(3)) == [0.3, 0.4]


def test_another_judge_starts_new_scores() -> None:
    running = shown([result(n) for n in range(5)])
    running.forget_judgements()
    assert len(running.scores.values(100)) == 0


def test_only_good_frames_enter_the_windows() -> None:
    bad = FrameResult(
        series_id=1, image_id=1, channel=CHANNEL, start_time=None, exposure_s=None, received_at=0.0,
        status=Status.UNDECODABLE, ordinal=1,
    )  # fmt: skip
    running = shown([result(0, Decision.HIT), bad])
    assert running.hits.counts(100) == (1, 1)
    assert running.last is not None
    assert running.last.image_id == 0


def test_the_order_of_completion_makes_no_difference() -> None:
    results = [result(n, Decision.HIT if n % 3 else Decision.MISS) for n in range(500)]
    shuffled = [results[n] for n in np.random.default_rng(0).permutation(500)]
    assert shown(results).hits.counts(1000) == shown(shuffled).hits.counts(1000)


# --- series -----------------------------------------------------------------------------


def test_the_images_of_a_new_series_follow_those_of_the_last() -> None:
    running = shown([result(n, Decision.HIT, ordinal) for ordinal in (1, 2) for n in range(80)], ordinals=2)
    assert running.hits.counts(100) == (100, 100)
    assert running.hits.counts(1000) == (160, 160)


def test_a_late_image_of_the_last_series_keeps_its_place() -> None:
    running = Running()
    for ordinal in (1, 2):
        running.begin(series(ordinal, ordinal, images=60))
        running.add([result(n, Decision.MISS, ordinal) for n in range(60)], [], {})
    running.begin(series(3, 3, images=60))
    running.add([result(n, Decision.MISS, 3) for n in range(50)], [], {})
    # Image 59 of series 2 comes again as a late one would: 120 places before are taken, none is lost.
    running.add([result(59, Decision.HIT, 2)], [], {})
    assert running.hits.counts(1000) == (1, 170)


def test_a_new_series_starts_a_new_profile() -> None:
    running = Running()
    profile = np.ones((2, PROFILE_BINS * AZIMUTH_CLASSES), np.float32)
    running.begin(series(1))
    running.add([result(0)], [profile], {})
    running.begin(series(1))
    assert running.profile.sum() > 0, "metadata of the same series keeps it"
    running.begin(series(2))
    assert running.profile.sum() == 0
    assert running.profile_frames == 0
    assert running.series_began == 2


def test_the_profile_forgets_slowly() -> None:
    running = Running()
    running.begin(series(1))
    profile = np.ones((2, PROFILE_BINS * AZIMUTH_CLASSES), np.float32)
    for n in range(3000):
        running.add([result(n)], [profile], {})
    assert running.profile_frames == pytest.approx(1000 * (1 - np.exp(-3)), rel=0.01)


def test_the_history_is_bounded() -> None:
    running = shown([result(n) for n in range(10_000)])
    assert len(running.history) <= 4000
    history = running.snapshot()["history"]
    assert len(history) <= 2000
    assert history[-1][0] == 9999


@pytest.mark.parametrize(
    "image_id",
    [
        1 << 40,
        pytest.param(
            (1 << 63) - 2,
        ),
    ],
)
def test_a_jump_of_the_image_id_does_not_break_what_follows(image_id: int) -> None:
    running = Running()
    running.begin(series(1))
    running.add([result(0), result(image_id, Decision.HIT)], [], {})
    running.begin(series(2))
    running.add([result(n, Decision.HIT, 2) for n in range(5)] + [result(image_id, Decision.HIT, 2)], [], {})
    running.begin(series(3))
    running.add([result(n, Decision.HIT, 3) for n in range(100)], [], {})
    assert running.hits.counts(100) == (100, 100)


# --- histograms and flux ----------------------------------------------------------------


def test_a_histogram_counts_cumulatively_and_bounds_are_inclusive() -> None:
    histogram = Histogram((0.1, 1.0))
    histogram.observe([0.05, 0.1, 0.5, 1.0, 2.0])
    assert histogram.buckets() == [("0.1", 2.0), ("1.0", 4.0), ("+Inf", 5.0)]
    assert histogram.sum == pytest.approx(3.65)


def test_stage_times_are_a_frames_share_of_its_batch() -> None:
    running = Running()
    running.begin(series(1))
    running.add([result(n) for n in range(4)], [], {"decode": 0.4})
    assert running.stages["decode"].sum == pytest.approx(0.1)


def test_the_relative_flux_is_smoothed() -> None:
    running = Running()
    assert running.relative_flux is None
    running.begin(series(1))
    running.add([result(0, relative_flux=1.0)], [], {})
    running.add([result(1, relative_flux=2.0)], [], {})
    assert running.relative_flux == pytest.approx(1.1)


def test_a_snapshot_before_the_first_frame_has_no_ratio() -> None:
    snapshot = Running().snapshot()
    assert snapshot["hit_ratio"] == {"100": None, "1000": None}
    assert snapshot["last"] is None


# --- sums of diffuse scattering -----------------------------------------------------------


def summed(running: Running) -> float:
    sums = running.diffuse_sums()
    return 0.0 if sums is None else sum(each.frames for each in sums.run)


def diffuse_of(of: FramePlan) -> FrameProfile:
    return FrameProfile(of, np.ones((3, of.sectors.bins), np.float32), 0.0)


def take(running: Running, of: Series, plan_of: FramePlan, decision: Decision = Decision.MISS, frames: int = 1) -> None:
    """Frames of a series as it was when they came."""
    batch = [result(n, decision, ordinal=of.ordinal) for n in range(frames)]
    running.add(batch, [], {}, diffuse=[diffuse_of(plan_of)] * frames, series=[of] * frames)


def test_a_header_that_moves_the_detector_begins_the_sums_anew_under_one_geometry_file() -> None:
    """With a .geom of numbers every series has one plan; a late frame of the series before does not mix in."""
    running, of = Running(), plan()
    begun = [series(n, n, camera_length_m=length) for n, length in ((1, 0.15), (2, 0.15), (3, 0.25))]
    for each in begun:
        running.begin(each)
        take(running, each, of)
        assert summed(running) == {1: 1.0, 2: 2.0, 3: 1.0}[each.ordinal]
    take(running, begun[1], of)
    assert summed(running) == 1.0
    take(running, begun[2], of)
    assert summed(running) == 2.0


def test_a_header_counts_from_its_first_frame_and_not_from_when_it_was_read() -> None:
    """A reader is ahead of the workers: the sums go with the header of the frames that are in them."""
    running, plans = Running(), [plan(), plan(center=(30.0, 20.0)), plan(center=(25.0, 25.0))]
    begun = [series(n + 1, n + 1, camera_length_m=length) for n, length in enumerate((0.15, 0.25, 0.35))]
    for each in begun:
        running.begin(each)
    for each, of in zip(begun, plans, strict=True):
        take(running, each, of, frames=3)
        assert summed(running) == 3.0
        sums = running.diffuse_sums()
        assert sums is not None
        assert sums.header is each.metadata is running.shown_header
    for each, of in zip(begun[:2], plans[:2], strict=True):
        take(running, each, of)
    assert summed(running) == 3.0, "late frames of a header before are left out"


def test_a_series_is_told_from_what_was_summed_of_it() -> None:
    running, plans = Running(), [plan(), plan(center=(30.0, 20.0))]
    first, second, same = series(1, 1), series(2, 2, camera_length_m=0.25), series(3, 3, camera_length_m=0.25)
    take(running, first, plans[0], frames=4)
    take(running, second, plans[1], frames=2)
    take(running, first, plans[0])
    take(running, same, plans[1], frames=3)
    told = [running.over(ordinal) for ordinal in (1, 2, 3)]
    sums = [None if each is None else each.sums for each in told]
    assert [each and each.run[0].frames for each in sums] == [4.0, 5.0, 5.0]
    assert [each and each.header for each in sums] == [first.metadata, same.metadata, same.metadata]
    assert running.over(1) is None
    assert running.over(4) is None, "no frame of it came"


def test_a_header_that_a_repeated_start_changes_begins_the_sums_anew() -> None:
    running, of = Running(), plan()
    before = series(1, 1)
    after = replace(before, metadata=metadata(camera_length_m=0.25), revision=1)
    running.begin(before)
    running.begin(after)
    take(running, before, of, frames=5)
    assert running.shown_header is before.metadata
    take(running, after, of, frames=2)
    take(running, before, of)
    assert summed(running) == 2.0
    assert running.shown_header is after.metadata


def test_frames_without_beam_of_a_later_header_end_the_sums_of_the_one_before() -> None:
    running, of = Running(), plan()
    take(running, series(1, 1), of, frames=5)
    take(running, series(2, 2, camera_length_m=0.25), of, Decision.NO_BEAM)
    assert running.diffuse_sums() is None
    assert running.over(2) is None


def test_sums_of_headers_before_are_few_however_many_series_are_open() -> None:
    running, of = Running(), plan()
    for n in range(40):
        take(running, series(n + 1, n + 1, camera_length_m=0.15 if n % 2 else 0.25), of)
    kept = [running.over(n + 1) is not None for n in range(40)]
    assert kept == [False] * 23 + [True] * 17
