"""The latest frames' codes are those that a list of arrays would keep, in memory that does not change."""

from collections import deque

import numpy as np
import pytest

from analyzer.latest_codes import LatestCodes


@pytest.mark.parametrize("seed", range(6))
def test_what_is_kept_is_what_a_list_of_arrays_would_keep(seed: int) -> None:
    rng = np.random.default_rng(seed)
    most_frames, most_codes = int(rng.integers(1, 30)), int(rng.integers(20, 200))
    kept, model = LatestCodes(most_frames, most_codes), deque[tuple[int, list[int]]]()
    forgotten = 0
    for number in range(1, 400):
        codes = rng.integers(0, 1 << 31, rng.integers(0, rng.choice([3, 21])))
        kept.append(number, codes)
        model.append((number, codes.tolist()))
        while len(model) > most_frames or sum(len(each) for _, each in model) > most_codes:
            forgotten, _ = model.popleft()
        latest = kept.latest()
        assert latest.number.tolist() == [number for number, _ in model]
        assert latest.size.tolist() == [len(each) for _, each in model]
        assert latest.codes.tolist() == [code for _, each in model for code in each]
        assert (len(kept), kept.codes, kept.forgotten) == (len(model), latest.size.sum(), forgotten)


def test_a_frame_with_more_codes_than_there_is_room_for_keeps_the_first() -> None:
    kept = LatestCodes(3, 10)
    kept.append(1, np.arange(4))
    kept.append(2, np.arange(100, 125))
    latest = kept.latest()
    assert (latest.number.tolist(), latest.codes.tolist()) == ([2], list(range(100, 110)))
    assert kept.forgotten == 1


def test_what_was_asked_for_is_a_copy() -> None:
    kept = LatestCodes(2, 4)
    kept.append(1, np.array([5, 6]))
    before = kept.latest()
    kept.append(2, np.array([7, 8]))
    kept.append(3, np.array([9, 10]))
    assert before.codes.tolist() == [5, 6]
    assert kept.latest().codes.tolist() == [7, 8, 9, 10]


def test_nothing_is_kept_before_the_first_frame() -> None:
    latest = LatestCodes(2, 4).latest()
    assert (len(latest.number), len(latest.size), len(latest.codes)) == (0, 0, 0)
