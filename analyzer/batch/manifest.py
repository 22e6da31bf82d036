"""The manifest of a batch: its files as they were, what they are analysed with, and into how many shards.

Every shard makes it of its own arguments, so that none waits for another; the first to put it into the folder wins,
and all others compare. It has no time and no host in it: equal arguments make equal bytes.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from analyzer.batch.shares import By
from streamer.files import MAX_STACK_IMAGES, BadInput, Member, grouped

MANIFEST = "manifest.json"
FORMAT: Final = "cxls-batch-1"
_HEAD_BYTES = 1 << 16
_MAX_BYTES = 1 << 30
MAX_SHARDS = 100_000

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class Source(msgspec.Struct, frozen=True):
    """A file that was named, and which of its images; ``None`` is all."""

    path: str
    events: list[int] | None = None


class Fingerprint(msgspec.Struct, frozen=True):
    """How a file was found: bytes, nanoseconds since 1970, SHA-256 of its first 64 KiB; ``None``: it was not."""

    path: str
    size: int | None
    mtime_ns: int | None
    head_sha256: str | None


class Group(msgspec.Struct, frozen=True):
    """A series: so many files from the ``first`` on, its images, and what of it is announced but cannot be read."""

    first: _Count
    files: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
    images: Annotated[int, msgspec.Meta(ge=0, le=MAX_STACK_IMAGES << 4)]
    problems: list[str] = []


class Unreadable(msgspec.Struct, frozen=True):
    """A file that holds no series, by its place among the sources."""

    file: _Count
    problem: str


class Analysis(msgspec.Struct, frozen=True):
    """What frames are analysed with: all that a record depends on besides its frame."""

    program: str
    bundle: str
    device: str
    settings: dict[str, Any]


class Manifest(msgspec.Struct, frozen=True):
    """A batch. Series count from 1 in the order of ``series``."""

    format: Literal["cxls-batch-1"]
    analysis: Analysis
    by: By
    shards: Annotated[int, msgspec.Meta(ge=1, le=MAX_SHARDS)]
    chunk_frames: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    sources: list[Source]
    fingerprints: list[Fingerprint]
    series: list[Group]
    unreadable: list[Unreadable]

    @property
    def images(self) -> list[int]:
        """Of each series."""
        return [group.images for group in self.series]

    @property
    def identity(self) -> str:
        """SHA-256 of it; every part bears it."""
        return hashlib.sha256(encode(self)).hexdigest()

    def members(self, series: int) -> list[Member]:
        """The files of a series, which counts from 1."""
        group = self.series[series - 1]
        found = self.sources[group.first : group.first + group.files]
        return [(Path(source.path), source.events) for source in found]

    def problems_of(self, shard: int) -> list[str]:
        """What this shard reports as unreadable: each problem is one shard's."""
        found = [each.problem for each in self.unreadable]
        found += [problem for group in self.series for problem in group.problems]
        return found[shard :: self.shards]


