"""Single-image files: `entry/data/data` (ss, fs) and what it is in attributes of the root.

`clen` (float, m), `photon_energy` (eV) and `peak` (bool) are the paper's. Ours add to them `expectation` (bool: the
pixels are expected photons, not counts) and what the pixels were made from. Written packed by gzip, in one chunk:
every HDF5 reader has it, and a label of 4 million pixels takes 20 kB instead of 18 MB.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the HDF5 filters)
import numpy as np
from numpy.typing import NDArray

from streamer.files import BadInput
from streamer.links import Refused
from training.dataset.opening import open_linked
from training.dataset.paper import PaperDataset
from training.dataset.problems import Problem, cannot_open

AfterImage = Callable[[int, int], None]
"""Called after each image with (images done, images to do)."""

DATASET = "/entry/data/data"
MAX_PIXELS = 1 << 28
"""Larger than any detector; a damaged header must not have us allocate what it says."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredImage:
    """An image read: pixels (ss, fs) in the file's dtype, the root's attributes by name."""

    path: Path
    pixels: NDArray[Any]
    attributes: Mapping[str, Any]

    @property
    def is_expectation(self) -> bool:
        """Whether pixels are expected photons: the attribute says so or, where it is silent, fractions do."""
        said = self.attributes.get("expectation")
        if isinstance(said, bool | np.bool_):
            return bool(said)
        return self.pixels.dtype.kind == "f" and bool((self.pixels != np.floor(self.pixels)).any())

    def number(self, name: str) -> int | float | None:
        """A numeric scalar attribute; None when it is absent or something else."""
        value = self.attributes.get(name)
        return value.item() if isinstance(value, np.number) else None


def load_image(path: Path) -> StoredImage | Problem:
    """Read an image, or say what stands in the way. Nothing is judged but that pixels are numbers (ss, fs)."""
    try:
        with open_linked(path) as linked:
            try:
                found = linked.get(DATASET)
            except Refused as error:
                return Problem(path, DATASET, str(error))
            except (KeyError, OSError, RuntimeError):
                found = None
            if not isinstance(found, h5py.Dataset):
                return Problem(path, DATASET, "the dataset is missing")
            if found.ndim != 2:
                return Problem(path, DATASET, f"shape {found.shape} has rank {found.ndim}, an image has 2")
            if found.dtype.kind not in "uif":
                return Problem(path, DATASET, f"dtype {found.dtype} is none of integer and float")
            if not 0 < math.prod(found.shape) <= MAX_PIXELS:
                return Problem(path, DATASET, f"shape {found.shape} is no image")
            try:
                return StoredImage(path, _plain(found[()]), dict(linked.file.attrs))
            except (OSError, RuntimeError, TypeError) as error:
                return Problem(path, DATASET, f"cannot be read: {error}")
    except OSError as error:
        return cannot_open(path, error)


def _plain(pixels: NDArray[Any]) -> NDArray[Any]:
    """In a type that filters take: native byte order, 32 bits at least where there are fractions."""
    if pixels.dtype == np.float16:
        return pixels.astype(np.float32)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def read_image(path: Path) -> StoredImage:
    """Read an image whose pixels are finite and not negative. Raises BadInput."""
    loaded = load_image(path)
    if isinstance(loaded, StoredImage) and (bad := unphysical(loaded.pixels)):
        loaded = Problem(path, DATASET, bad)
    if isinstance(loaded, Problem):
        raise BadInput(f"{loaded}; `cxls data check` lists all that is wrong")
    return loaded


def unphysical(pixels: NDArray[Any]) -> str:
    """What is wrong with pixels that should be photons: '' when nothing is."""
    bad = 0
    if pixels.dtype.kind == "f" and (bad := int(np.count_nonzero(~np.isfinite(pixels)))):
        return f"{bad} pixels are not finite"
    if pixels.dtype.kind != "u" and (bad := int(np.count_nonzero(pixels < 0))):
        return f"{bad} pixels are negative"
    return ""


def write_image(path: Path, pixels: NDArray[Any], attributes: Mapping[str, Any]) -> None:
    """Write an image (ss, fs) beside its place and rename it there: what stands under the name is whole.

    Replaces a file that is there; callers refuse before they begin (`refuse_existing`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(temporary, "w") as file:
            file.create_dataset(
                DATASET, data=pixels, chunks=pixels.shape, compression="gzip", compression_opts=1, shuffle=True
            )
            file.attrs.update(attributes)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(paths: list[Path], force: bool) -> None:
    """Raises FileExistsError, before anything is written, when one of the paths is there and force is false."""
    existing = [path for path in paths if path.exists()]
    if existing and not force:
        rest = f"and {len(existing) - 1} more exist" if len(existing) > 1 else "exists"
        raise FileExistsError(f"{existing[0]} {rest} already")


def condition_attributes(paper: PaperDataset, peak: bool) -> dict[str, Any]:
    """The paper's three attributes of an image of this data set."""
    return {"clen": paper.camera_length_m, "photon_energy": int(paper.photon_energy_eV), "peak": peak}


def digest(pixels: NDArray[Any]) -> str:
    """A name for these pixels; equal for equal values, whatever integer or float type holds whole numbers."""
    same = np.ascontiguousarray(pixels, np.float64)
    return hashlib.blake2b(same.data, digest_size=16).hexdigest()
