"""One shot: water and perhaps a crystal under a pulse, as a detector image with its truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from sim_replay.background import Background, draw_background, draw_sparse, water_background
from sim_replay.detector import CONDITIONS, Condition, Detector
from sim_replay.diffraction import Footprint, Sample, Spots, diffract, footprint, random_orientation

__all__ = [
    "CONDITIONS",
    "Condition",
    "Sample",
    "Shot",
    "TrueSpots",
    "frame_rng",
    "merge_spots",
    "simulate_shot",
]

TRUE_SPOT_MIN_PHOTONS = 0.5
"""Spots that live pixels are expected to collect fewer photons from are not listed as true."""

MERGE_RADIUS_PX = 2.0
"""Reflections closer than this are one spot on the detector."""


@dataclass(frozen=True, slots=True, eq=False)
class TrueSpots:
    """Spots of a frame: pixel index ss, fs (n,) float64, expected photons (n,) float64 on live pixels, hkl (n, 3)."""

    ss: NDArray[np.float64]
    fs: NDArray[np.float64]
    photons: NDArray[np.float64]
    hkl: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.photons)


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """An image and what is true of it.

    counts (ss, fs) in the detector's dtype; hit says whether a crystal was in the beam; orientation (3, 3) float64 is
    NaN without one; bragg_photons and water_photons are expected on live pixels.
    """

    counts: NDArray[np.unsignedinteger]
    hit: bool
    spots: TrueSpots
    orientation: NDArray[np.float64]
    condition: Condition
    bragg_photons: float
    water_photons: float


def frame_rng(seed: int, frame_index: int) -> np.random.Generator:
    """The random numbers of frame `frame_index` of seed `seed`, whichever process draws them.

    Philox counts its blocks in 256 bits; the frame stands in the highest 64, so that no two frames can meet.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, frame_index]))


def simulate_shot(
    condition: Condition,
    sample: Sample | None,
    detector: Detector,
    rng: np.random.Generator,
    out: NDArray[np.unsignedinteger] | None = None,
    *,
    orientation: NDArray[np.float64] | None = None,
    background: Background | None = None,
) -> Shot:
    """Simulate one pulse. Water and Bragg photons come from the same pulse and get fresh Poisson noise.

    sample None is an empty shot (water only). out, if given, is a C-contiguous array (ss, fs) of the detector's dtype
    that becomes `counts`. orientation defaults to a random one; background to the remembered water of the condition.
    Raises ValueError when out or background does not fit the detector.
    """
    if out is None:
        out = np.zeros(detector.shape, dtype=detector.dtype)
    elif out.shape != detector.shape or out.dtype != np.dtype(detector.dtype) or not out.flags.c_contiguous:
        raise ValueError(f"out must be a C-contiguous {detector.shape} array of {detector.dtype}")
    else:
        out[...] = 0
    if background is None:
        background = water_background(condition, detector)
    elif background.expected.shape != detector.shape:
        raise ValueError(f"the background is {background.expected.shape}, the detector {detector.shape}")

    true_spots, bragg_photons = _NO_SPOTS, 0.0
    if sample is None:
        orientation = np.full((3, 3), np.nan)
    else:
        if orientation is None:
            orientation = random_orientation(rng)
        spots = diffract(sample, condition, detector, orientation)
        laid = footprint(spots, condition, detector)
        bragg_photons = float(laid.photons.sum())
        true_spots = merge_spots(spots, laid)
        draw_sparse(laid.index, laid.photons, rng, out, detector.largest_count)
    scale = background.scale(condition)
    draw_background(background, scale, rng, out, detector.largest_count)
    detector.fill_gaps(out)
    return Shot(out, sample is not None, true_spots, orientation, condition, bragg_photons, scale * background.total)


def merge_spots(
    spots: Spots,
    laid: Footprint,
    min_photons: float = TRUE_SPOT_MIN_PHOTONS,
    radius_px: float = MERGE_RADIUS_PX,
) -> TrueSpots:
    """Join reflections that fall within radius_px into one spot, brightest first, and keep those above min_photons.

    A spot stands at the centroid of its photons on live pixels and bears the hkl of its brightest reflection.
    """
    # Reflections too weak to lift a spot over the limit are left out of the search for neighbours.
    bright = np.flatnonzero(laid.live_photons > 0.02 * min_photons)
    if len(bright) == 0:
        return _NO_SPOTS
    photons = laid.live_photons[bright]
    place = np.stack([laid.live_ss[bright], laid.live_fs[bright]], axis=1)
    pairs = cKDTree(place).query_pairs(radius_px, output_type="ndarray")
    links = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(len(bright),) * 2)
    groups, label = connected_components(links, directed=False)
    total: NDArray[np.float64] = np.bincount(label, photons, groups).astype(np.float64)
    ss = np.bincount(label, photons * place[:, 0], groups) / total
    fs = np.bincount(label, photons * place[:, 1], groups) / total
    brightest = np.empty(groups, dtype=np.int64)
    order = np.argsort(photons, kind="stable")
    brightest[label[order]] = order  # the last write, the brightest, stays
    hkl = spots.hkl[bright[brightest]]
    keep = np.argsort(-total, kind="stable")
    keep = keep[total[keep] >= min_photons]
    return TrueSpots(ss[keep], fs[keep], total[keep], hkl[keep])


_NO_SPOTS = TrueSpots(np.empty(0), np.empty(0), np.empty(0), np.empty((0, 3), dtype=np.int32))
