"""How far our diffraction and CrystFEL's pattern_sim agree, pattern by pattern.

pattern_sim evaluates the interference function of a perfect crystal,

    I(q) = |F_hkl|^2 prod_j sin^2(pi N_j x_j) / sin^2(pi x_j),      x = q in units of a*, b*, c*,

at 4 x 4 places in every pixel for each of a few wavelengths, hkl being the nearest whole x (Als-Nielsen and McMorrow,
Elements of Modern X-ray Physics, 2011, section 5.1). We integrate each reflection instead. Both put a reflection in
the same place; but the function falls only as 1/(pi N_j x_j)^2 along the three axes, so in pattern_sim a very strong
reflection that is outside the band still lights pixels where one of its three streaks meets the Ewald sphere.
`label_fringes` says which reflection lights a spot, and from how far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim_replay.beam import Beam
from sim_replay.crystal import Crystal, reciprocal_basis
from sim_replay.crystfel import Pattern
from sim_replay.detector import Condition, Detector, plain_panel
from sim_replay.diffraction import Sample, diffract, footprint

SAMPLES_PER_EDGE = 4
SAMPLING_SHIFT_PX = 0.125
"""pattern_sim takes its samples at 0, 1/4, 1/2 and 3/4 of a pixel's edge, so that its images stand 1/8 px too far
along fs and ss."""

PERFECT_MOSAICITY_DEG = 0.003
"""Stands for a perfect crystal: a twentieth of a pixel at 0.35 m."""


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """For each of a pattern's n spots the nearest reflection that `diffract` predicts.

    photons (n,) of the spot; offset_ss, offset_fs (n,) from the reflection to the spot in pixels, NaN when nothing is
    predicted.
    """

    photons: NDArray[np.float64]
    offset_ss: NDArray[np.float64]
    offset_fs: NDArray[np.float64]

    @property
    def distance_px(self) -> NDArray[np.float64]:
        """(n,) float64, infinite where nothing is predicted."""
        return np.nan_to_num(np.hypot(self.offset_ss, self.offset_fs), nan=math.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Fringes:
    """Which reflection lights each of n spots of pattern_sim.

    hkl (n, 3) int64; away (n, 3) float64, how far from that reflection's place, in fringes (1/N_j) along a*, b*, c*;
    wavelength (n,) float64, the one for which the reflection itself meets the Bragg condition, relative to the middle
    of the band.
    """

    hkl: NDArray[np.int64]
    away: NDArray[np.float64]
    wavelength: NDArray[np.float64]

    @property
    def on_streak(self) -> NDArray[np.bool_]:
        """(n,) bool: further than one fringe from its reflection along one axis, within one along the other two."""
        along = np.sort(np.abs(self.away), axis=1)
        return np.asarray((along[:, 2] > 1.0) & (along[:, 1] < 1.0))


def condition_of(pattern: Pattern, beam: Beam | None = None) -> Condition:
    """A pattern's condition; the beam defaults to the paper's 1 % top hat with CrystFEL's fluence."""
    return Condition(
        pattern.photon_energy_eV,
        pattern.camera_length_m,
        flux_photons=pattern.flux_photons,
        beam_center_x_px=pattern.beam_center_x_px,
        beam_center_y_px=pattern.beam_center_y_px,
        beam=Beam(profile="uniform") if beam is None else beam,
    )


def panel_of(pattern: Pattern) -> Detector:
    """The gapless panel that a pattern covers."""
    return plain_panel(pattern.shape, pixel_size_m=pattern.pixel_size_m)


def perfect_sample(crystal: Crystal, size_m: float = 10e-6) -> Sample:
    """The sample that stands for pattern_sim's crystal."""
    return Sample(crystal, size_m=size_m, mosaicity_deg=PERFECT_MOSAICITY_DEG)


def compare_spots(pattern: Pattern, sample: Sample, beam: Beam | None = None) -> Agreement:
    """Match a pattern's spots with the reflections predicted for its orientation."""
    spots = diffract(sample, condition_of(pattern, beam), panel_of(pattern), pattern.orientation)
    if len(spots) == 0:
        nothing = np.full(len(pattern.spot_photons), np.nan)
        return Agreement(pattern.spot_photons, nothing, nothing)
    off_ss = pattern.spot_ss[:, None] - spots.ss
    off_fs = pattern.spot_fs[:, None] - spots.fs
    nearest = np.hypot(off_ss, off_fs).argmin(axis=1)[:, None]
    return Agreement(
        pattern.spot_photons,
        np.take_along_axis(off_ss, nearest, axis=1)[:, 0],
        np.take_along_axis(off_fs, nearest, axis=1)[:, 0],
    )


