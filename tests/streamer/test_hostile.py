"""The corpus of hostile messages, on the parser, the decoder, the tracker and the wire."""

import time
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from streamer import stream_v2
from streamer.account import Account
from streamer.decoding import check_size, decode
from streamer.frames import make_frame
from streamer.messages import (
    INVALID_REASONS,
    UNDECODABLE_REASONS,
    Defect,
    ImageMessage,
    InvalidMessage,
    Message,
    SeriesMetadata,
    StartMessage,
    UndecodableImage,
)
from streamer.receiver import StreamReceiver, parse
from streamer.series import ImageAccepted, Series, SeriesTracker
from tests.streamer.hostile_wire import SERIES, Hostile, corpus, good_image, metadata
from tests.support import SHAPE

CORPUS = corpus()
RUNNING = Series(1, SERIES, None, SeriesMetadata(shape=SHAPE))


def outcome(message: Message | InvalidMessage, series: Series = RUNNING) -> str:
    """What becomes of a message, in the words of the corpus."""
    if isinstance(message, InvalidMessage):
        assert message.reason in INVALID_REASONS
        assert len(str(message)) < 400
        return f"invalid {message.reason}"
    if not isinstance(message, ImageMessage):
        return "harmless"
    frame = make_frame(series, message, 0.0, None)
    if isinstance(frame.image, Defect):
        assert frame.image.reason in UNDECODABLE_REASONS
        assert len(frame.image.text) < 400
        return f"defect {frame.image.reason}"
    try:
        check_size(frame.image)
        decode(frame.image, np.empty(frame.image.shape, frame.image.dtype.newbyteorder("=")))
    except UndecodableImage as error:
        assert error.reason in UNDECODABLE_REASONS  # noqa: PT017
        assert len(str(error)) < 400  # noqa: PT017
        return f"undecodable {error.reason}"
    return "harmless"


def parsed(parts: list[bytes]) -> Message | InvalidMessage:
    try:
        return parse([memoryview(part) for part in parts])
    except InvalidMessage as error:
        return error


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.name)
def test_a_hostile_message_is_refused_by_name_or_harmless(hostile: Hostile) -> None:
    began = time.perf_counter()
    assert outcome(parsed(hostile.parts)) == hostile.outcome
    assert time.perf_counter() - began < 5.0


STARTS = [hostile for hostile in CORPUS if isinstance(parsed(hostile.parts), StartMessage)]


@pytest.mark.parametrize("hostile", STARTS, ids=lambda hostile: hostile.name)
def test_metadata_handed_on_is_bounded_and_plain(hostile: Hostile) -> None:
    message = parsed(hostile.parts)
    assert isinstance(message, StartMessage)
    meta = message.metadata
    numbers = (
        meta.beam_center_x_px, meta.beam_center_y_px, meta.camera_length_m, meta.photon_energy_eV, meta.pixel_size_x_m,
        meta.pixel_size_y_m, meta.count_time_s, meta.frame_time_s, meta.sensor_thickness_m,
        *meta.threshold_energy_eV.values(),
    )  # fmt: skip
    assert all(value is None or (isinstance(value, float) and abs(value) <= 1e8) for value in numbers)
    assert meta.shape is None or (0 < meta.shape[0] <= 65536 and 0 < meta.shape[1] <= 65536)
    assert meta.saturation_value is None or 0 < meta.saturation_value < 2**32
    assert meta.number_of_images is None or 0 < meta.number_of_images <= 2**62
    names = [*meta.channels, *meta.masks, *meta.flatfields, *meta.threshold_energy_eV]
    assert all(isinstance(name, str) and len(name) <= 64 and name.isprintable() for name in names)
    assert len(meta.channels) <= 16
    texts = (meta.sensor_material, meta.detector_description, meta.detector_serial, meta.arm_date, message.unique_id)
    assert all(text is None or (len(text) <= 256 and text.isprintable()) for text in (*texts, *meta.problems))
    assert all(mask.shape == meta.shape for mask in meta.masks.values())
    # Only what JSON can say, and not much of it.
    assert len(msgspec.json.encode([meta.raw, meta.user_data])) < 1 << 20


def test_what_was_left_out_of_a_header_is_named() -> None:
    left_out = [
        problem
        for hostile in STARTS
        if " mask" in hostile.name
        for problem in parsed(hostile.parts).metadata.problems  # type: ignore[union-attr]
    ]
    assert len(left_out) >= 8
    assert all(problem.startswith(("pixel_mask of", "pixelmask left out")) for problem in left_out)


def test_the_corpus_on_the_wire_is_counted_and_the_series_goes_on() -> None:
    hostile_messages = [hostile for hostile in CORPUS if not isinstance(parsed(hostile.parts), StartMessage)]
    images = sum(isinstance(parsed(hostile.parts), ImageMessage) for hostile in hostile_messages)
    account = Account()
    tracker = SeriesTracker(account)
    context: zmq.Context[Any] = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.setsockopt(zmq.SNDHWM, 0)
    port = push.bind_to_random_port("tcp://127.0.0.1")
    receiver = StreamReceiver([f"tcp://127.0.0.1:{port}"])
    try:
        push.send(stream_v2.encode_start(SERIES, metadata(images=10_000)))
        for hostile in hostile_messages:
            push.send_multipart(hostile.parts)
        for image_id in range(5000, 5005):
            push.send(stream_v2.encode_image(good_image(image_id)))
        push.send(stream_v2.encode_end(SERIES))
        outcomes: list[str] = []
        accepted: list[int] = []
        closed = False
        for _ in range(len(hostile_messages) + 7):
            received = receiver.receive(5.0)
            assert received is not None
            outcomes.append(outcome(received.message))
            if isinstance(received.message, InvalidMessage):
                account.refuse_message(received.message.reason)
                continue
            for event in tracker.handle(received.message, 0.0):
                if isinstance(event, ImageAccepted):
                    accepted.append(event.image.image_id)
            closed = tracker.running is None
    finally:
        receiver.close()
        context.destroy(linger=0)
    assert outcomes == ["harmless", *(hostile.outcome for hostile in hostile_messages), *["harmless"] * 6]
    assert accepted[-5:] == list(range(5000, 5005))
    assert closed
    assert account.received == images + 5
    assert account.accepted == len(accepted)
    assert account.announced == account.accepted + sum(account.missing.values()) == 10_000
    assert sum(account.invalid.values()) == sum(o.startswith("invalid") for o in outcomes)
