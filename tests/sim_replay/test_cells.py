import math
import time

import gemmi
import numpy as np
import pytest

from sim_replay.cells import READY_CELLS, READY_REFLECTIONS, CellEntry, ready_cell, ready_crystal, wilson_crystal
from sim_replay.crystal import (
    PROTEINASE_K_MEAN_INTENSITY,
    Crystal,
    proteinase_k,
    read_hkl,
    reciprocal_basis,
    symmetry_operations,
)
from sim_replay.wilson import AVERAGE_RESIDUE, AVERAGE_RESIDUE_MASS_DA, form_factor, mean_intensity_of_residues
from tests.support import shared_data

MASSES = {"C": 12.011, "H": 1.008, "N": 14.007, "O": 15.999, "S": 32.06}


def d_spacings(crystal: Crystal) -> np.ndarray:
    return 1.0 / np.linalg.norm(crystal.hkl @ reciprocal_basis(crystal.cell).T, axis=1)


def keys(hkl: np.ndarray) -> np.ndarray:
    return (hkl.astype(np.int64) + 5000) @ np.array([10_000**2, 10_000, 1])


def intensities_at(crystal: Crystal, hkl: np.ndarray) -> np.ndarray:
    mine, order = keys(crystal.hkl), np.argsort(keys(crystal.hkl))
    return crystal.intensity[order[np.searchsorted(mine[order], keys(hkl))]]


@pytest.mark.parametrize("name", READY_CELLS)
def test_a_ready_cell_is_a_protein_crystal_that_can_exist(name: str) -> None:
    entry = READY_CELLS[name]
    space_group = gemmi.SpaceGroup(entry.space_group)
    cell = gemmi.UnitCell(*entry.cell)
    assert name == name.lower()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert gemmi.is_pdb_code(entry.pdb_id)
    assert space_group.xhm() == entry.space_group
    assert space_group.is_sohncke()  # proteins have one hand
    assert cell.is_compatible_with_spacegroup(space_group)
    # Matthews' volume a dalton: 1.7 to 3.5 is usual, a dry peptide has less and photosystem I in detergent 5.3.
    assert 1.4 < cell.volume / (len(space_group.operations()) * entry.mass_da) < 5.5
    assert 0.0 < entry.mosaicity_deg < 1.0
    assert 1.8 <= entry.d_min_angstrom < 4.0


def test_the_table_spans_small_and_large_cells_and_all_systems() -> None:
    assert len(READY_CELLS) >= 20
    edges = {name: entry.cell[:3] for name, entry in READY_CELLS.items()}
    assert any(max(e) > 200.0 for e in edges.values())
    assert any(max(e) < 40.0 for e in edges.values())
    systems = {gemmi.SpaceGroup(entry.space_group).crystal_system_str() for entry in READY_CELLS.values()}
    assert systems == {"triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic"}
    centrings = {gemmi.SpaceGroup(entry.space_group).centring_type() for entry in READY_CELLS.values()}
    assert centrings == set("PCIFR")


def test_ready_crystals_stay_below_their_number_of_reflections() -> None:
    for name in ("ferritin", "photosystem-i", "photosystem-ii", "serotonin-receptor"):
        crystal = ready_crystal(name)
        assert len(crystal.hkl) <= 1.03 * READY_REFLECTIONS
        assert d_spacings(crystal).min() >= READY_CELLS[name].d_min_angstrom - 1e-9


