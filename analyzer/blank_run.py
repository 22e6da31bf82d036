"""What the frames of a blank run (a jet, no crystals) show beside their scores.

Pixel by pixel how often it counted and how often its surroundings let expect, from which hot,
flickering and dead pixels follow; and the peaks that keep no place, which crystals make and
detectors do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter
from scipy.stats import poisson

from analyzer.reduction import SUSPECT_COUNTS, FramePlan
from analyzer.results import Peak

FALSE_PIXELS_PER_PANEL = 0.01
"""Good pixels that chance may put into a proposed mask."""

LEAST_EXCESS = 3.0
"""A pixel is hot from so many times its surroundings: less is a matter of its size or its calibration."""

BRIGHT_CHANCE = 1e-6
"""A count is bright where the background reaches it with this chance."""

_BACKGROUND_SPREAD = 1.5
"""How much more than its bin's mean a pixel's background may be, by polarisation and by shadows."""

_NEIGHBOURHOOD_PX = 33
_REPEATS = 3
"""A place that is bright or has a peak in so many frames belongs to the detector."""


class PixelFlag(IntFlag):
    """Values of a proposed mask: the bits of NeXus' and DECTRIS' ``pixel_mask``."""

    DEAD = 2
    HOT = 8
    NOISY = 16
    """counts too often, but in fewer than half of the frames"""
    USER = 256
    """left out by a mask that was given"""


@dataclass(slots=True)
class _BinSums:
    plan: FramePlan
    photons: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]


class PixelCensus:
    """Counts over the frames of a run, all of one shape: see ``add``."""

    def __init__(self, shape: tuple[int, int]) -> None:
        count = shape[0] * shape[1]
        self.shape = shape
        self.frames = 0
        self._counted = np.zeros(count, np.uint32)
        self._bright = np.zeros(count, np.uint32)
        self._valid = np.zeros(count, bool)
        self._sums: dict[int, _BinSums] = {}

    def add(
        self,
        plan: FramePlan,
        pixels: npt.NDArray[Any],
        background: npt.NDArray[np.float64],
        no_data: int,
    ) -> None:
        """Take in a frame (ss, fs) with its background (bins,), photons a pixel; ``no_data`` is its sentinel."""
        sums = self._sums.get(id(plan))
        if sums is None:
            sums = self._sums[id(plan)] = _BinSums(plan, np.zeros(plan.bins.bins), np.zeros(plan.bins.bins))
            self._valid |= plan.inside != 0
        flat = pixels.reshape(-1)
        places = np.flatnonzero(flat)
        places = places[flat[places] != no_data]
        self._counted[places] += 1
        limit = poisson.isf(BRIGHT_CHANCE, _BACKGROUND_SPREAD * background)
        bright = flat[places] > limit[plan.bins.bin_of[places]]
        self._bright[places[bright]] += 1
        sums.photons += background
        sums.share += -np.expm1(-background)
        self.frames += 1

    def propose_mask(self) -> "ProposedMask":
        """Pixels that count too often or never, against what their surroundings count."""
        valid, counted = self._valid, self._counted
        photons, expected = (np.zeros(len(valid)) for _ in range(2))
        for sums in self._sums.values():
            photons += sums.photons[sums.plan.bins.bin_of]
            expected += sums.share[sums.plan.bins.bin_of]
        expected = np.maximum(expected, self._around(expected))
        chance = FALSE_PIXELS_PER_PANEL / max(1, int(valid.sum()))
        often = (counted >= LEAST_EXCESS * expected) & (counted > _limits(expected, chance))
        bright = self._bright > max(_REPEATS - 1, poisson.isf(chance, BRIGHT_CHANCE * self.frames))
        hot = valid & (often | bright)
        judged = valid & (photons >= SUSPECT_COUNTS)
        flags = np.zeros(len(valid), np.uint32)
        flags[judged & (counted == 0)] = PixelFlag.DEAD
        flags[hot] = np.where(2 * counted[hot] >= self.frames, PixelFlag.HOT, PixelFlag.NOISY)
        share = float(judged.sum() / max(1, int(valid.sum())))
        return ProposedMask(flags.reshape(self.shape), share, chance)

    def _around(self, expected: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Frames in which a valid pixel nearby counted, on average; hot ones among them cut down."""
        cut = np.where(self._valid, np.minimum(self._counted, 3 * expected + 10), 0.0)
        total, area = (
            uniform_filter(each.reshape(self.shape).astype(np.float32), _NEIGHBOURHOOD_PX, mode="constant")
            for each in (cut, self._valid)
        )
        mean: npt.NDArray[np.float64] = (total / np.maximum(area, 1e-3)).reshape(-1)
        return mean


def _limits(expected: npt.NDArray[np.float64], chance: float) -> npt.NDArray[np.float64]:
    """The count that Poisson of each mean exceeds with at most this chance; means are rounded up to 1 %."""
    steps = np.ceil(np.log(np.maximum(expected, 1e-6)) / 0.01).astype(np.intp)
    values, place = np.unique(steps, return_inverse=True)
    limits: npt.NDArray[np.float64] = poisson.isf(chance, np.exp(0.01 * values))[place]
    return limits


@dataclass(frozen=True, slots=True, eq=False)
class ProposedMask:
    """``flags`` (ss, fs) uint32: 0 good, else ``PixelFlag``. A good pixel is in it with ``chance``.

    ``judged_dead`` is the share of the panel that saw enough light to tell dead pixels.
    """

    flags: npt.NDArray[np.uint32]
    judged_dead: float
    chance: float

    def count(self, flag: PixelFlag) -> int:
        return int((self.flags == flag).sum())


def roaming_peaks(
    frames: Sequence[Sequence[Peak]], shape: tuple[int, int], bad: npt.NDArray[Any] | None = None
) -> list[int]:
    """For each frame its peaks at places where fewer than three frames have one, off ``bad`` (ss, fs) pixels.

    A faulty pixel makes a peak at one place again and again; a crystal lies another way each time.
    """
    here = np.zeros(shape, np.uint32)
    if bad is not None:
        here[bad != 0] = _REPEATS

    def around(peak: Peak) -> tuple[slice, slice]:
        ss, fs = round(peak.ss), round(peak.fs)
        return slice(max(0, ss - 1), ss + 2), slice(max(0, fs - 1), fs + 2)

    for peaks in frames:
        for peak in peaks:
            here[around(peak)] += 1
    return [sum(int(here[around(peak)].max()) < _REPEATS for peak in peaks) for peaks in frames]
