"""A network as a table."""

import pytest
import torch
from torch import Tensor, nn

from analyzer.architectures import OWN, Architecture
from analyzer.layers import input_shape, layer_table, network_table


class Mixed(nn.Module):
    """A layer used twice, one not used, a parameter of its own, a recurrent layer, a convolution that enlarges."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.never = nn.Linear(3, 3)
        self.own = nn.Parameter(torch.zeros(5))
        self.relu = nn.ReLU(inplace=True)
        self.recurrent = nn.GRU(4, 6, batch_first=True)
        self.grouped = nn.Conv1d(6, 8, 3, padding=1, groups=2)
        self.enlarged = nn.ConvTranspose1d(8, 2, 2, stride=2)

    def forward(self, rows: Tensor) -> Tensor:
        hidden, _ = self.recurrent(self.relu(self.twice(self.twice(rows))))
        out: Tensor = self.enlarged(self.grouped(hidden.transpose(1, 2)))
        return out


def test_layers_are_written_down_in_the_order_of_their_use() -> None:
    network = Mixed()
    table = layer_table(network.to("meta"), [("rows", (7, 4))])
    assert [layer.name for layer in table.layers] == ["twice", "twice", "relu", "recurrent", "grouped", "enlarged", ""]
    assert [layer.output[1:] for layer in table.layers[3:6]] == [(7, 6), (8, 7), (2, 14)]
    assert [layer.parameters for layer in table.layers[:2]] == [20, 0], "what is used twice is there once"
    assert table.layers[-1].parameters == 12 + 5
    assert table.parameters == sum(each.numel() for each in network.parameters())
    assert [layer.multiply_adds for layer in table.layers] == [112, 112, 0, 0, 8 * 7 * 3 * 3, 8 * 7 * 2 * 2, 0]
    assert table.output == (1, 2, 14)
    assert table.output_bytes == 4 * (28 + 28 + 42 + 56 + 28), "what is done in place is kept once"


def test_the_details_of_a_layer_are_told() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, (3, 5), 2, padding=(1, 2), dilation=2), nn.GroupNorm(2, 4), nn.Dropout(0.25)
    )
    table = layer_table(network.to("meta"), [("image", (1, 20, 20))])
    assert [layer.detail for layer in table.layers] == ["k3x5 s2 p1x2 d2", "2 groups", "0.25"]


@pytest.mark.parametrize("name", OWN)
def test_our_own_networks_have_their_inputs_shapes(name: str) -> None:
    table = network_table(name, {}, (2162, 2068))
    assert table.parameters > 0
    assert table.multiply_adds > 0


def test_an_input_of_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"'spectrum'.*shapes"):
        input_shape(Architecture(build=Mixed, inputs=("spectrum",)), "spectrum", (5, 5))


def test_a_frame_that_is_too_small_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="paper-heatmap-cnn"):
        network_table("paper-heatmap-cnn", {}, (9, 9))
