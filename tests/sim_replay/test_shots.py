import dataclasses
import math
import time

import numpy as np
import pytest

from sim_replay.artefacts import Artefacts, fixed_pixels
from sim_replay.background import Surroundings, make_background, scales
from sim_replay.crystal import Crystal, proteinase_k
from sim_replay.detector import CONDITIONS, Condition, Detector, eiger2_4m, plain_panel
from sim_replay.diffraction import (
    NO_FOOTPRINT,
    Sample,
    diffract,
    footprint,
    in_one_pixel,
    lay_gaussians,
    random_orientation,
)
from sim_replay.distractors import Distractors, Kind
from sim_replay.response import Response
from sim_replay.scene import Jitter, Scene
from sim_replay.shots import Buffers, frame_rng, simulate_shot
from sim_replay.simulation import FrameMaker
from sim_replay.truth import Lit, true_spots

SMALL = Detector("small", (540, 520), 300e-6, gaps_ss=((250, 262),), gaps_fs=((130, 136),))
LIVE = ~SMALL.mask


@pytest.fixture(scope="module")
def crystal() -> Crystal:
    return proteinase_k(d_min_angstrom=2.5)


@pytest.fixture(scope="module")
def scene(crystal: Crystal) -> Scene:
    return Scene(Sample(crystal), CONDITIONS[2], SMALL, hit_fraction=1.0)


def at_flux(scene: Scene, flux_photons: float) -> Scene:
    return dataclasses.replace(scene, condition=dataclasses.replace(scene.condition, flux_photons=flux_photons))


def test_the_same_frame_of_the_same_seed_is_bit_identical(scene: Scene) -> None:
    one = simulate_shot(scene, frame_rng(7, 12))
    two = simulate_shot(scene, frame_rng(7, 12), out=np.full(SMALL.shape, 9, dtype=np.uint16))
    np.testing.assert_array_equal(one.counts, two.counts)
    np.testing.assert_array_equal(one.truth.orientations, two.truth.orientations)
    for other in (frame_rng(7, 13), frame_rng(8, 12)):
        assert not np.array_equal(one.counts, simulate_shot(scene, other).counts)


@pytest.mark.parametrize("kind", ["integrating", "one_per_pulse", "retrigger"])
def test_reused_memory_changes_no_frame(scene: Scene, kind: str) -> None:
    busy = dataclasses.replace(
        scene,
        response=Response(kind, pulses=2, charge_sigma_m=8e-6),  # type: ignore[arg-type]
        distractors=Distractors(salt=0.5, ice_ring=0.5, polymer_ring=0.5),
        surroundings=Surroundings(air_path_m=0.01, beam_stop_radius_m=5e-4),
        jitter=Jitter(0.1, 0.1, 1.0, 10.0, 1e-4, 1e-6),
    )
    maker = FrameMaker(busy, 3)
    in_order = [maker.frame(i).counts.copy() for i in range(6)]
    for i in (4, 0, 5):
        np.testing.assert_array_equal(maker.frame(i).counts, in_order[i])
        np.testing.assert_array_equal(FrameMaker(busy, 3).frame(i).counts, in_order[i])


def test_neighbouring_frames_share_no_random_numbers() -> None:
    first, second = frame_rng(1, 5).random(20_000), frame_rng(1, 6).random(20_000)
    assert len(np.intersect1d(first, second)) == 0


def test_a_hit_shows_its_true_spots_and_its_photons(scene: Scene) -> None:
    shots = [simulate_shot(scene, frame_rng(1, i)) for i in range(20)]
    expected = sum(s.truth.bragg_photons + s.truth.background_photons for s in shots)
    counted = sum(int(s.counts[LIVE].sum(dtype=np.int64)) for s in shots)
    assert counted == pytest.approx(expected, abs=5.0 * np.sqrt(expected))
    assert len(shots[0].truth.spots) > 10
    for shot in shots:
        spots = shot.truth.spots
        assert shot.truth.hit
        assert shot.truth.detectable
        assert shot.counts.dtype == np.uint16
        assert np.all(shot.counts[SMALL.mask] == 65535)
        assert np.all(spots.photons >= 0.5)
        assert np.all(np.diff(spots.photons) <= 0)
        for ss, fs, photons in zip(spots.ss, spots.fs, spots.photons, strict=True):
            row, column = max(round(ss), 3), max(round(fs), 3)
            if photons > 100 and LIVE[row - 3 : row + 4, column - 3 : column + 4].all():
                assert shot.counts[row - 3 : row + 4, column - 3 : column + 4].max() > 5


