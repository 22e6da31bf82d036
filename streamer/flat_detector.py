"""A geometry file as one flat detector: what simulation and analysis work with.

In: a `DetectorGeometry`. Out: the image's shape, the beam centre (edge-based pixels), the camera length, and what is
dead as gaps (whole rows and columns) and rectangles. A geometry that is anything else is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamer.bounds import MAX_SIDE_PX
from streamer.geometry_file import DetectorGeometry, short

MAX_PIXELS = 1 << 26
"""Four times the largest Eiger."""

GRID_TOLERANCE_PX = 0.5
"""A detector counts as flat and unrotated when no pixel stands further than this from one common grid."""

Range = tuple[int, int]
Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class FlatDetector:
    """One flat, unrotated detector: fs along x, ss along y, all panels on one grid.

    shape (ss, fs) covers all panels; the beam centre is edge-based pixels (index = centre - 0.5). gaps_ss, gaps_fs are
    half-open ranges of rows and columns without a live pixel; bad holds further rectangles (ss low, ss high, fs low,
    fs high), half-open: bad regions, places without a panel, panels marked no_index. camera_length_m and
    photon_energy_eV are None where the file gives no number.
    """

    shape: tuple[int, int]
    pixel_size_m: float
    beam_center_x_px: float
    beam_center_y_px: float
    camera_length_m: float | None
    photon_energy_eV: float | None
    gaps_ss: tuple[tuple[int, int], ...]
    gaps_fs: tuple[tuple[int, int], ...]
    bad: tuple[tuple[int, int, int, int], ...]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(ss, fs) bool, True where a pixel is no use."""
        return _drawn(
            self.shape,
            [
                *((low, high, 0, self.shape[1]) for low, high in self.gaps_ss),
                *((0, self.shape[0], low, high) for low, high in self.gaps_fs),
                *self.bad,
            ],
        )


def flat_detector(geometry: DetectorGeometry) -> FlatDetector:
    """The geometry as one flat detector. Raises ValueError, one line, when it is not one.

    It is when all panels lie in one dataset and no pixel stands further than GRID_TOLERANCE_PX from one grid with fs
    along x and ss along y, at one camera length.
    """
    panels = geometry.panels
    if not panels:
        raise ValueError("the geometry has no panels")
    first = panels[0]
    pixel_m = first.pixel_size_m
    shape = max(p.max_ss for p in panels) + 1, max(p.max_fs for p in panels) + 1
    if max(shape) > MAX_SIDE_PX or shape[0] * shape[1] > MAX_PIXELS:
        raise ValueError(f"an image of {shape[0]} x {shape[1]} pixels is too large")
    for panel in panels:
        if (panel.data, panel.dims) != (first.data, first.dims):
            raise ValueError(
                f"panels {short(first.name)} and {short(panel.name)} lie in different datasets or slices of one; "
                "only a detector in one image can be used here"
            )
        if abs(panel.pixel_size_m / pixel_m - 1.0) > 1e-4:
            raise ValueError(f"panels {short(first.name)} and {short(panel.name)} have pixels of different size")

    lengths = {panel.clen_m if panel.clen_m is not None else geometry.clen_m for panel in panels}
    if len(lengths) > 1:
        raise ValueError("the panels have camera lengths of their own; only a flat detector can be used here")
    clen = lengths.pop()
    shift_px = []
    for shift in (geometry.shift_x_m, geometry.shift_y_m):
        if isinstance(shift, str):
            raise ValueError(
                f"the detector's shift stands in the image's metadata ({short(shift)}); give it in numbers"
            )
        shift_px.append((shift or 0.0) / pixel_m)

    # Where each panel's four outer corners stand in the laboratory, less where the grid has them: the origin.
    corners = np.array(
        [
            [
                [
                    panel.corner_x + i * panel.fs[0] + j * panel.ss[0] - (panel.min_fs + i),
                    panel.corner_y + i * panel.fs[1] + j * panel.ss[1] - (panel.min_ss + j),
                    panel.coffset_m / pixel_m + i * panel.fs[2] + j * panel.ss[2],
                ]
                for i in (0, panel.shape[1])
                for j in (0, panel.shape[0])
            ]
            for panel in panels
        ]
    )
    # Half the way from the lowest to the highest leaves the smallest largest deviation.
    origin = (corners.min(axis=(0, 1)) + corners.max(axis=(0, 1))) / 2.0
    if not np.abs(corners - origin).max() <= GRID_TOLERANCE_PX:
        spread = np.ptp(corners, axis=1)
        rotated = not spread.max() <= 2.0 * GRID_TOLERANCE_PX
        apart = spread if rotated else np.abs(corners - np.median(corners, axis=(0, 1))).max(axis=1)
        worst = int(apart.max(axis=1).argmax())
        raise ValueError(
            f"panel {short(panels[worst].name)} is {'rotated or tilted' if rotated else 'off the others'}: along "
            f"{'xyz'[int(apart[worst].argmax())]} its pixels stand up to {apart[worst].max():.3g} pixels from a grid "
            f"common to all panels (+-{GRID_TOLERANCE_PX} allowed); only one flat, unrotated detector can be used here"
        )
    camera_length_m = None
    if isinstance(clen, float):
        camera_length_m = clen + float(origin[2]) * pixel_m
        if camera_length_m <= 0.0:
            raise ValueError(f"the camera length is {camera_length_m} m with the panels' coffset; it must be above 0")

    origin_x, origin_y = float(origin[0]) + shift_px[0], float(origin[1]) + shift_px[1]
    gaps_ss, gaps_fs, bad = _unused(geometry, shape, origin_x, origin_y)
    return FlatDetector(
        shape=shape,
        pixel_size_m=pixel_m,
        beam_center_x_px=-origin_x,
        beam_center_y_px=-origin_y,
        camera_length_m=camera_length_m,
        photon_energy_eV=geometry.stated_photon_energy_eV,
        gaps_ss=gaps_ss,
        gaps_fs=gaps_fs,
        bad=bad,
    )


