"""Where pixels are: the half pixel, Bragg's law, the bins."""

import math
from typing import Any

import numpy as np
import pytest

from analyzer.geometry import AZIMUTH_CLASSES, RADIAL_BIN_PX, Geometry, Panels, bin_map, series_geometry
from analyzer.zones import cell_radius_m
from streamer.messages import HC_EV_ANGSTROM
from tests.analyzer.builders import SHAPE, metadata


def test_an_edge_based_centre_becomes_an_index_half_a_pixel_lower() -> None:
    geometry = series_geometry(metadata(beam_center_x_px=10.0, beam_center_y_px=20.5), SHAPE)
    assert (geometry.beam_center_fs, geometry.beam_center_ss) == (9.5, 20.0)


def test_without_a_centre_the_middle_of_the_panel_is_the_centre() -> None:
    geometry = series_geometry(metadata(beam_center_x_px=None, beam_center_y_px=None), (5, 7))
    # Seven pixels along fs: their middle is the fourth pixel's, index 3.
    assert (geometry.beam_center_fs, geometry.beam_center_ss) == (3.0, 2.0)


@pytest.mark.parametrize("center", [1e9, -1e9, 1e300])
def test_a_centre_far_from_the_panel_is_not_believed(center: float) -> None:
    geometry = series_geometry(metadata(beam_center_x_px=center, beam_center_y_px=3.0), (5, 7))
    assert (geometry.beam_center_fs, geometry.beam_center_ss) == (3.0, 2.0)


def test_a_centre_beside_the_panel_is_believed() -> None:
    assert series_geometry(metadata(beam_center_x_px=-50.0, beam_center_y_px=3.0), SHAPE).beam_center_fs == -50.5


@pytest.mark.parametrize(("distance_m", "energy_eV"), [(0.15, 6000.0), (0.25, 7000.0), (0.35, 8000.0)])
@pytest.mark.parametrize("radius_px", [1.0, 300.0, 1500.0])
def test_resolution_is_braggs(distance_m: float, energy_eV: float, radius_px: float) -> None:
    found = Geometry(SHAPE, 0.0, 0.0, 75e-6, distance_m, energy_eV).resolution_at(radius_px)
    wavelength = HC_EV_ANGSTROM / energy_eV
    # n lambda = 2 d sin(theta), with tan(2 theta) = radius / distance.
    two_theta = math.atan2(radius_px * 75e-6, distance_m)
    assert found == pytest.approx(wavelength / (2 * math.sin(two_theta / 2)))


def test_without_distance_or_energy_there_is_no_resolution() -> None:
    assert Geometry(SHAPE, 0.0, 0.0, 75e-6, None, 7000.0).resolution_at(10.0) is None
    assert Geometry(SHAPE, 0.0, 0.0, 75e-6, 0.15, None).resolution_at(10.0) is None


def test_at_the_beam_centre_there_is_no_resolution() -> None:
    assert Geometry(SHAPE, 0.0, 0.0, 75e-6, 0.15, 7000.0).resolution_at(0.0) is None


def test_bins_are_rings_of_eight_pixels_in_three_classes_of_azimuth() -> None:
    bins = bin_map(Geometry((40, 60), 0.0, 0.0, 75e-6))
    of = bins.bin_of.reshape(40, 60)
    assert of[0, 0] // AZIMUTH_CLASSES == 0
    assert of[0, 7] // AZIMUTH_CLASSES == 0
    assert of[0, 8] // AZIMUTH_CLASSES == 1
    assert of[0, 50] % AZIMUTH_CLASSES == 0, "along fs"
    assert of[20, 20] % AZIMUTH_CLASSES == 1, "the diagonal"
    assert of[39, 0] % AZIMUTH_CLASSES == AZIMUTH_CLASSES - 1, "along ss"
    assert bins.radial_bins == int(np.hypot(39, 59) / RADIAL_BIN_PX) + 1
    assert of.max() < bins.bins


@pytest.mark.parametrize("shape", [(1, 1), (1, 100), (100, 1), (3, 20_000)])
def test_every_pixel_of_any_panel_has_a_bin(shape: tuple[int, int]) -> None:
    for center in ((0.0, 0.0), (-300.0, 500.0)):
        bins = bin_map(Geometry(shape, *center, 75e-6))
        assert bins.bin_of.shape == (shape[0] * shape[1],)
        assert bins.bin_of.max() < bins.bins


def test_azimuth_is_folded_so_that_opposite_pixels_share_a_bin() -> None:
    of = bin_map(Geometry((41, 61), 30.0, 20.0, 75e-6)).bin_of.reshape(41, 61)
    np.testing.assert_array_equal(of, of[::-1])
    np.testing.assert_array_equal(of, of[:, ::-1])


