"""What a pixel counts by its own radius: the counts beside it, along the circle around the beam.

The background of a bin is a mean over 8 pixels of radius and a third of the azimuth. Where light changes within those,
as on the crest and at the edges of a smooth powder ring, it says too little of a pixel. What lies at the same radius a
few pixels to either side says more, whether or not the ring is round about the beam centre that the header names, and
whether or not it is as bright elsewhere.

Two arcs, from 5 to 16 pixels away on either side, are cut into four parts each. A part with much more than the others
holds another spot and is left out; so is one of which half is masked. What is left makes a profile along the radius in
half pixels, and the profile at a pixel's own radius is what is expected of it. It speaks only where a row of it holds
significantly more than the bin's background; elsewhere that is the background.
"""

from typing import Any

import numba
import numpy as np

NEAREST_PX, STEPS = 5, 12
"""Of an arc: a spot in the middle does not reach it, and how many pixels long it is."""

STEPS_A_PART = 3
PARTS = 2 * STEPS // STEPS_A_PART
ROWS = 3
"""Pixels inwards and outwards of the middle that are looked at."""

BINS_A_PIXEL = 2
BINS = BINS_A_PIXEL * (2 * ROWS + 1)

_FEWEST_PARTS = 3
_FEWEST_OF_PART = 4.5
"""Pixels with data of the nine within one of the middle's radius."""

_OTHER_SPOT = 4.0
_OTHER_PHOTONS = 3.0
"""So many deviations and photons over twice its share, and a part holds another spot. A ring's own light may double."""

_STANDS_OUT = 3.0
_STANDS_OUT_PHOTONS = 3.0
"""The same for a row over the background, so that at low flux a photon or two beside a spot do not speak."""

_FEWEST_OF_POINT = 6.0
"""Pixels that a point of the profile is the mean of, at least."""

_LEAST_RADIUS_PX = 6.0
"""Nearer to the beam the arcs would come around to the pixel itself."""


@numba.njit(nogil=True, cache=True)
def _panel_of(panels: Any, row: int, column: int) -> int:
    """The first panel that holds a pixel; the last one holds all."""
    for p in range(panels.shape[0] - 1):
        if panels[p, 0] <= row < panels[p, 1] and panels[p, 2] <= column < panels[p, 3]:
            return p
    return int(panels.shape[0] - 1)


@numba.njit(nogil=True, cache=True)
def _position(panel: Any, row: int, column: int) -> Any:
    """x and y from the beam in pixels of the plane at the camera length, as ``Geometry.positions_px`` has them."""
    i, j = column - panel[2], row - panel[0]
    x = panel[4] + i * panel[7] + j * panel[10]
    y = panel[5] + i * panel[8] + j * panel[11]
    z = panel[6] + i * panel[9] + j * panel[12]
    along = 1.0 / (1.0 + z * panel[13])
    return x * along, y * along


