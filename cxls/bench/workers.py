"""Handing frames to workers in other processes: the front's CPU at a rate, the wire against a bare pyzmq PUSH, and what
a second local worker adds.

The first two have a worker that answers without looking, with records and arrays as of a real frame, so that they are
of the way there and back. The peer sends the same bytes from the same process to one that only receives.
"""

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import zmq

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.cascade import BatchOutcome, CascadeSettings, PlanCache
from analyzer.crew.curve import FrontKeys, new_keys
from analyzer.crew.dispatch import Crew
from analyzer.judge import Judge
from cxls.bench.children import START_S, cxls, replaying
from cxls.bench.inputs import chosen_bundle, packed_frames, repeated, simulate
from cxls.bench.memory import scrape
from cxls.bench.report import Figure, Ratio, Report
from cxls.settings import BenchSettings
from streamer.frames import Frame
from streamer.ring import FrameRing

RATE_HZ = 500.0
ROUNDS = 3
FRAMES = 1500
SERIES = 1000
_MB = 1e6

_PULL = """
import sys, zmq
socket = zmq.Context().socket(zmq.PULL)
socket.bind("tcp://127.0.0.1:0")
print(socket.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
back = zmq.Context.instance().socket(zmq.PUSH)
back.connect(sys.argv[1])
while True:
    for _ in range(int(sys.argv[2])):
        socket.recv(copy=False)
    back.send(b"")
"""


