"""What an HDF5 file may refer to: files in its own folder, and HDF5 alone.

A data file comes from somebody else. By its links it may name any other file of whoever reads it, and by external
storage the bytes of any file at all would be its pixels: a key, a password file, shown on a page and written into
hits. A pipe behind a link would be waited for without end. So links are walked here, name by name, and judged before
anything is opened; HDF5, left to itself, opens first and searches the working folder too.

A name counts as in the folder where the path, or the real path, lies in it or below; a symbolic link in that folder is
its owner's word and is followed. What a name outside stands for is the file of that name beside the file that holds
the link, if there is one: HDF5 does so with sets that were copied, and a link put there (ln -s) lets a file be read.
"""

import os
import re
import stat
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

MAX_LINKS = 16
"""One after the other, as HDF5 has it."""

MAX_SOURCES = 1 << 17
"""Of a virtual data set, all below it together; 20 000 take 2 s."""

MAX_DEPTH = 4
"""Of virtual data sets that are put together from virtual ones."""

_ELSEWHERE = "outside the file's folder; link the file into that folder (ln -s) if it is to be read"
_NUMBERED = re.compile(r"(?<!%)(?:%%)*%b")

_Source = tuple[str, str]
"""A file and a path in it, as a virtual data set names them."""

_Found = tuple[str, str, tuple[int, ...]]
"""The file, the path in it and the shape as stored of what a source is."""


class Refused(OSError):
    """What a file names and is not read: its words go behind the name of the link or data set."""


class Linked:
    """An HDF5 file that is open, with what it names in its folder; closes all of it.

    ``within`` are folders that are its own besides.
    """

    def __init__(self, file: h5py.File, path: Path, within: Iterable[str] = ()) -> None:
        self._root = os.path.abspath(path)
        self._folders = {*within, *_homes(self._root)}
        self._files: dict[str, h5py.File] = {self._root: file}
        self._followed: dict[tuple[str, str], str | OSError] = {}
        self._put_together: list[h5py.File] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def file(self) -> h5py.File:
        return self._files[self._root]

    def close(self) -> None:
        for file in (*self._put_together, *self._files.values()):
            file.close()

    def get(self, path: str) -> Any | None:
        """The group or data set at a path, ``None`` where there is none.

        Raises ``Refused`` for what is from elsewhere, ``OSError`` for a file that is missing or no HDF5 file,
        ``KeyError`` for damage. A virtual data set comes as a copy, without attributes, that names the files judged.
        """
        holder, found = self._walk(self._root, path)
        if not isinstance(found, h5py.Dataset):
            return found
        _refuse_raw(found)
        return self._copied(found, holder) if found.is_virtual else found

    def target(self, name: str, group: h5py.Group) -> Path:
        """The file that an external link of a group means, there or not. Raises ``Refused``."""
        return Path(self._meant(name, os.path.abspath(group.file.filename), "is a link to"))

    def _walk(self, holder: str, path: str) -> tuple[str, Any | None]:
        """What is at a path of a file that is open, and the file that it is in."""
        at: Any = self._files[holder]
        rest, links = _parts(path), 0
        while rest:
            if not isinstance(at, h5py.Group):
                return holder, None
            name = rest.pop()
            try:
                link = at.get(name, getlink=True)
            except TypeError:  # of a kind that some program defined for itself
                link = None
            if link is None:
                return holder, None
            if isinstance(link, h5py.HardLink):
                at = at[name]
                continue
            links += 1
            if links > MAX_LINKS:
                raise Refused(f"is one of more than {MAX_LINKS} links in a row")
            if isinstance(link, h5py.ExternalLink):
                holder = self._follow(link.filename, holder)
            if isinstance(link, h5py.ExternalLink) or link.path.startswith("/"):
                at = self._files[holder]
            rest += _parts(link.path)
        return holder, at

    def _follow(self, name: str, holder: str) -> str:
        """The file, open, that a link of another means; asked again, the answer is the same."""
        key = (name, holder)
        if key not in self._followed:
            try:
                path = self._meant(name, holder, "is a link to")
                _require_regular(path, f"is a link to {_shown(name)}")
                if path not in self._files:
                    self._files[path] = h5py.File(path, "r")
                self._followed[key] = path
            except OSError as error:
                self._followed[key] = error
        found = self._followed[key]
        if isinstance(found, OSError):
            raise found.with_traceback(None)
        return found

    def _meant(self, name: str, holder: str, how: str) -> str:
        """The file that a name in the file ``holder`` means. Raises ``Refused`` where that is none of its folder."""
        homes = _homes(holder)
        folders = {*self._folders, *homes}
        # Without ".." the path that is judged is the one that is opened, whatever is a symbolic link.
        inside = [path for home in homes if _is_within(path := os.path.normpath(os.path.join(home, name)), folders)]
        there = [path for path in inside if os.path.exists(path)]
        if not there and (not inside or os.path.isabs(name)):
            last = os.path.basename(name)
            there = [path for home in homes if last not in ("", "..") and os.path.lexists(path := f"{home}/{last}")]
        if not there and not inside:
            raise Refused(f"{how} {_shown(name)}, {_ELSEWHERE}")
        return (there or inside)[0]

    def _copied(self, dataset: h5py.Dataset, holder: str) -> h5py.Dataset:
        """A virtual data set that names what was judged, by full paths: HDF5 would search for it in its own way."""
        with tempfile.TemporaryDirectory(prefix="cxls-") as folder:
            path = os.path.join(folder, "virtual.h5")
            with h5py.File(path, "w") as scratch:
                name, _ = _Copy(scratch).add(self, dataset, holder, 1)
            # For reading only, as its sources are opened in the same way; it needs no name any more.
            file = h5py.File(path, "r")
        self._put_together.append(file)
        return file[name]


