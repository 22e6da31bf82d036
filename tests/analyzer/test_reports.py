"""Reports of runs: a page that is safe and stands alone, a table that stays whole."""

import contextlib
import csv
import io
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.bundle import Bundle
from analyzer.cascade import CascadeSettings
from analyzer.changes import Changed
from analyzer.parameters.answers import plain_answers
from analyzer.pictures import drawn
from analyzer.reports import COLUMNS, BadReports, ReportFiles, header_line, make_page, prepare, row_line
from analyzer.reports.table_file import OtherColumns, append_row
from analyzer.results import HitRule
from analyzer.runs import Capture, Estimate, RunInfo
from tests.analyzer.test_control import Controlled, spotted

HOSTILE = "<script>alert(1)</script><img src=x onerror=y>\"'&</title>"


@pytest.fixture(scope="module")
def capture(bundle: Bundle) -> Capture:
    """Of a run with hits, with pictures and curves."""
    run = Controlled(bundle, cascade=CascadeSettings(hit_rule=HitRule.PEAKS))
    profile = {
        "unit": "1/angstrom", "x": [0.1, 0.2, 0.3], "measured": [1.0, 2.0, 1.5], "model": [1.1, 1.9, 1.5],
        "frames": 40, "label": "photons a pixel a frame",
    }  # fmt: skip
    run.control.runs._curves = lambda: run.front.history.curves() | {"profile": profile}
    run.control.use_run({"number": 12, "sample": "lysozyme", "notes": "first line\nsecond, with a comma"})
    run.run(spotted(40))
    return run.control.capture(over=True)


def of(capture: Capture, **info: Any) -> Capture:
    """The capture of a run called otherwise."""
    summary = replace(capture.summary, info=replace(capture.summary.info, **info))
    return replace(capture, summary=summary)


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))


# --- the page ---------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_shows_the_run_with_its_pictures(capture: Capture) -> None:
    page = Page(make_page(capture, drawn))
    pictures = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert pictures == [
        "hit rate against time", "hit rate against image", "radial profile", "powder", "peakogram", "peak counts",
        "resolution",
    ]  # fmt: skip
    for text in ("Run 0012: lysozyme", "second, with a comma", "100.0%", "all frames", "7.000", "None."):
        assert text in page.text
    assert "goes on" not in page.text


def test_a_report_needs_nothing_beside_it_and_runs_nothing(capture: Capture) -> None:
    content = make_page(of(capture, sample=HOSTILE, notes=HOSTILE), drawn)
    page = Page(content)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object", "form"} & set(tags)
    assert tags.count("title") == 1
    sources = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert sources
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in sources)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert not re.search(rb"url\(|@import|https?:", content)
    policy = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_whatever_stands_in_texts_is_text(capture: Capture) -> None:
    judging = replace(capture.summary.judging, mask=HOSTILE, bundle=HOSTILE, channel=HOSTILE, finder=HOSTILE)
    estimate = Estimate(value=7100.0, sigma=1.0, header=7000.0)
    summary = replace(
        capture.summary, judging=judging, mismatches=(HOSTILE,), estimate_reason=HOSTILE, photon_energy_eV=estimate
    )
    changes = [Changed(0.0, "mask", None, HOSTILE, HOSTILE)]
    content = make_page(replace(of(replace(capture, summary=summary), sample=HOSTILE), changes=changes), drawn)
    assert b"<script" not in content
    assert b"onerror=y>" not in content
    assert Page(content).text.count(HOSTILE) == 9, "title, heading, six fields and a change"
    assert b"-100.0" in content


def test_a_report_has_the_nearest_kev_and_centimetre(capture: Capture) -> None:
    mean = np.array([np.log(0.25 / 7000.0), np.log(7000.0)])
    said = plain_answers(mean, np.diag([1e-3, 1e-3]) ** 2)
    text = Page(make_page(replace(capture, summary=replace(capture.summary, answers=said)), drawn)).text
    assert "Nearest whole: 7 keV (100.0%), 25 cm (100.0%)." in text
    assert "Of 6, 7, 8 keV and 15, 25, 35 cm: 7 keV (100.0%), 25 cm (100.0%)." in text
    unsaid = Page(make_page(replace(capture, summary=replace(capture.summary, answers=None)), drawn)).text
    assert "Nearest whole" not in unsaid


def test_a_run_without_a_frame_has_a_report_too(bundle: Bundle) -> None:
    text = Page(make_page(Controlled(bundle).control.capture(), drawn)).text
    assert "No frame" in text
    assert "goes on; this is up to" in text


def test_a_report_says_since_when_its_pictures_are(capture: Capture) -> None:
    assert "begun anew" not in Page(make_page(capture, drawn)).text
    late = replace(capture, gathered_since=capture.summary.info.began_at + 100.0)
    assert "begun anew" in Page(make_page(late, drawn)).text


