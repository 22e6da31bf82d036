"""Child processes of a benchmark, so that the source's work is not counted as ours."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxls.bound import bound

START_S = 60.0
STOP_S = 30.0
_LISTENING = re.compile(r"listening (\S+) (\S+)")


@dataclass(slots=True)
class Child:
    """A running ``cxls`` command; ``addresses`` fills as it prints ``listening NAME ADDRESS``."""

    process: subprocess.Popen[str]
    addresses: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def follow_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.errors.append(line.rstrip())
                if found := _LISTENING.search(line):
                    self.addresses[found[1]] = found[2]
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def follow_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip())

    def address(self, name: str) -> str:
        """Wait until the child listens. Raises ``RuntimeError`` with its last words when it does not."""
        with self._changed:
            self._changed.wait_for(lambda: name in self.addresses or self.process.poll() is not None, START_S)
            if name not in self.addresses:
                raise RuntimeError(f"child does not listen: {' | '.join(self.errors[-3:])}")
            return self.addresses[name]

    def interrupt(self) -> int:
        """Ctrl-C, and its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_S)


@contextlib.contextmanager
def cxls(*arguments: str, apart: bool = False, holding: Sequence[int] = ()) -> Iterator[Child]:
    """Run ``cxls ARGUMENTS`` beside us; it is ended when the block is left. ``holding``: descriptors that it inherits.

    ``apart``: in a session of its own, so that Ctrl-C at the terminal reaches us alone. On Linux it gets SIGTERM when
    the thread that started it is gone, however that came: start it from one that lives as long as the program.
    """
    command = [sys.executable, "-m", "cxls", *arguments]
    if apart:
        command = bound(command)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        start_new_session=apart,
        pass_fds=holding,
    )
    child = Child(process)
    followers = [threading.Thread(target=work, daemon=True) for work in (child.follow_errors, child.follow_output)]
    for follower in followers:
        follower.start()
    try:
        yield child
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for follower in followers:
            follower.join(STOP_S)


@contextlib.contextmanager
def replaying(
    master: Path,
    protocol: str,
    bind: str = "tcp://127.0.0.1:0",
    loop: bool = True,
    rate_hz: float | None = None,
) -> Iterator[str]:
    """Replay a series, over and over or once; yields the endpoint.

    Without a rate as fast as it is taken; at a rate as a detector does, which waits for nobody.
    """
    paced = () if rate_hz is None else ("--rate", str(rate_hz), "--on-full", "drop")
    loops = "--loop" if loop else "--no-loop"
    with cxls("replay", str(master), "--bind", bind, "--stream", protocol, loops, *paced) as child:
        yield child.address("replay")


def is_ready(url: str) -> None:
    """Raises ``OSError`` where an analysis does not listen yet, or has its models not warm."""
    with urllib.request.urlopen(f"{url}/readyz", timeout=2):
        pass


def wait_ready(url: str) -> None:
    """Wait until an analysis that listens has its models warm. Raises ``OSError`` after ``START_S`` seconds."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return is_ready(url)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def free_endpoint() -> str:
    """A loopback address that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def peer_python(name: str) -> Path | None:
    """The interpreter of a peer's environment made by ``make peers``, if it is there."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        python = root / name / "bin" / "python"
        if python.exists():
            return python
    return None


def memory_bytes(pid: int, what: str = "VmRSS") -> int:
    """Resident memory of a process (``VmHWM``: its peak)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) << 10
    raise ValueError(f"no {what} of process {pid}")
