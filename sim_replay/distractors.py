"""What fools a hit finder: salt crystals, rings of ice, lipid and polymer, and shots without a beam.

Salt is handed over as ordinary crystals, to be diffracted like any other. Rings are powder lines of a film in the beam.
With V_c the unit cell's volume and m the multiplicity of a line, the film of thickness t scatters, for each photon that
crosses it, a steradian and before polarisation,

    w(q) = r_e^2 t sum (m |F|^2 / V_c^2) (d^2 / 2) delta(q - 2 pi / d),      q = 4 pi sin(theta) / lambda

so that a whole ring holds r_e^2 t (m |F|^2 / V_c^2) lambda^2 d / 2 photons a photon: the powder formula (Warren, X-ray
Diffraction, 1969, ch. 4), lambda^3 / (4 sin theta) with lambda = 2 d sin(theta). m |F|^2 / V_c^2 is the line's share of
the variance of the electron density (Parseval); that is what `Lines` holds, and it gives materials without a unit cell
their strength. Each line is blurred by its blocks' size (Scherrer), the beam's divergence and its spectrum: a
wavelength rho times the middle of the band puts it at rho 2 pi/d, rho times as strong.

A share of the material, the spottiness, is in larger grains, of which only those that stand right reflect: a random
plane normal lies within a range dtheta of the Bragg condition with the chance cos(theta) dtheta / 2, m times that for
a line. Their spots hold on average what the ring would, so that smooth and spotty light keep the powder formula.

Physics: the formulas above; ice's |F|^2; the lipids' densities and bilayer geometry; the total strength of polymer and
lipid chains, by Wilson's sum over atoms. Assumption: how often and how much of each is met (thickness, grain and block
sizes, the grains' mosaicity, exponential intensities), how the polymer's total is divided among its lines, and that the
film comes on top of the water.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim_replay.beam import FWHM_PER_SIGMA, Spectrum
from sim_replay.crystal import Crystal, reciprocal_basis
from sim_replay.detector import Condition, Detector, beam_center_px
from sim_replay.diffraction import LARGEST_TWO_THETA_RAD, SIZE_SIGMA_TIMES_LENGTH, Sample
from sim_replay.salts import ICE_IH, SALTS, salt_crystal, small_crystal
from sim_replay.scatter import CLASSICAL_ELECTRON_RADIUS_M, Q_INV_ANGSTROM, Q_STEP_INV_ANGSTROM
from sim_replay.wilson import form_factor

MAX_GRAINS_PER_RING = 200
"""More spots than this make a smooth ring: what is left over is moved there."""

RING_MIN_PHOTONS = 1.0
"""Rings expected to hold fewer photons, off the detector included, are not listed as true."""


class Kind(IntFlag):
    """What can be in a frame; a frame is the union of its kinds."""

    PROTEIN = 1
    SALT = 2
    ICE = 4
    LIPID = 8
    POLYMER = 16
    NO_BEAM = 32
    HOT_PIXEL = 64
    FLICKER = 128
    COSMIC = 256
    EDGE = 512
    WATER = 1024
    """Water and nothing else."""


MAIN_CLASSES = ("no_beam", "protein", "salt", "ring", "water")


def kinds_names(kinds: Kind) -> tuple[str, ...]:
    """The kinds of a frame by name, in lower case, in the order of their bits."""
    return tuple(str(kind.name).lower() for kind in Kind if kind in kinds)


def main_class(kinds: Kind) -> str:
    """The one of `MAIN_CLASSES` that a frame counts as: the first that it has, in that order.

    Without a beam there is nothing else; protein is a hit whatever is beside it; salt's spots fool more than a ring
    does. The detector's own faults are in frames of every class and make none; what is left is water.
    """
    if Kind.NO_BEAM in kinds:
        return "no_beam"
    if Kind.PROTEIN in kinds:
        return "protein"
    if Kind.SALT in kinds:
        return "salt"
    return "ring" if kinds & (Kind.ICE | Kind.LIPID | Kind.POLYMER) else "water"


MOST_SALT_CRYSTALS = 1000


@dataclass(frozen=True, slots=True)
class Distractors:
    """The chance, from 0 to 1, that a frame has each kind of distractor, independent of each other.

    no_beam leaves no photons, so that nothing else is in such a frame. ring_strength multiplies the thickness of what
    makes rings. salts names the salts of `sim_replay.salts` that are in the buffer, one of which a frame with salt
    has; salt_size_m is the smallest and largest crystallite, salt_crystals the fewest and the most of them. Raises
    ValueError naming what makes no sense.
    """

    salt: float = 0.0
    ice_ring: float = 0.0
    lipid_ring: float = 0.0
    polymer_ring: float = 0.0
    no_beam: float = 0.0
    ring_strength: float = 1.0
    salts: tuple[str, ...] = tuple(SALTS)
    salt_size_m: tuple[float, float] = (1e-6, 20e-6)
    salt_crystals: tuple[int, int] = (1, 3)

    def __post_init__(self) -> None:
        for name in ("salt", "ice_ring", "lipid_ring", "polymer_ring", "no_beam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"distractor {name} is {getattr(self, name)}; give a chance from 0 to 1")
        if not 0.0 < self.ring_strength <= 100.0:
            raise ValueError(f"ring_strength is {self.ring_strength}; give a factor above 0, at most 100")
        unknown = [name for name in self.salts if name not in SALTS]
        if unknown or not self.salts:
            what = f"salt '{unknown[0]}' is not known" if unknown else "salts names none"
            raise ValueError(f"{what}; known are {', '.join(SALTS)}")
        if len(self.salt_size_m) != 2 or not 1e-8 <= self.salt_size_m[0] <= self.salt_size_m[1] <= 1e-3:
            raise ValueError(f"salt_size_m is {self.salt_size_m}; give the smallest and the largest, 1e-8 to 1e-3 m")
        if (
            len(self.salt_crystals) != 2
            or not 1 <= self.salt_crystals[0] <= self.salt_crystals[1] <= MOST_SALT_CRYSTALS
        ):
            raise ValueError(
                f"salt_crystals is {self.salt_crystals}; give the fewest and the most, 1 to {MOST_SALT_CRYSTALS}"
            )


@dataclass(frozen=True, slots=True)
class Ring:
    """A powder line of a frame.

    photons expected in the whole ring, on the detector or off it, before polarisation; spotty is the share of them
    that comes in grain spots.
    """

    kind: Kind
    d_angstrom: float
    photons: float
    spotty: float


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The distractors of one frame.

    kinds: which there are, never PROTEIN or WATER. salts: crystallites, to be diffracted in random orientations.
    smooth_per_sr: (2001,) float64, light scattered for each photon and steradian before polarisation, on
    `scatter.Q_INV_ANGSTROM` at the middle wavelength, spectrum included, or None. Grain spots (n,) float64: place in
    pixel indices, expected photons (polarisation included) and standard deviation of the round spot, the sensor's
    blur included. rings: lines within the detector's reach, by kind and falling d.
    """

    kinds: Kind
    salts: tuple[Sample, ...]
    smooth_per_sr: NDArray[np.float64] | None
    grain_fs: NDArray[np.float64]
    grain_ss: NDArray[np.float64]
    grain_photons: NDArray[np.float64]
    grain_sigma_px: NDArray[np.float64]
    rings: tuple[Ring, ...]

    @property
    def salt_names(self) -> tuple[str, ...]:
        """Names of the salt crystallites' crystals, one each."""
        return tuple(salt.crystal.name for salt in self.salts)


