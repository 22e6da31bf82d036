"""What of a header the posterior of a run contradicts, and what it says then."""

import math

import numpy as np
import pytest

from analyzer.parameters.fit import Posterior, undetermined
from analyzer.parameters.header import Quantity, mismatches
from streamer.messages import SeriesMetadata

ENERGY_EV, LENGTH_M = 7000.0, 0.15


def posterior(ratio_sigma: float, energy_sigma: float, shift: tuple[float, float] = (0.0, 0.0)) -> Posterior:
    """Of the true values; ratio and energy known independently of each other."""
    return Posterior(
        np.array([math.log(LENGTH_M / ENERGY_EV), math.log(ENERGY_EV)]),
        np.diag([ratio_sigma**2, energy_sigma**2]),
        np.array(shift),
        np.array([0.2, 0.2]),
    )


def header(energy_eV: float | None = ENERGY_EV, length_m: float | None = LENGTH_M) -> SeriesMetadata:
    return SeriesMetadata(
        photon_energy_eV=energy_eV, camera_length_m=length_m, beam_center_x_px=1034.0, beam_center_y_px=1081.0
    )


SURE, RATIO_ALONE = posterior(1e-4, 2e-3), posterior(1e-3, 0.2)


def test_a_header_that_is_right_is_not_contradicted() -> None:
    assert mismatches(SURE, header()) == []
    assert mismatches(RATIO_ALONE, header()) == []


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_wrong_photon_energy_is_named(factor: float) -> None:
    (found,) = mismatches(SURE, header(energy_eV=ENERGY_EV * factor))
    assert found.quantity == Quantity.PHOTON_ENERGY
    assert f"{ENERGY_EV * factor / 1e3:.3f} keV" in found.text
    assert "7.000 ±" in found.text


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_wrong_camera_length_is_named(factor: float) -> None:
    (found,) = mismatches(SURE, header(length_m=LENGTH_M * factor))
    assert found.quantity == Quantity.CAMERA_LENGTH
    assert f"{150 * factor:.1f} mm" in found.text
    assert "150.0 ±" in found.text


def test_both_wrong_are_both_named_even_when_their_ratio_is_right() -> None:
    found = mismatches(SURE, header(ENERGY_EV * 1.05, LENGTH_M * 1.05))
    assert [each.quantity for each in found] == [Quantity.PHOTON_ENERGY, Quantity.CAMERA_LENGTH]


@pytest.mark.parametrize(("factor", "word"), [(0.97, "small"), (1.03, "large")])
def test_where_only_the_ratio_is_known_it_is_distance_or_energy(factor: float, word: str) -> None:
    (found,) = mismatches(RATIO_ALONE, header(length_m=LENGTH_M * factor))
    assert found.quantity == Quantity.RATIO
    assert found.text.startswith("distance or energy")
    assert f"% too {word}" in found.text


def test_an_error_within_the_uncertainty_is_none() -> None:
    assert mismatches(posterior(0.02, 0.05), header(energy_eV=ENERGY_EV * 1.03)) == []


def test_a_small_error_of_a_long_run_is_within_what_no_fit_knows() -> None:
    assert mismatches(posterior(1e-6, 1e-6), header(energy_eV=ENERGY_EV * 1.005)) == []


@pytest.mark.parametrize("unset", [None, 0.0])
def test_a_header_with_one_of_the_two_is_held_against_that_one(unset: float | None) -> None:
    """The old stream writes a distance of 0 for one that is not set."""
    assert mismatches(SURE, header(length_m=unset)) == [] == mismatches(SURE, header(energy_eV=unset))
    (found,) = mismatches(SURE, header(energy_eV=ENERGY_EV * 1.03, length_m=unset))
    assert found.quantity == Quantity.PHOTON_ENERGY
    assert "7.210 keV" in found.text
    (found,) = mismatches(SURE, header(energy_eV=unset, length_m=LENGTH_M * 1.03))
    assert found.quantity == Quantity.CAMERA_LENGTH
    assert "154.5 mm" in found.text
    assert mismatches(RATIO_ALONE, header(energy_eV=ENERGY_EV * 1.03, length_m=unset)) == []


def test_a_beam_that_is_off_is_named_with_its_place() -> None:
    (found,) = mismatches(posterior(1e-3, 0.1, (4.0, -3.0)), header())
    assert found.quantity == Quantity.BEAM_CENTER
    assert "(1034.0, 1081.0)" in found.text
    assert "(1038.0, 1078.0)" in found.text


def test_a_geometry_file_may_have_another_center_than_the_header() -> None:
    right = (1037.5, 1077.5)
    (found,) = mismatches(posterior(1e-3, 0.1), header(), right)
    assert "(1034.0, 1081.0)" in found.text
    assert "(1038.0, 1078.0)" in found.text
    assert mismatches(posterior(1e-3, 0.1, (-4.0, 3.0)), header(), right) == []


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.2, 1.2)])
def test_a_beam_within_two_pixels_is_not(shift: tuple[float, float]) -> None:
    assert mismatches(posterior(1e-3, 0.1, shift), header()) == []


def test_nothing_is_said_where_either_says_nothing() -> None:
    assert mismatches(undetermined("empty"), header(energy_eV=1.0)) == []
    assert mismatches(SURE, header(energy_eV=None, length_m=0.0)) == []
    assert mismatches(posterior(1e-3, 0.1, (9.0, 9.0)), SeriesMetadata()) == []
