"""Which pixels count."""

import numpy as np
import pytest

from streamer.messages import SeriesMetadata
from streamer.validity import LAYOUTS, Validity, layout_of, saturation_of, sentinel, series_validity

FOUR_M = (2162, 2068)
MODULES = {"500K": 1, "1M": 2, "4M": 8, "9M": 18, "16M": 32}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_what_is_not_a_gap_is_modules(layout: object) -> None:
    validity = series_validity(SeriesMetadata(), layout.shape, "threshold_1")  # type: ignore[attr-defined]
    assert validity.name == f"gaps of {layout.name}"  # type: ignore[attr-defined]
    rows, columns = layout.module  # type: ignore[attr-defined]
    assert validity.pixels == MODULES[layout.name.split()[1]] * rows * columns  # type: ignore[attr-defined]


def test_the_4m_has_three_gaps_of_38_rows_and_one_of_12_columns() -> None:
    layout = layout_of(FOUR_M)
    assert layout is not None
    assert layout.gaps() == ([(512, 550), (1062, 1100), (1612, 1650)], [(1028, 1040)])


def test_an_unknown_shape_has_no_gaps() -> None:
    validity = series_validity(SeriesMetadata(), (100, 100), "threshold_1")
    assert (validity.name, validity.pixels) == ("none", 10_000)


def test_the_streams_mask_comes_first_and_any_bit_makes_a_pixel_bad() -> None:
    mask = np.zeros((10, 10), "u4")
    mask[0, 0], mask[3, 4] = 1, 16
    validity = series_validity(SeriesMetadata(masks={"threshold_1": mask}), (10, 10), "threshold_1")
    assert validity.name.startswith("stream")
    assert validity.pixels == 98
    assert np.argwhere(validity.valid == 0).tolist() == [[0, 0], [3, 4]]


def test_a_channel_without_a_mask_takes_anothers() -> None:
    mask = np.eye(10, dtype="u4")
    assert series_validity(SeriesMetadata(masks={"threshold_1": mask}), (10, 10), "threshold_2").pixels == 90


def test_a_mask_of_another_shape_is_not_used() -> None:
    validity = series_validity(SeriesMetadata(masks={"a": np.ones((5, 5), "u4")}), FOUR_M, "a")
    assert validity.name == "gaps of EIGER2 4M"


def test_a_mask_file_goes_on_top_and_is_left_aside_where_it_does_not_fit() -> None:
    extra = np.ones((10, 10), np.uint8)
    extra[5] = 0
    validity = series_validity(SeriesMetadata(), (10, 10), "a", Validity("mine", extra))
    assert (validity.name, validity.pixels) == ("none + mine", 90)
    assert validity.unfit == ""
    other = series_validity(SeriesMetadata(), (10, 11), "a", Validity("mine", extra))
    assert (other.name, other.pixels) == ("none", 110)
    assert other.unfit == "mine is for images of 10 x 10 pixels, the images are 10 x 11; give one of their shape"


@pytest.mark.parametrize(("dtype", "value"), [("u1", 255), ("<u2", 65535), (">u2", 65535), ("u4", 2**32 - 1)])
def test_the_largest_value_says_no_data(dtype: str, value: int) -> None:
    assert sentinel(np.dtype(dtype)) == value


@pytest.mark.parametrize(("said", "meant"), [(None, 65534), (0, 65534), (900, 900), (65534, 65534), (1 << 20, 65534)])
def test_a_pixel_is_saturated_from_what_the_header_says_and_below_the_sentinel(said: int | None, meant: int) -> None:
    assert saturation_of(SeriesMetadata(saturation_value=said), np.dtype("u2")) == meant


def test_a_streams_mask_that_leaves_nothing_out_has_no_name_of_its_own() -> None:
    meta = SeriesMetadata(masks={"threshold_1": np.zeros((4, 5), "u4")})
    assert series_validity(meta, (4, 5), "threshold_1").name == series_validity(SeriesMetadata(), (4, 5), "any").name
