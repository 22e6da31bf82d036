import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sim_replay.crystal import Crystal, proteinase_k, read_hkl, reciprocal_basis
from sim_replay.detector import CONDITIONS, Condition, Detector, plain_panel
from sim_replay.diffraction import (
    Sample,
    diffract,
    disc_square_overlap_m2,
    footprint,
    illuminated_volume_m3,
    random_orientation,
)
from sim_replay.shots import frame_rng

PANEL = plain_panel()
CONDITION = CONDITIONS[2]
R_E_M = 2.8179403262e-15


def shell_of_equal_reflections(d_low: float, d_high: float, intensity: float = 1e5) -> Crystal:
    cell = (60.0, 65.0, 70.0, 90.0, 90.0, 90.0)
    r = np.arange(-20, 21)
    hkl = np.stack(np.meshgrid(r, r, r, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int32)
    length = np.linalg.norm(hkl @ reciprocal_basis(cell).T, axis=1)
    hkl = hkl[(length > 1.0 / d_high) & (length < 1.0 / d_low)]
    return Crystal("shell", cell, hkl, np.full(len(hkl), intensity))


def test_a_sample_names_the_setting_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="offset_m must be two finite lengths"):
        Sample(proteinase_k(d_min_angstrom=10.0), offset_m=(0.0, math.nan))


def powder_photons(sample: Sample, condition: Condition) -> float:
    """Photons into all rings, for one grain averaged over orientations.

    The mean of Laue's formula over q_z/|q| uniform on (-1, 1): with lambda = 2 d s, the integral of
    J lambda^4/(2 sin^2 theta) ds/2 gives N = fluence r_e^2 P F^2 V lambda^3/(4 V_c^2 sin theta) a reflection, the
    powder formula, P averaged around the ring being (1 + cos^2 2 theta)/2.
    """
    crystal = sample.crystal
    wavelength = condition.wavelength_angstrom * 1e-10
    sine = wavelength * 1e10 / 2.0 * np.linalg.norm(crystal.hkl @ reciprocal_basis(crystal.cell).T, axis=1)
    polarisation = (1.0 + (1.0 - 2.0 * sine**2) ** 2) / 2.0
    volume = illuminated_volume_m3(condition.beam_radius_m, sample.size_m)
    fluence = condition.flux_photons / (math.pi * condition.beam_radius_m**2)
    cell_volume = crystal.volume_angstrom3 * 1e-30
    each = polarisation * crystal.intensity * wavelength**3 / (4.0 * sine)
    return float(fluence * R_E_M**2 * volume / cell_volume**2 * each.sum())


@pytest.mark.parametrize(("mosaicity_deg", "bandwidth"), [(0.0, 0.01), (0.1, 0.01), (0.2, 0.001)])
def test_mean_over_orientations_is_the_powder_formula(mosaicity_deg: float, bandwidth: float) -> None:
    sample = Sample(shell_of_equal_reflections(3.8, 4.2), mosaicity_deg=mosaicity_deg, bandwidth=bandwidth)
    rng = frame_rng(11, 0)
    count = 2500
    totals = [diffract(sample, CONDITION, PANEL, random_orientation(rng)).photons.sum() for _ in range(count)]
    error = float(np.std(totals)) / math.sqrt(count)
    expected = powder_photons(sample, CONDITION)
    assert error < 0.03 * expected
    assert np.mean(totals) == pytest.approx(expected, abs=3.0 * error)


def oriented(seed: int = 0) -> NDArray[np.float64]:
    return random_orientation(frame_rng(seed, 0))


def test_photons_scale_with_flux_volume_and_structure_factor() -> None:
    crystal = shell_of_equal_reflections(3.0, 6.0)
    sample = Sample(crystal)
    base = diffract(sample, CONDITION, PANEL, oriented(), min_photons=0.0)
    assert len(base) > 5

    def ratio(other: Sample, condition: Condition) -> NDArray[np.float64]:
        spots = diffract(other, condition, PANEL, oriented(), min_photons=0.0)
        np.testing.assert_array_equal(spots.hkl, base.hkl)
        return spots.photons / base.photons

    np.testing.assert_allclose(ratio(sample, dataclasses.replace(CONDITION, flux_photons=3e7)), 0.1)
    brighter = dataclasses.replace(sample, crystal=dataclasses.replace(crystal, intensity=crystal.intensity * 7.0))
    np.testing.assert_allclose(ratio(brighter, CONDITION), 7.0)
    # a crystal half out of the beam: half the volume
    aside = dataclasses.replace(sample, offset_m=(5e-6, 0.0))
    np.testing.assert_allclose(ratio(aside, CONDITION), 0.5, rtol=1e-3)
    np.testing.assert_allclose(ratio(dataclasses.replace(sample, offset_m=(11e-6, 0.0)), CONDITION), 0.0)


