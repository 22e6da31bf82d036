"""Crystals: a unit cell and the squared structure factors of all its reflections.

A `Crystal` lists every reflection that can diffract, symmetry mates and Friedel mates included, so that the
diffraction code needs no symmetry. Two sources: `proteinase_k`, which needs no file and has the statistics (not the
values) of the real protein, and `read_hkl`, which reads a CrystFEL reflection list.

Units: cell edges in angstrom, angles in degrees, reciprocal vectors in 1/angstrom without the factor 2 pi
(|q| = 1/d), intensities |F|^2 in electrons^2 per unit cell.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Cell = tuple[float, float, float, float, float, float]

PROTEINASE_K_CELL: Cell = (67.288, 67.288, 106.582, 90.0, 90.0, 90.0)
"""CRYST1 of PDB entry 1IC6, space group P 43 21 2."""

PROTEINASE_K_MEAN_INTENSITY = 1.95e5
"""Mean |F|^2 (electrons^2) over the unique reflections of 1IC6 to 1.8 angstrom, bulk solvent included."""

_QUARTER_TURN = ((0, -1, 0), (1, 0, 0), (0, 0, 1))
_MIRROR_DIAGONAL = ((0, 1, 0), (1, 0, 0), (0, 0, 1))
_TWOFOLD_Z = ((-1, 0, 0), (0, -1, 0), (0, 0, 1))
_MIRROR_X = ((-1, 0, 0), (0, 1, 0), (0, 0, 1))
_INVERSION = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))

# Generators of the Laue groups (International Tables A, point groups); the group is their closure.
_GENERATORS: dict[str, tuple[tuple[tuple[int, int, int], ...], ...]] = {
    "-1": (_INVERSION,),
    "mmm": (_TWOFOLD_Z, _MIRROR_X, _INVERSION),
    "4/m": (_QUARTER_TURN, _INVERSION),
    "4/mmm": (_QUARTER_TURN, _MIRROR_DIAGONAL, _INVERSION),
}


@dataclass(frozen=True, slots=True, eq=False)
class Crystal:
    """One kind of crystal.

    hkl (N, 3) int32 holds every reflection once, all mates included; intensity (N,) float64 is |F|^2 in electrons^2.
    """

    name: str
    cell: Cell
    hkl: NDArray[np.int32]
    intensity: NDArray[np.float64]

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
    Raises ValueError when the cell is not one (an edge or the volume is not positive).
    """
    a, b, c, alpha, beta, gamma = cell
    if not all(map(math.isfinite, cell)):
        raise ValueError(f"{cell} is no unit cell: edges and angles must be finite (angstrom, degrees)")
    ca, cb, cg = (math.cos(math.radians(angle)) for angle in (alpha, beta, gamma))
    sg = math.sin(math.radians(gamma))
    volume_factor = 1.0 - ca * ca - cb * cb - cg * cg + 2.0 * ca * cb * cg
    if min(a, b, c) <= 0.0 or volume_factor <= 0.0 or sg <= 0.0:
        raise ValueError(f"{cell} is no unit cell: edges and volume must be positive (angstrom, degrees)")
    direct = np.array(
        [
            [a, 0.0, 0.0],
            [b * cg, b * sg, 0.0],
            [c * cb, c * (ca - cb * cg) / sg, c * math.sqrt(volume_factor) / sg],
        ]
    )
    return np.asarray(np.linalg.inv(direct), dtype=np.float64)


def symmetry_operations(laue_group: str) -> NDArray[np.int32]:
    """All operations (M, 3, 3) int32 of a Laue group; a mate of row vector hkl is `operation @ hkl`.

    Raises ValueError for a group that is not known here, naming those that are.
    """
    if laue_group not in _GENERATORS:
        raise ValueError(f"symmetry '{laue_group}' is not supported; known are {', '.join(sorted(_GENERATORS))}")
    generators = [np.array(g, dtype=np.int32) for g in _GENERATORS[laue_group]]
    found: dict[bytes, NDArray[np.int32]] = {}
    todo = [np.eye(3, dtype=np.int32)]
    while todo:
        operation = todo.pop()
        if operation.tobytes() in found:
            continue
        found[operation.tobytes()] = operation
        todo.extend(np.ascontiguousarray(g @ operation, dtype=np.int32) for g in generators)
    return np.stack([found[key] for key in sorted(found)])


