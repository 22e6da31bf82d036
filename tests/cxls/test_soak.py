"""The soak: each check refuses what it is for, outputs are followed, and a short one with faults holds."""

import contextlib
import json
import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from analyzer.crew.flight import MOST_LOSSES
from analyzer.results import RECORD_FIELDS
from analyzer.sinks.files import RECORD_SCHEMA
from cxls.bench.children import Child as Running
from cxls.bench.children import free_endpoint
from cxls.settings import BadSettings, ReplaySettings, SoakSettings, resolve
from cxls.soak import checks
from cxls.soak.checks import Check
from cxls.soak.children import Replayed, Said, legs, replayed, said
from cxls.soak.faults import Committed, arguments
from cxls.soak.leftovers import temporary
from cxls.soak.outputs import LinesFollower, ParquetFollower, Recorded
from cxls.soak.report import as_report, draw
from cxls.soak.running import Soak, room
from cxls.soak.samples import Sample, Usage, family, usage
from sim_replay.faults import KINDS
from sim_replay.faults.ledger import Entry
from tests.cxls.programs import Child, cxls, refusal, wait_for

MIB = 1 << 20
HOUR_S = 3600.0
EDGES = (0.01, 0.1, 1.0, math.inf)


def made_up(
    seconds: float = HOUR_S,
    looks: int = 400,
    memory: Callable[[float], float] = lambda part: 700.0,
    descriptors: Callable[[float], float] = lambda part: 20.0,
    latency_s: Callable[[float], float] = lambda part: 0.05,
    cpu_s: Callable[[float], float] = lambda part: 0.01,
    rate_hz: float = 200.0,
    **changes: Any,
) -> list[Sample]:
    """Looks at an analysis in which a quantity is such a function of the part of the time that has passed."""
    found: list[Sample] = []
    noise, cpu = np.random.default_rng(1), 0.0
    latency = dict.fromkeys(EDGES, 0)
    for number in range(looks):
        part = number / (looks - 1)
        images = round(rate_hz * seconds * part)
        new = images - (found[-1].received if found else 0)
        cpu += new * cpu_s(part)
        latency = {edge: n + (new if latency_s(part) <= edge else 0) for edge, n in latency.items()}
        held = round((memory(part) + noise.normal(0.0, 3.0)) * MIB)
        seen = Usage(3, held + 200 * MIB, held, round(descriptors(part)), 16, cpu)
        sample = Sample(seconds * part, seen, images, images, 0, 0, 0, latency)
        found.append(replace(sample, **changes))
    return found


def quiet(*samples: Any, **changes: Any) -> list[Sample]:
    return checks.settled(made_up(*samples, **changes))


def test_a_soak_in_which_nothing_changes_holds() -> None:
    for check in (checks.memory, checks.descriptors, checks.threads, checks.cpu):
        assert check(quiet()).kept, check(quiet())
    assert checks.latency(quiet(), False).kept
    assert checks.latency(quiet(), True).kept
    assert checks.every_look(made_up()).kept
    assert checks.standstill(made_up(), HOUR_S).kept


@pytest.mark.parametrize(
    ("leak", "kept"),
    [
        (lambda part: 700.0 + 5.0 * part, True),
        (lambda part: 700.0 + 12.0 * part, False),
        (lambda part: 700.0 + 12.0 * (part > 0.75), False),
        (lambda part: 700.0 - 50.0 * part, True),
        (lambda part: 700.0 + 400.0 * (0.45 < part < 0.55), True),
        (lambda part: 400.0 + 300.0 * min(1.0, part / 0.08), True),
    ],
    ids=["within noise", "leak", "late leak", "shrinks", "a passing need", "warm-up"],
)
def test_memory_at_rest_may_not_grow_by_a_hundredth_in_an_hour(leak: Callable[[float], float], kept: bool) -> None:
    found = checks.memory_at_rest(quiet(HOUR_S, 11, memory=leak))
    assert found.kept == kept, found.text
    assert "10 rests, " in found.text
    assert "MiB" in found.text
    assert found.text.endswith("limit 1%")