def test_true_places_and_photons_are_those_of_the_counts_on_average(scene: Scene) -> None:
    """Many noisy frames of one orientation: their mean must stand where the truth says, with what it says."""
    turn = tuple(float(x) for x in random_orientation(frame_rng(9, 0)).ravel())
    for response in (Response(), Response("one_per_pulse", pulses=3, charge_sigma_m=15e-6)):
        still = dataclasses.replace(
            scene,
            fixed_orientation=turn,
            response=response,
            surroundings=Surroundings(water_thickness_m=0.0),
            hit_fraction=1.0,
        )
        frames = 400
        total = np.zeros(SMALL.shape)
        buffers = Buffers(SMALL)
        for i in range(frames):
            shot = simulate_shot(still, frame_rng(2, i), buffers=buffers)
            total += np.where(LIVE, shot.counts, 0)
        spots = shot.truth.spots
        apart = np.hypot(spots.fs[:, None] - spots.fs, spots.ss[:, None] - spots.ss) + 99.0 * np.eye(len(spots))
        checked = 0
        for n in np.flatnonzero((apart.min(axis=1) > 14) & (spots.counts > 3.0)):
            row, column = round(spots.ss[n]), round(spots.fs[n])
            if not (8 <= row < 532 and 8 <= column < 512) or not LIVE[row - 7 : row + 8, column - 7 : column + 8].all():
                continue
            near = total[row - 6 : row + 7, column - 6 : column + 7] / frames
            error = math.sqrt(near.sum() / frames)
            assert near.sum() == pytest.approx(spots.counts[n], abs=5.0 * error + 0.03 * spots.counts[n])
            ss, fs = np.mgrid[row - 6 : row + 7, column - 6 : column + 7]
            assert (near * fs).sum() / near.sum() == pytest.approx(spots.fs[n], abs=0.15)
            assert (near * ss).sum() / near.sum() == pytest.approx(spots.ss[n], abs=0.15)
            checked += 1
        assert checked >= 3


def test_one_count_a_pulse_takes_most_photons_of_bright_spots(scene: Scene) -> None:
    ideal = simulate_shot(scene, frame_rng(1, 0)).truth
    single = dataclasses.replace(scene, response=Response("one_per_pulse"))
    shot = simulate_shot(single, frame_rng(1, 0))
    assert shot.counts[LIVE].max() == 1
    np.testing.assert_allclose(shot.truth.spots.photons, ideal.spots.photons)
    brightest = ideal.spots.photons > 200
    assert brightest.any()
    assert np.all(shot.truth.spots.counts[brightest] < 0.5 * ideal.spots.photons[brightest])
    assert shot.truth.log_likelihood_ratio < ideal.log_likelihood_ratio


def test_an_empty_shot_has_water_only(scene: Scene) -> None:
    empty = dataclasses.replace(scene, hit_fraction=0.0)
    shot = simulate_shot(empty, frame_rng(1, 0))
    assert shot.truth.kinds == Kind.WATER
    assert not shot.truth.hit
    assert len(shot.truth.spots) == 0
    assert (shot.truth.bragg_photons, shot.truth.log_likelihood_ratio) == (0.0, 0.0)
    assert shot.truth.orientations.shape == (0, 3, 3)
    expected = shot.truth.background_photons
    assert shot.counts[LIVE].sum(dtype=np.int64) == pytest.approx(expected, abs=5.0 * np.sqrt(expected))
    dry = dataclasses.replace(empty, surroundings=Surroundings(water_thickness_m=0.0))
    assert simulate_shot(dry, frame_rng(1, 0)).counts[LIVE].sum() == 0


