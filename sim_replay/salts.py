"""Small crystals that are in the way: salts of the mother liquor, and the powder rings of hexagonal ice.

Their |F|^2 come from the published positions of all atoms by direct summation, so that few, strong and widely spaced
reflections stand where a real salt has them.

Sources of the structures: Wyckoff, Crystal Structures, 2nd ed., vol. 1 (NaCl, KCl, CsCl, CaF2, calcite); for KH2PO4
Bacon and Pease, Proc. R. Soc. A 230, 359 (1955); for ice Ih Goto, Hondoh and Mae, J. Chem. Phys. 93, 1412 (1990).
Hydrogens are left out. One isotropic B for all atoms of a crystal, of the size they have at room temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType

import gemmi
import numpy as np
from numpy.typing import NDArray

from sim_replay.crystal import Cell, Crystal, expand_mates, space_group_operations
from sim_replay.wilson import check_resolution, form_factor, gaussian_sum


@dataclass(frozen=True, slots=True)
class Atom:
    """One atom of the asymmetric unit: element, charge (0 also where it is shared) and fractional coordinates."""

    element: str
    charge: int
    position: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Salt:
    """A small structure: cell (angstrom, degrees), space group, atoms of the asymmetric unit, one B for all."""

    title: str
    cell: Cell
    space_group: str
    atoms: tuple[Atom, ...]
    b_angstrom2: float


SALTS: MappingProxyType[str, Salt] = MappingProxyType(
    {
        "sodium-chloride": Salt(
            "NaCl",
            (5.6402, 5.6402, 5.6402, 90.0, 90.0, 90.0),
            "F m -3 m",
            (Atom("Na", 1, (0.0, 0.0, 0.0)), Atom("Cl", -1, (0.5, 0.5, 0.5))),
            1.5,
        ),
        "potassium-chloride": Salt(
            "KCl",
            (6.2931, 6.2931, 6.2931, 90.0, 90.0, 90.0),
            "F m -3 m",
            (Atom("K", 1, (0.0, 0.0, 0.0)), Atom("Cl", -1, (0.5, 0.5, 0.5))),
            2.1,
        ),
        "caesium-chloride": Salt(
            "CsCl",
            (4.123, 4.123, 4.123, 90.0, 90.0, 90.0),
            "P m -3 m",
            (Atom("Cs", 1, (0.0, 0.0, 0.0)), Atom("Cl", -1, (0.5, 0.5, 0.5))),
            2.0,
        ),
        "calcium-fluoride": Salt(
            "CaF2",
            (5.4626, 5.4626, 5.4626, 90.0, 90.0, 90.0),
            "F m -3 m",
            (Atom("Ca", 2, (0.0, 0.0, 0.0)), Atom("F", -1, (0.25, 0.25, 0.25))),
            0.6,
        ),
        "calcium-carbonate": Salt(
            "CaCO3 (calcite)",
            (4.990, 4.990, 17.061, 90.0, 90.0, 120.0),
            "R -3 c:H",
            (
                Atom("Ca", 2, (0.0, 0.0, 0.0)),
                Atom("C", 0, (0.0, 0.0, 0.25)),
                Atom("O", 0, (0.2568, 0.0, 0.25)),
            ),
            0.9,
        ),
        "potassium-phosphate": Salt(
            "KH2PO4",
            (7.453, 7.453, 6.975, 90.0, 90.0, 90.0),
            "I -4 2 d",
            (
                Atom("K", 1, (0.0, 0.0, 0.5)),
                Atom("P", 0, (0.0, 0.0, 0.0)),
                Atom("O", 0, (0.1483, 0.0826, 0.1259)),
            ),
            1.4,
        ),
    }
)

ICE_IH = Salt(
    "ice Ih (oxygen)",
    (4.497, 4.497, 7.322, 90.0, 90.0, 120.0),
    "P 63/m m c",
    (Atom("O", 0, (1 / 3, 2 / 3, 0.0618)),),
    2.0,
)
"""Hexagonal ice near 250 K without its disordered hydrogens, which carry little of the scattering."""

_IONS: dict[tuple[str, int], tuple[tuple[float, ...], tuple[float, ...], float]] = {
    ("F", -1): ((3.6322, 3.51057, 1.26064, 0.940706), (5.27756, 14.7353, 0.442258, 47.3437), 0.653396),
    ("Na", 1): ((3.2565, 3.9362, 1.3998, 1.0032), (2.6671, 6.1153, 0.2001, 14.039), 0.404),
    ("Cl", -1): ((18.2915, 7.2084, 6.5337, 2.3386), (0.0066, 1.1717, 19.5424, 60.4486), -16.378),
    ("K", 1): ((7.9578, 7.4917, 6.359, 1.1915), (12.6331, 0.7674, -0.002, 31.9128), -4.9978),
    ("Ca", 2): ((15.6348, 7.9518, 8.4372, 0.8537), (-0.0074, 0.6089, 10.3116, 25.9905), -14.875),
    ("Cs", 1): ((20.3524, 19.1278, 10.2821, 0.9615), (3.552, 0.3086, 23.7128, 59.4566), 3.2791),
}
"""a, b and c of the ions' form factors (International Tables C, table 6.1.1.4)."""

