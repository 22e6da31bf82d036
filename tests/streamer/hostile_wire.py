"""The corpus of malformed messages, made around one small image, and the good messages beside it."""

from dataclasses import dataclass
from functools import cache

from sim_replay.faults.corpus import Good
from sim_replay.faults.corpus import corpus as malformed
from sim_replay.faults.corpus.good import array, packed
from streamer.messages import Algorithm, ImageMessage, SeriesMetadata
from tests.support import SHAPE, packed_image, poisson

__all__ = [
    "SERIES", "V1_START", "V2_START", "Hostile", "array", "corpus", "good_image", "metadata", "packed", "v2_image",
    "v2_start",
]  # fmt: skip

SERIES = 7
GOOD = Good(SERIES, 3, SHAPE)
V1_START, V2_START = GOOD.v1_start, GOOD.v2_start
v2_image, v2_start = GOOD.v2_image, GOOD.v2_start_with


@dataclass(frozen=True, slots=True)
class Hostile:
    """A message of the corpus, built; ``outcome`` as there."""

    name: str
    parts: list[bytes]
    outcome: str


@cache
def corpus() -> list[Hostile]:
    return [Hostile(each.name, each.build(GOOD), each.outcome) for each in malformed()]


def good_image(image_id: int, algorithm: Algorithm = Algorithm.BSLZ4, series_id: int = SERIES) -> ImageMessage:
    image = packed_image(poisson(1)[0], algorithm)
    return ImageMessage(series_id, image_id, {"threshold_1": image}, start_time_s=1.0, stop_time_s=1.1, exposure_s=0.1)


def metadata(images: int | None = 100) -> SeriesMetadata:
    return GOOD.metadata.with_changes(number_of_images=images)
