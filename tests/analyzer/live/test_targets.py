"""Collected, rate and time left of a target."""

from unittest import mock

import pytest

from analyzer.live.targets import RATE_OVER_S, Targets


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock():  # type: ignore[no-untyped-def]
    with mock.patch("analyzer.live.targets.time", Clock()) as clock:
        yield clock


def test_time_left_follows_from_the_rate(clock: Clock) -> None:
    hits = [100]
    targets = Targets(lambda: hits[0])
    targets.set(hits=1000)
    assert targets.facts() == {
        "hits": {"target": 1000, "collected": 0, "rate_hz": None, "left_s": None},
        "indexed": None,
    }
    clock.now, hits[0] = 50.0, 200
    assert targets.facts()["hits"] == {"target": 1000, "collected": 100, "rate_hz": 2.0, "left_s": 450.0}


def test_the_rate_is_of_the_last_minutes_and_not_of_the_whole_run(clock: Clock) -> None:
    hits = [0]
    targets = Targets(lambda: hits[0])
    for second in range(0, 3600, 5):
        clock.now = float(second)
        hits[0] += 50 if second < 1800 else 5
        targets.facts()
    rate = targets.facts()["hits"]["rate_hz"]
    assert rate == pytest.approx(1.0, rel=0.05)
    assert len(targets._samples) <= RATE_OVER_S / 5 + 2


def test_a_target_that_is_reached_has_no_time_left(clock: Clock) -> None:
    hits = [0]
    targets = Targets(lambda: hits[0], lambda: 7)
    targets.set(hits=10, indexed=None)
    clock.now, hits[0] = 60.0, 10
    facts = targets.facts()
    assert facts["hits"]["left_s"] == 0.0
    assert facts["indexed"] == {"target": None, "collected": 0, "rate_hz": 0.0, "left_s": None}


def test_without_progress_no_time_left_is_claimed(clock: Clock) -> None:
    targets = Targets(lambda: 3)
    targets.set(hits=10)
    targets.facts()
    clock.now = 120.0
    assert targets.facts()["hits"]["left_s"] is None


def test_counting_begins_anew(clock: Clock) -> None:
    hits = [50]
    targets = Targets(lambda: hits[0])
    hits[0] = 80
    assert targets.facts()["hits"]["collected"] == 30
    targets.restart()
    assert targets.facts()["hits"]["collected"] == 0


def test_a_target_of_something_else_is_refused(clock: Clock) -> None:
    with pytest.raises(KeyError):
        Targets(lambda: 0).set(frames=5)
