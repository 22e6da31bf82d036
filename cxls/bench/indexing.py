"""What it costs to hand hits to indexers, to take their stream back and to publish records.

The hits are one 4M frame with 60 peaks under many ids. The workers that ask are sockets of a child process, which
reads and throws away: indexing takes a second where handing out takes less than a millisecond.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from analyzer.indexing import Broadcast, IndexingSettings, IndexServer
from analyzer.indexing.hits import WaitingHit, event_id
from analyzer.indexing.packing import FrameDecoder, pack_hit
from analyzer.indexing.stream_file import StreamParser
from analyzer.results import Decision, FrameResult, Peak
from cxls.bench.inputs import BRIGHT_FLUX, packed_frames, simulate
from cxls.bench.parse import cpu_us
from cxls.bench.report import Figure, Report, over_rounds
from cxls.settings import BenchSettings
from streamer.frames import Frame

ROUNDS = 5
PEAKS = 60
WORKERS = 8
_HITS, _IMAGES = 4000, 200
_CHUNKS, _REFLECTIONS = 50, 500


def run(settings: BenchSettings) -> Report:
    """Costs of the parts, then hits a second through the socket."""
    del settings
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as folder:
        frame = packed_frames(simulate(Path(folder), 1, flux=BRIGHT_FLUX))[0]
    result = _result(0)
    hit = WaitingHit(event_id("0", result), frame.series, result, frame)
    decoder = FrameDecoder()
    pixels = decoder.pixels(frame, None)
    text = _stream_text()
    publisher = Broadcast("tcp://127.0.0.1:0")
    work: dict[str, tuple[Callable[[], Any], int]] = {
        "pack a hit, peaks only": (lambda: pack_hit(hit), 200),
        "unpack its 4M image, mark what is masked": (lambda: decoder.pixels(frame, None), 5),
        "pack it with the image": (lambda: pack_hit(hit, pixels), 5),
        f"read a chunk of the stream, {_REFLECTIONS} reflections": (lambda: StreamParser().feed(text), 1),
        "publish a record, nobody listening": (lambda: publisher.write([result]), 200),
    }
    per_call = {name: _CHUNKS if "chunk" in name else 1 for name in work}
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, (each, calls) in work.items():
            times[name].append(cpu_us(each, calls) / per_call[name])
    publisher.close()
    return Report(
        f"indexing: hits with {PEAKS} peaks, to {WORKERS} workers that ask",
        [
            *(over_rounds(name, "us CPU", found) for name, found in times.items()),
            Figure("message, peaks only", "kB", round(len(pack_hit(hit)) / 1e3, 1)),
            Figure("message with the image", "kB", round(len(pack_hit(hit, pixels)) / 1e3, 1)),
            _handed_out("hits handed out, peaks only", frame, _HITS, images=False),
            _handed_out("hits handed out, with images", frame, _IMAGES, images=True),
        ],
    )


def _result(image_id: int) -> FrameResult:
    places = np.random.default_rng(1).uniform(0, 2000, (PEAKS, 2)).round(3).tolist()
    peaks = [Peak(fs, ss, 40.0, 9.0, False) for fs, ss in places]
    return FrameResult(
        series_id=1, image_id=image_id, channel="threshold_1", start_time=0.0, exposure_s=0.001, received_at=0.0,
        decision=Decision.HIT, hit=True, hit_probability=0.99, indexable=True, peak_count=PEAKS, peaks=peaks, ordinal=1,
    )  # fmt: skip


def _stream_text() -> bytes:
    table = "   1    2    3     100.00      10.00      50.00       2.00  100.0  200.0 p0\n" * _REFLECTIONS
    chunk = (
        "----- Begin chunk -----\nheader/str/event_id = series1-image1-run0.1\nindexed_by = xgandalf\nnum_peaks = 60\n"
        "--- Begin crystal\nCell parameters 7.90000 7.90000 3.80000 nm, 90.00000 90.00000 90.00000 deg\n"
        "lattice_type = tetragonal\ncentering = P\ndiffraction_resolution_limit = 5.00 nm^-1 or 2.00 A\n"
        f"Reflections measured after indexing\n{table}End of reflections\n--- End crystal\n----- End chunk -----\n"
    )
    return chunk.encode() * _CHUNKS


def _handed_out(name: str, frame: Frame, hits: int, images: bool) -> Figure:
    """Hits a second from a full queue until the last is on its way."""
    server = IndexServer(IndexingSettings(address="tcp://127.0.0.1:0", images=images, queue=hits))
    for image_id in range(hits):
        server.offer(frame, _result(image_id))
    server.start()
    context = multiprocessing.get_context("spawn")
    done = context.Event()
    asking = context.Process(target=_ask, args=(server.router.address, done), daemon=True)
    asking.start()
    while not server.fates["sent"]:
        time.sleep(0.001)
    first, began = server.fates["sent"], time.perf_counter()
    while server.fates["sent"] < hits:
        time.sleep(0.001)
    seconds = time.perf_counter() - began
    done.set()
    server.close()
    asking.join()
    return Figure(name, "a second", round((hits - first) / seconds), note=f"{hits} hits, one core for us")


def _ask(address: str, done: Event) -> None:
    """``WORKERS`` REQ sockets that ask as soon as they have an answer."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    poller = zmq.Poller()
    for _ in range(WORKERS):
        socket = context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        socket.send(b"next")
        poller.register(socket, zmq.POLLIN)
    while not done.is_set():
        for socket, _ in poller.poll(100):
            assert isinstance(socket, zmq.Socket)
            socket.recv(copy=False)
            socket.send(b"next")
    context.destroy(0)
