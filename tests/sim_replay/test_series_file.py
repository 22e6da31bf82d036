import dataclasses
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sim_replay.detector import CONDITIONS, Detector
from sim_replay.series_file import SeriesWriter, SimulationSettings, simulate_series, write_series
from sim_replay.shots import frame_rng, simulate_shot
from tests.support import read_pixels

SMALL = Detector("small", (540, 520), 300e-6, gaps_ss=((250, 262),), gaps_fs=((130, 136),))
SETTINGS = SimulationSettings(frames=12, condition=2, seed=4)


def truth(master: Path) -> dict[str, Any]:
    with h5py.File(master) as f:
        return {name: f[f"entry/truth/{name}"][()] for name in f["entry/truth"]}


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_series(tmp_path_factory.mktemp("series") / "run", SETTINGS, detector=SMALL)


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
    assert (t["photon_energy_eV"], t["camera_length_m"], t["flux_photons"], t["water_scale"], t["seed"]) == (
        7000.0,
        0.15,
        3e8,
        1.0,
        4,
    )
    n = int(np.argmax(t["spot_photons"]))
    row, column = round(t["spot_ss"][n]), round(t["spot_fs"][n])
    near = frames[t["spot_frame"][n], max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4]
    assert near[near < 65535].max() > 10
    live = frames[:, ~SMALL.mask].sum(axis=1, dtype=np.int64)
    assert np.median(live[t["hit"]]) > np.median(live[~t["hit"]])


def test_the_same_seed_writes_the_same_frames_and_shards_join_to_the_whole(master: Path, tmp_path: Path) -> None:
    whole = read_pixels(master)
    np.testing.assert_array_equal(read_pixels(simulate_series(tmp_path / "again", SETTINGS, detector=SMALL)), whole)
    parts = [
        simulate_series(tmp_path / f"part{i}", dataclasses.replace(SETTINGS, shard=(i, 5)), detector=SMALL)
        for i in range(5)
    ]
    np.testing.assert_array_equal(np.concatenate([read_pixels(p) for p in parts]), whole)
    for name in ("hit", "frame_index", "spot_photons", "spot_h"):
        joined = np.concatenate([truth(p)[name] for p in parts])
        np.testing.assert_array_equal(joined, truth(master)[name])
    other = simulate_series(tmp_path / "other", dataclasses.replace(SETTINGS, seed=5, frames=2), detector=SMALL)
    assert not np.array_equal(read_pixels(other), whole[:2])


def test_a_longer_series_goes_on_in_further_data_files(master: Path, tmp_path: Path) -> None:
    split = simulate_series(tmp_path / "run", dataclasses.replace(SETTINGS, images_per_file=5), detector=SMALL)
    assert len(list(tmp_path.glob("run_data_*.h5"))) == 3
    np.testing.assert_array_equal(read_pixels(split), read_pixels(master))
    with h5py.File(tmp_path / "run_data_000003.h5") as f:
        attributes = f["entry/data/data"].attrs
        assert (attributes["image_nr_low"], attributes["image_nr_high"]) == (11, 12)
    # fewer files the next time: none of the old ones stays
    simulate_series(tmp_path / "run", dataclasses.replace(SETTINGS, overwrite=True), detector=SMALL)
    assert sorted(os.listdir(tmp_path)) == ["run_data_000001.h5", "run_master.h5"]


def test_existing_outputs_are_refused_unless_told(master: Path, tmp_path: Path) -> None:
    simulate_series(tmp_path / "run", dataclasses.replace(SETTINGS, frames=1), detector=SMALL)
    before = (tmp_path / "run_master.h5").read_bytes()
    with pytest.raises(FileExistsError, match=r"run_data_000001\.h5 exists already") as caught:
        simulate_series(tmp_path / "run", SETTINGS, detector=SMALL)
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
        simulate_series(tmp_path / "run", SETTINGS, stop, detector=SMALL)
    assert os.listdir(tmp_path) == []

    old = simulate_series(tmp_path / "run", dataclasses.replace(SETTINGS, frames=2), detector=SMALL)
    with pytest.raises(error):
        simulate_series(tmp_path / "run", dataclasses.replace(SETTINGS, overwrite=True), stop, detector=SMALL)
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
        simulate_series(tmp_path / "run", SETTINGS, detector=SMALL)
    assert os.listdir(tmp_path) == []


