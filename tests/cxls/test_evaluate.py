"""``cxls evaluate``: what is printed, what is written, and the exit codes."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load, save

from cxls.bench import om_peer
from cxls.cli import cli
from sim_replay.cells import ready_crystal
from sim_replay.detector import CONDITIONS, plain_panel
from sim_replay.diffraction import Sample
from sim_replay.scene import Scene
from sim_replay.simulation import Plan, simulate_series
from tests.analyzer.builders import write_bundle
from tests.cxls.programs import cxls, refusal
from tests.training.dataset.builders import build_series, build_tree

FRAMES = 16


def damage(folder: Path) -> None:
    """Make a weight of a bundle's hit network no number, with the card's hash made right."""
    weights = load((folder / "hit.safetensors").read_bytes())
    next(iter(weights.values())).view(-1)[0] = float("nan")
    raw = save(weights)
    (folder / "hit.safetensors").write_bytes(raw)
    card = json.loads((folder / "bundle.json").read_text())
    card["hit"]["sha256"] = hashlib.sha256(raw).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(card))


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scene = Scene(
        Sample(ready_crystal("lysozyme", 5, 4.0)), replace(CONDITIONS[1], flux_photons=3e9), plain_panel((320, 320))
    )
    return simulate_series(tmp_path_factory.mktemp("series") / "own", scene, Plan(FRAMES, seed=3, workers=1))


def test_help_teaches_with_an_example() -> None:
    done = CliRunner().invoke(cli, ["evaluate", "--help"])
    assert done.exit_code == 0
    assert "cxls evaluate runs/test_master.h5 --ideal --report runs/report" in " ".join(done.output.split())


def test_a_series_is_evaluated_from_frames_to_report(tmp_path: Path, master: Path) -> None:
    figures = tmp_path / "figures.json"
    done = cxls("evaluate", master, "--ideal", "--show", "2", "--report", tmp_path / "report", "--json", figures)
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "On the same frames",
        "ideal observer, blocks",
        "total count",
        "By content",
        "own_master.h5 frame 1",
    ):
        assert words in done.stdout
    assert "not measured: no-beam: no frame without a beam" in done.stdout
    told = json.loads(figures.read_text())
    with h5py.File(master) as file:
        hits = int(file["entry/truth/hit"][()].sum())
    confusion = next(table for table in told["tables"] if table["title"] == "Confusion")["rows"]
    assert [row["called hit"] + row["called miss or no beam"] for row in confusion] == [hits, FRAMES - hits]
    same = next(table for table in told["tables"] if table["title"] == "On the same frames")["rows"]
    assert {row["scorer"]: row["frames"] for row in same} == dict.fromkeys(
        ("ideal observer, blocks", "ideal observer, pixels", "total count"), FRAMES
    )
    assert same[0]["AUC"]["value"] == 1.0, "at 3e9 photons spots cannot be overlooked"
    assert (tmp_path / "report/report.html").exists()
    assert f"--report {tmp_path / 'report'}" in (tmp_path / "report/report.md").read_text()


def test_results_of_an_analysis_give_the_same_figures(tmp_path: Path, master: Path) -> None:
    results = tmp_path / "run.jsonl"
    assert cxls("analyze", master, "--results", results, "--device", "cpu").returncode == 0
    written = []
    for name, more in (("a", ()), ("b", ("--results", results))):
        path = tmp_path / f"{name}.json"
        assert cxls("evaluate", master, "--json", path, *more).returncode == 0
        written.append({key: value for key, value in json.loads(path.read_text()).items() if key != "command"})
    assert written[0] == written[1]


def test_a_peer_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, master: Path) -> None:
    monkeypatch.setattr(om_peer, "available", lambda: False)
    done = cxls("evaluate", master, "--peers", "--metrics", "hits")
    assert done.returncode == 0
    assert "not measured: OM's peakfinder8: run `make peers`" in done.stdout


def test_a_peer_counts_peaks_on_the_same_frames(master: Path, tmp_path: Path) -> None:
    if not om_peer.available():
        pytest.skip(om_peer.NOT_THERE)
    path = tmp_path / "figures.json"
    done = cxls("evaluate", master, "--peers", "--metrics", "hits", "--json", path)
    assert done.returncode == 0
    same = json.loads(path.read_text())["tables"][0]["rows"]
    assert same[0]["scorer"] == "OM's peakfinder8"
    assert same[0]["best balanced accuracy"]["note"] == "threshold tuned on this set"


def refused(*arguments: object) -> str:
    """The one line with which the program refuses."""
    done = cxls("evaluate", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_bad_input_is_refused_in_one_line(tmp_path: Path, master: Path) -> None:
    assert "no such file" in refused(tmp_path / "none_master.h5")
    assert "no file matches" in refused(tmp_path / "*.h5")
    assert "a tree" in refused(build_tree(tmp_path / "tree"))
    assert "no truth" in refused(build_series(tmp_path / "blank", truth={}))
    assert "'speed' is not known" in refused(master, "--metrics", "hits,speed")
    assert "--metrics names none" in refused(master, "--metrics", ",")
    assert "bundle" in refused(master, "--bundle", tmp_path / "none")
    assert "is a file" in refused(master, "--report", master)
    assert "--results names" in refused(master, "--results", tmp_path / "none.jsonl")


def test_a_metric_that_is_asked_for_and_not_possible_is_an_error(tmp_path: Path) -> None:
    truth = {"hit": np.array([True, False, True, False])}
    told = refused(build_series(tmp_path, truth=truth), "--metrics", "peaks")
    assert (
        "/entry/truth/spot_frame, /entry/truth/spot_ss, /entry/truth/spot_fs, /entry/truth/spot_photons are missing"
        in told
    )
    done = cxls("evaluate", build_series(tmp_path / "again", truth=truth))
    assert done.returncode == 0
    assert "not measured: peaks:" in done.stdout


def test_hits_that_could_not_be_measured_are_an_error_though_nobody_asked(tmp_path: Path) -> None:
    run = build_series(tmp_path, truth={"photon_energy_eV": 6000.0, "camera_length_m": 0.15})
    done = cxls("evaluate", run, "--json", tmp_path / "f.json")
    assert done.returncode == 2
    assert "not measured: hits, calibration:" in done.stdout, "what could be measured is printed all the same"
    assert "hits were not measured:" in done.stderr
    assert "/entry/truth/hit" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "f.json").exists()
    assert cxls("evaluate", run, "--metrics", "photon-energy").returncode == 0


def test_a_bundle_of_damaged_weights_is_refused_as_the_analysis_refuses_it(tmp_path: Path, master: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    damage(folder)
    said = refused(master, "--bundle", folder)
    assert "its weights are damaged" in said
    assert refusal("analyze", master, "--bundle", folder) == said.rstrip("\n")
    assert refusal("calibrate", master, "--bundle", folder, "--out", tmp_path / "c") == said.rstrip("\n")
    finetune = ["train", "hit", "--finetune", master, "--bundle", folder, "--out", tmp_path / "out"]
    assert refusal(*finetune) == said.rstrip("\n")


@pytest.mark.parametrize(("which", "right"), [("first", None), ("missed", False), ("false", False), ("hits", None)])
def test_the_frames_to_show_can_be_chosen(master: Path, which: str, right: bool | None) -> None:
    done = cxls("evaluate", master, "--metrics", "hits", "--show", FRAMES, "--show-which", which)
    assert done.returncode == 0
    shown = [line for line in done.stdout.splitlines() if line.startswith("own_master.h5 frame")]
    with h5py.File(master) as file:
        hit = file["entry/truth/hit"][()]
    hits = [f"own_master.h5 frame {n}" for n in np.flatnonzero(hit)]
    assert {"first": len(shown) == FRAMES, "hits": [line.split(":")[0] for line in shown] == hits}.get(which, True)
    assert "--show-which" in refused(master, "--show-which", "best")
    if right is False:
        assert " right" not in done.stdout
