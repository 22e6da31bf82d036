"""``cxls train ATTRIBUTE`` as a user has it."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch.distributed.run import get_args_parser

from analyzer import architectures
from analyzer.architectures import Architecture
from analyzer.attributes import PEAK_LOCATION
from analyzer.bundle import DEFAULT_BUNDLE, HitCard, ParametersCard, load_bundle, save_weights
from analyzer.framing import Framing
from analyzer.single_model import load_model
from cxls.cli import main
from cxls.commands.train_attribute import _pairs, _recipe
from cxls.settings import BadSettings, TrainSettings
from tests.cxls.programs import Ended, cxls
from tests.support import REPOSITORY
from tests.training.dataset.builders import SHAPE, build_series, build_tree, good_truth
from tests.training.loop.builders import TinyHit
from training.loop.train import CHECKPOINT, Diverged
from training.make_bundle import Plan


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
    begun = child.stdout.readline()
    assert begun.startswith("paper-binary-cnn for peak: ")
    assert " samples to train on, " in begun
    assert begun.endswith(" to validate on, on cpu\n")
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


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Twelve frames with truth."""
    build_series(tmp_path / "run", frames=12, truth=good_truth(12), per_file=12)
    return tmp_path / "run"


def test_a_network_without_ready_weights_says_so_in_its_first_lines_its_record_and_its_card(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(weights: str | None = None) -> TinyHit:
        assert weights in (None, "ready.safetensors")
        return TinyHit()

    startable = Architecture(build=build, inputs=("image",), start_only=("weights",))
    monkeypatch.setitem(architectures.OWN, "startable", startable)
    options = ["train", "peak", series, "--network", "startable", "--epochs", "1", "--workers", "1", "--device", "cpu"]
    done = cxls(*options, "--run-folder", tmp_path / "scratch")
    assert done.returncode == 0, done.stderr
    assert "startable starts from scratch; --network-setting weights=FILE starts it from ready weights" in done.stdout
    assert json.loads((tmp_path / "scratch" / "run.json").read_text())["start"] == "from scratch"
    assert load_model(tmp_path / "scratch" / "model").card.training["start"] == "from scratch"
    ready = ["--network-setting", "weights=ready.safetensors", "--run-folder", tmp_path / "ready"]
    done = cxls(*options, *ready)
    assert done.returncode == 0, done.stderr
    assert "from scratch" not in done.stdout
    assert load_model(tmp_path / "ready" / "model").card.training["start"] == {"weights": "ready.safetensors"}


def test_a_network_that_does_not_fit_the_attribute_is_refused_before_anything_is_written(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--network", "paper-binary-cnn", "--size", "20", "--workers", "1", "--run-folder", str(tmp_path / "r")]
    said = refusal(["energy", str(series), *options], monkeypatch, capsys)
    assert "network 'paper-binary-cnn' for 'energy': outputs of shape (1,) for 3 classes" in said
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("task", [["hit"], ["parameters"], ["all"], ["hit", "--finetune", "run_master.h5"]])
def test_several_processes_are_refused_where_each_would_write_the_same_files(
    task: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    name = " ".join(task[:2])
    said = refusal(task, monkeypatch, capsys)
    assert said.startswith(f"cxls: cxls train {name}: one process trains, torchrun started 2; run it without torchrun")
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_is_a_failure_of_each_task_of_a_bundle_and_leaves_no_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def diverging(*given: object) -> None:
        raise Diverged("step 3: the loss is nan; its batch is in a file")

    for task, made in (("hit", "make_hit"), ("parameters", "make_parameters")):
        monkeypatch.setattr(f"cxls.commands.train.{made}", diverging)
        done = cxls("train", task, "--out", tmp_path / task, "--work", tmp_path / "work", "--device", "cpu")
        assert (done.returncode, done.stderr) == (1, "cxls: step 3: the loss is nan; its batch is in a file\n")
        assert not (tmp_path / task / "bundle.json").exists()


@pytest.mark.parametrize("task", ["hit", "parameters", "all"])
def test_a_bundle_in_the_folder_stays_whole_until_the_new_one_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: str
) -> None:
    mine, work = tmp_path / "mine", tmp_path / "work"
    shutil.copytree(DEFAULT_BUNDLE, mine)
    old = load_bundle(mine)
    order = ("train", task, "--out", mine, "--work", work, "--device", "cpu")
    calls = {"make_hit": old.card.hit, "make_parameters": old.card.parameters}
    fails = [True]

    def making(name: str, card: HitCard | ParametersCard) -> Callable[..., HitCard | ParametersCard]:
        def make(plan: Plan, *given: object) -> HitCard | ParametersCard:
            network = old.hit if name == "make_hit" else old.parameters
            with torch.no_grad():
                next(network.parameters()).mul_(0.5)
            digest = save_weights(network, plan.out / card.weights)
            if fails[0]:
                raise Diverged("the loss is nan")
            return msgspec.structs.replace(card, sha256=digest)

        return make

    for name, card in calls.items():
        monkeypatch.setattr(f"cxls.commands.train.{name}", making(name, card))
    assert cxls(*order).returncode == 1
    assert load_bundle(mine).label == old.label
    fails[0] = False
    done = cxls(*order)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{mine}: bundle mine\n")
    new = load_bundle(mine)
    assert new.card.name == "mine"
    assert (new.card.hit.sha256 == old.card.hit.sha256) == (task == "parameters")
    assert not list(mine.glob("*.part"))


def test_a_bundle_is_called_as_its_folder_and_a_name_that_no_card_takes_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = load_bundle(DEFAULT_BUNDLE)
    here = tmp_path / "mine"
    (here / "inner").mkdir(parents=True)

    def make_hit(plan: Plan, *given: object) -> HitCard:
        return msgspec.structs.replace(old.card.hit, sha256=save_weights(old.hit, plan.out / old.card.hit.weights))

    monkeypatch.setattr("cxls.commands.train.make_hit", make_hit)
    monkeypatch.chdir(here / "inner")
    order = ("train", "hit", "--work", tmp_path / "work", "--device", "cpu", "--out")
    for out, name in ((".", "inner"), ("..", "mine")):
        done = cxls(*order, out)
        assert done.returncode == 0, done.stderr
        assert load_bundle(Path(out)).card.name == name
    monkeypatch.setattr("cxls.commands.train.make_hit", None)
    for out in ("/", "two\nlines"):
        for more in ((), ("--finetune", "run_master.h5")):
            done = cxls(*order, out, *more)
            assert (done.returncode, done.stderr) == (
                2,
                f"cxls: --out {out!a}: a bundle is called as its folder; give one whose name can be printed\n",
            )
    assert not Path("two\nlines").exists()


@pytest.mark.parametrize("task", ["hit", "parameters", "peak-finder"])
def test_a_damaged_bundle_in_the_folder_is_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: str
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(DEFAULT_BUNDLE, mine)
    kept = load_bundle(mine).card.scattering
    assert kept is not None
    with (mine / kept.weights).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")

    def trained(*given: object) -> None:
        raise AssertionError("trained for nothing")

    for made in ("train.make_hit", "train.make_parameters", "train_peak_finder.make_peaks"):
        monkeypatch.setattr(f"cxls.commands.{made}", trained)
    done = cxls("train", task, "--out", mine, "--work", tmp_path / "work", "--device", "cpu")
    assert done.returncode == 2
    assert re.fullmatch(rf"cxls: {mine / kept.weights}: SHA-256 .* `cxls train all`\n", done.stderr)


def test_the_help_has_a_line_for_each_task_and_the_choices_of_the_recipe() -> None:
    said = cxls("train", "--help").stdout
    for task in ("peak", "peaks", "energy", "camera-length", "hit", "parameters", "all"):
        assert len(re.findall(rf"^    {task}  +\S+ \S+", said, re.MULTILINE)) == 1
    for choices in ("adam|adamw|sgd", "bce|cross-entropy|focal|mse|gaussian-nll", "plateau|one-cycle|constant"):
        assert choices in said


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
        ("weight_decay=-1", "--recipe: .*weight_decay is -1.0; give a number of 0 or more"),
        ("plateau_factor=1", "--recipe: .*plateau_factor is 1.0; give a number above 0 and below 1"),
        ("plateau_factor=0", "--recipe: .*plateau_factor is 0"),
        ("plateau_patience=-1", "--recipe: .*plateau_patience is -1"),
        ("plateau_threshold=-0.1", "--recipe: .*plateau_threshold is -0.1"),
        ("momentum=-1", "--recipe: .*momentum is -1"),
        ("momentum=1", "--recipe: .*momentum is 1"),
        ("pos_weight=-3", "--recipe: .*pos_weight is -3.0; give counts or a number above 0"),
        ("pos_weight=0", "--recipe: .*pos_weight is 0"),
        ("focal_gamma=-2", "--recipe: .*focal_gamma is -2"),
        ("focal_alpha=1.5", "--recipe: .*focal_alpha is 1.5; give a number from 0 to 1"),
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
        (["hit", "--resume"], "cxls train hit: goes on by itself where it was cut short, given the same --work"),
        (["peak", "--shards", "2"], "cxls train peak: an attribute; --shards is for hit, parameters, all"),
        (["all", "some_data"], "cxls train all some_data: a bundle is trained on simulated shots"),
        (["hit", "--steps", "9"], "cxls train hit: --steps is not used by it; leave it out"),
        (["parameters", "--epochs", "9"], "cxls train parameters: --epochs is not used by it"),
        (["parameters", "--shards", "9"], "cxls train parameters: --shards is not used by it"),
        (["peak", "--datasets", "1"], "cxls train peak: --datasets picks from the trees of --data; give --data too"),
        (["peak", "d", "--frames", "9"], "cxls train peak: --frames is of frames simulated on the fly, not of data"),
        (["peak", "--data", "d", "--flux", "9"], "cxls train peak: --flux is of frames simulated on the fly"),
        (["peak", "--split", "s", "--water-scale", "9"], "cxls train peak: --water-scale is of frames simulated"),
        (["peak", "--split", "s", "--hit-fraction", "0.3"], "cxls train peak: --hit-fraction is of frames simulated"),
        (["peak", "--split", "s", "--validation-fraction", "0.3"], "cxls train peak --split: a split has its sides"),
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


def test_a_disk_that_is_full_is_a_failure_in_one_line_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    run = tmp_path / "r"
    build_series(tmp_path / "run", frames=8, pixels=np.zeros((8, *SHAPE), "u2"), truth=good_truth(8), per_file=8)
    order = [
        "train",
        "peak",
        tmp_path / "run",
        "--run-folder",
        run,
        "--size",
        "20",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    order += ["--recipe", "pos_weight=1"]
    assert cxls(*order, "--epochs", "1").returncode == 0
    before = (run / CHECKPOINT).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, hard))
        done = cxls(*order, "--epochs", "2", "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("cxls: ")]
    assert re.match(rf"cxls: {re.escape(str(run))}/\w+\.safetensors\.part: File too large; what was trained", line)
    assert line.endswith("is kept: make room, and give the same command again with --resume")
    assert (run / CHECKPOINT).read_bytes() == before
    assert not list(run.glob("*.part"))


def test_a_folder_that_cannot_be_made_is_no_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = cxls("train", "hit", "--out", tmp_path / "file" / "mine", "--work", tmp_path / "work")
    assert done.returncode == 1
    assert done.stderr == (
        f"cxls: {tmp_path / 'file' / 'mine'}: Not a directory; what was trained up to the last checkpoint is kept: "
        "mend that, and give the same command again\n"
    )


@pytest.mark.parametrize("source", ["simulated", "series"])
@pytest.mark.parametrize("how", [["--network", "paper-dual-input"], ["--recipe", 'views=["clean_image","image"]']])
def test_clean_images_are_made_for_who_takes_them_where_there_is_no_tree(
    tmp_path: Path, source: str, how: list[str]
) -> None:
    data = ["--frames", "8"]
    if source == "series":
        data = [str(build_series(tmp_path / "runs", frames=8, truth=good_truth(8)))]
    folder = tmp_path / "r"
    done = cxls(
        "train", "peak", *data, *how, "--recipe", "pos_weight=1", "--size", "24", "--epochs", "1",
        "--run-folder", folder, "--workers", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert load_model(folder / "model").card.attribute == "peak"


def test_energy_is_trained_from_series_that_have_their_header_alone(tmp_path: Path) -> None:
    for number, energy_eV in enumerate((6000.0, 7000.0, 8000.0)):
        build_series(tmp_path / "runs", f"run{number}", frames=8, truth={}, condition=(0.15, energy_eV))
    options = ["--size", "20", "--epochs", "1", "--workers", "1", "--run-folder", tmp_path / "r"]
    done = cxls("train", "energy", tmp_path / "runs", *options)
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "r" / "model").card.values == [6000.0, 7000.0, 8000.0]
    done = cxls("train", "peak", tmp_path / "runs", *options[:-1], tmp_path / "other")
    assert done.returncode == 2
    assert "run0_master.h5: no hit in /entry/truth, in a table beside it or in the header" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_run_that_torchrun_starts_again_goes_on_and_another_job_has_to_say_resume(tmp_path: Path) -> None:
    series = build_series(tmp_path / "runs", frames=8, truth=good_truth(8))
    options = ["--size", "20", "--workers", "1", "--run-folder", tmp_path / "r", "--epochs"]

    def train(epochs: int, **variables: str) -> Ended:
        return cxls("train", "peak", series, *options, epochs, "--recipe", "pos_weight=1", **variables)

    assert train(1, TORCHELASTIC_RUN_ID="17").returncode == 0
    assert json.loads((tmp_path / "r" / "run.json").read_bytes())["job"] == "17"
    for variables in ({"TORCHELASTIC_RUN_ID": "18"}, {"TORCHELASTIC_RUN_ID": "none"}, {}):
        assert "holds a run; give --resume" in train(3, **variables).stderr
    again = train(3, TORCHELASTIC_RUN_ID="17")
    assert again.returncode == 0, again.stderr
    assert "epoch 1/3" not in again.stdout
    assert "epoch 3/3" in again.stdout


def test_torchrun_passes_every_option_on() -> None:
    # Its parser looks at all of the line first, and ends it where an option might be the beginning of two of its own.
    flags = [f"--{name.replace('_', '-')}" for name in TrainSettings.model_fields]
    given = ["-m", "cxls", "train", "peak", *(part for flag in flags for part in (flag, "1"))]
    assert get_args_parser().parse_args(given).training_script_args == given[2:]
