"""Photon energy and camera length by the fit: right, as sure as it says, and silent where it cannot know."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.parameters.claims import judged, record_fields, sigmas
from analyzer.parameters.fit import FEWEST_PHOTONS, TABLE_ERRORS, Fitter, Posterior
from analyzer.parameters.profile import PHOTONS, PIXELS, SQUARES
from sim_replay.detector import CONDITIONS, Condition
from sim_replay.scatter import Q_INV_ANGSTROM, water_per_sr
from tests.analyzer.parameters.made import (
    Floats,
    expected,
    frame_fitter,
    image,
    noisy,
    pairs_of,
    panel,
    rings,
    sums,
    tables,
    truth,
    whole,
)

SURE = 4.0
"""Standard deviations that no estimate of a test may be off by."""


def fitted(profile: Floats, pairs: float) -> Posterior:
    return judged(frame_fitter().fit(profile, pairs), frame=True)


def off(found: Posterior, condition: Condition) -> Floats:
    """Errors of L/E, E and L in standard deviations."""
    assert found.reason is None
    error = found.mean - truth(condition)
    return np.array([*error, error.sum()]) / sigmas(found.covariance)


# --- truth ------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_expected_counts_give_the_truth(condition: int) -> None:
    bright = replace(CONDITIONS[condition], flux_photons=3e9 if condition <= 6 else 3e10)
    counts = expected(bright)
    found = fitted(whole(counts), pairs_of(counts))
    assert np.abs(off(found, bright)).max() < 1.0
    np.testing.assert_allclose(found.mean, truth(bright), atol=0.05)
    assert found.misfit < 0.2
    assert found.water_share > 0.6


def test_a_variance_that_is_no_number_widens_what_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = expected(CONDITIONS[5])
    usual = frame_fitter().fit(whole(counts), pairs_of(counts))
    monkeypatch.setattr(Fitter, "_variance", lambda *_: -1e-9)
    found = frame_fitter().fit(whole(counts), pairs_of(counts))
    assert np.isfinite(found.covariance).all()
    assert (np.diag(found.covariance) > np.diag(usual.covariance)).all()


@pytest.mark.parametrize("condition", [1, 5])
def test_errors_over_sixty_frames_are_as_large_as_stated(condition: int) -> None:
    rng = np.random.default_rng(condition)
    counts = [expected(CONDITIONS[condition], tuple(rng.uniform(-8, 8, 2))) for _ in range(3)]
    found = [fitted(noisy(mean, rng), pairs_of(mean)) for mean in counts for _ in range(20)]
    said = [each for each in found if each.reason is None]
    assert len(said) >= 40
    pulls = np.array([off(each, CONDITIONS[condition]) for each in said])
    assert np.abs(pulls).max() < SURE + 0.5
    # Of 60 standard normal numbers the r.m.s. is 1.0 +- 0.09; what a frame cannot know makes it smaller, never larger.
    assert (np.sqrt((pulls**2).mean(0)) < 1.3).all()
    assert (np.sqrt((pulls**2).mean(0)) > 0.4).all()


def test_the_beam_centre_is_found() -> None:
    condition = replace(CONDITIONS[1], flux_photons=3e9)
    where = panel()[2]
    counts = sums(image(condition, (6.0, -4.0)), merged=1, folded=False)
    pairs = float((counts**2 / np.maximum(where.pixels, 1.0)).sum())
    fitter = Fitter(where.shape, where.pixels, where.pixel_size_m, tables(), TABLE_ERRORS)
    found = fitter.fit(np.stack([counts, counts + pairs / where.bins, where.pixels]), pairs)
    assert np.abs((found.center_px - [6.0, -4.0]) / found.center_sigma_px).max() < 2.0
    assert found.center_sigma_px.max() < 1.5


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_more_light_makes_no_other_estimate_but_a_surer_one(factor: float) -> None:
    bright = replace(CONDITIONS[1], flux_photons=CONDITIONS[1].flux_photons * factor)
    counts, usual = expected(bright), expected(CONDITIONS[1])
    found, before = fitted(whole(counts), pairs_of(counts)), fitted(whole(usual), pairs_of(usual))
    assert np.abs(off(found, bright)).max() < 1.0
    assert (found.covariance[0, 0] < before.covariance[0, 0]) == (factor > 1)


# --- what else may be in the beam --------------------------------------------------------


def shifted_water() -> npt.NDArray[np.float64]:
    """Light that makes the water's ring a little wider and higher: no table has it."""
    bump = np.exp(-0.5 * ((Q_INV_ANGSTROM - 2.0) / 0.3) ** 2)
    return 0.02 * bump * water_per_sr(100e-6)


