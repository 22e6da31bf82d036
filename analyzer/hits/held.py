"""Which hits the files of a folder hold already: by series, image and the packed bytes of the image.

Ids alone do not tell: a detector counts its series anew after a reboot, and files are counted from 1 in every run. The
same ids with the same bytes are the same hit.
"""

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from analyzer.hits.lists import Lists
from analyzer.hits.packing import chunk_of
from analyzer.hits.places import EVENT, FILES, IMAGES
from streamer.errors import first_line
from streamer.messages import ImageData, UndecodableImage

log = logging.getLogger(__name__)

_WHICH = np.dtype([("series_id", "i8"), ("image_id", "i8"), ("file", "i4"), ("row", "i4")])
_FAULTS = (OSError, KeyError, ValueError, TypeError, RuntimeError)


class Held:
    """The hits in the files that are there now, 24 bytes each; images are read only where the ids are the same.

    The file that was read last stays open, as hits that repeat come in the order of the files. ``lists`` learn of each
    file what they need, so that it is opened once.
    """

    def __init__(self, folder: Path, lists: Lists) -> None:
        self._paths = sorted(path for path in folder.glob(FILES) if path.is_file())
        if self._paths:
            log.info("%s: looking through %d files for hits that they hold already", folder, len(self._paths))
        found = [_rows(path, number, lists) for number, path in enumerate(self._paths)]
        every = np.concatenate([*found, np.empty(0, _WHICH)])
        self._which = every[np.lexsort([every["image_id"], every["series_id"]])]
        self._series = self._which["series_id"]
        self._open: tuple[int, h5py.File] | None = None

    def has(self, series_id: int, image_id: int, image: ImageData) -> bool:
        """Whether this image of this series is in a file."""
        begin, end = np.searchsorted(self._series, [series_id, series_id + 1])
        ids = self._which["image_id"][begin:end]
        first, last = np.searchsorted(ids, [image_id, image_id + 1])
        return any(self._alike(each, image) for each in self._which[begin + first : begin + last])

    def _alike(self, which: Any, image: ImageData) -> bool:
        try:
            images = self._file(int(which["file"]))[IMAGES]
            if images.shape[1:] != image.shape or images.dtype != image.dtype:
                return False
            return bool(images.id.read_direct_chunk((int(which["row"]), 0, 0))[1] == bytes(chunk_of(image)))
        except (*_FAULTS, UndecodableImage):
            return False

    def _file(self, number: int) -> h5py.File:
        if self._open is None or self._open[0] != number:
            self.close()
            # Not locked: whoever works with the files meanwhile may.
            self._open = number, h5py.File(self._paths[number], locking=False)
        return self._open[1]

    def close(self) -> None:
        """Let go of the file that was read last."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


def _rows(path: Path, number: int, lists: Lists) -> npt.NDArray[Any]:
    try:
        with h5py.File(path) as file:
            series, images = file[f"{EVENT}/series_id"][()], file[f"{EVENT}/image_id"][()]
            lists.take(path, file)
        which = np.zeros(len(series), _WHICH)
        which["series_id"], which["image_id"] = series, images
    except _FAULTS as error:
        log.warning("%s: its hits are not known: %s", path, first_line(error))
        return np.empty(0, _WHICH)
    which["file"], which["row"] = number, np.arange(len(which))
    return which
