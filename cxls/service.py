"""Tells a service manager how the program does: ready, alive, ending, and one line for ``systemctl status``.

This is systemd's protocol (sd_notify(3)): datagrams of ``KEY=VALUE`` lines to the socket that ``NOTIFY_SOCKET`` names.
Without that variable nothing happens. Nothing here ever waits or fails the program: a manager that does not listen
costs a warning.

``WATCHDOG=1`` is sent only while ``longest`` says that no thread has been at one piece of work for half of the
watchdog's time. A hung analysis is so silent, and the manager restarts it.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from analyzer.logs import printable
from analyzer.pulse import Busy

log = logging.getLogger(__name__)

STATUS_S = 5.0
"""Between two lines of status, and the longest between two looks at whether the program is ready."""

_LOOK_S = 0.5
_MOST_STATUS = 400


@dataclass(frozen=True, slots=True)
class Manager:
    """Where the manager listens, and the time after which silence is a hang (s, ``None``: it does not watch)."""

    address: str
    watchdog_s: float | None


def manager_of(environment: Mapping[str, str] | None = None) -> Manager | None:
    """The manager that started this process, ``None`` where there is none to tell."""
    variables = os.environ if environment is None else environment
    address = variables.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return None
    pid, micros = variables.get("WATCHDOG_PID", ""), variables.get("WATCHDOG_USEC", "")
    # Of a parent's watchdog a child knows nothing.
    ours = not pid or pid == str(os.getpid())
    watched = ours and micros.isascii() and micros.isdigit() and int(micros) > 0
    return Manager(address, int(micros) / 1e6 if watched else None)


class Notifier:
    """Reports to a manager in a thread, from ``start`` to ``close``.

    ``ready`` says when work can begin and, by turning false, when the program ends, ``longest`` which thread has been
    longest at one piece of work, ``status`` what the program does, in a line.
    """

    def __init__(
        self, manager: Manager, ready: Callable[[], bool], longest: Callable[[], Busy | None], status: Callable[[], str]
    ) -> None:
        self._manager, self._ready, self._longest, self._status = manager, ready, longest, status
        address = manager.address
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)
        self._said_ready = self._said_end = self._told_hang = self._deaf = False

    def start(self) -> "Notifier":
        self._thread.start()
        return self

    def close(self) -> None:
        """Say that the program ends, and nothing more."""
        self._closing.set()
        self._thread.join()
        self._end()
        self._socket.close()

    def _run(self) -> None:
        watchdog_s = self._manager.watchdog_s
        pause_s = min(_LOOK_S, watchdog_s / 4) if watchdog_s else _LOOK_S
        looks, every = 0, max(1, round(STATUS_S / pause_s))
        while not self._closing.wait(pause_s if looks else 0):
            ready = self._ready()
            if ready and not self._said_ready:
                self._said_ready = self._send("READY=1")
            elif self._said_ready and not ready:
                # What was received is still to be analysed and written.
                self._end()
            if watchdog_s is not None and self._gets_on(watchdog_s / 2):
                self._send("WATCHDOG=1")
            if looks % every == 0:
                self._send("STATUS=" + printable(self._status())[:_MOST_STATUS])
            looks += 1

    def _end(self) -> None:
        if not self._said_end:
            self._said_end = self._send("STOPPING=1")

    def _gets_on(self, limit_s: float) -> bool:
        longest = self._longest()
        hangs = longest is not None and longest.seconds > limit_s
        if longest is not None and hangs and not self._told_hang:
            log.error(
                "%s has been at one piece of work for %.0f s: the service manager hears no more of us until it goes on",
                longest.who, longest.seconds,
            )  # fmt: skip
        self._told_hang = hangs
        return not hangs

    def _send(self, text: str) -> bool:
        try:
            self._socket.sendto(text.encode(), self._address)
        except BlockingIOError:
            return False
        except OSError as error:
            if not self._deaf:
                log.warning("the service manager at NOTIFY_SOCKET cannot be told: %s", error.strerror or error)
            self._deaf = True
            return False
        return True


def open_notifier(
    ready: Callable[[], bool], longest: Callable[[], Busy | None], status: Callable[[], str]
) -> Notifier | None:
    """A running notifier, ``None`` where no manager started this process."""
    manager = manager_of()
    return None if manager is None else Notifier(manager, ready, longest, status).start()
