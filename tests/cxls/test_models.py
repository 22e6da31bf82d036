"""The pages about models say what the shipped bundle's card says; networks are listed, shown and imported."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from analyzer.architectures import build, names
from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.framing import Framing
from analyzer.single_model import SingleModelCard, load_model, save_model
from cxls.commands.models import model_page
from tests.cxls.programs import cxls, refusal

ROOT = Path(__file__).parents[2]


def test_the_page_on_the_shipped_models_is_generated_from_its_card() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    assert page == model_page(load_bundle(DEFAULT_BUNDLE)), "run: cxls models show --markdown > docs/models.md"


def test_the_shipped_bundle_states_what_it_was_measured_on() -> None:
    card = load_bundle(DEFAULT_BUNDLE).card
    seeds = card.hit.training["seeds"]
    assert len(set(seeds.values())) == 3
    rows = card.hit.performance["rows"]
    assert rows[0]["hits_found"] + rows[0]["hits_missed"] > 1000
    assert all(len(row["recall_interval"]) == 2 for row in rows)


# --- networks ---------------------------------------------------------------------------


def test_the_list_has_bundles_and_networks_with_their_parameters() -> None:
    done = cxls("models", "list")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert f"  {load_bundle(DEFAULT_BUNDLE).label} " in done.stdout
    assert "17,784,713" in lines["paper-binary-cnn"]
    assert "image + clean_image" in lines["paper-dual-input"]
    assert set(names()) <= set(lines)
    assert lines["hit-zones-and-cells"].endswith("own, trained by cxls train hit")
    assert lines["parameters-radial-profile"].endswith("own, trained by cxls train parameters")
    assert "cxls train ATTRIBUTE --network NAME" in done.stdout


def test_a_bundle_that_cannot_be_loaded_has_its_line_and_the_list_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(DEFAULT_BUNDLE, tmp_path / "default")
    shutil.copytree(DEFAULT_BUNDLE, tmp_path / "broken")
    (tmp_path / "broken" / "hit.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))
    monkeypatch.setattr("cxls.commands.models.DEFAULT_BUNDLE", tmp_path / "default")
    done = cxls("models", "list")
    assert (done.returncode, done.stderr) == (0, "")
    broken, good = done.stdout.splitlines()[1:3]
    assert broken.split()[0] == "broken"
    assert "cannot be used: " in broken
    assert "hit.safetensors: a pickle" in broken
    assert good.split()[0] == load_bundle(DEFAULT_BUNDLE).label
    assert "17,784,713" in done.stdout


def test_a_network_is_shown_layer_by_layer_for_any_frame_size() -> None:
    done = cxls("models", "show", "paper-binary-cnn")
    assert done.returncode == 0, done.stderr
    assert "16x1078x1031" in done.stdout
    assert "17,784,713" in done.stdout
    small = cxls("models", "show", "paper-base-cnn", "--shape", "52x42", "--set", "variant=code", "--json")
    table = json.loads(small.stdout)
    assert table["shape"] == [52, 42]
    assert [layer["output"][1:] for layer in table["layers"]] == [[2, 3, 2], [2, 3, 2], [12], [1]]
    assert table["parameters"] == 2 * 626 + 13


def test_a_card_is_shown_with_and_without_naming_its_folder(tmp_path: Path) -> None:
    label = load_bundle(DEFAULT_BUNDLE).label
    assert json.loads(cxls("models", "show").stdout)["label"] == label
    assert json.loads(cxls("models", "show", DEFAULT_BUNDLE).stdout)["label"] == label
    card = SingleModelCard(network="paper-linear", settings={"shape": [3, 4]}, attribute="energy", origin="a test")
    save_model(build("paper-linear", {"shape": [3, 4]}), card, tmp_path / "m")
    assert json.loads(cxls("models", "show", tmp_path / "m").stdout)["origin"] == "a test"


@pytest.mark.parametrize("part", ["hit", "parameters", "peaks"])
@pytest.mark.parametrize(
    "value", [{}, {"rows": 3, "shots": 1, "energy_confusion": [[1]], "calibration": [], "machine": 2}]
)
def test_a_card_without_optional_parts_still_has_a_page(tmp_path: Path, part: str, value: dict[str, object]) -> None:
    folder = tmp_path / "b"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    card = json.loads((folder / "bundle.json").read_text())
    card[part] |= {"training": value, "performance": value}
    card["description"] = ""
    (folder / "bundle.json").write_text(json.dumps(card))
    done = cxls("models", "show", folder, "--markdown")
    assert (done.returncode, done.stderr) == (0, "")
    assert "not said by the card" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "nonsense"),
        (["paper-linear", "--shape", "2163"], "2163"),
        (["paper-linear", "--shape", "0x9"], "shape"),
        (["paper-linear", "--shape", "-1x9"], "-1x9"),
        (["paper-linear", "--set", "classes"], "NAME=VALUE"),
        (["paper-linear", "--set", "classes=many"], "classes"),
        (["paper-linear", "--set", "colour=red"], "colour"),
        (["paper-base-cnn", "--set", "variant=big"], "figure, code, multi-class"),
        (["paper-heatmap-cnn", "--shape", "9x9"], "paper-heatmap-cnn"),
        ([str(DEFAULT_BUNDLE), "--shape", "9x9"], "--shape"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments: list[str], said: str) -> None:
    assert said in refusal("models", "show", *arguments)


def test_the_authors_weights_are_imported_and_shown(tmp_path: Path) -> None:
    theirs = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    torch.save(theirs.state_dict(), tmp_path / "energy.pt")
    command = ["models", "import", tmp_path / "energy.pt", "--network", "paper-linear", "--shape", "3x4"]
    command += ["--attribute", "energy", "--out", tmp_path / "model"]
    done = cxls(*command)
    assert done.returncode == 0, done.stderr
    loaded = load_model(tmp_path / "model")
    image = torch.rand(2, 1, 3, 4)
    assert torch.equal(loaded.network(image), theirs(image))
    assert (loaded.card.attribute, loaded.card.values, loaded.card.unit) == ("energy", [6000.0, 7000.0, 8000.0], "eV")
    assert "--force" in refusal(*command)
    assert cxls(*command, "--force").returncode == 0


def test_an_imported_model_says_what_it_was_fed(tmp_path: Path) -> None:
    torch.save(nn.Linear(12, 3).state_dict(), tmp_path / "energy.pt")
    command = ["models", "import", tmp_path / "energy.pt", "--network", "paper-linear", "--attribute", "energy"]
    done = cxls(*command, "--size", "7x8", "--bin", "2", "--out", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    card = load_model(tmp_path / "model").card
    assert (card.framing, card.view, card.settings["shape"]) == (Framing((7, 8), 2), "image", [3, 4])
    again = [*command, "--out", tmp_path / "again", "--size"]
    assert "--size and --bin leave 2x2" in refusal(*again, "4", "--bin", "2", "--shape", "3x4")
    assert "not a size" in refusal(*again, "4x")
    assert "nothing is left" in refusal(*again, "4", "--bin", "8")
    assert "--bin" in refusal(*again, "4", "--bin", "0")


def test_an_import_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(12, 3).state_dict(), tmp_path / "a.pt")

    def said(network: str, *more: object) -> str:
        text = refusal("models", "import", tmp_path / "a.pt", "--network", network, "--out", tmp_path / "m", *more)
        assert not (tmp_path / "m").exists()
        return text

    assert "energy or camera-length" in said("paper-linear", "--shape", "3x4")
    assert "takes a map" in said("paper-linear", "--attribute", "peaks")
    assert "'colour' is not known" in said("paper-linear", "--attribute", "colour")
    assert "paper-linear" in said("paper-lineal", "--attribute", "energy"), "the known ones are named"
    assert "does not fit" in said("paper-linear", "--attribute", "energy")
    assert "paper-binary-cnn" in said("paper-binary-cnn", "--shape", "40x40")


def test_a_folder_that_cannot_be_written_is_a_failure_and_leaves_nothing(tmp_path: Path) -> None:
    torch.save(nn.Linear(12, 3).state_dict(), tmp_path / "a.pt")
    (tmp_path / "file").write_text("not a folder")
    out = tmp_path / "file" / "m"
    command = ["models", "import", tmp_path / "a.pt", "--network", "paper-linear", "--shape", "3x4"]
    done = cxls(*command, "--attribute", "energy", "--out", out)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert str(out) in done.stderr