def test_a_shot_without_beam_is_dark_but_for_the_detector(scene: Scene) -> None:
    dark = dataclasses.replace(scene, distractors=Distractors(no_beam=1.0), artefacts=Artefacts(hot_pixels=3))
    fixed = fixed_pixels(dark.artefacts, SMALL.mask, 0)
    shot = simulate_shot(dark, frame_rng(1, 0), fixed=fixed)
    assert shot.truth.kinds == Kind.NO_BEAM | Kind.HOT_PIXEL
    assert not shot.truth.hit
    assert shot.truth.condition.flux_photons == 0.0
    assert set(np.flatnonzero((shot.counts > 0) & LIVE)) == set(fixed.hot)


def test_one_flux_scales_water_and_bragg_together(scene: Scene) -> None:
    full, weak = simulate_shot(scene, frame_rng(1, 0)).truth, simulate_shot(at_flux(scene, 3e7), frame_rng(1, 0)).truth
    assert weak.background_photons == pytest.approx(full.background_photons / 10.0)
    assert weak.bragg_photons == pytest.approx(full.bragg_photons / 10.0, rel=0.01)


def test_pulses_add_up_in_a_frame(scene: Scene) -> None:
    one = simulate_shot(scene, frame_rng(1, 0)).truth
    ten = simulate_shot(dataclasses.replace(scene, response=Response(pulses=10)), frame_rng(1, 0))
    assert ten.truth.condition.flux_photons == one.condition.flux_photons, "flux is photons a pulse"
    assert ten.truth.background_photons == pytest.approx(10.0 * one.background_photons)
    assert ten.truth.bragg_photons == pytest.approx(10.0 * one.bragg_photons, rel=0.01)
    expected = ten.truth.bragg_photons + ten.truth.background_photons
    assert ten.counts[LIVE].sum(dtype=np.int64) == pytest.approx(expected, abs=5.0 * np.sqrt(expected))


def test_several_crystals_diffract_each_its_own_way(scene: Scene) -> None:
    three = simulate_shot(dataclasses.replace(scene, crystals=3), frame_rng(1, 0)).truth
    assert three.orientations.shape == (3, 3, 3)
    assert set(three.spots.crystal) == {0, 1, 2}
    assert len(three.spots) > 2 * len(simulate_shot(scene, frame_rng(1, 0)).truth.spots)


def test_spots_of_one_pixel_keep_their_light_and_their_brightest_place(scene: Scene) -> None:
    laid = footprint(
        diffract(scene.sample, scene.condition, scene.detector, random_orientation(frame_rng(1, 0))),
        scene.condition,
        scene.detector,
    )
    one = in_one_pixel(laid)
    spots = int(laid.spot.max()) + 1
    np.testing.assert_array_equal(one.spot, np.unique(laid.spot))
    np.testing.assert_allclose(one.spot_sums(one.photons, spots), laid.spot_sums(laid.photons, spots))
    for spot, index in zip(one.spot[:20], one.index[:20], strict=True):
        own = laid.spot == spot
        assert index == laid.index[own][laid.photons[own].argmax()]
    assert len(in_one_pixel(NO_FOOTPRINT).index) == 0
    as_drawn, sharp = (
        simulate_shot(dataclasses.replace(scene, hit_fraction=1.0), frame_rng(3, 0), pixel_spots=each).truth
        for each in (False, True)
    )
    assert sharp.bragg_photons == pytest.approx(as_drawn.bragg_photons)
    assert sharp.log_likelihood_ratio > as_drawn.log_likelihood_ratio


def test_a_crystal_beside_the_beam_gives_a_weak_hit_and_then_none(scene: Scene) -> None:
    def ratio(offset_m: float) -> float:
        sample = dataclasses.replace(scene.sample, offset_m=(offset_m, 0.0))
        return simulate_shot(dataclasses.replace(scene, sample=sample), frame_rng(1, 0)).truth.log_likelihood_ratio

    aligned, grazing, missed = ratio(0.0), ratio(9.8e-6), ratio(10.1e-6)
    assert 0.0 < grazing < 0.01 * aligned
    assert missed == 0.0


