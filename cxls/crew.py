"""Workers of other processes and hosts: the front's address for them, and those of this machine."""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analyzer.cascade import PlanCache
from analyzer.crew.curve import FrontKeys, public_of
from analyzer.crew.dispatch import Crew
from analyzer.crew.setup import CannotShare
from analyzer.judge import Judge
from analyzer.pulse import Pulse
from cxls.bound import bound
from cxls.cli import listening
from cxls.key_files import make_keys, read_front_keys
from cxls.settings import AnalyzeSettings, BadSettings

log = logging.getLogger(__name__)

_LOOK_S = 0.2
_PAUSES_S = (0.0, 1.0, 5.0)
"""Before a worker that ended is started again; the last one over and over. A run that lasted a minute is none."""

_LASTED_S = 60.0
_STOP_S = 12.0
WATCHDOG_S = 60.0
"""A worker that has said it is alive and says so no more for this long hangs: it is killed and started again."""

_BAD_SETTINGS = 2
"""Exit code of a program that refuses its settings."""

_PAUSE_S = 2.0
_MOST_SAID = 64


@dataclass(slots=True)
class _Place:
    """One worker's place: the process that fills it, when it began, how often it ended early.

    ``ear``: where the process says that it is alive, as to a service manager; ``heard_s``: when it last did.
    """

    name: str
    ear: socket.socket
    listen: str | None = None
    process: subprocess.Popen[bytes] | None = None
    began_s: float = 0.0
    early: int = 0
    due_s: float = 0.0
    heard_s: float | None = None


@dataclass(slots=True)
class LocalWorkers:
    """``count`` worker processes for the front at ``address``, started again when they end or hang; ``restarts`` counts
    that.

    ``listen``: HOST:PORT of the first one's metrics. ``refused``: one cannot be started with its settings, and is not
    again. ``pulse``: whether they are looked after.
    """

    address: str
    count: int
    arguments: Sequence[str] = ()
    name: str = ""
    listen: str | None = None
    restarts: int = 0
    refused: threading.Event = field(default_factory=threading.Event)
    pulse: Pulse = field(default_factory=Pulse)
    _places: list[_Place] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start them all, and keep them there."""
        name = self.name or f"{socket.gethostname()}-{os.getpid()}"
        self._places = [_Place(f"{name}.{number}", _ear(), _after(self.listen, number)) for number in range(self.count)]
        for place in self._places:
            self._fill(place)
        self._thread = threading.Thread(target=self._keep, name="local-workers", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """How many processes there are now."""
        return sum(place.process is not None for place in self._places)

    def close(self) -> None:
        """End them; what does not end in time is killed."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        processes = [place.process for place in self._places if place.process is not None]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _STOP_S
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for place in self._places:
            place.ear.close()
            place.process = None

    def _fill(self, place: _Place) -> None:
        # A session of its own: Ctrl-C is the front's to hear, which lets workers finish what they hold.
        command = [sys.executable, "-m", "cxls", "worker", self.address, "--name", place.name, *self.arguments]
        command += [] if place.listen is None else ["--listen", place.listen]
        told = {"NOTIFY_SOCKET": "@" + place.ear.getsockname()[1:].decode(), "WATCHDOG_USEC": f"{WATCHDOG_S * 1e6:.0f}"}
        environment = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"} | told
        # What the process before it said is not its own.
        while _said(place.ear):
            pass
        place.process = subprocess.Popen(
            bound(command), stdin=subprocess.DEVNULL, start_new_session=True, env=environment
        )
        place.began_s, place.heard_s = time.monotonic(), None

    def _listen(self, place: _Place, now: float) -> None:
        """Kill a process that has been silent for too long; it is started again as any that ended."""
        for _ in range(_MOST_SAID):
            if (said := _said(place.ear)) == b"WATCHDOG=1":
                place.heard_s = now
            elif not said:
                break
        if place.process is not None and place.heard_s is not None and now - place.heard_s > WATCHDOG_S:
            log.error("worker %s has not moved for %.0f s; it is killed", place.name, now - place.heard_s)
            place.process.send_signal(signal.SIGKILL)
            place.heard_s = None

    def _keep(self) -> None:
        looked_s = time.monotonic()
        while not self._stop.wait(_LOOK_S):
            self.pulse.beat()
            now = time.monotonic()
            paused, looked_s = now - looked_s, now
            for place in self._places:
                if place.heard_s is not None and paused > _PAUSE_S:
                    # This process stood still, and most likely they did.
                    place.heard_s = now
                self._listen(place, now)
                if place.process is not None and (code := place.process.poll()) is not None:
                    if code in (0, _BAD_SETTINGS):
                        # Told that the run is over, or what would be refused again.
                        place.process, place.due_s = None, math.inf
                        if code:
                            log.error(
                                "worker %s refuses its settings, as said above; it is not started again", place.name
                            )
                            self.refused.set()
                        continue
                    lasted = now - place.began_s
                    place.process, place.early = None, 0 if lasted > _LASTED_S else place.early + 1
                    pause = _PAUSES_S[min(place.early, len(_PAUSES_S) - 1)]
                    place.due_s = now + pause
                    log.warning("worker %s ended (%d) after %.0f s; again in %.0f s", place.name, code, lasted, pause)
                elif place.process is None and now >= place.due_s:
                    self.restarts += 1
                    try:
                        self._fill(place)
                    except OSError as error:
                        place.due_s = now + _PAUSES_S[-1]
                        log.warning("worker %s cannot be started: %s", place.name, error)


