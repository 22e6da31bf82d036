"""What indexamajig writes: CrystFEL's stream format (2.3, versions 0.11 and 0.12), parsed as it grows.

A chunk is one frame, between its two markers; a crystal is a lattice found in it, between two of its own. Anything
may come in: a chunk is given out only when its end has been read, a line longer than ``MAX_LINE_BYTES`` is skipped,
and numbers that are none count as not said.
"""

import math
from dataclasses import dataclass, field

MAX_LINE_BYTES = 16 << 10
"""CrystFEL's own reader takes 1 KiB."""

MAX_CRYSTALS = 64
"""In one chunk; more are not kept."""

MAX_TEXT = 200
_CHUNK_BEGIN, _CHUNK_END = b"----- Begin chunk -----", b"----- End chunk -----"
_CRYSTAL_BEGIN, _CRYSTAL_END = b"--- Begin crystal", b"--- End crystal"
_EVENT_ID = b"header/str/event_id = "
_CELL, _RESOLUTION, _PEAK_RESOLUTION = (
    b"Cell parameters ", b"diffraction_resolution_limit = ", b"peak_resolution = "
)  # fmt: skip
_TABLE_STARTS = frozenset(b" 0123456789")
"""Rows of the tables of peaks and reflections, most of a file."""

_ANGSTROM_PER_NM = 10.0
LENGTH_NM = 0.1, 1e4
ANGLE_DEG = 1.0, 179.0
RESOLUTION_ANGSTROM = 0.1, 1e4
"""What a cell and a resolution may be; CrystFEL writes ``inf A`` for no peaks."""

LATTICES = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "rhombohedral", "hexagonal", "cubic")
CENTERINGS = "PABCIFRH"

Cell = tuple[float, ...]
"""a, b, c (angstrom), alpha, beta, gamma (degrees)."""


@dataclass(frozen=True, slots=True)
class Crystal:
    """One lattice: a, b, c (angstrom), alpha, beta, gamma (degrees); ``None`` where the file has no sense.

    ``lattice`` is type and centering, as ``tetragonal P``; ``resolution_angstrom`` how far it diffracts by CrystFEL.
    """

    cell: Cell | None = None
    lattice: str = "unknown"
    resolution_angstrom: float | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One frame as the indexer leaves it. ``indexed_by`` is ``none`` or a method, ``None`` if the line is missing."""

    event_id: str | None = None
    indexed_by: str | None = None
    num_peaks: int | None = None
    peak_resolution_angstrom: float | None = None
    crystals: tuple[Crystal, ...] = ()

    @property
    def indexed(self) -> bool:
        """A lattice was found."""
        return bool(self.crystals) and self.indexed_by not in (None, "none")


@dataclass(slots=True)
class _Draft:
    event_id: str | None = None
    indexed_by: str | None = None
    num_peaks: int | None = None
    peak_resolution_angstrom: float | None = None
    crystals: list[Crystal] = field(default_factory=list)


@dataclass(slots=True)
class _CrystalDraft:
    cell: Cell | None = None
    type: str = ""
    centering: str = ""
    resolution_angstrom: float | None = None

    def made(self) -> Crystal:
        known = self.type in LATTICES and len(self.centering) == 1 and self.centering in CENTERINGS
        return Crystal(self.cell, f"{self.type} {self.centering}" if known else "unknown", self.resolution_angstrom)


class StreamParser:
    """Takes the bytes of a stream in pieces of any size and gives out the chunks that are complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self._chunk: _Draft | None = None
        self._crystal: _CrystalDraft | None = None

    def feed(self, data: bytes) -> list[Chunk]:
        """The chunks that end in these bytes."""
        *lines, rest = data.split(b"\n")
        found: list[Chunk] = []
        if lines:
            lines[0] = self._rest + lines[0]
            if self._skipping:
                self._skipping, lines[0] = False, b""
            for line in lines:
                if line and line[0] not in _TABLE_STARTS and len(line) <= MAX_LINE_BYTES:
                    self._line(line.rstrip(b"\r"), found)
            self._rest = rest
        else:
            self._rest += rest
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest, self._skipping = b"", True
        return found

    def _line(self, line: bytes, found: list[Chunk]) -> None:
        if line == _CHUNK_BEGIN:
            self._chunk, self._crystal = _Draft(), None
        elif self._chunk is None:
            return
        elif line == _CHUNK_END:
            chunk = self._chunk
            found.append(
                Chunk(
                    chunk.event_id,
                    chunk.indexed_by,
                    chunk.num_peaks,
                    chunk.peak_resolution_angstrom,
                    tuple(chunk.crystals),
                )
            )
            self._chunk = self._crystal = None
        elif line == _CRYSTAL_BEGIN:
            self._crystal = _CrystalDraft()
        elif self._crystal is not None:
            self._line_of_crystal(line, self._crystal, self._chunk)
        else:
            _line_of_chunk(line, self._chunk)

    def _line_of_crystal(self, line: bytes, crystal: _CrystalDraft, chunk: _Draft) -> None:
        if line == _CRYSTAL_END:
            if len(chunk.crystals) < MAX_CRYSTALS:
                chunk.crystals.append(crystal.made())
            self._crystal = None
        elif line.startswith(_CELL):
            crystal.cell = _cell(line[len(_CELL) :])
        elif line.startswith(b"lattice_type = "):
            crystal.type = _text(line)
        elif line.startswith(b"centering = "):
            crystal.centering = _text(line)
        elif line.startswith(_RESOLUTION):
            crystal.resolution_angstrom = _resolution(line)


def _line_of_chunk(line: bytes, chunk: _Draft) -> None:
    if line.startswith(_EVENT_ID):
        chunk.event_id = _text(line)
    elif line.startswith(b"indexed_by = "):
        chunk.indexed_by = _text(line)
    elif line.startswith(b"num_peaks = "):
        digits = _text(line)
        chunk.num_peaks = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None
    elif line.startswith(_PEAK_RESOLUTION):
        chunk.peak_resolution_angstrom = _resolution(line)


def _text(line: bytes) -> str:
    """What stands after the first ``=``, as far as a value may reach."""
    text = line.partition(b" = ")[2][:MAX_TEXT].decode("utf-8", "replace").strip()
    return text if text.isprintable() else ""


def _number(word: bytes, allowed: tuple[float, float]) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) and allowed[0] <= value <= allowed[1] else None


def _cell(text: bytes) -> Cell | None:
    """``a b c nm, al be ga deg``, in angstrom and degrees."""
    words = text.split()
    if len(words) != 8 or words[3] != b"nm," or words[7] != b"deg":
        return None
    lengths = [_number(word, LENGTH_NM) for word in words[:3]]
    values = [None if length is None else round(length * _ANGSTROM_PER_NM, 6) for length in lengths]
    values += [_number(word, ANGLE_DEG) for word in words[4:7]]
    known = [value for value in values if value is not None]
    return tuple(known) if len(known) == 6 else None


def _resolution(line: bytes) -> float | None:
    """The angstrom of ``NAME = 4.30 nm^-1 or 2.33 A``."""
    words = line.split()
    if len(words) != 7 or words[6] != b"A":
        return None
    return _number(words[5], RESOLUTION_ANGSTROM)