def test_many_series_are_not_all_listed(capture: Capture) -> None:
    counts = replace(capture.summary.counts, series_ids=tuple(range(1000)))
    text = Page(make_page(replace(capture, summary=replace(capture.summary, counts=counts)), drawn)).text
    assert "series … 980, 981" in text


# --- the row ----------------------------------------------------------------------------


def test_a_row_reads_back_as_it_was(capture: Capture) -> None:
    notes = 'a "quoted" word,\na second line'
    (row,) = rows(header_line() + row_line(of(capture, notes=notes).summary))
    assert list(row) == list(COLUMNS)
    assert row["notes"] == notes
    assert (row["run_number"], row["sample"], row["frames"], row["frames_hit"]) == ("12", "lysozyme", "40", "40")
    assert (row["hit_rate"], row["frames_indexed"], row["mask"]) == ("1.0", "", "")
    assert float(row["hit_rate_low"]) == pytest.approx(0.9124, abs=1e-3)
    assert row["photon_energy_header_eV"] == "7000.0"
    parts = ("frames_hit", "frames_miss", "frames_no_beam", "frames_undecodable", "frames_dropped")
    assert int(row["frames"]) == sum(int(row[name]) for name in parts)


def test_a_run_that_goes_on_has_no_end(capture: Capture) -> None:
    (row,) = rows(header_line() + row_line(replace(capture.summary, over=False)))
    assert row["ended_utc"] == ""
    assert row["began_utc"].endswith("Z")


