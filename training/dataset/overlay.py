"""Overlays: a peak image and water, each pixel the sum of their photons, with noise of its own.

The 2024 paper drew the water's noise once a data set and added the same array to every image: its empty images were
copies of that array, and a network could tell them, and the nine data sets, by heart. Here `waterNN.h5` holds the
expectation and every image draws anew, from random numbers that are counted: the noise of an image depends on the
seed and the image's id alone. The paper's way is kept behind `frozen_noise`, to show what it does.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.files import BadInput
from training.dataset.images import (
    AfterImage,
    StoredImage,
    condition_attributes,
    read_image,
    refuse_existing,
    write_image,
)
from training.dataset.labels import LabelKind, label_image
from training.dataset.paper import IMAGE_KINDS, PAPER, ImageId
from training.dataset.problems import Problem
from training.dataset.simulated import Expectation, Pulse, frame_rng, water_expectation
from training.dataset.tree import Listing, Tree, list_tree

_OVERLAY_NOISE, _FROZEN_NOISE, SIGNAL_NOISE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class OverlayRecipe:
    """How overlays are made.

    percent_empty is the paper's name for a fraction: int(percent_empty * peak images) empty images are made a data
    set. flux_scale multiplies the photons of peaks and water alike. new_water writes the simulator's expectation over
    a water file that is there.
    """

    seed: int = 0
    percent_empty: float = 0.3
    flux_scale: float = 1.0
    frozen_noise: bool = False
    new_water: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise BadInput(f"seed is {self.seed}; give an integer from 0 to 2^63 - 1")
        if not (math.isfinite(self.percent_empty) and self.percent_empty >= 0):
            raise BadInput(f"percent_empty is {self.percent_empty}; give a fraction of 0 or more")
        if not (math.isfinite(self.flux_scale) and self.flux_scale > 0):
            raise BadInput(f"flux_scale is {self.flux_scale}; give a factor above 0")


def noise_index(image: ImageId, stream: int = _OVERLAY_NOISE) -> int:
    """The number under which an image's noise is drawn; no two images, and no two uses of one, share it."""
    return stream << 60 | image.dataset << 48 | int(image.empty) << 47 | image.index


def empty_images(percent_empty: float, peak_images: int) -> int:
    """How many empty images so many peak images get: int(fraction * number), safe from rounding."""
    return int(percent_empty * peak_images + 1e-9)


def label_tree(
    tree: Tree,
    kind: LabelKind,
    threshold: float = 1.0,
    min_distance_px: int = 3,
    *,
    datasets: Iterable[int] | None = None,
    force: bool = False,
    after_image: AfterImage | None = None,
) -> int:
    """Write labels/NN/label_*.h5 for every peak image; returns how many. Of empty images only labels that are missing.

    Raises BadInput for a peak image that is none, FileExistsError when labels are there and force is false.
    """
    listing = list_tree(tree, datasets)
    blank = listing.images["labels"]
    peaks = {image: path for image, path in listing.images["peaks"].items() if not (image.empty and image in blank)}
    if not listing.images["peaks"]:
        raise BadInput(f"{tree.images / 'peaks'}: no peak images to label; names are as img_6keV_clen01_00001.h5")
    refuse_existing([listing.target("labels", image) for image in peaks], force)
    for done, (image, path) in enumerate(sorted(peaks.items()), 1):
        label = label_image(read_image(path).pixels, kind, threshold, min_distance_px)
        attributes = condition_attributes(PAPER[image.dataset], not image.empty)
        attributes |= {"kind": kind, "threshold": threshold}
        if kind == "maxima":
            attributes["min_distance"] = min_distance_px
        write_image(listing.target("labels", image), label, attributes)
        if after_image is not None:
            after_image(done, len(peaks))
    return len(peaks)