def expand_mates(
    unique_hkl: NDArray[np.int32], unique_intensity: NDArray[np.float64], laue_group: str
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """All symmetry mates of reflections that are listed once each: hkl (N, 3) int32 and intensity (N,) float64."""
    operations = symmetry_operations(laue_group)
    mates = np.einsum("mij,nj->nmi", operations, unique_hkl).reshape(-1, 3)
    _, first = np.unique(_key(mates), return_index=True)
    parent = first // len(operations)
    return np.ascontiguousarray(mates[first], dtype=np.int32), unique_intensity[parent].astype(np.float64)


def is_absent_p43212(hkl: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which reflections (N, 3) the screw axes of P 43 21 2 extinguish, (N,) bool.

    The 43 axis along c leaves only l = 4n of 00l, the 21 axes along a and b only even h of h00 and even k of 0k0
    (International Tables A, space group 96).
    """
    h, k, l = hkl[:, 0], hkl[:, 1], hkl[:, 2]  # noqa: E741
    axis_c = (h == 0) & (k == 0) & (l % 4 != 0)
    axis_a = (k == 0) & (l == 0) & (h % 2 != 0)
    axis_b = (h == 0) & (l == 0) & (k % 2 != 0)
    return np.asarray(axis_a | axis_b | axis_c)


def proteinase_k(
    seed: int = 1,
    wilson_b_angstrom2: float = 10.6,
    d_min_angstrom: float = 1.8,
    mean_intensity: float = PROTEINASE_K_MEAN_INTENSITY,
) -> Crystal:
    """Proteinase K's cell and symmetry with random intensities; the same seed gives the same crystal.

    Intensities are acentric Wilson-distributed (exponential; Wilson 1949) around a mean that falls as
    exp(-2 B s^2), s = 1/(2d), scaled so that the mean over unique reflections is `mean_intensity` electrons^2.
    Raises ValueError when d_min or the mean is not positive.
    """
    for name, value in (("d_min_angstrom", d_min_angstrom), ("mean_intensity", mean_intensity)):
        if not (math.isfinite(value) and value > 0.0):
            raise ValueError(f"{name} must be above 0, not {value}")
    cell = PROTEINASE_K_CELL
    h_max, l_max = int(cell[0] / d_min_angstrom), int(cell[2] / d_min_angstrom)
    h, k, l = np.meshgrid(  # noqa: E741
        np.arange(h_max + 1), np.arange(h_max + 1), np.arange(l_max + 1), indexing="ij"
    )
    keep = (h >= k) & (h + k + l > 0)  # the asymmetric unit of 4/mmm
    unique = np.stack([h[keep], k[keep], l[keep]], axis=1).astype(np.int32)
    inverse_d2 = np.sum((unique @ reciprocal_basis(cell).T) ** 2, axis=1)
    keep_d = (inverse_d2 <= d_min_angstrom**-2) & ~is_absent_p43212(unique)
    unique, inverse_d2 = unique[keep_d], inverse_d2[keep_d]
    if len(unique) == 0:
        raise ValueError(f"no reflection has a spacing above d_min_angstrom={d_min_angstrom}")
    wilson = np.exp(-2.0 * wilson_b_angstrom2 * inverse_d2 / 4.0)
    intensity = wilson * np.random.default_rng(seed).standard_exponential(len(unique))
    intensity *= mean_intensity / intensity.mean()
    hkl, mate_intensity = expand_mates(unique, intensity, "4/mmm")
    return Crystal("proteinase K (random intensities)", cell, hkl, mate_intensity)


def read_hkl(path: str | os.PathLike[str], cell: Cell = PROTEINASE_K_CELL, name: str | None = None) -> Crystal:
    """Read a CrystFEL reflection list version 2.0 (plain or gzip), mates expanded by the symmetry in its header.

    The list has no cell, so it is given: angstrom and degrees. Intensities are taken as |F|^2 in electrons^2; a
    negative one (merged data have them) counts as 0. Raises OSError when the file cannot be read and ValueError,
    naming file and line, when it is malformed.
    """
    path = Path(path)
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("ascii")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable text or gzip reflection list ({error})") from None
    lines = text.splitlines()

    def bad(number: int, what: str) -> ValueError:
        return ValueError(f"{path}, line {number}: {what}")

    if not lines or not lines[0].startswith("CrystFEL reflection list version 2.0"):
        raise bad(1, "expected 'CrystFEL reflection list version 2.0'")
    if len(lines) < 3 or not lines[1].startswith("Symmetry:"):
        raise bad(2, "expected 'Symmetry: GROUP'")
    laue_group = lines[1].split(":", 1)[1].strip()
    try:
        operations = symmetry_operations(laue_group)
    except ValueError as error:
        raise bad(2, str(error)) from None
    if lines[2].split()[:4] != ["h", "k", "l", "I"]:
        raise bad(3, "expected the column heads 'h k l I phase sigma(I) nmeas'")

    hkl_rows: list[tuple[int, int, int]] = []
    values: list[float] = []
    row_lines: list[int] = []
    ended = False
    for number, line in enumerate(lines[3:], start=4):
        if line.startswith("End of reflections"):
            ended = True
            break
        fields = line.split()
        try:
            row = (int(fields[0]), int(fields[1]), int(fields[2]))
            value = float(fields[3])
        except (ValueError, IndexError):
            raise bad(number, f"expected 'h k l I ...', found '{line.strip()[:60]}'") from None
        if not math.isfinite(value) or max(abs(i) for i in row) >= _KEY_SPAN // 2:
            raise bad(number, f"index or intensity out of range in '{line.strip()[:60]}'")
        hkl_rows.append(row)
        values.append(max(value, 0.0))
        row_lines.append(number)
    if not ended:
        raise bad(len(lines), "the list stops before 'End of reflections'; the file is cut short")
    if not hkl_rows:
        raise bad(4, "the list holds no reflections")

    hkl = np.array(hkl_rows, dtype=np.int32)
    # Two mates in one list would be ambiguous: the smallest key over all mates names the class.
    mates = np.einsum("mij,nj->nmi", operations, hkl)
    classes = _key(mates.reshape(-1, 3)).reshape(len(hkl), len(operations)).min(axis=1)
    _, first = np.unique(classes, return_index=True)
    if len(first) != len(hkl):
        second = int(np.setdiff1d(np.arange(len(hkl)), first)[0])
        raise bad(row_lines[second], f"reflection {hkl_rows[second]} or a mate of it in {laue_group} is listed twice")
    all_hkl, intensity = expand_mates(hkl, np.array(values), laue_group)
    return Crystal(name if name is not None else path.name, cell, all_hkl, intensity)


_KEY_SPAN = 1 << 20


def _key(hkl: NDArray[np.int32]) -> NDArray[np.int64]:
    """One int64 a reflection, for looking it up."""
    wide = hkl.astype(np.int64) + _KEY_SPAN // 2
    return np.asarray((wide[:, 0] * _KEY_SPAN + wide[:, 1]) * _KEY_SPAN + wide[:, 2])
