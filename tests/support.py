"""What tests of every package share: programs and data that may be absent, tiny series, packing.

from tests.support import require, shared_data, write_series, pack
"""

import importlib.util
import io
import os
import shutil
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bitshuffle
import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import pytest

from streamer.messages import Algorithm, ImageData

REPOSITORY = Path(__file__).resolve().parents[1]
SHAPE = (37, 51)
"""A small image whose number of pixels leaves 7 over after groups of 8."""

MASKED = (3, 4)
"""The one bad pixel (ss, fs) in the mask that ``write_series`` writes."""


def required(name: str) -> bool:
    """Whether the environment says that ``name`` has to be here."""
    return name in os.environ.get("CXLS_TEST_REQUIRE", "").split(",")


def require(name: str, package: str | None = None) -> None:
    """Skip without a Python module or program, saying so; fail where CXLS_TEST_REQUIRE names it."""
    top = name.partition(".")[0]
    found = shutil.which(name) is not None
    if not found and importlib.util.find_spec(top) is not None:
        found = importlib.util.find_spec(name) is not None
    if not found:
        where = f" (package {package})" if package else ""
        if required(name):
            pytest.fail(f"{name} is required (CXLS_TEST_REQUIRE) and not installed{where}")
        pytest.skip(f"{name} is not installed{where}")


def free_port() -> int:
    """Of loopback; nobody has it now."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


def shared_data(name: str) -> Path:
    """A folder or file of the test data beside the repository; skip, saying so, where it is absent."""
    path = REPOSITORY.parent / "shared" / "data" / name
    if not path.exists():
        if required(name):
            pytest.fail(f"{name} is required (CXLS_TEST_REQUIRE) and ../shared/data/{name} is absent")
        pytest.skip(f"../shared/data/{name} is absent")
    return path


def poisson(images: int, shape: tuple[int, int] = SHAPE, dtype: str = "u2", mean: float = 3.0, seed: int = 7) -> Any:
    """Counts that compress like a detector's, (images, ss, fs)."""
    return np.random.default_rng(seed).poisson(mean, (images, *shape)).astype(dtype)


def write_data_file(path: Path, pixels: npt.NDArray[Any], filters: Mapping[str, Any] | None = None) -> Path:
    """A data file of the file writer: /entry/data/data, one packed chunk an image."""
    options = hdf5plugin.Bitshuffle() if filters is None else filters
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data/data", data=pixels, chunks=(1, *pixels.shape[1:]), **options)
    return path


def write_series(
    folder: Path,
    name: str = "run",
    images: int = 5,
    dtype: str = "u2",
    shape: tuple[int, int] = SHAPE,
    *,
    pixels: npt.NDArray[Any] | None = None,
    per_file: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    filters: Mapping[str, Any] | None = None,
) -> Path:
    """An Eiger series as the file writer lays it out; returns the master's path.

    ``metadata`` adds paths below /entry/instrument/detector or replaces them; ``None`` leaves
    one out. ``filters`` packs the chunks (default bitshuffle-LZ4), ``per_file`` splits the
    images over data files.
    """
    stack = poisson(images, shape, dtype) if pixels is None else pixels
    size = per_file or max(1, len(stack))
    parts = [stack[n : n + size] for n in range(0, len(stack), size)] or [stack]
    mask = np.zeros(stack.shape[1:], "u4")
    mask[MASKED] = 1
    values: dict[str, Any] = {
        "beam_center_x": 25.5,
        "beam_center_y": 18.5,
        "detector_distance": 0.15,
        "x_pixel_size": 75e-6,
        "y_pixel_size": 75e-6,
        "count_time": 0.004,
        "frame_time": 0.005,
        "detectorSpecific/photon_energy": 7000.0,
        "detectorSpecific/pixel_mask": mask,
        "detectorSpecific/nimages": len(stack),
        "detectorSpecific/ntrigger": 1,
        **(metadata or {}),
    }
    master = folder / f"{name}_master.h5"
    with h5py.File(master, "w") as file:
        for number, part in enumerate(parts, 1):
            data = write_data_file(folder / f"{name}_data_{number:06d}.h5", part, filters)
            file[f"entry/data/data_{number:06d}"] = h5py.ExternalLink(data.name, "/entry/data/data")
        for path, value in values.items():
            if value is not None:
                file[f"entry/instrument/detector/{path}"] = value
    return master


