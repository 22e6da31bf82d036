"""A known unit cell: its reciprocal basis, its reflections, and the turns that leave its lattice as it is.

Edges in angstrom, angles in degrees; reciprocal vectors in 1/angstrom without the factor 2 pi, so that |q| = 1/d.
"""

import itertools
import math
from dataclasses import dataclass

import gemmi
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Cell = tuple[float, float, float, float, float, float]

_MOST_REFLECTIONS = 4_000_000
_SHORTEST_EDGE_ANGSTROM, _LONGEST_EDGE_ANGSTROM = 2.0, 2000.0
_SAME_METRIC = 1e-3
"""Edges and angles that agree to this are taken to be equal by symmetry."""

_SAME_LINE = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Lattice:
    """A cell with the reflections it may show.

    ``basis`` (3, 3): columns a*, b*, c*, so that q = basis @ hkl. ``edge_groups``: which of the three edges are equal,
    such as ((0, 1), (2,)). ``turns`` (M, 3, 3) int64: proper operations on hkl that leave every distance and angle as
    it is.
    """

    cell: Cell
    space_group: gemmi.SpaceGroup | None
    basis: Floats
    turns: npt.NDArray[np.int64]
    edge_groups: tuple[tuple[int, ...], ...]

    @property
    def volume_angstrom3(self) -> float:
        """Of the cell."""
        return 1.0 / abs(float(np.linalg.det(self.basis)))

    def reflections(self, q_max_per_angstrom: float) -> npt.NDArray[np.int64]:
        """All hkl (n, 3) up to 1/d that the space group allows, by rising 1/d.

        Raises ValueError where there would be more than four million.
        """
        sphere = 4.0 / 3.0 * math.pi * q_max_per_angstrom**3 * self.volume_angstrom3
        if sphere > _MOST_REFLECTIONS:
            raise ValueError(
                f"a cell of {self.cell} has {sphere:.3g} reflections to {1 / q_max_per_angstrom:.3g} angstrom"
            )
        # |h| <= |a| q for every q = h a* + k b* + l c*, since h = a . q.
        reach = [int(q_max_per_angstrom * edge) for edge in self.cell[:3]]
        axes = [np.arange(-n, n + 1) for n in reach]
        hkl = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        q = np.sqrt(((hkl @ self.basis.T) ** 2).sum(1))
        hkl, q = hkl[(q > 0) & (q <= q_max_per_angstrom)], q[(q > 0) & (q <= q_max_per_angstrom)]
        hkl = hkl[np.argsort(q, kind="stable")]
        if self.space_group is None:
            return np.asarray(hkl, np.int64)
        absent = self.space_group.operations().systematic_absences(hkl.astype(np.int32))
        return np.asarray(hkl[~np.asarray(absent, bool)], np.int64)

    def lengths(self, hkl: npt.NDArray[np.int64]) -> Floats:
        """1/d (n,) of reflections (n, 3)."""
        return np.asarray(np.sqrt(((hkl @ self.basis.T) ** 2).sum(1)), np.float64)

    def one_of_each(self, hkl: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of the reflections (n, 3) that no turn takes to another that is kept, in their order."""
        turned = np.einsum("mij,nj->nmi", self.turns, hkl)
        key = (turned[..., 0] * 8192 + turned[..., 1]) * 8192 + turned[..., 2]
        return np.asarray(hkl[key.max(1) == (hkl[:, 0] * 8192 + hkl[:, 1]) * 8192 + hkl[:, 2]], np.int64)

    def stretched(self, relative: Floats) -> Floats:
        """The reciprocal basis with each of ``edge_groups`` longer by a share (groups,)."""
        cell = list(self.cell)
        for edges, share in zip(self.edge_groups, relative.tolist(), strict=True):
            for edge in edges:
                cell[edge] *= 1.0 + share
        return reciprocal_basis((cell[0], cell[1], cell[2], cell[3], cell[4], cell[5]))


@dataclass(frozen=True, slots=True, eq=False)
class PowderLines:
    """``q_per_angstrom`` (n,) rising 1/d of the powder lines, and how many reflections each has."""

    q_per_angstrom: Floats
    multiplicity: Floats


def make_lattice(cell: Cell, space_group: str | None = None) -> Lattice:
    """Raises ValueError for a cell that is none, or a space group that is not known."""
    basis = reciprocal_basis(cell)
    group = None
    if space_group is not None:
        group = gemmi.find_spacegroup_by_name(space_group)
        if group is None:
            raise ValueError(f"space group {space_group!r} is not known")
    return Lattice(cell, group, basis, _turns(basis), _edge_groups(cell))


def reciprocal_basis(cell: Cell) -> Floats:
    """Columns a*, b*, c* (3, 3), a along x and b in the xy plane (International Tables B, section 1.1)."""
    if not all(map(math.isfinite, cell)) or len(cell) != 6:
        raise ValueError(f"{cell} is no unit cell; give three edges (angstrom) and three angles (degrees)")
    a, b, c, *angles = cell
    if not (min(a, b, c) >= _SHORTEST_EDGE_ANGSTROM and max(a, b, c) <= _LONGEST_EDGE_ANGSTROM):
        raise ValueError(f"edges of {cell} must be {_SHORTEST_EDGE_ANGSTROM} to {_LONGEST_EDGE_ANGSTROM} angstrom")
    ca, cb, cg = (math.cos(math.radians(angle)) for angle in angles)
    sg = math.sqrt(max(1.0 - cg * cg, 0.0))
    volume2 = 1.0 - ca * ca - cb * cb - cg * cg + 2.0 * ca * cb * cg
    if volume2 <= 1e-6 or sg < 1e-6:
        raise ValueError(f"the angles of {cell} close no solid")
    direct = [[a, 0.0, 0.0], [b * cg, b * sg, 0.0], [c * cb, c * (ca - cb * cg) / sg, c * math.sqrt(volume2) / sg]]
    return np.asarray(np.linalg.inv(np.array(direct)), np.float64)


def powder_lines(lattice: Lattice, q_max_per_angstrom: float) -> PowderLines:
    """The lines of a powder up to 1/d; reflections of one length are one line, whether by symmetry or not."""
    q = lattice.lengths(lattice.reflections(q_max_per_angstrom))
    if not len(q):
        return PowderLines(np.empty(0), np.empty(0))
    first = np.concatenate([[0], np.flatnonzero(np.diff(q) > _SAME_LINE * q[1:]) + 1])
    multiplicity = np.diff(np.append(first, len(q))).astype(np.float64)
    return PowderLines(np.add.reduceat(q, first) / multiplicity, multiplicity)


def _turns(basis: Floats) -> npt.NDArray[np.int64]:
    """Operations on hkl with entries -1, 0, 1 that keep the reciprocal metric; enough for conventional cells."""
    metric = basis.T @ basis
    scale = np.sqrt(np.diag(metric))
    rows = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    images = [
        rows[np.abs(np.einsum("ni,ij,nj->n", rows, metric, rows) / metric[n, n] - 1.0) < 2 * _SAME_METRIC]
        for n in range(3)
    ]
    found = []
    for columns in itertools.product(*images):
        operation = np.stack(columns, 1)
        change = (operation.T @ metric @ operation - metric) / np.outer(scale, scale)
        if round(float(np.linalg.det(operation))) == 1 and np.abs(change).max() < 2 * _SAME_METRIC:
            found.append(operation)
    return np.array(found, np.int64)


def _edge_groups(cell: Cell) -> tuple[tuple[int, ...], ...]:
    groups: list[list[int]] = []
    for n in range(3):
        for group in groups:
            if abs(cell[n] / cell[group[0]] - 1.0) < _SAME_METRIC:
                group.append(n)
                break
        else:
            groups.append([n])
    return tuple(map(tuple, groups))
