"""Hits on request: what ``indexamajig --zmq-input=ADDRESS --zmq-request=next --data-format=msgpack`` asks for.

A thread of its own hands the oldest hit to the oldest request. A worker that is gone when its turn comes costs
nothing: the hit goes to the next. One that dies with a hit in hand takes it along, as a frame that kills an indexer
would kill the next one too.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import zmq
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from analyzer.door import LOOK_S
from analyzer.indexing.follower import StreamFollower
from analyzer.indexing.hits import HitQueue, WaitingHit, event_id
from analyzer.indexing.live_geometry import LiveGeometryFile
from analyzer.indexing.outcomes import Outcome, Outcomes
from analyzer.indexing.packing import FrameDecoder, pack_hit
from analyzer.indexing.router import Router
from analyzer.logs import Repeats
from analyzer.panels import GivenGeometry
from analyzer.results import FrameResult
from streamer.frames import Frame
from streamer.messages import UndecodableImage
from streamer.validity import Validity

log = logging.getLogger(__name__)

QUEUE_BYTES = 512 << 20
"""Packed images of a 4M detector are a few megabytes: some hundred hits."""

TURN_S = 0.2
"""How long hits are packed before keep-alives have their turn."""

CLOSE_S = 30.0
"""How long the end of a run goes on handing out what waits, to workers that still ask."""

HURRY_S = 3.0
"""The same for a run that is to stop: a packed hit or two for each of many workers, not the backlog."""

STREAM_S = 2.0
"""How long what stands in the indexer's stream is read on at the end."""

QUIET_S = 4.0
"""A worker without work asks every second: none for so long, and none will take more."""


class Fate(StrEnum):
    """What became of a hit."""

    SENT = "sent"
    DROPPED = "dropped"
    """given up for newer ones, the queue being full"""
    FILTERED = "filtered"
    """too few peaks to index"""
    UNDECODABLE = "undecodable"
    """its image could not be unpacked again, or its message not be packed"""
    UNSERVED = "unserved"
    """still waiting when the run ended"""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexingSettings:
    """``images``: with the image, not the peaks alone. ``queue``: hits that may wait. ``indexable_only``: only those
    with enough peaks. ``stream``: file that the indexer writes. ``geometry``: file to write for the indexer."""

    address: str
    images: bool = False
    queue: int = 1000
    indexable_only: bool = False
    stream: Path | None = None
    geometry: Path | None = None


