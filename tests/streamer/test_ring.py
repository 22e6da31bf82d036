"""The ring between the receiver and the workers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from streamer import stream_v2
from streamer.frames import Frame, make_frame
from streamer.messages import Algorithm, Defect, ImageData, ImageMessage, SeriesMetadata
from streamer.ring import FrameRing
from streamer.series import Series
from tests.support import packed_image, poisson

SERIES = Series(1, 1, None, SeriesMetadata())


def frame(image_id: int, size: int = 100) -> Frame:
    image = ImageData(bytes(size), (1, size), np.dtype("u1"), Algorithm.RAW, 1)
    return Frame(SERIES, image_id, "threshold_1", image, None, None, 0.0)


def ids(frames: list[Frame]) -> list[int]:
    return [one.image_id for one in frames]


def test_frames_come_out_in_the_order_they_went_in() -> None:
    ring = FrameRing()
    for n in range(5):
        assert ring.put(frame(n))
    assert len(ring) == 5
    assert ids(ring.take(3, 0, 0)) == [0, 1, 2]
    assert ids(ring.take(3, 0, 0)) == [3, 4]
    assert ring.take(3, 0, 0) == []
    assert ring.held_bytes == 0


def test_a_ring_is_bounded_in_bytes_and_in_frames() -> None:
    ring = FrameRing(max_bytes=250, max_frames=10)
    assert [ring.put(frame(n)) for n in range(3)] == [True, True, False]
    ring = FrameRing(max_frames=2)
    assert [ring.put(frame(n)) for n in range(3)] == [True, True, False]
    assert ring.capacity == 2


def test_a_frame_larger_than_the_ring_passes_alone() -> None:
    ring = FrameRing(max_bytes=50)
    assert ring.put(frame(0))
    assert not ring.put(frame(1, 10))
    assert ids(ring.take(1, 0, 0)) == [0]
    assert ring.put(frame(1, 10))


def test_bytes_are_those_that_a_frame_keeps_in_memory() -> None:
    pixels = poisson(3)
    channels = {name: packed_image(image) for name, image in zip(("a", "b", "c"), pixels, strict=True)}
    data = stream_v2.encode_image(ImageMessage(1, 0, channels))
    message = stream_v2.parse(memoryview(data))
    assert isinstance(message, ImageMessage)
    kept = make_frame(SERIES, message, 0.0, "b")
    assert kept.nbytes < kept.held_bytes == len(data)
    broken = Frame(SERIES, 0, "a", Defect("failed", ""), None, None, 0.0)
    assert broken.held_bytes == broken.nbytes == 0


def test_a_reader_lingers_for_a_full_batch_and_no_longer() -> None:
    ring = FrameRing()
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        batch = pool.submit(ring.take, 3, 5.0, 5.0)
        for n in range(3):
            time.sleep(0.02)
            ring.put(frame(n))
        assert ids(batch.result(30)) == [0, 1, 2]
    assert time.monotonic() - began < 4, "of 5 s that it would linger"
    ring.put(frame(9))
    assert ids(ring.take(3, 0.02, 5.0)) == [9]


def test_a_reader_does_not_linger_while_the_writer_waits() -> None:
    ring = FrameRing(max_frames=2)
    ring.put(frame(0))
    ring.put(frame(1))
    with ThreadPoolExecutor(1) as pool:
        placed = pool.submit(ring.put, frame(2), 5.0)
        time.sleep(0.05)
        began = time.monotonic()
        assert ids(ring.take(8, 30.0, 1.0)) == [0, 1]
        assert time.monotonic() - began < 10, "of 30 s that it would linger"
        assert placed.result(30)


def test_a_blocked_writer_gives_up_in_time_or_when_the_ring_closes() -> None:
    ring = FrameRing(max_frames=1)
    ring.put(frame(0))
    began = time.monotonic()
    assert not ring.put(frame(1), 0.05)
    assert 0.04 < time.monotonic() - began < 5
    with ThreadPoolExecutor(1) as pool:
        placed = pool.submit(ring.put, frame(1), 30.0)
        time.sleep(0.05)
        ring.close()
        assert placed.result(30) is False
    assert not ring.finished
    assert ids(ring.take(5, 0, 0)) == [0]
    assert ring.finished
    assert not ring.put(frame(2))


def test_closing_wakes_every_waiting_reader() -> None:
    ring = FrameRing()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ring.take, 1, 0.0, 30.0) for _ in range(4)]
        time.sleep(0.05)
        ring.close()
        assert [reader.result(30) for reader in waiting] == [[]] * 4


def test_an_idle_reader_gets_a_frame_while_another_lingers() -> None:
    ring = FrameRing()
    with ThreadPoolExecutor(2) as pool:
        lingering = pool.submit(ring.take, 100, 60.0, 60.0)
        time.sleep(0.02)
        ring.put(frame(0))
        idle = pool.submit(ring.take, 1, 0.0, 60.0)
        assert ids(idle.result(30)) == [0], "of 60 s that the other lingers"
        ring.close()
        assert lingering.result(30) == []


def test_several_readers_and_a_blocked_writer_lose_and_repeat_nothing() -> None:
    ring = FrameRing(max_bytes=700, max_frames=7)
    total, seen, lock = 5000, [], threading.Lock()

    def read(most: int) -> None:
        while not ring.finished:
            batch = ring.take(most, 0.001, 0.05)
            with lock:
                seen.extend(ids(batch))

    readers = [threading.Thread(target=read, args=(most,)) for most in (1, 2, 3, 16)]
    for reader in readers:
        reader.start()
    assert all(ring.put(frame(n), 10.0) for n in range(total))
    ring.close()
    for reader in readers:
        reader.join(10)
        assert not reader.is_alive()
    assert sorted(seen) == list(range(total))
    assert ring.held_bytes == 0


def test_a_reader_that_lingers_is_not_woken_by_each_frame() -> None:
    ring = FrameRing()
    woken = []
    wait = ring._filled.wait
    ring._filled.wait = lambda timeout=None: (woken.append(1), wait(timeout))[1]  # type: ignore[method-assign,func-returns-value]
    with ThreadPoolExecutor() as pool:
        taking = pool.submit(ring.take, 8, 5.0, 5.0)
        for number in range(8):
            time.sleep(0.01)
            assert ring.put(frame(number))
        assert ids(taking.result(10)) == list(range(8))
    # Asleep before the first frame, and once more until the batch is full.
    assert len(woken) <= 3


def test_of_readers_that_linger_for_different_numbers_the_one_that_has_enough_goes() -> None:
    ring = FrameRing()
    with ThreadPoolExecutor() as pool:
        many, few = pool.submit(ring.take, 100, 60.0, 60.0), pool.submit(ring.take, 2, 60.0, 60.0)
        time.sleep(0.05)
        for number in range(3):
            ring.put(frame(number))
        assert ids(few.result(30)) in ([0, 1], [0, 1, 2]), "of 60 s that both linger"
        ring.close()
        many.result(30)


def test_a_reader_takes_no_more_than_the_frame_that_reaches_its_bytes() -> None:
    ring = FrameRing()
    for number in range(5):
        ring.put(frame(number, 100))
    assert ids(ring.take(8, 0, 0, 150)) == [0, 1]
    assert ids(ring.take(8, 0, 0, 1)) == [2]
    assert ids(ring.take(1, 0, 0, 1000)) == [3]
    assert (ring.held_bytes, ids(ring.take(8, 0, 0)), ring.held_bytes) == (100, [4], 0)
