"""What it costs to get a frame off the wire and unpacked, against the bare decoder.

Ours: receive, parse, account, validate and decode into one reused buffer, with the CPU of
libzmq's own thread. Peer: ``bitshuffle.decompress_lz4`` on the same chunks already in memory.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import bitshuffle
import numpy as np
import numpy.typing as npt

from cxls.bench.children import replaying
from cxls.bench.inputs import BRIGHT_FLUX, NORMAL_FLUX, image_data, packed_frames, simulate
from cxls.bench.report import Figure, Ratio, Report, over_rounds, ratios
from cxls.settings import BenchSettings
from streamer.account import Account
from streamer.decoding import DEFAULT_BLOCK_BYTES, decode
from streamer.frames import Frame, make_frame
from streamer.messages import ImageData, InvalidMessage
from streamer.receiver import RECEIVE_HWM, StreamReceiver
from streamer.series import ImageAccepted, SeriesTracker

ROUNDS = 7
BAR = 1.4
SKIP = 2 * RECEIVE_HWM
"""Images let pass before the clock starts: the queue libzmq filled while the peer had its turn."""

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU milliseconds a frame. ``total`` is the process's; the stages are the calling thread's."""

    total: float
    receive: float
    track: float
    decode: float


class Taker:
    """The receiving end of the pipeline without analysis."""

    def __init__(self, endpoint: str, protocol: str, buffer: npt.NDArray[np.uint16]) -> None:
        self._receiver = StreamReceiver([endpoint], protocol)
        self._tracker = SeriesTracker(Account())
        self._buffer = buffer

    def close(self) -> None:
        self._receiver.close()

    def take(self, frames: int) -> Cost:
        """CPU of the next ``frames`` images."""
        self._round(SKIP)
        return self._round(frames)

    def _round(self, frames: int) -> Cost:
        receive = track = unpack = 0
        taken, deadline = 0, time.monotonic() + _TIMEOUT_S
        began = time.process_time()
        while taken < frames:
            first = time.thread_time_ns()
            received = self._receiver.receive(_TIMEOUT_S)
            if received is None:
                # Also returned early, when all that happened is that the connection came up.
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the source sent nothing for {_TIMEOUT_S:.0f} s")
                continue
            if isinstance(received.message, InvalidMessage):
                raise RuntimeError(f"the source sent what cannot be read: {received.message}")
            deadline = time.monotonic() + _TIMEOUT_S
            second = time.thread_time_ns()
            images: list[ImageData] = []
            for event in self._tracker.handle(received.message, time.monotonic()):
                if isinstance(event, ImageAccepted):
                    frame = make_frame(event.series, event.image, received.received_at, None)
                    images.append(image_data(frame))
            third = time.thread_time_ns()
            for image in images:
                decode(image, self._buffer)
            last = time.thread_time_ns()
            taken += len(images)
            receive, track, unpack = receive + second - first, track + third - second, unpack + last - third
        scale = 1e3 / frames
        total = (time.process_time() - began) * scale
        return Cost(total, receive * 1e-9 * scale, track * 1e-9 * scale, unpack * 1e-9 * scale)


def bare_decoder_ms(frames: list[Frame], count: int) -> float:
    """CPU milliseconds a frame of the Python call that everybody makes."""
    bodies = [np.frombuffer(image_data(frame).data, np.uint8)[12:] for frame in frames]
    image = image_data(frames[0])
    pixels, dtype = image.pixels, np.dtype(np.uint16)
    block = DEFAULT_BLOCK_BYTES // dtype.itemsize
    began = time.process_time()
    for number in range(count):
        bitshuffle.decompress_lz4(bodies[number % len(bodies)], (pixels,), dtype, block)
    return (time.process_time() - began) / count * 1e3


def run(settings: BenchSettings) -> Report:
    """Both protocols, usual and bright frames."""
    figures: list[Figure] = []
    found: list[Ratio] = []
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as folder:
        for label, flux in (("usual", NORMAL_FLUX), ("bright", BRIGHT_FLUX)):
            master = simulate(Path(folder), settings.frames, flux=flux)
            for protocol in ("v1", "v2"):
                some, ratio = _compare(master, protocol, label, settings.frames)
                figures += some
                found += ratio
    failed = [ratio.name for ratio in found if ratio.value > BAR]
    verdict = f"bar {BAR}: " + (f"missed by {', '.join(failed)}" if failed else "kept by all")
    return Report(
        "receive: off the wire and unpacked, against bitshuffle.decompress_lz4 on the same chunks", figures, found,
        (verdict, "the receive stage is the calling thread's; libzmq's is copying out of the kernel"),
    )  # fmt: skip


def _compare(master: Path, protocol: str, label: str, count: int) -> tuple[list[Figure], list[Ratio]]:
    frames = packed_frames(master)
    buffer = np.empty(image_data(frames[0]).shape, np.uint16)
    ours: list[Cost] = []
    peer: list[float] = []
    with replaying(master, protocol) as endpoint:
        taker = Taker(endpoint, protocol, buffer)
        try:
            taker.take(SKIP)
            bare_decoder_ms(frames, 2)
            for _ in range(ROUNDS):
                ours.append(taker.take(count))
                peer.append(bare_decoder_ms(frames, count))
        finally:
            taker.close()
    totals = [cost.total for cost in ours]
    best = min(ours, key=lambda cost: cost.total)
    named = f"{protocol} {label}"
    packed = float(np.mean([frame.nbytes for frame in frames])) / 1e6
    return [
        over_rounds(
            f"{named}: wire to pixels", "ms CPU", totals,
            f"{packed:.2f} MB packed; receive+parse {best.receive:.2f}, account {best.track:.3f}, "
            f"decode {best.decode:.2f}, libzmq {best.total - best.receive - best.track - best.decode:.2f}",
        ),
        over_rounds(f"{named}: bare decoder", "ms CPU", peer),
    ], ratios(f"{named} wire to pixels / bare decoder", totals, peer, f"bar {BAR}")  # fmt: skip
