"""One hit as the MessagePack map that CrystFEL reads (``--data-format=msgpack``, versions 0.11 and 0.12).

The reader compares a key only as far as the *sent* key goes, and takes the first that fits. So a key that is the
beginning of another, or empty, is taken for it; here the keys it looks for come first and none is another's beginning.
It reads the numbers of the peak list as doubles whatever they are: an integer would be a tiny number, so they are
floats here, always. Pixels may be ``<i4`` or ``<f4`` only, any other type leaves them undefined; ours are ``<f4``,
NaN where a pixel is masked or holds the detector's "no data", which it marks as bad. Peaks are pixel indices (0 is
the middle of the first pixel); it adds its own half pixel.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from analyzer.coordinates import Convention, in_convention
from analyzer.indexing.hits import WaitingHit
from analyzer.panels import GivenGeometry, place
from streamer.decoding import check_size, decode
from streamer.frames import Frame
from streamer.messages import Defect, SeriesMetadata, UndecodableImage
from streamer.validity import Validity, sentinel, series_validity

ENERGY_KEY, DISTANCE_KEY, PEAKS_KEY, IMAGE_KEY = "beam_energy", "detector_distance", "peak_list", "detector_data"
"""Keys that the geometry file names; `live_geometry` writes them."""

_MM_PER_M = 1000.0


def pack_hit(hit: WaitingHit, pixels: npt.NDArray[np.float32] | None = None) -> bytes:
    """The message of a hit; ``pixels`` (ss, fs) float32 go along when given.

    beam_energy (eV) and detector_distance (mm) are the header's and are left out where it has none.
    """
    return msgspec.msgpack.encode(_message(hit, pixels))


def _message(hit: WaitingHit, pixels: npt.NDArray[np.float32] | None) -> dict[str, Any]:
    result, metadata = hit.result, hit.series.metadata
    peaks = result.peaks or []
    message: dict[str, Any] = {
        PEAKS_KEY: {
            "fs": [in_convention(float(peak.fs), Convention.CRYSTFEL_PEAKS) for peak in peaks],
            "ss": [in_convention(float(peak.ss), Convention.CRYSTFEL_PEAKS) for peak in peaks],
            "intensity": [float(peak.intensity_photons) for peak in peaks],
            "snr": [float(peak.snr) for peak in peaks],
            "num_peaks": len(peaks),
        }
    }
    if metadata.photon_energy_eV is not None:
        message[ENERGY_KEY] = float(metadata.photon_energy_eV)
    if metadata.camera_length_m is not None:
        message[DISTANCE_KEY] = round(_MM_PER_M * float(metadata.camera_length_m), 9)
    if pixels is not None:
        message[IMAGE_KEY] = {
            "type": "<f4",
            "shape": list(pixels.shape),
            "data": np.ascontiguousarray(pixels, "<f4").data,
        }
    return message | {
        "event_id": hit.event_id,
        "frame_id": result.image_id,
        "series_id": result.series_id,
        "timestamp": float(result.received_at),
        "hit_probability": float(result.hit_probability or 0.0),
        "source": "cxls",
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Masked:
    """The pixels of a series' images that do not count, and what that was made from: held, so that ``is`` tells."""

    metadata: SeriesMetadata
    shape: tuple[int, int]
    channel: str
    mask: Validity | None
    pixels: npt.NDArray[np.bool_]


class FrameDecoder:
    """Packed frames to pixels for CrystFEL, in one thread, with its buffer and the latest mask used again.

    ``geometry``: a geometry file whose mask and bad regions count, where it fits the images.
    """

    def __init__(self, geometry: GivenGeometry | None = None) -> None:
        self._geometry = geometry
        self._raw: npt.NDArray[Any] = np.empty((0, 0), np.uint16)
        self._masked: _Masked | None = None

    def pixels(self, frame: Frame, mask: Validity | None) -> npt.NDArray[np.float32]:
        """The frame's counts, (ss, fs) float32, NaN where a pixel is masked or has no data.

        ``mask`` is the user's, on top of the series'. Raises ``UndecodableImage``.
        """
        image = frame.image
        if isinstance(image, Defect):
            raise UndecodableImage(image.reason, image.text)
        check_size(image)
        dtype = image.dtype.newbyteorder("=")
        if self._raw.shape != image.shape or self._raw.dtype != dtype:
            self._raw = np.empty(image.shape, dtype)
        decode(image, self._raw)
        bad = self._raw == sentinel(dtype)
        bad |= self._left_out(frame, image.shape, mask)
        pixels = self._raw.astype(np.float32)
        np.copyto(pixels, np.float32(np.nan), where=bad)
        return pixels

    def _left_out(self, frame: Frame, shape: tuple[int, int], mask: Validity | None) -> npt.NDArray[np.bool_]:
        metadata, channel, known = frame.series.metadata, frame.channel, self._masked
        if known is None or known.metadata is not metadata or known.mask is not mask:
            known = None
        if known is None or (known.shape, known.channel) != (shape, channel):
            _, left_out = place(self._geometry, mask, metadata, shape)
            valid = series_validity(metadata, shape, channel, left_out).valid
            known = self._masked = _Masked(metadata, shape, channel, mask, valid == 0)
        return known.pixels
