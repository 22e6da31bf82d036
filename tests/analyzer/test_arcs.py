"""Peaks on and beside smooth powder rings: none of the ring's own light, and the spots that stand on it."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from analyzer import kernels
from analyzer.arcs import BINS, PARTS, _panel_of, _position, expect_beside
from analyzer.geometry import PANEL_NUMBERS, Geometry, Panels
from analyzer.reduction import FramePlan, Workspace, make_plan
from streamer.validity import Validity, sentinel

SHAPE = (400, 408)
CENTER = (203.3, 199.7)
RADIUS_PX = 130.0
TOP = int(sentinel(np.dtype("u2")))

Expected = npt.NDArray[np.float64]
Places = npt.NDArray[np.float64]


def plan_of(
    center: tuple[float, float] = CENTER,
    valid: npt.NDArray[np.uint8] | None = None,
    panels: Panels | None = None,
) -> FramePlan:
    geometry = Geometry(SHAPE, *center, 75e-6, 0.15, 7000.0, panels)
    return make_plan(geometry, Validity("test", np.ones(SHAPE, np.uint8) if valid is None else valid), TOP - 1)


def radius_px(center: tuple[float, float] = CENTER) -> Expected:
    return np.asarray(Geometry(SHAPE, *center, 75e-6).radius_map(), np.float64)


def ring(photons: float, sigma_px: float, background: float, at_px: float = RADIUS_PX) -> Expected:
    """Expected counts of a smooth ring, ``photons`` a pixel at its crest."""
    return np.asarray(background + photons * np.exp(-0.5 * ((radius_px() - at_px) / sigma_px) ** 2))


def with_light(expected: Expected, places: Places, photons: Expected) -> Expected:
    """The same with round spots of 0.8 pixels at ``places`` (n, 2), ss and fs."""
    lit = expected.copy()
    for (ss, fs), light in zip(places, photons, strict=True):
        y, x = np.mgrid[int(ss) - 4 : int(ss) + 5, int(fs) - 4 : int(fs) + 5]
        shape = np.exp(-((y - ss) ** 2 + (x - fs) ** 2) / (2 * 0.8**2))
        lit[y, x] += light * shape / shape.sum()
    return lit


def on_ring(spots: int, rng: np.random.Generator, radius: float = RADIUS_PX) -> Places:
    angle = (np.arange(spots) + rng.uniform(0, 0.7, spots)) * 2 * np.pi / spots
    return np.stack([CENTER[1] + radius * np.sin(angle), CENTER[0] + radius * np.cos(angle)], 1)


def off_ring(spots: int, rng: np.random.Generator) -> Places:
    """Places at least 12 pixels beside the ring and apart from each other."""
    places: list[npt.NDArray[np.float64]] = []
    while len(places) < spots:
        place = rng.uniform(20, 380, 2)
        radius = np.hypot(place[0] - CENTER[1], place[1] - CENTER[0])
        if abs(radius - RADIUS_PX) > 12 and all(np.hypot(*(place - other)) > 12 for other in places):
            places.append(place)
    return np.array(places).reshape(-1, 2)


def found(expected: Expected, plan: FramePlan, seed: int = 0) -> npt.NDArray[Any]:
    """The peaks of a frame that counts so much."""
    workspace = Workspace(plan, np.dtype("u2"))
    workspace.pixels[:] = np.random.default_rng(seed).poisson(expected)
    workspace.pixels[plan.validity.valid == 0] = TOP
    return np.asarray(workspace.reduce().peaks.copy())


def matched(peaks: npt.NDArray[Any], places: Places) -> tuple[int, int]:
    """How many places have a peak within two pixels, and how many peaks are further than four from any."""
    if not len(peaks):
        return 0, 0
    if not len(places):
        return 0, len(peaks)
    apart = np.hypot(places[:, :1] - peaks["ss"][None], places[:, 1:] - peaks["fs"][None])
    return int((apart.min(1) < 2).sum()), int((apart.min(0) > 4).sum())


@pytest.mark.parametrize("background", [0.01, 0.1])
@pytest.mark.parametrize("sigma_px", [1.0, 2.5])
@pytest.mark.parametrize("photons", [1.0, 5.0, 30.0])
def test_a_smooth_ring_makes_no_peaks(photons: float, sigma_px: float, background: float) -> None:
    plan = plan_of()
    peaks = [len(found(ring(photons, sigma_px, background), plan, seed)) for seed in range(3)]
    assert sum(peaks) <= 1, peaks


@pytest.mark.parametrize("sigma_px", [1.0, 2.5])
@pytest.mark.parametrize("photons", [1.0, 5.0, 30.0])
def test_spots_on_a_ring_and_off_it_are_found(photons: float, sigma_px: float) -> None:
    rng, plan = np.random.default_rng(1), plan_of()
    bright = max(30.0, 8.0 * np.sqrt(9.0 * photons))
    hits = on = off = false = 0
    for seed in range(3):
        places = np.concatenate([on_ring(12, rng), off_ring(20, rng)])
        light = np.concatenate([np.full(12, bright), np.full(20, 25.0)])
        peaks = found(with_light(ring(photons, sigma_px, 0.05), places, light), plan, seed)
        on += matched(peaks, places[:12])[0]
        off += matched(peaks, places[12:])[0]
        false += matched(peaks, places)[1]
        hits += 1
    assert on >= 0.9 * 12 * hits
    assert off >= 0.95 * 20 * hits
    assert false <= hits


def test_a_spot_on_a_ring_holds_its_own_light_and_no_more() -> None:
    rng, plan = np.random.default_rng(5), plan_of()
    intensities = []
    for seed in range(4):
        places = on_ring(12, rng)
        peaks = found(with_light(ring(10.0, 1.5, 0.05), places, np.full(12, 200.0)), plan, seed)
        for ss, fs in places:
            apart = np.hypot(peaks["ss"] - ss, peaks["fs"] - fs)
            if len(apart) and apart.min() < 1:
                intensities.append(float(peaks["intensity"][apart.argmin()]))
    assert len(intensities) >= 44
    assert np.mean(intensities) == pytest.approx(200.0, rel=0.1)


def test_spots_do_not_hide_each_other_on_one_ring() -> None:
    rng, plan = np.random.default_rng(2), plan_of()
    for background in (ring(5.0, 2.5, 0.05), np.full(SHAPE, 0.05)):
        seen = 0
        for seed in range(2):
            places = on_ring(40, rng)
            seen += matched(found(with_light(background, places, np.full(40, 80.0)), plan, seed), places)[0]
        assert seen >= 76


@pytest.mark.parametrize("mean", [0.005, 0.05, 0.5, 3.0])
def test_without_a_ring_nothing_changes(mean: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, plan = np.random.default_rng(3), plan_of()
    slope = mean * (0.2 + np.exp(-0.5 * ((radius_px() - 100) / 50) ** 2))
    for seed in range(3):
        expected = with_light(slope, np.concatenate([off_ring(30, rng), on_ring(20, rng)]), rng.uniform(6, 80, 50))
        now = found(expected, plan, seed)
        with monkeypatch.context() as patched:
            patched.setattr(kernels, "judge_beside", lambda *arguments: arguments[-2])
            before = found(expected, plan, seed)
        assert len(before) > 10
        np.testing.assert_array_equal(now, before)


def test_what_the_network_sees_is_the_same_with_a_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, pixels = plan_of(), np.random.default_rng(0).poisson(ring(5.0, 2.5, 0.05))
    seen = []
    for judged in (True, False):
        with monkeypatch.context() as patched:
            if not judged:
                patched.setattr(kernels, "judge_beside", lambda *arguments: arguments[-2])
            workspace = Workspace(plan, np.dtype("u2"))
            workspace.pixels[:] = pixels
            peaks = len(workspace.reduce().peaks)
            seen.append((peaks, workspace.zones.copy(), workspace.cells.copy(), workspace.profile().profile))
    assert seen[0][0] < 2 < 20 < seen[1][0]
    for one, other in zip(seen[0][1:], seen[1][1:], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("off_px", [1.0, 3.0, 6.0])
def test_a_beam_centre_that_is_wrong_makes_no_peaks_of_a_ring(off_px: float) -> None:
    plan = plan_of((CENTER[0] + off_px, CENTER[1] - off_px))
    peaks = [len(found(ring(5.0, 2.5, 0.02), plan, seed)) for seed in range(3)]
    assert sum(peaks) <= 3, peaks


def test_a_gap_across_a_ring_makes_no_peaks_and_hides_no_spot_beside_it() -> None:
    valid = np.ones(SHAPE, np.uint8)
    valid[195:205], valid[:, 240:250], valid[::29, ::31] = 0, 0, 0
    plan = plan_of(valid=valid)
    empty = [len(found(ring(5.0, 2.5, 0.02), plan, seed)) for seed in range(3)]
    assert sum(empty) <= 2, empty
    # Eight pixels from a gap, along the ring.
    places = np.array([[213.0, CENTER[0] - np.sqrt(RADIUS_PX**2 - (213.0 - CENTER[1]) ** 2)]])
    seen = sum(
        matched(found(with_light(ring(5.0, 2.5, 0.02), places, np.array([90.0])), plan, s), places)[0] for s in range(6)
    )
    assert seen >= 5


@pytest.mark.parametrize("at_px", [12.0, 30.0])
def test_a_ring_close_about_the_beam_makes_no_peaks(at_px: float) -> None:
    peaks = [len(found(ring(5.0, 2.5, 0.05, at_px), plan_of(), seed)) for seed in range(3)]
    assert sum(peaks) <= 1, peaks


def test_half_a_ring_makes_no_more_than_a_streak_from_each_end() -> None:
    half = ring(5.0, 2.0, 0.02)
    half[:200] = 0.02
    for seed in range(3):
        peaks = found(half, plan_of(), seed)
        assert len(peaks) <= 3


def test_panels_that_stand_elsewhere_than_in_the_image_are_looked_at_where_they_stand() -> None:
    # The right half of the image stands upside down and farther right, so that no ring is round in the image.
    fs, ss = np.array([75e-6, 0.0, 0.0]), np.array([0.0, 75e-6, 0.0])
    panels = Panels(
        [(0, 400, 0, 204), (0, 400, 204, 408)],
        [(-203.3 * 75e-6, -199.7 * 75e-6, 0.0), (230.0 * 75e-6, 190.0 * 75e-6, 2e-3)],
        [fs, -fs],
        [ss, -ss],
    )
    plan = plan_of(panels=panels)
    radius = plan.geometry.radius_map()
    smooth = 0.02 + 5.0 * np.exp(-0.5 * ((radius - RADIUS_PX) / 2.0) ** 2)
    peaks = [len(found(smooth, plan, seed)) for seed in range(3)]
    assert sum(peaks) <= 2, peaks


def test_places_are_those_of_the_geometry() -> None:
    turn = np.radians(20.0)
    fs, ss = np.array([np.cos(turn), 0.0, np.sin(turn)]) * 75e-6, np.array([0.0, 75e-6, 0.0])
    panels = Panels(
        [(0, 100, 0, 200), (100, 150, 0, 200)], [-99.5 * fs - 49.5 * ss, (-7e-3, 4e-3, -0.01)], [fs, fs], [ss, -ss]
    )
    whole = Geometry((150, 260), 99.5, 49.5, 75e-6, 0.05, 7000.0, panels)
    for geometry in (whole, dataclasses.replace(whole, camera_length_m=None), dataclasses.replace(whole, panels=None)):
        table = geometry.panel_table()
        assert table.shape[1] == PANEL_NUMBERS
        for row, column in ((0, 0), (99, 199), (100, 0), (149, 17), (3, 230)):
            x, y = geometry.positions_px(column, row)
            found = _position(table[_panel_of(table, row, column)], row, column)
            assert found == pytest.approx((float(x), float(y)), rel=1e-9, abs=1e-9)


def test_a_photon_or_two_beside_say_nothing_and_a_ring_says_its_profile() -> None:
    plan = plan_of()
    middle = int(CENTER[1]) * SHAPE[1] + int(CENTER[0] + RADIUS_PX)
    scratch = np.zeros((PARTS, BINS + 1, 3)), np.zeros((BINS, 3))
    expected = np.zeros(25)

    def said(pixels: npt.NDArray[np.uint16], mean: float) -> bool:
        flat = pixels.reshape(-1)
        return bool(expect_beside(flat, SHAPE[1], middle, TOP, plan.inside, plan.panels, mean, 2, *scratch, expected))

    few = np.zeros(SHAPE, np.uint16)
    few[int(CENTER[1]) + 7, int(CENTER[0] + RADIUS_PX)] = 2
    few[int(CENTER[1]) - 9, int(CENTER[0] + RADIUS_PX)] = 1
    assert not said(few, 0.005)
    smooth = np.rint(1000 * ring(1.0, 2.0, 0.0)).astype(np.uint16)
    assert said(smooth, 1.0)
    row, column = divmod(middle, SHAPE[1])
    around = smooth[row - 2 : row + 3, column - 2 : column + 3].astype(np.float64)
    np.testing.assert_allclose(expected.reshape(5, 5), around, rtol=0.06)
    masked = dataclasses.replace(plan, inside=np.zeros(smooth.size, np.uint8))
    flat = smooth.reshape(-1)
    assert not expect_beside(flat, SHAPE[1], middle, TOP, masked.inside, plan.panels, 1.0, 2, *scratch, expected)
