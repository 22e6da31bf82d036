"""Framing: what is left of a frame, and where a place on it lies on the whole."""

import numpy as np
import pytest

from analyzer.framing import Framing


@pytest.mark.parametrize("size", [None, (7, 9), (4, 20), (30, 6), (12, 14), (11, 13)])
@pytest.mark.parametrize("edge", [1, 2, 3])
def test_a_place_on_what_is_left_is_found_again_on_the_frame(size: tuple[int, int] | None, edge: int) -> None:
    frame = (12, 14)
    framing = Framing(size, edge)
    ss, fs = 6, 7
    marks = np.zeros(frame, bool)
    marks[ss, fs] = True
    left = framing.marks(marks)[0]
    assert left.shape == framing.shape(frame)
    places = framing.on_frame(np.argwhere(left).astype(float), frame)
    assert np.abs(places - (ss, fs)).max() <= (edge - 1) / 2


@pytest.mark.parametrize(("size", "edge"), [((0, 3), 1), ((3, -1), 1), ((3, 100_000), 1), (None, 0), (None, -1)])
def test_numbers_that_frame_nothing_are_refused(size: tuple[int, int] | None, edge: int) -> None:
    with pytest.raises(ValueError, match="is "):
        Framing(size, edge)


def test_nothing_is_left_of_a_frame_smaller_than_a_square() -> None:
    assert Framing(None, 8).shape((12, 7)) == (1, 0)
