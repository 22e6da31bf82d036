"""The quick way through images of stream v2: two messages in turn, always answered as the parser answers."""

from collections.abc import Iterator

from streamer import stream_v2
from tests.fuzz.messages import SEPARATOR
from tests.fuzz.stream_v2 import seeds as messages
from tests.streamer.test_image_reader import assert_same, encoded


def one(data: bytes) -> None:
    first, _, second = data.partition(SEPARATOR)
    reader = stream_v2.ImageReader()
    for message in (first, second, first, second):
        assert_same(reader, message)


def seeds() -> Iterator[bytes]:
    good = encoded(70_000)
    yield from (SEPARATOR.join([encoded(n), encoded(n + 1, 2.0, {"run": 1})]) for n in (3, 300, 1 << 40))
    yield from (SEPARATOR.join([good, message]) for message in messages())
    yield from (SEPARATOR.join([message, message]) for message in messages())
