"""Where the crystals' light is."""

import numpy as np

from analyzer.tile_layout import HEATS
from sim_replay.diffraction import Footprint
from training.peak_finder.light import Light


def footprint(*pixels: tuple[int, int, float], columns: int = 50) -> Footprint:
    index = np.array([ss * columns + fs for ss, fs, _ in pixels], np.int64)
    return Footprint(index, np.array([p for _, _, p in pixels]), np.zeros(len(pixels), np.int32))


def test_a_place_stands_on_light_within_three_pixels_of_it() -> None:
    light = Light((40, 50))
    light.show([footprint((20, 30, 0.2)), footprint((20, 30, 0.2), (39, 49, 5.0), (0, 0, 5.0))])
    places = np.array([[30.0, 20.0], [33.4, 17.0], [33.6, 20.0], [30.0, 16.4], [49.0, 39.0], [47.0, 36.0], [0.0, 3.0]])
    assert light.at(places).tolist() == [True, True, False, False, True, True, True]
    assert len(light.at(np.empty((0, 2)))) == 0


def test_the_next_frame_does_not_see_the_light_of_the_one_before() -> None:
    light = Light((40, 50))
    light.show([footprint((20, 30, 9.0))])
    light.show([])
    assert not light.at(np.array([[30.0, 20.0]])).any()


def test_heats_stand_on_light_within_three_pixels_of_theirs() -> None:
    light = Light((40, 50))
    light.show([footprint((8, 16, 1.0), (39, 49, 1.0))])
    lit = light.at_heats(np.array([1 * 7 + 2, 4 * 7 + 6, 0], np.int32), 7)
    assert lit.shape == (3, HEATS, HEATS)
    # Pixel 8, 16 is the first of its cell: heats 0 and 1 of either axis reach it, at 1 and 2 to 3 pixels.
    assert lit[0].tolist() == [[y < 2 and x < 2 for x in range(HEATS)] for y in range(HEATS)]
    assert lit[1, 3, 0]
    assert not lit[2].any()
