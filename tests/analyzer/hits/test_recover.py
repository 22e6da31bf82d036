"""Killed runs: every hit that reached the journal is in a file once, after any number of recoveries."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from analyzer.hits import HitFolder, HitFolderSettings, recover, verify
from analyzer.hits.entries import HIT, SERIES, hit_head, series_entry
from analyzer.hits.files import make_files
from analyzer.hits.journal import Journal
from analyzer.hits.lists import Lists
from analyzer.hits.places import JOURNALS, journal_path, list_lock, new_run, prepare_folder, run_lock
from streamer.messages import Algorithm, ImageData
from tests.analyzer import builders
from tests.analyzer.hits.made import (
    QUICK,
    files,
    hit,
    image_ids,
    pixels,
    read_as_crystfel,
    the_geometry,
    wait_for,
    write,
)  # fmt: skip
from tests.support import REPOSITORY, packed_image

CHILD = [sys.executable, "-m", "tests.analyzer.hits.run_child"]


def left_by_a_kill(folder: Path, ids: range, number: int = 1, run: str | None = None) -> tuple[str, Path]:
    """A journal with these hits, of a run that is no more."""
    prepare_folder(folder)
    run = run or new_run()
    path = journal_path(folder, run, number)
    journal = Journal(path)
    digest = ""
    for n in ids:
        frame, result = hit(n)
        assert isinstance(frame.image, ImageData)
        if not digest:
            digest, head, body = series_entry(frame, frame.image.shape)
            journal.append(SERIES, head, body)
        journal.append(HIT, hit_head(frame, frame.image, result, digest), frame.image.data)
    journal.close()
    return run, path


def assert_sound(folder: Path) -> None:
    """No image twice, all decode, and all pixels are those of the image's number."""
    looked = verify(folder)
    assert list(looked.problems()) == []
    ids = image_ids(folder)
    assert len(ids) == len(set(ids)) == looked.hits
    for path in files(folder):
        with h5py.File(path) as file:
            for n, image_id in enumerate(file["entry/event/image_id"][()]):
                assert np.array_equal(file["entry/data/data"][n], pixels(int(image_id)))


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_leaves_every_hit_that_it_had_journaled(tmp_path: Path, seed: int) -> None:
    """Killed at a random moment, in the middle of whatever it does: appending, making a file, renaming, listing."""
    child = subprocess.Popen([*CHILD, str(tmp_path / "h"), "forever"], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(random.Random(seed).uniform(0.2, 1.2))
    child.send_signal(signal.SIGKILL)
    said = child.communicate()[0].split(b"\n")
    finished = int(said[-2]) if len(said) > 1 else 0
    found = recover(tmp_path / "h")
    assert not found.running
    ids = image_ids(tmp_path / "h")
    # All up to where it had come, in order, and none of them twice.
    assert ids == list(range(len(ids)))
    assert len(ids) >= finished > 0
    assert_sound(tmp_path / "h")
    assert not list((tmp_path / "h").glob(".*.part"))
    assert not list((tmp_path / "h" / JOURNALS).iterdir())
    before = {path: path.stat().st_mtime_ns for path in files(tmp_path / "h")}
    assert recover(tmp_path / "h").files == []
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path / "h")} == before


def test_the_next_run_in_the_folder_finishes_the_last(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path, range(5))
    output = write(tmp_path, [hit(n) for n in range(5, 8)])
    assert (output.recovered.hits, output.written) == (5, 3)
    assert image_ids(tmp_path) == list(range(8))
    assert len((tmp_path / "hits.lst").read_text().splitlines()) == 8
    assert_sound(tmp_path)
    assert not (tmp_path / JOURNALS).exists()


def test_a_run_that_goes_on_holds_no_hit_twice(tmp_path: Path) -> None:
    first = [hit(number) for number in range(12)]
    write(tmp_path, first)
    again = write(tmp_path, [hit(number) for number in range(8, 15)], replace(QUICK, append=True))
    assert image_ids(tmp_path) == list(range(15))
    assert (again.written, again.repeated, again.lost_hits) == (3, 4, 0)
    write(tmp_path, [hit(3)])
    assert image_ids(tmp_path).count(3) == 2, "a run that is not told to append writes what it finds"


