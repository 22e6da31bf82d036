"""Which shard analyses which frames: a function of the numbers of images, the same in every process."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

By = Literal["frames", "files"]


@dataclass(frozen=True, slots=True, order=True)
class Chunk:
    """Images ``first`` to ``last`` - 1 of a series, by position: what is finished as a whole. Series count from 1."""

    series: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"s{self.series:06d}-{self.first:09d}-{self.last:09d}.parquet"

    def __len__(self) -> int:
        return self.last - self.first


def shares(images: Sequence[int], by: By, shards: int, chunk_frames: int) -> list[list[Chunk]]:
    """The chunks of each shard, in order. ``images``: of each series.

    By frames, each shard has a range of all frames one after the other, as long as any other's but for one frame. By
    files no series is split; the longest are given out first, each to the shard that has the fewest frames so far.
    """
    ranges = _by_frames(images, shards) if by == "frames" else _by_files(images, shards)
    return [
        [
            Chunk(series, start, min(start + chunk_frames, last))
            for series, first, last in share
            for start in range(first, last, chunk_frames)
        ]
        for share in ranges
    ]


_Range = tuple[int, int, int]


def _by_frames(images: Sequence[int], shards: int) -> list[list[_Range]]:
    total = sum(images)
    bounds = [total * n // shards for n in range(shards + 1)]
    found: list[list[_Range]] = [[] for _ in range(shards)]
    shard = 0
    for series, (start, end) in enumerate(pairwise(accumulate(images, initial=0)), 1):
        position = start
        while position < end:
            while bounds[shard + 1] <= position:
                shard += 1
            last = min(end, bounds[shard + 1])
            found[shard].append((series, position - start, last - start))
            position = last
    return found


def _by_files(images: Sequence[int], shards: int) -> list[list[_Range]]:
    loads = [(0, shard) for shard in range(shards)]
    found: list[list[_Range]] = [[] for _ in range(shards)]
    for count, series in sorted(
        ((count, series) for series, count in enumerate(images, 1)), key=lambda e: (-e[0], e[1])
    ):
        load, shard = heapq.heappop(loads)
        found[shard].append((series, 0, count))
        heapq.heappush(loads, (load + count, shard))
    return [sorted(share) for share in found]
