"""The hit network of four weeks after the paper, conditioned on photon energy and camera length."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.published.binary import BinaryConvolutions
from training.published.sizes import PAPER_SHAPE

CENTRE_ENERGY_EV, STEP_ENERGY_EV = 7000.0, 1000.0
CENTRE_CAMERA_LENGTH_M, STEP_CAMERA_LENGTH_M = 0.25, 0.1
"""Centre and step of the paper's three by three conditions: ``scaled`` makes them -1, 0 and 1."""


class MetadataCNN(nn.Module):
    """Hit or miss from (B, 1, ss, fs) float32 with photon energy (B,) in eV and camera length (B,) in m; (B,) logit.

    hidden: width of the layer that meets the two numbers, 251 at first, 46 later (17.9 and 3.3 GB of weights at the
    paper's size). scaled: False concatenates metres and electronvolts as they are, as published, 0.15 beside 7000;
    True brings both to about one.
    """

    def __init__(self, shape: Sequence[int] = PAPER_SHAPE, hidden: int = 46, scaled: bool = False) -> None:
        super().__init__()
        self.scaled = scaled
        self.convolutions = BinaryConvolutions(shape)
        self.hidden = nn.Sequential(nn.Linear(self.convolutions.features, hidden), nn.ReLU())
        self.head = nn.Linear(hidden + 2, 1)

    def forward(self, images: Tensor, photon_energy_eV: Tensor, camera_length_m: Tensor) -> Tensor:
        features = self.hidden(self.convolutions(images))
        if self.scaled:
            photon_energy_eV = (photon_energy_eV - CENTRE_ENERGY_EV) / STEP_ENERGY_EV
            camera_length_m = (camera_length_m - CENTRE_CAMERA_LENGTH_M) / STEP_CAMERA_LENGTH_M
        metadata = torch.stack([camera_length_m.reshape(-1), photon_energy_eV.reshape(-1)], 1)
        logit: Tensor = self.head(torch.cat([features, metadata.to(features.dtype)], 1))
        return logit.squeeze(1)
