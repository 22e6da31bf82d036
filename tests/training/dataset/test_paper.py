"""The nine data sets and the names of files."""

import pytest

from streamer.files import BadInput
from training.dataset.paper import (
    IMAGE_KINDS,
    PAPER,
    ImageId,
    dataset_of,
    file_name,
    parse_datasets,
    parse_id,
    parse_name,
)


def test_the_nine_are_the_papers_table() -> None:
    table = {n: (d.camera_length_m, d.photon_energy_eV, d.camera_length_index) for n, d in PAPER.items()}
    assert table == {
        1: (0.15, 6000, 1), 2: (0.15, 7000, 1), 3: (0.15, 8000, 1),
        4: (0.25, 6000, 2), 5: (0.25, 7000, 2), 6: (0.25, 8000, 2),
        7: (0.35, 6000, 3), 8: (0.35, 7000, 3), 9: (0.35, 8000, 3),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("length", "energy", "number"),
    [
        (0.15, 6000, 1),
        (0.1500001, 6000.0, 1),
        (0.35000000000000003, 8000, 9),
        (0.2, 6000, None),
        (0.151, 6000, None),
        (0.15, 6001, None),
        (float("nan"), 6000, None),
    ],
)
def test_a_condition_is_met_within_a_tolerance(length: float, energy: float, number: int | None) -> None:
    assert dataset_of(length, energy) == number


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@pytest.mark.parametrize("number", PAPER)
@pytest.mark.parametrize("empty", [False, True])
def test_a_name_says_what_it_was_made_from(kind, number: int, empty: bool) -> None:  # type: ignore[no-untyped-def]
    image = ImageId(number, empty, 37)
    assert parse_name(kind, file_name(kind, image)) == image
    assert parse_id(str(image)) == image


def test_names_are_the_papers() -> None:
    assert file_name("peaks", ImageId(5, False, 12)) == "img_7keV_clen02_00012.h5"
    assert file_name("labels", ImageId(5, False, 12)) == "label_img_7keV_clen02_00012.h5"
    assert file_name("peaks_water_overlay", ImageId(9, False, 1)) == "overlay_img_8keV_clen03_00001.h5"
    assert file_name("peaks_water_overlay", ImageId(9, True, 1)) == "empty_overlay_09_00001.h5"


def test_the_papers_raw_name_is_read() -> None:
    assert parse_name("peaks", "01_6keV_clen01_000007.h5") == ImageId(1, False, 7)
    assert parse_name("peaks_water_overlay", "overlay_01_6keV_clen01_000007.h5") == ImageId(1, False, 7)


@pytest.mark.parametrize(
    "name",
    [
        "02_6keV_clen01_000007.h5",  # number and condition disagree
        "img_9keV_clen01_00001.h5",
        "img_6keV_clen04_00001.h5",
        "overlay_img_6keV_clen01_00001.h5",
        "empty_overlay_01_00001.h5",
        "empty_peak_10_00001.h5",
        "img_6keV_clen01_00001.h5.bak",
        "img_6keV_clen01_-0001.h5",
        "img_6keV_clen01_.h5",
        "",
    ],
)
def test_other_names_are_none_of_a_peak_image(name: str) -> None:
    assert parse_name("peaks", name) is None


@pytest.mark.parametrize(("text", "numbers"), [("1", {1}), ("1,5-9", {1, 5, 6, 7, 8, 9}), (" 3 , 03-04 ", {3, 4})])
def test_a_list_of_data_sets(text: str, numbers: set[int]) -> None:
    assert parse_datasets(text) == numbers


@pytest.mark.parametrize("text", ["", "0", "10", "1,,2", "5-3", "1-", "a", "1;2", "-1", "1-99", "٣"])
def test_a_bad_list_of_data_sets_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadInput, match="--datasets") as error:
        parse_datasets(text)
    assert "\n" not in str(error.value)
