import math

import gemmi
import numpy as np
import pytest
from numpy.typing import NDArray

from sim_replay.scatter import (
    CLASSICAL_ELECTRON_RADIUS_M,
    Q_INV_ANGSTROM,
    WATER_MOLECULES_PER_M3,
    air_per_sr,
    glass_per_sr,
    helium_per_sr,
    polyimide_per_sr,
    water_per_sr,
)

BOLTZMANN = 1.380649e-23
CELSIUS = 273.15
# Isothermal compressibility (1/Pa) and density (kg/m^3) of water: Kell 1975, as tabled by the CRC handbook.
COMPRESSIBILITY = {10: 4.781e-10, 25: 4.525e-10, 50: 4.417e-10, 70: 4.516e-10}
DENSITY = {1: 999.90, 10: 999.70, 25: 997.05, 50: 988.03, 70: 977.76, 77: 973.68}
# Hura et al. 2003, F^2 of water at q: 1, 25 and 77 C.
HURA = {1.2: (9.50, 10.85, 12.26), 1.8: (53.4, 47.1, 42.3), 2.4: (43.1, 45.4, 48.5), 3.1: (34.3, 31.3, 28.0)}


def f2(table: NDArray[np.float64], per_m3: float, length_m: float) -> NDArray[np.float64]:
    return table / (CLASSICAL_ELECTRON_RADIUS_M**2 * per_m3 * length_m)


def at(table: NDArray[np.float64], q: float) -> float:
    return float(np.interp(q, Q_INV_ANGSTROM, table))


def water_f2(celsius: float) -> NDArray[np.float64]:
    table = water_per_sr(1e-4, celsius + CELSIUS)
    ratio = DENSITY[int(celsius)] / DENSITY[25]
    return f2(table, WATER_MOLECULES_PER_M3 * ratio, 1e-4)


def test_water_at_room_temperature_is_the_measured_table() -> None:
    water = water_f2(25)
    for q, expected in ((0.0, 6.50), (0.6, 6.31), (1.6, 30.4), (2.05, 56.2), (3.0, 34.3), (5.0, 10.1), (10.0, 2.50)):
        assert at(water, q) == pytest.approx(expected, rel=1e-9)
    assert Q_INV_ANGSTROM[np.argmax(water)] == pytest.approx(2.05, abs=0.03)
    assert water_per_sr(0.0).max() == 0.0
    np.testing.assert_allclose(water_per_sr(3e-3), 30.0 * water_per_sr(1e-4), rtol=1e-12)


@pytest.mark.parametrize("celsius", [10, 50, 70])
def test_water_at_small_angles_follows_its_compressibility(celsius: int) -> None:
    def limit(t: int) -> float:
        per_m3 = DENSITY[t] / 18.01528e-3 * 6.02214076e23
        return 100.0 * per_m3 * BOLTZMANN * (t + CELSIUS) * COMPRESSIBILITY[t]

    assert water_f2(celsius)[0] / water_f2(25)[0] == pytest.approx(limit(celsius) / limit(25), rel=0.01)
    # Absolutely, the measured table lies 5 % above the limit.
    assert water_f2(celsius)[0] == pytest.approx(limit(celsius), rel=0.06)


@pytest.mark.parametrize("q", HURA)
def test_water_changes_with_temperature_as_measured(q: float) -> None:
    cold, room, warm = HURA[q]
    assert at(water_f2(1), q) / at(water_f2(25), q) == pytest.approx(cold / room, rel=0.03)
    assert at(water_f2(77), q) / at(water_f2(25), q) == pytest.approx(warm / room, rel=0.03)


def test_the_ring_moves_outwards_and_falls_as_water_warms_without_a_jump() -> None:
    peaks = []
    before = water_per_sr(1e-4, 274.15)
    for kelvin in np.arange(274.65, 350.2, 0.5):
        table = water_per_sr(1e-4, float(kelvin))
        assert table.min() > 0.0
        assert np.abs(table / before - 1.0).max() < 0.01
        before = table
        peaks.append((Q_INV_ANGSTROM[np.argmax(table)], table.max()))
    q, height = np.array(peaks).T
    assert np.all(np.diff(q) >= 0.0)
    assert np.all(np.diff(height) < 0.0)
    assert (q[0], q[-1]) == (pytest.approx(1.97, abs=0.03), pytest.approx(2.14, abs=0.05))


def test_air_scatters_as_its_electrons_at_small_angles_and_as_free_electrons_at_large() -> None:
    per_m3 = 101325.0 / (BOLTZMANN * 298.15)
    air = f2(air_per_sr(0.5), per_m3, 0.5)
    assert air[0] == pytest.approx(0.7812 * 14**2 + 0.2095 * 16**2 + 0.0093 * 18**2, rel=2e-3)
    assert np.all(np.diff(air[:600]) < 0.0)
    # At 10 per angstrom nearly all electrons scatter on their own: above the molecules' Compton part, below Z + f^2.
    assert 10.0 < air[-1] < 25.0
    doubled = air_per_sr(0.5, pressure_Pa=202650.0, temperature_K=298.15 * 2.0)
    np.testing.assert_allclose(doubled, air_per_sr(0.5), rtol=1e-12)


