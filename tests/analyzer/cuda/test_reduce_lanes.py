"""The threads of the reduction's blocks in any order between two meetings: the same bytes, or a meeting is missing."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.cuda.layout import MOST_CANDIDATES
from analyzer.reduction import FramePlan
from tests.analyzer.builders import SHAPE, plan, water, with_spots
from tests.analyzer.cuda.host_build import LanesProgram
from tests.analyzer.cuda.host_reduce import InOrder, programs, result_bytes
from tests.analyzer.cuda.test_reduce import drawn, kinds

ORDERS = (0, 1, 2, 3)


def assert_in_any_order(frames: npt.NDArray[Any], made: FramePlan, orders: tuple[int, ...] = ORDERS) -> None:
    expected = result_bytes(frames, made, programs(InOrder))
    apart = programs(LanesProgram)
    for order in orders:
        for program in apart.values():
            assert isinstance(program, LanesProgram)
            program.order = order
        np.testing.assert_array_equal(result_bytes(frames, made, apart), expected)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_no_kind_of_frame_depends_on_the_order_of_the_threads(dtype: str) -> None:
    valid = (np.random.default_rng(1).random(SHAPE) < 0.95).astype(np.uint8)
    assert_in_any_order(kinds(SHAPE, dtype), plan(dtype=dtype, valid=valid))


def test_spots_and_streaks_do_not_depend_on_the_order_of_the_threads() -> None:
    rng = np.random.default_rng(7)
    frames = [drawn(rng, (129, 130), "u2") for _ in range(10)]
    assert_in_any_order(np.stack([*frames, with_spots(water(0.1, (129, 130)))]), plan((129, 130)))


def test_a_full_list_of_candidates_does_not_depend_on_the_order_of_the_threads() -> None:
    # All pixels lie in one bin, so that many are alike and few are kept when the list is cut.
    rng = np.random.default_rng(3)
    pixels = np.zeros((256, 304), "u2")
    pixels[rng.random(pixels.shape) < 0.97] = 200
    pixels[rng.random(pixels.shape) < 0.02] = 4000
    made = plan(pixels.shape, center=(150.0, -40000.0))
    assert np.count_nonzero(pixels) > MOST_CANDIDATES
    assert_in_any_order(pixels[None], made, (1, 2))