def overlay_tree(
    tree: Tree,
    recipe: OverlayRecipe,
    *,
    datasets: Iterable[int] | None = None,
    force: bool = False,
    pulse: Pulse | None = None,
    after_image: AfterImage | None = None,
) -> tuple[int, int]:
    """Write an overlay for every peak image, and the empty images; returns how many of each.

    Water that is missing is written first, for `pulse` (default 3e8 photons, 100 um). With force, empty images beyond
    the new number go, so that no old noise stays. Raises BadInput for images that are none, for water that is one
    frozen draw where fresh noise is wanted, and for more flux than counts can give; FileExistsError when outputs are
    there and force is false.
    """
    listing = list_tree(tree, datasets)
    work: list[tuple[int, list[ImageId], list[ImageId]]] = []
    for dataset in listing.datasets:
        hits = [image for image in listing.ids(dataset, "peaks") if not image.empty]
        empties = [ImageId(dataset, True, n + 1) for n in range(empty_images(recipe.percent_empty, len(hits)))]
        if hits:
            work.append((dataset, hits, empties))
    if not work:
        raise BadInput(f"{tree.images / 'peaks'}: no peak images; names are as img_6keV_clen01_00001.h5")
    stale = [
        path
        for dataset, _, _ in work
        for kind in IMAGE_KINDS
        for image, path in listing.images[kind].items()
        if image.dataset == dataset and image.empty
    ]
    written = [listing.target("peaks_water_overlay", image) for _, hits, _ in work for image in hits]
    written += [tree.path(kind, image) for _, _, empties in work for image in empties for kind in IMAGE_KINDS]
    refuse_existing(sorted({*written, *stale}), force)
    shapes = {dataset: read_image(listing.images["peaks"][hits[0]]).pixels.shape for dataset, hits, _ in work}
    for dataset, shape in shapes.items():  # refuse before anything is written
        if tree.water_path(dataset).exists() and not recipe.new_water:
            _read_water(tree, dataset, shape, recipe)
    total = sum(len(hits) + len(empties) for _, hits, empties in work)
    done = 0
    for dataset, hits, empties in work:
        water = _Water(tree, dataset, shapes[dataset], recipe, pulse or Pulse())
        keep = {tree.path(kind, image) for image in empties for kind in IMAGE_KINDS}
        for path in stale:
            if path.parent.name == PAPER[dataset].folder and path not in keep:
                path.unlink()
        for image in [*hits, *empties]:
            if image.empty:
                _write_empty(tree, image, water, recipe)
            else:
                _write_overlay(listing, image, water, recipe)
            done += 1
            if after_image is not None:
                after_image(done, total)
    return sum(len(hits) for _, hits, _ in work), sum(len(empties) for _, _, empties in work)


def write_water(tree: Tree, dataset: int, shape: tuple[int, int], pulse: Pulse) -> None:
    """Write waterNN.h5: the simulator's expectation on a panel of this shape, float32."""
    paper = PAPER[dataset]
    expected = water_expectation(paper.camera_length_m, paper.photon_energy_eV, pulse, shape)
    attributes = condition_attributes(paper, False)
    attributes |= {"expectation": True, "flux_photons": pulse.flux_photons, "water_scale": pulse.water_scale}
    write_image(tree.water_path(dataset), expected, attributes)


def _read_water(tree: Tree, dataset: int, shape: tuple[int, int], recipe: OverlayRecipe) -> StoredImage:
    """The water of a data set, fit for the recipe. Raises BadInput."""
    path = tree.water_path(dataset)
    stored = read_image(path)
    if stored.pixels.shape != shape:
        raise BadInput(f"{path}: its shape is {stored.pixels.shape}, that of the peak images {shape}")
    if not (stored.is_expectation or recipe.frozen_noise):
        raise BadInput(
            f"{path}: one draw of the noise, not its expectation, so every overlay would share it; "
            "--new-water puts the simulator's expectation there, --frozen-noise does as the paper did"
        )
    return stored


