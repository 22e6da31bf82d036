"""The state machine of series against a model of it: the rules as sentences, sets and lists, nothing clever.

The rules are those of docs/concepts.md and of the module's own text. Whatever a detector, a second one, a reboot or a
network makes of the messages, both must say the same after each.
"""

import copy
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from streamer.account import Account
from streamer.messages import (
    ConfigMessage,
    Defect,
    EndMessage,
    ImageMessage,
    InvalidMessage,
    SeriesMetadata,
    StartMessage,
)
from streamer.series import ImageAccepted, SeriesClosed, SeriesOpened, SeriesTracker, SeriesUpdated

EXAMPLES = int(os.environ.get("CXLS_TEST_SERIES_EXAMPLES", "200"))
JOIN_AFTER, GRACE_S, PATIENCE_S, MOST_ID = 3, 1.0, 30.0, 1 << 40

Uid = str | None
Places = tuple[int, int, int]
"""Missing images: head, gap, tail."""


@dataclass
class Told:
    """A series as the model knows it."""

    ordinal: int
    number: int
    uid: Uid
    date: str | None = None
    announced: int | None = None
    joined: bool = False
    whole_header: bool = True
    ids: list[int] = field(default_factory=list)
    last_known_s: float | None = None
    """When it became known that the last announced image has come."""

    def is_called(self, number: int, uid: Uid) -> bool:
        return self.number == number and (uid is None or self.uid is None or self.uid == uid)

    @property
    def last_came(self) -> bool:
        return self.announced is not None and self.announced - 1 in self.ids

    def missing(self) -> Places:
        """One announced image after the other, where nothing is announced up to the highest that came."""
        head = gap = tail = 0
        last = max(self.ids, default=-1)
        for image in range(last + 1 if self.announced is None else self.announced):
            if image in self.ids:
                continue
            if image > last:
                tail += 1
            elif self.joined and image < min(self.ids):
                head += 1
            else:
                gap += 1
        return head, gap, tail


