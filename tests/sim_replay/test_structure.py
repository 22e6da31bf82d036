import gzip
import math
import time
from pathlib import Path

import gemmi
import numpy as np
import pytest

from sim_replay import structure as structure_module
from sim_replay.crystal import Crystal, read_hkl, reciprocal_basis
from sim_replay.structure import read_structure
from tests.support import shared_data

CELL = (18.0, 21.0, 25.0, 90.0, 104.0, 90.0)


def atom(
    serial: int,
    name: str,
    xyz: tuple[float, float, float],
    element: str,
    b: float = 12.0,
    occ: float = 1.0,
    alt: str = " ",
) -> str:
    x, y, z = xyz
    place = f"{x:8.3f}{y:8.3f}{z:8.3f}{occ:6.2f}{b:6.2f}"
    return f"ATOM  {serial:5d} {name:<4s}{alt}GLY A   1    {place}          {element:>2s}\n"


def cryst1(cell: tuple[float, ...] = CELL, space_group: str = "P 1 21 1") -> str:
    a, b, c, alpha, beta, gamma = cell
    return f"CRYST1{a:9.3f}{b:9.3f}{c:9.3f}{alpha:7.2f}{beta:7.2f}{gamma:7.2f} {space_group:<11s}   2\n"


ATOMS = (
    atom(1, " N", (3.1, 4.2, 5.3), "N", 9.0)
    + atom(2, " CA", (4.2, 5.1, 5.9), "C", 2.0)
    + atom(3, " C", (5.5, 4.4, 6.3), "C", 30.0)
    + atom(4, " O", (6.0, 3.6, 5.5), "O", 60.0, 0.5, "A")
    + atom(5, " O", (6.3, 5.2, 5.1), "O", 20.0, 0.5, "B")
    + atom(6, " SG", (9.0, 12.0, 15.0), "S", 0.0)
    + atom(7, " D", (3.0, 3.5, 4.8), "D", 10.0)
)
ANISOTROPIC = "ANISOU    3  C   GLY A   1     2000   4000   3000    500   -200    100       C\n"
GOOD = cryst1() + ATOMS + "END\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("ascii") if isinstance(content, str) else content)
    return path


def intensity_of(crystal: Crystal) -> dict[tuple[int, ...], float]:
    return {tuple(int(i) for i in row): float(v) for row, v in zip(crystal.hkl, crystal.intensity, strict=True)}


def refused(path: Path, what: str, **settings: float) -> None:
    with pytest.raises(ValueError, match=what) as caught:
        read_structure(path, **settings)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("space_group", ["P 1 21 1", "P 1", "P 1 2 1"])
def test_the_transform_agrees_with_summing_over_the_atoms(tmp_path: Path, space_group: str) -> None:
    text = (cryst1(space_group=space_group) + ATOMS).replace("ATOM      4", ANISOTROPIC + "ATOM      4")
    crystal = read_structure(write(tmp_path / "a.pdb", text), d_min_angstrom=1.5, bulk_solvent=False)
    model = gemmi.read_pdb_string(text)
    calculator = gemmi.StructureFactorCalculatorX(model.cell)
    table = intensity_of(crystal)
    rng = np.random.default_rng(1)
    for row in crystal.hkl[rng.choice(len(crystal.hkl), 60, replace=False)].tolist():
        direct = abs(calculator.calculate_sf_from_model(model[0], row)) ** 2
        assert table[tuple(row)] == pytest.approx(direct, rel=3e-3, abs=0.05)
    assert table[(1, 2, 3)] == pytest.approx(table[(-1, -2, -3)])


def test_mates_and_extinctions_are_those_of_the_space_group(tmp_path: Path) -> None:
    crystal = read_structure(write(tmp_path / "a.pdb", GOOD), d_min_angstrom=2.0)
    table = intensity_of(crystal)
    assert crystal.space_group == "P 1 21 1"
    assert crystal.cell == CELL
    assert crystal.name == "a.pdb"
    assert len(table) == len(crystal.hkl)
    assert table[(1, 2, 3)] == table[(-1, 2, -3)] == table[(1, -2, 3)] == table[(-1, -2, -3)]
    assert table[(1, 2, 3)] != table[(1, 2, -3)]
    assert (0, 1, 0) not in table
    assert (0, 2, 0) in table
    assert (0, 0, 0) not in table
    d = 1.0 / np.linalg.norm(crystal.hkl @ reciprocal_basis(crystal.cell).T, axis=1)
    assert d.min() >= 2.0
    # every lattice point in the sphere but the extinct 0k0 of odd k and the origin
    assert len(table) == pytest.approx(4.0 / 3.0 * math.pi * crystal.volume_angstrom3 / 8.0, rel=0.02)


