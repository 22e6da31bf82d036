"""Plain answers are what the joint distribution of photon energy and camera length says, and no more than that."""

import math

import numpy as np
import pytest

from analyzer.parameters.answers import (
    CM,
    KEV,
    PAPER_ENERGIES_EV,
    PAPER_LENGTHS_M,
    Answers,
    answers,
    joint,
    plain_answers,
)


def made(energy_eV: float, length_m: float, ratio_sigma: float, energy_sigma: float, correlation: float) -> Answers:
    mean = np.array([math.log(length_m / energy_eV), math.log(energy_eV)])
    shared = correlation * ratio_sigma * energy_sigma
    return answers(mean, np.array([[ratio_sigma**2, shared], [shared, energy_sigma**2]]))


def classes(given: Answers) -> list[tuple[float, ...]]:
    return [given.kev, given.cm, given.paper_energy, given.paper_length]


@pytest.mark.parametrize("energy_eV", [4600.0, 6500.0, 10400.0])
@pytest.mark.parametrize("length_m", [0.096, 0.2, 0.4501])
@pytest.mark.parametrize(("ratio_sigma", "energy_sigma"), [(1e-6, 1e-6), (1e-3, 0.1), (0.3, 1e-4), (3.0, 3.0)])
@pytest.mark.parametrize("correlation", [-0.999, 0.0, 0.9])
def test_probabilities_sum_to_one(
    energy_eV: float, length_m: float, ratio_sigma: float, energy_sigma: float, correlation: float
) -> None:
    given = made(energy_eV, length_m, ratio_sigma, energy_sigma, correlation)
    for each, size in zip(classes(given), (len(KEV), len(CM), 3, 3), strict=True):
        assert len(each) == size
        assert min(each) >= 0.0
        assert sum(each) == pytest.approx(1.0)
    assert 0.0 < given.inside <= 1.0


@pytest.mark.parametrize(
    ("energy_eV", "length_m", "ratio_sigma", "energy_sigma", "correlation"),
    [
        (7000.0, 0.25, 0.05, 0.10, 0.0),
        (6400.0, 0.21, 0.02, 0.15, -0.6),
        (9800.0, 0.44, 0.08, 0.12, 0.5),
        (5200.0, 0.11, 0.20, 0.02, 0.3),
    ],
)
def test_answers_agree_with_counting_samples(
    energy_eV: float, length_m: float, ratio_sigma: float, energy_sigma: float, correlation: float
) -> None:
    given = made(energy_eV, length_m, ratio_sigma, energy_sigma, correlation)
    rng = np.random.default_rng(1)
    shared = correlation * ratio_sigma * energy_sigma
    ratio, log_energy = rng.multivariate_normal(
        [math.log(length_m / energy_eV), math.log(energy_eV)],
        [[ratio_sigma**2, shared], [shared, energy_sigma**2]],
        400_000,
    ).T
    energy, length = np.exp(log_energy), np.exp(ratio + log_energy)
    inside = (energy > 4500) & (energy < 10500) & (length > 0.095) & (length < 0.455)
    assert given.inside == pytest.approx(inside.mean(), abs=3e-3)
    energy, length = energy[inside], length[inside]
    for stated, values, of in (
        (given.kev, energy, 1000.0 * np.array(KEV)),
        (given.cm, length, np.array(CM) / 100),
        (given.paper_energy, energy, np.array(PAPER_ENERGIES_EV)),
        (given.paper_length, length, np.array(PAPER_LENGTHS_M)),
    ):
        nearest = np.abs(values[:, None] - of).argmin(1)
        np.testing.assert_allclose(stated, np.bincount(nearest, minlength=len(of)) / len(values), atol=3e-3)


def test_a_sharp_distribution_is_certain_of_what_it_says() -> None:
    given = made(7000.0, 0.25, 1e-4, 1e-4, 0.0)
    assert (given.nearest_kev, given.nearest_cm) == (7, 25)
    assert (given.paper_energy_eV, given.paper_length_m) == (7000.0, 0.25)
    assert min(max(each) for each in classes(given)) > 0.999
    assert given.inside == pytest.approx(1.0)


def test_a_distribution_on_a_border_is_of_two_minds() -> None:
    given = made(6500.0, 0.2, 1e-4, 1e-4, 0.0)
    assert given.kev[1] == pytest.approx(0.5, abs=0.01)
    assert given.paper_energy[0] == pytest.approx(0.5, abs=0.01)
    assert given.paper_length[0] == pytest.approx(0.5, abs=0.01)


