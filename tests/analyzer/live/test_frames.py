"""Frames kept to be looked at: by reference, the newest, a bounded number and bounded bytes of hits."""

from dataclasses import replace

import numpy as np

from analyzer.live.frames import HITS_HELD, MASKS_HELD, LatestFrames
from analyzer.results import Decision, Status
from tests.analyzer.builders import SHAPE, plan, series, water
from tests.analyzer.live.made import Shot, result, shot


def add(held: LatestFrames, *shots: Shot) -> None:
    held.add([each.frame for each in shots], [each.result for each in shots], [each.plan for each in shots])


def keeping(most_bytes: int = 1 << 30) -> LatestFrames:
    held = LatestFrames(most_bytes)
    held.keeping = True
    return held


def hit(image_id: int, at: float = 1000.0) -> Shot:
    return shot(water(1.0, seed=image_id), image_id, decision=Decision.HIT, at=at)


def test_nothing_is_kept_where_nobody_can_look() -> None:
    held = LatestFrames()
    add(held, hit(1))
    assert (held.latest(), held.latest_hit(), held.hits()) == (None, None, [])


def test_the_latest_is_the_one_that_arrived_last_whatever_the_order_of_results() -> None:
    held = keeping()
    add(held, hit(5, at=5.0))
    add(held, shot(water(1.0), 4, at=4.0))
    latest = held.latest()
    assert latest is not None
    assert latest.result.image_id == 5


def test_packed_bytes_are_kept_by_reference() -> None:
    held, one = keeping(), hit(1)
    add(held, one)
    latest = held.latest()
    assert latest is not None
    assert latest.image is one.frame.image


def test_a_hundred_hits_are_held_and_found_by_their_key() -> None:
    held = keeping()
    for n in range(HITS_HELD + 20):
        add(held, hit(n))
    assert [each.result.image_id for each in held.hits()] == list(range(20, HITS_HELD + 20))
    assert held.held("1:19") is None
    found = held.held("1:20")
    assert found is not None
    assert found.facts["image_id"] == 20
    newest = held.latest_hit()
    assert newest is not None
    assert newest.key == "1:119"


def test_large_hits_are_fewer() -> None:
    size = hit(0).frame.held_bytes
    held = keeping(most_bytes=5 * size + size // 2)
    for n in range(30):
        add(held, hit(n))
    assert 3 <= len(held.hits()) <= 6
    giant = keeping(most_bytes=1)
    add(giant, hit(1))
    add(giant, hit(2))
    assert [each.result.image_id for each in giant.hits()] == [2], "one is always held"


def test_hits_of_many_series_are_held_with_one_mask_and_of_many_masks_fewer() -> None:
    held, masks = keeping(), keeping()
    for ordinal in range(40):
        valid = np.ones(SHAPE, np.uint8)
        of_all, of_one = plan(SHAPE), plan(SHAPE, valid=valid)
        valid[0, ordinal] = 0
        for number in range(2):
            one = hit(number)
            frames, results = [replace(one.frame, series=series(ordinal))], [replace(one.result, ordinal=ordinal)]
            held.add(frames, results, [of_all])
            masks.add(frames, results, [of_one])
    assert len(held.hits()) == 80
    assert len({id(each.validity.valid) for each in held.hits()}) == 1
    assert len(masks.hits()) == 2 * MASKS_HELD
    newest = masks.latest_hit()
    assert newest is not None
    assert newest.validity.valid[0, 39] == 0


def test_a_clock_that_was_set_back_leaves_the_latest_frame_the_latest() -> None:
    held = keeping()
    add(held, hit(1, at=5000.0))
    add(held, hit(2, at=4990.0))
    latest = held.latest()
    assert latest is not None
    assert latest.result.image_id == 1, "a late frame"
    add(held, hit(3, at=1400.0))
    latest = held.latest()
    assert latest is not None
    assert latest.result.image_id == 3, "an hour back is the clock"


def test_frames_that_did_not_decode_are_passed_over() -> None:
    held = keeping()
    good, bad = hit(1), hit(2)
    broken = result(2, status=Status.UNDECODABLE, decision=None, hit=None)
    held.add([bad.frame, good.frame], [broken, good.result], [good.plan])
    latest = held.latest()
    assert latest is not None
    assert (latest.result.image_id, latest.geometry is good.plan.geometry) == (1, True)


def test_a_reset_lets_go_and_counts_as_a_change() -> None:
    held = keeping()
    add(held, hit(1))
    before = held.changes
    held.reset()
    assert (held.latest(), held.hits()) == (None, [])
    assert held.changes == before + 1


def test_held_bytes_are_those_of_the_packed_image() -> None:
    one = shot(np.zeros((61, 75), np.uint16), 0)
    assert one.frame.held_bytes < 61 * 75
