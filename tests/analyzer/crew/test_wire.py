"""What lies where in messages: images sent on as they came, arrays of a batch in one part; and the wake-up."""

import os
import threading
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import zmq

from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, BatchOutcome, CascadeSettings, PlanCache
from analyzer.crew.outcome import pack_outcome, read_outcome
from analyzer.crew.wakeup import Wakeup
from analyzer.crew.wire import (
    BadMessage,
    Done,
    FrameFacts,
    Item,
    Kind,
    as_received,
    frame_facts,
    header_of,
    part_of,
    read_series,
)
from analyzer.judge import Judge
from analyzer.reduction import FramePlan
from streamer import stream_v2
from streamer.frames import Frame, make_frame
from streamer.messages import ImageMessage
from tests.analyzer.builders import BROKEN, frame, frames_of_a_run, image_data, series
from tests.support import packed_image

# --- images -----------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]]:
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        pull.setsockopt(zmq.RCVTIMEO, 10_000)
        push.connect(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
        yield push, pull


def received(pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"], channels: dict[str, np.ndarray]) -> Frame:  # type: ignore[type-arg]
    """A frame as the receiver makes it of a message of stream v2."""
    push, pull = pair
    images = {name: packed_image(pixels) for name, pixels in channels.items()}
    push.send(stream_v2.encode_image(ImageMessage(1, 0, images)))
    message = stream_v2.parse(pull.recv(copy=False).buffer)
    assert isinstance(message, ImageMessage)
    return make_frame(series(shape=None), message, 0.0, next(iter(channels)))


def test_an_image_is_sent_on_in_the_message_it_came_in(pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]) -> None:
    noise = np.random.default_rng(1).integers(0, 1 << 16, (64, 64)).astype(np.uint16)
    given = received(pair, {"threshold_1": noise})
    data = given.image.data  # type: ignore[union-attr]
    whole, place = as_received(data)
    assert isinstance(whole, zmq.Frame)
    assert place is not None
    assert 0 < place[0] <= len(whole.buffer) - len(data)
    push, pull = pair
    push.send(whole, copy=False)
    facts = frame_facts(given, 1, None, 0, place)
    assert bytes(part_of(facts, [pull.recv(copy=False).buffer])) == bytes(data)


def test_an_image_among_large_other_channels_is_sent_by_itself(
    pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"],
) -> None:
    noise = np.random.default_rng(1).integers(0, 1 << 16, (256, 256)).astype(np.uint16)
    data = received(pair, {"threshold_1": noise, "threshold_2": noise}).image.data  # type: ignore[union-attr]
    assert as_received(data) == (data, None)
    assert as_received(b"plain") == (b"plain", None)


@pytest.mark.parametrize("place", [(-1, 4), (0, -4), (0, 11), (8, 3), (1 << 62, 1 << 62), (10, 1)])
def test_a_place_outside_its_part_is_refused(place: tuple[int, int]) -> None:
    facts = FrameFacts(1, 0, "a", None, None, 0.0, None, (1, 10), "|u1", "raw", 1, part=0, place=place)
    with pytest.raises(BadMessage, match="bytes long, of 10"):
        part_of(facts, [memoryview(bytes(10))])


def test_a_part_that_is_not_there_is_refused() -> None:
    facts = FrameFacts(1, 0, "a", None, None, 0.0, None, (1, 10), "|u1", "raw", 1, part=1)
    with pytest.raises(BadMessage, match="part 1 of 1"):
        part_of(facts, [b""])


# --- outcomes ---------------------------------------------------------------------------


@pytest.fixture
def mixed(bundle: Bundle) -> tuple[list[Frame], BatchOutcome]:
    """A batch of two series with other geometries, one of its images broken."""
    pixels = frames_of_a_run(6)
    other = series(2, 2, camera_length_m=None)
    frames = [
        *(frame(image_data(pixels[number]), number) for number in range(3)),
        frame(BROKEN, 3),
        *(frame(image_data(pixels[number]), number, other) for number in range(3, 6)),
    ]
    judge = Judge(bundle, CascadeSettings())
    return frames, Analyser(bundle, judge.settings, "cpu", PlanCache()).process(frames)


def plan_of(frames: list[Frame], outcome: BatchOutcome, wanted: Frame) -> FramePlan:
    good = [each for each, result in zip(frames, outcome.results, strict=True) if result.reason is None]
    return outcome.peaks[next(n for n, each in enumerate(good) if each is wanted)].plan


def test_the_arrays_of_a_batch_of_several_series_come_back_as_they_were(
    mixed: tuple[list[Frame], BatchOutcome],
) -> None:
    frames, outcome = mixed
    _, header, data = pack_outcome(7, outcome, 0.5, None)
    done = msgspec.msgpack.decode(header, type=Done)
    back = read_outcome(done, [data], frames, lambda frame: plan_of(frames, outcome, frame))
    assert len(back.peaks) == len(outcome.peaks) == 6
    assert sum(len(each.peaks) for each in back.peaks) > 0
    for ours, theirs in zip(back.peaks, outcome.peaks, strict=True):
        np.testing.assert_array_equal(ours.peaks, theirs.peaks)
        np.testing.assert_array_equal(ours.pixel, theirs.pixel)
        np.testing.assert_array_equal(ours.lone, theirs.lone)
        np.testing.assert_allclose(ours.radius_px, theirs.radius_px)
        assert (
            (ours.q_per_angstrom is None)
            == (theirs.q_per_angstrom is None)
            == (ours.plan.geometry.measures_angles is False)
        )
        if ours.q_per_angstrom is not None and theirs.q_per_angstrom is not None:
            np.testing.assert_allclose(ours.q_per_angstrom, theirs.q_per_angstrom)
    for ours, theirs in zip(back.profiles, outcome.profiles, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(back.diffuse, outcome.diffuse, strict=True):
        np.testing.assert_array_equal(ours.profile, theirs.profile)
        assert ours.pairs == theirs.pairs


@pytest.mark.parametrize(
    "change",
    [
        {"profile": 0}, {"profile": -1}, {"peaks": -1}, {"peaks": 1 << 40}, {"diffuse": 0}, {"profile": 1 << 62},
        {"diffuse": 7}, {"peaks": 10_000},
    ],
)  # fmt: skip
def test_counts_that_are_not_those_of_the_arrays_are_refused(
    mixed: tuple[list[Frame], BatchOutcome], change: dict[str, int]
) -> None:
    frames, outcome = mixed
    parts = pack_outcome(7, outcome, 0.5, None)
    done = header_of(parts, Done)
    items = [msgspec.structs.replace(done.items[0], **change), *done.items[1:]]
    with pytest.raises(BadMessage, match="arrays"):
        read_outcome(
            msgspec.structs.replace(done, items=items), parts[2:], frames, lambda f: plan_of(frames, outcome, f)
        )


def test_counts_moved_from_one_image_to_another_are_at_worst_wrong_peaks_inside_the_image(
    mixed: tuple[list[Frame], BatchOutcome],
) -> None:
    frames, outcome = mixed
    parts = pack_outcome(7, outcome, 0.5, None)
    done = header_of(parts, Done)
    total = sum(item.peaks for item in done.items)
    items = [Item(each.profile, total if not n else 0, each.diffuse, each.pairs) for n, each in enumerate(done.items)]
    moved = msgspec.structs.replace(done, items=items)
    back = read_outcome(moved, parts[2:], frames, lambda f: plan_of(frames, outcome, f))
    assert [len(each.peaks) for each in back.peaks] == [total, 0, 0, 0, 0, 0]


# --- the wake-up ------------------------------------------------------------------------


def test_many_calls_are_one_wake_up_and_the_next_call_is_another() -> None:
    wakeup = Wakeup()
    poller = zmq.Poller()
    poller.register(wakeup.descriptor, zmq.POLLIN)
    assert not poller.poll(0)
    for _ in range(1000):
        wakeup.wake()
    assert poller.poll(0)
    wakeup.drain()
    assert not poller.poll(0)
    wakeup.drain()
    wakeup.wake()
    assert poller.poll(0)
    wakeup.close()


def test_nothing_is_written_once_it_is_closed() -> None:
    wakeup = Wakeup()
    number = wakeup.descriptor
    reading, writing = os.pipe()
    wakeup.close()
    wakeup.close()
    # Another file has its number now.
    os.dup2(writing, number)
    wakeup.wake()
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError):
        os.read(reading, 8)
    for each in (number, reading, writing):
        os.close(each)


def test_no_call_is_lost_between_threads() -> None:
    wakeup, poller = Wakeup(), zmq.Poller()
    poller.register(wakeup.descriptor, zmq.POLLIN)
    said: list[int] = []

    def talk() -> None:
        for number in range(2000):
            said.append(number)
            wakeup.wake()

    thread = threading.Thread(target=talk)
    thread.start()
    heard, deadline = 0, time.monotonic() + 20
    while heard < 2000 and time.monotonic() < deadline:
        assert poller.poll(5000), f"asleep with {len(said) - heard} unheard"
        wakeup.drain()
        heard = len(said)
    thread.join()
    assert heard == 2000
    wakeup.close()


def test_a_header_with_values_that_no_header_has_is_refused() -> None:
    facts = {"number": 1, "ordinal": 1, "series_id": 7, "unique_id": None, "masks": {}}
    header = facts | {"header": {}, "raw": {"a": [1, msgspec.msgpack.Ext(5, b"b")]}}
    with pytest.raises(BadMessage, match="1 bytes of extension type 5"):
        read_series([Kind.SERIES.value.encode(), msgspec.msgpack.encode(header)])
