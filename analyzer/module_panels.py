"""A series' detector as panels of a CrystFEL geometry: one for each module of a known detector, else one."""

from itertools import pairwise

from analyzer.coordinates import Convention, in_convention
from analyzer.geometry import series_geometry
from streamer.geometry_file import Mask, Panel
from streamer.messages import SeriesMetadata
from streamer.validity import layout_of


def module_panels(
    metadata: SeriesMetadata,
    shape: tuple[int, int],
    data: str,
    dims: tuple[str, ...] = ("ss", "fs"),
    masks: tuple[Mask, ...] = (),
) -> tuple[Panel, ...]:
    """Panels m0_0, m0_1, ... (row, column of the module) of images (ss, fs) with this header.

    data: where a frame's pixels are; dims, masks: as in `streamer.geometry_file.Panel`.
    """
    geometry, layout = series_geometry(metadata, shape), layout_of(shape)
    center_x = in_convention(geometry.beam_center_fs, Convention.EDGES)
    center_y = in_convention(geometry.beam_center_ss, Convention.EDGES)
    gaps_ss, gaps_fs = layout.gaps() if layout is not None else ([], [])
    return tuple(
        Panel(
            f"m{row}_{column}",
            min_fs=fs_low,
            max_fs=fs_high - 1,
            min_ss=ss_low,
            max_ss=ss_high - 1,
            corner_x=round(fs_low - center_x, 6),
            corner_y=round(ss_low - center_y, 6),
            fs=(1.0, 0.0, 0.0),
            ss=(0.0, 1.0, 0.0),
            res_per_m=1.0 / geometry.pixel_size_m,
            data=data,
            dims=dims,
            masks=masks,
            adu_per_photon=1.0,
            max_adu=None if metadata.saturation_value is None else float(metadata.saturation_value),
        )
        for row, (ss_low, ss_high) in enumerate(_between(gaps_ss, shape[0]))
        for column, (fs_low, fs_high) in enumerate(_between(gaps_fs, shape[1]))
    )


def _between(gaps: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """The half-open ranges that gaps leave of 0..size."""
    edges = [0, *(edge for gap in gaps for edge in gap), size]
    return [(low, high) for low, high in list(pairwise(edges))[::2] if low < high]
