"""The replay server on real sockets: what comes out is what lies in the file, and it is counted."""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitshuffle
import cbor2
import hdf5plugin
import numpy as np
import pytest
import zmq

from sim_replay.pace import Pace
from sim_replay.replay import Replay, ReplayReport, ReplaySettings, run_replay
from sim_replay.wire import Wire
from streamer.decoding import decode
from streamer.files import CHANNEL, BadInput, FileSeries
from streamer.messages import EndMessage, ImageData, ImageMessage, StartMessage
from streamer.receiver import parse
from tests.support import SHAPE, read_chunks, read_pixels, write_series, write_single_image

LOOPBACK = "tcp://127.0.0.1:0"


@dataclass
class Running:
    """A replay in a thread, with the consumer's socket if it has one."""

    endpoint: str
    stop: threading.Event
    report: Future[ReplayReport]
    pull: Any

    def receive(self, timeout_s: float = 30.0) -> list[bytes]:
        assert self.pull.poll(timeout_s * 1000), "nothing came"
        parts: list[bytes] = self.pull.recv_multipart()
        return parts

    def receive_all(self) -> list[list[bytes]]:
        """Everything until the replay is over and the socket empty."""
        messages: list[list[bytes]] = []
        # The end of a series may be on its way when the replay is over.
        while self.pull.poll(50) or not self.report.done() or (not ended(messages) and self.pull.poll(3000)):
            if self.pull.poll(0):
                messages.append(self.pull.recv_multipart())
        return messages


def ended(messages: list[list[bytes]]) -> bool:
    return bool(messages) and isinstance(parse([memoryview(part) for part in messages[-1]]), EndMessage)


@contextmanager
def running(settings: ReplaySettings, connect: bool = True, rcvhwm: int = 1000) -> Iterator[Running]:
    """``run_replay`` in a thread, stopped at the end."""
    stop, bound = threading.Event(), Future[str]()
    context = zmq.Context()
    pull = context.socket(zmq.PULL)
    pull.setsockopt(zmq.LINGER, 0)
    pull.setsockopt(zmq.RCVHWM, rcvhwm)
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(run_replay, settings, stop, lambda _, address: bound.set_result(address))
        try:
            endpoint = bound.result(60)
            if connect:
                pull.connect(endpoint)
            yield Running(endpoint, stop, report, pull)
        finally:
            stop.set()
            context.destroy(linger=0)


def images_of(messages: list[list[bytes]]) -> list[ImageMessage]:
    parsed = [parse([memoryview(part) for part in parts]) for parts in messages]
    return [message for message in parsed if isinstance(message, ImageMessage)]


def image_data(message: ImageMessage) -> ImageData:
    image = message.channels[CHANNEL]
    assert isinstance(image, ImageData)
    return image


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_what_comes_out_is_what_lies_in_the_file(tmp_path: Path, protocol: str, dtype: str) -> None:
    master = write_series(tmp_path, dtype=dtype)
    with running(ReplaySettings((str(master),), bind=LOOPBACK, protocol=protocol, first_series_id=41)) as replay:
        messages = replay.receive_all()
        report = replay.report.result(60)
    parsed = [parse([memoryview(part) for part in parts]) for parts in messages]
    start, images, end = parsed[0], images_of(messages), parsed[-1]
    assert isinstance(start, StartMessage)
    assert isinstance(end, EndMessage)
    assert [start.series_id, *(image.series_id for image in images), end.series_id] == [41] * 7
    assert [image.image_id for image in images] == list(range(5))
    assert [bytes(image_data(image).data) for image in images] == read_chunks(master)
    for image, expected in zip(images, read_pixels(master), strict=True):
        out = np.empty(SHAPE, dtype)
        decode(image_data(image), out)
        assert np.array_equal(out, expected)
    meta = start.metadata
    assert (meta.number_of_images, meta.shape, meta.dtype) == (5, SHAPE, np.dtype(dtype))
    assert (meta.photon_energy_eV, meta.camera_length_m, meta.beam_center_x_px) == (7000.0, 0.15, 25.5)
    assert (report.series, report.sent, report.dropped, report.control_lost) == (1, 5, 0, 0)
    assert not report.interrupted


