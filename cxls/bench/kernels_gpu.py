"""What each kernel takes of a frame, by the device's own clock: CUDA events before and after every launch.

A batch is launched as the program does it. The device is held meanwhile, so that all of it waits in its queue and no
kernel waits for the host.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from analyzer.cascade import MOST_FRAMES, CascadeSettings, PlanCache, plan_of
from analyzer.cuda import device as devices
from analyzer.cuda.compiler import default_cache
from analyzer.cuda.decode import BatchDecoder, Launcher
from analyzer.cuda.engine import DevicePrograms, open_programs, room_for
from analyzer.cuda.reduce import BatchReducer
from analyzer.cuda.staging import Batch
from cxls.bench.inputs import image_data
from cxls.bench.report import Figure, over_rounds
from cxls.bench.roofs_gpu import NOT_MEASURED
from streamer.frames import Frame

ROUNDS = 9
COPY = "copy to the device"
_DECODERS = "bslz4_"
_HELD_CYCLES = 100_000_000
"""Some fifty milliseconds: far longer than the host takes to launch a batch."""

_NAMES = (("GPU: each kernel of decoding and reduction", "us a frame"), ("GPU: decode kernel alone", "frames/s"))


class Clock(Protocol):
    """What tells when a device comes to a place in its queue."""

    def hold(self) -> None:
        """Nothing that is launched from here on begins for a while."""

    def mark(self) -> Any:
        """A place in the queue."""

    def wait(self) -> None:
        """Until all places were come to."""

    def ms(self, before: Any, after: Any) -> float:
        """Milliseconds between two places."""


class DeviceClock:
    """CUDA events on torch's current stream."""

    def hold(self) -> None:
        torch.cuda._sleep(_HELD_CYCLES)  # type: ignore[no-untyped-call]

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def wait(self) -> None:
        torch.cuda.synchronize()

    def ms(self, before: torch.cuda.Event, after: torch.cuda.Event) -> float:
        return float(before.elapsed_time(after))


@dataclass(frozen=True, slots=True)
class Timed:
    """A launcher whose kernels are marked, one entry of ``marks`` a launch: its name, before it and behind it."""

    inner: Launcher
    clock: Clock
    marks: list[tuple[str, Any, Any]]

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def launch(
        self, name: str, blocks_x: int, blocks_y: int, stream: Any, *arguments: torch.Tensor | int | float
    ) -> None:
        before = self.clock.mark()
        self.inner.launch(name, blocks_x, blocks_y, stream, *arguments)
        self.marks.append((name, before, self.clock.mark()))


def measure(frames: Mapping[str, Sequence[Frame]]) -> list[Figure]:
    """Every kernel on a full batch of each kind of frames; without a GPU rows that say so."""
    if not torch.cuda.is_available():
        return [Figure(name, unit, None, note=NOT_MEASURED) for name, unit in _NAMES]
    programs = open_programs("cuda", default_cache())
    device = torch.cuda.get_device_name()
    return [
        figure
        for label, some in frames.items()
        for figure in figures(label, by_kernel(some, programs, DeviceClock()), device)
    ]


@torch.inference_mode()
def by_kernel(
    frames: Sequence[Frame], programs: DevicePrograms, clock: Clock, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Microseconds a frame of each kernel, and of the copy to the device, of each round; in order of their launches.

    The frames are of one series and fill a batch, again and again where they are few. Raises ``RuntimeError`` where one
    does not decode.
    """
    images = [image_data(frames[number % len(frames)]) for number in range(MOST_FRAMES)]
    dtype = images[0].dtype.newbyteorder("=")
    plan = plan_of(CascadeSettings(), PlanCache(), frames[0], images[0].shape, dtype)
    marks: list[tuple[str, Any, Any]] = []
    reducers = {source: Timed(each, clock, marks) for source, each in programs.reducers.items()}
    decoder = BatchDecoder(plan.shape, dtype, plan.validity.valid, Timed(programs.decoder, clock, marks))
    reducer = BatchReducer(plan, MOST_FRAMES, reducers)
    batch = Batch(MOST_FRAMES, room_for(MOST_FRAMES, decoder.frame_bytes_at_most), programs.device)
    into = decoder.outputs(MOST_FRAMES)
    reduced = reducer.outputs(into, batch.device_errors)
    for image in images:
        if decoder.stage(image, batch) is None:
            break
    found: dict[str, list[float]] = {}
    for again in range(-1, rounds):
        marks.clear()
        clock.hold()
        before = clock.mark()
        batch.upload()
        marks.append((COPY, before, clock.mark()))
        decoder.decode(batch, into)
        reducer.reduce(reduced, batch.frames)
        clock.wait()
        if again < 0:
            continue
        us: dict[str, float] = {}
        for name, start, end in marks:
            us[name] = us.get(name, 0.0) + 1e3 * clock.ms(start, end) / batch.frames
        for name, each in us.items():
            found.setdefault(name, []).append(each)
    devices.settle(programs.device)
    if bool(batch.device_errors.cpu().any()):
        raise RuntimeError("a frame of the benchmark does not decode on the device")
    return found


def figures(label: str, found: Mapping[str, Sequence[float]], device: str) -> list[Figure]:
    """A row for each kernel, then what the decoder does alone and the whole reduction takes."""
    rows = [over_rounds(f"GPU, {label}: {name}", "us a frame", us, device) for name, us in found.items()]
    (decode,) = (us for name, us in found.items() if name.startswith(_DECODERS))
    rates = [1e6 / us for us in decode]
    alone = f"GPU, {label}: decode kernel alone"
    reduction = np.sum([us for name, us in found.items() if name.startswith("reduce_")], 0).tolist()
    return [
        *rows,
        Figure(alone, "frames/s", max(rates), float(np.median(rates)), "best, not least"),
        over_rounds(f"GPU, {label}: all kernels of the reduction", "us a frame", reduction, device),
    ]
