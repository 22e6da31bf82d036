"""The state machine of series, without a socket."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer import series as tracking
from streamer.account import Account
from streamer.messages import (
    ConfigMessage,
    Defect,
    EndMessage,
    ImageMessage,
    InvalidMessage,
    Message,
    SeriesMetadata,
    StartMessage,
)
from streamer.series import (
    MAX_UNANNOUNCED_ID,
    IdSet,
    ImageAccepted,
    SeriesClosed,
    SeriesOpened,
    SeriesTracker,
    SeriesUpdated,
)


def start(series_id: int, images: int | None = None, uid: str | None = None, date: str | None = None) -> StartMessage:
    return StartMessage(series_id, SeriesMetadata(number_of_images=images, arm_date=date), uid)


def image(series_id: int, image_id: int, uid: str | None = None) -> ImageMessage:
    return ImageMessage(series_id, image_id, unique_id=uid)


def images(series_id: int, *ids: int, uid: str | None = None) -> list[Message]:
    return [image(series_id, n, uid) for n in ids]


class Run:
    """A tracker, what it said and a clock."""

    def __init__(self) -> None:
        self.account = Account()
        self.tracker = SeriesTracker(self.account)
        self.events: list[Any] = []
        self.now = 0.0

    def feed(self, *messages: Message) -> "Run":
        for message in messages:
            self.events += self.tracker.handle(message, self.now)
        return self

    def wait(self, seconds: float) -> "Run":
        self.now += seconds
        self.events += self.tracker.tick(self.now)
        return self

    def finish(self) -> "Run":
        self.events += self.tracker.finish()
        return self

    @property
    def accepted(self) -> list[tuple[int, int]]:
        """(ordinal, image id) in order."""
        return [(e.series.ordinal, e.image.image_id) for e in self.events if isinstance(e, ImageAccepted)]

    @property
    def closed(self) -> list[SeriesClosed]:
        return [event for event in self.events if isinstance(event, SeriesClosed)]

    @property
    def opened(self) -> list[int]:
        return [event.series.series_id for event in self.events if isinstance(event, SeriesOpened)]

    def dropped(self) -> dict[str, int]:
        return {reason: count for reason, count in self.account.dropped.items() if count}


def missing(head: int = 0, gap: int = 0, tail: int = 0) -> dict[str, int]:
    return {"head": head, "gap": gap, "tail": tail}


def test_a_whole_series_is_accepted_in_order() -> None:
    run = Run().feed(start(1, 3), *images(1, 0, 1, 2), EndMessage(1))
    assert run.accepted == [(1, 0), (1, 1), (1, 2)]
    (closed,) = run.closed
    assert (closed.announced, closed.accepted, closed.missing, closed.why) == (3, 3, missing(), "end message")
    assert (run.account.announced, run.account.received, run.account.accepted) == (3, 3, 3)


def test_missing_images_are_counted_by_place() -> None:
    run = Run().feed(start(1, 10), *images(1, 2, 3, 6), EndMessage(1))
    assert run.closed[0].missing == missing(gap=4, tail=3)
    assert run.account.missing == missing(gap=4, tail=3)
    assert run.account.announced == run.account.accepted + sum(run.account.missing.values())


def test_a_series_without_images_lost_them_at_its_tail() -> None:
    assert Run().feed(start(1, 10), EndMessage(1)).closed[0].missing == missing(tail=10)
    assert Run().feed(start(1), EndMessage(1)).closed[0].missing == missing()


def test_silence_never_ends_a_series() -> None:
    run = Run().feed(start(1, 10), *images(1, 0)).wait(1e6).feed(*images(1, 1))
    assert run.accepted == [(1, 0), (1, 1)]
    assert not run.closed


def test_a_series_is_over_one_second_after_its_last_announced_image() -> None:
    run = Run().feed(start(1, 3), *images(1, 0, 2)).wait(0.9).feed(*images(1, 1)).wait(0.09)
    assert not run.closed
    run.wait(0.02)
    assert run.closed[0].why == "last announced image"
    assert run.closed[0].missing == missing()
    run.feed(*images(1, 1), EndMessage(1))
    assert run.dropped() == {"stale_series": 1}
    assert len(run.closed) == 1


def test_a_start_opens_its_series_whatever_its_id() -> None:
    run = Run().feed(start(9, 5), *images(9, 0), start(1, 2), *images(1, 0, 1), EndMessage(1))
    assert run.opened == [9, 1]
    assert [closed.why for closed in run.closed] == ["new start", "end message"]
    run.feed(start(9, 1), *images(9, 0), EndMessage(9))
    assert run.accepted[-1] == (3, 0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"uid": "A"}, {"uid": "B"}),
        ({"date": "2026-11-22T10:00"}, {"date": "2026-11-22T11:00"}),
        ({"uid": "A", "date": "x"}, {"uid": "B", "date": "x"}),
    ],
)
def test_a_rebooted_detector_starts_its_first_series_again(first: dict[str, str], second: dict[str, str]) -> None:
    run = Run().feed(start(1, 3, **first), *images(1, 0, 1), start(1, 3, **second), *images(1, 0, 1, 2))
    assert run.accepted == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert run.closed[0].missing == missing(tail=1)
    assert not run.dropped()


def test_a_repeated_start_replaces_metadata() -> None:
    run = Run().feed(start(1, 3, "A"), *images(1, 0, uid="A"), start(1, 4, "A"), *images(1, 1, 3, uid="A"))
    assert [type(event).__name__ for event in run.events] == [
        "SeriesOpened", "ImageAccepted", "SeriesUpdated", "ImageAccepted", "ImageAccepted",
    ]  # fmt: skip
    assert run.opened == [1]
    assert run.events[2].series.metadata.number_of_images == 4
    assert run.account.announced == 4
    assert run.finish().closed[0].missing == missing(gap=1)


def test_a_repeated_start_never_makes_missing_negative() -> None:
    run = Run().feed(start(1, 10), *images(1, *range(8)), start(1, 5), EndMessage(1))
    assert run.closed[0].missing == missing()
    assert run.account.announced == run.account.accepted == 8
    run = Run().feed(start(1, 10), *images(1, 0, 1), start(1, None), EndMessage(1))
    assert run.closed[0].missing == missing(tail=8)


def test_a_repeated_start_that_announces_less_still_ends_after_a_second() -> None:
    run = Run().feed(start(1, 10), *images(1, 0, 1), start(1, 2)).wait(1.1)
    assert run.closed[0].why == "last announced image"


def test_a_start_without_a_date_after_the_last_image_is_a_rebooted_detector() -> None:
    run = Run().feed(start(1, 2), *images(1, 0, 1), start(1, 2), *images(1, 0, 1), EndMessage(1))
    assert [closed.why for closed in run.closed] == ["new start", "end message"]
    assert run.account.announced == run.account.accepted == 4


def test_a_foreign_image_or_end_never_ends_the_running_series() -> None:
    run = Run().feed(
        start(2, 9), *images(2, 0), *images(7, 0), EndMessage(7), *images(6, 0), EndMessage(8), *images(2, 1)
    )
    assert run.accepted == [(1, 0), (1, 1)]
    assert not run.closed
    assert run.dropped() == {"stale_series": 2}


def test_a_series_is_joined_after_three_consecutive_messages_and_all_three_count() -> None:
    run = Run().feed(*images(4, 5, 6))
    assert not run.events
    assert run.tracker.pending == 2
    run.feed(*images(4, 7, 8))
    assert run.accepted == [(1, 5), (1, 6), (1, 7), (1, 8)]
    assert run.events[0].series.joined
    assert run.feed(EndMessage(4)).closed[0].missing == missing(head=5)
    assert run.account.received == run.account.accepted == 4


def test_three_foreign_messages_in_a_row_end_the_running_series() -> None:
    run = Run().feed(start(2, 9), *images(2, 0), *images(7, 0, 1, 2))
    assert run.accepted == [(1, 0), (2, 0), (2, 1), (2, 2)]
    assert run.closed[0].why == "another series runs"


@pytest.mark.parametrize("between", [images(2, 1), [EndMessage(3)], images(9, 0), [start(2, 9)]])
def test_messages_with_another_between_are_not_consecutive(between: list[Message]) -> None:
    run = Run().feed(start(2, 9), *images(2, 0), *images(7, 0, 1), *between, *images(7, 2), *images(2, 5))
    assert run.closed == []
    assert run.dropped()["stale_series"] >= 3
    assert run.account.in_flight == len(run.accepted)


def test_the_end_message_may_be_the_third_in_a_row() -> None:
    run = Run().feed(*images(4, 8, 9), EndMessage(4))
    assert run.accepted == [(1, 8), (1, 9)]
    assert run.closed[0].missing == missing(head=8)
    run = Run().feed(*images(4, 9), EndMessage(4), *images(4, 7, 8, 6))
    assert not run.accepted
    assert run.dropped() == {"stale_series": 4}


def test_what_is_over_stays_over() -> None:
    run = Run().feed(start(1, 3, "A"), *images(1, 0, uid="A"), EndMessage(1, "A"), *images(1, 0, 1, 2, uid="A"))
    assert run.dropped() == {"stale_series": 3}
    # The same id of a rebooted detector is another series.
    run.feed(*images(1, 0, 1, 2, uid="B"))
    assert [closed.why for closed in run.closed] == ["end message"]
    assert run.accepted[-3:] == [(2, 0), (2, 1), (2, 2)]


def test_of_257_ended_series_the_first_is_forgotten_and_a_late_image_of_it_is_a_stranger_s() -> None:
    run = Run()
    for series_id in range(257):
        run.feed(start(series_id, 1), *images(series_id, 0), EndMessage(series_id))
    run.feed(start(1000, 9), *images(1000, 0))
    # Of the second it is known that it is over: stale at once.
    run.feed(*images(1, 0))
    assert (run.tracker.pending, run.dropped()) == (0, {"stale_series": 1})
    # The first is one of a series never seen: it waits for the next of its series, and is stale without.
    run.feed(*images(0, 0))
    assert (run.tracker.pending, run.dropped()) == (1, {"stale_series": 1})
    run.feed(*images(1000, 1))
    assert (run.tracker.pending, run.dropped()) == (0, {"stale_series": 2})
    assert run.tracker.running is not None
    # Three in a row are joined, as any series without a start is, and end the one that runs.
    run.feed(*images(0, 0, 0, 0))
    assert run.closed[-1].why == "another series runs"
    assert run.opened[-1] == 0
    assert run.dropped() == {"stale_series": 2, "duplicate": 2}
    assert run.account.received == len(run.accepted) + sum(run.dropped().values())


def test_a_second_copy_is_a_duplicate_even_of_an_undecodable_image() -> None:
    broken = ImageMessage(1, 0, defect=Defect("missing_data", "cut"))
    run = Run().feed(start(1, 3), broken, *images(1, 0, 1, 1))
    assert run.accepted == [(1, 0), (1, 1)]
    assert run.events[1].image.defect is not None
    assert run.dropped() == {"duplicate": 2}


def test_ids_outside_what_was_announced_are_refused() -> None:
    run = Run().feed(start(1, 3), *images(1, -1, -(2**63), 3, 2**62, 2))
    assert run.accepted == [(1, 2)]
    assert run.dropped() == {"out_of_range": 4}
    assert run.finish().closed[0].missing == missing(gap=2)


def test_an_absurd_id_of_an_unannounced_series_does_not_fill_the_account() -> None:
    run = Run().feed(start(1), *images(1, 0, 2**62, MAX_UNANNOUNCED_ID, MAX_UNANNOUNCED_ID - 1, 1), EndMessage(1))
    assert run.accepted == [(1, 0), (1, MAX_UNANNOUNCED_ID - 1), (1, 1)]
    assert run.dropped() == {"out_of_range": 2}


def test_huge_ids_cost_little_memory() -> None:
    ids = IdSet()
    for n in range(10_000):
        assert ids.add(n)
        assert ids.add((1 << 62) + n)
    assert not ids.add(5)
    assert (ids.count, ids.lowest, ids.highest) == (20_000, 0, (1 << 62) + 9_999)
    assert len(ids._chunks) < 30


def test_a_series_announced_with_no_images_accepts_none() -> None:
    run = Run().feed(start(1, 0), *images(1, 0), EndMessage(1))
    assert run.dropped() == {"out_of_range": 1}
    assert run.closed[0].missing == missing()


def test_a_split_header_becomes_whole() -> None:
    header = StartMessage(1, SeriesMetadata(), complete=False)
    config = ConfigMessage(SeriesMetadata(number_of_images=3))
    run = Run().feed(header, config, *images(1, 0, 1, 2)).wait(1.1)
    assert [type(e).__name__ for e in run.events[:2]] == ["SeriesOpened", "SeriesUpdated"]
    assert run.closed[0].announced == 3
    late = Run().feed(header, *images(1, 0, 1, 2), config).wait(1.1)
    assert late.closed[0].missing == missing()
    assert isinstance(late.events[-2], SeriesUpdated)


def test_a_configuration_out_of_place_is_invalid() -> None:
    config = ConfigMessage(SeriesMetadata(number_of_images=3))
    for run in (Run(), Run().feed(start(1, 3)), Run().feed(*images(4, 5, 6, 7))):
        with pytest.raises(InvalidMessage):
            run.feed(config)
    joined = Run().feed(*images(4, 5, 6, 7))
    with pytest.raises(InvalidMessage):
        joined.feed(config)
    assert joined.tracker.running is not None
    assert joined.tracker.running.metadata.number_of_images is None


def test_a_late_start_gives_a_joined_series_its_metadata() -> None:
    run = Run().feed(*images(4, 5, 6, 7), start(4, 10), *images(4, 9)).wait(1.1)
    assert run.closed[0].missing == missing(head=5, gap=1)
    assert run.account.announced == 10 == run.account.accepted + sum(run.account.missing.values())


def test_the_end_of_the_source_ends_the_series_and_settles_what_was_held_back() -> None:
    run = Run().feed(start(1, 3), *images(1, 0), *images(7, 0, 1)).finish()
    assert run.closed[0].why == "source ended"
    assert run.dropped() == {"stale_series": 2}
    assert run.tracker.pending == 0
    assert run.finish().closed == run.closed


_MESSAGES = st.one_of(
    st.builds(start, st.integers(1, 3), st.one_of(st.none(), st.integers(0, 6)), st.sampled_from([None, "A", "B"])),
    st.builds(image, st.integers(1, 3), st.integers(-1, 7), st.sampled_from([None, "A", "B"])),
    st.builds(image, st.integers(1, 3), st.integers(-1, 7), st.sampled_from([None, "A", "B"])),
    st.builds(EndMessage, st.integers(1, 3), st.sampled_from([None, "A", "B"])),
    st.just(ConfigMessage(SeriesMetadata(number_of_images=4))),
    st.floats(0, 2),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_MESSAGES, max_size=40))
def test_whatever_comes_the_account_adds_up(steps: list[Any]) -> None:
    run = Run()
    for step in steps:
        if isinstance(step, float):
            run.wait(step)
            continue
        try:
            run.feed(step)
        except InvalidMessage:
            assert isinstance(step, ConfigMessage)
    run.finish()
    account = run.account
    assert account.received == sum(isinstance(step, ImageMessage) for step in steps)
    assert account.received == len(run.accepted) + sum(account.dropped.values())
    assert account.accepted == len(run.accepted) == len(set(run.accepted))
    assert len(run.opened) == len(run.closed)
    assert min(account.missing.values()) >= 0
    assert account.announced == sum(closed.announced or 0 for closed in run.closed)
    assert account.missing == {p: sum(closed.missing[p] for closed in run.closed) for p in ("head", "gap", "tail")}
    for closed in run.closed:
        assert closed.accepted == sum(ordinal == closed.series.ordinal for ordinal, _ in run.accepted)
        if closed.announced is not None:
            assert closed.announced == closed.accepted + sum(closed.missing.values())


def test_ids_that_are_strewn_take_bounded_memory_and_what_is_beyond_is_out_of_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "MOST_CHUNKS", 4)
    run = Run().feed(start(1, 1 << 40), *images(1, *(1024 * n for n in range(10))), *images(1, 1, 1025))
    account = run.account
    assert account.received == 12
    assert account.dropped["out_of_range"] == 6
    assert account.accepted == 6


def test_series_of_one_detector_share_its_maps_which_every_header_brings_again() -> None:
    def begun(series_id: int, bad: int, **more: Any) -> StartMessage:
        mask = np.zeros((4, 6), np.uint32)
        mask[0, bad] = 1
        flat = np.ones((4, 6), np.float32)
        return StartMessage(
            series_id, SeriesMetadata(masks={"threshold_1": mask}, flatfields={"threshold_1": flat}, **more)
        )

    run = Run().feed(begun(1, 2), begun(2, 2, arm_date="later"), start(3), begun(4, 2), begun(5, 3))
    first, second, bare, fourth, other = [e.series.metadata for e in run.events if isinstance(e, SeriesOpened)]
    assert second.masks["threshold_1"] is first.masks["threshold_1"] is fourth.masks["threshold_1"]
    assert second.flatfields["threshold_1"] is first.flatfields["threshold_1"]
    assert second.arm_date == "later"
    assert not bare.masks
    assert other.masks["threshold_1"][0].tolist() == [0, 0, 0, 1, 0, 0]
