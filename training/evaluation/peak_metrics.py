"""Peaks against true spots, frame by frame, matched one to one, nearest first.

Spots nearer to each other than the matching radius are one, at the brightest, with the photons of all: no finder can
part them. A peak without a spot is false where hardly any Bragg light is expected within ``LIGHT_PX`` of it; on such
light, as of a spot that another peak has taken, it is neither right nor false. Spots beside invalid pixels
(``beside_invalid``) count neither way, where the caller knows of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.ndimage import minimum_filter

Array = npt.NDArray[np.float64]

MATCH_PX = 4.0
LIGHT_PX = 3.0
EDGE_PX = 3
PHOTONS = (5.0, 10.0, 20.0)
LIGHT_PHOTONS = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """One frame: spots (n, 2) fs, ss with photons (n,); peaks (m, 2). spot_of (m,): the spot of each peak, -1 for none,
    -2 for a false peak. distance (m,) pixels, NaN without a spot."""

    spots: Array
    photons: Array
    peaks: Array
    spot_of: npt.NDArray[np.int64]
    distance: Array


def merge(spots: Array, photons: Array) -> tuple[Array, Array]:
    """Spots (n, 2) no two of which are nearer than MATCH_PX, and their photons."""
    kept: list[int] = []
    total = photons.copy()
    for spot in np.argsort(-photons, kind="stable").tolist():
        if kept:
            distance = np.hypot(*(spots[kept] - spots[spot]).T)
            nearest = int(np.argmin(distance))
            if distance[nearest] < MATCH_PX:
                total[kept[nearest]] += photons[spot]
                continue
        kept.append(spot)
    return spots[kept], total[kept]


def match(peaks: Array, spots: Array, photons: Array, light: Array | None = None) -> Matches:
    """Match the peaks (m, 2) of a frame to its true spots (n, 2) of these photons (n,).

    light (m,): expected Bragg photons around each peak, where more is known of them than the spots say.
    """
    single, total = merge(spots, photons)
    apart = np.hypot(*(peaks[:, None] - single[None]).transpose(2, 0, 1))
    spot_of, distance = np.full(len(peaks), -1), np.full(len(peaks), np.nan)
    taken: set[int] = set()
    rows, columns = np.nonzero(apart <= MATCH_PX)
    for k in np.argsort(apart[rows, columns], kind="stable").tolist():
        peak, spot = int(rows[k]), int(columns[k])
        if spot_of[peak] < 0 and spot not in taken:
            spot_of[peak], distance[peak] = spot, apart[peak, spot]
            taken.add(spot)
    if light is None:
        light = (np.hypot(*(peaks[:, None] - spots[None]).transpose(2, 0, 1)) <= LIGHT_PX) @ photons
    spot_of[(spot_of < 0) & (light < LIGHT_PHOTONS)] = -2
    return Matches(single, total, peaks, spot_of, distance)


def beside_invalid(valid: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(ss, fs) bool: an invalid pixel is at most EDGE_PX rows and columns away; the panel's rim counts."""
    whole = (valid != 0).astype(np.uint8)
    beside: npt.NDArray[np.bool_] = minimum_filter(whole, 2 * EDGE_PX + 1, mode="constant", cval=0) == 0
    return beside


@dataclass(slots=True)
class PeakCount:
    """What many frames add up to; by_photons: (true, found) for each of PHOTONS."""

    frames: int = 0
    peaks: int = 0
    false: int = 0
    doubled: int = 0
    by_photons: list[list[int]] = field(default_factory=lambda: [[0, 0] for _ in PHOTONS])
    squares: list[float] = field(default_factory=list)

    def add(self, matches: Matches, beside: npt.NDArray[np.bool_] | None = None) -> None:
        """Count one frame; spots in ``beside`` (ss, fs), see ``beside_invalid``, count neither way."""
        self.frames += 1
        self.peaks += len(matches.peaks)
        self.false += int((matches.spot_of == -2).sum())
        self.doubled += int((matches.spot_of == -1).sum())
        counted = np.ones(len(matches.photons), np.bool_) if beside is None else ~_at(beside, matches.spots)
        taken = matches.spot_of >= 0
        taken[taken] = counted[matches.spot_of[taken]]
        found = matches.photons[matches.spot_of[taken]]
        for least, pair in zip(PHOTONS, self.by_photons, strict=True):
            pair[0] += int((matches.photons[counted] >= least).sum())
            pair[1] += int((found >= least).sum())
        bright = taken.copy()
        bright[taken] = found >= PHOTONS[1]
        self.squares += (matches.distance[bright] ** 2).tolist()

    def include(self, other: "PeakCount") -> None:
        """Add what another one counted."""
        self.frames, self.peaks = self.frames + other.frames, self.peaks + other.peaks
        self.false, self.doubled = self.false + other.false, self.doubled + other.doubled
        self.squares += other.squares
        for total, part in zip(self.by_photons, other.by_photons, strict=True):
            total[0], total[1] = total[0] + part[0], total[1] + part[1]

    @property
    def position_error_px(self) -> float | None:
        """Root mean square distance of peak and spot, of spots with at least PHOTONS[1] photons."""
        return float(np.sqrt(np.mean(self.squares))) if self.squares else None


def _at(image: npt.NDArray[np.bool_], places: Array) -> npt.NDArray[np.bool_]:
    """The image's values at places (n, 2) fs, ss; of places off it those at its edge."""
    fs, ss = (np.clip(np.rint(each).astype(np.intp), 0, size - 1) for each, size in zip(places.T, image.shape[::-1],
              strict=True))  # fmt: skip
    values: npt.NDArray[np.bool_] = image[ss, fs]
    return values


def spots_of(fs: Sequence[float] | Array, ss: Sequence[float] | Array) -> Array:
    """Positions (n, 2) fs, ss."""
    return np.stack([np.asarray(fs, np.float64), np.asarray(ss, np.float64)], 1).reshape(-1, 2)
