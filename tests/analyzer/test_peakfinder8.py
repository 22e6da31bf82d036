"""peakfinder8 on torch: the published steps done slowly beside it, hostile frames, neighbours that must not matter."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from scipy.stats import poisson

from analyzer import peakfinder8
from analyzer.geometry import Geometry
from analyzer.peakfinder8 import LARGEST_COUNT, Peakfinder8, Peakfinder8Settings, Statistics, _choose, _join
from analyzer.poisson_tail import TailTable, normal_tail
from streamer.validity import Validity, sentinel

SHAPE = (61, 75)
Frame = np.ndarray[Any, Any]
POISSON: dict[str, Any] = {"statistics": Statistics.POISSON, "threshold": 0.0, "min_snr": 6.0}
MODES = pytest.mark.parametrize("mode", [{}, POISSON], ids=["gaussian", "poisson"])


def finder(
    shape: tuple[int, int] = SHAPE,
    dtype: str = "u2",
    valid: Frame | None = None,
    center: tuple[float, float] | None = None,
    saturation: int | None = None,
    device: str = "cpu",
    **settings: Any,
) -> Peakfinder8:
    fs, ss = center or (shape[1] / 2 - 0.5, shape[0] / 2 - 0.5)
    kind = np.dtype(dtype)
    return Peakfinder8(
        Geometry(shape, fs, ss, 75e-6),
        Validity("test", np.ones(shape, np.uint8) if valid is None else valid),
        kind,
        sentinel(kind) - 1 if saturation is None else saturation,
        Peakfinder8Settings(**settings),
        device,
    )


def water(mean: float, shape: tuple[int, int] = SHAPE, seed: int = 0, dtype: str = "u2") -> Frame:
    return np.random.default_rng(seed).poisson(mean, shape).astype(dtype)


def calm(shape: tuple[int, int] = SHAPE, dtype: str = "u2") -> Frame:
    """Water without a count that passes for a spot."""
    return np.minimum(water(0.2, shape, dtype=dtype), 2)


def spotted(mean: float, seed: int, spots: int = 8, photons: float = 30.0, shape: tuple[int, int] = SHAPE) -> Frame:
    rng = np.random.default_rng(seed)
    expected = np.full(shape, mean)
    for _ in range(spots):
        ss, fs = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        expected[ss : ss + 2, fs : fs + 2] += photons * rng.random((2, 2))[: shape[0] - ss, : shape[1] - fs]
    return rng.poisson(expected).astype("u2")


def places(peaks: Frame) -> Frame:
    return np.stack([peaks["fs"], peaks["ss"]], 1)


# --- the published steps, pixel by pixel ------------------------------------------------


def slowly(pixels: Frame, valid: Frame, center: tuple[float, float], of: Peakfinder8Settings) -> Frame:
    """Peaks (n, 4): fs, ss, intensity, snr, by loops over rings and spots."""
    y, x = np.indices(pixels.shape)
    radius = np.hypot(y - center[1], x - center[0])
    ok = (valid != 0) & (pixels != sentinel(pixels.dtype)) & (radius >= of.min_res)
    ok &= radius <= (math.inf if of.max_res is None else of.max_res)
    ring, values = np.rint(radius).astype(int), pixels.astype(float)
    mean_of, threshold_of = np.zeros(ring.max() + 1), np.full(ring.max() + 1, math.inf)
    for r in range(ring.max() + 1):
        of_ring = values[ok & (ring == r)]
        low, high = -math.inf, math.inf
        for _ in range(peakfinder8.ROUNDS):
            kept = of_ring[(of_ring > low) & (of_ring < high)]
            if not len(kept):
                mean_of[r], low, high = 0.0, 0.0, math.inf
                continue
            spread = of.min_snr * kept.std()
            mean_of[r], low, high = kept.mean(), kept.mean() - spread, max(of.threshold, kept.mean() + spread)
        threshold_of[r] = high
    mean, threshold = mean_of[ring], threshold_of[ring]
    spots, count = label(ok & (values > threshold), np.ones((3, 3)))
    inner = np.zeros(pixels.shape, bool)
    inner[1:-1, 1:-1] = True
    found = []
    for n in range(1, count + 1):
        ss, fs = np.nonzero(spots == n)
        weight = (values - mean)[ss, fs]
        if not of.min_pix_count <= len(ss) <= of.max_pix_count or not inner[ss, fs].any():
            continue
        cy, cx = (int(np.rint((weight * axis).sum() / weight.sum())) for axis in (ss, fs))
        reach = 2 * of.local_bg_radius
        around = ((y - cy) ** 2 + (x - cx) ** 2 <= reach**2) & (y - cy < reach) & (x - cx < reach)
        background = values[around & ok & (values < threshold)]
        if not len(background) or background.std() < 1e-9:
            continue
        net = values[ss, fs] - background.mean()
        snr = net.sum() / background.std()
        if snr < of.min_snr or values[ss, fs].max() < background.max():
            continue
        found.append([(net * fs).sum() / net.sum(), (net * ss).sum() / net.sum(), net.sum(), snr])
    return np.array(found).reshape(-1, 4)


@pytest.mark.parametrize("mean", [0.02, 0.3, 4.0, 150.0])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"threshold": 1.0, "min_snr": 4.0, "min_pix_count": 2, "local_bg_radius": 2},
        {"threshold": 0.0, "min_snr": 3.0, "max_pix_count": 4, "min_res": 6.0, "max_res": 30.0},
    ],
)
def test_peaks_are_those_of_the_published_steps(mean: float, settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(7)
    valid = (rng.random(SHAPE) > 0.03).astype(np.uint8)
    valid[:, 40:43] = 0
    alike: list[bool] = []
    for seed in range(6):
        pixels = spotted(mean, seed, photons=20 + 8 * mean)
        pixels[valid == 0] = rng.choice([0, 9999, 65535], int((valid == 0).sum()))
        pixels[30, 60] = 65535
        made = finder(valid=valid, center=(35.237, 31.911), **settings)
        found, expected = made.find(pixels), slowly(pixels, valid, (35.237, 31.911), made.settings)
        order = np.lexsort(expected[:, :2].round(2).T)
        mine = found[np.lexsort((found["fs"].round(2), found["ss"].round(2)))]
        assert len(found) == len(expected)
        for column, name in enumerate(("fs", "ss", "intensity", "snr")):
            alike += np.isclose(mine[name], expected[order, column], rtol=1e-4, atol=1e-4).tolist()
    # A spot whose middle lies between two pixels has its background around the one or the other.
    assert np.mean(alike) > 0.99


def test_of_a_ring_of_zeros_but_for_spots_the_last_round_decides() -> None:
    """As OM's does, however odd: one bright pixel has no threshold, two unequal ones have."""
    pixels = np.zeros((401, 401), "u2")
    pixels[203, 305], pixels[200, 303] = 14, 1
    assert not len(finder((401, 401)).find(pixels))
    pixels[201, 305] = 9
    assert len(finder((401, 401)).find(pixels)) == 2
    pixels[202, 305] = 9
    assert [round(float(peak["intensity"])) for peak in finder((401, 401)).find(pixels)] == [32]
    pixels = np.zeros(SHAPE, "u2")
    pixels[20, 30] = 500
    assert not len(finder().find(pixels))
    assert len(finder(**POISSON).find(pixels)) == 1


