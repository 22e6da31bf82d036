import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2, norm, poisson

from sim_replay import poisson as module
from sim_replay.poisson import LEVELS_ABOVE_MEAN, draw_dense, draw_sparse, walk_total

MEANS = [1e-3, 0.04, 0.25, 0.26, 0.5, 1.0, 1.01, 2.0, 6.49, 6.5, 13.0, 31.9, 100.3, 517.0, 1023.9, 1024.0, 1500.0, 1e4]


def frame_rng(seed: int, frame: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, frame]))


def drawn(
    expected: NDArray[np.float32], scale: float = 1.0, seed: int = 1, dtype: str = "uint32", largest: int | None = None
) -> NDArray[np.unsignedinteger]:
    out = np.zeros(len(expected), dtype=dtype)
    limit = int(np.iinfo(dtype).max) - 1 if largest is None else largest
    draw_dense(expected, walk_total(expected), scale, frame_rng(seed, 0), out, limit)
    return out


def goodness(counts: NDArray[np.integer], mean: float) -> float:
    """Probability of a chi-square at least as large, of counts against a Poisson distribution of one mean."""
    edges = np.unique(poisson.ppf(np.linspace(0.0, 1.0, 60)[1:-1], mean)).astype(np.int64)
    share = np.diff(np.concatenate([[0.0], poisson.cdf(edges, mean), [1.0]]))
    seen = np.bincount(np.searchsorted(edges, counts, side="left"), minlength=len(share))
    keep = share * len(counts) >= 5.0
    if keep.sum() < 2:
        return 1.0
    expected = np.append(share[keep], share[~keep].sum()) * len(counts)
    observed = np.append(seen[keep], seen[~keep].sum())
    used = expected > 0.0
    statistic = float(np.sum((observed[used] - expected[used]) ** 2 / expected[used]))
    return float(chi2.sf(statistic, used.sum() - 1))


@pytest.mark.parametrize("mean", MEANS)
def test_counts_follow_the_poisson_distribution_of_their_mean(mean: float) -> None:
    pixels = 1_000_003  # not a multiple of a block, nor of four
    expected = np.full(pixels, mean, dtype=np.float32)
    counts = drawn(expected).astype(np.int64)
    mean = float(expected[0])
    assert goodness(counts, mean) > 1e-4
    assert counts.mean() == pytest.approx(mean, abs=4.5 * np.sqrt(mean / pixels))
    spread_of_variance = np.sqrt((mean + 2.0 * mean**2) / pixels)
    assert counts.var() == pytest.approx(mean, abs=4.5 * spread_of_variance)


@pytest.mark.parametrize("mean", [0.5, 6.5, 40.0])
def test_tails_hold_as_many_pixels_as_they_should(mean: float) -> None:
    counts = np.concatenate([drawn(np.full(2_000_000, mean, dtype=np.float32), seed=s) for s in range(3)])
    for probability in (1e-3, 1e-5):
        high = int(poisson.isf(probability, mean))
        due = poisson.sf(high, mean) * len(counts)
        assert np.sum(counts > high) == pytest.approx(due, abs=4.5 * np.sqrt(due) + 1.0)
        low = int(poisson.ppf(probability, mean))
        due = poisson.cdf(low, mean) * len(counts)
        assert np.sum(counts <= low) == pytest.approx(due, abs=4.5 * np.sqrt(due) + 1.0)


def test_the_tables_hold_every_probability_to_one_in_a_billion_and_far_tails_to_their_digits() -> None:
    levels = module._levels()
    level, base, table = levels.lookup
    bounds, first = levels.inversion
    assert level[0] == 2.0**-7
    assert level[-1] < 1024.0 <= level[-1] * (1.0 + 2.0**-6)
    for i in range(0, len(level), 97):
        rising = bounds[first[i] : first[i + 1]]
        assert np.all(np.diff(rising.astype(np.float64)) >= 0.0)
        counts = np.arange(len(rising))
        np.testing.assert_allclose(rising / 2.0**64, poisson.cdf(counts, float(level[i])), atol=1e-12)
        tail = poisson.sf(counts, float(level[i]))
        far = (tail < 1e-6) & (tail > 1e-15)
        np.testing.assert_allclose((-rising[far]).astype(np.uint64) / 2.0**64, tail[far], rtol=1e-3)
        assert poisson.sf(len(rising), float(level[i])) < 2.0**-64
        shares = np.bincount(base[i] + table[i][table[i] < 255].astype(np.int64)) / table.shape[1]
        assert np.all(shares <= poisson.pmf(np.arange(len(shares)), float(level[i])) + 1e-12)


def test_the_same_state_gives_the_same_image_and_another_gives_another() -> None:
    expected = np.random.default_rng(0).gamma(2.0, 3.0, 200_000).astype(np.float32)
    for scale in (0.001, 1.0, 300.0):
        assert np.array_equal(drawn(expected, scale, seed=4), drawn(expected, scale, seed=4))
        assert not np.array_equal(drawn(expected, scale, seed=4), drawn(expected, scale, seed=5))


