"""Small trees from the simulator."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from sim_replay.detector import CONDITIONS
from training.dataset.check_tree import check_tree
from training.dataset.counts import count_tree
from training.dataset.images import read_image
from training.dataset.make_tree import TreeRecipe, make_tree
from training.dataset.paper import ImageId
from training.dataset.simulated import Pulse, water_expectation

# Enough panel to meet some reflections, and a crystal that sends them all many photons.
RECIPE = TreeRecipe(per_dataset=3, seed=2, percent_empty=0.5, pulse=Pulse(flux_photons=3e9), shape=(1200, 1100))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    make_tree(out, RECIPE, datasets={3, 1})
    return out / "images"


def test_a_simulated_tree_passes_the_check(made: Path) -> None:
    tree = make_tree(made.parent / "again", RECIPE, datasets={1})
    assert list(check_tree(tree)) == []
    assert [(c.dataset, c.hits, c.empties, c.labels, c.overlays, c.water) for c in count_tree(tree)] == [
        (1, 3, 1, 4, 4, 1)
    ]


def test_images_do_not_depend_on_which_data_sets_are_made(made: Path) -> None:
    names = sorted(path.relative_to(made) for path in made.rglob("03/*.h5"))
    assert len(names) == 3 * (3 + 1) + 1
    alone = make_tree(made.parent / "alone", RECIPE, datasets={3}).images
    for name in names:
        np.testing.assert_array_equal(read_image(made / name).pixels, read_image(alone / name).pixels)


def test_peak_images_are_photons_of_crystals_in_different_orientations(made: Path) -> None:
    turns = []
    for n in range(1, 4):
        with h5py.File(made / f"peaks/01/img_6keV_clen01_{n:05d}.h5") as file:
            pixels, said = file["entry/data/data"][()], dict(file.attrs)
        assert pixels.dtype == np.uint32
        assert pixels.sum() == pytest.approx(said["bragg_photons"], abs=6 * np.sqrt(said["bragg_photons"]) + 1)
        turns.append(said["orientation"])
    assert len({turn.tobytes() for turn in turns}) == 3
    np.testing.assert_allclose(
        np.stack(turns) @ np.stack(turns).transpose(0, 2, 1), np.tile(np.eye(3), (3, 1, 1)), atol=1e-9
    )


def test_signal_and_water_share_no_random_numbers(made: Path) -> None:
    with h5py.File(made / "peaks/01/img_6keV_clen01_00001.h5") as peaks:
        signal = peaks.attrs["noise_index"]
    with h5py.File(made / "peaks_water_overlay/01/overlay_img_6keV_clen01_00001.h5") as overlay:
        assert overlay.attrs["noise_index"] != signal


def test_water_is_that_of_the_pulse(made: Path) -> None:
    stored = read_image(made / "water/03/water03.h5")
    expected = water_expectation(0.15, 8000.0, RECIPE.pulse, RECIPE.shape)
    np.testing.assert_array_equal(stored.pixels, expected)
    twice = water_expectation(0.15, 8000.0, Pulse(RECIPE.pulse.flux_photons, 2.0), RECIPE.shape)
    np.testing.assert_allclose(twice, 2 * expected, rtol=1e-5)
    overlay = read_image(made / "peaks_water_overlay/03/empty_overlay_03_00001.h5")
    photons = float(expected.sum())
    assert overlay.pixels.sum() == pytest.approx(photons, abs=6 * photons**0.5)


@pytest.mark.parametrize("number", [1, 5, 9])
def test_water_of_the_papers_panel_has_the_expected_photons(number: int) -> None:
    # 3e8 photons through 100 um, the whole 2163 x 2069 panel; worked out apart from this code
    photons = {1: 8.7e4, 5: 2.2e4, 9: 1.04e4}[number]
    condition = CONDITIONS[number]
    water = water_expectation(condition.camera_length_m, condition.photon_energy_eV, Pulse(), (2163, 2069))
    assert water.sum() == pytest.approx(photons, rel=0.03)


def test_a_smaller_tree_in_place_of_a_larger_leaves_nothing_of_it(tmp_path: Path) -> None:
    small = TreeRecipe(per_dataset=1, percent_empty=1.0, pulse=RECIPE.pulse, shape=RECIPE.shape)
    make_tree(
        tmp_path, TreeRecipe(per_dataset=2, percent_empty=1.0, pulse=RECIPE.pulse, shape=(300, 300)), datasets={1}
    )
    with pytest.raises(FileExistsError, match="exist already"):
        make_tree(tmp_path, small, datasets={1})
    tree = make_tree(tmp_path, small, datasets={1}, force=True)
    assert [(c.hits, c.empties) for c in count_tree(tree)] == [(1, 1)]
    assert read_image(tree.path("peaks", ImageId(1, True, 1))).pixels.shape == RECIPE.shape


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    recipe = TreeRecipe(per_dataset=3, percent_empty=0.34, shape=(50, 60))
    make_tree(tmp_path, recipe, datasets={4, 7}, after_image=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 20) for n in range(1, 21)]
