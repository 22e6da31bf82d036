import dataclasses
import itertools
from pathlib import Path

import h5py
import numpy as np
import pytest

from sim_replay import importing
from sim_replay.background import Surroundings
from sim_replay.crystal import proteinase_k
from sim_replay.crystfel import Pattern, find_spots
from sim_replay.detector import CONDITIONS, Condition, Detector
from sim_replay.diffraction import Sample, diffract, footprint, random_orientation
from sim_replay.distractors import Distractors
from sim_replay.importing import MAX_FRAMES, collect_patterns, import_series
from sim_replay.response import Response
from sim_replay.scene import Scene
from sim_replay.shots import frame_rng
from tests.support import read_pixels

PANEL = Detector("small", (540, 520), 300e-6, gaps_ss=((250, 262),))
SAMPLE = Sample(proteinase_k(d_min_angstrom=3.0))
DRY = Scene(SAMPLE, CONDITIONS[2], PANEL, Surroundings(water_thickness_m=0.0), hit_fraction=0.5)


def pattern(seed: int, condition: Condition = CONDITIONS[2]) -> Pattern:
    turn = random_orientation(frame_rng(seed, 0))
    laid = footprint(diffract(SAMPLE, condition, PANEL, turn), condition, PANEL)
    photons = np.bincount(laid.index, laid.photons, PANEL.mask.size).astype(np.float64)
    index = np.flatnonzero(photons)
    return Pattern(
        index, photons[index], PANEL.shape, turn, *find_spots(index, photons[index], PANEL.shape[1]),
        condition.photon_energy_eV, condition.camera_length_m, 3e8, 260.0, 270.0, PANEL.pixel_size_m,
    )  # fmt: skip


def truth(master: Path) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    with h5py.File(master) as f:
        return {name: f[f"entry/truth/{name}"][()] for name in f["entry/truth"]}


def test_a_series_holds_each_pattern_with_fresh_noise_and_empties_between(tmp_path: Path) -> None:
    patterns = [pattern(n) for n in range(3)]
    master = import_series(tmp_path / "run", patterns, DRY, repeat=4, seed=2)
    t, frames = truth(master), read_pixels(master)
    assert sorted(t["pattern"]) == [-1] * 12 + [0] * 4 + [1] * 4 + [2] * 4
    assert t["pattern"].tolist() != sorted(t["pattern"])
    np.testing.assert_array_equal(t["hit"], t["pattern"] >= 0)
    live = ~PANEL.mask
    for n, each in enumerate(patterns):
        mine = frames[t["pattern"] == n][:, live].astype(np.int64)
        assert len(np.unique(mine, axis=0)) == 4
        expected = each.photons.sum()
        assert mine.sum() == pytest.approx(4 * expected, abs=5 * np.sqrt(4 * expected))
        frame = int(np.flatnonzero(t["pattern"] == n)[0])
        np.testing.assert_allclose(t["orientation"][frame], each.orientation)
        order = np.argsort(-each.spot_photons)
        spots = t["spot_photons"][t["spot_frame"] == frame]
        np.testing.assert_allclose(spots[:3], each.spot_photons[order][:3], rtol=1e-6)
        np.testing.assert_allclose(t["spot_fs"][t["spot_frame"] == frame][:3], each.spot_fs[order][:3], atol=0.5)
    assert frames[t["pattern"] < 0][:, live].sum() == 0


def test_flux_and_response_apply_to_patterns_as_to_our_own(tmp_path: Path) -> None:
    scene = dataclasses.replace(
        DRY,
        condition=dataclasses.replace(DRY.condition, flux_photons=3e7),
        response=Response("one_per_pulse"),
        hit_fraction=1.0,
    )
    t = truth(import_series(tmp_path / "run", [pattern(0)], scene))
    assert t["bragg_photons"][0] == pytest.approx(pattern(0).photons.sum() / 10.0)
    assert (t["spot_counts"] <= t["spot_photons"] + 1e-9).all()
    assert read_pixels(tmp_path / "run_master.h5")[0][~PANEL.mask].max() == 1
    with h5py.File(tmp_path / "run_master.h5") as f:
        assert f["entry/instrument/detector/detector_distance"][()] == 0.15
        assert f["entry/instrument/detector/beam_center_x"][()] == 260.0


def test_a_pattern_is_named_only_where_it_is(tmp_path: Path) -> None:
    dark = dataclasses.replace(DRY, distractors=Distractors(no_beam=0.5))
    t = truth(import_series(tmp_path / "run", [pattern(0)], dark, repeat=12))
    np.testing.assert_array_equal(t["pattern"] >= 0, t["hit"])
    assert 0 < t["hit"].sum() < 12


def test_spots_are_those_of_the_pulse_that_is_simulated(tmp_path: Path) -> None:
    scenes = [
        dataclasses.replace(DRY, condition=dataclasses.replace(DRY.condition, flux_photons=flux), hit_fraction=1.0)
        for flux in (3e6, 3e8, 3e9)
    ]
    found = [
        len(truth(import_series(tmp_path / f"run{n}", [pattern(0)], scene))["spot_ss"])
        for n, scene in enumerate(scenes)
    ]
    assert found[0] < found[1] < found[2]


def test_what_cannot_be_one_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no patterns"):
        import_series(tmp_path / "run", [], DRY)
    with pytest.raises(ValueError, match="several photon energies"):
        import_series(tmp_path / "run", [pattern(0), pattern(1, CONDITIONS[3])], DRY)
    with pytest.raises(ValueError, match="hit_fraction is 0"):
        import_series(tmp_path / "run", [pattern(0)], dataclasses.replace(DRY, hit_fraction=0.0))
    for repeat, share in ((1_000_000, 1e-9), (1, 1e-300), (1, 5e-324), (MAX_FRAMES + 1, 1.0), (10**400, 1.0)):
        with pytest.raises(ValueError, match="more than 10000000 frames; repeat them less") as caught:
            import_series(tmp_path / "run", [pattern(0)], dataclasses.replace(DRY, hit_fraction=share), repeat=repeat)
        assert "\n" not in str(caught.value)
    whole = dataclasses.replace(DRY, detector=Detector("other", (100, 100), 300e-6))
    with pytest.raises(ValueError, match="pattern has"):
        import_series(tmp_path / "run", [pattern(0)], whole)
    assert list(tmp_path.iterdir()) == []


def test_patterns_are_collected_up_to_what_memory_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    one = pattern(0)
    assert collect_patterns([one, one], lambda *counts: seen.append(counts)) == [one, one]
    assert seen == [(1, 1), (2, 2)]
    monkeypatch.setattr(importing, "MAX_PATTERNS", 2)
    with pytest.raises(ValueError, match="more than 2 patterns or 4 GB"):
        collect_patterns(itertools.repeat(one))
    monkeypatch.undo()
    monkeypatch.setattr(importing, "MAX_PATTERN_BYTES", 2 * (one.index.nbytes + one.photons.nbytes))
    with pytest.raises(ValueError, match="import fewer sources at once"):
        collect_patterns(itertools.repeat(one))
