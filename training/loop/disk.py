"""Samples on disk: the paper's tree, and series with truth. A frame is read and decoded when it is asked for."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.framing import Framing
from streamer.decoding import check_size, decode
from streamer.files import CHANNEL, BadInput, FileSeries
from streamer.messages import UndecodableImage
from streamer.validity import sentinel, series_validity
from training.dataset.images import read_image
from training.dataset.opening import open_hdf5
from training.dataset.paper import ImageId, ImageKind
from training.dataset.problems import Problem, cannot_open
from training.dataset.series import open_series
from training.dataset.split import read_inputs
from training.dataset.tree import Tree, list_tree
from training.dataset.truth import SPOT_PLACE, Truth
from training.dataset.truth_file import read_others
from training.loop.samples import IMAGES, Batch, Places, Source, digest, linked

SPOT_PHOTONS = 1.0
"""A true spot of fewer expected photons is no peak; the threshold of `cxls data label`."""

_OF_SPOTS = ("clean_image", "peak_map")
"""Fields that a series' true spots are made into."""

_TREE_IMAGES: dict[str, ImageKind] = {"image": "peaks_water_overlay", "clean_image": "peaks", "peak_map": "labels"}
_TREE_ATTRIBUTES: dict[str, tuple[str, str, type[Any]]] = {
    "hit": ("peak", "b", np.bool_),
    "photon_energy_eV": ("photon_energy", "uif", np.float64),
    "camera_length_m": ("clen", "uif", np.float64),
}
"""Field: name of the root's attribute, kinds of dtype it may have, dtype of the field."""


class TreeSource:
    """Images of the paper's tree, in order of their ids: overlays, peak images, labels and their files' attributes.

    Raises ``BadInput`` for a tree without images or with files of which nobody knows what they are.
    """

    def __init__(self, tree: Tree, framing: Framing | None = None, datasets: Iterable[int] | None = None) -> None:
        listing = list_tree(tree, datasets)
        if listing.problems:
            raise BadInput(f"{listing.problems[0]}; `cxls data check` lists all that is wrong")
        self._tree, self._framing, self._datasets = tree, framing or Framing(), datasets
        self.ids: list[ImageId] = [image for dataset in listing.datasets for image in listing.ids(dataset)]
        if not self.ids:
            raise BadInput(f"{tree.images}: no images; `cxls data make-tree` makes some")
        self.name = str(tree.images)
        self._lacking: dict[str, str] = {}
        self._paths: dict[str, list[Path]] = {}
        for field, kind in _TREE_IMAGES.items():
            found = listing.images[kind]
            if missing := next((image for image in self.ids if image not in found), None):
                self._lacking[field] = f"{tree.path(kind, missing)}: no such file, which would be its {field}"
            else:
                self._paths[field] = [found[image] for image in self.ids]
        self._values = self._read_attributes()
        self.fields = frozenset({*self._paths, *self._values})
        sizes = [path.stat().st_size for paths in self._paths.values() for path in paths]
        ends = [read_image(paths[n]).pixels for paths in self._paths.values() for n in (0, -1)]
        what = np.array([str(image) for image in self.ids])
        self.identity = f"tree:{digest(what, np.array(sizes), *self._values.values(), *ends)}:{self._framing}"

    def _read_attributes(self) -> dict[str, NDArray[Any]]:
        if "image" not in self._paths:
            return {}
        found: dict[str, list[Any]] = {field: [] for field in _TREE_ATTRIBUTES}
        for path in self._paths["image"]:
            try:
                with open_hdf5(path) as file:
                    given = {name: file.attrs.get(name) for name, _, _ in _TREE_ATTRIBUTES.values()}
            except OSError as error:
                raise BadInput(str(cannot_open(path, error))) from None
            for field, (name, kinds, _) in _TREE_ATTRIBUTES.items():
                value = np.asarray(given[name])
                if value.shape == () and value.dtype.kind in kinds:
                    found[field].append(value)
                else:
                    self._lacking.setdefault(field, f"{path}: no attribute {name!r}, which would be its {field}")
        return {
            field: np.array(values, _TREE_ATTRIBUTES[field][2])
            for field, values in found.items()
            if len(values) == len(self.ids)
        }

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """By what images share, as `cxls data split` sees it; reads every image."""
        keys = {item.number: item.keys for item in read_inputs([self._tree], self._datasets).items}
        return linked([keys[str(image)] for image in self.ids])

    def __len__(self) -> int:
        return len(self.ids)

    def lacking(self, field: str) -> str:
        return self._lacking.get(field, f"{self.name}: a tree of the paper's kind has no {field}")

    def batch(self, places: Places, names: Sequence[str]) -> Batch:
        return {
            name: self._values[name][places]
            if name in self._values
            else _stacked([self._image(name, int(n)) for n in places], self.name)
            for name in names
        }

    def _image(self, field: str, n: int) -> NDArray[np.float32]:
        pixels = read_image(self._paths[field][n]).pixels
        return self._framing.marks(pixels) if field == "peak_map" else self._framing.image(pixels)

    def at_epoch(self, epoch: int) -> Source:
        del epoch
        return self