def test_a_crystal_in_the_dark_is_no_hit(scene: Scene) -> None:
    beside = dataclasses.replace(scene, sample=dataclasses.replace(scene.sample, offset_m=(1e-4, 0.0)))
    truth = simulate_shot(beside, frame_rng(1, 0)).truth
    assert (truth.hit, truth.crystal, truth.kinds) == (False, False, Kind.WATER)
    lit = simulate_shot(scene, frame_rng(1, 0)).truth
    assert (lit.hit, lit.crystal) == (True, True)
    far = dataclasses.replace(scene, condition=dataclasses.replace(scene.condition, beam_center_x_px=9e4))
    truth = simulate_shot(far, frame_rng(1, 0)).truth
    assert (truth.hit, truth.crystal) == (False, True), "lit, but nothing of it on the panel"


@pytest.mark.parametrize("mosaicity_deg", [0.05, 1.0, 3.0])
def test_weak_pulses_lose_no_bragg_light(scene: Scene, mosaicity_deg: float) -> None:
    wide = dataclasses.replace(scene, sample=dataclasses.replace(scene.sample, mosaicity_deg=mosaicity_deg))
    bright = simulate_shot(at_flux(wide, 3e11), frame_rng(1, 0)).truth.bragg_photons
    for flux in (3e8, 3e5, 3e3):
        weak = simulate_shot(at_flux(wide, flux), frame_rng(1, 0)).truth.bragg_photons
        assert weak == pytest.approx(bright * flux / 3e11, rel=3e-3)


def test_dark_counts_hide_weak_crystals(scene: Scene) -> None:
    weak = at_flux(scene, 1e6)
    noisy = dataclasses.replace(weak, artefacts=Artefacts(dark_counts=0.1))
    silent, loud = (simulate_shot(each, frame_rng(1, 0)).truth.log_likelihood_ratio for each in (weak, noisy))
    assert 0.0 < loud < 0.5 * silent


def test_spots_that_would_fill_the_memory_are_refused() -> None:
    sample = Sample(proteinase_k(), mosaicity_deg=3.0)
    beam = dataclasses.replace(CONDITIONS[3].beam, divergence_rad=0.05)
    scene = Scene(sample, dataclasses.replace(CONDITIONS[3], beam=beam, flux_photons=1e11), hit_fraction=1.0)
    with pytest.raises(ValueError, match="less mosaicity, divergence or strain"):
        simulate_shot(scene, frame_rng(1, 0))


def test_the_expected_ratio_is_the_mean_of_the_frames_own(scene: Scene) -> None:
    """Frames with the crystal: the log likelihood ratio of their counts, averaged, is what the truth foretold."""
    turn = tuple(float(x) for x in random_orientation(frame_rng(9, 0)).ravel())
    weak = dataclasses.replace(at_flux(scene, 3e5), fixed_orientation=turn)
    water = dataclasses.replace(weak, hit_fraction=0.0)
    laid = footprint(diffract(weak.sample, weak.condition, SMALL, np.array(turn).reshape(3, 3)), weak.condition, SMALL)
    background = make_background(weak.condition, SMALL, water.surroundings)
    b = background.water.expected.ravel().astype(float) * scales(weak.condition, water.surroundings)[0]
    c = b + np.bincount(laid.index, laid.photons, b.size)
    live = b > 0
    ratios = []
    for i in range(600):
        n = simulate_shot(weak, frame_rng(4, i)).counts.ravel()[live].astype(float)
        ratios.append(float(np.sum(n * np.log(c[live] / b[live]) - (c[live] - b[live]))))
    truth = simulate_shot(weak, frame_rng(4, 0)).truth
    assert truth.log_likelihood_ratio == pytest.approx(np.mean(ratios), abs=5.0 * np.std(ratios) / math.sqrt(600))
    assert truth.log_likelihood_ratio > 1.0