@pytest.mark.parametrize(("s", "nitrogen", "oxygen"), [(0.05, 0.310, 0.271), (0.2, 2.858, 2.799), (0.5, 5.182, 5.828)])
def test_air_is_two_debye_molecules_with_their_compton_part(s: float, nitrogen: float, oxygen: float) -> None:
    """Compton parts at s = sin(theta)/lambda from another source: Hubbell et al. 1975."""
    air = f2(air_per_sr(1.0), 101325.0 / (BOLTZMANN * 298.15), 1.0)
    q = 4.0 * math.pi * s
    form = {name: gemmi.Element(name).it92.calculate_sf(s * s) for name in ("N", "O", "Ar")}
    molecules = {
        name: 2.0 * form[name] ** 2 * (1.0 + math.sin(q * bond) / (q * bond)) + 2.0 * compton
        for name, bond, compton in (("N", 1.0977, nitrogen), ("O", 1.2075, oxygen))
    }
    due = 0.7812 * molecules["N"] + 0.2095 * molecules["O"] + 0.0093 * form["Ar"] ** 2
    assert at(air, q) == pytest.approx(due, rel=2e-3)


def test_helium_goes_from_four_electrons_squared_to_two_electrons() -> None:
    per_m3 = 101325.0 / (BOLTZMANN * 298.15)
    helium = f2(helium_per_sr(0.1), per_m3, 0.1)
    assert helium[0] == pytest.approx(4.0, rel=1e-3)
    assert helium[-1] == pytest.approx(2.0, abs=0.1)
    # At s = 0.2 the Compton part is 0.881 (Hubbell et al. 1975).
    assert at(helium, 0.8 * math.pi) == pytest.approx(
        gemmi.Element("He").it92.calculate_sf(0.04) ** 2 + 0.881, rel=0.02
    )
    assert air_per_sr(0.1)[0] / helium_per_sr(0.1)[0] > 45.0


def test_glass_has_its_first_sharp_peak_and_few_fluctuations() -> None:
    per_m3 = 2200.0 / (60.083 * 1.66053906660e-27)
    glass = f2(glass_per_sr(1e-5), per_m3, 1e-5)
    assert glass.min() > 0.0
    assert glass[0] == pytest.approx(24.0, abs=0.1)
    peak = int(np.argmax(glass))
    assert Q_INV_ANGSTROM[peak] == pytest.approx(1.52, abs=0.02)
    assert glass[peak] == pytest.approx(1.5 * 229.0, rel=0.02)
    # The silicon-oxygen distance beats around the free atoms at large q.
    free = {7.0: 43.4, 10.0: 22.3}
    for q, expected in free.items():
        assert at(glass, q) == pytest.approx(expected, rel=0.35)


def test_polyimide_has_its_measured_halo() -> None:
    table = polyimide_per_sr(1e-5)
    assert Q_INV_ANGSTROM[np.argmax(table)] == pytest.approx(4.0 * math.pi * 0.11, abs=0.03)
    per_u = f2(table, 1420.0 / 1.66053906660e-27, 1e-5)
    assert per_u.max() == pytest.approx(3.156**2, rel=1e-3)
    assert per_u[0] == pytest.approx(0.856**2, rel=1e-9)


@pytest.mark.parametrize("bad", [-1e-6, math.nan, math.inf, 101.0])
@pytest.mark.parametrize("material", [water_per_sr, air_per_sr, helium_per_sr, glass_per_sr, polyimide_per_sr])
def test_thicknesses_that_are_none_are_refused(material, bad: float) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"_m is .*give metres from 0 to"):
        material(bad)


@pytest.mark.parametrize("kelvin", [25.0, 273.15, 351.0, math.nan, -5.0])
def test_temperatures_at_which_water_was_not_measured_are_refused(kelvin: float) -> None:
    with pytest.raises(ValueError, match=r"give kelvin from 274\.15 to 350\.15"):
        water_per_sr(1e-4, kelvin)


def test_gases_out_of_all_range_are_refused() -> None:
    for pressure in (-1.0, 2e6, math.nan):
        with pytest.raises(ValueError, match="pressure of air"):
            air_per_sr(0.1, pressure_Pa=pressure)
    for kelvin in (0.0, 5000.0, math.nan):
        with pytest.raises(ValueError, match="temperature of helium"):
            helium_per_sr(0.1, temperature_K=kelvin)
