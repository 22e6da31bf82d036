"""Changing what a running analysis judges with: no frame lost, none twice, nothing half done."""

import gc
import hashlib
import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from analyzer.bundle import BadBundle, Bundle, load_bundle
from analyzer.calibration import Calibration
from analyzer.cascade import Analyser, BatchOutcome, CascadeSettings
from analyzer.circumstances import circumstances
from analyzer.control import BadChange, Busy, Control
from analyzer.front import Ending, Front, FrontSettings
from analyzer.judge import Judge
from analyzer.kept_changes import Asked
from analyzer.mask_file import BadMask
from analyzer.peak_finder import BUILT_IN, Peakfinder8Finder
from analyzer.peak_parameters import BadPeaks, Pf8Options, finder_of
from analyzer.results import FrameResult, HitRule
from analyzer.runs import BadRun
from analyzer.warm import warm_up
from streamer.frames import Frame
from streamer.messages import ImageMessage, SeriesMetadata, StartMessage
from streamer.validity import Validity
from tests.analyzer.builders import (
    SHAPE,
    Collector,
    ScriptedSource,
    Step,
    assert_account_closes,
    end,
    image,
    image_data,
    metadata,
    start,
    water,
    whole_series,
    with_spots,
)


def renamed(folder: Path, to: Path, name: str, **hit: Any) -> Path:
    """A copy of a bundle under another name; ``hit`` replaces fields of its hit card."""
    shutil.copytree(folder, to)
    card = json.loads((to / "bundle.json").read_bytes())
    card["name"] = name
    card["hit"] |= hit
    (to / "bundle.json").write_text(json.dumps(card))
    return to