def test_illuminated_volume_is_the_cube_or_the_cylinder_or_between() -> None:
    r = 5e-6
    assert disc_square_overlap_m2(r, 1e-6) == pytest.approx(1e-12, rel=1e-3)
    assert disc_square_overlap_m2(r, 10e-6) == pytest.approx(math.pi * r * r, rel=1e-5)
    assert disc_square_overlap_m2(r, 100e-6, (50e-6, 50e-6)) == pytest.approx(math.pi * r * r / 4.0, rel=1e-3)
    rng = np.random.default_rng(0)
    xy = rng.uniform(-r, r, (400_000, 2))
    inside = (np.hypot(*xy.T) < r) & (np.abs(xy[:, 0] - 1e-6) < 3.5e-6) & (np.abs(xy[:, 1] + 2e-6) < 3.5e-6)
    assert disc_square_overlap_m2(r, 7e-6, (1e-6, -2e-6)) == pytest.approx(inside.mean() * 4 * r * r, rel=0.01)
    assert illuminated_volume_m3(r, 1e-6) == pytest.approx(1e-18, rel=1e-3)


def test_spots_stand_where_braggs_law_puts_them() -> None:
    condition = dataclasses.replace(CONDITION, beam_center_x_px=1000.0, beam_center_y_px=1100.5)
    sample = Sample(shell_of_equal_reflections(3.0, 20.0), mosaicity_deg=0.0)
    u = oriented(3)
    spots = diffract(sample, condition, PANEL, u, min_photons=1.0)
    q = spots.hkl @ (u @ reciprocal_basis(sample.crystal.cell)).T
    length = np.linalg.norm(q, axis=1)
    wavelength = -2.0 * q[:, 2] / length**2
    # well inside the band a sharp crystal picks its own wavelength; at its edge finite size shifts it a little
    clear = np.abs(wavelength / condition.wavelength_angstrom - 1.0) < 0.004
    assert clear.sum() > 10
    q, length, wavelength = q[clear], length[clear], wavelength[clear]
    np.testing.assert_allclose(spots.wavelength_angstrom[clear], wavelength, rtol=1e-4)
    scattered = q + np.array([0.0, 0.0, 1.0]) / wavelength[:, None]
    np.testing.assert_allclose(np.linalg.norm(scattered, axis=1), 1.0 / wavelength)
    distance_px = condition.camera_length_m / PANEL.pixel_size_m
    fs = 1000.0 - 0.5 + distance_px * scattered[:, 0] / scattered[:, 2]
    ss = 1100.5 - 0.5 + distance_px * scattered[:, 1] / scattered[:, 2]
    np.testing.assert_allclose(spots.fs[clear], fs, atol=0.15)
    np.testing.assert_allclose(spots.ss[clear], ss, atol=0.15)
    radius = np.hypot(spots.fs[clear] - 999.5, spots.ss[clear] - 1100.0)
    two_theta = 2.0 * np.arcsin(wavelength * length / 2.0)
    np.testing.assert_allclose(radius, distance_px * np.tan(two_theta), atol=0.15)

    laid = footprint(spots, condition, PANEL)
    on = (spots.fs > 20) & (spots.fs < 2048) & (spots.ss > 20) & (spots.ss < 2142)
    np.testing.assert_allclose(laid.live_fs[on], spots.fs[on], atol=0.05)
    np.testing.assert_allclose(laid.live_ss[on], spots.ss[on], atol=0.05)


def test_a_footprint_keeps_all_photons_but_those_in_gaps() -> None:
    sample = Sample(proteinase_k(d_min_angstrom=2.5), mosaicity_deg=0.1)
    spots = diffract(sample, CONDITION, PANEL, oriented(5), min_photons=1.0)
    laid = footprint(spots, CONDITION, PANEL)
    on = (spots.fs > 60) & (spots.fs < 2008) & (spots.ss > 60) & (spots.ss < 2102)
    assert on.sum() > 20
    np.testing.assert_allclose(laid.live_photons[on], spots.photons[on], rtol=1e-3)
    assert laid.photons.sum() == pytest.approx(laid.live_photons.sum())

    gapped = Detector("gapped", PANEL.shape, gaps_ss=((900, 1300),), gaps_fs=((400, 440),))
    masked = footprint(spots, CONDITION, gapped)
    assert not gapped.mask.reshape(-1)[masked.index].any()
    everywhere = np.bincount(laid.index, laid.photons, gapped.mask.size)
    assert masked.photons.sum() == pytest.approx(everywhere[~gapped.mask.reshape(-1)].sum())


