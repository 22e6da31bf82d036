"""From pixels to background, significance and peaks."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from analyzer.reduction import CELL, MAX_PEAKS, SUSPECT_COUNTS, Reduced, Workspace, suspect_pixels
from streamer.connections import resident_bytes
from streamer.validity import sentinel
from tests.analyzer.builders import SHAPE, SPOT, image_data, plan, water, with_spots, workspace

PANEL = (200, 208)


def reduce(pixels: np.ndarray[Any, Any], **changes: Any) -> Reduced:
    return workspace(pixels, **changes).reduce()


def assert_equal(one: Reduced, other: Reduced) -> None:
    np.testing.assert_array_equal(one.significance, other.significance)
    np.testing.assert_array_equal(one.peaks, other.peaks)
    np.testing.assert_array_equal(one.photons, other.photons)
    np.testing.assert_array_equal(one.pixels_counted, other.pixels_counted)
    assert (one.total_photons, one.saturated_pixels) == (other.total_photons, other.saturated_pixels)
    assert one.background_photons == other.background_photons


def kept(reduced: Reduced) -> Reduced:
    """The result with arrays of its own, which the next frame does not overwrite."""
    return Reduced(
        reduced.significance.copy(), reduced.peaks.copy(), reduced.photons.copy(), reduced.pixels_counted.copy(),
        reduced.total_photons, reduced.saturated_pixels, reduced.background_photons,
    )  # fmt: skip


# --- background -------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.005, 0.05, 0.5, 5.0, 50.0])
def test_the_background_of_a_poisson_frame_is_its_mean(mean: float) -> None:
    found = [reduce(water(mean, PANEL, seed)).background_photons for seed in range(8)]
    expected = mean * PANEL[0] * PANEL[1]
    # Four standard errors of the counts, and 2 % for what the clipping of outliers costs.
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.sqrt(expected / len(found)) + 0.02 * expected)


@pytest.mark.parametrize("mean", [0.02, 0.5, 5.0])
def test_bright_bragg_spots_do_not_move_the_background(mean: float) -> None:
    pixels = water(mean, PANEL)
    lit = pixels.copy()
    rng = np.random.default_rng(1)
    for ss, fs in zip(rng.integers(5, 190, 40), rng.integers(5, 200, 40), strict=True):
        lit[ss : ss + 2, fs : fs + 2] += 1000
    assert reduce(lit).background_photons == pytest.approx(reduce(pixels).background_photons, rel=0.03)


def test_peaks_are_left_out_of_the_profile() -> None:
    pixels = water(0.05, PANEL)
    dark, lit = reduce(pixels), reduce(with_spots(pixels, 400))
    assert lit.peaks.size == len(SPOT)
    assert lit.photons.sum() == pytest.approx(dark.photons.sum(), rel=0.05)
    # A peak takes the pixels nearer than four out of the count.
    assert dark.pixels_counted.sum() - lit.pixels_counted.sum() == len(SPOT) * 45


def test_the_profile_of_a_frame_without_peaks_is_its_photons() -> None:
    pixels = water(0.01, PANEL)
    reduced = reduce(pixels)
    assert reduced.peaks.size == 0
    assert reduced.photons.sum() == pixels.sum() == reduced.total_photons
    assert reduced.pixels_counted.sum() == pixels.size


# --- peaks ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [(0, 0), (30, 40), (60, 74), (0, 74), (60, 0), (8, 16)])
def test_a_single_bright_pixel_survives_wherever_it_is(place: tuple[int, int]) -> None:
    pixels = np.zeros(SHAPE, "u2")
    pixels[place] = 12
    reduced = reduce(pixels)
    assert reduced.peaks.size == 1
    # At the panel's edge a little background is missing on one side.
    assert (float(reduced.peaks[0]["ss"]), float(reduced.peaks[0]["fs"])) == pytest.approx(place, abs=1e-3)
    significance = reduced.significance[0]
    assert np.flatnonzero(significance).tolist() == [place[0] // CELL * significance.shape[1] + place[1] // CELL]
    assert reduced.peaks[0]["intensity"] == pytest.approx(12, abs=1)


@pytest.mark.parametrize(("offset_ss", "offset_fs"), [(0.0, 0.0), (0.3, -0.2), (-0.45, 0.45), (0.5, 0.5)])
def test_a_sub_pixel_spot_is_found_where_it_is(offset_ss: float, offset_fs: float) -> None:
    ss, fs = 100 + offset_ss, 90 + offset_fs
    y, x = np.mgrid[: PANEL[0], : PANEL[1]]
    spot = 500 / (2 * np.pi * 0.7**2) * np.exp(-((y - ss) ** 2 + (x - fs) ** 2) / (2 * 0.7**2))
    pixels = np.random.default_rng(3).poisson(0.02 + spot).astype("u2")
    peaks = reduce(pixels).peaks
    assert peaks.size == 1
    assert (float(peaks[0]["ss"]), float(peaks[0]["fs"])) == (pytest.approx(ss, abs=0.12), pytest.approx(fs, abs=0.12))
    assert peaks[0]["intensity"] == pytest.approx(500, abs=5 * np.sqrt(500))


@pytest.mark.parametrize("mean", [0.003, 0.05, 1.0, 10.0])
def test_empty_frames_hardly_ever_have_a_peak(mean: float) -> None:
    frames = 60
    found = sum(reduce(water(mean, PANEL, seed)).peaks.size for seed in range(frames))
    # The threshold allows 0.02 a frame for one test a pixel; the three windows together reach 0.1 in bright water.
    assert found <= 0.2 * frames


def test_a_ring_of_water_hardly_ever_has_a_peak() -> None:
    y, x = np.mgrid[: PANEL[0], : PANEL[1]]
    radius = np.hypot(y - PANEL[0] / 2 + 0.5, x - PANEL[1] / 2 + 0.5)
    ring = 0.3 + 8 * np.exp(-(((radius - 60) / 40) ** 2))
    found = sum(reduce(np.random.default_rng(seed).poisson(ring).astype("u2")).peaks.size for seed in range(20))
    assert found <= 5


@pytest.mark.parametrize("place", [(19, 35), (19, 29), (40, 50), (30, 50)])
def test_a_spot_that_touches_masked_pixels_makes_no_peak(place: tuple[int, int]) -> None:
    valid = np.ones(SHAPE, np.uint8)
    valid[20:40, 30:50] = 0
    pixels = np.zeros(SHAPE, "u2")
    pixels[place] = 40
    assert reduce(pixels, valid=valid).peaks.size == 0
    away = tuple(2 * p - min(max(p, low), high) for p, low, high in zip(place, (20, 30), (39, 49), strict=True))
    pixels[away] = 400
    assert reduce(pixels, valid=valid).peaks.size == 1


def test_a_spot_in_a_gap_makes_no_peak_of_its_tail() -> None:
    valid = np.ones(PANEL, np.uint8)
    valid[:, 100:112] = 0
    y, x = np.mgrid[: PANEL[0], : PANEL[1]]
    for column, sigma in ((100.0, 0.8), (101.0, 1.2)):
        spot = 500 * np.exp(-(((y - 60) / sigma) ** 2 + ((x - column) / sigma) ** 2) / 2) / (2 * np.pi * sigma**2)
        pixels = np.random.default_rng(5).poisson(0.05 + spot).astype("u2")
        assert reduce(pixels, valid=valid).peaks.size == 0


@given(st.integers(0, 2**32 - 1), st.sampled_from([(64, 40), (16, 200), (8, 8), (1, 60), (60, 1)]))
@settings(max_examples=60, deadline=None)
def test_no_peak_leaves_the_frame(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.poisson(rng.uniform(0.01, 8.0), shape).astype("u2")
    for _ in range(4):
        row, column = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        pixels[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] += np.uint16(rng.integers(1, 60))
    for peak in reduce(pixels).peaks:
        assert 0 <= peak["ss"] <= shape[0] - 1
        assert 0 <= peak["fs"] <= shape[1] - 1
        assert peak["intensity"] > 0


def test_where_spots_are_too_many_they_are_kept_from_all_over() -> None:
    pixels = np.zeros((800, 800), "u2")
    for row in range(10, 800, 20):
        for column in range(10, 800, 20):
            pixels[row - 4 : row + 5, column - 4 : column + 5] = 30
            pixels[row, column] = 60
    peaks = reduce(pixels).peaks
    by_quarter = np.bincount((peaks["ss"] // 200).astype(int), minlength=4)
    assert peaks.size > 100
    assert by_quarter.min() > 0.5 * by_quarter.max()


def test_a_long_streak_is_one_peak_with_all_its_photons() -> None:
    y, x = np.mgrid[: PANEL[0], : PANEL[1]]
    along, across = (x - 90) * 0.8 + (y - 100) * 0.6, (y - 100) * 0.8 - (x - 90) * 0.6
    streak = np.exp(-((along / 3.0) ** 2 + (across / 0.7) ** 2) / 2)
    pixels = np.random.default_rng(4).poisson(0.03 + 900 * streak / streak.sum()).astype("u2")
    peaks = reduce(pixels).peaks
    assert peaks.size == 1
    assert (float(peaks[0]["ss"]), float(peaks[0]["fs"])) == pytest.approx((100, 90), abs=0.5)
    assert peaks[0]["intensity"] == pytest.approx(900, abs=4 * np.sqrt(900))


def test_pixels_that_count_at_most_once_still_make_a_peak_of_a_cluster() -> None:
    rng = np.random.default_rng(6)
    pixels = (rng.random(PANEL) < 0.03).astype("u2")
    y, x = np.mgrid[: PANEL[0], : PANEL[1]]
    disc = np.hypot(y - 100, x - 90) < 3.5
    pixels[disc] = 1
    peaks = reduce(pixels).peaks
    assert peaks.size == 1
    assert (float(peaks[0]["ss"]), float(peaks[0]["fs"])) == pytest.approx((100, 90), abs=0.3)
    assert peaks[0]["intensity"] == pytest.approx(disc.sum(), rel=0.1)


def test_a_frame_of_many_sure_peaks_lends_weak_ones_credit() -> None:
    weak, bright = (100, 90), [(20 + 16 * k, 20) for k in range(10)]
    pixels = water(0.05, PANEL, seed=8)
    pixels[96:105, 86:95] = 0
    pixels[weak] = 4
    assert reduce(pixels).peaks.size == 0
    for place in bright:
        pixels[place] = 60
    assert reduce(pixels).peaks.size == len(bright) + 1


def test_two_spots_seven_pixels_apart_are_two_peaks() -> None:
    pixels = np.zeros(SHAPE, "u2")
    pixels[30, 30] = pixels[30, 37] = 50
    assert sorted(float(p["fs"]) for p in reduce(pixels).peaks) == [30.0, 37.0]


def test_peaks_come_strongest_first() -> None:
    pixels = np.zeros(SHAPE, "u2")
    for n, (ss, fs) in enumerate(SPOT):
        pixels[ss, fs] = 20 * (n + 1)
    surprise = reduce(pixels).peaks["surprise"]
    assert surprise.tolist() == sorted(surprise, reverse=True)


def test_a_frame_full_of_peaks_has_a_bounded_number_of_them() -> None:
    pixels = np.zeros((400, 400), "u2")
    pixels[::7, ::7] = 200
    assert 1000 < reduce(pixels).peaks.size <= MAX_PEAKS


# --- masks, sentinels, saturation -------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_a_sentinel_never_makes_a_peak_nor_counts(dtype: str) -> None:
    pixels = water(0.05, dtype=dtype)
    marked = pixels.copy()
    marked[10:14, 20:25] = sentinel(marked.dtype)
    marked[60, 74] = sentinel(marked.dtype)
    reduced = reduce(marked)
    assert reduced.peaks.size == 0
    assert reduced.total_photons == marked[marked != sentinel(marked.dtype)].sum()
    assert reduced.saturated_pixels == 0
    assert reduced.pixels_counted.sum() == marked.size - 21
    assert reduced.significance.max() < 25


def test_a_spot_beside_a_sentinel_is_still_found() -> None:
    pixels = with_spots(water(0.05), 100, spots=1)
    pixels[SPOT[0][0], SPOT[0][1] + 2] = sentinel(pixels.dtype)
    peaks = reduce(pixels).peaks
    assert peaks.size == 1
    assert abs(float(peaks[0]["ss"]) - SPOT[0][0]) < 1


def test_a_masked_pixel_never_makes_a_peak_nor_counts() -> None:
    valid = np.ones(SHAPE, np.uint8)
    valid[20:40, 30:50] = 0
    pixels = water(0.05)
    hot = pixels.copy()
    hot[20:40, 30:50] = 5000
    masked = workspace(pixels, valid=valid)
    masked.pixels[20:40, 30:50] = 0
    assert_equal(reduce(hot, valid=valid), masked.reduce())
    assert reduce(hot, valid=valid).peaks.size == 0


def test_pixels_beside_a_gap_make_no_peaks_in_bright_water() -> None:
    valid = np.ones(PANEL, np.uint8)
    valid[95:133] = 0
    valid[:, 100:112] = 0
    found = 0
    for seed in range(20):
        pixels = water(4.0, PANEL, seed)
        pixels[valid == 0] = 65535
        found += reduce(pixels, valid=valid).peaks.size
    assert found <= 3


def test_a_saturated_peak_is_kept_and_flagged() -> None:
    pixels = with_spots(water(0.05), 100)
    pixels[SPOT[0]] = 900
    pixels[SPOT[1]] = 1000
    reduced = reduce(pixels, saturation=900)
    flagged = {(round(float(p["ss"])), round(float(p["fs"]))) for p in reduced.peaks if p["saturated"]}
    assert reduced.peaks.size == len(SPOT)
    assert flagged == {SPOT[0], SPOT[1]}
    assert reduced.saturated_pixels == 2


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_the_largest_value_below_the_sentinel_is_saturated_not_lost(dtype: str) -> None:
    pixels = np.zeros(SHAPE, dtype)
    pixels[30, 40] = sentinel(pixels.dtype) - 1
    reduced = reduce(pixels)
    assert reduced.peaks.size == 1
    assert reduced.peaks[0]["saturated"]
    assert np.isfinite(reduced.peaks[0]["snr"])
    assert reduced.total_photons == sentinel(pixels.dtype) - 1


# --- types, shapes, buffers -------------------------------------------------------------


def test_pixel_types_make_no_difference() -> None:
    pixels = with_spots(water(0.3), 200)
    one, two, four = (kept(reduce(pixels.astype(kind), saturation=200)) for kind in ("u1", "u2", "u4"))
    assert one.peaks.size == len(SPOT)
    assert_equal(one, two)
    assert_equal(one, four)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (7, 7), (8, 8), (13, 17), (37, 51)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("content", ["zero", "one", "saturated", "sentinel", "noise"])
def test_any_shape_reduces_to_finite_numbers(shape: tuple[int, int], dtype: str, content: str) -> None:
    top = sentinel(np.dtype(dtype))
    value = {"zero": 0, "one": 1, "saturated": top - 1, "sentinel": top}.get(content)
    pixels = np.full(shape, value, dtype) if value is not None else water(3.0, shape, 5, dtype)
    reduced = reduce(pixels)
    assert np.isfinite(reduced.significance).all()
    assert np.isfinite(reduced.background_photons)
    assert all(np.isfinite(reduced.peaks[name]).all() for name in ("fs", "ss", "intensity", "snr"))
    counted = 0 if content == "sentinel" else pixels.astype(np.int64).sum()
    assert reduced.total_photons == counted
    assert reduced.saturated_pixels == (pixels.size if content == "saturated" else 0)
    if content in ("zero", "sentinel"):
        assert reduced.peaks.size == 0
        assert not reduced.significance.any()


def test_a_frame_without_a_valid_pixel_has_nothing_in_it() -> None:
    reduced = reduce(water(100.0), valid=np.zeros(SHAPE, np.uint8))
    assert (reduced.total_photons, reduced.peaks.size, reduced.saturated_pixels) == (0, 0, 0)
    assert not reduced.significance.any()
    assert np.isfinite(reduced.background_photons)


@pytest.mark.parametrize("shape", [(61, 75), (5, 5), (9, 7), (64, 64)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_the_last_pixel_of_any_frame_is_counted(shape: tuple[int, int], dtype: str) -> None:
    pixels = np.zeros(shape, dtype)
    pixels[-1, -1] = 7
    assert reduce(pixels).total_photons == 7


def test_reducing_twice_gives_the_same() -> None:
    held = workspace(with_spots(water(0.3), 300))
    assert_equal(kept(held.reduce()), held.reduce())


@pytest.mark.parametrize("seed", range(6))
def test_a_mirrored_frame_has_mirrored_peaks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = with_spots(water(0.05, seed=seed), 40)
    for ss, fs in SPOT:
        # Of two pixels alike the first would be the middle, which is another one in the mirror.
        pixels[ss, fs] += 9
    valid = (rng.random(SHAPE) < 0.99).astype(np.uint8)
    rows, columns = SHAPE
    plain = kept(workspace(pixels, valid=valid).reduce())
    for axis, name, last in ((0, "ss", rows - 1), (1, "fs", columns - 1)):
        mirrored, mask = (np.ascontiguousarray(np.flip(each, axis)) for each in (pixels, valid))
        found = kept(workspace(mirrored, valid=mask).reduce())
        found.peaks[name] = last - found.peaks[name]
        one, other = (np.sort(each.peaks, order=("intensity", "fs")) for each in (plain, found))
        assert len(one) == len(other) > 0
        for field in ("fs", "ss", "intensity", "snr"):
            np.testing.assert_allclose(other[field], one[field], rtol=1e-6, atol=1e-6)
        assert found.background_photons == pytest.approx(plain.background_photons, rel=1e-12)


def test_nothing_of_a_frame_is_left_for_the_next() -> None:
    bright, dim = with_spots(water(5.0, seed=1), 4000), with_spots(water(0.01, seed=2), 30, spots=3)
    held = workspace(bright)
    first = kept(held.reduce())
    held.pixels[:] = dim
    assert_equal(held.reduce(), reduce(dim))
    held.pixels[:] = bright
    assert_equal(held.reduce(), first)


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.uint32]),
        st.tuples(st.integers(1, 24), st.integers(1, 24)),
        elements=None,
        fill=st.just(0),
    ),
    st.floats(-60, 60),
    st.floats(-60, 60),
    st.integers(0, 2**32 - 1),
)
def test_any_pixels_whatever_reduce_within_bounds(
    pixels: np.ndarray[Any, Any], fs: float, ss: float, mask_seed: int
) -> None:
    rows, columns = pixels.shape
    valid = (np.random.default_rng(mask_seed).random(pixels.shape) < 0.8).astype(np.uint8)
    held = workspace(pixels, valid=valid, center=(fs, ss))
    first = kept(held.reduce())
    assert_equal(first, held.reduce())
    assert np.isfinite(first.significance).all()
    good = (valid != 0) & (pixels != sentinel(pixels.dtype))
    assert first.total_photons == pixels[good].astype(np.int64).sum()
    for peak in first.peaks:
        assert -2 <= peak["fs"] <= columns + 1
        assert -2 <= peak["ss"] <= rows + 1
        assert peak["intensity"] > 0
    assert (first.pixels_counted >= 0).all()


# --- pixels that never count ------------------------------------------------------------


def test_a_pixel_that_stays_zero_where_others_count_is_suspect() -> None:
    shared = plan()
    spaces = [Workspace(shared, np.dtype("u2")) for _ in range(2)]
    for seed in range(40):
        held = spaces[seed % 2]
        held.pixels[:] = water(2.0, seed=seed)
        held.pixels[12, 34] = 0
        held.reduce()
    assert SUSPECT_COUNTS < 2.0 * 40
    assert suspect_pixels([each.coverage for each in spaces]).tolist() == [12 * SHAPE[1] + 34]


def test_no_pixel_is_suspect_before_enough_was_expected() -> None:
    held = workspace(np.zeros(SHAPE, "u2"))
    held.reduce()
    assert suspect_pixels([held.coverage]).size == 0


def test_the_brightest_frame_takes_no_memory_that_was_not_there() -> None:
    """Else an analysis grows for hours, as brighter frames and damaged ones come."""
    shape = (1400, 1400)
    made = Workspace(plan(shape), np.dtype("u2"))
    random = np.random.default_rng(7)
    frames = [random.poisson(mean, shape).astype("u2") for mean in (0.01, 0.02)]
    frames.append(random.integers(0, 65_000, shape).astype("u2"))
    images = [image_data(pixels) for pixels in frames]
    held = []
    for image in images:
        made.load(image)
        made.reduce()
        held.append(resident_bytes())
    assert held[-1] - held[-2] < 2 << 20, held