_NONE = np.empty(0)


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Powder lines of a material, falling d; all (n,) float64.

    variance: m |F|^2 / V_c^2 in electrons^2/angstrom^6. multiplicity: how many plane normals share the line.
    own_sigma: standard deviation over q of the line of large blocks, 1/angstrom.
    """

    d_angstrom: NDArray[np.float64]
    variance: NDArray[np.float64]
    multiplicity: NDArray[np.float64]
    own_sigma: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Film:
    """Material in the beam: the share `spottiness` in grains of edge grain_m, the rest in blocks of edge block_m."""

    kind: Kind
    lines: Lines
    thickness_m: float
    block_m: float
    grain_m: float
    spottiness: float


def crystal_lines(crystal: Crystal) -> Lines:
    """The powder lines of a crystal."""
    inverse_d2 = np.sum((crystal.hkl @ reciprocal_basis(crystal.cell).T) ** 2, axis=1)
    # Mates differ by rounding only.
    line, member, multiplicity = np.unique(np.round(inverse_d2, 9), return_inverse=True, return_counts=True)
    variance = np.bincount(member, crystal.intensity) / crystal.volume_angstrom3**2
    return Lines(1.0 / np.sqrt(line), variance, multiplicity.astype(np.float64), np.zeros(len(line)))


def draw_distractors(
    settings: Distractors, condition: Condition, detector: Detector, rng: np.random.Generator
) -> Drawn:
    """What one frame has besides its sample.

    A pulse without photons counts as no beam, and a film of which no ring reaches the panel does not count. A salt does
    wherever its spots may fall, which only its orientations tell.
    """
    no_beam, salt, *rings = (rng.random(5) < (
        settings.no_beam, settings.salt, settings.ice_ring, settings.lipid_ring, settings.polymer_ring
    )).tolist()  # fmt: skip
    if no_beam or condition.flux_photons == 0.0:
        return Drawn(Kind.NO_BEAM, (), None, _NONE, _NONE, _NONE, _NONE, ())
    salts = _draw_salts(settings, rng) if salt else ()
    films = tuple(
        film(settings.ring_strength, rng)
        for film, present in zip((_draw_ice, _draw_lipid, _draw_polymer), rings, strict=True)
        if present
    )
    kinds = Kind.SALT if salts else Kind(0)
    smooth, places, listed = None, np.empty((0, 4)), []
    if films:
        smooth = np.zeros(len(Q_INV_ANGSTROM))
        grains = []
        for film in films:
            spotty, mean_grains = expected_grains(film, condition)
            _add_smooth(smooth, film, spotty, condition)
            grains.append(_draw_grains(film, spotty, mean_grains, condition, detector, rng))
            reached = _listed(film, spotty, condition, detector)
            kinds |= film.kind if reached else Kind(0)
            listed += reached
        places = np.concatenate(grains)
    fs, ss, photons, sigma = np.ascontiguousarray(places.T)
    return Drawn(kinds, salts, smooth, fs, ss, photons, sigma, tuple(listed))


def ring_photons(lines: Lines, thickness_m: float, condition: Condition) -> NDArray[np.float64]:
    """Photons (n,) expected in each whole ring of a powder, before polarisation; lines that cannot reflect have 0."""
    wavelength = condition.wavelength_angstrom
    per_photon = _strength_per_sr(lines, thickness_m) * wavelength**2 / lines.d_angstrom
    spectrum = condition.beam.spectrum
    edges = np.asarray(spectrum.edges)
    mean_square = float(np.asarray(spectrum.shares) @ (edges[:-1] ** 2 + edges[:-1] * edges[1:] + edges[1:] ** 2)) / 3.0
    photons = condition.flux_photons * mean_square * per_photon
    return np.where(2.0 * lines.d_angstrom > wavelength * edges[-1], photons, 0.0)


def expected_grains(film: Film, condition: Condition) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each line the share of its light that comes in grain spots, and how many spots are expected, both (n,)."""
    beam, lines = condition.beam, film.lines
    if film.spottiness == 0.0:
        return np.zeros(len(lines.d_angstrom)), np.zeros(len(lines.d_angstrom))
    grain_m = _lit_grain_m(film, condition)
    theta = np.minimum(_theta(lines, condition.wavelength_angstrom), math.radians(80.0))
    point = SIZE_SIGMA_TIMES_LENGTH / (grain_m * 1e10) * lines.d_angstrom
    turn2 = _GRAIN_MOSAIC_SIGMA_RAD**2 + beam.divergence_rad**2 + (point / np.cos(theta)) ** 2
    # The integral breadth of the band, and of a Gaussian, are the widths of boxes of the same height and area.
    reach = np.hypot(np.tan(theta) * _breadth(beam.spectrum), np.sqrt(2.0 * math.pi * turn2))
    crystallites = film.spottiness * math.pi * beam.radius_m**2 * film.thickness_m / grain_m**3
    expected = np.maximum(crystallites * lines.multiplicity * np.cos(theta) * reach / 2.0, 1e-12)
    kept = np.minimum(1.0, MAX_GRAINS_PER_RING / expected)
    return film.spottiness * kept, expected * kept


