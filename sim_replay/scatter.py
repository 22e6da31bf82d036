"""How much the beam's surroundings scatter: photons a steradian for each photon of the pulse, against q.

Every table is w(q) = r_e^2 F^2(q) n t on one grid, `Q_INV_ANGSTROM`: r_e the classical electron radius, F^2 the squared
scattering factor of a molecule or formula unit (electrons squared), n their number density, t the thickness. A pixel of
solid angle dOmega then expects N P dOmega w photons of N, P being the polarisation factor. Tables add.

What is left out: absorption, multiple scattering, and that a gas scatters along its path and not at the sample (the
pixel sees it as if it did). Coherent scattering only, but for the gases, where Compton scattering is of the same size.
"""

from __future__ import annotations

import math

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator

CLASSICAL_ELECTRON_RADIUS_M = 2.8179403262e-15
"""CODATA 2018."""
BOLTZMANN_J_PER_K = 1.380649e-23
ATOMIC_MASS_KG = 1.66053906660e-27

Q_STEP_INV_ANGSTROM = 0.005
Q_INV_ANGSTROM = np.arange(2001) * Q_STEP_INV_ANGSTROM
"""q = 4 pi sin(theta)/lambda from 0 to 10 per angstrom: (2001,) float64, the grid of every table."""
Q_INV_ANGSTROM.setflags(write=False)

ROOM_TEMPERATURE_K = 298.15
WATER_TEMPERATURE_RANGE_K = (274.15, 350.15)
GAS_TEMPERATURE_RANGE_K = (50.0, 1000.0)
GAS_PRESSURE_RANGE_PA = (0.0, 1e6)
LONGEST_WATER_M = 1.0
LONGEST_GAS_M = 100.0
LONGEST_SOLID_M = 0.1

WATER_MOLECULES_PER_M3 = 3.33679e28
"""Taken for 25 C; other temperatures by the ratio of densities."""

# F^2 of liquid water per molecule at 25 C in electrons^2 (already squared) against q in 1/angstrom: Clark et al. 2010
# at low q joined to Hura et al. 2003 at high q. A straight line between these points is 2.4 % too high where the ring
# rises, enough to shift an energy fitted to it by 5 %; a cubic spline stays within 0.3 %.
_WATER_25C = np.array(
    [
        (0.0, 6.50), (0.2, 6.32), (0.4, 6.19), (0.6, 6.31), (0.8, 6.75), (1.0, 7.87), (1.2, 10.7), (1.4, 17.3),
        (1.6, 30.4), (1.8, 46.2), (2.0, 55.6), (2.05, 56.2), (2.2, 54.1), (2.4, 46.7), (2.6, 41.5), (2.8, 38.8),
        (3.0, 34.3), (3.3, 22.7), (3.6, 14.5), (4.0, 12.5), (4.5, 12.2), (5.0, 10.1), (6.0, 5.39), (7.0, 4.48),
        (8.0, 3.29), (10.0, 2.50),
    ]
)  # fmt: skip