def test_a_file_is_opened_once_for_all_its_hits_that_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hits = [hit(n) for n in range(12)]
    write(tmp_path, hits, replace(QUICK, journal_hits=6))
    assert len(files(tmp_path)) == 2
    folder = HitFolder(tmp_path, replace(QUICK, append=True))
    opened: list[Path] = []
    really = h5py.File

    def counted(path: Path, **options: Any) -> Any:
        opened.append(path)
        return really(path, **options)

    monkeypatch.setattr("analyzer.hits.held.h5py.File", counted)
    for each in hits:
        folder.offer(*each)
    wait_for(lambda: folder.repeated == 12)
    assert opened == files(tmp_path), "their ids were read before"
    folder.close()


def test_the_same_ids_of_another_image_are_another_hit(tmp_path: Path) -> None:
    write(tmp_path, [hit(number) for number in range(3)])
    series_2 = builders.series(series_id=2)
    counted_anew = [hit(1, packed_image(pixels(100))), hit(1, of=series_2), hit(2)]
    again = write(tmp_path, counted_anew, replace(QUICK, append=True))
    assert (again.written, again.repeated) == (2, 1)


@pytest.mark.parametrize("algorithm", [each for each in Algorithm if each != Algorithm.TRPX])
def test_a_hit_is_known_again_however_it_is_packed(tmp_path: Path, algorithm: Algorithm) -> None:
    hits = [hit(number, packed_image(pixels(number), algorithm)) for number in range(3)]
    write(tmp_path, hits)
    assert write(tmp_path, hits, replace(QUICK, append=True)).repeated == 3


def test_a_damaged_file_keeps_no_hit_from_being_written(tmp_path: Path) -> None:
    write(tmp_path, [hit(number) for number in range(5)])
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:3000])
    assert write(tmp_path, [hit(number) for number in range(5)], replace(QUICK, append=True)).written == 5


def test_a_kill_between_the_rename_and_the_end_of_the_journal_repeats_nothing(tmp_path: Path) -> None:
    _, path = left_by_a_kill(tmp_path, range(4))
    with open(path, "rb") as file:
        make_files(file.fileno(), tmp_path, path)
    (made,) = files(tmp_path)
    inode = made.stat().st_ino
    assert path.exists()
    recover(tmp_path)
    assert [found.stat().st_ino for found in files(tmp_path)] == [inode]
    assert image_ids(tmp_path) == [0, 1, 2, 3]
    assert not path.exists()


def test_a_kill_between_two_files_of_a_journal_makes_the_second(tmp_path: Path) -> None:
    prepare_folder(tmp_path)
    path = journal_path(tmp_path, new_run(), 1)
    journal = Journal(path)
    for n, dtype in ((0, "u2"), (1, "u4"), (2, "u2")):
        frame, result = hit(n)
        image = packed_image(pixels(n, dtype))
        digest, head, body = series_entry(frame, image.shape)
        journal.append(SERIES, head, body)
        journal.append(HIT, hit_head(frame, image, result, digest), image.data)
    journal.close()
    with open(path, "rb") as file:
        first, second = make_files(file.fileno(), tmp_path, path).files
    second.unlink()
    inode = first.stat().st_ino
    recover(tmp_path)
    assert files(tmp_path) == [first, second]
    assert first.stat().st_ino == inode
    assert image_ids(tmp_path) == [0, 1, 2]


def test_an_unfinished_file_of_a_dead_run_goes_and_that_of_a_live_one_stays(tmp_path: Path) -> None:
    dead, _ = left_by_a_kill(tmp_path, range(2))
    alive, _ = left_by_a_kill(tmp_path, range(10, 12))
    lock = run_lock(tmp_path, alive)
    assert lock.acquire()
    parts = [tmp_path / f".hits-{run}-000009-0.h5.part" for run in (dead, alive)]
    for part in parts:
        part.write_bytes(b"half")
    found = recover(tmp_path)
    assert found.running == [alive]
    assert [part.exists() for part in parts] == [False, True]
    assert image_ids(tmp_path) == [0, 1]
    lock.release()
    recover(tmp_path)
    assert image_ids(tmp_path) == [0, 1, 10, 11]


def test_two_runs_in_one_folder_leave_each_other_alone(tmp_path: Path) -> None:
    first = HitFolder(tmp_path, HitFolderSettings(journal_hits=3, journal_s=60))
    for n in range(4):
        first.offer(*hit(n))
    wait_for(lambda: first.written == 3)
    second = HitFolder(tmp_path, HitFolderSettings(journal_hits=3, journal_s=60))
    assert second.recovered.hits == 0
    assert len(second.recovered.running) == 1
    for n in range(100, 104):
        second.offer(*hit(n))
        first.offer(*hit(n - 90))
    assert recover(tmp_path).files == []
    second.close()
    first.close()
    assert image_ids(tmp_path) == [0, 1, 2, 3, 10, 11, 12, 13, 100, 101, 102, 103]
    assert len((tmp_path / "hits.lst").read_text().splitlines()) == 12
    assert_sound(tmp_path)
    assert not (tmp_path / JOURNALS).exists()


