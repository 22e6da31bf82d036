"""The lists of a folder while the run goes on: they cost no hit, wait for nobody and hold up no end."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from analyzer.hits import HitFolder, HitFolderSettings
from analyzer.hits.lists import Lists
from analyzer.hits.places import list_lock
from tests.analyzer import builders
from tests.analyzer.hits.made import files, hit, wait_for, write

EACH = HitFolderSettings(journal_hits=1, journal_s=0.2)


def listed(folder: Path) -> int:
    place = folder / "hits.lst"
    return len(place.read_text().splitlines()) if place.exists() else 0


@pytest.fixture
def slow_look(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Files are looked into once this is set, as those of earlier shifts on a slow disk are after minutes."""
    gate, look = threading.Event(), Lists._look

    def slow(self: Lists, path: Path) -> None:
        gate.wait(30)
        look(self, path)

    monkeypatch.setattr(Lists, "_look", slow)
    return gate


def test_hits_are_written_while_old_files_are_looked_into(tmp_path: Path, slow_look: threading.Event) -> None:
    output = HitFolder(tmp_path, EACH)
    for n in range(20):
        output.offer(*hit(n))
    wait_for(lambda: output.written == 20, 20)
    assert (output.lost_hits, listed(tmp_path)) == (0, 0)
    slow_look.set()
    wait_for(lambda: listed(tmp_path) > 0)
    output.close()
    assert listed(tmp_path) == 20


def test_the_end_waits_for_the_lists_so_long_and_no_longer(
    tmp_path: Path, slow_look: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("analyzer.hits.listing.LAST_LIST_S", 0.5)
    output = HitFolder(tmp_path, EACH)
    for n in range(3):
        output.offer(*hit(n))
    began = time.monotonic()
    output.close()
    assert time.monotonic() - began < 10
    assert (output.written, output.unfinished, output.lost_hits) == (3, 0, 0)
    assert "the lists were not brought up to date in 0 s; `cxls data recover" in caplog.text
    slow_look.set()
    wait_for(lambda: not output._listing._thread.is_alive())
    assert Lists(tmp_path).refresh() == []
    assert listed(tmp_path) == 3


def test_the_lists_of_another_analysis_are_no_fault_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("analyzer.hits.listing.LIST_S", 0.2)
    monkeypatch.setattr("analyzer.hits.listing.LOCK_S", 0.1)
    lock = list_lock(tmp_path)
    assert lock.acquire()
    output = HitFolder(tmp_path, EACH)
    output.offer(*hit(0))
    wait_for(lambda: output.written == 1)
    time.sleep(1.0)
    assert output.facts()["fault"] is None
    lock.release()
    wait_for(lambda: listed(tmp_path) == 1)
    output.close()
    assert not [each for each in caplog.records if each.name.startswith("analyzer.hits")]


def test_old_files_are_looked_into_without_the_lock(tmp_path: Path, slow_look: threading.Event) -> None:
    """Else another analysis in the folder could write no list for as long."""
    output = HitFolder(tmp_path, EACH)
    output.offer(*hit(0))
    wait_for(lambda: output.written == 1)
    time.sleep(0.3)
    lock = list_lock(tmp_path)
    assert lock.acquire()
    lock.release(remove=True)
    slow_look.set()
    output.close()


def test_an_appending_run_opens_old_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [hit(n) for n in range(5)], EACH)
    looked: list[Path] = []
    look = Lists._look

    def counted(self: Lists, path: Path) -> None:
        looked.append(path)
        look(self, path)

    monkeypatch.setattr(Lists, "_look", counted)
    write(tmp_path, [hit(n) for n in range(7)], HitFolderSettings(journal_hits=10, append=True))
    assert len(looked) == 1  # that of the two new hits
    assert listed(tmp_path) == 7


def test_a_fault_of_ours_in_the_lists_costs_no_hit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Lists, *_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Lists, "refresh", broken)
    output = write(tmp_path, [hit(n) for n in range(4)], EACH)
    assert (output.written, output.lost_hits, output.unfinished) == (4, 0, 0)
    assert "the lists could not be written" in caplog.text


def test_the_lists_of_files_that_were_taken_away_go(tmp_path: Path) -> None:
    write(tmp_path, [hit(1, of=builders.series(1)), hit(2, of=builders.series(2, 2, beam_center_x_px=30.0))])
    (tmp_path / "hits-refined.geom").write_text("mine")
    assert len(list(tmp_path.glob("hits-????????.lst"))) == 2
    gone, kept = files(tmp_path)
    gone.unlink()
    assert Lists(tmp_path).refresh() == []
    (of_geometry,) = tmp_path.glob("hits-????????.lst")
    assert of_geometry.read_text() == f"{kept} //0\n" == (tmp_path / "hits.lst").read_text()
    assert {path.name for path in tmp_path.glob("*.geom")} == {
        of_geometry.with_suffix(".geom").name,
        "hits-refined.geom",
    }


def test_files_that_come_in_between_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "a", [hit(n) for n in range(3)], EACH)
    write(tmp_path / "b", [hit(3)], EACH)
    lists = Lists(tmp_path / "a")
    lists.look()
    (late,) = files(tmp_path / "b")
    shutil.copy(late, tmp_path / "a" / late.name)
    assert lists.refresh() == []
    assert listed(tmp_path / "a") == 4
