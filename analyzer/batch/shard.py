"""The work of one shard: its chunks one after the other, on several analysers, each finished chunk a part."""

import contextlib
import fcntl
import itertools
import logging
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from analyzer.batch.manifest import Manifest
from analyzer.batch.parts import Parts
from analyzer.batch.reading import SeriesReader
from analyzer.batch.shares import Chunk, shares
from analyzer.cascade import Analyser, BatchOutcome, undecodable
from analyzer.logs import Repeats
from analyzer.results import FrameResult, Status
from analyzer.unfit import tell_unfit
from streamer.files import BadInput
from streamer.frames import Frame

log = logging.getLogger(__name__)

LOCKS = "locks"
_AHEAD = 2
"""Batches of frames in memory for each analyser: one that it judges, one that waits."""


@dataclass(slots=True)
class Done:
    """What a shard has come to: frames ``before`` this run and in it. ``failed``: why series could not be read on.

    ``unfit``: frames that the ``mask`` or the ``geometry`` file given is not for, analysed without it.
    """

    frames: int = 0
    hits: int = 0
    undecodable: int = 0
    before: int = 0
    failed: list[str] = field(default_factory=list)
    unfit: Counter[str] = field(default_factory=Counter)
    stopped: bool = False


@dataclass(slots=True)
class _Waiting:
    """A chunk that is read, or is being read, and not yet judged."""

    chunk: Chunk
    results: list[FrameResult] = field(default_factory=list)
    batches: int = 0
    read: bool = False


@contextmanager
def held(folder: Path, shard: int, shards: int) -> Iterator[bool]:
    """Hold a shard while it is worked on; however its process ends, it is free again.

    Yields whether nobody else can be at work on it, False where the file system has no locks. Raises ``BadInput`` when
    it is held.
    """
    path = folder / LOCKS / f"shard-{shard}-of-{shards}"
    path.parent.mkdir(exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    alone = True
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"{folder}: another process is at work on shard {shard}/{shards}; wait for it, or give another --shard"
            ) from None
        except OSError as error:
            # Parts are put in place whole and are equal whoever makes them: a second process only wastes its time.
            log.warning("%s: the file system has no locks (%s); see that nobody else works on this shard", path, error)
            alone = False
        yield alone
    finally:
        os.close(fd)


def analyse_shard(
    folder: Path,
    manifest: Manifest,
    shard: int,
    analysers: Sequence[Analyser],
    *,
    alone: bool,
    channel: str | None,
    batch_frames: int,
    stop: threading.Event,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Done:
    """Analyse what is not done yet of a shard, which the caller holds, ``alone`` or not.

    A series that cannot be read any more costs itself, in ``failed``. ``on_progress`` is called with frames done and
    frames in all. When ``stop`` is set the chunks in hand are left. Raises ``OSError`` where a part cannot be written.
    """
    chunks = shares(manifest.images, manifest.by, manifest.shards, manifest.chunk_frames)[shard]
    parts = Parts(folder, manifest.identity)
    parts.prepare()
    if alone:
        parts.clean(chunks)
    total = sum(map(len, chunks))
    missing = [chunk for chunk in chunks if not parts.done(chunk)]
    done = Done(before=total - sum(map(len, missing)))
    on_progress(done.before, total)
    work = _Work(parts, analysers, done, lambda: on_progress(done.before + done.frames, total))
    with contextlib.closing(work):
        for series, group in itertools.groupby(missing, key=lambda chunk: chunk.series):
            try:
                reader = SeriesReader(series, manifest.members(series), manifest.series[series - 1].images, channel)
            except BadInput as error:
                done.failed.append(str(error))
                continue
            with contextlib.closing(reader):
                _read(reader, list(group), batch_frames, work, stop)
            if stop.is_set():
                done.stopped = True
                return done
        work.finish()
    return done


def _read(
    reader: SeriesReader, chunks: Sequence[Chunk], batch_frames: int, work: "_Work", stop: threading.Event
) -> None:
    for chunk in chunks:
        waiting = _Waiting(chunk)
        try:
            for frames in reader.batches(chunk, batch_frames):
                work.judge(waiting, frames)
                if stop.is_set():
                    return
        except BadInput as error:
            work.done.failed.append(str(error))
            return
        work.was_read(waiting)


class _Work:
    """Analysers at work in threads; chunks are finished in the thread that reads."""

    def __init__(self, parts: Parts, analysers: Sequence[Analyser], done: Done, on_part: Callable[[], None]) -> None:
        self.done = done
        self._parts, self._on_part = parts, on_part
        self._idle: queue.SimpleQueue[Analyser] = queue.SimpleQueue()
        for analyser in analysers:
            self._idle.put(analyser)
        self._pool = ThreadPoolExecutor(len(analysers), "worker")
        self._most = _AHEAD * len(analysers)
        self._under_way: deque[tuple[_Waiting, Future[BatchOutcome]]] = deque()
        self._repeats = Repeats(log)

    def judge(self, waiting: _Waiting, frames: list[Frame]) -> None:
        """Have frames judged, first waiting for a place among those under way."""
        while len(self._under_way) >= self._most:
            self._take()
        waiting.batches += 1
        self._under_way.append((waiting, self._pool.submit(self._judge, frames)))

    def was_read(self, waiting: _Waiting) -> None:
        """All frames of a chunk have been handed over."""
        waiting.read = True
        self._settle(waiting)

    def finish(self) -> None:
        while self._under_way:
            self._take()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._repeats.close()

    def _judge(self, frames: list[Frame]) -> BatchOutcome:
        analyser = self._idle.get()
        try:
            return analyser.process(frames)
        except Exception:
            # As in a live analysis, a fault of ours costs these frames and not the rest.
            log.exception("analysis of %d frames failed", len(frames))
            return BatchOutcome([undecodable(frame, "failed", "internal error, see the log") for frame in frames])
        finally:
            self._idle.put(analyser)

    def _take(self) -> None:
        waiting, future = self._under_way.popleft()
        outcome = future.result()
        for seen in outcome.peaks:
            self.done.unfit.update(tell_unfit(seen.plan, self._repeats))
        waiting.results += outcome.results
        waiting.batches -= 1
        self._settle(waiting)

    def _settle(self, waiting: _Waiting) -> None:
        if waiting.batches or not waiting.read:
            return
        self._parts.write(waiting.chunk, waiting.results)
        self.done.frames += len(waiting.chunk)
        self.done.hits += sum(bool(result.hit) for result in waiting.results)
        self.done.undecodable += sum(result.status == Status.UNDECODABLE for result in waiting.results)
        self._on_part()
