"""Series on disk for data sets: their frames decoded one at a time, and their truth."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from streamer.decoding import check_size, decode
from streamer.files import BadInput, FileSeries
from streamer.messages import SeriesMetadata, UndecodableImage
from training.dataset.images import AfterImage
from training.dataset.labels import LabelKind, label_image
from training.dataset.paper import dataset_of
from training.dataset.problems import Problem
from training.dataset.truth import SPOT_PLACE, Truth, unusable
from training.dataset.truth_file import GROUP, read_truth


class UnreadableFrame(Exception):
    """A frame that cannot be read or decoded; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenSeries:
    """A series with its truth (None without one); frames are read as they are asked for."""

    path: Path
    files: FileSeries
    truth: Truth | None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def metadata(self) -> SeriesMetadata:
        """What the master says of the detector."""
        return self.files.metadata

    @property
    def shape(self) -> tuple[int, int]:
        """Of its images, (ss, fs)."""
        return self.files.shape

    @property
    def mask(self) -> NDArray[np.uint32] | None:
        """(ss, fs), nonzero where a pixel is bad."""
        return next(iter(self.metadata.masks.values()), None)

    @property
    def condition(self) -> tuple[float | None, float | None]:
        """Camera length (m) and photon energy (eV) that the header states."""
        return self.metadata.camera_length_m, self.metadata.photon_energy_eV

    @property
    def dataset(self) -> int | None:
        """The paper's data set of that condition."""
        length, energy = self.condition
        return None if length is None or energy is None else dataset_of(length, energy)

    def pixels(self, position: int) -> NDArray[Any]:
        """The frame at a position, (ss, fs). Raises UnreadableFrame."""
        try:
            image = self.files.image(position)
            check_size(image)
            out = np.empty(image.shape, image.dtype.newbyteorder("="))
            decode(image, out)
        except (OSError, RuntimeError, UndecodableImage) as error:
            raise UnreadableFrame(str(error)) from None
        return out

    def usable_truth(self) -> Truth | None:
        """The truth, None without one. Raises BadInput when something in it is unfit for use."""
        if self.truth is not None:
            for problem in unusable(self.truth, self.shape):
                raise BadInput(f"{problem}; `cxls data check` lists all that is wrong")
        return self.truth

    def need_truth(self, *names: str) -> Truth:
        """The truth, which has these datasets.

        Raises BadInput when there is none, when something in it is unfit for use, and for datasets that are missing,
        by name.
        """
        truth = self.usable_truth()
        if truth is None:
            raise BadInput(f"{self.path}: no truth in {GROUP} or beside it; `cxls simulate` writes series with it")
        if missing := truth.missing(*names):
            raise BadInput(missing)
        return truth


@contextmanager
def open_series(path: Path) -> Iterator[OpenSeries]:
    """Open a series for the block. Raises BadInput when it or its truth cannot be read."""
    files = FileSeries(path)
    try:
        truth = read_truth(path, len(files))
        if isinstance(truth, Problem):
            raise BadInput(str(truth))
        yield OpenSeries(path, files, truth)
    finally:
        files.close()


def label_path(master: Path) -> Path:
    """Where the labels of a series go: PREFIX_labels.h5 beside PREFIX_master.h5."""
    return master.with_name(master.name.removesuffix(".h5").removesuffix("_master") + "_labels.h5")


def label_series(
    path: Path,
    kind: LabelKind,
    threshold: float = 1.0,
    min_distance_px: int = 3,
    *,
    force: bool = False,
    after_image: AfterImage | None = None,
) -> Path:
    """Write PREFIX_labels.h5: `/entry/labels/data` (N, ss, fs) float32, one bitshuffle-LZ4 chunk an image.

    A label is made of the photons that the true spots are expected to give (`Truth.signal`), which has no noise; gaps
    have no labels. Raises BadInput without true spots, FileExistsError when the file is there and force is false.
    """
    final = label_path(path)
    with open_series(path) as series:
        truth, mask = series.need_truth(*SPOT_PLACE), series.mask
        if final.exists() and not force:
            raise FileExistsError(f"{final} exists already")
        temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
        rows, columns = series.shape
        try:
            with h5py.File(temporary, "w") as file:
                data = file.create_dataset(
                    "entry/labels/data",
                    (len(series), rows, columns),
                    np.float32,
                    chunks=(1, rows, columns),
                    **hdf5plugin.Bitshuffle(cname="lz4"),
                )
                data.attrs.update({"kind": kind, "threshold": threshold, "series": path.name})
                if kind == "maxima":
                    data.attrs["min_distance"] = min_distance_px
                for frame in range(len(series)):
                    signal = truth.signal(frame, series.shape)
                    if mask is not None:
                        signal[mask != 0] = 0.0
                    data[frame] = label_image(signal, kind, threshold, min_distance_px)
                    if after_image is not None:
                        after_image(frame + 1, len(series))
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
    return final
