"""Mask files, good, senseless and damaged."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from analyzer.mask_file import BadMask, read_mask

BAD = np.zeros((7, 9), "u4")
BAD[2, 3] = 8
BAD[6, 8] = 1


def hdf5(path: Path, name: str = "entry/instrument/detector/pixel_mask", **options: object) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=BAD, **options)
    return path


def assert_is_the_mask(path: Path | str, name: str) -> None:
    validity = read_mask(Path(path))
    assert validity.name == name
    assert validity.valid.dtype == np.uint8
    assert np.array_equal(validity.valid, BAD == 0)


@pytest.mark.parametrize("dtype", ["?", "u1", "u4", "i8", "f4", ">u4"])
def test_npy_of_any_number_is_read(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "m.npy", BAD.astype(dtype))
    assert_is_the_mask(tmp_path / "m.npy", "m.npy")


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_order_in_memory_does_not_matter(tmp_path: Path, order: str) -> None:
    np.save(tmp_path / "m.npy", np.asarray(BAD, order=order))  # type: ignore[call-overload]
    assert_is_the_mask(tmp_path / "m.npy", "m.npy")


def test_hdf5_is_read_where_eiger_masters_have_their_mask(tmp_path: Path) -> None:
    assert_is_the_mask(hdf5(tmp_path / "m.h5"), "m.h5")


def test_a_dataset_can_be_named(tmp_path: Path) -> None:
    assert_is_the_mask(f"{hdf5(tmp_path / 'm.h5', 'my/mask')}:/my/mask", "m.h5")


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"compression": "lzf"}, hdf5plugin.Bitshuffle()])
def test_packed_datasets_are_read(tmp_path: Path, options: dict[str, object]) -> None:
    assert_is_the_mask(hdf5(tmp_path / "m.h5", chunks=BAD.shape, **options), "m.h5")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(5), "1 dimensions"),
        (np.zeros((2, 3, 4)), "3 dimensions"),
        (np.zeros((0, 4)), "no detector"),
        (np.zeros((1, 70_000), "u1"), "no detector"),
        (np.array([["a", "b"]]), "numbers"),
    ],
)
def test_what_is_no_mask_is_refused_in_one_line(tmp_path: Path, array: np.ndarray, said: str) -> None:  # type: ignore[type-arg]
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(BadMask, match=said) as refused:
        read_mask(tmp_path / "m.npy")
    assert str(tmp_path / "m.npy") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    np.save(tmp_path / "m.npy", np.array([[Trap()]], object), allow_pickle=True)
    with pytest.raises(BadMask):
        read_mask(tmp_path / "m.npy")
    assert not (tmp_path / "sprung").exists()


def test_a_header_that_promises_more_than_memory_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u8", "fortran_order": False, "shape": (60_000, 60_000)})
    with pytest.raises(BadMask):
        read_mask(path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00" + bytes(50), b"text"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("m.npy", "m.h5"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadMask):
            read_mask(tmp_path / name)


def test_pipes_folders_and_what_is_not_there_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    for name in ("pipe.npy", ".", "nothing.npy", "m.h5:/x"):
        with pytest.raises(BadMask):
            read_mask(tmp_path / name)
    with pytest.raises(BadMask):
        read_mask(Path("a\0b.npy"))


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadMask, match="nowhere"):
        read_mask(Path(f"{hdf5(tmp_path / 'm.h5')}:/nowhere"))
    with pytest.raises(BadMask, match="no dataset"):
        read_mask(Path(f"{tmp_path / 'm.h5'}:/entry"))


@pytest.mark.parametrize("kind", ["raw", "link", "pipe"])
def test_a_mask_from_elsewhere_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "own").mkdir()
    other = hdf5(tmp_path / "other.h5")
    os.mkfifo(tmp_path / "own" / "pipe")
    with h5py.File(tmp_path / "own" / "m.h5", "w") as file:
        if kind == "raw":
            file.create_dataset("m", BAD.shape, "u1", external=[(bytes(other), 0, h5py.h5f.UNLIMITED)])
        else:
            file["m"] = h5py.ExternalLink("pipe" if kind == "pipe" else "../other.h5", "m")
    with pytest.raises(BadMask, match=r"takes its bytes|outside the file's folder|not a regular file"):
        read_mask(Path(f"{tmp_path / 'own' / 'm.h5'}:/m"))


def test_damaged_bitshuffle_does_not_end_the_process(tmp_path: Path) -> None:
    """In a child, since HDF5's own filter would end it."""
    random = np.random.default_rng(1)
    big = (random.random((200, 300)) < 0.3).astype("u4")
    paths = []
    for n in range(12):
        path = tmp_path / f"{n}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("m", data=big, chunks=big.shape, **hdf5plugin.Bitshuffle())
            found = file["m"].id.get_chunk_info(0)
        raw = bytearray(path.read_bytes())
        for place in random.integers(found.byte_offset, found.byte_offset + found.size, 40):
            raw[place] ^= 0xFF
        path.write_bytes(raw)
        paths.append(f"{path}:/m")
    code = (
        "import sys\nfrom pathlib import Path\nfrom analyzer.mask_file import BadMask, read_mask\n"
        "for name in sys.argv[1:]:\n    try: read_mask(Path(name))\n    except BadMask: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") >= 6
