"""One convolution and a fully connected layer: the paper's "base CNN", of which there are three."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from training.published.sizes import PAPER_SHAPE, after, frame_shape

Variant = Literal["figure", "code", "multi-class"]

# (channels, kernel, stride, outputs); the padding is 1 in all.
_VARIANTS: dict[str, tuple[int, int, int, int]] = {
    "figure": (3, 10, 5, 1),
    "code": (2, 25, 10, 1),
    "multi-class": (8, 10, 1, 3),
}


class BaseCNN(nn.Module):
    """(B, 1, ss, fs) float32 to (B,) logit, or to (B, classes) where there are more than one.

    variant: "figure" as the paper draws it (Figures 20 and 21), "code" as the authors' code of the same days has it,
    "multi-class" the earlier one for photon energy and camera length. classes: None for the variant's own number.
    """

    def __init__(
        self, shape: Sequence[int] = PAPER_SHAPE, variant: Variant = "figure", classes: int | None = None
    ) -> None:
        super().__init__()
        if variant not in _VARIANTS:
            raise ValueError(f"variant {variant!r} must be one of {', '.join(_VARIANTS)}")
        channels, kernel, stride, outputs = _VARIANTS[variant]
        ss, fs = after(frame_shape(shape), kernel, stride, padding=1)
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, kernel, stride, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * ss * fs, classes or outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits.squeeze(1) if logits.shape[1] == 1 else logits
