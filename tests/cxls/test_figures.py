"""``cxls figures simulation``: pictures, the tables beside them, and what is refused."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from cxls.figures import frames
from cxls.figures.drawing import binned, condition_name, most_nearby, text_table
from cxls.figures.powder import powder_photons
from sim_replay.against_crystfel import condition_of, panel_of, perfect_sample
from sim_replay.beam import lit_path_m
from sim_replay.cells import ready_crystal
from sim_replay.crystal import Crystal
from sim_replay.crystfel import Pattern, find_spots, write_pattern_sim_inputs, write_sparse_patterns
from sim_replay.detector import CONDITIONS, Condition, Detector, plain_panel
from sim_replay.diffraction import Sample, diffract, footprint, random_orientation
from tests.cxls.programs import cxls, refusal

LENGTH_M, ENERGY_EV, SHAPE, PIXEL_M = 0.08, 7000.0, (500, 480), 150e-6


def size_of_png(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def draw(out: Path, *options: object) -> str:
    done = cxls("figures", "simulation", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- pictures ---------------------------------------------------------------------------


def test_chosen_figures_are_drawn_and_their_numbers_printed(tmp_path: Path) -> None:
    out = tmp_path / "new" / "images"
    text = draw(out, "--only", "spot, powder", "--orientations", 12)
    assert sorted(path.name for path in out.iterdir()) == ["sim-powder.png", "sim-spot.png"]
    for path in out.iterdir():
        width, height = size_of_png(path)
        assert width > 800
        assert height > 300
    assert "mosaicity 0.2 deg, band 3 %" in text
    rows = [line for line in text.splitlines() if line.startswith("0.") and " keV" in line]
    assert len(rows) == 9
    assert "12 orientations a condition" in text


def test_the_same_figure_drawn_twice_is_the_same_file(tmp_path: Path) -> None:
    texts = [draw(tmp_path / name, "--only", "spot") for name in "ab"]
    first, second = ((tmp_path / name / "sim-spot.png").read_bytes() for name in "ab")
    assert first == second
    assert texts[0].splitlines()[1:] == texts[1].splitlines()[1:]


def test_the_conditions_are_drawn_for_every_response(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Detector("small", (240, 224), pixel_size_m=675e-6, gaps_ss=((112, 120),))
    monkeypatch.setattr(frames, "eiger2_4m", lambda: small)
    text = draw(tmp_path, "--only", "conditions")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "sim-conditions-integrating.png",
        "sim-conditions-one-per-pulse.png",
        "sim-conditions-retrigger.png",
    ]
    rows = [line.split("  ") for line in text.splitlines() if line[:2] in {f"{n}:" for n in range(1, 10)}]
    assert len(rows) == 9
    for row in rows:
        ideal, once, more = (int(number) for number in [cell for cell in row if cell][-2].split(" / "))
        assert once < more < ideal, "a pixel that counts once a pulse sees least"
        assert [cell for cell in row if cell][-1].split(" / ")[1] == "1"


def test_without_patterns_the_comparison_is_left_out_in_one_line(tmp_path: Path) -> None:
    text = draw(tmp_path, "--only", "crystfel")
    assert "not drawn: needs --crystfel" in text
    assert list(tmp_path.iterdir()) == []


# --- the comparison with pattern_sim ----------------------------------------------------


@pytest.fixture
def own_patterns(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with patterns that are our own diffraction, and the reflection list they were made with."""
    crystal = ready_crystal("proteinase-k", d_min_angstrom=4.0)
    condition = Condition(ENERGY_EV, LENGTH_M)
    rng = np.random.default_rng(8)
    turns = [random_orientation(rng) for _ in range(3)]
    panel = plain_panel(SHAPE, pixel_size_m=PIXEL_M)
    write_pattern_sim_inputs(tmp_path / "sim", "r0", crystal, condition, panel, np.array(turns), point_group="4/mmm")
    patterns = []
    for turn in turns:
        empty = pattern_of(np.empty(0, dtype=np.int64), np.empty(0), turn)
        under, on = condition_of(empty), panel_of(empty)
        laid = footprint(diffract(perfect_sample(crystal), under, on, turn), under, on)
        index, entry = np.unique(laid.index, return_inverse=True)
        patterns.append(pattern_of(index, np.bincount(entry, laid.photons), turn))
    folder = tmp_path / "patterns"
    folder.mkdir()
    write_sparse_patterns(folder / "combo01.npz", patterns)
    return folder, tmp_path / "sim" / "r0.hkl"


def pattern_of(index: np.ndarray, photons: np.ndarray, turn: np.ndarray) -> Pattern:
    spots = find_spots(index, photons, SHAPE[1])
    return Pattern(
        index, photons, SHAPE, turn, *spots, ENERGY_EV, LENGTH_M, 3e8, SHAPE[1] / 2, SHAPE[0] / 2, PIXEL_M
    )  # fmt: skip


def add_water(path: Path, water: np.ndarray) -> None:
    with np.load(path) as stored:
        everything = {key: stored[key] for key in stored}
    np.savez(path, **everything, water_f32_high16=water)


def test_patterns_of_our_own_agree_with_us(tmp_path: Path, own_patterns: tuple[Path, Path]) -> None:
    folder, hkl = own_patterns
    text = draw(tmp_path / "out", "--only", "crystfel", "--crystfel", folder, "--hkl", hkl)
    assert size_of_png(tmp_path / "out" / "sim-crystfel.png")[0] > 800
    total = next(line for line in text.splitlines() if line.startswith("all ")).split()
    assert total[1] == "3"
    assert float(total[2].rstrip("%")) > 99.0
    assert float(total[-1]) == pytest.approx(1.0, abs=0.01)
    assert "the files hold no water" in text
    assert "ratio 1.00" in text, "the list is the ready crystal's own"


