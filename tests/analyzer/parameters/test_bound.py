"""The bound: against the spread of likelihood fits, and how it depends on light and on what is unknown."""

import math

import numpy as np
import pytest

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.parameters import fit, model
from analyzer.parameters.bound import PLAIN, Information, prior_precision
from analyzer.parameters.profile import SECTORS
from analyzer.parameters.scattering import Scattering

PIXEL_M = 75e-6
RINGS = 45
TRUTH = (7000.0, 0.2)


@pytest.fixture(scope="module")
def tables() -> Scattering:
    found = load_bundle(DEFAULT_BUNDLE).scattering
    assert found is not None
    return found


def rings() -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Shape and pixels of whole rings of 32 pixels, as if no pixel was missing."""
    radius = np.repeat((np.arange(RINGS) + 0.5) * 32.0, SECTORS)
    angle = np.tile((np.arange(SECTORS) + 0.5) * 2.0 * np.pi / SECTORS, RINGS)
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([radius, c, s, c * c, c * s, s * s]), 2.0 * np.pi * radius * 32.0 / SECTORS


def information(tables: Scattering, photons: float, truth: tuple[float, float] = TRUTH) -> Information:
    return Information(*rings(), PIXEL_M, tables, *truth, photons)


def test_likelihood_fits_scatter_as_the_bound_says(tables: Scattering) -> None:
    shape, pixels = rings()
    photons = 3e6
    base = np.ascontiguousarray(tables.tables[: model.OTHER_TABLES + fit.ERRORS - model.OTHERS])
    polarisation, step = np.array(fit.POLARISATION), tables.q_step_inv_angstrom
    mean, slopes = np.zeros(len(pixels)), np.zeros((fit.ERRORS, len(pixels)))
    truth = np.zeros(fit.ERRORS)
    truth[:2] = math.log(TRUTH[1] / TRUTH[0]), math.log(TRUTH[0])
    model.expect(truth, shape, PIXEL_M, polarisation, base, step, mean, slopes)
    truth[model.SCALE] = math.log(photons / float(pixels @ mean))
    expected = pixels * mean * math.exp(truth[model.SCALE])
    free, precision = np.array(PLAIN), prior_precision(PLAIN)
    information_here, score = np.zeros_like(precision), np.zeros(len(PLAIN))
    rng = np.random.default_rng(5)
    found = []
    for _ in range(150):
        x, prior = truth.copy(), truth[free]
        # What is known beforehand is as far off as it says: else fits scatter less than that allows.
        known = np.diag(precision) > 0.0
        prior[known] = rng.normal(size=int(known.sum())) / np.sqrt(np.diag(precision)[known])
        counted = rng.poisson(expected).astype(np.float64)
        for _ in range(6):
            model.expect(x, shape, PIXEL_M, polarisation, base, step, mean, slopes)
            model.curvature(counted, pixels, mean, slopes, free, information_here, score)
            x[free] += np.linalg.solve(information_here + precision, score - precision @ (x[free] - prior))
        found.append((x[0], math.exp(x[1]), math.exp(x[0] + x[1])))
    spread = np.std(found, axis=0)
    bound = information(tables, photons).bound()
    assert spread == pytest.approx([bound.ratio, bound.photon_energy_eV, bound.camera_length_m], rel=0.2)


def test_more_light_brings_the_bound_down(tables: Scattering) -> None:
    of_frame = information(tables, 1e5)
    bounds = [of_frame.bound(frames) for frames in (1, 10, 1000, 1e6)]
    for each in ("ratio", "photon_energy_eV", "camera_length_m"):
        values = [getattr(bound, each) for bound in bounds]
        assert values == sorted(values, reverse=True)
        assert all(value > 0.0 for value in values)
    # With so much light nothing that is known beforehand counts any more.
    assert bounds[3].photon_energy_eV == pytest.approx(bounds[2].photon_energy_eV / math.sqrt(1000.0), rel=0.1)


def test_frames_are_as_good_as_photons(tables: Scattering) -> None:
    many, bright = information(tables, 1e5).bound(50), information(tables, 5e6).bound()
    assert many.ratio == pytest.approx(bright.ratio, rel=1e-6)
    assert many.photon_energy_eV == pytest.approx(bright.photon_energy_eV, rel=1e-6)


def test_more_unknowns_raise_the_bound(tables: Scattering) -> None:
    of_frame = information(tables, 1e7)
    plain, small, large = of_frame.bound(), of_frame.bound(table_error=1e-4), of_frame.bound(table_error=1e-2)
    assert plain.photon_energy_eV < small.photon_energy_eV < large.photon_energy_eV
    assert plain.camera_length_m < small.camera_length_m < large.camera_length_m
    assert plain.ratio < small.ratio < large.ratio


@pytest.mark.parametrize(("energy_eV", "length_m"), [(50.0, math.inf), (math.inf, 1e-3), (50.0, 1e-3)])
def test_the_frames_asked_for_reach_the_bound_and_fewer_do_not(
    tables: Scattering, energy_eV: float, length_m: float
) -> None:
    of_frame = information(tables, 1e5)
    frames = of_frame.frames_for(energy_eV, length_m)
    enough, fewer = of_frame.bound(frames), of_frame.bound(frames * 0.9)
    assert enough.photon_energy_eV <= energy_eV
    assert enough.camera_length_m <= length_m
    assert fewer.photon_energy_eV > energy_eV or fewer.camera_length_m > length_m


def test_no_number_of_frames_brings_it_to_nothing(tables: Scattering) -> None:
    assert information(tables, 1e5).frames_for(1e-12) == math.inf


def test_a_bound_of_nothing_asked_needs_no_frames(tables: Scattering) -> None:
    assert information(tables, 1e5).frames_for() < 1.0


def test_a_far_detector_says_less(tables: Scattering) -> None:
    near, far = (information(tables, 1e6, (7000.0, length)).bound() for length in (0.15, 0.35))
    assert far.photon_energy_eV > 2.0 * near.photon_energy_eV
