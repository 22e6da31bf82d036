"""What is expected of the diffuse scattering: its slopes, the simulation's images, and the likelihood's curvature."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from analyzer.parameters import model
from analyzer.parameters.fit import POLARISATION
from analyzer.parameters.model import (
    CENTER_X,
    CENTER_Y,
    ENERGY,
    FLAT,
    OTHERS,
    PILE_UP,
    RATIO,
    SCALE,
    WARMER,
    climb,
    curvature,
    expect,
    wall,
)  # fmt: skip
from analyzer.parameters.profile import Sectors
from sim_replay.detector import CONDITIONS, Condition
from tests.analyzer.parameters import made
from tests.analyzer.parameters.made import Floats, image, panel, tables, truth

UNKNOWNS = OTHERS + len(tables().tables) - model.OTHER_TABLES
STEPS = {RATIO: 1e-5, ENERGY: 1e-5, CENTER_X: 1e-3, CENTER_Y: 1e-3}


def rings() -> Sectors:
    """Of all sectors, for slopes by the beam's place are none where quadrants are folded."""
    return made.rings(folded=False)


def expected(condition: Condition, **surroundings: Any) -> Floats:
    return made.sums(image(condition, **surroundings), folded=False)


def seen(x: Floats, polarisation: tuple[float, float, float] = POLARISATION) -> tuple[Floats, Floats]:
    """Mean and slopes at ``x`` on a frame's rings."""
    mean, slopes = np.zeros(len(rings().pixels)), np.zeros((len(x), len(rings().pixels)))
    expect(
        x, rings().shape, rings().pixel_size_m, np.array(polarisation), tables().tables,
        tables().q_step_inv_angstrom, mean, slopes,
    )  # fmt: skip
    return mean, slopes


def somewhere(condition: int, seed: int = 0, pile_up: float = 0.5) -> Floats:
    rng = np.random.default_rng(seed)
    x = np.zeros(UNKNOWNS)
    x[:2] = truth(CONDITIONS[condition])
    x[[CENTER_X, CENTER_Y]] = rng.uniform(-5, 5, 2)
    x[SCALE], x[PILE_UP], x[FLAT], x[WARMER] = -1.0, pile_up, 0.1, 0.4
    x[OTHERS : OTHERS + 3] = rng.uniform(0.1, 0.5, 3)
    x[OTHERS + 3 :] = rng.normal(0, 0.01, UNKNOWNS - OTHERS - 3)
    return x


def outer() -> Floats:
    """Bins that a shift of the beam by some pixels moves little, and that hold pixels."""
    return (rings().shape[model.RADIUS] > 96.0) & (rings().pixels > 500)


# --- slopes -----------------------------------------------------------------------------


@pytest.mark.parametrize("pile_up", [0.0, 0.7])
@pytest.mark.parametrize("polarisation", [(1.0, 0.0, 0.0), (0.5, 0.0, 0.5), (0.7, 0.2, 0.3)])
@pytest.mark.parametrize("unknown", range(UNKNOWNS))
def test_the_slope_by_each_unknown_is_the_difference_quotient(
    unknown: int, polarisation: tuple[float, float, float], pile_up: float
) -> None:
    x = somewhere(5, pile_up=pile_up)
    mean, slopes = seen(x, polarisation)
    step = STEPS.get(unknown, 1e-4)
    there, before = x.copy(), x.copy()
    there[unknown] += step
    before[unknown] -= step
    quotient = (seen(there, polarisation)[0] - seen(before, polarisation)[0]) / (2 * step)
    where = outer()
    scale = np.abs(quotient[where]).max() + 1e-9
    error = np.abs(slopes[unknown] - quotient)[where] / scale
    # The table is straight between its samples: a quotient across one of them is off by a little. A shift of the beam
    # is to second order, the slopes to first.
    assert np.median(error) < (0.02 if unknown in (CENTER_X, CENTER_Y) else 2e-3)
    assert error.max() < (0.1 if unknown in (CENTER_X, CENTER_Y) else 0.05)
    assert (mean > 0).all()


def test_pile_up_of_next_to_nothing_is_that_of_nothing() -> None:
    x = somewhere(4)
    x[PILE_UP] = 0.0
    nothing = seen(x)
    x[PILE_UP] = 1e-5
    np.testing.assert_allclose(seen(x)[0], nothing[0], rtol=1e-4)
    np.testing.assert_allclose(seen(x)[1][PILE_UP], nothing[1][PILE_UP], rtol=1e-3)


# --- the simulation's images ------------------------------------------------------------


@pytest.mark.parametrize("condition", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (5.0, -3.0)])
def test_expected_counts_are_those_of_the_simulations_images(condition: int, shift: tuple[float, float]) -> None:
    """On the profile's own rings, where a ring's curvature shows least."""
    fine = panel()[2]
    counts = made.sums(image(CONDITIONS[condition], shift), merged=1, folded=False)
    x = np.zeros(OTHERS + 3)
    x[:2] = truth(CONDITIONS[condition])
    x[[CENTER_X, CENTER_Y]] = shift
    mean, slopes = np.zeros(fine.bins), np.zeros((len(x), fine.bins))
    expect(
        x, fine.shape, fine.pixel_size_m, np.array(POLARISATION), tables().tables[:6],
        tables().q_step_inv_angstrom, mean, slopes,
    )  # fmt: skip
    where = (fine.shape[model.RADIUS] > 32.0) & (fine.pixels > 200)
    ratio = (counts / np.maximum(fine.pixels * mean, 1e-30))[where]
    ratio /= np.average(ratio, weights=counts[where])
    assert np.abs(ratio - 1.0).max() < (4e-3 if any(shift) else 1.5e-3)
    assert np.sqrt(np.average((ratio - 1.0) ** 2, weights=counts[where])) < 1e-3


