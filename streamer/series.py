"""What belongs to which series: the policy, without a socket.

Rules. A start always opens its series, whatever its id; a repeated start of the running
series replaces its metadata. A lone image or end of another series never ends the running
one; without a start, a series is joined after ``JOIN_AFTER`` consecutive messages of it. Ids
outside what was announced are refused. A second copy of an image is a duplicate even when
the first did not decode. A series is over at its end message, ``GRACE_S`` after its last
announced image, or at a new start; silence never ends it. What is over stays over: a late
message of it is stale. What is odd and harms nothing is counted, and changes nothing of this.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from streamer.account import Account
from streamer.messages import (
    ConfigMessage,
    EndMessage,
    ImageMessage,
    InvalidMessage,
    Message,
    SeriesMetadata,
    StartMessage,
)
from streamer.oddities import Oddity, Rhythm

JOIN_AFTER = 3
GRACE_S = 1.0
PENDING_S = 30.0
"""How long a lone foreign image may wait for the next of its series before it is stale."""
MAX_UNANNOUNCED_ID = 1 << 40
"""Images from here on are out of range where nothing was announced: 35 years at 1 kHz. One flipped
bit in an id must not fill the account with missing images that never were."""

_REMEMBERED_SERIES = 256
_CHUNK = 1024
MOST_CHUNKS = 1 << 18
"""Of one series' ids: 268 million images in a row, three days at 1 kHz. Ids that are strewn take one each, and some
80 MB when they are that many; what comes then outside of them is out of range."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One run of the detector. ``ordinal`` counts series seen, as ids may repeat after a reboot; ``revision`` the
    headers of this one that replaced another."""

    ordinal: int
    series_id: int
    unique_id: str | None
    metadata: SeriesMetadata
    joined: bool = False
    revision: int = 0


@dataclass(frozen=True, slots=True)
class SeriesOpened:
    """A series began, or was joined: ``first`` is the least image id that is known of it then."""

    series: Series
    first: int | None = None


@dataclass(frozen=True, slots=True)
class SeriesUpdated:
    """Metadata came late or was replaced; ``series`` has the ordinal of the one it replaces."""

    series: Series


@dataclass(frozen=True, slots=True)
class ImageAccepted:
    series: Series
    image: ImageMessage


@dataclass(frozen=True, slots=True)
class SeriesClosed:
    """A series is over: what was announced (``None`` if never said), accepted, missing by place."""

    series: Series
    announced: int | None
    accepted: int
    missing: dict[str, int]
    why: str


Event = SeriesOpened | SeriesUpdated | ImageAccepted | SeriesClosed


class IdSet:
    """A set of image ids in little memory: a bit an id, in chunks, however large the ids are."""

    __slots__ = ("_chunks", "count", "highest", "lowest")

    def __init__(self) -> None:
        self._chunks: dict[int, int] = {}
        self.count = 0
        self.lowest: int | None = None
        self.highest: int | None = None

    def has_room(self, image_id: int) -> bool:
        """Whether an id can be added: not where ids are strewn so that they would take memory without end."""
        return len(self._chunks) < MOST_CHUNKS or image_id // _CHUNK in self._chunks

    def add(self, image_id: int) -> bool:
        """False when it was there already."""
        chunk, bit = image_id // _CHUNK, 1 << image_id % _CHUNK
        bits = self._chunks.get(chunk, 0)
        if bits & bit:
            return False
        self._chunks[chunk] = bits | bit
        self.count += 1
        self.lowest = image_id if self.lowest is None else min(self.lowest, image_id)
        self.highest = image_id if self.highest is None else max(self.highest, image_id)
        return True

    def __contains__(self, image_id: int) -> bool:
        return bool(self._chunks.get(image_id // _CHUNK, 0) & 1 << image_id % _CHUNK)

    def below(self, image_id: int) -> int:
        """How many ids are smaller than this one."""
        last, bit = divmod(image_id, _CHUNK)
        whole = sum(bits.bit_count() for chunk, bits in self._chunks.items() if chunk < last)
        return whole + (self._chunks.get(last, 0) & ((1 << bit) - 1)).bit_count()


@dataclass(slots=True)
class _Running:
    series: Series
    complete: bool
    announced: int | None
    ids: IdSet = field(default_factory=IdSet)
    deadline_s: float | None = None
    rhythm: Rhythm = field(default_factory=Rhythm)

    @property
    def last_came(self) -> bool:
        return self.announced is not None and self.ids.highest == self.announced - 1


_Key = tuple[int, str | None]

Known = Callable[[ImageMessage], SeriesMetadata | None]
"""What is known of the series that an image without a start belongs to, from before this program began."""


class SeriesTracker:
    """Turns messages into events and keeps the account. Times are a monotonic clock in seconds.

    ``known`` is asked for the header of a series that is joined.
    """

    def __init__(self, account: Account, known: Known = lambda image: None) -> None:
        self._account = account
        self._known = known
        self._running: _Running | None = None
        self._over: deque[_Key] = deque(maxlen=_REMEMBERED_SERIES)
        self._ended: deque[_Key] = deque(maxlen=_REMEMBERED_SERIES)
        self._pending: list[ImageMessage] = []
        self._pending_until_s = 0.0
        self._opened = 0
        self._latest = SeriesMetadata()

    @property
    def running(self) -> Series | None:
        running = self._running  # once: other threads ask too
        return running.series if running else None

    @property
    def pending(self) -> int:
        """Images held back until it is clear whether their series is to be joined."""
        return len(self._pending)

    def handle(self, message: Message, now_s: float) -> Iterator[Event]:
        """Events of one message, in order. Raises ``InvalidMessage`` for one out of place."""
        yield from self.tick(now_s)
        if isinstance(message, StartMessage):
            yield from self._start(message, now_s)
        elif isinstance(message, ConfigMessage):
            yield from self._config(message, now_s)
        elif isinstance(message, ImageMessage):
            self._account.received += 1
            yield from self._image(message, now_s)
        else:
            yield from self._end(message, now_s)

    def tick(self, now_s: float) -> Iterator[Event]:
        """Events of time passing: a series whose last announced image came a while ago is over."""
        running = self._running
        if running is not None and running.deadline_s is not None and now_s >= running.deadline_s:
            yield from self._close("last announced image")
        if self._pending and now_s >= self._pending_until_s:
            self._drop_pending()

    def finish(self) -> Iterator[Event]:
        """The source is exhausted or we stop: the running series is over."""
        self._drop_pending()
        yield from self._close("source ended")

    def _start(self, message: StartMessage, now_s: float) -> Iterator[Event]:
        running = self._running
        self._drop_pending()
        if running is not None and _repeats(running, message):
            running.complete = message.complete
            self._account.oddities[Oddity.REPEATED_START] += 1
            yield self._replace_metadata(running, message.metadata, message.unique_id, now_s)
            return
        yield from self._close("new start")
        yield self._open(message.series_id, message.unique_id, message.metadata, message.complete, joined=False)

    def _config(self, message: ConfigMessage, now_s: float) -> Iterator[Event]:
        running = self._running
        if running is None or running.complete:
            raise InvalidMessage("malformed", "a detector configuration without a header before it")
        running.complete = True
        yield self._replace_metadata(running, message.metadata, running.series.unique_id, now_s)

    def _replace_metadata(
        self, running: _Running, metadata: SeriesMetadata, unique_id: str | None, now_s: float
    ) -> SeriesUpdated:
        metadata = self._sharing(metadata)
        before = running.series
        running.series = replace(
            before, metadata=metadata, unique_id=unique_id or before.unique_id, revision=before.revision + 1
        )
        self._announce(running, metadata.number_of_images)
        running.deadline_s = now_s + GRACE_S if running.last_came else None
        return SeriesUpdated(running.series)

    def _announce(self, running: _Running, images: int | None) -> None:
        """What is announced never falls below what came, nor is it taken back by a header that says nothing."""
        if images is None:
            return
        if running.ids.highest is not None:
            images = max(images, running.ids.highest + 1)
        self._account.announced += images - (running.announced or 0)
        running.announced = images

    def _open(
        self, series_id: int, unique_id: str | None, metadata: SeriesMetadata, complete: bool, *, joined: bool
    ) -> SeriesOpened:
        self._opened += 1
        series = Series(self._opened, series_id, unique_id, self._sharing(metadata), joined)
        self._running = _Running(series, complete, None)
        self._announce(self._running, metadata.number_of_images)
        return SeriesOpened(series)

    def _sharing(self, metadata: SeriesMetadata) -> SeriesMetadata:
        """With the maps of the series before where they are the same ones.

        Every header brings them again, and some series are held for a while: of a 4M each map takes 18 MB.
        """
        if not (metadata.masks or metadata.flatfields):
            return metadata
        before = self._latest
        self._latest = metadata.with_changes(
            masks={name: _same(before.masks.get(name), mask) for name, mask in metadata.masks.items()},
            flatfields={name: _same(before.flatfields.get(name), flat) for name, flat in metadata.flatfields.items()},
        )
        return self._latest

    def _image(self, message: ImageMessage, now_s: float) -> Iterator[Event]:
        running = self._running
        if running is not None and _belongs(running.series, message):
            self._drop_pending()
            yield from self._accept(running, message, now_s)
            return
        if self._is_over(message):
            self._drop_pending()
            self._account.drop("stale_series")
            return
        if self._pending and not _same_series(self._pending[0], message):
            self._drop_pending()
        self._pending.append(message)
        self._pending_until_s = now_s + PENDING_S
        if len(self._pending) >= JOIN_AFTER:
            yield from self._join(now_s)

    def _join(self, now_s: float) -> Iterator[Event]:
        pending, self._pending = self._pending, []
        yield from self._close("another series runs")
        first = pending[0]
        # Complete: a configuration that comes now belongs to a header we never saw, of another series.
        metadata = self._known(first) or SeriesMetadata()
        opened = self._open(first.series_id, first.unique_id, metadata, complete=True, joined=True)
        yield replace(opened, first=max(0, min(image.image_id for image in pending)))
        running = self._running
        assert running is not None
        for image in pending:
            yield from self._accept(running, image, now_s)

    def _accept(self, running: _Running, message: ImageMessage, now_s: float) -> Iterator[Event]:
        announced, image_id = running.announced, message.image_id
        known = 0 <= image_id < (MAX_UNANNOUNCED_ID if announced is None else announced)
        if not known or not running.ids.has_room(image_id):
            self._account.drop("out_of_range")
            return
        if not running.ids.add(image_id):
            self._account.drop("duplicate")
            return
        if running.last_came and running.deadline_s is None:
            running.deadline_s = now_s + GRACE_S
        for oddity in running.rhythm.follow(message, now_s, running.series.metadata.frame_time_s):
            self._account.oddities[oddity] += 1
        yield ImageAccepted(running.series, message)

    def _end(self, message: EndMessage, now_s: float) -> Iterator[Event]:
        running = self._running
        if running is not None and _belongs(running.series, message):
            self._drop_pending()
            self._ended.append((message.series_id, message.unique_id))
            yield from self._close("end message")
        elif self._pending and _same_series(self._pending[0], message) and len(self._pending) + 1 >= JOIN_AFTER:
            yield from self._join(now_s)
            self._ended.append((message.series_id, message.unique_id))
            yield from self._close("end message")
        else:
            self._drop_pending()
            if _is_among(self._ended, message):
                self._account.oddities[Oddity.REPEATED_END] += 1
            else:
                self._ended.append((message.series_id, message.unique_id))
            if not self._is_over(message):
                self._over.append((message.series_id, message.unique_id))

    def _is_over(self, message: ImageMessage | EndMessage) -> bool:
        return _is_among(self._over, message)

    def _drop_pending(self) -> None:
        if self._pending:
            self._account.drop("stale_series", len(self._pending))
            self._pending = []

    def _close(self, why: str) -> Iterator[Event]:
        running, self._running = self._running, None
        if running is None:
            return
        series, ids = running.series, running.ids
        self._over.append((series.series_id, series.unique_id))
        missing = _missing(ids, running.announced, series.joined)
        for where, count in missing.items():
            self._account.missing[where] += count
        self._account.series_ended[why] += 1
        yield SeriesClosed(series, running.announced, ids.count, missing, why)


def _same(before: npt.NDArray[Any] | None, now: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The map before where it says the same."""
    same = before is not None and before.dtype == now.dtype and np.array_equal(before, now)
    return before if before is not None and same else now


