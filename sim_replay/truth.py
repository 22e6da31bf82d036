"""What is true of a frame: its spots as the detector is expected to count them, and whether they can be seen.

A spot's place is the centroid of the counts it is expected to add, which is where an analysis of counts should find
it: where pixels count at most once a pulse, that is not the centroid of its photons.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from sim_replay.detector import Condition, Detector
from sim_replay.diffraction import Footprint
from sim_replay.distractors import Kind, Ring
from sim_replay.response import Response, ResponseWorkspace, expected_counts_at

TRUE_SPOT_MIN_PHOTONS = 0.5
"""Spots that live pixels are expected to collect fewer photons from are not listed as true."""

MERGE_RADIUS_PX = 2.0
"""Reflections closer than this are one spot on the detector."""

DETECTABLE_LOG_LIKELIHOOD_RATIO = 3.0
"""A frame is detectable when its spots are expected to raise the log likelihood by more than this."""

LEAST_BACKGROUND_COUNTS = 1e-6
"""A pixel is taken to expect this much at least: one that expects nothing would make any photon infinitely telling."""


@dataclass(frozen=True, slots=True, eq=False)
class TrueSpots:
    """Spots of a frame: pixel index ss, fs (n,) float64; expected photons and counts (n,) float64 on live pixels; of
    the brightest reflection in each hkl (n, 3) int32, partiality (n,) float64 and crystal (n,) int32."""

    ss: NDArray[np.float64]
    fs: NDArray[np.float64]
    photons: NDArray[np.float64]
    counts: NDArray[np.float64]
    hkl: NDArray[np.int32]
    partiality: NDArray[np.float64]
    crystal: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.photons)


NO_SPOTS = TrueSpots(*(np.empty(0),) * 4, np.empty((0, 3), dtype=np.int32), np.empty(0), np.empty(0, dtype=np.int32))


@dataclass(frozen=True, slots=True, eq=False)
class ShotTruth:
    """What is true of one frame.

    kinds: all that is in it; PROTEIN where a crystal of the sample sends light to live pixels, however little. crystal:
    one was in the light. condition: of this shot, jitter and all; water_thickness_m as well. orientations
    (crystals, 3, 3) float64 and offsets_m (crystals, 2) float64, none without crystals. spots: of the crystals;
    distractor_spots: of salt. bragg_photons, background_photons: expected on live pixels in the frame, from the
    crystals and from everything else. log_likelihood_ratio: see `Expected`. rings: powder lines in the detector's
    reach; salt_names: of the salt crystallites, where any of their spots shows.
    """

    kinds: Kind
    condition: Condition
    water_thickness_m: float
    orientations: NDArray[np.float64]
    offsets_m: NDArray[np.float64]
    spots: TrueSpots
    distractor_spots: TrueSpots
    bragg_photons: float
    background_photons: float
    log_likelihood_ratio: float
    crystal: bool = False
    rings: tuple[Ring, ...] = ()
    salt_names: tuple[str, ...] = ()

    @property
    def hit(self) -> bool:
        """Whether a crystal of the sample sends light to live pixels, however little."""
        return Kind.PROTEIN in self.kinds

    @property
    def detectable(self) -> bool:
        """Whether the crystals' spots are expected to show."""
        return self.log_likelihood_ratio > DETECTABLE_LOG_LIKELIHOOD_RATIO


