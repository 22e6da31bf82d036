"""Running sums of profiles: of hits and of the other frames, over a run and over its latest frames.

A run is here what has one geometry: series go on with the sums of those before while their headers say the same.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.parameters.profile import Sectors
from streamer.messages import SeriesMetadata

MEMORY_FRAMES = 1000
"""Frames after which the latest ones' sum has forgotten 63 %."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """Of so many ``frames``: ``profile`` (3, bins) float64 and expected ``pairs``; see ``kernels.diffuse_areas``."""

    profile: Floats
    pairs: float
    frames: float

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.profile + other.profile, self.pairs + other.pairs, self.frames + other.frames)


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What a run has seen of one geometry. ``latest`` and ``run``: (other frames, hits); ``center`` (fs, ss) and
    ``shape`` are the header's and the image's; ``header`` that of the newest frames; ``number`` counts beginnings."""

    sectors: Sectors
    shape: tuple[int, int]
    center: tuple[float, float]
    latest: tuple[Sum, Sum]
    run: tuple[Sum, Sum]
    saturated_frames: int
    header: SeriesMetadata | None
    number: int

    @property
    def frames(self) -> float:
        """All that came, saturated ones too."""
        return sum(each.frames for each in self.run) + self.saturated_frames


class RunningSums:
    """Adds frames' profiles up; not for several threads at once. ``header`` is for who adds to set."""

    def __init__(self) -> None:
        self.sectors: Sectors | None = None
        self.header: SeriesMetadata | None = None
        self.number = 0

    def add(
        self, sectors: Sectors, shape: tuple[int, int], center: tuple[float, float], profile: npt.NDArray[np.float32],
        pairs: float, hit: bool, saturated: bool,
    ) -> None:  # fmt: skip
        """Take in a frame; one of another geometry begins anew. A saturated frame is counted and left out."""
        if sectors is not self.sectors:
            self.begin(sectors, shape, center)
        self._saturated += saturated
        if saturated:
            return
        kept = 1.0 - 1.0 / MEMORY_FRAMES
        self._latest *= kept
        self._latest_facts *= kept
        for sums, facts in ((self._latest, self._latest_facts), (self._run, self._run_facts)):
            sums[int(hit)] += profile
            facts[int(hit)] += (pairs, 1.0)

    def begin_latest(self) -> None:
        """A series begins: what came before it is none of the latest any more."""
        if self.sectors is not None:
            self._latest[:] = 0.0
            self._latest_facts[:] = 0.0

    def reset(self) -> None:
        """Forget everything."""
        self.sectors = self.header = None
        self.number += 1

    def copy(self) -> Sums | None:
        """The sums as they stand; ``None`` before the first frame."""
        if self.sectors is None or not (self._saturated or self._run_facts[:, 1].any()):
            return None
        latest, run = (
            (Sum(sums[0].copy(), *map(float, facts[0])), Sum(sums[1].copy(), *map(float, facts[1])))
            for sums, facts in ((self._latest, self._latest_facts), (self._run, self._run_facts))
        )
        return Sums(self.sectors, self._shape, self._center, latest, run, self._saturated, self.header, self.number)

    def begin(self, sectors: Sectors, shape: tuple[int, int], center: tuple[float, float]) -> None:
        """Begin anew, with frames of this geometry."""
        self.number += 1
        self.sectors, self._shape, self._center = sectors, shape, center
        self._latest, self._run = (np.zeros((2, 3, sectors.bins)) for _ in range(2))
        self._latest_facts, self._run_facts = np.zeros((2, 2)), np.zeros((2, 2))
        self._saturated = 0
