"""Load of the GPU among the metrics: what it tells is shown, what it does not tell costs no scrape."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest

from analyzer.metrics import GpuLoad
from analyzer.metrics.gpu import Health, Memory, _handle, _read_nvml
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


class Refusing(SimpleNamespace):
    """NVML of a part of a device, which tells no utilization and goes by a name of its own."""

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> None:
        raise self.NVMLError("not supported")

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        if not name.startswith("MIG-"):
            raise self.NVMLError("not found")
        return name


def test_one_figure_that_is_refused_costs_no_other() -> None:
    nvml = Refusing(
        NVML_TEMPERATURE_GPU=0,
        nvmlClocksEventReasonHwSlowdown=1,
        nvmlClocksEventReasonHwThermalSlowdown=2,
        nvmlClocksEventReasonHwPowerBrakeSlowdown=4,
        nvmlClocksEventReasonSwThermalSlowdown=8,
        nvmlDeviceGetTemperature=lambda handle, which: 61,
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 2,
    )
    handle = _handle(nvml, "1-2")
    assert handle == "MIG-1-2"
    health = _read_nvml(nvml, handle)
    assert health == Health(None, 61.0, True)
    assert shown(GpuLoad(lambda: MEMORY, lambda: health)).keys() >= {
        "cxls_gpu_temperature_celsius",
        "cxls_gpu_throttled",
    }


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
