"""Labels of both kinds."""

import numpy as np
import numpy.typing as npt
import pytest

from tests.support import require
from training.dataset.labels import label_image, local_maxima, threshold_mask


def marked(label: npt.NDArray[np.float32]) -> list[tuple[int, int]]:
    assert label.dtype == np.float32
    assert set(np.unique(label)) <= {0.0, 1.0}
    return [(int(ss), int(fs)) for ss, fs in np.argwhere(label)]


def image(*pixels: tuple[int, int, float], shape: tuple[int, int] = (20, 30)) -> npt.NDArray[np.float32]:
    out = np.zeros(shape, np.float32)
    for ss, fs, value in pixels:
        out[ss, fs] = value
    return out


def test_the_mask_marks_every_pixel_above_the_threshold() -> None:
    assert marked(threshold_mask(image((3, 4, 1.0), (3, 5, 1.01), (9, 9, 50)))) == [(3, 5), (9, 9)]


def test_a_maximum_is_one_pixel_however_wide_the_spot() -> None:
    ss, fs = np.mgrid[:20, :30]
    spot = 100 * np.exp(-((ss - 8) ** 2 + (fs - 11) ** 2) / 6)
    assert marked(local_maxima(spot)) == [(8, 11)]


def test_a_plateau_is_one_maximum_its_first_pixel() -> None:
    assert marked(local_maxima(image((5, 6, 9), (5, 7, 9), (6, 6, 9), (6, 7, 9)))) == [(5, 6)]


def test_a_weaker_pixel_within_the_distance_is_no_maximum() -> None:
    assert marked(local_maxima(image((5, 6, 9), (5, 9, 8)))) == [(5, 6)]
    assert marked(local_maxima(image((5, 6, 9), (5, 10, 8)))) == [(5, 6), (5, 10)]


def test_equal_maxima_are_two_from_the_distance_on() -> None:
    assert marked(local_maxima(image((5, 6, 9), (7, 8, 9)))) == [(5, 6)]
    assert marked(local_maxima(image((5, 6, 9), (5, 9, 9)))) == [(5, 6), (5, 9)]


def test_a_pixel_at_the_threshold_is_no_maximum() -> None:
    assert marked(local_maxima(image((5, 6, 1.0)), threshold=1.0)) == []
    assert marked(local_maxima(image((5, 6, 2.0)), threshold=1.0)) == [(5, 6)]


def test_maxima_at_the_edge_count() -> None:
    corners = [(0, 0), (0, 29), (19, 0), (19, 29)]
    assert marked(local_maxima(image(*((ss, fs, 7) for ss, fs in corners)))) == corners


def test_an_even_image_above_the_threshold_has_plateaus_and_below_it_none() -> None:
    assert len(marked(local_maxima(np.full((20, 30), 5.0)))) == 7 * 10, "one every three pixels"
    assert marked(local_maxima(np.zeros((20, 30)))) == []


def test_counts_give_the_same_maxima_as_floats() -> None:
    counts = np.random.default_rng(3).poisson(1.5, (60, 80))
    np.testing.assert_array_equal(local_maxima(counts.astype(np.uint32)), local_maxima(counts.astype(np.float64)))


def test_an_image_smaller_than_the_window_is_labelled() -> None:
    assert marked(local_maxima(np.array([[3.0]]))) == [(0, 0)]
    assert marked(local_maxima(np.array([[1.0, 3.0]]), min_distance_px=50)) == [(0, 1)]


def test_a_distance_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="min_distance_px is 0; give 1 or more"):
        local_maxima(np.zeros((5, 5)), min_distance_px=0)


def test_away_from_the_edges_the_maxima_satisfy_their_definition() -> None:
    counts = np.random.default_rng(4).poisson(0.8, (80, 90)).astype(np.float32)
    label = label_image(counts, "maxima")
    for ss, fs in marked(label):
        near = counts[max(ss - 3, 0) : ss + 4, max(fs - 3, 0) : fs + 4]
        assert counts[ss, fs] > 1
        assert counts[ss, fs] == near.max()
        assert label[max(ss - 2, 0) : ss + 3, max(fs - 2, 0) : fs + 3].sum() == 1
    # and nothing is left out: a pixel that is the largest around has a mark within reach
    for ss, fs in np.argwhere(counts > 1):
        if counts[ss, fs] == counts[max(ss - 3, 0) : ss + 4, max(fs - 3, 0) : fs + 4].max():
            assert label[max(ss - 2, 0) : ss + 3, max(fs - 2, 0) : fs + 3].any()


def test_the_maxima_are_those_of_scikit_image_borders_included() -> None:
    require("skimage", "scikit-image")
    from skimage.feature import peak_local_max

    for seed in range(40):
        counts = np.random.default_rng(seed).poisson((0.05, 0.3, 1, 3)[seed % 4], (200, 220)).astype(float)
        for distance in (1, 2, 3, 5):
            theirs = peak_local_max(counts, min_distance=distance, threshold_abs=1, exclude_border=False)
            assert marked(local_maxima(counts, 1.0, distance)) == sorted((int(ss), int(fs)) for ss, fs in theirs)