def encode(manifest: Manifest) -> bytes:
    """Its bytes: JSON, indented."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def survey(
    files: Sequence[Member], analysis: Analysis, by: By, shards: int, chunk_frames: int, known: Manifest | None = None
) -> Manifest:
    """The manifest of these files as they are now; opens each, unless ``known`` has them as they are."""
    sources = _sources(files)
    if known is not None and known.sources == sources:
        prints = [fingerprint(Path(each.path)) for each in known.fingerprints]
        return Manifest(FORMAT, analysis, by, shards, chunk_frames, sources, prints, known.series, known.unreadable)
    series: list[Group] = []
    unreadable: list[Unreadable] = []
    paths = dict.fromkeys(Path(source.path) for source in sources)
    position = 0

    def refuse(error: BadInput) -> None:
        nonlocal position
        unreadable.append(Unreadable(position, str(error)))
        position += 1

    members = [(Path(source.path), source.events) for source in sources]
    for first, group in grouped(members, refuse):
        images = len(first) if len(group) == 1 else len(group)
        paths |= dict.fromkeys(Path(os.path.abspath(path)) for path in first.data_files)
        first.close()
        series.append(Group(position, len(group), images, first.problems))
        position += len(group)
    if not series:
        raise BadInput(f"{unreadable[0].problem}; none of {len(sources)} files can be read")
    prints = [fingerprint(path) for path in paths]
    return Manifest(FORMAT, analysis, by, shards, chunk_frames, sources, prints, series, unreadable)


def _sources(files: Sequence[Member]) -> list[Source]:
    # From wherever another shard is started, the same file has the same name.
    found = [Source(os.path.abspath(path), events) for path, events in files]
    for source in found:
        try:
            source.path.encode()
        except UnicodeEncodeError:
            raise BadInput(f"{source.path!a}: a name that is not UTF-8; rename the file") from None
    return found


def fingerprint(path: Path) -> Fingerprint:
    """A file as it is now."""
    try:
        if not path.is_file():  # to open a pipe is to wait for its writer
            return Fingerprint(str(path), None, None, None)
        with path.open("rb") as file:
            head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
            status = os.fstat(file.fileno())
    except OSError:
        return Fingerprint(str(path), None, None, None)
    return Fingerprint(str(path), status.st_size, status.st_mtime_ns, head)


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a folder. Raises ``BadInput``."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadInput(f"{path}: {path.stat().st_size} bytes are no manifest of a batch; choose another folder")
        found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}; give the folder that cxls batch --out wrote") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a manifest of this program: {error}; choose another folder") from None
    position = 0
    for group in found.series:
        if group.first < position or group.first + group.files > len(found.sources):
            raise BadInput(f"{path}: damaged: a series names files that it does not list; choose another folder")
        position = group.first + group.files
    if any(each.file >= len(found.sources) for each in found.unreadable):
        raise BadInput(f"{path}: damaged: it tells of a file that it does not list; choose another folder")
    return found


def settle(folder: Path, ours: Manifest) -> Manifest:
    """Put our manifest into the folder, or go on with the one there, which has to be the same.

    Raises ``BadInput``, saying what differs; ``OSError`` where it cannot be written.
    """
    path = folder / MANIFEST
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{MANIFEST}.", delete=False) as file:
            temporary = Path(file.name)
        try:
            with temporary.open("wb") as file:
                file.write(encode(ours))
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            os.link(temporary, path)  # unlike a rename, it never takes the place of another shard's
            return ours
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    theirs = read_manifest(folder)
    if (difference := differs(theirs, ours)) is not None:
        raise BadInput(f"{folder}: holds another batch: {difference}; give the same, or another --out")
    return theirs


def differs(theirs: Manifest, ours: Manifest) -> str | None:
    """The first thing in which two manifests differ, in words; ``None`` where they are the same."""
    for name in ("program", "bundle", "device"):
        there, here = getattr(theirs.analysis, name), getattr(ours.analysis, name)
        if there != here:
            return f"its {name} is {there}, here it is {here}"
    settings = _first_difference(theirs.analysis.settings, msgspec.to_builtins(ours.analysis.settings))
    if settings is not None:
        return settings
    for name, option in (("by", "--by"), ("shards", "number of shards"), ("chunk_frames", "--chunk")):
        there, here = getattr(theirs, name), getattr(ours, name)
        if there != here:
            return f"its {option} is {there}, here it is {here}"
    if theirs.sources != ours.sources:
        return _other_sources(theirs.sources, ours.sources)
    for was, now in zip(theirs.fingerprints, ours.fingerprints, strict=False):
        if was != now:
            return f"{now.path} has changed since: it was {_looks(was)}, it is {_looks(now)}"
    return None if theirs == ours else "its files do not hold what they hold here"


def _first_difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    for key in {**ours, **theirs}:
        if theirs.get(key) != ours.get(key):
            return f"its {key} is {_brief(theirs.get(key))}, here it is {_brief(ours.get(key))}"
    return None


def _brief(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 120 else f"{text[:117]}..."


def _other_sources(theirs: Sequence[Source], ours: Sequence[Source]) -> str:
    if len(theirs) != len(ours):
        return f"of {len(theirs)} files, here of {len(ours)}"
    number = next(n for n, (there, here) in enumerate(zip(theirs, ours, strict=True)) if there != here)
    there, here = theirs[number], ours[number]
    if there.path == here.path:
        return f"other events of {here.path}"
    return f"its file {number + 1} is {there.path}, here it is {here.path}"


def _looks(found: Fingerprint) -> str:
    if found.size is None or found.mtime_ns is None:
        return "not there"
    try:
        written = f"{datetime.fromtimestamp(found.mtime_ns / 1e9).isoformat(sep=' ', timespec='milliseconds')}"
    except (ValueError, OverflowError, OSError):
        written = f"{found.mtime_ns} ns"
    return f"{found.size} bytes of {written}, SHA-256 {(found.head_sha256 or '')[:8]}"