class Model:
    """Says what happens, as tuples, and counts."""

    def __init__(self) -> None:
        self.series: list[Told] = []
        self.now: Told | None = None
        self.over: list[tuple[int, Uid]] = []
        self.held: list[tuple[int, Uid, int]] = []
        self.held_since_s = 0.0
        self.said: list[Any] = []
        self.received = 0
        self.dropped = {"stale_series": 0, "duplicate": 0, "out_of_range": 0}
        self.places = [0, 0, 0]

    @property
    def announced(self) -> int:
        return sum(series.announced or 0 for series in self.series)

    def passes(self, now_s: float) -> None:
        """A series is over 1 s after its last announced image. What waits to be joined does not wait for ever."""
        if self.now and self.now.last_known_s is not None and now_s >= self.now.last_known_s + GRACE_S:
            self.closes("last announced image")
        if now_s >= self.held_since_s + PATIENCE_S:
            self.forgets_held()

    def starts(self, number: int, uid: Uid, date: str | None, announced: int | None, whole: bool, now_s: float) -> None:
        """A start always opens its series; a repeated one replaces its metadata."""
        self.forgets_held()
        if self.now is not None and self.is_repeated(number, uid, date):
            self.now.whole_header, self.now.date = whole, date
            self.now.uid = uid or self.now.uid
            self.learns(announced, now_s)
            return
        if self.now is not None:
            self.closes("new start")
        self.opens(Told(len(self.series) + 1, number, uid, date, announced, whole_header=whole))

    def is_repeated(self, number: int, uid: Uid, date: str | None) -> bool:
        """Of the same series: by its unique id, else by the date of its arming, else as long as more may come."""
        assert self.now is not None
        if number != self.now.number:
            return False
        if uid and self.now.uid:
            return uid == self.now.uid
        if date and self.now.date:
            return date == self.now.date
        return not self.now.last_came

    def learns(self, announced: int | None, now_s: float) -> None:
        """Metadata of the running series. What has come was announced, and no announcement is taken back."""
        series = self.now
        assert series is not None
        if announced is not None:
            series.announced = max(announced, max(series.ids, default=-1) + 1)
        series.last_known_s = now_s if series.last_came else None
        self.said.append(("updated", series.ordinal, announced))

    def configures(self, announced: int | None, now_s: float) -> bool:
        """The rest of a header that came without; of no other is there any. False where it is out of place."""
        if self.now is None or self.now.whole_header:
            return False
        self.now.whole_header, self.now.date = True, None
        self.learns(announced, now_s)
        return True

    def image(self, number: int, uid: Uid, image: int, now_s: float) -> None:
        """A lone foreign image ends nothing; the third message in a row of a series joins it; what is over is over."""
        self.received += 1
        if self.now is not None and self.now.is_called(number, uid):
            self.forgets_held()
            self.takes(image, now_s)
        elif self.is_over(number, uid):
            self.forgets_held()
            self.dropped["stale_series"] += 1
        else:
            self.holds(number, uid, image, now_s)
            if len(self.held) == JOIN_AFTER:
                self.joins(now_s)

    def ends(self, number: int, uid: Uid, now_s: float) -> None:
        """Its own end message ends a series; a lone foreign one only what it names."""
        if self.now is not None and self.now.is_called(number, uid):
            self.forgets_held()
            self.closes("end message")
        elif len(self.held) == JOIN_AFTER - 1 and self.is_held(number, uid):
            self.joins(now_s)
            self.closes("end message")
        else:
            self.forgets_held()
            if not self.is_over(number, uid):
                self.over.append((number, uid))

    def takes(self, image: int, now_s: float) -> None:
        """Ids outside what was announced are refused; a second copy is a duplicate."""
        series = self.now
        assert series is not None
        if image < 0 or image >= (MOST_ID if series.announced is None else series.announced):
            self.dropped["out_of_range"] += 1
        elif image in series.ids:
            self.dropped["duplicate"] += 1
        else:
            series.ids.append(image)
            self.said.append(("accepted", series.ordinal, image))
            if series.last_came and series.last_known_s is None:
                series.last_known_s = now_s

    def opens(self, series: Told) -> None:
        self.now = series
        self.series.append(series)
        self.said.append(("opened", series.ordinal, series.number, series.joined))

    def closes(self, why: str) -> None:
        series, self.now = self.now, None
        if series is None:
            return
        self.over.append((series.number, series.uid))
        missing = series.missing()
        self.places = [all_of + one for all_of, one in zip(self.places, missing, strict=True)]
        self.said.append(("closed", series.ordinal, series.announced, len(series.ids), missing, why))

    def is_over(self, number: int, uid: Uid) -> bool:
        return any(Told(0, *name).is_called(number, uid) for name in self.over)

    def is_held(self, number: int, uid: Uid) -> bool:
        return bool(self.held) and Told(0, *self.held[0][:2]).is_called(number, uid)

    def holds(self, number: int, uid: Uid, image: int, now_s: float) -> None:
        if not self.is_held(number, uid):
            self.forgets_held()
        self.held.append((number, uid, image))
        self.held_since_s = now_s

    def joins(self, now_s: float) -> None:
        held, self.held = self.held, []
        self.closes("another series runs")
        self.opens(Told(len(self.series) + 1, held[0][0], held[0][1], joined=True))
        for _, _, image in held:
            self.takes(image, now_s)

    def forgets_held(self) -> None:
        self.dropped["stale_series"] += len(self.held)
        self.held = []

    def finishes(self) -> None:
        self.forgets_held()
        self.closes("source ended")


NUMBERS = st.integers(1, 5)
IMAGES = st.integers(0, 7)
COUNTS = st.one_of(st.none(), st.integers(0, 8))
UIDS = st.sampled_from([None, "A", "B"])