@pytest.mark.parametrize("name", ["thermolysin", "insulin", "insulin-rhombohedral", "hemoglobin", "concanavalin-a"])
def test_intensities_have_the_symmetry_and_extinctions_of_the_space_group(name: str) -> None:
    crystal = ready_crystal(name, seed=5, d_min_angstrom=4.0)
    space_group = gemmi.SpaceGroup(crystal.space_group)
    operations = space_group.operations()
    assert len(np.unique(keys(crystal.hkl))) == len(crystal.hkl)
    assert not np.asarray(operations.systematic_absences(crystal.hkl)).any()
    for operation in operations.sym_ops:
        mates = crystal.hkl @ (np.array(operation.rot) // gemmi.Op.DEN)
        np.testing.assert_array_equal(intensities_at(crystal, mates), crystal.intensity)
    np.testing.assert_array_equal(intensities_at(crystal, -crystal.hkl), crystal.intensity)
    everything = gemmi.make_miller_array(gemmi.UnitCell(*crystal.cell), space_group, 4.0, unique=False)
    present = ~np.asarray(operations.systematic_absences(everything))
    listed = np.concatenate([everything[present], -everything[present]])
    assert set(keys(crystal.hkl)) == set(keys(listed))


@pytest.mark.parametrize("name", ["hemoglobin", "thermolysin", "insulin"])
def test_intensities_follow_wilson_around_the_sum_over_atoms(name: str) -> None:
    entry = READY_CELLS[name]
    space_group = gemmi.SpaceGroup(entry.space_group)
    operations = space_group.operations()
    crystal = ready_crystal(name, seed=2, d_min_angstrom=2.2)
    unique = gemmi.make_miller_array(gemmi.UnitCell(*entry.cell), space_group, 2.2)
    s2 = np.asarray(gemmi.UnitCell(*entry.cell).calculate_1_d2_array(unique)) / 4.0
    atoms = sum(entry.residues_per_cell * n * form_factor(e, s2) ** 2 for e, n in AVERAGE_RESIDUE.items())
    expected = atoms * np.exp(-2.0 * entry.wilson_b_angstrom2 * s2) * operations.epsilon_factor_array(unique)
    normalised = intensities_at(crystal, unique) / expected
    centric = np.asarray(operations.centric_flag_array(unique), dtype=bool)
    for flags, second_moment in ((~centric, 2.0), (centric, 3.0)):
        assert normalised[flags].mean() == pytest.approx(1.0, abs=5.0 / math.sqrt(flags.sum()))
        assert np.mean(normalised[flags] ** 2) == pytest.approx(second_moment, abs=30.0 / math.sqrt(flags.sum()))


def test_the_average_residue_weighs_what_it_should_and_scatters_all_its_electrons_forward() -> None:
    assert sum(MASSES[e] * n for e, n in AVERAGE_RESIDUE.items()) == pytest.approx(AVERAGE_RESIDUE_MASS_DA, rel=1e-3)
    forward = mean_intensity_of_residues(1.0, np.zeros(1), 20.0)[0]
    electrons = {"C": 6, "H": 1, "N": 7, "O": 8, "S": 16}
    assert forward == pytest.approx(sum(n * electrons[e] ** 2 for e, n in AVERAGE_RESIDUE.items()), rel=2e-3)


def test_the_absolute_scale_is_that_of_the_real_proteinase_k_without_its_waters() -> None:
    entry = READY_CELLS["proteinase-k"]
    crystal = wilson_crystal(entry, seed=1, d_min_angstrom=1.8, wilson_b=10.6)
    unique = gemmi.make_miller_array(gemmi.UnitCell(*entry.cell), gemmi.SpaceGroup(entry.space_group), 1.8)
    ratio = intensities_at(crystal, unique).mean() / PROTEINASE_K_MEAN_INTENSITY
    assert ratio == pytest.approx(0.79, abs=0.03)


def test_the_falloff_is_that_of_the_real_proteinase_k() -> None:
    real = read_hkl(shared_data("1ic6") / "1ic6_1.8A.hkl.gz")
    model = proteinase_k()
    np.testing.assert_array_equal(np.sort(keys(real.hkl)), np.sort(keys(model.hkl)))
    d = d_spacings(real)
    for low, high in ((4.0, 20.0), (2.9, 4.0), (2.2, 2.9), (1.8, 2.2)):
        shell = (d >= low) & (d < high)
        ratio = intensities_at(model, real.hkl[shell]).mean() / real.intensity[shell].mean()
        assert 0.6 < ratio < 1.7


def test_a_larger_b_weakens_high_orders_only() -> None:
    sharp, soft = (wilson_crystal("lysozyme", seed=3, d_min_angstrom=2.0, wilson_b=b) for b in (10.0, 40.0))
    d = d_spacings(sharp)
    np.testing.assert_allclose(soft.intensity / sharp.intensity, np.exp(-2.0 * 30.0 / (4.0 * d**2)), rtol=1e-4)


def test_the_same_seed_gives_the_same_crystal_and_another_seed_another() -> None:
    first, again, other = (ready_crystal("bpti", seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.intensity, again.intensity)
    np.testing.assert_array_equal(first.hkl, other.hkl)
    assert not np.array_equal(first.intensity, other.intensity)
    assert first.space_group == "P 21 21 21"


def test_proteinase_k_keeps_its_mean_and_is_quick() -> None:
    proteinase_k()
    start = time.perf_counter()
    crystal = proteinase_k()
    assert time.perf_counter() - start < 0.5
    entry = READY_CELLS["proteinase-k"]
    unique = gemmi.make_miller_array(gemmi.UnitCell(*entry.cell), gemmi.SpaceGroup(entry.space_group), 1.8)
    assert intensities_at(crystal, unique).mean() == pytest.approx(PROTEINASE_K_MEAN_INTENSITY, rel=1e-9)
    assert len(symmetry_operations("4/mmm")) * len(unique) >= len(crystal.hkl)


@pytest.mark.parametrize("name", ["", "Lysozyme", "unobtainium", "1LYZ\n"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    for make in (ready_crystal, wilson_crystal, ready_cell):
        with pytest.raises(ValueError, match=r"is not known; known are amyloid-peptide, .*ubiquitin") as caught:
            make(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"d_min_angstrom": 0.0}, "d_min_angstrom must be above 0"),
        ({"d_min_angstrom": math.nan}, "d_min_angstrom must be above 0"),
        ({"d_min_angstrom": 0.3}, "raise d_min_angstrom"),
        ({"d_min_angstrom": 1e6}, "no reflection has a spacing above"),
        ({"wilson_b": -1.0}, "wilson_b_angstrom2 must be 0 or more"),
        ({"wilson_b": math.nan}, "wilson_b_angstrom2 must be 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        wilson_crystal("thermolysin", **settings)


def test_an_entry_of_ones_own_works_like_a_ready_one() -> None:
    entry = CellEntry("mine", "1ABC", (30.0, 40.0, 50.0, 90.0, 90.0, 90.0), "P 2 2 21", 7_000.0)
    crystal = wilson_crystal(entry, d_min_angstrom=3.0)
    assert crystal.name == "mine (random intensities, seed 1)"
    assert crystal.space_group == "P 2 2 21"
    assert not ((crystal.hkl[:, :2] == 0).all(axis=1) & (crystal.hkl[:, 2] % 2 == 1)).any()
