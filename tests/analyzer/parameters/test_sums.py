"""Running sums of profiles: hits apart from the rest, a run apart from its latest frames."""

import numpy as np
import pytest

from analyzer.parameters.profile import Sectors
from analyzer.parameters.sums import MEMORIES, RunningSums

BINS = 24


def sectors() -> Sectors:
    return Sectors(np.arange(BINS), np.ones((6, BINS)), np.ones(BINS), 75e-6)


def add(sums: RunningSums, where: Sectors, value: float, hit: bool = False, saturated: bool = False) -> None:
    sums.add(where, (10, 10), (4.5, 4.5), np.full((3, BINS), value, np.float32), 2.0 * value, hit, saturated)


def test_before_the_first_frame_there_is_nothing() -> None:
    assert RunningSums().copy() is None


def test_hits_and_the_other_frames_are_kept_apart() -> None:
    sums, where = RunningSums(), sectors()
    add(sums, where, 1.0)
    add(sums, where, 3.0, hit=True)
    add(sums, where, 5.0)
    found = sums.copy()
    assert found is not None
    misses, hits = found.run
    assert (misses.frames, hits.frames) == (2.0, 1.0)
    np.testing.assert_allclose(misses.profile, 6.0)
    np.testing.assert_allclose(hits.profile, 3.0)
    assert (misses.pairs, hits.pairs) == (12.0, 6.0)
    assert (misses + hits).frames == 3.0


def test_the_latest_frames_are_forgotten_exponentially_and_the_run_is_not() -> None:
    sums, where = RunningSums(), sectors()
    for _ in range(MEMORIES[0]):
        add(sums, where, 1.0)
    for _ in range(MEMORIES[0]):
        add(sums, where, 0.0)
    found = sums.copy()
    assert found is not None
    np.testing.assert_allclose(found.run[0].profile, MEMORIES[0])
    lasting = MEMORIES[0] * (1.0 - np.exp(-1.0)) * np.exp(-1.0)
    np.testing.assert_allclose(found.memories[0][0].profile, lasting, rtol=2e-3)


@pytest.mark.parametrize("frames", [7, 50, 1234])
def test_longer_memories_hold_more_and_lose_no_frame_between_two_blocks(frames: int) -> None:
    sums, where = RunningSums(), sectors()
    for n in range(frames):
        add(sums, where, 1.0, hit=bool(n % 2))
    found = sums.copy()
    assert found is not None
    for memory, length in zip(found.memories, MEMORIES, strict=True):
        expected = length * (1.0 - (1.0 - 1.0 / length) ** frames)
        assert memory[0].frames + memory[1].frames == pytest.approx(expected, rel=0.03 if length > 1000 else 1e-9)
        np.testing.assert_allclose(memory[0].profile, memory[0].frames)
    assert found.run[0].frames + found.run[1].frames == frames


def test_a_series_that_begins_leaves_the_run_as_it_is() -> None:
    sums, where = RunningSums(), sectors()
    add(sums, where, 1.0)
    sums.begin_latest()
    add(sums, where, 1.0)
    found = sums.copy()
    assert found is not None
    assert (found.run[0].frames, found.memories[0][0].frames) == (2.0, 1.0)


@pytest.mark.parametrize("how", ["other bins", "reset"])
def test_another_geometry_begins_anew(how: str) -> None:
    sums, where = RunningSums(), sectors()
    add(sums, where, 1.0)
    if how == "reset":
        sums.reset()
        assert sums.copy() is None
    other = sectors()
    add(sums, other, 2.0)
    found = sums.copy()
    assert found is not None
    assert found.sectors is other
    assert found.run[0].frames == 1.0


def test_saturated_frames_are_counted_and_left_out() -> None:
    sums, where = RunningSums(), sectors()
    add(sums, where, 1.0)
    add(sums, where, 9.0, saturated=True)
    found = sums.copy()
    assert found is not None
    assert (found.run[0].frames, found.frames) == (1.0, 2)
    assert found.saturated_share == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_allclose(found.run[0].profile, 1.0)


def test_a_copy_is_not_written_to_any_more() -> None:
    sums, where = RunningSums(), sectors()
    add(sums, where, 1.0)
    found = sums.copy()
    add(sums, where, 1.0)
    assert found is not None
    np.testing.assert_allclose(found.run[0].profile, 1.0)
