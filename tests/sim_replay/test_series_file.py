import dataclasses
import errno
import json
import math
import os
import platform
import re
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from sim_replay.crystal import proteinase_k
from sim_replay.detector import CONDITIONS, Detector
from sim_replay.diffraction import Sample
from sim_replay.distractors import Distractors, Kind
from sim_replay.scene import Jitter, Scene
from sim_replay.series_file import SeriesWriter, packed, write_series
from sim_replay.shots import frame_rng, simulate_shot
from sim_replay.simulation import Plan, simulate_series
from streamer.files import FileSeries
from tests.support import read_pixels

SMALL = Detector("small", (540, 520), 300e-6, gaps_ss=((250, 262),), gaps_fs=((130, 136),))
SCENE = Scene(Sample(proteinase_k(d_min_angstrom=2.5)), CONDITIONS[2], SMALL)
PLAN = Plan(12, seed=4, workers=1)


def truth(master: Path) -> dict[str, Any]:
    with h5py.File(master) as f:
        return {name: f[f"entry/truth/{name}"][()] for name in f["entry/truth"]}


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_series(tmp_path_factory.mktemp("series") / "run", SCENE, PLAN)


def test_a_series_has_the_file_writers_layout(master: Path) -> None:
    assert sorted(os.listdir(master.parent)) == ["run_data_000001.h5", "run_master.h5"]
    with h5py.File(master.parent / "run_data_000001.h5") as f:
        data = f["entry/data/data"]
        assert data.shape == (12, 540, 520)
        assert data.dtype == np.uint16
        assert data.chunks == (1, 540, 520)
        assert "32008" in data._filters
        assert (data.attrs["image_nr_low"], data.attrs["image_nr_high"]) == (1, 12)
    with h5py.File(master) as f:
        link = f["entry/data"].get("data_000001", getlink=True)
        assert isinstance(link, h5py.ExternalLink)
        assert (link.filename, link.path) == ("run_data_000001.h5", "/entry/data/data")
        det = f["entry/instrument/detector"]
        assert det["detector_distance"][()] == 0.15
        assert det["x_pixel_size"][()] == 300e-6
        assert (det["beam_center_x"][()], det["beam_center_y"][()]) == (260.0, 270.0)
        assert det["bit_depth_image"][()] == 16
        assert det["saturation_value"][()] == 65533
        assert det["description"][()] == b"small"
        np.testing.assert_array_equal(det["pixel_mask"][()] != 0, SMALL.mask)
        spec = det["detectorSpecific"]
        assert spec["nimages"][()] == 12
        assert spec["ntrigger"][()] == 1
        assert spec["photon_energy"][()] == 7000.0
        assert spec["countrate_correction_count_cutoff"][()] == 65533
        assert spec["x_pixels_in_detector"][()] == 520
        assert spec["y_pixels_in_detector"][()] == 540
        np.testing.assert_array_equal(spec["pixel_mask"][()], det["pixel_mask"][()])
        assert f["entry/instrument/beam/incident_wavelength"][()] == pytest.approx(12398.4198 / 7000.0)