def test_water_in_the_files_is_compared_ring_by_ring(tmp_path: Path, own_patterns: tuple[Path, Path]) -> None:
    folder, hkl = own_patterns
    water = np.full(SHAPE, 0.05, dtype=np.float32)
    add_water(folder / "combo01.npz", (water.view(np.uint32) >> 16).astype(np.uint16))
    text = draw(tmp_path / "out", "--only", "crystfel", "--crystfel", folder, "--hkl", hkl)
    row = next(line for line in text.splitlines()[::-1] if line.startswith("0.08 m, 7 keV"))
    assert float(row.split()[5]) == pytest.approx(0.05, rel=0.01)


def test_water_of_another_size_is_refused_with_its_file(tmp_path: Path, own_patterns: tuple[Path, Path]) -> None:
    folder, hkl = own_patterns
    add_water(folder / "combo01.npz", np.zeros(7, dtype=np.uint16))
    line = refusal("figures", "simulation", "--only", "crystfel", "--out", tmp_path, "--crystfel", folder, "--hkl", hkl)
    assert "combo01.npz" in line
    assert "water_f32_high16" in line


# --- refusals ---------------------------------------------------------------------------


def test_an_unknown_figure_is_named_beside_those_that_are(tmp_path: Path) -> None:
    line = refusal("figures", "simulation", "--out", tmp_path, "--only", "spot,spots")
    assert "--only spots: no such figure" in line
    assert "background" in line
    assert list(tmp_path.iterdir()) == [], "nothing is drawn before all names are known"


def test_an_unknown_topic_is_refused() -> None:
    assert "simulation" in refusal("figures", "analysis")


@pytest.mark.parametrize("orientations", ["1", "0", "-5", "many"])
def test_too_few_orientations_are_refused(tmp_path: Path, orientations: str) -> None:
    line = refusal("figures", "simulation", "--out", tmp_path, "--only", "powder", "--orientations", orientations)
    assert "--orientations" in line


def test_patterns_without_a_reflection_list_are_refused(tmp_path: Path) -> None:
    assert "needs --hkl" in refusal("figures", "simulation", "--out", tmp_path, "--crystfel", tmp_path)


def test_a_folder_without_patterns_is_named(tmp_path: Path) -> None:
    line = refusal(
        "figures", "simulation", "--only", "crystfel", "--out", tmp_path, "--crystfel", tmp_path, "--hkl", "x.hkl"
    )
    assert f"{tmp_path}: holds no combo*.npz" in line


def test_a_spoilt_reflection_list_is_named_with_its_line(tmp_path: Path, own_patterns: tuple[Path, Path]) -> None:
    folder, hkl = own_patterns
    hkl.write_text("h k l\n1 2 3\n")
    line = refusal("figures", "simulation", "--only", "crystfel", "--out", tmp_path, "--crystfel", folder, "--hkl", hkl)
    assert "r0.hkl, line 1" in line


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("no folder")
    line = refusal("figures", "simulation", "--only", "spot", "--out", tmp_path / "images")
    assert "images" in line


# --- parts ------------------------------------------------------------------------------


def test_squares_are_summed_and_gaps_stay_gaps() -> None:
    image = np.arange(30, dtype=np.uint16).reshape(5, 6)
    mask = np.zeros((5, 6), dtype=bool)
    mask[:2, :2] = True
    mask[0, 2] = True
    sums = binned(image, mask, 2)
    assert sums.shape == (2, 3)
    assert math.isnan(sums[0, 0])
    assert sums[0, 1] == 3 + 8 + 9
    assert sums[1, 2] == 16 + 17 + 22 + 23


def test_a_spot_keeps_its_sum_in_a_smaller_picture() -> None:
    image = np.zeros((32, 32), dtype=np.uint16)
    image[5, 6] = 7
    image[20:, 20:] = 1
    mask = np.zeros((32, 32), dtype=bool)
    mask[:16, 16:] = True
    seen = most_nearby(image, mask, 4, 16)
    assert seen[0, 0] == 7
    assert math.isnan(seen[0, 1])
    assert seen[1, 1] == 16


def test_a_table_has_one_width_a_column() -> None:
    lines = text_table(["name", "n"], [["a", "100"], ["longer", "1"]])
    assert lines == ("name      n", "a       100", "longer    1")


def test_a_condition_is_called_by_its_numbers() -> None:
    assert condition_name(0.15, 6500.0) == "0.15 m, 6.5 keV"


def test_the_powder_formula_of_one_ring_is_the_one_on_paper() -> None:
    """All of a ring on the panel: n l (r_e |F| lambda / V_c)^2 <P> lambda / (4 sin theta), m mates."""
    hkl = np.array([[h, 0, 0] for h in (-10, 10)] + [[0, k, 0] for k in (-10, 10)], dtype=np.int32)
    crystal = Crystal("ring", (50.0, 50.0, 50.0, 90.0, 90.0, 90.0), hkl, np.full(4, 1e5))
    condition, sample = CONDITIONS[2], Sample(crystal)
    wavelength = condition.wavelength_angstrom
    sine = wavelength / 10.0
    two_theta = 2.0 * math.asin(sine)
    expected = (
        3e8
        * lit_path_m(condition.beam, sample.size_m)
        * 4
        * 1e5
        * (2.8179403262e-15 / (125_000e-30)) ** 2
        * (1.0 - math.sin(two_theta) ** 2 / 2.0)
        * (wavelength * 1e-10) ** 3
        / (4.0 * sine)
    )
    assert powder_photons(sample, condition, plain_panel()) == pytest.approx(expected, rel=1e-9)
    half = plain_panel((2163, 400))
    assert 0.0 < powder_photons(sample, condition, half) < 0.5 * expected