def test_a_higher_resolution_adds_reflections_and_leaves_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdb", GOOD)
    coarse, fine = (intensity_of(read_structure(path, d_min_angstrom=d)) for d in (3.0, 1.6))
    assert coarse.keys() < fine.keys()
    common = np.array([(coarse[key], fine[key]) for key in coarse])
    assert np.abs(common[:, 0] - common[:, 1]).sum() < 0.01 * common[:, 1].sum()


def test_bulk_solvent_changes_low_orders_and_not_high_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdb", GOOD)
    dry, wet, none = (
        read_structure(path, d_min_angstrom=1.6, **settings)
        for settings in ({"bulk_solvent": False}, {"bulk_solvent": True}, {"k_sol": 0.0})
    )
    np.testing.assert_allclose(none.intensity, dry.intensity)
    d = 1.0 / np.linalg.norm(dry.hkl @ reciprocal_basis(dry.cell).T, axis=1)
    low, high = d > 8.0, d < 2.0
    assert np.abs(wet.intensity - dry.intensity)[low].mean() > 0.3 * dry.intensity[low].mean()
    assert np.abs(wet.intensity - dry.intensity)[high].mean() < 0.02 * dry.intensity[high].mean()


def test_a_peptide_wrapped_round_a_thin_cell_is_summed_right(tmp_path: Path) -> None:
    text = cryst1((21.937, 4.866, 23.477, 90.0, 107.08, 90.0)) + ATOMS
    table = intensity_of(read_structure(write(tmp_path / "thin.pdb", text), 1.5, bulk_solvent=False))
    model = gemmi.read_pdb_string(text)
    calculator = gemmi.StructureFactorCalculatorX(model.cell)
    for row in ((3, 1, 4), (5, 2, -3), (0, 2, 1), (8, 0, 2)):
        assert table[row] == pytest.approx(abs(calculator.calculate_sf_from_model(model[0], row)) ** 2, rel=3e-3)


def test_half_occupied_atoms_scatter_half(tmp_path: Path) -> None:
    whole = cryst1() + atom(1, " O", (3.0, 4.0, 5.0), "O")
    half = cryst1() + atom(1, " O", (3.0, 4.0, 5.0), "O", occ=0.5)
    a, b = (read_structure(write(tmp_path / "a.pdb", t), 2.0, bulk_solvent=False).intensity for t in (whole, half))
    np.testing.assert_allclose(b, a / 4.0, rtol=1e-3, atol=1e-3)


def test_mmcif_gzip_and_pdb_give_the_same_crystal(tmp_path: Path) -> None:
    pdb = read_structure(write(tmp_path / "a.pdb", GOOD), 2.0)
    cif_text = gemmi.read_pdb_string(GOOD).make_mmcif_document().as_string()
    for name, content in (
        ("a.cif", cif_text.encode()),
        ("a.cif.gz", gzip.compress(cif_text.encode())),
        ("a.pdb.gz", gzip.compress(GOOD.encode())),
        ("a.ent", GOOD.encode()),
    ):
        other = read_structure(write(tmp_path / name, content), 2.0, name="mine")
        np.testing.assert_array_equal(other.hkl, pdb.hkl)
        np.testing.assert_allclose(other.intensity, pdb.intensity, rtol=1e-4, atol=1e-2)
        assert other.name == "mine"


def test_only_the_first_model_counts(tmp_path: Path) -> None:
    second = "MODEL        2\n" + atom(1, " FE", (1.0, 1.0, 1.0), "FE") + "ENDMDL\n"
    one = read_structure(write(tmp_path / "one.pdb", GOOD), 2.0)
    two = read_structure(write(tmp_path / "two.pdb", cryst1() + "MODEL        1\n" + ATOMS + "ENDMDL\n" + second), 2.0)
    np.testing.assert_allclose(two.intensity, one.intensity)


