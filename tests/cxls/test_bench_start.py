"""The bench of a start: a real analysis beside a real source, and the steps it takes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from cxls.bench import start


def test_a_start_is_timed_to_its_first_record(master: Path, tmp_path: Path) -> None:
    found = start.first_record(master, tmp_path / "r.jsonl")
    assert 0 < found.listening_s <= found.record_s < 60
    assert (tmp_path / "r.jsonl").read_bytes().count(b"\n")


def test_the_steps_are_those_of_a_start(master: Path) -> None:
    found = start.phases(master)
    assert next(iter(found)) == "command line"
    assert list(found)[-1] == "second frame"
    assert 0.5 < sum(found.values()) < 120


def test_the_folder_of_the_cache_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "somewhere"):
        monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
        if before is not None:
            monkeypatch.setenv("NUMBA_CACHE_DIR", before)
        with start._cache_in(tmp_path):
            assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path)
        assert os.environ.get("NUMBA_CACHE_DIR") == before


def test_the_start_is_one_on_the_device_that_is_asked_for(
    master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, ...]] = []

    @contextmanager
    def ended(*arguments: str) -> Iterator[SimpleNamespace]:
        given.append(arguments)
        process = SimpleNamespace(poll=lambda: 1)
        yield SimpleNamespace(process=process, address=lambda name: "tcp://x:1", addresses={}, errors=["none here"])

    monkeypatch.setattr(start, "cxls", ended)
    with pytest.raises(RuntimeError, match="none here"):
        start.first_record(master, tmp_path / "r.jsonl", "cuda")
    assert given[1][given[1].index("--device") + 1] == "cuda"
