"""``cxls train ATTRIBUTE`` as a user has it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.distributed.run import get_args_parser

from analyzer.attributes import PEAK_LOCATION
from analyzer.framing import Framing
from analyzer.single_model import load_model
from cxls.cli import main
from cxls.commands.train_attribute import _pairs, _recipe
from cxls.settings import BadSettings, TrainSettings
from tests.support import REPOSITORY
from tests.training.dataset.builders import SHAPE, build_series, build_tree, good_truth
from training.loop.train import CHECKPOINT


def command(*arguments: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CXLS_")}
    child = subprocess.Popen(
        [sys.executable, "-m", "cxls", "train", *arguments],
        cwd=REPOSITORY,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return child


def outcome(*arguments: str) -> tuple[int, str, str]:
    child = command(*arguments)
    out, errors = child.communicate(timeout=240)
    return child.returncode, out, errors


def test_ctrl_c_ends_at_a_checkpoint_and_resume_goes_on_to_a_model(tmp_path: Path) -> None:
    bright = np.random.default_rng(3).poisson(2.0, (24, *SHAPE)).astype("u2")
    bright[::2, 4, 5] = bright[::2, 15, 21] = 60
    build_series(tmp_path / "run", frames=24, pixels=bright, truth=good_truth(24), per_file=24)
    options = ["peak", str(tmp_path / "run"), "--run-folder", str(tmp_path / "r"), "--size", "20", "--workers", "1"]
    child = command(*options, "--epochs", "4000", "--checkpoint-s", "0")
    assert child.stdout is not None
    assert child.stdout.readline().startswith("epoch 1/4000  loss ")
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert (tmp_path / "r" / CHECKPOINT).exists()
    done = len((tmp_path / "r" / "history.csv").read_text().splitlines()) - 1
    code, out, errors = outcome(*options, "--epochs", str(done + 1), "--resume")
    assert code == 0, errors
    assert f"epoch {done + 1}/{done + 1}" in out
    model = load_model(tmp_path / "r" / "model")
    assert model.card.network == "paper-binary-cnn"
    assert model.card.attribute == "peak"
    assert model.card.settings == {"shape": [20, 20]}
    assert (model.card.framing, model.card.view) == (Framing((20, 20)), "image")
    assert model.card.training["epochs"] == done + 1
    assert model.card.performance["validation"]["samples"] > 0
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["command"].startswith("cxls train peak")
    assert facts["options"]["size"] == "20"


def refusal(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the program ends with, in this process."""
    monkeypatch.setattr(sys, "argv", ["cxls", "train", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert len(said.err.splitlines()) == 1
    return said.err


def test_data_without_what_the_task_needs_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = build_tree(tmp_path)
    (images / "labels/01/label_img_6keV_clen01_00002.h5").unlink()
    said = refusal(["peaks", "--data", str(tmp_path), "--run-folder", str(tmp_path / "r")], monkeypatch, capsys)
    assert "label_img_6keV_clen01_00002.h5: no such file, which would be its peak_map" in said
    assert not (tmp_path / "r").exists()


def test_the_default_recipe_is_the_published_one_and_options_change_it() -> None:
    published = PEAK_LOCATION.recipe
    assert _recipe(TrainSettings(), published) == published
    settings = TrainSettings(
        epochs=3, loss="bce", learning_rate=1e-3, recipe=("pos_weight=1e5,clip_norm=2", 'views=["clean_image"]')
    )
    changed = _recipe(settings, published)
    assert (changed.epochs, changed.loss, changed.learning_rate, changed.optimiser) == (3, "bce", 1e-3, "adam")
    assert (changed.pos_weight, changed.clip_norm, changed.views) == (1e5, 2, ("clean_image",))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("colour=red", "--recipe colour: no part of a recipe; they are loss, optimiser"),
        ("learning_rate=fast", "--recipe: .*float"),
        ("loss=hinge", "--recipe: .*hinge"),
        ("pos_weight=count", "--recipe: .*count"),
        ("batch=0", "--recipe: .*batch is 0; give a number above 0"),
        ("clip_norm=-1", "--recipe: .*clip_norm is -1"),
        ("momentum", "--recipe 'momentum': not KEY=VALUE"),
        ("=3", "--recipe '=3': not KEY=VALUE"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(given: str, said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        _recipe(TrainSettings(recipe=(given,)), PEAK_LOCATION.recipe)


def test_settings_of_a_network_are_given_again_and_again_or_with_commas() -> None:
    expected = {"hidden": 8, "scaled": True, "shape": [3, 4], "variant": "code"}
    assert _pairs("--x", ("hidden=8,scaled=true", "shape=[3,4],variant=code")) == expected
    assert TrainSettings(data="a,b").data == ("a", "b")  # type: ignore[arg-type]  (as the environment gives it)
    assert TrainSettings(data=("a,b",)).data == ("a,b",)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "cxls train nothing: not a task; attributes camera-length, energy, "),
        (["hit", "--network", "x"], "cxls train hit: of a bundle; --network is for attributes"),
        (["peak", "--shards", "2"], "cxls train peak: an attribute; --shards is for hit, parameters, all"),
        (["all", "some_data"], "cxls train all some_data: a bundle is trained on simulated shots"),
        (["peak", "--network", "none", "--size", "64"], "network 'none' is not known; known: "),
        (["peak", "absent_folder"], "absent_folder: no such file or folder"),
        (["peak", "--size", "big"], "--size big: not a size"),
    ],
)
def test_a_task_or_option_that_makes_no_sense_is_refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(arguments, monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


def test_torchrun_passes_every_option_on() -> None:
    # Its parser looks at all of the line first, and ends it where an option might be the beginning of two of its own.
    flags = [f"--{name.replace('_', '-')}" for name in TrainSettings.model_fields]
    given = ["-m", "cxls", "train", "peak", *(part for flag in flags for part in (flag, "1"))]
    assert get_args_parser().parse_args(given).training_script_args == given[2:]
