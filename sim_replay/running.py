"""A series on its way out: its ids, its clock, and its messages in either stream's format."""

import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim_replay.recordings import Recording
from streamer import stream_v1, stream_v2
from streamer.files import CHANNEL, BadInput
from streamer.messages import Buffer, ImageData, ImageMessage, SeriesMetadata

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True)
class StreamStyle:
    """How a series is written. ``config`` replaces keys of the v1 header's configuration."""

    protocol: str = "v2"
    header_detail: str = "basic"
    header_appendix: Any = None
    image_appendix: Any = None
    enabled: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RunningSeries:
    """A series between its start and its end. ``cancel`` stops its images at the next one.

    ``metadata`` has an arm date, a frame time and a count time; ``clock_s`` is the detector
    clock (seconds) at image 0.
    """

    series_id: int
    recording: Recording
    metadata: SeriesMetadata
    style: StreamStyle
    clock_s: float
    cancel: threading.Event
    unique_id: str = field(default_factory=lambda: _ulid(time.time()))
    next_image: int = 0
    first_image: int = 0
    """The one of the recording that has id 0: another one where a series broke off and the rest is a new one."""

    @property
    def image_id(self) -> int:
        """Of the next image."""
        return self.next_image - self.first_image

    @property
    def image_time_s(self) -> float:
        """The detector clock at the next image, in seconds."""
        return self.clock_s + self.image_id * (self.metadata.frame_time_s or 0.0)

    def begin_again(self, series_id: int, arm_date: str) -> None:
        """A new series of the images that are left, armed now."""
        left = None if self.metadata.number_of_images is None else self.metadata.number_of_images - self.image_id
        self.series_id, self.unique_id, self.first_image = series_id, _ulid(time.time()), self.next_image
        self.metadata = self.metadata.with_changes(number_of_images=left, arm_date=arm_date)

    def start_parts(self) -> list[Buffer]:
        """The start message, part by part."""
        detail = self.style.header_detail
        if self.style.protocol == "v2":
            return [
                stream_v2.encode_start(self.series_id, self.metadata, header_detail=detail, unique_id=self.unique_id)
            ]
        config = {"compression": self.recording.packing(), **self.style.config}
        return list(stream_v1.encode_start(self.series_id, self.metadata, header_detail=detail, config=config))

    def image_parts(self, image: ImageData, channel: str = CHANNEL) -> list[Buffer]:
        """``image`` as the next image's message. Raises ``BadInput`` when the stream cannot carry it."""
        meta = self.metadata
        count_time, start = meta.count_time_s or 0.0, self.image_time_s
        message = ImageMessage(
            self.series_id,
            self.image_id,
            {channel: image},
            start_time_s=start,
            stop_time_s=start + count_time,
            exposure_s=count_time,
            unique_id=self.unique_id,
            user_data=self.style.image_appendix,
        )
        return _encode_image(self.recording.path, self.style.protocol, message, meta.arm_date or "")

    def end_parts(self) -> list[Buffer]:
        """The end message, part by part."""
        if self.style.protocol == "v1":
            return list(stream_v1.encode_end(self.series_id))
        return [stream_v2.encode_end(self.series_id, self.unique_id)]


def check_carried(recording: Recording, protocol: str) -> None:
    """Raises ``BadInput`` when the stream has no name for the way the first image is packed."""
    image = recording.first_image()
    if image is not None:
        _encode_image(recording.path, protocol, ImageMessage(0, 0, {CHANNEL: image}), "")


def _encode_image(path: Path, protocol: str, message: ImageMessage, series_date: str) -> list[Buffer]:
    try:
        if protocol == "v1":
            return stream_v1.encode_image(message)
        return [stream_v2.encode_image(message, series_date=series_date)]
    except ValueError as error:
        other = "v2" if protocol == "v1" else "v1"
        raise BadInput(f"{path}: cannot be played over stream {protocol}: {error}; try stream {other}") from None


def _ulid(unix_s: float) -> str:
    """26 characters, time (48 bit, milliseconds) then chance (80 bit): as detectors name a series."""
    value = (int(unix_s * 1000) & ((1 << 48) - 1)) << 80 | secrets.randbits(80)
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))