@pytest.mark.parametrize(("dtype", "tag"), [(">u2", 65), (">u4", 66)])
def test_big_endian_pixels_are_carried_as_they_lie_in_the_file(tmp_path: Path, dtype: str, tag: int) -> None:
    master = write_series(tmp_path, dtype=dtype)
    with running(ReplaySettings((str(master),), bind=LOOPBACK)) as replay:
        messages = replay.receive_all()
        assert replay.report.result(60).sent == 5
    assert {cbor2.loads(parts[0][3:])["data"][CHANNEL].value[1].tag for parts in messages[1:-1]} == {tag}
    images = images_of(messages)
    assert [bytes(image_data(image).data) for image in images] == read_chunks(master)
    for image, expected in zip(images, read_pixels(master), strict=True):
        out = np.empty(SHAPE, dtype[1:])
        decode(image_data(image), out)
        assert np.array_equal(out, expected)


def test_the_v2_stream_reads_with_a_general_cbor_decoder(tmp_path: Path) -> None:
    master = write_series(tmp_path)
    with running(ReplaySettings((str(master),), bind=LOOPBACK)) as replay:
        messages = replay.receive_all()
    assert all(len(parts) == 1 and parts[0][:3] == b"\xd9\xd9\xf7" for parts in messages)
    # Without the leading tag the decoder gives plain dictionaries.
    start, *images, end = (cbor2.loads(parts[0][3:]) for parts in messages)
    assert [m["type"] for m in (start, *images, end)] == ["start", *["image"] * 5, "end"]
    assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", start["series_unique_id"])
    assert {m["series_unique_id"] for m in (start, *images, end)} == {start["series_unique_id"]}
    assert abs(start["arm_date"].timestamp() - time.time()) < 60
    for number, image in enumerate(images):
        assert image["series_date"] == start["arm_date"]
        assert image["start_time"][0] / image["start_time"][1] == pytest.approx(0.005 * number, abs=1e-6)
        assert image["stop_time"][0] / image["stop_time"][1] == pytest.approx(0.005 * number + 0.004, abs=1e-6)
        assert image["real_time"][0] / image["real_time"][1] == pytest.approx(0.004)
        dims, typed = image["data"][CHANNEL].value
        algorithm, element, packed = typed.value.value
        assert (image["data"][CHANNEL].tag, typed.tag, typed.value.tag) == (40, 69, 56500)
        assert (list(dims), algorithm, element) == (list(SHAPE), "bslz4", 2)
        block = int.from_bytes(packed[8:12], "big") // 2
        decoded = bitshuffle.decompress_lz4(np.frombuffer(packed[12:], "u1"), SHAPE, np.dtype("u2"), block)
        assert np.array_equal(decoded, read_pixels(master)[number])


@pytest.mark.parametrize(("detail", "parts"), [("none", 1), ("basic", 2), ("all", 8)])
def test_a_v1_header_has_the_parts_of_its_detail(tmp_path: Path, detail: str, parts: int) -> None:
    master = write_series(tmp_path)
    with running(ReplaySettings((str(master),), bind=LOOPBACK, protocol="v1", header_detail=detail)) as replay:
        header, image = replay.receive(), replay.receive()
    assert len(header) == parts
    assert len(image) == 4
    if detail != "none":
        config = json.loads(header[1])
        assert (config["compression"], config["nimages"], config["ntrigger"]) == ("bslz4", 5, 1)


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_header_detail_all_carries_the_mask(tmp_path: Path, protocol: str) -> None:
    master = write_series(tmp_path)
    with running(ReplaySettings((str(master),), bind=LOOPBACK, protocol=protocol, header_detail="all")) as replay:
        start = parse([memoryview(part) for part in replay.receive()])
    assert isinstance(start, StartMessage)
    assert np.argwhere(start.metadata.masks[CHANNEL]).tolist() == [[3, 4]]


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_appendices_are_carried(tmp_path: Path, protocol: str) -> None:
    settings = ReplaySettings(
        (str(write_series(tmp_path)),),
        bind=LOOPBACK,
        protocol=protocol,
        header_detail="all",
        header_appendix={"run": 7},
        image_appendix="dark",
    )
    with running(settings) as replay:
        start, image = (parse([memoryview(part) for part in replay.receive()]) for _ in range(2))
    assert isinstance(start, StartMessage)
    assert isinstance(image, ImageMessage)
    assert start.metadata.user_data == {"run": 7}
    assert image.user_data == "dark"


