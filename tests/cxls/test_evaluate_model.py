"""``cxls evaluate --model``: a single model held against series and trees through its attribute."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from analyzer import architectures
from analyzer.framing import Framing
from analyzer.single_model import SingleModelCard, save_model
from tests.cxls.programs import cxls, refusal
from tests.single_models import hit_model, linear_model, register
from tests.training.dataset.builders import SHAPE, build_series, build_tree, good_truth

FRAMES = 8


@pytest.fixture(autouse=True)
def brightest(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def lit(frames: int = FRAMES, wrong: int = 0) -> np.ndarray[Any, Any]:
    """Hits by turns, as ``good_truth`` has them; the last ``wrong`` empties have a bright pixel too."""
    pixels = np.random.default_rng(1).poisson(1.0, (frames, *SHAPE)).astype("u2")
    pixels[::2, 4, 5] = 60
    if wrong:
        pixels[-2 * wrong + 1 :: 2, 15, 20] = 60
    pixels[:, 3, 10] = 500  # in the masked column
    return pixels


def series(folder: Path, name: str = "run", **options: Any) -> Path:
    return build_series(folder, name, FRAMES, pixels=lit(**options), truth=good_truth(FRAMES), per_file=FRAMES)


def test_a_hit_model_is_judged_on_a_series_with_figures_confusion_and_plots(tmp_path: Path) -> None:
    run, model, figures = series(tmp_path / "runs", wrong=1), hit_model(tmp_path / "model"), tmp_path / "f.json"
    done = cxls("evaluate", run, "--model", model, "--json", figures, "--report", tmp_path / "report")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(figures.read_text())
    recall, false = told["summary"]["recall"], told["summary"]["false hits"]
    assert (recall["value"], false["value"]) == (1.0, 0.25)
    assert recall["low"] < recall["value"]
    assert false["low"] < false["value"] < false["high"]
    assert told["tables"][0]["rows"] == [
        {"truth": "no", "said no": 3, "said yes": 1},
        {"truth": "yes", "said no": 0, "said yes": 4},
    ]
    plots = {"roc.png", "confusion.png", "reliability.png"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == plots | {"report.md", "report.html"}
    page = (tmp_path / "report/report.md").read_text()
    assert all(f"({name})" in page for name in plots)
    assert (tmp_path / "report/report.html").read_text().count("<img") == len(plots)


def test_conditions_and_sources_are_told_apart_where_the_truth_tells_them(tmp_path: Path) -> None:
    near = series(tmp_path, "near")
    far = build_series(
        tmp_path, "far", FRAMES, pixels=lit(wrong=2), per_file=FRAMES,
        truth=good_truth(FRAMES) | {"camera_length_m": 0.25, "flux_photons": 3e7},
    )  # fmt: skip
    figures = tmp_path / "f.json"
    assert cxls("evaluate", near, far, "--model", hit_model(tmp_path / "m"), "--json", figures).returncode == 0
    tables = {table["title"]: table["rows"] for table in json.loads(figures.read_text())["tables"]}
    assert [row["samples"] for row in tables["By source"]] == [FRAMES, FRAMES]
    rows = {row["condition"]: row["false hits"]["value"] for row in tables["By condition"]}
    assert rows == {"0.15 m, 6.0 keV": 0.0, "0.25 m, 6.0 keV": 0.5}
    assert {row["photons a pulse"] for row in tables["By photons a pulse"]} == {"3e7", "3e8"}


def test_a_tree_is_evaluated_whole_or_in_part_by_classes(tmp_path: Path) -> None:
    build_tree(tmp_path / "tree", datasets=(1, 2), hits=3, empties=1)
    model, figures = linear_model(tmp_path / "model", SHAPE), tmp_path / "f.json"
    done = cxls("evaluate", tmp_path / "tree", "--model", model, "--json", figures)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(figures.read_text())
    assert told["frames"] == 8
    confusion = told["tables"][0]
    assert [sum(row[f"said {value}"] for row in confusion["rows"]) for value in (6000, 7000, 8000)] == [0, 8, 0]
    assert cxls("evaluate", tmp_path / "tree", "--model", model, "--datasets", "2").stdout.count("4 frames of 1 source")


def test_frames_are_cut_and_binned_as_the_card_says(tmp_path: Path) -> None:
    run = series(tmp_path / "runs")
    framed = linear_model(tmp_path / "framed", (5, 6), framing=Framing((10, 12), 2))
    assert cxls("evaluate", run, "--model", framed).returncode == 0
    assert "--size and --bin" in refusal("evaluate", run, "--model", linear_model(tmp_path / "whole", (5, 6)))
    cut = hit_model(tmp_path / "cut", framing=Framing((6, 6)))
    done = cxls("evaluate", run, "--model", cut, "--json", tmp_path / "f.json")
    assert "the middle 6 x 6 pixels" in done.stdout
    assert json.loads((tmp_path / "f.json").read_text())["summary"]["recall"]["value"] == 0.0, "the spots are cut off"


def test_a_regression_has_an_error_in_its_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from analyzer import attributes
    from tests.training.loop.builders import value_target

    def decide(outputs: Tensor) -> attributes.Decided:
        return attributes.Decided(outputs.double().numpy(), None)

    flux = attributes.Attribute(
        name="light", field="bragg_photons", unit="photons", network="brightest", target=value_target, decide=decide,
        recipe=attributes.Recipe(loss="mse", optimiser="adam", learning_rate=1e-3, epochs=1, batch=3),
    )  # fmt: skip
    monkeypatch.setitem(attributes.OWN, "light", flux)
    model = hit_model(tmp_path / "m", level=0.0, attribute="light")
    figures = tmp_path / "f.json"
    done = cxls("evaluate", series(tmp_path / "r"), "--model", model, "--json", figures, "--report", tmp_path / "rep")
    assert done.returncode == 0, done.stderr
    error = json.loads(figures.read_text())["summary"]["mean absolute error"]
    assert error["note"] == "photons"
    assert error["low"] < error["value"] < error["high"]
    assert (tmp_path / "rep/values.png").exists()


def test_a_map_has_recall_and_precision_of_its_peaks(tmp_path: Path) -> None:
    settings: dict[str, Any] = {}
    network = architectures.build("paper-heatmap-cnn-repaired", settings)
    card = SingleModelCard(network="paper-heatmap-cnn-repaired", attribute="peaks", framing=Framing((16, 16)))
    save_model(network, card, tmp_path / "m")
    done = cxls("evaluate", series(tmp_path / "r"), "--model", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert "precision" in done.stdout


def test_what_cannot_be_evaluated_is_refused_in_one_line(tmp_path: Path) -> None:
    run, model = series(tmp_path / "runs"), hit_model(tmp_path / "model")
    blank = build_series(tmp_path / "blank", truth={})
    assert "attribute 'peak' needs 'hit'" in refusal("evaluate", blank, "--model", model)
    odd = build_series(tmp_path / "odd", truth=good_truth() | {"photon_energy_eV": 6500.0})
    assert "6500 is none of the classes" in refusal("evaluate", odd, "--model", linear_model(tmp_path / "l", SHAPE))
    colour = hit_model(tmp_path / "colour", attribute="colour")
    assert "attribute 'colour' is not known" in refusal("evaluate", run, "--model", colour)
    other = hit_model(tmp_path / "other", attribute="energy", values=[6000.0, 9000.0])
    assert "classes 6000, 9000 of 'energy'" in refusal("evaluate", run, "--model", other)
    said = refusal("evaluate", run, "--model", hit_model(tmp_path / "energy", attribute="energy"))
    assert "network 'brightest' for 'energy'" in said
    broken = hit_model(tmp_path / "nan", level=float("nan"))
    assert "no number; its weights are damaged" in refusal("evaluate", run, "--model", broken)
    assert "model.json" in refusal("evaluate", run, "--model", tmp_path / "none")
    assert "--ideal: of a bundle" in refusal("evaluate", run, "--model", model, "--ideal")
    assert "--datasets: for a single model" in refusal("evaluate", run, "--datasets", "1")
    assert "no such file" in refusal("evaluate", tmp_path / "gone", "--model", model)
    clean = hit_model(tmp_path / "clean", view="clean_image")
    spotless = {name: values for name, values in good_truth().items() if not name.startswith("spot_")}
    unlit = build_series(tmp_path / "unlit", truth=spotless)
    assert "network 'brightest' needs 'clean_image'" in refusal("evaluate", unlit, "--model", clean)
