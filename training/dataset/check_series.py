"""What is wrong with an Eiger series: links, data files, frames, and its truth where it has one."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from streamer.files import BadInput, FileSeries
from streamer.links import Linked, Refused
from training.dataset.images import AfterImage, digest
from training.dataset.opening import is_special, open_hdf5, open_linked
from training.dataset.problems import Problem, cannot_open
from training.dataset.series import OpenSeries, UnreadableFrame
from training.dataset.truth import Truth, truth_problems
from training.dataset.truth_file import read_truth

_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError)
"""What h5py raises when a file's own tables are broken."""


def check_series(path: Path, after_image: AfterImage | None = None) -> Iterator[Problem]:
    """Every problem of a master with its data files, or of a data file alone; every frame is decoded."""
    try:
        with open_linked(path) as linked:
            link_problems = list(_links(path, linked))
    except OSError as error:
        yield cannot_open(path, error)
        return
    except _DAMAGE as error:
        yield Problem(path, "", f"damaged: {error}")
        return
    yield from link_problems
    try:
        files = FileSeries(path)
    except BadInput as error:
        if not link_problems:
            rest = str(error).removeprefix(f"{path}:")
            where, _, text = rest.partition(": ") if rest.startswith("/") else ("", "", rest.strip())
            yield Problem(path, where, text)
        return
    except _DAMAGE as error:
        yield Problem(path, "", f"damaged: {error}")
        return
    try:
        truth = read_truth(path, len(files))
        if isinstance(truth, Problem):
            yield truth
        series = OpenSeries(path, files, truth if isinstance(truth, Truth) else None)
        yield from _frames(series, after_image)
        if series.truth is not None and not link_problems:
            yield from truth_problems(series.truth, series.shape, series.mask)
    finally:
        files.close()


def _links(path: Path, linked: Linked) -> Iterator[Problem]:
    """Data files that a master links to and that are not there or cannot be read; images it announces and has not."""
    try:
        data = linked.get("entry/data")
    except OSError:  # which the reader says better
        return
    if not isinstance(data, h5py.Group):
        return
    images, whole = 0, True
    for name in sorted(name for name in map(str, data) if re.fullmatch(r"data_\d+", name)):
        where = f"/entry/data/{name}"
        link = data.get(name, getlink=True)
        inner = link.path if isinstance(link, h5py.ExternalLink) else where
        target = path
        try:
            if isinstance(link, h5py.ExternalLink):
                target = linked.target(link.filename, data)
            if not is_special(target):
                found: Any = linked.get(where)
                images += len(found)
                continue
            whole = False
        except Refused as error:
            whole = False
            yield Problem(path, where, str(error))
            continue
        except (KeyError, OSError, RuntimeError, TypeError):
            whole = False
        if not target.exists():
            yield Problem(path, where, f"links to {target.name}, which is not there; put it beside the master")
            continue
        try:
            open_hdf5(target).close()
            yield Problem(path, where, f"links to {inner} of {target.name}, which has no images there")
        except OSError as error:
            yield Problem(path, where, f"links to {target.name}, which is no good: {cannot_open(target, error).text}")
    announced = _announced(linked)
    if whole and images and announced is not None and announced != images:
        where = "/entry/instrument/detector/detectorSpecific/nimages"
        yield Problem(path, where, f"{announced} images are announced, the data files hold {images}")


def _announced(linked: Linked) -> int | None:
    try:
        counts = [linked.get(f"entry/instrument/detector/detectorSpecific/{name}") for name in ("nimages", "ntrigger")]
    except (KeyError, OSError):
        return None
    product = 1
    for count in counts:
        if not isinstance(count, h5py.Dataset) or count.size != 1 or count.dtype.kind not in "ui":
            return None
        product *= int(count[()].ravel()[0]) if count.ndim else int(count[()])
    return product


def _frames(series: OpenSeries, after_image: AfterImage | None) -> Iterator[Problem]:
    where = "/entry/data"
    alike: dict[str, list[int]] = defaultdict(list)
    for position in range(len(series)):
        try:
            pixels = series.pixels(position)
        except UnreadableFrame as error:
            yield Problem(series.path, where, f"frame {position} cannot be read: {error}")
        else:
            if pixels.shape != series.shape:
                yield Problem(series.path, where, f"frame {position} has shape {pixels.shape}, frame 0 {series.shape}")
            # Frames without a photon are alike: no beam.
            if ((pixels != 0) & (pixels != np.iinfo(pixels.dtype).max)).any():
                alike[digest(pixels)].append(position)
        if after_image is not None:
            after_image(position + 1, len(series))
    for positions in alike.values():
        if len(positions) > 1:
            others = ", ".join(map(str, positions[1:6])) + (", ..." if len(positions) > 6 else "")
            yield Problem(series.path, where, f"frame {positions[0]} is bit for bit the same image as frame {others}")
