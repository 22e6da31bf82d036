"""Probabilities against what was found."""

import numpy as np
import pytest

from analyzer.prior import at_prior
from training.evaluation.calibration import at_fraction, chance_error, reliability


def calibrated(count: int, prior: float, seed: int = 0):  # type: ignore[no-untyped-def]
    """Probabilities that are right at a share `prior` of hits."""
    rng = np.random.default_rng(seed)
    positive = rng.random(count) < prior
    score = np.where(positive, 1.0, -1.0) + 1.5 * rng.normal(size=count)
    log_odds = 2.0 * score / 1.5**2 + np.log(prior / (1.0 - prior))
    return 1.0 / (1.0 + np.exp(-log_odds)), positive


def test_right_probabilities_have_no_error_but_chance() -> None:
    probability, positive = calibrated(20_000, 0.5)
    assert reliability(probability, positive).error < 0.015
    assert chance_error(probability) == pytest.approx(reliability(probability, positive).error, abs=0.006)


def test_overconfidence_shows() -> None:
    probability, positive = calibrated(20_000, 0.5)
    sharp = probability**3 / (probability**3 + (1.0 - probability) ** 3)
    assert reliability(sharp, positive).error > 0.08


def test_the_correction_of_the_prior_is_exact() -> None:
    probability, _ = calibrated(1000, 0.5)
    assert np.allclose(at_prior(at_prior(probability, 0.5, 0.02), 0.02, 0.5), probability)
    assert at_prior(np.array([0.5]), 0.5, 0.1)[0] == pytest.approx(0.1)


@pytest.mark.parametrize("fraction", [0.5, 0.1, 0.01])
def test_a_calibrated_bundle_stays_so_at_other_shares_of_hits(fraction: float) -> None:
    probability, positive = calibrated(40_000, 0.5)
    assert at_fraction(probability, positive, 0.5, fraction).error < 0.015
    assert at_fraction(probability, positive, 0.5, 0.01).error < 0.2 * reliability(probability, positive).said.mean()


def test_a_wrong_prior_shows() -> None:
    probability, positive = calibrated(40_000, 0.2)
    assert at_fraction(probability, positive, 0.5, 0.5).error > 0.1


def test_bins_hold_equal_weight_and_equal_probabilities_stay_together() -> None:
    bins = reliability(np.linspace(0.0, 1.0, 150), np.arange(150) % 2 == 0, bins=15)
    assert np.allclose(bins.weight, 10)
    same = reliability(np.full(100, 0.25), np.arange(100) < 25)
    assert (len(same.weight), same.error) == (1, 0.0)
