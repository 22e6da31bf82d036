"""Which pixels say how bright the diffuse scattering is: those whose counts are no more than it makes.

Where it is faint a pixel is kept when the 3 x 3 around it counted no more than so many, elsewhere when it has itself
not. Pixels of found peaks are left out before. That removes nearly all Bragg light, weak spots included, and hot
pixels; what it removes of the diffuse light is known exactly (``kernels.diffuse_areas``), and the pixels of a bin are
counted accordingly. So hits and misses give one profile.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import gammainccinv

from analyzer.geometry import BinMap, Geometry
from analyzer.kernels import KEPT_WHOLE, QUADRANTS

_KEPT_ALONE, _KEPT_AROUND = 0.99, 0.95
"""Of the diffuse photons, at least: by a pixel's own counts, and by what is around."""

_MOST_COUNTS = 512
"""Beyond, everything is kept: a spot would hardly show, and e to the minus the mean is near the least number."""

_FAINTEST_BRIGHT = 0.3
"""Counts a pixel from which the 3 x 3 says no more about spots than the pixel does."""

# The mean up to which at most k counts are asked for, from P(n < k; mean) = the share that is kept.
_ALONE = gammainccinv(np.arange(1, _MOST_COUNTS + 1), _KEPT_ALONE)
_AROUND = gammainccinv(np.arange(1, 32), _KEPT_AROUND) / 9.0


def places(geometry: Geometry, bins: BinMap) -> npt.NDArray[np.uint16]:
    """Bin * 4 + quadrant of each pixel (ss * fs,): 1 on the positive side of the first axis, 2 of the second."""
    x, y = geometry.position_maps()
    quadrant = (x > 0).astype(np.uint16) + np.uint16(2) * (y > 0)
    return bins.bin_of * np.uint16(QUADRANTS) + quadrant.reshape(-1)


def limits(background: npt.NDArray[np.float64], alone: npt.NDArray[np.int64], around: npt.NDArray[np.int64]) -> None:
    """The most counts of pixels that are kept, by bin (bins,): alone and of the 3 x 3, -1 where that is not asked."""
    alone[:] = np.searchsorted(_ALONE, background) + 1
    alone[alone > _MOST_COUNTS] = KEPT_WHOLE
    around[:] = np.searchsorted(_AROUND, background) + 1
    around[background > _FAINTEST_BRIGHT] = -1
