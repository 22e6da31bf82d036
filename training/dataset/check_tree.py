"""What is wrong with a tree of the paper's kind: a generator of problems, one event in memory at a time."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.dataset.images import DATASET, AfterImage, StoredImage, digest, load_image, unphysical
from training.dataset.paper import (
    CAMERA_LENGTH_TOLERANCE_M,
    IMAGE_KINDS,
    PAPER,
    PHOTON_ENERGY_TOLERANCE_EV,
    WATER,
    ImageId,
    ImageKind,
    PaperDataset,
    file_name,
)
from training.dataset.problems import Problem
from training.dataset.tree import Listing, Tree, list_tree

_ROOT = "/"
_PAPER_THRESHOLD = 1.0


@dataclass(slots=True)
class _Seen:
    """What is remembered of images already closed: digests and shapes."""

    shapes: list[tuple[Path, tuple[int, ...]]] = field(default_factory=list)
    alike: dict[tuple[ImageKind, str], list[Path]] = field(default_factory=lambda: defaultdict(list))
    backgrounds: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))


def check_tree(
    tree: Tree, datasets: Iterable[int] | None = None, after_image: AfterImage | None = None
) -> Iterator[Problem]:
    """Every problem of a tree, or of these data sets of it."""
    listing = list_tree(tree, datasets)
    yield from listing.problems
    if not listing.datasets:
        yield Problem(tree.images, "", "none of the chosen data sets is here")
    total = sum(len(listing.ids(dataset)) for dataset in listing.datasets)
    done = 0
    shapes: list[tuple[Path, tuple[int, ...]]] = []
    for dataset in listing.datasets:
        seen = _Seen(shapes)
        yield from _unpaired(listing, dataset)
        yield from _check_water(listing, dataset, seen)
        for image in listing.ids(dataset):
            yield from _check_event(listing, image, seen)
            done += 1
            if after_image is not None:
                after_image(done, total)
        yield from _leaks(dataset, seen)
    yield from _odd_shapes(shapes)


def check_image(path: Path, paper: PaperDataset | None = None, peak: bool | None = None) -> Iterator[Problem]:
    """Every problem of one single-image file; its condition and `peak` are compared where they are given."""
    loaded = load_image(path)
    if isinstance(loaded, Problem):
        yield loaded
        return
    yield from _check_stored(loaded, paper, peak)


def _check_stored(image: StoredImage, paper: PaperDataset | None, peak: bool | None) -> Iterator[Problem]:
    if bad := unphysical(image.pixels):
        yield Problem(image.path, DATASET, bad)
    expected_length = None if paper is None else paper.camera_length_m
    expected_energy = None if paper is None else paper.photon_energy_eV
    yield from _check_number(image, "clen", expected_length, CAMERA_LENGTH_TOLERANCE_M, "m")
    yield from _check_number(image, "photon_energy", expected_energy, PHOTON_ENERGY_TOLERANCE_EV, "eV")
    said = image.attributes.get("peak")
    if "peak" not in image.attributes:
        yield Problem(image.path, _ROOT, "attribute peak is missing")
    elif not isinstance(said, bool | np.bool_):
        yield Problem(image.path, _ROOT, f"attribute peak is {_text(said)}, a bool is needed")
    elif peak is not None and bool(said) != peak:
        yield Problem(image.path, _ROOT, f"attribute peak is {bool(said)}, its name says {peak}")


def _check_number(
    image: StoredImage, name: str, expected: float | None, tolerance: float, unit: str
) -> Iterator[Problem]:
    if name not in image.attributes:
        yield Problem(image.path, _ROOT, f"attribute {name} is missing")
        return
    value = image.number(name)
    if value is None:
        yield Problem(image.path, _ROOT, f"attribute {name} is {_text(image.attributes[name])}, a number is needed")
    elif not math.isfinite(value) or value <= 0:
        yield Problem(image.path, _ROOT, f"attribute {name} is {value:g}, a number above 0 is needed")
    elif expected is not None and abs(value - expected) > tolerance:
        text = f"attribute {name} is {value:.10g} {unit}, its folder's data set has {expected:g} {unit}"
        yield Problem(image.path, _ROOT, text)


def _text(value: Any) -> str:
    """A value of a wrong type, with the type."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return f"{value.item()!r} ({value.dtype})" if isinstance(value, np.generic) else f"{value!r}"


def _unpaired(listing: Listing, dataset: int) -> Iterator[Problem]:
    """Images without their partners; a kind that is missing altogether is one problem."""
    ids = listing.ids(dataset)
    if not ids:
        yield Problem(listing.tree.folder("peaks", dataset), "", "no images")
        return
    here = [kind for kind in IMAGE_KINDS if listing.ids(dataset, kind)]
    for kind in IMAGE_KINDS:
        if kind not in here:
            yield Problem(listing.tree.folder(kind, dataset), "", f"no images, {here[0]} has {len(ids)}")
    for image in ids:
        has = [listing.images[kind][image] for kind in here if image in listing.images[kind]]
        for kind in here:
            if image not in listing.images[kind]:
                folder = PAPER[dataset].folder
                yield Problem(has[0], "", f"its partner {kind}/{folder}/{file_name(kind, image)} is missing")


