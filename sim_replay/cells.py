"""Ready crystals: the unit cells of well-known proteins, by name, with random intensities of their symmetry and scale.

Cells are those of the PDB entry's CRYST1 record or of the publication that describes it, rounded to 0.1 angstrom where
entries of one crystal form differ by more. The entry named is a representative of the form. For `lysozyme-1vds`
(1VDS, tetragonal hen egg-white lysozyme grown in space) the cell of the form at room temperature is assumed, 79.1 and
37.9 angstrom. Masses are of the protein in the asymmetric unit, to a few per cent; they set the scale of |F|^2.

The mosaic spread is what crystals of some ten micrometres typically show at room temperature, 0.05 degrees (full width
at half maximum); larger for crystals of membrane proteins and of large assemblies. No PDB entry states it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import gemmi
import numpy as np

from sim_replay.crystal import (
    PROTEINASE_K_CELL,
    PROTEINASE_K_MASS_DA,
    PROTEINASE_K_SPACE_GROUP,
    Cell,
    Crystal,
    expand_mates,
    space_group_operations,
)
from sim_replay.wilson import expected_reflections, protein_residues, wilson_reflections

READY_REFLECTIONS = 1_400_000
"""A ready crystal's own d_min is raised until it has no more reflections than this, mates included."""

_FINEST_D_MIN_ANGSTROM = 1.8


@dataclass(frozen=True, slots=True)
class CellEntry:
    """One crystal form.

    cell in angstrom and degrees, space_group as an extended Hermann-Mauguin symbol, mass_da of the protein in the
    asymmetric unit (Da), mosaicity_deg the typical full width at half maximum of the blocks' turn, wilson_b_angstrom2
    the typical overall B.
    """

    title: str
    pdb_id: str
    cell: Cell
    space_group: str
    mass_da: float
    mosaicity_deg: float = 0.05
    wilson_b_angstrom2: float = 20.0

    @property
    def residues_per_cell(self) -> float:
        """Average residues in the whole unit cell."""
        return protein_residues(self.mass_da) * len(gemmi.SpaceGroup(self.space_group).operations())

    @property
    def d_min_angstrom(self) -> float:
        """Smallest spacing of the ready crystal: 1.8 angstrom, or what keeps it below READY_REFLECTIONS."""
        centring = len(gemmi.SpaceGroup(self.space_group).operations().cen_ops)
        at_one = expected_reflections(self.cell, 1.0, centring)
        return max(_FINEST_D_MIN_ANGSTROM, math.ceil(10.0 * math.cbrt(at_one / READY_REFLECTIONS)) / 10.0)


def _cell(a: float, b: float, c: float, alpha: float = 90.0, beta: float = 90.0, gamma: float = 90.0) -> Cell:
    return (a, b, c, alpha, beta, gamma)


