"""A frame: one image of a series in the chosen channel, still packed, with its times."""

from dataclasses import dataclass
from typing import Any

from streamer.messages import Defect, ImageData, ImageMessage, SeriesMetadata
from streamer.series import Series

DIFFERENCE = "difference"
"""Threshold difference: negative results read as all ones there, which is no mask (DECTRIS)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """``image`` is a view of the packed pixels, or why there are none.

    ``start_time_s`` and ``exposure_s`` are the detector's clock; ``received_at`` is Unix time.
    """

    series: Series
    image_id: int
    channel: str
    image: ImageData | Defect
    start_time_s: float | None
    exposure_s: float | None
    received_at: float
    user_data: Any = None

    @property
    def nbytes(self) -> int:
        """Packed bytes of the image."""
        return len(self.image.data) if isinstance(self.image, ImageData) else 0

    @property
    def held_bytes(self) -> int:
        """Bytes kept in memory: the image's whole message part, in v2 with its other channels."""
        if not isinstance(self.image, ImageData):
            return 0
        data = self.image.data
        return memoryview(data.obj).nbytes if isinstance(data, memoryview) else len(data)


def choose_channel(metadata: SeriesMetadata, message: ImageMessage, wanted: str | None) -> str:
    """The channel to analyse: the one asked for, else the first that holds counts."""
    if wanted:
        return wanted
    names = [*(name for name in metadata.channels if name in message.channels), *message.channels]
    return next((name for name in names if name != DIFFERENCE), "threshold_1")


def make_frame(series: Series, message: ImageMessage, received_at: float, wanted_channel: str | None) -> Frame:
    """The frame of an accepted image. What cannot be analysed carries its defect."""
    channel = choose_channel(series.metadata, message, wanted_channel)
    image: ImageData | Defect | None = message.defect or message.channels.get(channel)
    if image is None:
        image = Defect("missing_channel", f"no channel {channel!r} among {', '.join(message.channels)}")
    expected = series.metadata.shape
    if isinstance(image, ImageData) and expected is not None and image.shape != expected:
        image = Defect("size_mismatch", f"image of {image.shape} in a series of {expected}")
    return Frame(
        series,
        message.image_id,
        channel,
        image,
        message.start_time_s,
        message.exposure_s,
        received_at,
        message.user_data,
    )
