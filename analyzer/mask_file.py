"""Mask files: which pixels a user leaves out.

Read while frames are analysed, so a damaged or senseless file must cost neither the process nor its memory: what a
header states is looked at before anything is allocated, and bitshuffle is undone by our own decoder, since HDF5's
filter does not survive damaged bytes.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from streamer import bounds
from streamer.decoding import check_size, decode
from streamer.links import Linked
from streamer.messages import Algorithm, ImageData, UndecodableImage
from streamer.validity import Validity

DEFAULT_DATASET = "entry/instrument/detector/pixel_mask"
_WANTED = "give an .npy file or FILE.h5:/path/to/dataset"
_BITSHUFFLE = 32008
_SAFE_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
"""Those whose code is HDF5's or h5py's own."""


class BadMask(ValueError):
    """A mask that cannot be used: one line with what, where and what to do."""


def read_mask(path: Path) -> Validity:
    """The mask of an ``.npy`` file or of ``FILE.h5:/dataset``, (ss, fs), nonzero where a pixel is bad.

    Raises ``BadMask``.
    """
    name, _, dataset = str(path).partition(":")
    return Validity(Path(name).name, (read_flags(Path(name), dataset) == 0).astype(np.uint8))


def read_flags(file: Path, dataset: str = "") -> npt.NDArray[Any]:
    """The values (ss, fs) of a mask, of an ``.npy`` file or of a dataset of an HDF5 file. Raises ``BadMask``."""
    path = f"{file}:{dataset}" if dataset else str(file)
    try:
        if not file.is_file():
            raise BadMask(f"{path}: no such file; {_WANTED}")
        return _npy(file) if file.name.endswith(".npy") else _hdf5(file, dataset or DEFAULT_DATASET)
    except BadMask:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, UndecodableImage) as error:
        line = (str(error).splitlines() or [""])[0].strip("'\"")
        raise BadMask(f"{path}: {line}; {_WANTED}") from None


def _npy(path: Path) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version[0]}.{version[1]} of the .npy format")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(file)
        _check(shape, dtype)
        file.seek(0)
        array: npt.NDArray[Any] = np.load(file, allow_pickle=False)
        return array


def _hdf5(path: Path, name: str) -> npt.NDArray[Any]:
    with Linked(h5py.File(path, "r"), path) as linked:
        dataset = linked.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{name} is no dataset")
        _check(dataset.shape, dataset.dtype)
        properties = dataset.id.get_create_plist()
        filters = [properties.get_filter(n) for n in range(properties.get_nfilters())]
        if [code for code, *_ in filters] == [_BITSHUFFLE] and dataset.chunks == dataset.shape:
            return _unpacked(dataset, filters[0][2])
        if dataset.is_virtual or dataset.external or not {code for code, *_ in filters} <= _SAFE_FILTERS:
            raise ValueError(f"{name} is packed in a way that is not read here; write it plain or with gzip")
        array: npt.NDArray[Any] = dataset[()]
        return array


def _unpacked(dataset: h5py.Dataset, options: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype = dataset.dtype
    skipped, chunk = dataset.id.read_direct_chunk((0, 0))
    if skipped or len(options) < 5 or options[4] != 2 or dtype.str[1:] not in ("u1", "u2", "u4"):
        raise ValueError("packed with another form of bitshuffle than LZ4; write it plain or with gzip")
    image = ImageData(memoryview(chunk), dataset.shape, dtype, Algorithm.BSLZ4, dtype.itemsize)
    check_size(image)
    mask: npt.NDArray[Any] = np.empty(dataset.shape, dtype)
    decode(image, mask)
    return mask


def _check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "uibf":
        raise ValueError(f"values of {dtype}; a mask has numbers")
    if len(shape) != 2:
        raise ValueError(f"{len(shape)} dimensions; a mask is (ss, fs)")
    if bounds.image_shape(*shape) is None or shape[0] * shape[1] * dtype.itemsize > bounds.MAX_DECODED_BYTES:
        raise ValueError(f"{shape[0]} x {shape[1]} pixels, which no detector has")