def _check_water(listing: Listing, dataset: int, seen: _Seen) -> Iterator[Problem]:
    paths = listing.water.get(dataset, [])
    if not paths:
        folder = listing.tree.folder(WATER, dataset)
        yield Problem(folder, "", f"no water{dataset:02d}.h5; a data set has one water file")
    for path in paths:
        loaded = load_image(path)
        if isinstance(loaded, Problem):
            yield loaded
            continue
        yield from _check_stored(loaded, PAPER[dataset], False)
        seen.shapes.append((path, loaded.pixels.shape))


def _check_event(listing: Listing, image: ImageId, seen: _Seen) -> Iterator[Problem]:
    loaded: dict[ImageKind, StoredImage] = {}
    for kind in IMAGE_KINDS:
        path = listing.images[kind].get(image)
        if path is None:
            continue
        found = load_image(path)
        if isinstance(found, Problem):
            yield found
            continue
        yield from _check_stored(found, PAPER[image.dataset], not image.empty)
        loaded[kind] = found
        seen.shapes.append((path, found.pixels.shape))
        if kind != "labels" and found.pixels.any():
            seen.alike[kind, digest(found.pixels)].append(path)
    yield from _check_label(loaded, image)
    yield from _check_sum(loaded, image, seen)


def _check_label(loaded: dict[ImageKind, StoredImage], image: ImageId) -> Iterator[Problem]:
    peaks, label = loaded.get("peaks"), loaded.get("labels")
    if peaks is not None and image.empty and peaks.pixels.any():
        yield Problem(peaks.path, DATASET, "an empty image that holds photons")
    # An image that says how many photons were to be expected may have none of them.
    explained = peaks is not None and peaks.number("bragg_photons") is not None
    if peaks is not None and not (image.empty or explained or peaks.pixels.any()):
        yield Problem(peaks.path, DATASET, "a peak image without a photon")
    if label is None:
        return
    marked = label.pixels != 0
    if other := int(np.count_nonzero(marked & (label.pixels != 1))):
        yield Problem(label.path, DATASET, f"{other} pixels are neither 0 nor 1")
    count, said = int(np.count_nonzero(marked)), label.attributes.get("peak")
    if not isinstance(said, bool | np.bool_) or bool(said) == (count > 0):
        return
    # A crystal may be so weak that no pixel passes the threshold; then a blank label is the right one.
    weak = peaks is not None and not (peaks.pixels > (label.number("threshold") or _PAPER_THRESHOLD)).any()
    if count or not weak:
        yield Problem(label.path, _ROOT, f"attribute peak is {bool(said)}, the label marks {count} pixels")


def _check_sum(loaded: dict[ImageKind, StoredImage], image: ImageId, seen: _Seen) -> Iterator[Problem]:
    """An overlay is its peak image and something more; that something must not be the same twice."""
    if "peaks" not in loaded or "peaks_water_overlay" not in loaded:
        return
    peaks, overlay = loaded["peaks"], loaded["peaks_water_overlay"]
    if peaks.pixels.shape != overlay.pixels.shape or unphysical(peaks.pixels) or unphysical(overlay.pixels):
        return
    background = overlay.pixels.astype(np.float64) - peaks.pixels
    if background.any():
        seen.backgrounds[digest(background)].append(overlay.path)
    thinned = overlay.number("flux_scale") not in (None, 1.0)
    if not (thinned or peaks.is_expectation) and (below := int(np.count_nonzero(background < 0))):
        text = f"{below} pixels are below the peak image {peaks.path.name}: not its overlay"
        yield Problem(overlay.path, DATASET, text)


def _leaks(dataset: int, seen: _Seen) -> Iterator[Problem]:
    for paths in seen.backgrounds.values():
        if len(paths) > 1:
            yield Problem(
                paths[0],
                DATASET,
                f"the background (overlay - peak) is bit for bit that of {_others(paths)}: noise drawn once, as in the "
                "paper, which a network learns by heart; draw it anew for every image with "
                f"`cxls data overlay TREE --force --datasets {dataset}`",
            )
    for (kind, _), paths in sorted(seen.alike.items(), key=lambda found: found[1]):
        if len(paths) > 1:
            yield Problem(paths[0], DATASET, f"bit for bit the same image as {_others(paths)} in {kind}")


def _others(paths: list[Path]) -> str:
    return paths[1].name + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")


def _odd_shapes(shapes: list[tuple[Path, tuple[int, ...]]]) -> Iterator[Problem]:
    if not shapes:
        return
    (usual, _), *_ = Counter(shape for _, shape in shapes).most_common(1)
    for path, shape in shapes:
        if shape != usual:
            yield Problem(path, DATASET, f"shape {shape}, most images of the tree have {usual}")