def _strength_per_sr(lines: Lines, thickness_m: float) -> NDArray[np.float64]:
    """Integral of w(q) over each line (n,), 1/angstrom."""
    return CLASSICAL_ELECTRON_RADIUS_M**2 * thickness_m * 1e30 * lines.variance * lines.d_angstrom**2 / 2.0


# What is met, and how much of it. The ranges are assumptions: thin ice and polymer on a jet or a nozzle, a jet of
# lipidic cubic phase, salt that crystallised within seconds.


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _draw_salts(settings: Distractors, rng: np.random.Generator) -> tuple[Sample, ...]:
    crystal = _salt(settings.salts[int(rng.integers(len(settings.salts)))])
    return tuple(
        Sample(
            crystal,
            size_m=_log_uniform(rng, *settings.salt_size_m),
            mosaicity_deg=_log_uniform(rng, 0.3, 3.0),
            strain=_log_uniform(rng, 1e-4, 3e-3),
        )
        for _ in range(int(rng.integers(settings.salt_crystals[0], settings.salt_crystals[1] + 1)))
    )


@lru_cache(maxsize=64)
def _salt(name: str) -> Crystal:
    return salt_crystal(name)


def _draw_ice(strength: float, rng: np.random.Generator) -> Film:
    return Film(
        Kind.ICE,
        _ice_lines(),
        thickness_m=strength * _log_uniform(rng, 1e-6, 30e-6),
        block_m=_log_uniform(rng, 20e-9, 300e-9),
        grain_m=_log_uniform(rng, 0.3e-6, 2e-6),
        spottiness=float(rng.random()),
    )