# --- q, resolution, rings ---------------------------------------------------------------


def flat(**changes: Any) -> Geometry:
    facts: dict[str, Any] = {
        "shape": (400, 300), "beam_center_fs": 140.3, "beam_center_ss": 210.7, "pixel_size_m": 75e-6,
        "camera_length_m": 0.05, "photon_energy_eV": 7000.0,
    }  # fmt: skip
    return Geometry(**(facts | changes))


def test_q_and_resolution_take_arrays_and_are_two_pi_over_each_other() -> None:
    geometry = flat()
    fs, ss = np.array([[3.0, 299.0], [150.0, 10.0]]), np.array([[0.0, 399.0], [211.0, 20.5]])
    q, d = geometry.q_per_angstrom(fs, ss), geometry.resolution_angstrom(fs, ss)
    assert q is not None
    assert d is not None
    np.testing.assert_allclose(q * d, 2 * math.pi)
    radius_m = np.hypot(fs - 140.3, ss - 210.7) * 75e-6
    theta = np.arctan2(radius_m, 0.05) / 2
    np.testing.assert_allclose(q, 4 * math.pi * np.sin(theta) * 7000.0 / HC_EV_ANGSTROM)


def test_the_beam_itself_has_no_spacing() -> None:
    d = flat().resolution_angstrom([140.3], [210.7])
    assert d is not None
    assert np.isinf(d).all()


def test_without_energy_there_is_neither_q_nor_ring() -> None:
    geometry = flat(photon_energy_eV=None)
    assert geometry.q_per_angstrom(1.0, 2.0) is None
    assert geometry.resolution_angstrom(1.0, 2.0) is None
    assert geometry.radius_of(3.0) is None
    assert geometry.rings() == []


def test_a_ring_lies_at_its_spacing() -> None:
    geometry = flat()
    rings = geometry.rings()
    assert 2 <= len(rings) <= 6
    assert [ring.spacing_angstrom for ring in rings] == sorted((ring.spacing_angstrom for ring in rings), reverse=True)
    for ring in rings:
        assert geometry.radius_of(ring.spacing_angstrom) == pytest.approx(ring.radius_px)
        for line in ring.lines:
            d = geometry.resolution_angstrom(line[:, 0], line[:, 1])
            np.testing.assert_allclose(d, ring.spacing_angstrom)
            assert (line >= -0.5).all()
            assert (line <= (299.5, 399.5)).all()


def test_a_ring_beyond_ninety_degrees_is_none() -> None:
    assert flat().radius_of(HC_EV_ANGSTROM / 7000.0 / math.sqrt(2)) is None
    assert flat().radius_of(-1.0) is None


def leaning(degrees: float = 20.0, camera_length_m: float | None = 0.05) -> Geometry:
    """One panel turned about y by so much, its middle on the beam; and a flat one beside it, nearer to the sample."""
    turn = math.radians(degrees)
    fs_m = np.array([math.cos(turn), 0.0, math.sin(turn)]) * 75e-6
    ss_m = np.array([0.0, 1.0, 0.0]) * 75e-6
    origin = -99.5 * fs_m - 49.5 * ss_m
    panels = Panels(
        [(0, 100, 0, 200), (100, 150, 0, 200)],
        [origin, (-99.5 * 75e-6, 60 * 75e-6, -0.01)],
        [fs_m, (75e-6, 0.0, 0.0)],
        [ss_m, (0.0, 75e-6, 0.0)],
    )
    return Geometry((150, 200), 99.5, 49.5, 75e-6, camera_length_m, 7000.0, panels)


def angle_of(geometry: Geometry, fs: float, ss: float) -> float:
    """Two theta of a pixel by the vector from the sample, straight from the panel's numbers."""
    panels = geometry.panels
    assert panels is not None
    assert geometry.camera_length_m is not None
    p = 0 if ss < 99.5 else 1
    at = panels.origin_m[p] + fs * panels.fs_m[p] + (ss - panels.bounds[p, 0]) * panels.ss_m[p]
    x, y, z = at + np.array([0.0, 0.0, geometry.camera_length_m])
    return math.atan2(math.hypot(x, y), z)


@pytest.mark.parametrize(
    ("fs", "ss"), [(0.0, 0.0), (199.0, 99.0), (99.5, 10.0), (3.25, 60.0), (7.0, 100.0), (150, 149)]
)
def test_a_leaning_panel_has_the_angles_that_its_vectors_give(fs: float, ss: float) -> None:
    geometry = leaning()
    q = geometry.q_per_angstrom(fs, ss)
    assert q is not None
    expected = 4 * math.pi * math.sin(angle_of(geometry, fs, ss) / 2) * 7000.0 / HC_EV_ANGSTROM
    assert float(q) == pytest.approx(expected, rel=1e-12)


