"""The spots that a run keeps, and when it estimates from them."""

import logging
import math
import threading
import time
from typing import Any

import numpy as np
import pytest

from analyzer.frame_peaks import FramePeaks
from analyzer.kernels import PEAK_DTYPE
from analyzer.parameters.bragg_spots import BraggSpots
from analyzer.parameters.bragg_watch import FEWEST_HITS, LEAST_PAUSE_S, BraggWatch, HitSpots, KnownCell
from analyzer.parameters.fit import Posterior, undetermined
from analyzer.parameters.gathered import Gathering
from analyzer.parameters.stand import Stand
from analyzer.reduction import FramePlan
from analyzer.results import Decision
from analyzer.running import Running
from streamer.messages import SeriesMetadata
from streamer.series import Series
from tests.analyzer import builders
from tests.analyzer.builders import metadata, plan, series
from tests.analyzer.parameters.bragg_hits import (
    CELL,
    CENTER,
    PIXEL_SIZE_M,
    SPACE_GROUP,
    Hit,
    condition_at,
    hits,
    log_ratio,
)
from tests.analyzer.test_running import result

CONDITION = condition_at(0.25, 8000.0)
MADE = hits(CONDITION, 40, seed=21)
KNOWN = KnownCell(CELL, SPACE_GROUP)


def water(off: float = 0.01) -> Posterior:
    """What diffuse scattering says, a little off."""
    mean = np.array([log_ratio(CONDITION) + off, math.log(CONDITION.photon_energy_eV)])
    return Posterior(mean, np.diag([0.01, 0.02]) ** 2, np.zeros(2), np.ones(2))


class Watched:
    """A watch and the spots that it looks at."""

    def __init__(self, known: KnownCell = KNOWN, says: Posterior | None = None) -> None:
        self.spots: BraggSpots | None = BraggSpots(PIXEL_SIZE_M)
        self.watch = BraggWatch(known, lambda: self.spots, lambda: says)

    def add(self, made: list[Hit]) -> None:
        assert self.spots is not None
        for hit in made:
            self.spots.add(hit.x_px, hit.y_px, hit.photons)


def peaks(of: FramePlan, places: list[tuple[float, float]], photons: float = 20.0) -> FramePeaks:
    found = np.zeros(len(places), PEAK_DTYPE)
    for n, (fs, ss) in enumerate(places):
        found[n]["fs"], found[n]["ss"], found[n]["intensity"] = fs, ss, photons
    nothing = np.zeros(len(places))
    return FramePeaks(of, found, nothing, None, nothing.astype(np.int64), nothing.astype(bool))


def test_spots_are_kept_from_the_nominal_beam() -> None:
    spots, of = HitSpots(), plan()
    spots.add(peaks(of, [(of.geometry.beam_center_fs + 3.0, of.geometry.beam_center_ss - 2.0)]))
    assert spots.kept is not None
    (frame,) = spots.kept.frames()
    assert (frame.x_px[0], frame.y_px[0], frame.photons[0]) == pytest.approx((3.0, -2.0, 20.0), abs=1e-4)


def test_another_geometry_and_a_reset_begin_anew() -> None:
    spots, first, second = HitSpots(), plan(), plan(center=(builders.CENTER[0] + 1.0, builders.CENTER[1]))
    for _ in range(3):
        assert spots.takes(None, first.geometry)
        spots.add(peaks(first, [(1.0, 2.0)]))
    before = spots.kept
    assert before is not None
    assert len(before) == 3
    assert spots.takes(None, second.geometry)
    spots.add(peaks(second, []))
    assert spots.kept is not before
    assert spots.kept is not None
    assert len(spots.kept) == 1
    spots.reset()
    assert spots.kept is None


def take(running: Running, of: Series, plan_of: FramePlan, frames: int, decision: Decision = Decision.HIT) -> None:
    """Frames of a series as it was when they came, with a peak each."""
    batch = [result(n, decision, ordinal=of.ordinal) for n in range(frames)]
    running.add(batch, [], {}, peaks=[peaks(plan_of, [(1.0, 2.0)])] * frames, series=[of] * frames)


def kept_after(first: SeriesMetadata, second: SeriesMetadata, plans: tuple[FramePlan, FramePlan]) -> int:
    """Hits kept after three of one series and two of the next."""
    running = Running(gathering=Gathering(HitSpots()))
    for ordinal, (header, of, hits_) in enumerate(zip((first, second), plans, (3, 2), strict=True), 1):
        begun = Series(ordinal, ordinal, None, header)
        running.begin(begun)
        take(running, begun, of, hits_)
    kept = running.hit_spots()
    assert kept is not None
    return len(kept)


@pytest.mark.parametrize(
    "change",
    [
        {"camera_length_m": 0.1501},
        {"camera_length_m": None},
        {"photon_energy_eV": 7005.0},
        {"beam_center_x_px": builders.CENTER[0] + 0.5},
        {"beam_center_y_px": builders.CENTER[1] - 2.0},
        {"pixel_size_x_m": 55e-6},
    ],
)
def test_a_detector_that_moved_begins_anew_though_a_geometry_file_says_it_stands_still(change: dict[str, Any]) -> None:
    """With a .geom of numbers every series has one plan, whatever its header says."""
    of = plan()
    assert kept_after(metadata(), metadata(**change), (of, of)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"camera_length_m": 0.15 + 1e-5},
        {"photon_energy_eV": 7000.9},
        {"beam_center_x_px": builders.CENTER[0] + 0.1},
        {"number_of_images": 7},
    ],
)
def test_a_header_read_a_little_differently_goes_on_with_the_spots(change: dict[str, Any]) -> None:
    center = (change.get("beam_center_x_px", builders.CENTER[0]) - 0.5, builders.CENTER[1] - 0.5)
    assert kept_after(metadata(), metadata(**change), (plan(), plan(center=center))) == 5