# --- hostile frames ---------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 75), (75, 1), (2, 2), (3, 3), (2, 9), (1, 4099), SHAPE])
def test_no_frame_is_too_strange(shape: tuple[int, int], dtype: str, mode: dict[str, Any]) -> None:
    top = sentinel(np.dtype(dtype))
    made = finder(shape, dtype, **mode)
    masked = finder(shape, dtype, np.zeros(shape, np.uint8), **mode)
    far = finder(shape, dtype, center=(-300.0, 4e4), **mode)
    rng = np.random.default_rng(1)
    for pixels in (
        np.zeros(shape, dtype),
        np.full(shape, top, dtype),
        np.full(shape, top - 1, dtype),
        np.ones(shape, dtype),
        rng.integers(0, top, shape, endpoint=True).astype(dtype),
        rng.choice([0, top - 1, top], shape).astype(dtype),
        np.indices(shape).sum(0).astype(dtype) % 2 * 100,
    ):
        for each in (made, masked, far):
            peaks = each.find(pixels)
            for name in ("fs", "ss", "intensity", "snr"):
                assert np.isfinite(peaks[name]).all(), name
            assert (peaks["fs"] >= -0.5).all()
            assert (peaks["fs"] <= shape[1] - 0.5).all()
            assert (peaks["ss"] >= -0.5).all()
            assert (peaks["ss"] <= shape[0] - 0.5).all()
            assert len(peaks) <= made.settings.max_peaks
        assert not len(masked.find(pixels))


@MODES
def test_a_frame_without_data_has_no_peak(mode: dict[str, Any]) -> None:
    for dtype in ("u1", "u2", "u4"):
        assert not len(finder(dtype=dtype, **mode).find(np.full(SHAPE, sentinel(np.dtype(dtype)), dtype)))


