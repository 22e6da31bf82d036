"""Keys of workers in files, and the program that asks for them."""

import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from analyzer.bundle import load_bundle
from analyzer.cascade import CascadeSettings, PlanCache
from analyzer.crew.curve import is_key, new_keys, public_of
from analyzer.judge import Judge
from cxls import key_files
from cxls.crew import open_crew
from cxls.key_files import AllowedKeys, make_keys, read_front_keys, read_worker_keys
from cxls.settings import AnalyzeSettings, BadSettings
from tests.cxls.programs import Child, cxls, refusal, wait_for
from tests.cxls.test_workers import Site, assert_whole


def pair(folder: Path, name: str) -> tuple[Path, Path]:
    return make_keys(folder / name)


def key_of(public: Path) -> bytes:
    return public.read_bytes().split()[0]


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(BadSettings) as found:
        read()
    text = str(found.value)
    assert "\n" not in text
    return text


def test_a_pair_is_made_once_and_its_secret_is_its_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        done = cxls("worker-keys", tmp_path / "front")
    finally:
        os.umask(before)
    assert done.returncode == 0
    secret, public = tmp_path / "front.secret", tmp_path / "front.public"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert public_of(secret.read_bytes().strip()) == key_of(public)
    assert is_key(key_of(public))
    assert secret.read_text().strip() not in done.stdout + done.stderr
    kept = secret.read_bytes()
    assert "front.secret" in refusal("worker-keys", tmp_path / "front")
    assert secret.read_bytes() == kept


def test_a_key_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "w.secret").symlink_to(tmp_path / "elsewhere")
    assert "w.secret" in refused(lambda: pair(tmp_path, "w"))
    (tmp_path / "v.public").symlink_to(tmp_path / "elsewhere")
    assert "v.public" in refused(lambda: pair(tmp_path, "v"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["v.public", "w.secret"]


def test_both_sides_read_what_was_made(tmp_path: Path) -> None:
    front, front_public = pair(tmp_path, "front")
    worker, worker_public = pair(tmp_path, "worker")
    allowed = tmp_path / "workers.keys"
    allowed.write_bytes(b"# those of hutch 1\n\n" + worker_public.read_bytes())
    keys = read_front_keys(front, allowed)
    assert keys.allowed() == {key_of(worker_public)}
    theirs = read_worker_keys(worker, front_public)
    assert (theirs.front, public_of(theirs.secret)) == (public_of(keys.secret), key_of(worker_public))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_secret_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    secret, public = pair(tmp_path, "w")
    secret.chmod(mode)
    text = refused(lambda: read_worker_keys(secret, public))
    assert "chmod 600" in text
    assert secret.read_text().strip() not in text


@pytest.mark.parametrize("content", [b"", b"short\n", b"~" * 40 + b"\n", b"\xff" * 40, b"x" * 5000])
def test_what_is_no_secret_key_is_refused_unshown(tmp_path: Path, content: bytes) -> None:
    _, public = pair(tmp_path, "w")
    path = tmp_path / "other"
    path.write_bytes(content)
    path.chmod(0o600)
    text = refused(lambda: read_worker_keys(path, public))
    assert "--worker-key" in text
    assert "xxxx" not in text
    assert "~~~~" not in text


@pytest.mark.parametrize("content", [b"nonsense\n", b"#" * 41 + b" n\n", b"\0" * 40, b"x" * (300 << 10)])
def test_what_is_no_list_of_public_keys_is_refused_by_its_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    assert "--worker-keys" in refused(lambda: AllowedKeys(path))


def test_a_list_of_very_many_keys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_files, "MOST_KEYS", 2)
    path = tmp_path / "keys"
    path.write_bytes(b"".join(new_keys()[0] + b"\n" for _ in range(3)))
    assert "3 keys" in refused(lambda: AllowedKeys(path))


def test_pipes_folders_and_what_is_not_there_are_no_lists_of_keys(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "nothing"):
        refused(lambda name=name: AllowedKeys(tmp_path / name))  # type: ignore[misc]


def test_a_front_has_one_key(tmp_path: Path) -> None:
    secret, _ = pair(tmp_path, "w")
    two = tmp_path / "two"
    two.write_bytes(b"".join(new_keys()[0] + b"\n" for _ in range(2)))
    assert "2 keys" in refused(lambda: read_worker_keys(secret, two))


def test_the_list_is_read_again_when_it_changes_and_a_bad_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_files, "_LOOK_S", 0.0)
    one, two, own = (new_keys()[0] for _ in range(3))
    path = tmp_path / "keys"
    path.write_bytes(one + b"\n")
    allowed = AllowedKeys(path, frozenset([own]))
    path.write_bytes(one + b" a\n" + two + b" b\n")
    assert allowed() == {one, two, own}
    path.write_bytes(b"nonsense")
    assert allowed() == {one, two, own}
    path.unlink()
    assert allowed() == {one, two, own}
    path.write_bytes(two + b"\n# that is all\n")
    assert allowed() == {two, own}


