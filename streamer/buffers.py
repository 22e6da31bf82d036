"""Buffers for frames that are there before the first frame."""

from typing import Any

import numpy as np
import numpy.typing as npt


def touched(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros in memory that the system has given already.

    It gives what ``np.zeros`` and ``np.empty`` return page by page, as it is written: a buffer that only the brightest
    frames fill would cost them time, and an analysis would grow for hours as brighter ones come.
    """
    made: npt.NDArray[Any] = np.empty(shape, dtype)
    made.fill(0)
    return made