@dataclass(frozen=True, slots=True, eq=False)
class Lit:
    """The n spots of one crystal on the detector: hkl (n, 3) int32, partiality (n,) float64 and their footprint.

    Entries of the footprint that name spot n are light of the crystal that belongs to no spot.
    """

    hkl: NDArray[np.int32]
    partiality: NDArray[np.float64]
    footprint: Footprint


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What a set of crystals adds to a frame.

    counts: for each crystal (m,) expected counts of its footprint's entries. log_likelihood_ratio: the mean, over
    frames with these spots, of the log likelihood of their counts with the spots over that without, both known
    exactly: sum of c ln(c/b) - (c - b) over the pixels for Poisson counts, of the Bernoulli divergence where a pixel
    counts once a pulse. For retriggering pixels, which follow neither law, and with dark counts, which follow the
    first, the first is taken. Counts are those before a pixel's largest value cuts them.
    """

    counts: tuple[NDArray[np.float64], ...]
    log_likelihood_ratio: float


def expect(
    footprints: tuple[Footprint, ...],
    background: NDArray[np.float32],
    scale: float,
    response: Response,
    detector: Detector,
    workspace: ResponseWorkspace,
    dark_counts: float = 0.0,
) -> Expected:
    """Expected counts of spots over `background` (ss, fs) times scale, both in photons a frame.

    dark_counts: what every pixel counts besides in a frame, in the mean.
    """
    index = np.concatenate([each.index for each in footprints]) if footprints else np.empty(0, dtype=np.int64)
    if len(index) == 0:
        return Expected(tuple(np.empty(0) for _ in footprints), 0.0)
    photons = np.concatenate([each.photons for each in footprints])
    pixel, entry_of = np.unique(index, return_inverse=True)
    total: NDArray[np.float64] = np.bincount(entry_of, photons, len(pixel)).astype(np.float64)
    if response.kind == "integrating":
        without = background.reshape(-1)[pixel].astype(np.float64) * scale
        added, counts = total, photons
    else:
        with_spots, without = expected_counts_at(
            pixel, total, background, scale, response, detector.pixel_size_m, workspace
        )
        added = with_spots - without
        counts = photons * (added / total)[entry_of]
    ends = np.cumsum([len(each.index) for each in footprints])[:-1]
    without = without + dark_counts
    once = response.kind == "one_per_pulse" and dark_counts == 0.0
    ratio = _log_likelihood_ratio(without + added, without, response.pulses if once else None)
    return Expected(tuple(np.split(counts, ends)), ratio)


def _log_likelihood_ratio(
    with_spots: NDArray[np.float64], without: NDArray[np.float64], most_counts: int | None
) -> float:
    """Of binomial counts up to most_counts a pixel, or of Poisson counts."""
    c, b = np.maximum(with_spots, LEAST_BACKGROUND_COUNTS), np.maximum(without, LEAST_BACKGROUND_COUNTS)
    if most_counts is None:
        return float(np.sum(c * np.log(c / b) - (c - b)))
    p, q = np.minimum(c / most_counts, _SURE), np.minimum(b / most_counts, _SURE)
    return float(most_counts * np.sum(p * np.log(p / q) + (1.0 - p) * (np.log1p(-p) - np.log1p(-q))))


_SURE = 1.0 - 1e-12


def true_spots(
    lit: tuple[Lit, ...],
    counts: tuple[NDArray[np.float64], ...],
    detector: Detector,
    min_photons: float = TRUE_SPOT_MIN_PHOTONS,
    radius_px: float = MERGE_RADIUS_PX,
) -> TrueSpots:
    """Join reflections that fall within radius_px into one spot, brightest first, and keep those above min_photons.

    counts: the expected counts of each footprint's entries.
    """
    single = _joined(
        [
            _reflections(each, entry_counts, crystal, detector.shape[1], 0.02 * min_photons)
            for crystal, (each, entry_counts) in enumerate(zip(lit, counts, strict=True))
        ]
    )
    if len(single) == 0:
        return NO_SPOTS
    ss, fs, photons, seen = single.ss, single.fs, single.photons, single.counts
    pairs = cKDTree(np.stack([ss, fs], axis=1)).query_pairs(radius_px, output_type="ndarray")
    links = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(len(ss),) * 2)
    groups, label = connected_components(links, directed=False)
    total: NDArray[np.float64] = np.bincount(label, photons, groups).astype(np.float64)
    total_seen: NDArray[np.float64] = np.bincount(label, seen, groups).astype(np.float64)
    brightest = np.empty(groups, dtype=np.int64)
    order = np.argsort(photons, kind="stable")
    brightest[label[order]] = order  # the last write, the brightest, stays
    keep = np.argsort(-total, kind="stable")
    keep = keep[total[keep] >= min_photons]
    return TrueSpots(
        ss=(np.bincount(label, seen * ss, groups) / total_seen)[keep],
        fs=(np.bincount(label, seen * fs, groups) / total_seen)[keep],
        photons=total[keep],
        counts=total_seen[keep],
        hkl=single.hkl[brightest[keep]],
        partiality=single.partiality[brightest[keep]],
        crystal=single.crystal[brightest[keep]],
    )


def _reflections(
    lit: Lit, entry_counts: NDArray[np.float64], crystal: int, columns: int, min_photons: float
) -> TrueSpots:
    """Each reflection by itself; those too weak to lift a spot over the limit are left out."""
    n, laid = len(lit.hkl), lit.footprint
    ss, fs = np.divmod(laid.index, columns)
    photons, seen = laid.spot_sums(laid.photons, n)[:n], laid.spot_sums(entry_counts, n)[:n]
    bright = np.flatnonzero((photons > min_photons) & (seen > 0.0))
    return TrueSpots(
        ss=laid.spot_sums(entry_counts * ss, n)[bright] / seen[bright],
        fs=laid.spot_sums(entry_counts * fs, n)[bright] / seen[bright],
        photons=photons[bright],
        counts=seen[bright],
        hkl=lit.hkl[bright],
        partiality=lit.partiality[bright],
        crystal=np.full(len(bright), crystal, dtype=np.int32),
    )


def _joined(spots: list[TrueSpots]) -> TrueSpots:
    if not spots:
        return NO_SPOTS
    return TrueSpots(*(np.concatenate([getattr(s, each.name) for s in spots]) for each in fields(TrueSpots)))
