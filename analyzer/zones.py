"""What the hit network reads: what lies at which radius, and the strongest cells of the significance map.

Zones are rings around the beam, ``ZONE_M`` wide. For each there is how much light is in it, with and without the
spots, how much background is expected, what all its windows together say of spots (``analyzer.evidence``) and how many
cells of the significance map reach each of ``LEVELS``. Protein, salt, a powder ring and a shift of the water differ in
how these run along the radius. The strongest cells come one by one, with all that is known of each: a spot, a hot pixel
and a streak differ in how the scales go together.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from analyzer.evidence import RATES
from analyzer.geometry import AZIMUTH_CLASSES, RADIAL_BIN_PX, Geometry
from analyzer.kernels import CELL
from streamer.messages import HC_EV_ANGSTROM

ZONES = 48
ZONE_M = 2.4e-3
"""48 zones reach 115 mm, the corner of a 4M detector centred on the beam; what lies beyond counts in the last."""

LEVELS = np.array([4.0, 7.0, 10.0, 13.0, 17.0, 25.0, 50.0, 200.0])
"""Nats; 15 is what chance reaches once on four megapixels."""

SCALES = 4
"""Of the significance map: the cell, one pixel, 2 x 2 and 3 x 3, and the support around one pixel."""
SINGLE = 1
"""The scale of one pixel."""

STRONGEST = 64
"""How many cells come one by one."""
RADIUS, VALID, BACKGROUND, NEAREST = range(SCALES, SCALES + 4)
"""Columns of a cell after its significances: radius in m, share of valid pixels, expected counts a pixel, and distance
to the nearest other of the strongest in cells, 0 where it is the only one."""
CELL_COLUMNS = SCALES + 4
Q, KNOWN, THERE = -3, -2, -1
"""The last of ``cell_features``: q in 1/angstrom, 0 where the header is not known; whether it is; whether there is a
cell at all."""

LIGHT = 4
"""Photons, photons outside spots, pixels and expected background: the first columns of a zone."""

FIRST_LEVEL = LIGHT + len(RATES)
"""The first column of levels; between light and levels there is the evidence at each of the ``RATES``."""

COLUMNS = FIRST_LEVEL + SCALES * len(LEVELS)
ENERGY_KNOWN_EV = (4000.0, 12000.0)
CAMERA_LENGTH_KNOWN_M = (0.08, 0.6)
"""Headers outside what the networks were trained on are taken for no header."""


def _zone(radius_m: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.intp]:
    zone: npt.NDArray[np.intp] = np.minimum(radius_m / ZONE_M, ZONES - 1).astype(np.intp)
    return zone


def zone_of_bins(geometry: Geometry, radial_bins: int) -> npt.NDArray[np.intp]:
    """The zone (bins,) of each bin of a ``BinMap``."""
    radius_m = (np.arange(radial_bins) + 0.5) * RADIAL_BIN_PX * geometry.pixel_size_m
    return np.repeat(_zone(radius_m), AZIMUTH_CLASSES)


def cell_radius_m(geometry: Geometry) -> npt.NDArray[np.float64]:
    """Radius of the middle of each cell of the map (rows, columns)."""
    rows, columns = (-(-size // CELL) for size in geometry.shape)
    ss, fs = ((np.arange(size) + 0.5) * CELL - 0.5 for size in (rows, columns))
    return geometry.radius_px(fs[None, :], ss[:, None]) * geometry.pixel_size_m


def zone_of_cells(geometry: Geometry) -> npt.NDArray[np.uint8]:
    """The zone (rows * columns,) of each cell of the map."""
    return _zone(cell_radius_m(geometry)).astype(np.uint8).reshape(-1)


def header_of(geometry: Geometry) -> npt.NDArray[np.float32]:
    """Photon energy (eV) and camera length (m) of the header (2,), both 0 when either is absent or out of range."""
    energy, length = geometry.photon_energy_eV or 0.0, geometry.camera_length_m or 0.0
    known = ENERGY_KNOWN_EV[0] <= energy <= ENERGY_KNOWN_EV[1]
    known &= CAMERA_LENGTH_KNOWN_M[0] <= length <= CAMERA_LENGTH_KNOWN_M[1]
    return np.array([energy, length] if known else [0.0, 0.0], np.float32)


def zone_features(zones: Tensor, header: Tensor) -> Tensor:
    """Network input (B, COLUMNS + 3, ZONES) from zones (B, ZONES, COLUMNS) and headers (B, 2).

    Logarithms of the counts; then q in 1/angstrom where the header is known (0 elsewhere), whether it is, and the
    radius as a share of the largest.
    """
    radius_m = (torch.arange(ZONES, device=zones.device) + 0.5) * ZONE_M
    known = (header[:, 1:] > 0).float()
    share = (radius_m / (ZONE_M * ZONES)).expand(len(zones), -1)
    place = torch.stack([_q(radius_m[None], header) * known, known.expand(-1, ZONES), share], 1)
    return torch.cat([torch.log1p(zones).transpose(1, 2) * 0.3, place], 1)


def cell_features(cells: Tensor, header: Tensor) -> Tensor:
    """Network input (B, STRONGEST, CELL_COLUMNS + 3) from cells (B, STRONGEST, CELL_COLUMNS) and headers (B, 2).

    Logarithms, each brought near one; then ``Q``, ``KNOWN`` and ``THERE``.
    """
    significance, radius_m = cells[:, :, :SCALES], cells[:, :, RADIUS]
    there = (significance.amax(2) > 0).float()
    known = (header[:, 1:] > 0).float()
    place = [
        radius_m * 10.0,
        cells[:, :, VALID],
        torch.log(cells[:, :, BACKGROUND] + 1e-6) * 0.2 + 1.0,
        torch.log1p(cells[:, :, NEAREST]) * 0.5,
        _q(radius_m, header) * known,
        known.expand_as(radius_m),
        there,
    ]
    return torch.cat([torch.log1p(significance) * 0.5 - 1.0, torch.stack(place, 2)], 2)


def _q(radius_m: Tensor, header: Tensor) -> Tensor:
    """q = 4 pi sin(theta) / lambda in 1/angstrom with tan(2 theta) = radius / camera length, for headers (B, 2)."""
    length = torch.where(header[:, 1:] > 0, header[:, 1:], 1.0)
    theta = 0.5 * torch.atan(radius_m / length)
    return 4.0 * torch.pi * torch.sin(theta) * header[:, :1] / HC_EV_ANGSTROM
