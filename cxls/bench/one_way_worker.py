"""A worker that takes frames and answers when it has them all, so that what is measured is the way there alone.

``python -m cxls.bench.one_way_worker ADDRESS BACK COUNT``: a message to ``BACK`` says that so many are there.
"""

import os
import sys
import time

import zmq

from analyzer.cascade import BatchOutcome, undecodable
from analyzer.crew.outcome import pack_outcome
from analyzer.crew.setup import read_setup
from analyzer.crew.wire import (
    BEAT_S,
    PROTOCOL,
    Hello,
    Kind,
    Told,
    Work,
    header_of,
    kind_of,
    message,
    read_frame,
    read_series,
)  # fmt: skip
from cxls import allocator
from streamer.series import Series

BATCH = 8


def main(address: str, back: str, count: int) -> None:
    """Until the front ends. Frames of each batch are forgotten at once, but for who they are."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    dealer, told = context.socket(zmq.DEALER), context.socket(zmq.PUSH)
    dealer.setsockopt(zmq.RCVHWM, 0)
    dealer.connect(address)
    told.connect(back)
    dealer.send_multipart(message(Kind.HELLO, Hello(PROTOCOL, "one-way", "here", os.getpid(), 1, BATCH, count)))
    series: dict[int, Series] = {}
    held: list[Work] = []
    taken, beaten = 0, time.monotonic()
    while True:
        if (now := time.monotonic()) - beaten > BEAT_S:
            beaten = now
            dealer.send_multipart(message(Kind.BEAT))
        if not dealer.poll(round(1000 * BEAT_S)):
            continue
        parts = [frame.buffer for frame in dealer.recv_multipart(copy=False)]
        kind = kind_of(parts)
        if kind == Kind.END:
            return
        if kind == Kind.SETUP:
            dealer.send_multipart(message(Kind.READY, Told(read_setup(parts)[0])))
        elif kind == Kind.SERIES:
            number, told_of = read_series(parts)
            series[number] = told_of
        elif kind == Kind.WORK:
            held.append(header_of(parts, Work))
            taken += len(held[-1].frames)
            if taken == count:
                told.send(b"")
                for work in held:
                    frames = [read_frame(facts, series[facts.series], b"") for facts in work.frames]
                    outcome = BatchOutcome([undecodable(frame, "failed", "") for frame in frames])
                    dealer.send_multipart(pack_outcome(work.batch, outcome, 0.0, None))
                held, taken = [], 0


if __name__ == "__main__":
    allocator.settle()
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
