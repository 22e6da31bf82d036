"""Photon energy and camera length from spots: the truth in all nine conditions, and nothing where there is none."""

import math
import re

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.parameters.bragg import BraggEstimate, BraggPrior, estimate_bragg
from analyzer.parameters.bragg_spots import BraggSpots
from sim_replay.cells import READY_CELLS, ready_crystal
from sim_replay.detector import CONDITIONS, Condition
from tests.analyzer.parameters.bragg_hits import (
    CELL,
    CENTER,
    PIXEL_SIZE_M,
    SPACE_GROUP,
    Hit,
    condition_at,
    hits,
    kept,
    log_ratio,
)
from tests.support import shared_data

FEW_SPOTS = condition_at(0.35, 7000.0)


def near(condition: Condition, off: float = 0.02, sigma: float = 0.03) -> BraggPrior:
    """A prior as water gives it, off the truth."""
    return BraggPrior(log_ratio(condition) + off, sigma)


def errors(estimate: BraggEstimate, condition: Condition) -> npt.NDArray[np.float64]:
    """Of ln(L/E) and ln E."""
    assert estimate.log_energy is not None
    return np.array(
        [estimate.log_ratio - log_ratio(condition), estimate.log_energy - math.log(condition.photon_energy_eV)]
    )


def random_spots(frames: int, spots: int, seed: int = 1) -> list[Hit]:
    rng = np.random.default_rng(seed)
    return [Hit(*rng.uniform(-1000, 1000, (2, spots)), np.full(spots, 10.0)) for _ in range(frames)]


@pytest.mark.parametrize("number", sorted(CONDITIONS))
def test_energy_and_length_are_found_in_every_condition(number: int) -> None:
    condition = CONDITIONS[number]
    made = hits(condition, 100 if condition.camera_length_m < 0.2 else 50, seed=40 + number)
    estimate = estimate_bragg(kept(made), CELL, SPACE_GROUP, near(condition))
    assert (estimate.method, estimate.reason) == ("indexed", None)
    off, sigma = errors(estimate, condition), np.sqrt(np.diag(estimate.covariance))
    assert np.all(np.abs(off) < 2 * sigma)
    assert np.all(sigma < 2e-3)
    length_sigma = math.sqrt(float(estimate.covariance.sum()))
    assert abs(off.sum()) < 3 * length_sigma < 3e-3
    assert np.hypot(*(np.array(estimate.center_shift_px) - CENTER)) < 0.1
    assert estimate.explained > 0.85


def test_errors_are_as_large_as_they_are_said_to_be() -> None:
    condition = condition_at(0.35, 8000.0)
    chi2 = []
    for seed in range(5):
        spots = kept(hits(condition, 25, seed=300 + seed))
        prior = BraggPrior(log_ratio(condition) + 0.002, 0.004, (CENTER[0] + 1.0, CENTER[1] - 1.0))
        estimate = estimate_bragg(spots, CELL, SPACE_GROUP, prior, cell_uncertainty=1e-6)
        off = errors(estimate, condition)
        chi2.append(float(off @ np.linalg.solve(estimate.covariance, off)))
    assert 1.5 < sum(chi2) < 27.0  # 10 degrees of freedom


def test_the_cells_uncertainty_is_that_of_the_ratio_and_hardly_of_the_length() -> None:
    condition = condition_at(0.25, 7000.0)
    spots = kept(hits(condition, 60, seed=5))
    sure, unsure = (
        estimate_bragg(spots, CELL, SPACE_GROUP, near(condition), cell_uncertainty=each) for each in (1e-5, 3e-3)
    )
    assert sure.covariance[0, 0] < (4e-4) ** 2
    assert math.sqrt(unsure.covariance[0, 0]) == pytest.approx(3e-3 * math.sqrt(5) / 3, rel=0.1)
    assert unsure.covariance.sum() < (1e-3) ** 2