@MODES
def test_huge_counts_are_taken_for_the_largest_and_flagged(mode: dict[str, Any]) -> None:
    pixels = calm(dtype="u4")
    pixels[20, 30], pixels[40, 50], pixels[10, 10] = 3_000_000_000, 1 << 22, 0xFFFFFFFF
    peaks = finder(dtype="u4", saturation=1 << 31, **mode).find(pixels)
    assert sorted(np.rint(places(peaks)).astype(int).tolist()) == [[30, 20], [50, 40]]
    bright, dim = (peaks[np.rint(peaks["ss"]) == ss][0] for ss in (20, 40))
    assert bright["intensity"] == pytest.approx(LARGEST_COUNT, rel=1e-5)
    assert (bright["saturated"], dim["saturated"]) == (1, 0)


@MODES
def test_a_saturated_peak_is_kept_and_flagged(mode: dict[str, Any]) -> None:
    pixels = calm()
    pixels[20, 30], pixels[40, 50] = 900, 901
    peaks = finder(saturation=901, **mode).find(pixels)
    assert {round(float(p["ss"])): int(p["saturated"]) for p in peaks} == {20: 0, 40: 1}


@MODES
def test_a_mask_of_another_shape_is_refused_in_one_line(mode: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^mask test is \(61, 74\), the images are \(61, 75\)$"):
        finder(valid=np.ones((61, 74), np.uint8), **mode)


def test_frames_of_another_shape_or_type_are_refused() -> None:
    with pytest.raises(ValueError, match="frames are"):
        finder().find(water(0.1, (61, 74)))
    with pytest.raises(ValueError, match="frames are"):
        finder().find(water(0.1, dtype="u4"))


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": -1.0},
        {"threshold": math.nan},
        {"min_snr": math.inf},
        {"min_pix_count": 0},
        {"min_pix_count": 3, "max_pix_count": 2},
        {"max_pix_count": 1001},
        {"local_bg_radius": 0},
        {"local_bg_radius": 21},
        {"min_res": 5.0, "max_res": 5.0},
        {"max_res": math.nan},
        {"max_peaks": 0},
    ],
)
def test_parameters_without_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give|above") as refused:
        Peakfinder8Settings(**settings)
    assert "\n" not in str(refused.value)


@MODES
def test_masked_pixels_make_no_peak_and_move_none(mode: dict[str, Any]) -> None:
    valid = np.ones(SHAPE, np.uint8)
    valid[:, 36:40] = 0
    valid[25:27] = 0
    pixels = spotted(0.3, 3)
    clean = np.where(valid, pixels, 0).astype("u2")
    dirty = np.where(valid, pixels, 65535).astype("u2")
    hot = np.where(valid, pixels, 5000).astype("u2")
    made = finder(valid=valid, **mode)
    expected = made.find(clean)
    assert len(expected)
    for each in (dirty, hot):
        assert np.array_equal(made.find(each), expected)
    assert valid[np.rint(expected["ss"]).astype(int), np.rint(expected["fs"]).astype(int)].all()


def test_counting_takes_no_peak_that_touches_a_masked_pixel_or_the_rim() -> None:
    valid = np.ones(SHAPE, np.uint8)
    valid[:, 36:40] = 0
    for fs, found in ((35, 0), (40, 0), (34, 1), (41, 1), (0, 0), (1, 1), (74, 0)):
        pixels = water(0.05)
        pixels[20, fs] = 60
        assert len(finder(valid=valid, **POISSON).find(pixels)) == found, fs
    pixels = water(0.05)
    pixels[20, 60], pixels[21, 61] = 60, 65535
    assert not len(finder(valid=valid, **POISSON).find(pixels))


def test_peakfinder8_begins_no_spot_on_the_rim_but_lets_it_reach_there() -> None:
    pixels = calm()
    pixels[0, 30], pixels[40, 74] = 50, 50
    assert not len(finder().find(pixels))
    pixels[1, 30] = 50
    assert np.abs(places(finder().find(pixels)) - [30, 0.5]).max() < 0.1


def test_a_spot_over_the_row_s_end_is_two() -> None:
    pixels = calm()
    pixels[20, 73:75], pixels[21, 0:2] = 50, 50
    peaks = finder().find(pixels)
    assert np.rint(places(peaks)).astype(int).tolist() == [[74, 20], [0, 21]] or len(peaks) == 2


def test_the_first_spots_are_kept_where_there_are_too_many() -> None:
    pixels = calm((200, 200))
    pixels[10::12, 10::12] = 40
    every = finder((200, 200)).find(pixels)
    some = finder((200, 200), max_peaks=7).find(pixels)
    assert len(every) > 200
    assert np.array_equal(some, every[:7])