def test_of_a_long_soak_that_ends_early_memory_at_rest_is_told_only() -> None:
    found = checks.memory_at_rest(made_up(HOUR_S / 3, 4, memory=lambda part: 300.0 + 400.0 * part))
    assert found.kept
    assert found.text.endswith("no limit below 30 min")


@pytest.mark.parametrize(
    ("leak", "kept"),
    [
        (lambda part: 700.0 + 40.0 * math.sin(40.0 * part), True),
        (lambda part: 700.0 + 90.0 * part, False),
        (lambda part: 700.0 + 90.0 * (part > 0.92), False),
        (lambda part: 700.0 + 400.0 * (0.5 < part < 0.6), True),
        (lambda part: 400.0 + 300.0 * min(1.0, part / 0.08), True),
    ],
    ids=["images in hand", "leak", "late leak", "a passing need", "warm-up"],
)
def test_memory_may_not_grow_by_a_tenth_while_images_come(leak: Callable[[float], float], kept: bool) -> None:
    found = checks.memory(quiet(memory=leak))
    assert found.kept == kept, found.text
    assert "MiB" in found.text
    assert found.text.endswith("limit 10%")


def test_a_leak_of_a_frame_each_is_seen_in_ten_seconds() -> None:
    assert not checks.memory(quiet(10.0, 20, memory=lambda part: 300.0 + 400.0 * part)).kept
    assert checks.memory(quiet(10.0, 20, memory=lambda part: 300.0 + 40.0 * part)).kept


def test_descriptors_may_not_pile_up() -> None:
    assert not checks.descriptors(quiet(descriptors=lambda part: 20 + 8 * part)).kept
    assert not checks.descriptors(quiet(10.0, 20, descriptors=lambda part: 20 + 60 * part)).kept
    assert checks.descriptors(quiet(descriptors=lambda part: 20 + round(part * 1000) % 3)).kept


def test_latency_may_not_drift() -> None:
    slower = quiet(latency_s=lambda part: 0.05 if part < 0.5 else 0.5)
    assert not checks.latency(slower, False).kept
    assert checks.latency(quiet(latency_s=lambda part: 0.05), False).kept


def test_flat_out_a_slower_machine_is_no_drift_but_more_in_hand_is() -> None:
    fast, slow = made_up(latency_s=lambda part: 0.05), made_up(latency_s=lambda part: 0.5, rate_hz=20.0)
    last = fast[-1]
    joined = fast + [
        replace(
            each,
            at_s=each.at_s + HOUR_S,
            received=each.received + last.received,
            processed=each.processed + last.processed,
            latency={edge: n + last.latency[edge] for edge, n in each.latency.items()},
        )
        for each in slow[1:]
    ]
    assert checks.latency(checks.settled(joined), True).kept
    assert not checks.latency(checks.settled(joined), False).kept
    assert not checks.latency(quiet(latency_s=lambda part: 0.05 if part < 0.5 else 0.5), True).kept


def test_an_image_may_not_cost_more_and_more_cpu() -> None:
    assert not checks.cpu(quiet(cpu_s=lambda part: 0.01 + 0.02 * part)).kept


def test_a_soak_without_images_fails() -> None:
    still = quiet(rate_hz=0.0)
    assert not checks.cpu(still).kept
    assert not checks.latency(still, True).kept
    assert not checks.standstill(made_up(rate_hz=0.0), HOUR_S).kept


def test_without_a_look_nothing_holds_and_silence_after_the_last_is_a_standstill() -> None:
    assert not checks.every_look([]).kept
    assert not checks.standstill([], 0.0).kept
    assert checks.standstill(made_up(), HOUR_S + checks.STANDSTILL_S - 1).kept
    found = checks.standstill(made_up(), HOUR_S + checks.STANDSTILL_S + 1)
    assert not found.kept
    assert "21.0 s" in found.text
    assert checks.ended({}).kept is None


