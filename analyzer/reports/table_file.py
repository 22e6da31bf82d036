"""``runs.csv`` on the disk: whole rows alone, whatever is killed, whoever else appends."""

import fcntl
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

MOST_BYTES = 256 << 20
"""A larger file is no table of runs."""


class OtherColumns(ValueError):
    """A file that is not this program's table: one line with what to do."""


def check_table(path: Path, header: bytes) -> None:
    """Refuse a file whose first line is another. Raises ``OtherColumns``, ``OSError``."""
    try:
        with path.open("rb") as file:
            first = file.read(len(header))
    except FileNotFoundError:
        return
    # Nothing, or less than the first line: what a run left that was killed while it began the file.
    if not header.startswith(first):
        raise OtherColumns(f"{path}: has other columns than this program writes; move it away or use another folder")


def append_row(path: Path, header: bytes, row: bytes) -> None:
    """Add a row, and before it the header where there is none; a torn end is cut off first.

    One write, so that a kill leaves it whole or not at all; one program at a time. Raises ``OtherColumns`` and
    ``OSError``.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        check_table(path, header)
        size = os.fstat(descriptor).st_size
        whole = _whole_rows(path, size, header)
        if whole < size:
            log.warning("reports: %s ended within a row; its last %d bytes are cut off", path, size - whole)
            os.ftruncate(descriptor, whole)
        content = row if whole else header + row
        written = os.write(descriptor, content)
        if written < len(content):
            os.ftruncate(descriptor, whole)
            raise OSError(28, "no space left for a row")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _whole_rows(path: Path, size: int, header: bytes) -> int:
    """Bytes up to the end of the last whole row."""
    if size > MOST_BYTES:
        raise OtherColumns(f"{path}: larger than any table of runs; move it away or use another folder")
    content = path.read_bytes()
    if len(content) < len(header):
        return 0
    end = len(content)
    while (end := content.rfind(b"\r\n", 0, end)) >= 0:
        # Within quotes a line end belongs to a cell.
        if content.count(b'"', 0, end) % 2 == 0:
            return end + 2
    return 0
