"""Water or Bragg spots: the better one where they agree, water where they do not."""

import math

import numpy as np
import pytest

from analyzer.parameters.bragg import BraggEstimate
from analyzer.parameters.choice import choose
from analyzer.parameters.fit import Posterior, undetermined

RATIO, ENERGY = math.log(0.15 / 7000.0), math.log(7000.0)
WATER = Posterior(
    np.array([RATIO, ENERGY]), np.array([[1e-5, -1e-5], [-1e-5, 2e-5]]), np.zeros(2), np.ones(2), water_share=0.9
)


def bragg(
    ratio: float = 0.0, energy: float | None = 0.0, sigma: float = 1e-3, reason: str | None = None
) -> BraggEstimate:
    """Off the truth by so much, in both logarithms."""
    covariance = np.diag([sigma**2, math.inf if energy is None else sigma**2])
    log_energy = None if energy is None else ENERGY + energy
    method = "lines" if energy is None else "indexed"
    return BraggEstimate(
        RATIO + ratio, log_energy, covariance, (2.0, -1.0), (0.1, 0.2), 700, 30, method, reason, 0.9  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_better_one_of_two_that_agree_is_published() -> None:
    found = choose(WATER, bragg(0.002, -0.001))
    assert found.used
    assert found.disagreement is None
    np.testing.assert_allclose(found.posterior.mean, (RATIO + 0.002, ENERGY - 0.001))
    np.testing.assert_allclose(np.diag(found.posterior.covariance), 1e-6)
    np.testing.assert_array_equal(found.posterior.center_px, (2.0, -1.0))
    assert found.facts == {
        "frames": 30, "spots": 700, "method": "indexed", "reason": None, "explained": 0.9, "used": True,
        "disagreement": None,
    }  # fmt: skip


def test_spots_that_know_less_than_water_are_not_used() -> None:
    found = choose(WATER, bragg(sigma=1e-2))
    assert (found.used, found.disagreement) == (False, None)
    assert found.posterior is WATER


@pytest.mark.parametrize("estimate", [bragg(0.05), bragg(0.0, 0.05), bragg(0.05, None)])
def test_where_they_contradict_each_other_water_is_kept_and_it_is_said(estimate: BraggEstimate) -> None:
    found = choose(WATER, estimate)
    assert not found.used
    assert found.posterior is WATER
    assert found.disagreement is not None
    assert "the water's is kept" in found.disagreement
    assert "\n" not in found.disagreement


def test_spots_that_say_nothing_change_nothing() -> None:
    found = choose(WATER, bragg(math.nan, None, reason="no spots yet"))
    assert found.posterior is WATER
    assert found.facts["reason"] == "no spots yet"


def test_without_water_the_spots_are_believed() -> None:
    found = choose(undetermined("no water"), bragg())
    assert found.used
    assert found.posterior.reason is None
    np.testing.assert_allclose(found.posterior.mean, (RATIO, ENERGY))


def test_lines_alone_sharpen_what_water_says_of_both() -> None:
    found = choose(WATER, bragg(0.003, None))
    assert found.used
    # As the same in information form: precisions add, and so do precisions times means.
    measured = np.array([1e6 * (RATIO + 0.003), 0.0])
    precision = np.linalg.inv(WATER.covariance) + np.diag([1e6, 0.0])
    mean = np.linalg.solve(precision, np.linalg.solve(WATER.covariance, WATER.mean) + measured)
    np.testing.assert_allclose(found.posterior.covariance, np.linalg.inv(precision), rtol=1e-6)
    np.testing.assert_allclose(found.posterior.mean, mean)


def test_lines_alone_without_water_say_the_ratio_and_no_energy() -> None:
    posterior = choose(undetermined("no water"), bragg(0.0, None)).posterior
    assert posterior.mean[0] == pytest.approx(RATIO)
    assert math.sqrt(posterior.covariance[1, 1]) > 0.2