@pytest.mark.parametrize(
    "there",
    [
        {"film_thickness_m": 25e-6},
        {"capillary_wall_m": 10e-6},
        {"air_path_m": 0.03},
        {"flat_photons_per_pixel": 2e-4},
        {"water_temperature_K": 308.15},
        {"water_thickness_m": 40e-6},
        {"extra": shifted_water()},
    ],
    ids=["film", "glass", "air", "stray", "warm", "thin", "another water"],
)
@pytest.mark.parametrize("condition", [1, 5, 9])
def test_what_else_is_in_the_beam_is_covered_by_the_stated_uncertainty(condition: int, there: dict[str, Any]) -> None:
    given = dict(there)
    bright = replace(CONDITIONS[condition], flux_photons=1e9)
    counts = expected(bright, (0.0, 0.0), given.pop("extra", None), **given)
    rng = np.random.default_rng(7)
    said = [found for _ in range(8) if (found := fitted(noisy(counts, rng), pairs_of(counts))).reason is None]
    pulls = np.array([off(found, bright) for found in said])
    assert len(said) >= (6 if condition == 1 else 3)
    # At 0.35 m the tails of L/E are longer than normal ones.
    assert np.abs(pulls).max() < SURE + 1.5
    if len(said) >= 6:
        assert np.abs(np.median(pulls, 0)).max() < 2.0


def test_several_things_at_once_are_covered_near_by() -> None:
    bright = replace(CONDITIONS[1], flux_photons=1e9)
    counts = expected(bright, film_thickness_m=15e-6, air_path_m=0.02, flat_photons_per_pixel=1e-4)
    rng = np.random.default_rng(7)
    pulls = np.array([off(fitted(noisy(counts, rng), pairs_of(counts)), bright) for _ in range(8)])
    assert np.abs(pulls).max() < SURE + 1.5


@pytest.mark.parametrize("flux", [3e8, 3e9])
def test_pixels_that_count_once_a_pulse_are_told_from_those_that_count_all(flux: float) -> None:
    condition = replace(CONDITIONS[1], flux_photons=flux)
    counts = expected(condition)
    rng = np.random.default_rng(5)
    for once in (False, True):
        found = fitted(noisy(counts, rng, once), pairs_of(counts))
        assert np.abs(off(found, condition)).max() < SURE


def test_a_film_that_is_there_is_believed_in_and_one_that_is_not_is_not() -> None:
    condition = replace(CONDITIONS[1], flux_photons=3e10)
    with_film, without = expected(condition, film_thickness_m=50e-6), expected(condition)
    assert fitted(whole(with_film), pairs_of(with_film)).film > 0.8
    assert fitted(whole(without), pairs_of(without)).film < 0.4


# --- what says nothing ------------------------------------------------------------------


def claims(profile: Floats, pairs: float = 100.0) -> dict[str, Any]:
    """The record's fields; nothing warns, nothing fails."""
    with np.errstate(all="raise", under="ignore"):
        return record_fields(fitted(profile, pairs))


def test_too_few_photons_say_nothing_but_that() -> None:
    counts = expected(CONDITIONS[5])
    few = noisy(counts * (0.5 * FEWEST_PHOTONS / counts.sum()), np.random.default_rng(0))
    fields = claims(few, 0.0)
    assert set(fields) == {"estimate_reason"}
    assert "photons of diffuse scattering" in fields["estimate_reason"]
    assert set(claims(whole(np.zeros(len(counts))), 0.0)) == {"estimate_reason"}


@pytest.mark.parametrize("seed", range(4))
def test_a_frame_of_hardly_more_claims_no_energy(seed: int) -> None:
    counts = expected(CONDITIONS[5])
    faint = counts * (1.5 * FEWEST_PHOTONS / counts.sum())
    fields = claims(noisy(faint, np.random.default_rng(seed)), pairs_of(faint))
    assert "photon_energy_eV" not in fields


@pytest.mark.parametrize("seed", range(4))
def test_stray_light_alone_is_no_water(seed: int) -> None:
    flat = rings().pixels * 0.01
    fields = claims(noisy(flat, np.random.default_rng(seed)), pairs_of(flat))
    assert "photon_energy_eV" not in fields
    assert "camera_length_m" not in fields


