import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import erf
from scipy.stats import norm

from sim_replay.response import Response, ResponseWorkspace, count, expected_counts, expected_counts_at

PIXEL_M = 75e-6
SIGMA_M = 8e-6
LAWS = [
    Response(kind, pulses, charge_sigma_m=sigma)  # type: ignore[arg-type]
    for kind, pulses, sigma in itertools.product(("one_per_pulse", "retrigger"), (1, 7), (0.0, SIGMA_M))
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def counted(
    photons: NDArray[np.uint32], response: Response, seed: int = 0, largest_count: int = 65534
) -> NDArray[np.uint16]:
    out = np.full(photons.shape, 77, dtype=np.uint16)
    count(photons, response, PIXEL_M, rng(seed), out, largest_count, ResponseWorkspace())
    return out


def photon_by_photon(
    frames: NDArray[np.uint32], response: Response, generator: np.random.Generator, sigma_px: float | None = None
) -> NDArray[np.int64]:
    """Counts of frames (n, ss, fs), each photon thrown at a place and its cloud integrated; shares no code."""
    n, rows, columns = frames.shape
    which = np.repeat(np.arange(frames.size), frames.reshape(-1))
    frame, row, column = np.unravel_index(which, frames.shape)
    pulse = generator.integers(0, response.pulses, len(which))
    if sigma_px is None:
        sigma_px = response.charge_sigma_m / PIXEL_M
    charge = np.zeros((n, response.pulses, rows + 2, columns + 2))
    if sigma_px == 0.0:
        np.add.at(charge, (frame, pulse, row + 1, column + 1), 1.0)
    else:
        edges = np.array([-1.0, 0.0, 1.0, 2.0])
        x = generator.random(len(which))[:, None]
        y = generator.random(len(which))[:, None]
        across = np.diff(0.5 * erf((edges - x) / (sigma_px * math.sqrt(2.0))), axis=1)
        along = np.diff(0.5 * erf((edges - y) / (sigma_px * math.sqrt(2.0))), axis=1)
        across /= across.sum(axis=1, keepdims=True)
        along /= along.sum(axis=1, keepdims=True)
        for i, j in itertools.product(range(3), range(3)):
            np.add.at(charge, (frame, pulse, row + i, column + j), along[:, i] * across[:, j])
    charge = charge[:, :, 1:-1, 1:-1]
    over = charge > response.threshold
    if response.kind == "one_per_pulse":
        return over.sum(axis=1)
    with np.errstate(divide="ignore"):
        steps = 1 + np.floor(response.retrigger_ratio * np.log(charge / response.threshold))
    return np.where(over, steps, 0.0).sum(axis=1).astype(np.int64)


def patchy_means() -> NDArray[np.float64]:
    """0.01 to 50 photons a pixel, bright and dim beside each other, on edges and corners too."""
    mean = 10.0 ** rng(3).uniform(-2.0, 0.7, (5, 6))
    mean[0, 0], mean[4, 3], mean[2, 5], mean[2, 2] = 20.0, 50.0, 8.0, 50.0
    mean[0, 5], mean[4, 0] = 0.01, 0.0
    return mean


@pytest.mark.parametrize("response", LAWS, ids=lambda r: f"{r.kind}-{r.pulses}-{r.charge_sigma_m}")
def test_counts_and_expected_counts_agree_with_photons_followed_one_by_one(response: Response) -> None:
    mean, n = patchy_means(), 1200
    frames = rng(1).poisson(mean, (n, *mean.shape)).astype(np.uint32)
    ours = np.empty(frames.shape, dtype=np.uint16)
    generator, workspace = rng(2), ResponseWorkspace()
    for i in range(n):
        count(frames[i], response, PIXEL_M, generator, ours[i], 65534, workspace)
    others = photon_by_photon(rng(4).poisson(mean, frames.shape).astype(np.uint32), response, rng(5))
    for power in (1, 2):  # the mean, and how the counts scatter
        first, second = ours.astype(float) ** power, others.astype(float) ** power
        variance = (first.var(axis=0) + second.var(axis=0)) / n
        apart = (first.mean(axis=0) - second.mean(axis=0)) ** 2
        assert np.all(apart[variance == 0.0] == 0.0)
        z2 = apart[variance > 0.0] / variance[variance > 0.0]
        assert z2.max() < 16.0
        assert z2.sum() < len(z2) + 4.0 * math.sqrt(2.0 * len(z2))
    together = np.concatenate([ours, others])
    error = together.std(axis=0) / math.sqrt(2 * n)
    expected = expected_counts(mean, response, PIXEL_M)
    assert np.all(np.abs(together.mean(axis=0) - expected) < 4.0 * error + 0.003 * response.pulses)
    if response.charge_sigma_m == 0.0:
        z2 = ((together.mean(axis=0) - expected)[error > 0.0] / error[error > 0.0]) ** 2
        assert z2.sum() < len(z2) + 4.0 * math.sqrt(2.0 * len(z2))


@pytest.mark.parametrize("pulses", [1, 7])
def test_an_integrating_pixel_counts_every_photon_and_clips(pulses: int) -> None:
    photons = rng().poisson(3.0, (20, 30)).astype(np.uint32)
    photons[3, 4], photons[5, 6] = 70000, 2**32 - 1
    out = counted(photons, Response("integrating", pulses, charge_sigma_m=SIGMA_M))
    np.testing.assert_array_equal(out, np.minimum(photons, 65534))
    mean = rng().random((4, 5))
    np.testing.assert_array_equal(expected_counts(mean, Response(), PIXEL_M), mean)


def test_one_count_a_pulse_follows_one_minus_exp() -> None:
    mean = np.array([[0.0, 0.01, 0.3, 1.0, 7.0, 50.0, 1e4]])
    for pulses in (1, 10, 100):
        expected = expected_counts(mean, Response("one_per_pulse", pulses), PIXEL_M)
        np.testing.assert_allclose(expected, -pulses * np.expm1(-mean / pulses), rtol=1e-6, atol=2e-7)
        n = 40000
        photons = rng().poisson(3.0, (200, 200)).astype(np.uint32)
        drawn = counted(photons, Response("one_per_pulse", pulses))
        chance = -math.expm1(-3.0 / pulses)
        assert drawn.mean() == pytest.approx(pulses * chance, abs=4.0 * math.sqrt(pulses * chance * (1 - chance) / n))


@pytest.mark.parametrize("sigma", [0.0, SIGMA_M])
@pytest.mark.parametrize("pulses", [1, 7])
def test_counts_never_exceed_the_pulses_with_one_count_a_pulse(pulses: int, sigma: float) -> None:
    photons = rng().poisson(40.0, (30, 30)).astype(np.uint32)
    photons[::7, ::5] = 1_000_000
    out = counted(photons, Response("one_per_pulse", pulses, charge_sigma_m=sigma))
    assert out.max() == pulses
    assert np.all(out[::7, ::5] == pulses)


def test_a_retriggered_count_is_the_logarithm_of_the_charge() -> None:
    response = Response("retrigger", threshold=0.3, retrigger_ratio=2.5)
    photons = np.array([[0, 1, 2, 3, 10, 1000, 1_000_000, 2**32 - 1]], dtype=np.uint32)
    law = [0] + [1 + math.floor(2.5 * math.log(int(n) / 0.3)) for n in photons[0, 1:]]
    assert counted(photons, response)[0].tolist() == law
    assert counted(photons, response, largest_count=12)[0].tolist() == [min(n, 12) for n in law]
    doubling = Response("retrigger", retrigger_ratio=1.0 / math.log(2.0))  # whole photons stand exactly at its steps
    assert counted(np.array([[1, 2, 3, 4, 8]], dtype=np.uint32), doubling)[0].tolist() == [2, 3, 3, 4, 5]


def fraction_above(threshold: float, sigma_px: float) -> float:
    """Photons whose own pixel keeps more than the threshold: distances x, y from the nearest edges, in one integral."""

    def wide_enough(x: float) -> float:
        kept = norm.cdf(x / sigma_px)
        return 1.0 - 2.0 * max(sigma_px * norm.ppf(threshold / kept), 0.0) if kept > threshold else 0.0

    near = max(sigma_px * norm.ppf(threshold), 0.0)
    return float(2.0 * quad(wide_enough, near, 0.5, points=[near + sigma_px, near + 2 * sigma_px], limit=200)[0])


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_lone_photons_are_counted_as_often_as_the_cloud_allows(threshold: float) -> None:
    response = Response("one_per_pulse", threshold=threshold, charge_sigma_m=SIGMA_M)
    photons = np.zeros((1200, 1200), dtype=np.uint32)
    photons[1::3, 1::3] = 1
    out = counted(photons, response)
    n, chance = 160_000, fraction_above(threshold, SIGMA_M / PIXEL_M)
    assert 0.7 < chance < 0.99
    assert np.all(out[photons == 0] == 0)  # above one half only the photon's own pixel can count
    assert out.sum() / n == pytest.approx(chance, abs=4.0 * math.sqrt(chance * (1.0 - chance) / n))
    lone = expected_counts(np.pad([[1e-4]], 1), response, PIXEL_M)
    assert lone[1, 1] / 1e-4 == pytest.approx(chance, rel=1e-3)


def test_a_low_threshold_counts_some_lone_photons_twice_and_a_high_one_misses_some() -> None:
    photons = np.zeros((900, 900), dtype=np.uint32)
    photons[1::3, 1::3] = 1
    one = photons[:3, :3][None].repeat(90_000, axis=0)
    for threshold in (0.2, 0.3, 0.5, 0.8):
        response = Response("one_per_pulse", threshold=threshold, charge_sigma_m=SIGMA_M)
        events = counted(photons, response).reshape(300, 3, 300, 3).sum(axis=(1, 3))
        ours = np.bincount(events.reshape(-1), minlength=5)[:5]
        others = np.bincount(photon_by_photon(one, response, rng(8)).sum(axis=(1, 2)), minlength=5)[:5]
        assert np.all((ours - others) ** 2 <= 16.0 * (ours + others))
        assert (ours[2] > 0) == (threshold < 0.5)
        assert ours[0] > 0 if threshold >= 0.3 else ours[0] == 0


def test_charges_of_one_pulse_add_before_the_threshold_and_those_of_different_pulses_do_not() -> None:
    photons = np.zeros((3, 3), dtype=np.uint32)
    photons[1, 1] = 60  # edges collect about 2.6 photons in one pulse, each far below one in sixty
    shared = Response("one_per_pulse", charge_sigma_m=SIGMA_M)
    edges = np.array([(0, 1), (1, 0), (1, 2), (2, 1)]).T
    assert np.all(counted(photons, shared)[tuple(edges)] == 1)
    many = Response("one_per_pulse", 1000, charge_sigma_m=SIGMA_M)
    assert counted(photons, many)[tuple(edges)].sum() <= 4


@pytest.mark.parametrize("pulses", [1, 3])
def test_bright_pixels_give_their_neighbours_the_mean_shares(pulses: int) -> None:
    sigma = SIGMA_M / PIXEL_M
    share = sigma / math.sqrt(2.0 * math.pi)  # the mean of Phi(-x / sigma) over the pixel, far edges out of reach
    response = Response("retrigger", pulses, charge_sigma_m=SIGMA_M, retrigger_ratio=3.0)
    photons = np.zeros((5, 5), dtype=np.uint32)
    photons[2, 2] = 1_000_000 * pulses
    out = counted(photons, response)
    for place, kept in (((2, 2), (1 - 2 * share) ** 2), ((1, 2), share * (1 - 2 * share)), ((3, 3), share**2)):
        law = pulses * (1 + math.floor(3.0 * math.log(1e6 * kept / 0.5)))
        assert abs(int(out[place]) - law) <= pulses  # a step may lie within the scatter
    assert np.all(out[[0, 4]] == 0)
    below, above = np.zeros((2, 3, 400), dtype=np.uint32)
    below[1, 1::4], above[1, 1::4] = 1024, 1025
    steep = Response("retrigger", 1, charge_sigma_m=SIGMA_M, retrigger_ratio=10.0)
    low, high = (counted(p, steep)[:, 1::4].mean(axis=1) for p in (below, above))
    np.testing.assert_allclose(low, high, atol=0.6)  # continuous where the mean takes over


def test_charge_over_the_rim_is_lost_and_does_not_come_back_elsewhere() -> None:
    photons = np.zeros((6, 7), dtype=np.uint32)
    photons[0, 0] = photons[5, 6] = photons[0, 6] = photons[5, 0] = 1_000_000
    out = counted(photons, Response("one_per_pulse", 2, charge_sigma_m=SIGMA_M))
    lit = np.zeros((6, 7), dtype=bool)
    lit[:2, :2] = lit[-2:, :2] = lit[:2, -2:] = lit[-2:, -2:] = True
    np.testing.assert_array_equal(out, 2 * lit)


@pytest.mark.parametrize("response", LAWS, ids=lambda r: f"{r.kind}-{r.pulses}-{r.charge_sigma_m}")
def test_expected_counts_rise_with_the_photons_and_have_no_step(response: Response) -> None:
    ladder = np.concatenate([[0.0], np.geomspace(1e-4, 1e3, 16000), np.geomspace(1e3, 1e7, 100)])
    patch = np.zeros((3 * len(ladder), 3))
    patch[1::3, 1] = ladder
    counts = expected_counts(patch, response, PIXEL_M)
    own, edge = counts[1::3, 1], counts[1::3, 0]
    assert own[0] == edge[0] == 0.0
    for values in (own, edge):
        rise = np.diff(values)
        assert rise.min() > -1e-6 * response.pulses
        # A rung is 0.1 % up to 1000 photons, whose 3.2 % of scatter make 1.3 % of a step; brighter, steps are real.
        assert rise[:16000].max() < 0.015 * response.pulses
    assert np.all(own <= ladder * (1.0 + 1e-3) + 1e-9) or response.kind == "retrigger"


def test_expected_counts_with_sharing_tend_to_those_without() -> None:
    mean = patchy_means()
    for kind in ("one_per_pulse", "retrigger"):
        alone = expected_counts(mean, Response(kind), PIXEL_M)  # type: ignore[arg-type]
        hardly = expected_counts(mean, Response(kind, charge_sigma_m=1e-9), PIXEL_M)  # type: ignore[arg-type]
        np.testing.assert_allclose(hardly, alone, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("response", [Response(), *LAWS], ids=lambda r: f"{r.kind}-{r.pulses}-{r.charge_sigma_m}")
def test_expected_counts_at_pixels_are_those_of_the_whole_image(response: Response) -> None:
    shape = (40, 50)
    background = rng(1).uniform(0.0, 0.5, shape).astype(np.float32)
    background[:, 20:22] = 0.0
    index = rng(2).integers(0, background.size, 301)
    index[:6] = (0, 49, 1950, 1999, 7, 7)  # corners, and a repeated pixel
    photons = rng(3).exponential(5.0, len(index))
    spots = np.bincount(index, photons, background.size).reshape(shape)
    workspace = ResponseWorkspace()
    for scale in (0.0, 1.0, 2.5):
        over, without = expected_counts_at(index, photons, background, scale, response, PIXEL_M, workspace)
        dense = background.astype(np.float64) * scale
        np.testing.assert_allclose(
            over, expected_counts(dense + spots, response, PIXEL_M).reshape(-1)[index], rtol=1e-9
        )
        np.testing.assert_allclose(without, expected_counts(dense, response, PIXEL_M).reshape(-1)[index], rtol=1e-9)
    none = expected_counts_at(index[:0], photons[:0], background, 1.0, response, PIXEL_M, workspace)
    assert [len(values) for values in none] == [0, 0]


@pytest.mark.parametrize("response", LAWS, ids=lambda r: f"{r.kind}-{r.pulses}-{r.charge_sigma_m}")
def test_a_frame_is_a_function_of_its_photons_and_random_numbers(response: Response) -> None:
    used = ResponseWorkspace()
    big = rng(1).poisson(2.0, (50, 90)).astype(np.uint32)
    for other in (response, *LAWS):
        count(big, other, PIXEL_M, rng(9), np.empty(big.shape, dtype=np.uint32), 1000, used)
    photons = rng(2).poisson(1.0, (30, 40)).astype(np.uint16)
    out = np.empty(photons.shape, dtype=np.uint8)
    count(photons, response, PIXEL_M, rng(4), out, 254, used)
    np.testing.assert_array_equal(out, counted(photons.astype(np.uint32), response, 4))
    sharing_or_pulses = response.pulses > 1 or response.charge_sigma_m > 0.0
    assert np.any(out != counted(photons.astype(np.uint32), response, 5)) == sharing_or_pulses


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (0, 5)])
@pytest.mark.parametrize("sigma", [0.0, SIGMA_M])
def test_the_smallest_panels_are_counted(shape: tuple[int, int], sigma: float) -> None:
    photons = np.full(shape, 5000, dtype=np.uint32)
    out = counted(photons, Response("one_per_pulse", 3, charge_sigma_m=sigma))
    assert np.all(out == 3)
    assert np.all(expected_counts(photons, Response("one_per_pulse", 3, charge_sigma_m=sigma), PIXEL_M) == 3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "counting"}, "kind must be"),
        ({"pulses": 0}, "pulses must be"),
        ({"pulses": 1001}, "pulses must be"),
        ({"pulses": 2.5}, "pulses must be"),
        ({"threshold": 0.0}, "threshold must be"),
        ({"threshold": 1.0}, "threshold must be"),
        ({"threshold": math.nan}, "threshold must be"),
        ({"charge_sigma_m": -1e-6}, "charge_sigma_m must be"),
        ({"charge_sigma_m": math.nan}, "charge_sigma_m must be"),
        ({"charge_sigma_m": math.inf}, "charge_sigma_m must be"),
        ({"retrigger_ratio": 0.0}, "retrigger_ratio must be"),
        ({"retrigger_ratio": math.nan}, "retrigger_ratio must be"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Response(**change)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_arrays_that_do_not_fit_are_refused() -> None:
    law, workspace = Response("one_per_pulse", charge_sigma_m=SIGMA_M), ResponseWorkspace()
    photons, out = np.zeros((4, 5), dtype=np.uint32), np.zeros((4, 5), dtype=np.uint8)
    with pytest.raises(ValueError, match="one shape"):
        count(photons, law, PIXEL_M, rng(), out[:3], 254, workspace)
    with pytest.raises(ValueError, match="unsigned"):
        count(photons.astype(np.int32), law, PIXEL_M, rng(), out, 254, workspace)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous"):
        count(photons.T.copy().T, law, PIXEL_M, rng(), out, 254, workspace)
    with pytest.raises(ValueError, match="does not fit"):
        count(photons, law, PIXEL_M, rng(), out, 256, workspace)
    with pytest.raises(ValueError, match="more than"):
        count(photons, law, 20e-6, rng(), out, 254, workspace)
    with pytest.raises(ValueError, match="pixel_size_m"):
        count(photons, law, 0.0, rng(), out, 254, workspace)
    for bad in (np.full((3, 3), -1.0), np.full((3, 3), np.nan), np.full((3, 3), np.inf)):
        with pytest.raises(ValueError, match="finite"):
            expected_counts(bad, law, PIXEL_M)
    with pytest.raises(ValueError, match="image"):
        expected_counts(np.zeros(3), law, PIXEL_M)
    background = np.zeros((4, 5), dtype=np.float32)
    for index in ([-1], [20]):
        with pytest.raises(ValueError, match="outside"):
            expected_counts_at(np.array(index), np.ones(1), background, 1.0, law, PIXEL_M, workspace)
    with pytest.raises(ValueError, match="one length"):
        expected_counts_at(np.array([1]), np.ones(2), background, 1.0, law, PIXEL_M, workspace)
    with pytest.raises(ValueError, match="scale"):
        expected_counts_at(np.array([1]), np.ones(1), background, math.nan, law, PIXEL_M, workspace)