def test_copies_by_noncrystallographic_symmetry_are_made(tmp_path: Path) -> None:
    matrix = "".join(
        f"MTRIX{row}   2{m[0]:10.6f}{m[1]:10.6f}{m[2]:10.6f}     {t:10.5f}\n"
        for row, m, t in ((1, (1, 0, 0), 4.0), (2, (0, 1, 0), 5.0), (3, (0, 0, 1), 6.0))
    )
    copied = cryst1() + matrix + atom(1, " O", (3.0, 4.0, 5.0), "O")
    listed = cryst1() + atom(1, " O", (3.0, 4.0, 5.0), "O") + atom(2, " O", (7.0, 9.0, 11.0), "O")
    a, b = (read_structure(write(tmp_path / "a.pdb", text), 2.0, bulk_solvent=False) for text in (copied, listed))
    np.testing.assert_allclose(a.intensity, b.intensity, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (gzip.compress(b""), "the file is empty"),
        (bytes(range(256)) * 20, "not a text file"),
        (b"\x80\xff\xfe garbage \x81\n" * 50, "holds no atoms"),
        (gzip.compress(GOOD.encode())[:-12], "not a readable gzip file"),
        (b"\x1f\x8b\x08\x00 not really", "not a readable gzip file"),
        (cryst1() + "END\n", "holds no atoms"),
        ("data_x\n_cell.length_a 10\n", "holds no atoms"),
        ("data_x\nloop_\n_atom_site.id\n_atom_site.type_symbol\n1\n", "not a readable PDB or mmCIF file"),
        ("CrystFEL reflection list version 2.0\n", "holds no atoms"),
        (ATOMS, "has no unit cell"),
        (cryst1((1.0, 1.0, 1.0, 90.0, 90.0, 90.0), "P 1") + ATOMS, "has no unit cell"),
        (cryst1((0.0, 0.0, 0.0, 0.0, 0.0, 0.0), "P 1") + ATOMS, "no unit cell"),
        (cryst1((20.0, 20.0, 20.0, 10.0, 10.0, 150.0), "P 1") + ATOMS, "no unit cell"),
        (cryst1((20.0, -20.0, 20.0, 90.0, 90.0, 90.0), "P 1") + ATOMS, "is no unit cell: edges must be positive"),
        (cryst1((21.0, 1.0, 23.0, 90.0, 90.0, 90.0), "P 1") + ATOMS, "cannot hold its atoms"),
        (cryst1(space_group="P 5 3 2") + ATOMS, "space group 'P 5 3 2' is not known"),
        (cryst1(space_group="") + ATOMS, "space group '' is not known"),
        (cryst1(space_group="P 43 21 2") + ATOMS, "does not fit the space group P 43 21 2"),
        (cryst1() + ATOMS[:110], "not a readable PDB or mmCIF file"),
        (cryst1() + ATOMS.replace("  4.200  ", "    nan  ", 1), "(not a readable PDB|coordinates are not numbers)"),
        (cryst1() + atom(1, " CA", (1.0, 2.0, 3.0), "C", b=-50.0), "B=-50 is not between 0 and 1000"),
        (cryst1() + atom(1, " CA", (1.0, 2.0, 3.0), "C", occ=7.0), "occupancy 7 is not between 0 and 1"),
        (cryst1() + atom(1, " OG", (1.0, 2.0, 3.0), "OG"), "element 'Og' has no X-ray form factor"),
    ],
)
def test_what_is_no_crystal_structure_is_refused_in_one_line(tmp_path: Path, content: str | bytes, what: str) -> None:
    refused(write(tmp_path / "bad.pdb", content), what)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("3.1 4.2 5.3", "3e30 4.2 5.3", "its coordinates are not numbers below 100000"),
        ("3.1 4.2 5.3", "nan 4.2 5.3", "its coordinates are not numbers below 100000"),
        ("3.1 4.2 5.3", "? 4.2 5.3", "its coordinates are not numbers below 100000"),
        ("1 9 ", "1 9e9 ", "B=9e.09 is not between 0 and 1000"),
        ("1 9 ", "nan 9 ", "occupancy nan is not between 0 and 1"),
    ],
)
def test_an_atom_that_makes_no_sense_in_mmcif_is_named(tmp_path: Path, old: str, new: str, what: str) -> None:
    text = gemmi.read_pdb_string(GOOD).make_mmcif_document().as_string()
    assert old in text
    refused(write(tmp_path / "bad.cif", text.replace(old, new, 1)), what)


def test_a_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_structure(tmp_path / "none.pdb")


