"""The whole way on a device: packed images of one kind in, what the cascade needs of each out, a batch at once.

Frames are staged in page-locked memory, copied to the device in one piece, unpacked and reduced there, and their
results come back in one piece. The hit network reads its inputs where they lie. A worker has engines of its own, one
for all series that are measured alike, so while one worker waits for its results others stage and launch theirs.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from analyzer.cuda import device as devices
from analyzer.cuda.decode import BatchDecoder, Launcher, failure
from analyzer.cuda.device import full_precision
from analyzer.cuda.program import Program
from analyzer.cuda.reduce import (
    OPTIONS,
    SOURCES,
    BatchReducer,
    FrameViews,
    ReducedBatch,
    frame_peaks_of,
    lit_cell_map,
    load,
)
from analyzer.cuda.staging import Batch, head_bytes
from analyzer.frame_view import FrameView, saw_no_beam
from analyzer.networks import coarse_profile
from analyzer.reduction import Coverage, FramePlan, FrameProfile
from streamer.messages import ImageData, UndecodableImage

DECODER = "bslz4.cu"
KERNELS: Mapping[str, tuple[str, ...]] = {DECODER: (), **dict.fromkeys(SOURCES, OPTIONS)}
"""All that is compiled for a device, with what the compiler is told."""

_USUAL_BYTES = 2 << 20
"""Of a packed 4M frame, and more; a batch of larger ones is sent in parts. Smaller detectors need less."""


@dataclass(frozen=True, slots=True)
class DevicePrograms:
    """The kernels, compiled and loaded on one device."""

    decoder: Launcher
    reducers: Mapping[str, Launcher]

    @property
    def device(self) -> torch.device:
        return self.decoder.device


def open_programs(device: str, cache: Path | None) -> DevicePrograms:
    """Compile the kernels, or read them from the ``cache``. Raises ``NoDevice`` and ``DeviceFault``."""
    full_precision()
    return DevicePrograms(Program(DECODER, device, cache=cache), load(device, cache))


@dataclass(frozen=True, slots=True, eq=False)
class DeviceFrame:
    """A frame's results, views that are valid until the next frame, and what the hit network said of it (1,)."""

    views: FrameViews
    logit: torch.Tensor


Outcome = DeviceFrame | UndecodableImage | None
"""``None``: the device's 16 bits do not hold the frame's counts."""

Judge = Callable[[dict[str, torch.Tensor]], torch.Tensor]
"""Logits (n,) from ``zones`` and ``cells`` (n, ...) of ``analyzer.zones``, on the device."""


def room_for(frames: int, frame_bytes_at_most: int) -> int:
    """Room of a batch: with its head a power of two, to which the allocator of page-locked memory rounds up anyway."""
    usual_bytes = min(_USUAL_BYTES, frame_bytes_at_most)
    least = max(head_bytes(frames) + frame_bytes_at_most, frames * usual_bytes)
    return (1 << (least - 1).bit_length()) - head_bytes(frames)


