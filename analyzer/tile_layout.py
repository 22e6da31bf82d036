"""What a tile of the learned peak finder is made of, for those who look at one and those who only name its shape."""

from analyzer.kernels import CELL

MARGIN = 8
TILE = CELL + 2 * MARGIN
STRIDE = 2
"""Pixels a side of what one heat stands for."""

HEATS = CELL // STRIDE
MAX_TILES = 1024
CHANNELS = 4
"""Of each pixel: ln(1 + counts) / 2; signed root of the deviance of the pixel and of the 3 x 3 around it, over 4;
1 where valid. All are 0 in invalid pixels; the deviance is that of Poisson counts from the bin's mean."""

FACTS = 6
"""Of each tile: ln(its mean expected counts a pixel) / 4, ln(counts without outliers over expected), share of valid
pixels; of its frame: ln(1 + n) / 5 of the strong cells and of the tiles, ln(1 + the most counts in any tile) / 8."""

OUTPUTS = 4
"""Logit of the heat, offsets along fs and ss in heats (2 pixels), ln of the expected counts."""
