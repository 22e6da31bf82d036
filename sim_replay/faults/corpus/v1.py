"""Malformed messages of stream v1, among them those of other programs: without the marks of v2 they are read as v1."""

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sim_replay.faults.corpus.good import NUMBERS, Good
from sim_replay.faults.corpus.malformed import Malformed
from streamer.decoding import MAX_LZ4_RATIO

Parts = list[bytes] | Callable[[Good], list[bytes]]

CONFIG_NUMBERS = (
    "beam_center_x",
    "beam_center_y",
    "bit_depth_image",
    "count_time",
    "detector_distance",
    "frame_time",
    "nimages",
    "ntrigger",
    "photon_energy",
    "threshold_energy",
    "wavelength",
    "x_pixel_size",
    "x_pixels_in_detector",
    "y_pixels_in_detector",
    "countrate_correction_count_cutoff",
    "sensor_thickness",
)


def foreign() -> Iterator[Malformed]:
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
        yield Malformed(f"foreign: {name}", "v1", "invalid malformed", _built([data]))
    for size in (1, 3, 30, 3000):
        noise = b"\x00" + rng.bytes(size)
        yield Malformed(f"foreign: {size} random bytes", "v1", "invalid malformed", _built([noise]))
    yield Malformed("foreign: 65 parts", "v1", "invalid malformed", _built([b"{}"] * 65))
    yield Malformed("foreign: two CBOR parts", "v1", "invalid malformed", lambda g: [g.v2, g.v2])


def _built(parts: Parts) -> Callable[[Good], list[bytes]]:
    return lambda g: list(parts(g) if callable(parts) else parts)


def _ending(kept: int, *parts: bytes) -> Callable[[Good], list[bytes]]:
    return lambda g: [*g.v1[:kept], *parts]


def _header_and(parts: list[bytes]) -> Parts:
    return lambda g: [*g.v1_start, *parts]


def _payload(good: Good, data: bytes, **changes: Any) -> list[bytes]:
    """The image with other packed bytes."""
    parts = good.v1_image(size=len(data), **changes)
    return [*parts[:2], data, *parts[3:]]


def _least(good: Good) -> int:
    """So few bytes could still be the image in LZ4."""
    return good.total // MAX_LZ4_RATIO + 16


def framing() -> Iterator[Malformed]:
    table: tuple[tuple[str, Parts, str], ...] = (
        ("no htype", [b"{}"], "invalid unknown_type"),
        ("a number as htype", [b'{"htype":1}'], "invalid unknown_type"),
        ("a list as htype", [b'{"htype":["dimage-1.0"],"series":1}'], "invalid unknown_type"),
        ("an unknown htype", [b'{"htype":"dnews-1.0","series":1}'], "invalid unknown_type"),
        ("a megabyte of htype", [b'{"htype":"' + b"x" * 10**6 + b'","series":1}'], "invalid unknown_type"),
        ("an end without series", [b'{"htype":"dseries_end-1.0"}'], "invalid missing_field"),
        ("NaN as series", [b'{"htype":"dseries_end-1.0","series":NaN}'], "invalid malformed"),
        ("a float as series", [b'{"htype":"dseries_end-1.0","series":1.5}'], "invalid bad_value"),
        (
            "a series of 4000 digits",
            [b'{"htype":"dseries_end-1.0","series":' + b"9" * 4000 + b"}"],
            "invalid bad_value",
        ),
        (
            "a series of 10^5 digits",
            [b'{"htype":"dseries_end-1.0","series":' + b"9" * 10**5 + b"}"],
            "invalid malformed",
        ),
        ("deep lists", [b"[" * 100_000], "invalid malformed"),
        ("deep maps", [b'{"a":' * 100_000], "invalid malformed"),
        ("JSON of 5 MB", [b'{"htype":"' + b"x" * (5 << 20) + b'"}'], "invalid too_large"),
        ("cut JSON", lambda g: [g.v1[0][:-5], *g.v1[1:]], "invalid malformed"),
        (
            "JSON not UTF-8",
            lambda g: [g.v1[0].replace(b"dimage", b"\xff\xfe\xfd\xfc\xfb\xfa"), *g.v1[1:]],
            "invalid malformed",
        ),
        (
            "an image without frame",
            lambda g: [b'{"htype":"dimage-1.0","series":7}', *g.v1[1:]],
            "invalid missing_field",
        ),
        ("a frame as text", lambda g: g.v1_ids(frame="3"), "invalid bad_value"),
        ("a frame of 2^63", lambda g: g.v1_ids(frame=2**63), "invalid bad_value"),
        ("series -1", lambda g: g.v1_ids(series=-1), "invalid bad_value"),
        ("pixels before their header", lambda g: g.v1[2:], "invalid malformed"),
    )
    for name, parts, outcome in table:
        yield Malformed(f"v1: {name}", "v1", outcome, _built(parts))