class Engine:
    """Reduces images of one plan and type, of ``most_frames`` at once; one thread at a time, as its
    buffers are its own.

    ``judge`` is given ``rows`` frames at a time, filled or not, as many as ``most_frames`` unless it says more. Raises
    ``ValueError`` for frames that the kernels do not take.
    """

    def __init__(
        self,
        plan: FramePlan,
        dtype: np.dtype[Any],
        programs: DevicePrograms,
        most_frames: int,
        judge: Judge,
        rows: int | None = None,
    ) -> None:
        self.plan = plan
        self._judge = judge
        # Narrower counts are exact in the device's 16 bits.
        self._cut = dtype.itemsize > 2
        self._decoder = BatchDecoder(plan.shape, dtype, plan.validity.valid, programs.decoder)
        self._reducer = BatchReducer(plan, most_frames, programs.reducers)
        device = programs.device
        self._batch = Batch(most_frames, room_for(most_frames, self._decoder.frame_bytes_at_most), device)
        self._decoded = self._decoder.outputs(most_frames)
        self._reduced = self._reducer.outputs(self._decoded, self._batch.device_errors)
        fields = {name: self._reducer.field(self._reduced, name) for name in ("zones", "cells")}
        # All places, filled or not: how a product of matrices is rounded may depend on how many rows it has, and a
        # record must not depend on how many frames happened to be there, nor on how many the device has room for.
        rows = most_frames if rows is None else rows
        self._inputs = {name: torch.zeros((rows, *field.shape[1:]), device=device) for name, field in fields.items()}
        self._filled = {name: (self._inputs[name][:most_frames], field) for name, field in fields.items()}
        on_card = device.type == "cuda"
        self._results = torch.zeros(self._reduced.results.shape, dtype=torch.uint8, pin_memory=on_card)
        self._errors = torch.zeros(most_frames, dtype=torch.int32, pin_memory=on_card)
        self._logits = torch.zeros(rows, dtype=torch.float32, pin_memory=on_card)
        self._device = device

    def for_series(self) -> "SeriesEngine":
        """This engine as one more series uses it."""
        return SeriesEngine(self, self._reducer, self._reducer.again(self._reduced))

    def reduce(self, images: Sequence[ImageData], into: ReducedBatch) -> Iterator[Outcome]:
        """What becomes of each image, in order; what is yielded is valid until the next is asked for."""
        position = 0
        while position < len(images):
            refused: dict[int, UndecodableImage] = {}
            first = position
            self._batch.clear()
            with self._named("stage"):
                while position < len(images):
                    try:
                        if self._decoder.stage(images[position], self._batch) is None:
                            break
                    except UndecodableImage as error:
                        refused[position] = error
                    position += 1
            staged = iter(self._run(self._batch.frames, into))
            for n in range(first, position):
                yield refused[n] if n in refused else next(staged)

    def _run(self, frames: int, into: ReducedBatch) -> Iterator[Outcome]:
        if not frames:
            return
        try:
            self._launch(frames, into)
        finally:
            # Also after a fault: the copy may still be reading what a second try would write. Other workers have the
            # interpreter meanwhile.
            devices.settle(self._device)
        block, logits = self._results.numpy().reshape(-1), self._logits[:frames].clone()
        for n, error in enumerate(self._errors[:frames].tolist()):
            views = self._reducer.views(block, n)
            representable = DeviceFrame(views, logits[n : n + 1]) if views.at_limit == 0 or not self._cut else None
            yield failure(error) or representable

    def _launch(self, frames: int, into: ReducedBatch) -> None:
        """Start all that is done with a staged batch."""
        with self._named("copy"):
            self._batch.upload()
        with self._named("decode"):
            self._decoder.decode(self._batch, self._decoded)
        with self._named("reduce"):
            self._reducer.reduce(into, frames)
        with self._named("hit"):
            for rows, field in self._filled.values():
                rows.copy_(field)
            self._logits.copy_(self._judge(self._inputs), non_blocking=True)
        with self._named("results"):
            self._results[:frames].copy_(into.results[:frames], non_blocking=True)
            self._errors[:frames].copy_(self._batch.device_errors[:frames], non_blocking=True)

    def _named(self, name: str) -> contextlib.AbstractContextManager[None]:
        """A range that a profile of the device shows by name."""
        return torch.cuda.nvtx.range(name) if self._device.type == "cuda" else contextlib.nullcontext()


class SeriesEngine:
    """An engine as one series uses it, which may share it: what its frames covered is its own."""

    def __init__(self, engine: Engine, reducer: BatchReducer, batch: ReducedBatch) -> None:
        self.engine = engine
        self._reducer, self._batch = reducer, batch

    def reduce(self, images: Sequence[ImageData]) -> Iterator[Outcome]:
        """As ``Engine.reduce``."""
        return self.engine.reduce(images, self._batch)

    @property
    def coverage(self) -> Coverage:
        """What all frames of the series so far covered. Waits for the device."""
        return self._reducer.coverage(self._batch)

    def settle(self) -> None:
        """What all frames so far covered is not to be taken back."""
        self._batch.covered.settle()

    def take_back(self) -> None:
        """Frames since ``settle`` come again."""
        self._batch.covered.take_back()


def frame_view(
    plan: FramePlan, profile_index: npt.NDArray[np.intp], views: FrameViews, fewest_places: int
) -> FrameView:
    """What the cascade is told of a frame; ``profile_index``: see ``networks.profile_index``."""
    lit = lit_cell_map(views, plan)
    return FrameView(
        plan,
        frame_peaks_of(views, plan),
        saw_no_beam(plan, lit, views.peaks, views.peak_single, fewest_places),
        coarse_profile(views.photons, views.pixels_counted, profile_index),
        views.saturated_pixels,
        views.background_photons,
        FrameProfile(plan, views.profile.copy(), views.pairs),
    )