def with_weights(folder: Path, value: float) -> Path:
    """The bundle with all weights of its hit network set to this, and a card that says so."""
    path = folder / "hit.safetensors"
    save_file({name: torch.full_like(tensor, value) for name, tensor in load_file(path).items()}, path)
    card = json.loads((folder / "bundle.json").read_bytes())
    card["hit"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def second(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return renamed(bundle_folder, tmp_path_factory.mktemp("second") / "b", "second")


class Slow(Analyser):
    """Takes its time, and notes which worker judged with which bundle. ``hold``: the first batch waits for it."""

    delay_s = 0.01
    seen: list[tuple[str, str]]
    hold: threading.Event | None = None

    def process(self, frames: Sequence[Frame]) -> BatchOutcome:
        if threading.current_thread().name.startswith("worker"):
            time.sleep(self.delay_s)
            assert self.hold is None or self.hold.wait(30)
            self.seen.append((threading.current_thread().name, self._bundle.label))
        return super().process(frames)


class Controlled:
    """A front with its control. ``during`` runs in a thread of its own when the script comes to it."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        live: bool = False,
        workers: int = 2,
        cascade: CascadeSettings | None = None,
        **also: Any,
    ) -> None:
        self.seen: list[tuple[str, str]] = []
        self.kept = Collector()
        self.changed: list[Judge] = []
        self.raised: list[BaseException] = []
        self.stop = threading.Event()
        judge = Judge(bundle, cascade or CascadeSettings(), also.pop("calibration", None))
        self.source = ScriptedSource([], live)
        settings = {"block": True, "batch_frames": 2, "ring_frames": 3} | also
        self.front = Front(
            self.source, [self.make(judge) for _ in range(workers)], [self.kept], FrontSettings(**settings)
        )
        self.control = Control(self.front, judge, self.make, load_bundle, self.changed.append)
        self._threads: list[threading.Thread] = []

    def make(self, judge: Judge) -> Analyser:
        made = Slow(judge.bundle, judge.settings)
        made.seen = self.seen
        return made

    def during(self, change: Callable[[], object]) -> Callable[[], None]:
        def work() -> None:
            try:
                change()
            except Exception as error:
                self.raised.append(error)

        def step() -> None:
            thread = threading.Thread(target=work)
            thread.start()
            self._threads.append(thread)

        return step

    def run(self, script: Sequence[Step]) -> "Controlled":
        self.source._script.extend(script)
        runner = threading.Thread(target=self.front.run, args=(self.stop,), daemon=True)
        runner.start()
        runner.join(60)
        self.wait()
        assert not runner.is_alive()
        return self

    def wait(self) -> None:
        """Until every change asked for is done; as a step, more of the script comes after it."""
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def assert_closes(self, images: int) -> None:
        assert_account_closes(self.front.account)
        assert sorted(r.image_id for r in self.kept.results) == list(range(images))
        assert self.front.account.processed["hit"] + self.front.account.processed["miss"] == images

    @property
    def labels(self) -> list[str]:
        return [r.bundle for r in self.kept.results]


def series_with(run: Controlled, change: Callable[[], object], images: int = 60, at: int = 20) -> list[Step]:
    """A series in whose course the change is made; its last ten images come when it is done."""
    late = images - 10
    return [
        start(1, images),
        *(image(n) for n in range(at)),
        run.during(change),
        *(image(n) for n in range(at, late)),
        run.wait,
        *(image(n) for n in range(late, images)),
        end(),
    ]


# --- another bundle ---------------------------------------------------------------------


def test_a_bundle_is_swapped_under_load_and_every_frame_recorded_once(bundle: Bundle, second: Path) -> None:
    run = Controlled(bundle)
    run.run(series_with(run, lambda: run.control.use_bundle(second)))
    assert run.raised == []
    run.assert_closes(60)
    new = load_bundle(second).label
    assert set(run.labels) == {bundle.label, new}
    for worker in {name for name, _ in run.seen}:
        of_worker = [label for name, label in run.seen if name == worker]
        assert of_worker == sorted(of_worker, key=lambda label: label == new), "once new, never old again"
    assert [judge.bundle.label for judge in run.changed] == [new]
    assert run.control.judge.facts["bundle"] == new


def test_many_swaps_in_a_row_lose_nothing(bundle: Bundle, bundle_folder: Path, second: Path) -> None:
    run = Controlled(bundle)

    def swaps() -> None:
        for n in range(4):
            change = run.control.use_bundle(second if n % 2 == 0 else bundle_folder)
            assert change.drained

    run.run(series_with(run, swaps, 120, 10))
    assert run.raised == []
    run.assert_closes(120)
    assert len(run.changed) == 4


def test_a_change_says_what_was_and_what_is(bundle: Bundle, second: Path) -> None:
    run = Controlled(bundle)
    change = run.control.use_bundle(second)
    new = load_bundle(second)
    assert (change.action, change.old, change.new) == ("bundle", bundle.label, new.label)
    assert (change.bundle, change.threshold, change.mask, change.drained) == (new.label, 0.5, None, True)


def test_a_swap_lets_the_old_analysers_go(bundle_folder: Path, second: Path) -> None:
    old = load_bundle(bundle_folder)
    run = Controlled(old)
    remains: list[weakref.ref[Any]] = [weakref.ref(worker.analyser) for worker in run.front._workers]
    remains += [weakref.ref(run.control.estimator), weakref.ref(old.hit)]
    del old
    run.run(series_with(run, lambda: run.control.use_bundle(second), 40, 10))
    gc.collect()
    assert [r() for r in remains] == [None] * 4


def test_a_batch_that_takes_long_ends_with_the_old_one(
    bundle: Bundle, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.front.HANDOVER_S", 0.05)
    hold = threading.Event()
    monkeypatch.setattr(Slow, "hold", hold)
    run = Controlled(bundle, workers=1, batch_frames=4, batch_linger_s=30.0, ring_frames=8)
    drained: list[bool] = []

    def swap() -> None:
        while run.front._workers[0].busy is None:
            time.sleep(0.001)
        drained.append(run.control.use_bundle(second).drained)
        hold.set()

    run.run([start(1, 8), run.during(swap), *(image(n) for n in range(8)), run.wait, end()])
    assert drained == [False]
    run.assert_closes(8)
    assert [r.bundle for r in run.kept.results] == [bundle.label] * 4 + [load_bundle(second).label] * 4


def test_the_first_frame_after_a_swap_finds_its_plan_made(bundle: Bundle, second: Path) -> None:
    run = Controlled(bundle, live=True, series=1)
    asked: list[Any] = []

    def swap() -> None:
        deadline = time.monotonic() + 60
        while len(run.kept.results) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        run.control._make = lambda judge: asked.append(judge) or run.make(judge)  # type: ignore[func-returns-value]
        run.control.use_bundle(second)

    run.run(series_with(run, swap))
    assert run.raised == []
    assert run.front.kind is not None
    assert run.front.kind.shape == SHAPE
    assert len(asked) == 3, "one a worker, one for the estimate"


def test_hit_windows_do_not_mix_two_bundles(bundle: Bundle, second: Path) -> None:
    run = Controlled(bundle)
    counted: list[int] = []

    def swap() -> None:
        run.control.use_bundle(second)
        counted.append(run.front.running.hits.counts(1000)[1])

    run.run(series_with(run, swap, 60, 40))
    assert counted[0] < 20
    assert run.front.running.hits.counts(1000)[1] <= 40
    assert run.front.running.indexable.counts(1000)[1] == 60, "peaks are not the bundle's"
    assert sum(run.front.account.processed.values()) == 60


# --- what is refused changes nothing ----------------------------------------------------


def damaged(folder: Path, how: str) -> Path:
    """A bundle with one thing wrong."""
    weights = folder / "hit.safetensors"
    card = json.loads((folder / "bundle.json").read_bytes())
    if how == "missing":
        return folder / "nothing"
    if how == "no weights":
        weights.unlink()
    elif how == "corrupt":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif how == "pickle":
        torch.save({"a": torch.zeros(1)}, folder / "hit.pt")
        card["hit"]["weights"] = "hit.pt"
    elif how == "unknown network":
        card["hit"]["network"] = "no-such-network"
    elif how == "other architecture":
        card["hit"] |= {key: card["parameters"][key] for key in ("weights", "sha256")}
    elif how == "a network for another place":
        card["hit"] |= {key: card["parameters"][key] for key in ("network", "weights", "sha256")}
    elif how == "no card":
        (folder / "bundle.json").unlink()
        return folder
    (folder / "bundle.json").write_text(json.dumps(card))
    return with_weights(folder, float("nan")) if how == "not a number" else folder


HOW = ("missing", "no weights", "corrupt", "pickle", "unknown network", "other architecture",
       "a network for another place", "no card", "not a number")  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_a_bad_bundle_is_refused_in_one_line_and_changes_nothing(
    bundle: Bundle, bundle_folder: Path, tmp_path: Path, how: str
) -> None:
    run = Controlled(bundle)
    before, analysers = run.control.judge, [worker.analyser for worker in run.front._workers]
    with pytest.raises(BadBundle) as refused:
        run.control.use_bundle(damaged(renamed(bundle_folder, tmp_path / "b", "bad"), how))
    assert "\n" not in str(refused.value)
    assert run.control.judge is before
    assert [worker.analyser for worker in run.front._workers] == analysers
    assert run.changed == []
    run.control.use_bundle(bundle_folder)


def test_a_bad_bundle_in_the_middle_of_a_stream_costs_no_frame(bundle: Bundle, tmp_path: Path) -> None:
    run = Controlled(bundle)
    run.run(series_with(run, lambda: run.control.use_bundle(tmp_path / "nothing")))
    assert [type(error) for error in run.raised] == [BadBundle]
    run.assert_closes(60)
    assert set(run.labels) == {bundle.label}


def test_one_change_at_a_time(bundle: Bundle, second: Path) -> None:
    run = Controlled(bundle)
    loading, go_on = threading.Event(), threading.Event()

    def load(folder: Path) -> Bundle:
        loading.set()
        assert go_on.wait(10)
        return load_bundle(folder)

    run.control._load = load
    first = threading.Thread(target=run.control.use_bundle, args=(second,))
    first.start()
    assert loading.wait(10)
    for other in (lambda: run.control.use_bundle(second), lambda: run.control.use_threshold(0.1), run.control.reset):
        with pytest.raises(Busy):
            other()
    go_on.set()
    first.join(30)
    assert run.control.judge.bundle.card.name == "second"
    assert run.control.use_threshold(0.1).new == 0.1, "free again"


def test_a_run_that_is_ending_takes_no_change(bundle: Bundle, second: Path) -> None:
    run = Controlled(bundle)
    run.run(whole_series(4))
    for change in (lambda: run.control.use_bundle(second), lambda: run.control.use_threshold(0.2), run.control.reset):
        with pytest.raises(Ending):
            change()
    assert run.control.judge.bundle.label == bundle.label


def test_a_change_while_the_run_is_being_stopped_loses_nothing(bundle: Bundle, second: Path) -> None:
    run = Controlled(bundle, ring_frames=64)
    step = run.during(lambda: run.control.use_bundle(second))
    script = [start(1, 30), *(image(n) for n in range(30)), step, run.stop.set]
    run.run(script)
    assert all(isinstance(error, Ending) for error in run.raised)
    assert_account_closes(run.front.account)
    assert sorted(r.image_id for r in run.kept.results) == list(range(30))
    assert sum(run.front.account.dropped.values()) == 0


# --- threshold --------------------------------------------------------------------------


def test_a_threshold_holds_from_the_next_batch_and_null_is_the_bundles_own(bundle: Bundle) -> None:
    run = Controlled(bundle)
    assert run.control.use_threshold(0.0).new == 0.0
    run.run(series_with(run, lambda: run.control.use_threshold(1.0), 60, 30))
    run.assert_closes(60)
    hits = [r.hit for r in sorted(run.kept.results, key=lambda r: r.image_id)]
    assert hits[:20] == [True] * 20
    assert hits[-10:] == [False] * 10


def test_a_threshold_asked_for_outlives_a_swap_of_the_bundle(bundle: Bundle, second: Path) -> None:
    run = Controlled(bundle)
    run.control.use_threshold(0.25)
    assert run.control.use_bundle(second).threshold == 0.25
    change = run.control.use_threshold(None)
    assert (change.old, change.new) == (0.25, 0.5)


def blank_run(bundle: str) -> Calibration:
    return Calibration(
        format=1, bundle=bundle, prior=0.5, threshold=0.9, false_hits=0.1, false_hits_asked=0.1,
        probabilities=[0.1] * 40, peak_counts=[0] * 40,
    )  # fmt: skip


def test_a_calibration_stays_with_its_bundle(bundle: Bundle, second: Path) -> None:
    run = Controlled(bundle, calibration=blank_run(bundle.label))
    assert run.control.judge.threshold == 0.9
    assert run.control.use_threshold(0.3).old == 0.9
    assert run.control.use_threshold(None).new == 0.9
    change = run.control.use_bundle(second)
    assert change.threshold == 0.5, "the blank run was judged by another"
    assert run.control.judge.calibration is None


def test_a_change_to_what_the_calibration_was_not_measured_with_widens_its_rate_until_it_is_taken_back(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = np.zeros(SHAPE, "u1")
    bad[:, :10] = 1
    np.save(tmp_path / "left.npy", bad)
    known = circumstances(BUILT_IN, None, [None], None)
    calibration = msgspec.structs.replace(blank_run(bundle.label), circumstances=known)
    run = Controlled(bundle, calibration=calibration)
    rate = run.control.judge.point.false_hits
    for change, back in (
        (lambda: run.control.use_mask(tmp_path / "left.npy"), lambda: run.control.use_mask(None)),
        (lambda: run.control.use_channel("threshold_2"), lambda: run.control.use_channel(None)),
    ):
        caplog.clear()
        change()
        assert run.control.judge.point.false_hits.spans
        assert sum("measured otherwise" in record.getMessage() for record in caplog.records) == 1
        back()
        assert run.control.judge.point.false_hits == rate


def test_a_restored_channel_that_is_taken_back_is_none_that_the_calibration_was_measured_without(
    bundle: Bundle,
) -> None:
    known = circumstances(BUILT_IN, None, [None], None)
    run = Controlled(bundle, calibration=msgspec.structs.replace(blank_run(bundle.label), circumstances=known))
    rate = run.control.judge.point.false_hits
    with run.control.restoring():
        run.control.use_channel("threshold_2")
    assert run.control.judge.point.false_hits.spans
    assert run.control.take_back(SeriesMetadata(channels=("threshold_1",), shape=SHAPE)) == (["channel"], True)
    assert run.control.judge.channel is None
    assert run.control.judge.point.false_hits == rate


def test_what_is_taken_back_is_let_go_of_before_anything_else_can_be_asked_for(bundle: Bundle) -> None:
    run = Controlled(bundle)
    told: list[tuple[Asked, bool]] = []
    with run.control.restoring():
        run.control.use_channel("threshold_2")
    run.control._keep_asked = lambda asked: told.append((asked, run.control._changing.locked()))
    run.control.take_back(SeriesMetadata(channels=("threshold_1",)))
    assert told == [(Asked(kind="channel"), True)]


# --- mask -------------------------------------------------------------------------------


def test_a_mask_is_named_in_the_records_it_was_applied_to(bundle: Bundle, tmp_path: Path) -> None:
    bad = np.zeros(SHAPE, "u1")
    bad[:, :10] = 1
    np.save(tmp_path / "left.npy", bad)
    run = Controlled(bundle)
    run.run(series_with(run, lambda: run.control.use_mask(tmp_path / "left.npy")))
    assert run.raised == []
    run.assert_closes(60)
    assert {r.mask for r in run.kept.results} == {"none", "none + left.npy"}
    assert run.control.judge.facts["mask"] == "left.npy"


def test_no_mask_again(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros(SHAPE, "u1"))
    run = Controlled(bundle)
    run.control.use_mask(tmp_path / "m.npy")
    change = run.control.use_mask(None)
    assert (change.old, change.new) == ("m.npy", None)


def test_a_mask_of_another_shape_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((61, 76), "u1"))
    run = Controlled(bundle)
    run.run(series_with(run, lambda: run.control.use_mask(tmp_path / "wide.npy")))
    (error,) = run.raised
    assert isinstance(error, BadMask)
    assert "wide.npy" in str(error)
    assert "(61, 76)" in str(error)
    assert str(SHAPE) in str(error)
    run.assert_closes(60)
    assert {r.mask for r in run.kept.results} == {"none"}


# --- reset ------------------------------------------------------------------------------


def test_a_reset_forgets_what_was_shown_and_not_the_account(bundle: Bundle) -> None:
    run = Controlled(bundle)
    before: list[Any] = []

    def reset() -> None:
        deadline = time.monotonic() + 20
        while run.front.running.profile_frames < 25 and time.monotonic() < deadline:
            time.sleep(0.005)
        run.control.reset()
        running = run.front.running
        before.append((running.hits.counts(1000)[1], len(running.history), running.profile_frames))

    run.run(series_with(run, reset, 80, 40))
    assert run.raised == []
    run.assert_closes(80)
    (counted, history, frames) = before[0]
    assert counted <= 30
    assert history <= 30
    assert frames <= 30
    assert 0 < run.front.running.hits.counts(1000)[1] <= 55
    assert run.front.reports[0].analysed == 80


def test_a_reset_before_the_run_is_no_reason_to_wait(bundle: Bundle) -> None:
    began = time.monotonic()
    assert Controlled(bundle).control.reset().action == "reset"
    assert time.monotonic() - began < 5


# --- warm-up ----------------------------------------------------------------------------


def test_a_warm_up_with_a_mask_reaches_the_networks(bundle: Bundle) -> None:
    judge = Judge(bundle, CascadeSettings(mask=Validity("m", np.ones((40, 50), "u1"))))
    heard: list[tuple[int, ...]] = []

    class Heard(Analyser):
        def process(self, frames: Sequence[Frame]) -> BatchOutcome:
            outcome = super().process(frames)
            heard.extend(
                (40, 50) for result in outcome.results if result.status == "ok" and result.decision != "no_beam"
            )
            return outcome

    warm_up(Heard(judge.bundle, judge.settings), judge)
    assert heard == [(40, 50)] * 3


def test_a_warm_up_leaves_nothing_behind(bundle: Bundle) -> None:
    judge = Judge(bundle, CascadeSettings())
    analyser = Analyser(judge.bundle, judge.settings)
    warm_up(analyser, judge)
    assert analyser._prepared == {}


def test_all_that_will_judge_on_a_device_is_warm_before_it_does(bundle: Bundle) -> None:
    warmed: list[int] = []

    class OnDevice(Analyser):
        @property
        def on_device(self) -> bool:
            return True

        def process(self, frames: Sequence[Frame]) -> BatchOutcome:
            warmed.extend(id(self) for each in frames if each.series.ordinal == 0)
            return super().process(frames)

    made: list[Analyser] = []

    def make(judge: Judge) -> Analyser:
        made.append(OnDevice(judge.bundle, judge.settings))
        return made[-1]

    run = Controlled(bundle)
    run.control = Control(run.front, run.control.judge, make, load_bundle, run.changed.append)
    before = len(made)
    run.control.use_threshold(0.3)
    assert {id(each) for each in made[before:]} == set(warmed)
    assert len(made) - before == 3
    assert made[before]._workspaces == {}, "what judges no frame holds no buffers"


def test_records_do_not_depend_on_how_their_judge_came(bundle: Bundle, bundle_folder: Path) -> None:
    """A run that was swapped to the same bundle says what a run says that was not."""

    def fields(run: Controlled) -> list[Any]:
        ordered = sorted(run.kept.results, key=lambda r: r.image_id)
        return [replace(r, received_at=0.0, latency_s=None) for r in ordered]

    spotted = [start(1, 30), *(image(n, pixels=water(0.2, seed=n)) for n in range(30)), end()]
    plain = Controlled(bundle).run(spotted)
    swapped = Controlled(bundle)
    step = swapped.during(lambda: swapped.control.use_bundle(bundle_folder))
    swapped.run([*spotted[:12], step, *spotted[12:]])
    assert fields(plain) == fields(swapped)


# --- peaks ------------------------------------------------------------------------------


def spotted(images: int, spots: int = 8) -> list[Step]:
    """A series whose images all have so many spots."""
    lit = [with_spots(water(0.05, seed=n), spots=spots) for n in range(images)]
    return [start(1, images), *(image(n, pixels=pixels) for n, pixels in enumerate(lit)), end()]


def by_image(run: Controlled) -> list[FrameResult]:
    return sorted(run.kept.results, key=lambda r: r.image_id)


def test_only_the_keys_given_change(bundle: Bundle) -> None:
    run = Controlled(bundle, cascade=CascadeSettings(min_peaks=7, hit_rule=HitRule.EITHER))
    before = run.control.facts["controls"]["peaks"]
    change = run.control.use_peaks({"indexable_peaks": 3, "pf8_min_snr": 4})
    assert (change.old, change.new) == (
        {"indexable_peaks": 10, "pf8_min_snr": None},
        {"indexable_peaks": 3, "pf8_min_snr": 4},
    )
    assert run.control.facts["controls"]["peaks"] == before | {"indexable_peaks": 3, "pf8_min_snr": 4}
    assert run.control.judge.cascade.min_peaks == 7


def test_a_rule_on_peaks_holds_from_the_next_batch(bundle: Bundle) -> None:
    run = Controlled(bundle, cascade=CascadeSettings(hit_rule=HitRule.PEAKS, min_peaks=5))
    script = spotted(60)
    step = run.during(lambda: run.control.use_peaks({"min_peaks": 9, "indexable_peaks": 8}))
    run.run([*script[:21], step, *script[21:51], run.wait, *script[51:]])
    assert run.raised == []
    run.assert_closes(60)
    found = by_image(run)
    assert [r.hit for r in found[:15]] == [True] * 15
    assert [r.hit for r in found[-10:]] == [False] * 10
    assert [r.indexable for r in found[:15]] == [False] * 15
    assert [r.indexable for r in found[-10:]] == [True] * 10


def test_another_finder_begins_products_and_ratios_anew_and_keeps_the_diffuse_sums(bundle: Bundle) -> None:
    run = Controlled(bundle)
    frames: list[Any] = []

    def change() -> None:
        run.control.use_peaks({"finder": "peakfinder8", "pf8_threshold": 2.0})
        running = run.front.running
        frames.append((running.indexable.counts(1000)[1], running.profile_frames, run.front.products.snapshot()))

    script = spotted(60)
    run.run([*script[:41], run.during(change), *script[41:51], run.wait, *script[51:]])
    assert run.raised == []
    run.assert_closes(60)
    (counted, profiles, snapshot) = frames[0]
    assert counted < 20
    assert profiles > counted, "what does not depend on peaks goes on"
    assert snapshot is None or sum(snapshot.frames.values()) < 20
    assert run.control.judge.facts["peak_finder"] == "peakfinder8"
    assert [judge.finders[0].name for judge in run.changed] == ["peakfinder8"]


def test_numbers_of_peakfinder8_reach_a_finder_in_use_and_its_shadow(bundle: Bundle) -> None:
    run = Controlled(bundle, cascade=CascadeSettings(shadow=finder_of("peakfinder8", Pf8Options())))
    run.control.use_peaks({"pf8_min_snr": 11.0})
    shadow = run.control.judge.cascade.shadow
    assert isinstance(shadow, Peakfinder8Finder)
    assert shadow.settings.min_snr == 11.0
    run.control.use_peaks({"finder": "peakfinder8-poisson"})
    finder = run.control.judge.cascade.finder
    assert isinstance(finder, Peakfinder8Finder)
    assert finder.settings.min_snr == 11.0
    run.control.use_peaks({"pf8_min_snr": None})
    assert run.control.judge.cascade.finder.settings.min_snr == 6.0  # type: ignore[attr-defined]


BAD_PEAKS: list[tuple[dict[str, Any], str]] = [
    ({"min_peaks": 0}, "min_peaks is 0; give a whole number from 1 to 100000"),
    ({"min_peaks": 10**400}, "min_peaks is too large"),
    ({"min_peaks": 5.0}, "min_peaks is 5.0; give a whole number"),
    ({"min_peaks": True}, "min_peaks is True"),
    ({"min_peaks": None}, "min_peaks is None"),
    ({"min_peaks": "6"}, "min_peaks is '6'"),
    ({"indexable_peaks": [1]}, "indexable_peaks is [1]"),
    ({"hit_rule": "all"}, "hit_rule is 'all'; give one of network, peaks, either, both"),
    ({"finder": "other"}, "finder is 'other'; give one of bundle, poisson, learned, peakfinder8"),
    ({"finder": {}}, "finder is {}"),
    ({"pf8_threshold": -0.1}, "pf8_threshold is -0.1; give a number from 0 to 1e+06 or null"),
    ({"pf8_min_snr": float("nan")}, "pf8_min_snr is no number; give a number from 0.01 to 30 or null"),
    ({"pf8_min_snr": float("inf")}, "pf8_min_snr is no number"),
    ({"pf8_local_bg_radius": 21}, "pf8_local_bg_radius is 21; give a whole number from 1 to 20"),
    ({"pf8_min_pix_count": 300}, "pf8_min_pix_count 300, max_pix_count 200"),
    ({"pf8_min_res": 100.0, "pf8_max_res": 50.0}, "pf8_max_res 50.0 is not above min_res 100.0"),
    ({"shadow": "poisson"}, "unknown key 'shadow'; known are min_peaks"),
    ({"\x1b[31m" * 100: 1}, "unknown key '\\x1b[31m"),
]


@pytest.mark.parametrize(("changes", "said"), BAD_PEAKS)
def test_bad_peak_parameters_are_refused_with_key_and_range_and_change_nothing(
    bundle: Bundle, changes: dict[str, Any], said: str
) -> None:
    run = Controlled(bundle)
    before, facts = run.control.judge, run.control.facts
    with pytest.raises(BadPeaks) as refused:
        run.control.use_peaks({"indexable_peaks": 4} | changes)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert run.control.judge is before
    assert run.control.facts == facts


def test_a_finder_that_the_bundle_has_not_is_refused(bundle: Bundle) -> None:
    run = Controlled(bundle)
    with pytest.raises(BadBundle, match="no learned peak finder"):
        run.control.use_peaks({"finder": "learned"})
    assert run.control.facts["controls"]["peaks"]["finder"] == "bundle"


# --- channel ----------------------------------------------------------------------------


def two_channels(images: int) -> list[Step]:
    """A series in two channels; in the second all images have spots, in the first none, and masks differ."""
    masks = {name: np.zeros(SHAPE, np.uint32) for name in ("threshold_1", "threshold_2")}
    masks["threshold_2"][:, :2] = 1
    first = StartMessage(1, metadata(images, channels=("threshold_1", "threshold_2"), masks=masks))

    def both(n: int) -> ImageMessage:
        dark = image(n)
        lit = image_data(with_spots(water(0.05, seed=n)))
        return replace(dark, channels={**dark.channels, "threshold_2": lit})

    return [first, *(both(n) for n in range(images)), end()]


def test_a_channel_holds_from_the_next_frame_and_products_hold_it_alone(bundle: Bundle) -> None:
    run = Controlled(bundle, cascade=CascadeSettings(hit_rule=HitRule.PEAKS))
    script, done = two_channels(80), []

    def change() -> None:
        done.append(run.control.use_channel("threshold_2"))
        done.append(run.front.products.snapshot())

    # Two frames a batch and a ring of three: most of what was sent before waits or is in a worker's hand.
    run.run([*script[:31], run.during(change), *script[31:61], run.wait, *script[61:]])
    assert run.raised == []
    run.assert_closes(80)
    found = by_image(run)
    channels = [r.channel for r in found]
    assert channels == sorted(channels), "once the new one, never the old one again"
    assert channels[:25] == ["threshold_1"] * 25
    assert channels[-20:] == ["threshold_2"] * 20
    assert [r.hit for r in found] == [r.channel == "threshold_2" for r in found]
    assert {r.mask for r in found if r.channel == "threshold_2"} != {
        r.mask for r in found if r.channel == "threshold_1"
    }
    assert done[0].drained
    assert (done[0].old, done[0].new) == (None, "threshold_2")
    snapshot = run.front.products.snapshot()
    assert snapshot is not None
    assert snapshot.frames["miss"] == 0, "no image of the old channel"
    assert run.front.running.hits.counts(1000)[0] == run.front.running.hits.counts(1000)[1]


def test_a_channel_that_the_series_has_not_is_refused_with_those_it_has(bundle: Bundle) -> None:
    run = Controlled(bundle)
    script = two_channels(20)
    run.run([*script[:5], run.during(lambda: run.control.use_channel("threshold_3")), run.wait, *script[5:]])
    (error,) = run.raised
    assert isinstance(error, BadChange)
    assert str(error) == "channel 'threshold_3': the series has 'threshold_1', 'threshold_2'"
    run.assert_closes(20)
    assert run.front.channel is None


def test_the_difference_is_no_channel_to_analyse(bundle: Bundle) -> None:
    run = Controlled(bundle)
    with pytest.raises(BadChange, match="all ones"):
        run.control.use_channel("difference")


def test_before_the_first_series_any_channel_may_be_asked_for(bundle: Bundle) -> None:
    run = Controlled(bundle)
    assert run.control.use_channel("threshold_2").new == "threshold_2"
    run.run(two_channels(4))
    assert {r.channel for r in run.kept.results} == {"threshold_2"}


def test_the_first_threshold_again(bundle: Bundle) -> None:
    run = Controlled(bundle, channel="threshold_2")
    assert run.control.use_channel(None).old == "threshold_2"
    run.run(two_channels(4))
    assert {r.channel for r in run.kept.results} == {"threshold_1"}


# --- runs -------------------------------------------------------------------------------


def test_two_runs_share_out_the_frames_without_rest(bundle: Bundle) -> None:
    run = Controlled(bundle, cascade=CascadeSettings(threshold=0.0))
    run.run(series_with(run, lambda: run.control.use_run({"number": 7, "sample": "second"}, new=True), 80, 40))
    assert run.raised == []
    run.assert_closes(80)
    first, second = *run.control.runs.over, run.control.summary()
    assert first.counts.frames + second.counts.frames == 80
    assert first.counts.frames > 0
    assert second.counts.frames > 0
    assert first.hits + second.hits == 80
    assert first.over
    assert first.until == second.info.began_at
    assert (second.info.number, second.info.sample) == (7, "second")
    snapshot = run.front.products.snapshot()
    assert snapshot is not None
    assert sum(snapshot.frames.values()) == second.counts.frames, "products are those of the run"
    assert first.counts.series_ids == second.counts.series_ids == (1,)


def test_the_next_run_counts_on_keeps_the_sample_and_has_no_notes_yet(bundle: Bundle) -> None:
    run = Controlled(bundle)
    run.control.use_run({"number": 41, "sample": "lysozyme", "notes": "jet moved"})
    run.control.use_run({}, new=True)
    info = run.control.runs.info
    assert (info.number, info.sample, info.notes) == (42, "lysozyme", "")
    run.control.use_run({"number": None}, new=True)
    assert run.control.runs.info.number is None
    run.control.use_run({}, new=True)
    assert run.control.runs.info.number is None


def test_an_edit_changes_what_is_given_and_neither_counts_nor_time(bundle: Bundle) -> None:
    run = Controlled(bundle)
    began = run.control.runs.info.began_at
    run.run(series_with(run, lambda: run.control.use_run({"notes": "a\n\tb"}), 30, 10))
    assert run.raised == []
    assert run.control.runs.info.notes == "a\n\tb"
    assert run.control.runs.info.began_at == began
    assert run.control.summary().counts.frames == 30


BAD_TEXTS = ("\x00", "a\x1b[31mb", "\u202egpj.exe", "a\u2028b", "x\ud800", "\x7f", "\x85")


@pytest.mark.parametrize("text", BAD_TEXTS)
@pytest.mark.parametrize("key", ["sample", "notes"])
def test_texts_with_control_characters_are_refused(bundle: Bundle, key: str, text: str) -> None:
    run = Controlled(bundle)
    for new in (False, True):
        with pytest.raises(BadRun, match=f"{key} has a control character"):
            run.control.use_run({key: text}, new=new)
    assert run.control.runs.info.sample == run.control.runs.info.notes == ""
    assert run.control.changes.latest(50) == []


def test_texts_are_bounded_and_of_any_script(bundle: Bundle) -> None:
    run = Controlled(bundle)
    for key, most in (("sample", 200), ("notes", 10_000)):
        with pytest.raises(BadRun, match=f"{key} has {most + 1} characters"):
            run.control.use_run({key: "x" * (most + 1)})
        run.control.use_run({key: "ß蛋白质می\u200cخواهم"})
    with pytest.raises(BadRun, match="sample has a control character"):
        run.control.use_run({"sample": "a\nb"})
    with pytest.raises(BadRun, match="number"):
        run.control.use_run({"number": -1})


# --- what was changed -------------------------------------------------------------------


def test_changes_are_kept_with_their_time_and_those_refused_are_not(bundle: Bundle, second: Path) -> None:
    run = Controlled(bundle)
    began = time.time()
    run.control.use_threshold(0.25)
    with pytest.raises(BadPeaks):
        run.control.use_peaks({"min_peaks": 0})
    run.control.use_peaks({"min_peaks": 6})
    run.control.use_peaks({"min_peaks": 6})
    run.control.use_bundle(second)
    run.control.use_targets({"hits": 100})
    run.control.reset()
    kept = run.control.facts["changes"]
    assert [(each.action, each.text) for each in kept] == [
        ("threshold", "threshold 0.5 → 0.25"),
        ("peaks", "peaks min_peaks 5 → 6"),
        ("bundle", f"bundle {bundle.label} → {load_bundle(second).label}"),
        ("target", "target hits none → 100"),
        ("reset", "running products begun anew"),
    ]
    assert began - 1 <= kept[0].time <= kept[-1].time <= time.time()
    assert run.control.summary().changes == 4, "a target changes nothing of the analysis"


def test_the_changes_shown_are_bounded(bundle: Bundle) -> None:
    run = Controlled(bundle)
    for n in range(1200):
        run.control.use_run({"notes": str(n)})
    shown = run.control.facts["changes"]
    assert len(shown) == 50
    assert shown[-1].new["notes"] == "1199"
    assert len(run.control.changes.latest(5000)) == 1000


def test_what_is_not_counted_has_no_target(bundle: Bundle) -> None:
    run = Controlled(bundle)
    assert run.control.use_targets({"hits": 10}).new == {"hits": 10}
    assert run.front.targets.facts()["hits"]["target"] == 10
    with pytest.raises(BadChange, match="indexed"):
        run.control.use_targets({"hits": 20, "indexed": 5})
    assert run.front.targets.facts()["hits"]["target"] == 10


def test_while_one_change_is_made_the_others_are_busy(bundle: Bundle, second: Path) -> None:
    run = Controlled(bundle)
    loading, go_on = threading.Event(), threading.Event()

    def load(folder: Path) -> Bundle:
        loading.set()
        assert go_on.wait(10)
        return load_bundle(folder)

    run.control._load = load
    first = threading.Thread(target=run.control.use_bundle, args=(second,))
    first.start()
    assert loading.wait(10)
    for other in (
        lambda: run.control.use_peaks({"min_peaks": 6}), lambda: run.control.use_channel(None),
        lambda: run.control.use_run({"number": 1}, new=True), lambda: run.control.use_targets({"hits": 5}),
    ):  # fmt: skip
        with pytest.raises(Busy):
            other()
    go_on.set()
    first.join(30)


def test_a_run_that_is_ending_takes_no_change_of_any_kind(bundle: Bundle) -> None:
    run = Controlled(bundle)
    run.run(whole_series(4))
    for change in (
        lambda: run.control.use_peaks({"min_peaks": 6}), lambda: run.control.use_channel(None),
        lambda: run.control.use_run({"number": 1}, new=True), lambda: run.control.use_targets({"hits": 5}),
    ):  # fmt: skip
        with pytest.raises(Ending):
            change()
    assert run.control.runs.over == []