def test_a_series_of_given_shots_is_written(tmp_path: Path) -> None:
    condition = CONDITIONS[1]
    shots = [simulate_shot(condition, None, SMALL, frame_rng(0, i)) for i in range(3)]
    path = write_series(tmp_path / "deep" / "water", shots, SMALL, condition, truth_constants={"note": "blank"})
    np.testing.assert_array_equal(read_pixels(path), np.stack([s.counts for s in shots]))
    assert truth(path)["note"] == b"blank"
    assert truth(path)["spot_frame"].shape == (0,)
    with pytest.raises(ValueError, match="at least one frame"):
        write_series(tmp_path / "none", [], SMALL, condition)
    with pytest.raises(ValueError, match="images_per_file"):
        SeriesWriter(tmp_path / "x", SMALL, condition, images_per_file=0)


def test_hits_are_decided_frame_by_frame_at_the_fraction_asked(tmp_path: Path) -> None:
    tiny = Detector("tiny", (32, 32), 4e-3)
    some = dataclasses.replace(SETTINGS, frames=200, hit_fraction=0.2)
    hits = truth(simulate_series(tmp_path / "some", some, detector=tiny))["hit"]
    assert 20 <= hits.sum() <= 62
    for fraction in (0.0, 1.0):
        settings = dataclasses.replace(some, frames=5, hit_fraction=fraction)
        path = simulate_series(tmp_path / f"f{fraction}", settings, detector=tiny)
        assert truth(path)["hit"].tolist() == [bool(fraction)] * 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"condition": 10}, "condition is 10; give 1 to 9"),
        ({"condition": 5, "camera_length_m": 0.2}, "condition fixes"),
        ({"camera_length_m": 0.2}, "photon_energy_eV is missing"),
        ({"photon_energy_eV": 7000.0}, "camera_length_m is missing"),
        ({"camera_length_m": -0.2, "photon_energy_eV": 7e3}, "camera_length_m is -0.2"),
        ({"flux_photons": 0.0}, "flux_photons is 0.0; give photons a pulse above 0"),
        ({"flux_photons": float("nan")}, "flux_photons is nan"),
        ({"flux_photons": 1e30}, "flux_photons is 1e+30; give photons a pulse up to 1e+15"),
        ({"water_scale": -1.0}, "water_scale is -1.0"),
        ({"water_scale": 1e300}, "water_scale is 1e+300; give multiples of 100 um, from 0 to 10000"),
        ({"hit_fraction": 1.5}, "hit_fraction is 1.5; give a number from 0 to 1"),
        ({"seed": -1}, "seed is -1"),
        ({"crystal_size_m": 0.0}, "crystal_size_m is 0.0"),
        ({"mosaicity_deg": -0.1}, "mosaicity_deg is -0.1"),
        ({"mosaicity_deg": 100.0}, "mosaicity_deg is 100.0; give degrees, from 0 to 3"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"dtype": "float32"}, "dtype is 'float32'"),
        ({"shard": (3, 3)}, "shard is 3/3"),
        ({"frames": 2, "shard": (0, 3)}, "shard 0/3 of 2 frames is empty"),
    ],
)
def test_bad_settings_are_refused_in_one_line_naming_the_setting(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        SimulationSettings(**changes)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_default_to_condition_five_and_take_an_own_one() -> None:
    assert SimulationSettings().shot_condition == CONDITIONS[5]
    own = SimulationSettings(camera_length_m=0.2, photon_energy_eV=9000.0, water_scale=2.0).shot_condition
    assert (own.camera_length_m, own.photon_energy_eV, own.water_scale) == (0.2, 9000.0, 2.0)
