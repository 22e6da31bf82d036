"""Malformed messages of stream v2."""

from collections.abc import Callable, Iterator
from typing import Any

import cbor2

from sim_replay.faults.corpus.good import (
    INFINITY,
    NAN,
    NUMBERS,
    Good,
    array,
    cbor,
    channel,
    head,
    packed,
    with_block_length,
    with_header,
)
from sim_replay.faults.corpus.malformed import Malformed
from streamer import stream_v2
from streamer.files import CHANNEL

Changes = dict[str, Any] | Callable[[Good], dict[str, Any]]

START_NUMBERS = (
    "beam_center_x",
    "beam_center_y",
    "count_time",
    "frame_time",
    "image_size_x",
    "image_size_y",
    "incident_energy",
    "incident_wavelength",
    "number_of_images",
    "pixel_size_x",
    "pixel_size_y",
    "saturation_value",
    "sensor_thickness",
)


def framing() -> Iterator[Malformed]:
    magic = stream_v2.MAGIC
    table: tuple[tuple[str, bytes | Callable[[Good], bytes], str], ...] = (
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
        ("a start without series", lambda g: g.v2_start_with(series_id=...), "invalid missing_field"),
        ("an image without id", lambda g: g.v2_image(image_id=...), "invalid missing_field"),
        ("a bignum as series", lambda g: g.v2_image(series_id=2**80), "invalid bad_value"),
        ("series -1", lambda g: g.v2_image(series_id=-1), "invalid bad_value"),
        ("series as text", lambda g: g.v2_image(series_id="7"), "invalid bad_value"),
        ("series true", lambda g: g.v2_image(series_id=True), "invalid bad_value"),
        ("a float as image id", lambda g: g.v2_image(image_id=3.0), "invalid bad_value"),
        ("image id 2^64-1", lambda g: g.v2_image(image_id=2**64 - 1), "invalid bad_value"),
        ("image id -2^64", lambda g: g.v2_image(image_id=-(2**64)), "invalid bad_value"),
        ("an image of ids alone", lambda g: magic + b"\xa3" + _ids(g), "defect missing_data"),
        ("cut after the ids", lambda g: magic + b"\xa4" + _ids(g), "defect missing_data"),
        (
            "nested after the ids",
            lambda g: magic + b"\xa4" + _ids(g) + b"\x61a" + b"\x81" * 1000 + b"\x00",
            "defect bad_header",
        ),
    )
    for name, data, outcome in table:
        yield Malformed(f"v2: {name}", "v2", outcome, _bytes(data))
    for size in (10, 60, 120, -1):
        where = f"at {size}" if size > 0 else "before its last byte"
        yield Malformed(f"v2: a start cut {where}", "v2", "invalid malformed", _start_cut(size))
    yield Malformed("v2: an image cut in half", "v2", "defect missing_data", lambda g: [g.v2[: len(g.v2) // 2]])
    yield Malformed("v2: an image cut before its last byte", "v2", "defect missing_data", lambda g: [g.v2[:-1]])


def _bytes(data: bytes | Callable[[Good], bytes]) -> Callable[[Good], list[bytes]]:
    return lambda g: [data(g) if callable(data) else data]


def _start_cut(size: int) -> Callable[[Good], list[bytes]]:
    return lambda g: [g.v2_start[:size]]


def _ids(good: Good) -> bytes:
    return b"\x64type\x65image\x69series_id" + head(0, good.series_id) + b"\x68image_id" + head(0, good.image_id)


def _noise(good: Good) -> bytes:
    """The first block's length is left, and the pixels of the end that fill no group of eight; all else is ones."""
    rest = good.pixels.size % 8 * good.pixels.itemsize
    return good.blob[:16] + b"\xff" * (len(good.blob) - 16 - rest) + good.blob[len(good.blob) - rest :]


def _image(changes: Changes) -> Callable[[Good], list[bytes]]:
    return lambda g: [g.v2_image(**(changes(g) if callable(changes) else changes))]


def _start(changes: Changes) -> Callable[[Good], list[bytes]]:
    return lambda g: [g.v2_start_with(**(changes(g) if callable(changes) else changes))]


def images() -> Iterator[Malformed]:
    table: tuple[tuple[str, Changes, str], ...] = (
        ("no data", {"data": {}}, "defect missing_data"),
        ("data as bytes", {"data": b"abc"}, "defect missing_data"),
        ("a million rows", lambda g: channel(array([10**6, 10**6], g.blob)), "defect size_mismatch"),
        ("2^60 columns", lambda g: channel(array([g.shape[0], 2**60], g.blob)), "defect size_mismatch"),
        ("no rows", lambda g: channel(array([0, g.shape[1]], b"")), "defect bad_header"),
        ("three dimensions", lambda g: channel(array([1, g.shape[0], g.shape[1]], g.blob)), "defect bad_header"),
        ("no dimensions", lambda g: channel(array([], g.blob)), "defect bad_header"),
        ("negative dimensions", lambda g: channel(array([-1, g.shape[1]], g.blob)), "defect bad_header"),
        ("pixels without an array", channel(b"abc"), "defect bad_header"),
        ("floats", lambda g: channel(array(g.dims, g.pixels.astype("<f4").tobytes(), 85)), "defect unknown_dtype"),
        ("signed pixels", lambda g: channel(array(g.dims, g.pixels.tobytes(), 77)), "defect unknown_dtype"),
        ("compression snappy", lambda g: g.packed("snappy", 2, g.blob), "defect unknown_algorithm"),
        ("a megabyte of compression name", lambda g: g.packed("x" * 10**6, 2, b""), "defect unknown_algorithm"),
        (
            "compression inside compression",
            lambda g: g.packed("bslz4", 2, packed("bslz4", 2, g.blob)),
            "defect bad_header",
        ),
        ("another channel", lambda g: {"data": {"other": array(g.dims, packed("bslz4", 2, g.blob))}}, "harmless"),
        (
            "a channel without a text name",
            lambda g: {"data": {1: array(g.dims, packed("bslz4", 2, g.blob))}},
            "defect missing_channel",
        ),
        (
            "a channel with a name of a megabyte",
            lambda g: {"data": {"x" * 10**6: array(g.dims, g.blob)}},
            "defect missing_channel",
        ),
        ("a thousand channels", {"data": {f"c{n}": None for n in range(1000)}}, "defect bad_header"),
        (
            "another shape",
            lambda g: channel(array([g.shape[1] + 1, g.shape[0]], packed("bslz4", 2, g.blob))),
            "defect size_mismatch",
        ),
        (
            "raw pixels too short",
            lambda g: channel(array(g.dims, g.pixels.tobytes()[:-1])),
            "undecodable size_mismatch",
        ),
        (
            "raw pixels too long",
            lambda g: channel(array(g.dims, g.pixels.tobytes() + b"\0")),
            "undecodable size_mismatch",
        ),
        ("no bytes", lambda g: g.packed("bslz4", 2, b""), "undecodable size_mismatch"),
        (
            "a lying total",
            lambda g: g.packed("bslz4", 2, with_header(g.blob, 2**40, 8192)),
            "undecodable size_mismatch",
        ),
        (
            "a block size of 1",
            lambda g: g.packed("bslz4", 2, with_header(g.blob, g.total, 1)),
            "undecodable bad_header",
        ),
        (
            "a block size of 2^32-16",
            lambda g: g.packed("bslz4", 2, with_header(g.blob, g.total, 2**32 - 16)),
            "undecodable bad_header",
        ),
        ("elements of 3 bytes", lambda g: g.packed("bslz4", 3, g.blob), "undecodable bad_header"),
        ("elements of 2^60 bytes", lambda g: g.packed("bslz4", 2**60, g.blob), "undecodable bad_header"),
        (
            "a block of 2^32-1 bytes",
            lambda g: g.packed("bslz4", 2, with_block_length(g.blob, 2**32 - 1)),
            "undecodable bad_block",
        ),
        (
            "a block of 2^31 bytes",
            lambda g: g.packed("bslz4", 2, with_block_length(g.blob, 2**31)),
            "undecodable bad_block",
        ),
        ("a block of no bytes", lambda g: g.packed("bslz4", 2, with_block_length(g.blob, 0)), "undecodable bad_block"),
        ("a truncated block", lambda g: g.packed("bslz4", 2, g.blob[:-40]), "undecodable bad_block"),
        ("a block of noise", lambda g: g.packed("bslz4", 2, _noise(g)), "undecodable bad_block"),
        ("bslz4 said to be lz4", lambda g: g.packed("lz4", 0, g.blob), "undecodable bad_block"),
    )
    for name, changes, outcome in table:
        # Bitshuffle blocks are good blocks of LZ4 too, where no pixels are left over.
        as_packed = name != "bslz4 said to be lz4"
        yield Malformed(f"v2 image: {name}", "v2", outcome, _image(changes), as_packed)
    frills: dict[str, Changes] = {
        "times without sense": {"start_time": [2**63, 0], "stop_time": "now", "real_time": [1, 2, 3], "series_date": 7},
        "a date of a megabyte": {"series_date": "2" * 10**6},
        "user data of a megabyte": {"user_data": "x" * 10**6},
        "user data of numbers without end": {"user_data": [NAN, INFINITY, 2**200, -(2**64)]},
        "a unique id of a megabyte": {"series_unique_id": "x" * 10**6},
        "unknown keys": {"zz_future": {"a": [1, 2, {"b": None}]}},
    }
    for name, changes in frills.items():
        # By another unique id it is of another series.
        yield Malformed(f"v2 image: {name}", "v2", "harmless", _image(changes), "unique id" not in name)


def starts() -> Iterator[Malformed]:
    for value in NUMBERS:
        numbers = dict.fromkeys(START_NUMBERS, value)
        yield Malformed(f"v2 start: every number is {value!r:.12}", "v2", "harmless", _start(numbers), False)
    table: dict[str, Changes] = {
        "an image of 2^60 columns": {"image_size_x": 2**60},
        "saturation 2^63-1": {"saturation_value": 2**63 - 1},
        "2^63-1 images": {"number_of_images": 2**63 - 1},
        "channels that are no text": {"channels": [1, None, b"a", ["a"], {"a": 1}]},
        "a thousand channels": {"channels": [f"channel {n}" for n in range(1000)]},
        "channels as text": {"channels": CHANNEL},
        "a channel with control characters": {"channels": ["a\x00\n\x1b[2J"]},
        "an arm date of a megabyte": {"arm_date": "x" * 10**6},
        "a description of a megabyte": {"detector_description": "\x00" * 10**6},
        "an unknown dtype": {"image_dtype": "float128"},
        "a dtype that is a list": {"image_dtype": ["uint16"]},
        "a translation without end": {"detector_translation": [0.0, 0.0, NAN]},
        "a translation of text": {"detector_translation": ["a", "b", "c"]},
        "a translation of -2^63": {"detector_translation": [0, 0, -(2**63)]},
        "thresholds without sense": {"threshold_energy": {"a": NAN, 1: 2.0, "b": "c", "x" * 1000: 1.0}},
        "a mask of another shape": {"pixel_mask": {CHANNEL: array([2, 2], bytes(16), 70)}},
        "a mask of floats": lambda g: {"pixel_mask": {CHANNEL: array(g.dims, bytes(4 * g.shape[0] * g.shape[1]), 85)}},
        "a mask too short": lambda g: {"pixel_mask": {CHANNEL: array(g.dims, bytes(16), 70)}},
        "a mask of 2^60 rows": lambda g: {"pixel_mask": {CHANNEL: array([2**60, g.shape[1]], bytes(16), 70)}},
        "a packed mask that does not decode": lambda g: {
            "pixel_mask": {CHANNEL: array(g.dims, packed("bslz4", 4, b"x" * 99), 70)}
        },
        "a mask in an unknown compression": lambda g: {
            "pixel_mask": {CHANNEL: array(g.dims, packed("zip", 4, b"x" * 99), 70)}
        },
        "a mask that is text": {"pixel_mask": "none"},
        "a flatfield of NaN": lambda g: {
            "flatfield": {CHANNEL: array(g.dims, b"\xff" * (8 * g.shape[0] * g.shape[1]), 86)}
        },
        "a table that is text": {"countrate_correction_lookup_table": "none"},
        "a table of half a number": {"countrate_correction_lookup_table": cbor2.CBORTag(70, b"abc")},
        "user data of a megabyte": {"user_data": {"a": b"x" * 10**6}},
        "user data of deep lists": {"user_data": [[[[[[[[[[[1]]]]]]]]]]]},
        "user data of arrays": {"user_data": [array([2], b"\0\0\0\0"), cbor2.CBORTag(9999, "x")]},
    }
    for name, changes in table.items():
        yield Malformed(f"v2 start: {name}", "v2", "harmless", _start(changes), False)
    yield Malformed("v2 start: 10^5 channels", "v2", "invalid malformed", _start({"channels": ["c"] * 100_000}))
