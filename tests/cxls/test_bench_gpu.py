"""Benchmarks of a device: what they say without one, and on the kernels built for the CPU."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from analyzer.bundle import load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.cuda.compiler import source_of
from analyzer.cuda.engine import DevicePrograms, open_programs
from analyzer.cuda.reduce import SOURCES
from analyzer.cuda.signatures import kernels_of
from cxls.bench import host_gpu, kernels_gpu
from cxls.bench.worker import bench_bundle
from streamer.frames import Frame
from tests.analyzer.builders import frame, image_data, series, water, with_spots
from tests.analyzer.cuda.host_build import HostProgram
from tests.analyzer.cuda.host_reduce import programs


class HostClock:
    """The kernels built for the CPU are done when their launch returns."""

    held = 0

    def hold(self) -> None:
        self.held += 1

    def mark(self) -> float:
        return time.perf_counter()

    def wait(self) -> None:
        pass

    def ms(self, before: float, after: float) -> float:
        return 1e3 * (after - before)


def some_frames(count: int = 5) -> list[Frame]:
    return [frame(with_spots(water(0.1, seed=n), 80), n, series(1)) for n in range(count)]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> DevicePrograms:
    return DevicePrograms(HostProgram("bslz4.cu", tmp_path_factory.mktemp("host")), programs())


def test_every_kernel_of_the_way_is_timed_once_a_round(host: DevicePrograms) -> None:
    clock = HostClock()
    found = kernels_gpu.by_kernel(some_frames(), host, clock, rounds=3)
    of_reduction = {name for source in SOURCES for name in kernels_of(source_of(source))}
    assert set(found) == {kernels_gpu.COPY, "bslz4_u16"} | of_reduction
    assert list(found)[:2] == [kernels_gpu.COPY, "bslz4_u16"]
    assert {len(each) for each in found.values()} == {3}
    assert min(min(each) for each in found.values()) > 0.0
    assert clock.held == 4, "the first round does not count"


def test_rows_of_kernels_agree_with_each_other() -> None:
    found = {
        "copy to the device": [3.0, 4.0],
        "bslz4_u16": [50.0, 40.0],
        "reduce_a": [1.0, 2.0],
        "reduce_b": [5.0, 3.0],
    }
    rows = {row.name: (row.value, row.median, row.unit) for row in kernels_gpu.figures("usual", found, "a device")}
    assert rows["GPU, usual: bslz4_u16"] == (40.0, 45.0, "us a frame")
    assert rows["GPU, usual: decode kernel alone"] == (25000.0, 22500.0, "frames/s")
    assert rows["GPU, usual: all kernels of the reduction"] == (5.0, 5.5, "us a frame")


def test_frames_that_do_not_decode_are_no_benchmark(host: DevicePrograms) -> None:
    image = image_data(water(3.0))
    damaged = bytearray(image.data)
    damaged[20:28] = b"\xff" * 8
    bad = frame(replace(image, data=bytes(damaged)))
    with pytest.raises(RuntimeError, match="does not decode"):
        kernels_gpu.by_kernel([bad], host, HostClock(), rounds=1)


def test_the_hosts_share_counts_all_threads_and_all_frames() -> None:
    bundle = load_bundle(bench_bundle())
    workers = [Analyser(bundle, CascadeSettings()) for _ in range(2)]
    cpu, rate = host_gpu.host_cpu(workers, some_frames(), 2, 2)
    assert cpu.value is not None
    assert rate.value is not None
    # Two threads have no more than two processors.
    assert 0.0 < cpu.value * rate.value / 1e3 <= 2.2
    assert cpu.note == "2 workers, batches of 32"


def test_without_a_device_the_rows_say_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    rows = [*kernels_gpu.measure({"usual": some_frames()}), *host_gpu.measure(some_frames(), bench_bundle())]
    assert len(rows) == 4
    assert {(row.value, row.note) for row in rows} == {(None, "not measured on a GPU")}


@pytest.mark.gpu
def test_a_device_is_timed() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = kernels_gpu.by_kernel(some_frames(), open_programs("cuda", None), kernels_gpu.DeviceClock(), rounds=2)
    assert min(np.ravel(list(found.values()))) > 0.0
    rows = host_gpu.measure(some_frames(), bench_bundle())
    assert all(row.value is not None and row.value > 0.0 for row in rows)
