"""The study of photon energy and camera length: its profiles, its measures, and one small run of it all."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyzer.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from analyzer.parameters.bound import Bound
from analyzer.parameters.profile import PHOTONS, PIXELS, SQUARES
from sim_replay.background import Surroundings, expected_water
from sim_replay.detector import CONDITIONS, Detector, eiger2_4m
from sim_replay.scatter import Q_INV_ANGSTROM, water_per_sr
from training.evaluation.parameter_pair import SCANNED_EV, study_pair
from training.evaluation.parameter_profiles import Profiles
from training.evaluation.parameter_report import as_evaluation, draw_errors, measures
from training.evaluation.parameter_scenarios import DISTORTION, SCENARIOS, distorted_water
from training.evaluation.parameter_study import (
    ENERGY,
    LENGTH,
    RATIO,
    SCENARIO_CONDITIONS,
    SCENARIO_SUMS,
    Cell,
    Plan,
    Studying,
    Values,
)

DETECTOR = eiger2_4m()
SMALL = Plan(conditions=(1,), sums=(1, 1000), scenarios=("empty",), repeats=2)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(DEFAULT_BUNDLE)


@pytest.fixture(scope="module")
def profiles() -> Profiles:
    return Profiles(DETECTOR)


def a_cell(energies: list[float], sigma: float = 50.0) -> Cell:
    """Of 0.25 m and 7 keV, with estimates of the energy alone; NaN where nothing was determined."""
    energy = np.array(energies)
    known = np.isfinite(energy)
    value = np.stack([np.where(known, 0.25 / 7000.0, np.nan), energy, np.where(known, 0.25, np.nan)], 1)
    spread = np.where(known, sigma, np.nan)
    stated = np.stack([spread * 1e-9, spread, spread * 1e-5], 1)
    bound = Bound(0.01, 25.0, 0.001)
    return Cell(
        5, 3e8, 1, None, np.array([0.25 / 7000.0, 7000.0, 0.25]), 1e5, Values(value, stated), np.ones(len(energies)),
        np.zeros(len(energies)), bound, Bound(0.02, 100.0, 0.002),
    )  # fmt: skip


def test_a_profile_has_all_photons_of_the_live_pixels(profiles: Profiles) -> None:
    whole = profiles.expected(CONDITIONS[1], (0.0, 0.0))
    image = expected_water(CONDITIONS[1], DETECTOR)
    assert whole.counts.sum() == pytest.approx(float(image[~DETECTOR.mask].sum(dtype=np.float64)), rel=1e-5)


def test_a_draw_scatters_about_what_is_expected(profiles: Profiles) -> None:
    expected = profiles.expected(CONDITIONS[1], (3.0, -4.0))
    drawn = profiles.draw(expected, 2.0, 50, np.random.default_rng(1))
    mean = 2.0 * 50 * np.bincount(profiles.sectors.place, expected.counts, profiles.sectors.bins)
    seen = mean > 5.0
    pulls = (drawn.profile[PHOTONS] - mean)[seen] / np.sqrt(mean[seen])
    assert abs(pulls.mean()) < 0.2
    assert pulls.std() == pytest.approx(1.0, abs=0.1)
    assert np.array_equal(drawn.profile[PIXELS], profiles.sectors.pixels * 50)
    assert (drawn.profile[SQUARES] - drawn.profile[PHOTONS]).sum() == pytest.approx(drawn.pairs, rel=0.05)
    assert drawn.coarse[0].sum() == pytest.approx(drawn.profile[PHOTONS].sum(), rel=0.05)


def test_a_pixel_that_counts_once_never_counts_more(profiles: Profiles) -> None:
    bright = replace(CONDITIONS[1], flux_photons=1e13)
    expected = profiles.expected(bright, (0.0, 0.0), once=True)
    drawn = profiles.draw(expected, 1.0, 3, np.random.default_rng(1))
    assert np.all(drawn.profile[PHOTONS] <= drawn.profile[PIXELS])
    assert np.array_equal(drawn.profile[SQUARES], drawn.profile[PHOTONS])
    assert drawn.profile[PHOTONS].sum() > 0.9 * drawn.profile[PIXELS].sum()


def test_nothing_in_the_beam_gives_no_photons(profiles: Profiles) -> None:
    expected = profiles.expected(CONDITIONS[5], (0.0, 0.0), Surroundings(water_thickness_m=0.0))
    assert not profiles.draw(expected, 1.0, 1000, np.random.default_rng(1)).profile[PHOTONS].any()


def test_structure_is_distorted_by_as_much_as_said_and_another_way_each_time() -> None:
    rng = np.random.default_rng(3)
    seen = Q_INV_ANGSTROM <= 4.0
    curves = [distorted_water(rng)[seen] / water_per_sr(100e-6)[seen] - 1.0 for _ in range(3)]
    for curve in curves:
        assert np.sqrt(np.mean(curve**2)) == pytest.approx(DISTORTION, rel=0.01)
        assert np.abs(np.diff(curve)).max() < 0.005
    assert np.abs(curves[0] - curves[1]).max() > 0.01


@pytest.mark.parametrize("name", ["columns", "rows"])
def test_half_a_detector_is_masked(name: str) -> None:
    made = SCENARIOS[name].detector
    assert made is not None
    assert made(DETECTOR).mask.mean() == pytest.approx(0.5 + DETECTOR.mask.mean() / 2.0, abs=0.01)


def test_measures_of_known_errors() -> None:
    found = measures(a_cell([7030.0, 6960.0, 7120.0, 7000.0]), ENERGY)
    assert found.rms == pytest.approx(math.sqrt((30**2 + 40**2 + 120**2) / 4))
    assert found.bias == pytest.approx((30 - 40 + 120) / 4)
    assert found.over_plain == pytest.approx(found.rms / 25.0)
    assert found.over_full == pytest.approx(found.rms / 100.0)
    assert found.coverage is not None
    assert found.coverage.value == pytest.approx(75.0)
    assert found.pulls == pytest.approx((0.55, np.std([0.6, -0.8, 2.4, 0.0])))
    assert found.nearest is not None
    assert found.nearest.value == pytest.approx(100.0)


def test_what_is_not_determined_is_not_claimed_and_not_the_nearest() -> None:
    found = measures(a_cell([7010.0, math.nan, 7600.0, math.nan]), ENERGY)
    assert found.claimed.value == pytest.approx(50.0)
    assert found.nearest is not None
    assert found.nearest.value == pytest.approx(25.0)
    assert found.rms == pytest.approx(math.sqrt((10**2 + 600**2) / 2))


def test_a_wide_posterior_is_no_claim() -> None:
    found = measures(a_cell([7010.0, 6980.0], sigma=1500.0), ENERGY)
    assert found.claimed.value == 0.0
    assert found.claimed_coverage is None
    assert found.coverage is not None


def test_a_cell_of_nothing_has_no_figures() -> None:
    found = measures(a_cell([math.nan, math.nan]), LENGTH)
    assert math.isnan(found.rms)
    assert found.coverage is None
    assert found.claimed.value == 0.0


def test_a_small_study_from_draws_to_tables(bundle: Bundle, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    study = Studying(SMALL, bundle, DETECTOR).run(lambda done, total: told.append((done, total)))
    assert told == [(n + 1, len(told)) for n in range(len(told))]
    assert [(cell.frames, cell.needed) for cell in study.cells][:2] == [(1, False), (1000, False)]
    of_thousand = study.cells[1]
    assert np.abs(of_thousand.fitted.value[:, ENERGY] - 6000.0).max() < 60.0
    assert np.abs(of_thousand.fitted.value[:, LENGTH] - 0.15).max() < 2e-3
    needed = max(study.frames_needed[1, 3e8])
    assert [cell.frames for cell in study.cells if cell.needed] == [math.ceil(needed)]
    assert [(cell.condition, cell.frames) for cell in study.mismatched] == [
        (number, frames) for number in SCENARIO_CONDITIONS for frames in SCENARIO_SUMS
    ]
    assert all(np.isnan(cell.fitted.value[:, RATIO]).all() for cell in study.mismatched)
    made = as_evaluation(study, bundle.label, None, 1.0)
    titles = [table.title for table in made.tables]
    assert titles[:4] == ["Photon energy", "Camera length", "L/E", "Frames that the bound asks for"]
    for table in made.tables:
        assert all(len(row) == len(table.heads) == len(set(table.heads)) for row in table.rows), table.title
    (picture,) = draw_errors(study, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_figures(bundle: Bundle) -> None:
    plan = replace(SMALL, sums=(1000,), scenarios=(), needed=False, repeats=2)

    def values(seed: int) -> np.ndarray:  # type: ignore[type-arg]
        study = Studying(replace(plan, seed=seed), bundle, DETECTOR).run(lambda done, total: None)
        return study.cells[0].fitted.value

    first = values(4)
    assert np.array_equal(first, values(4))
    assert not np.array_equal(first, values(5))


def test_whoever_watches_may_end_it(bundle: Bundle) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Studying(SMALL, bundle, DETECTOR).run(stop)


def test_a_bundle_without_tables_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="no tables of scattering"):
        Studying(SMALL, replace(bundle, scattering=None), DETECTOR)


def test_a_small_panel_does_as_well(bundle: Bundle) -> None:
    panel = Detector("a small panel", (700, 700), pixel_size_m=200e-6)
    plan = replace(SMALL, sums=(1000,), scenarios=(), needed=False, repeats=2)
    study = Studying(plan, bundle, panel).run(lambda done, total: None)
    assert np.abs(study.cells[0].fitted.value[:, ENERGY] - 6000.0).max() < 200.0


def test_the_confused_pair_is_one_ellipse_that_more_frames_part(bundle: Bundle) -> None:
    assert bundle.scattering is not None
    pair = study_pair(DETECTOR, bundle.scattering)
    for scan in (pair.plain, pair.full):
        assert scan.minima == 1
        assert scan.losses.min() == pytest.approx(0.0, abs=0.05)
        assert SCANNED_EV[int(np.argmin(scan.losses))] == 6000.0
    plain, full = pair.apart[0], pair.apart[2]
    assert not plain.full
    assert full.full
    assert plain.loss > full.loss
    assert 1.0 < plain.frames < full.frames < 1e4
