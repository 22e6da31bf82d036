"""The settings ``cell`` and ``space_group``: a known unit cell, refused at the start where it is none."""

import re
from pathlib import Path

import gemmi

from analyzer.parameters.bragg_watch import KnownCell
from analyzer.parameters.lattice import Cell, make_lattice
from cxls.settings import BadSettings
from sim_replay.crystal import read_cell

_SAME = 1e-3
"""Relative difference of edges that a space group makes equal, and the degrees of its angles."""


def read_known_cell(cell: str | None, space_group: str | None) -> KnownCell | None:
    """The cell given, as numbers or as a CrystFEL .cell or PDB file. Raises ``BadSettings``."""
    if cell is None:
        if space_group is not None:
            raise BadSettings("--space-group: of no cell; give --cell 'A B C ALPHA BETA GAMMA' too")
        return None
    numbers = _cell(cell)
    if not all(0.0 < angle < 180.0 for angle in numbers[3:]):
        raise BadSettings(f"--cell {cell!r}: angles must be above 0 and below 180 degrees")
    try:
        make_lattice(numbers)
    except ValueError as error:
        raise BadSettings(f"--cell {cell!r}: {error}") from None
    if space_group is not None:
        _check_group(space_group, numbers)
    return KnownCell(numbers, space_group)


def _cell(text: str) -> Cell:
    parts = [part for part in re.split(r"[\s,]+", text) if part]
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return _of_file(text)
    if len(values) != 6:
        raise BadSettings(
            f"--cell {text!r}: {len(values)} numbers; give three edges (angstrom) and three angles (degrees)"
        )
    a, b, c, alpha, beta, gamma = values
    return a, b, c, alpha, beta, gamma


def _of_file(text: str) -> Cell:
    if not Path(text).is_file():
        raise BadSettings(
            f"--cell {text!r}: neither six numbers (angstrom, degrees), such as '67.3 67.3 106.6 90 90 90', nor a file"
        )
    try:
        return read_cell(text)
    except (OSError, ValueError) as error:
        raise BadSettings(f"--cell {error}") from None


def _check_group(name: str, cell: Cell) -> None:
    group = gemmi.find_spacegroup_by_name(name)
    if group is None:
        raise BadSettings(f"--space-group {name!r}: no such space group; give a symbol such as 'P 43 21 2'")
    if not gemmi.UnitCell(*cell).is_compatible_with_spacegroup(group, _SAME):
        raise BadSettings(f"--space-group {name!r}: its symmetry is not that of --cell {' '.join(map(str, cell))}")
