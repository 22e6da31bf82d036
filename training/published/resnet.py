"""The paper's transfer learning: a ResNet-50 whose first layer takes one channel, with a new head.

Layers: He et al., CVPR 2016, Table 1; with the stride of a block in its 3 x 3 convolution, as in the implementation
that the paper's authors took theirs from. The names of the trunk's parameters are that implementation's, so that its
weights fit.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from analyzer.bundle import BadBundle
from analyzer.weights import PICKLE, is_pickle
from streamer.errors import first_line

BLOCKS = (3, 4, 6, 3)
FEATURES = 2048
NOT_TAKEN = ("conv1.", "fc.")
"""Of ready weights: the first layer takes three colours, the last names a thousand everyday things."""


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut: (B, c, h, w) to (B, 4 * width, h/stride, w/stride)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        inner = self.relu(self.bn1(self.conv1(features)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        out: Tensor = self.relu(inner + shortcut)
        return out


class ResNet50Trunk(nn.Module):
    """(B, 1, ss, fs) float32 to (B, 2048): ResNet-50 without its classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        stages, channels = [], 64
        for stage, blocks in enumerate(BLOCKS):
            width = 64 << stage
            stride = 1 if stage == 0 else 2
            layers = [Bottleneck(channels, width, stride)]
            channels = 4 * width
            layers += [Bottleneck(channels, width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        pooled: Tensor = self.avgpool(features)
        return pooled.flatten(1)


class ResNet50(nn.Module):
    """Hit or miss: (B, 1, ss, fs) float32, any frame size, to (B,) logit.

    weights: a local .safetensors file of a ResNet-50 trained on ImageNet, with the usual names; its first and last
    layers are not taken. None starts from scratch, which the paper did not.
    """

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        self.trunk = ResNet50Trunk()
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(FEATURES, 512), nn.ReLU(), nn.Linear(512, 1))
        if weights is not None:
            load_trunk(self.trunk, Path(weights))

    def forward(self, images: Tensor) -> Tensor:
        logit: Tensor = self.head(self.trunk(images))
        return logit.squeeze(1)


def load_trunk(trunk: ResNet50Trunk, path: Path) -> None:
    """Take all but the first layer from a .safetensors file. Raises ``BadBundle``, and then changes nothing."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise BadBundle(f"{path}: {error.strerror or error}; weights must be a .safetensors file") from None
    if is_pickle(start):
        raise BadBundle(f"{path}: {PICKLE}")
    try:
        given = load_file(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise BadBundle(f"{path}: not a safetensors file: {first_line(error)}") from None
    state = trunk.state_dict()
    wanted = {name for name in state if not name.startswith(NOT_TAKEN)}
    for name in sorted(wanted):
        if name not in given:
            if name.endswith(".num_batches_tracked"):
                continue
            raise BadBundle(f"{path}: no {name}; these are not the weights of a ResNet-50")
        if given[name].shape != state[name].shape:
            shapes = f"{tuple(given[name].shape)}, a ResNet-50's is {tuple(state[name].shape)}"
            raise BadBundle(f"{path}: {name} is {shapes}")
    with torch.no_grad():
        for name in wanted & given.keys():
            state[name].copy_(given[name])