def test_a_worm_of_a_spot_is_one_however_it_winds() -> None:
    pixels = calm((800, 800))
    for row in range(60, 100, 2):
        pixels[row, 380:420] = 50
        pixels[row + 1, 419 if row % 4 == 0 else 380] = 50
    assert len(finder((800, 800), max_pix_count=1000).find(pixels)) == 1
    assert not len(finder((800, 800), max_pix_count=800).find(pixels))


def test_a_crowded_list_is_joined_in_time() -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(5000)
    beside = np.tile(np.arange(5000)[:, None], (1, 8))
    beside[order[1:], 0] = order[:-1]
    beside[order[:-1], 1] = order[1:]
    for fixed in (False, True):
        assert (_join(torch.from_numpy(beside)[None], fixed) == 0).all()


# --- neighbours, order, devices ---------------------------------------------------------


@MODES
def test_a_result_depends_on_no_frame_beside_it(mode: dict[str, Any]) -> None:
    made = finder(**mode)
    frames = [spotted(0.3, 1), np.full(SHAPE, 65535, "u2"), spotted(30.0, 2), np.zeros(SHAPE, "u2"), spotted(0.02, 3)]
    alone = [made.find(each) for each in frames]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [2, 2, 2, 1, 0]):
        together = made.find_batch(torch.from_numpy(np.stack([frames[n] for n in order])))
        for n, peaks in zip(order, together, strict=True):
            assert np.array_equal(peaks, alone[n])


@MODES
def test_the_number_of_threads_changes_nothing(mode: dict[str, Any]) -> None:
    pixels = spotted(0.5, 5, 60, shape=(700, 700))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(finder((700, 700), **mode).find(pixels))
    finally:
        torch.set_num_threads(before)
    assert len(found[0])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def lists_of_fixed_length(made: Peakfinder8, frames: Frame) -> list[Frame]:
    """What a CUDA device does, done on the CPU."""
    flat = torch.from_numpy(frames).flatten(1)
    every = peakfinder8._Lit(made._counts(flat), made._ring.expand(flat.shape), None, 0)
    with torch.inference_mode():
        return made._search(flat, [every], fixed=True)


@MODES
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_lists_of_a_fixed_length_find_the_same(
    dtype: str, mode: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peakfinder8, "_CUDA_LIMITS", peakfinder8._Limits(tail=1000, strong=1000, spots=500))
    valid = np.ones(SHAPE, np.uint8)
    valid[:, 36:40] = 0
    frames = np.stack([spotted(mean, n).astype(dtype) for n, mean in enumerate((0.02, 0.5, 20.0))])
    frames[:, valid == 0] = sentinel(np.dtype(dtype))
    frames[1, 5:9] = sentinel(np.dtype(dtype))
    made = finder(dtype=dtype, valid=valid, **mode)
    alone = [made.find(each) for each in frames]
    assert sum(map(len, alone)) > 8
    for peaks, expected in zip(lists_of_fixed_length(made, frames), alone, strict=True):
        assert np.array_equal(peaks, expected)
    assert made._slow is None