def test_v1_times_are_the_detector_clock(tmp_path: Path) -> None:
    with running(ReplaySettings((str(write_series(tmp_path)),), bind=LOOPBACK, protocol="v1")) as replay:
        images = images_of(replay.receive_all())
    starts = np.array([image.start_time_s for image in images], float)
    assert np.diff(starts) == pytest.approx(0.005)
    assert 0 <= starts[0] < 60
    assert images[0].exposure_s == pytest.approx(0.004)


def test_series_ids_rise_with_files_and_passes(tmp_path: Path) -> None:
    first, second = write_series(tmp_path, "a", images=2), write_series(tmp_path, "b", images=3)
    settings = ReplaySettings((str(first), str(second)), bind=LOOPBACK, loop=True, first_series_id=5)
    with running(settings) as replay:
        parsed = [parse([memoryview(part) for part in replay.receive()]) for _ in range(2 * (4 + 5))]
        replay.stop.set()
        report = replay.report.result(60)
    starts = [message for message in parsed if isinstance(message, StartMessage)]
    assert [start.series_id for start in starts] == [5, 6, 7, 8]
    assert [start.metadata.number_of_images for start in starts] == [2, 3, 2, 3]
    assert len({start.unique_id for start in starts}) == 4
    assert report.interrupted


def test_alike_single_images_make_one_series(tmp_path: Path) -> None:
    for number in range(3):
        write_single_image(tmp_path / f"single_{number}.h5", np.full(SHAPE, number, "u2"))
    with running(ReplaySettings((str(tmp_path / "single_*.h5"),), bind=LOOPBACK)) as replay:
        messages = replay.receive_all()
    images = images_of(messages)
    assert len(messages) == 5
    assert [image.image_id for image in images] == [0, 1, 2]
    assert [bytes(image_data(image).data)[0] for image in images] == [0, 1, 2]


def test_progress_counts_images_up_to_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    settings = ReplaySettings((str(write_series(tmp_path)),) * 2, bind=LOOPBACK)
    context = zmq.Context()
    pull = context.socket(zmq.PULL)

    def announce(_: str, endpoint: str) -> None:
        pull.connect(endpoint)

    run_replay(settings, threading.Event(), announce, lambda done, total: seen.append((done, total)))
    context.destroy(linger=0)
    assert seen == [(k + 1, 10) for k in range(10)]