class Series(RuleBasedStateMachine):
    """Tracker and model side by side. ``dialect``: what tells one series from another that has the same number."""

    @initialize(dialect=st.sampled_from(["unique ids", "dates", "numbers", "mixed"]))
    def begin(self, dialect: str) -> None:
        self.dialect = dialect
        self.account = Account()
        self.tracker = SeriesTracker(self.account)
        self.model = Model()
        self.said: list[Any] = []
        self.now_s = 100.0
        self.armed = 0
        self.sent: list[tuple[int, Uid, int]] = []
        self.last_start: tuple[int, Uid, str | None] = (1, None, None)

    def feed(self, message: Any) -> None:
        for event in self.tracker.handle(message, self.now_s):
            self.hear(event)

    def hear(self, event: Any) -> None:
        series = event.series
        if isinstance(event, SeriesOpened):
            self.said.append(("opened", series.ordinal, series.series_id, series.joined))
        elif isinstance(event, SeriesUpdated):
            self.said.append(("updated", series.ordinal, series.metadata.number_of_images))
        elif isinstance(event, ImageAccepted):
            self.said.append(("accepted", series.ordinal, event.image.image_id))
        else:
            assert isinstance(event, SeriesClosed)
            missing = tuple(event.missing[place] for place in ("head", "gap", "tail"))
            self.said.append(("closed", series.ordinal, event.announced, event.accepted, missing, event.why))

    def start(self, number: int, uid: Uid, date: str | None, announced: int | None, whole: bool) -> None:
        self.last_start = number, uid, date
        metadata = SeriesMetadata(number_of_images=announced, arm_date=date)
        self.model.passes(self.now_s)
        self.model.starts(number, uid, date, announced, whole, self.now_s)
        self.feed(StartMessage(number, metadata, uid, whole))

    def image(self, number: int, uid: Uid, image: int, broken: bool = False) -> None:
        self.sent.append((number, uid, image))
        self.model.passes(self.now_s)
        self.model.image(number, uid, image, self.now_s)
        defect = Defect("missing_data", "cut") if broken else None
        self.feed(ImageMessage(number, image, unique_id=uid, defect=defect))

    @rule(number=NUMBERS, announced=COUNTS, whole=st.booleans(), uid=UIDS)
    def arms(self, number: int, announced: int | None, whole: bool, uid: Uid) -> None:
        """Also a rebooted detector, which counts from 1 again."""
        self.armed += 1
        named = {
            "unique ids": (f"uid {self.armed}", None),
            "dates": (None, f"date {self.armed}"),
            "numbers": (None, None),
            "mixed": (uid, f"date {self.armed % 2}" if self.armed % 3 else None),
        }[self.dialect]
        self.start(number, *named, announced, whole)

    @rule(announced=COUNTS, whole=st.booleans(), image=st.one_of(st.none(), IMAGES))
    def sends_its_start_again(self, announced: int | None, whole: bool, image: int | None) -> None:
        """Before it perhaps an image, whose id may be beyond what it announces now."""
        number, uid, _ = self.last_start
        if image is not None:
            self.image(number, uid, image)
        self.start(*self.last_start, announced, whole)

    @rule(announced=COUNTS)
    def sends_the_rest_of_its_header(self, announced: int | None) -> None:
        self.model.passes(self.now_s)
        taken = self.model.configures(announced, self.now_s)
        message = ConfigMessage(SeriesMetadata(number_of_images=announced))
        if taken:
            self.feed(message)
        else:
            with pytest.raises(InvalidMessage):
                self.feed(message)

    @precondition(lambda self: self.model.now is not None)
    @rule(images=st.lists(st.integers(-1, 9), min_size=1, max_size=4), broken=st.booleans())
    def sends_images(self, images: list[int], broken: bool) -> None:
        """In any order, some twice, some beyond what was announced."""
        for image in images:
            if self.model.now is not None:
                self.image(self.model.now.number, self.model.now.uid, image, broken)

    @precondition(lambda self: self.model.now is not None and self.model.now.announced)
    @rule(quarters=st.integers(0, 6))
    def sends_its_last_image_and_pauses(self, quarters: int) -> None:
        now = self.model.now
        assert now is not None
        assert now.announced is not None
        self.image(now.number, now.uid, now.announced - 1)
        self.time_passes(quarters)

    @rule(numbers=st.lists(st.integers(6, 8), min_size=1, max_size=3), seconds=st.sampled_from([0, 0, 29, 30, 31]))
    def another_sends_an_image_or_two_and_pauses(self, numbers: list[int], seconds: int) -> None:
        """Of series that are seldom over, one or several."""
        for number in numbers:
            self.image(number, None, 0)
        self.time_passes(4 * seconds)

    @rule(number=NUMBERS, uid=UIDS, images=st.lists(IMAGES, min_size=1, max_size=4), huge=st.booleans())
    def sends_images_of_another_series(self, number: int, uid: Uid, images: list[int], huge: bool) -> None:
        uid = None if self.dialect in ("dates", "numbers") else uid
        for image in images:
            self.image(number, uid, image + MOST_ID if huge and image > 3 else image)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def sends_an_image_again(self, data: st.DataObject) -> None:
        self.image(*data.draw(st.sampled_from(self.sent)))

    @rule(number=NUMBERS, uid=UIDS)
    def ends_any(self, number: int, uid: Uid) -> None:
        self.end(number, None if self.dialect in ("dates", "numbers") else uid)

    @precondition(lambda self: self.model.now is not None)
    @rule(twice=st.booleans())
    def ends(self, twice: bool) -> None:
        assert self.model.now is not None
        number, uid = self.model.now.number, self.model.now.uid
        for _ in range(1 + twice):
            self.end(number, uid)

    def end(self, number: int, uid: Uid) -> None:
        self.model.passes(self.now_s)
        self.model.ends(number, uid, self.now_s)
        self.feed(EndMessage(number, uid))

    @rule(quarters=st.sampled_from([1, 4, 120, 10_000]))
    def waits(self, quarters: int) -> None:
        self.time_passes(quarters)

    def time_passes(self, quarters: int) -> None:
        self.now_s += quarters / 4
        self.model.passes(self.now_s)
        for event in self.tracker.tick(self.now_s):
            self.hear(event)

    @rule()
    def source_ends(self) -> None:
        self.model.finishes()
        for event in self.tracker.finish():
            self.hear(event)

    @invariant()
    def both_say_the_same(self) -> None:
        model, account = self.model, self.account
        assert self.said == model.said
        assert (account.received, account.announced) == (model.received, model.announced)
        assert {reason: account.dropped[reason] for reason in model.dropped} == model.dropped
        assert [account.missing[place] for place in ("head", "gap", "tail")] == model.places
        assert self.tracker.pending == len(model.held)
        running = self.tracker.running
        assert (running and running.ordinal) == (model.now and model.now.ordinal)

    @invariant()
    def were_it_over_now_the_account_would_add_up(self) -> None:
        tracker, account = copy.deepcopy((self.tracker, self.account))
        closed = [event for event in self.said if event[0] == "closed"]
        ids = [event[1:3] for event in self.said if event[0] == "accepted"]
        for event in tracker.finish():
            assert isinstance(event, SeriesClosed)
            closed.append((0, 0, event.announced, event.accepted, tuple(event.missing.values()), event.why))
        assert account.received == len(ids) + sum(account.dropped.values())
        assert account.accepted == len(ids) == len(set(ids)) == sum(event[3] for event in closed)
        for _, _, announced, accepted, missing, _ in closed:
            assert min(missing) >= 0
            assert announced is None or announced == accepted + sum(missing)


def test_the_tracker_says_what_the_model_says() -> None:
    run_state_machine_as_test(
        Series,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
