"""Results on disk: whole records, no pair twice, faults counted and never raised."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analyzer.results import RECORD_FIELDS, FrameResult, Status, to_json_line
from analyzer.sinks import DetachedSink, JsonLinesSink, ParquetSink, ResultsExist, files, hold, open_results
from tests.analyzer.writer_child import result
from tests.support import REPOSITORY

CHILD = [sys.executable, "-m", "tests.analyzer.writer_child"]
BOTH = pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])


def read(path: Path) -> list[dict[str, Any]]:
    """Every record, as any user would read it."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return [row for part in sorted(path.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def write(path: Path, ids: Iterable[int], **options: bool) -> None:
    sink = open_results(path, **options)
    sink.write([result(n) for n in ids])
    sink.close()
    assert sink.lost == 0


def ids(path: Path) -> list[int]:
    return [record["image_id"] for record in read(path)]


UNDECODABLE = FrameResult(
    series_id=1, image_id=99, channel="threshold_1", start_time=None, exposure_s=None, received_at=1e9,
    status=Status.UNDECODABLE, status_text="bad", reason="bad_block",
)  # fmt: skip


@BOTH
def test_a_record_has_every_field_and_reads_back_as_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    sink = open_results(path)
    sink.write([result(3), UNDECODABLE])
    sink.close()
    good, bad = read(path)
    assert tuple(good) == tuple(bad) == RECORD_FIELDS
    assert good["peaks"][2] == {
        "fs": 3.0, "ss": 5.0, "intensity_photons": 20.0, "snr": 4.0, "saturated": False,
        "q_per_angstrom": None, "resolution_angstrom": None,
    }  # fmt: skip
    assert (good["status"], good["decision"], good["hit_rule"], good["hit"]) == ("ok", "hit", "network", True)
    assert (bad["status"], bad["hit"], bad["peaks"], bad["bundle"]) == ("undecodable", None, None, None)


@BOTH
def test_an_existing_file_is_refused_and_left_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    write(path, range(3))
    with pytest.raises(ResultsExist, match="--append"):
        open_results(path)
    assert ids(path) == [0, 1, 2]


