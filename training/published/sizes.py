"""Sizes of feature maps, for layers that are tied to one frame size."""

from collections.abc import Sequence

PAPER_SHAPE = (2163, 2069)
"""Frames of the paper, (ss, fs); no detector has this size."""

LARGEST_SIDE_PX = 1 << 16


def frame_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A frame's (ss, fs), checked; a card's JSON has it as a list. Raises ``ValueError``."""
    pair = tuple(shape) if isinstance(shape, list | tuple) else ()
    if len(pair) != 2 or not all(type(side) is int and 1 <= side <= LARGEST_SIDE_PX for side in pair):
        raise ValueError(f"shape {shape!r} must be two whole numbers (ss, fs) of 1 to {LARGEST_SIDE_PX}")
    return pair[0], pair[1]


def after(shape: tuple[int, int], kernel: int, stride: int = 1, padding: int = 0) -> tuple[int, int]:
    """The (ss, fs) that a convolution or pooling leaves. Raises ``ValueError`` where nothing is left."""
    ss, fs = ((side + 2 * padding - kernel) // stride + 1 for side in shape)
    if min(ss, fs) < 1:
        raise ValueError(f"a kernel of {kernel} leaves nothing of {shape[0]}x{shape[1]}; the frame is too small")
    return ss, fs
