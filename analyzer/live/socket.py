"""``/live``: the live page's websocket. Messages are in docs/live-page.md.

A browser is sent the newest of everything when it is ready for it, never a backlog: what it did not take in time was
replaced. Pictures come at most ten times a second, and in no second are more than ``BYTES_PER_S`` bytes sent to a
browser, so that an ssh tunnel carries them; making them takes a share of one core at most, however many look.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from analyzer.live.budget import Budget
from analyzer.live.frames import LatestFrames, Look
from analyzer.live.preview import Region, Renderer, encode
from analyzer.live.status import StatusReport
from analyzer.logs import Repeats
from streamer.messages import UndecodableImage

log = logging.getLogger(__name__)

TICK_S = 0.1
STATE_S, HITS_S, CURVES_S = 0.5, 1.0, 2.0
BYTES_PER_S = 2e6
MOST_PICTURE_BYTES = 1_000_000
"""A picture that packs to more is made again with fewer pixels."""

_COARSER = 0.7
_LEAST_PX = 100
MOST_CLIENTS = 32
MOST_MESSAGE_BYTES = 4096
MOST_MESSAGES_PER_S = 20
SEND_TIMEOUT_S = 20.0
"""A browser that takes nothing for so long is hung up on; until then it costs one message."""

PICTURE_COST, MOVED_COST = 10.0, 3.0
"""Between two pictures pass so many times as long as the last took; fewer where one was asked for."""

_PICTURES_KEPT = 8
_POLICY, _TOO_BIG, _TRY_LATER = 1008, 1009, 1013
_LARGEST = 1 << 20


class Refused(StrEnum):
    """Why a browser was turned away or hung up on."""

    ORIGIN = "origin"
    """a page of another site asked"""
    MALFORMED = "malformed"
    """not the JSON that is wanted"""
    TOO_LARGE = "too_large"
    """a message of more than 4 KiB"""
    TOO_FAST = "too_fast"
    """more than 20 messages in a second"""
    TOO_MANY = "too_many"
    """more browsers than are served at once"""
    TOO_SLOW = "too_slow"
    """took nothing for 20 s"""


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a browser wants to see: which frame, which part of it, in how many pixels a side."""

    show: Literal["latest", "hit", "held", "none"] = "latest"
    key: str = ""
    region: tuple[int, int, int, int] | None = None
    most_px: int = 640

    def __post_init__(self) -> None:
        if not _LEAST_PX <= self.most_px <= 1200:
            raise ValueError(f"most_px is from {_LEAST_PX} to 1200")
        if len(self.key) > 64:
            raise ValueError("key is too long")
        if self.region is not None and (
            max(map(abs, self.region)) > _LARGEST or self.region[2] < 1 or self.region[3] < 1
        ):
            raise ValueError("region is [fs, ss, width, height], in pixels")

    @property
    def part(self) -> Region | None:
        return None if self.region is None else Region(*self.region)


@dataclass(slots=True, eq=False)
class _Client:
    """One browser: its wish, what it was sent last, how many bytes it may be sent."""

    socket: WebSocket
    wish: Wish = field(default_factory=Wish)
    moved: bool = True
    shown: Look | None = None
    sent: dict[str, bytes | None] = field(default_factory=dict)
    budget: Budget = field(default_factory=lambda: Budget(BYTES_PER_S))


class _Topic:
    """A message that all browsers are sent, made anew at most every ``every_s`` seconds, and only if one asks."""

    def __init__(self, kind: str, make: Callable[[], bytes], every_s: float) -> None:
        self.kind = kind
        self._make, self._every_s = make, every_s
        self._message: bytes | None = None
        self._due = 0.0
        self._making: asyncio.Task[None] | None = None

    async def message(self) -> bytes | None:
        """The latest. Raises what making it raises."""
        if self._making is None and time.monotonic() >= self._due:
            self._making = asyncio.create_task(self._renew())
        if self._making is not None:
            # Whoever goes meanwhile leaves it to the others.
            await asyncio.shield(self._making)
        return self._message

    async def _renew(self) -> None:
        try:
            self._message = await run_in_threadpool(self._make)
        finally:
            self._due = time.monotonic() + self._every_s
            self._making = None


