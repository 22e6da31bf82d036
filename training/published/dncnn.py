"""The denoising network that the paper tried as a peak finder. Layers: Zhang et al., IEEE TIP 26, 3142 (2017).

As the paper's authors use it there is no residual: what comes out is taken for the peaks themselves.
"""

from torch import Tensor, nn

DEEPEST, WIDEST = 100, 1024


class DnCNN(nn.Module):
    """Peaks: (B, 1, ss, fs) float32 to (B, ss, fs) logits, any frame size, all layers at full resolution.

    layers: convolutions in all, 17 in the paper; features: channels of those between the first and the last.
    """

    def __init__(self, layers: int = 17, features: int = 64) -> None:
        super().__init__()
        if not (2 <= layers <= DEEPEST and 1 <= features <= WIDEST):
            raise ValueError(f"layers {layers} must be 2 to {DEEPEST}, features {features} 1 to {WIDEST}")
        inner: list[nn.Module] = []
        for _ in range(layers - 2):
            inner += [_convolution(features, features), nn.GroupNorm(1, features), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(_convolution(1, features), nn.ReLU(inplace=True), *inner, _convolution(features, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits.squeeze(1)


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
