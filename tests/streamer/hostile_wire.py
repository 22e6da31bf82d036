"""Messages that no detector should send, and what becomes of each. Used on the parser and on the wire."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cbor2
import numpy as np

from streamer import stream_v1, stream_v2
from streamer.messages import Algorithm, ImageMessage, SeriesMetadata
from tests.support import SHAPE, packed_image, poisson

SERIES = 7
PIXELS = poisson(1)[0]


@dataclass(frozen=True, slots=True)
class Hostile:
    """``outcome``: ``invalid REASON``, ``defect REASON`` (seen by the parser), ``undecodable REASON``
    (by the decoder), or ``harmless``: taken as a message of the protocol, its nonsense left out.
    """

    name: str
    parts: list[bytes]
    outcome: str


def good_image(image_id: int, algorithm: Algorithm = Algorithm.BSLZ4, series_id: int = SERIES) -> ImageMessage:
    image = packed_image(PIXELS, algorithm)
    return ImageMessage(series_id, image_id, {"threshold_1": image}, start_time_s=1.0, stop_time_s=1.1, exposure_s=0.1)


def metadata(images: int | None = 100) -> SeriesMetadata:
    return SeriesMetadata(
        number_of_images=images,
        shape=SHAPE,
        dtype=np.dtype("u2"),
        channels=("threshold_1",),
        photon_energy_eV=7000.0,
        camera_length_m=0.15,
        pixel_size_x_m=75e-6,
        pixel_size_y_m=75e-6,
    )


V2 = stream_v2.encode_image(good_image(3))
V1 = [bytes(part) for part in stream_v1.encode_image(good_image(3))]
V2_START = stream_v2.encode_start(SERIES, metadata(), unique_id="01HRCJF83SA63WH8M5X1VBKFJM")
V1_START = stream_v1.encode_start(SERIES, metadata())


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


def v2_image(**changes: Any) -> bytes:
    """The good image with fields replaced; ``...`` leaves one out."""
    fields = dict(cbor2.loads(V2[3:])) | changes
    return cbor({key: value for key, value in fields.items() if value is not ...})


def v2_start(**changes: Any) -> bytes:
    fields = dict(cbor2.loads(V2_START[3:])) | changes
    return cbor({key: value for key, value in fields.items() if value is not ...})


def array(dims: Any, data: Any, tag: int = 69) -> cbor2.CBORTag:
    return cbor2.CBORTag(40, [dims, cbor2.CBORTag(tag, data)])


def packed(algorithm: Any, element: Any, data: Any) -> cbor2.CBORTag:
    return cbor2.CBORTag(56500, [algorithm, element, data])


def channel(value: Any) -> dict[str, Any]:
    return {"data": {"threshold_1": value}}


def v1_image(**changes: Any) -> list[bytes]:
    """The good image with keys of its second part replaced."""
    layout = json.loads(V1[1]) | changes
    return [V1[0], json.dumps(layout).encode(), *V1[2:]]


def v1_ids(**changes: Any) -> list[bytes]:
    return [json.dumps(json.loads(V1[0]) | changes).encode(), *V1[1:]]


def v1_config(**changes: Any) -> list[bytes]:
    return [V1_START[0], json.dumps(json.loads(V1_START[1]) | changes).encode()]


def blob() -> bytes:
    return bytes(V1[2])


def with_block_length(data: bytes, length: int) -> bytes:
    return data[:12] + struct.pack(">I", length) + data[16:]


def with_header(data: bytes, total: int, block: int) -> bytes:
    return struct.pack(">QI", total, block) + data[12:]


INFINITY, NAN = float("inf"), float("nan")
NUMBERS = (NAN, INFINITY, -INFINITY, -1.0, 0, 1e308, 5e-324, 2**63, -(2**63), 2**64 - 1, True, "7", None, [], {}, b"7")
START_NUMBERS = (
    "beam_center_x", "beam_center_y", "count_time", "frame_time", "image_size_x", "image_size_y", "incident_energy",
    "incident_wavelength", "number_of_images", "pixel_size_x", "pixel_size_y", "saturation_value", "sensor_thickness",
)  # fmt: skip
CONFIG_NUMBERS = (
    "beam_center_x", "beam_center_y", "bit_depth_image", "count_time", "detector_distance", "frame_time", "nimages",
    "ntrigger", "photon_energy", "threshold_energy", "wavelength", "x_pixel_size", "x_pixels_in_detector",
    "y_pixels_in_detector", "countrate_correction_count_cutoff", "sensor_thickness",
)  # fmt: skip


def corpus() -> list[Hostile]:
    return [*foreign(), *v2_framing(), *v2_images(), *v2_starts(), *v1_framing(), *v1_images(), *v1_starts()]


def foreign() -> Iterator[Hostile]:
    rng = np.random.default_rng(1)
    for name, data in {
        "nothing": b"",
        "one zero": b"\x00",
        "HTTP": b"GET / HTTP/1.1\r\nHost: detector\r\n\r\n",
        "text": b"hello detector",
        "JSON list": b"[1,2,3]",
        "JSON number": b"1",
        "pickle": b"\x80\x04\x95\x08\x00\x00\x00\x00\x00\x00\x00\x8c\x04boom\x94.",
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(64),
        "msgpack map": b"\x83\xa4type\xa5image\xa1a\x01\xa1b\x02",
        "UTF-16": '{"htype":"dimage-1.0"}'.encode("utf-16"),
        "byte order mark": b'\xef\xbb\xbf{"htype":"dseries_end-1.0","series":1}',
    }.items():
        yield Hostile(f"foreign: {name}", [data], "invalid malformed")
    for size in (1, 3, 30, 3000):
        data = b"\x00" + rng.bytes(size)
        yield Hostile(f"foreign: {size} random bytes", [data], "invalid malformed")
    yield Hostile("foreign: 65 parts", [b"{}"] * 65, "invalid malformed")
    yield Hostile("foreign: two CBOR parts", [V2, V2], "invalid malformed")


def v2_framing() -> Iterator[Hostile]:
    magic = stream_v2.MAGIC
    ids = b"\x64type\x65image\x69series_id\x07\x68image_id\x04"
    for name, data, outcome in (
        ("magic alone", magic, "invalid malformed"),
        ("an empty map", magic + b"\xa0", "invalid unknown_type"),
        ("a map of 2^64-1 pairs", magic + head(5, 2**64 - 1), "invalid malformed"),
        ("a list", magic + b"\x81\x01", "invalid malformed"),
        ("text of 2^63 bytes", magic + b"\xa1" + head(3, 2**63), "invalid malformed"),
        ("a list of 2^32 items", magic + b"\xa1\x61a" + head(4, 2**32), "invalid malformed"),
        ("deep lists", magic + b"\xa1\x61a" + b"\x81" * 100_000 + b"\x00", "invalid malformed"),
        ("deep maps", magic + b"\xa1\x61a" * 100_000 + b"\x00", "invalid malformed"),
        ("deep tags", magic + b"\xa1\x61a" + b"\xc1" * 100_000 + b"\x00", "invalid malformed"),
        ("a list of a million nothings", magic + b"\xa1\x61a" + head(4, 10**6) + b"\xf6" * 10**6, "invalid malformed"),
        ("an indefinite map", magic + b"\xbf\x64type\x63end\x69series_id\x01\xff", "invalid malformed"),
        ("indefinite text", magic + b"\xa1\x7f\x64type\xff\x63end", "invalid malformed"),
        ("an indefinite byte string", magic + b"\xa1\x61a\x5f\x41a\xff", "invalid malformed"),
        ("a break alone", magic + b"\xa1\xff\x00", "invalid malformed"),
        ("reserved information", magic + b"\xa1\x1c\x00", "invalid malformed"),
        ("a key twice", magic + b"\xa3\x64type\x63end\x69series_id\x01\x69series_id\x02", "invalid malformed"),
        ("a list as key", magic + b"\xa1\x80\x00", "invalid malformed"),
        ("text not UTF-8", magic + b"\xa2\x64type\x63end\x61a\x61\xff", "invalid malformed"),
        ("tag 40 of nothing", magic + b"\xa1\x61a\xd8\x28\x80", "invalid malformed"),
        ("tag 56500 of nothing", magic + b"\xa1\x61a\xd9\xdc\xb4\x80", "invalid malformed"),
        ("a typed array of text", magic + b"\xa1\x61a\xd8\x45\x61a", "invalid malformed"),
        ("bytes after the end", stream_v2.encode_end(1) + b"\x00", "invalid malformed"),
        ("unknown type", cbor({"type": "status", "series_id": 1}), "invalid unknown_type"),
        ("a type that is a list", cbor({"type": ["image"], "series_id": 1}), "invalid unknown_type"),
        ("an end without series", cbor({"type": "end"}), "invalid missing_field"),
        ("a start without series", v2_start(series_id=...), "invalid missing_field"),
        ("an image without id", v2_image(image_id=...), "invalid missing_field"),
        ("a bignum as series", v2_image(series_id=2**80), "invalid bad_value"),
        ("series -1", v2_image(series_id=-1), "invalid bad_value"),
        ("series as text", v2_image(series_id="7"), "invalid bad_value"),
        ("series true", v2_image(series_id=True), "invalid bad_value"),
        ("a float as image id", v2_image(image_id=3.0), "invalid bad_value"),
        ("image id 2^64-1", v2_image(image_id=2**64 - 1), "invalid bad_value"),
        ("image id -2^64", v2_image(image_id=-(2**64)), "invalid bad_value"),
        ("an image of ids alone", magic + b"\xa3" + ids, "defect missing_data"),
        ("cut after the ids", magic + b"\xa4" + ids, "defect missing_data"),
        ("nested after the ids", magic + b"\xa4" + ids + b"\x61a" + b"\x81" * 1000 + b"\x00", "defect bad_header"),
    ):
        yield Hostile(f"v2: {name}", [data], outcome)
    for size in (10, 60, 120, len(V2_START) - 1):
        yield Hostile(f"v2: a start cut at {size}", [V2_START[:size]], "invalid malformed")
    for size in (len(V2) // 2, len(V2) - 1):
        yield Hostile(f"v2: an image cut at {size}", [V2[:size]], "defect missing_data")


def v2_images() -> Iterator[Hostile]:
    rows, columns = SHAPE
    dims = [rows, columns]
    for name, changes, outcome in (
        ("no data", {"data": {}}, "defect missing_data"),
        ("data as bytes", {"data": b"abc"}, "defect missing_data"),
        ("a million rows", channel(array([10**6, 10**6], blob())), "defect size_mismatch"),
        ("2^60 columns", channel(array([rows, 2**60], blob())), "defect size_mismatch"),
        ("no rows", channel(array([0, columns], b"")), "defect bad_header"),
        ("three dimensions", channel(array([1, rows, columns], blob())), "defect bad_header"),
        ("no dimensions", channel(array([], blob())), "defect bad_header"),
        ("negative dimensions", channel(array([-1, columns], blob())), "defect bad_header"),
        ("pixels without an array", channel(b"abc"), "defect bad_header"),
        ("floats", channel(array(dims, PIXELS.astype("<f4").tobytes(), 85)), "defect unknown_dtype"),
        ("signed pixels", channel(array(dims, PIXELS.tobytes(), 77)), "defect unknown_dtype"),
        ("compression snappy", channel(array(dims, packed("snappy", 2, blob()))), "defect unknown_algorithm"),
        ("a megabyte of compression name", channel(array(dims, packed("x" * 10**6, 2, b""))), "defect unknown_algorithm"),  # noqa: E501
        ("compression inside compression", channel(array(dims, packed("bslz4", 2, packed("bslz4", 2, blob())))), "defect bad_header"),  # noqa: E501
        ("another channel", {"data": {"other": array(dims, packed("bslz4", 2, blob()))}}, "harmless"),
        ("a channel without a text name", {"data": {1: array(dims, packed("bslz4", 2, blob()))}}, "defect missing_channel"),  # noqa: E501
        ("a channel with a name of a megabyte", {"data": {"x" * 10**6: array(dims, blob())}}, "defect missing_channel"),
        ("a thousand channels", {"data": {f"c{n}": None for n in range(1000)}}, "defect bad_header"),
        ("another shape", channel(array([columns, rows], packed("bslz4", 2, blob()))), "defect size_mismatch"),
        ("raw pixels too short", channel(array(dims, PIXELS.tobytes()[:-1])), "undecodable size_mismatch"),
        ("raw pixels too long", channel(array(dims, PIXELS.tobytes() + b"\0")), "undecodable size_mismatch"),
        ("no bytes", channel(array(dims, packed("bslz4", 2, b""))), "undecodable size_mismatch"),
        ("a lying total", channel(array(dims, packed("bslz4", 2, with_header(blob(), 2**40, 8192)))), "undecodable size_mismatch"),  # noqa: E501
        ("a block size of 1", channel(array(dims, packed("bslz4", 2, with_header(blob(), 3774, 1)))), "undecodable bad_header"),  # noqa: E501
        ("a block size of 2^32-16", channel(array(dims, packed("bslz4", 2, with_header(blob(), 3774, 2**32 - 16)))), "undecodable bad_header"),  # noqa: E501
        ("elements of 3 bytes", channel(array(dims, packed("bslz4", 3, blob()))), "undecodable bad_header"),
        ("elements of 2^60 bytes", channel(array(dims, packed("bslz4", 2**60, blob()))), "undecodable bad_header"),
        ("a block of 2^32-1 bytes", channel(array(dims, packed("bslz4", 2, with_block_length(blob(), 2**32 - 1)))), "undecodable bad_block"),  # noqa: E501
        ("a block of 2^31 bytes", channel(array(dims, packed("bslz4", 2, with_block_length(blob(), 2**31)))), "undecodable bad_block"),  # noqa: E501
        ("a block of no bytes", channel(array(dims, packed("bslz4", 2, with_block_length(blob(), 0)))), "undecodable bad_block"),  # noqa: E501
        ("a truncated block", channel(array(dims, packed("bslz4", 2, blob()[:-40]))), "undecodable bad_block"),
        ("a block of noise", channel(array(dims, packed("bslz4", 2, blob()[:16] + bytes(255 for _ in blob()[30:]) + blob()[-14:]))), "undecodable bad_block"),  # noqa: E501
        ("bslz4 said to be lz4", channel(array(dims, packed("lz4", 0, blob()))), "undecodable bad_block"),
    ):  # fmt: skip
        yield Hostile(f"v2 image: {name}", [v2_image(**changes)], outcome)
    for name, changes in {
        "times without sense": {"start_time": [2**63, 0], "stop_time": "now", "real_time": [1, 2, 3], "series_date": 7},
        "a date of a megabyte": {"series_date": "2" * 10**6},
        "user data of a megabyte": {"user_data": "x" * 10**6},
        "user data of numbers without end": {"user_data": [NAN, INFINITY, 2**200, -(2**64)]},
        "a unique id of a megabyte": {"series_unique_id": "x" * 10**6},
        "unknown keys": {"zz_future": {"a": [1, 2, {"b": None}]}},
    }.items():
        yield Hostile(f"v2 image: {name}", [v2_image(**changes)], "harmless")


def v2_starts() -> Iterator[Hostile]:
    for value in NUMBERS:
        text = f"{value!r:.12}"
        yield Hostile(
            f"v2 start: every number is {text}", [v2_start(**dict.fromkeys(START_NUMBERS, value))], "harmless"
        )
    rows, columns = SHAPE
    for name, changes in {
        "an image of 2^60 columns": {"image_size_x": 2**60},
        "saturation 2^63-1": {"saturation_value": 2**63 - 1},
        "2^63-1 images": {"number_of_images": 2**63 - 1},
        "channels that are no text": {"channels": [1, None, b"a", ["a"], {"a": 1}]},
        "a thousand channels": {"channels": [f"channel {n}" for n in range(1000)]},
        "channels as text": {"channels": "threshold_1"},
        "a channel with control characters": {"channels": ["a\x00\n\x1b[2J"]},
        "an arm date of a megabyte": {"arm_date": "x" * 10**6},
        "a description of a megabyte": {"detector_description": "\x00" * 10**6},
        "an unknown dtype": {"image_dtype": "float128"},
        "a dtype that is a list": {"image_dtype": ["uint16"]},
        "a translation without end": {"detector_translation": [0.0, 0.0, NAN]},
        "a translation of text": {"detector_translation": ["a", "b", "c"]},
        "a translation of -2^63": {"detector_translation": [0, 0, -(2**63)]},
        "thresholds without sense": {"threshold_energy": {"a": NAN, 1: 2.0, "b": "c", "x" * 1000: 1.0}},
        "a mask of another shape": {"pixel_mask": {"threshold_1": array([2, 2], bytes(16), 70)}},
        "a mask of floats": {"pixel_mask": {"threshold_1": array([rows, columns], bytes(4 * rows * columns), 85)}},
        "a mask too short": {"pixel_mask": {"threshold_1": array([rows, columns], bytes(16), 70)}},
        "a mask of 2^60 rows": {"pixel_mask": {"threshold_1": array([2**60, columns], bytes(16), 70)}},
        "a packed mask that does not decode": {"pixel_mask": {"threshold_1": array([rows, columns], packed("bslz4", 4, b"x" * 99), 70)}},  # noqa: E501
        "a mask in an unknown compression": {"pixel_mask": {"threshold_1": array([rows, columns], packed("zip", 4, b"x" * 99), 70)}},  # noqa: E501
        "a mask that is text": {"pixel_mask": "none"},
        "a flatfield of NaN": {"flatfield": {"threshold_1": array([rows, columns], b"\xff" * (8 * rows * columns), 86)}},  # noqa: E501
        "a table that is text": {"countrate_correction_lookup_table": "none"},
        "a table of half a number": {"countrate_correction_lookup_table": cbor2.CBORTag(70, b"abc")},
        "user data of a megabyte": {"user_data": {"a": b"x" * 10**6}},
        "user data of deep lists": {"user_data": [[[[[[[[[[[1]]]]]]]]]]]},
        "user data of arrays": {"user_data": [array([2], b"\0\0\0\0"), cbor2.CBORTag(9999, "x")]},
    }.items():  # fmt: skip
        yield Hostile(f"v2 start: {name}", [v2_start(**changes)], "harmless")
    yield Hostile("v2 start: 10^5 channels", [v2_start(channels=["c"] * 100_000)], "invalid malformed")


def v1_framing() -> Iterator[Hostile]:
    for name, parts, outcome in (
        ("no htype", [b"{}"], "invalid unknown_type"),
        ("a number as htype", [b'{"htype":1}'], "invalid unknown_type"),
        ("a list as htype", [b'{"htype":["dimage-1.0"],"series":1}'], "invalid unknown_type"),
        ("an unknown htype", [b'{"htype":"dnews-1.0","series":1}'], "invalid unknown_type"),
        ("a megabyte of htype", [b'{"htype":"' + b"x" * 10**6 + b'","series":1}'], "invalid unknown_type"),
        ("an end without series", [b'{"htype":"dseries_end-1.0"}'], "invalid missing_field"),
        ("NaN as series", [b'{"htype":"dseries_end-1.0","series":NaN}'], "invalid malformed"),
        ("a float as series", [b'{"htype":"dseries_end-1.0","series":1.5}'], "invalid bad_value"),
        ("a series of 4000 digits", [b'{"htype":"dseries_end-1.0","series":' + b"9" * 4000 + b"}"], "invalid bad_value"),  # noqa: E501
        ("a series of 10^5 digits", [b'{"htype":"dseries_end-1.0","series":' + b"9" * 10**5 + b"}"], "invalid malformed"),  # noqa: E501
        ("deep lists", [b"[" * 100_000], "invalid malformed"),
        ("deep maps", [b'{"a":' * 100_000], "invalid malformed"),
        ("JSON of 5 MB", [b'{"htype":"' + b"x" * (5 << 20) + b'"}'], "invalid too_large"),
        ("cut JSON", [V1[0][:-5], *V1[1:]], "invalid malformed"),
        ("JSON not UTF-8", [V1[0].replace(b"dimage", b"\xff\xfe\xfd\xfc\xfb\xfa"), *V1[1:]], "invalid malformed"),
        ("an image without frame", [b'{"htype":"dimage-1.0","series":7}', *V1[1:]], "invalid missing_field"),
        ("a frame as text", v1_ids(frame="3"), "invalid bad_value"),
        ("a frame of 2^63", v1_ids(frame=2**63), "invalid bad_value"),
        ("series -1", v1_ids(series=-1), "invalid bad_value"),
        ("pixels before their header", V1[2:], "invalid malformed"),
    ):  # fmt: skip
        yield Hostile(f"v1: {name}", parts, outcome)


def v1_images() -> Iterator[Hostile]:
    columns_rows = [SHAPE[1], SHAPE[0]]
    total = 2 * SHAPE[0] * SHAPE[1]

    def payload(data: bytes, **changes: Any) -> list[bytes]:
        parts = v1_image(size=len(data), **changes)
        return [*parts[:2], data, *parts[3:]]

    for name, parts, outcome in (
        ("the first part alone", V1[:1], "defect missing_data"),
        ("no pixels", V1[:2], "defect missing_data"),
        ("a second part that is not JSON", [V1[0], b"\x00\x01", *V1[2:]], "defect bad_header"),
        ("a second part that is a list", [V1[0], b"[]", *V1[2:]], "defect bad_header"),
        ("no shape", v1_image(shape=None), "defect bad_header"),
        ("a shape of text", v1_image(shape=["51", "37"]), "defect bad_header"),
        ("a shape of one number", v1_image(shape=[51]), "defect bad_header"),
        ("a shape of 10^5 numbers", v1_image(shape=[1] * 10**5), "defect bad_header"),
        ("a shape of zero", v1_image(shape=[0, 37]), "defect bad_header"),
        ("a negative shape", v1_image(shape=[-51, -37]), "defect bad_header"),
        ("a shape of 4000 digits", v1_image(shape=[10**4000, 37]), "defect bad_header"),
        ("three dimensions", v1_image(shape=[51, 37, 2]), "defect bad_header"),
        ("a shape of 2^60", v1_image(shape=[2**60, 37]), "defect size_mismatch"),
        ("another shape", v1_image(shape=[37, 51]), "defect size_mismatch"),
        ("a type that is a list", v1_image(type=["uint16"]), "defect unknown_dtype"),
        ("floats", v1_image(type="float32"), "defect unknown_dtype"),
        ("64 bit", v1_image(type="uint64"), "defect unknown_dtype"),
        ("an unknown encoding", v1_image(encoding="bs16-zstd<"), "defect unknown_algorithm"),
        ("an encoding with a line end", v1_image(encoding="bs16-lz4<\n"), "defect unknown_algorithm"),
        ("bitshuffle without LZ4", v1_image(encoding="bs16<"), "defect unknown_algorithm"),
        ("an encoding that is a number", v1_image(encoding=7), "defect unknown_algorithm"),
        ("no encoding", v1_image(encoding=None), "defect unknown_algorithm"),
        ("a lying size", v1_image(size=1), "defect size_mismatch"),
        ("a size of 4000 digits", v1_image(size=10**4000), "defect size_mismatch"),
        ("the wrong type", v1_image(type="uint32"), "undecodable size_mismatch"),
        ("packed pixels said to be plain", v1_image(encoding="<"), "undecodable size_mismatch"),
        ("bslz4 said to be lz4", v1_image(encoding="lz4<"), "undecodable bad_block"),
        ("the wrong bitshuffle width", v1_image(encoding="bs32-lz4<"), "undecodable bad_header"),
        ("nothing packed", payload(b""), "undecodable size_mismatch"),
        ("the header missing", payload(blob()[12:]), "undecodable size_mismatch"),
        ("shorter than a header", payload(blob()[:11], shape=[2, 2]), "defect size_mismatch"),
        ("a truncated block", payload(blob()[:-40]), "undecodable bad_block"),
        ("bytes after the last block", payload(blob() + b"\0"), "undecodable bad_block"),
        ("a bomb", payload(struct.pack(">QI", total, 8192) + b"\0" * 4), "undecodable bad_block"),
        ("LZ4 of zeros", payload(bytes(40), encoding="lz4<"), "undecodable bad_block"),
        ("LZ4 that copies from before its start", payload(b"\x0f\xff\xff" + b"\xff" * 20, encoding="lz4<"), "undecodable bad_block"),  # noqa: E501
    ):  # fmt: skip
        yield Hostile(f"v1 image: {name}", parts, outcome)
    assert columns_rows == json.loads(V1[1])["shape"]
    for name, fourth in {
        "times that are not JSON": b"\x00",
        "times without sense": b'{"start_time":-1,"stop_time":"now","real_time":[]}',
        "times of 4000 digits": b'{"start_time":' + b"9" * 4000 + b',"real_time":1e308}',
        "empty times": b"",
    }.items():
        yield Hostile(f"v1 image: {name}", [*V1[:3], fourth], "harmless")
    for name, appendix in {
        "an appendix of a megabyte": b"x" * 10**6,
        "an appendix not UTF-8": b"\xff\xfe",
        "an appendix of deep lists": b"[" * 50_000,
        "an appendix of 4000 digits": b"[" + b"9" * 4000 + b"]",
    }.items():
        yield Hostile(f"v1 image: {name}", [*V1, appendix], "harmless")
    yield Hostile("v1 image: parts after the appendix", [*V1, b"", b"", b""], "harmless")


def v1_starts() -> Iterator[Hostile]:
    for value in NUMBERS:
        if isinstance(value, bytes) or (isinstance(value, float) and not np.isfinite(value)):
            continue
        parts = v1_config(**dict.fromkeys(CONFIG_NUMBERS, value))
        yield Hostile(f"v1 start: every number is {value!r:.12}", parts, "harmless")
    yield Hostile(
        "v1 start: every number has 4000 digits", v1_config(**dict.fromkeys(CONFIG_NUMBERS, 10**4000)), "harmless"
    )
    for name, changes in {
        "a bit depth of 16.0": {"bit_depth_image": 16.0},
        "a description of control characters": {"description": "\x07" * 10**5},
        "a trigger mode that is a list": {"trigger_mode": ["ints"]},
        "unknown keys by the thousand": {f"key_{n}": n for n in range(5000)},
        "an arm date of a megabyte": {"data_collection_date": "x" * 10**6},
    }.items():
        yield Hostile(f"v1 start: {name}", v1_config(**changes), "harmless")
    layout = json.dumps({"htype": "dpixelmask-1.0", "shape": [51, 37], "type": "uint32"}).encode()
    for name, tail in {
        "a mask too short": [layout, bytes(8)],
        "a mask of another shape": [layout.replace(b"51, 37", b"2, 2"), bytes(16)],
        "a mask of 2^60 columns": [layout.replace(b"51", str(2**60).encode()), bytes(16)],
        "a mask of an unknown type": [layout.replace(b"uint32", b"float64"), bytes(16)],
        "a mask whose type is a list": [layout.replace(b'"uint32"', b"[1]"), bytes(16)],
        "parts that are not known": [b"a", b"b", b"c"],
        "a flatfield that is text": [b'{"htype":"dflatfield-1.0","shape":[51,37],"type":"float32"}', b"flatfield"],
    }.items():
        yield Hostile(f"v1 start: {name}", [*V1_START, *tail], "harmless")
    yield Hostile("v1 start: a configuration that is not JSON", [V1_START[0], b"\x00"], "invalid malformed")
    yield Hostile(
        "v1 start: a header detail that is a map",
        [b'{"htype":"dheader-1.0","series":7,"header_detail":{}}'],
        "harmless",
    )