def test_mosaicity_draws_a_spot_out_along_its_radius() -> None:
    # one reflection in the middle of the band: turning blocks by delta moves the spot by 2 delta radially
    cell = (40.0, 40.0, 40.0, 90.0, 90.0, 90.0)
    crystal = Crystal("one", cell, np.array([[10, 0, 0]], dtype=np.int32), np.array([1e6]))
    theta = math.asin(CONDITION.wavelength_angstrom / 8.0)
    u = np.array([[math.cos(theta), 0, math.sin(theta)], [0, 1, 0], [-math.sin(theta), 0, math.cos(theta)]])
    mosaicity_deg = 0.02
    sample = Sample(crystal, mosaicity_deg=mosaicity_deg, bandwidth=0.1)
    spots = diffract(sample, CONDITION, PANEL, u)
    laid = footprint(spots, CONDITION, PANEL)
    fs, ss = laid.index % PANEL.shape[1], laid.index // PANEL.shape[1]
    spread_fs = math.sqrt(np.average((fs - laid.live_fs[0]) ** 2, weights=laid.photons))
    spread_ss = math.sqrt(np.average((ss - laid.live_ss[0]) ** 2, weights=laid.photons))
    sigma = math.radians(mosaicity_deg) / 2.3548
    distance_px = CONDITION.camera_length_m / PANEL.pixel_size_m
    radial = 2.0 * sigma * distance_px / math.cos(2.0 * theta) ** 2
    across = 2.0 * math.sin(theta) * sigma * distance_px / math.cos(2.0 * theta)
    pixel_and_spot = 0.6**2 + 1.0 / 12.0
    assert spread_fs == pytest.approx(math.sqrt(radial**2 + across**2 + pixel_and_spot), rel=0.03)
    assert spread_ss == pytest.approx(math.sqrt(across**2 + pixel_and_spot), rel=0.03)


def test_random_orientations_are_rotations_without_preference() -> None:
    rng = frame_rng(2, 0)
    turns = np.stack([random_orientation(rng) for _ in range(4000)])
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turns), 1.0)
    assert np.abs(turns.mean(axis=0)).max() < 0.05
    np.testing.assert_allclose((turns**2).mean(axis=0), 1.0 / 3.0, atol=0.03)


def crystals_folder() -> Path:
    """Noise-free CrystFEL patterns: $CXLS_CRYSTALS, or ../shared/data/crystfel beside the checkout."""
    given = os.environ.get("CXLS_CRYSTALS")
    folder = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data" / "crystfel"
    if not list(folder.glob("combo*.npz")):
        pytest.skip(f"no CrystFEL patterns (combo*.npz) in {folder}; set CXLS_CRYSTALS")
    return folder


def test_bragg_photons_agree_with_crystfel_but_for_the_volume_its_beam_fills() -> None:
    """Same crystals, same orientations, an independent program.

    CrystFEL spreads the fluence 3e8/(pi 25 um^2) over the whole 10 um cube, we light only the beam's cylinder in it
    (pi/4 of the volume), and it has no polarisation; so ours should be a little under pi/4 of its photons. It samples
    the peaks of a perfect crystal on a coarse grid, right on average only: the mean is taken over all 90 crystals,
    and half to double is allowed.
    """
    folder = crystals_folder()
    hkl_path = folder.parent / "1ic6" / "1ic6_1.8A.hkl.gz"
    if not hkl_path.exists():
        pytest.skip(f"no reflection list {hkl_path}")
    sample = Sample(read_hkl(hkl_path), mosaicity_deg=0.003)
    inverse_b = np.linalg.inv(reciprocal_basis(sample.crystal.cell))
    theirs, ours, near, spots_seen = [], [], 0, 0
    for path in sorted(folder.glob("combo*.npz")):
        with np.load(path) as z:
            start, photons, truth = z["start"], z["photons"], z["truth_peaks"]
            axes = z["reciprocal_axes_per_m"].astype(np.float64) * 1e-10  # rows a*, b*, c*
            condition = Condition(float(z["photon_energy_eV"]), float(z["camera_length_m"]))
            panel = plain_panel((int(z["shape"][0]), int(z["shape"][1])))
        for crystal in range(len(start) - 1):
            spots = diffract(sample, condition, panel, axes[crystal].T @ inverse_b)
            ours.append(footprint(spots, condition, panel).photons.sum())
            theirs.append(float(photons[start[crystal] : start[crystal + 1]].sum()))
            bright = truth[(truth[:, 0] == crystal) & (truth[:, 4] > 50.0)]
            apart = np.hypot(bright[:, 1, None] - spots.ss, bright[:, 2, None] - spots.fs).min(axis=1)
            near, spots_seen = near + int((apart < 3.0).sum()), spots_seen + len(bright)
    assert 0.5 < np.mean(ours) / np.mean(theirs) < 2.0
    assert near > 0.85 * spots_seen  # the rest are fringes of far stronger reflections