def radial_photons(
    pattern: Pattern, sample: Sample, edges_px: NDArray[np.float64], beam: Beam | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Photons in rings around the beam, pattern_sim's and ours: (n,) float64 each for n + 1 rising radii in pixels."""
    condition, panel = condition_of(pattern, beam), panel_of(pattern)
    laid = footprint(diffract(sample, condition, panel, pattern.orientation), condition, panel)
    rings = []
    for index, photons in ((pattern.index, pattern.photons), (laid.index, laid.photons)):
        ss, fs = np.divmod(index, pattern.shape[1])
        radius = np.hypot(fs + 0.5 - pattern.beam_center_x_px, ss + 0.5 - pattern.beam_center_y_px)
        rings.append(np.histogram(radius, edges_px, weights=photons)[0].astype(np.float64))
    return rings[0], rings[1]


def label_fringes(
    pattern: Pattern, crystal: Crystal, size_m: float = 10e-6, bandwidth: float = 0.01, spectrum_samples: int = 7
) -> Fringes:
    """The reflection whose interference function is largest among pattern_sim's samples of each spot.

    The samples are those of the 3 x 3 pixels around a spot's centroid at all of pattern_sim's wavelengths: wave numbers
    that part the band into spectrum_samples + 1 equal steps.
    """
    steps = np.arange(3 * SAMPLES_PER_EDGE) / SAMPLES_PER_EDGE - 1.0
    fs = np.rint(pattern.spot_fs)[:, None, None] + steps[None, None, :] - pattern.beam_center_x_px
    ss = np.rint(pattern.spot_ss)[:, None, None] + steps[None, :, None] - pattern.beam_center_y_px
    fs, ss = np.broadcast_arrays(fs, ss)
    distance = pattern.camera_length_m / pattern.pixel_size_m
    length = np.sqrt(fs**2 + ss**2 + distance**2)
    scattering = np.stack([fs / length, ss / length, distance / length - 1.0], axis=-1).reshape(
        len(fs), steps.size**2, 3
    )
    condition = condition_of(pattern)
    wave_number = 1.0 / condition.wavelength_angstrom
    waves = wave_number * (1.0 + bandwidth * (np.arange(1, spectrum_samples + 1) / (spectrum_samples + 1) - 0.5))
    axes = pattern.orientation @ reciprocal_basis(crystal.cell)
    q = (scattering[:, :, None, :] * waves[:, None]).reshape(len(fs), steps.size**2 * len(waves), 3)
    place = q @ np.linalg.inv(axes).T
    nearest = np.rint(place).astype(np.int64)
    off: NDArray[np.float64] = place - nearest
    cells = np.floor(size_m * 1e10 / np.array(crystal.cell[:3]))
    with np.errstate(divide="ignore", invalid="ignore"):
        interference = np.prod((np.sin(math.pi * cells * off) / np.sin(math.pi * off)) ** 2, axis=2)
    strength = np.nan_to_num(interference, nan=float(np.prod(cells**2))) * _intensities(crystal, nearest)
    best = strength.argmax(axis=1)[:, None, None]
    hkl = np.take_along_axis(nearest, best, axis=1)[:, 0]
    away: NDArray[np.float64] = np.take_along_axis(off, best, axis=1)[:, 0] * cells
    node = hkl @ axes.T
    with np.errstate(divide="ignore", invalid="ignore"):
        own_wavelength = -2.0 * node[:, 2] / np.sum(node**2, axis=1)
    return Fringes(hkl, away, own_wavelength * wave_number)


def _intensities(crystal: Crystal, hkl: NDArray[np.int64]) -> NDArray[np.float64]:
    """|F|^2 of reflections (..., 3), 0 where the crystal lists none."""
    reach = np.abs(crystal.hkl).max(axis=0).astype(np.int64) + 1  # the outermost layer of the table stays 0
    table = np.zeros(2 * reach + 1)
    table[tuple((crystal.hkl + reach).T)] = crystal.intensity
    return np.asarray(table[tuple(np.moveaxis(np.clip(hkl, -reach, reach) + reach, -1, 0))])
