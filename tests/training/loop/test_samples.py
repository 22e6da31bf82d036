"""Sources on disk, made on the fly and in memory; how they are cut, joined and split."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from analyzer.framing import Framing, parse_size
from streamer.files import BadInput
from tests.training.dataset.builders import SHAPE, build_series, build_tree, change, good_truth, rotation
from training.dataset.sources import find_sources
from training.dataset.split import make_split, read_inputs, write_split
from training.dataset.tree import Tree
from training.loop.arrays import ArraySource
from training.loop.disk import SeriesSource, TreeSource
from training.loop.opening import shared_sides, simulated_sides, split_sides
from training.loop.order import as_tensors, batches
from training.loop.samples import Joined, Part, linked, require_fields, split_by_group
from training.loop.simulated import SimulatedSource, Simulation

ALL = ("image", "hit", "photon_energy_eV", "camera_length_m", "peak_map")


def test_a_tree_gives_its_overlays_labels_and_attributes(tmp_path: Path) -> None:
    source = TreeSource(Tree(build_tree(tmp_path, datasets=(2, 6), hits=2, empties=1)))
    assert len(source) == 6
    batch = source.batch(np.array([5, 0]), [*ALL, "clean_image"])
    assert batch["image"].shape == (2, 1, *SHAPE)
    assert batch["hit"].tolist() == [False, True] or batch["hit"].tolist() == [True, False]
    empty = batch["hit"].tolist().index(False)
    assert batch["clean_image"][empty].sum() == 0
    assert batch["peak_map"][1 - empty].sum() == 4
    assert batch["photon_energy_eV"].tolist() == [8000.0, 7000.0]
    assert batch["camera_length_m"].tolist() == [0.25, 0.15]


@pytest.mark.parametrize("value", [None, "yes"])
@pytest.mark.parametrize(
    ("attribute", "field"), [("peak", "hit"), ("clen", "camera_length_m"), ("photon_energy", "photon_energy_eV")]
)
def test_a_tree_whose_file_lacks_an_attribute_is_refused_by_file_and_attribute(
    tmp_path: Path, attribute: str, field: str, value: str | None
) -> None:
    images = build_tree(tmp_path, hits=3, empties=1)
    name = "peaks_water_overlay/01/overlay_img_6keV_clen01_00002.h5"
    with h5py.File(images / name, "r+") as file:
        del file.attrs[attribute]
        if value is not None:
            file.attrs[attribute] = value
    source = TreeSource(Tree(images))
    with pytest.raises(BadInput, match=f"{name}: no attribute '{attribute}', which would be its {field}; task needs"):
        require_fields(source, ["image", field], "task")
    require_fields(source, {"image", "hit", "camera_length_m", "photon_energy_eV"} - {field}, "task")


def test_a_tree_without_a_label_is_refused_by_its_file_and_only_where_labels_are_needed(tmp_path: Path) -> None:
    images = build_tree(tmp_path)
    (images / "labels/01/label_img_6keV_clen01_00002.h5").unlink()
    source = TreeSource(Tree(images))
    require_fields(source, ["image", "hit"], "hits")
    with pytest.raises(BadInput, match=r"label_img_6keV_clen01_00002.h5: no such file, which would be its peak_map"):
        require_fields(source, ["peak_map"], "peaks")


def test_a_series_gives_frames_without_invalid_pixels_and_true_spots(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).poisson(2.0, (4, *SHAPE)).astype("u2")
    pixels[1, 3, 4] = 65535
    source = SeriesSource(build_series(tmp_path, pixels=pixels))
    batch = source.batch(np.array([1, 0]), ALL)
    expected = pixels[[1, 0]].astype(np.float32)
    expected[:, :, 10] = 0
    expected[0, 3, 4] = 0
    assert np.array_equal(batch["image"][:, 0], expected)
    assert batch["hit"].tolist() == [False, True]
    assert np.argwhere(batch["peak_map"][1, 0]).tolist() == [[4, 5], [15, 21]]
    assert not batch["peak_map"][0].any()
    assert batch["camera_length_m"].tolist() == [0.15, 0.15]
    assert source.batch(np.array([2]), ["bragg_photons"])["bragg_photons"].tolist() == [100.0]


def test_a_series_without_truth_knows_its_header_and_no_hits(tmp_path: Path) -> None:
    source = SeriesSource(build_series(tmp_path, truth={}))
    assert {"image", "camera_length_m", "photon_energy_eV"} <= source.fields
    with pytest.raises(BadInput, match=r"run_master.h5: no hit in /entry/truth"):
        require_fields(source, ["hit"], "attribute 'peak'")


def test_a_truth_without_hits_or_spots_names_them_and_gives_the_rest(tmp_path: Path) -> None:
    truth = good_truth()
    del truth["hit"], truth["spot_ss"], truth["spot_photons"]
    master = build_series(tmp_path, truth=truth)
    source = SeriesSource(master)
    require_fields(source, ["image", "photon_energy_eV", "camera_length_m"], "attribute 'energy'")
    for field, where in (
        ("hit", "/entry/truth/hit is missing; task needs 'hit'"),
        ("peak_map", "/entry/truth/spot_ss, /entry/truth/spot_photons are missing; task needs 'peak_map'"),
        ("clean_image", "/entry/truth/spot_ss, /entry/truth/spot_photons are missing; task needs 'clean_image'"),
        ("class", "/entry/truth/class: no number for every frame; task needs"),
    ):
        with pytest.raises(BadInput) as caught:
            require_fields(source, [field], "task")
        assert str(caught.value).startswith(f"{master}:{where}")


def test_a_series_clean_image_is_a_draw_of_its_true_spots(tmp_path: Path) -> None:
    frames = 40
    truth = good_truth(frames) | {"spot_fs": np.tile([5.0, 10.0], frames // 2)}  # the second on the bad column
    master = build_series(tmp_path, frames=frames, truth=truth, per_file=frames)
    source = SeriesSource(master)
    clean = source.batch(np.arange(frames), ["clean_image"])["clean_image"]
    assert (clean.dtype, clean.shape) == (np.float32, (frames, 1, *SHAPE))
    assert np.array_equal(clean, np.rint(clean))
    assert not clean[1::2].any()
    assert not clean[..., 10].any()
    first = clean[::2, 0, :10].sum((1, 2))  # 60 photons are expected
    assert first.mean() == pytest.approx(60.0, abs=4 * (60 / 20) ** 0.5)
    assert first.std() == pytest.approx(60**0.5, rel=0.6)
    assert np.array_equal(source.batch(np.array([6, 2]), ["clean_image"])["clean_image"], clean[[6, 2]])
    small = SeriesSource(master, Framing((20, 20), 2)).batch(np.array([2]), ["clean_image"])["clean_image"]
    assert small.shape == (1, 1, 10, 10)


@pytest.mark.parametrize("table", [False, True])
def test_numbers_of_any_name_and_rank_are_fields_of_a_series(tmp_path: Path, table: bool) -> None:
    spectrum = np.random.default_rng(1).poisson(9.0, (4, 16)).astype(">u2")
    cube = np.arange(4 * 2 * 3 * 5, dtype=">f4").reshape(4, 2, 3, 5)
    others = {"spectrum": spectrum, "cube": cube, "line_eV": np.arange(4, dtype=np.float32), "gain": 2.5}
    if table:
        master = build_series(tmp_path, truth={})
        np.savez(tmp_path / "run_truth.npz", peak_ss=np.zeros(0), **others)
    else:
        master = build_series(tmp_path, truth=good_truth() | others)
    source = SeriesSource(master)
    batch = source.batch(np.array([3, 1]), [*others])
    assert np.array_equal(batch["spectrum"], spectrum[[3, 1]])
    assert np.array_equal(batch["cube"], cube[[3, 1]])
    assert batch["line_eV"].tolist() == [3.0, 1.0]
    assert batch["gain"].tolist() == [2.5, 2.5]
    assert all(values.dtype.isnative for values in batch.values())
    as_tensors(batch)
    if not table:
        assert source.batch(np.array([2]), ["orientation"])["orientation"].shape == (1, 3, 3)
        change(master, "entry/truth/spectrum", spectrum + np.uint16(1))
        assert SeriesSource(master).identity != source.identity


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((3, 16)), "length 3 for 4 frames"),
        (np.zeros((0, 16)), "length 0 for 4 frames"),
        (np.full(4, b"iron"), r"|S4 of shape (4,), no numbers"),
        (np.zeros(4, "c8"), "complex64 of shape (4,), no numbers"),
        (np.zeros(4, [("a", "f8")]), "[('a', '<f8')] of shape (4,), no numbers"),
        (h5py.Empty("f8"), "an empty dataset"),
        (h5py.SoftLink("/entry/truth/spectrum"), "cannot be read: "),
        (h5py.SoftLink("/entry/instrument"), "not a dataset"),
        ((4, 1 << 18), "shape (4, 262144) of float64 is too large for the truth of 4 frames"),
        ((4, 1 << 40), "shape (4, 1099511627776) of float64 is too large for the truth of 4 frames"),
    ],
)
def test_a_field_that_is_none_is_named_where_it_is_needed_and_harms_no_other(
    tmp_path: Path, value: Any, said: str
) -> None:
    master = build_series(tmp_path)
    with h5py.File(master, "r+") as file:
        if isinstance(value, tuple):
            file["entry/truth"].create_dataset("spectrum", value, "f8", chunks=(1, 1 << 17))  # states it, holds nothing
        else:
            file["entry/truth/spectrum"] = value
    source = SeriesSource(master)
    require_fields(source, ["image", "hit", "peak_map"], "task")
    with pytest.raises(BadInput) as caught:
        require_fields(source, ["spectrum"], "network 'spectrum-line'")
    assert str(caught.value).startswith(f"{master}:/entry/truth/spectrum: {said}")
    assert "; network 'spectrum-line' needs 'spectrum', every sample has: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_truth_calls_an_image_is_none(tmp_path: Path) -> None:
    strange = {name: np.zeros((4, 5)) for name in ("image", "clean_image", "peak_map")}
    source = SeriesSource(build_series(tmp_path, truth=strange))
    assert source.batch(np.array([1]), ["image"])["image"].shape == (1, 1, *SHAPE)
    with pytest.raises(BadInput, match=r"/entry/truth/spot_frame, .* are missing; task needs 'peak_map'"):
        require_fields(source, ["peak_map"], "task")


def test_spectra_of_two_lengths_are_refused_by_name(tmp_path: Path) -> None:
    sources = [
        SeriesSource(build_series(tmp_path, name, truth={"spectrum": np.zeros((4, channels))}))
        for name, channels in (("short", 8), ("long", 16))
    ]
    with pytest.raises(BadInput, match=r"long_master.h5: spectrum of shape \(16,\) beside others of \(8,\)$"):
        Joined(sources).batch(np.array([0, 7]), ["spectrum"])


def test_a_frame_that_is_damaged_is_named(tmp_path: Path) -> None:
    master = build_series(tmp_path, per_file=4)
    data = tmp_path / "run_data_000001.h5"
    with h5py.File(data) as file:
        where = file["entry/data/data"].id.get_chunk_info(2).byte_offset
    raw = bytearray(data.read_bytes())
    raw[where : where + 30] = b"\xff" * 30
    data.write_bytes(raw)
    source = SeriesSource(master)
    source.batch(np.array([0, 1, 3]), ["image"])
    with pytest.raises(BadInput, match=r"run_master.h5: image 2 cannot be read"):
        source.batch(np.array([1, 2]), ["image"])


def test_truth_that_is_unfit_is_refused(tmp_path: Path) -> None:
    master = build_series(tmp_path, truth=good_truth() | {"hit": np.array([True, False])})
    with pytest.raises(BadInput, match="hit"):
        SeriesSource(master)


def test_frames_are_cut_about_the_middle_padded_and_binned() -> None:
    image = np.arange(35.0).reshape(5, 7)
    assert np.array_equal(Framing((3, 3)).image(image)[0], image[1:4, 2:5])
    padded = Framing((7, 9)).image(image)[0]
    assert np.array_equal(padded[1:6, 1:8], image)
    assert padded.sum() == image.sum()
    assert np.array_equal(Framing((2, 9)).image(image)[0, :, 1:8], image[1:3])
    binned = Framing(None, 2).image(image)[0]
    assert binned.shape == (2, 3)
    assert binned[0, 0] == image[:2, :2].sum()
    valid = np.ones((5, 7), bool)
    valid[0, 0] = False
    assert Framing().image(image + 1, valid)[0, 0, 0] == 0
    marks = np.zeros((5, 7), bool)
    marks[1, 1] = marks[0, 1] = True
    assert Framing(None, 2).marks(marks)[0, 0, 0] == 1
    with pytest.raises(BadInput, match="--bin 8"):
        Framing(None, 8).image(image)
    assert parse_size("512") == (512, 512)
    assert parse_size("2163x2069") == (2163, 2069)
    for text in ("", "0", "3x", "-4", "1e3", "512x512x1", "９"):
        with pytest.raises(BadInput, match="not a size"):
            parse_size(text)


def test_frames_of_two_sizes_ask_for_one(tmp_path: Path) -> None:
    small = build_series(tmp_path, "small", pixels=np.ones((4, 20, 20), "u2"), truth={})
    large = build_series(tmp_path, "large", truth={})
    with pytest.raises(BadInput, match="give --size"):
        Joined([SeriesSource(small), SeriesSource(large)]).batch(np.array([0, 7]), ["image"])
    both = Joined([SeriesSource(path, Framing((16, 16))) for path in (small, large)])
    assert both.batch(np.array([7, 0]), ["image"])["image"].shape == (2, 1, 16, 16)


def test_joined_sources_keep_their_order_and_name_who_lacks_what() -> None:
    first = ArraySource({"a": np.arange(3), "b": np.arange(3.0)}, np.array([5, 5, 6]), "first")
    second = ArraySource({"a": np.arange(10, 14)}, np.array([5, 5, 6, 6]), "second")
    both = Joined([first, second])
    assert len(both) == 7
    assert both.batch(np.array([6, 0, 3]), ["a"])["a"].tolist() == [13, 0, 10]
    assert both.groups.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert Part(both, np.array([6, 1])).batch(np.array([1]), ["a"])["a"].tolist() == [1]
    with pytest.raises(BadInput, match=r"^second: no field 'b'; x needs 'b', every sample has: a$"):
        require_fields(both, ["b"], "x")


@pytest.mark.parametrize("seed", range(8))
def test_a_split_by_group_cuts_no_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 12, 60)
    source = ArraySource({"a": np.arange(60)}, groups)
    first, second = split_by_group(source, 0.25, seed)
    assert not set(first.groups) & set(second.groups)
    assert sorted(
        [*first.batch(np.arange(len(first)), ["a"])["a"], *second.batch(np.arange(len(second)), ["a"])["a"]]
    ) == list(range(60))
    assert 0.05 < len(second) / 60 < 0.45


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(BadInput, match="4 samples in 1 groups cannot be split"):
        split_by_group(ArraySource({"a": np.arange(4)}, np.zeros(4, int)), 0.5, 1)


def test_samples_linked_through_others_are_one_group() -> None:
    groups = linked([{"x"}, {"y"}, {"x", "z"}, set(), {"z"}])
    assert groups[0] == groups[2] == groups[4]
    assert len({groups[0], groups[1], groups[3]}) == 3


def test_a_fraction_of_series_splits_no_orientation_and_no_background(tmp_path: Path) -> None:
    turns = np.stack([rotation(n // 2) for n in range(12)])  # each crystal is hit twice
    truth = good_truth(12) | {"orientation": turns, "hit": np.ones(12, bool), "class": np.full(12, b"protein")}
    for name in ("spot_frame", "spot_ss", "spot_fs", "spot_photons"):
        del truth[name]
    build_series(tmp_path, frames=12, truth=truth)
    sides = shared_sides([str(tmp_path)], 0.3, 1, Framing())
    assert len(sides.training) + len(sides.validation) == 12
    assert not set(sides.training.groups) & set(sides.validation.groups)
    assert len(set(sides.training.groups)) == len(sides.training) / 2


def test_energy_and_camera_length_are_trained_from_headers_alone(tmp_path: Path) -> None:
    for name, condition in (("a", (0.15, 6000.0)), ("b", (0.25, 7000.0))):
        build_series(tmp_path, name, frames=8, truth={}, condition=condition)
    sides = shared_sides([str(tmp_path)], 0.25, 1, Framing())
    for side, each in ((sides.training, 6), (sides.validation, 2)):
        batch = side.batch(np.arange(len(side)), ["photon_energy_eV", "camera_length_m", "image"])
        assert sorted(batch["photon_energy_eV"].tolist()) == [6000.0] * each + [7000.0] * each
        assert set(batch["camera_length_m"].tolist()) == {0.15, 0.25}
    with pytest.raises(BadInput, match=r"a_master.h5: no hit in /entry/truth, in a table beside it or in the header"):
        require_fields(sides.training, ["hit"], "attribute 'peak'")


def test_a_series_whose_truth_lacks_only_hits_is_shared_without_parting_a_crystal(tmp_path: Path) -> None:
    truth = good_truth(12) | {"orientation": np.stack([rotation(n // 2) for n in range(12)])}
    del truth["hit"]
    build_series(tmp_path, frames=12, truth=truth)
    sides = shared_sides([str(tmp_path)], 0.3, 1, Framing())
    assert not set(sides.training.groups) & set(sides.validation.groups)
    assert len(set(sides.training.groups)) == len(sides.training) / 2
    require_fields(sides.training, ["peak_map", "photon_energy_eV"], "peaks")
    with pytest.raises(BadInput, match=r"run_master.h5:/entry/truth/hit is missing; attribute 'peak' needs 'hit'"):
        require_fields(sides.training, ["hit"], "attribute 'peak'")


def test_the_paper_s_frozen_water_cannot_be_split(tmp_path: Path) -> None:
    build_tree(tmp_path, frozen=True, hits=4, empties=2)
    with pytest.raises(BadInput, match="the paper's leak"):
        shared_sides([str(tmp_path)], 0.3, 1, Framing())


def test_a_split_s_file_gives_its_sides(tmp_path: Path) -> None:
    build_tree(tmp_path / "set", hits=6, empties=3)
    build_series(tmp_path / "runs", frames=8, truth=good_truth(8, 3))
    inputs = read_inputs(find_sources([str(tmp_path / "set"), str(tmp_path / "runs")]))
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    split = make_split(inputs.items, shares)  # type: ignore[arg-type]
    write_split(tmp_path / "split.json", split, inputs, shares, 0, None)  # type: ignore[arg-type]
    sides = split_sides(tmp_path / "split.json", [], Framing())
    assert sides.test is not None
    assert [len(sides.training), len(sides.validation), len(sides.test)] == [
        len(split.sides[side]) for side in ("train", "validation", "test")
    ]
    hits = sides.training.batch(np.arange(len(sides.training)), ["hit"])["hit"]
    assert hits.sum() == sum(item.hit for item in split.sides["train"])
    alone = split_sides(tmp_path / "split.json", [str(tmp_path / "runs")], Framing())
    assert len(alone.training) < len(sides.training)
    with pytest.raises(BadInput, match="not in the split"):
        split_sides(tmp_path / "split.json", [str(build_series(tmp_path / "other", "new"))], Framing())
    build_series(tmp_path / "runs", frames=2)
    with pytest.raises(BadInput, match=r"has no image [0-9] any more"):
        split_sides(tmp_path / "split.json", [], Framing())


def test_a_split_without_validation_is_refused(tmp_path: Path) -> None:
    master = build_series(tmp_path, frames=8, truth=good_truth(8))
    inputs = read_inputs([master])
    shares = {"train": 0.5, "validation": 0.0, "test": 0.5}
    write_split(tmp_path / "s.json", make_split(inputs.items, shares), inputs, shares, 0, None)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no image to validate on; the test set must not choose the weights"):
        split_sides(tmp_path / "s.json", [], Framing())


def test_a_simulated_sample_is_the_same_in_any_batch_and_new_every_epoch() -> None:
    source = SimulatedSource(Simulation(samples=20, flux_photons=3e9), 7, Framing((96, 28)))
    alone = source.batch(np.array([3]), ALL)
    among = source.batch(np.array([0, 3]), ALL)
    for name in ALL:
        assert np.array_equal(alone[name][0], among[name][1])
    assert alone["image"].shape == (1, 1, 96, 28)
    later = source.at_epoch(1).batch(np.array([3]), ["image"])["image"]
    assert not np.array_equal(later, alone["image"])
    held = SimulatedSource(Simulation(samples=20, flux_photons=3e9), 7, Framing((96, 28)), fixed=True)
    assert np.array_equal(
        held.at_epoch(5).batch(np.array([3]), ["image"])["image"], held.batch(np.array([3]), ["image"])["image"]
    )


def test_simulated_sides_share_no_random_number_and_have_all_conditions() -> None:
    sides = simulated_sides(Simulation(samples=300), 0.25, 1, Framing((64, 8)))
    assert len(sides.validation) == 100
    places = np.arange(300)
    drawn = sides.training.batch(places, ["photon_energy_eV", "camera_length_m", "hit"])
    conditions = {*zip(drawn["photon_energy_eV"].tolist(), drawn["camera_length_m"].tolist(), strict=True)}
    assert len(conditions) == 9
    assert 100 < drawn["hit"].sum() < 200
    first, held = (side.batch(np.arange(9), ["image"])["image"] for side in (sides.training, sides.validation))
    assert not any(np.array_equal(a, b) for a in first for b in held if a.any())
    with pytest.raises(BadInput, match="simulation of seed 1: shots made on the fly have no spectrum"):
        require_fields(sides.training, ["spectrum"], "lines")


def test_the_clean_image_of_a_simulated_shot_is_the_photons_of_its_crystal_among_those_counted() -> None:
    source = SimulatedSource(Simulation(samples=12, water_scale=300.0), 3, Framing((800, 800)))
    batch = source.batch(np.arange(12), ["image", "clean_image", "peak_map", "hit"])
    clean, rest, spots = batch["clean_image"], batch["image"] - batch["clean_image"], batch["peak_map"] > 0
    assert (clean.dtype, clean.shape) == (np.float32, (12, 1, 800, 800))
    assert np.array_equal(clean, np.rint(clean))
    assert clean.min() == 0
    assert rest.min() == 0
    assert not clean[~batch["hit"]].any()
    assert clean[spots].mean() > 30
    beside = np.roll(spots, 9, axis=3)
    assert rest[spots].mean() == pytest.approx(rest[beside].mean(), abs=1.5), (
        "spots of a hundred photons leave no trace"
    )
    hit = int(np.flatnonzero(spots.any((1, 2, 3)))[0])
    again = source.batch(np.array([hit]), ["clean_image", "image"])
    assert np.array_equal(again["clean_image"][0], clean[hit])
    assert np.array_equal(source.batch(np.array([hit]), ["image"])["image"], again["image"]), (
        "no shot is another for it"
    )
    assert not np.array_equal(source.at_epoch(1).batch(np.array([hit]), ["clean_image"])["clean_image"][0], clean[hit])


@pytest.mark.parametrize(("samples", "batch"), [(48, 10), (7, 7), (7, 100), (1, 4), (11, 1), (0, 3)])
def test_batches_hold_every_sample_once_and_differ_by_one_at_most(samples: int, batch: int) -> None:
    made = batches(samples, batch, 3, 1)
    sizes = {len(places) for places in made}
    assert sorted(np.concatenate([*made, np.zeros(0, int)])) == list(range(samples))
    assert not sizes or (max(sizes) <= batch and max(sizes) - min(sizes) <= 1)


def test_arrays_of_unequal_length_are_refused() -> None:
    with pytest.raises(BadInput, match="fields of one length are needed, there are a 3, b 4"):
        ArraySource({"a": np.zeros(3), "b": np.zeros(4)})
    with pytest.raises(BadInput, match="groups of shape"):
        ArraySource({"a": np.zeros(3)}, np.zeros(2, int))
