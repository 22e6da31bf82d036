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

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from analyzer.bundle import BadBundle, Bundle, load_bundle
from analyzer.calibration import Calibration
from analyzer.cascade import Analyser, BatchOutcome, CascadeSettings
from analyzer.control import Busy, Control
from analyzer.front import Ending, Front, FrontSettings
from analyzer.judge import Judge
from analyzer.mask_file import BadMask
from analyzer.warm import warm_up
from streamer.frames import Frame
from streamer.validity import Validity
from tests.analyzer.builders import (
    SHAPE,
    Collector,
    ScriptedSource,
    Step,
    assert_account_closes,
    end,
    image,
    start,
    water,
    whole_series,
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
    run = Controlled(bundle, workers=1, batch_frames=4, batch_linger_s=1.0, ring_frames=8)
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
        deadline = time.monotonic() + 10
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
    assert time.monotonic() - began < 2


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
