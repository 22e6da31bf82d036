"""Model bundles: what is written is read back, and whatever does not match is refused in one line."""

import hashlib
import json
import os
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from analyzer import architectures
from analyzer.architectures import Architecture
from analyzer.bundle import DEFAULT_BUNDLE, BadBundle, load_bundle, save_weights
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


def put_weights(folder: Path, raw: bytes) -> None:
    """Other weights of the hit network, with the card's hash made right."""
    (folder / "hit.safetensors").write_bytes(raw)
    change(folder, "hit", sha256=hashlib.sha256(raw).hexdigest())


def test_weights_of_another_architecture_are_refused_by_the_first_tensor_that_is_missing(folder: Path) -> None:
    change(folder, "hit", network="parameters-radial-profile")
    assert "hit.safetensors: the weights do not fit network 'parameters-radial-profile': there is no center (2,)" in (
        refusal(folder)
    )


def test_weights_of_another_shape_precision_or_with_more_are_refused_by_their_tensor(folder: Path) -> None:
    state = HitNetwork().state_dict()
    channels = len(state["zone_layers.0.weight"])
    put_weights(folder, save(HitNetwork(channels=4).state_dict()))
    text = refusal(folder)
    assert "zone_layers.0.weight is (4, " in text
    assert f"the network's is ({channels}, " in text
    put_weights(folder, save({name: tensor.half() for name, tensor in state.items()}))
    assert "zone_layers.0.weight is of torch.float16, the network's of torch.float32" in refusal(folder)
    put_weights(folder, save({**state, "tail.weight": torch.zeros(1)}))
    assert "the network has no tail.weight" in refusal(folder)
    put_weights(folder, save({}))
    assert f"there is no zone_layers.0.weight ({channels}, " in refusal(folder)


def test_settings_of_another_network_are_refused_by_the_tensor_that_does_not_fit(folder: Path) -> None:
    change(folder, "hit", settings={"channels": 4})
    assert "zone_layers.0.weight" in refusal(folder)


@pytest.mark.parametrize(
    "settings",
    [{"colour": "red"}, {"channels": "many"}, {"channels": -1}, {"channels": 1 << 62}, {"channels": 1 << 90}],
)
def test_settings_that_the_network_does_not_take_are_refused(folder: Path, settings: dict[str, Any]) -> None:
    change(folder, "hit", settings=settings)
    assert "bundle.json: network 'hit-zones-and-cells' cannot be built" in refusal(folder)


@pytest.mark.parametrize(
    "error", [ValueError("variant big is none of small\nand more"), ImportError("No module named 'x'"), KeyError("x")]
)
def test_whatever_a_constructor_raises_is_one_line_with_its_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def build() -> HitNetwork:
        raise error

    monkeypatch.setitem(architectures.OWN, "picky", Architecture(build=build, inputs=("image",)))
    change(folder, "hit", network="picky")
    assert f"bundle.json: network 'picky' cannot be built: {str(error).splitlines()[0]}" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../hit.safetensors",
        "/etc/passwd",
        "sub/hit.safetensors",
        "..",
        "",
        "hit.pt",
        "hit.safetensors/.",
        "hit\0.safetensors",
    ],
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


