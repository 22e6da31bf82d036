"""Hits to a folder while the run goes on: bounded, counted, and a bad disk costs what it must and no more."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from analyzer.hits import HitFolder, HitFolderSettings, UnusableFolder, recover, verify
from analyzer.hits.places import JOURNALS, new_run
from analyzer.hits.writer import SPARE_BYTES, JournalWriter
from streamer.messages import Algorithm, Defect, ImageData
from tests.analyzer import builders
from tests.analyzer.hits.made import files, hit, image_ids, packed, pixels, wait_for, write
from tests.support import REPOSITORY, packed_image, require

CHILD = [sys.executable, "-m", "tests.analyzer.hits.run_child"]
MIB = 1 << 20


def scrape(output: HitFolder) -> dict[str, float]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(output)  # type: ignore[arg-type]
    lines = generate_latest(registry).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("cxls_")}


def assert_counts_close(output: HitFolder, offered: int) -> None:
    assert output.written + output.lost_hits + output.unfinished == offered, output.facts()


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with open(path, "wb") as file, contextlib.suppress(OSError):
        while os.write(file.fileno(), bytes(4096)):
            pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


# --- when a journal becomes files -------------------------------------------------------


def test_files_come_after_so_many_hits(tmp_path: Path) -> None:
    output = HitFolder(tmp_path, HitFolderSettings(journal_hits=4, journal_s=60))
    for n in range(9):
        output.offer(*hit(n))
    wait_for(lambda: output.files == 2)
    assert output.facts()["waiting"] == 1
    output.close()
    assert [output.files, output.written] == [3, 9]
    assert image_ids(tmp_path) == list(range(9))


def test_files_come_after_a_while_without_further_hits(tmp_path: Path) -> None:
    output = HitFolder(tmp_path, HitFolderSettings(journal_hits=100, journal_s=0.2))
    output.offer(*hit(0))
    wait_for(lambda: output.written == 1, 10)
    output.close()


def test_files_are_as_large_as_the_setting_says(tmp_path: Path) -> None:
    shape = (600, 600)
    images = [packed(np.random.default_rng(n).integers(0, 2**16, shape).astype("u2")) for n in range(8)]
    series = builders.series(shape=shape)
    write(tmp_path, [hit(n, image, series) for n, image in enumerate(images)], HitFolderSettings(file_bytes=2 * MIB))
    sizes = [path.stat().st_size for path in files(tmp_path)]
    assert len(sizes) == 3
    assert all(2 * MIB < size < 3 * MIB for size in sizes[:2])
    assert image_ids(tmp_path) == list(range(8))


def test_a_run_without_hits_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "h", [])
    assert list((tmp_path / "h").iterdir()) == []


def test_a_frame_without_an_image_is_no_hit(tmp_path: Path) -> None:
    frame, result = hit(0)
    output = write(tmp_path, [(builders.frame(Defect("bad_block", "x")), result)])
    assert_counts_close(output, 0)
    del frame


def test_workers_may_all_offer_at_once(tmp_path: Path) -> None:
    output = HitFolder(tmp_path, HitFolderSettings(journal_hits=13))
    hits = [hit(n) for n in range(120)]

    def work(part: int) -> None:
        for frame, result in hits[part::4]:
            output.offer(frame, result)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output.close()
    assert image_ids(tmp_path) == list(range(120))
    assert list(verify(tmp_path).problems()) == []
    output.offer(*hit(120))
    assert output.lost["shutdown"] == 1


# --- bounded and counted ----------------------------------------------------------------


def test_a_disk_that_is_behind_costs_hits_not_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = HitFolder._append
    gate = threading.Event()

    def slow(self: HitFolder, item: object) -> None:
        gate.wait(30)
        append(self, item)  # type: ignore[arg-type]

    monkeypatch.setattr(HitFolder, "_append", slow)
    frame, _ = hit(0)
    output = HitFolder(tmp_path, HitFolderSettings(queue_bytes=10 * frame.held_bytes + 500))
    began = time.monotonic()
    for n in range(50):
        output.offer(*hit(n))
    assert time.monotonic() - began < 5
    scraped = scrape(output)
    assert scraped["cxls_hits_waiting_bytes"] <= 10 * frame.held_bytes + 500
    assert scraped['cxls_hits_lost_total{reason="queue_full"}'] == output.lost["queue_full"] > 30
    gate.set()
    output.close()
    assert_counts_close(output, 50)
    assert len(image_ids(tmp_path)) == output.written
    assert scrape(output)["cxls_hits_waiting_bytes"] == 0


def test_every_metric_and_label_is_there_from_the_start(tmp_path: Path) -> None:
    output = HitFolder(tmp_path)
    assert scrape(output) == {
        "cxls_hits_written_total": 0,
        "cxls_hits_files_total": 0,
        "cxls_hits_recovered_total": 0,
        "cxls_hits_repeated_total": 0,
        **{f'cxls_hits_lost_total{{reason="{why}"}}': 0 for why in ("queue_full", "disk", "failed", "shutdown")},
        **{f'cxls_hits_waiting{{place="{place}"}}': 0 for place in ("queue", "journal")},
        "cxls_hits_waiting_bytes": 0,
        "cxls_hits_disk_fault": 0,
    }
    output.close()


def test_promtool_finds_nothing(tmp_path: Path) -> None:
    require("promtool", "prometheus")
    output = write(tmp_path, [hit(0)])
    registry = CollectorRegistry(auto_describe=False)
    registry.register(output)  # type: ignore[arg-type]
    text = generate_latest(registry).decode()
    lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")


def test_a_fault_of_ours_costs_its_hit_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame, result = hit(1)
    broken = builders.frame(pixels(1), 1, of=None)
    object.__setattr__(broken, "series", None)
    output = write(tmp_path, [hit(0), (broken, result), hit(2)])
    assert (output.written, output.lost["failed"]) == (2, 1)
    assert image_ids(tmp_path) == [0, 2]
    assert "a hit could not be written" in caplog.text
    del frame


def test_the_end_waits_while_something_moves_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyzer.hits.folder.CLOSE_S", 2.0)
    append, gate = HitFolder._append, threading.Event()

    def slow(self: HitFolder, item: object) -> None:
        if gate.is_set():
            time.sleep(30)
        time.sleep(0.2)
        append(self, item)  # type: ignore[arg-type]

    monkeypatch.setattr(HitFolder, "_append", slow)
    moving = write(tmp_path / "moving", [hit(n) for n in range(15)])
    assert (moving.written, moving.lost_hits) == (15, 0)
    stuck = HitFolder(tmp_path / "stuck", HitFolderSettings(journal_hits=100))
    stuck.offer(*hit(0))
    wait_for(lambda: stuck.facts()["waiting"] == 1 and not stuck._waiting)
    gate.set()
    for n in range(1, 5):
        stuck.offer(*hit(n))
    began = time.monotonic()
    stuck.close()
    assert time.monotonic() - began < 15
    assert stuck.lost["shutdown"] == 3
    assert_counts_close(stuck, 5)


# --- disks ------------------------------------------------------------------------------


def test_a_full_disk_costs_what_does_not_fit_and_is_written_to_again(
    small_disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.hits.folder.RETRY_S", 0.1)
    shape = (400, 400)
    series = builders.series(shape=shape)

    def large(n: int) -> object:
        return hit(n, packed(np.random.default_rng(n).integers(0, 2**16, shape).astype("u2")), series)

    frame, _ = large(0)  # type: ignore[misc]
    output = HitFolder(small_disk / "h", HitFolderSettings(queue_bytes=4 * frame.held_bytes, journal_s=0.2))
    filler = small_disk / "other people's data"
    filler.write_bytes(bytes(3 * MIB))
    sent = 0
    while output.lost["disk"] < 5:
        output.offer(*large(sent))  # type: ignore[misc]
        sent += 1
        time.sleep(0.02)
        assert sent < 2000, output.facts()
    assert scrape(output)["cxls_hits_disk_fault"] == 1
    assert "no space left on device" in (output.facts()["fault"] or "")
    assert [r.levelname for r in caplog.records if "cannot be written" in r.message] == ["ERROR"]
    filler.unlink()
    wait_for(lambda: output.facts()["fault"] is None and not output._waiting, 20)
    lost = output.lost_hits
    output.offer(*large(sent))  # type: ignore[misc]
    output.close()
    assert output.lost_hits == lost
    assert output.lost["failed"] == 0
    assert_counts_close(output, sent + 1)
    assert "written again" in caplog.text
    assert sent in image_ids(small_disk / "h")
    assert len(image_ids(small_disk / "h")) == output.written
    assert list(verify(small_disk / "h").problems()) == []
    assert not list((small_disk / "h").glob(".*"))


def test_a_run_that_ends_on_a_full_disk_keeps_its_journal(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = HitFolder(small_disk / "h", HitFolderSettings(journal_hits=1000, journal_s=60))
    for n in range(20):
        output.offer(*hit(n))
    wait_for(lambda: output.facts()["waiting"] == 20 and not output._waiting)
    filler = small_disk / "filler"
    fill(filler)
    output.close()
    assert (output.written, output.lost_hits, output.unfinished) == (0, 0, 20)
    assert "20 hits are in the journal alone; `cxls data recover" in caplog.text
    assert files(small_disk / "h") == []
    assert not list((small_disk / "h").glob(".*.part"))
    found = recover(small_disk / "h")
    assert found.files == []
    assert "no space left" in found.problems[0]
    filler.unlink()
    assert recover(small_disk / "h").hits == 20
    assert image_ids(small_disk / "h") == list(range(20))


def test_room_is_asked_for_images_that_lie_unpacked_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a journal would be written of which no file can be made."""
    block, shape = packed_image(np.zeros((512, 512), "u2")), (512, 512)
    odd = ImageData(bytes(100), shape, np.dtype("u2"), Algorithm.BSLZ4, 4)  # elements that are no pixels
    writer = JournalWriter(tmp_path, new_run())
    frame, result = hit(0, odd, builders.series(shape=shape))
    plain, _ = hit(1, block, builders.series(shape=shape))

    def free(nbytes: int) -> None:
        room = SimpleNamespace(f_bavail=nbytes + SPARE_BYTES, f_frsize=1)
        monkeypatch.setattr("analyzer.hits.writer.os.statvfs", lambda _: room)

    free(100_000)
    assert isinstance(plain.image, ImageData)
    assert writer.has_room(plain, plain.image)
    assert not writer.has_room(frame, odd)
    free(700_000)
    assert writer.has_room(frame, odd)
    writer.append(frame, odd, result)
    assert not writer.has_room(frame, odd)  # the first one's file needs the room


