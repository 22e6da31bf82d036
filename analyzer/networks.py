"""The networks of the cascade.

Both see what ``reduction`` leaves of a frame, never raw counts, so neither depends on the
size of the frame, the flux or the water.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from analyzer import zones
from analyzer.evidence import RATES
from analyzer.geometry import AZIMUTH_CLASSES, RADIAL_BIN_PX, Geometry

PROFILE_BINS = 48
PROFILE_BIN_M = 2.4e-3
MOST_BLOCKS = 1000
"""Of a card: it is read before its weights, and may state any number."""

"""The profile reaches 115 mm, the corner of a 4M detector centred on the beam."""


class Lines(nn.Module):
    """Learnt functions of q, piecewise linear in its logarithm, so that each line of salt or ice can have a say.

    In: q (...) in 1/angstrom. Out: (..., channels). A small network cannot draw lines along a plain number.
    """

    SMALLEST_Q, LARGEST_Q = 0.08, 6.0
    KNOTS = 128
    """3.4 % in q apart, as wide as a beam centre that is 10 pixels off makes the lines."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(self.KNOTS, channels))

    def forward(self, q: Tensor) -> Tensor:
        spread = math.log(self.LARGEST_Q / self.SMALLEST_Q) / (self.KNOTS - 1)
        place = torch.log(q.clamp(self.SMALLEST_Q, self.LARGEST_Q * 0.9999) / self.SMALLEST_Q) / spread
        knot = place.long()
        beyond = (place - knot).unsqueeze(-1)
        return self.values[knot] * (1 - beyond) + self.values[knot + 1] * beyond