def test_many_small_steps_are_a_move() -> None:
    spots, of = HitSpots(), plan()
    for step in range(10):
        assert spots.takes(Stand.of(metadata(photon_energy_eV=7000.0 + step)), of.geometry)
        spots.add(peaks(of, [(1.0, 2.0)]))
    assert spots.kept is not None
    assert len(spots.kept) < 10


def test_a_run_keeps_the_peaks_of_its_hits_alone_and_only_when_asked() -> None:
    seen, batch = [peaks(plan(), [(1.0, 2.0)])] * 3, [result(0, Decision.HIT), result(1), result(2, Decision.HIT)]
    asked, other = Running(gathering=Gathering(HitSpots())), Running()
    for each in (asked, other):
        each.add(batch, [], {}, peaks=seen)
    kept = asked.hit_spots()
    assert kept is not None
    assert kept.added == 2
    assert other.hit_spots() is None
    asked.reset()
    assert asked.hit_spots() is None


@pytest.mark.parametrize(("camera_length_m", "kept"), [(0.15, [2, 5, 6]), (0.3, [2, 3, 3])])
def test_late_hits_of_a_series_with_another_header_are_left_out(camera_length_m: float, kept: list[int]) -> None:
    """Late is what comes after a frame of the later header, and not after that header was read."""
    running = Running(gathering=Gathering(HitSpots()))
    first, second = series(1, 1), series(2, 2, camera_length_m=camera_length_m)
    for begun in (first, second):
        running.begin(begun)
    counts = []
    for of, hits_ in ((first, 2), (second, 3), (first, 1)):
        take(running, of, plan(), hits_)
        spots = running.hit_spots()
        counts.append(0 if spots is None else len(spots))
    assert counts == kept


def test_spots_of_a_header_are_gone_with_the_first_frame_of_another_be_it_no_hit() -> None:
    """Else they would be held against the water of another place."""
    running = Running(gathering=Gathering(HitSpots()))
    take(running, series(1, 1), plan(), 3)
    take(running, series(2, 2, camera_length_m=0.3), plan(), 1, Decision.MISS)
    assert running.hit_spots() is None


def test_an_estimate_waits_for_enough_hits_more_hits_and_its_time() -> None:
    watched = Watched(says=water())
    watched.add(MADE[: FEWEST_HITS - 1])
    assert watched.watch.look(0.0) is None
    watched.add(MADE[FEWEST_HITS - 1 : FEWEST_HITS])
    began = time.monotonic()
    first = watched.watch.look(1.0)
    took = time.monotonic() - began
    assert first is not None
    assert first.reason is None
    later = 1.0 + max(LEAST_PAUSE_S, 11.0 * took)
    watched.add(MADE[FEWEST_HITS : FEWEST_HITS + 3])
    assert watched.watch.look(later) is first, "three hits more are no fifth"
    watched.add(MADE[FEWEST_HITS + 3 :])
    assert watched.watch.look(1.0 + 0.9 * LEAST_PAUSE_S) is first, "too early"
    second = watched.watch.look(later)
    assert second is not None
    assert second is not first
    assert second.frames > first.frames
    assert second.log_ratio == pytest.approx(log_ratio(CONDITION), abs=5e-3)
    np.testing.assert_allclose(second.center_shift_px, CENTER, atol=0.3)


def test_after_a_long_run_a_fifth_of_the_hits_kept_is_enough() -> None:
    watched = Watched(says=water())
    watched.spots = BraggSpots(PIXEL_SIZE_M, frames=FEWEST_HITS)
    for _ in range(10):
        watched.add(MADE[:FEWEST_HITS])
    first = watched.watch.look(0.0)
    watched.add(MADE[: FEWEST_HITS // 5])
    assert first is not None
    assert watched.watch.look(1e6) is not first


def test_spots_that_begin_anew_leave_no_estimate_behind() -> None:
    watched = Watched(says=water())
    watched.add(MADE[:25])
    assert watched.watch.look(0.0) is not None
    watched.spots = BraggSpots(PIXEL_SIZE_M)
    assert watched.watch.latest is None
    watched.spots = None
    assert watched.watch.look(1e6) is None
    assert watched.watch.finish() is None


@pytest.mark.parametrize("says", [None, undetermined("no water")])
def test_without_water_everything_is_looked_at(says: Posterior | None) -> None:
    watched = Watched(says=says)
    watched.add(MADE)
    found = watched.watch.look(0.0)
    assert found is not None
    assert found.log_energy == pytest.approx(math.log(CONDITION.photon_energy_eV), abs=5e-3)


def test_the_end_of_a_run_has_an_estimate_of_few_hits_too_and_makes_none_twice() -> None:
    watched = Watched(says=water())
    assert watched.watch.finish() is None
    watched.add(MADE[: FEWEST_HITS - 5])
    found = watched.watch.finish()
    assert found is not None
    assert watched.watch.finish() is found


def test_a_fault_is_logged_and_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(KnownCell((0.0,) * 6))
    watched.add(MADE[:FEWEST_HITS])
    with caplog.at_level(logging.ERROR):
        assert watched.watch.look(0.0) is None
    assert "Bragg spots failed" in caplog.text


def test_the_watch_ends_when_the_run_does() -> None:
    watched, done = Watched(), threading.Event()
    thread = threading.Thread(target=watched.watch.watch, args=(done,), daemon=True)
    thread.start()
    done.set()
    thread.join(5.0)
    assert not thread.is_alive()
