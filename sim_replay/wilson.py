"""Random intensities with the statistics and the absolute scale of a real protein crystal (Wilson 1942, 1949).

Atoms at random places make |F|^2 exponentially distributed for an acentric reflection and chi-squared with one degree
of freedom for a centric one, both with the mean

    <|F|^2> = epsilon * sum_j f_j(s)^2 * exp(-2 B s^2),      s = sin(theta) / lambda = 1 / (2 d)

over all atoms j of the unit cell. epsilon counts the operations (lattice centring included) that leave the reflection
as it is: their atoms scatter in phase (International Tables B, section 2.1). The composition is that of the average
protein and f_j are the neutral atoms' (International Tables C, table 6.1.1.4). What this leaves out: the bulk solvent
and the shape of molecules, which make real low-order reflections (d above some 6 angstrom) differ, and the hump of
bonded distances near 4 angstrom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import gemmi
import numpy as np
from numpy.typing import NDArray

AVERAGE_RESIDUE = {"C": 4.9384, "H": 7.7583, "N": 1.3577, "O": 1.4773, "S": 0.0417}
"""Atoms in the average residue of a protein (Senko, Beu and McLafferty, J. Am. Soc. Mass Spectrom. 6, 229, 1995)."""

AVERAGE_RESIDUE_MASS_DA = 111.1254

MAX_REFLECTIONS = 20_000_000
"""Most reflections, mates included, that one crystal may have: 20 million take about 2 GB while they are made."""


def protein_residues(mass_da: float) -> float:
    """How many average residues weigh mass_da (Da)."""
    return mass_da / AVERAGE_RESIDUE_MASS_DA


def form_factor(element: str, s2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Form factor (electrons) of a neutral atom at s^2 = (sin(theta)/lambda)^2 in 1/angstrom^2, the shape of s2."""
    coefficients = gemmi.Element(element).it92
    return gaussian_sum(coefficients.a, coefficients.b, coefficients.c, s2)


def gaussian_sum(a: Sequence[float], b: Sequence[float], c: float, s2: NDArray[np.float64]) -> NDArray[np.float64]:
    """c + sum_i a_i exp(-b_i s2), the shape of s2."""
    total = np.full_like(s2, c)
    for height, width in zip(a, b, strict=True):
        total += height * np.exp(-width * s2)
    return total


def mean_intensity_of_residues(residues: float, s2: NDArray[np.float64], wilson_b: float) -> NDArray[np.float64]:
    """Wilson's mean |F|^2 (electrons^2) of so many average residues at s2 (1/angstrom^2), for epsilon 1."""
    # One cell's worth of a smooth function: a table is faster than exponentials for every reflection.
    grid = np.linspace(0.0, float(s2.max(initial=0.0)), 2049)
    squares = sum(count * form_factor(element, grid) ** 2 for element, count in AVERAGE_RESIDUE.items())
    return np.asarray(np.interp(s2, grid, residues * squares * np.exp(-2.0 * wilson_b * grid)))


def check_resolution(cell: tuple[float, ...], d_min_angstrom: float, centring: int = 1) -> None:
    """Raise ValueError when d_min is not a number above 0 or the sphere holds more than MAX_REFLECTIONS."""
    if not (math.isfinite(d_min_angstrom) and d_min_angstrom > 0.0):
        raise ValueError(f"d_min_angstrom must be above 0, not {d_min_angstrom}")
    count = expected_reflections(cell, d_min_angstrom, centring)
    if count > MAX_REFLECTIONS:
        raise ValueError(
            f"d_min_angstrom={d_min_angstrom} makes {count:.3g} reflections, more than {MAX_REFLECTIONS:.3g}; "
            "raise d_min_angstrom"
        )


def expected_reflections(cell: tuple[float, ...], d_min_angstrom: float, centring: int = 1) -> float:
    """Lattice points in the sphere of radius 1/d_min; centring is the lattice points a cell holds (P 1, I 2, F 4)."""
    return 4.0 / 3.0 * math.pi * float(gemmi.UnitCell(*cell).volume) / (d_min_angstrom**3 * centring)


def wilson_reflections(
    cell: tuple[float, float, float, float, float, float],
    space_group: gemmi.SpaceGroup,
    residues: float,
    wilson_b_angstrom2: float,
    d_min_angstrom: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Unique reflections to d_min, hkl (N, 3) int32 without the extinct ones, and random |F|^2 (N,) in electrons^2.

    residues is the number of average residues in the unit cell. Raises ValueError when B or d_min make no sense, when
    no reflection is left or when there are too many.
    """
    if not (math.isfinite(wilson_b_angstrom2) and wilson_b_angstrom2 >= 0.0):
        raise ValueError(f"wilson_b_angstrom2 must be 0 or more, not {wilson_b_angstrom2}")
    operations = space_group.operations()
    check_resolution(cell, d_min_angstrom, len(operations.cen_ops))
    unit_cell = gemmi.UnitCell(*cell)
    hkl = np.asarray(gemmi.make_miller_array(unit_cell, space_group, d_min_angstrom), dtype=np.int32)
    if len(hkl) == 0:
        raise ValueError(f"no reflection has a spacing above d_min_angstrom={d_min_angstrom}")
    s2 = np.asarray(unit_cell.calculate_1_d2_array(hkl)) / 4.0
    mean = operations.epsilon_factor_array(hkl) * mean_intensity_of_residues(residues, s2, wilson_b_angstrom2)
    centric = np.asarray(operations.centric_flag_array(hkl), dtype=np.bool_)
    draw = np.where(centric, rng.standard_normal(len(hkl)) ** 2, rng.standard_exponential(len(hkl)))
    return hkl, mean * draw