class HitNetwork(nn.Module):
    """Hit or miss from what lies at which radius, the strongest cells, and the header where there is one.

    In: zones (B, ZONES, COLUMNS), cells (B, STRONGEST, CELL_COLUMNS) as ``Workspace`` has them; header (B, 2) photon
    energy in eV and camera length in m, 0 where unknown. Out: (B,) logit. The zones tell protein from salt, rings and
    more water. Each cell is judged alone, from all scales at once and, with a header, its place among the lines in q;
    the verdicts are pooled. The very strongest pass unchanged, for at low flux a hit is one or two of them, and so does
    the evidence of the whole frame, for many faint spots are a hit as well.
    """

    UNCHANGED = 8

    def __init__(self, channels: int = 48, hidden: int = 96) -> None:
        super().__init__()
        self.zone_layers = nn.Sequential(
            nn.Conv1d(zones.COLUMNS + 3, channels, 1), nn.ReLU(),
            nn.Conv1d(channels, channels, 3, 1, 1), nn.ReLU(),
            nn.Conv1d(channels, channels // 2, 3, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.cell_features = nn.Linear(zones.CELL_COLUMNS + 3, channels)
        self.cell_lines = Lines(channels)
        self.cell_layers = nn.Sequential(
            nn.ReLU(), nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU()
        )
        radial = (channels // 2) * (zones.ZONES // 2 + 2)
        self.head = nn.Sequential(
            nn.Linear(radial + 3 * channels + zones.SCALES * self.UNCHANGED + len(RATES), hidden), nn.ReLU(),
            nn.Linear(hidden, hidden // 2), nn.ReLU(),
            nn.Linear(hidden // 2, 1),
        )  # fmt: skip

    def forward(self, zone_counts: Tensor, cells: Tensor, header: Tensor) -> Tensor:
        radial = self.zone_layers(zones.zone_features(zone_counts, header))
        features = zones.cell_features(cells, header)
        lines = self.cell_lines(features[:, :, zones.Q]) * features[:, :, zones.KNOWN, None]
        judged = self.cell_layers(self.cell_features(features) + lines) * features[:, :, zones.THERE, None]
        strongest = features[:, :, : zones.SCALES].topk(self.UNCHANGED, 1).values
        gathered = [
            radial.flatten(1),
            radial.mean(2),
            radial.amax(2),
            judged.sum(1) / self.UNCHANGED,
            judged.amax(1),
            judged[:, : self.UNCHANGED].mean(1),
            strongest.flatten(1),
            0.5 * torch.log1p(zone_counts[:, :, zones.LIGHT : zones.FIRST_LEVEL].sum(1)),
        ]
        logit: Tensor = self.head(torch.cat(gathered, 1))
        return logit.squeeze(1)


class ParameterNetwork(nn.Module):
    """Photon energy and camera length, with their uncertainty, from the radial profile.

    In: (B, features) from ``profile_features``. Out: (B, 6): means of ln E/eV, ln L/m and ln (L/E) in m/eV, then the
    logarithms of their standard deviations. Within, it is a joint normal distribution of ln (L/E) and ln E: the ratio
    is known far better than either (Cramer-Rao), and ln L is their sum.
    """

    CENTER = (-10.3, 8.9)
    SPREAD = 0.3
    LARGEST_CORRELATION = 0.999

    def __init__(self, hidden: int = 192, blocks: int = 3) -> None:
        super().__init__()
        if not 0 <= blocks <= MOST_BLOCKS:
            raise ValueError(f"blocks {blocks} is not from 0 to {MOST_BLOCKS}")
        self.stem = nn.Linear(PROFILE_FEATURES, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            for _ in range(blocks)
        )
        self.head = nn.Linear(hidden, 5)
        self.register_buffer("center", torch.tensor(self.CENTER))

    def forward(self, features: Tensor) -> Tensor:
        mean, log_sigma, correlation = self.joint(features)
        sigma = log_sigma.exp()
        variance = sigma.square().sum(1) + 2 * correlation * sigma.prod(1)
        (ratio, energy), (log_ratio, log_energy) = mean.unbind(1), log_sigma.unbind(1)
        return torch.stack([energy, ratio + energy, ratio, log_energy, 0.5 * variance.log(), log_ratio], 1)

    def joint(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and ln standard deviations of (ln (L/E), ln E), (B, 2) each, and their correlation (B,)."""
        x = self.stem(features)
        for block in self.blocks:
            x = x + block(x)
        out = self.head(nn.functional.silu(x))
        mean = out[:, :2] * self.SPREAD + self.center
        return mean, out[:, 2:4].clamp(-9.0, 2.0) - 2.0, self.LARGEST_CORRELATION * torch.tanh(out[:, 4])


PROFILE_FEATURES = 3 * PROFILE_BINS * AZIMUTH_CLASSES + 1


def profile_index(geometry: Geometry, radial_bins: int) -> npt.NDArray[np.intp]:
    """For each bin of a ``BinMap`` the bin of the profile it belongs to, -1 beyond its reach."""
    radius_m = (np.arange(radial_bins) + 0.5) * RADIAL_BIN_PX * geometry.pixel_size_m
    coarse = np.minimum(radius_m / PROFILE_BIN_M, PROFILE_BINS).astype(np.intp)
    coarse[coarse >= PROFILE_BINS] = -1
    index = coarse[:, None] * AZIMUTH_CLASSES + np.arange(AZIMUTH_CLASSES)
    index[coarse < 0] = -1
    flat: npt.NDArray[np.intp] = index.reshape(-1)
    return flat


def coarse_profile(
    photons: npt.NDArray[np.float64], pixels: npt.NDArray[np.float64], index: npt.NDArray[np.intp]
) -> npt.NDArray[np.float32]:
    """Photons and pixels of the profile's bins: (2, PROFILE_BINS * AZIMUTH_CLASSES) float32."""
    kept = index >= 0
    size = PROFILE_BINS * AZIMUTH_CLASSES
    return np.stack(
        [np.bincount(index[kept], values[kept], size) for values in (photons, pixels)],
    ).astype(np.float32)


def profile_features(profiles: Tensor) -> Tensor:
    """Network input from profiles: (B, 2, bins) photons and pixels to (B, PROFILE_FEATURES).

    Brightness against the frame's mean: its logarithm, then as it is, which keeps the sums that a likelihood is made of
    at few photons, in units of the noise of a bin; third where there are pixels at all; last the photons of the frame.
    """
    photons, pixels = profiles[:, 0], profiles[:, 1]
    total = photons.sum(1, keepdim=True)
    share = pixels / (pixels.sum(1, keepdim=True) + 1.0)
    present = (pixels > 8).float()
    expected = share * total
    # Half an expected count keeps the logarithm finite where none came.
    relative = torch.log((photons + 0.5) / (expected + 0.5)) * present
    excess = torch.where(expected > 0, photons / expected - 1.0, 0.0) * torch.sqrt(share * share.shape[1]) * present
    return torch.cat([relative, excess, present, torch.log1p(total) * 0.1], 1)