class _Copy:
    """A virtual data set, and those that it is put together from, as they are written into a file of their own."""

    def __init__(self, scratch: h5py.File) -> None:
        self._scratch = scratch
        self._sources = 0

    def add(self, linked: Linked, dataset: h5py.Dataset, holder: str, depth: int) -> tuple[str, tuple[int, ...]]:
        """Write one down; its name in the file and its shape."""
        if dataset.dtype.kind not in "uifb":
            raise Refused(f"is put together of {dataset.dtype}, no numbers")
        if depth > MAX_DEPTH:
            raise Refused(f"is put together from what is put together, more than {MAX_DEPTH} deep")
        given = dataset.id.get_create_plist()
        self._sources += given.get_virtual_count()
        if self._sources > MAX_SOURCES:
            raise Refused(f"is put together from {self._sources} parts; at most {MAX_SOURCES} are read")
        names = [
            (given.get_virtual_filename(n), given.get_virtual_dsetname(n)) for n in range(given.get_virtual_count())
        ]
        found = self._judged(linked, dict.fromkeys(names), holder, depth)
        if not found:
            files = ", ".join(_shown(file) for file in list(dict(names))[:3])
            missing = f"is put together from what is not there ({files}); put it beside the file"
            raise Refused(missing) if depth == 1 else FileNotFoundError(missing)
        mapping = h5p.create(h5p.DATASET_CREATE)
        mapping.set_fill_value(np.asarray(dataset.fillvalue, dataset.dtype))
        for n, source in enumerate(names):
            if source not in found:  # HDF5 too makes the fill value of what is not there
                continue
            *there, shape = found[source]
            file, path = (os.fsencode(text.replace("%", "%%")) for text in there)
            part = given.get_virtual_srcspace(n)
            if part.get_select_type() == h5s.SEL_ALL:  # of a size that only the source says
                part = h5s.create_simple(shape)
            mapping.set_virtual(given.get_virtual_vspace(n), file, path, part)
        # The shape as it is stored: to ask the data set for it may be to open its sources.
        stored = given.get_virtual_vspace(0)
        shape = stored.get_simple_extent_dims()
        space = h5s.create_simple(shape, stored.get_simple_extent_dims(True))
        name = str(len(self._scratch))
        h5d.create(self._scratch.id, name.encode(), h5t.py_create(dataset.dtype, logical=True), space, mapping)
        return name, shape

    def _judged(self, linked: Linked, names: Iterable[_Source], holder: str, depth: int) -> dict[_Source, _Found]:
        """Where each source is; without those that are not there. Raises ``Refused`` for one from elsewhere."""
        by_file = defaultdict(list)
        for file, path in names:
            if _NUMBERED.search(file) or _NUMBERED.search(path):
                raise Refused(f"is put together from {_shown(file)}, numbered by %b, which is not read")
            by_file[file].append(path)
        found: dict[_Source, _Found] = {}
        for file, paths in by_file.items():
            try:
                if file == ".":
                    self._judge(linked, holder, file, paths, depth, found)
                    continue
                name = file.replace("%%", "%")
                source = linked._meant(name, holder, "is put together from")
                _require_regular(source, f"is put together from {_shown(name)}")
                # Closed again before the next: there may be thousands.
                with Linked(h5py.File(source, "r"), Path(source), linked._folders) as opened:
                    self._judge(opened, source, file, paths, depth, found)
            except Refused:
                raise
            except OSError:
                continue
        return found

    def _judge(
        self, linked: Linked, holder: str, file: str, paths: list[str], depth: int, found: dict[_Source, _Found]
    ) -> None:
        for path in paths:
            try:
                lies_in, dataset = linked._walk(holder, path.replace("%%", "%"))
                if not isinstance(dataset, h5py.Dataset):
                    continue
                _refuse_raw(dataset)
                if dataset.is_virtual:
                    found[file, path] = (".", *self.add(linked, dataset, lies_in, depth + 1))
                else:
                    found[file, path] = (lies_in, dataset.name, dataset.shape)
            except Refused as error:
                raise Refused(f"is put together from {_shown(path)} of {_shown(file)}, which {error}") from None
            except (KeyError, OSError):
                continue


def _parts(path: str) -> list[str]:
    """The names of a path in a file, the first last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _homes(holder: str) -> list[str]:
    """The folders of a file: where it was named and, for a symbolic link, where it is."""
    return list(dict.fromkeys(os.path.dirname(path) for path in (holder, os.path.realpath(holder))))


def _is_within(path: str, folders: Iterable[str]) -> bool:
    folder, name = os.path.split(path)
    ways = {path, os.path.join(os.path.realpath(folder), name)}
    return any(os.path.commonpath([home, way]) == home for home in folders for way in ways)


def _require_regular(path: str, what: str) -> None:
    """To open a pipe or a device is to wait without end. Raises ``Refused``, or ``OSError`` where nothing is."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Refused(f"{what}, not a regular file")


def _refuse_raw(dataset: h5py.Dataset) -> None:
    if dataset.external:
        raise Refused(f"takes its bytes from {_shown(dataset.external[0][0])}, which is never read as images")


def _shown(name: object) -> str:
    text = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return text if text.isprintable() else ascii(text)
