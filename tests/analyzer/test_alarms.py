"""Alarms of a front: each where its threshold is passed and not before, the same as the rules of Prometheus."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from analyzer.alarms import THRESHOLDS, WATCH_S, Alarms
from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, CascadeSettings, PlanCache
from analyzer.crew.dispatch import Crew
from analyzer.front import Front, FrontSettings
from analyzer.judge import Judge
from analyzer.results import Decision
from tests.analyzer.builders import ScriptedSource, frame, image, series, start, water
from tests.analyzer.live.made import result

RULES = Path(__file__).parents[2] / "deploy/prometheus/rules/cxls.alerts.yml"


def rules_of_prometheus() -> dict[str, str]:
    """The text of each alert, by its name."""
    return {
        name: " ".join(text.split())
        for name, text in re.findall(r"- alert: (\w+)\n(.*?)(?=\n {6}- alert|\Z)", RULES.read_text(), re.S)
    }


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock():  # type: ignore[no-untyped-def]
    with mock.patch("analyzer.alarms.time", Clock()) as clock:
        yield clock


class Watched:
    """A front that does not run, with a series open, and its alarms."""

    def __init__(self, bundle: Bundle, **settings: Any) -> None:
        self.front = Front(
            ScriptedSource([]),
            [Analyser(bundle, CascadeSettings())],
            [],
            FrontSettings(**({"block": False} | settings)),
        )
        self.facts: dict[str, Any] = {}
        self.drift: float | None = None
        self.rooms: dict[str, tuple[float, float]] = {}
        self.throttled = False
        self.alarms = Alarms(
            self.front, lambda: self.facts, lambda: self.drift, lambda: self.rooms, lambda: self.throttled
        )

    def open(self, clock: Clock) -> None:
        list(self.front._tracker.handle(start(1, 1000), 0.0))
        list(self.front._tracker.handle(image(0), 0.0))
        self.front.running.begin(series())
        self.front.running.began_at = clock.now

    def names(self, clock: Clock, after_s: float = 2.0) -> list[str]:
        clock.now += after_s
        return [each["name"] for each in self.alarms.facts()]


@pytest.fixture
def watched(bundle: Bundle) -> Watched:
    return Watched(bundle)


def test_a_run_in_order_raises_none(watched: Watched, clock: Clock) -> None:
    watched.open(clock)
    watched.front.last_frame_at = clock.now
    watched.front.running.add([result(n, Decision.HIT if n % 3 else Decision.MISS) for n in range(500)], [], {})
    watched.front.running.last_result_at = watched.front.running.last_beam_at = clock.now
    assert watched.names(clock) == []


def test_an_armed_detector_that_sends_nothing_is_told_of_after_a_while(watched: Watched, clock: Clock) -> None:
    watched.open(clock)
    assert watched.names(clock, THRESHOLDS.no_frame_s - 3) == []
    assert watched.names(clock, 5) == ["CxlsNoFramesWhileArmed"]
    watched.front.last_frame_at = clock.now + 2
    assert watched.names(clock) == []


def test_images_without_beam_are_told_of_while_they_come(watched: Watched, clock: Clock) -> None:
    watched.open(clock)
    clock.now += 60
    watched.front.last_frame_at = clock.now
    watched.front.running.last_result_at = clock.now
    watched.front.running.last_beam_at = clock.now - 20
    assert watched.names(clock) == ["CxlsNoBeam"]


def test_drops_stay_an_alarm_for_two_minutes_and_are_critical(watched: Watched, clock: Clock) -> None:
    watched.names(clock)
    watched.front.account.dropped["queue_full"] += 7
    clock.now += 5
    (alarm,) = watched.alarms.facts()
    assert (alarm["name"], alarm["severity"], alarm["since"]) == ("CxlsFramesDropped", "critical", clock.now)
    assert alarm["text"].startswith("7 images")
    for _ in range(110):
        assert watched.names(clock, 1) == ["CxlsFramesDropped"]
    assert watched.names(clock, 20) == []


def test_who_asks_first_hears_of_what_was_lost_in_the_last_minutes(clock: Clock, watched: Watched) -> None:
    account = watched.front.account
    account.dropped["queue_full"] += 3
    account.missing["gap"] += 2
    account.undecodable["bad_block"] = account.invalid["malformed"] = 1
    assert watched.names(clock, 60) == [
        "CxlsFramesDropped", "CxlsFrameGaps", "CxlsUndecodable", "CxlsInvalidMessages",
    ]  # fmt: skip


def test_a_run_that_nobody_asks_is_looked_at_and_a_burst_is_told_of_a_minute_later(
    watched: Watched, clock: Clock
) -> None:
    class Waits(threading.Event):
        """A day in which a burst is dropped in its last hour but a minute."""

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == WATCH_S
            clock.now += timeout
            if clock.now >= begun + 86400 - 60 and not watched.front.account.dropped["queue_full"]:
                watched.front.account.dropped["queue_full"] += 7
            return clock.now >= begun + 86400

    begun = clock.now
    watched.front.account.dropped["queue_full"] = 0
    watched.front.account.missing["gap"] += 5
    watched.alarms.watch(Waits())
    clock.now += 2
    (alarm,) = watched.alarms.facts()
    assert (alarm["name"], alarm["text"][:8]) == ("CxlsFramesDropped", "7 images")
    assert clock.now - alarm["since"] == pytest.approx(60, abs=WATCH_S + 2)
    assert len(watched.alarms._samples) <= THRESHOLDS.lost_s / WATCH_S + 2


def test_a_look_that_fails_is_logged_and_the_watch_goes_on(
    watched: Watched, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    looks = iter([False, False, True])
    done = mock.Mock(wait=lambda timeout: next(looks))
    with mock.patch.object(watched.alarms, "_drift", side_effect=RuntimeError("no drift today")) as drift:
        clock.now += 2
        watched.alarms.watch(done)
    assert drift.call_count == 2
    assert "the alarms cannot be looked at" in caplog.text


@pytest.mark.parametrize(
    ("name", "part", "key"),
    [
        ("CxlsFrameGaps", "missing", "gap"),
        ("CxlsUndecodable", "undecodable", "bad_block"),
        ("CxlsInvalidMessages", "invalid", "malformed"),
    ],
)
def test_what_is_lost_in_other_ways_is_told_of(watched: Watched, clock: Clock, name: str, part: str, key: str) -> None:
    watched.names(clock)
    counts = getattr(watched.front.account, part)
    counts[key] = counts.get(key, 0) + 2
    assert watched.names(clock) == [name]
    assert watched.names(clock, THRESHOLDS.lost_s + 1) == []


def test_images_left_out_on_purpose_are_no_alarm(watched: Watched, clock: Clock) -> None:
    watched.names(clock)
    for reason in ("sampled", "duplicate", "shutdown"):
        watched.front.account.dropped[reason] += 100
    assert watched.names(clock) == []


def test_a_full_queue_is_told_of_where_images_are_dropped_and_not_where_the_source_waits(
    bundle: Bundle, clock: Clock
) -> None:
    for block, expected in ((False, ["CxlsQueueFilling"]), (True, [])):
        watched = Watched(bundle, ring_frames=10, block=block)
        for n in range(9):
            assert watched.front.ring.put(frame(water(1.0), n))
        assert watched.names(clock) == expected


def test_what_is_no_alarm_where_the_source_waits_is_none_for_prometheus_either(bundle: Bundle, clock: Clock) -> None:
    names: dict[bool, set[str]] = {}
    for block in (False, True):
        watched = Watched(bundle, ring_frames=10, block=block)
        for n in range(9):
            assert watched.front.ring.put(frame(water(1.0), n))
        watched.front.history.add([result(n, at=clock.now - 11.0, latency_s=11.0) for n in range(50)])
        watched.front.account.undecodable["bad_block"] = 1
        names[block] = set(watched.names(clock))
    spared = {name for name, text in rules_of_prometheus().items() if "unless" in text and "cxls_sender_waits" in text}
    assert names[False] - names[True] == spared == {"CxlsQueueFilling", "CxlsLatencyOverDeadline"}
    assert names[True] == {"CxlsUndecodable"}


def test_workers_elsewhere_that_are_not_ready_are_told_of_after_a_while(bundle: Bundle, clock: Clock) -> None:
    judge = Judge(bundle, CascadeSettings())
    crew = Crew("tcp://127.0.0.1:0", judge, PlanCache())
    alone, helped = (
        Front(ScriptedSource([]), own, [], FrontSettings(), crew=crew)
        for own in ([], [Analyser(bundle, CascadeSettings())])
    )
    assert Alarms(alone, dict).facts() == []
    crew._served_s -= THRESHOLDS.unserved_s
    assert alone.unserved_s > THRESHOLDS.unserved_s
    (alarm,) = Alarms(alone, dict).facts()
    assert (alarm["name"], alarm["severity"]) == ("CxlsNoWorkerReady", "critical")
    assert helped.unserved_s == 0.0
    assert Alarms(helped, dict).facts() == []
    alone.stopping = True
    assert Alarms(alone, dict).facts() == []
    crew.close()


@pytest.mark.parametrize("lag_s", [3.0, 11.0, 60.0])
def test_late_results_are_told_of_however_late_they_are(watched: Watched, clock: Clock, lag_s: float) -> None:
    watched.front.history.add([result(n, at=clock.now - lag_s, latency_s=lag_s) for n in range(50)])
    assert watched.names(clock) == ["CxlsLatencyOverDeadline"]
    assert watched.names(clock, 60) == []


def test_a_hit_ratio_stuck_at_one_is_told_of(watched: Watched, clock: Clock) -> None:
    watched.front.running.add([result(n, Decision.HIT) for n in range(999)], [], {})
    assert watched.names(clock) == []
    watched.front.running.add([result(n, Decision.HIT) for n in range(999, 1200)], [], {})
    assert watched.names(clock) == ["CxlsHitRatioStuckAtOne"]


@pytest.mark.parametrize(
    ("share", "name"), [(lambda n: True, "CxlsHitRatioStuckAtOne"), (lambda n: n < 1000, "CxlsHitRatioCollapsed")]
)
def test_a_hit_ratio_is_no_alarm_once_no_image_comes(
    watched: Watched, clock: Clock, share: Callable[[int], bool], name: str
) -> None:
    running = watched.front.running
    running.add([result(n, Decision.HIT if share(n) else Decision.MISS) for n in range(1100)], [], {})
    running.last_beam_at = clock.now
    assert watched.names(clock, THRESHOLDS.hit_ratio_s - 1) == [name]
    assert watched.names(clock, 2) == []
    running.last_result_at = clock.now
    assert watched.names(clock) == [], "images without beam are none of a hit ratio"
    running.last_beam_at = clock.now
    assert watched.names(clock) == [name]


def test_a_hit_ratio_that_collapses_is_told_of_and_a_low_one_is_not(watched: Watched, clock: Clock) -> None:
    running = watched.front.running
    running.add([result(n, Decision.HIT if n % 20 == 0 else Decision.MISS) for n in range(900)], [], {})
    running.add([result(n) for n in range(900, 1000)], [], {})
    assert watched.names(clock) == [], "five were to be expected, which may be chance"
    running.reset()
    running.add([result(n, Decision.HIT if n % 2 else Decision.MISS) for n in range(900)], [], {})
    running.add([result(n) for n in range(900, 1000)], [], {})
    assert watched.names(clock) == ["CxlsHitRatioCollapsed"]


def test_findings_of_others_are_passed_on(watched: Watched, clock: Clock) -> None:
    watched.facts = {"mismatches": [{"quantity": "photon_energy", "text": "the header says 6 keV"}]}
    watched.drift = 0.2
    watched.front._faults[1] = "CUDA error: device lost"
    watched.rooms = {"hits": (100e9, 5e9), "results": (100e9, 50e9), "products": (float("nan"), float("nan"))}
    watched.throttled = True
    clock.now += 2
    assert {each["name"] for each in watched.alarms.facts()} == {
        "CxlsHeaderDisagrees photon_energy", "CxlsModelDrift", "CxlsDeviceFault", "CxlsGpuThrottled",
        "CxlsDiskLow hits",
    }  # fmt: skip


def test_many_who_ask_at_once_get_one_look(watched: Watched, clock: Clock) -> None:
    first = watched.alarms.facts()
    watched.front.account.dropped["queue_full"] += 1
    assert watched.alarms.facts() is first
    clock.now -= 3600
    assert watched.alarms.facts() is not first, "a clock that was set back does not keep the last look for an hour"


def test_every_alarm_is_an_alert_of_prometheus_with_the_same_threshold() -> None:
    rules = rules_of_prometheus()
    source = (Path(__file__).parents[2] / "analyzer/alarms.py").read_text()
    named = set(re.findall(r'"(Cxls\w+)', source))
    assert named <= set(rules)
    for name, severity in re.findall(r'"(Cxls\w+)[^"]*",\s*(CRITICAL|WARNING)', source):
        assert f"severity: {severity.lower()}" in rules[name], name
    for name, wanted in (
        ("CxlsFramesDropped", f"[{THRESHOLDS.dropped_s / 60:.0f}m]"),
        ("CxlsFrameGaps", f"[{THRESHOLDS.lost_s / 60:.0f}m]"),
        ("CxlsNoFramesWhileArmed", f"< {THRESHOLDS.no_frame_s:.0f}"),
        ("CxlsLatencyOverDeadline", f"> {THRESHOLDS.latency_p99_s:g}"),
        ("CxlsQueueFilling", f"> {THRESHOLDS.queue_ratio}"),
        ("CxlsNoWorkerReady", f"> {THRESHOLDS.unserved_s:.0f}"),
        ("CxlsNoBeam", f"> {THRESHOLDS.no_beam_s:.0f}"),
        ("CxlsHitRatioStuckAtOne", f"> {THRESHOLDS.stuck_hit_ratio}"),
        ("CxlsHitRatioStuckAtOne", f"hit_ratio:{THRESHOLDS.hit_ratio_s / 60:.0f}m"),
        ("CxlsHitRatioCollapsed", f"hit_ratio:{THRESHOLDS.hit_ratio_s / 60:.0f}m"),
        ("CxlsHitRatioCollapsed", f"{THRESHOLDS.collapsed_to} *"),
        ("CxlsHitRatioCollapsed", f"> {THRESHOLDS.collapsed_expected:.0f}"),
        ("CxlsModelDrift", f"> {THRESHOLDS.drift_ratio}"),
        ("CxlsDiskLow", f"< {THRESHOLDS.disk_free_ratio}"),
    ):
        assert wanted in rules[name], name
