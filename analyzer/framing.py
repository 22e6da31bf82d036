"""Frames cut and binned to what a network is trained on, and fed again when it is used."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.files import BadInput

LARGEST = 99_999
"""Pixels an edge; no frame has more."""


@dataclass(frozen=True, slots=True)
class Framing:
    """size: (ss, fs) pixels about the middle of the frame, zeros where the frame is smaller; None takes all of it.

    bin: edge of the squares of pixels that are added up, after the cut; rows and columns that fill none are left out.
    Raises ValueError for a size or an edge that is none.
    """

    size: tuple[int, int] | None = None
    bin: int = 1

    def __post_init__(self) -> None:
        if self.size is not None and not all(1 <= length <= LARGEST for length in self.size):
            raise ValueError(f"size is {self.size}; give two numbers of pixels from 1 to {LARGEST}")
        if not 1 <= self.bin <= LARGEST:
            raise ValueError(f"bin is {self.bin}; give a number of pixels from 1 to {LARGEST}")

    @property
    def text(self) -> str:
        """What is fed, in words."""
        cut = "whole frames" if self.size is None else f"the middle {self.size[0]} x {self.size[1]} pixels"
        return cut if self.bin == 1 else f"{cut} in squares of {self.bin}"

    def shape(self, frame: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that are left of a frame of this shape (ss, fs), 0 where nothing is."""
        rows, columns = self.size or frame
        return rows // self.bin, columns // self.bin

    def on_frame(self, places: NDArray[np.float64], frame: tuple[int, int]) -> NDArray[np.float64]:
        """Places (N, 2) on what is left, as (row, column) indices, to indices (ss, fs) on a frame of this shape."""
        size = self.size or frame
        first = [_first(have, wanted) for have, wanted in zip(frame, size, strict=True)]
        on: NDArray[np.float64] = (places + 0.5) * self.bin - 0.5 + np.array(first)
        return on

    def image(self, pixels: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Counts (ss, fs) as (1, rows, columns), invalid pixels 0."""
        cut = self._cut(pixels).astype(np.float32)
        if valid is not None:
            cut[~self._cut(valid)] = 0.0
        summed: NDArray[np.float32] = self._squares(cut).sum((1, 3), dtype=np.float32)
        return summed[None]

    def marks(self, marks: NDArray[Any]) -> NDArray[np.float32]:
        """A map of marks (ss, fs) as (1, rows, columns), marked where any pixel is."""
        marked: NDArray[np.float32] = self._squares(self._cut(marks).astype(np.float32)).max((1, 3))
        return marked[None]

    def _cut(self, image: NDArray[Any]) -> NDArray[Any]:
        if self.size is None:
            return image
        first = [_first(have, wanted) for have, wanted in zip(image.shape, self.size, strict=True)]
        short = [max(wanted - have, 0) for have, wanted in zip(image.shape, self.size, strict=True)]
        if any(short):
            before = [max(-start, 0) for start in first]
            image = np.pad(image, [(some, every - some) for some, every in zip(before, short, strict=True)])
        rows, columns = (max(start, 0) for start in first)
        return image[rows : rows + self.size[0], columns : columns + self.size[1]]

    def _squares(self, image: NDArray[Any]) -> NDArray[Any]:
        rows, columns = (length // self.bin for length in image.shape)
        if not rows or not columns:
            raise BadInput(
                f"--bin {self.bin}: a frame of {image.shape[0]} x {image.shape[1]} pixels has no such square"
            )
        return image[: rows * self.bin, : columns * self.bin].reshape(rows, self.bin, columns, self.bin)


def _first(have: int, wanted: int) -> int:
    """Where the middle ``wanted`` pixels begin among those there are; below 0 where they are too few."""
    return (have - wanted) // 2 if have >= wanted else -((wanted - have) // 2)


def parse_size(text: str) -> tuple[int, int]:
    """A size such as 512 or 2163x2069, rows first. Raises ``BadInput``."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text.strip())
    if match is None:
        raise BadInput(f"--size {text}: not a size; give one number or ROWSxCOLUMNS, as in 512 or 2163x2069")
    return int(match[1]), int(match[2] or match[1])
