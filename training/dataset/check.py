"""Checking whatever a path names: a tree, a series, one image, a split."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py

from streamer.files import BadInput
from training.dataset.check_series import check_series
from training.dataset.check_tree import check_image, check_tree
from training.dataset.images import DATASET, AfterImage
from training.dataset.opening import open_linked
from training.dataset.paper import IMAGE_KINDS, PAPER, parse_name
from training.dataset.problems import Problem
from training.dataset.series import open_series
from training.dataset.split import verify_split
from training.dataset.tree import Tree


def check_source(
    source: Tree | Path, datasets: Iterable[int] | None = None, after_image: AfterImage | None = None
) -> Iterator[Problem]:
    """Every problem of a tree, a series, a single image or a split (`.json`).

    Where data sets are chosen, a series of another one has none.
    """
    if isinstance(source, Tree):
        yield from check_tree(source, datasets, after_image)
    elif source.suffix == ".json":
        try:
            yield from verify_split(source, after_image)
        except BadInput as error:
            yield Problem(source, "", str(error).removeprefix(f"{source}: "))
    elif any(parse_name(kind, source.name) for kind in IMAGE_KINDS) or _holds_one_image(source):
        yield from _check_alone(source)
    elif datasets is None or _is_of(source, frozenset(datasets)):
        yield from check_series(source, after_image)


def _check_alone(path: Path) -> Iterator[Problem]:
    """An image outside its tree; where its name says what it is, that is compared."""
    for kind in IMAGE_KINDS:
        if image := parse_name(kind, path.name):
            yield from check_image(path, PAPER[image.dataset], not image.empty)
            return
    yield from check_image(path)


def _holds_one_image(path: Path) -> bool:
    try:
        with open_linked(path) as linked:
            found = linked.get(DATASET)
            return isinstance(found, h5py.Dataset) and found.ndim == 2
    except (OSError, KeyError, RuntimeError):
        return False


def _is_of(path: Path, datasets: frozenset[int]) -> bool:
    """Whether a series is of one of the data sets; one that cannot be read is, so that its problems show."""
    try:
        with open_series(path) as series:
            return series.dataset in datasets
    except BadInput:
        return True
