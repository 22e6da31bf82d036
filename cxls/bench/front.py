"""What the front costs a frame, and what one receiver thread carries flat out with everything dropped behind it.

A source in a process of its own sends images as fast as they are taken, over loopback. First each part of the way is
timed by itself: taking the message from libzmq, parsing, the account, the frame, the queue, giving memory back. The
thread of libzmq, which copies out of the kernel, is apart. Then the real ``Front`` runs with sampling so sparse that no
image is analysed, beside a bare pyzmq loop and, for stream v1, LiberTEM's receiver.
"""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import zmq

from analyzer.front import Front, FrontSettings
from analyzer.sampling import MOST_EVERY
from cxls import allocator
from cxls.bench.report import Figure, Ratio, Report, over_rounds
from cxls.settings import BenchSettings
from streamer.account import Account
from streamer.frames import make_frame
from streamer.messages import ImageMessage
from streamer.receiver import RECEIVE_HWM, StreamReceiver, parse
from streamer.ring import FrameRing
from streamer.series import ImageAccepted, SeriesTracker
from streamer.stream_v2 import ImageReader

ROUNDS = 3
BAR_US = 100.0
SIZES = (200_000, 1_100_000)
"""Packed bytes of a 4M image: at a compact source, and at a synchrotron."""

DETECTOR_HZ = 2250
"""Most images a second of an EIGER2 X 4M; at 1.1 MB a 25 Gbit/s link is then full."""

PARTS = ("take", "parse", "account", "frame", "queue", "give back")
_WARM = 200
_TIMEOUT_MS = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """Images a second, and CPU microseconds of one: of all threads, and of the one that takes it where it is known."""

    hz: float
    process_us: float
    thread_us: float | None = None

    @property
    def text(self) -> str:
        if self.thread_us is None:
            return f"process {self.process_us:.0f} us"
        return f"thread {self.thread_us:.0f} us, libzmq and others {self.process_us - self.thread_us:.0f} us"


