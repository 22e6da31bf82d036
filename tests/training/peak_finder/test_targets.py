"""What is asked of the peak network in a tile."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.tile_layout import HEATS
from training.peak_finder.targets import SIGMA, Targets, targets_of

ACROSS = 10


def targets(
    *spots: tuple[float, float, float], cells: tuple[int, ...] = (22,), lit: npt.NDArray[np.bool_] | None = None
) -> Targets:
    fs, ss, counts = (np.array([spot[k] for spot in spots], np.float64) for k in range(3))
    dark = np.zeros((len(cells), HEATS, HEATS), np.bool_) if lit is None else lit
    return targets_of(fs, ss, counts, np.array(cells, np.int32), ACROSS, dark)


def test_the_spots_own_heat_is_exactly_one_and_a_gaussian_lies_about_it() -> None:
    # Cell 22 begins at pixel 16, 16; heat row 1, column 2 has pixels 18, 19 and 20, 21.
    made = targets((20.5, 18.9, 30.0))
    assert made.heat[0, 1, 2] == 1.0
    assert made.heat[0, 1, 1] == pytest.approx(math.exp(-0.5 / SIGMA**2))
    assert made.heat[0, 2, 3] == pytest.approx(math.exp(-1.0 / SIGMA**2))
    assert np.argwhere(made.spot).tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(made.offsets[0, :, 1, 2], [0.0, 0.2], atol=1e-6)
    assert made.log_counts[0, 1, 2] == pytest.approx(math.log(30.0))


@pytest.mark.parametrize("seed", range(5))
def test_offsets_lead_from_the_heat_to_the_place(seed: int) -> None:
    fs, ss = np.random.default_rng(seed).uniform(16.0, 23.0, 2)
    made = targets((fs, ss, 9.0))
    _, row, column = np.argwhere(made.spot)[0]
    assert 2 * (2 * HEATS + column + made.offsets[0, 0, row, column]) + 0.5 == pytest.approx(fs, abs=1e-5)
    assert 2 * (2 * HEATS + row + made.offsets[0, 1, row, column]) + 0.5 == pytest.approx(ss, abs=1e-5)
    assert abs(made.offsets).max() <= 0.5


def test_a_spot_just_outside_warms_the_tiles_rim_and_is_asked_for_next_door() -> None:
    made = targets((24.4, 20.0, 9.0), cells=(22, 23))
    assert not made.spot[0].any()
    assert made.spot[1].sum() == 1
    assert made.heat[0, :, 3].max() == pytest.approx(math.exp(-0.5 / SIGMA**2))


def test_a_spot_too_weak_to_tell_is_left_out_and_a_vanishing_one_is_nothing() -> None:
    weak = targets((20.5, 18.9, 0.8))
    assert not weak.spot.any()
    assert weak.heat.max() == 0.0
    assert weak.left_out[0, 0:3, 1:4].all()
    assert weak.left_out.sum() == 9
    assert not targets((20.5, 18.9, 0.1)).left_out.any()


def test_a_bright_spot_beside_a_weak_one_is_still_asked_for() -> None:
    made = targets((20.5, 18.9, 50.0), (21.5, 18.9, 0.8))
    assert made.spot[0, 1, 2]
    assert not made.left_out[0, 1, 2]


def test_of_two_spots_in_one_heat_the_brighter_is_asked_for() -> None:
    for order in (1, -1):
        made = targets(*[(20.2, 18.5, 5.0), (20.8, 18.5, 50.0)][::order])
        assert made.log_counts[0, 1, 2] == pytest.approx(math.log(50.0))
        assert made.offsets[0, 0, 1, 2] == pytest.approx(0.15)


def test_light_far_from_any_spot_is_left_out_and_beside_one_is_not() -> None:
    lit = np.ones((2, HEATS, HEATS), np.bool_)
    made = targets((16.5, 16.5, 9.0), cells=(22, 27), lit=lit)
    assert made.left_out[1].all()
    assert not made.left_out[0, :2, :2].any()
    assert made.left_out[0, 3, 3]


def test_without_spots_nothing_is_asked_for() -> None:
    made = targets(cells=(0, 5, 99))
    assert made.heat.shape == (3, HEATS, HEATS)
    assert not made.heat.any()
