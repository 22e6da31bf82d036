"""The PUSH socket an Eiger binds: whole messages or none, and a hand-over that can be called off."""

import errno
import os
import socket as tcp
import threading
import time
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from streamer.connections import hang_up
from streamer.files import BadInput
from streamer.messages import Buffer

DEFAULT_BIND = "tcp://127.0.0.1:31001"

SEND_HWM = 16
"""Messages libzmq may queue for a consumer: a burst, yet few enough that a slow one shows."""

_SLICE_S = 0.05
"""Longest wait between two looks at the stop event."""

_COPY_BELOW = 64 << 10
"""Parts smaller than this are cheaper to copy than to hand over."""

_REBIND_S = 5.0
"""How long the operating system may hold on to the address of a socket just closed."""


class Wire:
    """The PUSH socket an Eiger binds. Calls from several threads take turns.

    Raises ``BadInput`` when ``bind`` cannot be bound; port 0 takes a free port, which
    ``endpoint`` then names. ``greetings`` counts consumers that came.
    """

    def __init__(self, bind: str, send_hwm: int = SEND_HWM) -> None:
        self._lock = threading.Lock()
        self._send_hwm = send_hwm
        self.greetings = 0
        self._accepted = 0
        self._open(bind)

    def _open(self, bind: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 0)
        # libzmq gives each new peer the limit known at that moment: before bind, or never.
        self._socket.setsockopt(zmq.SNDHWM, self._send_hwm)
        self._peers: set[int] = set()
        self._closed = False
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        try:
            if (port := bind.rpartition(":")[2]).isdigit() and int(port) > 65535:
                # libzmq would bind its remainder by 65536 without a word.
                raise zmq.ZMQError(errno.EINVAL)
            self._socket.bind(bind)
        except zmq.ZMQError as error:
            self._release(linger_ms=0)
            self._context.term()
            raise BadInput(_bind_failure(bind, error)) from None
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def consumers(self) -> int:
        """Connections now open, as far as the socket's events have been read."""
        return len(self._peers)

    def watch(self) -> None:
        """Read the socket's events; call now and then while nothing is sent."""
        with self._lock:
            self._follow()

    def wait_for_consumer(self, stop: threading.Event) -> bool:
        """Wait until a consumer's handshake has succeeded; False when stopped first."""
        return self.wait_until(lambda: self.greetings > 0, stop)

    def wait_until(self, seen: Callable[[], bool], stop: threading.Event, limit_s: float | None = None) -> bool:
        """Read the socket's events until ``seen``; False when stopped, or out of time, first."""
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while not stop.is_set():
            with self._lock:
                self._monitor.poll(round(_SLICE_S * 1000))
                self._follow()
                if seen():
                    # Connections that came or went since are now the socket's too.
                    self._socket.getsockopt(zmq.EVENTS)
                    return True
            if deadline is not None and time.monotonic() >= deadline:
                break
        return False

    def send(self, parts: list[Buffer], stop: threading.Event, wait_s: float | None) -> bool:
        """Queue one message whole, or not at all and return False.

        Waits for room at most ``wait_s`` seconds (``None`` without limit), less when ``stop`` is set.
        """
        flags = zmq.SNDMORE if len(parts) > 1 else 0
        deadline = None if wait_s is None else time.monotonic() + wait_s
        with self._lock:
            self._follow()
            while True:
                try:
                    self._put(parts[0], flags | zmq.NOBLOCK)
                    break
                except zmq.Again:
                    left = _SLICE_S if deadline is None else deadline - time.monotonic()
                    if left <= 0 or stop.is_set():
                        return False
                    self._socket.poll(max(1, round(min(left, _SLICE_S) * 1000)), zmq.POLLOUT)
                    self._follow()
            # libzmq counts whole messages, so the later parts always find room. Waiting for them
            # matters only when the peer goes away in between; libzmq then discards the rest.
            for number, part in enumerate(parts[1:], 2):
                self._put(part, zmq.SNDMORE if number < len(parts) else 0)
        return True

    def _put(self, part: Buffer, flags: int) -> None:
        self._socket.send(part, flags, copy=len(part) < _COPY_BELOW)

    def _follow(self) -> None:
        while not self._closed and self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._accepted += 1
                self._peers.add(event["value"])
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._peers.discard(event["value"])
            else:
                self.greetings += 1

    def hand_over(self, stop: threading.Event, limit_s: float | None = None) -> bool:
        """Close once the consumer has taken what is queued; False when cut short.

        Ends a moment after ``stop`` is set, or after ``limit_s`` seconds; what is queued is then lost.
        """
        with self._lock:
            self._follow()
            connections = [copy for peer in self._peers if (copy := _own_copy(peer, self.endpoint)) is not None]
            self._release(linger_ms=-1)
        done = threading.Event()

        def terminate() -> None:
            self._context.term()
            done.set()

        threading.Thread(target=terminate, name="replay-linger", daemon=True).start()
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while not done.wait(_SLICE_S) and not stop.is_set() and (deadline is None or time.monotonic() < deadline):
            pass
        complete = done.is_set()
        for connection in connections:
            if not complete:
                # A lingering libzmq cannot be called off, but it gives up when the line goes dead.
                hang_up(connection)
            connection.close()
        return complete

    def settle(self, stop: threading.Event, limit_s: float) -> bool:
        """Wait until libzmq is done with what it has told so far; False when stopped, or out of time, first.

        It tells of a lost connection before it lets go of it, and what is sent in between is lost too. The thread that
        does both also accepts connections: when one made now is accepted, all before is done.
        """
        before = self._accepted
        with connection(self.endpoint):
            return self.wait_until(lambda: self._accepted > before, stop, limit_s)

    def reopen(self, stop: threading.Event, limit_s: float | None = None) -> bool:
        """Hand over what is queued, close the connection, and bind the same address again; False when cut short."""
        complete = self.hand_over(stop, limit_s)
        deadline = time.monotonic() + _REBIND_S
        while True:
            try:
                with self._lock:
                    self._open(self.endpoint)
                return complete
            except BadInput:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_SLICE_S)

    def close(self) -> None:
        """Close at once; what is still queued is lost. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._release(linger_ms=0)
        self._context.term()

    def _release(self, linger_ms: int) -> None:
        self._closed = True
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=linger_ms)


def connection(endpoint: str) -> tcp.socket:
    """To an address of libzmq's form; nothing is said yet. Raises ``OSError``."""
    kind, _, where = endpoint.partition("://")
    if kind == "ipc":
        line = tcp.socket(tcp.AF_UNIX)
        line.connect(where)
        return line
    host, _, port = where.rpartition(":")
    return tcp.create_connection((host.strip("[]"), int(port)))


def _own_copy(descriptor: int, endpoint: str) -> tcp.socket | None:
    """A second handle on libzmq's connection, checked to be that of our endpoint."""
    try:
        copy = tcp.socket(fileno=os.dup(descriptor))
        if copy.family == tcp.AF_UNIX or str(copy.getsockname()[1]) == endpoint.rpartition(":")[2]:
            return copy
        copy.close()
    except OSError:
        pass
    return None


def _bind_failure(bind: str, error: zmq.ZMQError) -> str:
    if error.errno == zmq.EADDRINUSE:
        return f"{bind}: the address is in use; stop what listens there or take another port (port 0 finds a free one)"
    return f"{bind}: {error.strerror}; an address to bind looks like {DEFAULT_BIND}"
