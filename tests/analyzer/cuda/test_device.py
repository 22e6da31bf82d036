"""A device that fails: told from faults of ours, known to all workers, and nothing of it freed."""

import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch

from analyzer.bundle import DEFAULT_BUNDLE, BadBundle, Bundle, load_bundle
from analyzer.cascade import Analyser, BatchOutcome, CascadeSettings, PlanCache
from analyzer.cuda import device as devices
from analyzer.cuda.engine import Engine, room_for
from analyzer.cuda.program import DeviceFault
from analyzer.cuda.staging import Batch
from analyzer.front import Front, FrontSettings
from analyzer.judge import Judge
from analyzer.results import Status
from analyzer.warm import warm_threads, warm_up
from cxls.makers import Makers
from streamer.frames import Frame
from tests.analyzer.builders import (
    SHAPE,
    Collector,
    ScriptedSource,
    assert_account_closes,
    frame,
    series,
    water,
    whole_series,
)
from tests.support import REPOSITORY

CPU = torch.device("cpu")
ILLEGAL = "CUDA_ERROR_ILLEGAL_ADDRESS"
WORDS = [
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA driver error: unknown error",
    "CUDA error: an illegal memory access was encountered",
]


class Card:
    """An engine that fails as it is told, and what belongs to it."""

    error: Exception | None = None
    hang: threading.Event | None = None
    made: ClassVar[list["weakref.ref[torch.Tensor]"]] = []

    def __init__(self, *arguments: Any) -> None:
        self.pinned = torch.zeros(8)
        self.made.append(weakref.ref(self.pinned))

    @property
    def engine(self) -> "Card":
        return self

    def for_series(self) -> "Card":
        return self

    def settle(self) -> None:
        pass

    def take_back(self) -> None:
        pass

    def reduce(self, images: Any) -> Any:
        if self.hang is not None:
            assert self.hang.wait(60)
        if self.error is not None:
            # Another one each time: its traceback would hold what this test wants to see freed.
            raise type(self.error)(*self.error.args)
        yield from [None] * len(images)


class Programs:
    device = CPU


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(DEFAULT_BUNDLE)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Card]]:
    # What is logged is kept by pytest, with its traceback.
    logging.disable(logging.CRITICAL)
    monkeypatch.setattr("analyzer.cascade.Engine", Card)
    monkeypatch.setattr(Card, "made", [])
    monkeypatch.setattr(Card, "error", None)
    monkeypatch.setattr(Card, "hang", None)
    yield Card
    logging.disable(logging.NOTSET)


def analyser_of(bundle: Bundle) -> Analyser:
    plans, settings = PlanCache(), CascadeSettings()
    programs: Any = Programs()
    return Analyser(bundle, settings, "cpu", plans, programs, Analyser(bundle, settings, "cpu", plans))


def alive(card: type[Card]) -> list[bool]:
    gc.collect()
    return [each() is not None for each in card.made]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("count", [1, 3])
