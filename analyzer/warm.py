"""Warm-up: everything compiled, loaded and allocated before the first real frame."""

import numpy as np

from analyzer.cascade import Analyser
from streamer.frames import Frame
from streamer.messages import Algorithm, ImageData, SeriesMetadata
from streamer.series import Series

_SHAPE = (512, 1028)


def warm_up(analyser: Analyser) -> None:
    """Judge an empty module of each pixel type, so that no first frame pays for compilation."""
    series = Series(0, 0, None, SeriesMetadata(shape=_SHAPE))
    for kind in ("u1", "u2", "u4"):
        dtype = np.dtype(kind)
        pixels = np.zeros(_SHAPE, dtype).tobytes()
        image = ImageData(pixels, _SHAPE, dtype, Algorithm.RAW, dtype.itemsize)
        analyser.process([Frame(series, 0, "threshold_1", image, None, None, 0.0)])
    analyser.forget(series)
