"""A journal's hits by the file they go into; what cannot be stored is noted and keeps no other from its file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analyzer.hits.entries import HIT, SERIES, HitEntry, digest_of, read_hit, result_of
from analyzer.hits.journal import Damage, Entry, read_body, read_entries
from analyzer.hits.packing import Filter, chunk_of, filter_of
from analyzer.hits.tables import integers_of, numbers_of, peaks_of
from streamer import bounds
from streamer.errors import first_line
from streamer.messages import Algorithm, ImageData


@dataclass(frozen=True, slots=True)
class Hit:
    entry: HitEntry
    body: Entry
    peaks: int
    order: tuple[float, int]

    def image(self, data: bytes = b"") -> ImageData:
        entry = self.entry
        return ImageData(data, entry.shape, np.dtype(entry.dtype), Algorithm(entry.algorithm), entry.element_bytes)


@dataclass(slots=True)
class Group:
    """Hits that go into one file; ``series`` is the record of theirs, None where it was lost."""

    series: Entry | None
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    packed_with: Filter
    hits: list[Hit] = field(default_factory=list)


@dataclass(slots=True)
class Made:
    """What became of a journal: files and hits in them; what could not be read, and what could not be stored."""

    files: list[Path] = field(default_factory=list)
    hits: int = 0
    damage: list[Damage] = field(default_factory=list)
    unstored: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the journal holds nothing that is not in a file, but for a last write cut short by a kill."""
        return not self.unstored and all(damage.torn for damage in self.damage)


def groups_of(fd: int, made: Made) -> list[Group]:
    """The hits of a journal by file, in the order of their first; notes what cannot be read or stored."""
    series: dict[str, Entry] = {}
    groups: dict[tuple[Any, ...], Group] = {}
    for found in read_entries(fd):
        if isinstance(found, Damage):
            made.damage.append(found)
        elif found.kind == SERIES:
            series[digest_of(found.head)] = found
        elif found.kind == HIT:
            try:
                hit = _hit(fd, found)
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                made.unstored.append(f"the hit at byte {found.body_offset}: {first_line(error)}")
                continue
            image = hit.image()
            packed_with = filter_of(image, found.body_bytes)
            key = (hit.entry.series, image.shape, image.dtype.str, packed_with)
            if key not in groups:
                groups[key] = Group(series.get(hit.entry.series), image.shape, image.dtype, packed_with)
            groups[key].hits.append(hit)
        else:
            made.unstored.append(f"the record at byte {found.body_offset}: unknown kind {found.kind}")
    for group in groups.values():
        group.hits.sort(key=lambda hit: hit.order)  # as they were measured, whichever worker was quicker
    return list(groups.values())


def _hit(fd: int, found: Entry) -> Hit:
    """A hit that can be stored: one that cannot must not keep the others from their file. Raises as conversions do."""
    entry = read_hit(found.head)
    result = result_of(entry)
    numbers, integers = numbers_of(result), integers_of(result)
    hit = Hit(entry, found, len(peaks_of(result)), (numbers["received_at"], int(integers["image_id"])))
    image = hit.image()
    if image.dtype.str[1:] not in ("u1", "u2", "u4") or bounds.image_shape(*image.shape) is None:
        raise ValueError(f"an image of {image.shape} pixels of {image.dtype}")
    if filter_of(image, found.body_bytes) == Filter.NONE and image.algorithm != Algorithm.RAW:
        chunk_of(hit.image(read_body(fd, found)))  # looked at now, so that a file has the chunks that it was made for
    return hit
