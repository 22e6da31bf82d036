"""Reading a truth: from `/entry/truth` of a master, or from `X_truth.npz` beside it.

Nothing is believed before it is read: a file of a few kB may claim arrays of terabytes, or text where numbers belong.
Names that nothing here needs are left alone, whatever they hold, unless an attribute of another package may need them
(`read_others`).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from streamer.files import BadInput
from streamer.links import Linked, Refused
from training.dataset.opening import open_linked, require_ordinary
from training.dataset.problems import Problem, cannot_open
from training.dataset.truth import TABLE_NAMES, Truth

GROUP = "/entry/truth"

MAX_BYTES_A_FRAME = 1 << 20
"""Of all names together: room for ten thousand spots with all that is known of each."""

MAX_BYTES = 1 << 31
"""Of all names together, whatever the number of frames."""

_NUMBER, _WHOLE, _YES_NO, _TEXT = "uif", "ui", "bui", "SUO"
_NOUNS = {_NUMBER: "numbers", _WHOLE: "whole numbers", _YES_NO: "yes and no", _TEXT: "texts"}

_FORMS: dict[str, tuple[str, int]] = {
    "hit": (_YES_NO, 1),
    "class": (_TEXT, 1),
    "orientation": (_NUMBER, 3),
    "orientation_all": (_NUMBER, 4),
    "crystal_offset_m": (_NUMBER, 3),
    "detectable": (_YES_NO, 1),
    **dict.fromkeys(("frame_index", "frame_crystal", "classes", "crystal_id"), (_WHOLE, 1)),
    **dict.fromkeys(("seed", "background_seed", "crystal_seed"), (_WHOLE, 1)),
    **dict.fromkeys(("bragg_photons", "background_photons", "log_likelihood_ratio", "flux_photons"), (_NUMBER, 1)),
    **dict.fromkeys(("photon_energy_eV", "camera_length_m", "water_scale", "water_thickness_m"), (_NUMBER, 1)),
    **dict.fromkeys(("beam_center_x_px", "beam_center_y_px"), (_NUMBER, 1)),
    **dict.fromkeys(("spot_frame", "spot_h", "spot_k", "spot_l", "spot_crystal"), (_WHOLE, 1)),
    **dict.fromkeys(("spot_ss", "spot_fs", "spot_photons", "spot_counts", "spot_partiality"), (_NUMBER, 1)),
}
"""Kinds of dtype that a name may have, and its highest rank."""

_Misfit = Callable[[str, tuple[int, ...] | None, np.dtype[Any]], str]
"""Of a name's shape (None for an empty dataset) and dtype: what is wrong with them, '' for nothing."""

_Found = tuple[dict[str, NDArray[Any]], dict[str, str]]
"""Values by name, and what is wrong with the others."""


def read_truth(master: Path, images: int) -> Truth | Problem | None:
    """The truth of a series of so many images; None when there is none, a Problem when it cannot be read.

    What is too large or of a wrong kind is not in its values but among its problems.
    """
    try:
        with open_linked(master) as linked:
            try:
                group = linked.get(GROUP)
            except Refused as error:
                return Problem(master, GROUP, str(error))
            except (KeyError, OSError):  # a link to nowhere
                group = None
            if isinstance(group, h5py.Group):
                return _from_group(linked, master, images)
    except OSError as error:
        return cannot_open(master, error)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        return Problem(master, GROUP, f"cannot be read: {error}")
    beside = master.with_name(master.name.removesuffix("_master.h5") + "_truth.npz")
    if not beside.exists():
        return None
    try:
        require_ordinary(beside)
        with np.load(beside, allow_pickle=False) as table:
            if sum(entry.file_size for entry in table.zip.infolist()) > _budget(images):
                return Problem(beside, "", f"a table of truth too large for {images} frames")
            values = {TABLE_NAMES.get(name, name): table[name] for name in table.files}
    except Exception as error:  # zipfile, zlib, numpy and struct each have their own
        return Problem(beside, "", f"cannot be read as a table of truth: {error}")
    problems = tuple(_misfits(values, beside))
    unfit = {problem.dataset for problem in problems}
    kept = {name: value for name, value in values.items() if name in _FORMS and name not in unfit}
    return Truth(images, kept, beside, "", problems)


