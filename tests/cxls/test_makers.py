"""Analysers for a device: how it is opened, and what is made once it is lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from analyzer.bundle import DEFAULT_BUNDLE
from analyzer.cascade import Analyser
from analyzer.worker_thread import WorkerThread
from cxls.bench.worker import make_worker
from cxls.commands.analyze import Session
from cxls.makers import Makers
from cxls.settings import AnalyzeSettings, BadSettings
from tests.analyzer.builders import ScriptedSource


@pytest.fixture
def tensor_float() -> Iterator[None]:
    """TensorFloat-32 as torch may have it."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("tensor_float")
def test_a_device_is_opened_with_whole_float32() -> None:
    Makers("cuda", (), ())
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_an_analysis_is_warm_in_its_threads_before_the_detector_is_asked(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[Any] = []
    thread = WorkerThread("worker-0")

    def warm(analysers: Any, judge: Any) -> list[WorkerThread]:
        order.append(list(analysers))
        return [thread]

    def refuse(*given: Any) -> None:
        order.append("connected")
        raise BadSettings("no")

    monkeypatch.setattr("cxls.commands.analyze.warm_threads", warm)
    monkeypatch.setattr("cxls.commands.analyze._connect", refuse)
    given = AnalyzeSettings(bundle=bundle_folder, device="cpu", workers=1, listen="127.0.0.1:0")
    with pytest.raises(BadSettings):
        Session(given, ["tcp://127.0.0.1:1"])
    (analyser,), connected = order
    assert isinstance(analyser, Analyser)
    assert connected == "connected"

    monkeypatch.setattr("cxls.commands.analyze._connect", lambda *given: ScriptedSource([]))
    session = Session(given, ["tcp://127.0.0.1:1"])
    assert session.front._threads == [thread]
    assert session.web is not None
    session.web.close()


def test_a_bench_of_a_device_makes_its_workers_as_the_program_does(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []

    class Watched(Makers):
        def __init__(self, device: str, *others: Any) -> None:
            wanted.append(device)
            super().__init__("cpu", *others)

    monkeypatch.setattr("cxls.bench.worker.Makers", Watched)
    make_worker(DEFAULT_BUNDLE, "cuda")
    assert wanted == ["cuda"]
