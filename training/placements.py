"""Where the pixels of each bin of a radial profile truly lie, for many beam centres and masks, as weights of radii.

A profile is taken about the beam centre that a header states; light falls about the true one. For one placement (both
centres, a mask and a shadow) the pixels of a bin are spread over nodes of the true radius, linearly between the two
next to each, so that the light of any scattering law in a bin is a sum over a few nodes:

    I = sum_j area_j f(r_j) - across_j f(r_j) sin^2(2 theta_j),

with f = dOmega w(q), across the same weights times cos^2(phi), and P = 1 - sin^2(2 theta) cos^2(phi) for a beam that is
polarised along fs (`sim_replay.background`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from analyzer.geometry import AZIMUTH_CLASSES
from analyzer.networks import PROFILE_BIN_M, PROFILE_BINS
from sim_replay.detector import Detector, eiger2_4m

BINS = PROFILE_BINS * AZIMUTH_CLASSES
NODES_PER_BIN = 8
NODE_STEP_M = PROFILE_BIN_M / NODES_PER_BIN
MARGIN_NODES = 4
"""Nodes before the first of a bin, and after its last, that a wrong beam centre reaches."""
WINDOW = NODES_PER_BIN + 2 * MARGIN_NODES + 1
"""Nodes that a bin's light may come from."""
NODES = NODES_PER_BIN * (PROFILE_BINS - 1) + WINDOW

STATED_CENTRE_SPREAD_PX = 25.0
CENTRE_ERROR_PX = 10.0
MODULES_MISSING_SHARE = 0.15
STOP_SHARE = 0.15
MOST_MODULES_MISSING = 4
STOP_RADIUS_M = (1e-3, 8e-3)

_MASKED, _LIT, _DARK = 0, 1, 2

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Placements:
    """N placements: ``area`` and ``across`` (N, PROFILE_BINS, AZIMUTH_CLASSES, WINDOW) float32, in pixels, of the lit
    pixels of each bin over its nodes; ``pixels`` (N, BINS) float32, all that are counted, shadowed ones too.

    Node j of bin k's window lies at the radius (NODES_PER_BIN k - MARGIN_NODES + j) NODE_STEP_M.
    """

    area: npt.NDArray[np.float32]
    across: npt.NDArray[np.float32]
    pixels: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pixels)


def node_radii_m() -> npt.NDArray[np.float64]:
    """Radius of each node, (NODES,) float64; those before the beam are at 0 and hold no light."""
    nodes: npt.NDArray[np.float64] = np.maximum(np.arange(NODES) - MARGIN_NODES, 0) * NODE_STEP_M
    return nodes


def make_placements(seed: int, count: int, progress: Progress | None = None, *, varied: bool = True) -> Placements:
    """Placements of an EIGER2 4M, some 50 ms each.

    The stated centre is up to 25 px from the panel's middle, the true one up to 10 px from that, both in x and in y. Of
    the varied ones most see the whole detector, in 15 % one to four modules are missing, in 15 % a round beam stop
    shades the middle, masked or not.
    """
    rng = np.random.default_rng(seed)
    detector = eiger2_4m()
    made = []
    for n in range(count):
        middle = np.array(detector.shape[::-1]) / 2.0 - 0.5
        stated = middle + rng.uniform(-STATED_CENTRE_SPREAD_PX, STATED_CENTRE_SPREAD_PX, 2)
        true = stated + rng.uniform(-CENTRE_ERROR_PX, CENTRE_ERROR_PX, 2)
        light = light_map(detector)
        if varied:
            _hide(light, detector, true, rng)
        made.append(place(light, detector.pixel_size_m, (stated[0], stated[1]), (true[0], true[1])))
        if progress is not None and n % 50 == 49:
            progress(n + 1, count, "placements")
    return Placements(*(np.stack(part) for part in zip(*made, strict=True)))


def light_map(detector: Detector) -> npt.NDArray[np.uint8]:
    """What each pixel (ss, fs) is to a placement: masked or lit, as the detector alone makes it."""
    return np.where(detector.mask, _MASKED, _LIT).astype(np.uint8)


