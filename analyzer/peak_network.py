"""The heatmap network of the learned peak finder: how sure it is of a spot, where, and how bright.

It is small because it looks at little: tiles of 24 x 24 pixels around what the reduction's map calls unlikely.
"""

import itertools

import torch
from torch import Tensor, nn

from analyzer.tile_layout import CHANNELS, FACTS, MARGIN, OUTPUTS, STRIDE

FIRST_LOGIT = -1.0
FIRST_SLOPE = 4.0
"""What windows of counts say is where the network starts from; it learns what to make of it."""

_EVEN_ROOT, _SURE_ROOT = 1.5, 3.0
"""Roots of the deviance over 4, as in the tiles: at six standard deviations chance gives a 4M frame a hundredth of a
peak, and above twelve more of them say nothing new."""

_LARGEST_OFFSET = 1.0


class PeakNetwork(nn.Module):
    """Heat, place and brightness of spots in tiles.

    In: tiles (B, CHANNELS, TILE, TILE) and facts (B, FACTS) as ``peak_tiles.fill_tiles`` makes them. Out: (B, OUTPUTS,
    HEATS, HEATS). The heat's logit is a line in the larger root of the deviance, of a pixel or of 3 x 3, that lies in
    its 2 x 2 pixels, and what the convolutions add to it. None of them pads, so an answer does not depend on the tile's
    place in the grid; what the frame is like, its background and how much is in it, scales and shifts the features.
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
        self.slope = nn.Parameter(torch.tensor(FIRST_SLOPE))

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
        middle = tiles[:, 1:3, MARGIN:-MARGIN, MARGIN:-MARGIN].amax(1, keepdim=True)
        root = nn.functional.max_pool2d(middle, STRIDE).clamp(max=_SURE_ROOT)
        heat = out[:, :1] + self.slope * (root - _EVEN_ROOT)
        return torch.cat([heat, out[:, 1:3].clamp(-_LARGEST_OFFSET, _LARGEST_OFFSET), out[:, 3:]], 1)
