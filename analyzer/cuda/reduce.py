"""One pass of preprocessing on the GPU: what ``Workspace.reduce`` and ``Workspace.profile`` do, for a batch of frames.

In: pixels as 16 bits and two bitmaps of each frame, as the decoder leaves them on the device. Out: one block of results
a frame, which comes back in one copy. All buffers are made once; what is launched depends on the number of frames
alone, so that a CUDA graph of it can be captured; nothing waits for the host.

Counts, peaks, their order and which pixels are kept are those of the CPU, for images whose counts fit 16 bits:
a count above ``MOST_COUNTS`` of a 32-bit image is cut to it, and ``FrameViews.at_limit`` says how many pixels have
that many or more. Floats may differ by rounding.

A frame of an EIGER2 4M with the beam in its middle has 99,584 bytes of results, more than half of them for the records
of 2048 peaks, and 10.6 MB of buffers on the device beside its pixels: ``BatchReducer.result_bytes`` and
``frame_bytes``. ``device_bytes`` is all that a reducer holds there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from analyzer.cuda import device as devices
from analyzer.cuda.decode import DecodedBatch, Launcher
from analyzer.cuda.layout import (
    CLEARED_WORDS,
    COUNTED_WORDS,
    LONE,
    MOST_CELLS_ACROSS,
    MOST_COUNTS,
    PLAN,
    SINGLE_PIXEL,
    SPREAD,
    Reduction,
    Sizes,
    result_dtype,
    sizes_of,
    slab,
    tables,
)
from analyzer.cuda.program import Program
from analyzer.frame_peaks import FramePeaks
from analyzer.kernels import CELL, SURE_PEAKS_FOR_AS_MANY
from analyzer.reduction import MAX_PEAKS, Coverage, FramePlan
from analyzer.zones import ZONES

SOURCES = ("reduce_background.cu", "reduce_significance.cu", "reduce_peaks.cu", "reduce_profile.cu")
"""Of the kernels."""

OPTIONS = ("--fmad=false",)
"""For the compiler: a product and a sum are rounded one after the other, as on the CPU, where counts are compared with
what they are made of."""


def load(device: str | torch.device = "cuda", cache: Path | None = None) -> dict[str, Program]:
    """The reduction's kernels on a device, as ``BatchReducer`` takes them. Raises as ``Program`` does."""
    return {source: Program(source, device, cache=cache, options=OPTIONS) for source in SOURCES}


@dataclass(frozen=True, slots=True, eq=False)
class Covered:
    """What the frames of a series covered, on the device: ``seen`` (words,) uint64 and ``expected`` (bins,) float64 as
    in ``reduction.Coverage``, ``settled`` what of ``expected`` is not to be taken back."""

    seen: torch.Tensor
    expected: torch.Tensor
    settled: torch.Tensor

    def settle(self) -> None:
        """What all frames so far covered is not to be taken back. Waits for nothing."""
        self.settled.copy_(self.expected)

    def take_back(self) -> None:
        """Frames since ``settle`` come again: they are expected anew, seen they stay. Waits for nothing."""
        self.expected.copy_(self.settled)


