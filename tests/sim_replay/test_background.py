import dataclasses

import numpy as np
import pytest

from sim_replay.background import draw_background, draw_sparse, expected_water, water_background
from sim_replay.detector import CONDITIONS, Condition, Detector, eiger2_4m, plain_panel
from sim_replay.shots import frame_rng

# Mean photons a pixel of 3e8 photons through 100 um of water, from a fine table of F^2 instead of the coarse one here.
WATER_MEANS = dict(
    zip(
        range(1, 10),
        (0.01938, 0.02993, 0.04024, 0.004349, 0.004902, 0.006011, 0.002169, 0.002226, 0.002328),
        strict=True,
    )
)


@pytest.mark.parametrize("number", range(1, 10))
def test_water_has_the_reference_mean_of_its_condition(number: int) -> None:
    expected = expected_water(CONDITIONS[number], plain_panel())
    assert expected.dtype == np.float32
    assert expected.shape == (2163, 2069)
    assert expected.mean(dtype=np.float64) == pytest.approx(WATER_MEANS[number], rel=0.03)


def test_conditions_run_over_energy_within_camera_length() -> None:
    assert [(c.camera_length_m, c.photon_energy_eV) for c in CONDITIONS.values()][3:6] == [
        (0.25, 6000.0),
        (0.25, 7000.0),
        (0.25, 8000.0),
    ]


def test_water_is_linear_in_flux_and_thickness_and_weaker_along_the_polarisation() -> None:
    panel = plain_panel((301, 301), pixel_size_m=500e-6)
    base = Condition(7000.0, 0.15)
    water = expected_water(base, panel)
    twice = expected_water(dataclasses.replace(base, flux_photons=6e8, water_scale=3.0), panel)
    np.testing.assert_allclose(twice, 6.0 * water, rtol=1e-6)
    r2 = (150 * 500e-6) ** 2 / ((150 * 500e-6) ** 2 + 0.15**2)
    assert water[150, 300] / water[300, 150] == pytest.approx(1.0 - r2, rel=1e-5)


def test_water_follows_a_beam_that_is_off_the_middle() -> None:
    panel = plain_panel((200, 100))
    water = expected_water(Condition(7000.0, 0.02, beam_center_x_px=30.5, beam_center_y_px=170.5), panel)
    np.testing.assert_allclose(water[170 - 25 : 170, 30], water[170 + 25 : 170 : -1, 30], rtol=1e-6)
    np.testing.assert_allclose(water[170, :30], water[170, 60:30:-1], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 200.0, 5000.0])  # from sparse walking to dense drawing
def test_drawn_water_is_poisson_with_its_expectation(scale: float) -> None:
    detector = Detector("small", (300, 200), gaps_ss=((100, 110),))
    background = water_background(Condition(8000.0, 0.05), detector)
    assert background.total == pytest.approx(float(background.expected.sum(dtype=np.float64)), rel=1e-9)
    counts = np.zeros(detector.shape, dtype=detector.dtype)
    draw_background(background, scale, frame_rng(5, 0), counts, detector.largest_count)
    mean = background.expected.astype(np.float64) * scale
    live = ~detector.mask
    assert np.all(counts[100:110] == 0)
    assert counts.sum() == pytest.approx(mean.sum(), abs=4.0 * np.sqrt(mean.sum()))
    chi2 = np.sum((counts[live] - mean[live]) ** 2) / mean[live].sum()  # index of dispersion, 1 for Poisson
    assert chi2 == pytest.approx(1.0, abs=0.05)
    left = mean[:, :100].sum()
    assert counts[:, :100].sum() == pytest.approx(left, abs=4.0 * np.sqrt(left))


def test_photons_are_conserved_and_clipped_in_a_sparse_draw() -> None:
    index = np.array([3, 7, 7, 20], dtype=np.int64)
    photons = np.array([1000.0, 2000.0, 500.0, 0.25])
    total = np.zeros(30)
    for i in range(200):
        out = np.zeros((5, 6), dtype=np.uint16)
        draw_sparse(index, photons, frame_rng(1, i), out, 65534)
        total += out.reshape(-1)
    np.testing.assert_allclose(total[[3, 7]] / 200.0, [1000.0, 2500.0], rtol=0.02)
    assert total[20] / 200.0 == pytest.approx(0.25, abs=0.15)
    assert np.flatnonzero(total).tolist() in ([3, 7, 20], [3, 7])
    for photons_there in (3e5, 1e9):  # walked and dense
        out = np.zeros((5, 6), dtype=np.uint16)
        draw_sparse(index[:1], np.array([photons_there]), frame_rng(1, 0), out, 65534)
        assert out.max() == 65534


def test_the_eiger_has_its_gaps_and_limits() -> None:
    detector = eiger2_4m()
    assert detector.shape == (2162, 2068)
    assert int((~detector.mask).sum()) == 8 * 512 * 1028
    assert (detector.sentinel, detector.largest_count, detector.saturation_value) == (65535, 65534, 65533)
    assert eiger2_4m("uint32").sentinel == 2**32 - 1
    with pytest.raises(ValueError, match="gap"):
        Detector("d", (10, 10), gaps_fs=((5, 11),))
    with pytest.raises(ValueError, match="dtype"):
        eiger2_4m("float32")