@pytest.mark.parametrize("mean", [0.1, 3.3, 70.0, 1100.0])
def test_pixels_are_independent_of_their_neighbours_and_of_other_frames(mean: float) -> None:
    expected = np.full(1_000_000, mean, dtype=np.float32)
    counts, other = (drawn(expected, seed=s).astype(np.float64) - mean for s in (8, 9))
    limit = 4.5 / np.sqrt(len(expected))
    for shift in (1, 2, 3, 4, 65536):
        assert abs(np.mean(counts[shift:] * counts[:-shift]) / mean) < limit * 1.05
    assert abs(np.mean(counts * other) / mean) < limit
    total = [int(drawn(expected[:10_000], seed=s).sum(dtype=np.int64)) for s in range(200)]
    assert np.var(total) / (mean * 1e4) == pytest.approx(1.0, abs=4.5 * np.sqrt(2.0 / 200))


def test_pixels_of_all_brightnesses_share_an_image() -> None:
    rng = np.random.default_rng(2)
    expected = np.exp(rng.uniform(np.log(1e-6), np.log(1e6), 400_000)).astype(np.float32)
    expected[::7] = 0.0
    counts = drawn(expected).astype(np.float64)
    assert np.all(counts[::7] == 0)
    for low, high in ((1e-6, 0.0078), (0.0078, 1.0), (1.0, 30.0), (30.0, 1024.0), (1024.0, 1e6)):
        chosen = (expected >= low) & (expected < high)
        mean = expected[chosen].astype(np.float64)
        assert counts[chosen].sum() == pytest.approx(mean.sum(), abs=4.5 * np.sqrt(mean.sum()))
        standard = (counts[chosen] - mean) ** 2 / mean
        spread = np.sqrt(np.mean(2.0 + 1.0 / mean) / len(mean))
        assert standard.mean() == pytest.approx(1.0, abs=5.0 * spread)


def test_both_ways_agree_where_they_meet() -> None:
    below, above = (drawn(np.full(1_000_000, LEVELS_ABOVE_MEAN, dtype=np.float32), s) for s in (1.0, 1.0 + 1e-6))
    seen = np.stack([np.bincount(c, minlength=8)[:6] for c in (below, above)]).astype(np.float64)
    both = seen.sum(axis=0)
    used = both > 10
    z = (seen[0] - seen[1])[used] / np.sqrt(both[used])
    assert np.all(np.abs(z) < norm.isf(1e-5))


def test_counts_add_to_what_is_there_and_are_clipped_without_wrapping() -> None:
    for dtype, mean in (("uint8", 250.0), ("uint8", 1e4), ("uint16", 65530.0), ("uint16", 1e9), ("uint16", 3e38)):
        limit = int(np.iinfo(dtype).max) - 1
        out = np.full(5000, limit - 3, dtype=dtype)
        expected = np.full(5000, mean, dtype=np.float32)
        draw_dense(expected, walk_total(expected), 1.0, frame_rng(1, 0), out, limit)
        assert np.all(out == limit)
    for mean in (0.2, 3.0):  # dealt and looked up
        out = np.full(5000, 254, dtype=np.uint8)
        expected = np.full(5000, mean, dtype=np.float32)
        draw_dense(expected, walk_total(expected), 1.0, frame_rng(1, 0), out, 254)
        assert np.all(out == 254)
    out = np.zeros(5000, dtype=np.uint32)
    draw_dense(np.full(5000, 4e9, dtype=np.float32), 2e13, 1.0, frame_rng(1, 0), out, 2**32 - 2)
    assert 4e9 - 5e5 < out.min() <= out.max() < 4e9 + 5e5


def test_nothing_expected_draws_nothing() -> None:
    zeros, ones = np.zeros(100, dtype=np.float32), np.ones(100, dtype=np.float32)
    assert drawn(zeros).sum() == 0
    assert drawn(ones, scale=0.0).sum() == 0
    assert drawn(zeros[:0]).size == 0
    assert drawn(np.full(100, 1e-30, dtype=np.float32)).sum() == 0
    draw_sparse(np.empty(0, np.int64), np.empty(0), frame_rng(1, 0), np.zeros(3, np.uint8), 254)


@pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf, -np.inf])
@pytest.mark.parametrize("mean", [0.01, 5.0])  # dealt and looked up
def test_expectations_that_are_none_are_refused(bad: float, mean: float) -> None:
    expected = np.full(1000, mean, dtype=np.float32)
    total = walk_total(expected)
    expected[500] = bad
    with pytest.raises(ValueError, match="expected photons"):
        walk_total(expected)
    with pytest.raises(ValueError, match="expected photons"):
        draw_dense(expected, total, 1.0, frame_rng(1, 0), np.zeros(1000, np.uint16), 65534)
    with pytest.raises(ValueError, match="expected photons"):
        draw_sparse(np.arange(1000), expected.astype(np.float64), frame_rng(1, 0), np.zeros(1000, np.uint16), 65534)


