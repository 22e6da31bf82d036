import dataclasses
import time

import numpy as np
import pytest

from sim_replay.crystal import Crystal, proteinase_k
from sim_replay.detector import CONDITIONS, Condition, Detector, eiger2_4m, plain_panel
from sim_replay.diffraction import Footprint, Sample, Spots
from sim_replay.shots import frame_rng, merge_spots, simulate_shot

SMALL = Detector("small", (540, 520), 300e-6, gaps_ss=((250, 262),), gaps_fs=((130, 136),))
CONDITION = CONDITIONS[2]


@pytest.fixture(scope="module")
def crystal() -> Crystal:
    return proteinase_k(d_min_angstrom=2.5)


def test_the_same_frame_of_the_same_seed_is_bit_identical(crystal: Crystal) -> None:
    sample = Sample(crystal)
    one = simulate_shot(CONDITION, sample, SMALL, frame_rng(7, 12))
    two = simulate_shot(CONDITION, sample, SMALL, frame_rng(7, 12), np.full(SMALL.shape, 9, dtype=np.uint16))
    np.testing.assert_array_equal(one.counts, two.counts)
    np.testing.assert_array_equal(one.orientation, two.orientation)
    for other in (frame_rng(7, 13), frame_rng(8, 12)):
        assert not np.array_equal(one.counts, simulate_shot(CONDITION, sample, SMALL, other).counts)


def test_neighbouring_frames_share_no_random_numbers() -> None:
    first, second = frame_rng(1, 5).random(20_000), frame_rng(1, 6).random(20_000)
    assert len(np.intersect1d(first, second)) == 0


def test_a_hit_shows_its_true_spots_and_its_photons(crystal: Crystal) -> None:
    shots = [simulate_shot(CONDITION, Sample(crystal), SMALL, frame_rng(1, i)) for i in range(20)]
    live = ~SMALL.mask
    expected = sum(s.bragg_photons + s.water_photons for s in shots)
    counted = sum(int(s.counts[live].sum(dtype=np.int64)) for s in shots)
    assert counted == pytest.approx(expected, abs=5.0 * np.sqrt(expected))
    assert len(shots[0].spots) > 10
    for shot in shots:
        assert shot.hit
        assert shot.counts.dtype == np.uint16
        assert np.all(shot.counts[SMALL.mask] == 65535)
        assert np.all(shot.spots.photons >= 0.5)
        assert np.all(np.diff(shot.spots.photons) <= 0)
        for ss, fs, photons in zip(shot.spots.ss, shot.spots.fs, shot.spots.photons, strict=True):
            row, column = max(round(ss), 3), max(round(fs), 3)
            if photons > 100 and live[row - 3 : row + 4, column - 3 : column + 4].all():
                assert shot.counts[row - 3 : row + 4, column - 3 : column + 4].max() > 5


def test_an_empty_shot_has_water_only() -> None:
    shot = simulate_shot(CONDITION, None, SMALL, frame_rng(1, 0))
    assert not shot.hit
    assert len(shot.spots) == 0
    assert shot.bragg_photons == 0.0
    assert np.isnan(shot.orientation).all()
    counted = shot.counts[~SMALL.mask].sum(dtype=np.int64)
    assert counted == pytest.approx(shot.water_photons, abs=5.0 * np.sqrt(shot.water_photons))
    dry = simulate_shot(dataclasses.replace(CONDITION, water_scale=0.0), None, SMALL, frame_rng(1, 0))
    assert dry.counts[~SMALL.mask].sum() == 0


def test_one_flux_scales_water_and_bragg_together(crystal: Crystal) -> None:
    full = simulate_shot(CONDITION, Sample(crystal), SMALL, frame_rng(1, 0))
    weak = simulate_shot(dataclasses.replace(CONDITION, flux_photons=3e7), Sample(crystal), SMALL, frame_rng(1, 0))
    assert weak.water_photons == pytest.approx(full.water_photons / 10.0)
    assert weak.bragg_photons == pytest.approx(full.bragg_photons / 10.0, rel=0.01)


def test_a_count_never_reaches_the_sentinel(crystal: Crystal) -> None:
    bright = dataclasses.replace(CONDITION, flux_photons=3e12)
    shot = simulate_shot(bright, Sample(crystal), SMALL, frame_rng(1, 0))
    assert shot.counts[~SMALL.mask].max() == 65534


def test_reflections_on_one_place_are_one_true_spot() -> None:
    n = 4
    fs, ss = np.array([10.0, 11.0, 50.0, 80.0]), np.array([20.0, 20.0, 20.0, 20.0])
    photons = np.array([1.0, 3.0, 2.0, 0.3])
    nothing = np.zeros(n)
    hkl = np.arange(12, dtype=np.int32).reshape(4, 3)
    spots = Spots(hkl, photons, nothing, nothing, fs, ss, *(nothing,) * 7)
    merged = merge_spots(spots, Footprint(np.empty(0, dtype=np.int64), nothing, photons, fs, ss))
    np.testing.assert_allclose(merged.photons, [4.0, 2.0])
    np.testing.assert_allclose(merged.fs, [10.75, 50.0])
    np.testing.assert_array_equal(merged.hkl, hkl[[1, 2]])


def test_bad_arguments_are_refused_by_name(crystal: Crystal) -> None:
    with pytest.raises(ValueError, match="out must be"):
        simulate_shot(CONDITION, None, SMALL, frame_rng(1, 0), np.zeros((3, 3), dtype=np.uint16))
    with pytest.raises(ValueError, match="photon_energy_eV must be above 0"):
        Condition(-1.0, 0.1)
    with pytest.raises(ValueError, match="water_scale"):
        Condition(7000.0, 0.1, water_scale=-1.0)
    with pytest.raises(ValueError, match="size_m"):
        Sample(crystal, size_m=0.0)
    with pytest.raises(ValueError, match="mosaicity_deg"):
        Sample(crystal, mosaicity_deg=float("nan"))


def test_a_4m_hit_is_simulated_in_well_under_the_time_of_a_slow_frame() -> None:
    detector, sample = eiger2_4m(), Sample(proteinase_k())
    out = np.zeros(detector.shape, dtype=detector.dtype)
    simulate_shot(CONDITIONS[5], sample, detector, frame_rng(0, 0), out)  # compile, and make the water
    start = time.process_time()
    for i in range(5):
        simulate_shot(CONDITIONS[5], sample, detector, frame_rng(0, i), out)
    # 15 ms where this was written; the bound only catches an accidental dense path on a slow machine
    assert (time.process_time() - start) / 5 < 0.12


def test_a_plain_panel_has_no_gap() -> None:
    shot = simulate_shot(CONDITIONS[9], None, plain_panel((100, 90)), frame_rng(0, 0))
    assert shot.counts.shape == (100, 90)
    assert shot.counts.max() < 65535
