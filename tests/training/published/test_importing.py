"""Weights of other programs come in as tensors, whatever their names; everything else is refused in one line."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from analyzer.architectures import architecture, build, names
from analyzer.bundle import BadBundle
from analyzer.layers import input_shape, sized
from analyzer.single_model import SingleModelCard, load_model
from training.published.importing import arrange, import_model, read_state

SHAPE = (80, 72)
FEW: dict[str, dict[str, Any]] = {"paper-dncnn": {"layers": 4, "features": 5}, "paper-metadata-cnn": {"hidden": 3}}
PAPER = [name for name in names() if name.startswith("paper-") and name != "paper-resnet50"]


def settings_of(name: str) -> dict[str, Any]:
    return sized(architecture(name), SHAPE) | FEW.get(name, {})


def card(name: str = "paper-linear", **changes: Any) -> SingleModelCard:
    return SingleModelCard(network=name, settings=settings_of(name) | changes, attribute="peak")


def state(seed: int = 4) -> dict[str, Tensor]:
    """Of the linear network."""
    torch.manual_seed(seed)
    return {"fc.weight": torch.rand(3, SHAPE[0] * SHAPE[1]), "fc.bias": torch.rand(3)}


def under_other_names(network: nn.Module) -> dict[str, Tensor]:
    """A state dict as another program has it: layers numbered as they are declared, none named as ours."""
    numbers: dict[str, int] = {}
    renamed = {}
    for name, tensor in network.state_dict().items():
        layer, _, parameter = name.rpartition(".")
        renamed[f"theirs{numbers.setdefault(layer, len(numbers))}.{parameter}"] = tensor
    return renamed


def refusal(path: Path, wanted: SingleModelCard | None = None) -> str:
    with pytest.raises(BadBundle) as refused:
        import_model(path, wanted or card(), path.parent / "out")
    text = str(refused.value)
    assert "\n" not in text
    assert str(path) in text, "a refusal names the file"
    assert not (path.parent / "out").exists(), "nothing is written"
    return text


@pytest.mark.parametrize("name", PAPER)
def test_weights_under_other_names_give_the_same_outputs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    original = build(name, settings_of(name)).eval()
    torch.save(under_other_names(original), tmp_path / "theirs.pt")
    import_model(tmp_path / "theirs.pt", card(name), tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    found = architecture(name)
    inputs = [torch.rand(1, *input_shape(found, each, SHAPE)) for each in found.inputs]
    # Sums may run in another order where the weights lie otherwise in memory.
    torch.testing.assert_close(loaded.network(*inputs), original(*inputs), rtol=1e-5, atol=1e-6)
    assert loaded.card.training["imported"]["file"] == "theirs.pt"
    assert "theirs.pt" in loaded.card.origin
    assert not loaded.network.training


def test_our_own_names_are_followed_whatever_their_order_and_a_parallel_wrapper_is_taken_off(tmp_path: Path) -> None:
    torch.manual_seed(6)
    original = build("paper-dncnn", settings_of("paper-dncnn")).eval()
    reversed_order = {f"module.{name}": each for name, each in reversed(original.state_dict().items())}
    torch.save(reversed_order, tmp_path / "a.pt")
    import_model(tmp_path / "a.pt", card("paper-dncnn"), tmp_path / "model")
    image = torch.rand(1, 1, 9, 9)
    assert torch.equal(load_model(tmp_path / "model").network(image), original(image))


def test_safetensors_and_single_precision_from_halves_are_taken(tmp_path: Path) -> None:
    save_file({name: each.half() for name, each in state().items()}, tmp_path / "a.safetensors")
    import_model(tmp_path / "a.safetensors", card(), tmp_path / "model")
    weights = load_model(tmp_path / "model").network.state_dict()["layers.1.weight"]
    assert weights.dtype == torch.float32
    assert torch.equal(weights, state()["fc.weight"].half().float())


def test_a_counter_of_batches_may_be_absent_as_in_old_files(tmp_path: Path) -> None:
    original = build("paper-heatmap-cnn", {})
    old = {k: v for k, v in under_other_names(original).items() if "num_batches" not in k}
    torch.save(old, tmp_path / "old.pt")
    import_model(tmp_path / "old.pt", card("paper-heatmap-cnn"), tmp_path / "model")
    assert int(load_model(tmp_path / "model").network.state_dict()["first.1.num_batches_tracked"]) == 0


def test_a_linear_layer_is_a_1_by_1_convolution() -> None:
    wanted = {"a.weight": torch.zeros(2, 32)}
    assert arrange({"b.weight": torch.ones(2, 32, 1, 1)}, wanted)["a.weight"].shape == (2, 32)


def test_a_card_of_the_import_keeps_what_it_was_given(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pt")
    given = SingleModelCard(
        network="paper-linear",
        settings=settings_of("paper-linear"),
        attribute="energy",
        values=[6e3, 7e3, 8e3],
        unit="eV",
    )
    import_model(tmp_path / "a.pt", given, tmp_path / "model")
    loaded = load_model(tmp_path / "model").card
    assert (loaded.attribute, loaded.values, loaded.unit) == ("energy", [6e3, 7e3, 8e3], "eV")
    assert loaded.settings == {"shape": list(SHAPE)}


# --- refused ----------------------------------------------------------------------------


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_code_is_refused_and_never_run(tmp_path: Path) -> None:
    torch.save({**state(), "extra": Trap(tmp_path / "sprung")}, tmp_path / "a.pt")
    assert "mkdir, which is code" in refusal(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert "torch.save" in refusal(tmp_path / "b.pt")
    assert not (tmp_path / "sprung").exists()


def test_a_whole_network_is_refused_and_told_from_a_state_dict(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2), tmp_path / "whole.pt")
    text = refusal(tmp_path / "whole.pt")
    assert "Linear" in text
    assert "state_dict()" in text


def test_a_program_of_torchscript_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in ("a/data.pkl", "a/constants.pkl", "a/code/__torch__.py"):
            archive.writestr(name, b"x")
    assert "TorchScript" in refusal(tmp_path / "a.pt")


def test_a_checkpoint_is_refused_and_its_first_strange_entry_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": state()}, tmp_path / "a.pt")
    assert "'epoch' is a int" in refusal(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "b.pt")
    assert "holds a list" in refusal(tmp_path / "b.pt")
    torch.save({}, tmp_path / "c.pt")
    assert "empty" in refusal(tmp_path / "c.pt")
    torch.save({3: torch.zeros(1)}, tmp_path / "d.pt")
    assert "'3'" in refusal(tmp_path / "d.pt")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "whole.pt")
    whole, path = (tmp_path / "whole.pt").read_bytes(), tmp_path / "cut.pt"
    for length in [0, 1, 4, 9, 100, *range(1000, len(whole), len(whole) // 20), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "torch.save" in refusal(path)


def test_a_changed_byte_never_gets_past_as_anything_but_a_number(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "whole.pt")
    whole, path = (tmp_path / "whole.pt").read_bytes(), tmp_path / "a.pt"
    for place in [*range(0, 600, 7), *range(len(whole) - 600, len(whole), 7)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = read_state(path)
        except BadBundle:
            continue
        assert all(isinstance(each, Tensor) for each in found.values())


@pytest.mark.parametrize("content", [b"", b"weights", b"\x80\x04.", b"PK\x05\x06" + b"\0" * 18, b"\0" * 4096])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    assert "torch.save" in refusal(tmp_path / "a.pt")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.pt")
    (tmp_path / "folder.pt").mkdir()
    assert "directory" in refusal(tmp_path / "folder.pt")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as plain,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as b,
    ):
        for entry in plain.infolist():
            b.writestr(entry.filename, plain.read(entry))
    assert "compressed" in refusal(tmp_path / "b.pt")


def test_the_first_layer_without_a_counterpart_is_named(tmp_path: Path) -> None:
    torch.save({**state(), "more.weight": torch.zeros(2, 7)}, tmp_path / "a.pt")
    assert "more (weight 2x7)" in refusal(tmp_path / "a.pt")
    torch.save({"fc.weight": state()["fc.weight"]}, tmp_path / "b.pt")
    assert "no layer like layers.1 (weight 3x5760, bias 3)" in refusal(tmp_path / "b.pt")
    torch.save({"fc.weight": torch.zeros(3, 5761), "fc.bias": torch.zeros(3)}, tmp_path / "c.pt")
    assert "fc (weight 3x5761, bias 3)" in refusal(tmp_path / "c.pt")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    original = build("paper-base-cnn", settings_of("paper-base-cnn"))
    torch.save(original.state_dict(), tmp_path / "a.pt")
    assert "does not fit network 'paper-binary-cnn'" in refusal(tmp_path / "a.pt", card("paper-binary-cnn"))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (torch.full((3, 5760), torch.nan), "not finite"),
        (torch.full((3, 5760), 1e300, dtype=torch.float64), "not finite"),
        (torch.zeros(3, 5760, dtype=torch.int64), "int64"),
        (torch.zeros(3, 5760, dtype=torch.complex64), "real numbers"),
        (torch.zeros(3, 5760).to_sparse(), "plain tensor"),
        (torch.zeros(3, 5760, device="meta"), "plain tensor"),
        (torch.zeros(1).expand(1 << 40, 1 << 20), "no layer like"),
    ],
)
def test_a_tensor_that_cannot_be_a_weight_is_refused(weights: Tensor, said: str, tmp_path: Path) -> None:
    torch.save({"fc.weight": weights, "fc.bias": torch.zeros(3)}, tmp_path / "a.pt")
    assert said in refusal(tmp_path / "a.pt")


def test_two_names_for_the_same_memory_are_two_weights_afterwards(tmp_path: Path) -> None:
    once = torch.rand(5, 5, 3, 3)
    torch.save({"a.weight": once, "b.weight": once}, tmp_path / "a.pt")
    wanted = {"x.weight": torch.zeros(5, 5, 3, 3), "y.weight": torch.zeros(5, 5, 3, 3)}
    first, second = arrange(read_state(tmp_path / "a.pt"), wanted).values()
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()
