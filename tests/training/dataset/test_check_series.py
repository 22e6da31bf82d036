"""Checking a series: one thing is spoilt in a good one, and the message is exactly this."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.training.dataset.builders import SHAPE, build_series, change, good_truth
from training.dataset.check_series import check_series


@pytest.fixture
def master(tmp_path: Path) -> Path:
    return build_series(tmp_path)


def problems(master: Path) -> list[str]:
    """What is said of a series, paths relative to its folder."""
    return [str(problem).replace(f"{master.parent}/", "") for problem in check_series(master)]


def with_truth(folder: Path, **changes: Any) -> Path:
    """A series whose truth differs from a good one in these."""
    truth = {name: value for name, value in (good_truth() | changes).items() if value is not None}
    return build_series(folder, truth=truth)


def edited(name: str, *place: int, to: Any) -> dict[str, Any]:
    value = np.array(good_truth()[name])
    value[place] = to
    return {name: value}


def test_a_good_series_has_no_problem(master: Path) -> None:
    assert problems(master) == []


def test_a_series_without_truth_has_no_problem(tmp_path: Path) -> None:
    master = build_series(tmp_path)
    change(master, "entry/truth", None)
    assert problems(master) == []


def test_a_data_file_alone_is_checked(master: Path) -> None:
    assert problems(master.parent / "run_data_000001.h5") == []


# --- files and links --------------------------------------------------------------------


def test_a_lost_data_file_is_named(master: Path) -> None:
    (master.parent / "run_data_000002.h5").unlink()
    assert problems(master) == [
        "run_master.h5:/entry/data/data_000002: links to run_data_000002.h5, which is not there; "
        "put it beside the master"
    ]


@pytest.mark.parametrize("target", ["pipe", "../elsewhere.h5"])
@pytest.mark.parametrize("place", ["entry/data", "entry/data/data_000002"])
def test_a_link_that_is_not_followed_is_named_where_it_is(master: Path, place: str, target: str) -> None:
    os.mkfifo(master.parent / "pipe")
    with h5py.File(master, "r+") as file:
        del file[place]
        file[place] = h5py.ExternalLink(target, "/entry/data")
    said = problems(master)
    assert len(said) == 1
    assert said[0].startswith(f"run_master.h5:/{place}: ")
    assert "not a regular file" in said[0] or "is a link to ../elsewhere.h5, outside" in said[0]


def test_all_data_files_lost_are_named_once_each(master: Path) -> None:
    for path in master.parent.glob("run_data_*"):
        path.unlink()
    assert [text.split(":")[1] for text in problems(master)] == ["/entry/data/data_000001", "/entry/data/data_000002"]


def test_a_truncated_data_file_is_named(master: Path) -> None:
    data = master.parent / "run_data_000001.h5"
    whole = data.read_bytes()
    data.write_bytes(whole[:-200])
    assert problems(master) == [
        "run_master.h5:/entry/data/data_000001: links to run_data_000001.h5, which is no good: "
        f"truncated: {len(whole) - 200} bytes are there, more were written"
    ]


def test_a_data_file_without_images_is_named(master: Path) -> None:
    change(master.parent / "run_data_000001.h5", "entry/data", None)
    assert problems(master) == [
        "run_master.h5:/entry/data/data_000001: links to /entry/data/data of run_data_000001.h5, "
        "which has no images there"
    ]


def test_a_truncated_master_is_named(master: Path) -> None:
    whole = master.read_bytes()
    master.write_bytes(whole[:-50])
    assert problems(master) == [f"run_master.h5: truncated: {len(whole) - 50} bytes are there, more were written"]


def test_bytes_that_are_no_hdf5_are_named(master: Path) -> None:
    master.write_bytes(b"no such thing" * 100)
    assert problems(master) == ["run_master.h5: not an HDF5 file"]


def test_an_announced_number_that_is_not_there_is_named(master: Path) -> None:
    where = "entry/instrument/detector/detectorSpecific/nimages"
    change(master, where, 7)
    assert problems(master) == [f"run_master.h5:/{where}: 7 images are announced, the data files hold 4"]


def test_images_of_another_shape_are_named(master: Path) -> None:
    change(
        master.parent / "run_data_000002.h5", "entry/data/data", np.ones((2, 5, 6), "u2") + np.arange(2)[:, None, None]
    )
    assert problems(master) == [
        "run_master.h5:/entry/data: frame 2 has shape (5, 6), frame 0 (24, 30)",
        "run_master.h5:/entry/data: frame 3 has shape (5, 6), frame 0 (24, 30)",
    ]


def test_images_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = np.full((2, *SHAPE), b"x")
    assert problems(path) == ["x.h5:/entry/data/data: not a stack of images (ss, fs) or (N, ss, fs)"]


def test_a_file_without_images_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    h5py.File(path, "w").close()
    (text,) = problems(path)
    assert text.startswith("x.h5: no images found at entry/data/data")


def test_a_damaged_chunk_is_named(master: Path) -> None:
    data = master.parent / "run_data_000001.h5"
    with h5py.File(data, "r+") as file:
        file["entry/data/data"].id.write_direct_chunk((1, 0, 0), b"\xff" * 40)
    (text,) = problems(master)
    assert text.startswith("run_master.h5:/entry/data: frame 1 cannot be read: ")


def test_the_same_image_twice_is_named_and_frames_without_photons_are_not(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).poisson(2.0, (6, *SHAPE)).astype("u2")
    pixels[3] = pixels[5] = pixels[0]
    pixels[1] = pixels[2] = 0
    master = build_series(tmp_path, pixels=pixels, truth=good_truth(6))
    assert problems(master) == ["run_master.h5:/entry/data: frame 0 is bit for bit the same image as frame 3, 5"]


# --- truth ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hit": None}, "hit: the dataset is missing"),
        ({"hit": np.ones(3, bool)}, "hit: shape (3,), (4,) for 4 frames"),
        ({"orientation": np.zeros((4, 9))}, "orientation: shape (4, 9), (4, 3, 3) for 4 frames"),
        ({"photon_energy_eV": np.full(3, 6000.0)}, "photon_energy_eV: length 3 for 4 frames"),
        ({"spot_ss": np.zeros(3)}, "spot_ss: shape (3,), (4,) as spot_frame has"),
        ({"spot_h": np.zeros(5, int)}, "spot_h: shape (5,), (4,) as spot_frame has"),
        (edited("class", 1, to=b"protein"), "class: frame 1 is no hit, its class is 'protein'"),
        ({"class": np.full(4, b"water")}, "class: frame 0 is a hit, its class is 'water' (and 1 more)"),
        (edited("orientation", 2, 0, 0, to=np.nan), "orientation: frame 2 is a hit and its orientation is not finite"),
        (edited("orientation", 0, to=2 * np.eye(3)), "orientation: the matrix of frame 0 is no rotation"),
        (edited("orientation", 0, to=np.diag([1, 1, -1])), "orientation: the matrix of frame 0 is no rotation"),
        (
            {"orientation_all": np.tile(np.eye(3), (4, 2, 1, 1)) * np.array([1, 1, 2, 1])[:, None, None, None]},
            "orientation_all: the matrix of frame 2 is no rotation",
        ),
        (edited("frame_index", 3, to=0), "frame_index: 0 stands for more than one frame"),
        (
            {"camera_length_m": np.array([1, 0, 1, np.nan])},
            "camera_length_m: 0 in frame 1 is out of bounds (and 1 more)",
        ),
        ({"flux_photons": np.array([3e8, 0, np.inf, 1])}, "flux_photons: inf in frame 2 is out of bounds"),
        (edited("spot_frame", 1, to=4), "spot_frame: spot 1 is of frame 4, there are 4 frames"),
        (edited("spot_frame", 1, to=-1), "spot_frame: spot 1 is of frame -1, there are 4 frames"),
        ({"spot_frame": np.zeros(4)}, "spot_frame: float64 of shape (4,), no list of frames"),
        (edited("spot_ss", 2, to=24.0), "spot_ss: spot 2 at ss 24, fs 5 is outside the panel of 24 x 30"),
        (edited("spot_fs", 0, to=-0.6), "spot_ss: spot 0 at ss 4, fs -0.6 is outside the panel of 24 x 30"),
        (edited("spot_fs", 0, to=np.nan), "spot_ss: spot 0 at ss 4, fs nan is outside the panel of 24 x 30"),
        (edited("spot_fs", 3, to=10.0), "spot_ss: spot 3 at ss 15.2, fs 10 is in a gap or on a bad pixel"),
    ],
)
def test_a_wrong_truth_is_named(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    assert problems(with_truth(tmp_path, **changes)) == [f"run_master.h5:/entry/truth/{text}"]


@pytest.mark.parametrize(
    "changes",
    [
        {"photon_energy_eV": np.full(4, 6000.0), "flux_photons": np.array([3e8, 0.0, 1e8, 1e8])},
        {"classes": np.array([2, 1, 2, 1], "u4"), "detectable": np.array([True, False, False, False])},
        {"crystal": np.array([True, False, True, False]), "background_seed": 7, "crystal_id": np.arange(4)},
        {"crystal": "proteinase K", "cell": np.ones(6), "spot_counts": np.ones(4), "scene": "{}"},
        {"class": None, "orientation": None, "frame_index": None},
        {"spot_frame": None, "spot_ss": None, "spot_fs": None, "spot_photons": None},
        {"hit": np.array([1, 0, 1, 0])},
        edited("spot_fs", 3, to=10.3),  # beside the bad column 10
        edited("spot_ss", 3, to=-0.4),
    ],
)
def test_what_a_truth_may_have_more_or_less_is_no_problem(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert problems(with_truth(tmp_path, **changes)) == []


def test_a_table_of_truth_beside_the_master_is_checked(master: Path) -> None:
    truth = good_truth()
    change(master, "entry/truth", None)
    table = {
        "hit": truth["hit"],
        "peak_frame": truth["spot_frame"],
        "peak_ss": truth["spot_ss"],
        "peak_fs": truth["spot_fs"],
    }
    beside = master.with_name("run_truth.npz")
    np.savez(beside, peak_photons=truth["spot_photons"], **table)
    assert problems(master) == []
    np.savez(beside, **(table | {"hit": truth["hit"][:3]}))
    assert problems(master) == ["run_truth.npz:hit: shape (3,), (4,) for 4 frames"]
    beside.write_bytes(b"PK\x03\x04 and no more")
    (text,) = problems(master)
    assert text.startswith("run_truth.npz: cannot be read as a table of truth: ")


def test_a_pickled_table_of_truth_is_not_loaded(master: Path) -> None:
    change(master, "entry/truth", None)
    np.savez(master.with_name("run_truth.npz"), hit=np.array([{}], object))
    (text,) = problems(master)
    assert text.startswith("run_truth.npz: cannot be read as a table of truth: Object arrays")