@dataclass(frozen=True, slots=True, eq=False)
class ReducedBatch:
    """What a batch is reduced from and into, on the device: made by ``BatchReducer.outputs`` for what is decoded.

    ``faults`` (n,) int32: a frame with another number than 0 is passed over, and its results are not to be read. So a
    graph of n frames serves for fewer, if the others have one.
    ``results`` (n, result_bytes) uint8. ``covered`` grows with every batch. ``parameter``: where all lies, for the
    kernels.
    """

    decoded: DecodedBatch
    faults: torch.Tensor
    results: torch.Tensor
    covered: Covered
    parameter: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class FrameViews:
    """A frame's results, views of the block that came back: see ``reduction.Workspace`` for what they are.

    ``profile`` (3, sectors.bins) float32 and ``pairs``: as in ``reduction.FrameProfile``. ``peak_pixels``,
    ``peak_lone``: as in ``FramePeaks``; ``peak_single``: whether no other pixel of a peak's 3 x 3 has counts.
    ``lit_cells`` (rows, words) uint32: of each row of cells the bits of those with a significant pixel. ``at_limit``:
    valid pixels with ``MOST_COUNTS`` or more.
    """

    zones: npt.NDArray[np.float32]
    cells: npt.NDArray[np.float32]
    peaks: npt.NDArray[Any]
    peak_pixels: npt.NDArray[np.int32]
    peak_lone: npt.NDArray[np.bool_]
    peak_single: npt.NDArray[np.bool_]
    photons: npt.NDArray[np.float64]
    pixels_counted: npt.NDArray[np.float64]
    background: npt.NDArray[np.float64]
    profile: npt.NDArray[np.float32]
    lit_cells: npt.NDArray[np.uint32]
    total_photons: int
    saturated_pixels: int
    at_limit: int
    background_photons: float
    pairs: float


