"""A classifier that knows nothing: it keeps fingerprints of training images and looks test images up.

Where it is right about images it has not seen, the test set holds what the training set held, and the figures of any
network on it say as little as its own.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.leak_data import Images

PLACES, PIXELS = 64, 48
"""Fingerprints an image, and pixels in each: enough that no two draws of the noise agree by chance, and few enough
that most fingerprints of a hit hold no photon of a spot."""


@dataclass(frozen=True, slots=True, eq=False)
class PixelHash:
    """Fingerprints of training images.

    pixels (PLACES, PIXELS): where they are taken. empties: of whole empty images. conditions: data set of each
    fingerprint. commonest: the data set to name for an image without any that is known.
    """

    pixels: NDArray[np.int64]
    empties: frozenset[bytes]
    conditions: dict[tuple[int, bytes], int]
    commonest: int

    def is_hit(self, image: NDArray[np.uint16]) -> bool:
        """Whether no empty image of the training set equals this one."""
        return _digest(image) not in self.empties

    def dataset(self, image: NDArray[np.uint16]) -> int:
        """The data set that most of its known fingerprints were in."""
        votes = Counter(
            self.conditions[key] for key in _fingerprints(image, self.pixels) if key in self.conditions
        ).most_common(1)
        return votes[0][0] if votes else self.commonest


def remember(images: Images, seed: int = 0) -> PixelHash:
    """Look at training images once."""
    pictures = images.fields["image"]
    rng = np.random.default_rng([seed, 0x4A5])
    pixels = rng.integers(0, pictures[0].size, (PLACES, PIXELS))
    conditions: dict[tuple[int, bytes], int] = {}
    for picture, number in zip(pictures, images.dataset, strict=True):
        for key in _fingerprints(picture, pixels):
            conditions.setdefault(key, int(number))
    empties = frozenset(_digest(picture) for picture in pictures[~images.fields["hit"]])
    return PixelHash(pixels, empties, conditions, Counter(images.dataset.tolist()).most_common(1)[0][0])


def _fingerprints(image: NDArray[np.uint16], pixels: NDArray[np.int64]) -> list[tuple[int, bytes]]:
    return [(place, _digest(values)) for place, values in enumerate(image.reshape(-1)[pixels])]


def _digest(values: NDArray[np.uint16]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()
