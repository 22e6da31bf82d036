"""Where pixels are: the half pixel, Bragg's law, the bins."""

import math

import numpy as np
import pytest

from analyzer.geometry import AZIMUTH_CLASSES, RADIAL_BIN_PX, Geometry, bin_map, series_geometry
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
    found = Geometry(SHAPE, 0.0, 0.0, 75e-6, distance_m, energy_eV).resolution_angstrom(radius_px)
    wavelength = HC_EV_ANGSTROM / energy_eV
    # n lambda = 2 d sin(theta), with tan(2 theta) = radius / distance.
    two_theta = math.atan2(radius_px * 75e-6, distance_m)
    assert found == pytest.approx(wavelength / (2 * math.sin(two_theta / 2)))


def test_without_distance_or_energy_there_is_no_resolution() -> None:
    assert Geometry(SHAPE, 0.0, 0.0, 75e-6, None, 7000.0).resolution_angstrom(10.0) is None
    assert Geometry(SHAPE, 0.0, 0.0, 75e-6, 0.15, None).resolution_angstrom(10.0) is None


def test_at_the_beam_centre_there_is_no_resolution() -> None:
    assert Geometry(SHAPE, 0.0, 0.0, 75e-6, 0.15, 7000.0).resolution_angstrom(0.0) is None


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
