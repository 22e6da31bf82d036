"""``cxls simulate``, ``crystals`` and ``crystfel``: what is written, what is refused, and the exit codes."""

import resource
import subprocess
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from sim_replay.crystal import read_cell, read_hkl
from streamer.flat_detector import flat_detector
from streamer.geometry_file import read_geometry
from tests.cxls.programs import CXLS, cxls, environment, refusal
from tests.support import read_pixels


def truth(master: Path) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    with h5py.File(master) as f:
        return {name: f[f"entry/truth/{name}"][()] for name in f["entry/truth"]}


def simulated(tmp_path: Path, *options: object) -> Path:
    done = cxls("simulate", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    return tmp_path / "run_master.h5"


def test_every_setting_of_the_scene_reaches_the_file(tmp_path: Path) -> None:
    master = simulated(
        tmp_path, "--frames", 6, "--crystal", "lysozyme", "--condition", 3, "--crystals", 2, "--hit-fraction", 1,
        "--response", "one_per_pulse", "--pulses-per-frame", 3, "--charge-sigma", 8e-6, "--detector", "eiger1-4m",
        "--spectrum", "gaussian", "--divergence", 1e-3, "--air", 0.02, "--beam-stop", 1e-3,
        "--beam-stop-distance", 0.04, "--beam-stop-arm", 5e-4, "--film", 2e-5, "--jitter-center", 1,
        "--jitter-pulse-energy", 0.2, "--ice", 1, "--dead-pixels", 40, "--hot-pixels", 5, "--dtype", "uint32",
    )  # fmt: skip
    t, frames = truth(master), read_pixels(master)
    assert frames.shape == (6, 2167, 2070)
    assert frames.dtype == np.uint32
    assert t["response"] == b"one_per_pulse"
    assert t["pulses_per_frame"] == 3
    assert b"lysozyme" in t["crystal_name"]
    assert t["orientation_all"].shape == (6, 2, 3, 3)
    assert len(set(t["flux_photons"])) == 6
    assert set(t["class"]) == {b"protein"}
    assert len(t["ring_frame"])
    with h5py.File(master) as f:
        mask = f["entry/instrument/detector/pixel_mask"][()]
        assert f["entry/instrument/detector/frame_time"][()] == pytest.approx(3e-3)
    assert (mask == 2).sum() == 40, "dead pixels are in the mask"
    assert (frames[:, mask == 2] == 0).all()
    live = frames[:, mask == 0]
    assert np.median(live.max(axis=1)) > 3, "hot pixels count more often than there are pulses"
    assert np.quantile(live, 0.99999) <= 3


def test_an_orientation_and_a_crystal_may_be_given(tmp_path: Path) -> None:
    master = simulated(
        tmp_path, "--frames", 3, "--hit-fraction", 1, "--orientation", "0 1 0  0 0 1  1 0 0", "--d-min", 3
    )
    np.testing.assert_array_equal(truth(master)["orientation"], np.tile([[0, 1, 0], [0, 0, 1], [1, 0, 0]], (3, 1, 1)))


def test_shards_written_apart_are_the_series(tmp_path: Path) -> None:
    for part in range(3):
        done = cxls("simulate", tmp_path / f"part{part}", "--frames", 7, "--shard", f"{part}/3", "--seed", 9)
        assert done.returncode == 0, done.stderr
    whole = read_pixels(simulated(tmp_path, "--frames", 7, "--seed", 9, "--workers", 2))
    parts = np.concatenate([read_pixels(tmp_path / f"part{part}_master.h5") for part in range(3)])
    np.testing.assert_array_equal(parts, whole)


def test_filters_that_the_environment_names_do_not_get_in_the_way(tmp_path: Path) -> None:
    done = cxls("simulate", tmp_path / "run", "--frames", 2, HDF5_PLUGIN_PATH=hdf5plugin.PLUGIN_PATH)
    assert done.returncode == 0, done.stderr
    assert read_pixels(tmp_path / "run_master.h5").shape == (2, 2162, 2068)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--condition", "3", "--energy", "7000"), "--condition fixes"),
        (("--energy", "7000"), "--camera-length is missing"),
        (("--energy", "7000", "--camera-length", "0.001"), "inside the sample chamber"),
        (("--crystal", "unobtainium"), "known are amyloid-peptide"),
        (("--hkl", "nowhere.hkl"), "nowhere.hkl: No such file"),
        (("--pdb", "nowhere.pdb"), "nowhere.pdb"),
        (("--pdb", "a.pdb", "--hkl", "b.hkl"), "from one of them"),
        (("--cell", "a.cell"), "--hkl"),
        (("--geometry", "nowhere.geom"), "nowhere.geom: No such file"),
        (("--spectrum-file", "nowhere.txt"), "nowhere.txt: No such file"),
        (("--orientation", "1 2 x"), "9 numbers"),
        (("--orientation", "1 0 0 0 1 0 0 0 -1"), "rotation matrix"),
        (("--mosaicity", "-1"), "--mosaicity"),
        (("--flux", "nan"), "--flux"),
        (("--water-temperature", "500"), "--water-temperature"),
        (("--jitter-distance", "1"), "at most a tenth"),
        (("--hit-fraction", "2"), "--hit-fraction"),
        (("--beam-stop", "0.01", "--camera-length", "0.02", "--energy", "7000"), "beam_stop"),
        (("--dead-pixels", "1000000", "--hot-pixels", "100000000"), "--hot-pixels"),
    ],
)
def test_bad_settings_are_one_line_and_write_nothing(tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    assert words in refusal("simulate", tmp_path / "run", "--frames", "2", *options)
    assert not list(tmp_path.glob("run*"))


def test_a_file_that_is_no_structure_is_refused_by_name(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pdb"
    junk.write_bytes(bytes(range(256)) * 20)
    assert "junk.pdb" in refusal("simulate", tmp_path / "run", "--pdb", junk)


def test_a_disk_that_fills_ends_with_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    """A limit on the size of files, which the system enforces as it does a full disk."""
    done = subprocess.run(
        [*CXLS, "simulate", str(tmp_path / "run"), "--frames", "40"],
        cwd=Path(__file__).parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "nothing was written" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_ready_crystals_are_listed_with_their_cells() -> None:
    done = cxls("crystals")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 21
    assert "67.288 67.288 106.58" in done.stdout


def test_help_lists_settings_by_group() -> None:
    text = cxls("simulate", "--help").stdout
    places = [text.index(f"\n{group}:\n") for group in ("Crystal", "Beam", "Surroundings", "Jitter", "Distractors")]
    assert places == sorted(places)


# --- CrystFEL ---------------------------------------------------------------------------


def test_a_written_geometry_is_taken_back(tmp_path: Path) -> None:
    geom = tmp_path / "eiger.geom"
    assert cxls("crystfel", "geometry", geom, "--condition", 3, "--mask-file", "x_master.h5").returncode == 0
    seen = flat_detector(read_geometry(geom))
    assert (seen.shape, seen.camera_length_m, seen.photon_energy_eV) == ((2162, 2068), 0.15, 8000.0)
    master = simulated(tmp_path, "--geometry", geom, "--frames", 2, "--seed", 4)
    done = cxls("simulate", tmp_path / "direct", "--condition", 3, "--frames", 2, "--seed", 4)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read_pixels(master), read_pixels(tmp_path / "direct_master.h5"))


def test_inputs_for_pattern_sim_can_be_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "lyso"
    done = cxls(
        "crystfel", "inputs", folder, "--crystal", "lysozyme", "--detector", "paper", "--patterns", 4, "--d-min", 4
    )
    assert done.returncode == 0, done.stderr
    cell = read_cell(folder / "lyso.cell")
    assert cell[:3] == pytest.approx((79.1, 79.1, 37.9))
    assert len(read_hkl(folder / "lyso.hkl", cell).hkl) > 1000
    assert len((folder / "lyso.quaternions").read_text().splitlines()) == 4
    assert "--nphotons=300000000" in (folder / "run.sh").read_text()
    assert "symmetry" in refusal("crystfel", "inputs", folder, "--crystal", "lysozyme", "--point-group", "m-3m")


def test_an_import_needs_patterns_and_takes_no_condition(tmp_path: Path) -> None:
    assert "the patterns have their own" in refusal("crystfel", "import", tmp_path / "x", "y.npz", "--condition", "1")
    assert "y.npz" in refusal("crystfel", "import", tmp_path / "x", tmp_path / "y.npz")


def test_crystfels_files_are_replaced_only_with_overwrite(tmp_path: Path) -> None:
    geom = tmp_path / "a.geom"
    assert cxls("crystfel", "geometry", geom, "--condition", 3).returncode == 0
    first = geom.read_bytes()
    line = refusal("crystfel", "geometry", geom, "--geometry", geom, "--condition", 1)
    assert "a.geom exists already; use --overwrite to replace" in line
    assert geom.read_bytes() == first
    assert cxls("crystfel", "geometry", geom, "--condition", 1, "--overwrite").returncode == 0
    assert geom.read_bytes() != first
    assert list(tmp_path.iterdir()) == [geom]

    inputs = ("crystfel", "inputs", tmp_path / "run", "--d-min", 5, "--patterns", 2)
    assert cxls(*inputs).returncode == 0
    assert "exists already; use --overwrite" in refusal(*inputs)
    assert cxls(*inputs, "--overwrite").returncode == 0
    assert "--patterns" in refusal(*inputs, "--patterns", 100_001)


@pytest.mark.parametrize("command", ["geometry", "inputs"])
def test_a_full_disk_leaves_nothing_of_crystfels_files(tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        [*CXLS, "crystfel", command, str(tmp_path / "new" if command == "inputs" else tmp_path / "new.geom")],
        cwd=Path(__file__).parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000)),
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "File too large; nothing was written" in done.stderr
    assert not list(tmp_path.iterdir())


def test_line_breaks_in_names_are_refused_in_one_line(tmp_path: Path) -> None:
    odd = tmp_path / "a\nb"
    for arguments in (("geometry", odd), ("inputs", odd), ("import", odd, "x.npz"), ("import", tmp_path / "x", odd)):
        done = cxls("crystfel", *arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert "line breaks" in done.stderr
    assert not list(tmp_path.iterdir())