def test_a_limit_on_the_size_of_files_loses_what_does_not_fit(tmp_path: Path) -> None:
    """HDF5 that cannot write must neither hang nor take the process with it, as it would if it had the file itself."""
    done = subprocess.run(
        [*CHILD, str(tmp_path / "h"), "limit", "60000", "40"],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written, lost, unfinished = map(int, done.stdout.split())
    assert written == 0
    assert lost > 0
    assert written + lost + unfinished == 40
    assert done.stderr.count("cannot be written") == 1
    assert "file too large" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert recover(tmp_path / "h").hits == unfinished
    assert len(image_ids(tmp_path / "h")) == unfinished


def test_a_folder_that_turns_read_only_is_written_to_again_later(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.hits.folder.RETRY_S", 0.1)
    output = HitFolder(small_disk / "h", HitFolderSettings(journal_hits=1))
    output.offer(*hit(0))
    wait_for(lambda: output.written == 1)
    wait_for(lambda: not output._writer.current and not output._writer.left)
    # What has files open cannot be made read-only; something read-only can come in its place.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", small_disk / "h"], check=True)
    output.offer(*hit(1))
    wait_for(lambda: "read-only file system" in (output.facts()["fault"] or ""))
    subprocess.run(["umount", small_disk / "h"], check=True)
    output.offer(*hit(2))
    wait_for(lambda: output.written == 3)
    output.close()
    assert image_ids(small_disk / "h") == [0, 1, 2]
    assert output.lost_hits == 0


def test_a_folder_that_is_removed_is_made_again_with_what_was_in_the_journal(tmp_path: Path) -> None:
    output = HitFolder(tmp_path / "h", HitFolderSettings(journal_hits=3, journal_s=60))
    for n in range(2):
        output.offer(*hit(n))
    wait_for(lambda: output.facts()["waiting"] == 2 and not output._waiting)
    shutil.rmtree(tmp_path / "h")
    for n in range(2, 5):
        output.offer(*hit(n))
    output.close()
    assert image_ids(tmp_path / "h") == list(range(5))


# --- folders that are refused -----------------------------------------------------------


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h").write_bytes(b"")
    with pytest.raises(UnusableFolder, match=r"h: (file exists|not a directory); choose a folder"):
        HitFolder(tmp_path / "h")


def test_a_read_only_disk_is_refused(small_disk: Path) -> None:
    (small_disk / "h" / JOURNALS).mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for folder in (small_disk / "h", small_disk / "new"):
        with pytest.raises(UnusableFolder, match="read-only file system; choose a folder that can be written"):
            HitFolder(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir(mode=0o555)
    with pytest.raises(UnusableFolder, match="permission denied; choose a folder that can be written"):
        HitFolder(tmp_path / "h")


def test_a_name_that_no_list_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableFolder, match="unprintable"):
        HitFolder(tmp_path / "two\nlines")
