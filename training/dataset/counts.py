"""How many images of what there are, by data set."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from training.dataset.paper import IMAGE_KINDS, PAPER
from training.dataset.series import OpenSeries
from training.dataset.tree import Tree, list_tree


@dataclass(frozen=True, slots=True)
class Count:
    """Images of one data set of a tree, or of one series.

    dataset is the paper's number, None for another condition; camera_length_m and photon_energy_eV are None where the
    file does not say. hits and empties are None for a series without truth. labels, overlays and water are files of a
    tree; classes counts the frames of a series by class.
    """

    source: Path
    dataset: int | None
    camera_length_m: float | None
    photon_energy_eV: float | None
    total: int
    hits: int | None
    empties: int | None
    labels: int | None = None
    overlays: int | None = None
    water: int | None = None
    classes: dict[str, int] = field(default_factory=dict)


def count_tree(tree: Tree, datasets: Iterable[int] | None = None) -> list[Count]:
    """Counts by names alone: no file is opened; `check_tree` says whether the names tell the truth."""
    listing = list_tree(tree, datasets)
    found = []
    for dataset in listing.datasets:
        peaks, labels, overlays = (listing.ids(dataset, kind) for kind in IMAGE_KINDS)
        hits = sum(not image.empty for image in peaks)
        paper = PAPER[dataset]
        found.append(
            Count(
                tree.images, dataset, paper.camera_length_m, paper.photon_energy_eV, len(peaks), hits,
                len(peaks) - hits, len(labels), len(overlays), len(listing.water.get(dataset, [])),
            )
        )  # fmt: skip
    return found


def count_series(series: OpenSeries) -> Count:
    """Counts of a series, by its header's condition and its truth."""
    length, energy = series.condition
    hits = None if series.truth is None else series.truth.hits
    if hits is None or series.truth is None:
        return Count(series.path, series.dataset, length, energy, len(series), None, None)
    n = int(hits.sum())
    classes = dict(sorted(Counter(series.truth.classes).items()))
    return Count(series.path, series.dataset, length, energy, len(series), n, len(series) - n, classes=classes)
