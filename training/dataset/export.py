"""A series with truth as a tree of the paper's kind.

The overlay is the frame as it was counted. The peak image is the expectation from the true spots, since a series does
not say which photon came from the crystal. Masked pixels, which the paper's files have no word for, are 0 in all.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.files import BadInput
from training.dataset.images import AfterImage, condition_attributes, refuse_existing, write_image
from training.dataset.labels import label_image
from training.dataset.paper import PAPER, ImageId, PaperDataset
from training.dataset.series import OpenSeries, UnreadableFrame, open_series
from training.dataset.simulated import WATER_REFERENCE_THICKNESS_M, Pulse, water_expectation
from training.dataset.tree import Tree, list_tree
from training.dataset.truth import SPOT_PLACE, Truth

_Write = Callable[[Path, NDArray[Any], Mapping[str, Any]], None]


def export_tree(
    masters: Sequence[Path],
    out: Path,
    *,
    datasets: Iterable[int] | None = None,
    force: bool = False,
    after_image: AfterImage | None = None,
) -> tuple[Tree, int]:
    """Write OUT/images/... from series, and return the tree and the number of frames written.

    Hits become img_..., all other frames empty_...; each counts from 1 within its data set, in the order of the series.
    Raises BadInput for a series without truth, at none of the nine conditions, or with an unreadable frame;
    FileExistsError when the data sets hold images and force is false. Whatever is raised, the tree is as it was before.
    """
    chosen = None if datasets is None else frozenset(datasets)
    tree = Tree(out / "images")
    plan: list[tuple[Path, int]] = []
    shapes: dict[int, tuple[int, int]] = {}
    total = 0
    for master in masters:
        with open_series(master) as series:
            series.need_truth("hit", *SPOT_PLACE)
            number = _dataset(series)
            if chosen is None or number in chosen:
                plan.append((master, number))
                total += len(series)
                if shapes.setdefault(number, series.shape) != series.shape:
                    raise BadInput(f"{master}: frames of {series.shape}, others of data set {number} {shapes[number]}")
    if not plan:
        raise BadInput("nothing to export: no series is of a chosen data set")
    old = [path for found in list_tree(tree, shapes).images.values() for path in found.values()]
    refuse_existing(sorted(old), force)
    count = {(number, empty): 0 for number in shapes for empty in (False, True)}
    done = 0
    with _replacing(old) as write:
        for master, number in plan:
            with open_series(master) as series:
                truth = series.need_truth("hit", *SPOT_PLACE)
                if not (count[number, False] or count[number, True]):
                    _write_water(write, tree.water_path(number), PAPER[number], series, truth)
                hits = truth.hits
                assert hits is not None
                for frame in range(len(series)):
                    empty = not hits[frame]
                    count[number, empty] += 1
                    _write_frame(write, tree, ImageId(number, empty, count[number, empty]), series, truth, frame)
                    done += 1
                    if after_image is not None:
                        after_image(done, total)
    return tree, done


@contextmanager
def _replacing(old: Sequence[Path]) -> Iterator[_Write]:
    """Images written in the block stand under other names until it ends; an error leaves the old ones as they are."""
    written: dict[Path, Path] = {}

    def write(path: Path, pixels: NDArray[Any], attributes: Mapping[str, Any]) -> None:
        written[path] = path.with_name(f".{path.name}.{os.getpid()}.new")
        write_image(written[path], pixels, attributes)

    try:
        yield write
        for path, temporary in written.items():
            os.replace(temporary, path)
        for path in old:
            if path not in written:
                path.unlink()
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def _dataset(series: OpenSeries) -> int:
    if series.dataset is None:
        length, energy = series.condition
        raise BadInput(f"{series.path}: {length} m and {energy} eV are none of the paper's nine conditions")
    return series.dataset


def _write_frame(write: _Write, tree: Tree, image: ImageId, series: OpenSeries, truth: Truth, frame: int) -> None:
    try:
        counts = series.pixels(frame)
    except UnreadableFrame as error:
        raise BadInput(f"{series.path}: frame {frame} cannot be read: {error}; see `cxls data check`") from None
    dead = counts == np.iinfo(counts.dtype).max
    if series.mask is not None:
        dead |= series.mask != 0
    signal = np.zeros(series.shape, np.float32) if image.empty else truth.signal(frame, series.shape)
    signal[dead] = 0.0
    attributes = condition_attributes(PAPER[image.dataset], not image.empty)
    attributes |= {"series": series.path.name, "frame": frame}
    label = label_image(signal, "maxima")
    kept = {}
    for name in ("orientation", "seed", "frame_index", "background_seed"):
        value = truth.per_frame(name)
        if value is not None and (name != "orientation" or not image.empty):
            kept["noise_seed" if name == "seed" else "noise_index" if name == "frame_index" else name] = value[frame]
    write(tree.path("peaks", image), signal, attributes | kept | {"expectation": True})
    write(tree.path("labels", image), label, attributes)
    write(tree.path("peaks_water_overlay", image), np.where(dead, 0, counts).astype(np.uint32), attributes | kept)


def _write_water(write: _Write, path: Path, paper: PaperDataset, series: OpenSeries, truth: Truth) -> None:
    """The expectation for the mean flux and water of the series."""
    metadata = series.metadata
    flux, water, thickness = (truth.per_frame(n) for n in ("flux_photons", "water_scale", "water_thickness_m"))
    if thickness is not None:
        water = thickness / WATER_REFERENCE_THICKNESS_M
    pulse = Pulse()
    if flux is not None:
        pulse = replace(pulse, flux_photons=float(flux.mean()))
    if water is not None:
        pulse = replace(pulse, water_scale=float(water.mean()))
    x, y = metadata.beam_center_x_px, metadata.beam_center_y_px
    expected = water_expectation(
        paper.camera_length_m,
        paper.photon_energy_eV,
        pulse,
        series.shape,
        metadata.pixel_size_x_m or 75e-6,
        None if x is None or y is None else (x, y),
    )
    if series.mask is not None:
        expected[series.mask != 0] = 0.0
    attributes = condition_attributes(paper, False)
    attributes |= {"expectation": True, "flux_photons": pulse.flux_photons, "water_scale": pulse.water_scale}
    write(path, expected, attributes)