def _draw_polymer(strength: float, rng: np.random.Generator) -> Film:
    return Film(
        Kind.POLYMER,
        _polymer_lines(),
        thickness_m=strength * _log_uniform(rng, 1e-6, 30e-6),
        block_m=_log_uniform(rng, 12e-9, 50e-9),
        grain_m=_log_uniform(rng, 0.3e-6, 2e-6),
        spottiness=float(rng.random()),
    )


def _draw_lipid(strength: float, rng: np.random.Generator) -> Film:
    phase, spacing = int(rng.integers(3)), float(rng.random())
    if phase == 0:
        lines = _lamellar_lines(38.0 + 22.0 * spacing)
    else:
        # The cell swells with water; the bilayer's share of it changes little over this range.
        lines = _cubic_lines("diamond" if phase == 1 else "gyroid")
        lines = dataclasses.replace(lines, d_angstrom=lines.d_angstrom * (0.95 + 0.1 * spacing))
    chains = _chain_lines()
    columns = (
        np.concatenate([getattr(lines, field.name), getattr(chains, field.name)]) for field in dataclasses.fields(Lines)
    )
    return Film(
        Kind.LIPID,
        Lines(*columns),
        thickness_m=strength * _log_uniform(rng, 10e-6, 100e-6),
        block_m=_log_uniform(rng, 50e-9, 500e-9),
        grain_m=1e-6,
        spottiness=0.0,
    )


# Materials.

_D_MIN_ANGSTROM = 1.2


