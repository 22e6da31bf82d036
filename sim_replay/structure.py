"""A crystal from the atoms of a PDB or mmCIF file: structure factors by density on a grid and a Fourier transform.

Atoms are sums of Gaussians (International Tables C, table 6.1.1.4, neutral atoms) broadened by their own displacement
parameters, isotropic or anisotropic, and weighted by occupancy, so that alternate conformations, waters and hydrogens
count for what the file says. An extra B, taken off again in reciprocal space, keeps sharp atoms from aliasing on the
grid (Ten Eyck, Acta Cryst. A33, 486, 1977). Between the molecules lies a flat bulk solvent,

    F = F_atoms + k_sol exp(-B_sol s^2) F_mask,      s = 1 / (2 d)

with k_sol in electrons/angstrom^3 and a mask of probe radius 1.1 and shrinkage 0.9 angstrom (Jiang and Brunger,
J. Mol. Biol. 243, 100, 1994). Anomalous scattering is left out, so that Friedel mates are equal.
"""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from sim_replay.crystal import Crystal, expand_mates, reciprocal_basis, space_group_operations
from sim_replay.wilson import check_resolution
from streamer.text_files import read_text

MAX_GRID_POINTS = 100_000_000
"""Most points of a density grid, about 1.5 GB with its transform: a cube of 280 angstrom to 1.8 angstrom."""

MAX_ATOM_POINTS = 1_500_000_000
"""Most grid points that atoms spread over in all, about 15 s: 50,000 atoms of B=200 to 1.8 angstrom take half of it."""

MAX_ATOMS = 1_000_000
"""Copies by non-crystallographic symmetry included: the capsid of a large virus."""

MAX_TEXT_BYTES = 128 << 20
"""Of the file, unpacked: a million atoms in mmCIF."""

SMALLEST_D_MIN_ANGSTROM = 0.5

_POINTS_PER_D_MIN = 3.0  # 1.5 times what sampling needs, as the Fourier transforms of refinement programs take
_MASK_SPACING_ANGSTROM = 0.6  # one mask for all, or intensities would change with d_min
_COORDINATE_LIMIT_ANGSTROM = 1e5
_LARGEST_B_ANGSTROM2 = 1000.0  # a PDB file's field ends at 999.99; an atom's extent on the grid grows with it


def read_structure(
    path: str | os.PathLike[str],
    d_min_angstrom: float = 1.8,
    bulk_solvent: bool = True,
    name: str | None = None,
    k_sol: float = 0.35,
    b_sol_angstrom2: float = 46.0,
) -> Crystal:
    """Read the first model of a PDB or mmCIF file (plain or gzip) and compute every |F|^2 to d_min.

    Copies by strict non-crystallographic symmetry (MTRIX) are made; deuterium scatters as
    hydrogen and an atom of unknown element (X) as oxygen. Raises OSError
    when the file cannot be read and ValueError, naming file and reason, when it is malformed, holds no atoms, no cell,
    no known space group or atoms that make no sense, and when d_min is out of range or needs too much memory or time.
    """
    path = Path(path)
    if not (math.isfinite(d_min_angstrom) and d_min_angstrom >= SMALLEST_D_MIN_ANGSTROM):
        raise ValueError(f"d_min_angstrom must be {SMALLEST_D_MIN_ANGSTROM} or more, not {d_min_angstrom}")
    for setting, value in (("k_sol", k_sol), ("b_sol_angstrom2", b_sol_angstrom2)):
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"{setting} must be 0 or more, not {value}")
    structure, space_group = _load(path)
    unit_cell = structure.cell
    cell = (unit_cell.a, unit_cell.b, unit_cell.c, unit_cell.alpha, unit_cell.beta, unit_cell.gamma)
    spacing = d_min_angstrom / _POINTS_PER_D_MIN
    mask_spacing = _mask_spacing(d_min_angstrom)
    try:
        check_resolution(cell, d_min_angstrom, len(space_group.operations().cen_ops))
        if d_min_angstrom > max(cell[:3]):
            raise ValueError(f"d_min_angstrom={d_min_angstrom} is longer than the cell's edges {cell[:3]}")
        _check_grid(unit_cell, min(spacing, mask_spacing) if bulk_solvent else spacing)
        _check_extent(structure[0], d_min_angstrom)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    try:
        hkl, factors = _atoms_factors(structure, d_min_angstrom)
        if bulk_solvent:
            s2 = np.asarray(unit_cell.calculate_1_d2_array(hkl)) / 4.0
            factors = factors + k_sol * np.exp(-b_sol_angstrom2 * s2) * _mask_factors(structure, d_min_angstrom, hkl)
    except RuntimeError as error:
        # Atoms reach round a cell that is thinner than they are, or all but flat.
        raise ValueError(f"{path}: the unit cell {cell} cannot hold its atoms ({error})") from None
    if len(hkl) == 0:
        raise ValueError(f"{path}: no reflection has a spacing above d_min_angstrom={d_min_angstrom}")
    intensity = np.abs(factors) ** 2
    if not np.all(np.isfinite(intensity)):
        raise ValueError(f"{path}: the structure factors are not finite; look for impossible displacement parameters")
    all_hkl, all_intensity = expand_mates(hkl, intensity, space_group_operations(space_group))
    return Crystal(name if name is not None else path.name, cell, all_hkl, all_intensity, space_group.xhm())