def _repeats(running: _Running, message: StartMessage) -> bool:
    """Whether a start is the running series' own once more, not a rebooted detector's first."""
    series = running.series
    if message.series_id != series.series_id:
        return False
    if message.unique_id and series.unique_id:
        return message.unique_id == series.unique_id
    old, new = series.metadata.arm_date, message.metadata.arm_date
    if old and new:
        return old == new
    # Without a date to tell: after its last image a series has no use for another start.
    return not running.last_came


def _belongs(series: Series, message: ImageMessage | EndMessage) -> bool:
    if message.series_id != series.series_id:
        return False
    return not (message.unique_id and series.unique_id) or message.unique_id == series.unique_id


def _is_among(series: Iterable[_Key], message: ImageMessage | EndMessage) -> bool:
    return any(
        series_id == message.series_id and (not (unique_id and message.unique_id) or unique_id == message.unique_id)
        for series_id, unique_id in series
    )


def _same_series(one: ImageMessage, other: ImageMessage | EndMessage) -> bool:
    return one.series_id == other.series_id and (
        not (one.unique_id and other.unique_id) or one.unique_id == other.unique_id
    )


def _missing(ids: IdSet, announced: int | None, joined: bool) -> dict[str, int]:
    """Images that never came, by place. What a late joiner could not see is ``head``."""
    if ids.count == 0 or ids.lowest is None or ids.highest is None:
        return {"head": 0, "gap": 0, "tail": announced or 0}
    before = ids.lowest
    inside = ids.highest - ids.lowest + 1 - ids.count
    tail = announced - 1 - ids.highest if announced is not None else 0
    return {"head": before if joined else 0, "gap": inside + (0 if joined else before), "tail": tail}
