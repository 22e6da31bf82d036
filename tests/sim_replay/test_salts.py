import math

import gemmi
import numpy as np
import pytest

from sim_replay.crystal import reciprocal_basis
from sim_replay.salts import ICE_IH, SALTS, Salt, ice_lines, salt_crystal
from sim_replay.wilson import form_factor


def table(name: str, d_min: float = 0.8) -> dict[tuple[int, ...], float]:
    crystal = salt_crystal(name, d_min)
    return {tuple(int(i) for i in row): float(v) for row, v in zip(crystal.hkl, crystal.intensity, strict=True)}


def small_structure(salt: Salt) -> gemmi.SmallStructure:
    small = gemmi.SmallStructure()
    small.cell = gemmi.UnitCell(*salt.cell)
    small.spacegroup_hm = salt.space_group
    for atom in salt.atoms:
        site = gemmi.SmallStructure.Site()
        site.element = gemmi.Element(atom.element)
        site.type_symbol = site.label = atom.element
        site.fract = gemmi.Fractional(*atom.position)
        site.occ = 1.0
        site.u_iso = salt.b_angstrom2 / (8.0 * math.pi**2)
        small.add_site(site)
    small.determine_and_set_spacegroup("1")
    small.setup_cell_images()
    small.change_occupancies_to_crystallographic()
    return small


def nearest(salt: Salt, center: str, other: str) -> tuple[float, int]:
    """Shortest distance (angstrom) between two kinds of atoms, and how many neighbours a centre has there."""
    small = small_structure(salt)
    sites = [(s.element.name, np.array(s.fract.tolist())) for s in small.get_all_unit_cell_sites()]
    to_cartesian = np.linalg.inv(reciprocal_basis(salt.cell)).T
    origin = next(f for e, f in sites if e == center)
    shifts = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3), axis=-1).reshape(-1, 3)
    away = np.concatenate([f - origin + shifts for e, f in sites if e == other]) @ to_cartesian.T
    length = np.linalg.norm(away, axis=1)
    length = length[length > 0.1]
    return float(length.min()), int((length < length.min() + 0.02).sum())


def test_sodium_chloride_has_sums_and_differences_of_its_ions() -> None:
    found = table("sodium-chloride")
    assert (1, 0, 0) not in found
    assert (2, 1, 0) not in found
    assert {found[h] for h in ((2, 0, 0), (0, -2, 0), (0, 0, 2))} == {found[(2, 0, 0)]}
    s2 = 4.0 / (4.0 * 5.6402**2)
    neutral = 16.0 * (form_factor("Na", np.array([s2]))[0] + form_factor("Cl", np.array([s2]))[0]) ** 2
    assert found[(2, 0, 0)] == pytest.approx(neutral * math.exp(-2 * 1.5 * s2), rel=0.05)
    assert 0.03 < found[(1, 1, 1)] / found[(2, 0, 0)] < 0.15


def test_potassium_chloride_all_but_lacks_odd_reflections_because_its_ions_have_equally_many_electrons() -> None:
    found = table("potassium-chloride")
    assert found.get((1, 1, 1), 0.0) < 0.02 * found[(2, 0, 0)]


@pytest.mark.parametrize("name", SALTS)
def test_the_sums_agree_with_those_of_another_program_for_neutral_atoms(name: str) -> None:
    salt = SALTS[name]
    small = small_structure(salt)
    calculator = gemmi.StructureFactorCalculatorX(small.cell)
    found = table(name, 1.0)
    theirs = {hkl: abs(calculator.calculate_sf_from_small_structure(small, hkl)) ** 2 for hkl in found}
    mine, other = np.array(list(found.values())), np.array(list(theirs.values()))
    # Ions and neutral atoms differ at low orders only.
    assert np.corrcoef(mine, other)[0, 1] > 0.999
    assert mine.sum() == pytest.approx(other.sum(), rel=0.03)


@pytest.mark.parametrize("name", SALTS)
def test_the_forward_scattering_is_the_number_of_electrons(name: str) -> None:
    salt = SALTS[name]
    small = small_structure(salt)
    calculator = gemmi.StructureFactorCalculatorX(small.cell)
    formulas = {"NaCl": 28 * 4, "KCl": 36 * 4, "CsCl": 72, "CaF2": 38 * 4, "CaCO3 (calcite)": 50 * 6, "KH2PO4": 66 * 4}
    total = calculator.calculate_sf_from_small_structure(small, (0, 0, 0)).real
    assert total == pytest.approx(formulas[salt.title], rel=5e-3)


@pytest.mark.parametrize(
    ("salt", "center", "other", "distance", "neighbours"),
    [
        (SALTS["sodium-chloride"], "Na", "Cl", 2.820, 6),
        (SALTS["caesium-chloride"], "Cs", "Cl", 3.571, 8),
        (SALTS["calcium-fluoride"], "Ca", "F", 2.365, 8),
        (SALTS["calcium-carbonate"], "C", "O", 1.281, 3),
        (SALTS["calcium-carbonate"], "Ca", "O", 2.360, 6),
        (SALTS["potassium-phosphate"], "P", "O", 1.540, 4),
        (ICE_IH, "O", "O", 2.75, 4),
    ],
)
def test_the_atoms_have_the_neighbours_chemistry_gives_them(
    salt: Salt, center: str, other: str, distance: float, neighbours: int
) -> None:
    found, count = nearest(salt, center, other)
    assert found == pytest.approx(distance, abs=0.015)
    assert count == neighbours


def test_the_strongest_calcite_line_is_the_one_every_powder_pattern_shows() -> None:
    found = table("calcium-carbonate")
    assert max(found, key=lambda h: found[h]) in {h for h, v in found.items() if v == found[(1, 0, 4)]}
    assert (0, 0, 3) not in found
    assert (1, 0, 0) not in found


def test_ice_has_its_three_first_rings_and_all_others() -> None:
    d, weight = ice_lines(1.2)
    assert d[:7] == pytest.approx([3.895, 3.661, 3.438, 2.667, 2.249, 2.068, 1.947], abs=0.005)
    assert np.all(np.diff(d) < 0)
    assert d[-1] >= 1.2
    assert weight.max() == 1.0
    assert weight.min() > 0.0
    # As a powder pattern shows them (Lorentz factor 1 / (sin^2 theta cos theta) at long wavelengths, close to d^2).
    seen = weight[:3] * d[:3] ** 2
    assert seen / seen[0] == pytest.approx([1.0, 0.55, 0.6], abs=0.1)


def test_unknown_salts_and_senseless_resolutions_are_refused() -> None:
    with pytest.raises(ValueError, match="salt 'pepper' is not known; known are sodium-chloride"):
        salt_crystal("pepper")
    for d_min, what in (
        (math.nan, "must be above 0"),
        (-1.0, "must be above 0"),
        (0.001, "raise d_min"),
        (9.0, "spacing"),
    ):
        with pytest.raises(ValueError, match=what):
            salt_crystal("sodium-chloride", d_min)
    with pytest.raises(ValueError, match="must be above 0"):
        ice_lines(0.0)
