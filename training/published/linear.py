"""The paper's network for photon energy and camera length (Figures 16 and 17): one layer on raw counts."""

from collections.abc import Sequence

from torch import Tensor, nn

from training.published.sizes import PAPER_SHAPE, frame_shape


class LinearClassifier(nn.Module):
    """(B, 1, ss, fs) float32 to (B, classes) logits: a weight for each pixel and class, 13,425,744 in the paper."""

    def __init__(self, shape: Sequence[int] = PAPER_SHAPE, classes: int = 3) -> None:
        super().__init__()
        ss, fs = frame_shape(shape)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(ss * fs, classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits
