"""The process that draws: reads requests from its stdin, writes pictures to its stdout, ends when stdin is closed.

It is started by ``process.Pictures``.
"""

import contextlib
import gc
import os
import select
import signal
import threading
from types import FrameType
from typing import NoReturn

from analyzer.pictures.requests import ANSWER, FAILED, HEADER, NOTHING, PICTURE, READY, drawn, unpacked

_MOST_SAID = 500
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_NICER = 5
"""Judging goes first where cores are short."""


def main() -> None:
    """Answer until nobody asks any more."""
    # Ctrl-C and a service's stop are for the analysis to hear, whose last pictures are still to be drawn.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, _end)
    threading.Thread(target=_watch, args=(threading.get_ident(),), daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(_NICER)
    # What a library prints is no answer.
    answers = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    _load()
    _answer(answers, READY)
    while True:
        (length,) = HEADER.unpack(_read(HEADER.size))
        request = unpacked(_read(length), _read_into)
        try:
            picture = drawn(request)
        except Exception as error:
            _answer(answers, FAILED, f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MOST_SAID].encode())
        else:
            _answer(answers, NOTHING) if picture is None else _answer(answers, PICTURE, picture)
        del request
        # A figure is a large cycle: it would lie there until the collector's next long round.
        gc.collect()


def _load() -> None:
    """What every picture needs, out of the collector's rounds."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401

    gc.collect()
    gc.freeze()


def _watch(main_thread: int) -> None:
    """End at once when who asks is gone, also in the middle of a picture."""
    gone = select.poll()
    gone.register(_STDIN, 0)  # a hang-up is always told
    gone.poll()
    signal.pthread_kill(main_thread, signal.SIGHUP)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise SystemExit(0)


def _read(length: int) -> bytes:
    data = bytearray(length)
    _read_into(memoryview(data))
    return bytes(data)


def _read_into(place: memoryview) -> None:
    while place:
        if not (count := os.readv(_STDIN, [place])):
            raise SystemExit(0)
        place = place[count:]


def _answer(answers: int, kind: bytes, body: bytes = b"") -> None:
    rest = memoryview(ANSWER.pack(kind, len(body)) + body)
    while rest:
        try:
            rest = rest[os.write(answers, rest) :]
        except BrokenPipeError:
            raise SystemExit(0) from None


if __name__ == "__main__":
    main()