def test_a_look_that_does_not_add_up_fails() -> None:
    samples = made_up(looks=20)
    samples[7] = replace(samples[7], processed=samples[7].processed - 1)
    found = checks.every_look(samples)
    assert not found.kept
    assert "by 1" in found.text


def test_quantiles_are_those_between_two_looks() -> None:
    before, after = dict.fromkeys(EDGES, 1000), {0.01: 1000, 0.1: 1090, 1.0: 1100, math.inf: 1100}
    assert checks.quantile(before, after, 0.5) == pytest.approx(0.01 + 0.09 * 50 / 90)
    assert checks.quantile(before, after, 0.95) == pytest.approx(0.1 + 0.9 / 2)
    assert math.isnan(checks.quantile(after, after, 0.5))
    assert checks.quantile(before, before | {math.inf: 1001}, 0.5) == 1.0


def counted(**changes: float) -> dict[str, float]:
    """Metrics of 12 images received, of which one is a duplicate and one does not decode; two never came."""
    found = {
        "cxls_frames_announced_total": 13.0,
        "cxls_frames_received_total": 12.0,
        'cxls_frames_processed_total{decision="hit"}': 3.0,
        'cxls_frames_processed_total{decision="miss"}': 7.0,
        'cxls_frames_dropped_total{reason="duplicate"}': 1.0,
        'cxls_frames_dropped_total{reason="queue_full"}': 0.0,
        'cxls_frames_undecodable_total{reason="bad_block"}': 1.0,
        'cxls_frames_missing_total{where="gap"}': 2.0,
        "cxls_hits_lost_total": 0.0,
    }
    return found | changes


WORDS = Said(12, 10, 1, 1, False, {"dropped.duplicate": 1, "undecodable.bad_block": 1, "missing.gap": 2})


def rows(images: int = 11, series: int = 1, first_s: float = 100.0) -> list[dict[str, Any]]:
    """Records of as many images; three hits, the last one undecodable."""
    return [
        {
            "series_id": series,
            "image_id": n,
            "received_at": first_s + n,
            "status": "undecodable" if n == images - 1 else "ok",
            "status_text": None,
            "decision": None if n == images - 1 else "hit" if n < 3 else "miss",
        }
        for n in range(images)
    ]


def recorded(given: list[dict[str, Any]]) -> Recorded:
    found = Recorded()
    found.take(given)
    return found


def test_an_account_that_closes_holds() -> None:
    assert checks.account(counted(), WORDS).kept
    assert checks.announced(counted(), WORDS, 0, False).kept
    assert checks.records(counted(), recorded(rows())).kept
    assert checks.hits(counted(), 3).kept
    assert checks.sent(counted(), Replayed(1, sent=11), 1).kept


@pytest.mark.parametrize(
    "check",
    [
        checks.account(counted(cxls_frames_received_total=13.0), WORDS),
        checks.account(counted(), None),
        checks.account(counted(), replace(WORDS, received=13)),
        checks.account(counted(), replace(WORDS, in_flight=True)),
        checks.account({}, Said(0, 0, 0, 0, False, {})),
        checks.announced(counted(cxls_frames_announced_total=14.0), WORDS, 0, False),
        checks.announced(counted(), WORDS, 1, False),
        checks.sent(counted(), Replayed(1, sent=12), 1),
        checks.sent(counted(), Replayed(1, sent=10), 1),
        checks.sent(counted(), Replayed(1, sent=200, cut=1), 1),
        checks.hits(counted(), 2),
        checks.records(counted(), recorded(rows()[:-1])),
        checks.records(counted(), recorded([*rows(10), rows(10)[0]])),
        checks.records(counted(), recorded(rows()[1:] + rows()[1:2])),
        checks.records(counted(), recorded(rows(12)[:-1])),
        checks.kills(3, {"cxls_crew_workers_lost_total": 2.0}),
        checks.kills(0, {"cxls_crew_workers_lost_total": 0.0}),
        checks.readable(["a", "b"], ""),
        checks.ended({"replay": (1, 0)}),
        checks.words_on_stderr({"analysis": ["INFO", "Traceback (most recent call last):"]}),
    ],
    ids=lambda check: check.text[:40],
)
def test_a_fault_of_the_account_or_the_outputs_fails(check: Check) -> None:
    assert not check.kept