@BOTH
def test_overwrite_replaces(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    write(path, range(5))
    write(path, [7], overwrite=True)
    assert ids(path) == [7]


@BOTH
def test_append_adds_and_repeats_no_pair(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    write(path, range(5))
    write(path, range(3, 8), append=True)
    assert sorted(ids(path)) == list(range(8))


@BOTH
def test_append_to_nothing_begins(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    write(path, range(2), append=True)
    assert ids(path) == [0, 1]


@BOTH
def test_the_same_image_of_another_series_is_another_pair(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    write(path, range(2))
    sink = open_results(path, append=True)
    sink.write([replace(result(0), series_id=2), result(0)])
    sink.close()
    assert len(read(path)) == 3


def test_a_line_cut_by_a_kill_is_removed_on_append(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, range(4))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    write(path, range(3, 6), append=True)
    assert ids(path) == [0, 1, 2, 3, 4, 5]


def test_an_empty_file_can_be_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.touch()
    write(path, range(2), append=True)
    assert ids(path) == [0, 1]


@pytest.mark.parametrize(
    "content", ["text\n", "[1, 2]\n", '{"a": 1}\n', "null\n", '{"series_id": "x", "image_id": 1}\n']
)
def test_append_to_a_file_of_another_kind_is_refused_and_it_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(content)
    with pytest.raises(ResultsExist, match="line 1"):
        open_results(path, append=True)
    assert path.read_text() == content


def test_a_text_file_without_a_newline_is_not_emptied_by_append(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("notes of the night shift, not results")
    with pytest.raises(ResultsExist):
        open_results(path, append=True)
    assert path.read_text() == "notes of the night shift, not results"


@pytest.mark.parametrize("name", ["r.txt", "r", "r.json", ".jsonl.gz"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"\.jsonl or \.parquet"):
        open_results(tmp_path / name)


def test_a_place_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        open_results(tmp_path / "none" / "r.jsonl")


# --- one writer at a time ---------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("options", [{}, {"append": True}, {"overwrite": True}])
def test_results_that_another_writes_are_refused_and_lose_nothing(
    tmp_path: Path, suffix: str, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "WAIT_S", 0.0)
    path, link = tmp_path / f"r{suffix}", tmp_path / f"link{suffix}"
    link.symlink_to(path)
    first = open_results(path)
    first.write([result(0)])
    for name in (path, link):
        with pytest.raises(ResultsExist, match="another analysis writes to it"):
            open_results(name, **options)
    first.write([result(1)])
    first.close()
    write(path, [2], append=True)
    assert ids(path) == [0, 1, 2]
    assert sorted(each.name for each in tmp_path.iterdir()) == [link.name, path.name], "no lock stays"


@BOTH
def test_results_that_were_refused_are_free(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    write(path, range(3))
    with pytest.raises(ResultsExist):
        open_results(path)
    write(path, [3], append=True)


@BOTH
def test_without_locks_results_are_written_with_a_warning_and_no_part_replaces_another(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)  # no file system here is without them
    path = tmp_path / f"r{suffix}"
    first, second = open_results(path), open_results(path, append=True)
    assert "see that no other analysis writes to it" in caplog.text
    for n in range(0, 6, 2):
        first.write([result(n)])
        second.write([result(n + 1)])
    second.close()
    first.close()
    assert sorted(ids(path)) == list(range(6))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_part_keeps_its_name_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.link", link)
    path = tmp_path / "r.parquet"
    sink = open_results(path)
    (path / "part-000000.parquet").write_bytes(b"another's")
    sink.write([result(0)])
    sink.close()
    assert (path / "part-000000.parquet").read_bytes() == b"another's"
    assert pq.read_table(path / "part-000001.parquet").num_rows == 1


# --- Parquet ----------------------------------------------------------------------------


def test_parts_appear_when_they_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART_RECORDS", 10)
    path = tmp_path / "r.parquet"
    sink = ParquetSink(path)
    sink.write([result(n) for n in range(6)])
    assert pq.read_table(path).num_rows == 0
    sink.write([result(n) for n in range(6, 12)])
    assert [part.name for part in path.iterdir()] == ["part-000000.parquet"]
    sink.write([result(12)])
    sink.close()
    assert not list(path.glob(".*"))
    assert ids(path) == list(range(13))


def test_a_part_of_few_records_is_written_after_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART_SECONDS", 0.0)
    sink = ParquetSink(tmp_path / "r.parquet")
    sink.write([result(0)])
    assert ids(tmp_path / "r.parquet") == [0]


def test_appended_parts_do_not_replace_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write(path, range(3))
    write(path, range(3, 5), append=True)
    assert sorted(part.name for part in path.iterdir()) == ["part-000000.parquet", "part-000001.parquet"]


def test_an_unfinished_part_is_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write(path, range(3))
    (path / "part-000001.tmp").write_bytes(b"half")
    write(path, [3], append=True)
    assert ids(path) == [0, 1, 2, 3]
    assert not list(path.glob("*.tmp"))


def test_what_a_killed_writer_leaves_does_not_keep_others_from_reading_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write(path, range(3))
    for name in (".part-000001.tmp", ".part-000001.jsonl"):
        (path / name).write_bytes(b"half")
    assert pq.read_table(path).num_rows == 3
    write(path, [3], append=True)
    assert pq.read_table(path).num_rows == 4
    assert not list(path.glob(".*"))


def test_records_that_waited_for_their_part_when_a_run_was_killed_are_in_one_when_it_goes_on(tmp_path: Path) -> None:
    path, whole = tmp_path / "r.parquet", tmp_path / "whole.parquet"
    tagged = [replace(result(n), tags={"x": [1, "\u00e9"]}, peaks=None if n % 2 else result(n).peaks) for n in range(9)]
    killed = ParquetSink(path)
    killed.write([*tagged, UNDECODABLE])
    del killed
    (lines,) = path.glob(".part-*.jsonl")
    lines.write_bytes(lines.read_bytes() + b'{"series_id":1,"image_id":9')
    again = open_results(path, append=True)
    again.write(tagged)
    again.close()
    assert again.repeated == 9
    unkilled = open_results(whole)
    unkilled.write([*tagged, UNDECODABLE])
    unkilled.close()
    assert read(path) == read(whole)


def test_a_kill_between_a_part_and_the_end_of_its_lines_repeats_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write(path, range(3))
    (path / ".part-000000.jsonl").write_bytes(b"".join(map(to_json_line, [result(n) for n in range(3)])))
    write(path, [3], append=True)
    assert ids(path) == [0, 1, 2, 3]


def test_zeros_that_a_power_cut_left_at_the_end_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, range(3))
    path.write_bytes(path.read_bytes() + bytes(500))
    write(path, [3], append=True)
    assert ids(path) == [0, 1, 2, 3]


def test_a_folder_with_something_else_in_it_is_not_cleared(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(ResultsExist, match=r"thesis\.tex"):
        open_results(path, overwrite=True)
    assert (path / "thesis.tex").exists()


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_text("x")
    with pytest.raises(ResultsExist, match="is a file"):
        open_results(tmp_path / "r.parquet", overwrite=True)


NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """A disk that may be full for parts, while short lines still find room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: Exception = NO_ROOM) -> None:
        self.full = True
        self._fault = fault
        self._write = pq.write_table
        monkeypatch.setattr(pq, "write_table", self)

    def __call__(self, table: Any, file: Any) -> None:
        if self.full:
            file.write(b"PAR1")
            raise self._fault
        self._write(table, file)


def test_records_of_a_part_that_found_no_room_are_in_one_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PART_RECORDS", 3)
    path, disk = tmp_path / "r.parquet", Disk(monkeypatch)
    sink = open_results(path)
    for n in range(0, 6, 3):
        sink.write([result(n + each) for each in range(3)])
    assert pq.read_table(path).num_rows == 0
    disk.full = False
    sink.write([result(n) for n in range(6, 9)])
    assert ids(path) == list(range(9))
    sink.close()
    assert sink.lost == 0
    assert not list(path.glob(".*"))


@pytest.mark.parametrize("fault", [NO_ROOM, pa.ArrowInvalid("")])
def test_records_of_a_disk_that_stays_full_are_counted_and_the_next_run_has_them(
    tmp_path: Path, fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, disk = tmp_path / "r.parquet", Disk(monkeypatch, fault)
    sink = open_results(path)
    sink.write([result(n) for n in range(5)])
    sink.close()
    assert sink.lost == 5
    assert "a run with --append makes parts of them" in caplog.text
    assert [each.name for each in path.iterdir()] == [".part-000000.jsonl"]
    again = open_results(path, append=True)
    again.write([result(n) for n in range(7)])
    assert again.repeated == 5, "known although they are in no part yet"
    disk.full = False
    again.close()
    assert again.lost == 0
    assert sorted(ids(path)) == list(range(7))
    assert not list(path.glob(".*"))


@pytest.mark.parametrize(
    "bad", [b"123", b'{"series_id":1,"image_id":8,"peaks":"many"}', b"[" * 100_000, b'{"series_id":"x","image_id":8}']
)
def test_lines_that_are_no_records_cost_no_start_and_no_other_record(
    tmp_path: Path, bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "r.parquet"
    path.mkdir()
    left = to_json_line(result(0)) + bad + b"\n" + to_json_line(result(1))
    (path / ".part-000000.jsonl").write_bytes(left)
    write(path, range(4), append=True)
    assert ids(path) == [0, 1, 2, 3]
    assert pq.read_table(path).num_rows == 4
    assert (path / ".part-000000.damaged-0").read_bytes() == left
    assert ".part-000000.damaged-0: 1 lines are no records" in caplog.text
    write(path, [5], overwrite=True)


# --- faults -----------------------------------------------------------------------------


def test_a_full_disk_loses_records_and_raises_nothing() -> None:
    sink = JsonLinesSink(Path("/dev/full"))
    sink.write([result(n) for n in range(3)])
    sink.write([result(3)])
    sink.close()
    assert sink.lost == 4


def test_a_folder_that_vanishes_loses_records_and_raises_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    sink = ParquetSink(path)
    path.rmdir()
    sink.write([result(0)])
    sink.close()
    assert sink.lost == 1


def test_a_disk_that_fills_in_the_middle_of_a_batch_keeps_whole_records_and_counts_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    batches = 20
    limit = 30_000
    child = subprocess.run(
        [*CHILD, str(path), "limit", str(limit), str(batches)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    lines = path.read_bytes().splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
    assert 0 < len(whole) < 10 * batches
    assert [record["image_id"] for record in whole] == list(range(len(whole)))
    assert int(child.stdout) == 10 * batches - len(whole)


@BOTH
def test_a_killed_writer_leaves_every_record_it_finished(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    child = subprocess.Popen([*CHILD, str(path), "forever"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if int(line) >= 500:
                break
    finally:
        child.kill()
        rest = child.communicate()[0]
    confirmed = int((rest.split() or ["500"])[-1])
    if suffix == ".jsonl":
        lines = path.read_bytes().splitlines(keepends=True)
        found = [json.loads(line)["image_id"] for line in lines if line.endswith(b"\n")]
        assert len(found) >= confirmed, "what a write has returned from is on disk"
    else:
        found = ids(path)
        assert len(found) >= 400, "parts of 56 records"
        pq.read_table(path)
        open_results(path, append=True).close()
        found = ids(path)
        assert len(found) >= confirmed, "what waited for its part is in one when the run goes on"
    assert found == list(range(len(found)))
    write(path, range(len(found) + 5), append=True)
    again = ids(path)
    assert len(again) == len(set(again))
    assert set(again) >= set(range(len(found) + 5))


@BOTH
@pytest.mark.parametrize("value", [10**30, -(10**30), float("inf"), float("nan"), "\x00\n\u2028"])
def test_a_strange_tag_raises_nothing_and_costs_no_other_record(tmp_path: Path, suffix: str, value: Any) -> None:
    path = tmp_path / f"r{suffix}"
    sink = open_results(path)
    sink.write([result(0), replace(result(1), tags={"sample": value}), result(2)])
    sink.close()
    found = ids(path)
    assert {0, 2} <= set(found)
    assert len(found) + sink.lost == 3


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_fault_that_no_sink_expects_costs_its_batch_and_is_counted(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"r{suffix}"
    behind = open_results(path)
    written = type(behind).write

    def faulty(self: Any, results: Any) -> None:
        if any(each.image_id == 4 for each in results):
            raise MemoryError
        written(self, results)

    monkeypatch.setattr(type(behind), "write", faulty)
    sink = DetachedSink(behind)
    for first in range(0, 12, 3):
        sink.write([result(n) for n in range(first, first + 3)])
    sink.close()
    assert (ids(path), sink.lost) == ([0, 1, 2, 6, 7, 8, 9, 10, 11], 3)


def test_an_output_that_cannot_be_closed_is_one_that_lost_something(tmp_path: Path) -> None:
    class Unclosable:
        lost = 0
        written: ClassVar[list[int]] = []

        def write(self, results: Sequence[FrameResult]) -> None:
            self.written.extend(each.image_id for each in results)

        def tick(self) -> None:
            raise ValueError("not even this")

        def close(self) -> None:
            raise MemoryError

    sink = DetachedSink(Unclosable())
    sink.write([result(1)])
    sink.close()
    assert (Unclosable.written, sink.lost) == ([1], 1)
