"""Another program connected to the detector: what it pulls, the analysis never gets.

It speaks ZMTP 3.0 [1]_ over a plain socket: a program on libzmq has a thread that reads ahead of it, and what lies
there when it leaves is lost and in no count.

.. [1] https://rfc.zeromq.org/spec/23
"""

import threading
import time
from collections.abc import Callable

from sim_replay.wire import connection

_PATIENCE_S = 5.0
_SLICE_S = 0.02
_CHUNK_BYTES = 1 << 20

_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY" + b"\x0bSocket-Type" + (4).to_bytes(4, "big") + b"PULL"
_MORE, _LONG, _COMMAND = 1, 2, 4


class SecondPuller:
    """A PULL socket that takes its share of the messages and throws them away. Raises ``OSError`` where it cannot
    connect."""

    def __init__(self, endpoint: str) -> None:
        self.taken = 0
        self._bytes = 0
        self._socket = connection(endpoint)
        self._socket.sendall(_GREETING + bytes([_COMMAND, len(_READY)]) + _READY)
        self._socket.settimeout(_SLICE_S)
        self._looks = 0
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._pull, name="second-puller", daemon=True)
        self._thread.start()

    def _pull(self) -> None:
        messages = _Messages()
        while not self._gone.is_set():
            try:
                chunk = self._socket.recv(_CHUNK_BYTES)
            except TimeoutError:
                self._looks += 1  # nothing was there
                continue
            except OSError:
                return
            if not chunk:
                return
            self._bytes += len(chunk)
            self.taken += messages.take(chunk)

    def leave(self, at_least: int, cancel: threading.Event, sender_idle: Callable[[], bool]) -> int:
        """Disconnect once all that is meant for it has come, which is ``at_least`` so much; how much that was.

        ``sender_idle``: waits until the sender's thread has done what it was told so far; False when it has not. What
        that thread did not put on the line then, it did not because the line was full, and then bytes come: where none
        came since before, nothing is left. ``cancel`` ends the waiting.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and not cancel.is_set() and self._thread.is_alive():
            before = self._bytes
            if sender_idle() and self._found_none(deadline, cancel) and self._bytes == before:
                if self.taken >= at_least:
                    break
                cancel.wait(_SLICE_S)
        self._gone.set()
        self._thread.join()
        self._socket.close()
        return self.taken

    def _found_none(self, deadline: float, cancel: threading.Event) -> bool:
        """Whether a whole look that begins from now on finds nothing to read."""
        looks = self._looks
        while self._looks < looks + 2:
            if time.monotonic() > deadline or not self._thread.is_alive() or cancel.wait(_SLICE_S / 4):
                return False
        return True


class _Messages:
    """Counts whole messages in what a peer sends, its greeting first."""

    def __init__(self) -> None:
        self._skip = len(_GREETING)
        self._head = bytearray()
        self._flags: int | None = None

    def take(self, chunk: bytes) -> int:
        """How many messages ended in the next bytes."""
        ended, at = 0, 0
        while at < len(chunk):
            if self._skip:
                step = min(self._skip, len(chunk) - at)
                self._skip -= step
                at += step
            else:
                self._head.append(chunk[at])
                at += 1
                flags = self._head[0]
                if len(self._head) == (9 if flags & _LONG else 2):
                    self._skip, self._flags = int.from_bytes(self._head[1:], "big"), flags
                    self._head.clear()
            if not self._skip and self._flags is not None:
                ended += not self._flags & (_MORE | _COMMAND)
                self._flags = None
        return ended
