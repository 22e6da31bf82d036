"""Room on the disks of outputs: real folders, a folder that vanishes, a disk that does not answer."""

import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from analyzer.metrics import DiskSpace, disk


def rooms(space: DiskSpace) -> dict[str, tuple[float, float]]:
    """Free bytes and size by output."""
    free, size = space.collect()
    assert (free.name, size.name) == ("cxls_disk_free_bytes", "cxls_disk_size_bytes")
    return {
        one.labels["output"]: (one.value, other.value) for one, other in zip(free.samples, size.samples, strict=True)
    }


def test_every_output_has_the_room_of_its_disk(tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    found = rooms(DiskSpace({"results": tmp_path, "hits": tmp_path}))
    assert set(found) == {"results", "hits"}
    for free, size in found.values():
        assert size == usage.total
        assert free == pytest.approx(usage.free, rel=0.2)


def test_without_outputs_there_is_nothing_to_show() -> None:
    assert rooms(DiskSpace({})) == {}


def test_a_folder_that_is_gone_is_unknown_and_the_others_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "LOOK_S", 0.0)
    lost = tmp_path / "lost"
    lost.mkdir()
    space = DiskSpace({"hits": lost, "results": tmp_path})
    assert rooms(space)["hits"][0] > 0
    lost.rmdir()
    found = rooms(space)
    assert all(math.isnan(value) for value in found["hits"])
    assert found["results"][0] > 0
    lost.mkdir()
    assert rooms(space)["hits"][0] > 0, "and it comes back with the folder"


def test_scrapes_that_follow_each_other_look_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (looked.append(path), usage(path))[1])
    space = DiskSpace({"results": tmp_path})
    first = rooms(space)
    assert all(rooms(space) == first for _ in range(20))
    assert looked == [tmp_path]


def test_a_disk_that_does_not_answer_holds_up_one_scrape_and_is_then_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "LOOK_S", 0.0)
    space = DiskSpace({"results": tmp_path})
    known = rooms(space)
    hangs, answers = threading.Event(), threading.Event()
    usage = shutil.disk_usage

    def hang(path: Path) -> Any:
        hangs.set()
        assert answers.wait(20)
        return usage(path)

    monkeypatch.setattr(shutil, "disk_usage", hang)
    scrape = threading.Thread(target=rooms, args=(space,))
    scrape.start()
    assert hangs.wait(30)
    began = time.monotonic()
    assert rooms(space) == known, "the last look, at once"
    assert time.monotonic() - began < 10, "of 20 s that the disk takes"
    monkeypatch.setattr(disk, "STALE_S", 0.0)
    assert math.isnan(rooms(space)["results"][0])
    answers.set()
    scrape.join()
