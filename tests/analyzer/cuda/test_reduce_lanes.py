"""The threads of the reduction's blocks in any order between two meetings: the same bytes, or a meeting is missing."""

from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.cuda.layout import HEADER_DTYPE, MOST_CANDIDATES
from analyzer.reduction import FramePlan
from tests.analyzer.builders import SHAPE, plan, water, with_spots
from tests.analyzer.cuda.host_build import LanesProgram
from tests.analyzer.cuda.host_reduce import InOrder, assert_as_on_the_cpu, programs, result_bytes
from tests.analyzer.cuda.test_reduce import RINGS, drawn, kinds, with_rings

ORDERS = (1, 2)
"""From the last to the first, and shuffled."""


def assert_in_any_order(frames: npt.NDArray[Any], made: FramePlan, orders: tuple[int, ...] = ORDERS) -> None:
    expected = result_bytes(frames, made, programs(InOrder))
    apart = programs(LanesProgram)
    for order in orders:
        for program in apart.values():
            assert isinstance(program, LanesProgram)
            program.order = order
        np.testing.assert_array_equal(result_bytes(frames, made, apart), expected)


def test_no_kind_of_frame_depends_on_the_order_of_the_threads() -> None:
    valid = (np.random.default_rng(1).random(SHAPE) < 0.95).astype(np.uint8)
    assert_in_any_order(kinds(SHAPE, "u2"), plan(valid=valid))


def test_spots_and_streaks_do_not_depend_on_the_order_of_the_threads() -> None:
    rng = np.random.default_rng(7)
    frames = [drawn(rng, (129, 130), "u2") for _ in range(6)]
    assert_in_any_order(np.stack([*frames, with_spots(water(0.1, (129, 130)))]), plan((129, 130)))


def test_peaks_on_rings_do_not_depend_on_the_order_of_the_threads() -> None:
    assert_in_any_order(with_rings(), plan(RINGS))


def test_a_full_list_of_candidates_does_not_depend_on_the_order_of_the_threads() -> None:
    # All pixels lie in one bin and nearly all stand out alike, so that few are kept when the list is cut.
    shape = (366, 368)
    y, x = np.indices(shape)
    pixels = np.where((x + y) % 2, 200, 0).astype("u2")
    pixels[np.random.default_rng(3).random(shape) < 0.001] = 4000
    made = plan(shape, center=(150.0, -40000.0))
    assert np.count_nonzero(pixels) > MOST_CANDIDATES
    head = result_bytes(pixels[None], made, programs())[0, : HEADER_DTYPE.itemsize].view(HEADER_DTYPE)
    assert 0 < int(head["candidates"][0]) < 1000
    assert_as_on_the_cpu(pixels[None], made, programs())
    assert_in_any_order(pixels[None], made, (2,))
