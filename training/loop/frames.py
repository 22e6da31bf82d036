"""Frames cut and binned to what a network is trained on."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.files import BadInput


@dataclass(frozen=True, slots=True)
class Framing:
    """size: (ss, fs) pixels about the middle of the frame, zeros where the frame is smaller; None takes all of it.

    bin: edge of the squares of pixels that are added up, after the cut; rows and columns that fill none are left out.
    """

    size: tuple[int, int] | None = None
    bin: int = 1

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
        spare = [have - wanted for have, wanted in zip(image.shape, self.size, strict=True)]
        if min(spare) < 0:
            image = np.pad(image, [(-least // 2, -least - -least // 2) if least < 0 else (0, 0) for least in spare])
        rows, columns = (max(least, 0) // 2 for least in spare)
        return image[rows : rows + self.size[0], columns : columns + self.size[1]]

    def _squares(self, image: NDArray[Any]) -> NDArray[Any]:
        rows, columns = (length // self.bin for length in image.shape)
        if not rows or not columns:
            raise BadInput(
                f"--bin {self.bin}: a frame of {image.shape[0]} x {image.shape[1]} pixels has no such square"
            )
        return image[: rows * self.bin, : columns * self.bin].reshape(rows, self.bin, columns, self.bin)


def parse_size(text: str) -> tuple[int, int]:
    """A size such as 512 or 2163x2069, rows first. Raises ``BadInput``."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text.strip())
    if match is None:
        raise BadInput(f"--size {text}: not a size; give one number or ROWSxCOLUMNS, as in 512 or 2163x2069")
    return int(match[1]), int(match[2] or match[1])
