"""The good messages that malformed ones are made of, and pieces of CBOR that no encoder would write."""

import json
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import bitshuffle
import cbor2
import numpy as np
import numpy.typing as npt

from streamer import stream_v1, stream_v2
from streamer.files import CHANNEL
from streamer.messages import Algorithm, ImageData, ImageMessage, SeriesMetadata

_BLOCK_BYTES = 8192


@lru_cache(maxsize=2)
def _pixels(shape: tuple[int, int]) -> tuple[npt.NDArray[np.uint16], bytes]:
    """Counts that compress like a detector's, and their bytes in bitshuffle-LZ4."""
    pixels = np.random.default_rng(1).integers(0, 9, shape, "u2")
    packed = bitshuffle.compress_lz4(pixels, _BLOCK_BYTES // pixels.itemsize).tobytes()
    return pixels, struct.pack(">QI", pixels.nbytes, _BLOCK_BYTES) + packed


@dataclass(frozen=True)
class Good:
    """A good image and a good start of a series, in both streams, to be made malformed."""

    series_id: int
    image_id: int
    shape: tuple[int, int]
    unique_id: str | None = None
    images: int = 100

    @property
    def pixels(self) -> npt.NDArray[np.uint16]:
        return _pixels(self.shape)[0]

    @property
    def blob(self) -> bytes:
        """The pixels in bitshuffle-LZ4, header and all."""
        return _pixels(self.shape)[1]

    @property
    def total(self) -> int:
        """Bytes that the pixels decode to."""
        return self.pixels.nbytes

    @property
    def dims(self) -> list[int]:
        return list(self.shape)

    @cached_property
    def _image(self) -> ImageMessage:
        data = ImageData(self.blob, self.shape, np.dtype("u2"), Algorithm.BSLZ4, 2)
        times = (1.0, 1.1, 0.1)
        return ImageMessage(self.series_id, self.image_id, {CHANNEL: data}, *times, unique_id=self.unique_id)

    @property
    def metadata(self) -> SeriesMetadata:
        return SeriesMetadata(
            number_of_images=self.images,
            shape=self.shape,
            dtype=np.dtype("u2"),
            channels=(CHANNEL,),
            photon_energy_eV=7000.0,
            camera_length_m=0.15,
            pixel_size_x_m=75e-6,
            pixel_size_y_m=75e-6,
        )

    @cached_property
    def v1(self) -> list[bytes]:
        return [bytes(part) for part in stream_v1.encode_image(self._image)]

    @cached_property
    def v2(self) -> bytes:
        return stream_v2.encode_image(self._image)

    @cached_property
    def v1_start(self) -> list[bytes]:
        return stream_v1.encode_start(self.series_id, self.metadata)

    @cached_property
    def v2_start(self) -> bytes:
        return stream_v2.encode_start(
            self.series_id, self.metadata, unique_id=self.unique_id or "01HRCJF83SA63WH8M5X1VBKFJM"
        )

    def v2_image(self, **changes: Any) -> bytes:
        """The image with fields replaced; ``...`` leaves one out."""
        return _replaced(self.v2, changes)

    def packed(self, algorithm: Any, element: Any, data: Any) -> dict[str, Any]:
        """Changes of a v2 image that pack it so."""
        return channel(array(self.dims, packed(algorithm, element, data)))

    def v2_start_with(self, **changes: Any) -> bytes:
        return _replaced(self.v2_start, changes)

    def v1_image(self, **changes: Any) -> list[bytes]:
        """The image with keys of its second part replaced."""
        return [self.v1[0], _json(json.loads(self.v1[1]) | changes), *self.v1[2:]]

    def v1_ids(self, **changes: Any) -> list[bytes]:
        return [_json(json.loads(self.v1[0]) | changes), *self.v1[1:]]

    def v1_config(self, **changes: Any) -> list[bytes]:
        return [self.v1_start[0], _json(json.loads(self.v1_start[1]) | changes)]


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _replaced(message: bytes, changes: dict[str, Any]) -> bytes:
    fields = dict(cbor2.loads(message[len(stream_v2.MAGIC) :])) | changes
    return cbor({key: value for key, value in fields.items() if value is not ...})


def head(major: int, argument: int) -> bytes:
    """The head of a CBOR item."""
    for info, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 24:
            return bytes([major << 5 | argument])
        if argument < 1 << 8 * width:
            return bytes([major << 5 | info]) + argument.to_bytes(width, "big")
    raise ValueError(argument)


def cbor(value: Any) -> bytes:
    return stream_v2.MAGIC + cbor2.dumps(value)


def array(dims: Any, data: Any, tag: int = 69) -> cbor2.CBORTag:
    return cbor2.CBORTag(40, [dims, cbor2.CBORTag(tag, data)])


def packed(algorithm: Any, element: Any, data: Any) -> cbor2.CBORTag:
    return cbor2.CBORTag(56500, [algorithm, element, data])


def channel(value: Any) -> dict[str, Any]:
    return {"data": {CHANNEL: value}}


def with_block_length(data: bytes, length: int) -> bytes:
    return data[:12] + struct.pack(">I", length) + data[16:]


def with_header(data: bytes, total: int, block: int) -> bytes:
    return struct.pack(">QI", total, block) + data[12:]


INFINITY, NAN = float("inf"), float("nan")
NUMBERS: tuple[Any, ...] = (
    NAN,
    INFINITY,
    -INFINITY,
    -1.0,
    0,
    1e308,
    5e-324,
    2**63,
    -(2**63),
    2**64 - 1,
    True,
    "7",
    None,
    [],
    {},
    b"7",
)
