"""Running the program: as a child process, or its sessions and its replay in threads of the test."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import zmq

from cxls.cli import main
from cxls.commands.analyze import Session
from cxls.settings import AnalyzeSettings
from sim_replay.replay import ReplayReport, ReplaySettings, run_replay

CXLS = [sys.executable, "-m", "cxls"]
LOOPBACK = "tcp://127.0.0.1:0"
TOKEN = "a-token-for-tests-0123456789"
PER_RUN = ("series_id", "received_at", "latency_s")
"""Fields of a record that differ between a live and an offline analysis of the same images."""


def environment(**variables: str) -> dict[str, str]:
    """Ours without settings of the program, and with these."""
    return {k: v for k, v in os.environ.items() if not k.startswith("CXLS_")} | variables


@dataclass(frozen=True)
class Ended:
    """What the program left: its exit code and its words."""

    returncode: int
    stdout: str
    stderr: str


def cxls(*arguments: object, **variables: str) -> Ended:
    """Run to the end in this process, whose imports are made already: ``main`` and all behind it, no less."""
    out, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code = 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    patched = {"argv": ["cxls", *map(str, arguments)]}
    try:
        with (
            mock.patch.multiple(sys, **patched),
            mock.patch.dict(os.environ, environment(**variables), clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Ended(code, *(stream.buffer.getvalue().decode() for stream in (out, errors)))  # type: ignore[attr-defined]


def refusal(*arguments: object, **variables: str) -> str:
    """The one line with which the program refuses, with exit code 2."""
    done = cxls(*arguments, **variables)
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("cxls:", "Error:"))]
    assert len(lines) == 1, done.stderr
    return lines[0]


class Child:
    """The program running, with its stderr read as it comes."""

    def __init__(self, *arguments: object, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*CXLS, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**variables),
        )
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(iter(self.process.stderr.readline, ""))

    def listening(self, name: str, timeout_s: float = 60) -> str:
        """The address after ``listening NAME``."""
        found: list[str] = []

        def said() -> bool:
            found.extend(line.split()[2] for line in list(self.errors) if line.startswith(f"listening {name} "))
            return bool(found) or self.process.poll() is not None

        wait_for(said, timeout_s)
        assert found, "".join(self.errors)
        return found[0]

    def end(self, number: int | None = None, timeout_s: float = 60) -> int:
        """The exit code, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Analysis:
    """A session in a thread, writing records to a file."""

    def __init__(self, sources: Sequence[object], bundle: Path, results: Path, **settings: Any) -> None:
        given: dict[str, Any] = {
            "bundle": bundle,
            "results": results,
            "device": "cpu",
            "workers": 2,
            "on_full": "block",
        }
        if any("://" in str(source) for source in sources):
            given["listen"] = "127.0.0.1:0"
        self.results = results
        self.session = Session(AnalyzeSettings(**(given | settings)), [str(source) for source in sources])
        self.account = self.session.front.account
        self._thread = threading.Thread(target=self.session.run, daemon=True)

    def start(self) -> "Analysis":
        self._thread.start()
        return self

    def join(self, timeout_s: float = 60) -> "Analysis":
        """Wait for its own end."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"the analysis did not end: {self.account.identity()}"
        return self

    def stop(self) -> "Analysis":
        self.session.stop.set()
        return self.join()

    @property
    def records(self) -> list[dict[str, Any]]:
        return records(self.results)

    def assert_closes(self) -> None:
        """The account's identities, and one record for each accepted image."""
        account = self.account
        assert account.received == account.settled, account.identity()
        pairs = [(r["series_id"], r["image_id"]) for r in self.records]
        assert len(pairs) == len(set(pairs)) == account.accepted


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def by_image(found: Sequence[dict[str, Any]], leave_out: Sequence[str] = PER_RUN) -> list[dict[str, Any]]:
    """Records in the order of their images, without what differs from run to run."""
    ordered = sorted(found, key=lambda record: (record["series_id"], record["image_id"]))
    return [{key: value for key, value in record.items() if key not in leave_out} for record in ordered]


@contextmanager
def replaying(*masters: Path, **settings: Any) -> Iterator[tuple[str, Future[ReplayReport]]]:
    """The replay server in a thread: its address and its report."""
    stop, bound = threading.Event(), Future[str]()
    wire = ReplaySettings(tuple(map(str, masters)), **({"bind": LOOPBACK} | settings))
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(run_replay, wire, stop, lambda _, address: bound.set_result(address))
        try:
            yield bound.result(60), report
        finally:
            stop.set()


class Sender:
    """A bound PUSH socket that sends whatever it is told."""

    def __init__(self) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDTIMEO, 60_000)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(LOOPBACK)
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, *parts: Any) -> None:
        self._socket.send_multipart(parts)

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()
