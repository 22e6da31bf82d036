"""The paper's protocol and the honest one: what their images share, what looking up pixels tells, and the command."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from analyzer.attributes import CAMERA_LENGTH, PEAK, PHOTON_ENERGY
from cxls.settings import FiguresSettings
from streamer.files import BadInput
from tests.cxls.programs import cxls, refusal
from training import leak
from training.leak import EXPERIMENTS, NINE, QUICK, Plan, Sets, look_up, make_sets, shares
from training.leak_data import (
    HEADLINE,
    LARGEST_BIN,
    LOW_FLUX,
    Images,
    Protocol,
    images_of,
    paired_by_unsorted_listings,
    simulate,
    split_at_random,
    water_as_the_paper_shows,
)

BIN = LARGEST_BIN
SMALL = {1: (6, 5), 5: (6, 5), 9: (6, 5)}


def quiet(what: str, done: int, total: int) -> None:
    assert what
    assert 0 < done <= total


@pytest.fixture(scope="module")
def frozen() -> Images:
    water = water_as_the_paper_shows(500.0, BIN)
    return simulate(Protocol(name="frozen", counts=SMALL, stream=0, water=water, frozen=True), BIN, 1, maps=True)


@pytest.fixture(scope="module")
def sets() -> Sets:
    return make_sets(QUICK, "headline", SMALL, NINE, False, quiet)


def pictures(images: Images) -> list[bytes]:
    return [picture.tobytes() for picture in images.fields["image"]]


def all_honest(sets: Sets) -> list[Images]:
    return [sets.honest_training, sets.honest_validation, sets.honest_test]


# --- the paper's images -----------------------------------------------------------------


def test_the_papers_numbers_of_images_are_those_of_its_logs() -> None:
    assert images_of(HEADLINE) == 178 + 88
    assert images_of(LOW_FLUX) == 110 + 32
    assert not {2, 3, 9} & set(HEADLINE)


def test_frozen_empties_are_copies_of_one_another_on_both_sides_of_the_split(frozen: Images) -> None:
    training, test = split_at_random(frozen, 1)
    assert (len(training), len(test)) == (26, 7)
    seen = {p for p, hit in zip(pictures(training), training.fields["hit"], strict=True) if not hit}
    asked = [p for p, hit in zip(pictures(test), test.fields["hit"], strict=True) if not hit]
    assert asked
    assert len(seen) == len(SMALL)
    assert set(asked) <= seen


def test_a_frozen_hit_is_its_peak_image_and_the_water_that_all_share(frozen: Images) -> None:
    image, clean = frozen.fields["image"].astype(int), frozen.fields["clean_image"].astype(int)
    for number in SMALL:
        water = image[frozen.dataset == number] - clean[frozen.dataset == number]
        assert (water == water[0]).all()
        assert len(set(frozen.water[frozen.dataset == number])) == 1


def test_labels_mark_peaks_of_hits_alone(frozen: Images) -> None:
    marks, hit = frozen.fields["peak_map"], frozen.fields["hit"]
    assert (marks[hit].sum((1, 2, 3)) > 0).all()
    assert not marks[~hit].any()
    assert set(np.unique(marks)) == {0, 1}
    assert (frozen.fields["clean_image"][marks == 1] > 1).all()


def test_a_pixel_of_the_frozen_water_counts_as_the_papers_pixels_did_whatever_its_size() -> None:
    means = []
    for bin_px in (8, 32):
        water = water_as_the_paper_shows(500.0, bin_px)
        images = simulate(Protocol(name="w", counts={1: (0, 1)}, stream=0, water=water, frozen=True), bin_px, 1)
        means.append(float(images.fields["image"].mean()))
    assert means == pytest.approx([500 * 0.0194] * 2, rel=0.05)


def test_wrong_pairing_keeps_the_images_and_moves_their_peak_images(frozen: Images) -> None:
    wrong = paired_by_unsorted_listings(frozen, 1)
    assert (wrong.fields["image"] == frozen.fields["image"]).all()
    moved = [(a != b).any() for a, b in zip(wrong.fields["clean_image"], frozen.fields["clean_image"], strict=True)]
    assert sum(moved) > len(frozen) / 2
    assert sorted(p.tobytes() for p in wrong.fields["clean_image"]) == sorted(
        p.tobytes() for p in frozen.fields["clean_image"]
    )


def test_the_same_seed_gives_the_same_images_and_another_seed_others() -> None:
    protocol = Protocol(name="x", counts={1: (1, 1)}, stream=2, jitter=0.3)
    one, again, other = (simulate(protocol, BIN, seed) for seed in (1, 1, 2))
    assert pictures(one) == pictures(again)
    assert not set(pictures(one)) & set(pictures(other))


# --- honest images ----------------------------------------------------------------------


def test_honest_sets_share_no_image_no_water_and_no_orientation(sets: Sets) -> None:
    images = [picture for part in all_honest(sets) for picture in pictures(part)]
    water = [int(number) for part in all_honest(sets) for number in part.water]
    turns = [turn.tobytes() for part in all_honest(sets) for turn in part.orientation[part.fields["hit"]]]
    for each in (images, water, turns):
        assert len(set(each)) == len(each)


def test_honest_images_are_of_all_nine_conditions_half_of_them_hits(sets: Sets) -> None:
    for part in all_honest(sets):
        for number in NINE:
            hits = part.fields["hit"][part.dataset == number]
            assert hits.sum() == len(hits) / 2 > 0


def test_honest_empties_vary_in_brightness_as_pulse_and_thickness_do() -> None:
    images = simulate(Protocol(name="x", counts={1: (0, 60)}, stream=2, jitter=0.3), BIN, 1)
    spread = np.log(images.fields["image"].sum((1, 2, 3))).std()
    assert 0.3 < spread < 0.55  # sqrt(2) * 0.3, from 60


def test_new_noise_is_of_the_papers_brightness_and_shares_no_pixels_with_it(sets: Sets) -> None:
    assert not set(pictures(sets.new_noise)) & set(pictures(sets.training))
    for number in SMALL:
        old, new = (
            float(part.fields["image"][(part.dataset == number) & ~part.fields["hit"]].mean())
            for part in (sets.training, sets.new_noise)
        )
        assert new == pytest.approx(old, rel=0.1)


# --- the look-up ------------------------------------------------------------------------


def test_looking_up_pixels_is_perfect_on_the_papers_images_and_knows_nothing_of_honest_ones(sets: Sets) -> None:
    results = {result.name: result.outcomes for result in look_up(sets)}
    for name, chance in (("hash-hit", 1 / 2), ("hash-energy", 1 / 3), ("hash-camera-length", 1 / 3)):
        right = {
            role: sum(row[n] for n, row in enumerate(outcome.confusion)) / outcome.samples
            for role, outcome in results[name].items()
        }
        assert right["reproduced"] == 1.0
        assert right["honest"] == right["carried over"] == right["new noise"] == pytest.approx(chance)


# --- experiments ------------------------------------------------------------------------


def test_experiments_keep_the_published_recipes() -> None:
    recipes = {e.name: e.recipe for e in EXPERIMENTS}
    assert recipes["energy"] is PHOTON_ENERGY.recipe
    assert recipes["camera-length"] is CAMERA_LENGTH.recipe
    assert recipes["hit-binary"] is PEAK.recipe
    assert recipes["peak-then-overlay"].views == ("clean_image", "image")
    assert recipes["dual"].epochs == 10
    assert len({e.name for e in EXPERIMENTS}) == len(EXPERIMENTS)


def test_shares_of_a_class_without_images_are_no_number() -> None:
    found = shares(((3, 1), (0, 0)))
    assert found[0] == (0.75, 0.25)
    assert np.isnan(found[1]).all()


def test_figure_18_of_data_sets_that_the_paper_did_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="held no image of 02, 03; it held 01, 04, 05, 06, 07, 08"):
        leak.figure_18(QUICK, frozenset({2, 3}), tmp_path, quiet)


def test_a_pixel_size_that_makes_no_panel_is_refused() -> None:
    with pytest.raises(BadInput, match="--bin 33: give 1 to 32"):
        simulate(Protocol(name="x", counts=SMALL, stream=0), 33, 1)


def test_the_commands_defaults_are_the_plans() -> None:
    settings = FiguresSettings()
    plan = Plan()
    assert (settings.bin, settings.frozen_water, settings.seed) == (plan.bin, plan.frozen_water, plan.seed)


# --- the command ------------------------------------------------------------------------


def test_the_command_writes_tables_pictures_and_all_counts_and_trains_once(tmp_path: Path) -> None:
    options = ("figures", "paper", "--quick", "--out", tmp_path / "images", "--work", tmp_path / "work")
    done = cxls(*options)
    assert done.returncode == 0, done.stderr
    assert "| Hit, binary CNN (Fig. 12) | 67 x 64 | recall | 97.5 % |" in done.stdout
    assert "| 09: 0.35 m, 8 keV |" in done.stdout
    content = json.loads((tmp_path / "images" / "paper-results.json").read_text())
    assert content["command"] == "cxls figures paper --quick"
    found = {result["name"]: result["outcomes"] for result in content["results"]}
    assert set(found) >= {experiment.name for experiment in EXPERIMENTS}
    assert set(found["dual"]) == {"reproduced", "new noise", "carried over", "honest", "honest, no clean image"}
    for outcomes in found.values():
        for outcome in outcomes.values():
            if outcome["classes"] != ["none", "peak"]:
                assert sum(map(sum, outcome["confusion"])) == outcome["samples"]
    assert (tmp_path / "images" / "paper-results.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    before = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "work").rglob("checkpoint.safetensors")}
    again = cxls(*options)
    assert again.stdout == done.stdout
    assert {path: os.stat(path).st_mtime_ns for path in before} == before


def test_figure_18_has_one_row_of_images_and_says_why(tmp_path: Path) -> None:
    options = ("figures", "paper", "--quick", "--conditions", "1,2", "--out", tmp_path, "--work", tmp_path / "work")
    done = cxls(*options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^01 .* 6 keV +26 hits and 13 empties$", done.stdout, re.MULTILINE)
    assert re.search(r"^02 .* 7 keV +nothing: no image, so no count in its row$", done.stdout, re.MULTILINE)
    assert "rows with images: 6000 eV;" in done.stdout
    assert "rows with images: 6000, 7000 eV;" in done.stdout
    content = json.loads((tmp_path / "paper-figure-18.json").read_text())
    rows = content["results"]["as_held"]["confusion"]
    assert sum(rows[0]) > 0
    assert rows[1] == rows[2] == [0, 0, 0]


def test_conditions_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    for given, said in (("0,1", "--conditions 0,1: '0' is no number"), ("2,3", "held no image of 02, 03")):
        assert said in refusal("figures", "paper", "--quick", "--conditions", given, "--out", tmp_path)
    assert not list(tmp_path.iterdir())