class _Water:
    """The water of a data set: `add` puts its photons into an image, fresh or frozen."""

    def __init__(self, tree: Tree, dataset: int, shape: tuple[int, int], recipe: OverlayRecipe, pulse: Pulse) -> None:
        if recipe.new_water or not tree.water_path(dataset).exists():
            write_water(tree, dataset, shape, pulse)
        stored = _read_water(tree, dataset, shape, recipe)
        self.shape = shape
        self._recipe = recipe
        self._expected: Expectation | None = None
        self._frozen: NDArray[np.uint32] | None = None
        self.frozen_index = noise_index(ImageId(dataset, False, 0), _FROZEN_NOISE)
        if not stored.is_expectation:
            self._frozen = _thinned(stored, recipe.flux_scale, frame_rng(recipe.seed, self.frozen_index))
        elif recipe.frozen_noise:
            self._frozen = np.zeros(shape, np.uint32)
            rng = frame_rng(recipe.seed, self.frozen_index)
            Expectation(stored.pixels).draw(recipe.flux_scale, rng, self._frozen)
        else:
            self._expected = Expectation(stored.pixels)

    def add(self, rng: np.random.Generator, out: NDArray[np.uint32]) -> None:
        if self._frozen is not None:
            out += self._frozen
        elif self._expected is not None:
            self._expected.draw(self._recipe.flux_scale, rng, out)


def _write_overlay(listing: Listing, image: ImageId, water: _Water, recipe: OverlayRecipe) -> None:
    peaks = listing.images["peaks"][image]
    stored = read_image(peaks)
    if stored.pixels.shape != water.shape:
        raise BadInput(f"{Problem(peaks, '', f'shape {stored.pixels.shape}')}, the water has {water.shape}")
    rng = frame_rng(recipe.seed, noise_index(image))
    overlay = _thinned(stored, recipe.flux_scale, rng)
    water.add(rng, overlay)
    write_image(listing.target("peaks_water_overlay", image), overlay, _overlay_attributes(image, water, recipe))


def _write_empty(tree: Tree, image: ImageId, water: _Water, recipe: OverlayRecipe) -> None:
    overlay = np.zeros(water.shape, np.uint32)
    water.add(frame_rng(recipe.seed, noise_index(image)), overlay)
    blank = np.zeros(water.shape, np.float32)
    attributes = condition_attributes(PAPER[image.dataset], False)
    write_image(tree.path("peaks", image), blank, attributes)
    write_image(tree.path("labels", image), blank, attributes)
    write_image(tree.path("peaks_water_overlay", image), overlay, _overlay_attributes(image, water, recipe))


def _overlay_attributes(image: ImageId, water: _Water, recipe: OverlayRecipe) -> dict[str, Any]:
    attributes = condition_attributes(PAPER[image.dataset], not image.empty)
    index = water.frozen_index if recipe.frozen_noise else noise_index(image)
    return attributes | {"noise_seed": recipe.seed, "noise_index": index, "flux_scale": recipe.flux_scale}


def _thinned(stored: StoredImage, flux_scale: float, rng: np.random.Generator) -> NDArray[np.uint32]:
    """Photons at another flux: a draw of an expectation; of counts each photon is kept with that probability.

    Poisson counts thinned so are Poisson counts of the smaller expectation.
    """
    pixels = stored.pixels
    if pixels.max() > np.iinfo(np.uint32).max:
        raise BadInput(f"{stored.path}: a pixel of {pixels.max():g} photons is more than 32 bits hold")
    if stored.is_expectation:
        return rng.poisson(pixels * flux_scale).astype(np.uint32)
    counts: NDArray[np.uint32] = pixels.astype(np.uint32)
    if flux_scale > 1.0:
        raise BadInput(
            f"{stored.path}: these are counts, which no flux can be added to; give --flux-scale of 1 or less, "
            "or peak images that are expectations"
        )
    if flux_scale < 1.0:
        lit = counts > 0
        counts[lit] = rng.binomial(counts[lit], flux_scale)
    return counts
