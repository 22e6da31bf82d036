"""The journal: hits as they come, appended to a file that a kill leaves readable.

A file is a header and records. All integers are little-endian.

    header   magic "CXLSHITS", version u32, mark (8 random bytes), CRC-32 of these
    record   mark, kind u32, head bytes u32, body bytes u64, CRC-32 of head and body, CRC-32 of these
             then the head (JSON, see `entries`) and the body (packed pixels) as they are

A record is written by one system call, unbuffered: when it returns, the kernel has the record, whatever becomes of us.
What a full disk left of a record is cut away again. Reading goes record by record; where one is torn or corrupt, the
reader says so and looks for the next. No image can pretend to be a record, as it cannot know the mark.
"""

import contextlib
import fcntl
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from streamer.messages import Buffer

MAGIC, VERSION = b"CXLSHITS", 1
_HEADER = struct.Struct("<8sI8sI")
_RECORD = struct.Struct("<8sIIQII")
_CRC = struct.Struct("<I")
MAX_HEAD_BYTES = 64 << 20
"""Far more than a record with 2000 peaks and the largest tags."""
_PIECE_BYTES = 1 << 20


class UnreadableJournal(ValueError):
    """A file that is no journal, or one of a later version: one line."""


class Journal:
    """A new journal, open for appending and locked. ``fileno`` serves readers, even of a file that was removed.

    ``nbytes`` is what is written. Raises ``OSError`` when it cannot be made; nothing is then left of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = secrets.token_bytes(8)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self.nbytes = 0
        head = _HEADER.pack(MAGIC, VERSION, self._mark, 0)[: -_CRC.size]
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write([head + _CRC.pack(zlib.crc32(head))])
        except OSError:
            self.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def fileno(self) -> int:
        return self._fd

    def append(self, kind: int, head: bytes, body: Buffer) -> None:
        """Add one record. Raises ``OSError``; the journal is then as it was before."""
        view = memoryview(body).cast("B")
        payload = zlib.crc32(view, zlib.crc32(head))
        prefix = _RECORD.pack(self._mark, kind, len(head), len(view), payload, 0)[: -_CRC.size]
        self._write([prefix + _CRC.pack(zlib.crc32(prefix)), head, view])

    def _write(self, parts: list[bytes | memoryview]) -> None:
        views = [memoryview(part) for part in parts if len(part)]
        position = self.nbytes
        try:
            while views:
                # One call for all of it, but for what is beyond the 2 GiB that a call takes.
                written = os.pwritev(self._fd, views, position)
                position += written
                while views and written >= len(views[0]):
                    written -= len(views.pop(0))
                if views:
                    views[0] = views[0][written:]
        except OSError:
            with contextlib.suppress(OSError):  # what cannot be cut away is overwritten, or found torn
                os.ftruncate(self._fd, self.nbytes)
            raise
        self.nbytes = position

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """An intact record: its kind, its head, and where its body lies."""

    kind: int
    head: bytes
    body_offset: int
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Damage:
    """A place where no record can be read; ``torn`` when it is only the last write that was cut short."""

    offset: int
    text: str
    torn: bool


def read_body(fd: int, entry: Entry) -> bytes:
    """The body of a record. Raises ``OSError`` when the file has become shorter."""
    return _read(fd, entry.body_offset, entry.body_bytes)


def _read(fd: int, offset: int, count: int) -> bytes:
    found = os.pread(fd, count, offset)
    while len(found) < count:  # a read takes 2 GiB at most
        more = os.pread(fd, count - len(found), offset + len(found))
        if not more:
            raise OSError(f"the journal ends at {offset + len(found)}, {count - len(found)} bytes early")
        found += more
    return found


def read_entries(fd: int) -> Iterator[Entry | Damage]:
    """The records of a journal in order, checked, and the damage between them.

    Raises ``UnreadableJournal``; ``OSError`` when the disk cannot be read.
    """
    size = os.fstat(fd).st_size
    if size < _HEADER.size:
        yield Damage(0, f"{size} bytes, shorter than a header: no hit was written to it", True)
        return
    header = _read(fd, 0, _HEADER.size)
    magic, version, mark, checksum = _HEADER.unpack(header)
    if magic != MAGIC:
        raise UnreadableJournal("no journal of hits")
    if zlib.crc32(header[: -_CRC.size]) != checksum:
        raise UnreadableJournal("the journal's header is damaged")
    if version != VERSION:
        raise UnreadableJournal(f"a journal of version {version}; this program reads version {VERSION}")
    position = _HEADER.size
    while position < size:
        found = _entry(fd, mark, position, size)
        if isinstance(found, Entry):
            yield found
            position = found.body_offset + found.body_bytes
            continue
        damage, next_position = found
        yield damage
        position = next_position


def _entry(fd: int, mark: bytes, position: int, size: int) -> Entry | tuple[Damage, int]:
    """The record at a position, or what is wrong there and where to read on."""
    if size - position < _RECORD.size:
        return Damage(position, f"the last record is cut short at {size - position} bytes", True), size
    prefix = _read(fd, position, _RECORD.size)
    found_mark, kind, head_bytes, body_bytes, payload, checksum = _RECORD.unpack(prefix)
    good = found_mark == mark and zlib.crc32(prefix[: -_CRC.size]) == checksum and head_bytes <= MAX_HEAD_BYTES
    if not good:
        next_position = _find(fd, mark, position + 1, size)
        return Damage(position, f"no record at byte {position}; {next_position - position} bytes lost", False), (
            next_position
        )
    start = position + _RECORD.size
    end = start + head_bytes + body_bytes
    if end > size:
        return Damage(position, f"the last record is cut short by {end - size} bytes", True), size
    head = _read(fd, start, head_bytes)
    if _checksum(fd, start + head_bytes, body_bytes, zlib.crc32(head)) != payload:
        return Damage(position, f"the record at byte {position} is corrupt; {end - position} bytes lost", False), end
    return Entry(kind, head, start + head_bytes, body_bytes)


def _checksum(fd: int, offset: int, count: int, before: int) -> int:
    while count:
        piece = _read(fd, offset, min(count, _PIECE_BYTES))
        before = zlib.crc32(piece, before)
        offset, count = offset + len(piece), count - len(piece)
    return before


def _find(fd: int, mark: bytes, position: int, size: int) -> int:
    """Where the mark next stands, ``size`` when nowhere."""
    while position < size:
        piece = _read(fd, position, min(size - position, _PIECE_BYTES + len(mark)))
        at = piece.find(mark)
        if at >= 0:
            return position + at
        position += _PIECE_BYTES
    return size
