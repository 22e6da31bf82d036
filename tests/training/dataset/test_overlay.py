"""Labels, overlays and empty images of a tree."""

import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from streamer.files import BadInput
from tests.training.dataset.builders import SHAPE, build_tree, change, change_attributes
from training.dataset import images as images_module
from training.dataset.check_tree import check_tree
from training.dataset.labels import label_image
from training.dataset.overlay import OverlayRecipe, empty_images, label_tree, noise_index, overlay_tree
from training.dataset.paper import ImageId
from training.dataset.tree import Tree

RECIPE = OverlayRecipe(seed=3, percent_empty=0.5)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Peak images and water; neither labels nor overlays nor empty images."""
    images = build_tree(tmp_path, (1, 5), hits=5, empties=0)
    shutil.rmtree(images / "labels")
    shutil.rmtree(images / "peaks_water_overlay")
    return Tree(images)


def pixels(path: Path) -> npt.NDArray[Any]:
    with h5py.File(path) as file:
        return file["entry/data/data"][()]  # type: ignore[no-any-return]


def attributes(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return dict(file.attrs)


def contents(tree: Tree, kind: str) -> dict[str, npt.NDArray[Any]]:
    return {path.name: pixels(path) for path in sorted((tree.images / kind).rglob("*.h5"))}


def test_a_label_is_that_of_its_peak_image(tree: Tree) -> None:
    assert label_tree(tree, "threshold", 10.0) == 10
    for name, peaks in contents(tree, "peaks").items():
        np.testing.assert_array_equal(contents(tree, "labels")[f"label_{name}"], label_image(peaks, "threshold", 10.0))
    said = attributes(tree.path("labels", ImageId(5, False, 1)))
    assert (said["clen"], said["photon_energy"], said["peak"], said["kind"], said["threshold"]) == (
        0.25, 7000, True, "threshold", 10.0,
    )  # fmt: skip


def test_labels_of_chosen_data_sets_alone(tree: Tree) -> None:
    assert label_tree(tree, "maxima", datasets={5}) == 5
    assert not (tree.images / "labels/01").exists()


def test_a_labelled_and_overlaid_tree_passes_the_check(tree: Tree) -> None:
    label_tree(tree, "maxima")
    assert overlay_tree(tree, RECIPE) == (10, 4)
    assert list(check_tree(tree)) == []


def test_overlays_are_peaks_and_fresh_water(tree: Tree) -> None:
    overlay_tree(tree, RECIPE)
    peaks, overlays = contents(tree, "peaks"), contents(tree, "peaks_water_overlay")
    backgrounds = [overlays[f"overlay_{name}"] - p for name, p in peaks.items() if name.startswith("img")]
    backgrounds += [overlay for name, overlay in overlays.items() if name.startswith("empty")]
    assert len(backgrounds) == 14
    assert len({background.tobytes() for background in backgrounds}) == 14
    stack = np.stack(backgrounds)
    assert stack.min() >= 0
    # Poisson of mean 2: mean and variance within 4 standard errors
    assert stack.mean() == pytest.approx(2.0, abs=4 * np.sqrt(2 / stack.size))
    assert stack.var() == pytest.approx(2.0, abs=4 * np.sqrt((2 + 2 * 4) / stack.size))
    # neither pixel by pixel nor image by image do two share noise
    correlation = np.corrcoef(stack.reshape(14, -1).astype(float))
    assert np.abs(correlation[~np.eye(14, dtype=bool)]).max() < 6 / np.sqrt(stack[0].size)


def test_the_noise_depends_on_seed_and_id_alone(tree: Tree, tmp_path: Path) -> None:
    other = Tree(Path(shutil.copytree(tree.images, tmp_path / "other")))
    overlay_tree(tree, RECIPE)
    overlay_tree(other, RECIPE, datasets={5})
    name = "overlay_img_7keV_clen02_00003.h5"
    np.testing.assert_array_equal(
        contents(other, "peaks_water_overlay")[name], contents(tree, "peaks_water_overlay")[name]
    )
    overlay_tree(other, OverlayRecipe(seed=4, percent_empty=0.5), datasets={5}, force=True)
    assert not np.array_equal(contents(other, "peaks_water_overlay")[name], contents(tree, "peaks_water_overlay")[name])


def test_no_two_images_draw_under_one_number() -> None:
    ids = [ImageId(d, e, n) for d in (1, 2, 9) for e in (False, True) for n in (0, 1, 2, 999_999_999)]
    numbers = {noise_index(image, stream) for image in ids for stream in (0, 1, 2)}
    assert len(numbers) == 3 * len(ids)
    assert max(numbers) < 2**63


def test_the_number_of_empty_images_is_a_share_of_the_peak_images(tree: Tree) -> None:
    assert overlay_tree(tree, OverlayRecipe(percent_empty=0.3)) == (10, 2)
    names = sorted(path.name for path in (tree.images / "peaks/01").glob("empty*"))
    assert names == ["empty_peak_01_00001.h5"]
    blank = tree.path("labels", ImageId(1, True, 1))
    assert not pixels(blank).any()
    assert pixels(blank).dtype == np.float32
    assert attributes(tree.path("peaks_water_overlay", ImageId(1, True, 1)))["peak"] == np.False_


def test_a_share_is_not_rounded_down_below_a_whole_number() -> None:
    assert 0.29 * 100 < 29
    assert [empty_images(share, n) for share, n in ((0.29, 100), (0.3, 10), (0.3, 9), (0.5, 3), (0, 9))] == [
        29,
        3,
        2,
        1,
        0,
    ]


def test_with_force_fewer_empty_images_leave_none_of_the_old(tree: Tree) -> None:
    label_tree(tree, "maxima")
    overlay_tree(tree, OverlayRecipe(percent_empty=1.0))
    overlay_tree(tree, OverlayRecipe(percent_empty=0.2), force=True)
    assert len(list(tree.images.rglob("empty_*"))) == 2 * 3
    assert list(check_tree(tree)) == []


def test_images_under_the_papers_raw_names_are_replaced_and_not_doubled(tree: Tree) -> None:
    label_tree(tree, "maxima")
    overlay_tree(tree, OverlayRecipe(percent_empty=0))
    for kind, prefix in (("peaks", ""), ("labels", "label_"), ("peaks_water_overlay", "overlay_")):
        folder = tree.images / kind / "01"
        (folder / f"{prefix}img_6keV_clen01_00002.h5").rename(folder / f"{prefix}01_6keV_clen01_000002.h5")
    with pytest.raises(FileExistsError):
        label_tree(tree, "maxima")
    label_tree(tree, "maxima", force=True)
    overlay_tree(tree, OverlayRecipe(percent_empty=0), force=True)
    assert list(check_tree(tree)) == []


def test_what_is_there_is_not_replaced_unasked(tree: Tree) -> None:
    overlay_tree(tree, RECIPE)
    before = contents(tree, "peaks_water_overlay")
    with pytest.raises(FileExistsError, match=r"empty_label_01_00001\.h5 and 21 more exist already"):
        overlay_tree(tree, OverlayRecipe(seed=9, percent_empty=0.5))
    after = contents(tree, "peaks_water_overlay")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    label_tree(tree, "maxima")
    with pytest.raises(FileExistsError, match="more exist already"):
        label_tree(tree, "threshold")


def test_one_frozen_draw_serves_a_whole_data_set_when_asked_for(tree: Tree) -> None:
    label_tree(tree, "maxima")
    overlay_tree(tree, OverlayRecipe(percent_empty=0.5, frozen_noise=True))
    for dataset, energy in (("01", "6keV_clen01"), ("05", "7keV_clen02")):
        overlays = {path.name: pixels(path) for path in (tree.images / "peaks_water_overlay" / dataset).iterdir()}
        frozen = overlays[f"empty_overlay_{dataset}_00001.h5"]
        np.testing.assert_array_equal(frozen, overlays[f"empty_overlay_{dataset}_00002.h5"])
        peaks = pixels(tree.images / "peaks" / dataset / f"img_{energy}_00004.h5")
        np.testing.assert_array_equal(overlays[f"overlay_img_{energy}_00004.h5"], peaks + frozen)
    leaks = [p for p in check_tree(tree) if "noise drawn once" in p.text]
    assert len(leaks) == 2


# --- water ------------------------------------------------------------------------------


def test_the_papers_water_is_refused_for_fresh_noise_and_taken_for_frozen(tmp_path: Path) -> None:
    tree = Tree(build_tree(tmp_path, hits=3, empties=1, frozen=True))
    water = tree.water_path(1)
    before = pixels(water)
    with pytest.raises(BadInput, match=r"water01\.h5: one draw of the noise, not its expectation.*--new-water"):
        overlay_tree(tree, RECIPE, force=True)
    overlay_tree(tree, OverlayRecipe(percent_empty=0.4, frozen_noise=True), force=True)
    np.testing.assert_array_equal(pixels(tree.path("peaks_water_overlay", ImageId(1, True, 1))), before)


def test_new_water_is_an_expectation(tmp_path: Path) -> None:
    tree = Tree(build_tree(tmp_path, hits=3, empties=1, frozen=True))
    overlay_tree(tree, OverlayRecipe(new_water=True), force=True)
    said = attributes(tree.water_path(1))
    assert (said["expectation"], said["peak"], said["clen"]) == (np.True_, np.False_, 0.15)
    assert pixels(tree.water_path(1)).dtype == np.float32
    assert 0 < pixels(tree.water_path(1)).mean() < 1
    assert not [p for p in check_tree(tree) if "noise drawn once" in p.text]


def test_missing_water_is_made(tree: Tree) -> None:
    tree.water_path(1).unlink()
    overlay_tree(tree, RECIPE)
    assert attributes(tree.water_path(1))["flux_photons"] == 3e8


def test_water_of_another_shape_is_refused(tree: Tree) -> None:
    change(tree.water_path(5), "entry/data/data", np.ones((4, 4), np.float32))
    with pytest.raises(BadInput, match=r"water05\.h5: its shape is \(4, 4\), that of the peak images \(24, 30\)"):
        overlay_tree(tree, RECIPE)
    assert not (tree.images / "peaks_water_overlay").exists(), "refused before the good data set was begun"


# --- flux -------------------------------------------------------------------------------


def test_less_flux_thins_peaks_and_water_alike(tree: Tree) -> None:
    bright = np.full(SHAPE, 40.0, np.float32)
    for path in (tree.images / "peaks/01").iterdir():
        change(path, "entry/data/data", bright)
    overlay_tree(tree, OverlayRecipe(percent_empty=0, flux_scale=0.25), datasets={1})
    stack = np.stack(list(contents(tree, "peaks_water_overlay").values()))
    assert stack.mean() == pytest.approx(0.25 * 42, abs=4 * np.sqrt(10.5 / stack.size))
    # counts are thinned, not drawn again: 40 photons kept with 1/4 vary as 40/4 * 3/4, the water as 0.5
    assert stack.var() == pytest.approx(8.0, rel=0.1)


def test_counts_cannot_have_more_flux_and_expectations_can(tree: Tree) -> None:
    with pytest.raises(BadInput, match="these are counts, which no flux can be added to"):
        overlay_tree(tree, OverlayRecipe(flux_scale=2.0))
    for path in (tree.images / "peaks/01").iterdir():
        change(path, "entry/data/data", np.full(SHAPE, 3.25, np.float32))
    overlay_tree(tree, OverlayRecipe(percent_empty=0, flux_scale=2.0), datasets={1})
    stack = np.stack(list(contents(tree, "peaks_water_overlay").values()))
    assert stack.mean() == pytest.approx(10.5, abs=4 * np.sqrt(10.5 / stack.size))
    assert stack.var() == pytest.approx(10.5, rel=0.1)


def test_the_attribute_says_expectation_where_all_pixels_are_whole(tree: Tree) -> None:
    for path in (tree.images / "peaks/01").iterdir():
        change(path, "entry/data/data", np.full(SHAPE, 9.0, np.float32))
        change_attributes(path, expectation=True)
    overlay_tree(tree, OverlayRecipe(percent_empty=0), datasets={1})
    stack = np.stack(list(contents(tree, "peaks_water_overlay").values()))
    assert stack.var() == pytest.approx(11.0, rel=0.1), "peaks were drawn"


@pytest.mark.parametrize("dtype", [">f4", "<f2", "u1", "i8", ">u4", "f8"])
def test_peak_images_of_any_number_type_are_taken(tree: Tree, dtype: str) -> None:
    path = tree.path("peaks", ImageId(1, False, 1))
    before = pixels(path)
    change(path, "entry/data/data", before.astype(dtype))
    label_tree(tree, "maxima", datasets={1})
    overlay_tree(tree, RECIPE, datasets={1})
    overlay = pixels(tree.path("peaks_water_overlay", ImageId(1, False, 1)))
    assert overlay.dtype == np.uint32
    assert (overlay >= before).all()
    assert list(check_tree(tree, {1})) == []


# --- bad input, interruption ------------------------------------------------------------


@pytest.mark.parametrize("value", [np.full(SHAPE, np.nan), np.full(SHAPE, -1.0), np.zeros((2, *SHAPE)), None])
def test_a_peak_image_that_is_none_is_refused_in_one_line(tree: Tree, value: Any) -> None:
    path = tree.path("peaks", ImageId(1, False, 1))
    change(path, "entry/data/data", value)
    with pytest.raises(BadInput, match=r"img_6keV_clen01_00001\.h5:/entry/data/data: .*cxls data check") as error:
        overlay_tree(tree, RECIPE)
    assert "\n" not in str(error.value)


def test_a_tree_without_peak_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images/peaks/01").mkdir(parents=True)
    with pytest.raises(BadInput, match="no peak images"):
        overlay_tree(Tree(tmp_path / "images"), RECIPE)
    with pytest.raises(BadInput, match="no peak images"):
        label_tree(Tree(tmp_path / "images"), "maxima")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"percent_empty": -0.1}, "percent_empty is -0.1"),
        ({"flux_scale": 0}, "flux_scale is 0"),
    ],
)
def test_a_recipe_without_sense_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        OverlayRecipe(**options)


def test_an_interrupted_write_leaves_the_old_file_and_no_half_one(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay_tree(tree, RECIPE)
    before = contents(tree, "peaks_water_overlay")

    def fail(source: Any, target: Any) -> None:
        del source, target
        raise KeyboardInterrupt

    monkeypatch.setattr(images_module.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        overlay_tree(tree, OverlayRecipe(seed=9, percent_empty=0.5), force=True)
    monkeypatch.undo()
    after = contents(tree, "peaks_water_overlay")
    assert all(np.array_equal(before[name], after[name]) for name in after)
    assert not [name for _, _, names in os.walk(tree.images) for name in names if name.endswith(".part")]
