"""What browsers on the live page cost the analysis: none, one, four, and four that never read.

One program analyses a replayed series as fast as it can, and browsers come and go in rounds, so that each round has its
own without any beside it. Its CPU is read from outside, so that browsers, which run in a process of their own here, are
not counted as its. What a browser takes is counted as it comes over the socket.
"""

import contextlib
import math
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from cxls.bench.children import Child, cxls, replaying
from cxls.bench.inputs import repeated, simulate
from cxls.bench.memory import scrape
from cxls.bench.report import Figure, Report
from cxls.settings import BenchSettings

ROUNDS = 3
SETTLE_S = 1.0
MANY = 4
SERIES = 1000
"""How often the simulated frames are repeated in a series: long enough that none ends in a window."""


@dataclass(slots=True)
class Taken:
    """What browsers took: messages, pictures among them, and bytes."""

    pictures: int = 0
    nbytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, message: str | bytes) -> None:
        with self.lock:
            self.pictures += isinstance(message, bytes)
            self.nbytes += len(message)


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of one round: CPU of the analysis a frame, frames a second, what each browser took a second."""

    cpu_ms: float
    frames_hz: float
    pictures_hz: float = 0.0
    bytes_hz: float = 0.0


@contextlib.contextmanager
def reading(address: str, browsers: int, taken: Taken) -> Iterator[None]:
    """So many browsers that read all they are sent."""
    stop = threading.Event()

    def read() -> None:
        with connect(f"ws://{address}/live", max_size=None) as page:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    taken.add(page.recv(0.2))

    threads = [threading.Thread(target=_quietly, args=(read,), daemon=True) for _ in range(browsers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(5.0)


@contextlib.contextmanager
def silent(address: str, browsers: int) -> Iterator[None]:
    """So many that ask for the page's socket and never read."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as opened:
        for _ in range(browsers):
            raw = opened.enter_context(socket.create_connection((host, int(port))))
            raw.sendall(
                f"GET /live HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
        yield


def _quietly(work: Callable[[], None]) -> None:
    with contextlib.suppress(OSError, WebSocketException):
        work()


def look(child: Child, seconds: float, browsers: int = 0, taken: Taken | None = None) -> Window:
    """Watch the analysis for so long."""
    time.sleep(SETTLE_S)
    clock = ~child.process.pid << 3 | 2
    url = f"http://{child.address('http')}"
    pictures, nbytes = (taken.pictures, taken.nbytes) if taken else (0, 0)
    frames, cpu, began = scrape(url)["cxls_frames_processed_total"], time.clock_gettime(clock), time.monotonic()
    time.sleep(seconds)
    took, spent = time.monotonic() - began, time.clock_gettime(clock) - cpu
    frames = scrape(url)["cxls_frames_processed_total"] - frames
    each = max(1, browsers) * took
    return Window(
        1e3 * spent / frames if frames else math.nan,
        frames / took,
        (taken.pictures - pictures) / each if taken else 0.0,
        (taken.nbytes - nbytes) / each if taken else 0.0,
    )


def rounds(master: Path, seconds: float, count: int = ROUNDS) -> list[dict[str, Window]]:
    """Rounds of windows by what is on the page; the analysis goes on through all of them."""
    found = []
    with (
        replaying(repeated(master, SERIES), "v2") as source,
        cxls("analyze", source, "--device", "cpu", "--listen", "127.0.0.1:0", "--on-full", "block") as child,
    ):
        address = child.address("http")
        while not scrape(f"http://{address}")["cxls_frames_processed_total"]:
            if child.process.poll() is not None:
                raise RuntimeError(f"the analysis ended: {' | '.join(child.errors[-3:])}")
            time.sleep(0.5)
        for _ in range(count):
            windows = {"none": look(child, seconds)}
            for browsers in (1, MANY):
                taken = Taken()
                with reading(address, browsers, taken):
                    windows[str(browsers)] = look(child, seconds, browsers, taken)
            with silent(address, MANY):
                windows["silent"] = look(child, seconds)
            windows["none again"] = look(child, seconds)
            found.append(windows)
        child.interrupt()
    return found


def run(settings: BenchSettings) -> Report:
    """``--seconds`` is the time of all windows together."""
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as name:
        master = simulate(Path(name), min(settings.frames, 60))
        found = rounds(master, max(1.0, settings.seconds / (5 * ROUNDS)))

    def middle(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    figures = []
    for name, text in (
        ("none", "no browser"),
        ("1", "one browser"),
        (str(MANY), f"{MANY} browsers"),
        ("silent", f"{MANY} browsers that never read"),
    ):
        alone = [(each["none"].cpu_ms + each["none again"].cpu_ms) / 2 for each in found]
        cpu = [each[name].cpu_ms for each in found]
        more = [100.0 * (one / none - 1.0) for one, none in zip(cpu, alone, strict=True)]
        note = f"{middle([each[name].frames_hz for each in found]):.0f} frames a second"
        if name != "none":
            note += f"; {middle(more):+.1f} % CPU, {min(more):+.1f} to {max(more):+.1f} over {len(found)} rounds"
        figures.append(Figure(f"{text}: CPU a frame", "ms", middle(cpu), note=note))
    for name in ("1", str(MANY)):
        figures += [
            Figure(f"each of {name}: pictures a second", "Hz", middle([w[name].pictures_hz for w in found])),
            Figure(f"each of {name}: bytes a second", "MB/s", middle([w[name].bytes_hz for w in found]) / 1e6,
                   note="bar: at most 2"),
        ]  # fmt: skip
    notes = ["browsers run beside the analysis here and take of its cores; a slow one costs what it takes"]
    return Report("live-page: what browsers cost an analysis that runs as fast as it can", figures, (), notes)