_WEAKEST = 1e-9  # of the strongest |F|^2: what is below is an extinction of the special positions


def salt_crystal(name: str, d_min_angstrom: float = 0.8) -> Crystal:
    """A salt of `SALTS` with all its reflections to d_min.

    Raises ValueError for a name that is not there, naming those that are, and when d_min makes no sense.
    """
    if name not in SALTS:
        raise ValueError(f"salt {name!r} is not known; known are {', '.join(SALTS)}")
    return small_crystal(SALTS[name], d_min_angstrom)


def ice_lines(d_min_angstrom: float = 1.2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Powder lines of hexagonal ice to d_min: d (n,) in angstrom, falling, and multiplicity * |F|^2 (n,).

    The weights are relative, the strongest line has 1; they lack the Lorentz and polarisation factors, which belong
    to the geometry. Raises ValueError when d_min makes no sense.
    """
    ice = small_crystal(ICE_IH, d_min_angstrom)
    inverse_d2 = np.asarray(gemmi.UnitCell(*ice.cell).calculate_1_d2_array(ice.hkl))
    # Mates differ by rounding only; different lines of so small a cell by far more.
    line, members = np.unique(np.round(inverse_d2, 9), return_inverse=True)
    weight = np.bincount(members, weights=ice.intensity)
    return 1.0 / np.sqrt(line), weight / weight.max()


def small_crystal(salt: Salt, d_min_angstrom: float) -> Crystal:
    """A small structure with all its reflections to d_min. Raises ValueError when d_min makes no sense."""
    space_group = gemmi.SpaceGroup(salt.space_group)
    check_resolution(salt.cell, d_min_angstrom)
    unit_cell = gemmi.UnitCell(*salt.cell)
    hkl = np.asarray(gemmi.make_miller_array(unit_cell, space_group, d_min_angstrom), dtype=np.int32)
    if len(hkl) == 0:
        raise ValueError(f"no reflection of {salt.title} has a spacing above d_min_angstrom={d_min_angstrom}")
    s2 = np.asarray(unit_cell.calculate_1_d2_array(hkl)) / 4.0
    factors = np.zeros(len(hkl), dtype=np.complex128)
    for atom in salt.atoms:
        phases = 2.0 * math.pi * (hkl @ _sites(space_group, atom.position).T)
        ion = _IONS.get((atom.element, atom.charge))
        scattering = form_factor(atom.element, s2) if ion is None else gaussian_sum(*ion, s2)
        factors += scattering * np.exp(1j * phases).sum(axis=1)
    intensity = np.abs(factors) ** 2 * np.exp(-2.0 * salt.b_angstrom2 * s2)
    seen = intensity > _WEAKEST * intensity.max()
    all_hkl, all_intensity = expand_mates(hkl[seen], intensity[seen], space_group_operations(space_group))
    return Crystal(salt.title, salt.cell, all_hkl, all_intensity, salt.space_group)


def _sites(space_group: gemmi.SpaceGroup, position: tuple[float, float, float]) -> NDArray[np.float64]:
    """All places (n, 3) in the unit cell that symmetry takes a position to, each once."""
    places = np.array([operation.apply_to_xyz(list(position)) for operation in space_group.operations()])
    rounded = np.round(places % 1.0, 6) % 1.0
    _, first = np.unique(rounded, axis=0, return_index=True)
    return np.asarray(places[first])