def _ear() -> socket.socket:
    """A socket at an address of its own, which has no name in any file system."""
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    ear.bind("")
    return ear


def _said(ear: socket.socket) -> bytes:
    """What was said next, nothing where all was heard."""
    try:
        return ear.recv(512)
    except BlockingIOError:
        return b""


def _after(listen: str | None, number: int) -> str | None:
    """The address ``number`` ports after one; a free one stays that."""
    if listen is None:
        return None
    host, _, port = listen.rpartition(":")
    return f"{host}:{int(port) + number}" if port.isdigit() and int(port) else listen


@dataclass(frozen=True, slots=True)
class OpenCrew:
    """The front's side, and the workers of this machine, if there are any."""

    dispatch: Crew
    local: LocalWorkers | None
    keys: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        if self.local is not None:
            self.local.start()

    def close(self) -> None:
        if self.local is not None:
            self.local.close()
        if self.keys is not None:
            self.keys.cleanup()


def open_crew(settings: AnalyzeSettings, judge: Judge, plans: PlanCache) -> OpenCrew | None:
    """What ``--processes`` and ``--worker-listen`` ask for; ``None`` without them. Raises ``BadSettings``."""
    if not settings.processes and settings.worker_listen is None:
        if settings.worker_key is not None or settings.worker_keys is not None:
            raise BadSettings(
                "--worker-key, --worker-keys: nobody attaches; give --worker-listen too, or leave them out"
            )
        return None
    keys, folder, known = _keys_of(settings)
    address = settings.worker_listen or "tcp://127.0.0.1:0"
    try:
        dispatch = Crew(address, judge, plans, keys)
    except (OSError, CannotShare) as error:
        option = "--processes" if settings.worker_listen is None else "--worker-listen"
        raise BadSettings(f"{option}: {error}") from None
    listening("workers", dispatch.address)
    if keys is None and not dispatch.address.startswith(("tcp://127.", "tcp://[::1]", "ipc://")):
        log.warning(
            "%s: whoever reaches it can take images and answer for them, and nothing is encrypted; keep it on a "
            "private network, or give keys (--worker-key, --worker-keys)", address,
        )  # fmt: skip
    local = None
    if settings.processes:
        # Those of this machine share memory with the front, whatever the others are reached by.
        here = dispatch.address if settings.worker_listen is None else dispatch.bind_also("tcp://127.0.0.1:0")
        arguments = ["--device", settings.device, "--once", "--processes", "1", *known]
        arguments += ["--batch", str(settings.batch)] if settings.batch else []
        local = LocalWorkers(here, settings.processes, arguments)
    return OpenCrew(dispatch, local, folder)


def _keys_of(
    settings: AnalyzeSettings,
) -> tuple[FrontKeys | None, tempfile.TemporaryDirectory[str] | None, list[str]]:
    """The front's keys; for its own workers a pair of this run, in a folder, and the options that name it."""
    if settings.worker_key is None and settings.worker_keys is None:
        return None, None, []
    if settings.worker_key is None or settings.worker_keys is None:
        raise BadSettings("--worker-key and --worker-keys: give both, the front's secret key and whom it lets in")
    if settings.worker_listen is None:
        raise BadSettings("--worker-key: for workers of other hosts; give --worker-listen too, or leave it out")
    if not settings.processes:
        return read_front_keys(settings.worker_key, settings.worker_keys), None, []
    folder = tempfile.TemporaryDirectory(prefix="cxls-keys-")
    secret, public = make_keys(Path(folder.name) / "local")
    own = public_of(secret.read_bytes().strip())
    keys = read_front_keys(settings.worker_key, settings.worker_keys, frozenset([own]))
    front = public.with_name("front.public")
    front.write_bytes(public_of(keys.secret) + b"\n")
    return keys, folder, ["--worker-key", str(secret), "--front-key", str(front)]
