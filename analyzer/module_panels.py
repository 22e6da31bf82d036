"""A series' detector as panels of a CrystFEL geometry: one for each module of a known detector, else one."""

from dataclasses import replace

from analyzer.coordinates import Convention, in_convention
from analyzer.geometry import series_geometry
from streamer.geometry_file import Mask, Panel
from streamer.messages import SeriesMetadata
from streamer.panel_grid import panels_between
from streamer.validity import layout_of

_CORNER_DIGITS = 6
"""A header's beam centre is no better, and the file is for people too."""


def module_panels(
    metadata: SeriesMetadata,
    shape: tuple[int, int],
    data: str,
    dims: tuple[str, ...] = ("ss", "fs"),
    masks: tuple[Mask, ...] = (),
) -> tuple[Panel, ...]:
    """Panels of images (ss, fs) with this header.

    data: where a frame's pixels are; dims, masks: as in `streamer.geometry_file.Panel`.
    """
    geometry, layout = series_geometry(metadata, shape), layout_of(shape)
    center = (
        in_convention(geometry.beam_center_fs, Convention.EDGES),
        in_convention(geometry.beam_center_ss, Convention.EDGES),
    )
    gaps_ss, gaps_fs = layout.gaps() if layout is not None else ([], [])
    max_adu = None if metadata.saturation_value is None else float(metadata.saturation_value)
    panels = panels_between(
        gaps_ss, gaps_fs, shape, center, geometry.pixel_size_m, data, dims=dims, masks=masks, max_adu=max_adu
    )
    return tuple(
        replace(
            panel,
            corner_x=round(panel.corner_x, _CORNER_DIGITS),
            corner_y=round(panel.corner_y, _CORNER_DIGITS),
        )
        for panel in panels
    )
