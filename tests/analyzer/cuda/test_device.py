"""A device that fails: told from faults of ours, known to all workers, and nothing of it freed."""

import gc
import logging
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch

from analyzer.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from analyzer.cascade import Analyser, CascadeSettings, PlanCache
from analyzer.cuda import device as devices
from analyzer.cuda.engine import Engine, room_for
from analyzer.cuda.program import DeviceFault
from analyzer.cuda.staging import Batch
from analyzer.judge import Judge
from analyzer.results import Status
from analyzer.warm import warm_up
from cxls.makers import Makers
from tests.analyzer.builders import SHAPE, frame, series, water
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
    made: ClassVar[list["weakref.ref[torch.Tensor]"]] = []

    def __init__(self, *arguments: Any) -> None:
        self.pinned = torch.zeros(8)
        self.made.append(weakref.ref(self.pinned))

    def settle(self) -> None:
        pass

    def take_back(self) -> None:
        pass

    def reduce(self, images: Any) -> Any:
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

    def fail(self: Engine, frames: int) -> None:
        raise ZeroDivisionError("a fault of ours, behind the copy")

    monkeypatch.setattr(Engine, "_launch", fail)
    monkeypatch.setattr(devices, "settle", settled.append)
    engine = object.__new__(Engine)
    engine._device = CPU
    with pytest.raises(ZeroDivisionError):
        next(engine._run(1))
    assert settled == [CPU]


@pytest.mark.parametrize(("frame_bytes", "size"), [(60 << 10, 2 << 20), (9 << 20, 64 << 20), (64 << 20, 128 << 20)])
def test_a_batch_is_page_locked_in_a_power_of_two(frame_bytes: int, size: int) -> None:
    batch = Batch(32, room_for(32, frame_bytes), CPU)
    assert batch.device_bytes.nbytes == size
    assert batch.largest >= frame_bytes