def test_a_replay_that_is_told_to_end_may_lose_what_it_had_queued() -> None:
    assert checks.sent(counted(), Replayed(1, sent=24, cut=1), 0).kept
    assert not checks.sent(counted(), Replayed(1, sent=11, cut=1), 0).kept


def test_ids_of_a_rebooted_detector_come_again_and_a_second_record_is_still_seen() -> None:
    first, other, again = rows(3, 1), rows(3, 2, 200.0), rows(3, 1, 300.0)
    assert not recorded([*again, *first, *other]).repeated(), "in any order of completion"
    assert recorded([*first, *other, *again, again[1]]).repeated() == {1: 1}
    assert not Recorded().repeated()


def ledger(*entries: tuple[str, dict[str, Any]]) -> Committed:
    found = Committed()
    found.add(Entry(kind, 5, 0, "v2", expected) for kind, expected in entries)
    return found


FAULTS = ledger(
    ("drop_image", {"missing.gap": 1, "received": -1}),
    ("flip_bits", {"any": ["undecodable.bad_block", "wrong_pixels"]}),
    ("truncate_payload", {"any": ["undecodable.bad_block", "undecodable.size_mismatch"]}),
    ("drop_end", {"series_ended.end message": -1, "any": ["series_ended.new start"]}),
    ("slow_trickle", {}),
)


@pytest.mark.parametrize(
    ("seen", "kept"),
    [
        ({"missing.gap": 1, "undecodable.bad_block": 2}, True),
        ({"missing.gap": 1, "undecodable.size_mismatch": 1}, True),
        ({"missing.gap": 1}, False),
        ({"missing.gap": 1, "undecodable.bad_block": 3}, False),
        ({"missing.gap": 1, "undecodable.size_mismatch": 2}, False),
        ({"missing.gap": 2, "undecodable.bad_block": 1}, False),
        ({"undecodable.bad_block": 1}, False),
        ({"missing.gap": 1, "undecodable.bad_block": 1, "invalid.malformed": 1}, False),
        ({"missing.gap": 1, "undecodable.bad_block": 1, "dropped.queue_full": 9}, True),
        ({"missing.gap": 1, "undecodable.bad_block": 1, "undecodable.failed": 1}, False),
    ],
)
def test_every_fault_is_in_its_counter_and_nothing_else(seen: dict[str, int], kept: bool) -> None:
    found = checks.ledger(seen, FAULTS, False, 0)
    assert found.kept == kept, found.text


def test_a_killed_worker_may_cost_an_image_that_killed_others() -> None:
    seen = {"missing.gap": 1, "undecodable.bad_block": 1, "undecodable.failed": 1}
    assert checks.ledger(seen, FAULTS, False, checks.most_failed(1, room=16)).kept


def test_kills_do_not_excuse_more_images_than_the_workers_held() -> None:
    most = checks.most_failed(2, room=16)
    assert most == 2 * 16 // MOST_LOSSES
    seen = {"missing.gap": 1, "undecodable.bad_block": 1}
    assert checks.ledger(seen | {"undecodable.failed": most}, FAULTS, False, most).kept
    assert not checks.ledger(seen | {"undecodable.failed": most + 1}, FAULTS, False, most).kept
    assert not checks.ledger(seen | {"undecodable.failed": 1}, FAULTS, False, checks.most_failed(0, room=16)).kept


