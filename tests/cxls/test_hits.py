"""``--hits`` and ``cxls data recover``: hits of files and of live streams on disk, through kills and bad folders."""

import json
import signal
import urllib.request
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from streamer.geometry_file import read_geometry
from tests.analyzer.builders import SHAPE, frames_of_a_run, write_series
from tests.analyzer.test_panels import FLAT, written
from tests.cxls.programs import Analysis, Child, by_image, cxls, records, refusal, replaying, wait_for
from tests.support import read_chunks, read_pixels

BY_PEAKS = {"hit_rule": "peaks", "min_peaks": 3}
HITS = [1, 3, 5, 7, 9, 11]
"""Images of the series with spots."""


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("hits-*-*.h5"))


def events(folder: Path, name: str = "image_id") -> list[Any]:
    found: list[Any] = []
    for path in files(folder):
        with h5py.File(path) as file:
            found += file[f"entry/event/{name}"][()].tolist()
    return found


def chunks(folder: Path) -> list[bytes]:
    found = []
    for path in files(folder):
        with h5py.File(path) as file:
            images = file["entry/data/data"]
            found += [images.id.read_direct_chunk((n, 0, 0))[1] for n in range(len(images))]
    return found


def test_hits_of_a_file_are_analysed_again_with_the_same_result(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    common = ("--bundle", bundle_folder, "--hit-rule", "peaks", "--min-peaks", 3)
    first = cxls("analyze", master, *common, "--results", tmp_path / "1.jsonl", "--hits", tmp_path / "h")
    assert first.returncode == 0, first.stderr
    assert f"{tmp_path / 'h'}: 6 hits in 1 files" in first.stdout
    assert events(tmp_path / "h") == HITS
    assert chunks(tmp_path / "h") == [read_chunks(master)[n] for n in HITS]
    again = cxls("analyze", tmp_path / "h" / "hits.lst", *common, "--results", tmp_path / "2.jsonl")
    assert again.returncode == 0, again.stderr
    of_run = [record for record in by_image(records(tmp_path / "1.jsonl")) if record["hit"]]
    of_hits = by_image(records(tmp_path / "2.jsonl"))
    assert [record["image_id"] for record in of_run] == HITS
    # A file's images are counted from 0, and their times with them.
    for name in ("image_id", "start_time"):
        for record in (*of_run, *of_hits):
            del record[name]
    assert of_hits == of_run
    check = cxls("data", "check", *files(tmp_path / "h"))
    assert check.returncode == 0, check.stdout


def test_the_record_in_the_file_is_the_one_of_the_results(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    Analysis([master], bundle_folder, tmp_path / "r.jsonl", hits=tmp_path / "h", **BY_PEAKS).start().join()
    of_results = {record["image_id"]: record for record in records(tmp_path / "r.jsonl")}
    kept = [json.loads(text) for text in events(tmp_path / "h", "record")]
    assert [record["image_id"] for record in kept] == HITS
    for record in kept:
        assert record | {"latency_s": None} == of_results[record["image_id"]] | {"latency_s": None}
    with h5py.File(files(tmp_path / "h")[0]) as file:
        for n, record in enumerate(kept):
            count = file["entry_1/result_1/nPeaks"][n]
            fs, ss = (file[f"entry_1/result_1/peak{axis}PosRaw"][n, :count].tolist() for axis in "XY")
            assert [(peak["fs"], peak["ss"]) for peak in record["peaks"]] == list(zip(fs, ss, strict=True))


def test_hits_of_a_run_with_a_geometry_file_have_its_geometry(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    given = written(tmp_path, FLAT.replace("p0/", "mine/"))
    Analysis(
        [master], bundle_folder, tmp_path / "r.jsonl", hits=tmp_path / "h", geometry=given, **BY_PEAKS
    ).start().join()
    (path,) = (tmp_path / "h").glob("hits-*.geom")
    assert [panel.name for panel in read_geometry(path).panels] == ["mine"]


@pytest.mark.parametrize("stream", ["v1", "v2"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_hits_of_a_live_stream_are_on_disk_as_they_came(
    bundle_folder: Path, tmp_path: Path, stream: str, dtype: str
) -> None:
    mask = np.zeros(SHAPE, "u4")
    mask[40:43, 50:55] = 8
    master = write_series(tmp_path, frames_of_a_run(12, dtype=dtype), mask=mask)
    with replaying(master, protocol=stream, header_detail="all", first_series_id=7) as (endpoint, _):
        analysis = Analysis(
            [endpoint], bundle_folder, tmp_path / "r.jsonl", series=1, hits=tmp_path / "h", **BY_PEAKS
        ).start()
        url = f"http://{analysis.session.web.address}"  # type: ignore[union-attr]
        text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
        status = json.load(urllib.request.urlopen(f"{url}/status", timeout=10))
        analysis.join()
    assert 'cxls_hits_lost_total{reason="disk"} 0.0' in text
    assert status["hits"]["folder"] == str(tmp_path / "h")
    assert (events(tmp_path / "h"), set(events(tmp_path / "h", "series_id"))) == (HITS, {7})
    with h5py.File(files(tmp_path / "h")[0]) as file:
        assert np.array_equal(file["entry/data/data"][()], read_pixels(master)[HITS])
        assert np.array_equal(file["entry/instrument/detector/pixel_mask"][()], mask)
    assert chunks(tmp_path / "h") == [read_chunks(master)[n] for n in HITS]


def test_a_killed_analysis_is_finished_by_the_next(
    bundle_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    master = write_series(tmp_path, frames_of_a_run(300))
    folder = tmp_path / "h"
    common = (
        "--bundle",
        bundle_folder,
        "--hit-rule",
        "peaks",
        "--min-peaks",
        3,
        "--hits",
        folder,
    )
    # One worker, so that hits come in order; the sender waits, so that none is dropped.
    in_order = ("--workers", 1, "--on-full", "block", "--listen", "127.0.0.1:0")
    with (
        replaying(master, rate_hz=40.0) as (endpoint, _),
        Child("analyze", endpoint, *common, *in_order) as child,
    ):
        child.listening("http")
        wait_for(lambda: sum(path.stat().st_size for path in folder.glob("journal/*.journal")) > 20_000, 60)
        child.end(signal.SIGKILL)
    assert list(folder.glob("journal/*.journal"))
    caplog.set_level("INFO")
    done = cxls("analyze", write_series(tmp_path, frames_of_a_run(4), "small"), *common)
    assert done.returncode == 0, done.stderr
    assert "hits of an earlier run are in 1 files now" in caplog.text
    *of_the_killed, of_the_next = files(folder)
    pixels, ids = read_pixels(master), []
    for path in of_the_killed:
        with h5py.File(path) as file:
            ids += file["entry/event/image_id"][()].tolist()
            assert np.array_equal(file["entry/data/data"][()], pixels[file["entry/event/image_id"][()]])
    assert ids == list(range(1, 2 * len(ids), 2))
    with h5py.File(of_the_next) as file:
        assert file["entry/event/image_id"][()].tolist() == [1, 3]
    again = cxls("data", "recover", folder)
    assert again.returncode == 0
    assert again.stdout.strip() == (
        f"{folder}: 0 hits of earlier runs put into 0 files; "
        f"{len(ids) + 2} hits in {len(of_the_killed) + 1} files looked through"
    )


def test_folders_that_cannot_be_written_are_refused_in_one_line(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/hits")):
        results = tmp_path / "r.jsonl"
        said = refusal("analyze", master, "--bundle", bundle_folder, "--hits", folder, "--results", results)
        assert said.startswith(f"cxls: --hits {folder}: ")
        assert said.endswith("choose a folder that can be written")
        assert not results.exists()
    assert (tmp_path / "file").read_text() == "x"


def test_a_run_that_is_refused_for_its_results_leaves_nothing_in_the_folder_of_hits(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    results, folder = tmp_path / "r.jsonl", tmp_path / "hits"
    results.write_text("{}\n")
    folder.mkdir()
    said = refusal("analyze", master, "--bundle", bundle_folder, "--hits", folder, "--results", results)
    assert "r.jsonl" in said
    assert list(folder.iterdir()) == []


def test_recover_refuses_what_is_no_folder_of_hits(tmp_path: Path) -> None:
    assert "no such folder" in refusal("data", "recover", tmp_path / "absent")
    (tmp_path / "something else").mkdir()
    assert "no hits and no journal" in refusal("data", "recover", tmp_path / "something else")
    assert list((tmp_path / "something else").iterdir()) == []


def test_recover_prints_every_problem_and_fails(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    Analysis([master], bundle_folder, tmp_path / "r.jsonl", hits=tmp_path / "h", **BY_PEAKS).start().join()
    (path,) = files(tmp_path / "h")
    with h5py.File(path, "r+") as file:
        file["entry/data/data"].id.write_direct_chunk((2, 0, 0), b"\x00" * 30)
    done = cxls("data", "recover", tmp_path / "h")
    assert done.returncode == 1
    assert f"{path}: image 2 cannot be read" in done.stdout
    assert "cxls: 1 problem, see above" in done.stderr
    assert cxls("data", "recover", "--no-verify", tmp_path / "h").returncode == 0


def test_hits_that_are_lost_fail_the_run(
    master: Path, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("analyzer.hits.journal.Journal.append", full)
    done = cxls("analyze", master, "--bundle", bundle_folder, "--hit-rule", "peaks", "--min-peaks", 3, "--hits",
                tmp_path / "h", "--results", tmp_path / "r.jsonl")  # fmt: skip
    assert done.returncode == 1
    assert "6 hits lost" in done.stderr.splitlines()[-1]
    assert len(records(tmp_path / "r.jsonl")) == 12
    assert not list((tmp_path / "h").iterdir())
