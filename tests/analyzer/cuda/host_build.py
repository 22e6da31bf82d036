"""Our kernels built for the CPU by g++, called a block at a time: what runs them where there is no device.

``HostProgram`` takes the place of ``analyzer.cuda.program.Program``. ``WatchedProgram`` runs the kernels in a child
process, every buffer in an allocation of its own size, and any access outside one ends the child. ``LanesProgram`` runs
the threads of a block apart, in the order it is told.
"""

import ctypes
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from analyzer.cuda.compiler import SOURCES, source_of
from analyzer.cuda.signatures import Kernel, kernels_of, pack
from tests.support import REPOSITORY, require

_FLAGS = ("-std=c++17", "-DCXLS_HOST", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing")
_FAST = ("-O2",)
_WATCHED = ("-O1", "-g", "-DSHARED=static", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_LANES = ("-O1", "-include", str(Path(__file__).with_name("lanes.hpp")))


def build(source: str, library: Path, flags: Sequence[str]) -> Path:
    """Compile a source of ``analyzer.cuda`` into a library; skip where there is no g++."""
    require("g++")
    command = ["g++", *_FLAGS, *flags, "-I", str(SOURCES), "-o", str(library), "-x", "c++", str(SOURCES / source)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return library


class HostProgram:
    """The kernels of a source on the CPU, a block at a time."""

    flags: tuple[str, ...] = _FAST

    def __init__(self, source: str, folder: Path) -> None:
        self.device = torch.device("cpu")
        self._kernels = kernels_of(source_of(source))
        self._path = build(source, folder / f"{Path(source).stem}_{type(self).__name__}.so", self.flags)

    def launch(
        self, name: str, blocks_x: int, blocks_y: int, stream: Any, *arguments: torch.Tensor | int | float
    ) -> None:
        kernel = self._kernels[name]
        self._run(kernel, blocks_x, blocks_y, arguments, pack(kernel, arguments, self.device))

    def _run(self, kernel: Kernel, blocks_x: int, blocks_y: int, arguments: Sequence[Any], values: list[Any]) -> None:
        function = getattr(ctypes.CDLL(str(self._path)), kernel.name)
        function.restype = None
        function.argtypes = [ctypes.c_int, ctypes.c_int, *kernel.parameters]
        for y in range(blocks_y):
            for x in range(blocks_x):
                function(x, y, *values)


class WatchedProgram(HostProgram):
    """Under the sanitizers of addresses and of undefined behaviour."""

    flags = _WATCHED

    def _run(self, kernel: Kernel, blocks_x: int, blocks_y: int, arguments: Sequence[Any], values: list[Any]) -> None:
        given = [
            _bytes_of(argument).tobytes() if isinstance(argument, torch.Tensor) else value.value
            for argument, value in zip(arguments, values, strict=True)
        ]
        after = self._in_child((str(self._path), kernel.name, blocks_x, blocks_y, list(kernel.parameters), given))
        for argument, content in zip(arguments, after, strict=True):
            if isinstance(argument, torch.Tensor):
                _bytes_of(argument)[:] = memoryview(content)

    def _in_child(self, call: tuple[Any, ...]) -> Sequence[Any]:
        environment = {
            **os.environ,
            "LD_PRELOAD": _sanitizer(),
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
            "PYTHONPATH": str(REPOSITORY),
        }
        child = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("host_child.py"))],
            input=pickle.dumps(call), capture_output=True, env=environment,
        )  # fmt: skip
        assert child.returncode == 0, child.stderr.decode(errors="replace")
        after: Sequence[Any] = pickle.loads(child.stdout)
        return after


class LanesProgram(HostProgram):
    """The threads of a block one at a time, from one meeting to the next.

    In ``order`` 0 from the first to the last, in 1 from the last to the first, else shuffled. Arguments are whole.
    """

    flags = _LANES
    order = 0

    def _run(self, kernel: Kernel, blocks_x: int, blocks_y: int, arguments: Sequence[Any], values: list[Any]) -> None:
        library = ctypes.CDLL(str(self._path))
        function = ctypes.cast(getattr(library, kernel.name), ctypes.c_void_p)
        given = (ctypes.c_uint64 * len(values))(*(value.value for value in values))
        for y in range(blocks_y):
            for x in range(blocks_x):
                met = library.run_apart(function, kernel.threads, self.order, x, y, given, len(values))
                assert met >= 0, f"block {x}, {y}: not every thread came to every meeting"


def _bytes_of(tensor: torch.Tensor) -> Any:
    return tensor.view(-1).view(torch.uint8).numpy()


def _sanitizer() -> str:
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def has_sanitizers() -> bool:
    """Whether this g++ comes with the sanitizers' libraries."""
    return shutil.which("g++") is not None and Path(_sanitizer()).is_absolute()