def test_a_cell_larger_in_all_edges_gives_a_ratio_larger_by_as_much_and_the_same_length() -> None:
    condition = condition_at(0.25, 7000.0)
    spots = kept(hits(condition, 60, seed=6))
    larger = (CELL[0] * 1.01, CELL[1] * 1.01, CELL[2] * 1.01, 90.0, 90.0, 90.0)
    first, second = (estimate_bragg(spots, each, SPACE_GROUP, near(condition)) for each in (CELL, larger))
    assert first.log_energy is not None
    assert second.log_energy is not None
    assert second.log_ratio - first.log_ratio == pytest.approx(math.log(1.01), abs=1e-4)
    assert second.log_ratio + second.log_energy == pytest.approx(first.log_ratio + first.log_energy, abs=1e-4)


def test_a_cell_of_another_shape_is_said_to_be_one() -> None:
    condition = condition_at(0.25, 7000.0)
    wrong = (CELL[0] * 1.01, CELL[1] * 1.01, CELL[2], 90.0, 90.0, 90.0)
    estimate = estimate_bragg(kept(hits(condition, 60, seed=7)), wrong, None, near(condition))
    assert math.isnan(estimate.log_ratio)
    assert estimate.log_energy is None
    assert estimate.reason is not None
    assert re.search(r"another shape \(a -0\.\d+ %, c \+0\.\d+ %\)", estimate.reason)


@pytest.mark.parametrize("name", ["lysozyme", "thaumatin"])
def test_another_proteins_cell_is_not_fitted(name: str) -> None:
    condition = condition_at(0.25, 8000.0)
    entry = READY_CELLS[name]
    estimate = estimate_bragg(kept(hits(condition, 12, seed=8)), entry.cell, entry.space_group, near(condition))
    assert estimate.reason is not None
    assert not math.isfinite(estimate.covariance[0, 0])


def test_another_crystal_is_found_with_its_own_cell() -> None:
    condition = condition_at(0.25, 8000.0)
    entry = READY_CELLS["lysozyme"]
    made = hits(condition, 60, seed=9, crystal=ready_crystal("lysozyme"))
    estimate = estimate_bragg(kept(made), entry.cell, entry.space_group, near(condition))
    assert estimate.reason is None
    assert np.all(np.abs(errors(estimate, condition)) < 2 * np.sqrt(np.diag(estimate.covariance)))


def test_several_crystals_in_a_frame_and_many_false_peaks_do_no_harm() -> None:
    condition = condition_at(0.25, 7000.0)
    estimate = estimate_bragg(
        kept(hits(condition, 50, seed=10, crystals=2, false=0.3)), CELL, SPACE_GROUP, near(condition)
    )
    assert estimate.reason is None
    assert np.all(np.abs(errors(estimate, condition)) < 2 * np.sqrt(np.diag(estimate.covariance)))
    assert 0.6 < estimate.explained < 0.9


@pytest.mark.parametrize("prior", [None, near(FEW_SPOTS, off=0.4, sigma=0.02), near(FEW_SPOTS, off=30.0)])
def test_without_a_prior_or_with_a_wrong_one_the_truth_is_found_all_the_same(prior: BraggPrior | None) -> None:
    estimate = estimate_bragg(kept(hits(FEW_SPOTS, 80, seed=11)), CELL, SPACE_GROUP, prior)
    assert estimate.reason is None
    assert np.all(np.abs(errors(estimate, FEW_SPOTS)) < 2 * np.sqrt(np.diag(estimate.covariance)))


def test_frames_too_poor_to_index_give_the_ratio_by_their_lines() -> None:
    poor = [
        Hit(*(each[n : n + 3] for each in (hit.x_px, hit.y_px, hit.photons)))
        for hit in hits(FEW_SPOTS, 150, seed=12)
        for n in range(0, len(hit.x_px), 3)
    ]
    estimate = estimate_bragg(kept(poor), CELL, SPACE_GROUP, near(FEW_SPOTS))
    assert (estimate.method, estimate.log_energy, estimate.reason) == ("lines", None, None)
    off, sigma = estimate.log_ratio - log_ratio(FEW_SPOTS), math.sqrt(estimate.covariance[0, 0])
    assert abs(off) < 3 * sigma < 6e-3
    assert math.isinf(estimate.covariance[1, 1])
    assert np.hypot(*(np.array(estimate.center_shift_px) - CENTER)) < 1.0


