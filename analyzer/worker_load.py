"""What a worker has done: plain numbers that it alone writes, once a batch, and that metrics and sampling read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from analyzer.results import FrameResult, Status
from streamer.frames import Frame
from streamer.messages import ImageData


@dataclass(slots=True)
class WorkerLoad:
    """``frames`` took ``seconds``, in ``batches`` by their size; ``decoded_bytes`` of pixels came out of them."""

    frames: int = 0
    seconds: float = 0.0
    decoded_bytes: int = 0
    batches: dict[int, int] = field(default_factory=dict)

    def add(self, frames: Sequence[Frame], results: Sequence[FrameResult], seconds: float) -> None:
        """A batch and its results, in the same order."""
        size = len(frames)
        self.frames += size
        self.seconds += seconds
        self.batches[size] = self.batches.get(size, 0) + 1
        for frame, result in zip(frames, results, strict=True):
            if result.status is Status.OK and isinstance(frame.image, ImageData):
                self.decoded_bytes += frame.image.decoded_bytes
