"""Analysers for a device: how it is opened, and what is made once it is lost."""

import pytest
import torch

from cxls.makers import Makers


def test_a_device_is_opened_with_whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    Makers("cuda", (), ())
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
