"""Where a frame's crystal sends light, by the patterns it was made of."""

from pathlib import Path

import numpy as np
import pytest

from sim_replay.crystfel import read_sparse_patterns
from tests.training.dataset.builders import SHAPE
from tests.training.evaluation.builders import facts_of
from tests.training.evaluation.test_library import numbered, patterns
from training.evaluation.bragg_light import REACH_PX, bragg_light


def test_light_is_what_the_frame_s_own_pattern_has_around(tmp_path: Path) -> None:
    patterns(tmp_path / "crystals")
    light = bragg_light(facts_of(numbered(tmp_path)), tmp_path / "crystals")
    assert light is not None
    third = list(read_sparse_patterns(tmp_path / "crystals" / "6000.npz"))[2]
    panel = np.zeros(third.shape)
    panel.reshape(-1)[third.index] = third.photons
    panel = panel[: SHAPE[0], : SHAPE[1]] * (3e6 / 3e8 * np.exp(-0.3))  # the pulse of frame 1
    places = np.array([[5.3, 8.1], [0.0, 0.0], [SHAPE[1] - 1.0, SHAPE[0] - 1.0]])
    expected = []
    for fs, ss in places:
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        expected.append(panel[(np.abs(y - ss) <= REACH_PX) & (np.abs(x - fs) <= REACH_PX)].sum())
    assert light(1, places) == pytest.approx(expected)
    assert light(1, np.empty((0, 2))).shape == (0,)


def test_a_frame_without_crystal_has_none(tmp_path: Path) -> None:
    patterns(tmp_path / "crystals")
    light = bragg_light(facts_of(numbered(tmp_path)), tmp_path / "crystals")
    assert light is not None
    assert light(2, np.array([[5.0, 5.0]])).tolist() == [0.0]


def test_without_patterns_nothing_is_known(tmp_path: Path) -> None:
    patterns(tmp_path / "crystals")
    assert bragg_light(facts_of(numbered(tmp_path)), None) is None
    assert bragg_light(facts_of(numbered(tmp_path, photon_energy_eV=9000)), tmp_path / "crystals") is None