def test_what_torchs_libraries_report_is_the_devices(
    words: str, count: int, shipped: Bundle, card: type[Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "error", RuntimeError(words))
    analyser = analyser_of(shipped)
    results = analyser.process([frame(water(0.5, seed=n), n) for n in range(count)]).results
    assert [result.status for result in results] == [Status.OK] * count
    assert analyser.fault == words
    assert devices.lost("cpu") == words


def test_a_full_device_is_not_lost_to_others(
    shipped: Bundle, card: type[Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "error", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `create`"))
    analyser = analyser_of(shipped)
    analyser.process([frame(water(0.5), 0)])
    assert analyser.fault is not None
    assert devices.lost("cpu") is None
    assert alive(card) == [False]


def test_of_a_lost_device_nothing_is_freed_whoever_lets_go(
    shipped: Bundle, card: type[Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(shipped, CascadeSettings())
    one = series(1)
    unaware, noticing = analyser_of(shipped), analyser_of(shipped)
    for each in (unaware, noticing):
        each.process([frame(water(0.5), 0, one)])
    monkeypatch.setattr(card, "error", DeviceFault(ILLEGAL))
    noticing.process([frame(water(0.5), 1, one)])
    # Freed where nothing is lost, as the test with a device that is full shows.
    unaware.forget(one)
    warm_up(analyser_of(shipped), judge)
    del unaware, noticing, each
    assert alive(card) == [True, True]


def test_a_device_that_was_lost_during_a_warm_up_keeps_what_it_made(
    shipped: Bundle, card: type[Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "error", DeviceFault(ILLEGAL))
    warm_up(analyser_of(shipped), Judge(shipped, CascadeSettings()))
    assert alive(card) == [True]


def test_what_a_device_in_order_held_is_freed(shipped: Bundle, card: type[Card]) -> None:
    analyser = analyser_of(shipped)
    analyser.process([frame(water(0.5), 0)])
    del analyser
    assert alive(card) == [False]


def test_a_worker_goes_to_the_cpu_as_soon_as_another_lost_the_device(
    shipped: Bundle, card: type[Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    analyser, one = analyser_of(shipped), series(1)
    analyser.process([frame(water(0.5), 0, one)])
    devices.lose(CPU, ILLEGAL)
    monkeypatch.setattr(card, "error", AssertionError("asked of a lost device"))
    assert [each.plan.shape for each in analyser.covered(one)] == [SHAPE]
    assert analyser.process([frame(water(0.5), 1, one)]).results[0].status == Status.OK
    assert analyser.fault == ILLEGAL


def test_what_is_made_after_a_loss_is_the_cpus(shipped: Bundle) -> None:
    judge = Judge(shipped, CascadeSettings())
    makers = Makers("cuda", (), ())
    devices.lose(torch.device("cuda:0"), ILLEGAL)
    made = makers.make(judge)
    assert made.process([frame(water(0.5), 0)]).results[0].status == Status.OK
    assert made.fault is None


def test_a_bundle_that_a_failing_device_refuses_is_not_refused(
    shipped: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Bundle, device: str) -> Bundle:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(Bundle, "copy_on", refuse)
    made = Makers("cuda", (), ()).make(Judge(shipped, CascadeSettings()))
    assert made.process([frame(water(0.5), 0)]).results[0].status == Status.OK
    assert devices.lost("cuda") == "CUDA error: unspecified launch failure"


CHILD = """
import os, sys, torch
from analyzer.cuda import device
from cxls import cli

class Context:
    def __del__(self):
        os.abort()  # as an error that leaves a destructor does

def work(**given):
    device.keep(Context())
    device.lose(torch.device("cuda"), "gone")
    print("all is written")
    {ending}

cli.cli.main = work
cli.main()
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("return", 0),
        ("raise cli.Interrupted(15)", 143),
    ],
)
def test_a_program_whose_device_was_lost_ends_with_its_exit_code(ending: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(ending=ending)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == "all is written\n"


def test_a_device_that_hangs_is_a_fault_after_its_time_and_burns_no_core() -> None:
    began = time.thread_time()
    with pytest.raises(DeviceFault, match="does not answer for"):
        devices.wait(lambda: False, 0.5)
    assert time.thread_time() - began < 0.25


def test_a_batch_whose_launch_fails_is_waited_for_before_another_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[torch.device] = []

    def fail(self: Engine, frames: int, into: Any) -> None:
        raise ZeroDivisionError("a fault of ours, behind the copy")

    monkeypatch.setattr(Engine, "_launch", fail)
    monkeypatch.setattr(devices, "settle", settled.append)
    engine = object.__new__(Engine)
    engine._device = CPU
    with pytest.raises(ZeroDivisionError):
        next(engine._run(1, Any))
    assert settled == [CPU]


@pytest.mark.parametrize(("frame_bytes", "size"), [(60 << 10, 2 << 20), (9 << 20, 64 << 20), (64 << 20, 128 << 20)])
def test_a_batch_is_page_locked_in_a_power_of_two(frame_bytes: int, size: int) -> None:
    batch = Batch(32, room_for(32, frame_bytes), CPU)
    assert batch.device_bytes.nbytes == size
    assert batch.largest >= frame_bytes


# --- engines are shared, and warm ------------------------------------------------------------


def test_series_measured_alike_share_an_engine_and_the_last_one_leaves_it_there(
    shipped: Bundle, card: type[Card]
) -> None:
    analyser = analyser_of(shipped)
    for number in range(1, 7):
        one = series(number)
        analyser.process([frame(water(0.5), 0, one)])
        analyser.forget(one)
    assert alive(card) == [True]


def test_no_more_engines_stay_than_series_are_ready(shipped: Bundle, card: type[Card]) -> None:
    analyser = analyser_of(shipped)
    for number in range(1, 8):
        analyser.process([frame(water(0.5), 0, series(number, camera_length_m=0.1 + 0.01 * number))])
    assert alive(card) == [False, False, False, True, True, True, True]


def test_the_engine_asked_for_longest_ago_makes_room(shipped: Bundle, card: type[Card]) -> None:
    analyser = analyser_of(shipped)
    for number, kind in enumerate((1, 2, 3, 4, 1, 5), 1):
        one = series(number, camera_length_m=0.1 + 0.01 * kind)
        analyser.process([frame(water(0.5), 0, one)])
        analyser.forget(one)
    assert alive(card) == [True, False, True, True, True]


class Told(Analyser):
    """An analyser that says in which thread it was asked."""

    asked: list[tuple[str, "Told"]]

    def process(self, frames: Sequence[Frame]) -> BatchOutcome:
        self.asked.append((threading.current_thread().name, self))
        return super().process(frames)


def told(bundle: Bundle, asked: list[tuple[str, Told]]) -> Told:
    plans, settings = PlanCache(), CascadeSettings()
    programs: Any = Programs()
    made = Told(bundle, settings, "cpu", plans, programs, Analyser(bundle, settings, "cpu", plans))
    made.asked = asked
    return made


def test_each_analyser_is_warm_in_the_thread_in_which_it_judges(shipped: Bundle, card: type[Card]) -> None:
    asked: list[tuple[str, Told]] = []
    analysers = [told(shipped, asked) for _ in range(3)]
    threads = warm_threads(analysers, Judge(shipped, CascadeSettings()))
    warmed = set(asked)
    assert warmed == {(f"worker-{number}", analyser) for number, analyser in enumerate(analysers)}
    assert len(card.made) == 9
    assert not any(alive(card)), "buffers for a module of each type are not kept"
    kept = Collector()
    front = Front(
        ScriptedSource(whole_series(30)), analysers, [kept], FrontSettings(block=True, batch_frames=1), threads=threads
    )
    front.run(threading.Event())
    assert len(kept.results) == 30
    assert set(asked) == warmed
    assert not any(thread.is_alive() for thread in threads)


def test_what_a_warm_up_refuses_is_refused_in_whatever_thread(
    shipped: Bundle, card: type[Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Analyser, frames: Sequence[Frame]) -> BatchOutcome:
        raise ZeroDivisionError("in the network")

    analysers = [analyser_of(shipped) for _ in range(2)]
    monkeypatch.setattr(Analyser, "process", fail)
    with pytest.raises(BadBundle, match="in the network"):
        warm_threads(analysers, Judge(shipped, CascadeSettings()))


def test_without_a_device_no_thread_is_made_before(shipped: Bundle) -> None:
    settings = CascadeSettings()
    assert warm_threads([Analyser(shipped, settings)], Judge(shipped, settings)) == []


# --- a device that does not come back ----------------------------------------------------------


@pytest.mark.parametrize("stopped", [False, True])
def test_a_device_that_hangs_in_the_last_batch_does_not_keep_the_program(
    stopped: bool, shipped: Bundle, card: type[Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.front.HANDOVER_S", 0.5)
    monkeypatch.setattr("analyzer.front.DRAIN_S", 0.5)
    monkeypatch.setattr(card, "hang", threading.Event())
    kept, stop = Collector(), threading.Event()
    analyser = analyser_of(shipped)
    settings = FrontSettings(block=True, batch_frames=4, batch_linger_s=1.0)
    script = [*whole_series(6), *([stop.set] if stopped else [])]
    front = Front(ScriptedSource(script), [analyser], [kept], settings)
    runner = threading.Thread(target=front.run, args=(stop,), daemon=True)
    runner.start()
    runner.join(20)
    assert not runner.is_alive()
    assert front.account.dropped["shutdown"] == 6
    assert_account_closes(front.account)
    assert {result.status for result in kept.results} == {Status.DROPPED}
    said = "the device does not come back from a call for 0.5 s"
    assert front.device_faults == [said]
    assert devices.lost("cpu") == said
    assert alive(card) == [True], "of a lost device nothing is freed"
    # It comes back after all: what it says then is in no record.
    assert card.hang is not None
    card.hang.set()
    front._threads[0].join(10)
    assert front.results_waiting == 0
    assert len(kept.results) == 6


def test_what_the_cpu_works_at_is_waited_for(shipped: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyzer.front.HANDOVER_S", 0.05)
    settings = CascadeSettings()

    class Slow(Analyser):
        def process(self, frames: Sequence[Frame]) -> BatchOutcome:
            time.sleep(0.6)
            return super().process(frames)

    kept = Collector()
    front = Front(ScriptedSource(whole_series(4)), [Slow(shipped, settings)], [kept], FrontSettings(block=True))
    front.run(threading.Event())
    assert {result.status for result in kept.results} == {Status.OK}