@pytest.mark.parametrize("kind", ["air_path_m", "film_thickness_m", "capillary_wall_m"])
def test_scattering_without_water_claims_no_energy(kind: str) -> None:
    longest = {"air_path_m": 0.2, "film_thickness_m": 200e-6, "capillary_wall_m": 50e-6}[kind]
    counts = expected(CONDITIONS[5], water_thickness_m=0.0, **{kind: longest})
    fields = claims(noisy(counts, np.random.default_rng(2)), pairs_of(counts))
    error = abs(fields.get("photon_energy_eV", 7000.0) - 7000.0)
    assert error <= SURE * fields.get("photon_energy_sigma_eV", 1.0)


@pytest.mark.parametrize("width", [15.0, 120.0, 400.0])
def test_a_profile_that_is_none_of_water_claims_nothing(width: float) -> None:
    """A ring of a kind that nothing of the model makes."""
    ring = 1e5 * np.exp(-0.5 * ((rings().shape[0] - 500.0) / width) ** 2) * rings().pixels / rings().pixels.sum()
    fields = claims(noisy(ring + 1.0, np.random.default_rng(1)), pairs_of(ring))
    assert "photon_energy_eV" not in fields
    assert "camera_length_m" not in fields


def test_two_waters_at_two_distances_do_not_pass_for_one() -> None:
    """What a fit with two maxima must not claim: either."""
    near, far = replace(CONDITIONS[1], flux_photons=1.5e9), replace(CONDITIONS[9], flux_photons=1.5e9)
    counts = expected(near) + expected(far)
    fields = claims(noisy(counts, np.random.default_rng(1)), pairs_of(counts))
    lengths = [abs(fields["camera_length_m"] - each) for each in (0.15, 0.35)] if "camera_length_m" in fields else [0.0]
    assert min(lengths) <= SURE * fields.get("camera_length_sigma_m", 1.0)


@pytest.mark.parametrize(
    ("row", "value"),
    [(row, value) for row in (PHOTONS, SQUARES, PIXELS) for value in (np.nan, np.inf, 0.0)],
)
@pytest.mark.parametrize("where", [slice(3, 4), slice(0, 100)])
def test_a_profile_of_no_numbers_ends_in_a_reason_or_an_estimate_that_is_one(
    row: int, value: float, where: slice
) -> None:
    counts = expected(CONDITIONS[5])
    spoilt = whole(counts)
    spoilt[row, where] = value
    found = fitted(spoilt, pairs_of(counts))
    assert found.reason is not None or np.isfinite(found.covariance).all()


@pytest.mark.parametrize("pairs", [np.nan, np.inf, -1e6, 1e300])
def test_pairs_that_cannot_be_end_in_a_reason_or_an_estimate(pairs: float) -> None:
    found = fitted(whole(expected(CONDITIONS[5])), pairs)
    assert found.reason is not None or np.isfinite(found.covariance).all()


# --- parts of a panel -------------------------------------------------------------------


def half() -> npt.NDArray[np.bool_]:
    return rings().shape[1] > 0


def quadrant() -> npt.NDArray[np.bool_]:
    return np.arange(len(rings().pixels)) % 4 == 3


def outer() -> npt.NDArray[np.bool_]:
    return rings().shape[0] > 400.0


def some_rings() -> npt.NDArray[np.bool_]:
    return (np.arange(len(rings().pixels)) // 12) % 3 != 1


@pytest.mark.parametrize("condition", [1, 5, 9])
@pytest.mark.parametrize("part", [half, quadrant, outer, some_rings])
def test_a_part_of_the_panel_says_less_and_nothing_wrong(condition: int, part: Any) -> None:
    kept = part()
    counts = np.where(kept, expected(CONDITIONS[condition]), 0.0)
    rng = np.random.default_rng(3)
    for _ in range(4):
        profile = noisy(counts, rng)
        profile[PIXELS] = np.where(kept, rings().pixels, 0.0)
        found = fitted(profile, pairs_of(counts))
        if found.reason is None:
            assert np.abs(off(found, CONDITIONS[condition])).max() < SURE


# --- the same again ---------------------------------------------------------------------


def test_a_profile_is_fitted_the_same_whatever_was_fitted_before() -> None:
    rng = np.random.default_rng(0)
    counts = [expected(CONDITIONS[n]) for n in (1, 5, 9)]
    profiles = [(noisy(mean, rng), pairs_of(mean)) for mean in counts]
    first = [frame_fitter().fit(*each) for each in profiles]
    for one, again in zip(first, [frame_fitter().fit(*each) for each in reversed(profiles)][::-1], strict=True):
        np.testing.assert_array_equal(one.mean, again.mean)
        np.testing.assert_array_equal(one.covariance, again.covariance)
        assert (one.misfit, one.film, one.glass) == (again.misfit, again.film, again.glass)
