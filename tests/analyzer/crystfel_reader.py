"""How CrystFEL reads a MessagePack message and asks for one, rule by rule, with its traps.

A model of libcrystfel's image-msgpack.c and indexamajig's im-zmq.c, versions 0.11 and 0.12, as far as a sender can feel
them. It keeps the types of the wire, since the reader trips over them: numbers of the peak list are read as doubles
whatever they are, keys are compared only as far as the sent one goes, and the first that fits is taken.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

SHORTEST_MESSAGE = 16
"""A reply of up to 15 bytes is ignored, and the worker asks again."""

LONGEST_TEXT = 16 * 1024


@dataclass(frozen=True)
class Value:
    """A value with its type on the wire: nil, bool, uint, int, float, str, bin, array or map (a list of pairs)."""

    type: str
    value: Any


@dataclass
class Reading:
    """What the reader made of a message, and what it printed."""

    errors: list[str] = field(default_factory=list)


def unpack(data: bytes) -> Value:
    """The first object of a message, types kept."""
    value, _ = _unpack(memoryview(data), 0)
    return value


_FIXED = {
    0xCA: (">f", "float"), 0xCB: (">d", "float"), 0xCC: (">B", "uint"), 0xCD: (">H", "uint"), 0xCE: (">I", "uint"),
    0xCF: (">Q", "uint"), 0xD0: (">b", "int"), 0xD1: (">h", "int"), 0xD2: (">i", "int"), 0xD3: (">q", "int"),
}  # fmt: skip
_SIZED = {
    0xC4: (">B", "bin"), 0xC5: (">H", "bin"), 0xC6: (">I", "bin"), 0xD9: (">B", "str"), 0xDA: (">H", "str"),
    0xDB: (">I", "str"), 0xDC: (">H", "array"), 0xDD: (">I", "array"), 0xDE: (">H", "map"), 0xDF: (">I", "map"),
}  # fmt: skip


def _unpack(data: memoryview, at: int) -> tuple[Value, int]:
    head = data[at]
    at += 1
    if head < 0x80:
        return Value("uint", head), at
    if head >= 0xE0:
        return Value("int", head - 256), at
    if head in (0xC0, 0xC2, 0xC3):
        return (Value("nil", None) if head == 0xC0 else Value("bool", head == 0xC3)), at
    if head in _FIXED:
        form, kind = _FIXED[head]
        (number,) = struct.unpack_from(form, data, at)
        return Value(kind, number), at + struct.calcsize(form)
    if head in _SIZED:
        form, kind = _SIZED[head]
        (size,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
    elif head < 0x90:
        kind, size = "map", head & 15
    elif head < 0xA0:
        kind, size = "array", head & 15
    else:
        kind, size = "str", head & 31
    if kind in ("str", "bin"):
        return Value(kind, bytes(data[at : at + size])), at + size
    items = []
    for _ in range(size * (2 if kind == "map" else 1)):
        item, at = _unpack(data, at)
        items.append(item)
    return Value(kind, list(zip(items[::2], items[1::2], strict=True)) if kind == "map" else items), at


def main_object(data: bytes) -> Value:
    """The map itself, or the first element of an array."""
    top = unpack(data)
    return top.value[0] if top.type == "array" else top


def find(of: Value | None, wanted: str) -> Value | None:
    """The value of the first key that agrees with ``wanted`` over the length of the *key*."""
    if of is None or of.type != "map":
        return None
    for key, value in of.value:
        if key.type in ("str", "bin") and _strncmp_is_0(key.value, wanted.encode(), len(key.value)):
            return value
    return None


def _strncmp_is_0(a: bytes, b: bytes, n: int) -> bool:
    """C's: both end at a zero byte or after n."""
    cut = a[:n].split(b"\0")[0], b[:n].split(b"\0")[0]
    return cut[0] == cut[1]


def f64_bits(value: Value) -> float:
    """``via.f64`` of any object: the eight bytes of the union, whatever the type says."""
    if value.type == "float":
        return float(value.value)
    if value.type == "uint":
        return float(struct.unpack("<d", struct.pack("<Q", value.value))[0])
    if value.type == "int":
        return float(struct.unpack("<d", struct.pack("<q", value.value))[0])
    raise AssertionError(f"undefined: the bits of a {value.type} as a double")


def peaks(
    data: bytes, reading: Reading, peak_list: str = "peak_list", half_pixel: bool = True
) -> list[tuple[float, float, float]] | None:
    """(fs, ss, intensity) of each peak, corner-based after the half pixel; ``None`` where the reader gives up."""
    listed = find(main_object(data), peak_list)
    if listed is None:
        reading.errors.append(f"Peak list object not found ('{peak_list}')")
        return None
    columns = [find(listed, name) for name in ("fs", "ss", "intensity")]
    if any(column is None or column.type != "array" for column in columns):
        reading.errors.append("Peak list has wrong structure.")
        return None
    fs, ss, intensity = (column.value for column in columns if column is not None)
    if not len(fs) == len(ss) == len(intensity):
        reading.errors.append("Peak list arrays do not have equal size.")
        return None
    shift = 0.5 if half_pixel else 0.0
    return [
        (float(np.float32(f64_bits(x) + shift)), float(np.float32(f64_bits(y) + shift)), f64_bits(i))
        for x, y, i in zip(fs, ss, intensity, strict=True)
    ]


def header(data: bytes, name: str, reading: Reading) -> float | int | str | None:
    """A value for the geometry or for --copy-header; ``None`` where the reader gives up."""
    value = find(main_object(data), name)
    if value is None:
        reading.errors.append(f"Couldn't find '{name}' in MessagePack object")
        return None
    if value.type == "float":
        return float(value.value)
    if value.type in ("uint", "int"):
        return int(value.value)
    if value.type == "str":
        text: bytes = value.value
        return text.split(b"\0")[0].decode() if 0 < len(text) <= LONGEST_TEXT else None
    reading.errors.append(f"Unrecognised MsgPack type {value.type} ({name})")
    return None


def stream_line(name: str, value: float | int | str) -> str:
    """The value as --copy-header puts it into the stream."""
    if isinstance(value, str):
        return f"header/str/{name} = {value}"
    return f"header/int/{name} = {value}" if isinstance(value, int) else f"header/float/{name} = {value:f}"


def image(
    data: bytes, reading: Reading, shape: tuple[int, int], key: str = "detector_data"
) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.bool_]]:
    """Pixels of one panel of this shape and which are bad; pixels of a type it does not know stay undefined: None."""
    bad = np.zeros(shape, bool)
    found = find(main_object(data), key)
    if found is None or found.type != "map":
        reading.errors.append(f"Couldn't find '{key}' in MessagePack object")
        return None, bad
    dtype, size, pixels = (find(found, name) for name in ("type", "shape", "data"))
    if dtype is None or dtype.type != "str" or size is None or size.type != "array" or len(size.value) != 2:
        reading.errors.append("Data 'type' or 'shape' is wrong")
        return None, bad
    rows, columns = (item.value for item in size.value)
    if shape[0] > rows or shape[1] > columns:
        reading.errors.append("Data for panel is outside data array bounds")
        return None, bad
    if pixels is None or pixels.type != "bin":
        reading.errors.append("Data 'data' isn't binary")
        return None, bad
    if dtype.value not in (b"<i4", b"<f4"):
        reading.errors.append(f"Unrecognised data type '{dtype.value.decode()}'")
        return None, bad
    array = np.frombuffer(pixels.value, dtype.value.decode()).reshape(rows, columns)[: shape[0], : shape[1]]
    return array.astype(np.float32), ~np.isfinite(array) if dtype.value == b"<f4" else bad