class Way:
    """A crew with one idle worker, and frames to send it; with ``curve`` encrypted, by keys of this run."""

    def __init__(self, bundle: Path, shared: bool, curve: bool = False) -> None:
        self.ring = FrameRing(256 << 20, 1 << 16)
        self.arrived = 0
        self.failed = 0
        self._changed = threading.Condition()
        judge = Judge(load_bundle(bundle), CascadeSettings())
        (front, front_secret), (worker, worker_secret) = new_keys(), new_keys()
        keys = FrontKeys(front_secret, lambda: frozenset([worker])) if curve else None
        self.crew = Crew("tcp://127.0.0.1:0", judge, PlanCache(), keys)
        self.crew.start(self.ring, 0.01, (), self._take)
        command = [sys.executable, "-m", "cxls.bench.idle_worker", self.crew.address, "shared" if shared else "wire"]
        command += [worker_secret.decode(), front.decode()] if curve else []
        self._child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not self.crew.threads:
            if time.monotonic() > deadline or self._child.poll() is not None:
                raise RuntimeError("the idle worker does not start")
            time.sleep(0.05)

    def _take(self, frames: list[Frame], outcome: BatchOutcome) -> None:
        with self._changed:
            self.arrived += len(frames)
            self.failed += sum(result.reason is not None for result in outcome.results)
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        """Until so many frames came back."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.arrived >= count, 120.0):
                raise RuntimeError(f"{self.arrived} of {count} frames came back")

    def close(self) -> None:
        self.ring.close()
        self.crew.drain(lambda: False)
        self.crew.close()
        self._child.wait(10)


def paced(way: Way, frames: Sequence[Frame], seconds: float) -> float:
    """Share of one core that the front takes at ``RATE_HZ``, putting frames into the queue included."""
    before, began, cpu = way.arrived, time.monotonic(), time.process_time()
    count = round(RATE_HZ * seconds)
    for number in range(count):
        wait = began + number / RATE_HZ - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        way.ring.put(replace(frames[number % len(frames)], image_id=number))
    way.wait(before + count)
    return (time.process_time() - cpu) / (time.monotonic() - began)


def flat_out(way: Way, frames: Sequence[Frame], count: int) -> float:
    """Seconds for so many frames there and back."""
    before, began = way.arrived, time.monotonic()
    for number in range(count):
        while not way.ring.put(replace(frames[number % len(frames)], image_id=number), 1.0):
            pass
    way.wait(before + count)
    return time.monotonic() - began


@contextlib.contextmanager
def pulling(count: int) -> Iterator[tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]]:
    """A bare PUSH to a process that says when it has so many messages."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    with context.socket(zmq.PULL) as back, context.socket(zmq.PUSH) as push:
        port = back.bind_to_random_port("tcp://127.0.0.1")
        child = subprocess.Popen(
            [sys.executable, "-c", _PULL, f"tcp://127.0.0.1:{port}", str(count)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert child.stdout is not None
            push.connect(child.stdout.readline().strip())
            yield push, back
        finally:
            child.kill()
            child.wait()


def bare(push: "zmq.Socket[bytes]", back: "zmq.Socket[bytes]", frames: Sequence[Frame], count: int) -> float:
    """Seconds for so many frames over a bare PUSH."""
    began = time.monotonic()
    for number in range(count):
        push.send(frames[number % len(frames)].image.data, copy=False)  # type: ignore[union-attr]
    back.recv()
    return time.monotonic() - began


def analysed_hz(master: Path, processes: int, seconds: float) -> float:
    """Frames a second of an analysis with so many local workers, flat out."""
    with (
        replaying(repeated(master, SERIES), "v2") as source,
        cxls(
            "analyze", source, "--device", "cpu", "--listen", "127.0.0.1:0", "--on-full", "block",
            "--processes", str(processes),
        ) as child,
    ):  # fmt: skip
        url = f"http://{child.address('http')}"
        while scrape(url)["cxls_frames_processed_total"] < 100:
            if child.process.poll() is not None:
                raise RuntimeError(f"the analysis ended: {' | '.join(child.errors[-3:])}")
            time.sleep(0.5)
        before, began = scrape(url)["cxls_frames_processed_total"], time.monotonic()
        time.sleep(seconds)
        after, took = scrape(url)["cxls_frames_processed_total"], time.monotonic() - began
        child.interrupt()
    return (after - before) / took


def run(settings: BenchSettings) -> Report:
    """``--seconds`` is the time of the paced part and of each analysis."""
    torch.set_num_threads(1)
    bundle = chosen_bundle() or DEFAULT_BUNDLE
    seconds = min(settings.seconds, 10.0)
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        master = simulate(Path(name), min(settings.frames, 40))
        frames = packed_frames(master)
        packed = sum(frame.nbytes for frame in frames) / len(frames)
        way = Way(bundle, shared=True)
        flat_out(way, frames, 100)
        shares = [paced(way, frames, seconds / ROUNDS) for _ in range(ROUNDS)]
        through_memory = [flat_out(way, frames, FRAMES) for _ in range(ROUNDS)]
        copied, failed = dict(way.crew._bytes), way.failed
        way.close()
        wire, curve = Way(bundle, shared=False), Way(bundle, shared=False, curve=True)
        over_wire, encrypted, alone = [], [], []
        for way in (wire, curve):
            flat_out(way, frames, 100)
        with pulling(FRAMES) as (push, back):
            bare(push, back, frames, FRAMES)
            for _ in range(ROUNDS):
                alone.append(bare(push, back, frames, FRAMES))
                over_wire.append(flat_out(wire, frames, FRAMES))
                encrypted.append(flat_out(curve, frames, FRAMES))
        failed += wire.failed + curve.failed
        wire.close()
        curve.close()
        one, two = [], []
        for _ in range(ROUNDS):
            one.append(analysed_hz(master, 1, seconds))
            two.append(analysed_hz(master, 2, seconds))

    def middle(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    per_s, encrypted_per_s = FRAMES / middle(over_wire), FRAMES / middle(encrypted)
    figures = [
        Figure("packed frame", "MB", packed / _MB),
        Figure(f"front at {RATE_HZ:.0f} frames a second, shared memory", "% of a core", 100 * middle(shares),
               note=f"{100 * min(shares):.1f} to {100 * max(shares):.1f}; with outcomes back; bar: 10"),
        Figure("flat out, shared memory", "frames/s", FRAMES / middle(through_memory),
               note=f"{copied['shared'] / _MB:.0f} MB shared, {copied['wire'] / _MB:.0f} MB sent"),
        Figure("flat out, TCP", "frames/s", per_s, note=f"{per_s * packed / _MB:.0f} MB/s"),
        Figure("flat out, TCP with keys", "frames/s", encrypted_per_s,
               note=f"encrypted (CURVE); {encrypted_per_s * packed / _MB:.0f} MB/s"),
        Figure("bare PUSH, TCP", "frames/s", FRAMES / middle(alone)),
        Figure("one local worker", "frames/s", middle(one), note=" ".join(f"{each:.0f}" for each in one)),
        Figure("two local workers", "frames/s", middle(two), note=" ".join(f"{each:.0f}" for each in two)),
    ]  # fmt: skip
    ratios = [
        Ratio("TCP, time against bare PUSH", middle([w / b for w, b in zip(over_wire, alone, strict=True)]), "bar 1.3"),
        Ratio("two workers / one", middle([t / o for t, o in zip(two, one, strict=True)]), "bar 1.8 where cores allow"),
    ]
    notes = [f"{failed} frames failed on their way"]
    return Report("workers: handing frames to processes, there and back", figures, ratios, notes)
