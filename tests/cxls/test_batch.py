"""``cxls batch`` and its merge: the same records however they were shared, killed and resumed; what is refused."""

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from analyzer.batch.shard import held
from analyzer.sinks.files import RECORD_SCHEMA
from cxls.cli import main
from cxls.commands.batch import parse_shard
from cxls.settings import BadSettings
from tests.analyzer.builders import frames_of_a_run, write_series
from tests.analyzer.test_panels import FLAT, written
from tests.cxls.programs import by_image, cxls, environment, records, refusal
from tests.support import write_single_image

OUTPUTS = ("records.parquet", "report.json", "report.md")

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["cxls.commands.batch"])


def program(arguments: list[str], most_bytes: int | None = None) -> None:
    """The program in a process of its own, its imports made already."""
    sys.argv = ["cxls", *arguments]
    for name in set(os.environ) - set(environment()):
        del os.environ[name]
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    main()


def start(*arguments: object, most_bytes: int | None = None) -> ForkServerProcess:
    process = processes.Process(target=program, args=([*map(str, arguments)], most_bytes))
    process.start()
    return process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind, and of every length: masters, data files, lists of events, single images, rubbish."""
    place = tmp_path_factory.mktemp("files")
    write_series(place, frames_of_a_run(13), "a")
    write_series(place, frames_of_a_run(1), "b")
    write_series(place, frames_of_a_run(29), "c")
    (place / "c.lst").write_text("c_master.h5 //20\nc_master.h5 //3\nc_master.h5 //4\n")
    (place / "broken_master.h5").write_bytes((place / "a_master.h5").read_bytes()[:900])
    for n in range(4):
        write_single_image(place / f"image{n}.h5", frames_of_a_run(5)[n], clen=0.15, photon_energy=7000.0)
    lost = write_series(place, frames_of_a_run(4), "lost")
    with h5py.File(lost, "r+") as file:
        file["entry/data/data_000002"] = h5py.ExternalLink("gone.h5", "/entry/data/data")
    return place


@pytest.fixture(scope="module")
def good(folder: Path) -> list[str]:
    """Those without a fault, in an order that is not the alphabet's."""
    return [str(folder / name) for name in ("c_master.h5", "a_master.h5", "c.lst", "image*.h5", "b_master.h5")]


def outputs(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in OUTPUTS}


