"""The CrystFEL geometry of what is handed out live: that of the analysis, written once.

It has the panels and numbers of the geometry file that was given and is for the images, else those of the series'
header. The photon energy and the camera length come with every hit (``photon_energy = beam_energy eV``), so the file
stays right when they change, unless the given file states them in numbers; the beam centre stands in the file and does
not.
"""

import logging
from pathlib import Path

from analyzer.given_panels import Places, handed_out
from analyzer.indexing.packing import DISTANCE_KEY, ENERGY_KEY, IMAGE_KEY, PEAKS_KEY
from analyzer.module_panels import module_panels
from analyzer.panels import GivenGeometry
from streamer.frames import Frame
from streamer.geometry_file import DetectorGeometry, format_geometry
from streamer.messages import ImageData, SeriesMetadata
from streamer.text_files import read_text

log = logging.getLogger(__name__)

_TITLE = "; CrystFEL geometry of hits from cxls analyze --index-listen\n"


_PLACES = Places(
    data=IMAGE_KEY,
    dims=("ss", "fs"),
    masks=(),  # a message has no mask, and its image NaN where a pixel is masked
    photon_energy=f"{ENERGY_KEY} eV",
    camera_length=f"{DISTANCE_KEY} mm",
    extra=(("peak_list", PEAKS_KEY),),
)


def live_geometry(
    metadata: SeriesMetadata, shape: tuple[int, int], given: GivenGeometry | None = None
) -> DetectorGeometry:
    """The geometry for messages of `packing.pack_hit`: a panel for each module of a known detector, else one.

    Energy and camera length are left to the messages, and out where the header has none. given: a geometry file,
    which goes before the header where it is for these images.
    """
    if given is not None and (found := handed_out(given, metadata, shape, _PLACES)) is not None:
        return found
    return DetectorGeometry(
        module_panels(metadata, shape, IMAGE_KEY),
        photon_energy_eV=None if metadata.photon_energy_eV is None else _PLACES.photon_energy,
        clen_m=None if metadata.camera_length_m is None else _PLACES.camera_length,
        extra=_PLACES.extra,
    )


def geometry_text(metadata: SeriesMetadata, shape: tuple[int, int], given: GivenGeometry | None = None) -> str:
    """The file's text; a comment says what neither header nor given file does, and the user has to."""
    said, geometry = [_TITLE], live_geometry(metadata, shape, given)
    if geometry.photon_energy_eV is None and geometry.wavelength_angstrom is None:
        said.append("; the header has no photon energy: add 'photon_energy = NUMBER eV'\n")
    if geometry.clen_m is None:
        said.append("; the header has no camera length: add 'clen = NUMBER m'\n")
    of_header = given is None or handed_out(given, metadata, shape, _PLACES) is None
    if of_header and (metadata.beam_center_x_px is None or metadata.beam_center_y_px is None):
        said.append("; the header has no beam centre: the corners below assume the middle of the image\n")
    return "".join(said) + format_geometry(geometry)


class LiveGeometryFile:
    """Writes the geometry of series after series to one file, where there is none yet. Used by one thread.

    A file that is there stays as it is, as somebody may have refined it; where it says something else than the
    header of a new series, a warning says so. ``ordinal`` is the series described last; ``given`` the geometry file of
    the analysis.
    """

    def __init__(self, path: Path, given: GivenGeometry | None = None) -> None:
        self.path = path
        self._given = given
        self.ordinal: int | None = None
        self._text: str | None = None

    def describe(self, frame: Frame) -> None:
        """Write the geometry of a frame's series; what goes wrong is logged."""
        self.ordinal = frame.series.ordinal
        if not isinstance(frame.image, ImageData):
            return
        try:
            text = geometry_text(frame.series.metadata, frame.image.shape, self._given)
            if text != self._text:
                self._text = text
                self._write(text, frame.series.series_id)
        except (OSError, ValueError) as error:
            log.error("%s: the geometry for indexing cannot be written: %s", self.path, error)

    def _write(self, text: str, series_id: int) -> None:
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            if read_text(self.path, "CrystFEL geometry file (.geom)") != text.encode():
                log.warning("%s: differs from the header of series %d; left as it is", self.path, series_id)
        else:
            log.info("%s: geometry of series %d for indexamajig -g", self.path, series_id)
