"""The CrystFEL geometry of a file of hits: panels between the detector's gaps, the rest from the file's metadata."""

from itertools import pairwise

from analyzer.coordinates import Convention, in_convention
from analyzer.geometry import series_geometry
from analyzer.hits.places import IMAGES, PEAKS
from streamer import nxmx
from streamer.geometry_file import DetectorGeometry, Mask, Panel, format_geometry
from streamer.messages import SeriesMetadata
from streamer.validity import layout_of

_ANY_BIT = 0x7FFFFFFF


def geometry_text(metadata: SeriesMetadata, shape: tuple[int, int]) -> str:
    """A ``.geom`` for files with this header and images (ss, fs); says in comments what the header does not have."""
    comments = [
        f"; {text}"
        for missing, text in (
            (metadata.photon_energy_eV, "The stream named no photon energy: add 'photon_energy = ... eV'."),
            (metadata.camera_length_m, "The stream named no distance: add 'clen = ... m'."),
            (metadata.beam_center_x_px, "The stream named no beam centre: the panel's middle is taken."),
            (metadata.pixel_size_x_m, "The stream named no pixel size: 75 micrometres are taken."),
        )
        if missing is None
    ]
    energy, distance = metadata.photon_energy_eV, metadata.camera_length_m
    geometry = DetectorGeometry(
        _panels(metadata, shape),
        photon_energy_eV=None if energy is None else f"{nxmx.PHOTON_ENERGY} eV",
        clen_m=None if distance is None else f"{nxmx.DISTANCE} m",
        extra=(("peak_list", PEAKS), ("peak_list_type", "cxi")),
    )
    return "\n".join([*comments, format_geometry(geometry)])


def _panels(metadata: SeriesMetadata, shape: tuple[int, int]) -> tuple[Panel, ...]:
    geometry, layout = series_geometry(metadata, shape), layout_of(shape)
    center_x = in_convention(geometry.beam_center_fs, Convention.EDGES)
    center_y = in_convention(geometry.beam_center_ss, Convention.EDGES)
    gaps_ss, gaps_fs = layout.gaps() if layout is not None else ([], [])
    masks = (Mask(0, nxmx.PIXEL_MASK, None, 0, _ANY_BIT),) if metadata.masks else ()
    return tuple(
        Panel(
            f"m{row}_{column}",
            min_fs=fs_low,
            max_fs=fs_high - 1,
            min_ss=ss_low,
            max_ss=ss_high - 1,
            corner_x=fs_low - center_x,
            corner_y=ss_low - center_y,
            fs=(1.0, 0.0, 0.0),
            ss=(0.0, 1.0, 0.0),
            res_per_m=1.0 / geometry.pixel_size_m,
            data=IMAGES,
            dims=("%", "ss", "fs"),
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
