"""Wakes a thread that waits at a ZeroMQ poller, from any other thread."""

import contextlib
import threading

import zmq


class Wakeup:
    """``socket`` becomes readable for the thread that polls it; that thread alone drains and closes it."""

    def __init__(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._in, self.socket = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        inner = f"inproc://wakeup-{id(self)}"
        self.socket.bind(inner)
        self._in.connect(inner)
        self._lock = threading.Lock()
        self.closed = False

    def wake(self) -> None:
        """Have the thread look, unless it is over."""
        with self._lock:
            if not self.closed:
                # One that does not fit finds others before it that wake the thread as well.
                with contextlib.suppress(zmq.Again):
                    self._in.send(b"", zmq.DONTWAIT)

    def drain(self) -> None:
        """Take all that was said so far."""
        while self.socket.poll(0):
            self.socket.recv()

    def close(self) -> None:
        with self._lock:
            self.closed = True
            self._in.close(0)
            self.socket.close(0)