class _Studio:
    """Makes pictures one at a time, at a bounded cost, and gives the same to all who want it."""

    def __init__(self) -> None:
        self._renderer = Renderer()
        self._making: asyncio.Task[None] | None = None
        self._made: dict[tuple[str, Region | None, int], tuple[Look, bytes]] = {}
        self._made_s, self._cost_s = 0.0, 0.0

    async def picture(self, look: Look, client: _Client) -> tuple[Look, bytes] | None:
        """A picture of ``look``, or of one that was made for another browser since this one's last; ``None`` when it is
        too early for a new one. Raises ``UndecodableImage``."""
        wish = client.wish
        key = (wish.show, wish.part, wish.most_px)
        made = self._made.get(key)
        if made is not None and made[0] is look:
            return made
        wait = max(TICK_S, self._cost_s * (MOVED_COST if client.moved else PICTURE_COST))
        if self._making is None and time.monotonic() >= self._made_s + wait:
            self._making = asyncio.create_task(self._work(look, wish))
            # The work goes on when the browser that asked for it goes.
            await asyncio.shield(self._making)
            return self._made.get(key)
        follows = wish.show in ("latest", "hit")
        return made if made is not None and follows and (client.moved or made[0] is not client.shown) else None

    async def _work(self, look: Look, wish: Wish) -> None:
        try:
            message = await run_in_threadpool(self._make, look, wish)
            self._made[wish.show, wish.part, wish.most_px] = (look, message)
            while len(self._made) > _PICTURES_KEPT:
                del self._made[next(iter(self._made))]
        finally:
            self._made_s = time.monotonic()
            self._making = None

    def _make(self, look: Look, wish: Wish) -> bytes:
        # CPU, not time: on a busy machine a picture takes long and costs no more.
        began, most_px = time.thread_time(), wish.most_px
        message = encode(look, self._renderer.render(look, wish.part, most_px), wish.show)
        while len(message) > MOST_PICTURE_BYTES and most_px > _LEAST_PX:
            most_px = max(_LEAST_PX, int(_COARSER * most_px))
            message = encode(look, self._renderer.render(look, wish.part, most_px), wish.show)
        self._cost_s = time.thread_time() - began
        return message


