import gzip
import os
import socket
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cxls.settings import MAX_CONFIG_BYTES, BadSettings, SimulateSettings, resolve
from sim_replay.beam import read_spectrum
from sim_replay.crystal import read_cell, read_hkl
from sim_replay.structure import read_structure
from streamer.geometry_file import read_geometry
from streamer.text_files import read_text

MB = 1 << 20


def read_config(path: str | os.PathLike[str]) -> object:
    return resolve(SimulateSettings, {}, Path(path), {})


READERS: dict[str, Callable[[Any], object]] = {
    "hkl": read_hkl,
    "cell": read_cell,
    "pdb": read_structure,
    "spectrum": read_spectrum,
    "geometry": read_geometry,
    "config": read_config,
}
every_reader = pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())


def refusal(read: Callable[[Any], object], path: str | os.PathLike[str]) -> str:
    with pytest.raises(ValueError) as caught:
        read(path)
    said = str(caught.value)
    assert "\n" not in said
    assert "\0" not in said
    assert len(said) < 500
    return said


def bomb(megabytes: int) -> bytes:
    """A gzip file of so many zeros, in members of 64 MB."""
    assert megabytes % 64 == 0
    return gzip.compress(bytes(64 * MB)) * (megabytes // 64)


def test_a_file_is_read_whole_up_to_the_limit_and_not_a_byte_beyond(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for size in (0, 1, MB):
        path.write_bytes(b"x" * size)
        assert read_text(path, "list", MB) == b"x" * size
        assert read_text(str(path), "list", MB) == b"x" * size
    path.write_bytes(b"x" * (MB + 1))
    assert refusal(lambda p: read_text(p, "list", MB), path) == (
        f"{path}: larger than 1 MB, the most that is read of a list"
    )


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a.txt")
    assert read_text(tmp_path / "link", "list") == b"content"


def test_gzip_is_unpacked_where_asked_for_to_the_same_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"x" * MB) + gzip.compress(b""))
    assert read_text(path, "list", MB, unzip=True) == b"x" * MB
    assert read_text(path, "list", MB) == path.read_bytes()
    path.write_bytes(gzip.compress(b"x" * MB) + gzip.compress(b"y"))
    assert "larger than 1 MB unpacked" in refusal(lambda p: read_text(p, "list", MB, unzip=True), path)


def test_a_gzip_bomb_takes_no_more_memory_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(bomb(4096))
    tracemalloc.start()
    try:
        said = refusal(lambda p: read_text(p, "list", 8 * MB, unzip=True), path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said == f"{path}: larger than 8 MB unpacked, the most that is read of a list"
    assert peak < 40 * MB


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:12] + b"\xff" * 8 + b[20:], lambda b: b + b"junk"])
def test_a_damaged_gzip_file_is_the_callers_to_name(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(damage(gzip.compress(os.urandom(1000))))
    with pytest.raises(zlib.error):
        read_text(path, "list", unzip=True)


def test_a_file_that_states_no_size_is_bounded_as_any_other() -> None:
    path = Path("/proc/self/status")
    if not path.exists():
        pytest.skip("no /proc here")
    assert b"Pid:" in read_text(path, "list")
    assert "larger than 0 kB" in refusal(lambda p: read_text(p, "list", 10), path)


@every_reader
def test_a_device_or_pipe_is_refused_at_once(tmp_path: Path, reader: Callable[[Any], object]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (Path("/dev/zero"), Path("/dev/null"), fifo):
        said = refusal(reader, path)
        assert f"{path}: not a regular file" in said
        assert "; give a " in said
    (tmp_path / "link").symlink_to(fifo)
    assert "not a regular file" in refusal(reader, tmp_path / "link")


@every_reader
def test_a_socket_is_refused(tmp_path: Path, reader: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is at most 107 characters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert "s: not a regular file" in refusal(reader, Path("s"))


@every_reader
def test_a_file_of_100_gigabytes_is_refused_unread(tmp_path: Path, reader: Callable[[Any], object]) -> None:
    path = tmp_path / "huge"
    path.touch()
    os.truncate(path, 100 << 30)
    assert f"{path}: larger than " in refusal(reader, path)


@pytest.mark.parametrize("name", ["hkl", "cell", "pdb"])
def test_a_bomb_is_refused_by_every_reader_of_gzip(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(bomb(512))
    assert f"{path}: larger than " in refusal(READERS[name], path)


@every_reader
def test_a_bad_name_is_the_users_input_and_named(tmp_path: Path, reader: Callable[[Any], object]) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert f"{loop}: cannot be read" in refusal(reader, loop)
    assert "nnn...: cannot be read (File name too long)" in refusal(reader, Path("n" * 5000))
    assert r"'a\x00b': no file can have this name" in refusal(reader, Path("a\0b"))
    assert r"'\ud800': no file can have this name" in refusal(reader, Path("\ud800"))


@every_reader
def test_a_missing_file_or_a_folder_says_so(tmp_path: Path, reader: Callable[[Any], object]) -> None:
    # settings are refused in one class, files in the system's, which the front words
    with pytest.raises((FileNotFoundError, BadSettings), match="No such file"):
        reader(tmp_path / "none")
    with pytest.raises((IsADirectoryError, BadSettings), match="Is a directory") as caught:
        reader(tmp_path)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises((NotADirectoryError, BadSettings), match="Not a directory"):
        reader(tmp_path / "file" / "below")


def test_settings_nested_beyond_all_depth_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    path.write_text("rate = " + "[" * 50_000)
    assert f"{path}: not TOML: nested too deep" in refusal(read_config, path)


def test_settings_may_be_as_long_as_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    path.write_text("frames = 3\n" + "#" * (MAX_CONFIG_BYTES - 11))
    assert resolve(SimulateSettings, {}, path, {}).settings.frames == 3
    path.write_text("frames = 3\n" + "#" * MAX_CONFIG_BYTES)
    assert "larger than 64 kB" in refusal(read_config, path)
