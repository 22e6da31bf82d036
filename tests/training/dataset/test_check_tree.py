"""Checking a tree: one thing is spoilt in a good one, and the message is exactly this."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.training.dataset.builders import SHAPE, build_tree, change, change_attributes, write_h5
from training.dataset.check_tree import check_image, check_tree
from training.dataset.images import load_image
from training.dataset.problems import Problem
from training.dataset.tree import Tree, find_tree

PEAKS, LABELS, OVERLAYS = "peaks/01", "labels/01", "peaks_water_overlay/01"
PEAK, LABEL = f"{PEAKS}/img_6keV_clen01_00002.h5", f"{LABELS}/label_img_6keV_clen01_00002.h5"
OVERLAY, WATER = f"{OVERLAYS}/overlay_img_6keV_clen01_00002.h5", "water/01/water01.h5"
EMPTY = f"{PEAKS}/empty_peak_01_00001.h5"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return build_tree(tmp_path)


def problems(images: Path, **options: Any) -> list[str]:
    """What is said of a tree, paths relative to it."""
    return [str(p).replace(f"{images}/", "").replace(str(images), ".") for p in check_tree(Tree(images), **options)]


@pytest.mark.parametrize("datasets", [(1,), (2, 5, 9)])
def test_a_good_tree_has_no_problem(tmp_path: Path, datasets: tuple[int, ...]) -> None:
    assert problems(build_tree(tmp_path, datasets)) == []


def test_a_tree_is_found_from_its_root_and_from_images(images: Path) -> None:
    assert find_tree(images.parent) == find_tree(images) == Tree(images)
    assert find_tree(images / "peaks") is None


# --- files ------------------------------------------------------------------------------


def test_bytes_that_are_no_hdf5_are_named(images: Path) -> None:
    (images / PEAK).write_text("a text of some length, to be sure that it is no signature")
    assert problems(images) == [f"{PEAK}: not an HDF5 file"]


def test_an_empty_file_is_named(images: Path) -> None:
    (images / LABEL).write_bytes(b"")
    assert problems(images) == [f"{LABEL}: an empty file"]


def test_a_truncated_file_is_named(images: Path) -> None:
    whole = (images / OVERLAY).read_bytes()
    (images / OVERLAY).write_bytes(whole[: len(whole) - 100])
    assert problems(images) == [f"{OVERLAY}: truncated: {len(whole) - 100} bytes are there, more were written"]


def test_a_folder_in_place_of_a_file_is_named(images: Path) -> None:
    (images / PEAK).unlink()
    (images / PEAK).mkdir()
    assert problems(images) == [f"{PEAK}: a folder where a file belongs"]


def test_a_dangling_link_is_named(images: Path) -> None:
    (images / PEAK).unlink()
    (images / PEAK).symlink_to("nowhere.h5")
    assert problems(images) == [f"{PEAK}: no such file"]


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user who owns nothing, where we are root, who may read all."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others can enter, which pytest's are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_file_that_may_not_be_read_is_named(open_folder: Path) -> None:
    images = build_tree(open_folder)
    (images / PEAK).chmod(0)
    with unprivileged():
        assert problems(images) == [f"{PEAK}: cannot be opened: permission denied"]


def test_a_folder_that_may_not_be_listed_is_named(open_folder: Path) -> None:
    images = build_tree(open_folder)
    (images / LABELS).chmod(0)
    with unprivileged():
        said = problems(images)
    assert said == [f"{LABELS}: cannot be listed: permission denied", f"{LABELS}: no images, peaks has 4"]


# --- the dataset ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "the dataset is missing"),
        (np.zeros((2, *SHAPE)), "shape (2, 24, 30) has rank 3, an image has 2"),
        (3.0, "shape () has rank 0, an image has 2"),
        (np.full(SHAPE, b"x"), "dtype |S1 is none of integer and float"),
        (np.zeros((0, 5)), "shape (0, 5) is no image"),
    ],
)
def test_a_dataset_that_is_no_image_is_named(images: Path, value: Any, text: str) -> None:
    change(images / PEAK, "entry/data/data", value)
    assert problems(images) == [f"{PEAK}:/entry/data/data: {text}"]


def test_a_group_in_place_of_the_dataset_is_named(images: Path) -> None:
    with h5py.File(images / PEAK, "r+") as file:
        del file["entry/data/data"]
        file.create_group("entry/data/data")
    assert problems(images) == [f"{PEAK}:/entry/data/data: the dataset is missing"]


def test_a_dataset_whose_external_link_dangles_is_named(images: Path) -> None:
    with h5py.File(images / PEAK, "r+") as file:
        del file["entry/data/data"]
        file["entry/data/data"] = h5py.ExternalLink("gone.h5", "/x")
    assert problems(images) == [f"{PEAK}:/entry/data/data: the dataset is missing"]


@pytest.mark.parametrize("kind", ["raw", "link", "virtual"])
def test_what_an_image_has_from_elsewhere_is_no_image(images: Path, kind: str) -> None:
    other = images.parent / "other"
    other.write_bytes(b"somebody's token " * 100)
    with h5py.File(images / PEAK, "r+") as file:
        shape = file["entry/data/data"].shape
        del file["entry/data/data"]
        if kind == "link":
            file["entry/data/data"] = h5py.ExternalLink(str(images / WATER), "entry/data/data")
        else:
            place = "entry/data/data" if kind == "raw" else "x"
            file.create_dataset(place, shape, "u1", external=[(bytes(other), 0, h5py.h5f.UNLIMITED)])
        if kind == "virtual":
            layout = h5py.VirtualLayout(shape, "u1")
            layout[:] = h5py.VirtualSource(".", "x", shape)
            file.create_virtual_dataset("entry/data/data", layout)
    said = {
        "raw": "takes its bytes from",
        "link": "is a link to",
        "virtual": "is put together from x of ., which takes",
    }
    loaded = load_image(images / PEAK)
    assert isinstance(loaded, Problem)
    assert str(loaded).startswith(f"{images / PEAK}:/entry/data/data: {said[kind]}")


def test_an_odd_shape_is_named(images: Path) -> None:
    change(images / WATER, "entry/data/data", np.ones((3, 4), np.float32))
    assert problems(images) == [f"{WATER}:/entry/data/data: shape (3, 4), most images of the tree have (24, 30)"]


def test_pixels_that_are_no_photons_are_counted(images: Path) -> None:
    pixels = np.ones(SHAPE, np.float32)
    pixels[0, :3] = np.nan, np.inf, -1
    change(images / WATER, "entry/data/data", pixels)
    assert problems(images) == [f"{WATER}:/entry/data/data: 2 pixels are not finite"]
    pixels[0, :2] = 0
    change(images / WATER, "entry/data/data", pixels)
    assert problems(images) == [f"{WATER}:/entry/data/data: 1 pixels are negative"]


# --- attributes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"clen": None}, "attribute clen is missing"),
        ({"photon_energy": None}, "attribute photon_energy is missing"),
        ({"peak": None}, "attribute peak is missing"),
        ({"clen": "0.15"}, "attribute clen is '0.15', a number is needed"),
        ({"clen": np.nan}, "attribute clen is nan, a number above 0 is needed"),
        ({"clen": -0.15}, "attribute clen is -0.15, a number above 0 is needed"),
        ({"clen": [0.15, 0.25]}, "attribute clen is an array of shape (2,), a number is needed"),
        ({"clen": True}, "attribute clen is True (bool), a number is needed"),
        ({"clen": 0.25}, "attribute clen is 0.25 m, its folder's data set has 0.15 m"),
        ({"clen": 0.1502}, "attribute clen is 0.1502 m, its folder's data set has 0.15 m"),
        ({"photon_energy": 6.0}, "attribute photon_energy is 6 eV, its folder's data set has 6000 eV"),
        ({"photon_energy": np.inf}, "attribute photon_energy is inf, a number above 0 is needed"),
        ({"peak": 1}, "attribute peak is 1 (int64), a bool is needed"),
        ({"peak": "True"}, "attribute peak is 'True', a bool is needed"),
        ({"peak": False}, "attribute peak is False, its name says True"),
    ],
)
def test_a_wrong_attribute_is_named(images: Path, attributes: dict[str, Any], text: str) -> None:
    change_attributes(images / PEAK, **attributes)
    assert problems(images) == [f"{PEAK}:/: {text}"]


@pytest.mark.parametrize("clen", [0.1500001, np.float32(0.15), 0.15000000000000002])
def test_a_camera_length_is_compared_within_a_tolerance(images: Path, clen: Any) -> None:
    change_attributes(images / PEAK, clen=clen, photon_energy=6000.0)
    assert problems(images) == []


def test_water_that_claims_peaks_is_named(images: Path) -> None:
    change_attributes(images / WATER, peak=True)
    assert problems(images) == [f"{WATER}:/: attribute peak is True, its name says False"]


def test_an_empty_image_that_claims_a_peak_is_named(images: Path) -> None:
    change_attributes(images / EMPTY, peak=True)
    assert problems(images) == [f"{EMPTY}:/: attribute peak is True, its name says False"]


# --- labels and sums --------------------------------------------------------------------


def test_a_blank_label_of_a_peak_image_is_named(images: Path) -> None:
    change(images / LABEL, "entry/data/data", np.zeros(SHAPE, np.float32))
    assert problems(images) == [f"{LABEL}:/: attribute peak is True, the label marks 0 pixels"]


def test_a_blank_label_is_right_where_no_pixel_passes_the_threshold(images: Path) -> None:
    weak = np.zeros(SHAPE, np.float32)
    weak[3, 4] = 1
    change(images / PEAK, "entry/data/data", weak)
    change(images / LABEL, "entry/data/data", np.zeros(SHAPE, np.float32))
    change(images / OVERLAY, "entry/data/data", weak + np.random.default_rng(8).poisson(1.0, SHAPE))
    assert problems(images) == []


def test_a_label_of_an_empty_image_that_marks_pixels_is_named(images: Path) -> None:
    path = f"{LABELS}/empty_label_01_00001.h5"
    marked = np.zeros(SHAPE, np.float32)
    marked[1, 2:4] = 1
    change(images / path, "entry/data/data", marked)
    assert problems(images) == [f"{path}:/: attribute peak is False, the label marks 2 pixels"]


def test_a_label_of_other_values_is_named(images: Path) -> None:
    with h5py.File(images / LABEL, "r+") as file:
        file["entry/data/data"][0, :2] = 0.5
    assert problems(images) == [f"{LABEL}:/entry/data/data: 2 pixels are neither 0 nor 1"]


def test_an_empty_image_with_photons_and_a_peak_image_without_are_named(images: Path) -> None:
    peaks = np.zeros(SHAPE, np.float32)
    change(images / PEAK, "entry/data/data", peaks)
    change(images / LABEL, "entry/data/data", peaks)
    peaks[0, 0] = 1
    change(images / EMPTY, "entry/data/data", peaks)
    with h5py.File(images / OVERLAYS / "empty_overlay_01_00001.h5", "r+") as file:
        file["entry/data/data"][0, 0] = 1
    assert problems(images) == [
        f"{PEAK}:/entry/data/data: a peak image without a photon",
        f"{EMPTY}:/entry/data/data: an empty image that holds photons",
    ]


def test_a_peak_image_that_says_what_it_expected_may_be_blank(images: Path) -> None:
    for name in (PEAK, LABEL):
        change(images / name, "entry/data/data", np.zeros(SHAPE, np.float32))
    change_attributes(images / PEAK, bragg_photons=0.7)
    assert problems(images) == []


def test_overlays_in_each_others_place_are_told_by_their_pixels(images: Path) -> None:
    one, two = images / OVERLAY, images / OVERLAYS / "overlay_img_6keV_clen01_00001.h5"
    one.rename(images / "x.h5")
    two.rename(one)
    (images / "x.h5").rename(two)
    said = problems(images)
    assert len(said) == 2
    assert all("pixels are below the peak image" in text and text.endswith("not its overlay") for text in said)


# --- names, pairs, places ---------------------------------------------------------------


def test_a_missing_partner_is_named_on_the_image_that_lacks_it(images: Path) -> None:
    (images / LABEL).unlink()
    assert problems(images) == [f"{PEAK}: its partner {LABEL} is missing"]


def test_pairs_go_by_id_and_not_by_place_in_a_listing(images: Path) -> None:
    # a gap in peaks alone: by place, all that follows would be off by one
    (images / PEAKS / "img_6keV_clen01_00001.h5").unlink()
    label = f"{LABELS}/label_img_6keV_clen01_00001.h5"
    assert problems(images) == [f"{label}: its partner {PEAKS}/img_6keV_clen01_00001.h5 is missing"]


def test_a_gap_in_all_kinds_is_none(images: Path) -> None:
    for name in (PEAK, LABEL, OVERLAY):
        (images / name).unlink()
    assert problems(images) == []


def test_a_kind_that_is_missing_altogether_is_one_problem(images: Path) -> None:
    shutil.rmtree(images / LABELS)
    assert problems(images) == [f"{LABELS}: no images, peaks has 4"]


def test_a_second_file_for_an_id_is_named(images: Path) -> None:
    shutil.copy(images / PEAK, images / PEAKS / "img_6keV_clen01_2.h5")
    second = f"{PEAKS}/img_6keV_clen01_2.h5"
    assert problems(images) == [f"{second}: a second file of image 01/img/00002, beside img_6keV_clen01_00002.h5"]


def test_a_file_of_another_data_set_is_named(images: Path) -> None:
    shutil.copy(images / PEAK, images / PEAKS / "img_7keV_clen01_00009.h5")
    assert problems(images) == [f"{PEAKS}/img_7keV_clen01_00009.h5: its name is of data set 02, its folder is 01"]


def test_unknown_names_and_folders_are_named_and_other_files_are_left_alone(images: Path) -> None:
    shutil.copy(images / PEAK, images / PEAKS / "copy.h5")
    shutil.copytree(images / PEAKS, images / "peaks" / "10")
    (images / PEAKS / "notes.txt").write_text("ours")
    (images / PEAKS / ".img_6keV_clen01_00009.h5.7.part").write_text("half")
    assert problems(images) == [
        f"{PEAKS}/copy.h5: no name of an image in peaks, such as img_6keV_clen01_00001.h5",
        "peaks/10: none of the nine data sets 01 to 09",
    ]


def test_water_is_one_file(images: Path) -> None:
    shutil.copy(images / WATER, images / "water/01/water_old.h5")
    assert problems(images) == ["water/01/water_old.h5: a second water file; data set 01 has one"]
    (images / "water/01/water_old.h5").unlink()
    (images / WATER).unlink()
    assert problems(images) == ["water/01: no water01.h5; a data set has one water file"]


def test_only_the_chosen_data_sets_are_checked(tmp_path: Path) -> None:
    images = build_tree(tmp_path, (1, 2))
    (images / PEAK).write_bytes(b"")
    assert problems(images, datasets={2}) == []
    assert problems(images, datasets={1}) == [f"{PEAK}: an empty file"]
    assert problems(images, datasets={3}) == [".: none of the chosen data sets is here"]


def test_everything_is_said_at_once(images: Path) -> None:
    (images / LABEL).unlink()
    change_attributes(images / PEAK, clen=np.nan, peak=False)
    (images / WATER).write_bytes(b"")
    assert len(problems(images)) == 4


# --- leaks ------------------------------------------------------------------------------


def test_the_papers_frozen_background_is_a_leak(tmp_path: Path) -> None:
    said = problems(build_tree(tmp_path, hits=3, empties=2, frozen=True))
    assert said == [
        f"{OVERLAYS}/overlay_img_6keV_clen01_00001.h5:/entry/data/data: the background (overlay - peak) is bit for bit "
        "that of overlay_img_6keV_clen01_00002.h5 and 3 more: noise drawn once, as in the paper, which a network "
        "learns by heart; draw it anew for every image with `cxls data overlay TREE --force --datasets 1`",
        f"{OVERLAYS}/empty_overlay_01_00001.h5:/entry/data/data: bit for bit the same image as "
        "empty_overlay_01_00002.h5 in peaks_water_overlay",
    ]


def test_a_peak_image_twice_is_a_leak(images: Path) -> None:
    first = images / PEAKS / "img_6keV_clen01_00001.h5"
    with h5py.File(first) as file:
        pixels = file["entry/data/data"][()]
    change(images / PEAK, "entry/data/data", pixels.astype(np.int64))
    change(images / LABEL, "entry/data/data", (pixels > 1).astype(np.float32))
    change(images / OVERLAY, "entry/data/data", pixels + np.random.default_rng(77).poisson(2.0, SHAPE))
    assert problems(images) == [
        f"{PEAKS}/img_6keV_clen01_00001.h5:/entry/data/data: bit for bit the same image as "
        "img_6keV_clen01_00002.h5 in peaks"
    ]


# --- one image --------------------------------------------------------------------------


def test_an_image_alone_is_checked_without_a_condition(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "mine.h5", np.ones(SHAPE), clen=0.2, photon_energy=9500, peak=True)
    assert list(check_image(path)) == []
    change_attributes(path, clen=None)
    assert [str(p) for p in check_image(path)] == [f"{path}:/: attribute clen is missing"]
