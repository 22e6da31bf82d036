"""``hits.lst`` and the geometries of a folder: made anew from the files that are there, renamed into place."""

import hashlib
import os
import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

import h5py

from analyzer.hits.places import FILES, GEOMETRY, IMAGES, LIST, list_lock, temporary_path
from streamer.errors import first_line

_OF_GEOMETRY = re.compile(r"hits-([0-9a-f]{8})\.(?:geom|lst)")
LOCK_S, LAST_LOCK_S = 2.0, 20.0
"""How long another analyser's list is waited for, and for the last time; it takes well under a second to write."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """What a list needs of a file."""

    events: int
    geometry: str


class Lists:
    """The lists of one folder. Files are looked into once, as one that has its name never changes.

    ``looked``, where it is given, is called after each file; what it raises passes through.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, _Listed] = {}
        self._texts: dict[str, str] = {}

    def look(self, looked: Callable[[], None] = lambda: None) -> None:
        """Look into the files that are new, without keeping another analyser from its lists meanwhile."""
        self._look_at(sorted(self._folder.glob(FILES)), looked)

    def take(self, path: Path, file: h5py.File) -> None:
        """What is needed of a file that somebody has open. Raises whatever h5py raises for one that is another's."""
        text, events = str(file.attrs[GEOMETRY]), len(file[IMAGES])
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        self._texts[digest] = text
        self._known[path.name] = _Listed(events, digest)

    def refresh(self, wait_s: float = LOCK_S, looked: Callable[[], None] = lambda: None) -> list[str]:
        """Write the lists and geometries; returns what is wrong with files that they leave out.

        Raises ``OSError``, ``BlockingIOError`` when another analyser is at it for ``wait_s`` seconds.
        """
        lock = list_lock(self._folder)
        if not lock.acquire(wait_s):
            raise BlockingIOError(f"{self._folder / LIST} is being written by another analyser")
        try:
            return self._write(looked)
        finally:
            lock.release(remove=True)

    def _look_at(self, paths: list[Path], looked: Callable[[], None]) -> list[str]:
        problems: list[str] = []
        for path in paths:
            if path.name not in self._known:
                try:
                    self._look(path)
                except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                    problems.append(f"{path}: no file of hits: {first_line(error)}")
                looked()
        return problems

    def _write(self, looked: Callable[[], None]) -> list[str]:
        paths = sorted(self._folder.glob(FILES))
        problems = self._look_at(paths, looked)
        every: list[str] = []
        by_geometry: dict[str, list[str]] = {}
        for path in paths:
            found = self._known.get(path.name)
            if found is not None:
                every.append(lines := _lines(path, found.events))
                by_geometry.setdefault(found.geometry, []).append(lines)
        for digest, parts in by_geometry.items():
            self._replace(f"hits-{digest}.geom", self._texts[digest])
            self._replace(f"hits-{digest}.lst", "".join(parts))
        if every or (self._folder / LIST).exists():
            self._replace(LIST, "".join(every))
        if not problems:  # a file that cannot be read now may be of any geometry
            self._remove_others(by_geometry)
        return problems

    def _remove_others(self, digests: Container[str]) -> None:
        """Lists and geometries of files that were taken away."""
        for path in self._folder.glob("hits-*"):
            found = _OF_GEOMETRY.fullmatch(path.name)
            if found is not None and found[1] not in digests:
                path.unlink(missing_ok=True)

    def _look(self, path: Path) -> None:
        """Raises whatever h5py raises for a file that is damaged or another's."""
        if not path.is_file():
            raise OSError("not a regular file")  # to open a pipe is to wait for its writer
        with h5py.File(path) as file:
            self.take(path, file)

    def _replace(self, name: str, text: str) -> None:
        path = self._folder / name
        temporary = temporary_path(path)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _lines(path: Path, events: int) -> str:
    """CrystFEL's way to name images: the file, then the number in it. Absolute, as CrystFEL looks where it runs."""
    return "".join(f"{path.absolute()} //{n}\n" for n in range(events))
