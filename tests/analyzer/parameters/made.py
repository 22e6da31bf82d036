"""Profiles as the simulation has them: what an EIGER2 X 4M is expected to count, and noisy ones of frames."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

from analyzer import bundle
from analyzer.diffuse import places
from analyzer.geometry import Geometry, bin_map
from analyzer.parameters.fit import Fitter
from analyzer.parameters.profile import Sectors, merge, sectors
from analyzer.parameters.scattering import Scattering, scattering
from sim_replay.background import Surroundings, make_background, mix, scales
from sim_replay.detector import Condition, Detector, eiger2_4m

Floats = npt.NDArray[np.float64]

RINGS_MERGED = 4


@cache
def tables() -> Scattering:
    """The tables of the default bundle."""
    folder = Path(bundle.__file__).parent / "bundles" / "default"
    return scattering(load_file(folder / "scattering.safetensors"))


@cache
def detector() -> Detector:
    return eiger2_4m()


@cache
def panel() -> tuple[Geometry, npt.NDArray[np.uint16], Sectors]:
    """Geometry with the beam in the middle, place of each pixel, and bins of the profile."""
    rows, columns = detector().shape
    geometry = Geometry((rows, columns), columns / 2 - 0.5, rows / 2 - 0.5, 75e-6)
    bins = bin_map(geometry)
    place = places(geometry, bins)
    return geometry, place, sectors(geometry, bins, place, (~detector().mask).reshape(-1).astype(np.uint8))[0]


@cache
def rings(merged: int = RINGS_MERGED, *, folded: bool = True) -> Sectors:
    """The bins a single frame is fitted on, folded over the quadrants or not."""
    return merge(panel()[2], merged, folded=folded)


@cache
def frame_fitter() -> Fitter:
    return Fitter(rings().shape, rings().pixels, rings().pixel_size_m, tables(), folded=True)


def image(
    condition: Condition, shift_px: tuple[float, float] = (0.0, 0.0), extra: Floats | None = None, **surroundings: Any
) -> npt.NDArray[np.float32]:
    """Expected counts of every pixel; the beam is ``shift_px`` (fs, ss) from the middle."""
    rows, columns = detector().shape
    there = Condition(
        condition.photon_energy_eV,
        condition.camera_length_m,
        condition.flux_photons,
        columns / 2 + shift_px[0],
        rows / 2 + shift_px[1],
    )
    around = Surroundings(**surroundings)
    background = make_background(there, detector(), around, extra)
    return mix(background, scales(there, around), np.zeros((rows, columns), np.float32))


def sums(counts: npt.NDArray[Any], merged: int = RINGS_MERGED, *, folded: bool = True) -> Floats:
    """An image by the bins of rings."""
    _, place, fine = panel()
    live = ~detector().mask
    profile = np.bincount(fine.place[place[live.reshape(-1)]], counts[live].astype(np.float64), fine.bins)
    return by_rings(profile, merged, folded=folded)


def by_rings(profile: Floats, merged: int = RINGS_MERGED, *, folded: bool = True) -> Floats:
    coarse = rings(merged, folded=folded)
    summed: Floats = np.bincount(coarse.place, profile, len(coarse.pixels))
    return summed


def expected(condition: Condition, *arguments: Any, **surroundings: Any) -> Floats:
    """Expected photons of each bin of a frame's rings."""
    return sums(image(condition, *arguments, **surroundings))


def whole(photons: Floats) -> Floats:
    """A profile (3, bins) of a detector that counts every photon and counted what is expected."""
    return np.stack([photons, photons + pairs_of(photons) / len(photons), rings().pixels])


def pairs_of(photons: Floats) -> float:
    """n (n - 1) expected."""
    return float((photons**2 / np.maximum(rings().pixels, 1.0)).sum())


def noisy(photons: Floats, rng: np.random.Generator, once: bool = False) -> Floats:
    """A frame's profile; ``once``: of pixels that count once a pulse."""
    per_pixel = photons / np.maximum(rings().pixels, 1.0)
    if once:
        counts = rng.binomial(rings().pixels.astype(np.int64), -np.expm1(-per_pixel)).astype(np.float64)
        return np.stack([counts, counts, rings().pixels])
    counts = rng.poisson(photons).astype(np.float64)
    return np.stack([counts, counts + rng.poisson(pairs_of(photons)) / len(counts), rings().pixels])


def truth(condition: Condition) -> Floats:
    """ln(L/E) and ln E."""
    return np.log([condition.camera_length_m / condition.photon_energy_eV, condition.photon_energy_eV])