@pytest.mark.parametrize("rate_hz", [50.0, 400.0])
def test_the_rate_is_kept(tmp_path: Path, rate_hz: float) -> None:
    images = round(rate_hz * 0.5) + 1
    master = write_series(tmp_path, images=images)
    with running(ReplaySettings((str(master),), bind=LOOPBACK, rate_hz=rate_hz)) as replay:
        arrivals: list[float] = []
        while len(arrivals) < images + 2:
            replay.receive()
            arrivals.append(time.monotonic())
    # Of all stretches of a fifth the one in the middle: where a busy machine stands still, it says nothing of the rate.
    at, across = np.array(arrivals[1:-1]), max(1, images // 5)
    assert np.median(at[across:] - at[:-across]) / across == pytest.approx(1 / rate_hz, rel=0.05)


def test_a_stall_is_not_followed_by_a_burst(tmp_path: Path) -> None:
    master = write_series(tmp_path, images=30)
    with Replay(ReplaySettings((str(master),), bind=LOOPBACK, rate_hz=50.0)) as replay:
        context = zmq.Context()
        pull = context.socket(zmq.PULL)
        pull.connect(replay.endpoint)
        stalled: list[float] = []

        def stall(done: int, _: int) -> None:
            stalled.append(time.monotonic())
            if done == 10:
                time.sleep(0.3)

        replay.play(threading.Event(), stall)
        context.destroy(linger=0)
    after = np.diff(stalled)[10:]
    # In a burst most would be next to nothing; one may be long where the machine stands still.
    assert np.median(after) == pytest.approx(0.02, rel=0.1)


def noise_master(folder: Path) -> Path:
    """60 images of 512 kB that do not compress: more than the buffers of a connection hold."""
    return write_series(folder, pixels=np.random.default_rng(1).integers(0, 1 << 16, (60, 512, 512), "u2"))


def test_drop_counts_every_image_and_waits_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim_replay.replay.CONTROL_LIMIT_S", 0.3)
    settings = ReplaySettings((str(noise_master(tmp_path)),), bind=LOOPBACK, on_full="drop", send_hwm=2)
    with running(settings, rcvhwm=1) as replay:
        # The consumer is connected and never reads.
        report = replay.report.result(60)
    assert report.sent > 0
    assert report.dropped > 0
    assert report.sent + report.dropped == report.images == 60
    assert report.seconds < 20, "it would wait for its consumer for ever"


def test_a_start_without_room_is_counted_when_images_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim_replay.replay.CONTROL_LIMIT_S", 0.05)
    settings = ReplaySettings((str(write_series(tmp_path)),), bind=LOOPBACK, on_full="drop")
    with Replay(settings) as replay:
        # No consumer, so no queue at all.
        series = replay.prepare(replay.recordings[0], replay.recordings[0].metadata, replay.style, threading.Event())
        assert replay.start(series)
        assert replay.play_images(series, 5, Pace(None)) == 5
        replay.end(series)
        report = replay.report()
    assert (report.sent, report.dropped, report.control_lost) == (0, 5, 2)


def test_stop_ends_a_blocked_replay_at_once(tmp_path: Path) -> None:
    settings = ReplaySettings((str(noise_master(tmp_path)),), bind=LOOPBACK, send_hwm=2)
    with running(settings, rcvhwm=1) as replay:
        replay.pull.poll(30_000)
        time.sleep(0.3)
        assert not replay.report.done(), "it should wait for its consumer"
        began = time.monotonic()
        replay.stop.set()
        report = replay.report.result(60)
        assert time.monotonic() - began < 3, "it would wait for its consumer for ever"
    assert report.interrupted
    assert 0 < report.sent < 60
    assert report.dropped == 0


def test_block_loses_nothing_to_a_slow_consumer(tmp_path: Path) -> None:
    settings = ReplaySettings((str(noise_master(tmp_path)),), bind=LOOPBACK, send_hwm=2)
    with running(settings, rcvhwm=1) as replay:
        replay.pull.poll(30_000)
        time.sleep(0.3)
        images = images_of(replay.receive_all())
        report = replay.report.result(60)
    assert [image.image_id for image in images] == list(range(60))
    assert (report.sent, report.dropped, report.interrupted) == (60, 0, False)


def test_stop_ends_the_wait_for_a_consumer(tmp_path: Path) -> None:
    with running(ReplaySettings((str(write_series(tmp_path)),), bind=LOOPBACK), connect=False) as replay:
        time.sleep(0.1)
        assert not replay.report.done()
        began = time.monotonic()
        replay.stop.set()
        report = replay.report.result(60)
        assert time.monotonic() - began < 3, "it would wait for a consumer for ever"
    assert (report.series, report.sent, report.seconds) == (0, 0, 0.0)


def test_stop_ends_the_hand_over_to_a_consumer_that_does_not_read(tmp_path: Path) -> None:
    context = zmq.Context()
    pull = context.socket(zmq.PULL)
    pull.setsockopt(zmq.RCVHWM, 1)
    wire, stop = Wire(LOOPBACK, 16), threading.Event()
    pull.connect(wire.endpoint)
    assert wire.wait_for_consumer(stop)
    while wire.send([bytes(1 << 20)], stop, 0.2):
        pass
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    assert not wire.hand_over(stop)
    assert time.monotonic() - began < 0.2 + 5
    # The line is cut, so libzmq's own thread ends too.
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(t.name == "replay-linger" for t in threading.enumerate()):
        time.sleep(0.01)
    assert not any(t.name == "replay-linger" for t in threading.enumerate()), "the lingering socket is left over"
    context.destroy(linger=0)


def test_the_next_consumer_gets_the_rest(tmp_path: Path) -> None:
    settings = ReplaySettings((str(write_series(tmp_path, images=100)),), bind=LOOPBACK, rate_hz=200.0)
    with running(settings) as replay:
        replay.receive()
        replay.receive()
        replay.pull.close()
        time.sleep(0.1)
        replay.pull = replay.pull.context.socket(zmq.PULL)
        replay.pull.connect(replay.endpoint)
        images = images_of(replay.receive_all())
        assert replay.report.result(60).sent == 100
    assert images[0].image_id > 0
    assert images[-1].image_id == 99


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    master = str(write_series(tmp_path))
    with Replay(ReplaySettings((master,), bind=LOOPBACK)) as first:
        assert int(first.endpoint.rpartition(":")[2]) > 0
        with pytest.raises(BadInput, match=r"^tcp://127\.0\.0\.1:\d+: the address is in use; .*another port .*port 0"):
            Replay(ReplaySettings((master,), bind=first.endpoint))


@pytest.mark.parametrize("bind", ["nonsense", "tcp://no.such.interface:1", "tcp://127.0.0.1:99999"])
def test_an_address_that_cannot_be_bound_is_one_clear_line(tmp_path: Path, bind: str) -> None:
    with pytest.raises(BadInput, match=re.escape(bind)):
        Replay(ReplaySettings((str(write_series(tmp_path)),), bind=bind))


def test_what_v1_cannot_carry_is_refused_before_anything_is_bound(tmp_path: Path) -> None:
    master = write_series(tmp_path, filters=hdf5plugin.LZ4(nbytes=1024))
    with pytest.raises(BadInput, match=r"cannot be played over stream v1: .*lz4-hdf5; try stream v2"):
        Replay(ReplaySettings((str(master),), bind=LOOPBACK, protocol="v1"))
    with running(ReplaySettings((str(master),), bind=LOOPBACK)) as replay:
        images = images_of(replay.receive_all())
    assert [bytes(image_data(image).data) for image in images] == read_chunks(master)


def test_an_unreadable_image_is_counted_and_the_series_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = FileSeries.image

    def image(series: FileSeries, position: int) -> ImageData:
        if position == 2:
            raise OSError("a bad sector")
        return read(series, position)

    monkeypatch.setattr(FileSeries, "image", image)
    master = write_series(tmp_path)
    with running(ReplaySettings((str(master),), bind=LOOPBACK)) as replay:
        images = images_of(replay.receive_all())
        report = replay.report.result(60)
    assert [image.image_id for image in images] == [0, 1, 3, 4]
    assert (report.sent, report.unreadable, report.images) == (4, 1, 5)
    assert report.problems == (f"{master}: image 2 cannot be read: a bad sector",)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"protocol": "v3"}, "stream 'v3' is not known; take one of v1, v2"),
        ({"header_detail": "some"}, "header detail 'some' is not known"),
        ({"on_full": "wait"}, "full-queue policy 'wait' is not known"),
        ({"rate_hz": 0.0}, "rate 0.0 Hz is not between"),
        ({"inputs": ()}, "nothing to play"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        ReplaySettings(**({"inputs": ("x.h5",)} | changes))