@lru_cache(maxsize=1)
def _ice_lines() -> Lines:
    return _frozen(crystal_lines(small_crystal(ICE_IH, _D_MIN_ANGSTROM)))


# Poly(ethylene glycol) crystallises in a monoclinic cell of 8.05, 13.04, 19.48 angstrom, beta = 125.4 degrees
# (Takahashi and Tadokoro, Macromolecules 6, 672, 1973): 4.63 is 120, 3.81 a bundle of 032, -132, 112 and -212.
# Columns: d, the usual height of the line in powder patterns with Cu K alpha (roughly), and plane normals.
_POLYMER_TABLE = np.array(
    [
        (6.06, 3.0, 8.0), (4.63, 70.0, 4.0), (3.81, 100.0, 16.0), (3.40, 8.0, 8.0), (3.31, 10.0, 8.0), (2.90, 4.0, 8.0),
        (2.49, 8.0, 8.0), (2.27, 5.0, 8.0),
    ]
)  # fmt: skip
_CU_K_ALPHA_ANGSTROM = 1.5418


@lru_cache(maxsize=1)
def _polymer_lines() -> Lines:
    d, height, multiplicity = _POLYMER_TABLE.T
    theta = np.arcsin(_CU_K_ALPHA_ANGSTROM / (2.0 * d))
    # The height of a line of a flat powder is m |F|^2 times the Lorentz and polarisation factors (Warren, ch. 4).
    share = height * np.sin(theta) ** 2 * np.cos(theta) / (1.0 + np.cos(2.0 * theta) ** 2)
    # C2H4O at the crystal's 1.23 g/cm^3 is one in 59.5 angstrom^3.
    total = _wilson_variance({"C": 2.0, "O": 1.0, "H": 4.0}, 59.5, 6.0, 2.1, 6.5)
    return _frozen(Lines(d.copy(), share / share.sum() * total, multiplicity.copy(), np.zeros(len(d))))


@lru_cache(maxsize=1)
def _chain_lines() -> Lines:
    """The band of molten chains at 4.5 angstrom: CH2 in 28 angstrom^3, 0.35/angstrom wide, in half of the material."""
    variance = 0.5 * _wilson_variance({"C": 1.0, "H": 2.0}, 28.0, 0.0, 2.0 * math.pi / 1.8, 2.0 * math.pi / 1.1)
    return _frozen(Lines(np.array([4.5]), np.array([variance]), np.array([1.0]), np.array([0.35 / FWHM_PER_SIGMA])))


def _wilson_variance(
    atoms: dict[str, float], volume_angstrom3: float, b_angstrom2: float, d_low: float, d_high: float
) -> float:
    """Variance of the electron density between two spacings, electrons^2/angstrom^6.

    A cell has 4 pi s^2 V_c ds reciprocal-lattice points in a shell of s = 1/d, of mean |F|^2 = sum f^2 (Wilson 1942).
    """
    edges = np.linspace(1.0 / d_high, 1.0 / d_low, 65)
    s = (edges[1:] + edges[:-1]) / 2.0
    s2 = s * s / 4.0  # (sin(theta) / lambda)^2
    f2 = sum(count * form_factor(element, s2) ** 2 for element, count in atoms.items()) * np.exp(
        -2.0 * b_angstrom2 * s2
    )
    return float(np.sum(4.0 * math.pi * s * s * f2) * (edges[1] - edges[0]) / volume_angstrom3)


# A bilayer of monoolein from its middle: chains, then heads (electrons/angstrom^3, and how far they reach, angstrom).
# Its 17 angstrom and mean density are the measured ones; the division follows from the head's 0.41.
_CHAINS, _HEADS, _WATER = 0.28, 0.41, 0.334
_CHAIN_REACH, _HEAD_REACH = 12.5, 17.0
_BILAYER_BLUR_ANGSTROM = 4.0  # soft walls and thermal motion: orders beyond the first few are not seen
_CUBIC_CELL_ANGSTROM = {"diamond": 100.0, "gyroid": 140.0}
_CUBIC_GRID = 64
_WEAKEST_LINE = 0.01