def test_a_lock_file_that_somebody_removed_does_not_give_a_journal_away(tmp_path: Path) -> None:
    output = HitFolder(tmp_path, HitFolderSettings(journal_hits=100, journal_s=60))
    output.offer(*hit(0))
    wait_for(lambda: len(list((tmp_path / JOURNALS).glob("*.journal"))) == 1)
    for lock in (tmp_path / JOURNALS).glob("*.lock"):
        lock.unlink()
    assert recover(tmp_path).files == []
    output.offer(*hit(1))
    output.close()
    assert image_ids(tmp_path) == [0, 1]


def test_a_torn_journal_gives_what_is_whole_and_goes(tmp_path: Path) -> None:
    _, path = left_by_a_kill(tmp_path, range(6))
    os.truncate(path, path.stat().st_size - 100)
    found = recover(tmp_path)
    assert found.problems == []
    assert len(found.notes) == 1
    assert "cut short" in found.notes[0]
    assert image_ids(tmp_path) == list(range(5))
    assert not list((tmp_path / JOURNALS).iterdir())


def test_a_corrupt_record_in_the_middle_costs_itself_and_the_journal_is_kept(tmp_path: Path) -> None:
    _, path = left_by_a_kill(tmp_path, range(6))
    raw = bytearray(path.read_bytes())
    at = raw.index(pixels_chunk(3))
    raw[at + 50] ^= 1
    path.write_bytes(raw)
    found = recover(tmp_path)
    assert len(found.problems) == 1
    assert "corrupt" in found.problems[0]
    assert image_ids(tmp_path) == [0, 1, 2, 4, 5]
    (kept,) = (tmp_path / JOURNALS).iterdir()
    assert kept.name == path.name + ".kept"
    assert kept.read_bytes() == bytes(raw)
    again = recover(tmp_path)
    assert (again.files, again.problems) == ([], [])
    assert_sound(tmp_path)


@pytest.mark.parametrize("seed", range(25))
def test_random_damage_costs_no_record_that_it_does_not_touch(tmp_path: Path, seed: int) -> None:
    _, path = left_by_a_kill(tmp_path, range(8))
    raw, draw = bytearray(path.read_bytes()), random.Random(seed)
    ends = [raw.index(pixels_chunk(n)) + len(pixels_chunk(n)) for n in range(8)]
    hurt = set()
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(ends[0], len(raw))
        stop = min(len(raw), start + draw.choice([1, 10, 3000, 9000]))
        raw[start:stop] = draw.randbytes(stop - start)
        hurt |= {n for n in range(1, 8) if ends[n - 1] < stop and start < ends[n]}
    path.write_bytes(raw)
    found = recover(tmp_path)
    assert found.problems or found.notes
    ids = image_ids(tmp_path)
    assert set(ids) >= set(range(8)) - hurt
    assert ids == sorted(set(ids))
    for made in files(tmp_path):
        with h5py.File(made) as file:
            for n, image_id in enumerate(file["entry/event/image_id"][()]):
                assert np.array_equal(file["entry/data/data"][n], pixels(int(image_id)))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [-1, 5]},
        {"shape": [10**9, 10**9]},
        {"shape": [1, 2, 3]},
        {"dtype": "O"},
        {"dtype": "<f4"},
        {"dtype": "no type"},
        {"algorithm": "zip"},
        {"record": None},
        {"record": []},
        {"record": {"peaks": "many"}},
        {"record": {"peaks": [{"fs": 1}]}},
        {"record": {"peaks": [None]}},
        {"record": {"received_at": "noon"}},
        {"record": {"image_id": 1 << 70}},
        {"record": {"image_id": [1]}},
        {"series": 5},
    ],
    ids=str,
)
def test_a_hit_that_makes_no_sense_keeps_no_other_from_its_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    prepare_folder(tmp_path)
    path = journal_path(tmp_path, new_run(), 1)
    journal = Journal(path)
    for n in range(3):
        frame, result = hit(n)
        assert isinstance(frame.image, ImageData)
        head = hit_head(frame, frame.image, result, "unknown")
        if n == 1:
            head = json.dumps(json.loads(head) | changes).encode()
        journal.append(HIT, head, frame.image.data)
    journal.append(77, b"whatever", b"")
    journal.close()
    found = recover(tmp_path)
    assert len(found.problems) == 2
    assert "unknown kind 77" in found.problems[1]
    assert image_ids(tmp_path) == [0, 2]
    assert [kept.suffix for kept in (tmp_path / JOURNALS).iterdir()] == [".kept"]


