"""The paper's network for hit or miss (Figure 12)."""

from collections.abc import Sequence

from torch import Tensor, nn

from training.published.sizes import PAPER_SHAPE, after, frame_shape


class BinaryConvolutions(nn.Module):
    """Two convolutions with group normalisation: (B, 1, ss, fs) to (B, ``features``) float32."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        ss, fs = after(after(frame_shape(shape), 10, padding=1), 2, stride=2)
        self.features = 16 * ss * fs
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 10, padding=1),
            nn.GroupNorm(4, 8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        flat: Tensor = self.layers(images)
        return flat


class BinaryCNN(nn.Module):
    """Hit or miss: (B, 1, ss, fs) float32 to (B,) logit. At the paper's size 17,784,713 parameters."""

    def __init__(self, shape: Sequence[int] = PAPER_SHAPE) -> None:
        super().__init__()
        self.convolutions = BinaryConvolutions(shape)
        self.head = nn.Linear(self.convolutions.features, 1)

    def forward(self, images: Tensor) -> Tensor:
        logit: Tensor = self.head(self.convolutions(images))
        return logit.squeeze(1)
