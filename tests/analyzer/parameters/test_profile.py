"""Profiles by ring and sector, against sums over the pixels one by one."""

import numpy as np
import pytest

from analyzer.geometry import Geometry, Panels
from analyzer.parameters.profile import PHOTONS, PIXELS, RING_PX, SECTORS, SQUARES, Sectors, merge
from analyzer.reduction import FramePlan, Workspace, make_plan
from streamer.validity import Validity
from tests.analyzer.builders import plan, water

SHAPE = (90, 110)
CENTER = (48.3, 51.7)


def valid_pixels(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    valid = np.ones(shape, np.uint8)
    valid[30:34], valid[:, 60:63] = 0, 0
    return valid


def tilted() -> Geometry:
    """Two panels that lean and stand at other distances."""
    bounds = [[0, 45, 0, 110], [45, 90, 0, 110]]
    size = 75e-6
    return Geometry(
        SHAPE, 48.3, 51.7, size, 0.1, 7000.0,
        Panels(
            bounds, [[-48 * size, -60 * size, 0.002], [-50 * size, -4 * size, -0.001]],
            [[size, 0, size * 0.1], [size, size * 0.02, 0]], [[0, size, size * 0.05], [-size * 0.02, size, 0]],
        ),
    )  # fmt: skip


def made(geometry: Geometry) -> FramePlan:
    return make_plan(geometry, Validity("test", valid_pixels()), 65000)


@pytest.mark.parametrize("geometry", [Geometry(SHAPE, *CENTER, 75e-6), tilted()], ids=["flat", "panels"])
def test_pixels_and_shapes_are_those_of_the_valid_pixels_one_by_one(geometry: Geometry) -> None:
    sector = made(geometry).sectors
    ys, xs = np.nonzero(valid_pixels())
    x, y = geometry.positions_px(xs, ys)
    radius = np.maximum(np.hypot(x, y), 0.5)
    ring = (np.hypot(x, y) / RING_PX).astype(int)
    azimuth = np.minimum((np.arctan2(abs(y), abs(x)) / (np.pi / 6)).astype(int), 2)
    at = ring * SECTORS + azimuth * 4 + (x > 0) + 2 * (y > 0)
    c, s = x / radius, y / radius
    # A pixel on the line between two bins may be in either, by the rounding of its place.
    counts = np.bincount(at, minlength=sector.bins)
    assert abs(counts - sector.pixels).sum() <= 4
    assert sector.pixels.sum() == valid_pixels().sum()
    same = (counts == sector.pixels) & (counts > 3)
    assert same.sum() > 40
    for row, values in zip(sector.shape, (radius, c, s, c * c, c * s, s * s), strict=True):
        mean = np.bincount(at, values, sector.bins)[same] / counts[same]
        np.testing.assert_allclose(row[same], mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("geometry", [Geometry(SHAPE, *CENTER, 75e-6), tilted()], ids=["flat", "panels"])
def test_the_profile_of_a_frame_sums_what_the_reduction_keeps(geometry: Geometry) -> None:
    held = Workspace(made(geometry), np.dtype("u2"))
    held.pixels[:] = water(0.1, SHAPE)
    held.pixels[10, 10] = 100
    held.reduce()
    profile = held.profile().profile.astype(np.float64)
    assert profile.shape == (3, held.plan.sectors.bins)
    assert profile[PHOTONS].sum() == held.diffuse[:, 0].sum()
    assert profile[SQUARES].sum() == held.diffuse[:, 1].sum()
    assert profile[PIXELS].sum() == pytest.approx(held.diffuse_pixels.sum(), rel=1e-6)
    assert (profile[PIXELS] <= held.plan.sectors.pixels * (1 + 1e-6)).all()


def test_place_pixels_tell_apart_those_with_an_invalid_neighbour() -> None:
    made_plan = made(Geometry(SHAPE, *CENTER, 75e-6))
    for kind in (1, 2):
        found = np.bincount(made_plan.place[made_plan.inside == kind], minlength=made_plan.bins.bins * 4)
        np.testing.assert_array_equal(made_plan.place_pixels[kind - 1], found)


def test_the_profile_is_of_its_own_and_the_next_frame_leaves_it() -> None:
    held = Workspace(plan(SHAPE), np.dtype("u2"))
    held.pixels[:] = water(0.5, SHAPE)
    held.reduce()
    first = held.profile()
    before = first.profile.copy()
    held.pixels[:] = 0
    held.reduce()
    np.testing.assert_array_equal(first.profile, before)
    assert held.profile().profile[PHOTONS].sum() == 0


def test_rings_merged_hold_the_same_pixels_at_the_same_mean_place() -> None:
    fine = made(Geometry(SHAPE, *CENTER, 75e-6)).sectors
    coarse = merge(fine, 4, folded=False)
    assert coarse.pixels.sum() == fine.pixels.sum()
    for one, other in zip(coarse.shape[1:], fine.shape[1:], strict=True):
        assert (one * coarse.pixels).sum() == pytest.approx((other * fine.pixels).sum(), abs=1e-6)
    np.testing.assert_array_equal(coarse.place % SECTORS, np.arange(fine.bins) % SECTORS)
    assert len(coarse.pixels) == int(coarse.place.max()) + 1


@pytest.mark.parametrize("merged", [1, 3, 100])
def test_any_number_of_rings_is_merged(merged: int) -> None:
    fine: Sectors = made(Geometry(SHAPE, *CENTER, 75e-6)).sectors
    coarse = merge(fine, merged)
    assert np.isfinite(coarse.shape).all()
    assert coarse.pixels.sum() == fine.pixels.sum()


def test_a_frame_without_a_valid_pixel_has_an_empty_profile() -> None:
    geometry = Geometry(SHAPE, *CENTER, 75e-6)
    empty = make_plan(geometry, Validity("none", np.zeros(SHAPE, np.uint8)), 65000)
    assert empty.sectors.pixels.sum() == 0
    assert np.isfinite(empty.sectors.shape).all()
    assert np.isfinite(merge(empty.sectors, 4).shape).all()
