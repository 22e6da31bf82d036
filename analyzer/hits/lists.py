"""``hits.lst`` and the geometries of a folder: made anew from the files that are there, renamed into place."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from analyzer.hits.geometry import geometry_text
from analyzer.hits.places import FILES, LIST, list_lock, temporary_path
from streamer.files import BadInput, FileSeries

LOCK_S = 2.0
"""How long another analyser's list is waited for; it takes well under a second to write."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """What a list needs of a file."""

    events: int
    geometry: str


class Lists:
    """The lists of one folder. Files are looked into once, as one that has its name never changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, _Listed] = {}
        self._texts: dict[str, str] = {}

    def refresh(self) -> list[str]:
        """Write the lists and geometries; returns what is wrong with files that they leave out.

        Raises ``OSError``, ``BlockingIOError`` when another analyser is at it.
        """
        lock = list_lock(self._folder)
        if not lock.acquire(LOCK_S):
            raise BlockingIOError(f"{self._folder / LIST} is being written by another analyser")
        try:
            return self._write()
        finally:
            lock.release(remove=True)

    def _write(self) -> list[str]:
        problems: list[str] = []
        paths = sorted(self._folder.glob(FILES))
        for path in paths:
            if path.name not in self._known:
                try:
                    self._known[path.name] = self._look(path)
                except (
                    ValueError,
                    KeyError,
                    TypeError,
                    RuntimeError,
                ) as error:  # BadInput, and h5py's words for damage
                    problems.append(str(error) if isinstance(error, BadInput) else f"{path}: {error}")
        listed = [(path, self._known[path.name]) for path in paths if path.name in self._known]
        for digest in sorted({found.geometry for _, found in listed}):
            self._replace(f"hits-{digest}.geom", self._texts[digest])
            self._replace(f"hits-{digest}.lst", _lines([item for item in listed if item[1].geometry == digest]))
        if listed or (self._folder / LIST).exists():
            self._replace(LIST, _lines(listed))
        return problems

    def _look(self, path: Path) -> _Listed:
        series = FileSeries(path)
        try:
            text = geometry_text(series.metadata, series.shape)
            digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
            self._texts[digest] = text
            return _Listed(len(series), digest)
        finally:
            series.close()

    def _replace(self, name: str, text: str) -> None:
        path = self._folder / name
        temporary = temporary_path(path)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _lines(listed: list[tuple[Path, _Listed]]) -> str:
    """CrystFEL's way to name an image: the file, then its number in it. Absolute, as CrystFEL looks where it runs."""
    return "".join(f"{path.absolute()} //{n}\n" for path, found in listed for n in range(found.events))
