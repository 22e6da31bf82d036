"""Handing frames to workers in other processes: the front's CPU at a rate, the wire against a bare pyzmq PUSH, and what
a second local worker adds.

Frames are of two sizes and lie in messages of libzmq, as the detector's do. The workers answer without looking:
one with records and arrays as of a real frame, so that it is the way there and back; one only when it has all frames,
so that it is the way there alone. The peer sends the same messages from the same process to one that only receives. All
keep memory as the program does, which halves what it costs to receive.
"""

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import zmq

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.cascade import BatchOutcome, CascadeSettings, PlanCache
from analyzer.crew.curve import FrontKeys, new_keys
from analyzer.crew.dispatch import Crew
from analyzer.judge import Judge
from cxls import allocator
from cxls.bench.children import START_S, cxls, replaying
from cxls.bench.inputs import chosen_bundle, packed_frames, repeated, simulate
from cxls.bench.memory import scrape
from cxls.bench.report import Figure, Ratio, Report
from cxls.settings import BenchSettings
from streamer.frames import Frame
from streamer.messages import ImageData
from streamer.ring import FrameRing

RATE_HZ = 500.0
ROUNDS = 3
FRAMES = 1500
SERIES = 1000
LEAVE_S = 10.0
BRIGHTER_FLUX = 3e9
"""Ten times the usual: 4M frames of half a megabyte packed."""

_MB = 1e6

