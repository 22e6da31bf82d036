"""The X-ray beam: its spectrum, its profile at the sample, its divergence and its polarisation.

Wavelengths in a spectrum are relative to the middle of the band (1.0), so one beam serves every photon energy.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from scipy.special import ndtr

from streamer.text_files import read_text

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))

Profile = Literal["disc", "gaussian", "uniform"]

_GAUSSIAN_REACH_SIGMA = 3.0
_GAUSSIAN_BINS = 24
_MOST_BINS = 1000
_WIDEST_BIN = 0.02


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Photons over wavelength, constant within each of K bins.

    edges (K + 1) rising wavelengths relative to the middle of the band; shares (K) of the photons in each bin, which
    sum to 1. Raises ValueError when the numbers are not that.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.shares) + 1 or not 1 <= len(self.shares) <= _MOST_BINS:
            raise ValueError(
                f"a spectrum of {len(self.shares)} bins needs as many edges and one more, at most 1000 bins"
            )
        if not all(map(math.isfinite, (*self.edges, *self.shares))):
            raise ValueError("a spectrum's edges and shares must be finite")
        if self.edges[0] <= 0.0 or np.any(np.diff(self.edges) <= 0.0):
            raise ValueError("a spectrum's wavelengths must be above 0 and rise")
        if min(self.shares) < 0.0 or abs(sum(self.shares) - 1.0) > 1e-9:
            raise ValueError("a spectrum's shares must be 0 or more and sum to 1")

    @property
    def width(self) -> float:
        """Full width from the first edge to the last, relative."""
        return self.edges[-1] - self.edges[0]


def top_hat(bandwidth: float) -> Spectrum:
    """All wavelengths within the relative full width `bandwidth`, evenly; wide ones in bins of 2 % at most."""
    if not 0.0 < bandwidth < 1.0:
        raise ValueError(f"bandwidth is {bandwidth}; give a relative width between 0 and 1")
    bins = math.ceil(bandwidth / _WIDEST_BIN)
    return Spectrum(tuple(np.linspace(1.0 - bandwidth / 2.0, 1.0 + bandwidth / 2.0, bins + 1)), (1.0 / bins,) * bins)


def gaussian(bandwidth: float) -> Spectrum:
    """A Gaussian with the relative full width at half maximum `bandwidth`, cut at 3 standard deviations."""
    if not 0.0 < bandwidth < 0.5:
        raise ValueError(f"bandwidth is {bandwidth}; give a relative width at half maximum between 0 and 0.5")
    places = np.linspace(-_GAUSSIAN_REACH_SIGMA, _GAUSSIAN_REACH_SIGMA, _GAUSSIAN_BINS + 1)
    shares = np.diff(ndtr(places))
    shares /= shares.sum()
    return Spectrum(tuple(1.0 + places * bandwidth / FWHM_PER_SIGMA), tuple(shares))


def tabulated(
    photon_energies_eV: Sequence[float], photons: Sequence[float], center_eV: float | None = None
) -> Spectrum:
    """A measured spectrum: `photons` (any scale) at rising photon energies, each standing for the bin around it.

    center_eV is the energy that counts as the middle of the band, by default the table's mean. Raises ValueError.
    """
    energies, weights = np.asarray(photon_energies_eV, float), np.asarray(photons, float)
    if energies.ndim != 1 or energies.shape != weights.shape or len(energies) < 2:
        raise ValueError("a spectrum table needs two columns, photon energy in eV and photons, of at least two rows")
    if not (np.all(np.isfinite(energies)) and np.all(np.isfinite(weights))) or energies[0] <= 0.0:
        raise ValueError("a spectrum table must be finite, with photon energies above 0 eV")
    if np.any(np.diff(energies) <= 0.0):
        raise ValueError("a spectrum table's photon energies must rise from row to row")
    if np.any(weights < 0.0) or weights.sum() <= 0.0:
        raise ValueError("a spectrum table's photons must be 0 or more, and not all 0")
    if len(energies) > _MOST_BINS:
        raise ValueError(f"a spectrum table of {len(energies)} rows is too long; give at most {_MOST_BINS}")
    center = float(np.average(energies, weights=weights)) if center_eV is None else center_eV
    middle = (energies[1:] + energies[:-1]) / 2.0
    edges_eV = np.concatenate(
        [[1.5 * energies[0] - 0.5 * energies[1]], middle, [1.5 * energies[-1] - 0.5 * energies[-2]]]
    )
    if edges_eV[0] <= 0.0:
        raise ValueError("a spectrum table's first bin reaches below 0 eV; give a finer table")
    return Spectrum(tuple((center / edges_eV)[::-1]), tuple((weights / weights.sum())[::-1]))


def read_spectrum(path: str | os.PathLike[str]) -> Spectrum:
    """A table of photon energy (eV) and photons, one pair a line, '#' for comments.

    Raises OSError when the file is not there, and ValueError naming file and line.
    """
    path = Path(path)
    rows: list[tuple[float, float]] = []
    try:
        lines = read_text(path, "table of photon energy in eV and photons").decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file; give two columns, photon energy in eV and photons") from None
    for number, line in enumerate(lines, start=1):
        fields = line.split("#")[0].replace(",", " ").split()
        if not fields:
            continue
        try:
            energy, photons = map(float, fields)
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: expected photon energy (eV) and photons, found '{line[:60]}'"
            ) from None
        rows.append((energy, photons))
    try:
        return tabulated([row[0] for row in rows], [row[1] for row in rows])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True, slots=True)
class Beam:
    """How the photons of a pulse are spread over wavelength, place, direction and polarisation.

    radius_m: of the disc that holds the photons evenly, or half the full width at half maximum of a Gaussian.
    profile 'uniform' is CrystFEL's fluence: that of the disc, over the whole crystal however large it is.
    divergence_rad: standard deviation of the direction about each of two axes. polarisation_fraction: degree of
    linear polarisation, 1 fully polarised to 0 not at all; polarisation_deg: the electric field's angle from fs
    towards ss.
    """

    spectrum: Spectrum = field(default_factory=lambda: top_hat(0.01))
    radius_m: float = 5e-6
    profile: Profile = "disc"
    divergence_rad: float = 0.0
    polarisation_fraction: float = 1.0
    polarisation_deg: float = 0.0

    def __post_init__(self) -> None:
        if not 1e-9 <= self.radius_m <= 1e-2:
            raise ValueError(f"radius_m is {self.radius_m}; give metres from 1e-9 to 0.01")
        if self.profile not in get_args(Profile):
            raise ValueError(f"profile is '{self.profile}'; give one of {', '.join(get_args(Profile))}")
        if not 0.0 <= self.divergence_rad <= 0.05:
            raise ValueError(f"divergence_rad is {self.divergence_rad}; give radians from 0 to 0.05")
        if not 0.0 <= self.polarisation_fraction <= 1.0:
            raise ValueError(f"polarisation_fraction is {self.polarisation_fraction}; give a number from 0 to 1")
        if not math.isfinite(self.polarisation_deg):
            raise ValueError(f"polarisation_deg is {self.polarisation_deg}; give an angle in degrees")

    @property
    def polarisation_terms(self) -> tuple[float, float, float]:
        """(xx, xy, yy) of P = 1 - xx vx^2 - 2 xy vx vy - yy vy^2 for light leaving along the unit vector v.

        Linear polarisation along e gives 1 - (v.e)^2, the dipole's pattern (Jackson, Classical Electrodynamics,
        14.2); unpolarised light is the mean over e in the plane, 1 - (vx^2 + vy^2)/2 = (1 + cos^2 2 theta)/2.
        """
        angle = math.radians(self.polarisation_deg)
        along, across = (1.0 + self.polarisation_fraction) / 2.0, (1.0 - self.polarisation_fraction) / 2.0
        c, s = math.cos(angle), math.sin(angle)
        return along * c * c + across * s * s, (along - across) * c * s, along * s * s + across * c * c


def disc_square_overlap_m2(radius_m: float, side_m: float, offset_m: tuple[float, float] = (0.0, 0.0)) -> float:
    """Area shared by a disc at the origin and a square centred at offset_m, faces along the axes (m^2).

    The disc's chords are summed over the square's width at x = r sin(u), which is smooth at the disc's rim: 4096
    midpoints give better than 1e-6.
    """
    low, high = (math.asin(min(max((offset_m[0] + side) / radius_m, -1.0), 1.0)) for side in (-side_m / 2, side_m / 2))
    steps = 4096
    u = low + (np.arange(steps) + 0.5) / steps * (high - low)
    half_chord = radius_m * np.cos(u)
    top = np.minimum(half_chord, offset_m[1] + side_m / 2.0)
    bottom = np.maximum(-half_chord, offset_m[1] - side_m / 2.0)
    return float(np.sum(np.maximum(top - bottom, 0.0) * half_chord) * (high - low) / steps)


@lru_cache(maxsize=64)
def lit_path_m(beam: Beam, size_m: float, offset_m: tuple[float, float] = (0.0, 0.0)) -> float:
    """Fluence integrated over a cube's volume, for each photon of the pulse (m).

    The share of the beam that meets the cube (side size_m, centred offset_m from the beam, faces along the axes)
    times the cube's depth; with 'uniform' fluence size^3 over the disc's area. Photons a pulse times this is the
    fluence times volume of kinematic diffraction.
    """
    disc_m2 = math.pi * beam.radius_m**2
    if beam.profile == "uniform":
        return size_m**3 / disc_m2
    if beam.profile == "disc":
        return disc_square_overlap_m2(beam.radius_m, size_m, offset_m) / disc_m2 * size_m
    sigma = 2.0 * beam.radius_m / FWHM_PER_SIGMA
    share = 1.0
    for offset in offset_m:
        share *= float(ndtr((offset + size_m / 2.0) / sigma) - ndtr((offset - size_m / 2.0) / sigma))
    return share * size_m


def lit_sigma_m(beam: Beam, size_m: float) -> float:
    """Standard deviation along an axis of the places that scatter, the narrower of the crystal and the beam (m)."""
    crystal = size_m / math.sqrt(12.0)
    if beam.profile == "uniform":
        return crystal
    profile = beam.radius_m / 2.0 if beam.profile == "disc" else 2.0 * beam.radius_m / FWHM_PER_SIGMA
    return min(crystal, profile)
