"""The file with the control token."""

import os
from pathlib import Path

import pytest

from cxls.settings import BadSettings
from cxls.token_file import read_token


def token_file(folder: Path, content: bytes = b"secret-word\n", mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BadSettings) as refused:
        read_token(path, "--control-token")
    text = str(refused.value)
    assert "--control-token" in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_the_token_is_what_stands_in_the_file(tmp_path: Path, mode: int) -> None:
    assert read_token(token_file(tmp_path, mode=mode), "--token") == "secret-word"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o666, 0o644, 0o601, 0o620])
def test_a_file_that_others_may_use_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    text = refusal(token_file(tmp_path, mode=mode))
    assert "chmod 600" in text
    assert f"{mode:04o}" in text
    assert "secret" not in text


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"two\nlines", b"\xff\xfe", "ü".encode(), b"x" * 5000])
def test_what_is_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    text = refusal(token_file(tmp_path, content))
    assert "words" not in text
    assert "lines" not in text


def test_pipes_folders_and_what_is_not_there_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    for name in ("pipe", "folder", "nothing", "a\0b"):
        refusal(tmp_path / name)


def test_a_link_is_as_good_as_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(token_file(tmp_path))
    assert read_token(tmp_path / "link", "--token") == "secret-word"
    (tmp_path / "token").chmod(0o644)
    refusal(tmp_path / "link")
