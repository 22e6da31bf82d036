"""What was changed in a run that was killed holds in the run that follows it, and only there."""

import json
import os
import re
import shutil
import signal
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from analyzer.bundle import load_bundle
from analyzer.kept_changes import Asked
from analyzer.logs.formats import EVENT
from analyzer.restart import Restart
from analyzer.sinks import open_results
from analyzer.sinks.hold import note_path
from cxls.restored import started_with
from cxls.settings import AnalyzeSettings
from streamer.validity import Validity
from tests.analyzer.builders import SHAPE, image
from tests.analyzer.test_peak_network import bundle_with_peaks
from tests.cxls.programs import Analysis, Child, Sender, records, wait_for
from tests.cxls.test_control import Controlled, fetched
from tests.cxls.test_live import Wire

WIRE = Wire("v2")


# --- real programs, really killed -------------------------------------------------------


class Program:
    """``cxls analyze`` of its own, asked by HTTP as a person would."""

    def __init__(self, sender: Sender, results: Path, token_file: Path, *options: object) -> None:
        self.child = Child(
            "analyze", sender.endpoint, "--results", results, "--append", "--control-token", token_file,
            "--listen", "127.0.0.1:0", "--device", "cpu", *options,
        )  # fmt: skip
        self.address = self.child.listening("http", 120)

    ask = Controlled.ask

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(fetched(self.address, "/status"))
        return found

    def count(self, action: str, outcome: str) -> float:
        text = fetched(self.address, "/metrics")
        found = re.search(rf'^cxls_control_actions_total{{action="{action}",outcome="{outcome}"}} (\S+)$', text, re.M)
        assert found
        return float(found[1])

    @property
    def said(self) -> str:
        return "".join(self.child.errors)


def images(sender: Sender, ids: range) -> None:
    for n in ids:
        sender.send(*WIRE.image(image(n)))


def test_every_change_of_a_run_that_was_killed_holds_in_the_next_one_and_ends_with_it(
    bundle_folder: Path, second: Path, token_file: Path, tmp_path: Path
) -> None:
    results, mask = tmp_path / "r.jsonl", tmp_path / "mask.npy"
    flags = np.zeros(SHAPE, "u1")
    flags[3:5, 7] = 1
    np.save(mask, flags)
    new, label = tmp_path / "new", load_bundle(second).label
    shutil.copytree(second, new)
    with Sender() as sender:
        first = Program(sender, results, token_file, "--bundle", bundle_folder, "--threshold", 0.7)
        sender.send(*WIRE.start(1, 60))
        images(sender, range(10))
        wait_for(lambda: len(records(results)) == 10, 120)
        for action, body in [
            ("bundle", {"path": str(new)}), ("threshold", {"value": 0.9}), ("threshold", {"value": 0.25}),
            ("peaks", {"min_peaks": 9, "finder": "peakfinder8"}), ("peaks", {"hit_rule": "either", "pf8_min_snr": 6.5}),
            ("mask", {"path": str(mask)}), ("channel", {"name": "threshold_1"}), ("target", {"hits": 5000}),
            ("run", {"number": 12, "sample": "lysozyme"}), ("run", {"new": True, "notes": "jet \u2192 left\nwell"}),
            ("reset", {}),
        ]:  # fmt: skip
            code, text = first.ask(action, body)
            assert code == 200, text
        assert first.ask("threshold", {"value": 7})[0] == 400
        assert first.ask("mask", {"path": str(tmp_path / "none.npy")})[0] == 422
        before = first.status
        assert first.child.end(signal.SIGKILL) == -signal.SIGKILL
        # What the note has needs no file of the mask.
        mask.unlink()

        again = Program(sender, results, token_file, "--bundle", bundle_folder, "--threshold", 0.7)
        now = again.status
        for key in ("bundle", "threshold", "mask", "controls"):
            assert (
                {**now[key], "channels": 0} == {**before[key], "channels": 0}
                if key == "controls"
                else (now[key] == before[key])
            ), key
        assert (now["bundle"], now["threshold"], now["mask"]) == (label, 0.25, "mask.npy")
        assert {key: now["run"][key] for key in ("number", "sample", "notes")} == {
            "number": 13, "sample": "lysozyme", "notes": "jet \u2192 left\nwell",
        }  # fmt: skip
        assert now["targets"]["hits"]["target"] == 5000
        listed = {each["action"]: each for each in now["changes"]}
        assert set(listed) == {"bundle", "threshold", "peaks", "mask", "channel", "run", "target"}
        assert len(now["changes"]) == 7
        for action, each in listed.items():
            assert each["text"].startswith("restored after a kill: "), each
            assert each["text"] in again.said
            assert each["time"] >= now["started_at"] - 60
            assert again.count(action, "restored") == 1
        assert "threshold 0.7 \u2192 0.25" in listed["threshold"]["text"]
        images(sender, range(10, 60))
        sender.send(*WIRE.end(1))
        wait_for(lambda: len(records(results)) == 60, 120)
        found = {record["image_id"]: record for record in records(results)}
        assert set(found) == set(range(60))
        for n in range(10, 60):
            assert found[n]["status"] == "ok"
            assert (found[n]["bundle"], found[n]["mask"]) == (label, "none + mask.npy")
        assert found[0]["bundle"] != label
        # A kill after that finds the same, and what was asked for since.
        assert again.ask("threshold", {"value": 0.35})[0] == 200
        assert again.child.end(signal.SIGKILL) == -signal.SIGKILL

        third = Program(
            sender, results, token_file, "--bundle", bundle_folder, "--threshold", 0.7, "--min-peaks", 4,
            "--sample-name", "thaumatin",
        )  # fmt: skip
        now = third.status
        assert (now["threshold"], now["bundle"], now["mask"]) == (0.35, label, "mask.npy")
        assert now["controls"]["peaks"]["min_peaks"] == 4, "given on purpose since"
        assert now["controls"]["peaks"]["pf8_min_snr"] == 6.5, "another key of the same kind stays"
        assert (now["run"]["number"], now["run"]["sample"]) == (13, "thaumatin")
        assert "peaks of the killed run gives way to --min-peaks" in third.said
        assert third.child.end(signal.SIGINT) == 130
        assert not note_path(results).exists(), "the third ended by itself, and what was changed with it"


