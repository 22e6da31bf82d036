"""Running sums of profiles: of hits and of the other frames, over a run and over its latest frames.

A run is here what has one geometry: series go on with the sums of those before while their headers say the same.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.parameters.profile import Sectors
from streamer.messages import SeriesMetadata

MEMORIES = (1_000, 10_000, 100_000)
"""Frames after which a memory has forgotten 63 %, shortest first; beside them the run forgets nothing."""

_BLOCK = 50
"""Frames that the longer memories take in together: a frame costs no more than with one memory."""

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
    """What a run has seen of one geometry: (other frames, hits) of each of ``MEMORIES`` and of the whole ``run``.

    ``center`` (fs, ss) and ``shape`` are the header's and the image's; ``saturated_share`` that of the latest frames
    which were left out for it; ``frames`` all that came, those too; ``header`` that of the newest frames; ``number``
    counts beginnings.
    """

    sectors: Sectors
    shape: tuple[int, int]
    center: tuple[float, float]
    memories: tuple[tuple[Sum, Sum], ...]
    run: tuple[Sum, Sum]
    saturated_share: float
    frames: int
    header: SeriesMetadata | None
    number: int


class RunningSums:
    """Adds frames' profiles up; not for several threads at once. ``header`` is for who adds to set."""

    def __init__(self) -> None:
        self.sectors: Sectors | None = None
        self.header: SeriesMetadata | None = None
        self.number = 0
        self._frames, self._in_block = 0, 0
        self._saturated, self._counted = 0.0, 0.0

    def add(
        self, sectors: Sectors, shape: tuple[int, int], center: tuple[float, float], profile: npt.NDArray[np.float32],
        pairs: float, hit: bool, saturated: bool,
    ) -> None:  # fmt: skip
        """Take in a frame; one of another geometry begins anew. A saturated frame is counted and left out."""
        if sectors is not self.sectors:
            self.begin(sectors, shape, center)
        kept = 1.0 - 1.0 / MEMORIES[0]
        self._frames += 1
        self._saturated = self._saturated * kept + saturated
        self._counted = self._counted * kept + 1.0
        latest = self._memories[0]
        latest.forget(kept)
        if not saturated:
            latest.add(hit, profile, pairs)
            self._block.add(hit, profile, pairs)
        self._in_block += 1
        if self._in_block == _BLOCK:
            for memory, frames in zip(self._memories[1:], MEMORIES[1:], strict=True):
                memory.forget((1.0 - 1.0 / frames) ** _BLOCK)
                memory.join(self._block)
            self._run.join(self._block)
            self._block.forget(0.0)
            self._in_block = 0

    def begin_latest(self) -> None:
        """A series begins: what came before it is none of the latest frames any more."""
        if self.sectors is not None:
            self._memories[0].forget(0.0)

    def reset(self) -> None:
        """Forget everything."""
        self.sectors = self.header = None
        self.number += 1

    def copy(self) -> Sums | None:
        """The sums as they stand; ``None`` before the first frame."""
        if self.sectors is None or not self._frames:
            return None
        latest, *longer = self._memories
        return Sums(
            self.sectors,
            self._shape,
            self._center,
            (latest.sums(), *(each.sums(self._block) for each in longer)),
            self._run.sums(self._block),
            self._saturated / self._counted,
            self._frames,
            self.header,
            self.number,
        )

    def begin(self, sectors: Sectors, shape: tuple[int, int], center: tuple[float, float]) -> None:
        """Begin anew, with frames of this geometry."""
        self.number += 1
        self.sectors, self._shape, self._center = sectors, shape, center
        self._memories = tuple(_Kinds(sectors.bins) for _ in MEMORIES)
        self._run, self._block = _Kinds(sectors.bins), _Kinds(sectors.bins)
        self._in_block, self._frames = 0, 0
        self._saturated, self._counted = 0.0, 0.0


class _Kinds:
    """A sum of other frames and one of hits."""

    def __init__(self, bins: int) -> None:
        self.profiles = np.zeros((2, 3, bins))
        self.facts = np.zeros((2, 2))
        """Pairs and frames."""

    def add(self, hit: bool, profile: npt.NDArray[np.float32], pairs: float) -> None:
        self.profiles[int(hit)] += profile
        self.facts[int(hit)] += (pairs, 1.0)

    def join(self, other: "_Kinds") -> None:
        self.profiles += other.profiles
        self.facts += other.facts

    def forget(self, kept: float) -> None:
        self.profiles *= kept
        self.facts *= kept

    def sums(self, block: "_Kinds | None" = None) -> tuple[Sum, Sum]:
        """Copies, with what is in a block."""
        profiles, facts = self.profiles.copy(), self.facts.copy()
        if block is not None:
            profiles += block.profiles
            facts += block.facts
        return Sum(profiles[0], *map(float, facts[0])), Sum(profiles[1], *map(float, facts[1]))