def test_truth_agrees_with_the_images(master: Path) -> None:
    t, frames = truth(master), read_pixels(master)
    assert t["hit"].shape == (12,)
    assert t["hit"].dtype == np.bool_
    assert 0 < t["hit"].sum() < 12
    assert [c == b"protein" for c in t["class"]] == t["hit"].tolist()
    assert np.isnan(t["orientation"][~t["hit"]]).all()
    assert np.isfinite(t["orientation"][t["hit"]]).all()
    assert t["frame_index"].tolist() == list(range(12))
    assert set(t["spot_frame"]) == set(np.flatnonzero(t["hit"]))
    lengths = {len(t[f"spot_{name}"]) for name in ("frame", "ss", "fs", "photons", "h", "k", "l")}
    assert len(lengths) == 1
    assert t["spot_photons"].min() >= 0.5
    for name, value in (
        ("photon_energy_eV", 7000.0), ("camera_length_m", 0.15), ("flux_photons", 3e8), ("water_thickness_m", 100e-6),
        ("beam_center_x_px", 260.0), ("beam_center_y_px", 270.0),
    ):  # fmt: skip
        assert t[name].shape == (12,)
        assert np.all(t[name] == value), f"without jitter every shot has the series' {name}"
    np.testing.assert_array_equal(t["crystal"], t["hit"])
    np.testing.assert_array_equal(t["classes"] == int(Kind.PROTEIN), t["hit"])
    np.testing.assert_array_equal(t["detectable"], t["log_likelihood_ratio"] > 3.0)
    assert not t["detectable"][~t["hit"]].any()
    np.testing.assert_allclose(t["spot_counts"], t["spot_photons"], err_msg="an integrating detector counts photons")
    assert ((t["spot_partiality"] > 0.0) & (t["spot_partiality"] <= 1.0)).all()
    assert (t["spot_crystal"] == 0).all()
    assert (t["seed"], t["response"], t["pulses_per_frame"]) == (4, b"integrating", 1)
    assert t["crystal_name"] == b"proteinase K (random intensities, seed 1)"
    assert t["d_min_angstrom"] == pytest.approx(2.5, abs=0.01)
    assert json.loads(t["scene"])["condition"]["photon_energy_eV"] == 7000.0
    n = int(np.argmax(t["spot_photons"]))
    row, column = round(t["spot_ss"][n]), round(t["spot_fs"][n])
    near = frames[t["spot_frame"][n], max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4]
    assert near[near < 65535].max() > 10
    live = frames[:, ~SMALL.mask].sum(axis=1, dtype=np.int64)
    assert np.median(live[t["hit"]]) > np.median(live[~t["hit"]])


def test_the_same_seed_writes_the_same_frames_and_shards_join_to_the_whole(master: Path, tmp_path: Path) -> None:
    whole = read_pixels(master)
    np.testing.assert_array_equal(read_pixels(simulate_series(tmp_path / "again", SCENE, PLAN)), whole)
    parts = [simulate_series(tmp_path / f"part{i}", SCENE, dataclasses.replace(PLAN, shard=(i, 5))) for i in range(5)]
    np.testing.assert_array_equal(np.concatenate([read_pixels(p) for p in parts]), whole)
    for name in ("hit", "frame_index", "spot_photons", "spot_h"):
        joined = np.concatenate([truth(p)[name] for p in parts])
        np.testing.assert_array_equal(joined, truth(master)[name])
    other = simulate_series(tmp_path / "other", SCENE, dataclasses.replace(PLAN, seed=5, frames=2))
    assert not np.array_equal(read_pixels(other), whole[:2])


def test_a_longer_series_goes_on_in_further_data_files(master: Path, tmp_path: Path) -> None:
    split = simulate_series(tmp_path / "run", SCENE, dataclasses.replace(PLAN, images_per_file=5))
    assert len(list(tmp_path.glob("run_data_*.h5"))) == 3
    np.testing.assert_array_equal(read_pixels(split), read_pixels(master))
    with h5py.File(tmp_path / "run_data_000003.h5") as f:
        attributes = f["entry/data/data"].attrs
        assert (attributes["image_nr_low"], attributes["image_nr_high"]) == (11, 12)
    # fewer files the next time: none of the old ones stays
    simulate_series(tmp_path / "run", SCENE, dataclasses.replace(PLAN, overwrite=True))
    assert sorted(os.listdir(tmp_path)) == ["run_data_000001.h5", "run_master.h5"]


