"""The heatmap network of the learned peak finder: how sure it is of a spot, where, and how bright.

It is small because it looks at little: tiles of 24 x 24 pixels around what the reduction's map calls unlikely.
"""

import itertools

import torch
from torch import Tensor, nn

from analyzer.peak_tiles import CHANNELS, FACTS, OUTPUTS, STRIDE

FIRST_LOGIT = -4.6
"""Where an untrained heat stands: a spot in a hundred. From one in two the first steps would only unlearn that."""

_LARGEST_OFFSET = 1.0


class PeakNetwork(nn.Module):
    """Heat, place and brightness of spots in tiles.

    In: tiles (B, CHANNELS, TILE, TILE) and facts (B, FACTS) as ``peak_tiles.fill_tiles`` makes them. Out: (B, OUTPUTS,
    HEATS, HEATS). No convolution pads, so an answer does not depend on the tile's place in the grid; what the frame is
    like, its background and how much is in it, scales and shifts the features.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (16, 24, 32, 40), hidden: int = 32) -> None:
        super().__init__()
        sizes = [CHANNELS * STRIDE**2, *widths]
        self.unshuffle = nn.PixelUnshuffle(STRIDE)
        self.convolutions = nn.ModuleList(nn.Conv2d(n, m, 3) for n, m in itertools.pairwise(sizes))
        self.context = nn.Sequential(nn.Linear(FACTS, hidden), nn.ReLU(), nn.Linear(hidden, 2 * sum(widths)))
        self.head = nn.Sequential(nn.Conv2d(widths[-1], hidden, 1), nn.ReLU(), nn.Conv2d(hidden, OUTPUTS, 1))
        last = self.head[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        with torch.no_grad():
            last.bias.zero_()
            last.bias[0] = FIRST_LOGIT

    def forward(self, tiles: Tensor, facts: Tensor) -> Tensor:
        features = self.unshuffle(tiles)
        context = self.context(facts)
        start = 0
        for convolution in self.convolutions:
            features = convolution(features)
            width = features.shape[1]
            scale, shift = context[:, start : start + 2 * width, None, None].split(width, 1)
            features = torch.relu(features * (1.0 + scale) + shift)
            start += 2 * width
        out = self.head(features)
        return torch.cat([out[:, :1], out[:, 1:3].clamp(-_LARGEST_OFFSET, _LARGEST_OFFSET), out[:, 3:]], 1)
