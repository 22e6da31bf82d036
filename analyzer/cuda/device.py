"""The device itself, for the whole process: its arithmetic, what of it failed, and what is never freed then.

A context that is lost fails every call from then on, also those that free what belonged to it: an error there leaves a
destructor and ends the process. So what a lost device has a part in is kept for ever, whoever let go of it, and a
program whose device was lost leaves by ``leave``. What a real device does then was not seen: no GPU was at hand.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from analyzer.cuda.program import DeviceFault

log = logging.getLogger(__name__)

ANSWER_S = 10.0
"""How long a batch may take on a device, far longer than any does, before the device is taken for lost."""

LOOK_S = 1e-4
"""Between two looks whether it is done: the thread sleeps, and results wait no longer than this and its rounding."""

_CLASSES = (DeviceFault, torch.OutOfMemoryError, getattr(torch, "AcceleratorError", DeviceFault))
_TEXTS = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS_", "cuDNN error", "CUDNN_STATUS_", "CUSOLVER_STATUS_")
_FULL = ("out of memory", "OUT_OF_MEMORY", "_ALLOC_FAILED")

_lost: dict[torch.device, str] = {}
_kept: list[Any] = []
# Also taken where a collection of garbage lets go of something.
_lock = threading.RLock()


def full_precision() -> None:
    """Float32 as float32: a convolution on tensor cores rounds its inputs to ten bits of fraction unless told not to.

    A hit's probability would move by more than ``docs/gpu.md`` says that a device's may.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def is_device_fault(error: BaseException) -> bool:
    """Whether an error says that a device cannot go on; any other is a fault of ours.

    What torch's libraries report reaches Python as a plain ``RuntimeError``, and only its words tell.
    """
    return isinstance(error, _CLASSES) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)
    )


def is_full(error: BaseException) -> bool:
    """Whether a device fault is one of memory alone, which leaves the device as it was for others."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _FULL)


def lose(device: torch.device, reason: str) -> None:
    """Remember that a device is lost, for every thread; the first reason counts."""
    with _lock:
        _lost.setdefault(_numbered(device), reason)


def lost(device: torch.device | str) -> str | None:
    """Why a device was lost, ``None`` while it is not."""
    return _lost.get(_numbered(torch.device(device)))


def keep(*belongings: Any) -> None:
    """Hold what a lost device has a part in until the process ends."""
    _kept.append(belongings)


def hold(owner: object, device: torch.device, belongings: list[Any], stream: torch.cuda.Stream | None) -> None:
    """Hold what of a device belongs to ``owner`` as long as it lives, and for ever where the device is lost by then.

    ``belongings``, in use on ``stream``, must not lead back to the owner.
    """
    weakref.finalize(owner, let_go, device, belongings, stream).atexit = False


def let_go(device: torch.device, belongings: list[Any], stream: torch.cuda.Stream | None = None) -> None:
    """Empty a list of what belongs to a device; where that is lost, or found to be, it is kept instead."""
    if lost(device) is None:
        try:
            settle(device, stream)
        except Exception as error:
            # Nobody noticed so far: freed now, it would end the process.
            log.exception("the device was lost unnoticed")
            lose(device, str(error) or type(error).__name__)
    if lost(device) is not None:
        keep(list(belongings))
    belongings.clear()


def settle(device: torch.device, stream: torch.cuda.Stream | None = None) -> None:
    """Wait until what was started is done, on a stream or the current one; nothing on a CPU. Raises as ``wait``."""
    if device.type == "cuda":
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device) if stream is None else stream)
        wait(event.query)


def wait(done: Callable[[], bool], limit_s: float | None = None) -> None:
    """Sleep until ``done``; others have the interpreter meanwhile. Raises ``DeviceFault`` after ``ANSWER_S``."""
    limit_s = ANSWER_S if limit_s is None else limit_s
    deadline = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > deadline:
            raise DeviceFault(f"the device does not answer for {limit_s:g} s")
        time.sleep(LOOK_S)


def any_lost() -> bool:
    """Whether any device was lost in this process."""
    return bool(_lost)


def leave(code: int) -> NoReturn:
    """End the process without freeing anything; all outputs are closed, what is printed and logged is written first."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _numbered(device: torch.device) -> torch.device:
    return torch.device(device.type, device.index or 0)
