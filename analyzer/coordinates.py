"""Our pixel coordinates in the words of others: the one place where half a pixel is added.

Here fs and ss are pixel indices: 0 is the centre of the first pixel. CrystFEL's peak lists (CXI files and msgpack)
are index-based too, and CrystFEL adds half a pixel when it reads them. DIALS, CrystFEL's own geometry and the beam
centres of files and streams count from the outer edge of the first pixel, whose centre is 0.5.
"""

from enum import StrEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Numbers = TypeVar("Numbers", float, npt.NDArray[np.float64])


class Convention(StrEnum):
    """Who counts how."""

    CRYSTFEL_PEAKS = "crystfel-peaks"
    """indices; CrystFEL adds its half pixel unless told --no-half-pixel-shift"""
    EDGES = "edges"
    """0 at the outer edge of the first pixel: DIALS, beam centres, panel corners"""


_OFFSET_PX = {Convention.CRYSTFEL_PEAKS: 0.0, Convention.EDGES: 0.5}


def in_convention(index: Numbers, convention: Convention) -> Numbers:
    """Pixel indices along fs or ss, as that convention counts them."""
    return index + _OFFSET_PX[convention]