def _budget(images: int) -> int:
    return min(max(images, 1) * MAX_BYTES_A_FRAME, MAX_BYTES)


def _from_group(linked: Linked, master: Path, images: int) -> Truth:
    values, unfit = _read_datasets(linked, GROUP, _FORMS, _misfit, images)
    problems = tuple(Problem(master, f"{GROUP}/{name}", text) for name, text in unfit.items())
    return Truth(images, values, master, GROUP, problems)


def _read_datasets(linked: Linked, group: str, names: Iterable[str], misfit: _Misfit, images: int) -> _Found:
    """Those of the datasets that are there; one that does not fit is not read."""
    values: dict[str, NDArray[Any]] = {}
    unfit: dict[str, str] = {}
    left = _budget(images)
    for name in names:
        try:
            item = linked.get(f"{group}/{name}")
            if item is None:
                continue
            if not isinstance(item, h5py.Dataset):
                unfit[name] = "not a dataset"
            elif text := misfit(name, item.shape, item.dtype):
                unfit[name] = text
            elif (size := math.prod(item.shape) * item.dtype.itemsize) > left:
                unfit[name] = f"shape {item.shape} of {item.dtype} is too large for the truth of {images} frames"
            else:
                left -= size
                values[name] = np.asarray(item[()])
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            unfit[name] = f"cannot be read: {error}"
    return values, unfit


def read_others(truth: Truth) -> tuple[dict[str, NDArray[Any]], dict[str, Problem]]:
    """What a truth holds under names that mean nothing here, as another package's attribute may want it.

    Numbers of any rank with a row for each frame (N, ...), or one for all frames (); and of the other names what is
    wrong with them. All together are held to the size of a truth. Raises BadInput when the file cannot be read.
    """

    def misfit(name: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> str:
        del name
        if shape is None:
            return "an empty dataset"
        if dtype.kind not in "buif":
            return f"{dtype} of shape {shape}, no numbers"
        return f"length {shape[0]} for {truth.images} frames" if shape and shape[0] != truth.images else ""

    try:
        values, unfit = _others_of_group(truth, misfit) if truth.group else _others_of_table(truth, misfit)
    except Exception as error:  # zipfile, zlib, numpy and HDF5 each have their own
        raise BadInput(f"{truth.file}: the truth cannot be read: {' '.join(str(error).split())}") from None
    return values, {name: Problem(truth.file, truth.where(name), text) for name, text in unfit.items()}


def _others_of_group(truth: Truth, misfit: _Misfit) -> _Found:
    with open_linked(truth.file) as linked:
        names = [name for name in linked.get(truth.group) or () if name not in _FORMS]
        return _read_datasets(linked, truth.group, names, misfit, truth.images)


def _others_of_table(truth: Truth, misfit: _Misfit) -> _Found:
    """The table is no larger than a truth may be, else there were none."""
    with np.load(truth.file, allow_pickle=False) as table:
        names = [name for name in table.files if TABLE_NAMES.get(name, name) not in _FORMS]
        values = {name: table[name] for name in names}
    unfit = {name: text for name, value in values.items() if (text := misfit(name, value.shape, value.dtype))}
    return {name: value for name, value in values.items() if name not in unfit}, unfit


def _misfits(values: dict[str, NDArray[Any]], file: Path) -> Iterator[Problem]:
    for name, value in values.items():
        if name in _FORMS and (misfit := _misfit(name, value.shape, value.dtype)):
            yield Problem(file, name, misfit)


def _misfit(name: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> str:
    """What keeps an array from being what its name says; '' when nothing does."""
    kinds, rank = _FORMS[name]
    if shape is None:
        return "an empty dataset"
    text = dtype.kind != "O" or h5py.check_string_dtype(dtype) is not None
    # A list of spots has no constant that could stand for it.
    if dtype.kind in kinds and text and len(shape) <= rank and (shape or not name.startswith("spot_")):
        return ""
    noun = "frames" if name == "spot_frame" else _NOUNS[kinds]
    return f"{dtype} of shape {shape}, no list of {noun}"