# How F^2 changes from 25 C: a factor 1 + a t + b t^2 of t degrees, as (q, 1e4 a, 1e6 b). From q = 0.6 on fitted to the
# intensities of Hura et al. (2003) at 1, 11, 25, 44, 55, 66 and 77 C, which it meets within 1.4 % (r.m.s.), 4 % at
# worst; at q = 0 to rho kB T kappa_T with Kell's (1975) density and compressibility, within 0.9 %. Measurements below
# 0.6 scatter by 10 %; between the two a smooth curve stands for them.
_WATER_CHANGE = np.array(
    [
        (0.0, 4.3, 53.7), (0.6, 22.8, 17.5), (0.7, 33.6, 3.9), (0.8, 57.1, -38.9), (0.9, 82.1, -78.3),
        (1.0, 77.3, -79.7), (1.1, 53.6, -45.4), (1.2, 36.7, -21.4), (1.3, 17.0, -1.7), (1.4, 2.7, 10.4),
        (1.5, -9.4, 18.0), (1.6, -24.7, 30.4), (1.7, -35.8, 39.9), (1.8, -39.5, 38.7), (1.9, -32.3, 25.3),
        (2.0, -16.9, 7.8), (2.1, -2.7, -2.1), (2.2, 8.5, -5.8), (2.3, 15.1, -5.3), (2.4, 17.3, -4.3), (2.5, 14.6, 0.0),
        (2.6, 9.9, 1.9), (2.7, 1.2, 7.3), (2.8, -8.5, 9.7), (2.9, -18.8, 14.1), (3.0, -26.4, 18.4), (3.1, -27.3, 16.0),
        (3.2, -20.3, 7.8), (3.3, -11.6, 3.2), (3.4, -2.9, -0.8), (3.5, 3.5, -3.3), (3.7, 8.3, -2.0), (4.0, 7.8, -3.0),
        (4.5, -0.5, 4.0), (5.0, -4.8, 3.1), (5.5, 6.5, -10.9), (6.0, 16.4, -16.4), (6.5, 10.6, -8.9),
        (7.0, 1.9, -5.8), (8.0, 8.7, -10.4), (9.0, 5.3, -5.8), (10.0, -4.7, 6.9),
    ]
)  # fmt: skip

# Z minus the intensity of Compton scattering, as sums of a exp(-b s^2), s = q/(4 pi): Balyuzi, Acta Cryst. A31, 600
# (1975). (a, b) of each term.
_BALYUZI = {
    "N": ((0.9070, 64.1555), (2.8972, 20.8507), (1.1659, 7.7576), (1.5526, 1.0335), (0.4769, 0.3516)),
    "O": ((0.8847, 52.0063), (3.2189, 16.4487), (1.7990, 6.5958), (1.5538, 0.8143), (0.5434, 0.2815)),
}

# Square root of F^2 per atomic mass unit of polyimide (Kapton), as (q/(4 pi) in 1/angstrom, electrons): measured by
# Peplow and Verghese, Phys. Med. Biol. 43, 2431 (1998); free atoms at the last point.
_POLYIMIDE = np.array(
    [
        (0.0, 0.856), (0.03, 0.856), (0.04, 0.929), (0.05, 1.013), (0.06, 1.200), (0.07, 1.485), (0.08, 2.161),
        (0.09, 2.658), (0.10, 3.095), (0.11, 3.156), (0.12, 2.939), (0.13, 2.671), (0.14, 2.581), (0.15, 2.483),
        (0.16, 2.104), (0.17, 1.786), (0.18, 1.576), (0.19, 1.405), (0.20, 1.395), (0.22, 1.274), (0.24, 1.191),
        (0.26, 1.168), (0.28, 1.087), (0.30, 0.945), (0.34, 0.856), (0.38, 0.728), (0.40, 0.775), (0.44, 0.812),
        (0.48, 0.758), (0.55, 0.628), (0.65, 0.544), (0.80, 0.459),
    ]
)  # fmt: skip
_POLYIMIDE_KG_PER_M3 = 1420.0

_SILICA_KG_PER_M3 = 2200.0
_SILICA_MASS_U = 60.083


def water_per_sr(thickness_m: float, temperature_K: float = ROOM_TEMPERATURE_K) -> NDArray[np.float64]:
    """Liquid water, coherent: (2001,) float64, photons per steradian and photon of the pulse.

    At 25 C the table of F^2 itself; from 1 to 77 C by an interpolation over measurements, within 2 %. Raises ValueError
    for a thickness or temperature outside its range.
    """
    check_length("water_thickness_m", thickness_m, LONGEST_WATER_M)
    check_water_temperature("water_temperature_K", temperature_K)
    degrees = temperature_K - ROOM_TEMPERATURE_K
    f2 = CubicSpline(_WATER_25C[:, 0], _WATER_25C[:, 1])(Q_INV_ANGSTROM)
    if degrees != 0.0:
        a, b = (PchipInterpolator(_WATER_CHANGE[:, 0], _WATER_CHANGE[:, i])(Q_INV_ANGSTROM) for i in (1, 2))
        f2 = f2 * (1.0 + 1e-4 * a * degrees + 1e-6 * b * degrees**2)
    density = WATER_MOLECULES_PER_M3 * _water_density_ratio(temperature_K)
    return _per_sr(f2, density, thickness_m)


