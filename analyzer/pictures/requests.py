"""What is asked of who draws, and how it goes through a pipe: a header in MessagePack, then the arrays it names.

Arrays follow in the order in which the header has them, from the memory where they lie. An answer is its kind, its
length and its bytes.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from analyzer.geometry import Panels
from analyzer.pictures import curves
from analyzer.pictures.products import DOTS_PER_INCH, draw
from analyzer.product_snapshot import Snapshot

Array = npt.NDArray[Any]

READY, PICTURE, NOTHING, FAILED = b"R", b"P", b"N", b"F"
"""Kinds of answers; the first one says that requests are read from now on. ``FAILED`` carries one line of text."""

HEADER = struct.Struct("<I")
"""Before a request: the length of its header."""

ANSWER = struct.Struct("<cI")
"""Before an answer: its kind and length."""


class ProductPicture(msgspec.Struct, frozen=True, tag=True):
    """A product of ``FIGURES``; see ``products.draw``."""

    name: str
    products: Snapshot
    dots_per_inch: float = DOTS_PER_INCH
    scale: float = 1.0
    dark: bool = False


class CurvePicture(msgspec.Struct, frozen=True, tag=True):
    """Curves of the live history, plain values, by the name of a function of ``curves``; ``began_at``: Unix s."""

    name: Literal["rate_over_time", "rate_over_images", "radial_profile"]
    curves: Mapping[str, Any]
    began_at: float = 0.0


Request = ProductPicture | CurvePicture
Draw = Callable[[Request], bytes | None]
"""The PNG, or ``None`` where there is nothing to show. Raises ``NoPicture``."""

_CURVES = {
    "rate_over_time": ("time", "minutes"),
    "rate_over_images": ("images", "series"),
    "radial_profile": ("profile",),
}
"""What of the curves each picture shows."""


def drawn(request: Request) -> bytes | None:
    """Draw it here. Raises whatever matplotlib raises, and ``KeyError`` for a picture that there is not."""
    match request:
        case ProductPicture():
            return draw(request.name, request.products, request.dots_per_inch, request.scale, request.dark)
        case CurvePicture("rate_over_time"):
            return curves.rate_over_time(request.curves, request.began_at)
        case CurvePicture("rate_over_images"):
            return curves.rate_over_images(request.curves)
        case CurvePicture():
            return curves.radial_profile(request.curves)


def packed(request: Request) -> tuple[bytes, list[Array]]:
    """The header, and the arrays that follow it. What the picture does not show is left out."""
    arrays: list[Array] = []

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            arrays.append(np.ascontiguousarray(value))
            return value.dtype.str, value.shape
        if isinstance(value, Panels):
            return value.bounds, value.origin_m, value.fs_m, value.ss_m
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"a picture cannot be asked for with a {type(value).__name__}")

    return msgspec.msgpack.encode(_lean(request), enc_hook=plain), arrays


def unpacked(header: bytes, read_into: Callable[[memoryview], None]) -> Request:
    """The request of a header; ``read_into`` fills memory with the bytes that come next. Raises what that raises, and
    ``msgspec.ValidationError``."""

    def made(kind: Any, value: Any) -> object:
        if kind is Panels:
            return Panels(*(array(*each) for each in value))
        return array(*value)

    def array(dtype: str, shape: list[int]) -> Array:
        found = np.empty(shape, np.dtype(dtype))
        if found.size:
            read_into(found.data.cast("B"))
        return found

    request: Request = msgspec.msgpack.decode(header, type=Request, dec_hook=made)
    return request


def _lean(request: Request) -> Request:
    """Without the large arrays that its picture does not need."""
    if isinstance(request, CurvePicture):
        shown = {key: request.curves[key] for key in _CURVES[request.name] if key in request.curves}
        return msgspec.structs.replace(request, curves=shown)
    seen = request.products
    lean = replace(seen, powder_peaks=seen.powder_peaks[:0])
    if request.name != "powder":
        lean = replace(lean, powder_photons=seen.powder_photons[:0], powder_saturated=seen.powder_saturated[:0])
    return msgspec.structs.replace(request, products=lean)
