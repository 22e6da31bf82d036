"""The CrystFEL geometry of a file of hits: panels between the detector's gaps, the rest from the file's metadata."""

from analyzer.hits.places import IMAGES, PEAKS
from analyzer.module_panels import module_panels
from streamer import nxmx
from streamer.geometry_file import DetectorGeometry, Mask, format_geometry
from streamer.messages import SeriesMetadata

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
    masks = (Mask(0, nxmx.PIXEL_MASK, None, 0, _ANY_BIT),) if metadata.masks else ()
    energy, distance = metadata.photon_energy_eV, metadata.camera_length_m
    geometry = DetectorGeometry(
        module_panels(metadata, shape, IMAGES, ("%", "ss", "fs"), masks),
        photon_energy_eV=None if energy is None else f"{nxmx.PHOTON_ENERGY} eV",
        clen_m=None if distance is None else f"{nxmx.DISTANCE} m",
        extra=(("peak_list", PEAKS), ("peak_list_type", "cxi")),
    )
    return "\n".join([*comments, format_geometry(geometry)])