def ran(*arguments: object) -> str:
    done = cxls("batch", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def batch(sources: list[str], out: Path, bundle: Path, shards: int, *options: object) -> dict[str, bytes]:
    """All shards, the last first, and the merge."""
    for shard in reversed(range(shards)):
        ran(*sources, "--out", out, "--bundle", bundle, "--shard", f"{shard}/{shards}", *options)
    ran("merge", out)
    return outputs(out)


@pytest.fixture(scope="module")
def alone(good: list[str], bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The batch of one shard."""
    out = tmp_path_factory.mktemp("batch") / "alone"
    batch(good, out, bundle_folder, 1)
    return out


def test_the_records_are_those_of_analyze_but_for_when_a_process_met_the_frame(
    good: list[str], alone: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    done = cxls("analyze", *good, "--results", tmp_path / "all.jsonl", "--bundle", bundle_folder, "--workers", 2)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(alone / "records.parquet")
    assert table.schema == RECORD_SCHEMA
    assert table["received_at"].null_count == table["latency_s"].null_count == len(table) == 13 + 1 + 29 + 3 + 4
    theirs = by_image(records(tmp_path / "all.jsonl"), ("received_at", "latency_s"))
    ours = by_image(table.to_pylist(), ("received_at", "latency_s"))
    assert table["series_id"].to_pylist() == sorted(table["series_id"].to_pylist())
    assert [single(record) for record in ours] == [single(record) for record in theirs]


def single(value: Any) -> Any:
    """As a table has it: fractions of peaks in single precision."""
    if isinstance(value, dict):
        return {key: single(each) for key, each in value.items()}
    if isinstance(value, list):
        return [single(each) for each in value]
    return float(np.float32(value)) if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("shards", "options"),
    [
        (4, ()),
        (3, ("--by", "files")),
        (60, ("--chunk", 1)),
        (7, ("--chunk", 3, "--workers", 1, "--batch", 2)),
    ],
    ids=["frames", "files", "more-shards-than-frames", "small-chunks"],
)
def test_many_shards_give_the_bytes_of_one(
    good: list[str], alone: Path, bundle_folder: Path, tmp_path: Path, shards: int, options: tuple[object, ...]
) -> None:
    assert batch(good, tmp_path / "out", bundle_folder, shards, *options) == outputs(alone)


def test_merging_twice_and_working_again_changes_nothing(
    good: list[str], alone: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    shutil.copytree(alone, out)
    before = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    said = ran(*good, "--out", out, "--bundle", bundle_folder)
    assert "0 frames analysed, 0 hits, 50 were done before" in said
    ran("merge", out)
    assert {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()} == before
    assert outputs(out) == outputs(alone)


def test_a_batch_killed_ten_times_at_random_ends_as_one_that_was_not(bundle_folder: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path, frames_of_a_run(240), "long")
    common = [master, "--bundle", bundle_folder, "--workers", 2, "--batch", 2, "--chunk", 4]
    rng = random.Random(9)
    out = tmp_path / "killed"
    cut_short = 0
    for _ in range(10):
        process = start("batch", *common, "--out", out)
        parts = len(list(out.glob("parts/s*.parquet")))
        wanted = parts + rng.randrange(5)
        while len(list(out.glob("parts/s*.parquet"))) < wanted and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        cut_short += 0 < len(list(out.glob("parts/s*.parquet"))) < 60
    assert cut_short >= 5
    assert "not finished: shard 0/1" in refusal("batch", "merge", out)
    # A part that the disk lost is done again, and so is one of another batch.
    first, second, *_ = sorted(out.glob("parts/s*.parquet"))
    first.write_bytes(first.read_bytes()[:-7])
    shutil.copy(sorted(out.glob("parts/s*.parquet"))[2], second)
    os.truncate(second, 0)
    ran(*common, "--out", out)
    ran("merge", out)
    assert not list(out.rglob("*.tmp")), "what a killed process left is removed"
    ran(*common, "--out", tmp_path / "whole")
    ran("merge", tmp_path / "whole")
    assert outputs(out) == outputs(tmp_path / "whole")
    assert len(pq.read_table(out / "records.parquet")) == 240


def test_a_signal_leaves_what_is_finished_and_the_next_run_goes_on(bundle_folder: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path, frames_of_a_run(400), "long")
    common = ["batch", master, "--bundle", bundle_folder, "--workers", 1, "--chunk", 4, "--out", tmp_path / "out"]
    process = start(*common)
    while len(list(tmp_path.glob("out/parts/s*.parquet"))) < 2:
        time.sleep(0.001)
    process.terminate()
    process.join(20)
    assert process.exitcode == 128 + signal.SIGTERM
    done = len(list(tmp_path.glob("out/parts/s*.parquet")))
    assert 2 <= done < 100
    assert f"{4 * done} were done before" in ran(*common[1:])


def test_a_second_process_on_a_shard_is_refused_and_another_shard_is_not(
    good: list[str], bundle_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    common = ["batch", *good, "--out", out, "--bundle", bundle_folder]
    with held(out, 0, 2) as alone:
        assert alone
        assert refusal(*common, "--shard", "0/2") == (
            f"cxls: {out}: another process is at work on shard 0/2; wait for it, or give another --shard"
        )
        ran(*common[1:], "--shard", "1/2")
    ran(*common[1:], "--shard", "0/2")


def test_without_locks_a_shard_is_worked_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)  # no file system here is without them
    with held(tmp_path, 0, 1) as alone:
        assert not alone
    assert "the file system has no locks" in caplog.text


def test_shards_started_at_once_agree_on_one_manifest(good: list[str], bundle_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    every = [start("batch", *good, "--out", out, "--bundle", bundle_folder, "--shard", f"{n}/3") for n in range(3)]
    for process in every:
        process.join(60)
    assert [process.exitcode for process in every] == [0, 0, 0]
    assert sorted(path.name for path in out.iterdir()) == ["locks", "manifest.json", "parts"]
    ran("merge", out)


def test_a_full_disk_ends_a_shard_which_goes_on_when_there_is_room(
    good: list[str], alone: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start("batch", *good, "--out", out, "--bundle", bundle_folder, most_bytes=9000)
    process.join(60)
    assert process.exitcode == 1
    assert not list(out.rglob("*.tmp"))
    assert not list(out.rglob("*.parquet"))
    assert batch(good, out, bundle_folder, 1) == outputs(alone)


# --- what cannot be read ------------------------------------------------------------------


def test_files_that_cannot_be_read_are_recorded_and_stop_no_other(
    folder: Path, good: list[str], alone: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    sources = [good[0], str(folder / "broken_master.h5"), *good[1:], str(folder / "lost_master.h5")]
    codes = []
    for shard in range(3):
        done = cxls("batch", *sources, "--out", tmp_path, "--bundle", bundle_folder, "--shard", f"{shard}/3")
        codes.append(done.returncode)
    assert codes == [2, 2, 0], "each problem is one shard's"
    said = ran("merge", tmp_path)
    assert "1 files could not be read" in said
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert [each["file"] for each in report["unreadable"]] == [sources[1]]
    (with_loss,) = (each for each in report["series"] if each["problems"])
    assert "gone.h5 is missing or unreadable" in with_loss["problems"][0]
    assert with_loss["images"] == with_loss["records"] == 4
    assert report["totals"]["records"] == 54
    # The others have the series ids and the records that they have without it, as with analyze.
    table = pq.read_table(tmp_path / "records.parquet", filters=[("series_id", "<=", 5)])
    assert table.equals(pq.read_table(alone / "records.parquet"))
    assert "## What could not be read" in (tmp_path / "report.md").read_text()


def test_an_undecodable_image_has_its_record_and_its_line_in_the_report(bundle_folder: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path, frames_of_a_run(6))
    with h5py.File(tmp_path / "run_data_000001.h5", "r+") as file:
        file["entry/data/data"].id.write_direct_chunk((2, 0, 0), b"\x00" * 40)
    ran(master, "--out", tmp_path / "out", "--bundle", bundle_folder)
    ran("merge", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    (series,) = report["series"]
    assert (series["records"], series["undecodable"]) == (6, 1)
    assert sum(series["failures"].values()) == 1


def test_a_mask_or_a_geometry_that_is_not_for_the_images_is_told(
    bundle_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_series(tmp_path, frames_of_a_run(3), "a")
    other = write_series(tmp_path, frames_of_a_run(4)[:, :50], "b")
    np.save(tmp_path / "small.npy", np.zeros((5, 7), "u1"))
    for option, file, said, counted in (
        ("--mask", tmp_path / "small.npy", "mask: small.npy is for images of 5 x 7 pixels", "mask not for 7 of them"),
        (
            "--geometry",
            written(tmp_path, FLAT),
            "geometry: det.geom covers images of",
            "geometry file not for 4 of them",
        ),
    ):
        done = cxls("batch", first, other, "--out", tmp_path / option, "--bundle", bundle_folder, option, file)
        assert done.returncode == 0, done.stderr
        assert said in caplog.text
        assert counted in done.stdout


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["*.cbf"], "no file matches"),
        (["nothing.lst"], "the list cannot be read"),
        (["gone_master.h5"], "no such file; none of 1 files can be read"),
        (["tcp://127.0.0.1:1"], "a batch is of files; cxls analyze takes a stream"),
    ],
)
def test_a_batch_of_nothing_is_refused_before_anything_is_written(
    bundle_folder: Path, tmp_path: Path, sources: list[str], said: str
) -> None:
    named = [source if "://" in source else tmp_path / source for source in sources]
    assert said in refusal("batch", *named, "--out", tmp_path / "out", "--bundle", bundle_folder)
    assert not list(tmp_path.glob("out/*.*"))


# --- another batch, changed files, damaged manifests ---------------------------------------


@pytest.fixture
def begun(alone: Path, tmp_path: Path) -> Path:
    """A folder with a finished batch of one shard."""
    shutil.copytree(alone, tmp_path / "begun")
    return tmp_path / "begun"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shard", "0/2"), "its number of shards is 1, here it is 2"),
        (("--by", "files"), "its --by is frames, here it is files"),
        (("--chunk", 7), "its --chunk is 500, here it is 7"),
        (("--hit-rule", "peaks"), 'its hit_rule is "network", here it is "peaks"'),
        (("--threshold", 0.25), "its threshold is null, here it is 0.25"),
    ],
)
def test_another_batch_in_the_folder_is_refused_by_what_differs(
    good: list[str], begun: Path, bundle_folder: Path, options: tuple[object, ...], said: str
) -> None:
    line = refusal("batch", *good, "--out", begun, "--bundle", bundle_folder, *options)
    assert line == f"cxls: {begun}: holds another batch: {said}; give the same, or another --out"


def test_another_bundle_mask_or_list_of_files_is_another_batch(
    good: list[str], begun: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    common = ["batch", *good, "--out", begun]
    assert "its bundle is random-" in refusal(*common)
    np.save(tmp_path / "mask.npy", np.zeros((61, 75), "u1"))
    line = refusal(*common, "--bundle", bundle_folder, "--mask", tmp_path / "mask.npy")
    assert 'its mask is null, here it is "mask.npy ' in line
    assert "of 8 files, here of 7" in refusal("batch", *good[:-1], "--out", begun, "--bundle", bundle_folder)
    turned = refusal("batch", *reversed(good), "--out", begun, "--bundle", bundle_folder)
    assert "its file 1 is" in turned
    assert "c_master.h5, here it is" in turned


def test_a_file_that_has_changed_is_refused_by_its_name(bundle_folder: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path, frames_of_a_run(4))
    common = ["batch", master, "--out", tmp_path / "out", "--bundle", bundle_folder]
    ran(*common[1:])
    data = tmp_path / "run_data_000001.h5"
    before = data.stat()
    with h5py.File(data, "r+") as file:
        file["entry/data/data"][2] = 7
    assert f"{data} has changed since: it was {before.st_size} bytes of" in refusal(*common)
    # Its time alone counts too: what was not looked at may be other than it was.
    os.utime(master, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert f"{master} has changed since" in refusal(*common)
    master.unlink()
    assert f"{master} has changed since: it was" in refusal(*common)


def edited(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **changes}).encode()


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: b"",
        lambda data: data[:-40],
        lambda data: b"\xff\xfe" * 500,
        lambda data: b"[" * 100_000,
        lambda data: b"null",
        lambda data: b'{"format": "cxls-batch-1"}',
        edited(format="cxls-batch-2"),
        edited(shards=0),
        edited(shards=10**9),
        edited(chunk_frames=0),
        edited(chunk_frames=-5),
        edited(series=[{"first": 0, "files": 1, "images": 10**18, "problems": []}]),
        edited(series=[{"first": 7, "files": 5, "images": 3, "problems": []}]),
        edited(series=[{"first": -1, "files": 1, "images": 3, "problems": []}]),
        edited(sources=[{"path": 7}]),
        edited(unreadable=[{"file": 99, "problem": "x"}]),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_line(
    good: list[str], begun: Path, bundle_folder: Path, edit: Callable[[bytes], bytes]
) -> None:
    manifest = begun / "manifest.json"
    manifest.write_bytes(edit(manifest.read_bytes()))
    for arguments in (["merge", begun], [*good, "--out", begun, "--bundle", bundle_folder]):
        assert refusal("batch", *arguments).startswith(f"cxls: {manifest}: ")


def test_a_manifest_of_other_settings_has_no_parts_here(begun: Path) -> None:
    manifest = begun / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"hit_rule": "network"', b'"hit_rule": "both"'))
    assert "not finished: shard 0/1 (50 frames)" in refusal("batch", "merge", begun)


def test_a_merge_names_the_shards_that_are_missing_and_merges_the_rest_when_told_to(
    good: list[str], alone: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    for shard in (1, 3):
        ran(*good, "--out", tmp_path, "--bundle", bundle_folder, "--shard", f"{shard}/5")
    assert refusal("batch", "merge", tmp_path) == (
        f"cxls: {tmp_path}: not finished: shard 0/5 (10 frames), 2/5 (10 frames), 4/5 (10 frames); run it again, or "
        "merge what is there with --partial"
    )
    assert not (tmp_path / "records.parquet").exists()
    assert "not finished: 30 frames of 3 shards" in ran("merge", tmp_path, "--partial")
    assert len(pq.read_table(tmp_path / "records.parquet")) == 20
    assert "**Not finished: 30 frames are missing.**" in (tmp_path / "report.md").read_text()
    for shard in (0, 2, 4):
        ran(*good, "--out", tmp_path, "--bundle", bundle_folder, "--shard", f"{shard}/5")
    ran("merge", tmp_path)
    assert outputs(tmp_path) == outputs(alone)


def test_a_folder_that_is_no_batch_cannot_be_merged(tmp_path: Path) -> None:
    assert "give the folder that cxls batch --out wrote" in refusal("batch", "merge", tmp_path)
    (tmp_path / "file").write_text("")
    assert "give a folder that can be written" in refusal("batch", tmp_path / "x.h5", "--out", tmp_path / "file")


# --- which shard ---------------------------------------------------------------------------


def array(task: object, lowest: object, highest: object, count: object) -> dict[str, str]:
    names = ("ID", "MIN", "MAX", "COUNT")
    values = zip(names, (task, lowest, highest, count), strict=True)
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values if value is not None}


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("auto", {}, (0, 1)),
        ("auto", array(0, 0, 3, 4), (0, 4)),
        ("auto", array(13, 10, 13, 4), (3, 4)),
        ("auto", array(7, 1, 9, 5), (3, 5)),
        ("auto", array(5, 5, 5, 1), (0, 1)),
        ("2/7", array(0, 0, 3, 4), (2, 7)),
    ],
)
def test_a_shard_is_what_is_said_or_the_task_of_a_job_array(
    text: str, variables: dict[str, str], expected: tuple[int, int]
) -> None:
    assert parse_shard(text, variables) == expected


@pytest.mark.parametrize(
    ("text", "variables", "said"),
    [
        ("3/3", {}, "i/n counts from 0 to n - 1"),
        ("0/0", {}, "i/n counts from 0 to n - 1"),
        ("0/999999", {}, "n up to 100000"),
        ("auto", array(5, 3, 9, 3) | {"SLURM_ARRAY_TASK_ID": "5"}, "no array in equal steps"),
        ("auto", array(4, 3, 9, 4), "no array in equal steps"),
        ("auto", array(1, None, None, None), "without its MIN, MAX and COUNT"),
        ("auto", array("x", 0, 3, 4), "without its MIN, MAX and COUNT"),
        ("auto", array(0, 0, 0, 0), "no array in equal steps"),
    ],
)
def test_a_shard_that_cannot_be_is_refused(text: str, variables: dict[str, str], said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        parse_shard(text, variables)