def test_a_broad_distribution_is_certain_of_nothing() -> None:
    given = made(7000.0, 0.25, 3.0, 3.0, 0.0)
    assert max(given.kev) < 0.3
    assert max(given.cm) < 0.08
    assert max(given.paper_energy) < 0.6
    assert max(given.paper_length) < 0.6


def test_a_known_ratio_carries_a_known_energy_over_to_the_length() -> None:
    sharp = made(7000.0, 0.25, 0.002, 0.005, 0.0)
    blurred = made(7000.0, 0.25, 0.002, 0.2, 0.0)
    assert max(sharp.cm) > 0.9
    assert max(blurred.cm) < 0.3


@pytest.mark.parametrize(("energy_eV", "length_m"), [(20e3, 0.25), (7000.0, 5.0), (1e-3, 1e3)])
def test_what_lies_outside_all_ranges_is_answered_by_nothing(energy_eV: float, length_m: float) -> None:
    given = made(energy_eV, length_m, 1e-3, 1e-3, 0.0)
    assert given.inside == 0.0
    for each in classes(given):
        assert max(each) == min(each)


@pytest.mark.parametrize("hostile", [math.nan, math.inf, -math.inf])
def test_what_is_no_distribution_is_answered_by_nothing(hostile: float) -> None:
    mean, covariance = np.array([-10.2, 8.9]), np.diag([1e-4, 1e-4])
    for broken in (np.array([hostile, 8.9]), np.array([-10.2, hostile])):
        assert answers(broken, covariance).inside == 0.0
    for place in np.ndindex(2, 2):
        broken = covariance.copy()
        broken[place] = hostile
        each = answers(mean, broken)
        assert all(sum(probabilities) == pytest.approx(1.0) for probabilities in classes(each))


def test_plain_answers_are_the_most_probable_ones_and_say_how_sure_they_are() -> None:
    mean = np.array([math.log(0.249 / 7450.0), math.log(7450.0)])
    covariance = np.array([[0.002**2, 0.0], [0.0, 0.01**2]])
    said, full = plain_answers(mean, covariance), answers(mean, covariance)
    assert said is not None
    assert [said[name] for name in ("nearest_kev", "nearest_cm", "paper_kev", "paper_cm")] == [7, 25, 7, 25]
    assert said["nearest_kev_probability"] == pytest.approx(full.kev[KEV.index(7)], abs=1e-4)
    assert 0.5 < said["nearest_kev_probability"] < 0.9
    assert said["nearest_cm_probability"] == pytest.approx(full.cm[CM.index(25)], abs=1e-4)
    assert said["inside_probability"] == 1.0
    assert plain_answers(mean, np.diag([1e-3, math.inf])) is None
    assert plain_answers(np.array([math.log(2.0 / 7000.0), math.log(7000.0)]), covariance) is None


def test_a_covariance_without_width_is_a_certain_answer() -> None:
    given = answers(np.array([math.log(0.25 / 7000.0), math.log(7000.0)]), np.zeros((2, 2)))
    assert (given.nearest_kev, given.nearest_cm) == (7, 25)
    assert given.inside == pytest.approx(1.0)


def test_the_six_numbers_of_a_network_are_their_joint_distribution() -> None:
    covariance = np.array([[4e-4, -3e-4], [-3e-4, 9e-4]])
    length = covariance.sum()
    estimate = [8.9, -1.4, -10.3, *(0.5 * math.log(v) for v in (covariance[1, 1], length, covariance[0, 0]))]
    mean, said = joint(estimate)
    np.testing.assert_array_equal(mean, [-10.3, 8.9])
    np.testing.assert_allclose(said, covariance, rtol=1e-9)
    _, doubled = joint(estimate, (2.0, 2.0, 2.0))
    np.testing.assert_allclose(doubled, 4 * covariance, rtol=1e-9)


def test_deviations_that_belong_to_no_distribution_are_brought_to_the_nearest() -> None:
    for log_sigma in ([0.0, 5.0, 0.0], [0.0, -9.0, 3.0]):
        _, covariance = joint([8.9, -1.4, -10.3, *log_sigma])
        assert np.all(np.linalg.eigvalsh(covariance) > 0.0)