class BatchReducer:
    """Reduces batches of up to ``most_frames`` frames of one plan, one batch after the other.

    ``programs``: see ``load``. Raises ``ValueError`` for frames wider than ``MOST_CELLS_ACROSS`` cells.
    """

    def __init__(self, plan: FramePlan, most_frames: int, programs: Mapping[str, Launcher]) -> None:
        rows, columns = plan.shape
        # What saturates beyond 16 bits cannot be told from what was cut to them.
        saturation = plan.saturation if plan.saturation <= MOST_COUNTS else MOST_COUNTS + 1
        self._sizes = sizes = Sizes(rows, columns, plan.bins.bins, plan.sectors.bins, saturation, len(plan.panels))
        if sizes.cells_across > MOST_CELLS_ACROSS:
            raise ValueError(f"frames {columns} pixels wide; the GPU reduces up to {MOST_CELLS_ACROSS * CELL}")
        self.plan = plan
        self.device = programs[SOURCES[0]].device
        self._programs = programs
        self._most_frames = most_frames
        self._dtype = result_dtype(sizes)
        self.result_bytes = self._dtype.itemsize
        self._constant = {name: self._placed(array) for name, array in _plan_arrays(plan, sizes).items()}
        offsets, self._zeroed_bytes, self.frame_bytes = slab(sizes)
        self._slab = torch.zeros((most_frames, self.frame_bytes), dtype=torch.uint8, device=self.device)
        self.device_bytes = sum(each.nbytes for each in (*self._constant.values(), self._slab))
        start = self._slab.data_ptr()
        lowest = plan.peak_threshold - float(np.log1p(MAX_PEAKS / SURE_PEAKS_FOR_AS_MANY))
        assert self._dtype.fields is not None
        self._values: dict[str, Any] = {
            **{name: tensor.data_ptr() for name, tensor in self._constant.items()},
            **{name: start + offset for name, offset in offsets.items()},
            **{f"result_{name}": field[1] for name, field in self._dtype.fields.items() if name != "header"},
            **sizes_of(sizes),
            "zeroed": start, "zeroed_words": self._zeroed_bytes // 8, "slab_bytes": self.frame_bytes,
            "result_bytes": self.result_bytes, "peak_threshold": plan.peak_threshold, "lowest_evidence": lowest,
        }  # fmt: skip

    def outputs(self, decoded: DecodedBatch, faults: torch.Tensor) -> ReducedBatch:
        """Room for the results of what is decoded there; ``faults`` (n,) int32 are the decoder's errors."""
        frames = len(decoded.pixels)
        stride, words = decoded.pixels.shape[1], decoded.lit.shape[1]
        if frames > self._most_frames or len(faults) < frames:
            raise ValueError(f"{frames} frames with {len(faults)} error words; give up to {self._most_frames} of both")
        if stride < self._sizes.count or words < self._sizes.words or decoded.blank.shape != decoded.lit.shape:
            raise ValueError(f"{stride} pixels and {words} words a frame for one of {self.plan.shape}")
        return self._with(
            decoded, faults, torch.zeros((frames, self.result_bytes), dtype=torch.uint8, device=self.device)
        )

    def again(self, batch: ReducedBatch) -> ReducedBatch:
        """The same buffers for another series: what its frames covered is its own, and nothing yet."""
        return self._with(batch.decoded, batch.faults, batch.results)

    def _with(self, decoded: DecodedBatch, faults: torch.Tensor, results: torch.Tensor) -> ReducedBatch:
        expected = torch.zeros(self._sizes.bins, dtype=torch.float64, device=self.device)
        seen = torch.zeros(self._sizes.words, dtype=torch.uint64, device=self.device)
        covered = Covered(seen, expected, torch.zeros_like(expected))
        parameter = Reduction(
            **self._values, pixels=decoded.pixels.data_ptr(), lit=decoded.lit.data_ptr(),
            blank=decoded.blank.data_ptr(), faults=faults.data_ptr(), results=results.data_ptr(),
            pixel_stride=decoded.pixels.shape[1], word_stride=decoded.lit.shape[1], seen=seen.data_ptr(),
            expected=expected.data_ptr(),
        )  # fmt: skip
        return ReducedBatch(decoded, faults, results, covered, self._placed(np.frombuffer(bytes(parameter), np.uint8)))

    def reduce(self, batch: ReducedBatch, frames: int, stream: Any = None) -> None:
        """Launch all that reduces the first ``frames`` frames of a decoded batch, on ``stream``; waits for nothing."""
        if not 1 <= frames <= len(batch.results):
            raise ValueError(f"{frames} frames of a batch of {len(batch.results)}")
        sizes = self._sizes
        background, significance, peaks, profile = (self._programs[source] for source in SOURCES)
        counted = -(-sizes.words // COUNTED_WORDS)

        def launch(program: Launcher, kernel: str, blocks: int, *more: int, each: int = frames) -> None:
            program.launch(kernel, blocks, each, stream, batch.parameter, *more)

        launch(background, "reduce_clear", -(-self._zeroed_bytes // 8 // CLEARED_WORDS))
        launch(background, "reduce_count", counted)
        launch(background, "reduce_smooth", 1, 0)
        for turn in (1, 2):
            launch(background, "reduce_clip", counted, turn)
            launch(background, "reduce_smooth", 1, turn)
        launch(significance, "reduce_significance", sizes.cells_down)
        launch(significance, "reduce_evidence", ZONES)
        launch(significance, "reduce_strongest", 1)
        launch(significance, "reduce_overflow", 1)
        launch(peaks, "reduce_spot_evidence", SPREAD)
        launch(peaks, "reduce_order", SPREAD, 0)
        launch(peaks, "reduce_peaks", 1, 0)
        launch(profile, "reduce_leave_out", SPREAD)
        launch(profile, "reduce_leave_out_blank", counted)
        launch(peaks, "reduce_look_beside", SPREAD)
        launch(peaks, "reduce_judge_beside", SPREAD)
        launch(peaks, "reduce_order", SPREAD, 1)
        launch(peaks, "reduce_peaks", 1, 1)
        launch(peaks, "reduce_peak_places", SPREAD)
        launch(profile, "reduce_finish", 1)
        launch(background, "reduce_note", -(-sizes.words // 256), frames, each=1)

    def views(self, block: npt.NDArray[np.uint8], frame: int) -> FrameViews:
        """The results of one frame of a block (frames * result_bytes,) that came back."""
        # Of bytes anywhere, as a record: the block itself, nothing is copied but the flags of the peaks found.
        each = np.ndarray((), self._dtype, block.data, frame * self.result_bytes)
        header = each["header"]
        found = int(header["peaks"])
        flags = each["peak_flags"][:found]
        return FrameViews(
            zones=each["zones"],
            cells=each["cells"],
            peaks=each["peaks"][:found],
            peak_pixels=each["peak_pixels"][:found],
            peak_lone=(flags & LONE) != 0,
            peak_single=(flags & SINGLE_PIXEL) != 0,
            photons=each["photons"],
            pixels_counted=each["pixels"],
            background=each["background"],
            profile=each["profile"],
            lit_cells=each["lit_cells"],
            total_photons=int(header["total_photons"]),
            saturated_pixels=int(header["saturated_pixels"]),
            at_limit=int(header["at_limit"]),
            background_photons=float(header["background_photons"]),
            pairs=float(header["pairs"]),
        )

    def field(self, batch: ReducedBatch, name: str) -> torch.Tensor:
        """A float32 field of all results of a batch, (n, *shape), on the device; a view, whose rows lie apart."""
        assert self._dtype.fields is not None
        kind, offset = self._dtype.fields[name][:2]
        part = batch.results[:, offset : offset + kind.itemsize]
        return part.view(torch.float32).view(len(part), *kind.shape)

    def coverage(self, batch: ReducedBatch) -> Coverage:
        """What all frames of a series covered; copies. Waits for the device, no longer than ``devices.wait`` does."""
        found = [host_copy(each) for each in (batch.covered.seen, batch.covered.expected)]
        devices.settle(self.device)
        seen, expected = (each.numpy() for each in found)
        return Coverage(self.plan, seen, expected)

    def _placed(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array.copy()).to(self.device)


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on its way to page-locked memory, on the current stream: there once what was started is done."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return copy.copy_(tensor, non_blocking=True)


def _plan_arrays(plan: FramePlan, sizes: Sizes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of ``PLAN``. ``inside`` and ``place`` reach to the end of the last word."""
    pixels = np.zeros((2, 64 * sizes.words), np.uint16)
    pixels[:, : sizes.count] = plan.inside, plan.place
    sector_places = np.argsort(plan.sectors.place, kind="stable")
    arrays = tables() | {
        "inside": pixels[0],
        "place": pixels[1],
        "bin_pixels": plan.bin_pixels,
        "place_pixels": plan.place_pixels,
        "cell_bin": plan.cell_bin,
        "cell_zone": plan.cell_zone,
        "cell_pixels": plan.cell_pixels,
        "log_cell_pixels": plan.log_cell_pixels,
        "cell_valid": plan.cell_valid,
        "cell_radius_m": plan.cell_radius_m,
        # Zones follow each other along the radius, as bins do.
        "zone_first": np.searchsorted(plan.bin_zone, np.arange(ZONES + 1)),
        "sector_first": np.searchsorted(plan.sectors.place[sector_places], np.arange(sizes.sector_bins + 1)),
        "sector_places": sector_places,
        "panels": plan.panels,
    }
    return {name: np.ascontiguousarray(arrays[name], np.dtype(kind)) for name, kind in PLAN.items()}


def lit_cell_map(frame: FrameViews, plan: FramePlan) -> npt.NDArray[np.bool_]:
    """Which cells have a significant pixel (rows, columns): where the map's scale ``zones.SINGLE`` is above 0."""
    across = plan.cell_valid.shape[1]
    return np.unpackbits(frame.lit_cells.view(np.uint8), axis=1, bitorder="little", count=across).astype(np.bool_)


def frame_peaks_of(frame: FrameViews, plan: FramePlan) -> FramePeaks:
    """As ``frame_peaks.frame_peaks``, which needs the pixels; copies, no views."""
    radius = plan.geometry.radius_px(frame.peaks["fs"], frame.peaks["ss"])
    pixel = frame.peak_pixels.astype(np.int64)
    return FramePeaks(plan, frame.peaks.copy(), radius, plan.geometry.q_at(radius), pixel, frame.peak_lone)
