"""The reduction's kernels, on the CPU or a device, on frames as the decoder leaves them; and ``Workspace`` beside."""

import atexit
import ctypes
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from analyzer.cuda.decode import DecodedBatch, Launcher
from analyzer.cuda.layout import MOST_COUNTS
from analyzer.cuda.reduce import SOURCES, BatchReducer, FrameViews, lit_cell_map
from analyzer.cuda.signatures import Kernel
from analyzer.reduction import PEAK_DTYPE, Coverage, FramePlan, Workspace
from analyzer.zones import FIRST_LEVEL, LIGHT, SINGLE
from streamer.validity import sentinel
from tests.analyzer.cuda.host_build import HostProgram, LanesProgram

RELATIVE = 1e-5
"""What floats may differ by from the CPU's."""


class InOrder(HostProgram):
    """Blocks, and the turns of their loops, one after the other."""

    flags = ("-O2", "-DSHARED=static")

    def __init__(self, source: str, folder: Path) -> None:
        super().__init__(source, folder)
        self._library = ctypes.CDLL(str(self._path))

    def _run(self, kernel: Kernel, blocks_x: int, blocks_y: int, arguments: Sequence[Any], values: list[Any]) -> None:
        function = getattr(self._library, kernel.name)
        function.restype = None
        function.argtypes = [ctypes.c_int, ctypes.c_int, *kernel.parameters]
        for block in self._blocks(blocks_x * blocks_y):
            function(block % blocks_x, block // blocks_x, *values)

    def _blocks(self, count: int) -> Sequence[int]:
        return range(count)


class Scrambled(InOrder):
    """Blocks, and the turns of their loops, in orders that change."""

    flags = (*InOrder.flags, "-include", str(Path(__file__).with_name("scramble.hpp")))
    _random = np.random.default_rng(1)

    def _blocks(self, count: int) -> Sequence[int]:
        blocks: list[int] = self._random.permutation(count).tolist()
        return blocks


class Sanitized(InOrder):
    """Under the sanitizers of addresses and of undefined behaviour, which the process has to have loaded."""

    flags = ("-O1", "-DSHARED=static", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@functools.cache
def programs(kind: type[InOrder] | type[LanesProgram] = InOrder) -> Mapping[str, Launcher]:
    """The reduction's programs, built once a process."""
    folder = Path(tempfile.mkdtemp(prefix="host-reduce-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {source: kind(source, folder) for source in SOURCES}


def decoded(frames: npt.NDArray[Any], plan: FramePlan) -> DecodedBatch:
    """Frames (n, ss, fs) as ``DecodedBatch``. Behind a frame's pixels, where nothing is to be read, there is light."""
    count = len(frames)
    flat = frames.reshape(count, -1)
    stride = -(-flat.shape[1] // 64) * 64
    narrow, lit, blank = (np.full((count, stride), 500).astype(kind) for kind in (np.uint16, np.bool_, np.bool_))
    without = flat == sentinel(frames.dtype)
    narrow[:, : flat.shape[1]] = np.where(without, 0xFFFF, np.minimum(flat.astype(np.int64), MOST_COUNTS))
    valid = plan.validity.valid.reshape(-1) != 0
    lit[:, : flat.shape[1]] = valid & ~without & (flat > 0)
    blank[:, : flat.shape[1]] = valid & without
    bits = [np.packbits(each, axis=1, bitorder="little").view(np.uint64) for each in (lit, blank)]
    return DecodedBatch(*(torch.from_numpy(each) for each in (narrow, *bits)))


def _on(device: torch.device, batch: DecodedBatch) -> DecodedBatch:
    return DecodedBatch(*(each.to(device) for each in (batch.pixels, batch.lit, batch.blank)))


def reduced(
    frames: npt.NDArray[Any], plan: FramePlan, built: Mapping[str, Launcher], faults: Sequence[int] | None = None
) -> tuple[Coverage, list[FrameViews]]:
    """The frames (n, ss, fs) reduced as one batch, and what they covered."""
    reducer = BatchReducer(plan, len(frames), built)
    marks = torch.tensor([0] * len(frames) if faults is None else list(faults), dtype=torch.int32)
    batch = reducer.outputs(_on(reducer.device, decoded(frames, plan)), marks.to(reducer.device))
    reducer.reduce(batch, len(frames))
    block = batch.results.cpu().numpy().reshape(-1)
    return reducer.coverage(batch), [reducer.views(block, frame) for frame in range(len(frames))]


def result_bytes(frames: npt.NDArray[Any], plan: FramePlan, built: Mapping[str, Launcher]) -> npt.NDArray[np.uint8]:
    """What comes back of the frames (n, ss, fs), (n, result_bytes)."""
    reducer = BatchReducer(plan, len(frames), built)
    batch = reducer.outputs(decoded(frames, plan), torch.zeros(len(frames), dtype=torch.int32))
    reducer.reduce(batch, len(frames))
    block: npt.NDArray[np.uint8] = batch.results.numpy()
    return block


def assert_as_on_the_cpu(frames: npt.NDArray[Any], plan: FramePlan, built: Mapping[str, Launcher]) -> list[FrameViews]:
    """Each frame of (n, ss, fs) is reduced to what ``Workspace`` reduces it to."""
    covered, views = reduced(frames, plan, built)
    workspace = Workspace(plan, frames.dtype)
    for pixels, found in zip(frames, views, strict=True):
        assert_equal(workspace, pixels, found, exactly=built[SOURCES[0]].device.type == "cpu")
    np.testing.assert_allclose(covered.expected, workspace.coverage.expected, rtol=1e-12)
    np.testing.assert_array_equal(covered.seen, workspace.coverage.seen)
    return views


def assert_equal(workspace: Workspace, pixels: npt.NDArray[Any], found: FrameViews, *, exactly: bool = True) -> None:
    """A frame's results are those of ``workspace``: whole numbers and peaks exactly, floats to ``RELATIVE``.

    A device has logarithms of its own, so that there (not ``exactly``) the floats of peaks may differ as much.
    """
    workspace.pixels[:] = pixels
    expected = workspace.reduce()
    profile = workspace.profile()
    assert (found.total_photons, found.saturated_pixels) == (expected.total_photons, expected.saturated_pixels)
    for name in PEAK_DTYPE.names or ():
        of_peaks = found.peaks[name], expected.peaks[name]
        np.testing.assert_allclose(*of_peaks, rtol=0 if exactly else RELATIVE, atol=0 if exactly else RELATIVE)
    np.testing.assert_array_equal(found.photons, expected.photons)
    np.testing.assert_array_equal(found.pixels_counted, expected.pixels_counted)
    np.testing.assert_allclose(found.background, workspace.background, rtol=1e-12)
    np.testing.assert_array_equal(lit_cell_map(found, workspace.plan), expected.significance[SINGLE] > 0)
    np.testing.assert_array_equal(found.zones[:, FIRST_LEVEL:], workspace.zones[:, FIRST_LEVEL:])
    np.testing.assert_allclose(found.zones[:, :LIGHT], workspace.zones[:, :LIGHT], rtol=RELATIVE)
    np.testing.assert_allclose(
        found.zones[:, LIGHT:FIRST_LEVEL], workspace.zones[:, LIGHT:FIRST_LEVEL], rtol=RELATIVE, atol=1e-7
    )
    np.testing.assert_allclose(found.cells, workspace.cells, rtol=RELATIVE)
    np.testing.assert_array_equal(found.profile[:2], profile.profile[:2])
    np.testing.assert_allclose(found.profile[2], profile.profile[2], rtol=RELATIVE)
    assert np.isclose(found.pairs, profile.pairs, rtol=1e-9)
    assert np.isclose(found.background_photons, expected.background_photons, rtol=1e-9)
