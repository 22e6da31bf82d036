"""Mutated messages through parser, frame, decoder, listing and account, in a process whose memory is limited.

    python -m tests.streamer.fuzz_child SEED MUTATIONS

Prints one JSON line: what became of the mutations, and how much memory they cost.
"""

import importlib.util
import itertools
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from streamer import stream_v1, stream_v2
from streamer.account import DROP_REASONS, Account
from streamer.decoding import check_size, decode
from streamer.frames import make_frame
from streamer.listing import Listing
from streamer.messages import (
    INVALID_REASONS,
    UNDECODABLE_REASONS,
    Algorithm,
    Defect,
    ImageData,
    ImageMessage,
    InvalidMessage,
    Message,
    SeriesMetadata,
    UndecodableImage,
)
from streamer.receiver import parse
from streamer.series import Event, ImageAccepted, Series, SeriesClosed, SeriesTracker
from tests.streamer.hostile_wire import V1_START, V2_START
from tests.support import packed_image, poisson

SHAPE = (61, 75)
VALID = np.ones(SHAPE, np.uint8)
VALID[20:23] = VALID[:, 40] = 0
GUARD = 256
"""Bytes on either side of the decoder's output that it must leave alone."""

HEADROOM = 768 << 20
"""What the process may grow by: an image of 512 MiB and its buffer's fill never fit."""

