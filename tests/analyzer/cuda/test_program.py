"""Kernels on a device, or the word that there is none."""

import sys
from typing import Any

import numpy as np
import pytest
import torch

from analyzer.cuda.decode import BatchDecoder
from analyzer.cuda.program import DeviceFault, NoDevice, Program
from tests.analyzer.cuda.decoding import batch_for, check, fetched
from tests.support import packed_image, poisson


def test_without_a_device_the_caller_is_told() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(NoDevice, match="torch sees no CUDA device"):
        Program("bslz4.cu")


def test_without_the_bindings_the_caller_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(NoDevice, match="install cuda-bindings"):
        Program("bslz4.cu", "cuda:0")
    with pytest.raises(NoDevice, match="cpu is no CUDA device"):
        Program("bslz4.cu", "cpu")


@pytest.mark.gpu
def test_a_graph_decodes_whatever_batch_is_put_in_its_place(device_decoder: Program) -> None:
    shape = (150, 160)
    images = [packed_image(pixels) for pixels in poisson(6, shape, "u2")]
    decoder = BatchDecoder(shape, np.dtype("u2"), np.ones(shape, np.uint8), device_decoder)
    batch, into = batch_for(decoder, 4, device_decoder.device), decoder.outputs(4)
    batch.upload()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoder.decode(batch, into, grid=(decoder.units, 4))
    for group in (images[:4], images[4:]):
        batch.clear()
        for image in group:
            decoder.stage(image, batch)
        into.pixels.fill_(0x5555)
        batch.upload()
        graph.replay()
        frames = fetched(batch, into)
        for number, image in enumerate(group):
            check(frames, number, image)


@pytest.mark.gpu
def test_a_launch_on_a_stream_of_its_own_is_ordered_by_it(device_decoder: Program) -> None:
    shape = (150, 160)
    image = packed_image(poisson(1, shape, "u2")[0])
    decoder = BatchDecoder(shape, np.dtype("u2"), np.ones(shape, np.uint8), device_decoder)
    batch, into = batch_for(decoder, 1, device_decoder.device), decoder.outputs(1)
    into.pixels.fill_(0x5555)
    torch.cuda.synchronize()
    stream: Any = torch.cuda.Stream()
    decoder.stage(image, batch)
    with torch.cuda.stream(stream):
        batch.upload()
    decoder.decode(batch, into, stream)
    stream.synchronize()
    check(fetched(batch, into), 0, image)


@pytest.mark.gpu
def test_a_grid_that_the_device_cannot_run_is_a_fault(device_decoder: Program) -> None:
    nothing = torch.zeros(64, dtype=torch.uint8, device=device_decoder.device)
    with pytest.raises(DeviceFault, match="CUDA_ERROR_INVALID_VALUE"):
        device_decoder.launch("bslz4_u16", 1, 1 << 20, None, nothing, 64, nothing, 8, 64, *(nothing,) * 4)
