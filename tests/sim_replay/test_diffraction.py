import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sim_replay.beam import Beam, gaussian, lit_path_m, tabulated, top_hat
from sim_replay.crystal import Crystal, proteinase_k, reciprocal_basis
from sim_replay.detector import CONDITIONS, Condition, Detector, plain_panel
from sim_replay.diffraction import Footprint, Sample, diffract, footprint, lay_gaussians, random_orientation
from sim_replay.shots import frame_rng

PANEL = plain_panel()
CONDITION = CONDITIONS[2]
R_E_M = 2.8179403262e-15


def under(condition: Condition, **beam: object) -> Condition:
    return dataclasses.replace(condition, beam=dataclasses.replace(condition.beam, **beam))  # type: ignore[arg-type]


def centroid(laid: Footprint, columns: int, spot: int = 0) -> tuple[float, float]:
    mine = laid.spot == spot
    weights = laid.photons[mine]
    ss, fs = divmod(laid.index[mine], columns)
    return float(np.average(fs, weights=weights)), float(np.average(ss, weights=weights))


def spreads(laid: Footprint, columns: int) -> tuple[float, float]:
    """Standard deviations along fs and ss."""
    ss, fs = divmod(laid.index, columns)
    mean_fs, mean_ss = centroid(laid, columns)
    return (
        math.sqrt(np.average((fs - mean_fs) ** 2, weights=laid.photons)),
        math.sqrt(np.average((ss - mean_ss) ** 2, weights=laid.photons)),
    )


