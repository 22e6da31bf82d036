"""Single models: what is written is read back, and whatever does not match is refused in one line."""

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from analyzer import architectures
from analyzer.architectures import Architecture
from analyzer.bundle import BadBundle
from analyzer.framing import Framing
from analyzer.networks import ParameterNetwork
from analyzer.single_model import SingleModelCard, load_card, load_model, save_model


def card(**changes: Any) -> SingleModelCard:
    return SingleModelCard(**{"network": "parameters-radial-profile", "attribute": "energy", **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_model(ParameterNetwork(), card(values=[6e3, 7e3], unit="eV", training={"seed": 1}), tmp_path / "m")
    return tmp_path / "m"


def refusal(folder: Path) -> str:
    with pytest.raises(BadBundle) as refused:
        load_model(folder)
    text = str(refused.value)
    assert "\n" not in text
    assert str(folder) in text, "a refusal names the place"
    return text


def change(folder: Path, **fields: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def put_weights(folder: Path, raw: bytes) -> None:
    """Other weights, with the card's hash made right."""
    (folder / "model.safetensors").write_bytes(raw)
    change(folder, sha256=hashlib.sha256(raw).hexdigest())


def test_what_was_saved_is_loaded(folder: Path) -> None:
    torch.manual_seed(1)
    original, loaded = ParameterNetwork(), load_model(folder)
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor)
    assert (loaded.card.values, loaded.card.unit, loaded.card.training) == ([6e3, 7e3], "eV", {"seed": 1})
    assert not loaded.network.training
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_a_card_of_no_framing_is_of_whole_frames(folder: Path) -> None:
    path = folder / "model.json"
    fields = json.loads(path.read_text())
    assert fields.pop("framing") == {"size": None, "bin": 1}
    path.write_text(json.dumps(fields))
    assert load_card(folder).framing == Framing()


@pytest.mark.parametrize(
    "framing",
    [{"bin": 0}, {"bin": -2}, {"size": [0, 4]}, {"size": [4]}, {"size": [1 << 40, 4]}, {"bin": "two"}, None, 3],
)
def test_a_framing_that_is_none_is_refused(folder: Path, framing: Any) -> None:
    change(folder, framing=framing)
    assert "framing" in refusal(folder)


def test_a_loaded_network_can_be_trained_on_without_changing_the_file(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    network = load_model(folder).network.train().requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters())
    inputs = next(network.parameters()).shape[1]
    network(torch.ones(2, inputs)).sum().backward()
    optimiser.step()
    save_model(network, card(), folder.parent / "further")
    assert (folder / "model.safetensors").read_bytes() == before
    assert load_card(folder.parent / "further").sha256 != load_card(folder).sha256


def test_a_model_takes_the_place_of_its_forerunner(folder: Path) -> None:
    loaded = load_model(folder).network  # its weights are mapped from the file that is replaced
    save_model(loaded, card(origin="again"), folder)
    save_model(ParameterNetwork(), card(origin="another"), folder)
    assert load_model(folder).card.origin == "another"
    torch.manual_seed(1)
    assert torch.equal(next(loaded.parameters()), next(ParameterNetwork().parameters()))


def test_the_card_of_another_network_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for wrong in (card(settings={"hidden": 7}), card(network="none"), card(settings={"colour": 1})):
        with pytest.raises(BadBundle, match=r"model\.json"):
            save_model(ParameterNetwork(), wrong, tmp_path / "m")
        assert not (tmp_path / "m").exists()


def test_a_save_that_fails_leaves_the_model_that_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr("analyzer.single_model.save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        save_model(ParameterNetwork(), card(), folder)
    assert load_model(folder).card.training == {"seed": 1}
    assert len(list(folder.iterdir())) == 2


def test_a_wrong_hash_is_refused(folder: Path) -> None:
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    assert "SHA-256" in refusal(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"format": "one"}', b"\xff\xfe", b"[" * 100_000, b'{"format": 1}']
)
def test_a_card_that_is_no_card_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)
    assert "model.json" in refusal(folder)


def test_a_card_of_any_size_is_not_read(folder: Path) -> None:
    with (folder / "model.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert "16 MiB" in refusal(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"network": "resnet-9000"}, "resnet-9000"),
        ({"settings": {"hidden": 7}}, "do not fit"),
        ({"settings": {"hidden": "many"}}, "cannot be built"),
        ({"settings": {"colour": "red"}}, "cannot be built"),
        ({"network": "paper-linear"}, "layers.1.weight"),
        ({"network": "paper-linear", "settings": {"shape": [65536, 65536], "classes": 1 << 20}}, "do not fit"),
        ({"network": "paper-dncnn", "settings": {"layers": 1 << 60}}, "cannot be built"),
        ({"network": "paper-resnet50", "settings": {"weights": "/dev/zero"}}, "do not fit"),
    ],
)
def test_a_card_of_another_network_is_refused(folder: Path, fields: dict[str, Any], said: str) -> None:
    change(folder, **fields)
    assert said in refusal(folder)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_is_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    put_weights(folder, pickle.dumps(Trap(tmp_path / "sprung")))
    assert "a pickle" in refusal(folder)
    torch.save({"extra": Trap(tmp_path / "sprung")}, tmp_path / "a.pt")
    put_weights(folder, (tmp_path / "a.pt").read_bytes())
    assert "a pickle" in refusal(folder)
    assert not (tmp_path / "sprung").exists()


def test_truncated_weights_are_refused_even_with_a_matching_hash(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    for length in (0, 5, 8, 9, 100, len(raw) - 1):
        put_weights(folder, raw[:length])
        assert "not a safetensors" in refusal(folder)


def test_weights_of_another_precision_are_refused_rather_than_taken_for_ours(folder: Path) -> None:
    state = {name: tensor.half() for name, tensor in ParameterNetwork().state_dict().items()}
    put_weights(folder, save(state))
    assert "torch.float16, the network's of torch.float32" in refusal(folder)


class Unsaved(nn.Module):
    """Has a buffer that is not part of its state, and reads a starting point."""

    def __init__(self, start: str | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("scale", torch.tensor([2.0, 3.0]), persistent=False)
        if start is not None:
            raise AssertionError("only a fresh network starts from somewhere")


def test_what_a_network_does_not_save_is_built_anew_and_its_starting_point_is_only_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(
        architectures.OWN, "unsaved", Architecture(build=Unsaved, inputs=("image",), start_only=("start",))
    )
    save_model(Unsaved(), card(network="unsaved", settings={"start": "/a/file"}), tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.network.scale.tolist() == [2.0, 3.0]
    assert loaded.card.settings == {}
    assert loaded.card.training["start"] == {"start": "/a/file"}