@MODES
@pytest.mark.parametrize("limit", ["tail", "strong", "spots"])
def test_a_frame_with_more_than_a_device_lists_is_done_again(
    limit: str, mode: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.stack([spotted(0.5, 1), spotted(0.5, 2, spots=60, photons=900), spotted(0.5, 3)])
    made = finder(**mode)
    alone = [made.find(each) for each in frames]
    limits = {"tail": 200, "strong": 400, "spots": 200} | {limit: 12}
    monkeypatch.setattr(peakfinder8, "_CUDA_LIMITS", peakfinder8._Limits(**limits))
    for peaks, expected in zip(lists_of_fixed_length(made, frames), alone, strict=True):
        assert np.array_equal(peaks, expected)
    assert made._slow is not None


@pytest.mark.parametrize("fixed", [False, True])
def test_what_is_chosen_is_in_order_and_counted(fixed: bool) -> None:
    mask = torch.tensor([[False, True, True, False, True]])
    index, number = _choose(mask, 2, fixed)
    assert index.tolist() == [[1, 2]]
    assert number.tolist() == [3]
    index, _ = _choose(torch.zeros(1, 5, dtype=torch.bool), 2, fixed)
    assert index.tolist() == ([[5, 5]] if fixed else [[]])


@MODES
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_peaks_of_the_cpu(mode: dict[str, Any]) -> None:
    frames = np.stack([spotted(mean, n, 80, shape=(512, 1028)) for n, mean in enumerate((0.02, 0.5, 5.0, 0.1))])
    frames[:, :, 500:512] = 65535
    alone = [finder((512, 1028), **mode).find(each) for each in frames]
    together = finder((512, 1028), device="cuda", **mode).find_batch(torch.from_numpy(frames))
    assert sum(map(len, alone)) > 20
    for peaks, expected in zip(together, alone, strict=True):
        assert np.array_equal(peaks, expected)


# --- counting statistics ----------------------------------------------------------------


@pytest.mark.parametrize("chance", [1e-3, 1e-9])
def test_the_table_of_tails_is_exact(chance: float) -> None:
    means = np.concatenate([np.geomspace(1e-7, 5000.0, 400), [0.0]])
    least = TailTable(chance, torch.device("cpu")).least(torch.from_numpy(means)).numpy()
    assert (poisson.sf(least - 1, means) <= chance * (1 + 1e-9)).all()
    beyond = least > 1
    assert (poisson.sf(least[beyond] - 2, means[beyond]) > chance * (1 - 1e-9)).all()
    far = TailTable(chance, torch.device("cpu")).least(torch.tensor([4e4], dtype=torch.float64)).item()
    assert far == pytest.approx(poisson.isf(chance, 4e4), rel=1e-3)


def test_a_chance_that_is_none_is_refused() -> None:
    for chance in (0.0, 0.5, math.nan, -1.0):
        with pytest.raises(ValueError, match="chance"):
            TailTable(chance, torch.device("cpu"))
    assert normal_tail(5.0) == pytest.approx(2.867e-7, rel=1e-3)


@pytest.mark.parametrize("mean", [1e-4, 0.003, 0.05, 0.5, 8.0, 60.0])
def test_background_alone_makes_hardly_a_peak(mean: float) -> None:
    made = finder((600, 600), **POISSON)
    assert sum(len(made.find(water(mean, (600, 600), seed))) for seed in range(6)) <= 1


@pytest.mark.parametrize(("mean", "photons"), [(1e-4, 6), (0.003, 12), (0.05, 20), (1.0, 60), (20.0, 250)])
def test_spots_are_found_with_their_intensity_and_its_sigma(mean: float, photons: float) -> None:
    shape, rng = (400, 400), np.random.default_rng(1)
    expected = np.full(shape, mean)
    true = [(ss, fs) for ss in range(20, 390, 30) for fs in range(20, 390, 30)]
    for ss, fs in true:
        expected[ss, fs] += 0.6 * photons
        expected[ss, fs + 1] += 0.4 * photons
    peaks = finder(shape, **POISSON).find(rng.poisson(expected).astype("u2"))
    pulls, distance = [], []
    for ss, fs in true:
        near = peaks[np.hypot(peaks["ss"] - ss, peaks["fs"] - (fs + 0.4)) < 3]
        assert len(near) <= 1
        for peak in near:
            sigma = peak["intensity"] / peak["snr"]
            pulls.append((peak["intensity"] - photons) / sigma)
            distance.append(math.hypot(peak["ss"] - ss, peak["fs"] - fs - 0.4))
    assert len(pulls) >= 0.9 * len(true)
    assert len(peaks) <= len(pulls) + 1
    assert abs(np.mean(pulls)) < 0.4
    assert 0.7 < np.std(pulls) < 1.3
    assert np.median(distance) < 0.5


def test_bright_spots_hardly_move_the_mean_of_their_ring() -> None:
    quiet = water(0.02, (300, 300))
    loud = quiet.copy()
    loud[140:160:3, 40:260:3] = 3000
    made = finder((300, 300), **POISSON)
    seen = []
    for pixels in (quiet, loud):
        one = torch.from_numpy(pixels).flatten()
        rings, _ = made._statistics(1, made._list_lit(one), fixed=False)
        seen.append(rings.mean[0, 20:-1].numpy())
    np.testing.assert_allclose(seen[1], seen[0], rtol=0.25)


def test_the_tail_of_a_spot_is_no_second_peak() -> None:
    pixels = water(0.02)
    pixels[30, 40], pixels[32, 40], pixels[30, 43] = 3000, 40, 0
    peaks = finder(**POISSON).find(pixels)
    assert len(peaks) == 1
    assert round(float(peaks[0]["ss"])) == 30


def test_the_memory_at_work_is_little() -> None:
    shape = (1200, 1200)
    made, pixels = finder(shape), water(3.0, shape)
    with torch.profiler.profile(profile_memory=True) as profile:
        made.find(pixels)
    most, now = 0, 0
    for event in profile.events() or []:
        now += event.self_cpu_memory_usage
        most = max(most, now)
    assert 1 << 20 < most < 64 * pixels.size