def test_images_of_series_without_a_start_are_told_by_the_ledger() -> None:
    found = ledger(("drop_start", {"announced": -4}), ("reboot", {"missing.tail": 2, "announced": 2}))
    assert (found.headless, found.same_id) == (4, False)
    assert checks.announced(counted(cxls_frames_announced_total=9.0), WORDS, 4, False).kept


def test_all_faults_are_those_that_there_are() -> None:
    kinds = {word.partition("=")[0] for word in arguments("all", "v2", True) if word != "--fault"}
    assert kinds == {kind.name for kind in KINDS.values() if "v2" in kind.streams}
    later = " ".join(arguments("all", "v1", False))
    assert "reboot" not in later
    assert "wrong_channel" not in later
    assert "drop_image=0.0002" in later
    assert arguments("drop_image@7,reboot=0.1", "v1", False) == ["--fault", "drop_image@7"]
    assert arguments("none", "v2", True) == []


def table(given: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(RECORD_SCHEMA.names) | row for row in given], RECORD_SCHEMA)


def test_finished_parts_are_read_and_deleted_but_the_newest(tmp_path: Path) -> None:
    follower = ParquetFollower(tmp_path)
    for number in range(3):
        pq.write_table(table(rows(4, 1 + number)), tmp_path / f"part-{number:06d}.parquet")
        follower.follow()
        follower.follow()
    assert [path.name for path in tmp_path.iterdir()] == ["part-000002.parquet"]
    assert follower.recorded.records == 12
    assert not follower.recorded.problems.count
    (tmp_path / "part-000003.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(table(rows(4)).drop_columns(["peaks"]), tmp_path / "part-000004.parquet")
    (tmp_path / "part-000005.tmp").touch()
    follower.follow(last=True)
    told = " ".join(follower.recorded.problems.texts)
    assert "000003.parquet: cannot be read" in told
    assert "000004.parquet: columns" in told
    assert "5.tmp: left" in told


@pytest.mark.parametrize("follower", [ParquetFollower, LinesFollower])
def test_results_that_were_never_made_are_told(
    follower: type[ParquetFollower] | type[LinesFollower], tmp_path: Path
) -> None:
    results = follower(tmp_path / "results")
    results.follow()
    assert not results.recorded.problems.count
    results.follow(last=True)
    assert "did not make it" in results.recorded.problems.texts[0]


def test_lines_are_read_as_they_come_and_a_torn_one_is_told(tmp_path: Path) -> None:
    results, follower = tmp_path / "r.jsonl", LinesFollower(tmp_path / "r.jsonl")
    follower.follow()
    lines = [json.dumps(dict.fromkeys(RECORD_FIELDS) | row) for row in rows(4)]
    results.write_text(lines[0] + "\n" + lines[1][:30])
    follower.follow()
    assert follower.recorded.records == 1
    results.write_text("\n".join([*lines, "{}", "no JSON", lines[0][:9]]))
    follower.follow(last=True)
    assert follower.recorded.records == 4
    assert len(follower.recorded.problems.texts) == 3


def test_last_words_are_read() -> None:
    output = [
        "3 series, 10 frames analysed, 3 hits (30.0%)",
        "received 12 = processed 10 + dropped 1 + undecodable 1",
        "dropped: duplicate 1",
        "undecodable: bad_block 1",
        "missing: gap 2",
        "messages refused: malformed 4, too_large 1",
    ]
    reasons = WORDS.reasons | {"invalid.malformed": 4, "invalid.too_large": 1}
    assert said(output) == replace(WORDS, reasons=reasons)
    assert said(output[:1]) is None
    ended = ["21 series, 836 images sent, 0 dropped, 0 unreadable, 13.2 s", "4 images withheld by faults"]
    assert replayed(ended, False) == Replayed(21, 836, 0, 0, 4, 0)
    with pytest.raises(ValueError, match="what it sent"):
        replayed([], True)


def test_both_protocols_take_turns_so_that_begin_and_end_are_alike() -> None:
    assert [leg.protocol for leg in legs(SoakSettings(time=8, stream="both"))] == ["v2", "v1"]
    hour = legs(SoakSettings(time=HOUR_S, stream="both"))
    assert len([leg for leg in hour if not leg.calm]) == 20
    assert sum(leg.seconds for leg in hour) == pytest.approx(HOUR_S)
    assert {leg.protocol for leg in legs(SoakSettings(time=HOUR_S, stream="v1"))} == {"v1"}
    assert [leg.protocol for leg in legs(SoakSettings(time=4, stream="v1"))] == ["v1"]


def test_a_long_soak_rests_now_and_then() -> None:
    hour = legs(SoakSettings(time=HOUR_S, stream="both"))
    assert [leg.number for leg in hour] == list(range(30))
    assert [leg.number for leg in hour if leg.calm] == list(range(2, 30, 3))
    assert not any(leg.calm for leg in legs(SoakSettings(time=HOUR_S / 3, stream="both")))


@pytest.mark.parametrize(("given", "seconds"), [("90", 90), ("90s", 90), ("1.5min", 90), ("1h", 3600), (7, 7)])
def test_times_have_units(given: Any, seconds: float) -> None:
    assert SoakSettings(time=given).time == seconds
    assert ReplaySettings(time=given).time == seconds


@pytest.mark.parametrize("given", ["", "0", "-1s", "1d", "h", "nan", "1e9", "31000h"])
def test_a_time_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(BadSettings, match="90s, 10min or 1h"):
        resolve(SoakSettings, {"time": given}, None, {})


def test_a_rate_is_a_number_or_max() -> None:
    assert resolve(SoakSettings, {"rate": "max"}, None, {}).settings.rate is None
    assert resolve(SoakSettings, {"rate": "100"}, None, {}).settings.rate == 100.0


@pytest.mark.parametrize(
    ("arguments_given", "said_so"),
    [
        (("--kills", "5s"), "--processes"),
        (("--kills", "9s", "--time", "9s", "--processes", "1"), "none in a soak of 9 s"),
        (("--faults", "nonsense=1"), "nonsense"),
        (("nowhere_master.h5",), "nowhere_master.h5"),
        (("--report", "here.txt"), ".json"),
    ],
)
def test_what_cannot_be_is_refused_with_one_line(arguments_given: tuple[str, ...], said_so: str) -> None:
    assert said_so in refusal("soak", *arguments_given)


def test_a_folder_in_use_and_a_disk_too_small_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    assert "not empty" in refusal("soak", "--work", tmp_path)
    with pytest.raises(BadSettings, match=r"MiB free, .* MiB needed.*parquet"):
        room(SoakSettings(time="720h", format="jsonl", rate=900_000.0), tmp_path)


def test_our_own_use_is_seen() -> None:
    seen = usage(os.getpid())
    assert seen.processes >= 1
    assert seen.threads >= 1
    assert seen.descriptors > 2
    assert seen.cpu_s > 0
    assert seen.own_bytes > 0


def test_what_is_swapped_out_is_still_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text
    sizes = {"Rss": 900, "Pss_Anon": 100, "Pss_File": 700, "Pss_Shmem": 20, "Swap": 50, "SwapPss": 40}

    def swapping(path: Path, *given: Any, **named: Any) -> str:
        if path.name == "smaps_rollup":
            return "0-1 ---p 0 0:0 0 [rollup]\n" + "".join(f"{name}: {size} kB\n" for name, size in sizes.items())
        return read(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", swapping)
    seen = usage(os.getpid())
    assert seen.own_bytes == seen.processes * (160 << 10)
    del sizes["SwapPss"]
    seen = usage(os.getpid())
    assert seen.own_bytes == seen.processes * (120 << 10), "a kernel without swap"


def test_where_the_system_does_not_show_own_memory_it_is_the_resident(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = Path.read_text

    def hidden(path: Path, *given: Any, **named: Any) -> str:
        if path.name == "smaps_rollup":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", hidden)
    seen = usage(os.getpid())
    assert seen.own_bytes == pytest.approx(seen.resident_bytes, rel=0.05)


def test_a_report_tells_what_cannot_be_told_from_what_fails() -> None:
    found = [Check("a", True, "x"), Check("b", None, "y")]
    told = as_report(SoakSettings(), [], [], found, "told to end").notes
    assert told == ["ok    a: x", "not told  b: y", "all 1 checks hold, 1 cannot be told"]
    failed = as_report(SoakSettings(), [], [], [*found, Check("c", False, "z")], "").notes
    assert failed[-2:] == ["FAIL  c: z", "1 of 3 checks failed, 1 cannot be told"]


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    draw(made_up(looks=30), made_up(looks=3), tmp_path / "soak.png")
    with Image.open(tmp_path / "soak.png") as drawn:
        assert drawn.size[0] > 500


def test_a_short_soak_with_faults_over_both_streams_holds(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "soak.json"
    done = cxls(
        "soak", master, "--bundle", bundle_folder, "--time", "8s", "--stream", "both", "--faults", "all=0.01",
        "--work", tmp_path / "work", "--report", report,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    whole = json.loads(report.read_text())
    assert "checks hold" in whole["notes"][-1]
    assert len(whole["samples"]["at_s"]) > 8
    assert report.with_suffix(".png").stat().st_size > 10_000
    assert len(list((tmp_path / "work").glob("faults-*.jsonl"))) == 2
    assert "checks hold" in done.stdout


def looks(folder: Path) -> int:
    """Images in the records that a soak reads line by line."""
    results = folder / "results.jsonl"
    return results.read_bytes().count(b"\n") if results.exists() else 0


def ended(pids: Sequence[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


SHORT = ("--time", "50s", "--rate", "50", "--faults", "none", "--format", "jsonl")
ENDING = "ending; checking what there is (again: end at once)\n"


def test_a_soak_that_is_told_to_end_checks_what_there_is(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with Child(
        "soak", master, "--bundle", bundle_folder, *SHORT, "--work", folder, "--report", tmp_path / "soak.json"
    ) as child:
        wait_for(lambda: looks(folder) > 40, 120)
        code = child.end(signal.SIGINT, 120)
        assert child.process.stdout is not None
        words = child.process.stdout.read()
    assert ENDING in child.errors
    assert "ended early: told to end" in words
    assert "ok    sent: " in words, words
    assert "FAIL" not in words
    assert code == 130, words
    assert (folder / "analysis.log").stat().st_size > 0
    assert json.loads((tmp_path / "soak.json").read_text())["notes"]


@pytest.mark.parametrize(
    ("stage", "number"), [("imports", signal.SIGINT), ("simulate", signal.SIGTERM), ("analyze", signal.SIGINT)]
)
def test_a_soak_that_is_told_to_end_before_the_first_image_has_failed_nothing(
    bundle_folder: Path, master: Path, tmp_path: Path, stage: str, number: signal.Signals
) -> None:
    files = [] if stage == "simulate" else [master]
    with Child(
        "soak", *files, "--bundle", bundle_folder, *SHORT, "--report", tmp_path / "soak.json", TMPDIR=str(tmp_path)
    ) as child:
        if stage == "imports":
            wait_for(lambda: "torch" in Path(f"/proc/{child.process.pid}/maps").read_text(), 120)
        else:
            wait_for(lambda: any(stage.encode() in each for each in commands(child.process.pid)), 120)
        code = child.end(number, 120)
        assert child.process.stdout is not None
        words = child.process.stdout.read()
    assert code == 128 + number, words
    assert not any("Traceback" in line for line in child.errors)
    assert "not told  images: told to end before the first one" in words
    assert "FAIL" not in words
    assert not list(tmp_path.glob("cxls-soak-*"))


def commands(pid: int) -> list[bytes]:
    """Command lines of the processes below one, those that are about to run another program left out."""
    found = []
    for each in family(pid)[1:]:
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{each}/cmdline").read_bytes())
    return [each for each in found if b"-m\0cxls\0" in each and b"prctl" not in each]


def test_a_soak_that_is_killed_leaves_no_process_and_no_folder(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    with Child(
        "soak", master, "--bundle", bundle_folder, *SHORT, "--report", tmp_path / "soak.json", TMPDIR=str(tmp_path)
    ) as child:
        wait_for(lambda: any("images/s" in line for line in child.errors), 120)
        below = family(child.process.pid)[1:]
        assert len(commands(child.process.pid)) == 2, "a replay and an analysis"
        assert list(tmp_path.glob("cxls-soak-*"))
        child.process.kill()
        wait_for(lambda: ended(below), 60)
    assert not list(tmp_path.glob("cxls-soak-*"))


def test_a_temporary_folder_stays_until_the_last_that_holds_it_is_gone() -> None:
    with temporary("cxls-test-") as (folder, holding):
        other = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[holding])
        late = threading.Timer(0.3, other.communicate)
        late.start()
        assert folder.is_dir()
    assert other.poll() is not None
    assert not folder.exists()
    late.join()


def test_an_analysis_that_does_not_start_is_one_line_after_a_report(master: Path, tmp_path: Path) -> None:
    done = cxls(
        "soak", master, "--bundle", tmp_path, "--work", tmp_path / "work", "--report", tmp_path / "soak.json"
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("cxls: soak: the analysis is not ready: ")
    assert "FAIL  account at the end" in done.stdout
    assert (tmp_path / "soak.json").exists()
    assert (tmp_path / "work" / "analysis.log").stat().st_size > 0


def test_a_replay_that_dies_does_not_cost_the_report(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "soak.json"
    with Child("soak", master, "--bundle", bundle_folder, "--time", "5s", "--rate", "50", "--report", report) as child:
        wait_for(lambda: any("images/s" in line for line in child.errors), 120)
        replay = next(
            pid for pid in family(child.process.pid) if b"\0replay\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(replay, signal.SIGKILL)
        assert child.end(timeout_s=120) == 1
    notes = json.loads(report.read_text())["notes"]
    assert any("replay 0 v2: replay did not say what it sent" in note for note in notes), notes
    assert any(note.startswith("FAIL  clean ends: replay 0 v2: exit code -9, not 0") for note in notes), notes


def test_an_analysis_that_refuses_connections_is_told_so_now_and_then_and_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxls.soak.running._DRAIN_S", 1.0)
    monkeypatch.setattr("cxls.soak.running._DRAIN_APART_S", 0.2)
    soak = Soak(SoakSettings(), [], tmp_path, threading.Event())
    nobody = free_endpoint().replace("tcp", "http")
    with subprocess.Popen(["sleep", "60"], text=True) as alive:
        soak._drain(Running(alive), nobody)
        alive.kill()
    assert 1 <= soak.seen.problems.count <= 6
    assert "no answer at http" in soak.seen.problems.texts[0]


def test_an_analysis_that_dies_fails_the_soak_and_what_it_left_is_read(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    settings = ("--time", "50s", "--rate", "50", "--faults", "none")
    with Child("soak", master, "--bundle", bundle_folder, *settings, "--report", tmp_path / "soak.json") as child:
        wait_for(lambda: any("images/s" in line for line in child.errors), 90)
        analysis = next(
            pid for pid in family(child.process.pid) if b"analyze" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(analysis, signal.SIGKILL)
        assert child.end(timeout_s=90) == 1
        assert child.process.stdout is not None
        words = child.process.stdout.read()
    assert "ended early: the analysis ended by itself" in words
    assert "FAIL  clean ends: analysis: exit code -9, not 130" in words
    assert "FAIL  account at the end: " in words
