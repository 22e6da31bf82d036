"""Which peaks stand alone, and where."""

import numpy as np
import pytest

from analyzer.frame_peaks import FramePeaks, frame_peaks
from tests.analyzer.builders import SPOT, water, with_spots, workspace


def seen(pixels: np.ndarray, **changes: object) -> FramePeaks:
    made = workspace(pixels, **changes)
    reduced = made.reduce()
    return frame_peaks(made.plan, made.pixels, reduced.peaks, made.background)


def at(found: FramePeaks) -> dict[tuple[int, int], bool]:
    columns = found.plan.shape[1]
    return {(int(p) // columns, int(p) % columns): bool(lone) for p, lone in zip(found.pixel, found.lone, strict=True)}


def test_a_hot_pixel_stands_alone_and_a_spot_does_not() -> None:
    pixels = with_spots(water(0.01), spots=3)
    pixels[44, 12] = 50
    found = at(seen(pixels))
    assert found.pop((44, 12)) is True
    assert len(found) == 3
    assert not any(found.values())


@pytest.mark.parametrize("mean", [0.0, 0.01, 0.3, 3.0])
def test_background_around_a_hot_pixel_is_no_surroundings(mean: float) -> None:
    alone = 0
    for seed in range(40):
        pixels = water(mean, seed=seed)
        pixels[30, 40] = 200
        alone += at(seen(pixels))[30, 40]
    assert alone >= 39


def test_photons_that_draw_the_centroid_away_leave_the_pixel_where_it_is() -> None:
    pixels = np.zeros((61, 75), "u2")
    pixels[20, 20] = 6
    pixels[22, 22] = pixels[22, 21] = pixels[21, 22] = pixels[20, 22] = 1
    found = seen(pixels)
    assert at(found) == {(20, 20): True}


def test_at_the_edge_and_near_masked_pixels_only_what_is_there_counts() -> None:
    pixels = np.zeros((61, 75), "u2")
    valid = np.ones((61, 75), np.uint8)
    pixels[0, 0] = pixels[60, 74] = pixels[30, 30] = 40
    valid[30, 32], pixels[30, 32] = 0, 500
    pixels[10, 10], pixels[10, 12] = 40, 65535  # the sentinel is no light
    found = at(seen(pixels, valid=valid))
    assert found == {(0, 0): True, (60, 74): True, (30, 30): True, (10, 10): True}


def test_a_frame_without_peaks_has_none() -> None:
    found = seen(water(0.05))
    assert (len(found.peaks), len(found.pixel), len(found.lone)) == (0, 0, 0)


def test_peaks_outlive_the_next_frame() -> None:
    made = workspace(with_spots(water(0.01)))
    kept = frame_peaks(made.plan, made.pixels, made.reduce().peaks, made.background)
    before = kept.peaks.copy()
    made.pixels[:] = 0
    made.reduce()
    np.testing.assert_array_equal(kept.peaks, before)
    assert len(before) == len(SPOT)
