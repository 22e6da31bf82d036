"""Who finds the peaks: the seam that finders plug into, and how two of them compare on the same frames.

The reduction always makes its own peak list, as background and profile need it. The *published*
finder makes the list that goes into records and rules; a *shadow* finder sees the same frames, and only
its disagreement is reported. What the networks see of a frame depends on neither.
"""

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from analyzer.bundle import BadBundle, Bundle
from analyzer.peakfinder8 import Peakfinder8, Peakfinder8Settings, Statistics
from analyzer.reduction import FramePlan, Reduced, Workspace

MATCH_PX = 4.0
"""Peaks of two finders so near to each other are one and the same."""

COMPARED_FRAMES = 1000
"""Latest frames that shares and means are of."""

_FINDERS_KEPT = 4

Peaks = npt.NDArray[Any]
"""Peaks of a frame, ``kernels.PEAK_DTYPE``."""


class PeakFinder(Protocol):
    """Finds peaks in frames of one series, for one worker. Its result is a function of the frame alone."""

    def find(self, workspace: Workspace, reduced: Reduced) -> Peaks:
        """Peaks of the frame that ``workspace`` has just reduced; ``reduced`` is valid until its next frame."""


class FinderKind(Protocol):
    """A finder before it knows the frames."""

    @property
    def name(self) -> str: ...

    def check(self, bundle: Bundle) -> None:
        """Raises ``BadBundle`` where the bundle has not what this finder takes from it."""

    def prepare(self, plan: FramePlan, dtype: np.dtype[Any], device: torch.device, bundle: Bundle) -> PeakFinder:
        """A finder for frames of this plan and pixel type. Raises ``ValueError`` where there can be none."""


class _Built:
    def find(self, workspace: Workspace, reduced: Reduced) -> Peaks:
        del workspace
        return reduced.peaks


class BuiltInFinder:
    """The reduction's own peaks, which cost nothing more."""

    name = "poisson"

    def check(self, bundle: Bundle) -> None:
        del bundle

    def prepare(self, plan: FramePlan, dtype: np.dtype[Any], device: torch.device, bundle: Bundle) -> PeakFinder:
        del plan, dtype, device, bundle
        return _Built()


BUILT_IN = BuiltInFinder()


class LearnedKind:
    """The network that the bundle carries."""

    name = "learned"

    def check(self, bundle: Bundle) -> None:
        if bundle.peaks is None:
            raise BadBundle(
                f"bundle {bundle.label}: has no learned peak finder; `cxls train peak-finder` adds one, or take "
                "another peak finder"
            )

    def prepare(self, plan: FramePlan, dtype: np.dtype[Any], device: torch.device, bundle: Bundle) -> PeakFinder:
        del plan, dtype
        # Its loops are compiled, or read from disk, only for those who use it.
        from analyzer.learned_finder import learned_finder

        found = learned_finder(bundle, device)
        if found is None:
            raise ValueError(f"bundle {bundle.label} has no learned peak finder")
        return found


class BundleFinder:
    """The learned finder where the bundle's card chooses it, else the built-in one."""

    name = "bundle"

    def check(self, bundle: Bundle) -> None:
        del bundle

    def prepare(self, plan: FramePlan, dtype: np.dtype[Any], device: torch.device, bundle: Bundle) -> PeakFinder:
        return self.chosen(bundle).prepare(plan, dtype, device, bundle)

    def chosen(self, bundle: Bundle) -> FinderKind:
        """Whom the bundle chooses."""
        card = bundle.card.peaks
        return LEARNED if card is not None and card.chosen else BUILT_IN


LEARNED = LearnedKind()
BY_BUNDLE = BundleFinder()


@dataclass(frozen=True, slots=True)
class _Peakfinder8OfFrames:
    finder: Peakfinder8

    def find(self, workspace: Workspace, reduced: Reduced) -> Peaks:
        del reduced
        return self.finder.find(workspace.pixels)


