"""Files in folders that others may write into: whole or not there, and never through somebody's link."""

from pathlib import Path

import pytest

from analyzer.placing import placed
from analyzer.reports.files import prepare


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with placed(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError), placed(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_a_link_under_either_name_is_not_written_through(tmp_path: Path, there: bool) -> None:
    victim = tmp_path / "elsewhere" / "victim"
    victim.parent.mkdir()
    if there:
        victim.write_bytes(b"precious")
    for name in (".a.tmp", "a"):
        (tmp_path / name).symlink_to(victim)
    with placed(tmp_path / "a") as temporary:
        assert not temporary.is_symlink()
        temporary.write_bytes(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert not (tmp_path / "a").is_symlink()
    assert victim.exists() == there
    assert not there or victim.read_bytes() == b"precious"


def test_looking_whether_a_folder_can_be_written_harms_nothing_that_is_linked_there(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / ".report.tmp").symlink_to(victim)
    prepare(folder)
    assert victim.read_bytes() == b"precious"
