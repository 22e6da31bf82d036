"""Model bundles: what is written is read back, and whatever does not match is refused in one line."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from analyzer.bundle import BadBundle, load_bundle, save_weights
from analyzer.networks import HitNetwork
from tests.analyzer.builders import write_bundle


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))


def refusal(folder: Path) -> str:
    with pytest.raises(BadBundle) as refused:
        load_bundle(folder)
    text = str(refused.value)
    assert "\n" not in text
    assert str(folder) in text, "a refusal names the place"
    return text


def change(folder: Path, model: str | None = None, **fields: Any) -> None:
    path = folder / "bundle.json"
    card = json.loads(path.read_text())
    (card if model is None else card[model]).update(fields)
    path.write_text(json.dumps(card))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", seed=5, threshold=0.3, temperature=2.0, sigma_scale=(1.0, 2.0, 3.0))
    torch.manual_seed(5)
    original = HitNetwork()
    loaded = load_bundle(folder)
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.hit.state_dict()[name], tensor)
    assert loaded.card.hit.threshold == 0.3
    assert loaded.card.hit.temperature == 2.0
    assert loaded.card.parameters.sigma_scale == (1.0, 2.0, 3.0)
    assert not loaded.hit.training
    assert not any(parameter.requires_grad for parameter in loaded.hit.parameters())


def test_the_label_is_the_name_and_the_hash_of_the_card(bundle_folder: Path, folder: Path) -> None:
    label = load_bundle(bundle_folder).label
    assert label == load_bundle(folder).label
    assert label.startswith("random-")
    change(folder, "hit", threshold=0.9)
    assert load_bundle(folder).label != label


def test_saving_the_same_weights_twice_gives_the_same_hash(tmp_path: Path) -> None:
    network = HitNetwork()
    assert save_weights(network, tmp_path / "a.safetensors") == save_weights(network, tmp_path / "b.safetensors")


def test_a_wrong_hash_is_refused(folder: Path) -> None:
    weights = folder / "hit.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert "SHA-256" in refusal(folder)


@pytest.mark.parametrize("name", ["bundle.json", "hit.safetensors", "parameters.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "bundle.json" in refusal(tmp_path / "none")


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "bundle.json" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"format": "one"}', b"\xff\xfe", b"[" * 100_000, b'{"format": 1}']
)
def test_a_card_that_is_no_card_is_refused(folder: Path, content: bytes) -> None:
    (folder / "bundle.json").write_bytes(content)
    assert "bundle.json" in refusal(folder)


def test_a_format_of_the_future_is_refused(folder: Path) -> None:
    change(folder, format=2)
    assert "format 2" in refusal(folder)


def test_an_unknown_network_is_refused_and_the_known_ones_are_named(folder: Path) -> None:
    change(folder, "hit", network="resnet-9000")
    text = refusal(folder)
    assert "resnet-9000" in text
    assert "hit-zones-and-cells" in text


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    change(folder, "hit", network="parameters-radial-profile")
    assert "do not fit" in refusal(folder)


@pytest.mark.parametrize("settings", [{"channels": 4}, {"colour": "red"}, {"channels": "many"}, {"channels": -1}])
def test_settings_that_do_not_fit_are_refused(folder: Path, settings: dict[str, Any]) -> None:
    change(folder, "hit", settings=settings)
    assert "do not fit" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["../hit.safetensors", "/etc/passwd", "sub/hit.safetensors", "..", "", "hit.pt", "hit.safetensors/."]
)
def test_weights_outside_the_folder_are_refused(folder: Path, name: str) -> None:
    change(folder, "hit", weights=name)
    assert ".safetensors" in refusal(folder)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_is_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    trap, path = pickle.dumps(Trap(tmp_path / "sprung")), folder / "hit.safetensors"
    path.write_bytes(trap)
    change(folder, "hit", sha256=hashlib.sha256(trap).hexdigest())
    assert "do not fit" in refusal(folder)
    assert not (tmp_path / "sprung").exists()


def test_truncated_weights_with_a_matching_hash_are_refused(folder: Path) -> None:
    path = folder / "hit.safetensors"
    raw = path.read_bytes()[:100]
    path.write_bytes(raw)
    change(folder, "hit", sha256=hashlib.sha256(raw).hexdigest())
    assert "do not fit" in refusal(folder)


@pytest.mark.parametrize("name", ["bundle.json", "hit.safetensors"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name}: not a regular file" in refusal(folder)


def test_a_card_that_is_no_card_by_its_size_is_refused_unread(folder: Path) -> None:
    with (folder / "bundle.json").open("r+b") as file:
        file.truncate(1 << 30)
    assert "1073741824 bytes" in refusal(folder)