def test_a_disk_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(key_files, "_LOOK_S", 0.0)
    one, two = (new_keys()[0] for _ in range(2))
    path = tmp_path / "keys"
    path.write_bytes(one + b"\n")
    allowed = AllowedKeys(path)
    answers, stamp = threading.Event(), key_files._stamp
    monkeypatch.setattr(key_files, "_stamp", lambda path: answers.wait(30) and stamp(path))
    path.write_bytes(two + b" changed\n")
    began = time.monotonic()
    for _ in range(100):
        assert allowed() == {one}
    assert time.monotonic() - began < 15, "of 30 s that the file takes"
    assert sum("does not answer" in each.getMessage() for each in caplog.records) == 1
    answers.set()
    wait_for(lambda: allowed() == {two}, 30)


def test_a_front_with_keys_has_its_own_workers_and_one_from_elsewhere(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    front, front_public = pair(tmp_path, "front")
    worker, worker_public = pair(tmp_path, "worker")
    with ExitStack() as opened:
        site = Site(
            opened, master, bundle_folder, tmp_path / "r.jsonl", "--worker-listen", "tcp://127.0.0.1:0",
            "--processes", "1", "--worker-key", front, "--worker-keys", worker_public,
        )  # fmt: skip
        address = site.front.listening("workers")
        one = ("--processes", "1", "--device", "cpu")
        opened.enter_context(Child("worker", address, *one, "--worker-key", worker, "--front-key", front_public))
        plain = opened.enter_context(Child("worker", address, *one, "--name", "plain"))
        wait_for(lambda: site.ready(2), 90)
        wait_for(lambda: any("no entry at" in line for line in plain.errors), 30)
        wait_for(lambda: all(each["frames"] > 5 for each in site.workers), 60)
        assert len(site.workers) == 2
        assert any(each["shared_memory"] for each in site.workers)
        assert site.front.end(signal.SIGINT) == 130
        assert_whole(site.results, site.front, ("shutdown",))
        said = [line for line in site.front.errors if "a connection to" in line]
        assert sum(" more in " not in line for line in said) == 1, (
            "repeats are told of together, at its end at the latest"
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("worker", "tcp://127.0.0.1:9", "--worker-key", "k"), "--front-key"),
        (("worker", "tcp://127.0.0.1:9", "--worker-key", "k", "--front-key", "nothing"), "nothing"),
        (("analyze", "tcp://127.0.0.1:9", "--worker-listen", "tcp://127.0.0.1:0", "--worker-key", "k"), "give both"),
        (("analyze", "tcp://127.0.0.1:9", "--worker-key", "k", "--worker-keys", "k"), "--worker-listen"),
        (("analyze", "tcp://127.0.0.1:9", "--processes", "1", "--worker-key", "k", "--worker-keys", "k"),
         "--worker-listen"),
    ],
)  # fmt: skip
def test_half_of_the_keys_is_refused_with_one_line(arguments: tuple[str, ...], said: str) -> None:
    assert said in refusal(*arguments)


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_an_address_for_everybody_without_keys_is_warned_of(
    bundle_folder: Path, caplog: pytest.LogCaptureFixture, host: str, warned: bool
) -> None:
    judge = Judge(load_bundle(bundle_folder), CascadeSettings())
    crew = open_crew(AnalyzeSettings(worker_listen=f"tcp://{host}:0"), judge, PlanCache())
    assert crew is not None
    crew.dispatch.close()
    said = [each.getMessage() for each in caplog.records]
    assert any("whoever reaches it" in line and "--worker-keys" in line for line in said) == warned