@contextlib.contextmanager
def flat_out(protocol: str, size: int) -> Iterator[str]:
    """The address of a source that sends as fast as it is taken."""
    command = [sys.executable, "-m", "cxls.bench.flat_out", protocol, str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@contextlib.contextmanager
def _pull(endpoint: str) -> Iterator["zmq.Socket[bytes]"]:
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.setsockopt(zmq.RCVHWM, RECEIVE_HWM)
        socket.setsockopt(zmq.RCVTIMEO, _TIMEOUT_MS)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        yield socket


def bare(endpoint: str, seconds: float) -> Rate:
    """A loop that only takes messages."""
    with _pull(endpoint) as socket:
        for _ in range(_WARM):
            socket.recv_multipart(copy=False)
        taken, began = 0, (time.monotonic(), time.thread_time(), time.process_time())
        while time.monotonic() - began[0] < seconds:
            socket.recv_multipart(copy=False)
            taken += 1
        return _rate(taken, began)


def front(endpoint: str, seconds: float) -> Rate:
    """The front as ``cxls analyze`` runs it; all images are dropped as sampled, with a record each."""
    receiver = StreamReceiver([endpoint])
    try:
        running = Front(receiver, [], [], FrontSettings(sample=MOST_EVERY))
        stop = threading.Event()
        marks: list[tuple[int, float, float, float]] = []

        def watch(pause: float) -> None:
            time.sleep(pause)
            marks.append((running.account.received, time.monotonic(), clock(), time.process_time()))

        clock = _thread_clock()

        def time_it() -> None:
            watch(1.0)
            watch(seconds)
            stop.set()

        timer = threading.Thread(target=time_it, daemon=True)
        timer.start()
        running.run(stop)
        timer.join()
    finally:
        receiver.close()
    first, last = marks
    taken = last[0] - first[0]
    if not taken:
        raise RuntimeError("the source sent nothing")
    took, thread, process = (b - a for a, b in zip(first[1:], last[1:], strict=True))
    return Rate(taken / took, process / taken * 1e6, thread / taken * 1e6)


def libertem(endpoint: str, seconds: float, size: int) -> Rate | None:
    """LiberTEM's receiver, whose threads are not told apart; ``None`` where it is not installed."""
    command = [sys.executable, "-m", "cxls.bench.libertem_receiver", endpoint, str(seconds), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode:
        return None
    found = json.loads(done.stdout)
    return Rate(found["frames"] / found["seconds"], found["cpu_seconds"] / found["frames"] * 1e6)


def parts(endpoint: str, seconds: float) -> dict[str, float]:
    """CPU microseconds of the calling thread for each part of the way, the clock's own taken off."""
    tick = time.thread_time_ns
    sums = dict.fromkeys(PARTS, 0)
    reader, tracker, ring = ImageReader(), SeriesTracker(Account()), FrameRing()
    images = 0
    with _pull(endpoint) as socket:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            times = [tick()]
            frames = [socket.recv(copy=False)]
            while frames[-1].more:
                frames.append(socket.recv(copy=False))
            buffers = [frame.buffer for frame in frames]
            times.append(tick())
            message = parse(buffers, "auto", reader)
            times.append(tick())
            events = list(tracker.handle(message, time.monotonic()))
            times.append(tick())
            made = [make_frame(e.series, e.image, 0.0, None) for e in events if isinstance(e, ImageAccepted)]
            times.append(tick())
            queued = [ring.put(each) for each in made]
            times.append(tick())
            ring.take(len(queued), 0.0, 0.0)
            is_image = isinstance(message, ImageMessage)
            del frames, buffers, message, events, made
            times.append(tick())
            if is_image and (images := images + 1) > _WARM:
                for name, first, last in zip(PARTS, times, times[1:], strict=False):
                    sums[name] += last - first
    own = _clock_ns()
    return {name: max(0.0, total / (images - _WARM) - own) / 1e3 for name, total in sums.items()}


def _clock_ns() -> float:
    calls = 1000
    began = time.thread_time_ns()
    for _ in range(calls - 1):
        time.thread_time_ns()
    return (time.thread_time_ns() - began) / calls


def _thread_clock() -> Callable[[], float]:
    """The CPU clock of the calling thread, to be read by another."""
    number = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(number)


def _rate(taken: int, began: tuple[float, float, float]) -> Rate:
    took, thread, process = (
        now - then for now, then in zip((time.monotonic(), time.thread_time(), time.process_time()), began, strict=True)
    )
    return Rate(taken / took, process / taken * 1e6, thread / taken * 1e6)


def run(settings: BenchSettings) -> Report:
    """Both protocols and both sizes; ``--seconds`` is the length of all."""
    allocator.settle()
    seconds = settings.seconds / (len(SIZES) * 2 * ROUNDS * 4)
    figures: list[Figure] = []
    found: list[Ratio] = []
    notes: list[str] = []
    for size in SIZES:
        for protocol in ("v1", "v2"):
            some, ratio, note = _measure(protocol, size, seconds)
            figures += some
            found += ratio
            notes += note
    notes += [
        "python: all that the receiving thread does, by part; libzmq has a thread of its own, which copies",
        "the source, in another process, shares the cores: on few cores all rates are its own, too",
    ]
    return Report("front: off the wire and dropped, flat out over loopback", figures, found, notes)


def _measure(protocol: str, size: int, seconds: float) -> tuple[list[Figure], list[Ratio], list[str]]:
    by_part: list[dict[str, float]] = []
    ours: list[Rate] = []
    peer: list[Rate] = []
    others: list[Rate] = []
    for _ in range(ROUNDS):
        with flat_out(protocol, size) as endpoint:
            by_part.append(parts(endpoint, seconds))
        with flat_out(protocol, size) as endpoint:
            ours.append(front(endpoint, seconds))
        with flat_out(protocol, size) as endpoint:
            peer.append(bare(endpoint, seconds))
        if protocol == "v1":
            with flat_out(protocol, size) as endpoint:
                rate = libertem(endpoint, seconds, size)
                others += [] if rate is None else [rate]
    named = f"{protocol}, {size / 1e6:.1f} MB"
    totals = [sum(each.values()) for each in by_part]
    best = min(by_part, key=lambda each: sum(each.values()))
    figures = [
        over_rounds(f"{named}: python", "us CPU", totals, ", ".join(f"{name} {best[name]:.1f}" for name in PARTS)),
        *_rate_figures(f"{named}: front, all dropped", ours, size),
        *_rate_figures(f"{named}: bare pyzmq", peer, size),
    ]
    if protocol == "v1":
        figures += (
            _rate_figures(f"{named}: LiberTEM", others, size)
            if others
            else [Figure(f"{named}: LiberTEM", "frames/s", None, note="libertem-dectris is not installed")]
        )
    fastest, least = max(ours, key=lambda rate: rate.hz), min(ours, key=lambda rate: rate.process_us)
    carried = "carried" if fastest.hz >= DETECTOR_HZ else "not carried with the source on the same cores"
    verdict = "kept" if min(totals) < BAR_US else "missed"
    taking = least.thread_us or 0.0
    cores = [us * DETECTOR_HZ / 1e4 for us in (taking, least.process_us - taking)]
    return (
        figures,
        [Ratio(f"{named} front / bare pyzmq, best rates", fastest.hz / max(rate.hz for rate in peer))],
        [
            f"{named}: bar {BAR_US:.0f} us of python {verdict}; {DETECTOR_HZ} Hz, {DETECTOR_HZ * size / 1e9:.1f} GB/s, "
            f"{carried}: they take {cores[0]:.0f} % of a core to receive, {cores[1]:.0f} % for libzmq and the records"
        ],
    )


def _rate_figures(name: str, rates: list[Rate], size: int) -> list[Figure]:
    best = max(rates, key=lambda rate: rate.hz)
    ordered = sorted(rate.hz for rate in rates)
    return [
        Figure(
            name, "frames/s", best.hz, ordered[len(ordered) // 2],
            f"best, not least; {best.hz * size / 1e9:.2f} GB/s; {best.text}",
        )
    ]  # fmt: skip