_PULL = """
import sys, zmq
from cxls import allocator
allocator.settle()
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


@dataclass(frozen=True, slots=True)
class Share:
    """CPU of the front, in parts of one core: from the queue to the worker, and taking outcomes back."""

    out: float
    back: float


class TimedCrew(Crew):
    """One that knows how long it took outcomes in."""

    taking_s = 0.0

    def _receive(self) -> bool:
        began = time.thread_time()
        caught_up = super()._receive()
        self.taking_s += time.thread_time() - began
        return caught_up


class Way:
    """A crew with one worker, a module and its arguments behind the address, and frames to send it.

    With ``curve`` encrypted, by keys of this run, which the module has behind its arguments.
    """

    def __init__(self, bundle: Path, *worker: str, curve: bool = False) -> None:
        # All frames of a round may be on their way; they are the same few over and over, which takes no memory.
        self.ring = FrameRing(8 << 30, 1 << 16)
        self.arrived = 0
        self._changed = threading.Condition()
        judge = Judge(load_bundle(bundle), CascadeSettings())
        (front, front_secret), (public, secret) = new_keys(), new_keys()
        keys = FrontKeys(front_secret, lambda: frozenset([public])) if curve else None
        self.crew = TimedCrew("tcp://127.0.0.1:0", judge, PlanCache(), keys)
        self._child: subprocess.Popen[bytes] | None = None
        module, *arguments = worker
        command = [sys.executable, "-m", module, self.crew.address, *arguments]
        command += [secret.decode(), front.decode()] if curve else []
        try:
            self.crew.start(self.ring, 0.01, (), self._take)
            self._child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            self._await_worker(self._child)
        except BaseException:
            # Nobody has it yet who could close it.
            self.close()
            raise

    def _await_worker(self, child: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_S
        while not self.crew.threads:
            if time.monotonic() > deadline or child.poll() is not None:
                raise RuntimeError("the worker does not start")
            time.sleep(0.05)

    def __enter__(self) -> "Way":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, frames: list[Frame], outcome: BatchOutcome) -> None:
        with self._changed:
            self.arrived += len(frames)
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        """Until so many frames came back."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.arrived >= count, 120.0):
                raise RuntimeError(f"{self.arrived} of {count} frames came back")

    def sent_bytes(self, by: str) -> float:
        """Packed images handed over so far, by ``shared`` memory or by the ``wire``."""
        metrics = (metric for metric in self.crew.collect() if metric.name == "cxls_crew_sent_bytes")
        return next(sample.value for metric in metrics for sample in metric.samples if sample.labels == {"by": by})

    def close(self) -> None:
        """End the crew and the worker, which is killed where it does not leave by itself."""
        try:
            self.ring.close()
            self.crew.drain(lambda: False)
            self.crew.close()
        finally:
            if self._child is not None:
                _end(self._child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Wait for a worker that has been told that it is over; kill one that stays."""
    try:
        child.wait(LEAVE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def as_received(frames: Sequence[Frame]) -> list[Frame]:
    """The frames with each image in a message of libzmq, as when it came off the wire."""
    return [
        replace(frame, image=replace(image, data=zmq.Frame(bytes(image.data), copy=True).buffer))
        for frame in frames
        if isinstance(image := frame.image, ImageData)
    ]


def paced(way: Way, frames: Sequence[Frame], seconds: float) -> Share:
    """What the front takes at ``RATE_HZ``: all of its threads, but of the one that stands for the receiver only the
    time in which it puts frames into the queue."""
    before, began, cpu = way.arrived, time.monotonic(), time.process_time()
    own, taking, putting = time.thread_time(), way.crew.taking_s, 0.0
    count = round(RATE_HZ * seconds)
    for number in range(count):
        wait = began + number / RATE_HZ - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        frame = replace(frames[number % len(frames)], image_id=number)
        put = time.thread_time()
        way.ring.put(frame)
        putting += time.thread_time() - put
    way.wait(before + count)
    took, own, taking = time.monotonic() - began, time.thread_time() - own, way.crew.taking_s - taking
    return Share((time.process_time() - cpu - own + putting - taking) / took, taking / took)


def flat_out(way: Way, frames: Sequence[Frame], count: int) -> float:
    """Seconds for so many frames there and back."""
    before, began = way.arrived, time.monotonic()
    for number in range(count):
        while not way.ring.put(replace(frames[number % len(frames)], image_id=number), 1.0):
            pass
    way.wait(before + count)
    return time.monotonic() - began


def one_way(way: Way, back: "zmq.Socket[bytes]", frames: Sequence[Frame], count: int) -> float:
    """Seconds until so many frames are there."""
    before, began = way.arrived, time.monotonic()
    for number in range(count):
        while not way.ring.put(replace(frames[number % len(frames)], image_id=number), 1.0):
            pass
    back.recv()
    took = time.monotonic() - began
    way.wait(before + count)
    return took


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
    messages = [frame.image.data.obj for frame in frames]  # type: ignore[union-attr]
    began = time.monotonic()
    for number in range(count):
        push.send(messages[number % len(messages)], copy=False)
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


def handing(bundle: Path, frames: Sequence[Frame], seconds: float) -> tuple[list[Figure], list[Ratio]]:
    """The front's share of a core and the rates, of frames of one size."""
    packed = sum(frame.nbytes for frame in frames) / len(frames) / _MB
    size = f"{packed:.2g} MB"
    figures: list[Figure] = []
    rates: dict[str, float] = {}
    with contextlib.ExitStack() as ways:
        for name, mode in (("shared memory", "shared"), ("TCP", "wire")):
            way = ways.enter_context(Way(bundle, "cxls.bench.idle_worker", mode))
            flat_out(way, frames, 100)
            shares = [paced(way, frames, seconds / ROUNDS) for _ in range(ROUNDS)]
            if mode == "shared":
                rates[name] = FRAMES / middle([flat_out(way, frames, FRAMES) for _ in range(ROUNDS)])
            outward, back = [share.out for share in shares], [share.back for share in shares]
            bar = "; bar: 10" if mode == "shared" else ""
            what = f"{size}, {RATE_HZ:.0f} a second, {name}"
            figures += [
                Figure(f"{what}: handed out", "% of a core", 100 * middle(outward),
                       note=f"{100 * min(outward):.1f} to {100 * max(outward):.1f}{bar}"),
                Figure(f"{what}: outcomes taken back", "% of a core", 100 * middle(back),
                       note=f"{100 * min(back):.1f} to {100 * max(back):.1f}"),
            ]  # fmt: skip
            if not way.sent_bytes(mode):
                raise RuntimeError(f"no image went through {name}")
            if mode == "shared":
                ways.close()
        # ``way`` goes over the wire now.
        push, back_of_peer = ways.enter_context(pulling(FRAMES))
        address, back_of_ours = ways.enter_context(told_back())
        there = ways.enter_context(Way(bundle, "cxls.bench.one_way_worker", address, str(FRAMES)))
        locked = ways.enter_context(Way(bundle, "cxls.bench.idle_worker", "wire", curve=True))
        flat_out(locked, frames, 100)
        bare(push, back_of_peer, frames, FRAMES)
        one_way(there, back_of_ours, frames, FRAMES)
        alone, outwards, both, encrypted = [], [], [], []
        for _ in range(ROUNDS):
            alone.append(bare(push, back_of_peer, frames, FRAMES))
            outwards.append(one_way(there, back_of_ours, frames, FRAMES))
            both.append(flat_out(way, frames, FRAMES))
            encrypted.append(flat_out(locked, frames, FRAMES))
    rates |= {
        "TCP, there and back": FRAMES / middle(both),
        "TCP with keys (CURVE), there and back": FRAMES / middle(encrypted),
        "TCP, one way": FRAMES / middle(outwards),
        "bare PUSH, one way": FRAMES / middle(alone),
    }
    figures += [
        Figure(f"{size}, flat out, {name}", "frames/s", rate, note=f"{rate * packed:.0f} MB/s")
        for name, rate in rates.items()
    ]
    ratios = [
        Ratio(f"{size}, TCP one way, time against bare PUSH", against(outwards, alone), "bar 1.3"),
        Ratio(f"{size}, TCP there and back, time against bare PUSH one way", against(both, alone)),
    ]
    return figures, ratios


@contextlib.contextmanager
def told_back() -> Iterator[tuple[str, "zmq.Socket[bytes]"]]:
    """An address to be told at, and the socket that hears it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    with context.socket(zmq.PULL) as back:
        port = back.bind_to_random_port("tcp://127.0.0.1")
        yield f"tcp://127.0.0.1:{port}", back


def middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def against(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The middle of the ratios of rounds."""
    return middle([our / their for our, their in zip(ours, theirs, strict=True)])


def run(settings: BenchSettings) -> Report:
    """``--seconds`` is the time of each paced part and of each analysis."""
    torch.set_num_threads(1)
    allocator.settle()
    bundle = chosen_bundle() or DEFAULT_BUNDLE
    seconds = min(settings.seconds, 10.0)
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        count = min(settings.frames, 40)
        master = simulate(Path(name), count)
        for series in (master, simulate(Path(name), count, flux=BRIGHTER_FLUX)):
            found, against_peer = handing(bundle, as_received(packed_frames(series)), seconds)
            figures += found
            ratios += against_peer
        one, two = [], []
        for _ in range(ROUNDS):
            one.append(analysed_hz(master, 1, seconds))
            two.append(analysed_hz(master, 2, seconds))
    figures += [
        Figure("one local worker", "frames/s", middle(one), note=" ".join(f"{each:.0f}" for each in one)),
        Figure("two local workers", "frames/s", middle(two), note=" ".join(f"{each:.0f}" for each in two)),
    ]
    ratios.append(Ratio("two workers / one", against(two, one), "bar 1.8 where cores allow"))
    notes = ["CPU of the front's process: handed out from the queue on; what it costs to receive, see bench front"]
    return Report("workers: handing frames to processes", figures, ratios, notes)
