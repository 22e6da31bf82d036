"""An attribute and a network of another distribution: the worked example of docs/attributes.md, run as it stands."""

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analyzer import architectures, attributes
from analyzer.layers import network_table
from analyzer.single_model import SingleModelCard, load_model, save_model
from tests.cxls.programs import cxls
from tests.training.dataset.builders import build_series

PAGE = Path(__file__).parents[2] / "docs" / "attributes.md"


def block(language: str) -> str:
    """The page's one block of code in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


def install(folder: Path, distribution: str, module: str, code: str, groups: dict[str, dict[str, str]]) -> None:
    """What pip leaves of a distribution of one module."""
    (folder / f"{module}.py").write_text(code)
    information = folder / f"{distribution}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (information / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where distributions are found while the test runs."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def emission(site: Path) -> Path:
    groups = tomllib.loads(block("toml"))["project"]["entry-points"]
    install(site, "beamline_emission", "emission", block("python"), groups)
    importlib.invalidate_caches()
    return site


@pytest.mark.usefixtures("emission")
def test_the_example_is_found_by_name_beside_our_own() -> None:
    assert {"emission-line", "peak", "energy"} <= set(attributes.names())
    assert {"spectrum-line", "paper-linear", "parameters-radial-profile"} <= set(architectures.names())
    line = attributes.attribute("emission-line")
    assert (line.field, line.unit, line.network, line.kind) == ("line_energy_eV", "eV", "spectrum-line", "value")
    assert architectures.architecture(line.network).inputs == ("spectrum",)


@pytest.mark.usefixtures("emission")
def test_the_example_can_be_shown() -> None:
    table = network_table("spectrum-line", {}, (2162, 2068))
    assert table.inputs == [("spectrum", (256,))]
    assert table.parameters == 257 * 64 + 65


def spectra(shots: int, seed: int) -> tuple[torch.Tensor, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Emission lines 8 eV wide on a flat background, Poisson counts, and their energies in eV."""
    rng = np.random.default_rng(seed)
    energy_eV, channels_eV = rng.uniform(6380.0, 6430.0, shots), np.linspace(6300.0, 6500.0, 256)
    light = rng.uniform(5.0, 50.0, (shots, 1))
    line = np.exp(-0.5 * ((channels_eV - energy_eV[:, None]) / 8.0) ** 2)
    return torch.from_numpy(rng.poisson(light * line + 0.5).astype(np.float32)), energy_eV


@pytest.mark.usefixtures("emission")
def test_the_example_learns_by_its_declaration_and_its_model_is_kept(tmp_path: Path) -> None:
    line = attributes.attribute("emission-line")
    torch.manual_seed(0)
    network = architectures.build(line.network, {})
    (counts, truth), (fresh, fresh_truth) = spectra(1024, 1), spectra(256, 2)
    target = line.target(truth)
    optimiser = torch.optim.Adam(network.parameters(), line.recipe.learning_rate)
    for _ in range(line.recipe.epochs):
        for place in torch.randperm(len(target)).split(line.recipe.batch):
            loss = torch.nn.functional.mse_loss(network(counts[place]), target[place])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    error_eV = np.abs(np.asarray(line.decide(network(fresh)).value) - fresh_truth)
    assert np.median(error_eV) < 2.0, "a quarter of the line's width"
    card = SingleModelCard(network=line.network, attribute=line.name, unit=line.unit)
    save_model(network, card, tmp_path / "model")
    assert torch.equal(load_model(tmp_path / "model").network(fresh), network(fresh))


def series_of_spectra(folder: Path, shots: int, **changed: Any) -> Path:
    """A master whose truth holds spectra and the energies of their lines alone."""
    counts, energy_eV = spectra(shots, 1)
    truth = {"spectrum": counts.numpy().astype("u2"), "line_energy_eV": energy_eV} | changed
    pixels = np.zeros((shots, 16, 16), "u2")
    return build_series(folder, pixels=pixels, truth={k: v for k, v in truth.items() if v is not None}, per_file=shots)


@pytest.mark.usefixtures("emission")
def test_the_example_is_trained_by_the_command_from_a_series(tmp_path: Path) -> None:
    master, folder = series_of_spectra(tmp_path / "runs", 1280), tmp_path / "run"
    done = cxls("train", "emission-line", master, "--run-folder", folder, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "epoch 20/20" in done.stdout
    model = load_model(folder / "model")
    assert (model.card.network, model.card.attribute, model.card.unit) == ("spectrum-line", "emission-line", "eV")
    assert model.card.training["samples"] == {"training": 1024, "validation": 256}
    assert model.card.performance["validation"]["mean_absolute_error"] < 3.0
    assert {path.name for path in folder.glob("*.png")} == {"loss.png", "values.png"}
    fresh, fresh_truth = spectra(256, 2)
    said = attributes.attribute("emission-line").decide(model.network(fresh)).value
    assert np.median(np.abs(np.asarray(said) - fresh_truth)) < 2.0
    again = series_of_spectra(tmp_path / "runs", 1280, spectrum=np.ones((1280, 256), "u2"))
    done = cxls("train", "emission-line", again, "--run-folder", folder, "--workers", "1", "--resume")
    assert done.returncode == 2
    assert "training_data" in done.stderr, "a checkpoint is of the spectra it has seen"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"spectrum": None}, "/entry/truth/spectrum is missing; network 'spectrum-line' needs 'spectrum'"),
        ({"line_energy_eV": None}, "/entry/truth/line_energy_eV is missing; attribute 'emission-line' needs"),
        ({"spectrum": np.zeros((7, 256))}, "/entry/truth/spectrum: length 7 for 8 frames; network 'spectrum-line'"),
        ({"spectrum": np.zeros((8, 1 << 18))}, "/entry/truth/spectrum: shape (8, 262144) of float64 is too large for"),
        (
            {"line_energy_eV": np.full(8, b"Fe")},
            "/entry/truth/line_energy_eV: |S2 of shape (8,), no numbers; attribute",
        ),
    ],
)
@pytest.mark.usefixtures("emission")
def test_a_series_without_what_the_example_needs_is_refused_in_one_line(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    master, folder = series_of_spectra(tmp_path / "runs", 8, **changed), tmp_path / "run"
    done = cxls("train", "emission-line", master, "--run-folder", folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{master}:{said}" in done.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('no licence')", "no licence"),
        ("import a_module_that_is_not_there", "a_module_that_is_not_there"),
        ("THING = 3", "is no A"),
        ("", "THING"),
        ("def broken(:", "invalid syntax"),
    ],
)
def test_a_broken_package_is_refused_by_name_and_harms_no_other(site: Path, code: str, said: str) -> None:
    points = {"strange-thing": "strange:THING"}
    install(site, "strange", "strange", code, {"cxls.networks": points, "cxls.attributes": points})
    importlib.invalidate_caches()
    assert "strange-thing" in architectures.names()
    with pytest.raises(TypeError, match=rf"cxls\.networks:strange-thing.*{said}"):
        architectures.architecture("strange-thing")
    with pytest.raises(TypeError, match=rf"cxls\.attributes:strange-thing.*{said}"):
        attributes.attribute("strange-thing")
    assert architectures.architecture("paper-linear").sized
    assert attributes.attribute("peak").field == "hit"


def test_a_package_cannot_take_the_place_of_our_own(site: Path) -> None:
    install(site, "thief", "thief", "THING = 3", {"cxls.networks": {"parameters-radial-profile": "thief:THING"}})
    importlib.invalidate_caches()
    assert architectures.architecture("parameters-radial-profile") is architectures.OWN["parameters-radial-profile"]
