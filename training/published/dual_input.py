"""The paper's network for very low flux (Figure 13): the frame, and the same frame without background or noise."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.published.sizes import PAPER_SHAPE, after, frame_shape


class DualInputCNN(nn.Module):
    """Hit or miss from frame and clean frame, (B, 1, ss, fs) float32 each; (B,) logit.

    2,287,044,481 parameters at the paper's size: 9.1 GB, and four times that to train with Adam. The clean frame is
    known in simulation only.
    """

    def __init__(self, shape: Sequence[int] = PAPER_SHAPE) -> None:
        super().__init__()
        ss, fs = after(after(frame_shape(shape), 5, stride=2, padding=1), 2, stride=2)
        self.noisy_branch, self.clean_branch = _branch(), _branch()
        self.head = nn.Sequential(nn.Linear(2 * 32 * ss * fs, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, images: Tensor, clean_images: Tensor) -> Tensor:
        logit: Tensor = self.head(torch.cat([self.noisy_branch(images), self.clean_branch(clean_images)], 1))
        return logit.squeeze(1)


def _branch() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 32, 5, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