def _lamellar_lines(repeat_angstrom: float) -> Lines:
    """Orders 1 to 3 of stacked bilayers: F_n / d is the Fourier series of the two steps in density."""
    order = np.arange(1.0, 4.0)
    steps = sum(
        step * np.sin(2.0 * math.pi * order * reach / repeat_angstrom)
        for step, reach in ((_CHAINS - _HEADS, _CHAIN_REACH), (_HEADS - _WATER, _HEAD_REACH))
    )
    d = repeat_angstrom / order
    variance = 2.0 * (steps / (math.pi * order)) ** 2 * np.exp(-((2.0 * math.pi / d * _BILAYER_BLUR_ANGSTROM) ** 2))
    return Lines(d, variance, np.full(3, 2.0), np.zeros(3))


@lru_cache(maxsize=2)
def _cubic_lines(surface: str) -> Lines:
    """Lines of a cubic phase: the bilayer lies on a minimal surface, Pn-3m (diamond) or Ia-3d (gyroid).

    The surfaces are the zeros of their first Fourier terms (von Schnering and Nesper, Z. Phys. B 83, 407, 1991), and
    f/|grad f| is the distance from them.
    """
    cell, n = _CUBIC_CELL_ANGSTROM[surface], _CUBIC_GRID
    # The level function of the diamond surface changes sign with a cell, which swaps its two sides and not the bilayer.
    turn = (math.pi if surface == "diamond" else 2.0 * math.pi) / n
    x, y, z = np.meshgrid(*[(np.arange(-1, n + 1)) * turn] * 3, indexing="ij")
    if surface == "diamond":
        level = np.cos(x) * np.cos(y) * np.cos(z) - np.sin(x) * np.sin(y) * np.sin(z)
    else:
        level = np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)
    steepness = np.sqrt(sum(slope**2 for slope in np.gradient(level, cell / n)))
    inner = (slice(1, -1),) * 3
    distance = np.abs(level[inner]) / np.maximum(steepness[inner], 1e-9)
    density = np.where(distance < _CHAIN_REACH, _CHAINS, np.where(distance < _HEAD_REACH, _HEADS, _WATER))
    share = np.abs(np.fft.fftn(density) / n**3) ** 2

    h2 = np.fft.fftfreq(n, 1.0 / n) ** 2
    square = (h2[:, None, None] + h2[None, :, None] + h2[None, None, :]).astype(np.int64)
    low = (square > 0) & (square <= 24)
    blur = np.exp(-np.arange(25.0) * (2.0 * math.pi / cell * _BILAYER_BLUR_ANGSTROM) ** 2)
    variance = np.asarray(np.bincount(square[low], share[low], 25) * blur, dtype=np.float64)
    seen = np.flatnonzero(variance > _WEAKEST_LINE * variance.max())
    multiplicity = np.bincount(square[low], minlength=25)[seen].astype(np.float64)
    d = cell / np.sqrt(seen.astype(np.float64))
    return _frozen(Lines(d, variance[seen], multiplicity, np.zeros(len(seen))))


def _frozen(lines: Lines) -> Lines:
    for each in dataclasses.fields(lines):
        getattr(lines, each.name).setflags(write=False)
    return lines


# Light.

_GRAIN_MOSAIC_SIGMA_RAD = math.radians(0.2) / FWHM_PER_SIGMA
_SPECTRUM_PIECES = 32


def _theta(lines: Lines, wavelength_angstrom: float) -> NDArray[np.float64]:
    return np.arcsin(np.minimum(wavelength_angstrom / (2.0 * lines.d_angstrom), 1.0))


def _lit_grain_m(film: Film, condition: Condition) -> float:
    return min(film.grain_m, condition.beam.radius_m, film.thickness_m)


def _breadth(spectrum: Spectrum) -> float:
    return 1.0 / float(np.sum(np.asarray(spectrum.shares) ** 2 / np.diff(spectrum.edges)))