class Peakfinder8Finder:
    """``peakfinder8`` or ``peakfinder8-poisson``, by the statistics of its settings."""

    def __init__(self, settings: Peakfinder8Settings) -> None:
        self.name = "peakfinder8" if settings.statistics == Statistics.GAUSSIAN else "peakfinder8-poisson"
        self.settings = settings
        self._made: deque[tuple[FramePlan, np.dtype[Any], torch.device, Peakfinder8]] = deque(maxlen=_FINDERS_KEPT)
        self._lock = threading.Lock()

    def check(self, bundle: Bundle) -> None:
        del bundle

    def prepare(self, plan: FramePlan, dtype: np.dtype[Any], device: torch.device, bundle: Bundle) -> PeakFinder:
        del bundle
        with self._lock:
            for of, *rest, finder in self._made:
                if of is plan and rest == [dtype, device]:
                    return _Peakfinder8OfFrames(finder)
            finder = Peakfinder8(plan.geometry, plan.validity, dtype, plan.saturation, self.settings, device)
            self._made.append((plan, dtype, device, finder))
            return _Peakfinder8OfFrames(finder)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Peaks of one frame: how many each finder has, and how many are the same."""

    published: int
    shadow: int
    matched: int


def compare(published: Peaks, shadow: Peaks) -> Comparison:
    """Match the peaks of two finders one to one, nearest first, within ``MATCH_PX``."""
    here, there = (np.stack([peaks["fs"], peaks["ss"]], 1).astype(np.float64) for peaks in (published, shadow))
    if not len(here) or not len(there):
        return Comparison(len(here), len(there), 0)
    near = cKDTree(here).sparse_distance_matrix(cKDTree(there), MATCH_PX, output_type="ndarray")
    taken: tuple[set[int], set[int]] = set(), set()
    for pair in near[np.argsort(near["v"], kind="stable")]:
        one, other = int(pair["i"]), int(pair["j"])
        if one not in taken[0] and other not in taken[1]:
            taken[0].add(one)
            taken[1].add(other)
    return Comparison(len(here), len(there), len(taken[0]))


@dataclass(slots=True)
class Disagreement:
    """What the comparisons of a run add up to; ``latest`` of the last frames."""

    published: str
    shadow: str
    frames: int = 0
    failed: int = 0
    peaks: list[int] = field(default_factory=lambda: [0, 0])
    matched: int = 0
    latest: deque[Comparison] = field(default_factory=lambda: deque(maxlen=COMPARED_FRAMES))

    def add(self, comparison: Comparison | None) -> None:
        """Count one frame; ``None``: the shadow finder failed on it."""
        if comparison is None:
            self.failed += 1
            return
        self.frames += 1
        self.peaks[0] += comparison.published
        self.peaks[1] += comparison.shadow
        self.matched += comparison.matched
        self.latest.append(comparison)

    @property
    def mean_peaks(self) -> tuple[float, float] | None:
        """Peaks a frame of each finder, of the latest frames; ``None`` before the first."""
        if not self.latest:
            return None
        published = sum(each.published for each in self.latest) / len(self.latest)
        return published, sum(each.shadow for each in self.latest) / len(self.latest)

    @property
    def matched_fraction(self) -> float | None:
        """Share of both finders' latest peaks that the other has too; ``None`` without peaks."""
        peaks = sum(each.published + each.shadow for each in self.latest)
        return 2 * sum(each.matched for each in self.latest) / peaks if peaks else None

    @property
    def facts(self) -> dict[str, Any]:
        """What /status says of it."""
        means = self.mean_peaks or (None, None)
        return {
            "published": {"finder": self.published, "mean_peaks": means[0]},
            "shadow": {"finder": self.shadow, "mean_peaks": means[1], "failed": self.failed},
            "frames": self.frames,
            "matched_fraction": self.matched_fraction,
        }


def takes_own_peaks(finder: FinderKind, bundle: Bundle) -> bool:
    """Whether the reduction's own peaks are what a finder publishes, so that it needs no pixels."""
    chosen = finder.chosen(bundle) if isinstance(finder, BundleFinder) else finder
    return isinstance(chosen, BuiltInFinder)
