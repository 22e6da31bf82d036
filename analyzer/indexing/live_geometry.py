"""The CrystFEL geometry of what is handed out live: that of the analysis, in a file.

It has the panels and numbers of the geometry file that was given and is for the images, else those of the series'
header. The photon energy and the camera length come with every hit (``photon_energy = beam_energy eV``), so the file
stays right when they change, unless the given file states them in numbers; the beam centre stands in the file and does
not.
"""

import logging
import os
import time
from pathlib import Path

from analyzer.given_panels import Places, handed_out
from analyzer.indexing.packing import DISTANCE_KEY, ENERGY_KEY, IMAGE_KEY, PEAKS_KEY
from analyzer.module_panels import module_panels
from analyzer.panels import GivenGeometry
from analyzer.placing import placed
from streamer.frames import Frame
from streamer.geometry_file import DetectorGeometry, format_geometry
from streamer.messages import ImageData, SeriesMetadata
from streamer.text_files import read_text

log = logging.getLogger(__name__)

_RETRY_S = 10.0
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
    """Keeps the geometry of the running series in one file. Used by one thread.

    A file that is there stays as it is, as somebody may have refined it; so does one of this run that somebody changed.
    What this run wrote and nobody changed is written anew when a header says something else: that of a series which
    was joined without one, or of a detector that moved. ``given`` is the geometry file of the analysis; ``differs``
    says in what the file is not the header's, ``None`` where it is.
    """

    def __init__(self, path: Path, given: GivenGeometry | None = None) -> None:
        self.path = path
        self.differs: str | None = None
        self._given = given
        self._described: SeriesMetadata | None = None
        self._written: bytes | None = None
        self._told: bytes | None = None
        self._fault: str | None = None
        self._retry_at = 0.0

    def lacks(self, frame: Frame) -> bool:
        """Whether a frame's header is another than the one described last. May be asked by any thread."""
        return self._described is not frame.series.metadata and time.monotonic() >= self._retry_at

    def describe(self, frame: Frame) -> None:
        """Write the geometry of a frame's series; what goes wrong is logged, and tried again after ``_RETRY_S``."""
        if not isinstance(frame.image, ImageData):
            return
        try:
            text = geometry_text(frame.series.metadata, frame.image.shape, self._given).encode()
            self._keep(text, frame.series.series_id)
            self._described, self._fault = frame.series.metadata, None
        except (OSError, ValueError) as error:
            self._retry_at = time.monotonic() + _RETRY_S
            if self._fault != str(error):
                self._fault = str(error)
                log.error("%s: the geometry for indexing cannot be written: %s", self.path, error)

    def _keep(self, text: bytes, series_id: int) -> None:
        there = self._there()
        ours = there is not None and there == self._written
        if there == text:
            self.differs = None
        elif there is None or ours:
            with placed(self.path) as temporary:
                temporary.write_bytes(text)
            self._written, self.differs = text, None
            if ours:
                log.warning("%s: written anew, as the header of series %d says something else; start indexamajig again",
                            self.path, series_id)  # fmt: skip
            else:
                log.info("%s: geometry of series %d for indexamajig -g", self.path, series_id)
        else:
            self.differs = f"differs from the header of series {series_id}"
            if text != self._told:
                # Once, and not with each of a thousand series whose header is the same.
                log.warning("%s: %s; left as it is", self.path, self.differs)
            self._told = text

    def _there(self) -> bytes | None:
        """What the file has; ``None`` where there is none. Raises ``OSError`` and ``ValueError``."""
        if not os.path.lexists(self.path):
            return None
        return read_text(self.path, "CrystFEL geometry file (.geom)")
