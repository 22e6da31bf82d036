"""Files that name other files: what is not in their folder is not read, whatever it is."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from streamer import files
from streamer.files import BadInput, FileSeries, named_files
from tests.support import SHAPE, write_data_file, write_series

SECRET = b"the control token of somebody " * 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder from a colleague; beside it a secret and somebody else's images."""
    (tmp_path / "secret").write_bytes(SECRET)
    write_data_file(tmp_path / "others.h5", np.ones((2, *SHAPE), np.uint16))
    (tmp_path / "theirs").mkdir()
    return tmp_path / "theirs"


def master(folder: Path) -> Path:
    return write_series(folder, "s", 3)


def raw(file: h5py.File, path: str, secret: Path, shape: tuple[int, ...]) -> None:
    """A dataset whose bytes are those of any file."""
    file.create_dataset(path, shape, "u1", external=[(os.fsencode(secret), 0, h5py.h5f.UNLIMITED)])


@pytest.mark.parametrize("named", ["absolute", "relative"])
@pytest.mark.parametrize("where", ["entry/data/data", "entry/data/data_000001", "data"])
def test_no_file_s_bytes_become_pixels(folder: Path, where: str, named: str) -> None:
    secret = folder.parent / "secret" if named == "absolute" else Path("../secret")
    path = folder / "bomb.h5"
    with h5py.File(path, "w") as file:
        raw(file, where, secret, (1, 30, 50))
    with pytest.raises(BadInput, match="takes its bytes from") as refused:
        FileSeries(path)
    assert "\n" not in str(refused.value)


def test_a_mask_that_is_another_file_s_bytes_is_no_mask(folder: Path) -> None:
    path = master(folder)
    mask = "entry/instrument/detector/detectorSpecific/pixel_mask"
    with h5py.File(path, "r+") as file:
        del file[mask]
        raw(file, mask, folder.parent / "secret", SHAPE)
    series = FileSeries(path)
    assert not series.metadata.masks
    series.close()


@pytest.mark.parametrize("target", ["../others.h5", "sub/../../others.h5", "absolute"])
def test_a_master_s_link_out_of_its_folder_is_left_out_and_named(folder: Path, target: str) -> None:
    path = master(folder)
    with h5py.File(path, "r+") as file:
        name = str(folder.parent / "others.h5") if target == "absolute" else target
        file["entry/data/data_000002"] = h5py.ExternalLink(name, "/entry/data/data")
    series = FileSeries(path)
    assert len(series) == 3
    assert "outside the master's folder" in series.problems[0]
    assert all(each.parent == folder for each in series.data_files)
    series.close()


def test_a_link_by_way_of_a_file_in_the_folder_is_left_out_too(folder: Path) -> None:
    path = master(folder)
    with h5py.File(folder / "between.h5", "w") as file:
        file["data"] = h5py.ExternalLink(str(folder.parent / "others.h5"), "/entry/data/data")
    with h5py.File(path, "r+") as file:
        file["entry/data/data_000002"] = h5py.ExternalLink("between.h5", "/data")
    series = FileSeries(path)
    assert len(series) == 3
    assert "others.h5" in series.problems[0]
    series.close()


def test_images_put_together_from_elsewhere_are_refused_and_those_of_the_folder_read(folder: Path) -> None:
    write_data_file(folder / "own.h5", np.full((2, *SHAPE), 7, np.uint16))
    for name, source in (("bad.h5", "../others.h5"), ("good.h5", "own.h5")):
        layout = h5py.VirtualLayout((2, *SHAPE), np.uint16)
        layout[:] = h5py.VirtualSource(source, "entry/data/data", (2, *SHAPE))
        with h5py.File(folder / name, "w") as file:
            file.create_virtual_dataset("entry/data/data", layout)
    with pytest.raises(BadInput, match="put together from"):
        FileSeries(folder / "bad.h5")
    series = FileSeries(folder / "good.h5")
    assert (np.frombuffer(series.image(0).data, "u2") == 7).all()
    series.close()


def test_symbolic_links_to_a_master_and_to_its_data_are_followed(folder: Path) -> None:
    path = master(folder)
    elsewhere = folder.parent / "linked"
    elsewhere.mkdir()
    (elsewhere / "s_master.h5").symlink_to(path)
    series = FileSeries(elsewhere / "s_master.h5")
    assert (len(series), series.problems) == (3, [])
    series.close()
    data = next(folder.glob("s_data_*.h5"))
    data.rename(folder.parent / "moved.h5")
    data.symlink_to(folder.parent / "moved.h5")
    series = FileSeries(path)
    assert (len(series), series.problems) == (3, [])
    series.close()


def test_lists_that_never_end_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LIST_BYTES", 1 << 20)
    (folder / "long.lst").write_bytes(b"x.h5\n" * 300_000)
    (folder / "zero.lst").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.lst")
    for name in ("long.lst", "zero.lst", "pipe.lst"):
        with pytest.raises(BadInput, match=name):
            named_files([str(folder / name)])
