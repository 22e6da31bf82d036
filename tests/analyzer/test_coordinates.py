"""Half a pixel, in one place."""

import numpy as np

from analyzer.coordinates import Convention, in_convention


def test_crystfel_takes_indices_and_edges_begin_half_a_pixel_before_the_first_centre() -> None:
    assert in_convention(0.0, Convention.CRYSTFEL_PEAKS) == 0.0
    assert in_convention(0.0, Convention.EDGES) == 0.5
    index = np.array([0.0, 499.25])
    assert in_convention(index, Convention.EDGES).tolist() == [0.5, 499.75]
    assert index.tolist() == [0.0, 499.25]