def test_calls_that_do_not_fit_are_refused() -> None:
    ones, rng = np.ones(10, dtype=np.float32), frame_rng(1, 0)
    with pytest.raises(ValueError, match="contiguous"):
        draw_dense(ones, 10.0, 1.0, rng, np.zeros((10, 2), np.uint16)[:, 0], 65534)
    with pytest.raises(ValueError, match="do not fit"):
        draw_dense(ones, 10.0, 1.0, rng, np.zeros(11, np.uint16), 65534)
    with pytest.raises(ValueError, match="unsigned"):
        draw_dense(ones, 10.0, 1.0, rng, np.zeros(10, np.int16), 1000)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="counts up to 256"):
        draw_dense(ones, 10.0, 1.0, rng, np.zeros(10, np.uint8), 256)
    for scale in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="0 or more"):
            draw_dense(ones, 10.0, scale, rng, np.zeros(10, np.uint16), 65534)
    with pytest.raises(ValueError, match="no finite number"):
        draw_dense(ones, 1e300, 1e300, rng, np.zeros(10, np.uint16), 65534)
    with pytest.raises(ValueError, match="one length"):
        draw_sparse(np.zeros(2, np.int64), np.ones(3), rng, np.zeros(10, np.uint16), 65534)
    for index in (-1, 10):
        with pytest.raises(ValueError, match="outside an image of 10"):
            draw_sparse(np.array([index]), np.ones(1), rng, np.zeros(10, np.uint16), 65534)


@pytest.mark.parametrize("wrong", [0.5, 0.999, 1.001, 2.0])
def test_a_total_that_is_not_the_sum_is_refused(wrong: float) -> None:
    ones = np.ones(1000, dtype=np.float32)
    with pytest.raises(ValueError, match="not to the total"):
        draw_dense(ones, 1000.0 * wrong, 0.1, frame_rng(1, 0), np.zeros(1000, np.uint16), 65534)


def test_a_total_that_differs_by_rounding_loses_no_photon_and_fills_no_gap() -> None:
    expected = np.zeros(1000, dtype=np.float32)
    expected[:900] = 0.2
    total = walk_total(expected)
    for off in (1.0 - 1e-7, 1.0 + 1e-7):
        drawn_photons = []
        for seed in range(200):
            out = np.zeros(1000, np.uint16)
            draw_dense(expected, total * off, 1.0, frame_rng(seed, 0), out, 65534)
            assert out[900:].sum() == 0
            drawn_photons.append(int(out.sum()))
        assert np.mean(drawn_photons) == pytest.approx(total, abs=4.5 * np.sqrt(total / 200))


@pytest.mark.parametrize("mean", [0.1, 0.5, 40.0, 5000.0])
def test_sparse_pixels_get_the_sum_of_what_repeats(mean: float) -> None:
    index = np.array([3, 7, 7, 20], dtype=np.int64)
    photons = np.array([1.0, 2.0, 0.5, 0.25]) * mean
    total = np.zeros(30)
    square = np.zeros(30)
    for i in range(1000):
        out = np.zeros((5, 6), dtype=np.uint32)
        draw_sparse(index, photons, frame_rng(1, i), out, 2**32 - 2)
        total += out.reshape(-1)
        square += out.reshape(-1).astype(np.float64) ** 2
    due = np.zeros(30)
    np.add.at(due, index, photons)
    np.testing.assert_array_less(np.abs(total / 1000 - due), 4.5 * np.sqrt(due / 1000) + 1e-9)
    variance = square / 1000 - (total / 1000) ** 2
    np.testing.assert_array_less(np.abs(variance - due), 4.5 * np.sqrt((due + 2.0 * due**2) / 1000) + 1e-9)


def test_a_panel_is_drawn_in_time() -> None:
    """Prints CPU time a frame of 4 megapixels; the limit is far above what is measured, to hold on a busy machine."""
    expected = np.linspace(0.5, 1.5, 2162 * 2068, dtype=np.float32)
    out = np.zeros(len(expected), dtype=np.uint16)
    total = walk_total(expected)
    draw_dense(expected, total, 1.0, frame_rng(1, 0), out, 65534)
    for mean in (0.04, 0.5, 2.0, 6.5, 13.0, 100.0):
        begun = time.process_time()
        draw_dense(expected, total, mean, frame_rng(1, 0), out, 65534)
        spent = time.process_time() - begun
        print(f"mean {mean}: {1e3 * spent:.0f} ms")
        assert spent < 1.0
