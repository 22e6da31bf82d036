import dataclasses
import io
import math
import os
import re
import resource
import shlex
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from sim_replay.beam import Beam, gaussian, top_hat
from sim_replay.crystal import Crystal, proteinase_k, read_cell, read_hkl, symmetry_operations
from sim_replay.crystfel import (
    MASK_PATH,
    MAX_PATTERNS,
    SMALLEST_PHOTONS,
    Pattern,
    detector_from_geometry,
    find_spots,
    fit_to,
    geometry_of,
    orientation_of,
    quaternion_of,
    read_pattern_sim,
    read_patterns,
    read_sparse_patterns,
    unique_reflections,
    write_files,
    write_pattern_sim_inputs,
    write_sparse_patterns,
)
from sim_replay.detector import HC_EV_ANGSTROM, Condition, Detector, eiger1_4m, eiger2_4m, plain_panel
from sim_replay.diffraction import random_orientation
from streamer.flat_detector import flat_detector
from streamer.geometry_file import format_geometry, parse_geometry, read_geometry

CONDITION = Condition(7000.0, 0.15)
SMALL = plain_panel((60, 50))


def orientations(count: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.stack([random_orientation(rng) for _ in range(count)])


def test_an_eiger2_4m_is_eight_modules_without_the_gaps() -> None:
    geometry = geometry_of(eiger2_4m(), CONDITION, mask_file="run_master.h5")
    assert len(geometry.panels) == 8
    assert {panel.shape for panel in geometry.panels} == {(512, 1028)}
    last = geometry.panels[-1]
    assert (last.name, last.min_ss, last.max_ss, last.min_fs, last.max_fs) == ("m3_1", 1650, 2161, 1040, 2067)
    assert (last.corner_x, last.corner_y) == (1040 - 1034.0, 1650 - 1081.0)
    text = format_geometry(geometry)
    for line in (
        "photon_energy = 7000.0 eV", "clen = 0.15 m", "bandwidth = 0.01", "data = /entry/data/data", "dim0 = %",
        "dim1 = ss", "dim2 = fs", f"mask = {MASK_PATH}", "mask_file = run_master.h5", "mask_good = 0x0",
        "adu_per_photon = 1.0", "max_adu = 65533.0", "fs = +1.0x", "ss = +0.0x +1.0y",
    ):  # fmt: skip
        assert f"\n{line}\n" in f"\n{text}", line
    assert "mask" not in format_geometry(geometry_of(eiger2_4m(), CONDITION))


@pytest.mark.parametrize(
    "detector",
    [
        eiger2_4m(),
        eiger2_4m("uint32"),
        plain_panel(),
        plain_panel((100, 80), pixel_size_m=55e-6),
        Detector("edges", (40, 30), gaps_ss=((0, 2), (38, 40)), gaps_fs=((10, 12), (12, 13))),
        dataclasses.replace(eiger2_4m(), bad=((500, 600, 1000, 1100), (7, 8, 3, 4))),
    ],
)
def test_a_detector_makes_the_round_trip_through_a_geometry_file(detector: Detector) -> None:
    condition = dataclasses.replace(CONDITION, beam_center_x_px=12.25, beam_center_y_px=-3.5)
    geometry = parse_geometry(format_geometry(geometry_of(detector, condition)))
    found = detector_from_geometry(geometry, dtype=detector.dtype)
    # rows behind the last module are not in the file
    used = found.detector.shape
    np.testing.assert_array_equal(found.detector.mask, detector.mask[: used[0], : used[1]])
    assert detector.mask[used[0] :].all()
    assert found.detector.pixel_size_m == pytest.approx(detector.pixel_size_m, rel=1e-12)
    assert found.detector.dtype == detector.dtype
    assert (found.beam_center_x_px, found.beam_center_y_px) == (12.25, -3.5)
    assert (found.camera_length_m, found.photon_energy_eV) == (0.15, 7000.0)


def test_an_eiger2_4m_comes_back_with_its_own_gaps() -> None:
    found = detector_from_geometry(geometry_of(eiger2_4m(), CONDITION), name=eiger2_4m().name).detector
    assert (found.shape, found.gaps_ss, found.gaps_fs) == (eiger2_4m().shape, eiger2_4m().gaps_ss, eiger2_4m().gaps_fs)
    assert found.bad == ()


def test_strips_marked_bad_on_one_panel_are_the_gaps_of_an_eiger() -> None:
    eiger = eiger1_4m()
    lines = ["res = 13333.3", "clen = 0.1", "photon_energy = 22000"]
    for number, (low, high) in enumerate(eiger.gaps_ss):
        lines += [f"bad_h{number}/min_fs = 0", f"bad_h{number}/max_fs = 2069"]
        lines += [f"bad_h{number}/min_ss = {low}", f"bad_h{number}/max_ss = {high - 1}"]
    low, high = eiger.gaps_fs[0]
    lines += ["bad_v/min_ss = 0", "bad_v/max_ss = 2166", f"bad_v/min_fs = {low}", f"bad_v/max_fs = {high - 1}"]
    lines += ["p/min_fs = 0", "p/max_fs = 2069", "p/min_ss = 0", "p/max_ss = 2166"]
    lines += ["p/corner_x = -1000.0", "p/corner_y = -1000.0", "p/fs = x", "p/ss = y"]
    found = detector_from_geometry(parse_geometry("\n".join(lines)))
    assert found.detector.shape == eiger.shape
    assert (found.detector.gaps_ss, found.detector.gaps_fs) == (eiger.gaps_ss, eiger.gaps_fs)
    assert found.detector.bad == ()
    assert found.beam_center_x_px == 1000.0


def test_the_bandwidth_in_a_geometry_is_that_of_the_equivalent_top_hat() -> None:
    def bandwidth(beam: Beam) -> float:
        value = geometry_of(SMALL, dataclasses.replace(CONDITION, beam=beam)).bandwidth
        assert value is not None
        return value

    assert bandwidth(Beam(top_hat(0.02))) == 0.02
    assert bandwidth(Beam(gaussian(0.01))) == pytest.approx(math.sqrt(12.0) * 0.01 / 2.3548, rel=0.03)


def test_a_rotated_geometry_is_no_detector() -> None:
    geometry = geometry_of(SMALL, CONDITION)
    panel = dataclasses.replace(geometry.panels[0], fs=(0.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="rotated"):
        detector_from_geometry(dataclasses.replace(geometry, panels=(panel,)))


def test_quaternions_and_orientations_invert_each_other() -> None:
    for orientation in (*orientations(50), np.eye(3), np.diag([1.0, -1.0, -1.0]), np.diag([-1.0, -1.0, 1.0])):
        quaternion = quaternion_of(orientation)
        assert quaternion[0] >= 0.0
        np.testing.assert_allclose(orientation_of(quaternion), orientation, atol=1e-12)


def test_a_quaternion_turns_a_crystal_as_crystfel_does() -> None:
    # 90 degrees about z: CrystFEL's turn takes +x to -y, the usual one to +y
    half = math.sqrt(0.5)
    turned = orientation_of(np.array([half, 0.0, 0.0, half])) @ np.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(turned, [0.0, -1.0, 0.0], atol=1e-12)


def test_what_is_no_rotation_is_refused() -> None:
    for matrix in (2.0 * np.eye(3), np.diag([1.0, 1.0, -1.0]), np.full((3, 3), np.nan), np.eye(4)):
        with pytest.raises(ValueError, match="rotation matrix"):
            quaternion_of(matrix)
    for quaternion in ([0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0], [math.nan] * 4):
        with pytest.raises(ValueError, match="length 1"):
            orientation_of(np.array(quaternion))


def small_crystal() -> Crystal:
    return proteinase_k(d_min_angstrom=6.0)


def test_unique_reflections_make_the_whole_list_again() -> None:
    crystal = small_crystal()
    for group, share in (("4/mmm", 1 / 16), ("422", 1 / 8), ("mmm", 1 / 8), ("-1", 1 / 2), ("1", 1.0)):
        hkl, intensity = unique_reflections(crystal, group)
        assert share <= len(hkl) / len(crystal.hkl) < 1.6 * share or group == "1"
        listed = {tuple(row): value for row, value in zip(hkl.tolist(), intensity.tolist(), strict=True)}
        operations = symmetry_operations(group)
        for row, value in zip(crystal.hkl[::17], crystal.intensity[::17], strict=True):
            mates = {tuple(int(i) for i in mate) for mate in operations @ row}
            assert [listed[mate] for mate in mates if mate in listed] == [pytest.approx(value)]


def test_a_symmetry_that_the_crystal_lacks_is_refused() -> None:
    crystal = small_crystal()
    with pytest.raises(ValueError, match=r"cell of proteinase K.* does not have the symmetry m-3m"):
        unique_reflections(crystal, "m-3m")
    uneven = dataclasses.replace(crystal, intensity=crystal.intensity * (1.0 + (crystal.hkl[:, 0] > 0)))
    with pytest.raises(ValueError, match=r"does not have the symmetry 4/mmm: .* differs from a mate"):
        unique_reflections(uneven, "4/mmm")
    with pytest.raises(ValueError, match="not supported"):
        unique_reflections(crystal, "5/mmm")


def test_pattern_sims_inputs_say_what_was_asked(tmp_path: Path) -> None:
    crystal, turns = small_crystal(), orientations(3)
    condition = Condition(6000.0, 0.25, flux_photons=2.5e8, beam=Beam(top_hat(0.008), radius_m=4e-6))
    script = write_pattern_sim_inputs(
        tmp_path / "new", "c1", crystal, condition, eiger2_4m(), turns, point_group="4/mmm", crystal_size_m=2e-6
    )
    folder = script.parent
    geometry = read_geometry(folder / "c1.geom")
    assert geometry.bandwidth == 0.008
    assert (geometry.photon_energy_eV, geometry.clen_m) == (6000.0, 0.25)
    assert geometry.panels[0].dims == ("ss", "fs")
    assert geometry.panels[0].max_adu is None
    assert flat_detector(geometry).gaps_ss == eiger2_4m().gaps_ss

    assert read_cell(folder / "c1.cell") == crystal.cell
    assert "lattice_type = tetragonal\ncentering = P\nunique_axis = c\n" in (folder / "c1.cell").read_text()
    again = read_hkl(folder / "c1.hkl", folder / "c1.cell")
    np.testing.assert_array_equal(again.hkl, crystal.hkl)
    np.testing.assert_array_equal(again.intensity, crystal.intensity)
    assert len((folder / "c1.hkl").read_text().splitlines()) < len(crystal.hkl) / 8

    lines = (folder / "c1.quaternions").read_text().splitlines()
    assert len(lines) == 3
    for line, turn in zip(lines, turns, strict=True):
        np.testing.assert_allclose(orientation_of(np.array([float(word) for word in line.split()])), turn, atol=1e-14)

    assert script.stat().st_mode & stat.S_IXUSR
    command = script.read_text().splitlines()[-1]
    assert shlex.split(command) == [
        "pattern_sim", "-g", "c1.geom", "-p", "c1.cell", "-i", "c1.hkl", "-y", "4/mmm", "-n", "3", "-o", "c1",
        "--min-size=2000", "--max-size=2000", "--spectrum=tophat", "-s", "7", "--background=0", "--nphotons=250000000",
        "--beam-radius=4e-06", "--no-noise", "<", "c1.quaternions",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "group", "lines"),
    [
        ((40.0, 50.0, 60.0, 90.0, 100.0, 90.0), "2/m_uab", "lattice_type = monoclinic\ncentering = P\nunique_axis = b"),
        ((40.0, 50.0, 60.0, 90.0, 90.0, 90.0), "mmm", "lattice_type = orthorhombic\ncentering = P\na = 40.0 A\n"),
        ((40.0, 40.0, 60.0, 90.0, 90.0, 120.0), "6/m", "lattice_type = hexagonal\ncentering = P\nunique_axis = c\n"),
        ((40.0, 40.0, 60.0, 90.0, 90.0, 120.0), "-3m1_H", "lattice_type = hexagonal\ncentering = P\nunique_axis = c\n"),
        ((40.0, 40.0, 40.0, 80.0, 80.0, 80.0), "-3_R", "lattice_type = rhombohedral\ncentering = R\na = 40.0 A\n"),
        ((40.0, 40.0, 40.0, 90.0, 90.0, 90.0), "m-3m", "lattice_type = cubic\ncentering = P\na = 40.0 A\n"),
        ((40.0, 50.0, 60.0, 80.0, 100.0, 95.0), "-1", "lattice_type = triclinic\ncentering = P\na = 40.0 A\n"),
    ],
)  # fmt: skip
def test_other_lattices_are_named(
    cell: tuple[float, float, float, float, float, float], group: str, lines: str, tmp_path: Path
) -> None:
    span = np.arange(-3, 4)
    hkl = np.stack(np.meshgrid(span, span, span, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int32)
    hkl = hkl[np.any(hkl != 0, axis=1)]
    crystal = Crystal("flat", cell, hkl, np.ones(len(hkl)))
    write_pattern_sim_inputs(tmp_path, "x", crystal, CONDITION, SMALL, orientations(1), point_group=group)
    assert lines in (tmp_path / "x.cell").read_text()
    assert read_cell(tmp_path / "x.cell") == pytest.approx(cell)
    if group != "6/m":  # mates of these indices reach beyond them on hexagonal axes
        assert read_hkl(tmp_path / "x.hkl", cell).intensity.min() == 1.0


def test_inputs_that_pattern_sim_cannot_do_are_refused(tmp_path: Path) -> None:
    crystal = small_crystal()
    beam = dataclasses.replace(CONDITION, beam=Beam(gaussian(0.01)))
    with pytest.raises(ValueError, match="top hat"):
        write_pattern_sim_inputs(tmp_path, "x", crystal, beam, SMALL, orientations(1), point_group="4/mmm")
    with pytest.raises(ValueError, match="no orientations"):
        write_pattern_sim_inputs(tmp_path, "x", crystal, CONDITION, SMALL, np.empty((0, 3, 3)), point_group="4/mmm")
    for name in ("", "a b", "../a", "a;b", "-x", "$(x)"):
        with pytest.raises(ValueError, match="name"):
            write_pattern_sim_inputs(tmp_path, name, crystal, CONDITION, SMALL, orientations(1), point_group="4/mmm")
    assert list(tmp_path.iterdir()) == []


def fake_image(seed: int = 0, shape: tuple[int, int] = (60, 50)) -> NDArray[np.float32]:
    """What a noise-free image is like: tiny photons everywhere, a few spots."""
    rng = np.random.default_rng(seed)
    image = rng.exponential(1e-6, shape).astype(np.float32)
    image[10, 20] = 100.25
    image[11, 21] = 50.5  # a diagonal neighbour: the same spot
    image[30, 5:8] = (0.75, 3.5, 1.25)
    image[40, 40] = 0.4  # too weak for a spot
    return image


def write_output(
    path: Path, image: NDArray[np.float32], where: str = "entry/data/data", energy: float = 7000.0
) -> None:
    """An image as pattern_sim of 0.10.2 leaves it."""
    with h5py.File(path, "w") as file:
        file[where] = image
        file["wavelength"] = np.array([HC_EV_ANGSTROM / energy * 1e-10])
        file["spectrum/wavelengths_A"] = np.linspace(1.76, 1.78, 1024)
        file["spectrum/pdf"] = np.ones(1024)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder in which pattern_sim has made three patterns."""
    turns = orientations(3, seed=5)
    write_pattern_sim_inputs(tmp_path, "r0", small_crystal(), CONDITION, SMALL, turns, point_group="4/mmm")
    for number in (1, 2, 3):
        write_output(tmp_path / f"r0-{number}.h5", fake_image(number))
    return tmp_path


def test_pattern_sims_output_is_read_with_its_orientations_and_spots(run: Path) -> None:
    patterns = list(read_pattern_sim(run))
    assert len(patterns) == 3
    for number, (pattern, turn) in enumerate(zip(patterns, orientations(3, seed=5), strict=True), start=1):
        np.testing.assert_allclose(pattern.orientation, turn, atol=1e-12)
        assert pattern.index.dtype == np.int64
        assert pattern.photons.dtype == np.float64
        image = fake_image(number)
        laid = np.zeros(image.size)
        laid[pattern.index] = pattern.photons
        np.testing.assert_array_equal(laid.reshape(image.shape), np.where(image < SMALLEST_PHOTONS, 0.0, image))
        assert (pattern.photon_energy_eV, pattern.camera_length_m, pattern.flux_photons) == (7000.0, 0.15, 3e8)
        assert (pattern.beam_center_x_px, pattern.beam_center_y_px, pattern.shape) == (25.0, 30.0, (60, 50))
        order = np.argsort(-pattern.spot_photons)
        np.testing.assert_allclose(pattern.spot_photons[order], [150.75, 5.5])
        np.testing.assert_allclose(pattern.spot_ss[order], [10 + 50.5 / 150.75, 30.0])
        np.testing.assert_allclose(pattern.spot_fs[order], [20 + 50.5 / 150.75, 6 + 0.5 / 5.5])


def test_a_run_that_stopped_early_gives_what_it_made_in_order_of_number(run: Path) -> None:
    (run / "r0-2.h5").unlink()
    patterns = list(read_patterns([run]))
    assert len(patterns) == 2
    np.testing.assert_allclose(patterns[1].orientation, orientations(3, seed=5)[2], atol=1e-12)


def test_a_single_pattern_has_the_name_that_run_sh_gives_it(tmp_path: Path) -> None:
    script = write_pattern_sim_inputs(
        tmp_path, "one", small_crystal(), CONDITION, SMALL, orientations(1), point_group="4/mmm"
    )
    match = re.search(r"-o (\S+)", script.read_text())
    assert match is not None
    write_output(tmp_path / match[1], fake_image())
    assert len(list(read_pattern_sim(tmp_path))) == 1


@pytest.mark.parametrize("where", ["entry_1/data_1/data", "data/data0", "data/data"])
def test_images_at_other_places_are_found(run: Path, where: str) -> None:
    write_output(run / "r0-1.h5", fake_image(1), where)
    assert next(read_pattern_sim(run)).spot_photons.sum() == pytest.approx(156.25)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "r0.geom").unlink(), "needs one .geom file .* has 0"),
        (lambda run: (run / "b.geom").write_text("x"), "needs one .geom file .* has 2"),
        (lambda run: (run / "r0.geom").write_text("clen = 1"), r"r0\.geom: describes no panel"),
        (lambda run: (run / "r0.quaternions").unlink(), r"r0\.quaternions: is missing"),
        (lambda run: (run / "r0.quaternions").write_text("1 0 0\n"), r"quaternions, line 1: expected w x y z, found"),
        (lambda run: (run / "r0.quaternions").write_text("1 0 0 x\n"), r"quaternions, line 1: could not convert"),
        (lambda run: (run / "r0.quaternions").write_text("1 1 0 0\n"), r"line 1: a quaternion must have the length 1"),
        (lambda run: (run / "r0.quaternions").write_text(""), r"r0-1\.h5: there are 0 quaternions, none for this"),
        (lambda run: (run / "run.sh").unlink(), r"run\.sh: has no --nphotons=NUMBER"),
        (lambda run: (run / "run.sh").write_text("--nphotons=1e"), r"run\.sh: has no --nphotons=NUMBER"),
        (lambda run: [path.unlink() for path in run.glob("*.h5")], r"holds no r0-1\.h5; run run\.sh"),
        (lambda run: (run / "r0-1.h5").write_bytes(b"no"), r"r0-1\.h5: not a readable HDF5 file"),
        (lambda run: write_output(run / "r0-1.h5", fake_image(), "elsewhere"), r"r0-1\.h5: has no image at /entry"),
        (lambda run: write_output(run / "r0-1.h5", fake_image(shape=(50, 60))), r"shape \(50, 60\); the geometry"),
        (lambda run: write_output(run / "r0-1.h5", fake_image().astype(int)), "is int64 of shape"),
        (lambda run: write_output(run / "r0-1.h5", np.rint(fake_image())), "whole numbers of photons.*--no-noise"),
        (lambda run: write_output(run / "r0-1.h5", -fake_image()), "negative or not finite"),
        (lambda run: write_output(run / "r0-1.h5", fake_image() * np.float32(np.nan)), "negative or not finite"),
        (lambda run: write_output(run / "r0-1.h5", fake_image(), energy=6e3), "made with 6000.0 eV, but .* 7000.0 eV"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_run_is_named(run: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    spoil(run)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_pattern_sim(run))
    assert "\n" not in str(caught.value)


def test_sparse_patterns_make_the_round_trip(run: Path, tmp_path: Path) -> None:
    patterns = list(read_pattern_sim(run))
    path = tmp_path / "c.npz"
    write_sparse_patterns(path, patterns)
    again = list(read_patterns([path]))
    assert len(again) == 3
    for one, two in zip(patterns, again, strict=True):
        for field in dataclasses.fields(Pattern):
            np.testing.assert_allclose(getattr(two, field.name), getattr(one, field.name), atol=1e-12)


def test_sparse_patterns_of_two_conditions_do_not_go_into_one_file(run: Path, tmp_path: Path) -> None:
    pattern = next(read_pattern_sim(run))
    with pytest.raises(ValueError, match="different conditions"):
        write_sparse_patterns(tmp_path / "c.npz", [pattern, dataclasses.replace(pattern, photon_energy_eV=8000.0)])
    with pytest.raises(ValueError, match="no patterns"):
        write_sparse_patterns(tmp_path / "c.npz", [])
    assert not (tmp_path / "c.npz").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": None}, "lacks index"),
        ({"start": np.array([0, 5])}, "start must rise from 0 to the length of index"),
        ({"start": np.array([], int)}, "start must rise"),
        ({"start": np.array([[0, 4]])}, "not a file of sparse patterns"),
        ({"photons": np.ones(3)}, "of one length"),
        ({"photons": np.array([1.0, -1.0, 1.0, 1.0])}, "finite and not negative"),
        ({"photons": np.array([1.0, np.nan, 1.0, 1.0])}, "finite and not negative"),
        ({"photons": np.array(["a"] * 4)}, "not a file of sparse patterns"),
        ({"index": np.array([0, 1, 2, 12])}, "index must be pixels of a panel"),
        ({"shape": np.array([3, 4, 5])}, "not a file of sparse patterns"),
        ({"shape": np.array([0, 4])}, "index must be pixels"),
        ({"quaternion_wxyz": np.ones((1, 4))}, "length 1"),
        ({"quaternion_wxyz": np.ones((2, 4))}, "quaternion_wxyz"),
        ({"quaternion_wxyz": np.full((1, 4), 1e300)}, "length 1"),
        ({"n_photons": np.array(0.0)}, r"n_photons must be from 1 to 1e\+15, not 0$"),
        ({"n_photons": np.array(1e300)}, "n_photons must be from"),
        ({"n_photons": np.array(1e-300)}, "n_photons must be from"),
        ({"n_photons": np.array([1e8, 1e8])}, "n_photons must be one number"),
        ({"n_photons": np.array(3e8 + 0j)}, "n_photons must be of real numbers, not complex128"),
        ({"camera_length_m": np.array(np.nan)}, "camera_length_m must be from .* not nan"),
        ({"camera_length_m": np.array(1e300)}, "camera_length_m must be from"),
        ({"photon_energy_eV": np.array(1e300)}, "photon_energy_eV must be from"),
        ({"photon_energy_eV": np.array(1e-300)}, "photon_energy_eV must be from"),
        ({"pixel_size_m": np.array(10.0)}, "pixel_size_m must be from"),
        ({"beam_center_px_fs_ss": np.array([np.inf, 0.0])}, "beam_center_px_fs_ss must be from .* not inf"),
        ({"beam_center_px_fs_ss": np.ones(3)}, "two numbers"),
        ({"photons": np.ones(4, complex)}, "photons must be of real numbers, not complex128"),
        ({"photons": np.ones(4, "datetime64[s]")}, "photons must be of real numbers, not datetime64"),
        ({"photons": np.ones(4, [("a", "f4")])}, "photons must be of real numbers"),
        ({"photons": np.ones(4, bool)}, "photons must be of real numbers, not bool"),
        ({"photons": np.full(4, 1e12)}, r"a pixel has 1e\+12 photons, more than the pulse of 3e\+08"),
        ({"photons": np.ones((1, 1, 4))}, "photons has the shape"),
        ({"index": np.arange(4.0)}, "index must be of integers, not float64"),
        ({"index": np.array([0, 1, 1, 2])}, "each pixel once"),
        ({"shape": np.array([1 << 30, 1 << 30])}, "panel of shape"),
        ({"start": np.array([0, 1 << 62, -1 << 63, -1 << 62, 4])}, "start must rise"),
        ({"photons": np.array([1, None, 1, 1], dtype=object)}, "not a file of sparse patterns"),
    ],
)
def test_malformed_sparse_patterns_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    good: dict[str, object] = {
        "shape": np.array([3, 4]), "start": np.array([0, 4]), "index": np.arange(4), "photons": np.ones(4),
        "quaternion_wxyz": np.array([[1.0, 0.0, 0.0, 0.0]]), "photon_energy_eV": 7000, "camera_length_m": 0.15,
        "n_photons": 3e8, "pixel_size_m": 75e-6, "beam_center_px_fs_ss": np.array([2.0, 1.5]),
    }  # fmt: skip
    path = tmp_path / "c.npz"
    np.savez(path, **good)  # type: ignore[arg-type]
    assert len(list(read_sparse_patterns(path))) == 1
    np.savez(path, **{k: v for k, v in {**good, **changes}.items() if v is not None})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message) as caught:
        list(read_sparse_patterns(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    for content in (b"", b"PK\x03\x04 cut short", b"not a zip file at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a file of sparse patterns"):
            list(read_sparse_patterns(path))
    with pytest.raises(FileNotFoundError):
        list(read_sparse_patterns(tmp_path / "none.npz"))


GOOD: dict[str, object] = {
    "shape": np.array([300, 400]), "start": np.array([0, 4]), "index": np.arange(4), "photons": np.ones(4),
    "quaternion_wxyz": np.array([[1.0, 0.0, 0.0, 0.0]]), "photon_energy_eV": 7000, "camera_length_m": 0.15,
    "n_photons": 3e8, "pixel_size_m": 75e-6, "beam_center_px_fs_ss": np.array([2.0, 1.5]),
}  # fmt: skip


def write_members(path: Path, compression: int = zipfile.ZIP_DEFLATED, **members: bytes) -> None:
    """A sparse file with these members in place of good ones, whatever they are."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, value in GOOD.items():
            file = io.BytesIO()
            np.save(file, np.asarray(value))
            archive.writestr(f"{key}.npy", members.get(key, file.getvalue()))


def npy_header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_header("(10000000000000,)"), r"photons claims the shape \(10000000000000,\), more than the 128 bytes"),
        (npy_header("(-4,)"), "photons has the shape"),
        (npy_header("(4,)", "'|O'") + b"cos\nsystem\n(S'false'\ntR." * 4, "must be of real numbers, not object"),
        (npy_header("(4"), "photons is no array as numpy writes it"),
        (npy_header("[4]"), "photons is no array"),
        (b"\x93NUMPY\x03\x00" + bytes(100), "photons is no array"),
        (b"no array at all", "photons is no array"),
        (b"", "photons is no array"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"(" * 100_000, "photons is no array"),
        (npy_header("(4,)") + bytes(31), "expected 32 bytes got 31"),
    ],
)  # fmt: skip
def test_members_that_are_no_arrays_or_claim_too_much_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    write_members(path, photons=content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_sparse_patterns(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_unpacks_to_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, value in GOOD.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                if key != "photons":
                    np.save(member, np.asarray(value))
                    continue
                member.write(npy_header("(70000000,)"))
                for _ in range(70):
                    member.write(bytes(8_000_000))
    assert path.stat().st_size < 5_000_000
    with pytest.raises(ValueError, match="would take 560 MB, more than the 537 MB allowed"):
        list(read_sparse_patterns(path))
    # Small numbers are as large as any once they are read.
    write_members(path, index=npy_header("(70000000,)", "'|u1'") + bytes(70_000_000))
    with pytest.raises(ValueError, match="would take 560 MB"):
        list(read_sparse_patterns(path))


def test_other_compressions_and_damaged_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    write_members(path, zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="compressed in a way that numpy does not write"):
        list(read_sparse_patterns(path))
    write_members(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    path.write_bytes(whole[:-6] + b"\xff\xff\xff\xff" + whole[-2:])  # where the directory is
    with pytest.raises(ValueError, match="not a file of sparse patterns"):
        list(read_sparse_patterns(path))
    said: list[str] = []
    for _ in range(300):
        spoiled = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            spoiled[place] = rng.integers(0, 256)
        path.write_bytes(spoiled)
        try:
            list(read_sparse_patterns(path))
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 200
    assert "\n" not in "".join(said)


def test_more_patterns_than_a_series_can_want_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    count = MAX_PATTERNS + 1
    turns = np.tile([1.0, 0.0, 0.0, 0.0], (count, 1))
    empty = {"index": np.empty(0, int), "photons": np.empty(0), "quaternion_wxyz": turns}
    np.savez_compressed(path, **(GOOD | empty | {"start": np.zeros(count + 1, int)}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has 100001 patterns, and at most 100000"):
        list(read_sparse_patterns(path))


def test_the_same_pixel_many_times_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    many = {"start": np.array([0, 60_000]), "index": np.full(60_000, 7), "photons": np.ones(60_000)}
    np.savez_compressed(path, **(GOOD | many))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="each pixel once in a pattern"):
        list(read_sparse_patterns(path))
    # Two patterns may have a pixel each.
    two = {"start": np.array([0, 2, 4]), "index": np.array([5, 3, 3, 5]), "quaternion_wxyz": np.eye(4)[[0, 0]]}
    np.savez_compressed(path, **(GOOD | two))  # type: ignore[arg-type]
    assert [each.index.tolist() for each in read_sparse_patterns(path)] == [[5, 3], [3, 5]]


def test_pipes_and_folders_are_no_patterns(run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match=r"pipe\.npz: not a file of sparse patterns: it is a folder, a pipe"):
        list(read_patterns([tmp_path / "pipe.npz"]))
    with pytest.raises(ValueError, match="it is a folder"):
        list(read_sparse_patterns(tmp_path))
    image = run / "r0-1.h5"
    for make in (os.mkfifo, os.mkdir):
        if image.exists():
            image.unlink()
        make(image)
        with pytest.raises(ValueError, match=r"r0-1\.h5: is not a file") as caught:
            list(read_pattern_sim(run))
        assert "\n" not in str(caught.value)


def test_a_pulse_of_senseless_size_in_run_sh_is_refused(run: Path) -> None:
    for number in ("1e300", "1e-300", "0"):
        (run / "run.sh").write_text(f"pattern_sim --nphotons={number}")
        with pytest.raises(ValueError, match=r"run\.sh: has no --nphotons=NUMBER.* from 1 to 1e\+15"):
            list(read_pattern_sim(run))
    (run / "run.sh").write_text("pattern_sim --nphotons=50")
    with pytest.raises(ValueError, match=r"has 100\.25 photons in a pixel, more than the pulse of 50"):
        list(read_pattern_sim(run))


def test_a_line_break_in_a_name_stays_out_of_the_message(tmp_path: Path) -> None:
    folder = tmp_path / "a\nb"
    folder.mkdir()
    (folder / "c.npz").write_bytes(b"no")
    for source in (folder, folder / "c.npz"):
        with pytest.raises(ValueError, match=r"a\\nb") as caught:
            list(read_patterns([source]))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="the name 'a") as caught:
        write_pattern_sim_inputs(folder, "a\nb", small_crystal(), CONDITION, SMALL, orientations(1), point_group="1")
    assert "\n" not in str(caught.value)


def test_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    two.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="two exists already"):
        write_files({one: b"1", two: b"2"})
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    assert two.read_bytes() == b"old"
    write_files({one: b"1", two: b"2"}, overwrite=True, executable=(two,))
    assert (one.read_bytes(), two.read_bytes()) == (b"1", b"2")
    assert two.stat().st_mode & stat.S_IXUSR
    assert not one.stat().st_mode & stat.S_IXUSR

    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(IsADirectoryError, match="is no file that could be replaced"):
            write_files({one: b"new", tmp_path / name: b""}, overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"nowhere/x"):
        write_files({one: b"new", tmp_path / "nowhere" / "x": b""}, overwrite=True)
    assert one.read_bytes() == b"1"

    link = tmp_path / "link"
    link.symlink_to(one)
    write_files({link: b"through"}, overwrite=True)
    assert link.is_symlink()
    assert one.read_bytes() == b"through"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "one", "pipe", "two"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"old")
    code = (
        "import sys; from pathlib import Path; from sim_replay.crystfel import write_files; d = Path(sys.argv[1])\n"
        "try: write_files({d / 'a': b'1', d / 'b': bytes(50_000)}, overwrite=True)\n"
        "except OSError as error: print(error.strerror, error.filename)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert done.stdout == f"File too large {tmp_path / 'b'}\n", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_bytes() == b"old"


def test_inputs_replace_others_only_where_told_and_never_beside_images(tmp_path: Path) -> None:
    def write(seed: int, overwrite: bool = False) -> None:
        write_pattern_sim_inputs(
            tmp_path / "r", "r0", small_crystal(), CONDITION, SMALL, orientations(2, seed),
            point_group="4/mmm", overwrite=overwrite,
        )  # fmt: skip

    write(1)
    first = (tmp_path / "r" / "r0.quaternions").read_text()
    with pytest.raises(FileExistsError, match=r"r0\.geom exists already"):
        write(2)
    assert (tmp_path / "r" / "r0.quaternions").read_text() == first
    write(2, overwrite=True)
    second = (tmp_path / "r" / "r0.quaternions").read_text()
    assert second != first
    write_output(tmp_path / "r" / "r0-2.h5", fake_image())
    with pytest.raises(ValueError, match=r"r0-2\.h5: is of an earlier run; remove it"):
        write(3, overwrite=True)
    assert (tmp_path / "r" / "r0.quaternions").read_text() == second
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        write_pattern_sim_inputs(
            tmp_path / "file", "r0", small_crystal(), CONDITION, SMALL, orientations(1), point_group="4/mmm"
        )


def paper_pattern(places: list[tuple[int, int, float]]) -> Pattern:
    index = np.array([ss * 2069 + fs for ss, fs, _ in places], dtype=np.int64)
    photons = np.array([value for *_, value in places])
    spots = find_spots(index, photons, 2069)
    return Pattern(index, photons, (2163, 2069), np.eye(3), *spots, 7000.0, 0.15, 3e8, 1034.5, 1081.5, 75e-6)


def test_a_pattern_on_the_papers_panel_is_cut_to_an_eiger() -> None:
    # on a module; across the gap's edge; in the last row; in the last column; in a gap
    pattern = paper_pattern(
        [(100, 100, 9.0), (511, 5, 3.0), (512, 5, 4.0), (2162, 9, 5.0), (300, 2068, 6.0), (20, 1030, 7.0)]
    )
    fitted = fit_to(pattern, eiger2_4m())
    assert fitted.shape == (2162, 2068)
    np.testing.assert_array_equal(fitted.index, [100 * 2068 + 100, 511 * 2068 + 5])
    np.testing.assert_array_equal(fitted.photons, [9.0, 3.0])
    np.testing.assert_array_equal(sorted(fitted.spot_photons), [3.0, 9.0])
    np.testing.assert_array_equal(fitted.spot_ss[np.argsort(fitted.spot_photons)], [511.0, 100.0])
    assert (fitted.beam_center_x_px, fitted.beam_center_y_px) == (1034.5, 1081.5)
    assert len(fit_to(paper_pattern([]), eiger2_4m()).index) == 0


def test_a_pattern_that_does_not_fit_the_detector_is_refused(run: Path) -> None:
    pattern = paper_pattern([(1, 1, 1.0)])
    for detector in (plain_panel((2164, 2069)), plain_panel((2161, 2069)), plain_panel((2069, 2163))):
        with pytest.raises(ValueError, match="do not fit a detector"):
            fit_to(pattern, detector)
    with pytest.raises(ValueError, match=r"pixels of 7.5e-05 m, the detector 5.5e-05 m"):
        fit_to(pattern, plain_panel(pixel_size_m=55e-6))
    with pytest.raises(ValueError, match=f"{run.name}.*do not fit"):
        list(read_patterns([run], eiger2_4m()))
