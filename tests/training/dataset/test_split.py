"""Splits: nothing on two sides, everything on one, and the same every time."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.files import BadInput
from tests.training.dataset.builders import build_series, build_tree, change, change_attributes, good_truth, rotation
from training.dataset.sources import find_sources
from training.dataset.split import (
    SIDES,
    Inputs,
    Item,
    Side,
    Split,
    make_split,
    read_inputs,
    read_split,
    verify_split,
    write_split,
)

SHARES: dict[Side, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}
PAPER_SHARES: dict[Side, float] = {"train": 0.8, "validation": 0.0, "test": 0.2}
FILE = Path("run_master.h5")


def items(
    count: int, *keys: tuple[str, str], condition: tuple[float, float] = (0.15, 6000.0), first: int = 0
) -> list[Item]:
    return [Item(FILE, first + n, condition, n % 2 == 0, keys) for n in range(count)]


def sizes(split: Split) -> tuple[int, ...]:
    return tuple(len(split.sides[side]) for side in SIDES)


def inputs(*paths: Path, datasets: set[int] | None = None) -> Inputs:
    return read_inputs(find_sources([str(path) for path in paths]), datasets)


def write(path: Path, source: Inputs, shares: dict[Side, float] = SHARES, seed: int = 0) -> Path:
    write_split(path, make_split(source.items, shares, seed), source, shares, seed, None)
    return path


# --- making -----------------------------------------------------------------------------


def test_shares_are_met_and_every_image_is_on_one_side() -> None:
    given_items = items(100)
    split = make_split(given_items, SHARES)
    assert sizes(split) == (80, 10, 10)
    assert Counter(item.number for side in SIDES for item in split.sides[side]) == Counter(range(100))


def test_the_papers_shares_leave_validation_empty() -> None:
    assert sizes(make_split(items(100), PAPER_SHARES)) == (80, 0, 20)


def test_conditions_and_classes_are_spread_alike() -> None:
    many = [
        i
        for n, c in enumerate([(0.15, 6000.0), (0.25, 7000.0), (0.35, 8000.0)])
        for i in items(40, condition=c, first=100 * n)
    ]
    split = make_split(many, SHARES)
    for side, count in zip(SIDES, (16, 2, 2), strict=True):
        found = Counter((item.condition, item.hit) for item in split.sides[side])
        assert set(found.values()) == {count}
        assert len(found) == 6


def test_the_split_does_not_depend_on_the_order_of_the_images() -> None:
    many = [Item(FILE, n, (0.15, 6000.0), n % 3 == 0, (("orientation", str(n % 20)),)) for n in range(50)]
    shuffled = [many[n] for n in np.random.default_rng(0).permutation(50)]
    assert make_split(shuffled, SHARES).sides == make_split(many, SHARES).sides


def test_another_seed_is_another_split() -> None:
    assert make_split(items(100), SHARES, 0).sides != make_split(items(100), SHARES, 1).sides


def test_chains_of_shared_keys_stay_together() -> None:
    # 0 shares with 1, 1 with 2: 0 and 2 share nothing and stay together all the same
    chain = [
        Item(FILE, 900, (0.15, 6000.0), True, (("orientation", "a"),)),
        Item(FILE, 901, (0.15, 6000.0), True, (("background", "b"), ("orientation", "a"))),
        Item(FILE, 902, (0.15, 6000.0), True, (("background", "b"),)),
    ]
    split = make_split([*items(30), *chain], SHARES)
    assert len({side for side in SIDES for item in split.sides[side] if item in chain}) == 1
    assert split.groups == 31


def test_equal_text_of_another_kind_of_key_is_not_shared() -> None:
    two = [Item(FILE, n, (0.15, 6000.0), True, ((kind, "a"),)) for n, kind in enumerate(("orientation", "noise"))]
    assert make_split(two, {"train": 0.5, "validation": 0.0, "test": 0.5}).groups == 2


def test_every_side_gets_something_where_groups_are_few() -> None:
    assert sizes(make_split(items(3), SHARES)) == (1, 1, 1)
    assert sizes(make_split(items(5), SHARES)) == (3, 1, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=5, max_size=80), st.integers(0, 5))
def test_no_group_is_ever_cut(groups: list[int], seed: int) -> None:
    many = [Item(FILE, n, (0.15, 6000.0), True, (("orientation", str(g)),)) for n, g in enumerate(groups)]
    try:
        split = make_split(many, SHARES, seed)
    except BadInput:
        assert len(set(groups)) < 3
        return
    side_of = {item.number: side for side in SIDES for item in split.sides[side]}
    assert len(side_of) == len(groups)
    for group in set(groups):
        assert len({side_of[n] for n, g in enumerate(groups) if g == group}) == 1
    assert all(split.sides[side] for side in SIDES)


# --- refusing ---------------------------------------------------------------------------


def test_one_background_for_all_is_refused_as_the_papers_leak() -> None:
    with pytest.raises(BadInput, match=r"all 20 images at 0\.15 m and 6000 eV share one background, the paper's leak"):
        make_split(items(20, ("background", "x")), SHARES)


def test_one_background_a_condition_is_refused_though_there_are_enough_groups() -> None:
    many = [
        item
        for n in range(9)
        for item in items(5, ("background", str(n)), condition=(0.1 + n / 100, 6000.0), first=10 * n)
    ]
    with pytest.raises(BadInput, match="the paper's leak"):
        make_split(many, PAPER_SHARES)


def test_one_orientation_for_all_is_refused() -> None:
    with pytest.raises(BadInput, match="share one crystal orientation: no split") as error:
        make_split(items(20, ("orientation", "x")), SHARES)
    assert "\n" not in str(error.value)


def test_a_condition_linked_by_a_chain_is_refused() -> None:
    chain = [Item(FILE, n, (0.25, 7000.0), True, (("noise", str(n)), ("noise", str(n + 1)))) for n in range(6)]
    with pytest.raises(
        BadInput, match=r"all 6 images at 0\.25 m and 7000 eV are linked, 2 of them by one seed of the noise"
    ):
        make_split([*items(30), *chain], SHARES)


def test_ten_thousand_images_are_split_in_seconds() -> None:
    many = [Item(FILE, n, (0.15, 6000.0 + n % 3), n % 2 == 0, (("noise", str(n // 2)),)) for n in range(10_000)]
    assert make_split(many, SHARES).groups == 5_000


def test_fewer_groups_than_sides_are_refused() -> None:
    with pytest.raises(BadInput, match="2 images in 2 independent groups cannot fill 3 sides"):
        make_split(items(2), SHARES)


def test_one_side_alone_takes_anything() -> None:
    assert sizes(make_split(items(20, ("background", "x")), {"train": 0.0, "validation": 0.0, "test": 1.0})) == (
        0,
        0,
        20,
    )


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5), (0, 0, 0)])
def test_shares_without_sense_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match="that sum to 1"):
        make_split(items(20), dict(zip(SIDES, shares, strict=True)))


# --- what trees and series share --------------------------------------------------------


def keys_of(found: Inputs, kind: str) -> list[str]:
    return [text for item in found.items for k, text in item.keys if k == kind]


def test_a_good_tree_shares_nothing(tmp_path: Path) -> None:
    found = inputs(build_tree(tmp_path, (1, 5), hits=6, empties=4))
    assert len(found.items) == 20
    assert make_split(found.items, SHARES).groups == 20


def test_a_frozen_tree_is_refused(tmp_path: Path) -> None:
    found = inputs(build_tree(tmp_path, (1, 5, 9), hits=6, empties=4, frozen=True))
    assert len(set(keys_of(found, "background"))) == 3
    with pytest.raises(BadInput, match=r"all 10 images at 0\.15 m and 6000 eV share one background"):
        make_split(found.items, SHARES)


def test_peak_images_of_one_orientation_stay_together(tmp_path: Path) -> None:
    images = build_tree(tmp_path, hits=8, empties=0)
    for n in (2, 7):
        change_attributes(images / f"peaks/01/img_6keV_clen01_{n:05d}.h5", orientation=rotation(4))
    split = make_split(inputs(images).items, SHARES)
    assert split.groups == 7


def test_noise_of_one_seed_and_number_stays_together(tmp_path: Path) -> None:
    images = build_tree(tmp_path, hits=8, empties=0)
    for n in (1, 5):
        change_attributes(
            images / f"peaks_water_overlay/01/overlay_img_6keV_clen01_{n:05d}.h5", noise_seed=1, noise_index=7
        )
    assert make_split(inputs(images).items, SHARES).groups == 7


def test_series_of_one_seed_share_their_frames(tmp_path: Path) -> None:
    one = build_series(tmp_path, "one", 12)
    same = build_series(tmp_path, "same", 12, condition=(0.25, 7000.0))
    other = build_series(tmp_path, "other", 12, seed=2)
    assert make_split(inputs(one).items, SHARES).groups == 12
    assert make_split(inputs(one, same).items, SHARES).groups == 12
    assert make_split(inputs(one, other).items, SHARES).groups == 24


def test_a_background_seed_may_be_of_the_series_or_of_the_frame(tmp_path: Path) -> None:
    one = build_series(tmp_path, "one", truth=good_truth() | {"background_seed": 5})
    with pytest.raises(BadInput, match="share one background"):
        make_split(inputs(one).items, SHARES)
    each = build_series(tmp_path, "each", truth=good_truth() | {"background_seed": np.array([1, 1, 2, 3])})
    assert make_split(inputs(each).items, SHARES).groups == 3


def test_a_series_without_hits_or_without_truth_is_split_by_what_is_known_of_it(tmp_path: Path) -> None:
    truth = good_truth(12)
    del truth["hit"]
    unsaid = build_series(tmp_path, "unsaid", 12, truth=truth | {"background_seed": np.repeat(np.arange(6), 2)})
    bare = build_series(tmp_path, "bare", 10, truth={}, condition=(0.25, 7000.0))
    told = build_series(tmp_path, "told", 10, seed=3)
    found = inputs(unsaid, bare, told)
    assert {(item.file.name, item.hit) for item in found.items} == {
        ("unsaid_master.h5", None), ("bare_master.h5", None), ("told_master.h5", True), ("told_master.h5", False),
    }  # fmt: skip
    split = make_split(found.items, SHARES)
    assert split.groups == 6 + 10 + 10
    assert sum(item.file == bare for item in split.sides["train"]) == 8
    path = write(tmp_path / "split.json", found)
    assert list(verify_split(path)) == []
    change(unsaid, "entry/truth/background_seed", None)
    assert [problem.text for problem in verify_split(path)] == ["unsaid_master.h5 has changed since the split was made"]


def test_a_series_whose_truth_is_unfit_is_not_split(tmp_path: Path) -> None:
    truth = good_truth() | {"background_seed": np.arange(3)}
    del truth["hit"]
    with pytest.raises(BadInput, match=r"run_master.h5:/entry/truth/background_seed: length 3 for 4 frames"):
        inputs(build_series(tmp_path, truth=truth))


def test_orientations_are_compared_to_a_millionth(tmp_path: Path) -> None:
    turns = good_truth(8)["orientation"]
    turns[2], turns[4] = turns[0] + 1e-8, turns[0] + 1e-3
    found = inputs(build_series(tmp_path, frames=8, truth=good_truth(8) | {"orientation": turns}))
    assert make_split(found.items, SHARES).groups == 7


def test_every_crystal_of_a_shot_counts(tmp_path: Path) -> None:
    turns = np.full((4, 2, 3, 3), np.nan)
    turns[0, 1] = turns[2, 0] = rotation(9)
    found = inputs(build_series(tmp_path, truth=good_truth() | {"orientation_all": turns}))
    assert make_split(found.items, SHARES).groups == 3


def test_only_chosen_data_sets_are_split(tmp_path: Path) -> None:
    images = build_tree(tmp_path, (1, 5))
    assert {item.condition for item in inputs(images, datasets={5}).items} == {(0.25, 7000.0)}
    with pytest.raises(BadInput, match="nothing to split"):
        inputs(images, datasets={9})


def test_a_tree_with_a_lost_partner_is_refused(tmp_path: Path) -> None:
    images = build_tree(tmp_path)
    (images / "peaks/01/img_6keV_clen01_00002.h5").unlink()
    with pytest.raises(BadInput, match="image 01/img/00002 has not both a peak image and an overlay"):
        inputs(images)


# --- writing and verifying --------------------------------------------------------------


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    found = inputs(build_tree(tmp_path / "set", (1, 5), hits=6, empties=4), build_series(tmp_path, frames=10))
    return write(tmp_path / "split.json", found)


def said(path: Path) -> list[str]:
    return [str(problem).removeprefix(f"{path}:") for problem in verify_split(path)]


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_written_split_is_read_and_verified(split_file: Path) -> None:
    sides = read_split(split_file)
    assert [len(sides[side]) for side in SIDES] == [24, 3, 3]
    files = {file for side in SIDES for file, _ in sides[side]}
    assert files == {split_file.parent / "set/images", split_file.parent / "run_master.h5"}
    assert said(split_file) == []


def test_the_same_inputs_write_the_same_bytes(split_file: Path, tmp_path: Path) -> None:
    found = inputs(tmp_path / "run_master.h5", tmp_path / "set")
    again = write(tmp_path / "again.json", found)
    one, two = json.loads(split_file.read_text()), json.loads(again.read_text())
    assert one["sides"] == two["sides"]


def test_a_split_moves_with_its_data(split_file: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}_moved"))
    assert said(moved / "split.json") == []


def test_a_leak_is_named(split_file: Path, tmp_path: Path) -> None:
    # the same frames under another name, put on another side
    (file, number) = json.loads(split_file.read_text())["sides"]["test"][0]
    del file, number
    twin = build_series(tmp_path, "twin", 10)
    found = inputs(tmp_path / "run_master.h5", twin)
    split = make_split(found.items, SHARES)
    moved = next(item for item in split.sides["test"] if item.file.name == "twin_master.h5")
    sides = dict(split.sides)
    sides["test"] = tuple(item for item in sides["test"] if item != moved)
    sides["train"] = (*sides["train"], moved)
    path = tmp_path / "leaky.json"
    write_split(path, Split(sides, split.groups), found, SHARES, 0, None)
    texts = said(path)
    assert (
        f"sides: test and train share one seed of the noise: run_master.h5 #{moved.number} and {moved.file.name} "
        in (" ".join(texts) + " ")
    )


def test_an_image_twice_nowhere_or_unknown_is_named(split_file: Path) -> None:
    def spoil(content: Any) -> None:
        sides = content["sides"]
        sides["test"].append(sides["train"][0])
        sides["train"].append(["run_master.h5", 10])
        sides["validation"].pop()

    first = json.loads(split_file.read_text())["sides"]["train"][0]
    lost = json.loads(split_file.read_text())["sides"]["validation"][-1]
    edit(split_file, spoil)
    assert said(split_file) == [
        "train: run_master.h5 #10 is no image of the inputs",
        f"test: {first[0]} #{first[1]} is there twice, first in train",
        f"sides: {lost[0]} #{lost[1]} is on no side",
    ]


def test_inputs_that_changed_or_went_are_named(split_file: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run_master.h5", "r+") as file:
        file["entry/truth/seed"][()] = 99
    assert said(split_file) == ["inputs: run_master.h5 has changed since the split was made"]
    (tmp_path / "run_master.h5").unlink()
    (text,) = said(split_file)
    assert text.startswith("inputs: ")
    assert text.endswith("run_master.h5: no such file or folder")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "cxls-split-1"}',
        '{"format": "cxls-split-1", "inputs": [], "sides": {"train": [], "validation": [], "test": [["x"]]}}',
        '{"format": "cxls-split-1", "inputs": [{}], "sides": {"train": [], "validation": [], "test": []}}',
        '{"format": "cxls-split-1", "inputs": [], "datasets": [7, 77], '
        '"sides": {"train": [], "validation": [], "test": []}}',
    ],
)
def test_a_file_that_is_no_split_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"split\.json") as error:
        list(verify_split(path))
    assert "\n" not in str(error.value)