# --- notes ------------------------------------------------------------------------------


def asked(kind: str, body: Any) -> Asked:
    return Asked(kind=kind, body=json.dumps(body).encode())


def masked(valid: np.ndarray[Any, Any], name: str = "m.npy") -> Asked:
    return Asked(kind="mask", masks=(Validity(name, valid), None))


def killed(results: Path, settings: AnalyzeSettings, *changes: Asked, raw: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """What a kill leaves of a run with these settings that was changed so; ``raw``: entries that no run writes."""
    file = open_results(results, append=True)
    run = Restart(results, file, True, started_with(settings))
    run.start()
    for each in changes:
        run.keep(each)
    with mock.patch("analyzer.restart.pack", side_effect=list(raw)):
        for _ in raw:
            run.keep(masked(np.ones(SHAPE, "u1")))
    file.close()
    assert run._hold is not None
    run._hold.release()


class Restarted:
    """A run that follows a killed one, in a thread of the test."""

    def __init__(self, sender: Sender, bundle: Path, results: Path, token_file: Path | None, **settings: Any) -> None:
        self.analysis = Analysis(
            [sender.endpoint], bundle, results, append=True, control_token=token_file, **settings
        ).start()
        self.control = self.analysis.session.control
        self.sender = sender

    def series(self, images: int = 6) -> list[dict[str, Any]]:
        for message in WIRE.series(images):
            self.sender.send(*message)
        wait_for(lambda: len(self.analysis.session.front.reports) > 0)
        return self.analysis.stop().records

    @property
    def texts(self) -> list[str]:
        return [each.text for each in self.control.changes.latest(50)]


@pytest.fixture
def sender() -> Iterator[Sender]:
    with Sender() as made:
        yield made


def test_workers_of_other_processes_judge_with_what_is_restored(
    sender: Sender, bundle_folder: Path, second: Path, token_file: Path, tmp_path: Path
) -> None:
    results, own, valid = tmp_path / "r.jsonl", tmp_path / "own.npy", np.ones(SHAPE, "u1")
    np.save(own, np.zeros(SHAPE, "u1"))
    valid[9] = 0
    hot = Validity("hot-pixels-1.npy", valid)
    bundle = Asked(kind="bundle", body=json.dumps({"path": str(second)}).encode(), label=load_bundle(second).label)
    map_applied = Asked(kind="mask", masks=(None, hot), first=True)
    given: dict[str, Any] = {"threshold": 1.0, "mask": own}
    changes = bundle, asked("threshold", {"value": 0.0}), map_applied
    killed(results, AnalyzeSettings(bundle=bundle_folder, **given), *changes)
    began = time.monotonic()
    run = Restarted(sender, bundle_folder, results, token_file, **given, processes=1, workers=0)
    assert time.monotonic() - began < 50, "nobody serves yet who would have to be waited for"
    applied = run.analysis.session.front.products.applied
    assert applied is not None
    assert np.array_equal(applied.valid, valid)
    mask = "none + own.npy + hot-pixels-1.npy"
    found = [(each["bundle"], each["mask"], each["hit"]) for each in run.series()]
    assert found == [(bundle.label, mask, True)] * 6


def test_a_mask_and_a_channel_that_are_not_for_the_series_are_taken_back_before_its_first_image(
    sender: Sender, bundle_folder: Path, token_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = tmp_path / "r.jsonl"
    settings = AnalyzeSettings(bundle=bundle_folder)
    killed(results, settings, masked(np.ones((10, 12), "u1")), asked("channel", {"name": "threshold_2"}))
    run = Restarted(sender, bundle_folder, results, token_file)
    assert run.control.judge.mask == "m.npy", "no header was seen yet"
    assert [(each["status"], each["mask"]) for each in run.series()] == [("ok", "none")] * 6
    lines = [each.getMessage() for each in caplog.records if getattr(each, EVENT, "") == "control_unrestored"]
    assert f"not restored after a kill: mask m.npy is (10, 12), the images are {SHAPE}; none instead" in lines[0]
    assert "channel threshold_2: the series has 'threshold_1'; first threshold instead" in lines[1]
    assert len(lines) == 2
    assert [text.partition(":")[0] for text in run.texts] == ["restored after a kill"] * 2 + [
        "not restored after a kill"
    ] * 2
    assert run.control.facts["controls"]["channel"] is None
    (family,) = run.analysis.session._endpoints.collect()
    counts = {(each.labels["action"], each.labels["outcome"]): each.value for each in family.samples}
    for kind in ("mask", "channel"):
        assert (counts[kind, "restored"], counts[kind, "unrestored"]) == (1, 1)


def test_what_cannot_be_restored_is_a_line_each_and_the_settings_hold(
    sender: Sender, bundle_folder: Path, second: Path, token_file: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    results = tmp_path / "r.jsonl"
    hostile = [
        asked("bundle", {"path": str(tmp_path / "gone")}), asked("threshold", {"value": 7}),
        asked("peaks", {"min_peaks": 10**30}), asked("channel", {"name": ["a"]}), asked("run", {"new": True}),
        asked("target", {"hits": -5}),
    ]  # fmt: skip
    killed(results, AnalyzeSettings(bundle=bundle_folder), *hostile)
    run = Restarted(sender, bundle_folder, results, token_file)
    assert run.control.judge.facts["threshold"] == 0.5
    assert len(run.texts) == len(hostile)
    for each in hostile:
        (text,) = [text for text in run.texts if text.startswith(f"not restored after a kill: {each.kind}: ")]
        assert len(text) < 500
        assert "\n" not in text
        assert text in caplog.text
    assert run.control.runs.info.number is None
    assert [each["status"] for each in run.series()] == ["ok"] * 6
    assert "Traceback" not in caplog.text


def head(**fields: Any) -> bytes:
    return json.dumps({"kind": "mask", "body": ""} | fields).encode()


BOMB = zlib.compress(bytes(1 << 24))
HOSTILE = [
    (b"", b""), (b"\xff", b""), (b"[" * 100_000, b""), (head(kind="reset", body="{}"), b""),
    (head(kind="x" * 10**5), b""),
    (head(kind="threshold", body="{" * 200_000), b""), (head(kind="threshold", masks=[None, None]), b""),
    (head(body="{}"), b""), (head(masks=[{"name": "a", "shape": [8, 8], "nbytes": 9}, None]), b""),
    (head(masks=[{"name": "a", "shape": [8, 8], "nbytes": len(BOMB)}, None]), BOMB),
    (head(masks=[{"name": "a", "shape": [1 << 30, 1 << 30], "nbytes": len(BOMB)}, None]), BOMB),
    (head(masks=[{"name": "a", "shape": [-8, -8], "nbytes": len(BOMB)}, None]), BOMB),
    (head(masks=[{"name": "a\nb", "shape": [8, 8], "nbytes": len(BOMB)}, None]), BOMB),
    (head(masks=[{"name": "a", "shape": [8, 8], "nbytes": 5}, None]), b"xxxxx"),
    (head(masks=[{"name": "a", "shape": [8, 8], "nbytes": -1}, None]), BOMB),
]  # fmt: skip


def test_entries_that_no_run_writes_are_a_line_each_and_harm_nothing(
    bundle_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results, settings = tmp_path / "r.jsonl", AnalyzeSettings(bundle=bundle_folder)
    killed(results, settings, asked("threshold", {"value": 0.25}), raw=HOSTILE)
    file = open_results(results, append=True)
    after = Restart(results, file, True, started_with(settings))
    file.close()
    assert {kind: each.body for kind, each in after.asked.items()} == {"threshold": b'{"value": 0.25}'}
    lines = [each.getMessage() for each in caplog.records]
    assert len(lines) == len(HOSTILE)
    assert all("cannot be used" in line and "\n" not in line and len(line) < 400 for line in lines)


def test_a_run_with_names_that_are_no_utf8_has_its_note_and_is_restored(bundle_folder: Path, tmp_path: Path) -> None:
    results, odd = tmp_path / "r.jsonl", AnalyzeSettings(bundle=Path(os.fsdecode(b"/b\xff")), channel="threshold\udcff")
    killed(results, odd, asked("threshold", {"value": 0.25}), asked("bundle", {"path": str(bundle_folder)}))
    file = open_results(results, append=True)
    assert set(Restart(results, file, True, started_with(odd)).asked) == {"threshold", "bundle"}
    other = AnalyzeSettings(bundle=Path(os.fsdecode(b"/b\xfe")), channel=odd.channel)
    assert set(Restart(results, file, True, started_with(other)).asked) == {"threshold"}
    file.close()


def test_without_a_token_nothing_is_restored_whatever_the_note_says(
    sender: Sender, bundle_folder: Path, tmp_path: Path
) -> None:
    results = tmp_path / "r.jsonl"
    killed(results, AnalyzeSettings(bundle=bundle_folder), asked("threshold", {"value": 0.25}))
    run = Restarted(sender, bundle_folder, results, None)
    assert run.control.judge.threshold == 0.5
    assert "without --control-token" in run.texts[0]
    run.analysis.stop()


def test_a_finder_and_a_bundle_that_need_each_other_are_restored_in_the_order_that_works(
    sender: Sender, bundle_folder: Path, token_file: Path, tmp_path: Path
) -> None:
    results, learned = tmp_path / "r.jsonl", bundle_with_peaks(tmp_path / "b")
    bundle = Asked(kind="bundle", body=json.dumps({"path": str(bundle_folder)}).encode())
    settings = AnalyzeSettings(bundle=learned, peak_finder="learned")
    killed(results, settings, bundle, asked("peaks", {"finder": "poisson"}))
    run = Restarted(sender, learned, results, token_file, peak_finder="learned")
    assert run.control.judge.bundle.label == load_bundle(bundle_folder).label
    assert run.control.facts["controls"]["peaks"]["finder"] == "poisson"
    assert [text.partition(":")[0] for text in run.texts] == ["restored after a kill"] * 2
    run.analysis.stop()
