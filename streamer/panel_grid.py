"""Panels of a CrystFEL geometry for a flat detector: one for each rectangle that its gaps leave."""

from collections.abc import Iterator, Sequence
from typing import Any

from streamer.geometry_file import Panel


def panels_between(
    gaps_ss: Sequence[tuple[int, int]],
    gaps_fs: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    center: tuple[float, float],
    pixel_size_m: float,
    data: str,
    **common: Any,
) -> tuple[Panel, ...]:
    """Panels m0_0, m0_1, ... (row, column), fs along x and ss along y, one count a photon.

    gaps_ss, gaps_fs: half-open ranges of rows and columns without pixels in images of ``shape`` (ss, fs). center: the
    beam's x and y in pixels from the outer edge of the first pixel. data: where a frame's pixels are; common: further
    fields of every panel.
    """
    center_x, center_y = center
    return tuple(
        Panel(
            f"m{row}_{column}",
            min_fs=fs_low,
            max_fs=fs_high - 1,
            min_ss=ss_low,
            max_ss=ss_high - 1,
            corner_x=float(fs_low - center_x),
            corner_y=float(ss_low - center_y),
            fs=(1.0, 0.0, 0.0),
            ss=(0.0, 1.0, 0.0),
            res_per_m=1.0 / pixel_size_m,
            data=data,
            adu_per_photon=1.0,
            **common,
        )
        for row, (ss_low, ss_high) in enumerate(_between(gaps_ss, shape[0]))
        for column, (fs_low, fs_high) in enumerate(_between(gaps_fs, shape[1]))
    )


def _between(gaps: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """The half-open ranges that gaps leave of 0..size."""
    start = 0
    for low, high in sorted(gaps):
        if low > start:
            yield start, low
        start = max(start, high)
    if start < size:
        yield start, size
