"""Analysers for a device: how it is opened, and what is made once it is lost."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from analyzer.bundle import DEFAULT_BUNDLE
from cxls.bench.worker import make_worker
from cxls.makers import Makers


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


def test_a_bench_of_a_device_makes_its_workers_as_the_program_does(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []

    class Watched(Makers):
        def __init__(self, device: str, *others: Any) -> None:
            wanted.append(device)
            super().__init__("cpu", *others)

    monkeypatch.setattr("cxls.bench.worker.Makers", Watched)
    make_worker(DEFAULT_BUNDLE, "cuda")
    assert wanted == ["cuda"]
