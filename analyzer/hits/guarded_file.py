"""A file that HDF5 can always let go of, whatever the disk does."""

import os
from typing import Any


class GuardedFile:
    """A file for HDF5 whose faults come when asked for: HDF5 cannot let go of a file that it failed to write."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._position = 0
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first fault."""
        if self._error is not None:
            raise OSError(self._error.errno, os.strerror(self._error.errno or 0))

    def read(self, count: int) -> bytes:
        """What h5py knows a file by."""
        found = os.pread(self._fd, count, self._position)
        self._position += len(found)
        return found

    def readinto(self, buffer: memoryview) -> int:
        count = os.preadv(self._fd, [buffer], self._position)
        self._position += count
        return count

    def write(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            while done < len(view) and self._error is None:
                done += os.pwrite(self._fd, view[done:], self._position + done)
        except OSError as error:
            self._error = error
        self._position += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        try:
            if self._error is None:
                os.ftruncate(self._fd, size)
        except OSError as error:
            self._error = error
        return size

    def flush(self) -> None:
        """Nothing is held back."""
