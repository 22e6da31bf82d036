"""The device itself: its arithmetic."""

import torch


def full_precision() -> None:
    """Float32 as float32: a convolution on tensor cores rounds its inputs to ten bits of fraction unless told not to.

    A hit's probability would move by more than ``docs/gpu.md`` says that a device's may.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