@pytest.mark.parametrize(
    ("unknown", "amount", "surroundings"),
    [
        (OTHERS, 3.0, {"air_path_m": 0.03}),
        (OTHERS + 1, 1.0, {"film_thickness_m": 25e-6}),
        (OTHERS + 2, 1.0, {"capillary_wall_m": 10e-6}),
        (WARMER, 1.0, {"water_temperature_K": 308.15}),
    ],
)
def test_what_else_stands_in_the_beam_is_expected_as_simulated(
    unknown: int, amount: float, surroundings: dict[str, float]
) -> None:
    condition = CONDITIONS[5]
    x = np.zeros(UNKNOWNS)
    x[:2] = truth(condition)
    mean = seen(x)[0]
    x[unknown] = amount
    more = seen(x)[0]
    where = outer()
    simulated = expected(condition, **surroundings)[where] / expected(condition)[where]
    error = np.abs((more / mean)[where] / simulated - 1.0)
    # Within rings so wide a film's narrow peaks are not straight.
    assert error.max() < 1.5e-2
    assert np.median(error) < 1e-3


# --- likelihood -------------------------------------------------------------------------


def test_the_curvature_is_the_hessian_of_the_likelihood_in_expectation() -> None:
    x = somewhere(5)
    free = np.array([RATIO, ENERGY, SCALE, FLAT, WARMER, OTHERS])
    mean, slopes = seen(x)
    photons = mean * rings().pixels
    information, score = np.zeros((len(free),) * 2), np.zeros(len(free))
    log = curvature(photons, rings().pixels, mean, slopes, free, information, score)
    assert log == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(score, 0.0, atol=1e-6 * np.sqrt(np.diag(information)).max())

    def score_at(away: Floats) -> Floats:
        y = x.copy()
        y[free] += away
        there, slopes_there = seen(y)
        found = np.zeros(len(free))
        curvature(photons, rings().pixels, there, slopes_there, free, np.zeros((len(free),) * 2), found)
        return found

    unit = 1e-2 / np.sqrt(np.diag(information))
    for n in range(len(free)):
        away = np.zeros(len(free))
        away[n] = unit[n]
        numerical = -(score_at(away) - score_at(-away)) / (2 * unit[n])
        scale = np.sqrt(np.diag(information) * information[n, n])
        np.testing.assert_allclose(numerical / scale, information[n] / scale, atol=0.02)


def test_bins_without_pixels_say_nothing() -> None:
    x = somewhere(5)
    mean, slopes = seen(x)
    free, count = np.arange(4), 4
    photons, pixels = mean * rings().pixels, rings().pixels.copy()
    pixels[::2] = 0.0
    photons[::2] = 0.0
    half, score = np.zeros((count, count)), np.zeros(count)
    assert np.isfinite(curvature(photons, pixels, mean, slopes, free, half, score))
    left = np.zeros((count, count))
    where = slice(1, None, 2)
    curvature(
        photons[where].copy(), pixels[where].copy(), mean[where].copy(), slopes[:, where].copy(), free, left, score
    )
    np.testing.assert_allclose(half, left)


def test_the_wall_is_nothing_where_beamlines_are_and_bends_beyond() -> None:
    pull = np.zeros(5)
    for condition in CONDITIONS.values():
        assert wall(truth(condition), pull) == 0.0
        assert not pull.any()
    energy, length = np.log(20e3), np.log(1.2)
    far = np.array([length - energy, energy])
    here = wall(far, pull)
    assert here < -100.0
    step = 1e-6
    for n in range(2):
        away = np.eye(2)[n] * step
        quotient = (wall(far + away, np.zeros(5)) - wall(far - away, np.zeros(5))) / (2 * step)
        assert pull[n] == pytest.approx(quotient, rel=1e-5)


def test_a_climb_from_near_by_ends_at_the_truth() -> None:
    condition = replace(CONDITIONS[5], flux_photons=3e9)
    photons = expected(condition)
    # What merged rings are apart from the image is no part of this: the model's own counts.
    x = np.zeros(UNKNOWNS)
    x[:2] = truth(condition)
    mean, slopes = seen(x)
    photons = mean * rings().pixels * photons.sum() / (mean * rings().pixels).sum()
    free = np.array([RATIO, ENERGY, CENTER_X, CENTER_Y, SCALE])
    start = np.zeros(UNKNOWNS)
    start[:2] = truth(condition) + np.array([0.05, -0.1])
    start[SCALE] = np.log(photons.sum() / (mean * rings().pixels).sum()) + 0.3
    log, steps = climb(
        start, free, np.zeros(5), np.zeros((5, 5)), photons, rings().pixels, rings().shape, rings().pixel_size_m,
        np.array(POLARISATION), tables().tables, tables().q_step_inv_angstrom, mean, slopes, 60, -np.inf,
        np.zeros((0, 2)),
    )  # fmt: skip
    assert steps < 20
    assert log == pytest.approx(0.0, abs=0.1)
    np.testing.assert_allclose(start[:2], truth(condition), atol=2e-3)
    assert np.abs(start[[CENTER_X, CENTER_Y]]).max() < 0.1
