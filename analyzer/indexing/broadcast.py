"""Every record to whoever listens: a PUB socket, MessagePack, a versioned schema (docs/broadcast.md).

A message is two parts: the topic ``cxls/1/DECISION`` and a map. Sending never waits. A subscriber that is further
behind than its queue loses messages until it reads again. libzmq tells us when that begins, which is counted; how many
it lost, each subscriber sees from the sequence numbers.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import zmq
from prometheus_client.core import CounterMetricFamily, Metric

from analyzer.door import Door, Limits
from analyzer.indexing.sockets import bind
from analyzer.logs import Repeats
from analyzer.results import FrameResult, Status, record
from streamer.connections import keep_no_buffers
from streamer.messages import SeriesMetadata

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
TOPICS = ("hit", "miss", "no_beam", *(str(status) for status in Status if status != Status.OK))
MESSAGES_HELD = 2000
"""For each subscriber: two seconds at a kilohertz."""

LIMITS = Limits(connections=256, unread_bytes=1 << 20, all_unread_bytes=16 << 20, refill_bytes_s=64.0)
"""A subscriber says which topics it wants, and later no more than signs of life, of nine bytes each. A topic takes
some 60 times its bytes: all that subscribers may say is a gigabyte."""

_LINGER_MS = 1000
_MM_PER_M = 1000.0

Header = Callable[[FrameResult], SeriesMetadata | None]
"""The header of a result's series, ``None`` once it is not known any more."""


class Broadcast:
    """A sink that publishes. Bound when constructed (raises ``CannotBind``); used by one thread after that.

    ``overruns`` counts how often a subscriber's queue was found full, ``failed`` the records that could not be packed.
    Nothing is kept for anybody, so no record of a run is ever ``lost`` by it.
    """

    name = "broadcast"
    lost = 0

    def __init__(self, address: str, header: Header = lambda result: None, messages_held: int = MESSAGES_HELD) -> None:
        self._header = header
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        keep_no_buffers(self._context)
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, messages_held)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        # A full queue of one subscriber is then told to us, before anything is sent to any.
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._door = Door(self._socket, LIMITS)
        self._repeats = Repeats(log)
        try:
            self.address = bind(self._socket, address)
        except BaseException:
            self._door.close()
            raise
        self._run_name = secrets.token_hex(4)
        self._sequence = 0
        self._of_topic = dict.fromkeys(TOPICS, 0)
        self.overruns = 0
        self.failed = 0

    @property
    def sent(self) -> int:
        """Messages published, subscribers or not."""
        return self._sequence

    def write(self, results: Sequence[FrameResult]) -> None:
        for result in results:
            try:
                self._publish(result)
            except Exception as error:
                if not self.failed:
                    log.error(
                        "series %d image %d cannot be broadcast: %s; such are counted",
                        result.series_id,
                        result.image_id,
                        error,
                    )
                self.failed += 1
        self.tick()

    def _publish(self, result: FrameResult) -> None:
        topic = str(result.decision) if result.status == Status.OK and result.decision else str(result.status)
        message = {
            "schema": "cxls.record",
            "version": SCHEMA_VERSION,
            "run": self._run_name,
            "sequence": self._sequence,
            "topic_sequence": self._of_topic[topic],
            "sent_at": time.time(),
            "record": record(result),
            "streamvis": streamvis_metadata(result, self._header(result)),
        }
        parts = [f"cxls/{SCHEMA_VERSION}/{topic}".encode(), msgspec.msgpack.encode(message)]
        self._sequence += 1
        self._of_topic[topic] += 1
        if self._to_all(parts):
            return
        # libzmq may not have looked for what subscribers have taken meanwhile; asked for its state, it does.
        self._socket.getsockopt(zmq.EVENTS)
        if not self._to_all(parts):
            self.overruns += 1
            self._socket.setsockopt(zmq.XPUB_NODROP, 0)
            self._to_all(parts)  # but those that are behind
            self._socket.setsockopt(zmq.XPUB_NODROP, 1)

    def _to_all(self, parts: list[bytes]) -> bool:
        """Send to every subscriber, or to none when one's queue is full."""
        try:
            self._socket.send_multipart(parts, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def tick(self) -> None:
        """Nothing is held back; who is connected is looked at."""
        for reason in self._door.look():
            text = f"a connection to {self.address} was refused: {reason.replace('_', ' ')}"
            self._repeats.warning(f"connection {reason}", text, "subscriber_refused", reason=reason)

    def facts(self) -> dict[str, Any]:
        return {"address": self.address, "sent": self.sent, "lost": self.failed, "overruns": self.overruns}

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("cxls_broadcast_messages", "Records published", value=self.sent)
        yield CounterMetricFamily("cxls_broadcast_lost", "Records that could not be packed", value=self.failed)
        yield CounterMetricFamily(
            "cxls_broadcast_overruns",
            "Times a subscriber's queue was found full; it loses records until it reads again",
            value=self.overruns,
        )
        yield self._door.collect("cxls_broadcast_connections_refused")

    def close(self) -> None:
        """Give the last messages a second to go out."""
        self._door.close()
        self._socket.close()
        self._context.term()


def streamvis_metadata(result: FrameResult, header: SeriesMetadata | None) -> dict[str, Any]:
    """A record under the names that streamvis' viewer knows; what is not known is left out.

    spot_x and spot_y are pixel indices (fs, ss); beam_center_x and _y edge-based pixels, beam_energy eV,
    detector_distance mm. pulse_id is the tag of this name where frames have it, else the image's id.
    """
    tags = result.tags or {}
    pulse_id = tags.get("pulse_id")
    metadata: dict[str, Any] = {
        "pulse_id": pulse_id if isinstance(pulse_id, int) else result.image_id,
        "is_good_frame": result.status == Status.OK,
    }
    if result.status == Status.OK:
        peaks = result.peaks or []
        metadata |= {
            "is_hit_frame": bool(result.hit),
            "number_of_spots": len(peaks),
            "spot_x": [float(peak.fs) for peak in peaks],
            "spot_y": [float(peak.ss) for peak in peaks],
            "saturated_pixels": result.saturated_pixels,
        }
    if isinstance(tags.get("laser_on"), bool):
        metadata["laser_on"] = tags["laser_on"]
    if header is not None:
        distance_m = header.camera_length_m
        known = {
            "type": None if header.dtype is None else header.dtype.name,
            "shape": None if header.shape is None else list(header.shape),
            "beam_energy": header.photon_energy_eV,
            "detector_distance": None if distance_m is None else round(_MM_PER_M * distance_m, 9),
            "beam_center_x": header.beam_center_x_px,
            "beam_center_y": header.beam_center_y_px,
        }
        metadata |= {key: value for key, value in known.items() if value is not None}
    return metadata
