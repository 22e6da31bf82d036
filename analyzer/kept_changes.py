"""What was asked of a run by ``/control``, as its note keeps it: the latest of each kind, to ask again after a kill.

Each is kept as the body of the request that would bring about what holds now, so that it goes through the same checks
when it is read again. A mask is kept as its pixels, packed: its file may be gone or another by then, and the running
hot-pixel map that was frozen has none. A reset is not kept: whatever is summed begins anew with each process.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from analyzer.crew.wire import pack_flags, read_flags
from streamer.validity import Validity

KINDS = ("bundle", "peaks", "threshold", "mask", "channel", "run", "target")
"""Those that are kept, in the order in which they are asked again."""

_OF_KIND = {
    "bundle": ("bundle",),
    "threshold": ("threshold", "calibration"),
    "mask": ("mask",),
    "channel": ("channel",),
}
"""Settings that say the same as a change of this kind."""

_OF_KEY = {
    "peaks": {"finder": "peak_finder"},
    # Notes were written of the run that had the number.
    "run": {"number": "run_number", "sample": "sample_name", "notes": "run_number"},
    "target": {"hits": "target_hits", "indexed": "target_indexed"},
}
"""Settings that say the same as a key of these kinds; where none is named it has the key's own name."""

_MOST_BODY = 64 << 10
_MOST_HEAD_BYTES = 4 * _MOST_BODY
"""A request has 64 KiB at most; as text in JSON it is no more than four times that."""

_MOST_PIXELS = 1 << 27
_MOST_NAME = 4096
_LEVEL = 1

Settings = Mapping[str, Any]
"""What a run was started with, by setting: plain values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One change. ``body``: the JSON of the request, empty for masks and for what holds no more. ``label``: that of a
    bundle. ``masks``: the user's and the frozen hot-pixel map; ``first``: the former is that of the settings.
    """

    kind: str
    body: bytes = b""
    label: str | None = None
    masks: tuple[Validity | None, Validity | None] | None = None
    first: bool = False

    @property
    def holds(self) -> bool:
        return bool(self.body) or self.masks is not None


class _Mask(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, int]
    nbytes: int


class _Head(msgspec.Struct, frozen=True):
    kind: str
    body: str
    label: str | None = None
    masks: tuple[_Mask | None, _Mask | None] | None = None
    first: bool = False


def pack(asked: Asked) -> tuple[bytes, bytes]:
    """Head and body of its entry: a mask takes a bit a pixel, compressed."""
    masks, parts = None, []
    if asked.masks is not None:
        (own, own_bits), (hot, hot_bits) = (_packed(mask) for mask in asked.masks)
        masks, parts = (own, hot), [own_bits, hot_bits]
    head = _Head(asked.kind, asked.body.decode(), asked.label, masks, asked.first)
    return msgspec.json.encode(head), b"".join(parts)


def _packed(mask: Validity | None) -> tuple[_Mask | None, bytes]:
    if mask is None:
        return None, b""
    bits = zlib.compress(pack_flags(mask.valid), _LEVEL)
    return _Mask(mask.name, (mask.valid.shape[0], mask.valid.shape[1]), len(bits)), bits


def unpack(head: bytes, body: bytes) -> Asked:
    """The change of an entry. Raises ``ValueError`` for what no run has written."""
    if len(head) > _MOST_HEAD_BYTES:
        raise ValueError(f"a change of {len(head)} bytes")
    facts = msgspec.json.decode(head, type=_Head)
    if len(facts.body) > _MOST_BODY:
        raise ValueError(f"a change of {len(facts.body)} characters")
    if facts.kind not in KINDS:
        raise ValueError(f"a change of {facts.kind[:60]!a}, which is none that is kept")
    masks = None
    if facts.masks is not None:
        own, rest = _mask(facts.masks[0], body)
        hot, rest = _mask(facts.masks[1], rest)
        masks = own, hot
    if facts.body if facts.kind == "mask" else masks is not None:
        raise ValueError(f"a change of {facts.kind} with what belongs to another")
    return Asked(kind=facts.kind, body=facts.body.encode(), label=facts.label, masks=masks, first=facts.first)


def _mask(facts: _Mask | None, packed: bytes) -> tuple[Validity | None, bytes]:
    """A mask, and what comes after its bits."""
    if facts is None:
        return None, packed
    rows, columns = facts.shape
    if not facts.name.isprintable() or len(facts.name) > _MOST_NAME:
        raise ValueError("a mask with a name that no file has")
    if not (rows > 0 and columns > 0 and rows * columns <= _MOST_PIXELS and 0 < facts.nbytes <= len(packed)):
        raise ValueError(f"a mask of {rows} x {columns} in {len(packed)} bytes")
    try:
        # No more than the shape has, whatever the bytes would grow to.
        bits = zlib.decompressobj().decompress(packed[: facts.nbytes], -(-rows * columns // 8) + 1)
    except zlib.error as error:
        raise ValueError(f"a mask that does not unpack: {error}") from None
    return Validity(facts.name, read_flags(bits, facts.shape)), packed[facts.nbytes :]


def still_meant(asked: Asked, before: Settings, now: Settings) -> tuple[Asked | None, list[str]]:
    """What of it is asked again by a run that starts with settings ``now``; and the settings that come before the rest.

    A setting that is another one than ``before``, in the run that was killed, was changed on purpose since. Raises
    ``ValueError`` for a body that is no request.
    """
    if not before:
        return asked, []

    def other(setting: str) -> bool:
        return before.get(setting) != now.get(setting)

    if asked.kind in _OF_KIND:
        changed = [setting for setting in _OF_KIND[asked.kind] if other(setting)]
        return (None if changed else asked), changed
    try:
        body = msgspec.json.decode(asked.body, type=dict[str, Any])
    except RecursionError:
        raise ValueError(f"a change of {asked.kind} that is nested without end") from None
    settings = {key: _OF_KEY[asked.kind].get(key, key) for key in body}
    kept = {key: value for key, value in body.items() if not other(settings[key])}
    changed = sorted({settings[key] for key in body if key not in kept})
    return (replace(asked, body=msgspec.json.encode(kept)) if kept else None), changed