class IndexServer:
    """A hit output that indexers ask. Bound when constructed (raises ``CannotBind``), serves after ``start``.

    ``mask`` gives the user's mask of the moment and ``geometry`` is the user's geometry file, for images and for the
    indexer's. ``hurry`` says whether somebody waits for the end: ``close`` then hands out for ``HURRY_S`` seconds at
    most, and what is left is counted.
    """

    name = "indexing"

    def __init__(
        self,
        settings: IndexingSettings,
        mask: Callable[[], Validity | None] = lambda: None,
        geometry: GivenGeometry | None = None,
        hurry: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._mask = mask
        self._hurry = hurry
        self._run_name = secrets.token_hex(4)
        self.router = Router(settings.address)
        self.queue = HitQueue(settings.queue, QUEUE_BYTES)
        self.outcomes = Outcomes()
        self.follower = StreamFollower(settings.stream, self.outcomes.add) if settings.stream else None
        self._geometry = LiveGeometryFile(settings.geometry, geometry) if settings.geometry else None
        self._decoder = FrameDecoder(geometry)
        self._fates: dict[str, int] = dict.fromkeys(Fate, 0)
        self._filtering = threading.Lock()
        self._to_describe: Frame | None = None
        self._repeats = Repeats(log)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed_at: float | None = None
        self._thread = threading.Thread(target=self._serve, name="indexing", daemon=True)

    def start(self) -> None:
        """Begin to serve, and to follow the stream."""
        self._thread.start()
        if self.follower is not None:
            self.follower.start()

    def offer(self, frame: Frame, result: FrameResult) -> None:
        if self._geometry is not None and self._geometry.lacks(frame):
            self._to_describe = frame
        if self._too_few(result):
            with self._filtering:
                self._fates[Fate.FILTERED] += 1
        else:
            image = frame if self._settings.images else None
            self.queue.put(WaitingHit(event_id(self._run_name, result), frame.series, result, image))
        os.eventfd_write(self._wake, 1)

    def _too_few(self, result: FrameResult) -> bool:
        if self._settings.indexable_only:
            return not result.indexable
        # In an image an indexer may find peaks of its own; of no peaks alone it can make nothing.
        return not result.peaks and not self._settings.images

    @property
    def indexed(self) -> int | None:
        """Hits of this run that the indexer has indexed, ``None`` where its stream is not followed."""
        return None if self.follower is None else self.outcomes.counts[Outcome.INDEXED]

    @property
    def fates(self) -> dict[str, int]:
        """Hits by what became of them; the others are in the queue, or being handed out."""
        return {**self._fates, Fate.DROPPED: self.queue.dropped}

    @property
    def awaited(self) -> int:
        """Hits that were handed out and are not in the indexer's stream; 0 where that is not followed."""
        if self.follower is None:
            return 0
        counts = self.outcomes.counts
        return max(0, self._fates[Fate.SENT] - counts[Outcome.INDEXED] - counts[Outcome.NOT_INDEXED])

    @property
    def summary(self) -> str:
        """What became of all hits, in one line; complete after ``close``."""
        text = f"hits for indexing: {', '.join(f'{fate} {count}' for fate, count in self.fates.items())}"
        if self.awaited:
            text += f"; {self.awaited} of those sent without a result when the run ended"
        if self.follower is not None and self.follower.unread_bytes:
            text += f"; {self.follower.unread_bytes} bytes of {self.follower.path} not read"
        return text

    def facts(self) -> dict[str, Any]:
        router, asked = self.router, self.router.last_request
        facts: dict[str, Any] = {
            "address": router.address,
            "run": self._run_name,
            "images": self._settings.images,
            "geometry": str(self._settings.geometry) if self._settings.geometry else None,
            "geometry_differs": None if self._geometry is None else self._geometry.differs,
            "waiting_workers": router.waiting,
            "seconds_since_request": None if asked is None else round(time.monotonic() - asked, 3),
            "queue_hits": len(self.queue),
            "hits": self.fates,
            "awaited": None if self.follower is None else self.awaited,
            "requests": dict(router.requests),
            "keep_alives": router.keep_alives,
            "replies_lost": router.replies_lost,
            "stream": None if self.follower is None else self.follower.facts(),
        }
        return facts if self.follower is None else facts | self.outcomes.facts()

    def collect(self) -> Iterator[Metric]:
        router = self.router
        requests = CounterMetricFamily("cxls_index_requests", "Requests of indexers", labels=["request"])
        for request, count in router.requests.items():
            requests.add_metric([request], count)
        yield requests
        hits = CounterMetricFamily("cxls_index_hits", "Hits for indexing, by what became of them", labels=["fate"])
        for fate, count in self.fates.items():
            hits.add_metric([fate], count)
        yield hits
        yield CounterMetricFamily(
            "cxls_index_keep_alives", "Replies without a hit, so that the worker asks again", value=router.keep_alives
        )
        yield CounterMetricFamily(
            "cxls_index_replies_lost", "Replies whose worker was gone; a hit went to another", value=router.replies_lost
        )
        yield router.door.collect("cxls_index_connections_refused")
        yield GaugeMetricFamily("cxls_index_waiting_workers", "Workers that wait for a hit", value=router.waiting)
        yield GaugeMetricFamily("cxls_index_queue_hits", "Hits that wait for a worker", value=len(self.queue))
        if self.follower is not None:
            yield from self.follower.collect()
            yield from self.outcomes.collect()

    def close(self) -> None:
        """Hand out what waits while workers ask, for ``CLOSE_S`` seconds at most; count and report the rest."""
        self._closed_at = time.monotonic()
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join()
        self.router.close()
        os.close(self._wake)
        while self.queue.take() is not None:
            self._fates[Fate.UNSERVED] += 1
        if self.follower is not None:
            self.follower.close(STREAM_S)
            counts = ", ".join(f"{outcome} {count}" for outcome, count in self.outcomes.counts.items())
            log.info("%s: %s", self.follower.path, counts)
        log.info("%s", self.summary)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self.router.socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        poller.register(self.router.door.socket, zmq.POLLIN)
        while not self._finished():
            try:
                self._turn(poller)
            except Exception:
                # Whatever one request or hit does, the next ones are served.
                log.exception("serving hits to indexers failed; going on")
                time.sleep(0.1)
        self._describe()

    def _finished(self) -> bool:
        if self._closed_at is None:
            return False
        now, asked = time.monotonic(), self.router.last_request
        quiet = asked is None or now > max(asked, self._closed_at) + QUIET_S
        patience_s = HURRY_S if self._hurry() else CLOSE_S
        return not len(self.queue) or quiet or now > self._closed_at + patience_s

    def _turn(self, poller: zmq.Poller) -> None:
        more = self.router.waiting and len(self.queue)
        patience_s = min(self.router.patience_s, LOOK_S) if len(self.router.door) else self.router.patience_s
        ready = dict(poller.poll(0 if more else int(patience_s * 1000) + 1))
        for reason in self.router.door.look():
            text = f"a connection to {self.router.address} was refused: {reason.replace('_', ' ')}"
            self._repeats.warning(f"connection {reason}", text, "indexer_refused", reason=reason)
        if self._wake in ready:
            os.eventfd_read(self._wake)
        self._describe()
        if self.router.socket in ready:
            self.router.receive()
        self._hand_out()
        self.router.keep_alive()

    def _describe(self) -> None:
        frame, self._to_describe = self._to_describe, None
        if frame is not None and self._geometry is not None:
            self._geometry.describe(frame)

    def _hand_out(self) -> None:
        began = time.monotonic()
        while self.router.waiting and (hit := self.queue.take()) is not None:
            payload = self._packed(hit)
            if payload is None:
                self._fates[Fate.UNDECODABLE] += 1
            else:
                self._hand_to_oldest(hit, payload)
            if time.monotonic() > began + TURN_S:
                return

    def _hand_to_oldest(self, hit: WaitingHit, payload: bytes) -> None:
        # Before it is sent: its result could be in the stream before we are back.
        self.outcomes.handed_out(hit.event_id)
        if self.router.hand_out(payload):
            self._fates[Fate.SENT] += 1
        else:
            self.queue.put_back(hit)

    def _packed(self, hit: WaitingHit) -> bytes | None:
        try:
            pixels = self._decoder.pixels(hit.frame, self._mask()) if hit.frame else None
            return pack_hit(hit, pixels)
        except UndecodableImage as error:
            self._say_once(hit, error)
        except Exception as error:
            # A fault of ours in one hit must not keep the others from being served.
            self._say_once(hit, error, of_ours=True)
        return None

    def _say_once(self, hit: WaitingHit, error: Exception, of_ours: bool = False) -> None:
        if not self._fates[Fate.UNDECODABLE]:
            log.error("%s is not handed out: %s; such hits are counted", hit.event_id, error, exc_info=of_ours)