def images() -> Iterator[Malformed]:
    table: tuple[tuple[str, Parts, str], ...] = (
        ("the first part alone", lambda g: g.v1[:1], "defect missing_data"),
        ("no pixels", lambda g: g.v1[:2], "defect missing_data"),
        ("a second part that is not JSON", lambda g: [g.v1[0], b"\x00\x01", *g.v1[2:]], "defect bad_header"),
        ("a second part that is a list", lambda g: [g.v1[0], b"[]", *g.v1[2:]], "defect bad_header"),
        ("no shape", lambda g: g.v1_image(shape=None), "defect bad_header"),
        ("a shape of text", lambda g: g.v1_image(shape=["51", "37"]), "defect bad_header"),
        ("a shape of one number", lambda g: g.v1_image(shape=[51]), "defect bad_header"),
        ("a shape of 10^5 numbers", lambda g: g.v1_image(shape=[1] * 10**5), "defect bad_header"),
        ("a shape of zero", lambda g: g.v1_image(shape=[0, 37]), "defect bad_header"),
        ("a negative shape", lambda g: g.v1_image(shape=[-51, -37]), "defect bad_header"),
        ("a shape of 4000 digits", lambda g: g.v1_image(shape=[10**4000, 37]), "defect bad_header"),
        ("three dimensions", lambda g: g.v1_image(shape=[51, 37, 2]), "defect bad_header"),
        ("a shape of 2^60", lambda g: g.v1_image(shape=[2**60, 37]), "defect size_mismatch"),
        ("another shape", lambda g: g.v1_image(shape=[g.shape[0], g.shape[1] + 1]), "defect size_mismatch"),
        ("a type that is a list", lambda g: g.v1_image(type=["uint16"]), "defect unknown_dtype"),
        ("floats", lambda g: g.v1_image(type="float32"), "defect unknown_dtype"),
        ("64 bit", lambda g: g.v1_image(type="uint64"), "defect unknown_dtype"),
        ("an unknown encoding", lambda g: g.v1_image(encoding="bs16-zstd<"), "defect unknown_algorithm"),
        ("an encoding with a line end", lambda g: g.v1_image(encoding="bs16-lz4<\n"), "defect unknown_algorithm"),
        ("bitshuffle without LZ4", lambda g: g.v1_image(encoding="bs16<"), "defect unknown_algorithm"),
        ("an encoding that is a number", lambda g: g.v1_image(encoding=7), "defect unknown_algorithm"),
        ("no encoding", lambda g: g.v1_image(encoding=None), "defect unknown_algorithm"),
        ("a lying size", lambda g: g.v1_image(size=1), "defect size_mismatch"),
        ("a size of 4000 digits", lambda g: g.v1_image(size=10**4000), "defect size_mismatch"),
        ("the wrong type", lambda g: g.v1_image(type="uint32"), "undecodable size_mismatch"),
        ("packed pixels said to be plain", lambda g: g.v1_image(encoding="<"), "undecodable size_mismatch"),
        ("bslz4 said to be lz4", lambda g: g.v1_image(encoding="lz4<"), "undecodable bad_block"),
        ("the wrong bitshuffle width", lambda g: g.v1_image(encoding="bs32-lz4<"), "undecodable bad_header"),
        ("nothing packed", lambda g: _payload(g, b""), "undecodable size_mismatch"),
        ("the header missing", lambda g: _payload(g, g.blob[12:]), "undecodable size_mismatch"),
        ("shorter than a header", lambda g: _payload(g, g.blob[:11], shape=[2, 2]), "defect size_mismatch"),
        ("a truncated block", lambda g: _payload(g, g.blob[:-40]), "undecodable bad_block"),
        ("bytes after the last block", lambda g: _payload(g, g.blob + b"\0"), "undecodable bad_block"),
        (
            "a bomb",
            lambda g: _payload(g, struct.pack(">QI", g.total, 8192) + bytes(_least(g))),
            "undecodable bad_block",
        ),
        ("LZ4 of zeros", lambda g: _payload(g, bytes(_least(g)), encoding="lz4<"), "undecodable bad_block"),
        (
            "LZ4 that copies from before its start",
            lambda g: _payload(g, b"\x0f" + b"\xff" * _least(g), encoding="lz4<"),
            "undecodable bad_block",
        ),
    )
    for name, parts, outcome in table:
        # Where the header does not tell the shape, or pixels fill whole groups, these are other faults, or none.
        anywhere = name not in ("the wrong bitshuffle width", "shorter than a header")
        yield Malformed(f"v1 image: {name}", "v1", outcome, _built(parts), anywhere)
    for name, fourth in {
        "times that are not JSON": b"\x00",
        "times without sense": b'{"start_time":-1,"stop_time":"now","real_time":[]}',
        "times of 4000 digits": b'{"start_time":' + b"9" * 4000 + b',"real_time":1e308}',
        "empty times": b"",
    }.items():
        yield Malformed(f"v1 image: {name}", "v1", "harmless", _ending(3, fourth))
    for name, appendix in {
        "an appendix of a megabyte": b"x" * 10**6,
        "an appendix not UTF-8": b"\xff\xfe",
        "an appendix of deep lists": b"[" * 50_000,
        "an appendix of 4000 digits": b"[" + b"9" * 4000 + b"]",
    }.items():
        yield Malformed(f"v1 image: {name}", "v1", "harmless", _ending(4, appendix))
    yield Malformed("v1 image: parts after the appendix", "v1", "harmless", _ending(4, b"", b"", b""))


