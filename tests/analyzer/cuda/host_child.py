"""A child of ``host_build``: runs one kernel on buffers of exactly the given sizes, and gives them back.

The buffers come from the sanitizer's allocator, at multiples of 64 bytes as a device's do.
"""

import ctypes
import pickle
import sys
from typing import Any

_ALIGNMENT = 64


def main() -> None:
    path, name, blocks_x, blocks_y, kinds, given = pickle.load(sys.stdin.buffer)
    library, runtime = ctypes.CDLL(path), ctypes.CDLL(None)
    runtime.memalign.restype = ctypes.c_void_p
    runtime.memalign.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    values: list[Any] = []
    for kind, each in zip(kinds, given, strict=True):
        if isinstance(each, bytes):
            address = runtime.memalign(_ALIGNMENT, len(each))
            ctypes.memmove(address, each, len(each))
            values.append(kind(address))
        else:
            values.append(kind(each))
    function = getattr(library, name)
    function.restype = None
    function.argtypes = [ctypes.c_int, ctypes.c_int, *kinds]
    for y in range(blocks_y):
        for x in range(blocks_x):
            function(x, y, *values)
    after = [
        ctypes.string_at(value.value, len(each)) if isinstance(each, bytes) else None
        for value, each in zip(values, given, strict=True)
    ]
    sys.stdout.buffer.write(pickle.dumps(after))


main()