@pytest.mark.parametrize("d_min", [0.0, -1.0, 0.49, math.nan, math.inf])
def test_a_resolution_out_of_range_is_refused(tmp_path: Path, d_min: float) -> None:
    with pytest.raises(ValueError, match=r"d_min_angstrom must be 0\.5 or more"):
        read_structure(write(tmp_path / "a.pdb", GOOD), d_min_angstrom=d_min)


def test_a_resolution_longer_than_the_cell_is_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "a.pdb", GOOD), "is longer than the cell's edges", d_min_angstrom=26.0)
    refused(write(tmp_path / "a.pdb", GOOD), "no reflection has a spacing above", d_min_angstrom=24.9)


@pytest.mark.parametrize("setting", ["k_sol", "b_sol_angstrom2"])
def test_solvent_settings_that_make_no_sense_are_refused(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be 0 or more"):
        read_structure(write(tmp_path / "a.pdb", GOOD), **{setting: -1.0})


def test_a_cell_too_large_for_the_memory_is_refused_before_any_grid(tmp_path: Path) -> None:
    huge = write(tmp_path / "huge.pdb", cryst1((9000.0, 9000.0, 9000.0, 90.0, 90.0, 90.0), "P 1") + ATOMS)
    refused(huge, "reflections, more than 2e")
    refused(huge, "a grid of .* points, more than 1e", d_min_angstrom=300.0)


def test_the_grid_is_measured_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure_module, "MAX_GRID_POINTS", 1000)
    refused(write(tmp_path / "a.pdb", GOOD), "a grid of .* points, more than 1e")


def test_1ic6_has_the_intensities_of_the_published_reflection_list() -> None:
    folder = shared_data("1ic6")
    listed = read_hkl(folder / "1ic6_1.8A.hkl.gz", cell=folder / "1ic6.cell")
    computed = read_structure(folder / "1ic6.pdb.gz")
    np.testing.assert_array_equal(computed.hkl, listed.hkl)
    assert computed.cell == listed.cell
    assert np.corrcoef(computed.intensity, listed.intensity)[0, 1] > 0.99999
    scale = (computed.intensity @ listed.intensity) / (listed.intensity @ listed.intensity)
    assert scale == pytest.approx(1.0, abs=1e-3)


def crowd(atoms: int, b: float, edge: float) -> str:
    places = np.random.default_rng(2).uniform(0.0, edge, (atoms, 3))
    cell = cryst1((edge, edge, edge, 90.0, 90.0, 90.0), "P 1")
    return cell + "".join(atom(1 + n % 99999, " CA", (x, y, z), "C", b) for n, (x, y, z) in enumerate(places.tolist()))


def test_atoms_too_wide_to_be_summed_in_time_are_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "wide.pdb", crowd(20_000, 999.0, 40.0))
    began = time.monotonic()
    refused(path, "its 20000 atoms are so wide .* raise d_min_angstrom, or lower B")
    assert time.monotonic() - began < 5.0
    assert len(read_structure(path, d_min_angstrom=10.0).hkl) > 100


def test_wide_ellipsoids_count_as_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace("ATOM      4", ANISOTROPIC.replace("  4000", "990000") + "ATOM      4")
    monkeypatch.setattr(structure_module, "MAX_ATOM_POINTS", 100_000)
    assert len(read_structure(write(tmp_path / "a.pdb", GOOD)).hkl) > 0
    refused(write(tmp_path / "b.pdb", text), "its 7 atoms are so wide")


def test_a_large_protein_of_b_200_is_not_too_wide(tmp_path: Path) -> None:
    model = gemmi.read_pdb_string(crowd(1_000, 200.0, 150.0))[0]
    structure_module._check_extent(model, 1.8 / 50 ** (1 / 3))  # the points of 50,000 atoms to 1.8 angstrom


def test_copies_count_before_they_are_made(tmp_path: Path) -> None:
    copy = "".join(
        f"MTRIX{row} {n:3d}{m[0]:10.6f}{m[1]:10.6f}{m[2]:10.6f}     {n:10.5f}\n"
        for n in range(2, 999)
        for row, m in ((1, (1, 0, 0)), (2, (0, 1, 0)), (3, (0, 0, 1)))
    )
    text = crowd(2_000, 20.0, 60.0).replace("\n", "\n" + copy, 1)
    refused(write(tmp_path / "copies.pdb", text), "1996000 atoms, copies by MTRIX included, are more than 1000000")
