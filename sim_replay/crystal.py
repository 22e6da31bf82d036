"""Crystals: a unit cell and the squared structure factors of all its reflections.

A `Crystal` lists every reflection that can diffract, symmetry mates and Friedel mates included, so that the
diffraction code needs no symmetry. Its sources: `proteinase_k` here, which needs no file and has the statistics (not
the values) of the real protein; `read_hkl` here, for a CrystFEL reflection list; `sim_replay.structure` for the atoms
of a PDB or mmCIF file; `sim_replay.cells` for well-known proteins by name; `sim_replay.salts` for salts and ice.

Units: cell edges in angstrom, angles in degrees, reciprocal vectors in 1/angstrom without the factor 2 pi
(|q| = 1/d), intensities |F|^2 in electrons^2 per unit cell.
"""

from __future__ import annotations

import io
import math
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from sim_replay.wilson import MAX_REFLECTIONS, protein_residues, wilson_reflections
from streamer.text_files import read_text

Cell = tuple[float, float, float, float, float, float]

PROTEINASE_K_CELL: Cell = (67.288, 67.288, 106.582, 90.0, 90.0, 90.0)
"""CRYST1 of PDB entry 1IC6, space group P 43 21 2."""

PROTEINASE_K_SPACE_GROUP = "P 43 21 2"

PROTEINASE_K_MASS_DA = 28_900.0
"""One molecule, 279 residues; eight of them in the cell."""

PROTEINASE_K_MEAN_INTENSITY = 1.95e5
"""Mean |F|^2 (electrons^2) over the unique reflections of 1IC6 to 1.8 angstrom, bulk solvent included."""

MAX_TEXT_BYTES = 256 << 20
"""Of a reflection list, or a file that holds a cell, unpacked: a list of five million reflections."""

_SHORTEST_EDGE_ANGSTROM = 0.1
_LONGEST_EDGE_ANGSTROM = 1e5
_FLATTEST_VOLUME_FACTOR = 1e-6  # (volume / product of the edges)^2, below which rounding decides

# fmt: off
_POINT_GROUPS = (
    "1", "-1", "2", "m", "2/m", "222", "mm2", "mmm", "4", "-4", "4/m", "422", "4mm", "-42m", "-4m2", "4/mmm",
    "3_R", "-3_R", "32_R", "3m_R", "-3m_R", "3_H", "-3_H", "321_H", "312_H", "3m1_H", "31m_H", "-3m1_H", "-31m_H",
    "6", "-6", "6/m", "622", "6mm", "-62m", "-6m2", "6/mmm", "23", "m-3", "432", "-43m", "m-3m",
)
# fmt: on
# For a, b and c the axis of the plain group that each stands for: c where the suffix says, the others in turn.
_UNIQUE_AXES = {"_uaa": (2, 0, 1), "_uab": (1, 2, 0), "_uac": (0, 1, 2)}
_NO_UNIQUE_AXIS = {"1", "-1", "222", "mmm", "23", "m-3", "432", "-43m", "m-3m"}


@dataclass(frozen=True, slots=True, eq=False)
class Crystal:
    """One kind of crystal.

    hkl (N, 3) int32 holds every reflection once, all mates included; intensity (N,) float64 is |F|^2 in electrons^2.
    space_group is its extended Hermann-Mauguin symbol, empty where it is not known: a reflection list names the
    point group only.
    """

    name: str
    cell: Cell
    hkl: NDArray[np.int32]
    intensity: NDArray[np.float64]
    space_group: str = ""

    def __post_init__(self) -> None:
        if self.hkl.ndim != 2 or self.hkl.shape[1] != 3 or self.intensity.shape != (self.hkl.shape[0],):
            raise ValueError(f"crystal {self.name}: hkl must be (N, 3) and intensity (N,)")
        if not np.all(np.isfinite(self.intensity)) or np.any(self.intensity < 0):
            raise ValueError(f"crystal {self.name}: intensities must be finite and not negative")
        reciprocal_basis(self.cell)

    @property
    def volume_angstrom3(self) -> float:
        """Volume of the unit cell."""
        return 1.0 / float(abs(np.linalg.det(reciprocal_basis(self.cell))))


