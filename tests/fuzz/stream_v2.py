"""Stream v2: one message. A good image that we send again is the same image."""

from collections.abc import Iterator

from streamer import stream_v2
from streamer.messages import ImageData, ImageMessage
from tests.fuzz.messages import parsed
from tests.streamer.fuzz_child import messages
from tests.streamer.hostile_wire import corpus


def one(data: bytes) -> None:
    message = parsed([data], "v2")
    if not isinstance(message, ImageMessage) or message.defect is not None:
        return
    channels = {name: image for name, image in message.channels.items() if isinstance(image, ImageData)}
    sent = stream_v2.encode_image(ImageMessage(message.series_id, message.image_id, channels))
    again = stream_v2.parse(sent)
    assert isinstance(again, ImageMessage)
    if channels:
        assert again.channels == channels, "sent again, it is another image"


def seeds() -> Iterator[bytes]:
    every = [*messages(), *(hostile.parts for hostile in corpus())]
    yield from (parts[0] for parts in every if len(parts) == 1 and parts[0][:1] != b"{")
