"""Zones count what lies at which radius; the header adds what radius means in q."""

import math

import numpy as np
import pytest
import torch

from analyzer import zones
from analyzer.geometry import Geometry, bin_map
from analyzer.kernels import CELL
from analyzer.zones import (
    BACKGROUND,
    CELL_COLUMNS,
    COLUMNS,
    FIRST_LEVEL,
    LEVELS,
    LIGHT,
    NEAREST,
    RADIUS,
    SCALES,
    STRONGEST,
    VALID,
    ZONES,
    cell_features,
    header_of,
    zone_features,
    zone_of_bins,
    zone_of_cells,
)
from tests.analyzer.builders import water, workspace

PANEL = (200, 208)
GEOMETRY = Geometry(PANEL, 103.5, 99.5, 75e-6)


def test_every_pixel_and_every_photon_is_in_one_zone() -> None:
    pixels = water(0.2, PANEL)
    work = workspace(pixels)
    work.reduce()
    photons, outside_spots, counted, background = work.zones[:, :LIGHT].T
    assert photons.sum() == pixels.sum()
    assert outside_spots.sum() == pixels.sum()
    assert counted.sum() == pixels.size
    assert background.sum() == pytest.approx(pixels.sum(), rel=0.05)


def test_spots_are_light_that_is_not_outside_spots() -> None:
    pixels = water(0.02, PANEL)
    pixels[20:22, 30:32] += 100
    work = workspace(pixels)
    work.reduce()
    with_spots, without = work.zones[:, 0], work.zones[:, 1]
    zone = int(math.hypot(20.5 - 99.5, 30.5 - 103.5) * 75e-6 / zones.ZONE_M)
    assert (with_spots - without)[zone] == pytest.approx(400, abs=10)


def test_levels_count_the_cells_that_reach_them() -> None:
    pixels = water(0.02, PANEL)
    pixels[40, 50] += 30
    work = workspace(pixels)
    significance = work.reduce().significance
    counted = work.zones[:, FIRST_LEVEL:].reshape(ZONES, SCALES, len(LEVELS)).sum(0)
    expected = [[np.count_nonzero(scale >= level) for level in LEVELS] for scale in significance]
    np.testing.assert_array_equal(counted, expected)
    assert counted[1, list(LEVELS).index(50.0)] == 1


def test_the_cell_as_a_whole_gathers_photons_that_do_not_touch() -> None:
    pixels = np.zeros(PANEL, "u2")
    pixels[np.random.default_rng(1).integers(0, 200, 60), np.random.default_rng(2).integers(0, 208, 60)] = 1
    pixels[80:88, 80:88] = 0
    for place in ((80, 80), (80, 87), (84, 83), (87, 80), (87, 87)):
        pixels[place] = 1
    significance = workspace(pixels).reduce().significance
    cell = (80 // CELL, 80 // CELL)
    assert significance[0][cell] == significance[0].max() > 10
    assert significance[0][cell] > significance[2][cell]


def test_cells_and_bins_agree_on_their_zone() -> None:
    bins = bin_map(GEOMETRY)
    by_bin = zone_of_bins(GEOMETRY, bins.radial_bins)[bins.bin_of].reshape(PANEL)
    by_cell = zone_of_cells(GEOMETRY).reshape(25, 26)
    middles = by_bin[CELL // 2 :: CELL, CELL // 2 :: CELL][:25, :26]
    assert np.abs(by_cell.astype(int) - middles).max() <= 1


def test_the_strongest_cells_come_first_with_what_is_known_of_them() -> None:
    pixels = water(0.02, PANEL)
    pixels[84, 44] = 90
    pixels[84, 60] = 50
    work = workspace(pixels)
    significance = work.reduce().significance
    strength = np.prod(1.0 + significance.astype(np.float64), 0)
    expected = np.sort(strength.reshape(-1))[::-1][:STRONGEST]
    np.testing.assert_allclose(np.prod(1.0 + work.cells[:, :SCALES].astype(np.float64), 1), expected, rtol=1e-6)
    first = work.cells[0]
    np.testing.assert_array_equal(first[:SCALES], significance[:, 10, 5])
    assert first[RADIUS] == pytest.approx(75e-6 * math.hypot(83.5 - 99.5, 43.5 - 103.5), rel=1e-5)
    assert first[VALID] == 1.0
    assert first[BACKGROUND] == pytest.approx(0.02, rel=0.3)
    np.testing.assert_array_equal(work.cells[1, :SCALES], significance[:, 10, 7])
    assert first[NEAREST] <= 2.0


def test_where_no_cell_is_above_nothing_none_is_listed() -> None:
    pixels = np.zeros(PANEL, "u2")
    work = workspace(pixels)
    work.reduce()
    assert not work.cells.any()
    pixels[84, 44] = 1
    work = workspace(pixels)
    work.reduce()
    assert work.cells[0, 1] > 0
    assert work.cells[0, NEAREST] == 0
    assert not work.cells[1:].any()


def test_features_of_cells_say_where_there_is_none_and_what_is_known() -> None:
    cells = torch.zeros(2, STRONGEST, CELL_COLUMNS)
    cells[:, 0, 1], cells[:, 0, RADIUS] = 20.0, 0.05
    features = cell_features(cells, torch.tensor([[7000.0, 0.25], [0.0, 0.0]]))
    assert features.shape == (2, STRONGEST, CELL_COLUMNS + 3)
    assert features[:, :, -1].sum(1).tolist() == [1.0, 1.0]
    q = 4 * math.pi * math.sin(0.5 * math.atan(0.05 / 0.25)) * 7000.0 / 12398.4198
    assert features[0, 0, -3].item() == pytest.approx(q, rel=1e-5)
    assert features[1, 0, -3:-1].tolist() == [0.0, 0.0]
    assert torch.isfinite(features).all()


def test_what_lies_beyond_the_last_zone_counts_in_it() -> None:
    far = Geometry((4000, 4000), -3000.0, -3000.0, 75e-6)
    assert zone_of_cells(far).max() == ZONES - 1


@pytest.mark.parametrize(
    ("energy", "length", "known"),
    [(7000.0, 0.25, True), (None, 0.25, False), (7000.0, None, False), (0.0, 0.0, False), (70e3, 0.25, False)],
)
def test_a_header_counts_when_whole_and_within_what_was_trained(
    energy: float | None, length: float | None, known: bool
) -> None:
    header = header_of(Geometry(PANEL, 0.0, 0.0, 75e-6, length, energy))
    assert header.tolist() == ([energy, pytest.approx(length)] if known else [0.0, 0.0])


def test_a_known_header_gives_the_zones_their_q() -> None:
    features = zone_features(torch.zeros(2, ZONES, COLUMNS), torch.tensor([[7000.0, 0.25], [0.0, 0.0]]))
    assert features.shape == (2, COLUMNS + 3, ZONES)
    radius = (np.arange(ZONES) + 0.5) * zones.ZONE_M
    wavelength = 12398.4198 / 7000
    expected = 4 * np.pi * np.sin(0.5 * np.arctan(radius / 0.25)) / wavelength
    np.testing.assert_allclose(features[0, COLUMNS].numpy(), expected, rtol=1e-5)
    assert features[0, COLUMNS + 1].eq(1).all()
    assert features[1, COLUMNS : COLUMNS + 2].eq(0).all()