def write_single_image(path: Path, pixels: npt.NDArray[Any], **attributes: Any) -> Path:
    """A single-image file of the paper: entry/data/data with root attributes."""
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = pixels
        file.attrs.update(attributes)
    return path


def read_pixels(master: Path) -> npt.NDArray[Any]:
    """The images of a master, read by h5py."""
    with h5py.File(master) as file:
        return np.concatenate([stack[()] for stack in _stacks(file)])


def read_chunks(master: Path) -> list[bytes]:
    """The packed chunks of a master, as they lie in its data files."""
    with h5py.File(master) as file:
        return [stack.id.read_direct_chunk((n, 0, 0))[1] for stack in _stacks(file) for n in range(len(stack))]


def _stacks(master: h5py.File) -> list[h5py.Dataset]:
    """The images file by file; /entry/data/data, where there is one, only joins them."""
    return [master["entry/data"][name] for name in sorted(master["entry/data"]) if name.startswith("data_")]


def pack(pixels: npt.NDArray[Any], algorithm: Algorithm, block_bytes: int = 8192, element_bytes: int = 0) -> bytes:
    """Pixels packed by an encoder that is none of ours."""
    flat = np.ascontiguousarray(pixels).reshape(-1)
    if algorithm == Algorithm.RAW:
        return flat.tobytes()
    if algorithm == Algorithm.BSLZ4:
        element = element_bytes or flat.dtype.itemsize
        elements = flat.view(np.uint8).view(f"u{element}")
        packed = bitshuffle.compress_lz4(elements, block_bytes // element).tobytes()
        return struct.pack(">QI", flat.nbytes, block_bytes) + packed
    if algorithm == Algorithm.BSZSTD:
        return _hdf5_chunk(flat, hdf5plugin.Bitshuffle(cname="zstd"))
    if algorithm == Algorithm.LZ4_HDF5:
        return _hdf5_chunk(flat, hdf5plugin.LZ4(nbytes=min(block_bytes, flat.nbytes)))
    if algorithm == Algorithm.LZ4_BLOCK:
        chunk = _hdf5_chunk(flat, hdf5plugin.LZ4(nbytes=flat.nbytes))
        return chunk[16:] if len(chunk) - 16 != flat.nbytes else lz4_literals(flat.tobytes())
    raise ValueError(f"no packer for {algorithm}")


def packed_image(pixels: npt.NDArray[Any], algorithm: Algorithm = Algorithm.BSLZ4, **options: Any) -> ImageData:
    """Pixels (ss, fs) as the image of a message."""
    element = options.get("element_bytes") or pixels.dtype.itemsize
    rows, columns = pixels.shape
    return ImageData(memoryview(pack(pixels, algorithm, **options)), (rows, columns), pixels.dtype, algorithm, element)


def lz4_literals(data: bytes) -> bytes:
    """An LZ4 block that is one run of literals: what a block of noise is."""
    if len(data) < 15:
        return bytes([len(data) << 4]) + data
    more, last = divmod(len(data) - 15, 255)
    return b"\xf0" + b"\xff" * more + bytes([last]) + data


def _hdf5_chunk(flat: npt.NDArray[Any], filters: Mapping[str, Any]) -> bytes:
    with h5py.File(io.BytesIO(), "w") as file:
        data = file.create_dataset("data", data=flat, chunks=flat.shape, **filters)
        file.flush()
        return bytes(data.id.read_direct_chunk((0,))[1])