def test_existing_outputs_are_refused_unless_told(master: Path, tmp_path: Path) -> None:
    simulate_series(tmp_path / "run", SCENE, dataclasses.replace(PLAN, frames=1))
    before = (tmp_path / "run_master.h5").read_bytes()
    with pytest.raises(FileExistsError, match=r"run_data_000001\.h5 exists already") as caught:
        simulate_series(tmp_path / "run", SCENE, PLAN)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run_master.h5").read_bytes() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_nothing_and_spares_what_was_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 12
        if done == 3:
            raise error

    with pytest.raises(error):
        simulate_series(tmp_path / "run", SCENE, PLAN, stop)
    assert os.listdir(tmp_path) == []

    old = simulate_series(tmp_path / "run", SCENE, dataclasses.replace(PLAN, frames=2))
    with pytest.raises(error):
        simulate_series(tmp_path / "run", SCENE, dataclasses.replace(PLAN, overwrite=True), stop)
    assert sorted(os.listdir(tmp_path)) == ["run_data_000001.h5", "run_master.h5"]
    assert len(read_pixels(old)) == 2


def test_a_rename_that_fails_leaves_no_half_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if str(target).endswith("_master.h5"):
            raise OSError("disk went away")
        real(source, target)

    monkeypatch.setattr("sim_replay.series_file.os.replace", replace)
    with pytest.raises(OSError, match="disk went away"):
        simulate_series(tmp_path / "run", SCENE, PLAN)
    assert os.listdir(tmp_path) == []


def test_an_overwrite_that_cannot_be_finished_leaves_the_old_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = simulate_series(tmp_path / "run", SCENE, dataclasses.replace(PLAN, frames=2))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "run_data_000002.h5").mkdir()
    with pytest.raises(OSError, match="no file that could be replaced"):
        simulate_series(tmp_path / "run", SCENE, dataclasses.replace(PLAN, overwrite=True))
    (tmp_path / "run_data_000002.h5").rmdir()

    real, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 4:  # both old files are aside and the new data file is in place
            raise OSError("disk went away")
        real(source, target)

    monkeypatch.setattr("sim_replay.series_file.os.replace", replace)
    with pytest.raises(OSError, match="disk went away"):
        simulate_series(tmp_path / "run", SCENE, dataclasses.replace(PLAN, overwrite=True))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(read_pixels(old)) == 2


def test_what_a_killed_run_left_is_cleared_by_the_next_and_a_living_ones_is_not(tmp_path: Path) -> None:
    host = re.sub(r"[^A-Za-z0-9_]", "_", platform.node()) or "here"
    dead, alive = (tmp_path / f".run_data_000001.h5.{host}-{pid}.part" for pid in (2**22 + 1, os.getppid()))
    other = tmp_path / ".run_data_000001.h5.elsewhere-4194305.part"
    for path in (dead, alive, other):
        path.touch()
    simulate_series(tmp_path / "run", SCENE, dataclasses.replace(PLAN, frames=1))
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


def test_a_full_disk_leaves_no_half_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: h5py.h5d.DatasetID, *given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sim_replay.series_file.write_chunk", full)
    with pytest.raises(OSError, match="No space left"):
        simulate_series(tmp_path / "run", SCENE, PLAN)
    assert os.listdir(tmp_path) == []


def test_a_series_of_given_shots_is_written(tmp_path: Path) -> None:
    dry = dataclasses.replace(SCENE, hit_fraction=0.0)
    shots = [simulate_shot(dry, frame_rng(0, i)) for i in range(3)]
    path = write_series(tmp_path / "deep" / "water", shots, SMALL, SCENE.condition, truth_constants={"note": "blank"})
    np.testing.assert_array_equal(read_pixels(path), np.stack([s.counts for s in shots]))
    assert truth(path)["note"] == b"blank"
    assert truth(path)["spot_frame"].shape == (0,)
    assert set(truth(path)["class"]) == {b"water"}
    with pytest.raises(ValueError, match="at least one frame"):
        write_series(tmp_path / "none", [], SMALL, SCENE.condition)
    with pytest.raises(ValueError, match="images_per_file"):
        SeriesWriter(tmp_path / "x", SMALL, SCENE.condition, images_per_file=0)


def test_a_packed_image_is_the_chunk_that_hdf5s_own_filter_writes(tmp_path: Path) -> None:
    image = np.random.default_rng(0).poisson(0.1, SMALL.shape).astype(np.uint32)
    with h5py.File(tmp_path / "x.h5", "w") as f:
        data = f.create_dataset("d", data=image[None], chunks=(1, *SMALL.shape), **hdf5plugin.Bitshuffle(cname="lz4"))
        assert data.id.read_direct_chunk((0, 0, 0))[1] == packed(image)


