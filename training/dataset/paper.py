"""The paper's nine data sets and the names of their files.

A data set is a camera length and a photon energy; its number NN is the folder's name. An image is known by its
data set and its index, both in its name, never by its place in a listing:

    peaks                 img_{e}keV_clen{CC}_{iiiii}.h5            empty_peak_{NN}_{iiiii}.h5
    labels                label_img_{e}keV_clen{CC}_{iiiii}.h5      empty_label_{NN}_{iiiii}.h5
    peaks_water_overlay   overlay_img_{e}keV_clen{CC}_{iiiii}.h5    empty_overlay_{NN}_{iiiii}.h5
    water                 water{NN}.h5

CC counts the camera lengths from 01. The paper's raw name NN_{e}keV_clen{CC}_{iiiiii}.h5 in place of img_... is read
too.
"""

import re
from dataclasses import dataclass
from typing import Literal

from sim_replay.detector import CONDITIONS
from streamer.files import BadInput

ImageKind = Literal["peaks", "labels", "peaks_water_overlay"]

IMAGE_KINDS: tuple[ImageKind, ...] = ("peaks", "labels", "peaks_water_overlay")
WATER: Literal["water"] = "water"

CAMERA_LENGTH_TOLERANCE_M = 1e-5
PHOTON_ENERGY_TOLERANCE_EV = 0.5
"""A condition is met within these; floats in files come from text, from single precision, from unit conversions."""

_PREFIX: dict[ImageKind, str] = {"peaks": "", "labels": "label_", "peaks_water_overlay": "overlay_"}
_EMPTY: dict[ImageKind, str] = {"peaks": "peak", "labels": "label", "peaks_water_overlay": "overlay"}


@dataclass(frozen=True, slots=True)
class PaperDataset:
    """One of the nine: its number, its condition, and the number that its camera length has in names."""

    number: int
    camera_length_m: float
    photon_energy_eV: float
    camera_length_index: int

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return f"{self.number:02d}"

    def agrees(self, camera_length_m: float, photon_energy_eV: float) -> bool:
        """Whether these are its condition, within the tolerances."""
        return (
            abs(camera_length_m - self.camera_length_m) <= CAMERA_LENGTH_TOLERANCE_M
            and abs(photon_energy_eV - self.photon_energy_eV) <= PHOTON_ENERGY_TOLERANCE_EV
        )


_LENGTHS = sorted({condition.camera_length_m for condition in CONDITIONS.values()})

PAPER: dict[int, PaperDataset] = {
    number: PaperDataset(
        number,
        condition.camera_length_m,
        condition.photon_energy_eV,
        1 + _LENGTHS.index(condition.camera_length_m),
    )
    for number, condition in CONDITIONS.items()
}
"""The nine, by number: the one table that folders, names and attributes are compared with."""

_BY_NAME = {(round(d.photon_energy_eV / 1000), d.camera_length_index): d.number for d in PAPER.values()}


@dataclass(frozen=True, slots=True, order=True)
class ImageId:
    """What an image is known by: data set, index, and whether it is one of the empty ones, which count apart."""

    dataset: int
    empty: bool
    index: int

    def __str__(self) -> str:
        return f"{self.dataset:02d}/{'empty' if self.empty else 'img'}/{self.index:05d}"


def parse_id(text: str) -> ImageId | None:
    """The id whose `str` this is; None for any other text."""
    match = re.fullmatch(r"([0-9][0-9])/(empty|img)/([0-9]{5,})", text)
    return ImageId(int(match[1]), match[2] == "empty", int(match[3])) if match else None


def dataset_of(camera_length_m: float, photon_energy_eV: float) -> int | None:
    """The number of the data set with this condition; None when it is none of the nine."""
    return next((d.number for d in PAPER.values() if d.agrees(camera_length_m, photon_energy_eV)), None)


def parse_datasets(text: str) -> frozenset[int]:
    """The numbers in a list such as '1,5-9'. Raises BadInput."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,2})\s*(?:-\s*([0-9]{1,2})\s*)?", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match is None or not (low in PAPER and high in PAPER and low <= high):
            raise BadInput(f"--datasets {text}: {part.strip()!r} is no number or range from 1 to 9, as in 1,5-9")
        found.update(range(low, high + 1))
    return frozenset(found)


def file_name(kind: ImageKind, image: ImageId) -> str:
    """The name of the image's file in the folder of its kind."""
    if image.empty:
        return f"empty_{_EMPTY[kind]}_{image.dataset:02d}_{image.index:05d}.h5"
    paper = PAPER[image.dataset]
    energy_keV = round(paper.photon_energy_eV / 1000)
    return f"{_PREFIX[kind]}img_{energy_keV}keV_clen{paper.camera_length_index:02d}_{image.index:05d}.h5"


def parse_name(kind: ImageKind, name: str) -> ImageId | None:
    """The image that a file of this kind holds, by its name; None for a name that is none of the tree's."""
    if match := re.fullmatch(rf"empty_{_EMPTY[kind]}_([0-9][0-9])_([0-9]{{1,9}})\.h5", name):
        return ImageId(int(match[1]), True, int(match[2])) if int(match[1]) in PAPER else None
    match = re.fullmatch(rf"{_PREFIX[kind]}(?:img|([0-9][0-9]))_([0-9]+)keV_clen([0-9][0-9])_([0-9]{{1,9}})\.h5", name)
    number = _BY_NAME.get((int(match[2]), int(match[3]))) if match else None
    if match is None or number is None or (match[1] and int(match[1]) != number):
        return None
    return ImageId(number, False, int(match[4]))
