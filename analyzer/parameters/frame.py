"""The estimate of a single frame: a function of the frame, its series' header and the bundle alone."""

from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.parameters.claims import judged, record_fields
from analyzer.parameters.fit import Fitter, Posterior, undetermined
from analyzer.parameters.profile import Sectors, merge
from analyzer.parameters.scattering import Scattering

RINGS_MERGED = 4
"""Rings of 64 pixels: over them the profile is straight enough for what one frame can say."""

MOST_SATURATED = 1e-4
"""Share of the valid pixels that may be saturated; a saturated ring has no shape."""

Floats = npt.NDArray[np.float64]


class FrameEstimator:
    """Fits the profile of one frame after another; its buffers are its own, so one thread at a time."""

    def __init__(self, sectors: Sectors, scattering: Scattering, shape: tuple[int, int], center: tuple[float, float]):
        rings = merge(sectors, RINGS_MERGED)
        self._place, self._bins = rings.place, len(rings.pixels)
        self._fitter = Fitter(rings.shape, rings.pixels, rings.pixel_size_m, scattering, folded=True)
        self._profile = np.zeros((3, self._bins))
        self._pixels = float(rings.pixels.sum())
        self._off = off_the_panel(shape, center)

    def posterior(self, profile: npt.NDArray[np.float32], pairs: float, saturated: int) -> Posterior:
        """Of a frame's ``profile`` (3, bins), with ``pairs`` as in ``kernels.diffuse_areas`` and saturated pixels."""
        if self._off:
            return undetermined(self._off)
        if saturated > MOST_SATURATED * self._pixels:
            return undetermined(f"{saturated} saturated pixels")
        for row, values in zip(self._profile, profile, strict=True):
            row[:] = np.bincount(self._place, values, self._bins)
        return judged(self._fitter.fit(self._profile, pairs), frame=True)

    def fields(self, profile: npt.NDArray[np.float32], pairs: float, saturated: int, no_beam: bool) -> dict[str, Any]:
        """The parameter fields of the frame's record."""
        if no_beam:
            return {"estimate_reason": "no beam"}
        return record_fields(self.posterior(profile, pairs, saturated))


def off_the_panel(shape: tuple[int, int], center: tuple[float, float]) -> str:
    """Why a beam centre (fs, ss) in pixel indices cannot be, empty where it can."""
    fs, ss = center
    if -0.5 <= fs <= shape[1] - 0.5 and -0.5 <= ss <= shape[0] - 0.5:
        return ""
    return f"the beam centre ({fs:.0f}, {ss:.0f}) is off the panel of {shape[1]} x {shape[0]} pixels"
