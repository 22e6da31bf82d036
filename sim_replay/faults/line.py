"""Between a series and the wire: its messages go in, what a faulty detector sends of them goes out.

At most one fault is at work at a time, as the plan keeps them apart. What a fault changes in the account is known when
it is done, so it is entered in the ledger then.
"""

import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from itertools import cycle

from sim_replay.faults import images
from sim_replay.faults.corpus import Good, Malformed, corpus
from sim_replay.faults.images import IMAGE_FAULTS, Expected
from sim_replay.faults.kinds import (
    BURST_IMAGES,
    BURST_PAUSE_S,
    CLOCK_IMAGES,
    KINDS,
    LATE_IMAGES,
    THIEF_IMAGES,
    TRICKLE_IMAGES,
    TRICKLE_S,
)
from sim_replay.faults.ledger import Entry, Ledger
from sim_replay.faults.plan import FaultPlan, SeriesFaults, Stream
from sim_replay.faults.second_puller import SecondPuller
from sim_replay.running import RunningSeries
from sim_replay.wire import Wire
from streamer.account import SERIES_ENDS
from streamer.messages import Buffer, ImageData
from streamer.oddities import Oddity
from streamer.receiver import DEFAULT_MAX_PART_BYTES
from streamer.series import MAX_UNANNOUNCED_ID

RECONNECT_S = 10.0
"""How long a consumer may take to come back after a connection was ended."""

DAY_S, HOUR_S = 86400.0, 3600.0
_MAX_LEFT_OUT = 20
_IDS_KEPT = 4096


class Fate(Enum):
    """What became of an image."""

    SENT = auto()
    NO_ROOM = auto()
    WITHHELD = auto()
    SERIES_OVER = auto()
    """This image and the rest of the series are not sent."""


Rearm = Callable[[RunningSeries, bool], None]
"""Makes the running series a new one of the images that are left, with the next id or (True) with ids from 1."""


@dataclass(slots=True)
class _Now:
    """What goes on in the running series. ``clock``: by image id, seconds that the clock and the date jump."""

    stream: Stream
    faults: SeriesFaults
    chance: random.Random
    ended: bool = False
    late: tuple[int, list[Buffer]] | None = None
    burst: list[list[Buffer]] | None = None
    burst_began: int = 0
    trickle: int = 0
    clock: dict[int, tuple[float, float]] = field(default_factory=dict)
    thief: SecondPuller | None = None
    thief_until: int = 0

    @property
    def overtakes(self) -> bool:
        """Whether the end comes before the last image."""
        return self.faults.end is KINDS["end_overtakes"]


