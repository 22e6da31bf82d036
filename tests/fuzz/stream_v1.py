"""Stream v1: the parts of one message. A good image that we send again is the same image."""

from collections.abc import Iterator

from streamer import stream_v1
from streamer.messages import Algorithm, ImageData, ImageMessage
from streamer.stream_v1 import CHANNEL
from tests.fuzz.messages import SEPARATOR, parsed
from tests.streamer.fuzz_child import messages
from tests.streamer.hostile_wire import corpus, good_image


def one(data: bytes) -> None:
    message = parsed(data.split(SEPARATOR), "v1")
    if not isinstance(message, ImageMessage) or not isinstance(image := message.channels.get(CHANNEL), ImageData):
        return
    if image.algorithm == Algorithm.LZ4_HDF5:
        return
    again = stream_v1.parse([bytes(part) for part in stream_v1.encode_image(message)])
    assert isinstance(again, ImageMessage)
    assert (again.series_id, again.image_id, again.user_data) == (
        message.series_id,
        message.image_id,
        message.user_data,
    ), "sent again, it is another message"
    assert again.channels[CHANNEL] == image, "sent again, it is another image"


def seeds() -> Iterator[bytes]:
    every = [*messages(), *(hostile.parts for hostile in corpus())]
    yield SEPARATOR.join([*map(bytes, stream_v1.encode_image(good_image(3))), b'"5"'])  # was sent again as a number
    yield from (SEPARATOR.join(parts) for parts in every if parts[0][:1] == b"{")
