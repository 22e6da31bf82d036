"""Small text files from outside, read in bounded time and memory.

A path on a command line may name a device that never ends, a pipe that nobody writes to, a disk image or a gzip file
that unpacks to a thousand times its size. Every reader of text goes through `read_text`, which refuses these in one
line before they are read.
"""

import errno
import gzip
import io
import os
import stat
import zlib
from typing import BinaryIO

MAX_TEXT_FILE_BYTES = 4 << 20
"""A settings file, a spectrum or the geometry of 256 panels takes 0.1 MB."""

_SHOWN_CHARACTERS = 200
_PIECE_BYTES = 1 << 20

_PLAIN_REFUSALS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


def read_text(
    path: str | os.PathLike[str], what: str, most_bytes: int = MAX_TEXT_FILE_BYTES, unzip: bool = False
) -> bytes:
    """The bytes of a regular file of at most most_bytes; with unzip, those in a gzip file, if it is one.

    what is the file that is wanted, for messages: 'CrystFEL geometry file (.geom)'. Raises FileNotFoundError,
    PermissionError, NotADirectoryError or IsADirectoryError with the file's name; ValueError with one line that names
    the file where it is a device, a pipe or a socket, too large (unpacked, too), or of a name that no file can have;
    zlib.error where a gzip file is damaged or cut short.
    """
    shown = _shown(path)
    try:
        found = os.stat(path)  # before opening, which waits for ever at a pipe
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{shown}: not a regular file (a device, pipe or socket); give a {what}")
        if found.st_size > most_bytes:
            raise _too_large(shown, what, most_bytes)
        with open(path, "rb") as file:
            raw = _up_to(most_bytes + 1, file)
    except _PLAIN_REFUSALS:
        raise
    except OSError as error:
        raise ValueError(f"{shown}: cannot be read ({error.strerror or error}); give a {what}") from None
    if len(raw) > most_bytes:  # it grew, or is one of those in /proc, which have no size
        raise _too_large(shown, what, most_bytes)
    return _unpacked(raw, shown, what, most_bytes) if unzip and raw[:2] == b"\x1f\x8b" else raw


def _unpacked(raw: bytes, shown: str, what: str, most_bytes: int) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            text = _up_to(most_bytes + 1, file)
    except (OSError, EOFError) as error:
        raise zlib.error(str(error)) from None
    if len(text) > most_bytes:
        raise _too_large(shown, what, most_bytes, " unpacked")
    return text


def _up_to(count: int, file: BinaryIO | gzip.GzipFile) -> bytes:
    """The first count bytes, or all; piece by piece, since read(count) sets all of count aside at once."""
    pieces = []
    while count > 0 and (piece := file.read(min(count, _PIECE_BYTES))):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _too_large(shown: str, what: str, most_bytes: int, when: str = "") -> ValueError:
    most = f"{most_bytes >> 20} MB" if most_bytes >= 1 << 20 else f"{most_bytes >> 10} kB"
    return ValueError(f"{shown}: larger than {most}{when}, the most that is read of a {what}")


def _shown(path: str | os.PathLike[str]) -> str:
    """The name for a message, in one line. Raises ValueError for one that no file can have."""
    name = os.fspath(path)
    shown = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..."
    try:
        if b"\0" not in os.fsencode(name):
            return shown
    except UnicodeEncodeError:
        pass
    raise ValueError(f"{shown!a}: no file can have this name; look for a null byte or a broken character in it")