def test_the_map_of_all_pixels_agrees_with_single_positions() -> None:
    geometry = leaning()
    ss, fs = np.mgrid[:150, :200].astype(np.float64)
    np.testing.assert_allclose(geometry.radius_map(), geometry.radius_px(fs, ss), rtol=2e-6, atol=1e-4)
    bins = bin_map(geometry).bin_of.reshape(150, 200) // AZIMUTH_CLASSES
    expected = geometry.radius_px(fs, ss) / RADIAL_BIN_PX
    assert (np.abs(bins - np.floor(expected)) <= (np.abs(expected - np.rint(expected)) < 1e-4)).all()


def test_the_reach_is_the_largest_radius_of_any_pixel() -> None:
    geometry = leaning()
    assert geometry.reach_px == pytest.approx(float(geometry.radius_map().max()), rel=1e-6)
    step = np.array([75e-6, 0.0, 0.0]), np.array([0.0, 75e-6, 0.0])
    # Stacked in the image, side by side in the laboratory: the farthest pixels are in the middle of the image.
    stacked = Panels(
        [(50 * n, 50 * n + 50, 0, 100) for n in range(4)],
        [(75e-6 * x, 0.0, 0.0) for x in (0.0, 300.0, -400.0, 100.0)],
        [step[0]] * 4,
        [step[1]] * 4,
    )
    wide = Geometry((200, 100), 0.0, 0.0, 75e-6, 0.1, 7000.0, stacked)
    assert wide.reach_px == pytest.approx(float(wide.radius_map().max()), rel=1e-6)
    assert wide.reach_px > 400


def test_rings_on_a_leaning_panel_keep_their_spacing() -> None:
    geometry = leaning()
    rings = geometry.rings()
    assert rings
    for ring in rings:
        for line in ring.lines:
            inside = line[(line[:, 1] < 99.0) | (line[:, 1] > 100.0)]
            d = geometry.resolution_angstrom(np.clip(inside[:, 0], -0.4, 199.4), np.clip(inside[:, 1], -0.4, 149.4))
            np.testing.assert_allclose(d, ring.spacing_angstrom, rtol=0.02)


def test_without_camera_length_panels_are_seen_along_the_beam() -> None:
    geometry = leaning(camera_length_m=None)
    x, y = geometry.positions_px([199.0], [0.0])
    assert float(x[0]) == pytest.approx(99.5 * math.cos(math.radians(20.0)))
    assert float(y[0]) == pytest.approx(-49.5)
    assert geometry.ring(40.0)


def test_geometries_are_equal_when_every_number_is() -> None:
    assert leaning() == leaning()
    assert hash(leaning()) == hash(leaning())
    assert leaning() != leaning(20.000001)
    assert leaning() != flat()
    assert flat() == flat()
    assert flat() != flat(unfit="another shape")


def test_a_thousand_panels_are_looked_up_in_pieces() -> None:
    columns, size = 40, 8
    bounds = [(r * size, r * size + size, c * size, c * size + size) for r in range(columns) for c in range(columns)]
    origin = [(75e-6 * (b[2] - 160 + 0.25), 75e-6 * (b[0] - 160), 0.0) for b in bounds]
    step = [(75e-6, 0.0, 0.0)] * len(bounds), [(0.0, 75e-6, 0.0)] * len(bounds)
    geometry = Geometry((320, 320), 159.75, 160.0, 75e-6, 0.1, 7000.0, Panels(bounds, origin, *step))
    ss, fs = np.mgrid[:320, :320].astype(np.float64)
    x, y = geometry.positions_px(fs, ss)
    np.testing.assert_allclose(x, fs - 159.75, atol=1e-9)
    np.testing.assert_allclose(y, ss - 160.0, atol=1e-9)


def test_positions_on_no_panel_are_those_of_a_flat_detector() -> None:
    geometry = leaning()
    x, y = geometry.positions_px([-30.0], [500.0])
    assert (float(x[0]), float(y[0])) == (-129.5, 450.5)


def test_cells_of_a_flat_detector_are_where_they_were() -> None:
    geometry = flat()
    y = (np.arange(50) + 0.5) * 8 - 0.5 - geometry.beam_center_ss
    x = (np.arange(38) + 0.5) * 8 - 0.5 - geometry.beam_center_fs
    np.testing.assert_array_equal(cell_radius_m(geometry), np.hypot(y[:, None], x[None, :]) * 75e-6)