def _add_smooth(table: NDArray[np.float64], film: Film, spotty: NDArray[np.float64], condition: Condition) -> None:
    """Add a film's smooth light to the table w(q), in place."""
    lines = film.lines
    wavelength = condition.wavelength_angstrom
    divergence = 2.0 * math.pi / wavelength * np.cos(_theta(lines, wavelength)) * condition.beam.divergence_rad
    size = 2.0 * math.pi * SIZE_SIGMA_TIMES_LENGTH / (film.block_m * 1e10)
    _add_lines(
        table,
        Q_STEP_INV_ANGSTROM,
        2.0 * math.pi / lines.d_angstrom,
        _strength_per_sr(lines, film.thickness_m) * (1.0 - spotty),
        np.sqrt(lines.own_sigma**2 + divergence**2 + size**2),
        _equal_pieces(condition.beam.spectrum),
    )


@lru_cache(maxsize=16)
def _equal_pieces(spectrum: Spectrum) -> NDArray[np.float64]:
    """Edges (33,) of pieces of the spectrum that hold equal shares: however long its tails, its peaks stay sharp."""
    pieces = np.interp(np.linspace(0.0, 1.0, _SPECTRUM_PIECES + 1), _cumulative(spectrum), spectrum.edges)
    pieces.setflags(write=False)
    return pieces


def _cumulative(spectrum: Spectrum) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(spectrum.shares)])