def shell_of_equal_reflections(d_low: float, d_high: float, intensity: float = 1e5) -> Crystal:
    cell = (60.0, 65.0, 70.0, 90.0, 90.0, 90.0)
    r = np.arange(-20, 21)
    hkl = np.stack(np.meshgrid(r, r, r, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int32)
    length = np.linalg.norm(hkl @ reciprocal_basis(cell).T, axis=1)
    hkl = hkl[(length > 1.0 / d_high) & (length < 1.0 / d_low)]
    return Crystal("shell", cell, hkl, np.full(len(hkl), intensity))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"offset_m": (0.0, math.nan)}, "offset_m must be two finite lengths"),
        ({"size_m": 0.0}, "size_m is 0.0; give a crystal edge"),
        ({"size_m": math.nan}, "size_m is nan"),
        ({"mosaicity_deg": -0.1}, "mosaicity_deg is -0.1"),
        ({"mosaicity_deg": 100.0}, "mosaicity_deg is 100.0; give degrees, from 0 to 3"),
        ({"strain": 0.5}, "strain is 0.5; give a relative width"),
    ],
)
def test_a_sample_names_the_setting_that_makes_no_sense(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sample(proteinase_k(d_min_angstrom=10.0), **settings)  # type: ignore[arg-type]


def powder_photons(sample: Sample, condition: Condition, detector: Detector | None = None) -> float:
    """Photons into all rings, or their parts on a panel, for one grain averaged over orientations.

    The mean of Laue's formula over q_z/|q| uniform on (-1, 1): with lambda = 2 d s, the integral of
    S lambda^4/(2 sin^2 theta) ds/2 gives N = J r_e^2 P F^2 V lambda^3/(4 V_c^2 sin theta) a reflection, the powder
    formula, J the fluence.
    """
    crystal, beam = sample.crystal, condition.beam
    cell_volume = crystal.volume_angstrom3 * 1e-30
    q = np.linalg.norm(crystal.hkl @ reciprocal_basis(crystal.cell).T, axis=1)
    lengths, ring = np.unique(np.round(q, 9), return_inverse=True)
    intensity = np.bincount(ring, crystal.intensity)
    azimuth = (np.arange(720) + 0.5) * math.pi / 360.0
    xx, xy, yy = beam.polarisation_terms
    x, y = np.cos(azimuth), np.sin(azimuth)
    dipole = xx * x * x + 2.0 * xy * x * y + yy * y * y
    total = 0.0
    edges = np.asarray(beam.spectrum.edges)
    for relative, share in zip((edges[1:] + edges[:-1]) / 2.0, beam.spectrum.shares, strict=True):
        wavelength = condition.wavelength_angstrom * relative
        sine = wavelength * lengths / 2.0
        met = sine < 0.7
        two_theta = 2.0 * np.arcsin(sine[met])
        polarisation = 1.0 - np.sin(two_theta)[:, None] ** 2 * dipole
        if detector is not None:
            r = condition.camera_length_m / detector.pixel_size_m * np.tan(two_theta)[:, None]
            fs, ss = detector.shape[1] / 2.0 + r * x, detector.shape[0] / 2.0 + r * y
            polarisation *= (fs > 0) & (fs < detector.shape[1]) & (ss > 0) & (ss < detector.shape[0])
        each = polarisation.mean(axis=1) * intensity[met] * (wavelength * 1e-10) ** 3 / (4.0 * sine[met])
        total += share * float(each.sum())
    return condition.flux_photons * lit_path_m(beam, sample.size_m) * R_E_M**2 / cell_volume**2 * total


BEAMS = [
    pytest.param(Beam(), 0.0, 0.0, id="perfect"),
    pytest.param(Beam(), 0.1, 0.0, id="mosaic"),
    pytest.param(Beam(spectrum=top_hat(0.001)), 0.2, 0.0, id="narrow band"),
    pytest.param(Beam(spectrum=gaussian(0.02), polarisation_fraction=0.0), 0.05, 0.0, id="gaussian, unpolarised"),
    pytest.param(Beam(divergence_rad=1e-3, polarisation_deg=30.0), 0.05, 0.0, id="divergent"),
    pytest.param(Beam(spectrum=tabulated([6900, 6950, 7000, 7100], [1, 4, 2, 0.5])), 0.0, 0.002, id="table, strained"),
]


@pytest.mark.parametrize(("beam", "mosaicity_deg", "strain"), BEAMS)
def test_mean_over_orientations_is_the_powder_formula(beam: Beam, mosaicity_deg: float, strain: float) -> None:
    condition = dataclasses.replace(CONDITION, beam=beam)
    sample = Sample(shell_of_equal_reflections(3.5, 4.6), mosaicity_deg=mosaicity_deg, strain=strain)
    rng = frame_rng(11, 0)
    count = 2500
    totals = [
        diffract(sample, condition, PANEL, random_orientation(rng), min_photons=0.0).photons.sum() for _ in range(count)
    ]
    error = float(np.std(totals)) / math.sqrt(count)
    expected = powder_photons(sample, condition)
    assert error < 0.01 * expected
    assert np.mean(totals) == pytest.approx(expected, abs=max(3.0 * error, 0.003 * expected))


def test_a_protein_on_the_panel_has_the_powder_formulas_photons() -> None:
    """The absolute scale, on the paper's panel: spots laid out pixel by pixel, rings by their part on the panel."""
    sample = Sample(proteinase_k(d_min_angstrom=2.2))
    rng = frame_rng(3, 0)
    totals = [
        footprint(diffract(sample, CONDITION, PANEL, random_orientation(rng)), CONDITION, PANEL).photons.sum()
        for _ in range(4000)
    ]
    error = float(np.std(totals)) / math.sqrt(len(totals))
    expected = powder_photons(sample, CONDITION, PANEL)
    assert error < 0.015 * expected
    assert np.mean(totals) == pytest.approx(expected, abs=0.02 * expected)


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
    missed = dataclasses.replace(sample, offset_m=(11e-6, 0.0))
    assert len(diffract(missed, CONDITION, PANEL, oriented(), min_photons=0.0)) == 0


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
    for spot in np.flatnonzero(on):
        fs_laid, ss_laid = centroid(laid, PANEL.shape[1], int(spot))
        assert fs_laid == pytest.approx(spots.fs[spot], abs=0.05)
        assert ss_laid == pytest.approx(spots.ss[spot], abs=0.05)


def test_a_footprint_keeps_all_photons_but_those_in_gaps() -> None:
    sample = Sample(proteinase_k(d_min_angstrom=2.5), mosaicity_deg=0.1)
    spots = diffract(sample, CONDITION, PANEL, oriented(5), min_photons=1.0)
    laid = footprint(spots, CONDITION, PANEL)
    on = (spots.fs > 60) & (spots.fs < 2008) & (spots.ss > 60) & (spots.ss < 2102)
    assert on.sum() > 20
    np.testing.assert_allclose(laid.spot_sums(laid.photons, len(spots))[on], spots.photons[on], rtol=1e-3)

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
    sample = Sample(crystal, mosaicity_deg=mosaicity_deg)
    # a quarter of a pixel off its centre, where the spread of the pixels' centres is that of the light and the pixel
    condition = dataclasses.replace(under(CONDITION, spectrum=top_hat(0.1)), beam_center_y_px=1081.75)
    spread_fs, spread_ss = spreads(footprint(diffract(sample, condition, PANEL, u), condition, PANEL), PANEL.shape[1])
    sigma = math.radians(mosaicity_deg) / 2.3548
    distance_px = CONDITION.camera_length_m / PANEL.pixel_size_m
    radial = 2.0 * sigma * distance_px / math.cos(2.0 * theta) ** 2
    across = 2.0 * math.sin(theta) * sigma * distance_px / math.cos(2.0 * theta)
    pixel_and_spot = PANEL.point_spread_px**2 + (10e-6 / 75e-6) ** 2 / 12.0 + 1.0 / 12.0
    assert spread_fs == pytest.approx(math.sqrt(radial**2 + pixel_and_spot), rel=0.05)
    assert spread_ss == pytest.approx(math.sqrt(across**2 + pixel_and_spot), rel=0.03)


def one_reflection(detune_deg: float = 0.0, azimuth_deg: float = 0.0) -> tuple[Crystal, NDArray[np.float64]]:
    """A crystal of one reflection of 4 angstrom, and the turn that brings it to its Bragg angle for `CONDITION`."""
    crystal = Crystal(
        "one", (40.0, 40.0, 40.0, 90.0, 90.0, 90.0), np.array([[10, 0, 0]], dtype=np.int32), np.array([1e8])
    )
    theta = math.asin(CONDITION.wavelength_angstrom / 8.0) + math.radians(detune_deg)
    up = np.array([[math.cos(theta), 0, math.sin(theta)], [0, 1, 0], [-math.sin(theta), 0, math.cos(theta)]])
    c, s = math.cos(math.radians(azimuth_deg)), math.sin(math.radians(azimuth_deg))
    return crystal, np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ up


def ray_traced(
    sample: Sample, condition: Condition, u: NDArray[np.float64], rays: int = 400_000
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Photons, mean (2,) and covariance (2, 2) of a spot's place (fs, ss) in pixels, without blur, ray by ray.

    Each ray has its own block, direction of light and strain as vectors in space; it picks the wavelength that meets
    Bragg's law exactly and weighs as much as the spectrum has of it.
    """
    rng = np.random.default_rng(5)
    q = np.tile((u @ reciprocal_basis(sample.crystal.cell) @ sample.crystal.hkl[0])[None, :], (rays, 1))
    turn = rng.standard_normal((rays, 3)) * sample.mosaic_sigma_rad
    q = q + np.cross(turn, q)
    q *= (np.linalg.norm(u @ reciprocal_basis(sample.crystal.cell) @ sample.crystal.hkl[0]) /
          np.linalg.norm(q, axis=1))[:, None]  # fmt: skip
    q *= 1.0 + sample.strain * rng.standard_normal((rays, 1))
    q += rng.standard_normal((rays, 3)) * 0.8859 / 2.35482 / (sample.size_m * 1e10)
    light = np.concatenate([rng.standard_normal((rays, 2)) * condition.beam.divergence_rad, np.ones((rays, 1))], axis=1)
    light /= np.linalg.norm(light, axis=1)[:, None]
    q2 = np.sum(q * q, axis=1)
    wavelength = -2.0 * np.sum(light * q, axis=1) / q2
    edges = condition.wavelength_angstrom * np.asarray(condition.beam.spectrum.edges)
    density = np.append(np.asarray(condition.beam.spectrum.shares) / np.diff(edges), 0.0)
    place = np.searchsorted(edges, wavelength) - 1
    weight = np.where((place >= 0) & (place < len(edges) - 1), density[place], 0.0)
    sine = wavelength * np.sqrt(q2) / 2.0
    weight *= wavelength**4 / (2.0 * sine**2)
    out = q + light / np.where(wavelength > 0.0, wavelength, 1.0)[:, None]
    distance_px = condition.camera_length_m / PANEL.pixel_size_m
    spot = distance_px * out[:, :2] / out[:, 2:]
    mean = np.average(spot, axis=0, weights=weight)
    covariance = np.cov(spot.T, aweights=weight)
    direction = np.average(out / np.linalg.norm(out, axis=1)[:, None], axis=0, weights=weight)
    xx, xy, yy = condition.beam.polarisation_terms
    polarisation = 1 - xx * direction[0] ** 2 - 2 * xy * direction[0] * direction[1] - yy * direction[1] ** 2
    photons = (
        condition.flux_photons
        * lit_path_m(condition.beam, sample.size_m)
        * R_E_M**2
        * polarisation
        * sample.crystal.intensity[0]
        / (sample.crystal.volume_angstrom3 * 1e-30) ** 2
        * weight.mean()
        * 1e-30
    )
    return float(photons), mean, covariance


RAYS = [
    pytest.param({"mosaicity_deg": 0.1}, {}, 0.0, id="mosaic in the middle of the band"),
    pytest.param({"mosaicity_deg": 0.1}, {}, 0.1, id="mosaic at the edge of the band"),
    pytest.param({"mosaicity_deg": 0.3}, {"spectrum": gaussian(0.005)}, 0.05, id="more mosaic than band"),
    pytest.param({"mosaicity_deg": 0.02}, {"divergence_rad": 2e-3}, 0.0, id="divergent"),
    pytest.param({"mosaicity_deg": 0.1}, {"divergence_rad": 1e-3, "polarisation_deg": 70.0}, 0.08, id="both, detuned"),
    pytest.param({"mosaicity_deg": 0.05, "strain": 3e-3}, {"spectrum": gaussian(0.004)}, 0.03, id="strained"),
    pytest.param({"mosaicity_deg": 0.0, "size_m": 1e-7}, {}, 0.0, id="tiny"),
]


@pytest.mark.parametrize(("crystal_settings", "beam_settings", "detune_deg"), RAYS)
def test_a_spot_has_the_photons_place_and_shape_of_rays_traced_one_by_one(
    crystal_settings: dict[str, float], beam_settings: dict[str, object], detune_deg: float
) -> None:
    crystal, u = one_reflection(detune_deg, azimuth_deg=35.0)
    sample = Sample(crystal, **crystal_settings)  # type: ignore[arg-type]
    condition = under(CONDITION, **beam_settings)
    photons, mean, covariance = ray_traced(sample, condition, u)
    spots = diffract(sample, condition, PANEL, u, min_photons=0.0)
    assert len(spots) == 1
    assert spots.photons[0] == pytest.approx(photons, rel=0.02)
    laid = footprint(spots, condition, PANEL)
    assert laid.photons.sum() == pytest.approx(spots.photons[0], rel=2e-3)
    center = np.array([PANEL.shape[1] / 2 - 0.5, PANEL.shape[0] / 2 - 0.5])
    width = math.sqrt(np.trace(covariance))
    fs, ss = centroid(laid, PANEL.shape[1])
    np.testing.assert_allclose(np.array([fs, ss]) - center, mean, atol=0.03 + 0.03 * width)
    place = np.stack(divmod(laid.index, PANEL.shape[1])[::-1]).astype(float)
    laid_covariance = np.cov(place, aweights=laid.photons / laid.photons.max())
    blur = np.eye(2) * (spots.blur_px[0] ** 2 + 1.0 / 12.0)
    np.testing.assert_allclose(laid_covariance, covariance + blur, atol=0.12 * (np.trace(covariance) + blur[0, 0]))


def test_a_sharp_crystal_in_one_colour_reflects_what_touches_ewalds_sphere() -> None:
    sample = Sample(proteinase_k(d_min_angstrom=3.0), size_m=1e-4, mosaicity_deg=0.0)
    condition = under(CONDITION, spectrum=top_hat(1e-7), profile="uniform")
    b = reciprocal_basis(sample.crystal.cell)
    radius = 1.0 / condition.wavelength_angstrom
    seen = 0
    for seed in range(80):
        u = oriented(seed)
        q = sample.crystal.hkl @ (u @ b).T
        off = np.abs(np.linalg.norm(q + np.array([0.0, 0.0, radius]), axis=1) - radius)
        d = 1.0 / np.linalg.norm(q, axis=1)
        # The only width left is that of the finite crystal: 0.376/L, so nothing further off than 5 of it reflects.
        spots = diffract(sample, condition, PANEL, u, min_photons=0.0)
        predicted = {tuple(h) for h in sample.crystal.hkl[(off < 5 * 0.376 / 1e6) & (d > 3.3)]}
        met = {tuple(h) for h, each in zip(spots.hkl, spots.d_angstrom, strict=True) if each > 3.3}
        assert met <= {tuple(h) for h in sample.crystal.hkl[off < 6 * 0.376 / 1e6]}
        bright = {
            tuple(h) for h in sample.crystal.hkl[(off < 4 * 0.376 / 1e6) & (d > 3.3) & (sample.crystal.intensity > 0)]
        }
        assert bright <= met | (bright - predicted)
        seen += len(met)
        np.testing.assert_allclose(spots.wavelength_angstrom, condition.wavelength_angstrom, rtol=1e-6)
    assert seen > 20


def test_distance_moves_a_spot_outward_and_energy_inward_as_braggs_law_says() -> None:
    crystal, _ = one_reflection()
    sample = Sample(crystal, mosaicity_deg=0.01)
    for energy, length in ((7000.0, 0.15), (7000.0, 0.3), (6000.0, 0.15), (8000.0, 0.2)):
        condition = Condition(energy, length)
        theta = math.asin(condition.wavelength_angstrom / 8.0)
        turn = np.array([[math.cos(theta), 0, math.sin(theta)], [0, 1, 0], [-math.sin(theta), 0, math.cos(theta)]])
        spots = diffract(sample, condition, plain_panel((4000, 4000)), turn)
        assert spots.fs[0] - 1999.5 == pytest.approx(length / 75e-6 * math.tan(2.0 * theta), abs=0.1)
        assert spots.ss[0] == pytest.approx(1999.5, abs=1e-6)


def test_a_beam_stops_shadow_takes_its_part_of_a_spot() -> None:
    crystal, u = one_reflection()
    spots = diffract(Sample(crystal), CONDITION, PANEL, u)
    whole = footprint(spots, CONDITION, PANEL)
    half = np.full(PANEL.shape, 0.5, dtype=np.float32)
    dark = np.zeros(PANEL.shape, dtype=np.float32)
    assert footprint(spots, CONDITION, PANEL, half).photons.sum() == pytest.approx(whole.photons.sum() / 2.0)
    assert len(footprint(spots, CONDITION, PANEL, dark).index) == 0


def test_round_spots_keep_their_photons_and_their_place() -> None:
    fs, ss, sigma = np.array([100.3, 500.0, 900.8]), np.array([50.25, 700.5, 2000.0]), np.array([0.2, 0.8, 3.0])
    photons = np.array([10.0, 20.0, 30.0])
    laid = lay_gaussians(fs, ss, photons, sigma, PANEL)
    np.testing.assert_allclose(laid.spot_sums(laid.photons, 3), photons, rtol=1e-4)
    for spot in range(3):
        np.testing.assert_allclose(
            centroid(laid, PANEL.shape[1], spot), (fs[spot], ss[spot]), atol=1e-3 + 0.3 * (spot == 0)
        )


def test_random_orientations_are_rotations_without_preference() -> None:
    rng = frame_rng(2, 0)
    turns = np.stack([random_orientation(rng) for _ in range(4000)])
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turns), 1.0)
    assert np.abs(turns.mean(axis=0)).max() < 0.05
    np.testing.assert_allclose((turns**2).mean(axis=0), 1.0 / 3.0, atol=0.03)
