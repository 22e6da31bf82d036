"""``runs.csv`` on the disk: whole rows alone, whatever is killed, whoever else appends."""

import errno
import fcntl
import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)

MOST_BYTES = 256 << 20
"""A larger file is no table of runs."""


class OtherColumns(ValueError):
    """A file that is not this program's table: one line with what to do."""


def check_table(path: Path, header: bytes) -> None:
    """Refuse what is no file, a file that cannot be written and one whose first line is another; one that is not there
    is well. Raises ``OtherColumns``, ``OSError``.
    """
    if path.exists() or path.is_symlink():
        os.close(_opened(path, header))


def append_row(path: Path, header: bytes, row: bytes) -> None:
    """Add a row, and before it the header where there is none; a torn end is cut off first.

    One write, so that a kill leaves it whole or not at all; one program at a time. Raises ``OtherColumns`` and
    ``OSError``.
    """
    descriptor = _opened(path, header, os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        whole = _whole_rows(os.pread(descriptor, size, 0), header)
        if whole < size:
            log.warning("reports: %s ended within a row; its last %d bytes are cut off", path, size - whole)
            os.ftruncate(descriptor, whole)
        content = row if whole else header + row
        written = os.write(descriptor, content)
        if written < len(content):
            os.ftruncate(descriptor, whole)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(path: Path, header: bytes, more: int = 0) -> int:
    # Not to wait at a pipe.
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | more, 0o644)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            raise OtherColumns(f"{path}: no table of runs; move it away or use another folder")
        # Nothing, or less than the first line: what a run left that was killed while it began the file.
        if not header.startswith(os.pread(descriptor, len(header), 0)):
            raise OtherColumns(
                f"{path}: has other columns than this program writes; move it away or use another folder"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _whole_rows(content: bytes, header: bytes) -> int:
    """Bytes up to the end of the last whole row. No cell has a carriage return: it ends rows alone."""
    return content.rfind(b"\r\n") + 2 if len(content) >= len(header) else 0
