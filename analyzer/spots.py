"""What a Bragg spot looks like, and what the pixels around one say for there being one.

The decision between a spot and the background alone goes by their likelihood ratio (Neyman and Pearson, Phil. Trans. R.
Soc. A 231, 1933, 289). Where b counts a pixel are expected, a spot of s photons puts s f_p more on pixel p, and counts
n_p say

    ln E[ exp(-s sum_p f_p) prod_p (1 + s f_p / b)^n_p ]

with the mean over shapes f and photons s. Shapes are round Gaussians, averaged over where in its middle pixel the
spot stands, so that f depends on the distance from the middle alone: the counts at each of the ten distances of a 7 x 7
are all there is to know. Where pixels count but once a pulse, a bright spot is a disc of pixels that counted: each of a
disc's pixels counts with chance q, where the background alone lets it with 1 - exp(-b).

By Markov's inequality pure background exceeds ln(x) with a chance of at most 1/x, at any
background, which no threshold on counts or on their ratio to noise gives.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import erf

REACH = 3
"""Pixels from the middle to the edge of the window."""

SIGMAS_PX = (0.35, 0.8)
PHOTONS = np.geomspace(3.0, 30.0, 6)
"""More photons are beyond doubt with any of these."""

_OFFSETS_PX = (np.arange(8) + 0.5) / 8 - 0.5


def _share(sigma_px: float) -> npt.NDArray[np.float64]:
    """Of the light, what falls in pixels 0 to REACH from the middle one along one axis."""
    edges = np.arange(-0.5, REACH + 1)
    cumulative = erf((edges[:, None] - _OFFSETS_PX) / (np.sqrt(2.0) * sigma_px)) / 2
    share: npt.NDArray[np.float64] = np.diff(cumulative, axis=0).mean(1)
    return share


DISTANCES = tuple((y, x) for y in range(REACH + 1) for x in range(y + 1))
"""The pixels of a window that are not alike: (farther, nearer) axis distance from the middle."""

CLASS = np.array(
    [
        [DISTANCES.index((max(abs(y), abs(x)), min(abs(y), abs(x)))) for x in range(-REACH, REACH + 1)]
        for y in range(-REACH, REACH + 1)
    ]
)
"""(7, 7): which of ``DISTANCES`` each pixel of a window has."""

CLASS_PIXELS = np.bincount(CLASS.reshape(-1)).astype(np.float64)
"""(distances,): pixels of a window that have each."""

SHARES = np.array([[_share(sigma)[y] * _share(sigma)[x] for y, x in DISTANCES] for sigma in SIGMAS_PX])
"""(shapes, distances): share of a spot's photons on one such pixel."""

DISCS = np.array([[y * y + x * x <= square for y, x in DISTANCES] for square in (2, 5, 13)])
"""(discs, distances): the 3 x 3, and the 21 and 45 pixels around the middle."""

LIT_CHANCES = (0.5, 0.9)

DISC_SHARE = 0.1
"""Of the weight of all that a spot may look like; shapes share the rest alike, as discs share this."""

LOG_WEIGHT = float(np.log((1.0 - DISC_SHARE) / (len(SIGMAS_PX) * len(PHOTONS))))
DISC_LOG_WEIGHT = float(np.log(DISC_SHARE / (len(DISCS) * len(LIT_CHANCES))))
