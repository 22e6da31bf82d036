"""The paper's peak finder (Figures 15 and 24): a logit for each pixel, with channel and spatial attention.

As published its spatial attention has two mistakes, kept behind ``as_published`` so that they can be measured: it
returns the attention squared and drops the features, and it pads a 7 x 7 kernel of dilation 2 by 3 pixels instead of 6,
so that the map loses 6 pixels a side which the upsampling then stretches over the frame.
"""

from typing import Literal

import torch
from torch import Tensor, nn

DropoutPlace = Literal["upsampling", "second-convolution"]


class ChannelAttention(nn.Module):
    """Weights each channel by its mean and its maximum over the map, through a bottleneck for either.

    Either gives a sigmoid; their sum, 0 to 2, multiplies the features.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.mean, self.maximum = (_bottleneck(channels, channels // reduction) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        weights: Tensor = self.mean(features.mean((2, 3))) + self.maximum(features.amax((2, 3)))
        return features * weights[:, :, None, None]


def _bottleneck(channels: int, narrow: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, channels, bias=False), nn.Sigmoid()
    )


class SpatialAttention(nn.Module):
    """Weights each place of each channel by what the maximum and the mean over channels show around it."""

    def __init__(self, channels: int, as_published: bool) -> None:
        super().__init__()
        self.as_published = as_published
        self.convolution = nn.Conv2d(2, channels, 7, padding=3 if as_published else 6, dilation=2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, features: Tensor) -> Tensor:
        seen = torch.cat([features.amax(1, keepdim=True), features.mean(1, keepdim=True)], 1)
        attention: Tensor = self.sigmoid(self.convolution(seen))
        return attention * attention if self.as_published else features * attention


class Stretch(nn.Module):
    """Bilinear interpolation to a given (ss, fs), the corner pixels' centres on one another."""

    def forward(self, heat: Tensor, size: tuple[int, int]) -> Tensor:
        return nn.functional.interpolate(heat, size=size, mode="bilinear", align_corners=True)


class HeatmapCNN(nn.Module):
    """Peaks: (B, 1, ss, fs) float32 to (B, ss, fs) logits, any frame size.

    as_published: the paper's spatial attention with its mistakes; False multiplies the features and keeps their size.
    dropout, dropout_after: none in the code that gave the paper's figures; its text has 0.9 after the upsampling, later
    code 0.5 after the second convolution.
    """

    def __init__(
        self, as_published: bool = True, dropout: float = 0.0, dropout_after: DropoutPlace = "upsampling"
    ) -> None:
        super().__init__()
        if dropout_after not in ("upsampling", "second-convolution"):
            raise ValueError(f"dropout_after {dropout_after!r} must be upsampling or second-convolution")
        early = dropout_after == "second-convolution"
        self.first = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(4))
        self.second = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(dropout if early else 0.0)
        )
        self.channel_attention = ChannelAttention(32)
        self.spatial_attention = SpatialAttention(32, as_published)
        self.last = nn.Conv2d(32, 1, 3, padding=1)
        self.upsampling = Stretch()
        self.dropout = nn.Dropout(0.0 if early else dropout)

    def forward(self, images: Tensor) -> Tensor:
        features = self.channel_attention(self.second(self.first(images)))
        heat = self.last(self.spatial_attention(features))
        logits: Tensor = self.dropout(self.upsampling(heat, (images.shape[2], images.shape[3])))
        return logits.squeeze(1)
