"""Load of the GPU among the metrics: what it tells is shown, what it does not tell costs no scrape."""

import logging
from dataclasses import replace

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest

from analyzer.metrics import GpuLoad
from analyzer.metrics.gpu import Health, Memory
from tests.support import require

MEMORY = Memory(allocated_bytes=3 << 30, size_bytes=80 << 30)
HEALTH = Health(utilization=0.85, temperature_celsius=61.0, throttled=True)


def shown(load: GpuLoad) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(load)
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


def lost() -> Memory:
    raise RuntimeError("CUDA error: unspecified launch failure")


def unwell() -> Health:
    raise OSError("GPU is lost")


def test_what_a_device_tells_is_shown() -> None:
    assert shown(GpuLoad(lambda: MEMORY, lambda: HEALTH)) == {
        "cxls_gpu_memory_allocated_bytes": 3 << 30,
        "cxls_gpu_memory_size_bytes": 80 << 30,
        "cxls_gpu_utilization_ratio": 0.85,
        "cxls_gpu_temperature_celsius": 61.0,
        "cxls_gpu_throttled": 1.0,
    }


def test_a_clock_that_is_held_down_is_known_and_one_that_nobody_tells_of_is_not() -> None:
    assert GpuLoad(lambda: MEMORY, lambda: HEALTH).throttled
    assert not GpuLoad(lambda: MEMORY, lambda: replace(HEALTH, throttled=False)).throttled
    assert not GpuLoad(lambda: MEMORY, None).throttled
    assert not GpuLoad(lost, unwell).throttled


def test_without_nvml_torchs_memory_is_left() -> None:
    assert set(shown(GpuLoad(lambda: MEMORY, None))) == {
        "cxls_gpu_memory_allocated_bytes",
        "cxls_gpu_memory_size_bytes",
    }


def test_a_device_that_is_lost_leaves_its_figures_out() -> None:
    assert shown(GpuLoad(lost, unwell)) == {}
    assert shown(GpuLoad(lost, lambda: HEALTH))["cxls_gpu_temperature_celsius"] == 61.0
    assert shown(GpuLoad(lambda: MEMORY, unwell))["cxls_gpu_memory_size_bytes"] == 80 << 30


def test_where_there_is_no_device_nothing_is_shown_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    require("pynvml", "nvidia-ml-py")
    if torch.cuda.is_available():
        pytest.skip("there is a device here")
    with caplog.at_level(logging.INFO):
        load = GpuLoad.of("cuda")
    assert shown(load) == {}
    (record,) = caplog.records
    assert "lack the device's load and temperature" in record.getMessage()


@pytest.mark.gpu
def test_a_device_tells_its_memory_load_and_temperature() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    require("pynvml", "nvidia-ml-py")
    held = torch.zeros(1 << 20, device="cuda")
    found = shown(GpuLoad.of("cuda"))
    assert found["cxls_gpu_memory_size_bytes"] > found["cxls_gpu_memory_allocated_bytes"] >= held.nbytes
    assert 0 <= found["cxls_gpu_utilization_ratio"] <= 1
    assert 0 < found["cxls_gpu_temperature_celsius"] < 120
    assert found["cxls_gpu_throttled"] in (0, 1)
