"""What the entry points of the group ``cxls.networks`` name: each of the paper's networks as an ``Architecture``."""

from functools import partial

from analyzer.architectures import Architecture
from training.published.base import BaseCNN
from training.published.binary import BinaryCNN
from training.published.comparison import ComparisonCNN
from training.published.dncnn import DnCNN
from training.published.dual_input import DualInputCNN
from training.published.heatmap import HeatmapCNN
from training.published.linear import LinearClassifier
from training.published.metadata import MetadataCNN
from training.published.resnet import ResNet50

_PAPER = "Everett and Kurth, Crystallography Peak Detection at CXLS (2024)"
_IMAGE = ("image",)

BINARY_CNN = Architecture(build=BinaryCNN, inputs=_IMAGE, sized=True, source=f"{_PAPER}, Figure 12")
BASE_CNN = Architecture(build=BaseCNN, inputs=_IMAGE, sized=True, classes=True, source=f"{_PAPER}, Figures 20 and 21")
COMPARISON_CNN = Architecture(
    build=ComparisonCNN, inputs=_IMAGE, sized=True, source=f"the deeper network of {_PAPER}, from the authors' code"
)
DUAL_INPUT = Architecture(
    build=DualInputCNN, inputs=("image", "clean_image"), sized=True, source=f"{_PAPER}, Figure 13"
)
LINEAR = Architecture(
    build=LinearClassifier, inputs=_IMAGE, sized=True, classes=True, source=f"{_PAPER}, Figures 16 to 18"
)
HEATMAP_CNN = Architecture(build=HeatmapCNN, inputs=_IMAGE, source=f"{_PAPER}, Figures 15 and 24, as published")
HEATMAP_CNN_REPAIRED = Architecture(
    build=partial(HeatmapCNN, as_published=False),
    inputs=_IMAGE,
    source=f"{_PAPER}, Figures 15 and 24, with its spatial attention repaired",
)
RESNET50 = Architecture(
    build=ResNet50, inputs=_IMAGE, start_only=("weights",), source=f"{_PAPER}, section 4; He et al., CVPR 2016"
)
DNCNN = Architecture(build=DnCNN, inputs=_IMAGE, source=f"{_PAPER}, section 4; Zhang et al., IEEE TIP 26, 3142 (2017)")
METADATA_CNN = Architecture(
    build=MetadataCNN,
    inputs=("image", "photon_energy_eV", "camera_length_m"),
    sized=True,
    source="the authors' code of 28 May 2024, after the paper",
)