@pytest.mark.parametrize("text", ["=1+2", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\n@x", '=HYPERLINK("http://a")'])
def test_a_text_is_no_formula(capture: Capture, text: str) -> None:
    (row,) = rows(header_line() + row_line(of(capture, notes=text).summary))
    assert row["notes"] == "'" + text
    assert row["run_number"] == "12", "the row has no cell too many"


def test_lines_end_as_the_standard_says(capture: Capture) -> None:
    assert header_line().endswith(b"\r\n")
    assert row_line(of(capture, notes="").summary).count(b"\r\n") == 1


# --- the table --------------------------------------------------------------------------


def test_the_header_stands_once(capture: Capture, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    for number in range(3):
        append_row(path, header_line(), row_line(of(capture, number=number).summary))
    content = path.read_bytes()
    assert content.count(header_line()) == 1
    assert [row["run_number"] for row in rows(content)] == ["0", "1", "2"]


@pytest.mark.parametrize("cut", [1, 2, 3, 30, 120])
def test_a_torn_row_is_cut_off_and_the_others_stay(
    capture: Capture, tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "runs.csv"
    for number in (1, 2):
        append_row(path, header_line(), row_line(of(capture, number=number, notes="a\nb" * 20).summary))
    path.write_bytes(path.read_bytes()[:-cut])
    append_row(path, header_line(), row_line(of(capture, number=3).summary))
    assert [row["run_number"] for row in rows(path.read_bytes())] == ["1", "3"]
    assert "ended within a row" in caplog.text


@pytest.mark.parametrize("left", [0, 5, len(header_line()) - 1, len(header_line())])
def test_a_file_that_was_only_begun_is_begun_again(capture: Capture, tmp_path: Path, left: int) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(header_line()[:left])
    append_row(path, header_line(), row_line(capture.summary))
    assert [row["run_number"] for row in rows(path.read_bytes())] == ["12"]


@pytest.mark.parametrize("content", [b"a,b,c\r\n1,2,3\r\n", b"\x00" * 100, header_line()[:-2] + b",more\r\n", b"\n"])
def test_a_file_of_other_columns_is_refused_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(BadReports, match=r"runs\.csv: has other columns"):
        prepare(tmp_path)
    with pytest.raises(OtherColumns):
        append_row(path, header_line(), b"x\r\n")
    assert path.read_bytes() == content


@pytest.mark.parametrize(("age_s", "stays"), [(7200, False), (60, True)])
def test_a_page_that_a_kill_left_unfinished_goes_and_one_in_the_making_stays(
    tmp_path: Path, age_s: int, stays: bool
) -> None:
    unfinished = tmp_path / ".run-0012.html.tmp"
    unfinished.write_text("<html>")
    then = time.time() - age_s
    os.utime(unfinished, (then, then))
    prepare(tmp_path)
    assert unfinished.exists() is stays


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        path = tmp_path / "runs.csv"
        make(path)
        with pytest.raises((BadReports, OSError)):
            prepare(tmp_path)
        path.unlink()
    (tmp_path / "runs.csv").mkdir()
    with pytest.raises(OSError):
        prepare(tmp_path)


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(OSError):
            prepare(folder)


APPENDER = """
import sys
from pathlib import Path
from analyzer.reports.table_file import append_row
path, name = Path(sys.argv[1]), sys.argv[2]
for n in range(10**6):
    append_row(path, b"who,n,text\\r\\n", f'{name},{n},"line\\nline{"x" * 3000}"\\r\\n'.encode())
"""


def test_programs_that_are_killed_leave_whole_rows_of_each(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    children = [subprocess.Popen([sys.executable, "-c", APPENDER, str(path), name]) for name in "ab"]
    deadline = time.monotonic() + 60
    while (not path.exists() or path.stat().st_size < 200_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    for child in children:
        child.send_signal(signal.SIGKILL)
        child.wait()
    content = path.read_bytes()
    assert content.count(b"who,n,text") == 1
    found = rows(content)
    assert all(row["text"] is not None and row["text"].endswith("x" * 3000) for row in found)
    for name in "ab":
        numbers = [int(row["n"]) for row in found if row["who"] == name]
        assert numbers == list(range(len(numbers))), "none is lost, none twice"


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may be larger, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_table_as_it_was(capture: Capture, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    append_row(path, header_line(), row_line(capture.summary))
    before = path.read_bytes()
    with largest_file(len(before) + 40), pytest.raises(OSError, match="No space"):
        append_row(path, header_line(), row_line(of(capture, number=13).summary))
    assert path.read_bytes() == before


# --- the folder -------------------------------------------------------------------------


def test_each_run_leaves_a_page_and_a_row(capture: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "reports"
    prepare(folder)
    files = ReportFiles(folder, drawn)
    files.write(of(capture, number=11))
    files.close(lambda: capture)
    assert sorted(path.name for path in folder.iterdir()) == ["run-0011.html", "run-0012.html", "runs.csv"]
    assert [row["run_number"] for row in rows((folder / "runs.csv").read_bytes())] == ["11", "12"]
    assert files.unwritten == 0
    assert b"Run 0011" in (folder / "run-0011.html").read_bytes()


def test_a_number_that_was_used_before_replaces_nothing(capture: Capture, tmp_path: Path) -> None:
    for sample in ("first", "second", "third"):
        files = ReportFiles(tmp_path, drawn)
        files.close(lambda sample=sample: of(capture, sample=sample))  # type: ignore[misc]
    for name, sample in (("run-0012", b"first"), ("run-0012-2", b"second"), ("run-0012-3", b"third")):
        assert sample in (tmp_path / f"{name}.html").read_bytes()


def test_a_run_of_nothing_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    files = ReportFiles(tmp_path, drawn)
    files.close(lambda: Controlled(bundle).control.capture(over=True))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_is_said_and_counted_and_stops_nothing(
    capture: Capture, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "reports"
    prepare(folder)
    files = ReportFiles(folder, drawn)
    folder.rmdir()
    folder.write_text("in the way")
    files.write(capture)
    files.close(lambda: capture)
    assert files.unwritten == 2
    assert "reports:" in caplog.text
    (family,) = files.collect()
    assert [sample.value for sample in family.samples] == [2.0]


def test_a_run_that_cannot_be_summed_up_is_counted(tmp_path: Path) -> None:
    def fails() -> Capture:
        raise RuntimeError("no run")

    files = ReportFiles(tmp_path, drawn)
    files.close(fails)
    assert files.unwritten == 1


def test_runs_that_end_faster_than_they_are_written_wait_in_bounded_number(
    capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr("analyzer.reports.files.make_page", lambda capture, draw: go_on.wait(30) and b"page")
    files = ReportFiles(tmp_path, drawn)
    began = time.monotonic()
    for number in range(10):
        files.write(of(capture, number=number))
    assert time.monotonic() - began < 5, "whoever ends a run waits for no disk"
    assert files.unwritten >= 5
    go_on.set()
    files.close(lambda: capture)
    assert len(list(tmp_path.glob("run-*.html"))) + files.unwritten == 11


def test_a_writer_that_hangs_does_not_hold_up_the_end(
    capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.reports.files.CLOSE_S", 0.2)
    go_on = threading.Event()
    monkeypatch.setattr("analyzer.reports.files.make_page", lambda capture, draw: go_on.wait(30) and b"page")
    files = ReportFiles(tmp_path, drawn)
    began = time.monotonic()
    files.close(lambda: capture)
    assert time.monotonic() - began < 5
    assert files.unwritten == 1
    go_on.set()


def test_runs_without_a_number_are_named_by_their_time(capture: Capture, tmp_path: Path) -> None:
    files = ReportFiles(tmp_path, drawn)
    files.close(lambda: of(capture, number=None))
    (page,) = tmp_path.glob("*.html")
    assert re.fullmatch(r"run-\d{8}T\d{6}Z\.html", page.name)


def test_the_name_of_a_run_is_no_path() -> None:
    assert all("/" not in RunInfo(number=number, sample="../../x", began_at=1e9).name for number in (None, 3))
