"""What the paper's networks do with a frame, of any size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from analyzer.architectures import architecture, build, names
from analyzer.bundle import BadBundle
from analyzer.layers import input_shape, sized
from training.published.heatmap import ChannelAttention, HeatmapCNN, SpatialAttention
from training.published.metadata import MetadataCNN
from training.published.resnet import ResNet50, ResNet50Trunk, load_trunk

SHAPE = (80, 72)
OUTPUT: dict[str, tuple[int, ...]] = {
    "paper-linear": (3,),
    "paper-dncnn": SHAPE,
    "paper-heatmap-cnn": SHAPE,
    "paper-heatmap-cnn-repaired": SHAPE,
}


def inputs(name: str, shape: tuple[int, int], batch: int = 2) -> list[Tensor]:
    found = architecture(name)
    return [torch.rand(batch, *input_shape(found, each, shape)) for each in found.inputs]


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("paper-")])
def test_a_network_takes_frames_of_another_size_and_can_learn_from_them(name: str) -> None:
    torch.manual_seed(0)
    few = {"layers": 5} if name == "paper-dncnn" else {}
    network = build(name, sized(architecture(name), SHAPE) | few)
    logits = network(*inputs(name, SHAPE))
    assert tuple(logits.shape) == (2, *OUTPUT.get(name, ()))
    logits.square().sum().backward()
    for parameter, values in network.named_parameters():
        assert values.grad is not None, f"{parameter} takes no part"
        assert torch.isfinite(values.grad).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"shape": (5, 5)},
        {"shape": (80,)},
        {"shape": 80},
        {"shape": "80"},
        {"shape": (80.0, 72.0)},
        {"shape": (True, 80)},
        {"shape": (1 << 40, 80)},
        {"shape": (-80, 72)},
    ],
)
def test_a_frame_size_without_sense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"shape|small"):
        build("paper-binary-cnn", settings)


def test_a_size_from_a_card_is_a_list_and_serves_as_well() -> None:
    assert build("paper-linear", {"shape": [4, 5], "classes": 2})(torch.zeros(3, 1, 4, 5)).shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("paper-base-cnn", {"variant": "large"}),
        ("paper-dncnn", {"layers": 1_000_000_000}),
        ("paper-dncnn", {"features": 1 << 40}),
        ("paper-heatmap-cnn", {"dropout_after": "lunch"}),
        ("paper-heatmap-cnn", {"dropout": 7}),
    ],
)
def test_a_setting_without_sense_is_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        build(name, settings)


# --- attention --------------------------------------------------------------------------


def attention(as_published: bool) -> SpatialAttention:
    """Spatial attention that looks at nothing but the place itself: the middle of its kernel."""
    made = SpatialAttention(2, as_published)
    with torch.no_grad():
        made.convolution.weight.zero_()
        made.convolution.weight[:, 0, 3, 3] = 1.0
    return made


def test_published_attention_drops_the_features_and_moves_a_peak_by_3_cells() -> None:
    features = torch.zeros(1, 2, 30, 26)
    features[0, 0, 12, 10] = 5.0
    seen = attention(True)(features)
    assert seen.shape == (1, 2, 24, 20)
    assert torch.allclose(seen[0, 0, 9, 7], torch.sigmoid(torch.tensor(5.0)) ** 2)
    assert torch.equal(seen[0, 0], seen[0, 1]), "which channel it was in is lost"
    assert torch.allclose(seen[0, 0, 0, 0], torch.tensor(0.25)), "no features, and yet something is there"


def test_repaired_attention_multiplies_the_features_where_they_are() -> None:
    features = torch.zeros(1, 2, 30, 26)
    features[0, 0, 12, 10] = 5.0
    seen = attention(False)(features)
    assert seen.shape == features.shape
    assert torch.allclose(seen[0, 0, 12, 10], 5.0 * torch.sigmoid(torch.tensor(5.0)))
    assert int(torch.count_nonzero(seen)) == 1


def test_both_attentions_have_weights_of_the_same_shapes() -> None:
    shapes = [{k: v.shape for k, v in HeatmapCNN(as_published=each).state_dict().items()} for each in (True, False)]
    assert shapes[0] == shapes[1]


def test_channel_attention_multiplies_by_the_sum_of_two_sigmoids() -> None:
    torch.manual_seed(1)
    layer = ChannelAttention(32)
    features = torch.rand(2, 32, 5, 4)
    expected = layer.mean(features.mean((2, 3))) + layer.maximum(features.flatten(2).max(2).values)
    assert torch.allclose(layer(features) / features, expected[:, :, None, None].expand_as(features))
    assert [module.weight.shape for module in layer.mean if isinstance(module, nn.Linear)] == [(2, 32), (32, 2)]
    with torch.no_grad():
        for each in layer.parameters():
            each.zero_()
    assert torch.equal(layer(features), features), "half and half"


@pytest.mark.parametrize("place", ["upsampling", "second-convolution"])
def test_dropout_acts_where_it_is_documented_and_only_in_training(place: Any) -> None:
    torch.manual_seed(2)
    network = HeatmapCNN(dropout=0.9, dropout_after=place)
    image = torch.rand(1, 1, *SHAPE)
    dropped = float((network(image) == 0).float().mean())
    assert (dropped > 0.85) == (place == "upsampling")
    network.eval()
    assert torch.equal(network(image), network(image))


# --- metadata ---------------------------------------------------------------------------


def only_metadata(scaled: bool) -> MetadataCNN:
    network = MetadataCNN(SHAPE, hidden=4, scaled=scaled)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.weight[0, -2:] = torch.tensor([100.0, 1.0])
    return network


def test_metadata_enter_raw_as_published_and_of_order_one_when_scaled() -> None:
    images, energy, length = torch.rand(2, 1, *SHAPE), torch.tensor([6000.0, 8000.0]), torch.tensor([0.15, 0.25])
    assert only_metadata(False)(images, energy, length).tolist() == pytest.approx([6015.0, 8025.0])
    assert only_metadata(True)(images, energy, length).tolist() == pytest.approx([-101.0, 1.0], abs=1e-4)


# --- ResNet-50 --------------------------------------------------------------------------


def test_the_trunk_has_the_usual_names() -> None:
    with torch.device("meta"):
        state = ResNet50Trunk().state_dict()
    assert len(state) == 318, "those of the usual implementation without its two of the classes"
    for name, shape in {
        "conv1.weight": (64, 1, 7, 7),
        "layer1.0.downsample.1.running_var": (256,),
        "layer2.3.conv2.weight": (128, 128, 3, 3),
        "layer3.5.bn1.num_batches_tracked": (),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
    }.items():
        assert state[name].shape == shape


def test_ready_weights_are_taken_from_a_local_file_all_but_the_first_layer_and_the_classes(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = ResNet50Trunk().state_dict()
    ready = {name: torch.full(each.shape, 0.5) for name, each in empty.items() if "tracked" not in name}
    ready |= {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.ones(9)}
    save_file(ready, tmp_path / "imagenet.safetensors")
    trunk = ResNet50(weights=str(tmp_path / "imagenet.safetensors")).trunk.state_dict()
    taken = [name for name in trunk if name in ready and name != "conv1.weight"]
    assert len(taken) == 318 - 53 - 1
    assert all(bool((trunk[name] == 0.5).all()) for name in taken)
    assert trunk["conv1.weight"].shape == (64, 1, 7, 7)
    assert float(trunk["conv1.weight"].std()) > 0, "drawn afresh"


def test_weights_that_are_no_resnet_50_are_refused_by_name(tmp_path: Path) -> None:
    with torch.device("meta"):
        trunk = ResNet50Trunk()

    def refusal(path: Path) -> str:
        with pytest.raises(BadBundle) as refused:
            load_trunk(trunk, path)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    save_file({"weight": torch.zeros(3)}, tmp_path / "a")
    assert "no bn1.bias" in refusal(tmp_path / "a")
    save_file({"bn1.bias": torch.zeros(3)}, tmp_path / "b")
    assert "bn1.bias is (3,), a ResNet-50's is (64,)" in refusal(tmp_path / "b")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "c.pt")
    assert "pickle" in refusal(tmp_path / "c.pt")
    (tmp_path / "d").write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all}")
    assert "not a safetensors" in refusal(tmp_path / "d")
    assert "No such file" in refusal(tmp_path / "none")
