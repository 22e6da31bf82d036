"""The CrystFEL geometry of a file of hits: that of the analysis, the rest from the file's metadata.

Where a geometry file was given and is for these images it is that file's panels and bad regions, else panels between
the detector's gaps. What the given file leaves out is in the pixel mask besides, where every reader finds it.
"""

from analyzer.given_panels import Places, handed_out
from analyzer.hits.places import IMAGES, PEAKS
from analyzer.module_panels import module_panels
from analyzer.panels import GivenGeometry
from streamer import nxmx
from streamer.geometry_file import DetectorGeometry, Mask, format_geometry, short
from streamer.messages import SeriesMetadata

_ANY_BIT = 0x7FFFFFFF


def geometry_text(metadata: SeriesMetadata, shape: tuple[int, int]) -> str:
    """A ``.geom`` for files with this header and images (ss, fs); says in comments what the header does not have."""
    places = _places(bool(metadata.masks))
    geometry = DetectorGeometry(
        module_panels(metadata, shape, places.data, places.dims, places.masks),
        photon_energy_eV=None if metadata.photon_energy_eV is None else places.photon_energy,
        clen_m=None if metadata.camera_length_m is None else places.camera_length,
        extra=places.extra,
    )
    comments = _missing(geometry)
    if metadata.beam_center_x_px is None:
        comments.append("; The stream named no beam centre: the panel's middle is taken.")
    if metadata.pixel_size_x_m is None:
        comments.append("; The stream named no pixel size: 75 micrometres are taken.")
    return "\n".join([*comments, format_geometry(geometry)])


def given_text(given: GivenGeometry, metadata: SeriesMetadata, shape: tuple[int, int], masked: bool) -> str | None:
    """The same from a geometry file that was given; ``None`` where it is not for these images.

    masked: whether the file of hits has a pixel mask.
    """
    geometry = handed_out(given, metadata, shape, _places(masked))
    if geometry is None:
        return None
    title = f"; Panels and bad regions of {short(given.name)}, as the analysis used them."
    return "\n".join([title, *_missing(geometry), format_geometry(geometry)])


def _places(masked: bool) -> Places:
    return Places(
        data=IMAGES,
        dims=("%", "ss", "fs"),
        masks=(Mask(0, nxmx.PIXEL_MASK, None, 0, _ANY_BIT),) if masked else (),
        photon_energy=f"{nxmx.PHOTON_ENERGY} eV",
        camera_length=f"{nxmx.DISTANCE} m",
        extra=(("peak_list", PEAKS), ("peak_list_type", "cxi")),
    )


def _missing(geometry: DetectorGeometry) -> list[str]:
    comments = []
    if geometry.photon_energy_eV is None and geometry.wavelength_angstrom is None:
        comments.append("; The stream named no photon energy: add 'photon_energy = ... eV'.")
    if geometry.clen_m is None:
        comments.append("; The stream named no distance: add 'clen = ... m'.")
    return comments
