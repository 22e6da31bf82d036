"""What has to hold of every message that a parser takes, whatever bytes it came in."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from streamer.decoding import check_size, decode
from streamer.frames import make_frame
from streamer.messages import (
    INVALID_REASONS,
    UNDECODABLE_REASONS,
    ConfigMessage,
    Defect,
    ImageData,
    ImageMessage,
    InvalidMessage,
    Message,
    SeriesMetadata,
    StartMessage,
    UndecodableImage,
)
from streamer.receiver import parse
from streamer.series import Series
from tests.fuzz import said_well

SEPARATOR = b"\x00|\x00"
"""Between parts of a message, or messages, in one input."""

GUARD = 64
MOST_DECODED = 1 << 22
"""Larger images are not decoded here: filling their buffers is what would take the time."""


def parsed(parts: Sequence[bytes], protocol: str) -> Message | None:
    """The message; ``None`` where it is refused, as it should be."""
    try:
        found = parse([memoryview(part) for part in parts], protocol)
    except InvalidMessage as error:
        refused(error, INVALID_REASONS)
        return None
    check(found)
    return found


def refused(error: InvalidMessage | UndecodableImage, reasons: Sequence[str]) -> None:
    assert error.reason in reasons, error.reason
    said_well(error)


def check(message: Message) -> None:
    """Bounded, plain, and either decodable or refused by a known reason."""
    if isinstance(message, StartMessage | ConfigMessage):
        check_metadata(message.metadata)
    elif isinstance(message, ImageMessage):
        check_image(message)
    unique_id = getattr(message, "unique_id", None)
    assert unique_id is None or (len(unique_id) <= 64 and unique_id.isprintable())


def check_metadata(meta: SeriesMetadata) -> None:
    for name, value in numbers(meta):
        assert value is None or (isinstance(value, float) and abs(value) <= 1e8), (name, value)
    assert meta.shape is None or (0 < meta.shape[0] <= 65536 and 0 < meta.shape[1] <= 65536)
    assert meta.saturation_value is None or 0 < meta.saturation_value < 2**32
    assert meta.number_of_images is None or 0 < meta.number_of_images <= 2**62
    names = [*meta.channels, *meta.masks, *meta.flatfields, *meta.threshold_energy_eV]
    assert all(isinstance(name, str) and len(name) <= 64 and name.isprintable() for name in names)
    assert len(meta.channels) <= 16
    texts = (meta.sensor_material, meta.detector_description, meta.detector_serial, meta.arm_date, *meta.problems)
    assert all(text is None or (len(text) <= 256 and text.isprintable()) for text in texts)
    assert all(mask.shape == meta.shape or meta.shape is None for mask in meta.masks.values())
    # Only what JSON can say, and not much of it.
    assert len(msgspec.json.encode([meta.raw, meta.user_data])) < 1 << 20


def numbers(meta: SeriesMetadata) -> Iterator[tuple[str, Any]]:
    for name in (
        "beam_center_x_px", "beam_center_y_px", "camera_length_m", "photon_energy_eV", "pixel_size_x_m",
        "pixel_size_y_m", "count_time_s", "frame_time_s", "sensor_thickness_m",
    ):  # fmt: skip
        yield name, getattr(meta, name)
    yield from meta.threshold_energy_eV.items()


def check_image(message: ImageMessage) -> None:
    for time_s in (message.start_time_s, message.stop_time_s, message.exposure_s):
        assert time_s is None or (math.isfinite(time_s) and time_s >= 0)
    assert len(message.channels) <= 16
    assert len(msgspec.json.encode(message.user_data)) < 1 << 20
    frame = make_frame(Series(1, message.series_id, None, SeriesMetadata()), message, 0.0, None)
    for image in (frame.image, *message.channels.values()):
        if isinstance(image, Defect):
            assert image.reason in UNDECODABLE_REASONS
            assert len(image.text) < 1200, "a long defect"
        else:
            decoded(image)


def decoded(image: ImageData) -> Any:
    """The pixels, or ``None`` where they are refused by a known reason; nothing else is written."""
    try:
        check_size(image)
        if image.decoded_bytes > MOST_DECODED:
            return None
        guarded = np.full(image.decoded_bytes + 2 * GUARD, 0xA5, np.uint8)
        out = guarded[GUARD:-GUARD].view(image.dtype.newbyteorder("="))
        try:
            decode(image, out)
        finally:
            assert (guarded[:GUARD] == 0xA5).all(), "written before the buffer"
            assert (guarded[-GUARD:] == 0xA5).all(), "written after the buffer"
    except UndecodableImage as error:
        refused(error, UNDECODABLE_REASONS)
        return None
    return out