def place(
    light: npt.NDArray[np.uint8], pixel_size_m: float, stated_px: tuple[float, float], true_px: tuple[float, float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """area, across and pixels of one placement; the centres are pixel indices (fs, ss).

    Raises ValueError when the centres are farther apart than a bin's window allows.
    """
    apart_m = float(np.hypot(true_px[0] - stated_px[0], true_px[1] - stated_px[1])) * pixel_size_m
    if not apart_m < MARGIN_NODES * NODE_STEP_M:
        raise ValueError(f"the centres are {apart_m:g} m apart; give less than {MARGIN_NODES * NODE_STEP_M:g} m")
    area, across = np.zeros((2, PROFILE_BINS, AZIMUTH_CLASSES, WINDOW))
    pixels = np.zeros((PROFILE_BINS, AZIMUTH_CLASSES))
    per_bin, per_node = pixel_size_m / PROFILE_BIN_M, pixel_size_m / NODE_STEP_M
    _spread(light, *stated_px, *true_px, per_bin, per_node, area, across, pixels)
    return area.astype(np.float32), across.astype(np.float32), pixels.reshape(-1).astype(np.float32)


def _hide(
    light: npt.NDArray[np.uint8], detector: Detector, true_px: npt.NDArray[np.float64], rng: np.random.Generator
) -> None:
    kind = rng.random()
    if kind < MODULES_MISSING_SHARE:
        modules = [(rows, columns) for rows in _between(detector.gaps_ss, light.shape[0])
                   for columns in _between(detector.gaps_fs, light.shape[1])]  # fmt: skip
        for chosen in rng.choice(len(modules), rng.integers(1, MOST_MODULES_MISSING + 1), replace=False):
            light[modules[chosen]] = _MASKED
    elif kind < MODULES_MISSING_SHARE + STOP_SHARE:
        radius = rng.uniform(*STOP_RADIUS_M) / detector.pixel_size_m
        ss, fs = np.ogrid[: light.shape[0], : light.shape[1]]
        shadow = (fs - true_px[0]) ** 2 + (ss - true_px[1]) ** 2 < radius**2
        light[shadow & (light != _MASKED)] = _MASKED if rng.random() < 0.5 else _DARK


def _between(gaps: tuple[tuple[int, int], ...], size: int) -> list[slice]:
    edges = [0, *(edge for gap in gaps for edge in gap), size]
    return [slice(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True)]


def _spread_py(  # type: ignore[no-untyped-def]
    light, stated_fs, stated_ss, true_fs, true_ss, per_bin, per_node, area, across, pixels
):
    low_slope, high_slope = np.tan(np.pi / 6.0), np.tan(np.pi / 3.0)
    for ss in range(light.shape[0]):
        y, true_y = abs(ss - stated_ss), ss - true_ss
        for fs in range(light.shape[1]):
            if light[ss, fs] == _MASKED:
                continue
            x, true_x = abs(fs - stated_fs), fs - true_fs
            k = int(np.sqrt(x * x + y * y) * per_bin)
            if k >= PROFILE_BINS:
                continue
            azimuth = 0 if y < low_slope * x else (1 if y < high_slope * x else 2)
            pixels[k, azimuth] += 1.0
            if light[ss, fs] == _DARK:
                continue
            radius2 = true_x * true_x + true_y * true_y
            along = true_x * true_x / radius2 if radius2 > 0.0 else 0.5
            node = np.sqrt(radius2) * per_node
            low = int(node)
            beyond = node - low
            j = low - k * NODES_PER_BIN + MARGIN_NODES
            area[k, azimuth, j] += 1.0 - beyond
            area[k, azimuth, j + 1] += beyond
            across[k, azimuth, j] += (1.0 - beyond) * along
            across[k, azimuth, j + 1] += beyond * along


_spread: Callable[..., None] = njit(cache=True)(_spread_py)