def starts() -> Iterator[Malformed]:
    for value in NUMBERS:
        if isinstance(value, bytes) or (isinstance(value, float) and not np.isfinite(value)):
            continue
        yield _start(f"every number is {value!r:.12}", _config(dict.fromkeys(CONFIG_NUMBERS, value)))
    yield _start("every number has 4000 digits", _config(dict.fromkeys(CONFIG_NUMBERS, 10**4000)))
    table: dict[str, dict[str, Any]] = {
        "a bit depth of 16.0": {"bit_depth_image": 16.0},
        "a description of control characters": {"description": "\x07" * 10**5},
        "a trigger mode that is a list": {"trigger_mode": ["ints"]},
        "unknown keys by the thousand": {f"key_{n}": n for n in range(5000)},
        "an arm date of a megabyte": {"data_collection_date": "x" * 10**6},
    }
    for name, changes in table.items():
        yield _start(name, _config(changes))
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
        yield _start(name, _header_and(tail))
    yield _start("a header detail that is a map", [b'{"htype":"dheader-1.0","series":7,"header_detail":{}}'])
    yield Malformed(
        "v1 start: a configuration that is not JSON", "v1", "invalid malformed", lambda g: [g.v1_start[0], b"\x00"]
    )


def _start(name: str, parts: Parts) -> Malformed:
    return Malformed(f"v1 start: {name}", "v1", "harmless", _built(parts), False)


def _config(changes: dict[str, Any]) -> Parts:
    return lambda g: g.v1_config(**changes)