def test_a_pickle_is_refused_as_one_and_never_run(folder: Path, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    torch.save({"extra": trap}, tmp_path / "a.pt")
    torch.save({"extra": trap}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for raw in (pickle.dumps(trap), (tmp_path / "a.pt").read_bytes(), (tmp_path / "old.pt").read_bytes()):
        put_weights(folder, raw)
        text = refusal(folder)
        assert "hit.safetensors: a pickle" in text
        assert "only safetensors are read" in text
    assert not (tmp_path / "sprung").exists()


def test_truncated_weights_with_a_matching_hash_are_refused(folder: Path) -> None:
    raw = (folder / "hit.safetensors").read_bytes()
    for length in (0, 5, 8, 9, 100, len(raw) - 1):
        put_weights(folder, raw[:length])
        assert "hit.safetensors: not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("name", ["bundle.json", "hit.safetensors"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name}: not a regular file" in refusal(folder)


def test_a_card_that_is_no_card_by_its_size_is_refused_unread(folder: Path) -> None:
    with (folder / "bundle.json").open("r+b") as file:
        file.truncate(1 << 30)
    assert "1073741824 bytes" in refusal(folder)


# --- tables of what scatters -------------------------------------------------------------


@pytest.fixture
def scattering_folder(folder: Path) -> Path:
    """A bundle with the tables of the default one."""
    card = json.loads((DEFAULT_BUNDLE / "bundle.json").read_text())["scattering"]
    shutil.copy(DEFAULT_BUNDLE / card["weights"], folder / "scattering.safetensors")
    change(folder, scattering=card | {"weights": "scattering.safetensors"})
    return folder


def put_tables(folder: Path, raw: bytes) -> None:
    """Other tables, with the card's hash made right."""
    (folder / "scattering.safetensors").write_bytes(raw)
    change(folder, "scattering", sha256=hashlib.sha256(raw).hexdigest())


def test_a_bundle_has_the_tables_of_what_scatters_or_has_none(bundle_folder: Path, scattering_folder: Path) -> None:
    assert load_bundle(bundle_folder).scattering is None
    assert load_bundle(bundle_folder).card.scattering is None
    loaded = load_bundle(scattering_folder)
    assert loaded.scattering is not None
    assert loaded.scattering.tables[0, 0] == 1.0
    assert loaded.label != load_bundle(bundle_folder).label


def test_tables_that_are_missing_or_others_are_refused(scattering_folder: Path) -> None:
    path = scattering_folder / "scattering.safetensors"
    raw = bytearray(path.read_bytes())
    path.unlink()
    assert "scattering.safetensors: No such file" in refusal(scattering_folder)
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert "scattering.safetensors: SHA-256" in refusal(scattering_folder)


@pytest.mark.parametrize("name", ["../scattering.safetensors", "scattering.npz", "", "a/b.safetensors"])
def test_tables_outside_the_folder_or_of_another_format_are_refused(scattering_folder: Path, name: str) -> None:
    change(scattering_folder, "scattering", weights=name)
    assert "must be a .safetensors file in the bundle's folder" in refusal(scattering_folder)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (pickle.dumps({"water": [1.0]}), "a pickle, which can execute code"),
        (b"", "not a safetensors file"),
        (b"\xff" * 40, "not a safetensors file"),
        (save({}), "scattering tables lack water"),
        (save({"water": torch.ones(9)}), "scattering tables lack water_warmed"),
    ],
)
def test_what_holds_no_tables_is_refused(scattering_folder: Path, raw: bytes, said: str) -> None:
    put_tables(scattering_folder, raw)
    text = refusal(scattering_folder)
    assert "scattering.safetensors" in text
    assert said in text


def test_tables_with_what_is_no_number_are_refused(scattering_folder: Path) -> None:
    tensors = load_file(DEFAULT_BUNDLE / "scattering.safetensors")
    tensors["air"][7] = float("nan")
    put_tables(scattering_folder, save(tensors))
    assert "scattering.safetensors: scattering tables hold what is no number" in refusal(scattering_folder)


# --- a folder from somebody ---------------------------------------------------------------


def test_a_card_that_states_a_network_without_end_is_refused_at_once(folder: Path) -> None:
    change(folder, "parameters", settings={"blocks": 10**9})
    began = time.monotonic()
    assert "blocks 1000000000 is not from 0 to" in refusal(folder)
    assert time.monotonic() - began < 10


def test_a_card_nested_beyond_all_depth_is_refused(folder: Path) -> None:
    text = (folder / "bundle.json").read_text()
    deep = '"training": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}, "
    (folder / "bundle.json").write_text(text.replace('"network"', deep + '"network"', 1))
    assert "not a bundle card" in refusal(folder)


@pytest.mark.parametrize("length", [1 << 62, (1 << 64) - 1, 200 << 20, 0])
def test_weights_whose_header_lies_of_its_length_are_refused(folder: Path, length: int) -> None:
    data = length.to_bytes(8, "little") + b"{" + b" " * 100
    (folder / "hit.safetensors").write_bytes(data)
    change(folder, "hit", sha256=hashlib.sha256(data).hexdigest())
    assert "not a safetensors file" in refusal(folder)


def test_tensors_that_claim_more_than_the_file_has_are_refused_before_memory_is_set_aside(folder: Path) -> None:
    facts = {"head.weight": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}
    header = json.dumps(facts).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(64)
    (folder / "hit.safetensors").write_bytes(data)
    change(folder, "hit", sha256=hashlib.sha256(data).hexdigest())
    assert "not a safetensors file" in refusal(folder)


def test_a_link_to_a_file_whose_content_the_card_does_not_know_is_refused_unshown(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"somebody's secret")
    (folder / "hit.safetensors").unlink()
    (folder / "hit.safetensors").symlink_to(tmp_path / "secret")
    text = refusal(folder)
    assert "SHA-256" in text
    assert "somebody" not in text