EXTREMES = (0, 1, 7, 8, 255, 8191, 8192, 8193, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def messages() -> list[list[bytes]]:
    found = [V1_START, [V2_START], stream_v1.encode_end(7), [stream_v2.encode_end(7)]]
    packed = [Algorithm.RAW, Algorithm.BSLZ4, Algorithm.LZ4_HDF5, Algorithm.LZ4_BLOCK]
    if importlib.util.find_spec("dectris") is not None:
        packed.append(Algorithm.BSZSTD)
    # Some of them beyond what the starts announce.
    ids = itertools.count(0, 7)
    # Few counts are listed from their planes of bits, many from their pixels.
    for dtype, mean in itertools.product(("u1", "<u2", "<u4", ">u2"), (0.03, 3.0)):
        pixels = poisson(1, SHAPE, dtype, mean)[0]
        pixels[5, 5:9] = np.iinfo(dtype).max
        for algorithm in packed:
            message = ImageMessage(
                7, next(ids), {"threshold_1": packed_image(pixels, algorithm)}, 1.0, 1.1, 0.1, "01HRC", {"a": 1}
            )
            for encode in (stream_v1.encode_image, stream_v2.encode_image):
                try:
                    parts = encode(message)
                except ValueError:
                    continue  # a packing that this stream has no name for
                found.append([bytes(part) for part in parts] if isinstance(parts, list) else [parts])
    return found


def mutate(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    # Half keep the length and hit packed pixels mostly, so that they get as far as the decoder.
    in_place = rng.random() < 0.5
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        kind = rng.choice((0, 1, 5)) if in_place else rng.randrange(7)
        at = rng.randrange(len(changed)) if changed else 0
        # Most of what decides lies at the start: heads, lengths, the first blocks.
        if changed and not in_place and rng.random() < 0.5:
            at = rng.randrange(min(len(changed), 200))
        if kind == 0 and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and changed:
            changed[at] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            changed[at:at] = rng.randbytes(rng.randrange(1, 64))
        elif kind == 5:
            changed[at : at + 4] = rng.choice(EXTREMES).to_bytes(4, rng.choice(("big", "little")))
        else:
            source = rng.randrange(len(changed) + 1)
            changed[at : at + 32] = changed[source : source + 32]
    return bytes(changed)


def mutated(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    if len(parts) > 1 and rng.random() < 0.1:
        kind = rng.randrange(3)
        if kind == 0:
            return [part for part in parts if rng.random() < 0.7] or parts[:1]
        if kind == 1:
            return rng.sample(parts, len(parts))
        return parts * 2
    at = 2 if len(parts) > 3 and rng.random() < 0.7 else rng.randrange(len(parts))
    return [mutate(rng, part) if n == at else part for n, part in enumerate(parts)]


def listings() -> dict[str, Listing]:
    """By type of pixel; each goes from frame to frame, as an analyser's does."""
    return {dtype: Listing(VALID, np.dtype(dtype)) for dtype in ("uint8", "uint16", "uint32")}


def check_listing(listing: Listing, image: ImageData, pixels: np.ndarray[Any, Any] | None) -> None:
    """What is listed is what was decoded, or as undecodable (``None``)."""
    try:
        listing.unpack(image)
    except UndecodableImage:
        assert pixels is None, "decoded, but not listed"
        return
    assert pixels is not None, "listed, but not decoded"
    assert np.array_equal(listing.pixels, pixels.reshape(SHAPE)), "listed with other pixels"
    counted = np.zeros(pixels.size, np.uint64)
    counted[listing.index] = listing.value
    counted[listing.blank] = np.iinfo(listing.dtype).max
    expected = np.where(VALID, pixels.reshape(SHAPE), 0).reshape(-1)
    assert np.array_equal(counted, expected), "another list than the pixels make"


def parsed(parts: list[bytes]) -> Message | InvalidMessage:
    try:
        return parse([memoryview(part) for part in parts])
    except InvalidMessage as error:
        return error


def judged(message: Message | InvalidMessage, series: Series, listings: dict[str, Listing]) -> str:
    if isinstance(message, InvalidMessage):
        assert message.reason in INVALID_REASONS
        return f"invalid {message.reason}"
    if not isinstance(message, ImageMessage):
        return type(message).__name__
    frame = make_frame(series, message, 0.0, None)
    if isinstance(frame.image, Defect):
        assert frame.image.reason in UNDECODABLE_REASONS
        return f"defect {frame.image.reason}"
    listing = listings[frame.image.dtype.name] if frame.image.shape == SHAPE else None
    try:
        check_size(frame.image)
        guarded = np.full(frame.image.decoded_bytes + 2 * GUARD, 0xA5, np.uint8)
        out = guarded[GUARD:-GUARD].view(frame.image.dtype.newbyteorder("="))
        try:
            decode(frame.image, out)
        finally:
            assert (guarded[:GUARD] == 0xA5).all(), "written before the buffer"
            assert (guarded[-GUARD:] == 0xA5).all(), "written after the buffer"
    except UndecodableImage as error:
        assert error.reason in UNDECODABLE_REASONS  # noqa: PT017
        if listing is not None:
            check_listing(listing, frame.image, None)
        return f"undecodable {error.reason}"
    if listing is not None:
        check_listing(listing, frame.image, out)
    return "decoded"


class Books:
    """One tracker and one account that every message goes into, as the front enters it; checked after each.

    ``judge`` says what becomes of an image that was accepted.
    """

    def __init__(self, judge: Callable[[ImageMessage], str]) -> None:
        self.account = Account()
        self._tracker = SeriesTracker(self.account)
        self._judge = judge
        self._now_s = 0.0
        self.accepted = self.closed = self._announced = self._missing = 0

    def enter(self, message: Message | InvalidMessage) -> None:
        # Now and then long enough for what waits to be given up, and for a series to be over.
        self._now_s += 40.0 if self.account.received % 101 == 100 else 0.01
        before = self._raised
        if isinstance(message, InvalidMessage):
            self.account.refuse_message(message.reason)
        else:
            try:
                self._take(self._tracker.handle(message, self._now_s))
            except InvalidMessage as error:
                message = error
                self.account.refuse_message(error.reason)
        # Each message has one fate: a reason, a decision, or to wait; a start, a configuration or an end has none.
        assert self._raised - before == isinstance(message, (InvalidMessage, ImageMessage)), message
        self.check()

    def finish(self) -> None:
        self._take(self._tracker.finish())
        self.check()
        assert self._tracker.pending == 0
        assert self.account.announced == self._announced

    @property
    def _raised(self) -> int:
        return sum(self.account.invalid.values()) + self.account.settled + self._tracker.pending

    def check(self) -> None:
        account, pending = self.account, self._tracker.pending
        assert account.received == account.settled + pending, account.identity()
        assert account.accepted == self.accepted + pending
        assert sum(account.missing.values()) == self._missing
        assert account.dropped.keys() == set(DROP_REASONS)
        assert account.invalid.keys() <= set(INVALID_REASONS)
        assert account.undecodable.keys() <= set(UNDECODABLE_REASONS)

    def _take(self, events: Iterator[Event]) -> None:
        for event in events:
            if isinstance(event, ImageAccepted):
                self.accepted += 1
                kind, _, reason = self._judge(event.image).partition(" ")
                if kind == "decoded":
                    self.account.processed["miss"] += 1
                else:
                    self.account.undecodable[reason] = self.account.undecodable.get(reason, 0) + 1
            elif isinstance(event, SeriesClosed):
                self.closed += 1
                missing = sum(event.missing.values())
                assert event.announced in (None, event.accepted + missing), event
                self._announced += event.announced or 0
                self._missing += missing


def status(name: str) -> int:
    """Bytes from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


def main(seed: int, count: int) -> None:
    rng = random.Random(seed)
    corpus = messages()
    # With a known shape only images of it get to the decoder; without, any that claims to be one.
    known = Series(1, 7, None, SeriesMetadata(shape=SHAPE))
    joined = Series(2, 7, None, SeriesMetadata(), joined=True)
    lists = listings()
    outcomes = Counter(judged(parsed(parts), known, lists) for parts in corpus)
    books = Books(lambda image: judged(image, known, lists))
    assert set(outcomes) == {"decoded", "StartMessage", "EndMessage"}, outcomes
    limit = status("VmSize") + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before, slowest = status("VmRSS"), 0.0
    outcomes.clear()
    for number in range(count):
        # Told before it is run: the last line names what crashed.
        state = rng.getrandbits(64)
        parts = mutated(random.Random(state), rng.choice(corpus))
        if number % 1000 == 0:
            print(f"# {number} {state}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        message = parsed(parts)
        outcomes[judged(message, joined if rng.random() < 0.2 else known, lists)] += 1
        slowest = max(slowest, time.perf_counter() - began)
        books.enter(message)
    books.finish()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    report = {
        "mutations": count,
        "outcomes": dict(outcomes.most_common()),
        "growth_bytes": status("VmRSS") - before,
        "peak_growth_bytes": peak - before,
        "slowest_s": round(slowest, 4),
        "accepted": books.accepted,
        "series_closed": books.closed,
        "dropped": books.account.dropped,
        "invalid": sum(books.account.invalid.values()),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