def test_a_count_never_reaches_the_sentinel(scene: Scene) -> None:
    shot = simulate_shot(at_flux(scene, 3e12), frame_rng(1, 0))
    assert shot.counts[LIVE].max() == 65534


def test_reflections_on_one_place_are_one_true_spot(scene: Scene) -> None:
    panel = plain_panel((100, 100))
    fs, ss = np.array([10.0, 11.0, 50.0, 80.0]), np.array([20.0, 20.0, 20.0, 20.0])
    photons, sigma = np.array([1.0, 3.0, 2.0, 0.3]), np.full(4, 0.3)
    laid = lay_gaussians(fs, ss, photons, sigma, panel)
    hkl = np.arange(12, dtype=np.int32).reshape(4, 3)
    merged = true_spots((Lit(hkl, np.ones(4), laid),), (laid.photons,), panel)
    np.testing.assert_allclose(merged.photons, [4.0, 2.0], rtol=1e-3)
    np.testing.assert_allclose(merged.fs, [10.75, 50.0], atol=0.01)
    np.testing.assert_array_equal(merged.hkl, hkl[[1, 2]])


def test_bad_arguments_are_refused_by_name(scene: Scene, crystal: Crystal) -> None:
    with pytest.raises(ValueError, match="out must be"):
        simulate_shot(scene, frame_rng(1, 0), out=np.zeros((3, 3), dtype=np.uint16))
    with pytest.raises(ValueError, match="photon_energy_eV must be above 0"):
        Condition(-1.0, 0.1)
    with pytest.raises(ValueError, match="inside the sample chamber"):
        Condition(7000.0, 0.001)
    with pytest.raises(ValueError, match=r"flux_photons is 1e\+30; give photons a pulse"):
        Condition(7000.0, 0.1, 1e30)
    with pytest.raises(ValueError, match=r"hit_fraction is 1\.5; give a number from 0 to 1"):
        Scene(Sample(crystal), hit_fraction=1.5)
    with pytest.raises(ValueError, match="crystals is 0"):
        Scene(Sample(crystal), crystals=0)
    with pytest.raises(ValueError, match="9 numbers of a rotation"):
        Scene(Sample(crystal), fixed_orientation=(1.0,) * 9)
    with pytest.raises(ValueError, match=r"jitter camera_length_m is 0\.2; give at most a tenth"):
        Scene(Sample(crystal), jitter=Jitter(camera_length_m=0.2))
    with pytest.raises(ValueError, match="bring the detector to the beam stop"):
        Scene(
            Sample(crystal),
            Condition(7000.0, 0.033),
            surroundings=Surroundings(beam_stop_radius_m=1e-3),
            jitter=Jitter(camera_length_m=0.003),
        )
    with pytest.raises(ValueError, match="1000 pulses of 1e\\+13 photons are too many"):
        Scene(Sample(crystal), Condition(7000.0, 0.1, 1e13), response=Response(pulses=1000))
    with pytest.raises(ValueError, match="jitter thickness is -1"):
        Jitter(thickness=-1.0)


def test_a_4m_hit_is_simulated_in_well_under_the_time_of_a_slow_frame() -> None:
    scene = Scene(Sample(proteinase_k()), CONDITIONS[5], eiger2_4m(), hit_fraction=1.0)
    maker = FrameMaker(scene, 0)
    maker.frame(0)  # compile, and make the water
    start = time.process_time()
    for i in range(5):
        maker.frame(i)
    # 15 ms where this was written; the bound only catches an accidental dense path on a slow machine
    assert (time.process_time() - start) / 5 < 0.12


def test_a_plain_panel_has_no_gap(crystal: Crystal) -> None:
    scene = Scene(Sample(crystal), CONDITIONS[9], plain_panel((100, 90)), hit_fraction=0.0)
    shot = simulate_shot(scene, frame_rng(0, 0))
    assert shot.counts.shape == (100, 90)
    assert shot.counts.max() < 65535
