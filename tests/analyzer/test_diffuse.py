"""Which pixels say how bright the diffuse scattering is, and what they stand for: the mean comes out."""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.diffuse import limits, places
from analyzer.geometry import Geometry, bin_map
from analyzer.kernels import KEPT_WHOLE, QUADRANTS
from analyzer.reduction import Workspace, make_plan
from sim_replay.background import expected_water
from sim_replay.detector import CONDITIONS, eiger2_4m
from streamer.validity import Validity, sentinel
from tests.analyzer.builders import plan, water, workspace

PANEL = (256, 264)


def reduced(pixels: npt.NDArray[Any], **changes: Any) -> Workspace:
    held = workspace(pixels, **changes)
    held.reduce()
    return held


def mean_of(held: Workspace) -> float:
    """Photons a pixel, by the photons kept and the pixels they stand for."""
    return float(held.diffuse[:, 0].sum() / held.diffuse_pixels.sum())


def counted(frames: list[Workspace]) -> tuple[float, float]:
    return sum(float(f.diffuse[:, 0].sum()) for f in frames), sum(float(f.diffuse_pixels.sum()) for f in frames)


def with_peaks(pixels: npt.NDArray[Any], photons: float, peaks: int, seed: int) -> npt.NDArray[Any]:
    """The frame with Gaussian spots of so many photons on average."""
    rng = np.random.default_rng(seed)
    lit = pixels.astype(np.int64)
    y, x = np.mgrid[-4:5, -4:5]
    for _ in range(peaks):
        ss, fs = rng.integers(6, PANEL[0] - 6), rng.integers(6, PANEL[1] - 6)
        shape = np.exp(-((y - rng.uniform(-0.5, 0.5)) ** 2 + (x - rng.uniform(-0.5, 0.5)) ** 2) / (2 * 0.8**2))
        lit[ss - 4 : ss + 5, fs - 4 : fs + 5] += rng.poisson(rng.exponential(photons) * shape / shape.sum())
    return np.minimum(lit, sentinel(pixels.dtype) - 1).astype(pixels.dtype)


# --- what is kept -----------------------------------------------------------------------


@pytest.mark.parametrize("mean", [1e-4, 1e-3, 5e-3, 2e-2, 5e-2, 0.1, 0.29, 0.31, 0.7, 3.0, 12.0, 50.0])
def test_the_mean_of_pure_poisson_frames_comes_out(mean: float) -> None:
    photons, pixels = counted([reduced(water(mean, PANEL, seed)) for seed in range(6)])
    # Four standard errors of the counts, and half a per mille for what the peak finder takes of noise.
    assert photons / pixels == pytest.approx(mean, rel=4 / np.sqrt(photons) + 5e-4)


@pytest.mark.parametrize("mean", [600.0, 800.0, 3000.0, 20000.0])
def test_so_bright_a_frame_that_everything_is_kept_has_its_mean(mean: float) -> None:
    held = reduced(water(mean, PANEL))
    assert np.isfinite(held.diffuse_pixels).all()
    assert mean_of(held) == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_pixels_of_every_type_are_kept_alike(dtype: str) -> None:
    held, other = reduced(water(0.2, PANEL, dtype=dtype)), reduced(water(0.2, PANEL))
    np.testing.assert_array_equal(held.diffuse, other.diffuse)
    np.testing.assert_array_equal(held.diffuse_pixels, other.diffuse_pixels)


def test_at_least_95_percent_of_faint_and_99_of_bright_photons_are_kept() -> None:
    background = np.array([1e-5, 1e-3, 0.02, 0.29, 0.31, 2.0, 40.0, 400.0])
    alone, around = np.zeros(8, np.int64), np.zeros(8, np.int64)
    limits(background, alone, around)
    rng = np.random.default_rng(1)
    for mean, most, most_around in zip(background, alone, around, strict=True):
        assert (rng.poisson(mean, 100_000) <= most - 1).mean() > 0.988
        assert (most_around < 0) == (mean > 0.3)
        if most_around >= 0:
            assert (rng.poisson(9 * mean, 100_000) <= most_around - 1).mean() > 0.947
    limits(np.array([1e4]), alone[:1], around[:1])
    assert alone[0] == KEPT_WHOLE


# --- Bragg light and bad pixels ---------------------------------------------------------


@pytest.mark.parametrize(("mean", "level"), [(1e-3, 0.15), (5e-3, 0.05), (0.05, 0.02), (0.5, 0.02), (5.0, 0.01)])
@pytest.mark.parametrize("photons", [3.0, 20.0, 1000.0])
def test_bragg_spots_leave_the_mean_unmoved(mean: float, level: float, photons: float) -> None:
    dark = [water(mean, PANEL, seed) for seed in range(8)]
    lit = [with_peaks(pixels, photons, 12, seed) for seed, pixels in enumerate(dark)]
    without, with_light = (counted([reduced(pixels) for pixels in frames]) for frames in (dark, lit))
    # The noise is the same but for the few pixels that the spots take out.
    noise = 2 / np.sqrt(without[0])
    assert with_light[0] / with_light[1] == pytest.approx(without[0] / without[1], rel=level + 0.2 * noise)