def _load(path: Path) -> tuple[gemmi.Structure, gemmi.SpaceGroup]:
    try:
        raw = read_text(path, "PDB or mmCIF file", MAX_TEXT_BYTES, unzip=True)
    except zlib.error as error:
        raise ValueError(f"{path}: not a readable gzip file ({error})") from None
    if not raw.strip():
        raise ValueError(f"{path}: the file is empty")
    if b"\0" in raw:
        raise ValueError(f"{path}: not a text file; expected a PDB or mmCIF file, plain or gzip")
    # Old remarks hold bytes of other alphabets; a question mark each keeps the columns.
    text = raw.decode("ascii", "replace").replace("\ufffd", "?")
    try:
        structure = gemmi.read_structure_string(text, format=gemmi.CoorFormat.Detect)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: not a readable PDB or mmCIF file ({reason})") from None
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise ValueError(f"{path}: holds no atoms; expected a PDB or mmCIF file of a crystal structure")
    space_group = _space_group(path, structure)
    atoms = structure[0].count_atom_sites() * (1 + sum(not copy.given for copy in structure.ncs))
    if atoms > MAX_ATOMS:
        raise ValueError(f"{path}: {atoms} atoms, copies by MTRIX included, are more than {MAX_ATOMS}")
    if structure.ncs:
        structure.expand_ncs(gemmi.HowToNameCopiedChain.Dup)
    _check_atoms(path, structure[0])
    return structure, space_group


