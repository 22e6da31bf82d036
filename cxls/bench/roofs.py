"""What the machine itself can do, measured: reading and copying memory, LZ4 alone, multiplying matrices.

Every figure is the best of some rounds: a roof is what is reached when nothing is in the way.
"""

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bitshuffle.ext
import numba
import numpy as np
import numpy.typing as npt
import torch
from numba import types

ROUNDS = 5


@numba.njit(types.uint64(types.Array(types.uint64, 1, "C", readonly=True)), nogil=True, cache=True)
def _read_words(words: Any) -> int:
    # Over numbers, not over words: only so is it compiled to reads of the full width.
    seen = np.uint64(0)
    for n in range(words.size):
        seen |= words[n]
    return int(seen)


def read_words(words: npt.NDArray[np.uint64]) -> int:
    """Every word once, compiled, without the interpreter lock."""
    return int(_read_words(words))


def best_s(work: Callable[[], object]) -> float:
    """Seconds of the fastest of the rounds by the clock, after one that does not count."""
    work()
    return min(_seconds(work) for _ in range(ROUNDS))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def read_gb_s(nbytes: int, threads: int = 1) -> float:
    """GB a second that threads read together, each from ``nbytes`` of its own."""
    return _memory_gb_s(nbytes, threads, lambda words, _: read_words(words), 1)


def copy_gb_s(nbytes: int, threads: int = 1) -> float:
    """GB a second that threads copy together, read and written bytes counted once each."""
    return _memory_gb_s(nbytes, threads, lambda words, out: np.copyto(out, words), 2)


def _memory_gb_s(
    nbytes: int, threads: int, work: Callable[[npt.NDArray[np.uint64], npt.NDArray[np.uint64]], object], passes: int
) -> float:
    count = nbytes // 8
    memory = [(np.ones(count, np.uint64), np.ones(count, np.uint64)) for _ in range(threads)]
    repeats = max(1, (64 << 20) // nbytes)

    def one(number: int) -> None:
        for _ in range(repeats):
            work(*memory[number])

    with ThreadPoolExecutor(threads) as pool:
        seconds = best_s(lambda: list(pool.map(one, range(threads))))
    return threads * repeats * passes * count * 8 / seconds / 1e9


def _lz4_of_bitshuffle() -> Any:
    """The LZ4 block decoder inside the bitshuffle extension, or ``None`` where this build hides it."""
    try:
        lz4 = ctypes.CDLL(bitshuffle.ext.__file__).LZ4_decompress_safe
    except (OSError, AttributeError):
        return None
    lz4.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
    lz4.restype = ctypes.c_int
    return lz4


def lz4_blocks() -> Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8], int], int] | None:
    """A compiled walk that decodes every LZ4 block of a bitshuffle payload's body, without what follows in a decoder.

    Each block goes into the same buffer, so that the cost is LZ4's and not the memory's. It is called with the body
    behind the 12-byte header, a buffer of a block and how many bytes the blocks decode to, and returns those that they
    did; ``None`` where bitshuffle hides its LZ4. For chunks that are known to be good.
    """
    lz4 = _lz4_of_bitshuffle()
    if lz4 is None:
        return None

    @numba.njit(nogil=True)
    def walk(body: Any, block: Any, wanted: int) -> int:
        source, target = body.ctypes.data, block.ctypes.data
        position = decoded = 0
        while decoded < wanted and position + 4 <= body.size:
            length = 0
            for k in range(4):
                length = (length << 8) | int(body[position + k])
            position += 4
            decoded += lz4(source + position, target, length, block.size)
            position += length
        return decoded

    return walk  # type: ignore[no-any-return]


def matmul_gflop_s(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Billion floating-point operations a second of a product of square matrices, with torch's threads as they are."""
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)

    def work() -> None:
        torch.mm(a, b, out=out)
        if device != "cpu":
            torch.cuda.synchronize()

    with torch.inference_mode():
        return 2.0 * size**3 / best_s(work) / 1e9
