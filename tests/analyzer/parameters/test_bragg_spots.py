"""What is kept of a run's spots."""

import numpy as np
import pytest

from analyzer.parameters.bragg_spots import MOST_SPOTS, BraggSpots


def test_the_latest_frames_are_kept_oldest_first() -> None:
    spots = BraggSpots(75e-6, frames=3)
    for n in range(5):
        spots.add([n, n + 0.5], [-n, 0], [10, 20])
    assert (len(spots), spots.added) == (3, 5)
    assert [each.x_px.tolist() for each in spots.frames()] == [[2.0, 2.5], [3.0, 3.5], [4.0, 4.5]]
    assert [each.x_px[0] for each in spots.frames(most=2)] == [3.0, 4.0]


def test_a_frame_keeps_its_brightest_spots() -> None:
    spots = BraggSpots(75e-6, frames=2)
    photons = np.random.default_rng(1).permutation(MOST_SPOTS + 50)
    spots.add(photons, photons, photons)
    (frame,) = spots.frames()
    assert sorted(frame.photons.tolist()) == list(range(50, MOST_SPOTS + 50))
    np.testing.assert_array_equal(frame.x_px, frame.photons)


def test_what_is_not_finite_is_left_out_and_copies_are_handed_out() -> None:
    spots = BraggSpots(75e-6, frames=2)
    spots.add([1.0, np.nan, 3.0, np.inf], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0])
    (frame,) = spots.frames()
    assert frame.y_px.tolist() == [1.0, 3.0]
    frame.y_px[:] = 0.0
    assert spots.frames()[0].y_px.tolist() == [1.0, 3.0]


def test_clear_forgets() -> None:
    spots = BraggSpots(75e-6)
    spots.add([1.0], [1.0], [1.0])
    spots.clear()
    assert (len(spots), spots.frames()) == (0, [])


def test_lengths_that_differ_and_impossible_sizes_are_refused() -> None:
    spots = BraggSpots(75e-6)
    with pytest.raises(ValueError):
        spots.add([1.0, 2.0], [1.0], [1.0])
    for size, frames in ((0.0, 10), (float("nan"), 10), (75e-6, 0)):
        with pytest.raises(ValueError, match="pixel size"):
            BraggSpots(size, frames)
