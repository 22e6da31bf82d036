"""How many connections an HTTP server holds, and how long one may take to ask something.

A connection that asks nothing costs a descriptor and a place. It has ``REQUEST_S`` for a whole request head, however it
spreads its bytes, and where all places are taken the one that has been idle for longest gives way: whoever means to
ask is served, however many merely connect.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from analyzer.descriptors import at_most
from analyzer.web.guard import Refusals

MOST_CONNECTIONS = 500
REQUEST_S = 10.0
MOST_HEAD_BYTES = 32 << 10
"""Of a request line and its headers."""


def limited(refusals: Refusals) -> type[H11Protocol]:
    """The protocol of one server, whose ``refusals`` count what is hung up on."""
    counts = refusals.counts

    class Limited(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._settle()
            if len(self.connections) > at_most(MOST_CONNECTIONS, descriptors_each=1):
                counts["connections"] += 1
                # The first is idle for longest; where none is, who comes has to go.
                next(iter(idle), self)._hang_up()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._settle()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._settle()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _settle(self) -> None:
            """Begin the time for a request where none is at work; more bytes of one do not begin it anew."""
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering or self not in self.connections or self.transport.is_closing():
                self._forget()
            elif self not in idle:
                idle[self] = self.loop.call_later(REQUEST_S, self._too_late)

        def _forget(self) -> None:
            if (timer := idle.pop(self, None)) is not None:
                timer.cancel()

        def _too_late(self) -> None:
            counts["no_request"] += 1
            self._hang_up()

        def _hang_up(self) -> None:
            self._forget()
            # It counts no more, though its end is noticed later.
            self.connections.discard(self)
            self.transport.abort()

    idle: dict[Limited, asyncio.TimerHandle] = {}
    return Limited
