"""Peaks matched to true spots."""

import numpy as np
import pytest

from training.evaluation.peak_metrics import PeakCount, beside_invalid, match, merge, spots_of


def test_spots_nearer_than_the_radius_are_one() -> None:
    places, photons = merge(spots_of([10.0, 12.0, 30.0], [10.0, 10.0, 10.0]), np.array([5.0, 20.0, 7.0]))
    assert places.tolist() == [[12.0, 10.0], [30.0, 10.0]]
    assert photons.tolist() == [25.0, 7.0]


def test_the_nearest_pair_is_matched_first_and_one_to_one() -> None:
    matches = match(spots_of([10.0, 12.0], [10.0, 10.0]), spots_of([11.5, 7.0], [10.0, 10.0]), np.array([10.0, 10.0]))
    assert matches.spot_of.tolist() == [1, 0]
    assert matches.distance.tolist() == [3.0, 0.5]


def test_a_peak_without_light_is_false_and_one_on_light_is_not() -> None:
    spots, photons = spots_of([10.0], [10.0]), np.array([50.0])
    assert match(spots_of([10.0, 12.0, 40.0], [10.0] * 3), spots, photons).spot_of.tolist() == [0, -1, -2]
    assert match(spots_of([10.0], [10.0]), spots, np.array([0.2])).spot_of.tolist() == [0]


def test_the_light_of_a_spot_is_within_three_pixels_of_it() -> None:
    spots, photons = spots_of([10.0], [10.0]), np.array([50.0])
    assert match(spots_of([10.0, 13.0, 13.1], [10.0] * 3), spots, photons).spot_of.tolist() == [0, -1, -2]


def test_spots_beside_invalid_pixels_count_neither_way() -> None:
    valid = np.ones((40, 60), np.uint8)
    valid[:, 30] = 0
    beside = beside_invalid(valid)
    assert np.flatnonzero(beside[20]).tolist() == [0, 1, 2, *range(27, 34), 57, 58, 59]
    spots, photons = spots_of([27.0, 26.0, 2.4], [20.0, 10.0, 20.0]), np.full(3, 12.0)
    for peaks, found in ((spots, [1, 1, 0]), (spots_of([], []), [0, 0, 0])):
        count = PeakCount()
        count.add(match(peaks, spots, photons), beside)
        assert count.by_photons == [[1, found[0]], [1, found[1]], [0, found[2]]]
        assert (count.false, count.doubled, count.peaks) == (0, 0, len(peaks))


def test_light_that_is_known_decides_what_is_false() -> None:
    spots, photons = spots_of([10.0], [10.0]), np.array([50.0])
    peaks = spots_of([10.0, 12.0, 40.0], [10.0] * 3)
    assert match(peaks, spots, photons, np.array([50.0, 0.1, 0.4])).spot_of.tolist() == [0, -2, -1]


def test_counts_add_up_over_frames() -> None:
    count = PeakCount()
    spots, photons = spots_of([10.0, 40.0, 70.0], [10.0] * 3), np.array([6.0, 15.0, 25.0])
    count.add(match(spots_of([40.3, 70.0, 90.0], [10.4, 10.0, 10.0]), spots, photons))
    count.add(match(spots_of([], []), spots_of([], []), np.zeros(0)))
    count.add(match(spots_of([5.0], [5.0]), spots_of([], []), np.zeros(0)))
    assert (count.frames, count.peaks, count.false, count.doubled) == (3, 4, 2, 0)
    assert count.by_photons == [[3, 2], [2, 2], [1, 1]]
    assert count.position_error_px == pytest.approx(np.sqrt((0.3**2 + 0.4**2) / 2))
    both = PeakCount()
    both.include(count)
    both.include(count)
    assert (both.frames, both.by_photons[0]) == (6, [6, 4])


def test_no_spots_give_no_position_error() -> None:
    assert PeakCount().position_error_px is None
