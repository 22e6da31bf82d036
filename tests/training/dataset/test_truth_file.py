"""Truth from hostile files: claims of terabytes, wrong types, numbers that are none. One line each, no harm done."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from streamer.files import BadInput
from tests.training.dataset.builders import build_series, change, good_truth
from training.dataset.check_series import check_series
from training.dataset.counts import count_series
from training.dataset.export import export_tree
from training.dataset.problems import Problem
from training.dataset.series import label_series, open_series
from training.dataset.truth import Truth
from training.dataset.truth_file import MAX_BYTES_A_FRAME, read_truth

COMPOUND = np.zeros(4, [("a", "f8"), ("b", "i4")])


def problems(master: Path) -> list[str]:
    return [str(problem).removeprefix(f"{master}:/entry/truth/") for problem in check_series(master)]


def claim(master: Path, name: str, shape: tuple[int, ...], dtype: Any = "f8") -> None:
    """A dataset that states a shape and holds nothing."""
    with h5py.File(master, "r+") as file:
        truth = file["entry/truth"]
        if name in truth:
            del truth[name]
        truth.create_dataset(name, shape, dtype, chunks=(1024, *shape[1:]) if len(shape) == 1 else None)


@pytest.mark.parametrize("what", ["group", "dataset", "raw"])
def test_truth_from_elsewhere_is_not_read(tmp_path: Path, what: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "others").mkdir()
    master, other = (build_series(tmp_path / name, name=name, truth=good_truth()) for name in ("own", "others"))
    with h5py.File(master, "r+") as file:
        if what == "group":
            del file["entry/truth"]
            file["entry/truth"] = h5py.ExternalLink(str(other), "/entry/truth")
        else:
            shape = file["entry/truth/bragg_photons"].shape
            del file["entry/truth/bragg_photons"]
        if what == "dataset":
            file["entry/truth/bragg_photons"] = h5py.ExternalLink(
                "../others/others_master.h5", "/entry/truth/bragg_photons"
            )
        if what == "raw":
            external = [(bytes(other), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset("entry/truth/bragg_photons", shape, "f8", external=external)
    truth = read_truth(master, 4)
    if what == "group":
        assert isinstance(truth, Problem)
        assert "is a link to" in truth.text
    else:
        assert isinstance(truth, Truth)
        assert "bragg_photons" not in truth.values
        assert any(each.dataset.endswith("bragg_photons") and "cannot be read" in each.text for each in truth.problems)


def uses(master: Path) -> list[Callable[[], Any]]:
    return [
        lambda: label_series(master, "maxima"),
        lambda: export_tree([master], master.parent / "set"),
    ]


@pytest.mark.parametrize("size", [1 << 40, 1 << 32])
@pytest.mark.parametrize("name", ["spot_ss", "bragg_photons", "hit"])
def test_a_claim_of_terabytes_is_one_problem_and_nothing_is_read(tmp_path: Path, name: str, size: int) -> None:
    master = build_series(tmp_path)
    dtype = "?" if name == "hit" else "f8"
    claim(master, name, (size,), dtype)
    begun = time.monotonic()
    (text,) = problems(master)
    assert text == f"{name}: shape ({size},) of {np.dtype(dtype)} is too large for the truth of 4 frames"
    for use in uses(master):
        with pytest.raises(BadInput, match="is too large"):
            use()
    with open_series(master) as series:
        assert count_series(series).total == 4
    assert time.monotonic() - begun < 5


def test_a_claim_whose_product_wraps_around_is_refused(tmp_path: Path) -> None:
    master = build_series(tmp_path)
    with h5py.File(master, "r+") as file:
        del file["entry/truth/orientation"]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 1, 1))
        space = h5py.h5s.create_simple((1 << 40, 1 << 20, 16))
        h5py.h5d.create(file["entry/truth"].id, b"orientation", h5py.h5t.NATIVE_DOUBLE, space, plist)
    assert "too large" in problems(master)[0]


def test_many_claims_share_one_allowance(tmp_path: Path) -> None:
    master = build_series(tmp_path)
    each = 4 * MAX_BYTES_A_FRAME // 8 * 2 // 3
    for name in ("spot_ss", "spot_fs", "spot_photons"):
        claim(master, name, (each,))
    assert sum("too large" in text for text in problems(master)) == 2


def test_what_nothing_needs_is_left_alone(tmp_path: Path) -> None:
    master = build_series(tmp_path)
    claim(master, "notes", (1 << 40,))
    assert problems(master) == []
    label_series(master, "maxima")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("spot_ss", np.full(4, b"far"), "|S3 of shape (4,), no list of numbers"),
        ("spot_ss", np.zeros((4, 1)), "float64 of shape (4, 1), no list of numbers"),
        ("spot_photons", 3.0, "float64 of shape (), no list of numbers"),
        ("spot_fs", np.zeros(4, "c16"), "complex128 of shape (4,), no list of numbers"),
        ("spot_frame", np.zeros((4, 1), int), "int64 of shape (4, 1), no list of frames"),
        ("water_thickness_m", "thick", "object of shape (), no list of numbers"),
        ("flux_photons", COMPOUND, f"{COMPOUND.dtype} of shape (4,), no list of numbers"),
        ("hit", np.full(4, b"yes"), "|S3 of shape (4,), no list of yes and no"),
        ("class", np.zeros(4), "float64 of shape (4,), no list of texts"),
        ("seed", np.full(4, np.nan), "float64 of shape (4,), no list of whole numbers"),
        ("orientation", h5py.Empty("f8"), "an empty dataset"),
        ("frame_index", h5py.SoftLink("/entry/truth/frame_index"), "cannot be read: "),
    ],
)
def test_a_wrong_type_is_listed_and_refused(tmp_path: Path, name: str, value: Any, text: str) -> None:
    master = build_series(tmp_path)
    with h5py.File(master, "r+") as file:
        if name in file["entry/truth"]:
            del file[f"entry/truth/{name}"]
        file[f"entry/truth/{name}"] = value
    (found,) = problems(master)
    assert found.startswith(f"{name}: {text}")
    for use in uses(master):
        with pytest.raises(BadInput) as caught:
            use()
        assert str(caught.value).startswith(f"{master}:/entry/truth/{name}: {text}")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*labels*"))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, -1e300, -1.0])
@pytest.mark.parametrize("name", ["spot_ss", "spot_fs", "spot_photons", "flux_photons", "water_thickness_m"])
def test_a_number_without_sense_is_listed_and_refused(tmp_path: Path, name: str, value: float) -> None:
    values = np.array(good_truth().get(name, 1e-4) * np.ones(4))
    values[2] = value
    master = build_series(tmp_path, truth=good_truth() | {name: values})
    (found,) = problems(master)
    assert "out of bounds" in found or "outside the panel" in found
    for use in uses(master):
        with pytest.raises(BadInput, match="/entry/truth/"):
            use()
    assert not list(tmp_path.rglob("*labels*"))
    assert not (tmp_path / "set").exists()


def test_light_without_a_hit_is_no_problem(tmp_path: Path) -> None:
    truth = good_truth() | {"crystal": np.ones(4, bool), "spectrum_full_width": 0.01}
    assert problems(build_series(tmp_path, truth=truth)) == []


def test_a_table_too_large_for_its_frames_is_not_unpacked(tmp_path: Path) -> None:
    master = build_series(tmp_path)
    change(master, "entry/truth", None)
    beside = master.with_name("run_truth.npz")
    np.savez_compressed(beside, hit=np.zeros(4, bool), peak_ss=np.zeros(1 << 20))
    assert beside.stat().st_size < 1 << 17
    assert [str(p) for p in check_series(master)] == [f"{beside}: a table of truth too large for 4 frames"]
    np.savez(beside, hit=np.zeros(4, bool), peak_ss=np.full(3, "far"), other=np.zeros(7))
    found = read_truth(master, 4)
    assert isinstance(found, Truth)
    assert list(found.values) == ["hit"]
    assert [str(p) for p in found.problems] == [f"{beside}:spot_ss: <U3 of shape (3,), no list of numbers"]


def test_a_pipe_in_place_of_a_table_is_not_waited_for(tmp_path: Path) -> None:
    master = build_series(tmp_path)
    change(master, "entry/truth", None)
    os.mkfifo(master.with_name("run_truth.npz"))
    found = read_truth(master, 4)
    assert isinstance(found, Problem)
    assert "not a regular file" in found.text


def test_the_text_of_a_class_is_made_printable(tmp_path: Path) -> None:
    truth = good_truth() | {"class": np.array([b"protein", b"\x1b[2J\xff", b"protein", b"water"])}
    with open_series(build_series(tmp_path, truth=truth)) as series:
        assert all(name.isprintable() for name in count_series(series).classes)


def test_a_failed_export_leaves_the_old_tree_as_it_was(tmp_path: Path) -> None:
    export_tree([build_series(tmp_path)], tmp_path / "set")
    before = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    bad = build_series(tmp_path / "bad", seed=1)
    with h5py.File(bad.with_name("run_data_000002.h5"), "r+") as file:
        file["entry/data/data"].id.write_direct_chunk((1, 0, 0), b"\xff" * 40)
    with pytest.raises(BadInput, match="frame 3 cannot be read"):
        export_tree([bad], tmp_path / "set", force=True)
    assert {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()} == before
