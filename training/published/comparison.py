"""The deeper network that the paper compares with: "more layers" found fewer hits."""

from collections.abc import Sequence

from torch import Tensor, nn

from training.published.sizes import PAPER_SHAPE, after, frame_shape


class ComparisonCNN(nn.Module):
    """Hit or miss: (B, 1, ss, fs) float32 to (B,) logit. 351 million parameters at the paper's size."""

    def __init__(self, shape: Sequence[int] = PAPER_SHAPE) -> None:
        super().__init__()
        pooled = after(after(frame_shape(shape), 25, stride=5, padding=1), 2, stride=2)
        ss, fs = after(after(pooled, 5, padding=1), 2, stride=2)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 25, stride=5, padding=1),
            nn.BatchNorm2d(32),
            nn.LeakyReLU(0.01),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=1),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.01),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(64 * ss * fs, 512),
            nn.ReLU(),
            nn.Linear(512, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        logit: Tensor = self.layers(images)
        return logit.squeeze(1)
