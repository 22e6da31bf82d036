"""``cxls data``: what is printed, what is written, and the exit codes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from cxls.cli import cli
from tests.cxls.programs import Child, cxls, environment, refusal, wait_for
from tests.training.dataset.builders import build_series, build_tree, change_attributes

COMMANDS = ("check", "counts", "label", "overlay", "make-tree", "split", "export-tree")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(command: str) -> None:
    done = CliRunner().invoke(cli, ["data", command, "--help"])
    assert done.exit_code == 0
    assert f"cxls data {command}" in " ".join(done.output.split())


def test_the_settings_of_every_command_are_shown() -> None:
    shown = cxls("config", "show").stdout
    assert [line for line in shown.splitlines() if line.startswith("# cxls data")] == [
        f"# cxls data {name}"
        for name in ("check", "counts", "label", "overlay", "make-tree", "split", "export-tree", "recover")
    ]


def test_a_setting_may_come_from_the_environment(tmp_path: Path) -> None:
    build_tree(tmp_path, (1, 5))
    done = cxls("data", "counts", tmp_path, "--json", CXLS_DATASETS="5")
    assert [count["dataset"] for count in json.loads(done.stdout)] == [5]


# --- check ------------------------------------------------------------------------------


def test_a_good_tree_and_series_exit_with_0(tmp_path: Path) -> None:
    images, master = build_tree(tmp_path), build_series(tmp_path)
    done = cxls("data", "check", tmp_path, master)
    assert (done.returncode, done.stdout) == (0, f"no problems in {images}, {master}\n")


def test_all_problems_are_printed_with_exit_code_1(tmp_path: Path) -> None:
    images, master = build_tree(tmp_path / "set"), build_series(tmp_path)
    peak = images / "peaks/01/img_6keV_clen01_00001.h5"
    change_attributes(peak, clen=0.25, photon_energy=None)
    (tmp_path / "run_data_000001.h5").unlink()
    done = cxls("data", "check", images, master)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{peak}:/: attribute clen is 0.25 m, its folder's data set has 0.15 m",
        f"{peak}:/: attribute photon_energy is missing",
        f"{master}:/entry/data/data_000001: links to run_data_000001.h5, which is not there; put it beside the master",
    ]
    assert done.stderr == "cxls: 3 problems in 2 files\n"


def test_a_file_that_is_none_is_a_problem_and_a_path_that_is_none_bad_usage(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("a text")
    done = cxls("data", "check", tmp_path / "x.h5")
    assert (done.returncode, done.stdout) == (1, f"{tmp_path / 'x.h5'}: not an HDF5 file\n")
    assert "gone.h5: no such file or folder" in refusal("data", "check", tmp_path / "gone.h5")
    assert "neither a tree" in refusal("data", "check", tmp_path)
    assert "no file matches" in refusal("data", "check", tmp_path / "*.cxi")
    assert "PATH" in refusal("data", "check")


def test_a_single_image_is_checked_against_its_name(tmp_path: Path) -> None:
    path = build_tree(tmp_path) / "peaks/01/img_6keV_clen01_00001.h5"
    alone = path.rename(tmp_path / path.name)
    assert cxls("data", "check", alone).returncode == 0
    change_attributes(alone, photon_energy=8000)
    done = cxls("data", "check", alone)
    assert done.stdout == f"{alone}:/: attribute photon_energy is 8000 eV, its folder's data set has 6000 eV\n"


@pytest.mark.parametrize("text", ["0", "1-", "five"])
def test_a_bad_list_of_data_sets_is_refused(tmp_path: Path, text: str) -> None:
    build_tree(tmp_path)
    assert f"--datasets {text}" in refusal("data", "check", tmp_path, "--datasets", text)


# --- counts -----------------------------------------------------------------------------


def test_counts_are_a_table_and_json(tmp_path: Path) -> None:
    build_tree(tmp_path, (1, 9), hits=4, empties=2)
    master = build_series(tmp_path)
    shown = cxls("data", "counts", tmp_path, master).stdout
    rows = [line.split() for line in shown.splitlines() if " m " in line]
    assert [row[1:2] + row[6:9] for row in rows] == [
        ["01", "6", "4", "2"],
        ["09", "6", "4", "2"],
        ["01", "4", "2", "2"],
    ]
    assert "2 protein, 2 water" in shown
    counts = json.loads(cxls("data", "counts", tmp_path, master, "--json").stdout)
    assert [(c["dataset"], c["total"], c["hits"]) for c in counts] == [(1, 6, 4), (9, 6, 4), (1, 4, 2)]
    assert counts[2]["classes"] == {"protein": 2, "water": 2}
    chosen = json.loads(cxls("data", "counts", tmp_path, master, "--json", "--datasets", "2-9").stdout)
    assert [c["dataset"] for c in chosen] == [9]


# --- making, labelling, overlaying ------------------------------------------------------


def test_from_nothing_to_a_split(tmp_path: Path) -> None:
    made = cxls(
        "data", "make-tree", tmp_path / "set", "--per-dataset", "6", "--datasets", "1,4", "--panel", "1100x1000",
        "--flux", "3e9", "--percent-empty", "0.5",
    )  # fmt: skip
    assert made.stdout == f"{tmp_path}/set/images: 2 data sets, 12 peak and 6 empty images\n", made.stderr
    assert cxls("data", "check", tmp_path / "set").returncode == 0
    out = tmp_path / "split.json"
    split = cxls(
        "data", "split", tmp_path / "set", "--out", out, "--train", "0.5", "--validation", "0", "--test", "0.5"
    )
    assert split.returncode == 0, split.stderr
    assert split.stdout.splitlines()[-1] == f"{out}: 18 images in 18 groups"
    rows = [line.split() for line in split.stdout.splitlines() if " m " in line]
    hits = {row[0]: row[6:] for row in rows if row[5] == "hit"}
    assert hits == {"01": ["3", "0", "3"], "04": ["3", "0", "3"]}
    assert cxls("data", "check", out).stdout == f"no problems in {out}\n"
    assert "exists already; use --force" in refusal("data", "split", tmp_path / "set", "--out", out)
    refused = refusal("data", "make-tree", tmp_path / "set", "--datasets", "4", "--panel", "50x50")
    assert "more exist already; use --force to replace" in refused


def test_labels_are_replaced_only_by_force(tmp_path: Path) -> None:
    images, master = build_tree(tmp_path), build_series(tmp_path)
    label = images / "labels/01/label_img_6keV_clen01_00001.h5"
    assert "use --force to replace" in refusal("data", "label", tmp_path)
    done = cxls("data", "label", tmp_path, master, "--kind", "threshold", "--label-threshold", "20", "--force")
    assert done.stdout.splitlines() == [
        f"{images}/labels: 3 labels (threshold)",
        f"{tmp_path}/run_labels.h5: labels (threshold)",
    ]
    with h5py.File(label) as file, h5py.File(images / "peaks/01/img_6keV_clen01_00001.h5") as peaks:
        np.testing.assert_array_equal(file["entry/data/data"][()], peaks["entry/data/data"][()] > 20)


def test_the_papers_way_and_the_right_one(tmp_path: Path) -> None:
    images = build_tree(tmp_path, hits=5, empties=2)
    frozen = cxls("data", "overlay", tmp_path, "--frozen-noise", "--percent-empty", "0.5", "--force")
    assert frozen.stdout == f"{images}: 5 overlays, 2 empty images, one frozen draw of the water a data set\n"
    checked = cxls("data", "check", tmp_path)
    assert checked.returncode == 1
    assert "noise drawn once, as in the paper" in checked.stdout
    line = refusal("data", "split", tmp_path, "--out", tmp_path / "s.json")
    assert "all 7 images at 0.15 m and 6000 eV share one background, the paper's leak" in line
    assert not (tmp_path / "s.json").exists()
    fresh = cxls("data", "overlay", tmp_path, "--percent-empty", "0.5", "--force")
    assert fresh.stdout == f"{images}: 5 overlays, 2 empty images, fresh noise in each\n"
    assert cxls("data", "check", tmp_path).returncode == 0


def test_the_papers_own_tree_is_told_what_to_do(tmp_path: Path) -> None:
    build_tree(tmp_path, frozen=True)
    assert "--new-water" in refusal("data", "overlay", tmp_path, "--force")
    assert cxls("data", "overlay", tmp_path, "--force", "--new-water").returncode == 0
    assert "noise drawn once" not in cxls("data", "check", tmp_path).stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_simulation_leaves_whole_files_only(tmp_path: Path, number: int, code: int) -> None:
    with Child(
        "data", "make-tree", tmp_path, "--per-dataset", "5000", "--datasets", "1", "--panel", "500x400"
    ) as making:
        wait_for(lambda: len(list(tmp_path.rglob("img_*.h5"))) > 2)
        assert making.end(number) == code
        assert "Traceback" not in "".join(making.errors)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.suffix == ".h5" and not path.name.startswith(".") for path in written)
    for path in written:
        with h5py.File(path) as file:
            assert file["entry/data/data"].shape == (500, 400)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("overlay", "."), "no tree"),
        (("overlay", "gone"), "no tree"),
        (("make-tree", "x", "--panel", "12"), "--panel"),
        (("make-tree", "x", "--per-dataset", "0"), "--per-dataset"),
        (("make-tree", "x", "--hkl", "gone.hkl"), "gone.hkl"),
        (("make-tree", "x", "--flux", "-1"), "--flux"),
        (("label", ".", "--kind", "both"), "--kind"),
        (("label", "."), "neither a tree"),
    ],
)
def test_bad_usage_is_one_line_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert text in refusal("data", *arguments)
    assert os.listdir(tmp_path) == []


# --- split and conversion ---------------------------------------------------------------


def test_a_leaky_split_is_a_problem_that_check_prints(tmp_path: Path) -> None:
    build_series(tmp_path, "a", 12)
    build_series(tmp_path, "b", 12)  # the same seed: the same frames
    out = tmp_path / "split.json"
    assert cxls("data", "split", tmp_path, "--out", out).returncode == 0
    assert cxls("data", "check", out).returncode == 0
    content = json.loads(out.read_text())
    moved = next(entry for entry in content["sides"]["test"] if entry[0] == "b_master.h5")
    content["sides"]["test"].remove(moved)
    content["sides"]["train"].append(moved)
    out.write_text(json.dumps(content))
    done = cxls("data", "check", out)
    assert done.returncode == 1
    assert f"share one seed of the noise: a_master.h5 #{moved[1]} and b_master.h5 #{moved[1]}" in done.stdout


def test_frames_of_which_no_hit_is_known_are_a_class_of_the_split_s_table(tmp_path: Path) -> None:
    build_series(tmp_path, "told", 10)
    build_series(tmp_path, "bare", 10, truth={})
    done = cxls("data", "split", tmp_path, "--out", tmp_path / "s.json")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if " m " in line]
    assert [row[5:7] for row in rows] == [["hit", "4"], ["empty", "4"], ["unknown", "8"]]
    assert cxls("data", "check", tmp_path / "s.json").returncode == 0


def test_shares_that_do_not_sum_to_1_are_refused(tmp_path: Path) -> None:
    build_tree(tmp_path)
    line = refusal("data", "split", tmp_path, "--train", "0.9", "--out", tmp_path / "s.json")
    assert "train 0.9, validation 0.1, test 0.1; give three from 0 to 1 that sum to 1" in line


def test_a_series_becomes_a_tree(tmp_path: Path) -> None:
    master = build_series(tmp_path, frames=6)
    done = cxls("data", "export-tree", master, tmp_path / "set")
    assert done.stdout == f"{tmp_path}/set/images: 6 images of 1 series\n", done.stderr
    counts = json.loads(cxls("data", "counts", tmp_path / "set", "--json").stdout)
    assert [(c["dataset"], c["hits"], c["empties"], c["labels"]) for c in counts] == [(1, 3, 3, 6)]
    assert "use --force to replace" in refusal("data", "export-tree", master, tmp_path / "set")


# --- hostile files ----------------------------------------------------------------------


def test_counts_are_printed_where_only_ascii_is(tmp_path: Path) -> None:
    master = build_series(tmp_path / "[red]", condition=(0.2, 9000.0))
    with h5py.File(master, "r+") as file:
        del file["entry/truth"]
    done = subprocess.run(
        [sys.executable, "-m", "cxls", "data", "counts", master.relative_to(tmp_path)],
        cwd=tmp_path,
        env=environment(PYTHONIOENCODING="ascii", PYTHONPATH=os.getcwd()),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert b"[red]/run_master.h5" in done.stdout
    assert done.stdout.isascii()


def test_a_pipe_is_no_data_set(tmp_path: Path) -> None:
    images = build_tree(tmp_path / "tree")
    peak = images / "peaks/01/img_6keV_clen01_00001.h5"
    peak.unlink()
    os.mkfifo(peak)
    os.mkfifo(tmp_path / "FIFO_master.h5")
    os.mkfifo(tmp_path / "split.json")
    for path in (tmp_path, images, tmp_path / "split.json"):
        done = cxls("data", "check", path)
        assert done.returncode == 1
        assert "not a regular file" in done.stdout
    out = tmp_path / "s.json"
    for arguments in (
        ("counts", tmp_path), ("label", tmp_path, "--force"), ("label", images, "--force"),
        ("overlay", images, "--force"), ("split", images, "--out", out), ("export-tree", tmp_path, tmp_path / "set"),
    ):  # fmt: skip
        assert "not a regular file" in refusal("data", *arguments)


def test_an_image_that_is_a_link_to_itself_is_said_so(tmp_path: Path) -> None:
    images = build_tree(tmp_path)
    peak = images / "peaks/01/img_6keV_clen01_00001.h5"
    with h5py.File(peak, "r+") as file:
        del file["entry/data/data"]
        file["entry/data/data"] = h5py.SoftLink("/entry/data/data")
    for path in (images, peak):
        done = cxls("data", "check", path)
        assert f"{peak}:/entry/data/data: is one of more than 16 links in a row" in done.stdout
    for arguments in (("label", images), ("overlay", images), ("split", images, "--out", tmp_path / "s.json")):
        line = refusal("data", *arguments, *(() if arguments[0] == "split" else ("--force",)))
        assert "is one of more than 16 links in a row" in line
