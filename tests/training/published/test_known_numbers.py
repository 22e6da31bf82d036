"""The paper's networks have the sizes that its layer tables give."""

import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from analyzer.architectures import architecture, names
from analyzer.layers import LayerTable, input_shape, network_table, sized
from analyzer.weights import meta_network
from training.published.sizes import PAPER_SHAPE

PAPER = [name for name in names() if name.startswith("paper-")]


def table(name: str, **settings: object) -> LayerTable:
    return network_table(name, settings, PAPER_SHAPE)


def outputs(table: LayerTable, kind: str) -> list[tuple[int, ...]]:
    return [layer.output[1:] for layer in table.layers if layer.kind == kind]


def test_every_network_of_the_paper_is_registered() -> None:
    assert PAPER == [
        "paper-base-cnn",
        "paper-binary-cnn",
        "paper-comparison-cnn",
        "paper-dncnn",
        "paper-dual-input",
        "paper-heatmap-cnn",
        "paper-heatmap-cnn-repaired",
        "paper-linear",
        "paper-metadata-cnn",
        "paper-resnet50",
    ]
    assert all(architecture(name).source for name in PAPER)


def test_the_binary_network_has_17_784_713_parameters_and_4_84_thousand_million_multiply_adds_in_convolutions() -> None:
    binary = table("paper-binary-cnn")
    assert binary.parameters == 17_784_713
    assert outputs(binary, "Conv2d") == [(8, 2156, 2062), (16, 1078, 1031)]
    convolutions = [layer.multiply_adds / 1e9 for layer in binary.layers if layer.kind == "Conv2d"]
    assert [round(each, 2) for each in convolutions] == [3.56, 1.28]
    assert round(sum(convolutions), 2) == 4.84
    assert binary.multiply_adds == sum(layer.multiply_adds for layer in binary.layers)


def test_the_linear_network_has_a_weight_for_each_pixel_and_class() -> None:
    assert table("paper-linear").parameters == 13_425_744
    assert table("paper-linear", classes=4).parameters == 4 * (2163 * 2069 + 1)


def test_the_dual_input_network_has_2_287_044_481_parameters_and_takes_no_memory_to_look_at() -> None:
    dual = table("paper-dual-input")
    assert dual.parameters == 2_287_044_481
    assert dual.weight_bytes == 4 * dual.parameters
    assert outputs(dual, "MaxPool2d") == [(32, 540, 517)] * 2
    assert all(each.is_meta for each in meta_network("paper-dual-input", {}).parameters())


@pytest.mark.parametrize(
    ("variant", "flat", "parameters"),
    [
        ("figure", 535_248, 3 * 101 + 535_249),
        ("code", 88_150, 2 * 626 + 88_151),
        ("multi-class", 35_565_376, 8 * 101 + 3 * 35_565_377),
    ],
)
def test_the_base_network_has_three_variants(variant: str, flat: int, parameters: int) -> None:
    base = table("paper-base-cnn", variant=variant)
    assert outputs(base, "Flatten") == [(flat,)]
    assert base.parameters == parameters


def test_the_heat_map_shrinks_by_6_pixels_as_published_and_not_when_repaired() -> None:
    for name, size in (("paper-heatmap-cnn", (534, 511)), ("paper-heatmap-cnn-repaired", (540, 517))):
        heat = table(name)
        assert outputs(heat, "MaxPool2d") == [(16, 540, 517)]
        assert outputs(heat, "Conv2d")[2] == (32, *size)
        assert heat.output == (1, *PAPER_SHAPE)
        assert heat.parameters == 8833


def test_the_resnet_is_a_resnet_50_with_one_channel_and_a_new_head() -> None:
    # 25,557,032 parameters in all, 2,049,000 of them in the classes, 2 x 3,136 in the two channels that are not there.
    assert table("paper-resnet50").parameters == 25_557_032 - 2_049_000 - 2 * 3136 + (2048 + 1) * 512 + 513
    small = network_table("paper-resnet50", {}, (224, 224))
    # 4.09 thousand million multiply-adds for three channels, less those of two channels in the first layer.
    assert small.multiply_adds / 1e9 == pytest.approx(4.09 - 2 * 0.0393, abs=0.006)


def test_the_denoiser_has_17_layers_of_64_features_at_full_resolution() -> None:
    denoiser = table("paper-dncnn")
    assert outputs(denoiser, "Conv2d") == [(64, *PAPER_SHAPE)] * 16 + [(1, *PAPER_SHAPE)]
    assert len(outputs(denoiser, "GroupNorm")) == 15
    assert denoiser.parameters == 9 * 64 * 2 + 15 * (9 * 64 * 64 + 128)


def test_the_comparison_network_flattens_to_685_184() -> None:
    assert outputs(table("paper-comparison-cnn"), "Flatten") == [(685_184,)]
    assert round(table("paper-comparison-cnn").parameters / 1e6) == 351


def test_the_metadata_network_has_both_published_widths() -> None:
    for hidden in (251, 46):
        expected = 17_784_713 - 17_782_689 + hidden * 17_782_689 + hidden + 3
        assert table("paper-metadata-cnn", hidden=hidden).parameters == expected


@pytest.mark.parametrize("name", PAPER)
def test_multiply_adds_are_those_that_torch_counts(name: str) -> None:
    found = architecture(name)
    inputs = [torch.empty(1, *input_shape(found, each, PAPER_SHAPE), device="meta") for each in found.inputs]
    network = meta_network(name, sized(found, PAPER_SHAPE)).eval()
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter, torch.device("meta"):
        warnings.simplefilter("ignore")
        network(*inputs)
    assert counter.get_total_flops() == 2 * table(name).multiply_adds