def reciprocal_basis(cell: Cell) -> NDArray[np.float64]:
    """B matrix (3, 3) in 1/angstrom: columns a*, b*, c*, with a along x and b in the xy plane; q = B @ hkl.

    Source: International Tables B, section 1.1 (direct axes in Cartesian coordinates, then the inverse transpose).
    Raises ValueError when the cell is not one: edges beyond all crystals, angles that close no solid.
    """
    a, b, c, alpha, beta, gamma = cell
    if not all(map(math.isfinite, cell)):
        raise ValueError(f"{cell} is no unit cell: edges and angles must be finite (angstrom, degrees)")
    if not (min(a, b, c) > _SHORTEST_EDGE_ANGSTROM and max(a, b, c) < _LONGEST_EDGE_ANGSTROM):
        raise ValueError(
            f"{cell} is no unit cell: edges must be positive and between {_SHORTEST_EDGE_ANGSTROM} and "
            f"{_LONGEST_EDGE_ANGSTROM:g} angstrom"
        )
    if not (min(alpha, beta, gamma) > 0.0 and max(alpha, beta, gamma) < 180.0):
        raise ValueError(f"{cell} is no unit cell: angles must be between 0 and 180 degrees")
    ca, cb, cg = (math.cos(math.radians(angle)) for angle in (alpha, beta, gamma))
    sg = math.sin(math.radians(gamma))
    volume_factor = 1.0 - ca * ca - cb * cb - cg * cg + 2.0 * ca * cb * cg
    if volume_factor <= _FLATTEST_VOLUME_FACTOR:
        raise ValueError(f"{cell} is no unit cell: its angles (degrees) close no solid")
    direct = np.array(
        [
            [a, 0.0, 0.0],
            [b * cg, b * sg, 0.0],
            [c * cb, c * (ca - cb * cg) / sg, c * math.sqrt(volume_factor) / sg],
        ]
    )
    return np.asarray(np.linalg.inv(direct), dtype=np.float64)


def symmetry_operations(point_group: str) -> NDArray[np.int32]:
    """All operations (M, 3, 3) int32 of a point group; a mate of the reflection hkl is `operation @ hkl`.

    The name is CrystFEL's: 4/mmm, 422, -3m1_H, 32_R, 2/m_uab. Raises ValueError for a group that is not known here,
    naming those that are.
    """
    name, order = point_group, _UNIQUE_AXES["_uac"]
    for suffix, axes in _UNIQUE_AXES.items():
        if point_group.endswith(suffix) and point_group.removesuffix(suffix) not in _NO_UNIQUE_AXIS:
            name, order = point_group.removesuffix(suffix), axes
    if name not in _POINT_GROUPS:
        raise ValueError(
            f"symmetry {point_group!r} is not supported; known are {', '.join(_POINT_GROUPS)}, with _uaa or _uab for "
            "a unique axis other than c"
        )
    operations = space_group_operations(_symmorphic(name))
    return np.ascontiguousarray(operations[:, order][:, :, order])


def _symmorphic(point_group: str) -> gemmi.SpaceGroup:
    """The space group without translations that has CrystFEL's point group on the same axes.

    The unique axis is c, so that a bare 2/m is not the usual setting; _H and _R name the axes of a trigonal group.
    """
    symbol, _, axes = point_group.partition("_")
    if axes == "R":
        return gemmi.SpaceGroup(f"R {symbol}:R")
    return gemmi.SpaceGroup(f"P 1 1 {symbol}" if symbol in ("2", "m", "2/m") else f"P {symbol}")


