"""The CrystFEL geometry of what is handed out live: made of a series' header, written once.

The photon energy and the camera length come with every hit (``photon_energy = beam_energy eV``), so the file stays
right when they change; the beam centre stands in the file and does not.
"""

import logging
from pathlib import Path

from analyzer.indexing.packing import DISTANCE_KEY, ENERGY_KEY, IMAGE_KEY, PEAKS_KEY
from analyzer.module_panels import module_panels
from streamer.frames import Frame
from streamer.geometry_file import DetectorGeometry, format_geometry
from streamer.messages import ImageData, SeriesMetadata
from streamer.text_files import read_text

log = logging.getLogger(__name__)

_TITLE = "; CrystFEL geometry of hits from cxls analyze --index-listen\n"


def live_geometry(metadata: SeriesMetadata, shape: tuple[int, int]) -> DetectorGeometry:
    """The geometry for messages of `packing.pack_hit`: a panel for each module of a known detector, else one.

    Energy and camera length are left to the messages, and out where the header has none.
    """
    return DetectorGeometry(
        module_panels(metadata, shape, IMAGE_KEY),
        photon_energy_eV=None if metadata.photon_energy_eV is None else f"{ENERGY_KEY} eV",
        clen_m=None if metadata.camera_length_m is None else f"{DISTANCE_KEY} mm",
        extra=(("peak_list", PEAKS_KEY),),
    )


def geometry_text(metadata: SeriesMetadata, shape: tuple[int, int]) -> str:
    """The file's text; a comment says what the header does not, and the user has to."""
    said = [_TITLE]
    if metadata.photon_energy_eV is None:
        said.append("; the header has no photon energy: add 'photon_energy = NUMBER eV'\n")
    if metadata.camera_length_m is None:
        said.append("; the header has no camera length: add 'clen = NUMBER m'\n")
    if metadata.beam_center_x_px is None or metadata.beam_center_y_px is None:
        said.append("; the header has no beam centre: the corners below assume the middle of the image\n")
    return "".join(said) + format_geometry(live_geometry(metadata, shape))


class LiveGeometryFile:
    """Writes the geometry of series after series to one file, where there is none yet. Used by one thread.

    A file that is there stays as it is, as somebody may have refined it; where it says something else than the
    header of a new series, a warning says so. ``ordinal`` is the series described last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ordinal: int | None = None
        self._text: str | None = None

    def describe(self, frame: Frame) -> None:
        """Write the geometry of a frame's series; what goes wrong is logged."""
        self.ordinal = frame.series.ordinal
        if not isinstance(frame.image, ImageData):
            return
        try:
            text = geometry_text(frame.series.metadata, frame.image.shape)
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