def air_per_sr(
    path_m: float, pressure_Pa: float = 101325.0, temperature_K: float = ROOM_TEMPERATURE_K
) -> NDArray[np.float64]:
    """Dry air as an ideal gas, coherent and Compton: (2001,) float64, photons per steradian and photon of the pulse.

    Molecules by Debye's formula over free atoms (International Tables 1992); Compton scattering of N and O after
    Balyuzi, without the photons' loss of energy; that of argon (0.9 % of the gas) is left out. Raises ValueError.
    """
    density = _gas_density("air", path_m, pressure_Pa, temperature_K)
    nitrogen, oxygen, argon = (_form_factor(element) for element in ("N", "O", "Ar"))
    f2 = (
        0.7812 * (_diatomic(nitrogen, 1.0977) + 2.0 * _compton("N", 7))
        + 0.2095 * (_diatomic(oxygen, 1.2075) + 2.0 * _compton("O", 8))
        + 0.0093 * argon**2
    )
    return _per_sr(f2, density, path_m)


def helium_per_sr(
    path_m: float, pressure_Pa: float = 101325.0, temperature_K: float = ROOM_TEMPERATURE_K
) -> NDArray[np.float64]:
    """Helium as an ideal gas, coherent and Compton: (2001,) float64, photons per steradian and photon of the pulse.

    Two electrons in one orbital scatter f^2 coherently and 2 - f^2/2 incoherently (Waller and Hartree); that they avoid
    each other takes up to 2 % off the sum. Raises ValueError.
    """
    density = _gas_density("helium", path_m, pressure_Pa, temperature_K)
    return _per_sr(2.0 + _form_factor("He") ** 2 / 2.0, density, path_m)


def glass_per_sr(wall_m: float) -> NDArray[np.float64]:
    """Vitreous silica (a capillary's wall), coherent: (2001,) float64, photons per steradian and photon of the pulse.

    A model, not a measurement. Beyond the first sharp peak: free atoms with the distances Si-O 1.61, O-O 2.63 and Si-Si
    3.08 angstrom and their numbers of neighbours (4, 6, 4). The peak stands at 1.52 per angstrom, 0.35 wide (full width
    at half maximum) and 1.5 times the free atoms high, uncertain by a fifth. Below it the frozen density fluctuations,
    24 electrons^2 per SiO2. Raises ValueError.
    """
    check_length("capillary_wall_m", wall_m, LONGEST_SOLID_M)
    q = Q_INV_ANGSTROM
    silicon, oxygen = _form_factor("Si"), _form_factor("O")
    free = silicon**2 + 2.0 * oxygen**2
    local = free.copy()
    for neighbours, product, distance, spread in (
        (4.0, silicon**2, 3.08, 0.11),
        (8.0, silicon * oxygen, 1.61, 0.05),
        (12.0, oxygen**2, 2.63, 0.09),
    ):
        local += neighbours * product * np.sinc(q * distance / math.pi) * np.exp(-((q * spread) ** 2) / 2.0)
    step = np.clip(q - 1.0, 0.0, 1.0)
    rise = step**2 * (3.0 - 2.0 * step)
    f2 = rise * local + (1.0 - rise) * 24.0
    peak = np.exp(-((q - 1.52) ** 2) / 2.0 / (0.35 / 2.3548) ** 2)
    top = int(np.argmax(peak))
    f2 += (1.5 * free[top] - f2[top]) * peak
    return _per_sr(f2, _SILICA_KG_PER_M3 / (_SILICA_MASS_U * ATOMIC_MASS_KG), wall_m)