class SeriesSource:
    """Frames of a series; truth where there is one, else what the header says of photon energy and camera length.

    Numbers that the truth has for every frame are a field, whatever their name and rank (N, ...); a constant is one
    too. They are held in memory, fractions of rank 1 as float64. Invalid pixels are 0. A clean image is a draw of what
    the true spots are expected to give: a series does not say which photon came from the crystal. Raises ``BadInput``.
    """

    def __init__(self, path: Path, framing: Framing | None = None) -> None:
        self.path, self.name, self._framing = path, str(path), framing or Framing()
        with open_series(path) as series:
            truth, self._length, self._shape = series.usable_truth(), len(series), series.shape
            try:
                valid = series_validity(series.metadata, series.shape, CHANNEL).valid != 0
            except ValueError as error:
                raise BadInput(f"{path}: {error}") from None
            header = dict(zip(("camera_length_m", "photon_energy_eV"), series.condition, strict=True))
        self._valid: NDArray[np.bool_] = valid
        self._values = {name: np.full(self._length, value) for name, value in header.items() if value is not None}
        self._spots: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self._truth, self._unfit = truth, dict[str, Problem]()
        if truth is not None:
            others, self._unfit = read_others(truth)
            known = replace(truth, values=others | truth.values)
            for name in known.values.keys() - set(IMAGES):
                value = known.per_frame(name)
                if value is not None and value.dtype.kind in "buif":
                    self._values[name] = _plain(value)
                else:
                    self._unfit[name] = Problem(truth.file, truth.where(name), "no number for every frame")
            if truth.hits is not None:
                self._values["hit"] = truth.hits
            if truth.has_spots:
                self._spots = _bright_spots(truth)
        self.fields = frozenset({"image", *self._values, *(_OF_SPOTS if self._spots else ())})
        spots = [part for pair in self._spots for part in pair]
        values = [self._values[name] for name in sorted(self._values)]
        self.identity = f"series:{path.name}:{digest(self._valid, *values, *spots)}:{self._framing}"
        self._noise_seed = int(digest(*spots), 16)
        self._open: tuple[int, FileSeries] | None = None

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """By what frames share, as `cxls data split` sees it."""
        keys = {item.number: item.keys for item in read_inputs([self.path]).items}
        return linked([keys[n] for n in range(self._length)])

    def __len__(self) -> int:
        return self._length

    def lacking(self, field: str) -> str:
        if field in self._unfit:
            return str(self._unfit[field])
        if self._truth is not None and (gone := self._truth.missing(*(SPOT_PLACE if field in _OF_SPOTS else [field]))):
            return gone
        return f"{self.name}: no {field} in /entry/truth, in a table beside it or in the header"

    def batch(self, places: Places, names: Sequence[str]) -> Batch:
        make: dict[str, Callable[[int], NDArray[np.float32]]] = {
            "image": self._image,
            "clean_image": self._clean_image,
            "peak_map": self._peak_map,
        }
        return {
            name: _stacked([make[name](int(n)) for n in places], self.name)
            if name in make
            else self._values[name][places]
            for name in names
        }

    def at_epoch(self, epoch: int) -> Source:
        del epoch
        return self

    def _files(self) -> FileSeries:
        # A process that loads batches for another one must not share its open files.
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), FileSeries(self.path))
        return self._open[1]

    def _image(self, n: int) -> NDArray[np.float32]:
        try:
            packed = self._files().image(n)
            check_size(packed)
            pixels = np.empty(packed.shape, packed.dtype.newbyteorder("="))
            decode(packed, pixels)
        except (OSError, RuntimeError, UndecodableImage) as error:
            raise BadInput(f"{self.name}: image {n} cannot be read: {error}; `cxls data check` lists all") from None
        if pixels.shape != self._shape:
            raise BadInput(f"{self.name}: image {n} is {pixels.shape}, the first is {self._shape}")
        return self._framing.image(pixels, self._valid & (pixels != sentinel(pixels.dtype)))

    def _clean_image(self, n: int) -> NDArray[np.float32]:
        assert self._truth is not None
        photons = self._truth.signal(n, self._shape)
        lit = photons > 0
        photons[lit] = np.random.default_rng([self._noise_seed, n]).poisson(photons[lit])
        return self._framing.image(photons, self._valid)

    def _peak_map(self, n: int) -> NDArray[np.float32]:
        marks = np.zeros(self._shape, np.bool_)
        ss, fs = (np.rint(axis).astype(np.intp) for axis in self._spots[n])
        marks[ss, fs] = True
        return self._framing.marks(marks & self._valid)


def _plain(value: NDArray[Any]) -> NDArray[Any]:
    """In this machine's byte order and of a dtype that torch has."""
    if value.dtype.kind == "f" and (value.ndim == 1 or value.itemsize > 8):
        return value.astype(np.float64)
    return value.astype(value.dtype.newbyteorder("="))


def _bright_spots(truth: Truth) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """ss and fs of each frame's spots that are peaks."""
    frame, photons = truth.values["spot_frame"], truth.values["spot_photons"]
    bright = np.flatnonzero(photons >= SPOT_PHOTONS)
    bright = bright[np.argsort(frame[bright], kind="stable")]
    ends = np.searchsorted(frame[bright], np.arange(1, truth.images))
    parts = (np.split(truth.values[name][bright].astype(np.float64), ends) for name in ("spot_ss", "spot_fs"))
    return list(zip(*parts, strict=True))


def _stacked(images: list[NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    if len({image.shape for image in images}) > 1:
        shapes = " and ".join(f"{rows} x {columns}" for _, rows, columns in sorted({image.shape for image in images}))
        raise BadInput(f"{name}: frames of {shapes} pixels in one batch; give --size to cut all to one")
    return np.stack(images) if images else np.zeros((0, 1, 1, 1), np.float32)
