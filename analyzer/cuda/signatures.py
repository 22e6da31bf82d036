"""What a kernel takes, read from its source, so that a wrong argument is an error here and no stray access there."""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_KERNEL = re.compile(r"^\s*KERNEL\(\s*(\w+)\s*,\s*(\w+)\s*,([^)]*)\)", re.MULTILINE)
_CONSTANT = r"(?:#define\s+{0}\s+|constexpr\s+int\s+{0}\s*=\s*)(\d+)\b"
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_SCALARS: dict[str, type[Any]] = {
    "bool": ctypes.c_bool,
    "int": ctypes.c_int32,
    "int8_t": ctypes.c_int8,
    "int16_t": ctypes.c_int16,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint8_t": ctypes.c_uint8,
    "uint16_t": ctypes.c_uint16,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}
_FLOATS = (ctypes.c_float, ctypes.c_double)


@dataclass(frozen=True, slots=True)
class Kernel:
    """``parameters`` are C types: ``c_void_p`` for a pointer, of the parameter's own width for a number."""

    name: str
    threads: int
    parameters: tuple[type[Any], ...]


def kernels_of(source: str) -> dict[str, Kernel]:
    """The kernels of a source in the language of ``sources/prelude.cuh``; ``ValueError`` for one it cannot read."""
    text = _COMMENT.sub("", source)
    found = {}
    for name, threads, parameters in _KERNEL.findall(text):
        kinds = tuple(_kind(name, parameter) for parameter in parameters.split(","))
        found[name] = Kernel(name, _number(name, threads, text), kinds)
    return found


def pack(kernel: Kernel, arguments: Sequence[torch.Tensor | int | float], device: torch.device) -> list[Any]:
    """The arguments as C values, in order.

    A tensor stands for its address: it has to be contiguous and on ``device``, and to live until the kernel is done.
    Raises ``ValueError`` for an argument that does not suit its parameter.
    """
    if len(arguments) != len(kernel.parameters):
        raise ValueError(f"{kernel.name} takes {len(kernel.parameters)} arguments, not {len(arguments)}")
    return [
        _packed(f"argument {n} of {kernel.name}", kind, argument, device)
        for n, (kind, argument) in enumerate(zip(kernel.parameters, arguments, strict=True))
    ]


def _packed(where: str, kind: type[Any], argument: torch.Tensor | int | float, device: torch.device) -> Any:
    if kind is ctypes.c_void_p:
        if not isinstance(argument, torch.Tensor):
            raise ValueError(f"{where} is a pointer: give a tensor, not {argument!r}")
        if argument.device != device or not argument.is_contiguous():
            raise ValueError(f"{where} has to be contiguous and on {device}, not on {argument.device}")
        return kind(argument.data_ptr())
    if isinstance(argument, torch.Tensor):
        raise ValueError(f"{where} is a number: give no tensor")
    if kind in _FLOATS:
        return kind(argument)
    value = kind(argument) if not isinstance(argument, float) else None
    if value is None or value.value != argument:
        raise ValueError(f"{where} is a whole number of {8 * ctypes.sizeof(kind)} bits, not {argument!r}")
    return value


def _kind(kernel: str, parameter: str) -> type[Any]:
    if "*" in parameter:
        return ctypes.c_void_p
    words = [word for word in parameter.split() if word != "const"]
    if len(words) != 2 or words[0] not in _SCALARS:
        raise ValueError(
            f"kernel {kernel} has a parameter {' '.join(words)!r}; known are pointers and {', '.join(_SCALARS)}"
        )
    return _SCALARS[words[0]]


def _number(kernel: str, threads: str, source: str) -> int:
    if threads.isdigit():
        return int(threads)
    constant = re.search(_CONSTANT.format(re.escape(threads)), source)
    if constant is None:
        raise ValueError(f"kernel {kernel} has {threads} threads; write a number, or a #define or constexpr int of one")
    return int(constant[1])
