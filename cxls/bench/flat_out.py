"""A source that sends as fast as it is taken: one image over and over, with its own id each time.

Run as ``python -m cxls.bench.flat_out PROTOCOL BYTES``; it prints its address and sends until it is ended. The packed
bytes are noise: nobody behind it decodes them.
"""

import random
import struct
import sys

import numpy as np
import zmq

from sim_replay.wire import SEND_HWM
from streamer import stream_v1, stream_v2
from streamer.messages import Algorithm, ImageData, ImageMessage, SeriesMetadata

SHAPE = (2162, 2068)
IMAGES = 1 << 30
_MARK = 0x7ABCDEF1
"""The id of the image as it is encoded once: easily found again among its bytes."""


def main() -> None:
    protocol, size = sys.argv[1], int(sys.argv[2])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.setsockopt(zmq.SNDHWM, SEND_HWM)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    print(f"tcp://127.0.0.1:{port}", flush=True)
    dtype = np.dtype("u2")
    image = ImageData(random.Random(1).randbytes(size), SHAPE, dtype, Algorithm.BSLZ4, dtype.itemsize)
    metadata = SeriesMetadata(number_of_images=IMAGES, shape=SHAPE, dtype=dtype, channels=("threshold_1",))
    message = ImageMessage(1, _MARK, {"threshold_1": image}, 1.0, 1.001, 0.001, "01HBV3JPF23X8Y2ZQW8Y6WZ6PH")
    if protocol == "v1":
        _send_v1(socket, metadata, message)
    else:
        _send_v2(socket, metadata, message)


def _send_v1(socket: "zmq.Socket[bytes]", metadata: SeriesMetadata, message: ImageMessage) -> None:
    socket.send_multipart(stream_v1.encode_start(1, metadata))
    head, layout, pixels, times = (bytes(part) for part in stream_v1.encode_image(message))
    pattern = head.replace(str(_MARK).encode(), b"%d")
    for number in range(IMAGES):
        socket.send(pattern % number, zmq.SNDMORE)
        socket.send(layout, zmq.SNDMORE)
        socket.send(pixels, zmq.SNDMORE, copy=False)
        socket.send(times)


def _send_v2(socket: "zmq.Socket[bytes]", metadata: SeriesMetadata, message: ImageMessage) -> None:
    socket.send(stream_v2.encode_start(1, metadata))
    encoded = bytearray(stream_v2.encode_image(message))
    place = encoded.index(struct.pack(">I", _MARK))
    for number in range(IMAGES):
        struct.pack_into(">I", encoded, place, number)
        socket.send(encoded)


if __name__ == "__main__":
    main()