class FaultyLine:
    """The faults of a plan, on one wire. ``withheld`` counts images that were never handed to ZeroMQ; ``unsent`` those
    that were held back and called sent, and for which there was no room when their turn came.

    ``patience_s``: how long a message of a fault may wait for room. With ``rearms`` series may be begun that nobody
    asked for.
    """

    def __init__(
        self, plan: FaultPlan, wire: Wire, ledger: Ledger, rearm: Rearm, patience_s: float | None, rearms: bool
    ) -> None:
        self._plan = plan
        self._wire = wire
        self.ledger = ledger
        self._rearm = rearm
        self._patience_s = patience_s
        self._rearms = rearms
        self.withheld = 0
        self.unsent = 0
        self.left_out: list[str] = []
        self._ordinal = 0
        self._ids: deque[int] = deque(maxlen=_IDS_KEPT)
        self._earlier: RunningSeries | None = None
        self._last: RunningSeries | None = None
        self._malformed_of = {
            protocol: cycle(_shuffled([m for m in corpus() if m.stream == protocol and m.on_any_wire], plan.seed))
            for protocol in ("v1", "v2")
        }
        self._now = _Now(Stream("v2", 0, None), SeriesFaults(), random.Random())

    # --- the messages of a series -----------------------------------------------------------

    def start(self, running: RunningSeries, images_to_come: int, wait_s: float | None) -> bool:
        """A series begins. As ``Wire.send``; True too where the start was withheld."""
        self._ordinal += 1
        stream = self._stream(running, images_to_come)
        faults = self._plan.series(self._ordinal, stream)
        self._now = _Now(stream, faults, self._plan.chance_source(self._ordinal))
        for text in faults.left_out[: _MAX_LEFT_OUT - len(self.left_out)]:
            self.left_out.append(f"series {running.series_id}: {text}")
        self._note(running)
        if faults.start is not None:
            self._enter("drop_start", running, None, {"announced": -(stream.announced or 0)})
            return True
        return self._wire.send(running.start_parts(), running.cancel, wait_s)

    def image(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> Fate:
        """The next image; no room is found in ``wait_s`` seconds or before the series is cancelled."""
        now, number = self._now, running.image_id
        if (jump := now.clock.pop(number, None)) is not None:
            _turn_clock(running, *jump)
        kind = now.faults.images.get(number)
        if now.overtakes and number + 1 == now.stream.images:
            now.late = (number + 1, running.image_parts(image))
            fate: Fate | bool = True
        elif kind is None:
            fate = self._pass(running, running.image_parts(image), wait_s)
        else:
            fate = self._commit(kind.name, running, image, wait_s)
        if now.late is not None and number >= now.late[0]:
            self._held_back(running, now.late[1], self._patience_s)
            now.late = None
        if now.thief is not None and number + 1 >= now.thief_until:
            self._thief_leaves(running, now.thief_until - THIEF_IMAGES)
        if isinstance(fate, Fate):
            return fate
        return Fate.SENT if fate else Fate.NO_ROOM

    def end(self, running: RunningSeries, cancel: threading.Event, wait_s: float | None) -> bool:
        """The series is over. As ``Wire.send``; True too where the end was withheld."""
        now = self._now
        if now.late is not None and not now.overtakes:
            self._held_back(running, now.late[1], self._patience_s)
        if now.burst is not None:
            self._release_burst(running)
        if now.thief is not None:
            self._thief_leaves(running, now.thief_until - THIEF_IMAGES)
        if now.ended:
            return True
        name = None if now.faults.end is None else now.faults.end.name
        if name == "drop_end":
            others = [f"series_ended.{why}" for why in SERIES_ENDS if why != "end message"]
            self._enter(name, running, None, {"series_ended.end message": -1, "any": others})
            return True
        sent = self._wire.send(running.end_parts(), cancel, wait_s)
        if sent and name == "double_end" and self._wire.send(running.end_parts(), cancel, wait_s):
            self._enter(name, running, None, {"oddities.repeated_end": 1})
        # Without an end there is nothing that it could come behind.
        limit_s = self._patience_s if sent else 0.0
        if now.overtakes and now.late is not None and self._held_back(running, now.late[1], limit_s) and sent:
            lost = self._lost(now.stream.images - 1, 1, received=1)
            self._enter("end_overtakes", running, None, {"dropped.stale_series": 1, **lost})
        return sent

    def close(self) -> None:
        """Leave nothing of a series that was not ended."""
        thief, self._now.thief = self._now.thief, None
        if thief is not None:
            given_up = threading.Event()
            given_up.set()
            thief.leave(0, given_up, lambda: False)
        self.ledger.close()

    def _stream(self, running: RunningSeries, images_to_come: int) -> Stream:
        v1 = running.style.protocol == "v1"
        tells = not (v1 and running.style.header_detail == "none")
        return Stream(
            protocol=running.style.protocol,
            images=images_to_come,
            announced=running.metadata.number_of_images if tells else None,
            known_shape=tells and running.metadata.shape is not None,
            # Two headers of the same id that tell no date are one header said twice.
            resettable=tells or running.series_id != 1,
            rearms=self._rearms,
            # Where series have no unique id.
            fresh=not v1 or running.series_id not in self._ids,
        )

    def _note(self, running: RunningSeries) -> None:
        self._ids.append(running.series_id)
        self._earlier, self._last = self._last, replace(running)

    def _enter(
        self, kind: str, running: RunningSeries, image_id: int | None, expected: Expected, detail: str | None = None
    ) -> None:
        expected = {name: value for name, value in expected.items() if value}
        self.ledger.add(Entry(kind, running.series_id, image_id, running.style.protocol, expected, detail))

    def _lost(self, first: int, count: int, received: int = 0) -> Expected:
        """What so many images show that never came; a series that announced nothing misses none at its end."""
        stream = self._now.stream
        tail = first + count >= stream.images
        missing = {"missing.tail": count if stream.announced else 0} if tail else {"missing.gap": count}
        return {**missing, "received": received - count}

    # --- what goes out ----------------------------------------------------------------------

    def _pass(self, running: RunningSeries, parts: list[Buffer], wait_s: float | None) -> bool:
        now = self._now
        if now.trickle:
            now.trickle -= 1
            running.cancel.wait(TRICKLE_S)
        if now.burst is not None:
            now.burst.append(parts)
            if running.image_id + 1 >= now.burst_began + BURST_IMAGES:
                self._release_burst(running)
            return True
        return self._wire.send(parts, running.cancel, wait_s)

    def _extra(self, running: RunningSeries, parts: list[Buffer]) -> bool:
        """A message of a fault, which waits as long as a start."""
        return self._wire.send(parts, running.cancel, self._patience_s)

    def _held_back(self, running: RunningSeries, parts: list[Buffer], wait_s: float | None) -> bool:
        """An image whose turn is later than its own."""
        sent = self._wire.send(parts, running.cancel, wait_s)
        self.unsent += not sent
        return sent

    def _release_burst(self, running: RunningSeries) -> None:
        parts, self._now.burst = self._now.burst or [], None
        running.cancel.wait(BURST_PAUSE_S)
        patience_s = self._patience_s
        for each in parts:
            if not self._held_back(running, each, patience_s):
                # One has waited for all.
                patience_s = 0.0

    def _commit(self, name: str, running: RunningSeries, image: ImageData, wait_s: float | None) -> Fate | bool:
        if name in IMAGE_FAULTS:
            return self._changed_image(name, running, image, wait_s)
        action: Callable[[RunningSeries, ImageData, float | None], Fate | bool] = getattr(self, f"_{name}")
        return action(running, image, wait_s)

    def _instead(
        self, name: str, running: RunningSeries, parts: list[Buffer], wait_s: float | None, expected: Expected
    ) -> bool:
        """This message goes out in the place of the image's own."""
        sent = self._wire.send(parts, running.cancel, wait_s)
        if sent:
            self._enter(name, running, running.image_id, expected)
        return sent

    def _beside(
        self,
        name: str,
        running: RunningSeries,
        image: ImageData,
        wait_s: float | None,
        extra: list[Buffer],
        expected: Expected,
    ) -> bool:
        """This message goes out before the image's own."""
        if self._extra(running, extra):
            self._enter(name, running, running.image_id, expected)
        return self._pass(running, running.image_parts(image), wait_s)

    def _changed_image(self, name: str, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        now = self._now
        image = images.carried(image, now.stream.protocol)
        changed, expected = IMAGE_FAULTS[name](image, now.stream.known_shape, now.chance)
        return self._instead(name, running, running.image_parts(changed), wait_s, expected)

    # --- images -----------------------------------------------------------------------------

    def _drop_image(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> Fate:
        del image, wait_s
        self.withheld += 1
        self._enter("drop_image", running, running.image_id, self._lost(running.image_id, 1))
        return Fate.WITHHELD

    def _duplicate_image(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        parts = running.image_parts(image)
        sent = self._pass(running, parts, wait_s)
        if sent and self._extra(running, parts):
            self._enter("duplicate_image", running, running.image_id, {"dropped.duplicate": 1, "received": 1})
        return sent

    def _duplicate_start(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        return self._beside(
            "duplicate_start", running, image, wait_s, running.start_parts(), _odd(Oddity.REPEATED_START)
        )

    def _reorder(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        return self._hold("reorder", running, image, 1)

    def _delay_image(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        return self._hold("delay_image", running, image, LATE_IMAGES)

    def _hold(self, name: str, running: RunningSeries, image: ImageData, others: int) -> bool:
        self._now.late = (running.image_id + others, running.image_parts(image))
        self._enter(name, running, running.image_id, _odd(Oddity.LATE_IMAGE))
        return True

    def _truncate_message(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        parts = images.truncate_message(running.image_parts(image), len(image.data))
        return self._instead("truncate_message", running, parts, wait_s, images.undecodable("missing_data"))

    def _corrupt_header(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        parts = images.corrupt_header(running.image_parts(image))
        return self._instead("corrupt_header", running, parts, wait_s, images.undecodable("bad_header"))

    def _corrupt_message(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        parts = images.corrupt_message(running.image_parts(image))
        expected = {"invalid.malformed": 1, **self._lost(running.image_id, 1)}
        return self._instead("corrupt_message", running, parts, wait_s, expected)

    def _wrong_channel(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        parts = running.image_parts(image, channel="difference")
        return self._instead("wrong_channel", running, parts, wait_s, images.undecodable("missing_channel"))

    def _out_of_range(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        announced, far = self._now.stream.announced, self._now.chance.randrange(1000)
        other = replace(running)
        other.next_image = running.first_image + far + (2 * MAX_UNANNOUNCED_ID if announced is None else announced)
        # At the same moment, as the clock of an image so far away fits no message.
        other.clock_s = 0.0
        other.metadata = running.metadata.with_changes(frame_time_s=0.0)
        expected = {"dropped.out_of_range": 1, "received": 1}
        return self._beside("out_of_range", running, image, wait_s, other.image_parts(image), expected)

    def _stale_series(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        earlier = self._earlier
        if earlier is None or earlier.series_id == running.series_id:
            # None before: the id below, as a detector has it that was running before we came.
            earlier_id = running.series_id - 1 if running.series_id > 0 else running.series_id + 1
            earlier = replace(running, series_id=earlier_id, unique_id="0" * 26)
        other = replace(running, series_id=earlier.series_id, unique_id=earlier.unique_id)
        expected = {"dropped.stale_series": 1, "received": 1}
        return self._beside("stale_series", running, image, wait_s, other.image_parts(image), expected)

    def _foreign_message(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        parts = images.foreign_message(self._now.stream.protocol)
        return self._beside("foreign_message", running, image, wait_s, parts, {"invalid.malformed": 1})

    def _malformed(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        protocol, shape = self._now.stream.protocol, running.metadata.shape or image.shape
        message = next(self._malformed_of[protocol])
        good = Good(running.series_id, running.image_id, shape, running.unique_id if protocol == "v2" else None)
        parts: list[Buffer] = list(message.build(good))
        outcome, _, reason = message.outcome.partition(" ")
        beside = outcome == "invalid"
        if not self._wire.send(parts, running.cancel, self._patience_s if beside else wait_s):
            return False
        expected = {} if outcome == "harmless" else {f"{outcome if beside else 'undecodable'}.{reason}": 1}
        self._enter("malformed", running, running.image_id, expected, message.name)
        return not beside or self._pass(running, running.image_parts(image), wait_s)

    def _slow_trickle(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        self._now.trickle = TRICKLE_IMAGES
        self._enter("slow_trickle", running, running.image_id, _pause(running, TRICKLE_S))
        return self._pass(running, running.image_parts(image), wait_s)

    def _burst_after_pause(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        self._now.burst, self._now.burst_began = [], running.image_id
        self._enter("burst_after_pause", running, running.image_id, _pause(running, BURST_PAUSE_S))
        return self._pass(running, running.image_parts(image), wait_s)

    def _clock_24h(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        ahead = CLOCK_IMAGES // 2
        frame_time_s = running.metadata.frame_time_s or 0.0
        jump_s = DAY_S - ahead * frame_time_s - running.image_time_s
        expected = self._clock_oddities(running, [jump_s] * ahead + [jump_s - DAY_S] * (CLOCK_IMAGES - ahead + 1))
        _turn_clock(running, jump_s, 0.0)
        self._now.clock = {running.image_id + ahead: (-DAY_S, 0.0)}
        self._enter("clock_24h", running, running.image_id, expected)
        return self._pass(running, running.image_parts(image), wait_s)

    def _clock_jump(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        half = CLOCK_IMAGES // 2
        expected = self._clock_oddities(running, [HOUR_S] * half + [-HOUR_S] * half + [0.0])
        _turn_clock(running, HOUR_S, HOUR_S)
        self._now.clock = {
            running.image_id + half: (-2 * HOUR_S, -2 * HOUR_S),
            running.image_id + 2 * half: (HOUR_S, HOUR_S),
        }
        self._enter("clock_jump", running, running.image_id, expected)
        return self._pass(running, running.image_parts(image), wait_s)

    def _clock_oddities(self, running: RunningSeries, offsets_s: list[float]) -> Expected:
        """What shows of a clock that is off by so much, image by image from this one on."""
        first, period_s = running.image_id, running.metadata.frame_time_s or 0.0
        true_s = [running.image_time_s + n * period_s for n in range(-1, len(offsets_s))]
        told = zip(range(first - 1, self._now.stream.images), true_s, [0.0, *offsets_s], strict=False)
        found: Counter[str] = Counter()
        before_s: float | None = None
        for image_id, at_s, off_s in told:
            now_s = round(at_s + off_s, 9)
            if image_id < 0 or (now_s < 0 and self._now.stream.protocol == "v1"):
                # Before the detector's zero there is no time: stream v1 has none then, stream v2 zero.
                continue
            now_s = max(0.0, now_s)
            if before_s is not None and now_s < before_s:
                found[f"oddities.{Oddity.CLOCK_BACK}"] += 1
            elif before_s is not None and now_s - before_s > period_s + max(1.0, 10 * period_s):
                found[f"oddities.{Oddity.CLOCK_JUMP}"] += 1
            before_s = now_s
        return dict(found)

    # --- connections ------------------------------------------------------------------------

    def _oversize(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        greetings = self._wire.greetings
        # Zeros that were never written take no memory, and the consumer refuses them before they are sent.
        if self._extra(running, [bytes(DEFAULT_MAX_PART_BYTES + 1)]):
            self._enter("oversize", running, running.image_id, {"invalid.too_large": 1})
            self._wire.wait_until(lambda: self._wire.greetings > greetings, running.cancel, RECONNECT_S)
        return self._pass(running, running.image_parts(image), wait_s)

    def _disconnect(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> Fate:
        del image, wait_s
        greetings = self._wire.greetings
        if not self._wire.reopen(running.cancel, self._patience_s):
            return Fate.NO_ROOM
        self.withheld += 1
        self._enter("disconnect", running, running.image_id, self._lost(running.image_id, 1))
        self._wire.wait_until(lambda: self._wire.greetings > greetings, running.cancel, RECONNECT_S)
        return Fate.WITHHELD

    def _second_puller(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        greetings = self._wire.greetings
        self._now.thief = SecondPuller(self._wire.endpoint)
        self._now.thief_until = running.image_id + THIEF_IMAGES
        self._wire.wait_until(lambda: self._wire.greetings > greetings, running.cancel, RECONNECT_S)
        return self._pass(running, running.image_parts(image), wait_s)

    def _thief_leaves(self, running: RunningSeries, first: int) -> None:
        thief, self._now.thief = self._now.thief, None
        assert thief is not None
        before = self._wire.consumers
        taken = thief.leave(THIEF_IMAGES // 2, running.cancel, lambda: self._wire.settle(running.cancel, RECONNECT_S))
        # What is sent before its end is noticed would be lost with it.
        if self._wire.wait_until(lambda: self._wire.consumers < before, running.cancel, RECONNECT_S):
            self._wire.settle(running.cancel, RECONNECT_S)
        self._enter("second_puller", running, first, {"missing.gap": taken, "received": -taken})

    # --- series -----------------------------------------------------------------------------

    def _early_end(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> Fate:
        del image, wait_s
        first, left = running.image_id, self._now.stream.images - running.image_id
        self._now.ended = True
        self.withheld += left
        if self._extra(running, running.end_parts()):
            self._enter("early_end", running, first, self._lost(first, left))
        return Fate.SERIES_OVER

    def _rearm_without_end(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        return self._new_series("rearm_without_end", running, image, wait_s, False)

    def _reboot(self, running: RunningSeries, image: ImageData, wait_s: float | None) -> bool:
        return self._new_series("reboot", running, image, wait_s, True)

    def _new_series(
        self, name: str, running: RunningSeries, image: ImageData, wait_s: float | None, from_one: bool
    ) -> bool:
        broken_off, left = replace(running), self._now.stream.images - running.image_id
        self._rearm(running, from_one)
        told = left if self._now.stream.announced else 0
        self._now = _Now(self._stream(running, left), SeriesFaults(), self._now.chance)
        self._note(running)
        if self._extra(running, running.start_parts()):
            expected = {"missing.tail": told, "announced": told, "series_ended.new start": 1}
            self._enter(name, broken_off, broken_off.image_id, expected)
        return self._pass(running, running.image_parts(image), wait_s)


def _pause(running: RunningSeries, least_s: float) -> Expected:
    """A pause stands out where images came faster before, by what the header says and by some of them."""
    fast = 10 * (running.metadata.frame_time_s or 0.0) < 0.9 * least_s
    return _odd(Oddity.PAUSE) if fast and running.image_id >= 3 else {}


def _odd(*kinds: Oddity) -> Expected:
    return {f"oddities.{kind}": 1 for kind in kinds}


def _shuffled(messages: list[Malformed], seed: int) -> list[Malformed]:
    """In another order for every seed, and each once before any comes twice."""
    return random.Random(f"malformed {seed}").sample(messages, len(messages))


def _turn_clock(running: RunningSeries, clock_s: float, date_s: float) -> None:
    running.clock_s += clock_s
    date = running.metadata.arm_date
    if date_s and date:
        turned = datetime.fromisoformat(date) + timedelta(seconds=date_s)
        running.metadata = running.metadata.with_changes(arm_date=turned.isoformat(timespec="milliseconds"))