def test_the_truth_tells_each_shot_its_jitter_its_crystals_and_its_distractors(tmp_path: Path) -> None:
    scene = dataclasses.replace(
        SCENE,
        crystals=2,
        jitter=Jitter(0.3, 0.2, 2.0, 30.0, 1e-3, 2e-6),
        distractors=Distractors(salt=0.5, ice_ring=0.5, no_beam=0.2),
    )
    t = truth(simulate_series(tmp_path / "run", scene, dataclasses.replace(PLAN, frames=60)))
    beam = t["class"] != b"no_beam"
    assert 0 < (~beam).sum() < 30
    assert not t["hit"][~beam].any()
    assert (t["flux_photons"][~beam] == 0.0).all()
    assert (t["background_photons"][~beam] == 0.0).all()
    assert t["orientation_all"].shape == (60, 2, 3, 3)
    np.testing.assert_array_equal(t["orientation_all"][:, 0], t["orientation"])
    assert np.isfinite(t["orientation_all"][t["hit"]]).all()
    assert np.isnan(t["orientation_all"][~t["hit"]]).all()
    assert set(t["spot_crystal"]) == {0, 1}
    for name, middle, sigma in (
        ("photon_energy_eV", 7000.0, 30.0), ("camera_length_m", 0.15, 1e-3),
        ("beam_center_x_px", 260.0, 2.0), ("beam_center_y_px", 270.0, 2.0),
    ):  # fmt: skip
        assert t[name].mean() == pytest.approx(middle, abs=4 * sigma / math.sqrt(60))
        assert t[name].std() == pytest.approx(sigma, rel=0.4)
    assert np.log(t["flux_photons"][beam]).std() == pytest.approx(0.3, rel=0.4)
    assert np.log(t["water_thickness_m"]).std() == pytest.approx(0.2, rel=0.4)
    offsets = t["crystal_offset_m"][t["hit"]]
    assert offsets.std() == pytest.approx(2e-6, rel=0.4)
    ice = (t["classes"] & int(Kind.ICE)) != 0
    assert set(t["ring_frame"]) == set(np.flatnonzero(ice))
    assert set(t["ring_kind"]) == {int(Kind.ICE)}
    salt = (t["classes"] & int(Kind.SALT)) != 0
    assert salt.any()
    assert set(t["salt_spot_frame"]) == set(np.flatnonzero(salt))
    assert [bool(name) for name in t["salt"]] == salt.tolist()


def test_the_master_joins_its_data_files_for_readers_of_nxmx(tmp_path: Path) -> None:
    split = simulate_series(tmp_path / "run", SCENE, dataclasses.replace(PLAN, images_per_file=5))
    with h5py.File(split) as f:
        assert f["entry/definition"][()] == b"NXmx"
        assert f["entry/data"].attrs["signal"] == "data"
        np.testing.assert_array_equal(f["entry/data/data"][()], read_pixels(split))
        module = f["entry/instrument/detector/module"]
        fast = module["fast_pixel_direction"]
        assert (fast[()], fast.attrs["units"], tuple(fast.attrs["vector"])) == (300e-6, "m", (-1.0, 0.0, 0.0))
        chain, place = [], module["slow_pixel_direction"].attrs["depends_on"]
        while place != ".":
            chain.append((place.rsplit("_", 1)[1], f[place][()]))
            place = f[place].attrs["depends_on"]
        assert chain == [("x", pytest.approx(260.0 * 300e-6)), ("y", pytest.approx(270.0 * 300e-6)), ("z", 0.15)]


def test_our_own_reader_opens_what_was_written(master: Path) -> None:
    series = FileSeries(master)
    try:
        assert len(series) == 12
        assert series.metadata.photon_energy_eV == pytest.approx(7000.0)
        assert series.metadata.camera_length_m == 0.15
    finally:
        series.close()
