"""Our kernels on a device: compiled, loaded beside torch and launched on its streams."""

import ctypes
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from analyzer.cuda.compiler import NoDevice, compiled, source_of
from analyzer.cuda.signatures import kernels_of, pack

__all__ = ["DeviceFault", "NoDevice", "Program"]

_WHOLE_CARVEOUT = 100
_MANY_SHARED_BYTES = 4096
"""From so much a block, shared memory bounds how many blocks run at once: all there is goes to it, not to the cache."""


class DeviceFault(RuntimeError):
    """The driver reports an error. The context may be lost; the CPU can do the work."""


class Program:
    """The kernels of one source, on one device, in the context that torch uses there.

    Raises ``NoDevice`` when there is no such device or no NVRTC, ``DeviceFault`` when the driver refuses the kernels.
    """

    def __init__(
        self,
        source: str,
        device: str | torch.device = "cuda",
        *,
        cache: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        if not torch.cuda.is_available():
            raise NoDevice("torch sees no CUDA device; the CPU does the work")
        chosen = torch.device(device)
        if chosen.type != "cuda":
            raise NoDevice(f"{chosen} is no CUDA device")
        self.device = torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)
        self._driver = _driver()
        self._kernels = kernels_of(source_of(source))
        image = compiled(source, torch.cuda.get_device_capability(self.device), cache, options).image
        with torch.cuda.device(self.device):
            # Makes the context, if nothing was done on the device yet.
            torch.cuda.synchronize()
            (self._module,) = self._checked(self._driver.cuModuleLoadData(image))
            self._functions = {name: self._function(name) for name in self._kernels}

    def launch(
        self, name: str, blocks_x: int, blocks_y: int, stream: torch.cuda.Stream | None,
        *arguments: torch.Tensor | int | float,
    ) -> None:  # fmt: skip
        """Start kernel ``name`` on ``blocks_x`` times ``blocks_y`` blocks, on ``stream`` or torch's current one.

        It waits for nothing and allocates nothing, so a graph can capture it. The thread has to have used torch on
        this device. Raises ``ValueError`` for arguments that do not suit, ``DeviceFault`` when the launch fails.
        """
        kernel = self._kernels[name]
        values = pack(kernel, arguments, self.device)
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        handle = (torch.cuda.current_stream(self.device) if stream is None else stream).cuda_stream
        self._checked(
            self._driver.cuLaunchKernel(
                self._functions[name], blocks_x, blocks_y, 1, kernel.threads, 1, 1, 0, handle,
                ctypes.addressof(addresses), 0,
            )
        )  # fmt: skip

    def _function(self, name: str) -> Any:
        driver = self._driver
        (function,) = self._checked(driver.cuModuleGetFunction(self._module, name.encode()))
        attribute = driver.CUfunction_attribute
        (shared,) = self._checked(driver.cuFuncGetAttribute(attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function))
        if shared >= _MANY_SHARED_BYTES:
            carveout = attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
            self._checked(driver.cuFuncSetAttribute(function, carveout, _WHOLE_CARVEOUT))
        return function

    def _checked(self, answer: tuple[Any, ...]) -> tuple[Any, ...]:
        if answer[0] != self._driver.CUresult.CUDA_SUCCESS:
            raise DeviceFault(f"CUDA driver: {answer[0].name}")
        return answer[1:]


def _driver() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except (ImportError, OSError, RuntimeError) as error:
        raise NoDevice(f"the CUDA driver cannot be called ({error}); install cuda-bindings") from None