def pixels_chunk(number: int) -> bytes:
    frame, _ = hit(number)
    return bytes(frame.image.data)


def test_hits_whose_series_was_damaged_are_not_lost(tmp_path: Path) -> None:
    _, path = left_by_a_kill(tmp_path, range(3))
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"camera_length_m")] ^= 1
    path.write_bytes(raw)
    found = recover(tmp_path)
    assert len(found.problems) == 1
    assert image_ids(tmp_path) == [0, 1, 2]
    assert_sound(tmp_path)
    assert Lists(tmp_path).refresh() == []
    seen = the_geometry(tmp_path)
    assert seen.clen_m is None


def test_what_is_no_journal_is_named_and_left(tmp_path: Path) -> None:
    run, path = left_by_a_kill(tmp_path, range(2))
    strange = journal_path(tmp_path, run, 2)
    strange.write_bytes(b"something else" * 10)
    found = recover(tmp_path)
    assert len(found.problems) == 1
    assert str(strange) in found.problems[0]
    assert "no journal" in found.problems[0]
    assert strange.exists()
    assert not path.exists()
    assert image_ids(tmp_path) == [0, 1]


def test_an_empty_journal_goes_without_a_word_of_files(tmp_path: Path) -> None:
    run, _ = left_by_a_kill(tmp_path, range(0))
    journal_path(tmp_path, run, 2).write_bytes(b"")
    found = recover(tmp_path)
    assert (found.files, found.hits, found.problems) == ([], 0, [])
    assert not list((tmp_path / JOURNALS).iterdir())


def test_lists_are_made_of_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, [hit(n) for n in range(3)])
    (path,) = files(tmp_path)
    for name in ("hits.lst", *(found.name for found in tmp_path.glob("hits-*.geom"))):
        (tmp_path / name).unlink()
    (tmp_path / "hits-foreign-file.h5").write_bytes(b"no HDF5")
    problems = Lists(tmp_path).refresh()
    assert len(problems) == 1
    assert "hits-foreign-file.h5: no file of hits: " in problems[0]
    lines = (tmp_path / "hits.lst").read_text().splitlines()
    assert lines == [f"{path} //{n}" for n in range(3)]
    assert np.array_equal(read_as_crystfel(lines[2], the_geometry(tmp_path)).pixels, pixels(2).astype("f4"))


def test_the_list_of_another_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path, [hit(0)])
    before = (tmp_path / "hits.lst").read_text()
    lock = list_lock(tmp_path)
    assert lock.acquire()
    with pytest.raises(BlockingIOError, match="another analyser"):
        Lists(tmp_path).refresh(0.1)
    output = HitFolder(tmp_path, HitFolderSettings(journal_hits=1))
    output.offer(*hit(1))
    wait_for(lambda: output.written == 1)
    assert (tmp_path / "hits.lst").read_text() == before
    lock.release()
    output.close()
    assert len((tmp_path / "hits.lst").read_text().splitlines()) == 2


def test_verify_finds_what_was_done_to_a_file(tmp_path: Path) -> None:
    write(tmp_path, [hit(n) for n in range(3)], HitFolderSettings(journal_hits=1))
    one, two, three = files(tmp_path)
    (tmp_path / "hits-copy-of.h5").write_bytes(one.read_bytes())
    with h5py.File(two, "r+") as file:
        file["entry/data/data"].id.write_direct_chunk((0, 0, 0), b"\xff" * 100)
        file["entry_1/result_1/nPeaks"][0] = 999
    raw = three.read_bytes()
    three.write_bytes(raw[: len(raw) // 2])
    problems = list(verify(tmp_path).problems())
    assert len(problems) == 4, problems
    assert sum("there twice" in problem for problem in problems) == 1
    assert sum(f"{two}: image 0 cannot be read" in problem for problem in problems) == 1
    assert sum(f"{two}: /entry_1/result_1 does not have the peaks" in problem for problem in problems) == 1
    assert sum(str(three) in problem for problem in problems) == 1