@pytest.mark.parametrize("mean", [1e-3, 0.05, 2.0])
def test_hot_pixels_leave_the_mean_unmoved(mean: float) -> None:
    pixels = water(mean, PANEL)
    hot = pixels.copy()
    chosen = np.random.default_rng(3).integers(0, pixels.size, 30)
    hot.reshape(-1)[chosen] = 5000
    before, after = reduced(pixels), reduced(hot)
    assert mean_of(after) == pytest.approx(mean_of(before), rel=0.02 + 1 / np.sqrt(before.diffuse[:, 0].sum()))


# --- pixels without data ----------------------------------------------------------------


def lost_in_lines(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The frame without data in gaps, in a whole corner, and here and there."""
    lost = pixels.copy()
    top = sentinel(pixels.dtype)
    lost[40:60], lost[:, 100:112], lost[200:, 200:] = top, top, top
    lost.reshape(-1)[np.random.default_rng(0).integers(0, pixels.size, 200)] = top
    return lost


@pytest.mark.parametrize("mean", [0.02, 0.2, 3.0])
def test_pixels_without_data_blind_those_around_and_no_others(mean: float) -> None:
    frames = [lost_in_lines(water(mean, PANEL, seed)) for seed in range(6)]
    photons, pixels = counted([reduced(each) for each in frames])
    assert photons / pixels == pytest.approx(mean, rel=4 / np.sqrt(photons) + 5e-4)


def test_pixels_without_data_are_counted_one_by_one() -> None:
    """A frame so faint that each pixel kept stands for itself: those left are those with nine pixels of data."""
    pixels = lost_in_lines(np.zeros(PANEL, "u2"))
    pixels[10, 10] = 1
    data = np.pad(pixels != 65535, 1, constant_values=True)
    whole = np.lib.stride_tricks.sliding_window_view(data, (3, 3)).all((2, 3))
    edge = np.ones(PANEL, bool)
    edge[1:-1, 1:-1] = False
    # At the panel's edge a pixel is judged alone.
    expected = np.count_nonzero(whole & ~edge) + np.count_nonzero(edge & (pixels != 65535))
    assert reduced(pixels).diffuse_pixels.sum() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("mean", [0.02, 3.0])
def test_masked_pixels_and_gaps_are_nobodys(mean: float) -> None:
    valid = (lost_in_lines(np.zeros(PANEL, "u2")) == 0).astype(np.uint8)
    frames = []
    for seed in range(6):
        pixels = water(mean, PANEL, seed)
        pixels[valid == 0] = [0, 7, 65535][seed % 3]
        frames.append(reduced(pixels, valid=valid))
    photons, pixels_kept = counted(frames)
    assert photons / pixels_kept == pytest.approx(mean, rel=4 / np.sqrt(photons) + 5e-4)
    assert all(frame.diffuse_pixels.sum() <= valid.sum() for frame in frames)


def test_a_frame_all_masked_or_without_data_stands_for_no_pixel() -> None:
    masked = reduced(water(5.0, PANEL), valid=np.zeros(PANEL, np.uint8))
    lost = reduced(np.full(PANEL, 65535, "u2"))
    for held in (masked, lost):
        assert not held.diffuse.any()
        assert not held.diffuse_pixels.any()
        assert not held.pairs.any()


# --- extremes ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_squares_of_a_saturated_frame_do_not_overflow(dtype: str) -> None:
    value = sentinel(np.dtype(dtype)) - 1
    held = reduced(np.full((40, 44), value, dtype))
    photons, squares = held.diffuse.sum(0)
    if photons:
        assert squares / photons == pytest.approx(value, rel=1e-9)
    assert (held.diffuse >= 0).all()
    assert (held.diffuse_pixels >= 0).all()
    assert np.isfinite(held.diffuse_pixels).all()
    assert np.isfinite(held.pairs).all()


def test_a_frame_of_one_count_everywhere_has_a_mean_of_one() -> None:
    held = reduced(np.ones(PANEL, "u2"))
    assert mean_of(held) == pytest.approx(1.0, rel=0.02)
    assert held.diffuse[:, 0].sum() == held.diffuse[:, 1].sum() == PANEL[0] * PANEL[1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 3), (61, 75), (17, 400)])
@pytest.mark.parametrize("mean", [0.0, 0.05, 4.0])
def test_any_shape_gives_finite_numbers(shape: tuple[int, int], mean: float) -> None:
    held = reduced(water(mean, shape))
    profile = held.profile()
    assert np.isfinite(profile.profile).all()
    assert (profile.profile >= 0).all()
    assert held.diffuse[:, 0].sum() <= held.pixels.sum()
    assert held.diffuse_pixels.sum() <= held.pixels.size * (1 + 1e-12)


def test_a_beam_far_off_the_panel_has_as_many_bins_as_there_may_be() -> None:
    held = reduced(water(0.2, PANEL), center=(-1e5, 40.0))
    assert held.profile().profile[2].sum() == pytest.approx(held.diffuse_pixels.sum(), rel=1e-6)
    assert mean_of(held) == pytest.approx(0.2, rel=0.05)


# --- pile-up ----------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.05, 0.25, 1.0])
def test_squares_beyond_the_photons_are_the_pairs_of_a_detector_that_counts_every_photon(mean: float) -> None:
    frames = [reduced(water(mean, PANEL, seed)) for seed in range(10)]
    seen = sum(float((f.diffuse[:, 1] - f.diffuse[:, 0]).sum()) for f in frames)
    expected = sum(float(f.pairs.sum()) for f in frames)
    assert seen == pytest.approx(expected, rel=4 * np.sqrt(2 / seen) + 2e-3)


@pytest.mark.parametrize("mean", [0.05, 0.25, 1.0])
def test_a_detector_that_counts_once_a_pulse_shows_no_pairs(mean: float) -> None:
    held = reduced(np.minimum(water(mean, PANEL), 1).astype("u2"))
    assert (held.diffuse[:, 1] == held.diffuse[:, 0]).all()
    assert held.pairs.sum() > 10


# --- sides of the beam ------------------------------------------------------------------


def test_a_place_is_a_bin_and_a_quadrant() -> None:
    geometry = Geometry((40, 60), 20.0, 30.0, 75e-6)
    bins = bin_map(geometry)
    place = places(geometry, bins).reshape(40, 60)
    np.testing.assert_array_equal(place // QUADRANTS, bins.bin_of.reshape(40, 60))
    quadrant = place % QUADRANTS
    assert (quadrant[5, 5], quadrant[5, 50], quadrant[35, 5], quadrant[35, 50]) == (0, 1, 2, 3)


def test_workspaces_in_threads_say_what_one_alone_says() -> None:
    frames = [with_peaks(water(0.02, PANEL, seed), 40.0, 8, seed) for seed in range(24)]
    shared = plan(PANEL)
    alone = [reduced(pixels).profile().profile for pixels in frames]
    found: list[npt.NDArray[Any] | None] = [None] * len(frames)

    def work(first: int) -> None:
        held = Workspace(shared, np.dtype("u2"))
        for n in range(first, len(frames), 3):
            held.pixels[:] = frames[n]
            held.reduce()
            found[n] = held.profile().profile

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_array_equal(one, other)


# --- the simulation's frames ------------------------------------------------------------


def test_hits_and_empty_frames_of_the_simulation_give_one_profile() -> None:
    """A crystal's light at 0.35 m, far from all of it in found peaks, stays out."""
    detector, condition = eiger2_4m(), CONDITIONS[9]
    dark = expected_water(condition, detector).astype(np.float64)
    geometry = Geometry(detector.shape, detector.shape[1] / 2 - 0.5, detector.shape[0] / 2 - 0.5, 75e-6)
    held = Workspace(make_plan(geometry, Validity("gaps", (~detector.mask).astype(np.uint8)), 65000), np.dtype("u2"))
    rng = np.random.default_rng(1)
    y, x = np.mgrid[-3:4, -3:4]
    found = np.zeros((2, 2))
    valid = held.plan.inside != 0
    expected = np.bincount(held.plan.place[valid], dark.reshape(-1)[valid], held.diffuse_pixels.size)
    mean = expected / np.maximum(held.plan.place_pixels.sum(0), 1.0)
    for n in range(8):
        light = dark.copy()
        if n % 2:
            for _ in range(150):
                ss, fs = (int(rng.integers(4, size - 4)) for size in detector.shape)
                spot = np.exp(-(y**2 + x**2) / (2 * 0.9**2))
                light[ss - 3 : ss + 4, fs - 3 : fs + 4] += rng.exponential(8.0) * spot / spot.sum()
        held.pixels[:] = np.where(detector.mask, 65535, rng.poisson(light))
        held.reduce()
        found[n % 2] += held.diffuse[:, 0].sum(), (held.diffuse_pixels * mean).sum()
    empty, hits = found[:, 0] / found[:, 1]
    noise = np.sqrt(1.0 / found[:, 0])
    assert empty == pytest.approx(1.0, abs=4 * noise[0])
    # Of 4,800 Bragg photons on 39,000 of water 3 % may be left in it.
    assert hits == pytest.approx(1.0, abs=4 * noise[1] + 0.03)
