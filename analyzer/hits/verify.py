"""Looking through the files of a folder: is every image there, does it decode, is none there twice?"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from analyzer.hits.places import EVENT, FILES, PEAKS
from streamer.decoding import check_size, decode
from streamer.errors import first_line
from streamer.files import BadInput, FileSeries
from streamer.messages import UndecodableImage

_WHICH = np.dtype([("series_id", "i8"), ("image_id", "i8"), ("received_at", "f8"), ("file", "i4")])


class Verification:
    """``files`` and ``hits`` seen so far, of ``total`` files; ``problems`` gives what is wrong, a line each."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob(FILES))
        self.total = len(self._paths)
        self.files = 0
        self.hits = 0

    def problems(self, after_file: Callable[[int, int], None] = lambda done, total: None) -> Iterator[str]:
        seen: list[npt.NDArray[Any]] = []
        for number, path in enumerate(self._paths):
            try:
                series = FileSeries(path)
            except BadInput as error:
                yield str(error)
                continue
            try:
                self.files += 1
                self.hits += len(series)
                yield from _images(series)
                which = np.zeros(len(series), _WHICH)
                which["file"] = number
                yield from _tables(path, which)
                seen.append(which)
            finally:
                series.close()
                after_file(number + 1, self.total)
        yield from self._twice(seen)

    def _twice(self, seen: list[npt.NDArray[Any]]) -> Iterator[str]:
        if not seen:
            return
        every = np.concatenate(seen)
        every = every[np.lexsort([every["received_at"], every["image_id"], every["series_id"]])]
        alike = np.ones(len(every) - 1, np.bool_)
        for name in ("series_id", "image_id", "received_at"):
            alike &= every[name][1:] == every[name][:-1]
        for first, second in zip(every[:-1][alike], every[1:][alike], strict=True):
            where = f"{self._paths[first['file']]} and {self._paths[second['file']].name}"
            yield f"{where}: image {first['image_id']} of series {first['series_id']} is there twice"


def verify(folder: Path) -> Verification:
    """A look through the files of a folder, begun when its problems are asked for."""
    return Verification(folder)


def _images(series: FileSeries) -> Iterator[str]:
    for position in range(len(series)):
        try:
            image = series.image(position)
            check_size(image)
            decode(image, np.empty(image.shape, image.dtype.newbyteorder("=")))
        except (OSError, RuntimeError, UndecodableImage) as error:
            yield f"{series.path}: image {position} cannot be read: {first_line(error)}"


def _tables(path: Path, which: npt.NDArray[Any]) -> Iterator[str]:
    """What is said of the images; fills in which frames they are."""
    images = len(which)
    try:
        with h5py.File(path) as file:
            for name in ("series_id", "image_id", "received_at"):
                values = file[f"{EVENT}/{name}"][()]
                if values.shape != (images,):
                    yield f"{path}: {EVENT}/{name} has {values.shape} values for {images} images"
                    return
                which[name] = values
            counts, rows = file[f"{PEAKS}/nPeaks"][()], file[f"{PEAKS}/peakXPosRaw"].shape
            if counts.shape != (images,) or rows[0] != images or not ((counts >= 0) & (counts <= rows[1])).all():
                yield f"{path}: {PEAKS} does not have the peaks of {images} images"
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        yield f"{path}: not as hits are written: {first_line(error)}"
