"""Files that name other files: what is not in their folder is not read, whatever it is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from streamer import files, links
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
    assert "outside the file's folder" in series.problems[0]
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


def virtual(path: Path, *sources: tuple[str, str], where: str = "entry/data/data") -> Path:
    """A virtual data set of two images from each source."""
    layout = h5py.VirtualLayout((2 * len(sources), *SHAPE), np.uint16)
    for n, (file, name) in enumerate(sources):
        layout[2 * n : 2 * n + 2] = h5py.VirtualSource(file, name, (2, *SHAPE))
    with h5py.File(path, "a") as opened:
        opened.create_virtual_dataset(where, layout, fillvalue=9)
    return path


def numbered(path: Path, source: str) -> Path:
    """A virtual data set of as many files as there are, two images of each."""
    space = h5py.h5s.create_simple((2, *SHAPE), (h5py.h5s.UNLIMITED, *SHAPE))
    space.select_hyperslab((0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), (2, *SHAPE), (2, *SHAPE))
    mapping = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    mapping.set_virtual(space, source.encode(), b"x", h5py.h5s.create_simple((2, *SHAPE)))
    with h5py.File(path, "w") as file:
        group = file.create_group("entry/data")
        h5py.h5d.create(group.id, b"data", h5py.h5t.NATIVE_UINT16, space, mapping)
    return path


def first_pixels(path: Path) -> list[int]:
    """The first pixel of each image."""
    series = FileSeries(path)
    try:
        assert series.problems == []
        taken = [series.image(n) for n in range(len(series))]
        assert {each.algorithm for each in taken} <= {files.Algorithm.RAW, files.Algorithm.BSLZ4}
        images = [np.empty(SHAPE, np.uint16) for _ in taken]
        for packed, image in zip(taken, images, strict=True):
            files.decode(packed, image)
        return [int(image[0, 0]) for image in images]
    finally:
        series.close()


def images_of(path: Path, value: int) -> Path:
    write_data_file(path, np.full((2, *SHAPE), value, np.uint16))
    return path


@pytest.mark.parametrize("named", ["itself", "beside", "link"])
@pytest.mark.parametrize("kind", ["raw", "link", "virtual"])
def test_nothing_from_elsewhere_comes_by_way_of_a_virtual_data_set(folder: Path, kind: str, named: str) -> None:
    source = folder / ("bomb.h5" if named == "itself" else "source.h5")
    with h5py.File(source, "w") as file:
        if kind == "raw":
            raw(file, "x", folder.parent / "secret", (2, *SHAPE))
        elif kind == "link":
            file["x"] = h5py.ExternalLink(str(folder.parent / "others.h5"), "entry/data/data")
    if kind == "virtual":
        virtual(source, ("../others.h5", "entry/data/data"), where="x")
    with h5py.File(folder / "bomb.h5", "a") as file:
        if named == "link":
            file["y"] = h5py.ExternalLink("source.h5", "x")
    bomb = virtual(
        folder / "bomb.h5", ("source.h5", "x") if named == "beside" else (".", "y" if named == "link" else "x")
    )
    with pytest.raises(BadInput, match="is put together from") as refused:
        FileSeries(bomb)
    assert "\n" not in str(refused.value)


def test_virtual_data_sets_of_the_folder_are_read_as_before(folder: Path) -> None:
    images_of(folder / "a%b.h5", 3)
    images_of(folder / "b.h5", 4)
    with h5py.File(folder / "v.h5", "w") as file:
        file["one"] = h5py.ExternalLink("b.h5", "entry/data/data")
        file["soft"] = h5py.SoftLink("/one")
    virtual(folder / "nested.h5", ("b.h5", "entry/data/data"), where="x")
    sources = [("b.h5", "entry/data/data"), (".", "soft"), ("nested.h5", "x"), ("gone.h5", "x")]
    virtual(folder / "v.h5", *sources, ("a%%b.h5", "entry/data/data"))
    # What is not there is the fill value.
    assert first_pixels(folder / "v.h5") == [4, 4, 4, 4, 4, 4, 9, 9, 3, 3]
    with pytest.raises(BadInput, match=r"not there \(gone\.h5\)"):
        FileSeries(virtual(folder / "w.h5", ("gone.h5", "x")))


def test_a_virtual_data_set_that_grows_with_its_source_has_the_length_of_that(folder: Path) -> None:
    with h5py.File(folder / "grows.h5", "w") as file:
        file.create_dataset("x", data=np.full((7, *SHAPE), 5, np.uint16), maxshape=(None, *SHAPE))
    layout = h5py.VirtualLayout((2, *SHAPE), np.uint16, maxshape=(None, *SHAPE))
    source = h5py.VirtualSource("grows.h5", "x", (2, *SHAPE), maxshape=(None, *SHAPE))
    layout[: h5py.h5s.UNLIMITED, :, :] = source[: h5py.h5s.UNLIMITED, :, :]
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_virtual_dataset("entry/data/data", layout)
    assert first_pixels(folder / "v.h5") == [5] * 7


def test_virtual_data_sets_without_end_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="more than 4 deep"):
        FileSeries(virtual(folder / "itself.h5", (".", "entry/data/data")))
    with pytest.raises(BadInput, match="numbered by %b"):
        FileSeries(numbered(folder / "numbered.h5", "x%%%b.h5"))
    monkeypatch.setattr(links, "MAX_SOURCES", 3)
    with pytest.raises(BadInput, match="4 parts; at most 3"):
        FileSeries(virtual(folder / "many.h5", *[("x.h5", "x")] * 4))


def test_a_virtual_data_set_of_five_thousand_parts_is_opened_in_seconds(folder: Path) -> None:
    with h5py.File(folder / "s.h5", "w") as file:
        file["x"] = np.ones((5000, 4, 5), np.uint16)
    layout, source = h5py.VirtualLayout((5000, 4, 5), np.uint16), h5py.VirtualSource("s.h5", "x", (5000, 4, 5))
    for n in range(5000):
        layout[n] = source[n]
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_virtual_dataset("entry/data/data", layout)
    began = time.process_time()
    series = FileSeries(folder / "v.h5")
    assert time.process_time() - began < 5.0
    assert len(series) == 5000
    series.close()


def test_links_that_lead_to_themselves_end(folder: Path) -> None:
    with h5py.File(folder / "s.h5", "w") as file:
        file["entry/data/data"] = h5py.SoftLink("/data")
        file["data"] = h5py.ExternalLink("s.h5", "/entry/data/data")
    with pytest.raises(BadInput, match="more than 16 links in a row"):
        FileSeries(folder / "s.h5")


def test_a_pipe_behind_a_link_is_refused_and_not_waited_for(folder: Path) -> None:
    """In a process of its own: one that opens a pipe is deaf to signals."""
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe0")
    places = ("entry", "entry/data", "entry/data/data", "entry/data/data_000001")
    for n, place in enumerate(places):
        with h5py.File(folder / f"{n}.h5", "w") as file:
            file[place] = h5py.ExternalLink("pipe", "x")
    paths = [*(folder / f"{n}.h5" for n in range(len(places))), virtual(folder / "v.h5", ("pipe", "x"))]
    paths.append(numbered(folder / "numbered.h5", "pipe%b"))
    code = (
        "import sys\nfrom pathlib import Path\nfrom streamer.files import BadInput, FileSeries\n"
        "for path in map(Path, sys.argv[1:]):\n try: FileSeries(path)\n except BadInput as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, *map(str, paths)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    assert [line.count("pipe, not a regular file") for line in said] == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("target", ["pipe", "../others.h5"])
def test_a_link_of_the_metadata_is_judged_once_and_never_opened(
    folder: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(folder / "pipe")
    path = master(folder)
    with h5py.File(path, "r+") as file:
        del file["entry/instrument"]
        file["entry/instrument"] = h5py.ExternalLink(target, "/entry")
    asked: list[str] = []
    meant = links.Linked._meant
    monkeypatch.setattr(links.Linked, "_meant", lambda own, name, *rest: asked.append(name) or meant(own, name, *rest))
    series = FileSeries(path)
    assert (len(series), series.metadata.pixel_size_x_m) == (3, None)
    assert asked.count(target) == 1
    series.close()


def test_metadata_in_a_file_of_the_folder_is_read(folder: Path) -> None:
    path = master(folder)
    with h5py.File(path, "r+") as file, h5py.File(folder / "s_meta.h5", "w") as meta:
        file.copy("entry/instrument", meta, "instrument")
        del file["entry/instrument"]
        file["entry/instrument"] = h5py.ExternalLink("s_meta.h5", "/instrument")
    series = FileSeries(path)
    assert series.metadata.pixel_size_x_m
    assert series.metadata.masks
    series.close()


def linking(path: Path, target: Path | str, kind: str) -> Path:
    """A file whose images are those of another, by a link of a master or by a virtual data set."""
    if kind == "virtual":
        return virtual(path, (str(target), "entry/data/data"))
    with h5py.File(path, "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink(str(target), "entry/data/data")
    return path


both = pytest.mark.parametrize("kind", ["master", "virtual"])


@both
def test_a_set_that_was_copied_with_full_names_is_read_where_it_is(folder: Path, kind: str) -> None:
    images_of(folder / "d.h5", 6)
    assert first_pixels(linking(folder / "s.h5", "/no/such/folder/d.h5", kind)) == [6, 6]


@both
def test_a_folder_by_another_path_is_the_same_folder(folder: Path, kind: str) -> None:
    images_of(folder / "d.h5", 6)
    alias = folder.parent / "alias"
    alias.symlink_to(folder.parent)
    linking(folder / "by_alias.h5", alias / "theirs" / "d.h5", kind)
    linking(folder / "by_name.h5", folder / "d.h5", kind)
    for place in (folder, alias / "theirs"):
        assert first_pixels(place / "by_alias.h5") == [6, 6]
        assert first_pixels(place / "by_name.h5") == [6, 6]


@both
@pytest.mark.parametrize("how", ["absolute", "relative"])
def test_a_file_linked_into_the_folder_as_the_refusal_says_is_read(folder: Path, how: str, kind: str) -> None:
    data = images_of(folder.parent / "d.h5", 6)
    path = linking(folder / "s.h5", data if how == "absolute" else "../d.h5", kind)
    with pytest.raises(BadInput, match=r"outside the file's folder; link the file into that folder \(ln -s\)"):
        FileSeries(path)
    (folder / "d.h5").symlink_to(data)
    assert first_pixels(path) == [6, 6]


@both
def test_a_name_counts_from_the_file_that_holds_it(folder: Path, kind: str) -> None:
    """Of two files of one name, the one beside the link."""
    (folder / "sub").mkdir()
    images_of(folder / "d.h5", 1)
    images_of(folder / "sub" / "d.h5", 6)
    linking(folder / "sub" / "between.h5", "d.h5", kind)
    inner = "entry/data/data" if kind == "virtual" else "entry/data/data_000001"
    with h5py.File(folder / "s.h5", "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink("sub/between.h5", inner)
    assert first_pixels(folder / "s.h5") == [6, 6]


def test_the_folder_where_we_run_is_not_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "here").mkdir()
    images_of(folder.parent / "here" / "d.h5", 6)
    monkeypatch.chdir(folder.parent / "here")
    for kind in ("master", "virtual"):
        with pytest.raises(BadInput, match=r"not there|missing"):
            FileSeries(linking(folder / f"{kind}.h5", "d.h5", kind))


def test_a_name_by_way_of_a_linked_folder_and_back_is_the_one_that_was_judged(folder: Path) -> None:
    (folder.parent / "far" / "in").mkdir(parents=True)
    images_of(folder.parent / "far" / "d.h5", 1)
    (folder / "way").symlink_to(folder.parent / "far" / "in")
    images_of(folder / "d.h5", 6)
    assert first_pixels(linking(folder / "s.h5", "way/../d.h5", "master")) == [6, 6]
