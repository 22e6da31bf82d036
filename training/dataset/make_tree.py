"""A small tree of the paper's kind from the simulator: peaks, labels, water, overlays and empty images."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from streamer.files import BadInput
from training.dataset.images import AfterImage, condition_attributes, refuse_existing, write_image
from training.dataset.overlay import (
    SIGNAL_NOISE,
    OverlayRecipe,
    empty_images,
    label_tree,
    noise_index,
    overlay_tree,
    write_water,
)
from training.dataset.paper import PAPER, ImageId
from training.dataset.simulated import Pulse, frame_rng, make_sample, signal_shot
from training.dataset.tree import Tree, list_tree


@dataclass(frozen=True, slots=True)
class TreeRecipe:
    """What to simulate: so many patterns a data set on a panel (ss, fs) of 75 um pixels without gaps."""

    per_dataset: int
    seed: int = 0
    percent_empty: float = 0.3
    pulse: Pulse = field(default_factory=Pulse)
    crystal_size_m: float = 10e-6
    shape: tuple[int, int] = (2163, 2069)
    hkl_path: Path | None = None


def make_tree(
    out: Path,
    recipe: TreeRecipe,
    *,
    datasets: Iterable[int] | None = None,
    force: bool = False,
    after_image: AfterImage | None = None,
) -> Tree:
    """Write OUT/images/... and return the tree. Same recipe, same images, whichever data sets are chosen.

    Peaks are photons of the crystal alone, uint32; labels are local maxima. Raises FileExistsError when images are
    there and force is false, ValueError for a malformed reflection list.
    """
    if recipe.per_dataset < 1:
        raise BadInput(f"per_dataset is {recipe.per_dataset}; give 1 or more")
    tree = Tree(out / "images")
    chosen = sorted(PAPER if datasets is None else datasets)
    images = [ImageId(dataset, False, n) for dataset in chosen for n in range(1, recipe.per_dataset + 1)]
    overlays = OverlayRecipe(recipe.seed, recipe.percent_empty)
    old = [path for found in list_tree(tree, chosen).images.values() for path in found.values()]
    refuse_existing(sorted(old), force)
    sample = make_sample(recipe.crystal_size_m, recipe.hkl_path)
    per_kind = len(images)
    total = 3 * per_kind + len(chosen) * empty_images(recipe.percent_empty, recipe.per_dataset)

    def after(done_before: int) -> AfterImage:
        def report(done: int, of: int) -> None:
            del of
            if after_image is not None:
                after_image(done_before + done, total)

        return report

    for path in old:
        path.unlink()
    for dataset in chosen:
        write_water(tree, dataset, recipe.shape, recipe.pulse)
    for done, image in enumerate(images, 1):
        index = noise_index(image, SIGNAL_NOISE)
        shot = signal_shot(image.dataset, recipe.pulse, sample, recipe.shape, frame_rng(recipe.seed, index))
        attributes = condition_attributes(PAPER[image.dataset], True)
        attributes |= {
            "expectation": False,
            "flux_photons": recipe.pulse.flux_photons,
            "bragg_photons": shot.bragg_photons,
            "orientation": shot.orientation,
            "noise_seed": recipe.seed,
            "noise_index": index,
        }
        write_image(tree.path("peaks", image), shot.counts, attributes)
        after(0)(done, per_kind)
    label_tree(tree, "maxima", datasets=chosen, after_image=after(per_kind))
    overlay_tree(tree, overlays, datasets=chosen, after_image=after(2 * per_kind))
    return tree