def space_group_operations(space_group: gemmi.SpaceGroup) -> NDArray[np.int32]:
    """The operations (M, 3, 3) int32 of a space group's point group on reflections: a mate is `operation @ hkl`.

    They are the transposes of the rotations that act on the atoms (International Tables B, section 1.4.2).
    """
    rotations = np.array([operation.rot for operation in space_group.operations().sym_ops], dtype=np.int32)
    return np.ascontiguousarray(rotations.transpose(0, 2, 1) // gemmi.Op.DEN)


def expand_mates(
    unique_hkl: NDArray[np.int32], unique_intensity: NDArray[np.float64], operations: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """All mates of reflections that are listed once each: hkl (N, 3) int32, sorted, and intensity (N,) float64.

    operations (M, 3, 3) makes the symmetry mates; a Friedel mate that they do not reach gets its partner's intensity.
    """
    mates = np.einsum("mij,nj->mni", operations, unique_hkl).reshape(-1, 3)
    keys, first = np.unique(_key(mates), return_index=True)
    partners = -mates[first]
    alone = first[~np.isin(_key(partners), keys, assume_unique=True)]
    hkl = np.concatenate([mates[first], -mates[alone]])
    parent = np.concatenate([first, alone]) % len(unique_hkl)
    if len(alone):
        order = np.argsort(_key(hkl))
        hkl, parent = hkl[order], parent[order]
    return np.ascontiguousarray(hkl, dtype=np.int32), unique_intensity[parent].astype(np.float64)


def proteinase_k(
    seed: int = 1,
    wilson_b_angstrom2: float = 10.6,
    d_min_angstrom: float = 1.8,
    mean_intensity: float = PROTEINASE_K_MEAN_INTENSITY,
) -> Crystal:
    """Proteinase K's cell and symmetry with random intensities; the same seed gives the same crystal.

    Intensities follow Wilson's statistics (see `sim_replay.wilson`) for the atoms of a protein, scaled so that the
    mean over unique reflections to d_min is `mean_intensity` electrons^2; `sim_replay.cells` leaves them on the scale
    of the atoms. Raises ValueError when d_min, B or the mean make no sense.
    """
    if not (math.isfinite(mean_intensity) and mean_intensity > 0.0):
        raise ValueError(f"mean_intensity must be above 0, not {mean_intensity}")
    space_group = gemmi.SpaceGroup(PROTEINASE_K_SPACE_GROUP)
    operations = space_group_operations(space_group)
    residues = protein_residues(PROTEINASE_K_MASS_DA) * len(operations)
    unique, intensity = wilson_reflections(
        PROTEINASE_K_CELL, space_group, residues, wilson_b_angstrom2, d_min_angstrom, np.random.default_rng(seed)
    )
    intensity *= mean_intensity / intensity.mean()
    hkl, mate_intensity = expand_mates(unique, intensity, operations)
    name = f"proteinase K (random intensities, seed {seed})"
    return Crystal(name, PROTEINASE_K_CELL, hkl, mate_intensity, PROTEINASE_K_SPACE_GROUP)


def read_hkl(
    path: str | os.PathLike[str],
    cell: Cell | str | os.PathLike[str] = PROTEINASE_K_CELL,
    name: str | None = None,
) -> Crystal:
    """Read a CrystFEL reflection list version 2.0 (plain or gzip), mates expanded by the symmetry in its header.

    The list has no cell, so it is given: angstrom and degrees, or the path of a file for `read_cell`. Intensities are
    taken as |F|^2 in electrons^2; a negative one (merged data have them) counts as 0. Where the symmetry has no
    inversion, Bijvoet pairs may be listed and keep their two intensities. Raises OSError when a file cannot be read
    and ValueError, naming file and line, when it is malformed, or holds more than 256 MB or
    `sim_replay.wilson.MAX_REFLECTIONS` with all mates.
    """
    path = Path(path)
    if isinstance(cell, str | os.PathLike):
        cell = read_cell(cell)
    lines = _read_lines(path, "reflection list")

    def bad(number: int, what: str) -> ValueError:
        return ValueError(f"{path}, line {number}: {what}")

    head = list(islice(lines, 3))
    if not head or not head[0].startswith("CrystFEL reflection list version 2.0"):
        raise bad(1, "expected 'CrystFEL reflection list version 2.0'")
    if len(head) < 3 or not head[1].startswith("Symmetry:"):
        raise bad(2, "expected 'Symmetry: GROUP'")
    point_group = head[1].split(":", 1)[1].strip()
    try:
        operations = symmetry_operations(point_group)
    except ValueError as error:
        raise bad(2, str(error)) from None
    if head[2].split()[:4] != ["h", "k", "l", "I"]:
        raise bad(3, "expected the column heads 'h k l I phase sigma(I) nmeas'")

    # Arrays, since a list of tuples would take ten times the file's size.
    indices, values, row_lines = array("i"), array("d"), array("i")
    ended, number = False, 3
    for number, line in enumerate(lines, start=4):
        if line.startswith("End of reflections"):
            ended = True
            break
        fields = line.split()
        try:
            row = (int(fields[0]), int(fields[1]), int(fields[2]))
            value = float(fields[3])
        except (ValueError, IndexError):
            raise bad(number, f"expected 'h k l I ...', found '{line.strip()[:60]}'") from None
        if not math.isfinite(value) or max(abs(i) for i in row) > _INDEX_LIMIT:
            raise bad(number, f"index or intensity out of range in '{line.strip()[:60]}'")
        if (len(values) + 1) * len(operations) > MAX_REFLECTIONS:
            raise bad(number, f"more than {MAX_REFLECTIONS:.3g} reflections with their mates in {point_group}")
        indices.extend(row)
        values.append(max(value, 0.0))
        row_lines.append(number)
    if not ended:
        raise bad(number, "the list stops before 'End of reflections'; the file is cut short")
    if not values:
        raise bad(4, "the list holds no reflections")

    hkl = np.array(indices, dtype=np.int32).reshape(-1, 3)
    # Two mates in one list would be ambiguous: the smallest key over all mates names the class.
    mates = np.einsum("mij,nj->nmi", operations, hkl)
    classes = _key(mates.reshape(-1, 3)).reshape(len(hkl), len(operations)).min(axis=1)
    _, first = np.unique(classes, return_index=True)
    if len(first) != len(hkl):
        second = int(np.setdiff1d(np.arange(len(hkl)), first)[0])
        raise bad(
            row_lines[second],
            f"reflection {tuple(hkl[second].tolist())} or a mate of it in {point_group} is listed twice",
        )
    all_hkl, intensity = expand_mates(hkl, np.array(values), operations)
    return Crystal(name if name is not None else path.name, cell, all_hkl, intensity)


def read_cell(path: str | os.PathLike[str]) -> Cell:
    """The unit cell in a CrystFEL unit cell file version 1.0 or in the CRYST1 record of a PDB file, plain or gzip.

    Raises OSError when the file cannot be read and ValueError, naming the file and where it can the line, when it
    holds no cell or an impossible one.
    """
    path = Path(path)
    lines = islice(_read_lines(path, "unit cell file"), _MOST_LINES_TO_A_CELL)
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith("CrystFEL unit cell file version 1.0"):
            return _crystfel_cell(path, lines)
        if line.startswith("CRYST1"):
            # Nine columns an edge and seven an angle (PDB format 3.3): neighbours may touch.
            fields = [line[6:15], line[15:24], line[24:33], line[33:40], line[40:47], line[47:54]]
            return _checked_cell(f"{path}, line {number}", fields)
    raise ValueError(
        f"{path}: holds no unit cell; expected 'CrystFEL unit cell file version 1.0' in line 1, or the CRYST1 record "
        "of a PDB file"
    )


_MOST_LINES_TO_A_CELL = 1_000_000  # CRYST1 stands before the atoms
_CELL_KEYS = {"a": "A", "b": "A", "c": "A", "al": "deg", "be": "deg", "ga": "deg"}
_UNIT_FACTORS = {("A", "A"): 1.0, ("A", "nm"): 10.0, ("deg", "deg"): 1.0, ("deg", "rad"): 180.0 / math.pi}


def _crystfel_cell(path: Path, lines: Iterable[str]) -> Cell:
    """The cell in the lines from the second one on."""
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=2):
        key, equals, rest = line.split(";")[0].partition("=")
        key, fields = key.strip(), rest.split()
        if key not in _CELL_KEYS:
            continue  # lattice_type, centering and unique_axis say nothing that the six numbers do not
        unit = _CELL_KEYS[key]
        if not equals or len(fields) != 2 or (unit, fields[1]) not in _UNIT_FACTORS:
            raise ValueError(f"{path}, line {number}: expected '{key} = NUMBER {unit}', found '{line.strip()[:60]}'")
        if key in found:
            raise ValueError(f"{path}, line {number}: '{key}' is given twice")
        try:
            found[key] = repr(float(fields[0]) * _UNIT_FACTORS[unit, fields[1]])
        except ValueError:
            raise ValueError(f"{path}, line {number}: '{fields[0][:30]}' is not a number") from None
    missing = [key for key in _CELL_KEYS if key not in found]
    if missing:
        raise ValueError(f"{path}: the unit cell lacks {', '.join(missing)}")
    return _checked_cell(str(path), [found[key] for key in _CELL_KEYS])


def _checked_cell(where: str, fields: Iterable[str]) -> Cell:
    try:
        a, b, c, alpha, beta, gamma = map(float, fields)
    except ValueError:
        raise ValueError(f"{where}: expected three edges and three angles in the columns of CRYST1") from None
    cell = (a, b, c, alpha, beta, gamma)
    try:
        reciprocal_basis(cell)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if cell[:3] == (1.0, 1.0, 1.0):
        raise ValueError(f"{where}: a cell of 1 1 1 stands for none (no crystal); give the real one")
    return cell


def _read_lines(path: Path, what: str) -> Iterator[str]:
    """The lines of a text or gzip file, made one by one: as a list, short ones take thirty times the file's size."""
    try:
        raw = read_text(path, what, MAX_TEXT_BYTES, unzip=True)
    except zlib.error as error:
        raise ValueError(f"{path}: not a readable text or gzip {what} ({error})") from None
    if not raw.isascii():
        raise ValueError(f"{path}: not a readable text or gzip {what} (it holds bytes that are not ASCII)")
    return (line.rstrip("\n") for line in io.TextIOWrapper(io.BytesIO(raw), encoding="ascii"))


_KEY_SPAN = 1 << 20
# A mate's index is a sum of up to two indices.
_INDEX_LIMIT = _KEY_SPAN // 4 - 1


def _key(hkl: NDArray[np.int32]) -> NDArray[np.int64]:
    """One int64 a reflection, for looking it up."""
    wide = hkl.astype(np.int64) + _KEY_SPAN // 2
    return np.asarray((wide[:, 0] * _KEY_SPAN + wide[:, 1]) * _KEY_SPAN + wide[:, 2])
