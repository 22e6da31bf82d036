"""What of a posterior is published, and why the rest is not."""

import math
from typing import Any

import numpy as np
import pytest

from analyzer.parameters.claims import (
    DISTANCE_SIGMA_LIMIT_M,
    ENERGY_SIGMA_LIMIT_EV,
    LEAST_WATER,
    RATIO_SIGMA_LIMIT,
    WORST_DEVIATION,
    WORST_MISFIT,
    claimed,
    judged,
    record_fields,
    sigmas,
)
from analyzer.parameters.fit import Posterior, undetermined


def posterior(
    sigma_ratio: float = 0.01, sigma_energy: float = 0.05, correlation: float = 0.0, **facts: Any
) -> Posterior:
    both = correlation * sigma_ratio * sigma_energy
    covariance = np.array([[sigma_ratio**2, both], [both, sigma_energy**2]])
    given = {"misfit": 1.0, "water_share": 0.9} | facts
    mean = given.pop("mean", np.log([0.2 / 7000.0, 7000.0]))
    return Posterior(mean, given.pop("covariance", covariance), np.zeros(2), np.ones(2), **given)


def test_what_is_known_well_is_published() -> None:
    fields = record_fields(judged(posterior()))
    assert fields["photon_energy_eV"] == pytest.approx(7000.0)
    assert fields["photon_energy_sigma_eV"] == pytest.approx(350.0)
    assert fields["camera_length_m"] == pytest.approx(0.2)
    assert fields["camera_length_sigma_m"] == pytest.approx(0.2 * math.hypot(0.01, 0.05), abs=1e-6)
    assert fields["camera_length_over_energy_m_per_eV"] == pytest.approx(0.2 / 7000.0)
    assert fields["camera_length_over_energy_sigma_m_per_eV"] == pytest.approx(0.01 * 0.2 / 7000.0)
    assert fields["estimate_reason"] is None


def test_ratio_and_energy_that_go_together_make_the_distance_less_sure() -> None:
    assert sigmas(posterior(0.1, 0.1, -0.99).covariance)[2] == pytest.approx(0.1 * math.sqrt(0.02), rel=1e-6)
    assert sigmas(posterior(0.1, 0.1, 0.99).covariance)[2] == pytest.approx(0.1 * math.sqrt(3.98), rel=1e-6)
    # Rounding may leave a little less than nothing.
    assert sigmas(np.array([[0.01, -0.01 - 1e-12], [-0.01 - 1e-12, 0.01]]))[2] == 0.0


@pytest.mark.parametrize(("energy", "distance"), [(999.9, 0.0199), (1000.1, 0.0199), (999.9, 0.0201), (1000.1, 0.0201)])
def test_energy_and_distance_are_each_claimed_up_to_their_limit(energy: float, distance: float) -> None:
    fields = claimed(7000.0, 0.2, 0.2 / 7000.0, energy, distance, 1e-7)
    sure_energy, sure_distance = energy <= ENERGY_SIGMA_LIMIT_EV, distance <= DISTANCE_SIGMA_LIMIT_M
    assert ("photon_energy_eV" in fields) == ("photon_energy_sigma_eV" in fields) == sure_energy
    assert ("camera_length_m" in fields) == ("camera_length_sigma_m" in fields) == sure_distance
    reason = fields["estimate_reason"] or ""
    assert ("photon energy known to 1000 eV only" in reason) == (not sure_energy)
    assert ("camera length known to 20 mm only" in reason) == (not sure_distance)
    assert "camera_length_over_energy_m_per_eV" in fields


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (
            posterior(misfit=1.01 * WORST_MISFIT, deviation=1.01 * WORST_DEVIATION),
            "chi squared 2.0 a degree of freedom",
        ),
        (posterior(misfit=1e9, deviation=0.2), "not that of water"),
        (posterior(misfit=1e11, deviation=2e4), "the fit of water to the profile fails"),
        (posterior(mean=np.log([0.2 / 7000.0, 13e3])), "featureless"),
        (posterior(mean=np.log([0.66 / 7000.0, 7000.0])), "featureless"),
        (posterior(water_share=0.99 * LEAST_WATER), "no water: 6% of"),
        (posterior(water_share=-0.5), "no water: 0% of"),
        (posterior(sigma_ratio=1.01 * RATIO_SIGMA_LIMIT), "more than 25 % only"),
        (posterior(misfit=math.nan), "the fit of water to the profile fails"),
        (posterior(water_share=math.inf), "the fit of water to the profile fails"),
        (posterior(mean=np.array([np.nan, 9.0])), "the fit of water to the profile fails"),
        (posterior(covariance=np.full((2, 2), np.inf)), "the fit of water to the profile fails"),
        (posterior(covariance=np.diag([-1e-9, 1.0])), "the fit of water to the profile fails"),
        (posterior(covariance=np.diag([1e-4, 0.0])), "the fit of water to the profile fails"),
    ],
)
def test_a_posterior_that_may_not_be_believed_says_only_why(spoilt: Posterior, said: str) -> None:
    fields = record_fields(judged(spoilt))
    assert set(fields) == {"estimate_reason"}
    assert said in fields["estimate_reason"]


@pytest.mark.parametrize(("misfit", "deviation"), [(1e3, 0.9 * WORST_DEVIATION), (0.9 * WORST_MISFIT, 1.0)])
def test_a_misfit_that_is_small_or_shows_only_in_very_many_photons_is_borne(misfit: float, deviation: float) -> None:
    assert judged(posterior(misfit=misfit, deviation=deviation)).reason is None


def test_a_reason_given_before_stays() -> None:
    assert record_fields(judged(undetermined("only 3 photons"))) == {"estimate_reason": "only 3 photons"}
