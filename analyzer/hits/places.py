"""Names and locks in a folder of hits.

    hits-RUN-000001-0.h5     hits of one series and kind, RUN for when the run began and who it is
    hits.lst                 all hits of the folder, as CrystFEL lists them
    hits-DIGEST.geom, .lst   each geometry there is, and the hits that were measured in it
    journal/RUN-000001.journal, journal/RUN.lock

A file's name follows from its journal's, so that a journal that is read twice makes the same files. A run holds the
lock on its name as long as it lives, however it dies; what is locked belongs to another running analyser.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import time
from pathlib import Path

from streamer.errors import first_line

JOURNALS, LIST = "journal", "hits.lst"
FILES = "hits-*-*.h5"
IMAGES, EVENT, PEAKS = "/entry/data/data", "/entry/event", "/entry_1/result_1"
GEOMETRY = "geometry"
"""The attribute of a file that holds its ``.geom``."""
_RUN = re.compile(r"(\d{8}T\d{9}-[0-9a-f]{6})(?:-\d+\.journal|\.lock)")


class UnusableFolder(ValueError):
    """A folder that hits cannot be written to: one line with what, where and what to do."""


def new_run() -> str:
    """A name for a run that no other has; later ones sort behind: UTC to the millisecond, then chance."""
    now = time.time_ns() // 1_000_000
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now // 1000))}{now % 1000:03d}-{secrets.token_hex(3)}"


def journal_path(folder: Path, run: str, number: int) -> Path:
    return folder / JOURNALS / f"{run}-{number:06d}.journal"


def file_path(folder: Path, journal: Path, group: int) -> Path:
    """The file of the nth group of hits in a journal."""
    return folder / f"hits-{journal.stem}-{group}.h5"


def temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def runs_with_journals(folder: Path) -> list[str]:
    """Runs that left something in the journal folder, oldest first."""
    found = (_RUN.fullmatch(path.name) for path in _listed(folder / JOURNALS))
    return sorted({match[1] for match in found if match is not None})


def journals_of(folder: Path, run: str) -> list[Path]:
    return sorted(path for path in _listed(folder / JOURNALS) if re.fullmatch(rf"{run}-\d+\.journal", path.name))


def holds_hits(folder: Path) -> bool:
    """Whether a folder has files of hits, or a place for journals."""
    return (folder / JOURNALS).is_dir() or next(folder.glob(FILES), None) is not None


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def remove_temporaries(folder: Path, run: str) -> None:
    """Remove the unfinished files of a run whose lock is held."""
    for path in folder.glob(f".hits-{run}-*.h5.part"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder outlast a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Lock:
    """An exclusive lock that dies with its holder. ``acquire`` makes the file, ``release`` may remove it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def acquire(self, wait_s: float = 0.0) -> bool:
        """Whether the lock is ours; waits at most so long. Raises ``OSError`` where the disk knows no locks."""
        deadline = time.monotonic() + wait_s
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(self._path).st_ino == os.fstat(fd).st_ino:
                        self._fd = fd
                        return True
                os.close(fd)  # its holder removed it after we had opened it
                continue
            except BlockingIOError:
                os.close(fd)
            except BaseException:
                os.close(fd)
                raise
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)

    def release(self, remove: bool = False) -> None:
        """Let go; with ``remove``, without leaving the file."""
        if self._fd < 0:
            return
        if remove:
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._fd)
        self._fd = -1


def run_lock(folder: Path, run: str) -> Lock:
    return Lock(folder / JOURNALS / f"{run}.lock")


def list_lock(folder: Path) -> Lock:
    return Lock(folder / f".{LIST}.lock")


def prepare_folder(folder: Path) -> None:
    """Make the folder with its place for journals. Raises ``UnusableFolder``."""
    if not str(folder).isprintable():
        raise UnusableFolder(f"{str(folder)!r}: a name with unprintable characters; CrystFEL's lists cannot hold it")
    try:
        (folder / JOURNALS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableFolder(f"{folder}: {reason(error)}; choose a folder that can be written") from None


def reason(error: OSError) -> str:
    """An error as a few words in one line."""
    if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
        return "the file system has no locks (flock)"
    if error.strerror:
        return error.strerror.splitlines()[0].lower()
    return first_line(error)
