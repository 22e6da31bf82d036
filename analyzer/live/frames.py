"""Frames kept to be looked at: the latest, the latest hit and a hundred hits before it, packed as they came."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.geometry import Geometry
from analyzer.reduction import FramePlan
from analyzer.results import FrameResult, Status
from streamer.frames import Frame
from streamer.messages import ImageData
from streamer.validity import Validity

HITS_HELD = 100
HELD_BYTES = 128 << 20
"""Most memory of packed hits: less than a hundred where they are large."""

_LATEST_S = 60.0
MASKS_HELD = 4
"""Most different masks of held hits: one takes 4.5 MB on a 4M, and hits whose masks are the same share one."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """An image, packed as it came, and what was found in it; ``held_bytes`` of memory are kept for it.

    Of its series it has the geometry and the mask alone: a header's other maps are far larger than an image.
    """

    image: ImageData
    result: FrameResult
    geometry: Geometry
    validity: Validity
    held_bytes: int

    @staticmethod
    def of(frame: Frame, result: FrameResult, plan: FramePlan) -> "Look":
        """Of a frame that was analysed."""
        assert isinstance(frame.image, ImageData)
        return Look(frame.image, result, plan.geometry, plan.validity, frame.held_bytes)

    @property
    def key(self) -> str:
        """Names the frame within a run: ORDINAL:IMAGE."""
        return f"{self.result.ordinal}:{self.result.image_id}"

    @property
    def facts(self) -> dict[str, Any]:
        """What a list of hits shows of it."""
        result = self.result
        return {
            "key": self.key,
            "series_id": result.series_id,
            "image_id": result.image_id,
            "peak_count": result.peak_count,
            "hit_probability": result.hit_probability,
            "resolution_angstrom": result.resolution_angstrom,
            "received_at": result.received_at,
            "indexable": result.indexable,
        }


class LatestFrames:
    """Holds packed frames by reference, where ``keeping`` says that someone may look; workers add a batch at a time.

    ``changes`` counts what was added to the hits.
    """

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self.keeping = False
        self.changes = 0
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._latest: Look | None = None
            self._hits: OrderedDict[str, Look] = OrderedDict()
            self._bytes = 0
            self._alias: tuple[weakref.ref[npt.NDArray[np.uint8]] | None, Validity | None] = None, None
            self.changes += 1

    def add(self, frames: Sequence[Frame], results: Sequence[FrameResult], plans: Sequence[FramePlan]) -> None:
        """Take in a batch; ``plans`` are those of its good results, in their order."""
        if not self.keeping:
            return
        good = [(f, r) for f, r in zip(frames, results, strict=True) if r.status == Status.OK]
        looks = [Look.of(frame, result, plan) for (frame, result), plan in zip(good, plans, strict=False)]
        if not looks:
            return
        newest = max(looks, key=lambda look: look.result.received_at)
        with self._lock:
            # A minute back is no late frame but a clock that was set back.
            late_s = 0.0 if self._latest is None else self._latest.result.received_at - newest.result.received_at
            if not 0.0 < late_s < _LATEST_S:
                self._latest = newest
            for look in looks:
                if look.result.hit:
                    self._hold(look)

    def _hold(self, look: Look) -> None:
        look = replace(look, validity=self._shared(look.validity))
        self._hits[look.key] = look
        self._bytes += look.held_bytes
        self.changes += 1
        while len(self._hits) > 1 and (
            len(self._hits) > HITS_HELD or self._bytes > self._most_bytes or self._masks() > MASKS_HELD
        ):
            _, gone = self._hits.popitem(last=False)
            self._bytes -= gone.held_bytes

    def _shared(self, validity: Validity) -> Validity:
        """The mask as a held hit has it already: every series that begins may bring it anew."""
        seen, same = self._alias
        if seen is None or seen() is not validity.valid:
            held = {id(each.validity): each.validity for each in self._hits.values()}
            same = next((each for each in held.values() if _are_same(each, validity)), validity)
            # Large arrays are compared once a series, not once a hit; and this one may go with its series.
            self._alias = weakref.ref(validity.valid), same
        assert same is not None
        return same

    def _masks(self) -> int:
        return len({id(look.validity) for look in self._hits.values()})

    def latest(self) -> Look | None:
        """The good frame that arrived last."""
        return self._latest

    def latest_hit(self) -> Look | None:
        """The last hit that was held."""
        with self._lock:
            return next(reversed(self._hits.values())) if self._hits else None

    def held(self, key: str) -> Look | None:
        """A hit by its key, ``None`` when it is no longer there."""
        with self._lock:
            return self._hits.get(key)

    def hits(self) -> list[Look]:
        """Those held, the newest last."""
        with self._lock:
            return list(self._hits.values())


def _are_same(one: Validity, other: Validity) -> bool:
    return one is other or (one.name == other.name and np.array_equal(one.valid, other.valid))
