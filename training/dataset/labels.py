"""Labels: which pixels of a noise-free image are peaks, 1 where one is and 0 elsewhere.

`threshold` is what the 2024 paper writes: every pixel above the threshold. `maxima` is what its program did: one
pixel a local maximum.
"""

from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

LabelKind = Literal["threshold", "maxima"]


def threshold_mask(image: NDArray[Any], threshold: float = 1.0) -> NDArray[np.float32]:
    """1 where a pixel of the image (ss, fs) is above the threshold; float32 of the image's shape."""
    return (image > threshold).astype(np.float32)


def local_maxima(image: NDArray[Any], threshold: float = 1.0, min_distance_px: int = 3) -> NDArray[np.float32]:
    """1 at one pixel of every local maximum above the threshold; float32 of the image's shape.

    A maximum is above the threshold and no less than any pixel within min_distance_px of it, along ss and along fs.
    Equal pixels that are less than min_distance_px apart, a plateau among them, are one maximum: the first in reading
    order stands for it. Maxima at equal height exactly min_distance_px apart are two. So far this is scikit-image's
    peak_local_max with threshold_abs and min_distance, which the paper's program called. Two things differ, both on
    purpose: that function leaves out every maximum within min_distance of the panel's edge, although a peak there is
    a peak; and it finds nothing in an image whose pixels are all equal, where this finds plateaus.

    Raises ValueError for a distance below 1.
    """
    if min_distance_px < 1:
        raise ValueError(f"min_distance_px is {min_distance_px}; give 1 or more")
    largest = maximum_filter(image, size=2 * min_distance_px + 1, mode="nearest")
    candidates = np.argwhere((image == largest) & (image > threshold))
    label = np.zeros(image.shape, dtype=np.float32)
    _mark_first(candidates, min_distance_px - 1, label)
    return label


@njit(cache=True)  # type: ignore[untyped-decorator]
def _mark_first(candidates, reach, label):  # type: ignore[no-untyped-def]
    """Mark the candidates (n, 2), in order, that have no mark within reach (pixels, square)."""
    rows, columns = label.shape
    for n in range(candidates.shape[0]):
        ss, fs = candidates[n, 0], candidates[n, 1]
        free = True
        for i in range(max(ss - reach, 0), min(ss + reach + 1, rows)):
            for j in range(max(fs - reach, 0), min(fs + reach + 1, columns)):
                if label[i, j] != 0.0:
                    free = False
        if free:
            label[ss, fs] = 1.0


def label_image(
    image: NDArray[Any], kind: LabelKind, threshold: float = 1.0, min_distance_px: int = 3
) -> NDArray[np.float32]:
    """The label of a noise-free image by either kind; min_distance_px is for maxima only."""
    if kind == "threshold":
        return threshold_mask(image, threshold)
    return local_maxima(image, threshold, min_distance_px)