def _space_group(path: Path, structure: gemmi.Structure) -> gemmi.SpaceGroup:
    unit_cell = structure.cell
    numbers = (unit_cell.a, unit_cell.b, unit_cell.c, unit_cell.alpha, unit_cell.beta, unit_cell.gamma)
    if not unit_cell.is_crystal():
        raise ValueError(
            f"{path}: has no unit cell (CRYST1 or _cell missing, or 1 1 1 as for a structure that is not from a "
            "crystal); a crystal structure is needed"
        )
    try:
        reciprocal_basis(numbers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    symbol = structure.spacegroup_hm
    space_group = structure.find_spacegroup()
    if space_group is None:
        raise ValueError(f"{path}: space group {symbol!r} is not known; give its Hermann-Mauguin symbol, as P 43 21 2")
    if not unit_cell.is_compatible_with_spacegroup(space_group, 0.01):
        raise ValueError(f"{path}: the unit cell {numbers} does not fit the space group {space_group.xhm()}")
    return space_group


def _check_atoms(path: Path, model: gemmi.Model) -> None:
    """Raise ValueError for an atom that cannot scatter or is out of all bounds."""
    for site in model.all():
        atom = site.atom
        position = atom.pos
        where = f"{path}: atom {atom.serial} ({site.chain.name} {site.residue} {atom.name})"
        if atom.element.it92 is None:
            raise ValueError(f"{where}: element '{atom.element.name}' has no X-ray form factor")
        if not all(abs(x) < _COORDINATE_LIMIT_ANGSTROM for x in (position.x, position.y, position.z)):
            raise ValueError(f"{where}: its coordinates are not numbers below {_COORDINATE_LIMIT_ANGSTROM:g} angstrom")
        if not 0.0 <= atom.b_iso < _LARGEST_B_ANGSTROM2:
            raise ValueError(f"{where}: B={atom.b_iso:g} is not between 0 and {_LARGEST_B_ANGSTROM2:g} angstrom^2")
        if atom.aniso.nonzero() and not 0.0 < max(atom.aniso.calculate_eigenvalues()) < _LARGEST_B_ANGSTROM2 / 8.0:
            raise ValueError(f"{where}: its anisotropic displacement is no ellipsoid of a sensible size")
        if not 0.0 <= atom.occ <= 1.0:
            raise ValueError(f"{where}: occupancy {atom.occ:g} is not between 0 and 1")


def _check_grid(unit_cell: gemmi.UnitCell, spacing_angstrom: float) -> None:
    reciprocal = unit_cell.reciprocal()
    points = math.prod(1.0 / (edge * spacing_angstrom) for edge in (reciprocal.a, reciprocal.b, reciprocal.c))
    if points > MAX_GRID_POINTS:
        raise ValueError(
            f"the density needs a grid of {points:.3g} points, more than {MAX_GRID_POINTS:.3g}; raise d_min_angstrom"
        )


def _check_extent(model: gemmi.Model, d_min_angstrom: float) -> None:
    """Raise ValueError where the atoms, each a box as wide as its displacement makes it, take too many grid points."""
    calculator = _density_calculator(model, d_min_angstrom)
    spacing_angstrom = d_min_angstrom / _POINTS_PER_D_MIN
    points_of: dict[tuple[str, int], float] = {}
    points = 0.0
    for site in model.all():
        atom = site.atom
        u = atom.aniso
        b = 8.0 * math.pi**2 * max(u.u11, u.u22, u.u33) if u.nonzero() else atom.b_iso
        key = (atom.element.name, math.ceil(b))
        if key not in points_of:
            probe = gemmi.Atom()
            probe.element, probe.b_iso = atom.element, key[1]
            points_of[key] = (2.0 * calculator.estimate_radius(probe) / spacing_angstrom) ** 3
        points += points_of[key]
    if points > MAX_ATOM_POINTS:
        raise ValueError(
            f"its {model.count_atom_sites()} atoms are so wide (B) that they take {points:.3g} grid points, more than "
            f"{MAX_ATOM_POINTS:.3g}; raise d_min_angstrom, or lower B in the file"
        )


def _mask_spacing(d_min_angstrom: float) -> float:
    return min(_MASK_SPACING_ANGSTROM, d_min_angstrom / 2.4)


def _density_calculator(model: gemmi.Model, d_min_angstrom: float) -> gemmi.DensityCalculatorX:
    calculator = gemmi.DensityCalculatorX()
    calculator.d_min = d_min_angstrom
    calculator.rate = _POINTS_PER_D_MIN / 2.0
    calculator.set_refmac_compatible_blur(model)
    return calculator


def _atoms_factors(
    structure: gemmi.Structure, d_min_angstrom: float
) -> tuple[NDArray[np.int32], NDArray[np.complex128]]:
    """Unique reflections (N, 3) without the extinct ones, and F (N,) of the first model's atoms."""
    calculator = _density_calculator(structure[0], d_min_angstrom)
    calculator.set_grid_cell_and_spacegroup(structure)
    calculator.put_model_density_on_grid(structure[0])
    grid = gemmi.transform_map_to_f_phi(calculator.grid, half_l=True)
    data = grid.prepare_asu_data(dmin=d_min_angstrom, unblur=calculator.blur)
    return np.array(data.miller_array, dtype=np.int32), np.array(data.value_array, dtype=np.complex128)


def _mask_factors(structure: gemmi.Structure, d_min_angstrom: float, hkl: NDArray[np.int32]) -> NDArray[np.complex128]:
    """F (N,) of the solvent region filled with one electron per cubic angstrom, for the same reflections."""
    mask = gemmi.FloatGrid()
    mask.setup_from(structure, spacing=_mask_spacing(d_min_angstrom))
    gemmi.SolventMasker(gemmi.AtomicRadiiSet.Cctbx).put_mask_on_float_grid(mask, structure[0])
    data = gemmi.transform_map_to_f_phi(mask, half_l=True).prepare_asu_data(dmin=d_min_angstrom)
    if not np.array_equal(data.miller_array, hkl):
        raise AssertionError("the two transforms list different reflections")
    return np.array(data.value_array, dtype=np.complex128)
