"""Files of hits made of a journal, whole or not at all.

A file is written under another name, brought to the disk and renamed into place: what has its name is whole.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import h5py

from analyzer.hits.content import fill
from analyzer.hits.grouping import Group, Made, groups_of
from analyzer.hits.guarded_file import GuardedFile
from analyzer.hits.places import file_path, sync_folder, temporary_path


def make_files(fd: int, folder: Path, journal: Path, after_image: Callable[[], None] = lambda: None) -> Made:
    """Make the files of a journal that is open as ``fd``; those that are there already are left as they are.

    ``after_image`` is called whenever an image is written. Raises ``OSError`` when the disk does not take them (what is
    then missing is made by the next call) and ``UnreadableJournal``.
    """
    made = Made()
    for number, group in enumerate(groups_of(fd, made)):
        path = file_path(folder, journal, number)
        if not path.exists():
            _write(fd, path, group, after_image)
        made.files.append(path)
        made.hits += len(group.hits)
    if made.files:
        sync_folder(folder)
    return made


def _write(journal_fd: int, path: Path, group: Group, after_image: Callable[[], None]) -> None:
    """Write one file and rename it into place. Raises ``OSError``; nothing is then left."""
    temporary = temporary_path(path)
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        output = GuardedFile(fd)
        try:
            with h5py.File(output, "w") as file:
                fill(journal_fd, file, group, output, after_image)
        finally:
            output.check()
        os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(fd)