def test_no_spots_say_so() -> None:
    spots = BraggSpots(PIXEL_SIZE_M)
    assert estimate_bragg(spots, CELL, SPACE_GROUP).reason == "no spots yet"
    spots.add([], [], [])
    estimate = estimate_bragg(spots, CELL, SPACE_GROUP)
    assert estimate.reason == "no spots yet"
    assert (estimate.spots, estimate.frames) == (0, 0)


@pytest.mark.parametrize("made", [random_spots(20, 30), random_spots(1, 300), random_spots(100, 3)])
def test_random_spots_say_nothing(made: list[Hit]) -> None:
    estimate = estimate_bragg(kept(made), CELL, SPACE_GROUP, near(FEW_SPOTS))
    assert estimate.reason is not None
    assert math.isnan(estimate.log_ratio)


def test_one_frame_is_too_little_unless_ratio_and_centre_are_known() -> None:
    condition = condition_at(0.15, 7000.0)
    spots = kept(hits(condition, 1, seed=13))
    assert "do not tell" in (estimate_bragg(spots, CELL, SPACE_GROUP, near(condition)).reason or "")
    placed = BraggPrior(log_ratio(condition) - 0.002, 0.003, (CENTER[0] - 1.0, CENTER[1] + 1.0))
    estimate = estimate_bragg(spots, CELL, SPACE_GROUP, placed)
    assert estimate.reason is None
    assert np.all(np.abs(errors(estimate, condition)) < 3 * np.sqrt(np.diag(estimate.covariance)))


@pytest.mark.parametrize("number", [2, 5, 9])
def test_crystfels_patterns_agree(number: int) -> None:
    """Ten patterns of pattern_sim, places of its own spots; its pixels are sampled an eighth of a pixel off."""
    path = next(shared_data("crystfel").glob(f"combo{number:02d}_*.npz"))
    with np.load(path) as pattern:
        peaks, (beam_fs, beam_ss) = pattern["truth_peaks"], pattern["beam_center_px_fs_ss"]
        condition = Condition(float(pattern["photon_energy_eV"]), float(pattern["camera_length_m"]))
    spots = BraggSpots(PIXEL_SIZE_M)
    for frame in range(10):
        of = peaks[(peaks[:, 0] == frame) & (peaks[:, 4] > 5.0)]
        spots.add(of[:, 2] - (beam_fs - 0.5), of[:, 1] - (beam_ss - 0.5), of[:, 4])
    estimate = estimate_bragg(spots, CELL, SPACE_GROUP, BraggPrior(log_ratio(condition), 0.003, (1.0, -1.0)))
    assert estimate.reason is None
    assert np.all(np.abs(errors(estimate, condition)) < 2 * np.sqrt(np.diag(estimate.covariance)))
    np.testing.assert_allclose(estimate.center_shift_px, 0.125, atol=0.1)


def test_what_makes_no_sense_is_refused() -> None:
    spots = kept(hits(FEW_SPOTS, 1, seed=14))
    with pytest.raises(ValueError, match="edges"):
        estimate_bragg(spots, (0.0, 1.0, 1.0, 90.0, 90.0, 90.0))
    with pytest.raises(ValueError, match="space group"):
        estimate_bragg(spots, CELL, "no group")
    with pytest.raises(ValueError, match="cell_uncertainty"):
        estimate_bragg(spots, CELL, cell_uncertainty=0.0)
    with pytest.raises(ValueError, match="prior"):
        BraggPrior(math.nan, 0.1)
    with pytest.raises(ValueError, match="prior"):
        BraggPrior(-10.0, 0.0)
