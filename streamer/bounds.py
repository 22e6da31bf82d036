"""What a value from outside may be: metadata is made bounded and plain here, or left out.

Parsers and file readers pass everything they hand on through this module, so that code after
them never meets NaN, a number without sense, a name of a megabyte or a nesting of a thousand.
A value out of bounds is treated as not said.
"""

from collections.abc import Iterable
from typing import Any, TypeGuard

MAX_TEXT = 256
"""Characters of a description, a serial number, a date."""

MAX_NAME = 64
"""Characters of a channel's name."""

MAX_CHANNELS = 16
"""A detector has three."""

MAX_SIDE_PX = 1 << 16
MAX_DECODED_BYTES = 1 << 29
"""512 MiB decoded: seven times a 16M image of 32 bit."""

MAX_IMAGES = 1 << 62
MAX_SATURATION = (1 << 32) - 1

MAX_PLAIN_ITEMS = 4096
MAX_PLAIN_TEXT = 64 << 10
MAX_PLAIN_DEPTH = 8
"""An appendix larger than these is left out as a whole."""

Range = tuple[float, float]
ENERGY_EV: Range = (1.0, 1e7)
WAVELENGTH_A: Range = (1e-3, 1e5)
CAMERA_LENGTH_M: Range = (1e-4, 1e4)
PIXEL_SIZE_M: Range = (1e-8, 1.0)
THICKNESS_M: Range = (1e-8, 1.0)
DURATION_S: Range = (1e-12, 1e8)
CLOCK_S: Range = (0.0, 1e12)
BEAM_CENTER_PX: Range = (-1e6, 1e6)


def is_count(value: Any) -> TypeGuard[int]:
    """An integer from 0 that fits 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def is_id(value: Any) -> TypeGuard[int]:
    """An integer, negative or not, that fits 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -1 << 63 <= value < 1 << 63


def number(value: Any, allowed: Range) -> float | None:
    """``value`` when it is a number within ``allowed``; NaN is within nothing."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and allowed[0] <= value <= allowed[1]:
        return float(value)
    return None


def positive_count(value: Any, most: int = MAX_IMAGES) -> int | None:
    """``value`` when it is a count from 1 to ``most``; a detector writes 0 for "not known"."""
    return value if is_count(value) and 0 < value <= most else None


def text(value: Any, most: int = MAX_TEXT) -> str | None:
    """The first ``most`` characters of a text, what cannot be printed as a space."""
    if not isinstance(value, str) or not value:
        return None
    value = value[:most]
    return value if value.isprintable() else "".join(c if c.isprintable() else " " for c in value)


def channel_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def channel_names(values: Any) -> tuple[str, ...]:
    """The usable names of a list, each once, at most ``MAX_CHANNELS``."""
    if not isinstance(values, list):
        return ()
    return tuple(dict.fromkeys(name for name in values[:MAX_CHANNELS] if channel_name(name)))


def image_shape(rows: Any, columns: Any) -> tuple[int, int] | None:
    """(rows, columns) of an image that could be decoded, else ``None``."""
    if (
        positive_count(rows, MAX_SIDE_PX)
        and positive_count(columns, MAX_SIDE_PX)
        and rows * columns < MAX_DECODED_BYTES
    ):
        return rows, columns
    return None


def beam_center(x: Any, y: Any) -> tuple[float | None, float | None]:
    """A beam centre, negative where the beam misses the detector; both 0 is "not set"."""
    if not x and not y:
        return None, None
    return number(x, BEAM_CENTER_PX), number(y, BEAM_CENTER_PX)


class _TooMuch(ValueError):
    pass


def plain(value: Any) -> Any:
    """A copy made of text, numbers, lists and maps with text keys; ``None`` when it is too much.

    Byte strings become text, numbers that are not finite or beyond 64 bits ``None``. The copy
    refers to no message.
    """
    left = [MAX_PLAIN_ITEMS, MAX_PLAIN_TEXT]
    try:
        return _plain(value, left, MAX_PLAIN_DEPTH)
    except _TooMuch:
        return None


def plain_items(pairs: Iterable[tuple[Any, Any]], most: int = 1024) -> dict[str, Any]:
    """A map made plain value by value: one value too large costs only itself."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if len(found) == most:
            break
        name, kept = text(key, MAX_NAME), plain(value)
        if name is not None and kept is not None:
            found[name] = kept
    return found


def _plain(value: Any, left: list[int], depth: int) -> Any:
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        raise _TooMuch
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if is_id(value) else None
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        left[1] -= len(value)
        if left[1] < 0:
            raise _TooMuch
        return value if isinstance(value, str) else str(value, "utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return [_plain(member, left, depth - 1) for member in value]
    if isinstance(value, dict):
        return {_plain(str(key), left, 0): _plain(member, left, depth - 1) for key, member in value.items()}
    return None