READY_CELLS: Mapping[str, CellEntry] = MappingProxyType(
    {
        "proteinase-k": CellEntry(
            "proteinase K", "1IC6", PROTEINASE_K_CELL, PROTEINASE_K_SPACE_GROUP, PROTEINASE_K_MASS_DA, 0.05, 10.6
        ),
        "lysozyme": CellEntry(
            "hen egg-white lysozyme, tetragonal", "1LYZ", _cell(79.1, 79.1, 37.9), "P 43 21 2", 14_300.0
        ),
        "lysozyme-1vds": CellEntry(
            "hen egg-white lysozyme grown in space, tetragonal", "1VDS", _cell(79.1, 79.1, 37.9), "P 43 21 2", 14_300.0
        ),
        "lysozyme-orthorhombic": CellEntry(
            "hen egg-white lysozyme, orthorhombic", "1AKI", _cell(59.062, 68.451, 30.517), "P 21 21 21", 14_300.0
        ),
        "lysozyme-monoclinic": CellEntry(
            "turkey egg-white lysozyme, monoclinic",
            "135L",
            _cell(38.07, 33.20, 46.12, 90.0, 110.1),
            "P 1 21 1",
            14_200.0,
        ),
        "lysozyme-triclinic": CellEntry(
            "hen egg-white lysozyme, triclinic",
            "2LZT",
            _cell(27.24, 31.87, 34.23, 88.52, 108.53, 111.89),
            "P 1",
            14_300.0,
        ),
        "t4-lysozyme": CellEntry(
            "phage T4 lysozyme", "2LZM", _cell(61.2, 61.2, 96.8, gamma=120.0), "P 32 2 1", 18_700.0
        ),
        "photoactive-yellow-protein": CellEntry(
            "photoactive yellow protein", "5HDD", _cell(66.9, 66.9, 40.8, gamma=120.0), "P 63", 14_000.0
        ),
        "crambin": CellEntry(
            "crambin", "1CRN", _cell(40.96, 18.65, 22.52, 90.0, 90.77), "P 1 21 1", 4_700.0, 0.03, 8.0
        ),
        "amyloid-peptide": CellEntry(
            "GNNQQNY, a prion's amyloid peptide",
            "1YJP",
            _cell(21.937, 4.866, 23.477, 90.0, 107.08),
            "P 1 21 1",
            840.0,
            0.3,
        ),
        "bpti": CellEntry(
            "bovine pancreatic trypsin inhibitor", "5PTI", _cell(74.1, 23.4, 28.9), "P 21 21 21", 6_500.0, 0.05, 12.0
        ),
        "ubiquitin": CellEntry("ubiquitin", "1UBQ", _cell(50.84, 42.77, 28.95), "P 21 21 21", 8_600.0),
        "ribonuclease-a": CellEntry(
            "bovine ribonuclease A", "7RSA", _cell(30.18, 38.40, 53.32, 90.0, 105.85), "P 1 21 1", 13_700.0
        ),
        "myoglobin": CellEntry(
            "sperm-whale myoglobin", "1MBN", _cell(64.5, 30.9, 34.7, 90.0, 106.0), "P 1 21 1", 17_800.0
        ),
        "hemoglobin": CellEntry(
            "human deoxyhaemoglobin", "2HHB", _cell(63.15, 83.59, 53.80, 90.0, 99.34), "P 1 21 1", 64_500.0
        ),
        "thaumatin": CellEntry("thaumatin I", "1THW", _cell(58.6, 58.6, 151.8), "P 41 21 2", 22_200.0, 0.03),
        "insulin": CellEntry("insulin, cubic", "9INS", _cell(78.9, 78.9, 78.9), "I 21 3", 5_800.0, 0.03),
        "insulin-rhombohedral": CellEntry(
            "insulin with two zinc ions", "4INS", _cell(82.5, 82.5, 34.0, gamma=120.0), "R 3:H", 11_600.0
        ),
        "thermolysin": CellEntry("thermolysin", "8TLN", _cell(94.1, 94.1, 131.4, gamma=120.0), "P 61 2 2", 34_600.0),
        "trypsin": CellEntry("bovine trypsin", "1TPO", _cell(54.9, 58.5, 67.6), "P 21 21 21", 23_300.0),
        "chymotrypsin": CellEntry(
            "bovine alpha-chymotrypsin", "4CHA", _cell(49.2, 67.2, 65.9, 90.0, 101.8), "P 1 21 1", 50_400.0
        ),
        "glucose-isomerase": CellEntry(
            "glucose isomerase", "1XIB", _cell(93.9, 99.6, 102.9), "I 2 2 2", 43_200.0, 0.03
        ),
        "concanavalin-a": CellEntry("concanavalin A", "3CNA", _cell(89.9, 87.2, 63.1), "I 2 2 2", 25_600.0),
        "carbonic-anhydrase": CellEntry(
            "human carbonic anhydrase II", "2CBA", _cell(42.7, 41.7, 73.0, 90.0, 104.6), "P 1 21 1", 29_200.0
        ),
        "nuclease": CellEntry("staphylococcal nuclease", "1STN", _cell(48.5, 48.5, 63.4), "P 41", 16_800.0),
        "green-fluorescent-protein": CellEntry(
            "green fluorescent protein", "1EMA", _cell(51.8, 62.8, 70.7), "P 21 21 21", 26_900.0
        ),
        "cathepsin-b": CellEntry(
            "procathepsin B of Trypanosoma brucei, grown in cells",
            "4HWY",
            _cell(125.4, 125.4, 54.3),
            "P 42 21 2",
            36_000.0,
        ),
        "ferritin": CellEntry(
            "horse-spleen apoferritin", "1IER", _cell(184.0, 184.0, 184.0), "F 4 3 2", 20_000.0, 0.05, 25.0
        ),
        "serotonin-receptor": CellEntry(
            "serotonin receptor 5-HT2B in lipid", "4NC3", _cell(61.5, 122.2, 168.5), "C 2 2 21", 47_000.0, 0.2, 60.0
        ),
        "photosystem-i": CellEntry(
            "photosystem I", "1JB0", _cell(281.0, 281.0, 165.2, gamma=120.0), "P 63", 356_000.0, 0.1, 45.0
        ),
        "photosystem-ii": CellEntry(
            "photosystem II", "3WU2", _cell(122.2, 228.5, 286.4), "P 21 21 21", 700_000.0, 0.2, 35.0
        ),
    }
)
"""The ready crystals by kebab-case name."""


def ready_cell(name: str) -> CellEntry:
    """The entry of that name. Raises ValueError for a name that is not there, naming those that are."""
    if name not in READY_CELLS:
        raise ValueError(f"crystal {name!r} is not known; known are {', '.join(sorted(READY_CELLS))}")
    return READY_CELLS[name]


def wilson_crystal(
    entry_or_name: CellEntry | str,
    seed: int = 1,
    d_min_angstrom: float | None = None,
    wilson_b: float | None = None,
) -> Crystal:
    """A crystal form with random intensities of its symmetry, on the absolute scale of its atoms.

    d_min_angstrom and wilson_b (angstrom^2) are the entry's own when None; the same seed gives the same crystal. See
    `sim_replay.wilson` for the statistics. To 1.8 angstrom proteinase K's mean |F|^2 comes out at 0.79 of that of the
    real structure (1IC6 with B 10.6 angstrom^2), whose 493 ordered waters a molecule are not counted here.
    Raises ValueError for an unknown name and when d_min or B make no sense.
    """
    entry = ready_cell(entry_or_name) if isinstance(entry_or_name, str) else entry_or_name
    space_group = gemmi.SpaceGroup(entry.space_group)
    unique, intensity = wilson_reflections(
        entry.cell,
        space_group,
        entry.residues_per_cell,
        entry.wilson_b_angstrom2 if wilson_b is None else wilson_b,
        entry.d_min_angstrom if d_min_angstrom is None else d_min_angstrom,
        np.random.default_rng(seed),
    )
    hkl, mate_intensity = expand_mates(unique, intensity, space_group_operations(space_group))
    return Crystal(
        f"{entry.title} (random intensities, seed {seed})", entry.cell, hkl, mate_intensity, entry.space_group
    )


def ready_crystal(name: str, seed: int = 1, d_min_angstrom: float | None = None) -> Crystal:
    """The ready crystal of that name (see READY_CELLS), to its own d_min unless another is given.

    Raises ValueError for a name that is not there, naming those that are, and when d_min makes no sense.
    """
    return wilson_crystal(name, seed, d_min_angstrom)
