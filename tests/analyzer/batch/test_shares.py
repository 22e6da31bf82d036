"""Which shard has which frames."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.batch.shares import By, Chunk, shares

IMAGES = st.lists(st.integers(0, 60), min_size=1, max_size=8)
SHARDS = st.integers(1, 9)
CHUNK = st.integers(1, 20)
BY = pytest.mark.parametrize("by", ["frames", "files"])


def frames(chunks: list[Chunk]) -> list[tuple[int, int]]:
    return [(chunk.series, n) for chunk in chunks for n in range(chunk.first, chunk.last)]


@BY
@given(IMAGES, SHARDS, CHUNK)
def test_every_frame_is_one_shards_and_chunks_are_in_order(by: By, images: list[int], shards: int, chunk: int) -> None:
    found = shares(images, by, shards, chunk)
    assert len(found) == shards
    every = [(series, n) for series, count in enumerate(images, 1) for n in range(count)]
    assert sorted(itertools.chain.from_iterable(map(frames, found))) == every
    for chunks in found:
        assert chunks == sorted(chunks)
        assert all(1 <= len(each) <= chunk for each in chunks)


@given(IMAGES, SHARDS, CHUNK)
def test_by_frames_shares_differ_by_one_frame_at_most(images: list[int], shards: int, chunk: int) -> None:
    sizes = [len(frames(chunks)) for chunks in shares(images, "frames", shards, chunk)]
    assert max(sizes) - min(sizes) <= 1


@given(IMAGES, SHARDS, CHUNK)
def test_by_files_no_series_is_split_and_shares_differ_by_one_series_at_most(
    images: list[int], shards: int, chunk: int
) -> None:
    found = shares(images, "files", shards, chunk)
    owners = [{chunk.series for chunk in chunks} for chunks in found]
    assert sum(map(len, owners)) == sum(count > 0 for count in images)
    sizes = [len(frames(chunks)) for chunks in found]
    assert max(sizes) - min(sizes) <= max(images)


def test_one_long_file_and_many_short_ones_come_out_about_equal() -> None:
    images = [1000, *[100] * 30]
    assert [sum(map(len, chunks)) for chunks in shares(images, "files", 4, 500)] == [1000, 1000, 1000, 1000]


def test_a_hundred_thousand_files_are_shared_in_seconds() -> None:
    began = time.process_time()
    for by in ("frames", "files"):
        assert sum(map(len, shares([500] * 100_000, by, 1000, 500))) == 100_000  # type: ignore[arg-type]
    assert time.process_time() - began < 5