@numba.njit(nogil=True, cache=True)
def _count_arcs(
    pixels: Any, columns: int, row: int, column: int, top: int, inside: Any, panel: Any, parts: Any
) -> bool:  # fmt: skip
    """Photons, pixels and the sum of their radii from the middle's, of each part and bin of radius: ``parts``.

    Its last bin is what lies within a pixel of the middle's radius. False too near to the beam.
    """
    x0, y0 = _position(panel, row, column)
    fs_x, fs_y = _position(panel, row, column + 1)
    ss_x, ss_y = _position(panel, row + 1, column)
    fs_x, fs_y, ss_x, ss_y = fs_x - x0, fs_y - y0, ss_x - x0, ss_y - y0
    area, radius = fs_x * ss_y - fs_y * ss_x, np.sqrt(x0 * x0 + y0 * y0)
    if radius < _LEAST_RADIUS_PX or area == 0.0:
        return False
    parts[:] = 0.0
    of_area, of_radius = 1.0 / area, 1.0 / radius
    for step in range(STEPS):
        # A turn by 2 atan(t) in terms of t needs no sine, which would differ between processors.
        t = (NEAREST_PX + step) * 0.5 * of_radius
        scale = 1.0 / (1.0 + t * t)
        cosine, sine = (1.0 - t * t) * scale, 2.0 * t * scale
        for side in range(2):
            part = side * (PARTS // 2) + step // STEPS_A_PART
            if side == 1:
                sine = -sine
            out_x, out_y = (x0 * cosine - y0 * sine) * of_radius, (y0 * cosine + x0 * sine) * of_radius
            for k in range(-ROWS, ROWS + 1):
                x, y = out_x * (radius + k) - x0, out_y * (radius + k) - y0
                across = np.floor((x * ss_y - y * ss_x) * of_area + 0.5)
                down = np.floor((y * fs_x - x * fs_y) * of_area + 0.5)
                at_fs, at_ss = column + across, row + down
                if at_fs < panel[2] or at_fs >= panel[3] or at_ss < panel[0] or at_ss >= panel[1]:
                    continue
                j = np.int64(at_ss) * columns + np.int64(at_fs)
                if inside[j] == 0 or pixels[j] == top:
                    continue
                # The pixel is not quite where the arc is; its radius is what counts.
                beyond = k + out_x * (across * fs_x + down * ss_x - x) + out_y * (across * fs_y + down * ss_y - y)
                from_first = (beyond + (ROWS + 0.5)) * BINS_A_PIXEL
                if from_first < 0.0 or from_first >= BINS:
                    continue
                b, photons = np.int64(from_first), np.float64(pixels[j])
                parts[part, b, 0] += photons
                parts[part, b, 1] += 1.0
                parts[part, b, 2] += beyond
                if -1 <= k <= 1:
                    parts[part, BINS, 0] += photons
                    parts[part, BINS, 1] += 1.0
    return True


@numba.njit(nogil=True, cache=True)
def _sum_parts(parts: Any, profile: Any) -> bool:
    """Add up the parts that hold no other spot: ``profile`` (bins, 3). False where too few have data."""
    lowest, second, known = np.inf, np.inf, 0
    for part in range(PARTS):
        area = parts[part, BINS, 1]
        if area < _FEWEST_OF_PART:
            continue
        known += 1
        mean = parts[part, BINS, 0] / area
        if mean < lowest:
            lowest, second = mean, lowest
        elif mean < second:
            second = mean
    if known < _FEWEST_PARTS:
        return False
    profile[:] = 0.0
    for part in range(PARTS):
        area = parts[part, BINS, 1]
        share = second * area
        if area < _FEWEST_OF_PART or parts[part, BINS, 0] > 2.0 * share + _OTHER_SPOT * np.sqrt(share) + _OTHER_PHOTONS:
            continue
        for b in range(BINS):
            for n in range(3):
                profile[b, n] += parts[part, b, n]
    return True


@numba.njit(nogil=True, cache=True)
def _stands_out(profile: Any, mean: float) -> bool:
    """Whether a row of the profile, a pixel wide, holds significantly more than ``mean`` a pixel."""
    for first in range(0, BINS, BINS_A_PIXEL):
        photons, area = 0.0, 0.0
        for b in range(first, first + BINS_A_PIXEL):
            photons += profile[b, 0]
            area += profile[b, 1]
        if photons - mean * area > _STANDS_OUT * np.sqrt(mean * area) + _STANDS_OUT_PHOTONS:
            return True
    return False


@numba.njit(nogil=True, cache=True)
def _list_points(profile: Any) -> int:
    """Means and radii of neighbouring bins of ``profile``, enough pixels each, in its first rows; how many."""
    points, photons, area, radii = 0, 0.0, 0.0, 0.0
    for b in range(BINS):
        photons += profile[b, 0]
        area += profile[b, 1]
        radii += profile[b, 2]
        if area >= _FEWEST_OF_POINT:
            profile[points, 0], profile[points, 1] = photons / area, radii / area
            points, photons, area, radii = points + 1, 0.0, 0.0, 0.0
    return points


@numba.njit(nogil=True, cache=True)
def expect_beside(
    pixels: Any, columns: int, middle: int, top: int, inside: Any, panels: Any, mean: float, reach: int, parts: Any,
    profile: Any, expected: Any,
) -> bool:  # fmt: skip
    """The counts ``expected`` of each pixel within ``reach`` of the ``middle`` one, row by row, by its own radius.

    False, and nothing said, where no row of the profile stands out of ``mean``, the background there. ``panels``: see
    ``Geometry.panel_table``. ``parts`` (``PARTS``, ``BINS`` + 1, 3), ``profile`` (``BINS``, 3) are used up.
    """
    row, column = middle // columns, middle % columns
    panel = panels[_panel_of(panels, row, column)]
    if not _count_arcs(pixels, columns, row, column, top, inside, panel, parts):
        return False
    if not _sum_parts(parts, profile) or not _stands_out(profile, mean):
        return False
    points, side = _list_points(profile), 2 * reach + 1
    x0, y0 = _position(panel, row, column)
    radius = np.sqrt(x0 * x0 + y0 * y0)
    for n in range(side * side):
        x, y = _position(panel, row + n // side - reach, column + n % side - reach)
        beyond = np.sqrt(x * x + y * y) - radius
        p = 0
        while p < points - 1 and profile[p, 1] < beyond:
            p += 1
        value = profile[p, 0]
        if p > 0 and profile[p, 1] >= beyond:
            share = (beyond - profile[p - 1, 1]) / (profile[p, 1] - profile[p - 1, 1])
            value = profile[p - 1, 0] * (1.0 - share) + profile[p, 0] * share
        expected[n] = max(mean, value)
    return True
