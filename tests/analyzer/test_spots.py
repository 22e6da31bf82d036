"""What the pixels around one say for a spot."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import poisson

from analyzer.kernels import EXPONENTS, _spot_evidence
from analyzer.spots import CLASS, DISC_SHARE, DISCS, DISTANCES, LIT_CHANCES, PHOTONS, REACH, SHARES, SIGMAS_PX
from streamer.listing import bitmap

TOP = 65535
SIDE = 2 * REACH + 1


def evidence(window: npt.NDArray[np.uint16], mean: float, valid: npt.NDArray[np.uint8] | None = None) -> float:
    """Of a spot in the middle of a window (7, 7)."""
    inside = np.ones(window.shape, np.uint8) if valid is None else valid
    counts, exponents = np.zeros((3, len(DISTANCES))), np.zeros(EXPONENTS)
    terms = np.zeros((2, len(DISTANCES), len(SIGMAS_PX) * len(PHOTONS)))
    known, means = np.zeros((2, len(DISTANCES)), bool), np.full(2, -1.0)
    lit = np.append(bitmap(((window > 0) & (inside > 0)).reshape(-1)), np.zeros(1, np.uint64))
    roomy = bitmap((np.arange(window.size) == window.size // 2) & bool(inside.all()))
    flat = window.reshape(-1), lit, roomy, SIDE, window.size // 2, TOP, inside.reshape(-1)
    return float(_spot_evidence(*flat, mean, 1, counts, exponents, terms, known, means))


def written_out(window: npt.NDArray[np.uint16], mean: float, valid: npt.NDArray[np.bool_]) -> float:
    """The same from the probabilities of all pixels, one by one."""
    without = poisson.logpmf(window, mean)
    ratios = []
    for shape in SHARES:
        for photons in PHOTONS:
            with_spot = poisson.logpmf(window, mean + photons * shape[CLASS])
            weight = np.log((1 - DISC_SHARE) / (len(SIGMAS_PX) * len(PHOTONS)))
            ratios.append(weight + (with_spot - without)[valid].sum())
    lit, chance = window > 0, 1 - np.exp(-mean)
    for disc in DISCS:
        within = disc[CLASS] & valid
        for q in LIT_CHANCES:
            each = np.where(lit, np.log(q / chance), np.log((1 - q) / (1 - chance)))
            ratios.append(np.log(DISC_SHARE / (len(DISCS) * len(LIT_CHANCES))) + each[within].sum())
    return float(logsumexp(ratios))


def test_shares_are_of_one_spot_and_fall_outwards() -> None:
    pixels = np.bincount(CLASS.reshape(-1), minlength=len(DISTANCES))
    assert pixels.sum() == SIDE**2
    assert (SHARES @ pixels) == pytest.approx(np.ones(len(SIGMAS_PX)), abs=1e-3)
    distance = np.array([np.hypot(*each) for each in DISTANCES])
    assert (np.diff(SHARES[:, np.argsort(distance, kind="stable")], axis=1) <= 1e-12).all()
    np.testing.assert_array_equal(CLASS, CLASS.T)
    np.testing.assert_array_equal(CLASS, CLASS[::-1])
    assert [int(pixels[disc].sum()) for disc in DISCS] == [9, 21, 45]


@pytest.mark.parametrize("mean", [1e-4, 0.02, 0.5, 6.0])
def test_evidence_is_the_likelihood_ratio_written_out(mean: float) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        y, x = rng.integers(0, SIDE, 2)
        window = rng.poisson(mean, (SIDE, SIDE)).astype(np.uint16)
        window[REACH, REACH] += np.uint16(rng.integers(0, 12))
        valid = np.ones((SIDE, SIDE), np.bool_)
        if max(abs(y - REACH), abs(x - REACH)) > 1:
            window[y, x], valid[y, x] = TOP, False
        shown = np.where(valid, window, 0).astype(np.uint16)
        assert evidence(window, mean) == pytest.approx(written_out(shown, mean, valid), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("mean", [0.003, 0.1, 2.0])
def test_chance_exceeds_a_ratio_no_more_often_than_markov_says(mean: float) -> None:
    rng = np.random.default_rng(3)
    windows = rng.poisson(mean, (20_000, SIDE, SIDE)).astype(np.uint16)
    found = np.array([evidence(each, mean) for each in windows])
    for ratio in (3.0, 10.0, 100.0):
        share = float(np.mean(found > np.log(ratio)))
        assert share <= 1 / ratio + 3 * np.sqrt(1 / ratio / len(found))


def test_a_spot_beside_a_pixel_without_data_is_ruled_out() -> None:
    window = np.zeros((SIDE, SIDE), np.uint16)
    window[REACH, REACH] = 40
    assert evidence(window, 0.05) > 20
    for y, x in ((REACH, REACH + 1), (REACH - 1, REACH - 1)):
        valid = np.ones((SIDE, SIDE), np.uint8)
        valid[y, x] = 0
        assert evidence(window, 0.05, valid) == -np.inf
        marked = window.copy()
        marked[y, x] = TOP
        assert evidence(marked, 0.05) == -np.inf


def test_counts_without_end_are_no_number_without_end() -> None:
    window = np.full((SIDE, SIDE), 60_000, np.uint16)
    assert np.isfinite(evidence(window, 1e-6))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-5, 0.003, 0.1, 4.0]))
def test_a_window_says_the_same_however_it_is_turned_or_mirrored(seed: int, mean: float) -> None:
    rng = np.random.default_rng(seed)
    window = rng.poisson(mean, (SIDE, SIDE)).astype(np.uint16)
    valid = (rng.random((SIDE, SIDE)) < 0.95).astype(np.uint8)
    window[REACH, REACH] += 3
    valid[REACH, REACH] = 1
    turned = [np.rot90(each, k) for k in range(4) for each in (window, window.T)]
    masks = [np.rot90(each, k) for k in range(4) for each in (valid, valid.T)]
    both = zip(map(np.ascontiguousarray, turned), map(np.ascontiguousarray, masks), strict=True)
    said = {evidence(counts, mean, good) for counts, good in both}
    assert len(said) == 1
