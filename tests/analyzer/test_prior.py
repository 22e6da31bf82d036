"""Probabilities at another prior, and the hit fraction that a run's own scores tell."""

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.prior import (
    FEWEST_FRAMES,
    LEAST_FRACTION,
    at_prior,
    at_running_rate,
    expected_calibration_error,
    hit_fraction,
)

PRIOR = 0.5
FRACTIONS = (0.5, 0.1, 0.01)


def run(
    hit_share: float, frames: int, seed: int, strength: float = 3.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Scores calibrated at even odds by construction, and the truth.

    The logarithm of the likelihood ratio is normal about -s^2/2 without and +s^2/2 with a crystal.
    """
    rng = np.random.default_rng(seed)
    hit = rng.random(frames) < hit_share
    logit = rng.normal(np.where(hit, 0.5, -0.5) * strength**2, strength)
    return np.round(1 / (1 + np.exp(-logit)), 6), hit


def test_the_same_prior_changes_nothing() -> None:
    p = np.array([0.001, 0.2, 0.5, 0.999])
    assert at_prior(p, 0.3, 0.3) == pytest.approx(p)


def test_there_and_back_is_the_same_probability() -> None:
    p = np.array([0.001, 0.2, 0.5, 0.999])
    assert at_prior(at_prior(p, 0.5, 0.01), 0.01, 0.5) == pytest.approx(p)


def test_undecided_scores_take_the_prior() -> None:
    assert at_prior([0.3], 0.3, 0.02)[0] == pytest.approx(0.02)


def test_rounded_certainties_stay_probabilities() -> None:
    low, high = at_prior([0.0, 1.0], 0.5, 0.01)
    assert 0 < low < high < 1


@pytest.mark.parametrize("share", FRACTIONS)
def test_the_hit_fraction_is_found_within_its_interval(share: float) -> None:
    covered, estimates = 0, []
    for seed in range(100):
        p, _ = run(share, 1000, seed)
        found = hit_fraction(p, PRIOR)
        assert found is not None
        estimate, low, high = found
        assert low <= estimate <= high
        covered += low <= share <= high
        estimates.append(estimate)
    assert np.mean(estimates) == pytest.approx(share, rel=0.05, abs=0.001)
    assert covered >= 88


def test_expectation_maximisation_comes_to_the_same_fraction() -> None:
    p, _ = run(0.1, 500, 3)
    fraction = 0.5
    for _ in range(500):
        fraction = float(at_prior(p, PRIOR, fraction).mean())
    found = hit_fraction(p, PRIOR)
    assert found is not None
    assert found[0] == pytest.approx(fraction, abs=1e-5)


@pytest.mark.parametrize("p", [0.0, 0.02, 0.98, 1.0])
def test_a_fraction_never_reaches_none_or_all(p: float) -> None:
    found = hit_fraction(np.full(1000, p), PRIOR)
    assert found is not None
    assert all(LEAST_FRACTION / 2 <= value <= 1 - LEAST_FRACTION / 2 for value in found)


def test_few_frames_tell_no_fraction() -> None:
    assert hit_fraction(np.full(FEWEST_FRAMES - 1, 0.9), PRIOR) is None
    assert hit_fraction([], PRIOR) is None


@pytest.mark.parametrize("strength", [1.0, 3.0])
@pytest.mark.parametrize("share", FRACTIONS)
def test_at_the_running_rate_probabilities_are_calibrated(share: float, strength: float) -> None:
    p, hit = run(share, 20_000, 7, strength)
    assert expected_calibration_error(at_running_rate(p, PRIOR), hit) <= 0.02


def test_without_correction_rare_hits_are_not_calibrated() -> None:
    p, hit = run(0.01, 20_000, 7, 1.0)
    assert expected_calibration_error(p, hit) > 0.1


def test_the_running_rate_follows_a_change() -> None:
    parts = [run(0.3, 4000, 1), run(0.02, 4000, 2)]
    p, hit = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
    corrected = at_running_rate(p, PRIOR, 500)
    assert expected_calibration_error(corrected[5000:], hit[5000:]) <= 0.02


def test_the_calibration_error_of_known_cases() -> None:
    assert expected_calibration_error([0.25] * 4, [True, False, False, False]) == 0
    assert expected_calibration_error([1.0, 1.0, 0.0, 0.0], [False, False, True, True]) == 1
    assert expected_calibration_error([0.75] * 2 + [0.25] * 2, [True, True, False, False]) == pytest.approx(0.25)
    assert expected_calibration_error([], []) == 0