def _drawn(shape: tuple[int, int], rectangles: Iterable[Rectangle]) -> NDArray[np.bool_]:
    """(ss, fs) bool, True inside any rectangle; the time it takes hardly depends on how many there are."""
    steps = np.zeros((shape[0] + 1, shape[1] + 1), dtype=np.int32)
    for ss_low, ss_high, fs_low, fs_high in rectangles:
        steps[ss_low, fs_low] += 1
        steps[ss_high, fs_low] -= 1
        steps[ss_low, fs_high] -= 1
        steps[ss_high, fs_high] += 1
    np.cumsum(steps, axis=0, out=steps)
    np.cumsum(steps, axis=1, out=steps)
    return steps[:-1, :-1] > 0


def _runs(flags: NDArray[np.bool_]) -> tuple[Range, ...]:
    """Half-open ranges in which flags is set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return tuple((int(low), int(high)) for low, high in edges.reshape(-1, 2))


def _unused(
    geometry: DetectorGeometry, shape: tuple[int, int], origin_x: float, origin_y: float
) -> tuple[tuple[Range, ...], tuple[Range, ...], tuple[Rectangle, ...]]:
    """Rows and columns without a live pixel, and rectangles for the rest that is not live."""
    rows, columns = shape
    panels = {p.name: (p.min_ss, p.max_ss + 1, p.min_fs, p.max_fs + 1) for p in geometry.panels}
    rectangles = [panels[p.name] for p in geometry.panels if p.no_index]
    rectangles += [(b.min_ss, b.max_ss + 1, b.min_fs, b.max_fs + 1) for b in geometry.bad_pixels]
    for area in geometry.bad_areas:
        # A pixel's first corner has whole coordinates on the grid; both bounds are exclusive.
        fs_low, fs_high = (math.floor(area.min_x - origin_x) + 1, math.ceil(area.max_x - origin_x))
        ss_low, ss_high = (math.floor(area.min_y - origin_y) + 1, math.ceil(area.max_y - origin_y))
        clipped = max(ss_low, 0), min(ss_high, rows), max(fs_low, 0), min(fs_high, columns)
        if clipped[0] < clipped[1] and clipped[2] < clipped[3]:
            rectangles.append(clipped)

    covered = _drawn(shape, panels.values())
    live = covered & ~_drawn(shape, rectangles)
    live_rows, live_columns = np.asarray(live.any(axis=1)), np.asarray(live.any(axis=0))
    gaps_ss, gaps_fs = _runs(~live_rows), _runs(~live_columns)
    # Rows that begin or end a panel cut what is not covered into bands; each band is the same in all its rows.
    cuts = sorted({0, rows, *(edge for panel in panels.values() for edge in panel[:2])})
    bands = itertools.pairwise(cuts)
    rectangles += [(low, high, *run) for low, high in bands for run in _runs(~covered[low])]
    # Inside the gaps is what lies in gap rows altogether, or in gap columns.
    left = (r for r in rectangles if live_rows[r[0] : r[1]].any() and live_columns[r[2] : r[3]].any())
    return gaps_ss, gaps_fs, tuple(sorted(set(left)))
