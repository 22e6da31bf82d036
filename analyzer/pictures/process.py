"""Has pictures drawn by a process of its own, so that drawing holds up no thread and leaves nothing in memory here.

The process begins with the first picture, stays for the next ones, and ends when none was asked for in a while or
when this program is gone, however it went. One that dies, hangs or answers nonsense costs one picture.
"""

import contextlib
import fcntl
import logging
import os
import select
import subprocess
import sys
import threading
import time

from analyzer.logs import Repeats
from analyzer.pictures.requests import ANSWER, FAILED, HEADER, NOTHING, PICTURE, READY, Request, packed

log = logging.getLogger(__name__)

DEADLINE_S = 30.0
"""For a picture, from the moment that it is asked for; a process that takes longer hangs."""

START_S = 120.0
"""For the process to begin: matplotlib's very first start on a machine looks at all of its fonts."""

IDLE_S = 300.0
"""It ends after so long without a picture: longer than the pause between two writings of products."""

MOST_PNG_BYTES = 16 << 20
_END_S = 2.0
_PIPE_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20
_PNG = b"\x89PNG\r\n\x1a\n"

_SMALL = {
    "MALLOC_ARENA_MAX": "1",
    # Fixed, so that large arrays go back to the system as soon as they are drawn.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""Keeps the process small: it has one thing to do at a time."""


class NoPicture(Exception):
    """A picture that was not drawn: one line why, which has been logged."""


class _Failed(Exception):
    """Why the process gave no picture."""


class Pictures:
    """Draws for any thread, one picture at a time. A context manager, or ``close`` it."""

    def __init__(self, deadline_s: float = DEADLINE_S, start_s: float = START_S, idle_s: float = IDLE_S) -> None:
        self._deadline_s, self._start_s, self._idle_s = deadline_s, start_s, idle_s
        self._repeats = Repeats(log)
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._timer: threading.Timer | None = None
        self._used_s = 0.0
        self._closed = False

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process that draws, if there is one now."""
        process = self._process
        return None if process is None else process.pid

    def draw(self, request: Request) -> bytes | None:
        """The PNG, ``None`` where there is nothing to show. Raises ``NoPicture``."""
        with self._lock:
            try:
                return self._drawn(request)
            except _Failed as error:
                text = f"the picture {request.name} was not drawn: {error}"
        self._repeats.warning(text, text, "picture_failed", picture=request.name)
        raise NoPicture(text)

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._closed = True
        if not self._lock.acquire(timeout=_END_S):
            # Whoever waits for its picture gets none.
            if (process := self._process) is not None:
                process.kill()
            self._lock.acquire()
        try:
            self._let_go()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        finally:
            self._lock.release()
        self._repeats.close()

    def _drawn(self, request: Request) -> bytes | None:
        if self._closed:
            raise _Failed("the run is over")
        if self._process is not None and self._process.ended:
            # Between two pictures: that costs none.
            self._let_go()
        try:
            if self._process is None:
                self._process = _Process()
                self._process.begin(time.monotonic() + self._start_s)
            kind, body = self._process.ask(request, time.monotonic() + self._deadline_s)
        except _Failed:
            self._let_go(at_once=True)
            raise
        except OSError as error:
            self._let_go(at_once=True)
            raise _Failed(f"a process that draws cannot be started: {error.strerror or error}") from None
        self._used_s = time.monotonic()
        if self._timer is None:
            self._look_again(self._idle_s)
        if kind == FAILED:
            raise _Failed(body.decode(errors="replace"))
        return None if kind == NOTHING else body

    def _look_again(self, after_s: float) -> None:
        self._timer = threading.Timer(after_s, self._rest)
        self._timer.name, self._timer.daemon = "pictures", True
        self._timer.start()

    def _rest(self) -> None:
        """End a process that nobody has asked for a while."""
        with self._lock:
            self._timer = None
            if self._process is None or self._closed:
                return
            left = self._used_s + self._idle_s - time.monotonic()
            if left > 0:
                self._look_again(left)
            else:
                self._let_go()

    def _let_go(self, at_once: bool = False) -> None:
        if self._process is not None:
            self._process.close(at_once)
            self._process = None


class _Process:
    """The process and its two pipes. Raises ``OSError`` when it cannot be started."""

    def __init__(self) -> None:
        # Of a group of its own, which Ctrl-C does not reach; -P: modules of the working folder are not ours.
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "analyzer.pictures.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,
            env=os.environ | _SMALL,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._to, self._from = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        for descriptor in (self._to, self._from):
            os.set_blocking(descriptor, False)
        if sys.platform == "linux":
            # Fewer turns for arrays of megabytes; a user may have no more room for pipes.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._to, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def kill(self) -> None:
        self._popen.kill()

    def begin(self, deadline_s: float) -> None:
        """Wait until it reads. Raises ``_Failed``."""
        if self._answer(deadline_s)[0] != READY:
            raise _Failed(_NONSENSE)

    def ask(self, request: Request, deadline_s: float) -> tuple[bytes, bytes]:
        """The kind of the answer and its body. Raises ``_Failed``."""
        header, arrays = packed(request)
        self._write(HEADER.pack(len(header)) + header, deadline_s)
        for each in arrays:
            if each.size:
                self._write(each.data, deadline_s)
        kind, body = self._answer(deadline_s)
        if kind not in (PICTURE, NOTHING, FAILED) or (kind == PICTURE and not body.startswith(_PNG)):
            raise _Failed(_NONSENSE)
        return kind, body

    def close(self, at_once: bool) -> None:
        """End it: by closing its stdin, or ``at_once``."""
        if at_once:
            self._popen.kill()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._popen.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_END_S)

    def _answer(self, deadline_s: float) -> tuple[bytes, bytes]:
        kind, length = ANSWER.unpack(self._read(ANSWER.size, deadline_s))
        if length > MOST_PNG_BYTES:
            raise _Failed(_NONSENSE)
        return kind, self._read(length, deadline_s)

    def _write(self, data: bytes | memoryview, deadline_s: float) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            try:
                rest = rest[os.write(self._to, rest[:_PIECE_BYTES]) :]
            except BlockingIOError:
                self._wait(self._to, select.POLLOUT, deadline_s)
            except BrokenPipeError:
                raise self._end() from None

    def _read(self, length: int, deadline_s: float) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                piece = os.read(self._from, length - len(data))
            except BlockingIOError:
                self._wait(self._from, select.POLLIN, deadline_s)
                continue
            if not piece:
                raise self._end()
            data += piece
        return bytes(data)

    def _wait(self, descriptor: int, event: int, deadline_s: float) -> None:
        left = deadline_s - time.monotonic()
        if left > 0:
            waiting = select.poll()
            waiting.register(descriptor, event)
            if waiting.poll(1e3 * left):
                return
        raise _Failed("the process that draws hangs and is killed; the next picture starts another")

    def _end(self) -> _Failed:
        """Of a process that has closed its end of a pipe, which it does by ending."""
        try:
            code = self._popen.wait(_END_S)
        except subprocess.TimeoutExpired:
            return _Failed(_NONSENSE)
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return _Failed(f"the process that draws ended ({how}); the next picture starts another")


_NONSENSE = "the process that draws answers nonsense and is killed; the next picture starts another"