def _draw_grains(
    film: Film,
    spotty: NDArray[np.float64],
    mean_grains: NDArray[np.float64],
    condition: Condition,
    detector: Detector,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Grain spots that touch the panel, (n, 4): fs, ss, photons, sigma_px."""
    beam, lines = condition.beam, film.lines
    within = _theta(lines, condition.wavelength_angstrom) * 2.0 < LARGEST_TWO_THETA_RAD
    line = np.repeat(np.arange(len(spotty)), rng.poisson(np.where(within, mean_grains, 0.0)))
    if len(line) == 0:
        return np.empty((0, 4))
    relative = np.interp(rng.random(len(line)), _cumulative(beam.spectrum), beam.spectrum.edges)
    wavelength = condition.wavelength_angstrom * relative
    theta = np.arcsin(np.minimum(wavelength / (2.0 * lines.d_angstrom[line]), 1.0))
    # A grain takes its light from one direction of the beam, which it bends by 2 theta.
    out = 2.0 * theta + beam.divergence_rad * rng.standard_normal(len(line))
    azimuth = 2.0 * math.pi * rng.random(len(line))
    u, v = np.cos(azimuth), np.sin(azimuth)
    xx, xy, yy = beam.polarisation_terms
    polarisation = 1.0 - np.sin(out) ** 2 * (xx * u * u + 2.0 * xy * u * v + yy * v * v)
    # relative^2 and not its mean, as light of a longer wavelength makes the brighter ring.
    whole = (
        condition.flux_photons * _strength_per_sr(lines, film.thickness_m) * spotty / np.maximum(mean_grains, 1e-300)
    )
    photons = whole[line] * wavelength**2 / lines.d_angstrom[line] * polarisation * rng.standard_exponential(len(line))

    distance_px = condition.camera_length_m / detector.pixel_size_m
    center_x, center_y = beam_center_px(condition, detector)
    radius = distance_px * np.tan(np.clip(out, 0.0, LARGEST_TWO_THETA_RAD))
    fs, ss = center_x - 0.5 + radius * u, center_y - 0.5 + radius * v
    grain_m = _lit_grain_m(film, condition)
    blur = np.hypot(
        2.0 * np.sin(theta) * _GRAIN_MOSAIC_SIGMA_RAD, SIZE_SIGMA_TIMES_LENGTH / (grain_m * 1e10) * wavelength
    )
    sigma = np.hypot(distance_px / np.cos(out) * blur, detector.point_spread_px)
    margin = 5.0 * sigma
    near = (fs > -margin) & (fs < detector.shape[1] + margin) & (ss > -margin) & (ss < detector.shape[0] + margin)
    near &= (out > 0.0) & (out < LARGEST_TWO_THETA_RAD)
    return np.stack([fs, ss, photons, sigma], axis=1)[near]


def _listed(film: Film, spotty: NDArray[np.float64], condition: Condition, detector: Detector) -> list[Ring]:
    """The film's lines that the panel's farthest corner reaches and that hold photons enough."""
    center_x, center_y = beam_center_px(condition, detector)
    corner_px = math.hypot(
        max(abs(center_x), abs(detector.shape[1] - center_x)), max(abs(center_y), abs(detector.shape[0] - center_y))
    )
    farthest = math.atan(corner_px * detector.pixel_size_m / condition.camera_length_m)
    two_theta = 2.0 * _theta(film.lines, condition.wavelength_angstrom)
    photons = ring_photons(film.lines, film.thickness_m, condition)
    return [
        Ring(film.kind, float(film.lines.d_angstrom[i]), float(photons[i]), float(spotty[i]))
        for i in np.flatnonzero((two_theta <= farthest) & (photons >= RING_MIN_PHOTONS))
    ]


def _twice_integrated_py(x, sigma):  # type: ignore[no-untyped-def]
    """The integral of the integral of the Gaussian's cumulative distribution."""
    scaled = x / sigma
    if scaled > 8.0:
        return 0.5 * (x * x + sigma * sigma)
    if scaled < -8.0:
        return 0.0
    below = 0.5 * (1.0 + math.erf(scaled / math.sqrt(2.0)))
    bell = math.exp(-0.5 * scaled * scaled) / math.sqrt(2.0 * math.pi)
    return 0.5 * ((x * x + sigma * sigma) * below + x * sigma * bell)


_twice_integrated: Callable[..., float] = njit(cache=True)(_twice_integrated_py)


def _add_lines_py(table, step, q0, strength, sigma, edges):  # type: ignore[no-untyped-def]
    """Project Gaussians, smeared over the pieces of the spectrum, on the hat functions of linear interpolation.

    A hat is a second difference, so that the weight is the second difference of the line's second integral: what
    interpolates the table has the line's area and place, however narrow it is.
    """
    pieces = edges.shape[0] - 1
    first, mean, square = edges[0], 0.0, 0.0
    for k in range(pieces):
        a, b = edges[k], edges[k + 1]
        mean += (a + b) / 2.0 / pieces
        square += (a * a + a * b + b * b) / 3.0 / pieces
    half = math.sqrt(3.0 * max(square - mean * mean, 0.0))
    whole = np.array([mean - half, mean + half])  # the box of the same mean and variance
    for j in range(q0.shape[0]):
        s = sigma[j]
        cuts = edges
        if s > q0[j] * (edges[pieces] - first):
            cuts = whole
        count = cuts.shape[0] - 1
        for k in range(count):
            middle = q0[j] * (cuts[k] + cuts[k + 1]) / 2.0
            width = max(q0[j] * (cuts[k + 1] - cuts[k]), 1e-9)
            a, b = middle - width / 2.0, middle + width / 2.0
            low = max(0, int((a - 6.0 * s) / step) - 1)
            high = min(table.shape[0] - 1, int((b + 6.0 * s) / step) + 2)
            if low > high:
                continue
            factor = strength[j] * middle / q0[j] / count / (width * step * step)
            before = _twice_integrated((low - 1) * step - a, s) - _twice_integrated((low - 1) * step - b, s)
            here = _twice_integrated(low * step - a, s) - _twice_integrated(low * step - b, s)
            for i in range(low, high + 1):
                after = _twice_integrated((i + 1) * step - a, s) - _twice_integrated((i + 1) * step - b, s)
                table[i] += max(factor * (after - 2.0 * here + before), 0.0)
                before, here = here, after


_add_lines: Callable[..., Any] = njit(cache=True)(_add_lines_py)
