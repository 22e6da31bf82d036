"""Peaks against true spots, frame by frame, matched one to one, nearest first.

Spots nearer to each other than the matching radius are one, at the brightest, with the photons of all: no finder can
part them. A peak without a spot is false where hardly any Bragg light is expected around it; on such light, as of a
spot that another peak has taken, it is neither right nor false.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MATCH_PX = 4.0
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
        light = (np.hypot(*(peaks[:, None] - spots[None]).transpose(2, 0, 1)) <= MATCH_PX) @ photons
    spot_of[(spot_of < 0) & (light < LIGHT_PHOTONS)] = -2
    return Matches(single, total, peaks, spot_of, distance)


@dataclass(slots=True)
class PeakCount:
    """What many frames add up to; by_photons: (true, found) for each of PHOTONS."""

    frames: int = 0
    peaks: int = 0
    false: int = 0
    doubled: int = 0
    by_photons: list[list[int]] = field(default_factory=lambda: [[0, 0] for _ in PHOTONS])
    squares: list[float] = field(default_factory=list)

    def add(self, matches: Matches) -> None:
        """Count one frame."""
        self.frames += 1
        self.peaks += len(matches.peaks)
        self.false += int((matches.spot_of == -2).sum())
        self.doubled += int((matches.spot_of == -1).sum())
        found = matches.photons[matches.spot_of[matches.spot_of >= 0]]
        for least, pair in zip(PHOTONS, self.by_photons, strict=True):
            pair[0] += int((matches.photons >= least).sum())
            pair[1] += int((found >= least).sum())
        bright = (matches.spot_of >= 0) & (matches.photons[matches.spot_of] >= PHOTONS[1] if len(found) else False)
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


def spots_of(fs: Sequence[float] | Array, ss: Sequence[float] | Array) -> Array:
    """Positions (n, 2) fs, ss."""
    return np.stack([np.asarray(fs, np.float64), np.asarray(ss, np.float64)], 1).reshape(-1, 2)
