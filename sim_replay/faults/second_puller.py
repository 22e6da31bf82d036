"""Another program connected to the detector: what it pulls, the analysis never gets."""

import threading
import time

import zmq

_QUIET_S = 0.2
"""Without a message for so long, none is on its way any more."""

_PATIENCE_S = 5.0


class SecondPuller:
    """A PULL socket that takes its share of the messages and throws them away."""

    def __init__(self, endpoint: str) -> None:
        self.taken = 0
        self._last = time.monotonic()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(endpoint)
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._pull, name="second-puller", daemon=True)
        self._thread.start()

    def _pull(self) -> None:
        while not self._gone.is_set():
            if self._socket.poll(20):
                self._socket.recv_multipart(copy=False)
                self.taken += 1
                self._last = time.monotonic()

    def leave(self, at_least: int, cancel: threading.Event) -> int:
        """Disconnect once all that is meant for it has come, which is ``at_least`` so much; how much that was.

        ``cancel`` ends the waiting.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and (self.taken < at_least or time.monotonic() - self._last < _QUIET_S):
            if cancel.wait(_QUIET_S / 10):
                break
        self._gone.set()
        self._thread.join()
        self._socket.close(linger=0)
        self._context.term()
        return self.taken
