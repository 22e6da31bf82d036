"""What is odd about a stream is counted, once and by kind, and nothing else depends on it."""

import time
from dataclasses import replace

import pytest

from streamer.account import Account
from streamer.messages import EndMessage, ImageMessage, Message, SeriesMetadata, StartMessage
from streamer.oddities import Oddity, Rhythm
from streamer.series import SeriesTracker

PERIOD_S = 0.005


class Run:
    """A tracker that is fed messages, each with the seconds after the one before."""

    def __init__(self, frame_time_s: float | None = PERIOD_S) -> None:
        self.account = Account()
        self._tracker = SeriesTracker(self.account)
        self._now_s = 100.0
        self.header = SeriesMetadata(number_of_images=1000, frame_time_s=frame_time_s)
        self.feed(StartMessage(1, self.header))

    def feed(self, message: Message, after_s: float = PERIOD_S) -> "Run":
        self._now_s += after_s
        list(self._tracker.handle(message, self._now_s))
        return self

    def images(self, *ids: int, clock_s: float = 0.0, after_s: float = PERIOD_S) -> "Run":
        for n in ids:
            self.feed(image(n, clock_s), after_s)
        return self

    @property
    def odd(self) -> dict[str, int]:
        return {str(kind): count for kind, count in self.account.oddities.items() if count}


def image(image_id: int, clock_s: float = 0.0, series_id: int = 1) -> ImageMessage:
    return ImageMessage(series_id, image_id, start_time_s=clock_s + image_id * PERIOD_S)


def test_a_good_stream_has_none_and_every_kind_is_there_from_the_start() -> None:
    run = Run().images(*range(100)).feed(EndMessage(1))
    assert run.odd == {}
    assert run.account.oddities == dict.fromkeys(Oddity, 0)


def test_a_start_or_an_end_said_again_is_counted() -> None:
    run = Run().images(0, 1)
    run.feed(StartMessage(1, run.header)).images(2).feed(EndMessage(1)).feed(EndMessage(1)).feed(EndMessage(1))
    assert run.odd == {"repeated_start": 1, "repeated_end": 2}


def test_the_first_end_of_a_series_that_is_over_already_is_not_repeated() -> None:
    run = Run()
    run.feed(StartMessage(2, replace(run.header, number_of_images=1))).feed(image(0, series_id=2))
    run.feed(EndMessage(2), after_s=5.0)
    # Of series 1 too, which the start of series 2 ended.
    run.feed(EndMessage(1))
    assert run.account.series_ended["last announced image"] == 1
    assert run.odd == {}


def test_an_image_below_the_highest_is_late_and_a_copy_of_one_a_duplicate_alone() -> None:
    run = Run().images(0, 2, 1, 3, 7, 8, 4, 4, 9)
    assert run.odd == {"late_image": 2}
    assert run.account.dropped["duplicate"] == 1


def test_what_is_not_accepted_is_not_odd() -> None:
    run = Run().images(0, 1).feed(image(5000, 1e6)).feed(image(0, 1e6)).images(2)
    assert run.odd == {}


@pytest.mark.parametrize("frame_time_s", [PERIOD_S, None])
def test_a_clock_that_goes_back_or_ahead_is_counted_where_it_turns(frame_time_s: float | None) -> None:
    run = Run(frame_time_s).images(0, 1, 2).images(3, 4, clock_s=3600.0).images(5, 6)
    assert run.odd == {"clock_jump": 1, "clock_back": 1}


def test_images_that_have_no_time_are_passed_over() -> None:
    run = Run().images(0, 1).feed(ImageMessage(1, 2)).images(3, 4)
    assert run.odd == {}


def test_lost_images_and_triggers_far_apart_are_neither_jump_nor_pause() -> None:
    run = Run().images(*range(10)).images(*range(500, 510))
    # A trigger every two seconds: clock and arrival go on together.
    for n in range(510, 520):
        run.images(n, clock_s=2.0 * (n - 509), after_s=2.0)
    # One that was held up for a while, and then the next one.
    run.images(520, clock_s=22.0, after_s=2.1).images(521, clock_s=24.0, after_s=1.9)
    assert run.odd == {}


def test_a_pause_is_counted_and_images_that_come_slowly_throughout_make_none() -> None:
    run = Run().images(*range(5)).images(5, after_s=0.5).images(*range(6, 20), after_s=0.0)
    assert run.odd == {"pause": 1}
    assert Run().images(*range(50), after_s=0.25).odd == {}
    # A rate that falls for good is the pace before long.
    slower = Run().images(*range(10)).images(*range(10, 200), after_s=0.25).odd["pause"]
    assert 0 < slower < 20


def test_a_new_series_has_a_clock_and_a_pace_of_its_own() -> None:
    run = Run().images(0, 1, 2, clock_s=500.0).feed(EndMessage(1))
    run.feed(StartMessage(2, run.header), 60.0)
    run.feed(image(0, series_id=2), 30.0).feed(image(1, series_id=2))
    assert run.odd == {}


def test_looking_costs_a_frame_next_to_nothing() -> None:
    rhythm, messages = Rhythm(), [image(n) for n in range(20_000)]
    began = time.perf_counter()
    for n, message in enumerate(messages):
        rhythm.follow(message, n * PERIOD_S, PERIOD_S)
    each_s = (time.perf_counter() - began) / len(messages)
    print(f"{each_s * 1e6:.2f} us a frame")
    assert each_s < 50e-6
