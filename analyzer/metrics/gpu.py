"""Load of the CUDA device that a run uses: torch's own figures, and NVML's where nvidia-ml-py is installed."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from analyzer.metrics.families import gauge_if_known

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that torch holds of the device's memory, and the size of it."""

    allocated_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Health:
    """Share of the time in which a kernel ran, temperature, and whether heat or power hold the clock down.

    ``None`` for what a device does not tell, as a part of one (MIG) does not tell its utilization.
    """

    utilization: float | None
    temperature_celsius: float | None
    throttled: bool | None


class GpuLoad(Collector):
    """``cxls_gpu_…`` of one device. A figure that the device does not tell is absent; no fault breaks a scrape."""

    def __init__(self, memory: Callable[[], Memory], health: Callable[[], Health] | None) -> None:
        self._memory = memory
        self._health = health

    @classmethod
    def of(cls, device: str) -> "GpuLoad":
        """Of a torch device, such as ``cuda``."""
        return cls(lambda: _torch_memory(torch.device(device)), _nvml_health(torch.device(device)))

    @property
    def throttled(self) -> bool:
        """Whether heat or a fault of power holds the clock down; not where the device does not tell."""
        health = self._told()
        return health is not None and bool(health.throttled)

    def _told(self) -> Health | None:
        # What a lost device raises is many things; the run counts the fault itself.
        with contextlib.suppress(Exception):
            return None if self._health is None else self._health()
        return None

    def collect(self) -> Iterator[Metric]:
        memory: Memory | None = None
        with contextlib.suppress(Exception):
            memory = self._memory()
        health = self._told()
        allocated, size = (memory.allocated_bytes, memory.size_bytes) if memory else (None, None)
        yield gauge_if_known("cxls_gpu_memory_allocated_bytes", "Memory of the device that tensors hold", allocated)
        yield gauge_if_known("cxls_gpu_memory_size_bytes", "Memory of the device", size)
        busy, heat, held = (
            (health.utilization, health.temperature_celsius, health.throttled) if health else (None, None, None)
        )
        throttled = None if held is None else float(held)
        yield gauge_if_known("cxls_gpu_utilization_ratio", "Share of the time in which the device ran a kernel", busy)
        yield gauge_if_known("cxls_gpu_temperature_celsius", "Temperature of the device", heat)
        yield gauge_if_known("cxls_gpu_throttled", "1 while heat or a fault of power holds the clock down", throttled)


def _torch_memory(device: torch.device) -> Memory:
    _, size = torch.cuda.mem_get_info(device)
    return Memory(torch.cuda.memory_allocated(device), size)


def _nvml_health(device: torch.device) -> Callable[[], Health] | None:
    """What reads NVML for a device, ``None`` without nvidia-ml-py, its driver or such a device."""
    try:
        import pynvml
    except ImportError:
        log.info("nvidia-ml-py is not installed: the metrics lack the device's load and temperature")
        return None
    try:
        pynvml.nvmlInit()
        handle = _handle(pynvml, str(torch.cuda.get_device_properties(device).uuid))
    except (pynvml.NVMLError, AttributeError, RuntimeError) as error:
        log.warning("the metrics lack the device's load and temperature: %s", error)
        return None
    return lambda: _read_nvml(pynvml, handle)


def _handle(nvml: Any, uuid: str) -> Any:
    """By what it is and not by number: CUDA counts only the devices it may see. A part of a device (MIG) has a name of
    its own."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")


def _read_nvml(nvml: Any, handle: Any) -> Health:
    """Each figure on its own: one that is refused costs no other."""

    def told(ask: Callable[[], Any]) -> Any:
        with contextlib.suppress(nvml.NVMLError):
            return ask()
        return None

    # Not the cap of power in software: at full load a device is held there as a rule.
    held_down = (
        nvml.nvmlClocksEventReasonHwSlowdown
        | nvml.nvmlClocksEventReasonHwThermalSlowdown
        | nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
        | nvml.nvmlClocksEventReasonSwThermalSlowdown
    )
    return Health(
        told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100.0),
        told(lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
        told(lambda: bool(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & held_down)),
    )
