"""Our kernels built for the CPU by g++, called a block at a time: what runs them where there is no device.

``HostProgram`` takes the place of ``analyzer.cuda.program.Program``. With ``sanitized`` the kernels run in a child
process, every buffer in an allocation of its own size, and any access outside one ends the child.
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
from analyzer.cuda.signatures import kernels_of, pack
from tests.support import REPOSITORY, require

_FLAGS = ("-std=c++17", "-DCXLS_HOST", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing")
_SANITIZERS = ("-O1", "-g", "-DSHARED=static", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def build(source: str, folder: Path, *, sanitized: bool = False) -> Path:
    """Compile a source of ``analyzer.cuda`` into a library in ``folder``; skip where there is no g++."""
    require("g++")
    library = folder / f"{Path(source).stem}{'_sanitized' if sanitized else ''}.so"
    flags = (*_FLAGS, *(_SANITIZERS if sanitized else ("-O2",)))
    command = ["g++", *flags, "-I", str(SOURCES), "-o", str(library), "-x", "c++", str(SOURCES / source)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return library


class HostProgram:
    """The kernels of a source on the CPU."""

    def __init__(self, source: str, folder: Path, *, sanitized: bool = False) -> None:
        self.device = torch.device("cpu")
        self._kernels = kernels_of(source_of(source))
        self._path = build(source, folder, sanitized=sanitized)
        self._library = None if sanitized else ctypes.CDLL(str(self._path))

    def launch(
        self, name: str, blocks_x: int, blocks_y: int, stream: Any, *arguments: torch.Tensor | int | float
    ) -> None:
        values = pack(self._kernels[name], arguments, self.device)
        if self._library is not None:
            run_blocks(self._library, name, blocks_x, blocks_y, values)
            return
        given = [
            _bytes_of(a).tobytes() if isinstance(a, torch.Tensor) else v for a, v in zip(arguments, values, strict=True)
        ]
        kinds = [type(value) for value in values]
        numbers = [each if isinstance(each, bytes) else each.value for each in given]
        after = self._in_child((str(self._path), name, blocks_x, blocks_y, kinds, numbers))
        for argument, content in zip(arguments, after, strict=True):
            if isinstance(argument, torch.Tensor):
                _bytes_of(argument)[:] = memoryview(content)

    def _in_child(self, call: tuple[Any, ...]) -> Sequence[Any]:
        sanitizer = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        environment = {
            **os.environ,
            "LD_PRELOAD": sanitizer.stdout.strip(),
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
            "PYTHONPATH": str(REPOSITORY),
        }
        child = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("host_child.py"))],
            input=pickle.dumps(call), capture_output=True, env=environment,
        )  # fmt: skip
        assert child.returncode == 0, child.stderr.decode(errors="replace")
        return pickle.loads(child.stdout)


def run_blocks(library: ctypes.CDLL, name: str, blocks_x: int, blocks_y: int, values: Sequence[Any]) -> None:
    """Call a kernel for every block of a grid."""
    function = getattr(library, name)
    function.restype = None
    function.argtypes = [ctypes.c_int, ctypes.c_int, *(type(value) for value in values)]
    for y in range(blocks_y):
        for x in range(blocks_x):
            function(x, y, *values)


def _bytes_of(tensor: torch.Tensor) -> Any:
    return tensor.view(-1).view(torch.uint8).numpy()


def has_sanitizers() -> bool:
    """Whether this g++ comes with the sanitizers' libraries."""
    if shutil.which("g++") is None:
        return False
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True)
    return Path(found.stdout.strip()).is_absolute()