class LiveSocket(Collector):
    """Serves ``/live`` from one run's status and frames, and counts what it serves and refuses."""

    def __init__(self, report: StatusReport, frames: LatestFrames) -> None:
        self._frames = frames
        self._clients: set[_Client] = set()
        self._studio = _Studio()
        self._repeats = Repeats(log)
        self._topics = (
            _Topic("state", report.state, STATE_S),
            _Topic("curves", report.curves, CURVES_S),
            _Topic("hits", report.hits, HITS_S),
        )
        self._refused = dict.fromkeys(Refused, 0)
        self._messages = dict.fromkeys((*(topic.kind for topic in self._topics), "image"), 0)
        self._bytes = 0

    @property
    def route(self) -> WebSocketRoute:
        return WebSocketRoute("/live", self._serve)

    def collect(self) -> Iterator[Metric]:
        """``cxls_web_…``, every child from the start."""
        yield GaugeMetricFamily("cxls_web_clients", "Browsers on the live page", value=len(self._clients))
        messages = CounterMetricFamily("cxls_web_messages", "Messages sent to browsers, by kind", labels=["kind"])
        for kind, count in self._messages.items():
            messages.add_metric([kind], count)
        yield messages
        yield CounterMetricFamily("cxls_web_bytes", "Bytes sent to browsers on the live page", value=self._bytes)
        refused = CounterMetricFamily(
            "cxls_web_refused", "Browsers turned away or hung up on, by reason", labels=["reason"]
        )
        for reason, count in self._refused.items():
            refused.add_metric([reason], count)
        yield refused

    async def _serve(self, socket: WebSocket) -> None:
        if not same_origin(socket.headers.get("origin"), socket.headers.get("host")):
            self._refused[Refused.ORIGIN] += 1
            await socket.close(_POLICY)
            return
        if len(self._clients) >= MOST_CLIENTS:
            self._refused[Refused.TOO_MANY] += 1
            await socket.close(_TRY_LATER)
            return
        client = _Client(socket)
        self._clients.add(client)
        try:
            await socket.accept()
        except BaseException:
            self._clients.discard(client)
            raise
        listening, talking = (asyncio.create_task(part(client)) for part in (self._listen, self._talk))
        try:
            await asyncio.wait((listening, talking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._clients.discard(client)
            for task in (listening, talking):
                task.cancel()
            await asyncio.gather(listening, talking, return_exceptions=True)

    async def _listen(self, client: _Client) -> None:
        """Take wishes until the browser goes or misbehaves."""
        second, count = 0, 0
        while True:
            message = await client.socket.receive()
            if message["type"] == "websocket.disconnect":
                if message.get("code") == _TOO_BIG:
                    self._refused[Refused.TOO_LARGE] += 1
                return
            now = int(time.monotonic())
            second, count = (now, 1) if now != second else (second, count + 1)
            text = message.get("text")
            if count > MOST_MESSAGES_PER_S:
                return await self._hang_up(client, Refused.TOO_FAST, "more than 20 messages in a second")
            if text is None or len(text) > MOST_MESSAGE_BYTES:
                return await self._hang_up(client, Refused.TOO_LARGE if text else Refused.MALFORMED, "not a wish")
            try:
                wish = msgspec.json.decode(text, type=Wish)
            except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
                return await self._hang_up(client, Refused.MALFORMED, str(error))
            client.moved = client.moved or wish != client.wish
            client.wish = wish

    async def _hang_up(self, client: _Client, reason: Refused, text: str) -> None:
        self._refused[reason] += 1
        message = msgspec.json.encode({"kind": "refused", "text": text[:200]})
        try:
            async with asyncio.timeout(1.0):
                await client.socket.send_text(message.decode())
                await client.socket.close(_POLICY)
        except (TimeoutError, RuntimeError, WebSocketDisconnect):
            return

    async def _talk(self, client: _Client) -> None:
        """Send what is new, at the pace the browser takes it."""
        try:
            while True:
                for topic in self._topics:
                    message = await topic.message()
                    if message is not None and message is not client.sent.get(topic.kind):
                        client.sent[topic.kind] = message
                        await self._send(client, topic.kind, message)
                await self._send_picture(client)
                await asyncio.sleep(TICK_S)
        except TimeoutError:
            self._refused[Refused.TOO_SLOW] += 1
        except (WebSocketDisconnect, RuntimeError):
            # The browser went while it was written to.
            return
        except Exception:
            self._repeats.exception("live page: a browser is no longer served", "page_failed")

    async def _send_picture(self, client: _Client) -> None:
        wish, moved = client.wish, client.moved
        look = self._wanted(wish)
        early = client.budget.even_in_s(time.monotonic()) > 0
        if look is None or early or (look is client.shown and not moved):
            return
        try:
            made = await self._studio.picture(look, client)
        except UndecodableImage:
            self._repeats.exception("live page: a frame that was analysed cannot be unpacked again", "page_failed")
            client.shown, client.moved = look, False
            return
        if made is None:
            return
        client.shown, message = made
        # Another wish may have come meanwhile, which this picture does not answer.
        client.moved = client.wish != wish
        await self._send(client, "image", message)

    def _wanted(self, wish: Wish) -> Look | None:
        if wish.show == "latest":
            return self._frames.latest()
        if wish.show == "hit":
            return self._frames.latest_hit()
        return self._frames.held(wish.key) if wish.show == "held" else None

    async def _send(self, client: _Client, kind: str, message: bytes) -> None:
        """Send one message. Raises ``TimeoutError`` for a browser that does not take it."""
        while (wait := client.budget.wait_s(len(message), time.monotonic())) > 0:
            await asyncio.sleep(wait)
        client.budget.spend(len(message), time.monotonic())
        async with asyncio.timeout(SEND_TIMEOUT_S):
            if kind == "image":
                await client.socket.send_bytes(message)
            else:
                await client.socket.send_text(message.decode())
        self._messages[kind] += 1
        self._bytes += len(message)


def same_origin(origin: str | None, host: str | None) -> bool:
    """Whether a request comes from a page of the host it asks; programs that are no browsers send no ``Origin``."""
    if origin is None:
        return True
    try:
        return bool(host) and urlsplit(origin).netloc.lower() == str(host).lower()
    except ValueError:
        return False
