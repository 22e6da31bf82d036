import dataclasses
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sim_replay.crystal import proteinase_k
from sim_replay.detector import CONDITIONS, Detector
from sim_replay.diffraction import Sample
from sim_replay.scene import Jitter, Scene
from sim_replay.simulation import Plan, simulate_series
from tests.support import read_pixels

TINY = Detector("tiny", (32, 32), 4e-3)
SCENE = Scene(Sample(proteinase_k(d_min_angstrom=3.0)), CONDITIONS[2], TINY)


def hits(master: Path) -> list[bool]:
    with h5py.File(master) as f:
        return [bool(hit) for hit in f["entry/truth/hit"]]


def test_the_number_of_processes_changes_no_byte_of_the_series(tmp_path: Path) -> None:
    scene = dataclasses.replace(SCENE, jitter=Jitter(pulse_energy=0.2, beam_center_px=0.5))
    for workers in (1, 2):
        simulate_series(tmp_path / f"w{workers}", scene, Plan(20, seed=6, workers=workers))
    one, two = (tmp_path / f"w{workers}_data_000001.h5" for workers in (1, 2))
    assert one.read_bytes() == two.read_bytes()


def test_an_error_in_the_middle_ends_the_processes_and_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_series(tmp_path / "run", SCENE, Plan(200, workers=2), stop)
    assert os.listdir(tmp_path) == []


def test_a_long_series_is_worth_more_processes_and_a_short_one_is_not() -> None:
    cores = len(os.sched_getaffinity(0))
    assert Plan(10).processes == 1
    assert Plan(100_000).processes == cores
    assert Plan(10, workers=3).processes == 3
    assert Plan(10, workers=30).processes == 10


def test_hits_are_decided_frame_by_frame_at_the_fraction_asked(tmp_path: Path) -> None:
    some = dataclasses.replace(SCENE, hit_fraction=0.2)
    found = hits(simulate_series(tmp_path / "some", some, Plan(200, seed=4, workers=1)))
    assert 20 <= sum(found) <= 62
    for fraction in (0.0, 1.0):
        scene = dataclasses.replace(SCENE, hit_fraction=fraction)
        assert hits(simulate_series(tmp_path / f"f{fraction}", scene, Plan(5))) == [bool(fraction)] * 5


def test_wider_pixels_write_the_same_counts(tmp_path: Path) -> None:
    narrow = simulate_series(tmp_path / "n", SCENE, Plan(5))
    wide_scene = dataclasses.replace(SCENE, detector=dataclasses.replace(TINY, dtype="uint32"))
    wide = simulate_series(tmp_path / "w", wide_scene, Plan(5))
    np.testing.assert_array_equal(read_pixels(narrow), read_pixels(wide))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"images_per_file": 0}, "images_per_file is 0"),
        ({"shard": (3, 3)}, "shard is 3/3"),
        ({"frames": 2, "shard": (0, 3)}, "shard 0/3 of 2 frames is empty"),
    ],
)
def test_a_bad_plan_is_refused_in_one_line_naming_the_setting(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        Plan(**changes)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