def polyimide_per_sr(thickness_m: float) -> NDArray[np.float64]:
    """Polyimide film (Kapton), coherent: (2001,) float64, photons per steradian and photon of the pulse.

    From a measured scattering factor whose points lie 0.13 per angstrom apart. Raises ValueError.
    """
    check_length("film_thickness_m", thickness_m, LONGEST_SOLID_M)
    root = PchipInterpolator(_POLYIMIDE[:, 0] * 4.0 * math.pi, _POLYIMIDE[:, 1])(Q_INV_ANGSTROM)
    return _per_sr(root**2, _POLYIMIDE_KG_PER_M3 / ATOMIC_MASS_KG, thickness_m)


def check_length(name: str, length_m: float, longest_m: float) -> None:
    """Raises ValueError unless the length is between 0 and the longest allowed."""
    if not 0.0 <= length_m <= longest_m:
        raise ValueError(f"{name} is {length_m}; give metres from 0 to {longest_m:g}")


def check_water_temperature(name: str, temperature_K: float) -> None:
    """Raises ValueError outside the range that was measured, 1 to 77 C."""
    low, high = WATER_TEMPERATURE_RANGE_K
    if not low <= temperature_K <= high:
        raise ValueError(f"{name} is {temperature_K}; give kelvin from {low} to {high} (1 to 77 C)")


def _per_sr(f2: NDArray[np.float64], per_m3: float, length_m: float) -> NDArray[np.float64]:
    return f2 * (CLASSICAL_ELECTRON_RADIUS_M**2 * per_m3 * length_m)


def _gas_density(name: str, path_m: float, pressure_Pa: float, temperature_K: float) -> float:
    check_length(f"{name}_path_m", path_m, LONGEST_GAS_M)
    if not GAS_PRESSURE_RANGE_PA[0] <= pressure_Pa <= GAS_PRESSURE_RANGE_PA[1]:
        raise ValueError(f"pressure of {name} is {pressure_Pa} Pa; give from 0 to {GAS_PRESSURE_RANGE_PA[1]:g}")
    if not GAS_TEMPERATURE_RANGE_K[0] <= temperature_K <= GAS_TEMPERATURE_RANGE_K[1]:
        low, high = GAS_TEMPERATURE_RANGE_K
        raise ValueError(f"temperature of {name} is {temperature_K} K; give from {low:g} to {high:g}")
    return pressure_Pa / (BOLTZMANN_J_PER_K * temperature_K)


def _form_factor(element: str) -> NDArray[np.float64]:
    """f(q) of a free atom, sums of Gaussians from the International Tables (1992)."""
    coefficients = gemmi.Element(element).it92
    s2 = (Q_INV_ANGSTROM / (4.0 * math.pi)) ** 2
    total = np.full(len(s2), float(coefficients.c))
    for a, b in zip(coefficients.a, coefficients.b, strict=True):
        total += a * np.exp(-b * s2)
    return total


def _diatomic(form_factor: NDArray[np.float64], bond_angstrom: float) -> NDArray[np.float64]:
    """Debye: two equal atoms at a distance, in all directions."""
    interference: NDArray[np.float64] = 1.0 + np.sinc(Q_INV_ANGSTROM * bond_angstrom / math.pi)
    return 2.0 * form_factor**2 * interference


def _compton(element: str, electrons: int) -> NDArray[np.float64]:
    s2 = (Q_INV_ANGSTROM / (4.0 * math.pi)) ** 2
    bound = np.zeros(len(s2))
    for a, b in _BALYUZI[element]:
        bound += a * np.exp(-b * s2)
    return np.maximum(electrons - bound, 0.0)


def _water_density_ratio(temperature_K: float) -> float:
    """Density of water at 1 atm over that at 25 C, within 1e-5: Kell, J. Chem. Eng. Data 20, 97 (1975)."""

    def density(celsius: float) -> float:
        terms = (999.83952, 16.945176, -7.9870401e-3, -46.170461e-6, 105.56302e-9, -280.54253e-12)
        return sum(c * celsius**i for i, c in enumerate(terms)) / (1.0 + 16.87985e-3 * celsius)

    return density(temperature_K - 273.15) / density(ROOM_TEMPERATURE_K - 273.15)
